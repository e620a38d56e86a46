//! Accepting connections.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use caudal_cluster::config::connection_overrides;
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use super::connection::{Closed, Connection, ConnectionInfo};
use crate::config::{BrokerConfig, ConnectionLimits};
use crate::context::Context;
use crate::quota::Admission;
use crate::seldom::Seldom;

const BACKLOG: i32 = 1024;
/// How long a stop waits for a client that does not take its answers.
const MAX_DRAIN: Duration = Duration::from_secs(5);
/// How long a stop waits for clients to read what they were sent.
const MAX_LINGER: Duration = Duration::from_millis(500);

/// Why a broker cannot listen where it should.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "failed to listen on {0}: it can be reached from other machines and nobody has to authenticate; listen on 127.0.0.1, or set caudal.allow.insecure=true if that is meant"
    )]
    Insecure(SocketAddr),
    #[error(
        "failed to listen on {address}: the address is in use; stop the other program (`ss -ltnp 'sport = :{port}'` names it) or choose another port: {hint}",
        port = address.port()
    )]
    InUse { address: SocketAddr, hint: &'static str },
    #[error("failed to listen on {address}: {source}")]
    Io { address: SocketAddr, source: io::Error },
}

/// Sockets that listen but do not accept yet.
#[derive(Debug)]
pub struct Listener {
    sockets: Vec<TcpListener>,
    pub bound: Vec<SocketAddr>,
}

/// What is said of a port that is taken.
const HINT: &str = "`caudal up --port PORT`, or listeners=PLAINTEXT://IP:PORT in a properties file";

/// Takes the configured addresses.
///
/// # Errors
/// An address is taken, is not one of this machine, or is open to others without leave.
pub fn bind(config: &BrokerConfig) -> Result<Listener, BindError> {
    let (sockets, bound) = bind_all(&config.listen, config.allow_insecure, HINT)?;
    Ok(Listener { sockets, bound })
}

/// Takes addresses; the second value is what they are, where port 0 was asked for too.
///
/// # Errors
/// As of [`bind`]; `hint` tells how to choose another port.
pub fn bind_all(
    addresses: &[SocketAddr],
    allow_insecure: bool,
    hint: &'static str,
) -> Result<(Vec<TcpListener>, Vec<SocketAddr>), BindError> {
    let mut sockets = Vec::new();
    let mut bound = Vec::new();
    for &address in addresses {
        if !address.ip().is_loopback() && !allow_insecure {
            return Err(BindError::Insecure(address));
        }
        let socket = bind_one(address).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { address, hint },
            _ => BindError::Io { address, source },
        })?;
        bound.push(socket.local_addr().map_err(|source| BindError::Io { address, source })?);
        sockets.push(socket);
    }
    Ok((sockets, bound))
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Connections that are open, against the limits.
#[derive(Debug, Default)]
struct Counts {
    total: AtomicUsize,
    per_ip: Mutex<HashMap<IpAddr, usize>>,
    next_id: AtomicU64,
    refused: Seldom,
    malformed: Seldom,
    slow: Seldom,
}

/// One connection's place in the counts, given back when dropped.
struct Place {
    counts: Arc<Counts>,
    ctx: Arc<Context>,
    /// The place of its listener.
    listener: usize,
    ip: IpAddr,
}

impl Place {
    fn take(counts: &Arc<Counts>, listener: usize, ip: IpAddr, ctx: &Arc<Context>) -> Result<Place, &'static str> {
        let limit = |number: i64| usize::try_from(number).unwrap_or(usize::MAX);
        let most = limit(ctx.broker_number("max.connections")).min(ctx.config.limits.open_files);
        if counts.total.load(Ordering::Relaxed) >= most {
            return Err("max.connections");
        }
        let overrides = connection_overrides(&ctx.broker_text("max.connections.per.ip.overrides")).unwrap_or_default();
        let own = overrides.iter().find(|(address, _)| *address == ip.to_canonical());
        let most_per_ip = own.map_or_else(|| limit(ctx.broker_number("max.connections.per.ip")), |(_, most)| *most);
        let mut per_ip = counts.per_ip.lock();
        let open = per_ip.entry(ip).or_default();
        if *open >= most_per_ip {
            return Err("max.connections.per.ip");
        }
        *open += 1;
        counts.total.fetch_add(1, Ordering::Relaxed);
        if let Some(connections) = ctx.metrics.connections.get(listener) {
            connections.opened();
        }
        Ok(Place { counts: counts.clone(), ctx: ctx.clone(), listener, ip })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.counts.total.fetch_sub(1, Ordering::Relaxed);
        if let Some(connections) = self.ctx.metrics.connections.get(self.listener) {
            connections.closed();
        }
        let mut per_ip = self.counts.per_ip.lock();
        if let Some(open) = per_ip.get_mut(&self.ip) {
            *open -= 1;
            if *open == 0 {
                per_ip.remove(&self.ip);
            }
        }
    }
}

/// What a task needs to know of the broker's end: when to stop, and a sender that is dropped when it has.
type Life = (watch::Receiver<bool>, mpsc::Sender<()>);

/// The connections of a broker.
#[derive(Debug)]
pub struct Serving(mpsc::Receiver<()>);

impl Serving {
    /// Waits until all connections have ended, after a stop.
    pub async fn ended(mut self) {
        while self.0.recv().await.is_some() {}
    }
}

impl Listener {
    /// Accepts until `stop` turns true; connections end by themselves then, see [`Serving::ended`].
    pub fn serve(self, ctx: &Arc<Context>, stop: &watch::Receiver<bool>) -> Serving {
        let counts = Arc::new(Counts::default());
        let (alive, ended) = mpsc::channel(1);
        for (at, socket) in self.sockets.into_iter().enumerate() {
            tokio::spawn(accept((at, socket), ctx.clone(), counts.clone(), (stop.clone(), alive.clone())));
        }
        Serving(ended)
    }
}

async fn accept((at, socket): (usize, TcpListener), ctx: Arc<Context>, counts: Arc<Counts>, (mut stop, alive): Life) {
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = stop.changed() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of file descriptors: the connections that there are go on; try again shortly.
                tracing::warn!("failed to accept a connection: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match ctx.quotas.connect(peer.ip(), ctx.broker_number("max.connection.creation.rate")) {
            Admission::Now => {}
            Admission::Later(pause) => {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    _ = stop.changed() => return,
                }
            }
            Admission::Refused(pause) => {
                tracing::debug!(%peer, "refused a connection: its address has a quota of them");
                hold_back(stream, pause, Place::take(&counts, at, peer.ip(), &ctx).ok());
                continue;
            }
        }
        let place = match Place::take(&counts, at, peer.ip(), &ctx) {
            Ok(place) => place,
            Err(limit) => {
                if let Some(left_out) = counts.refused.now() {
                    tracing::warn!(%peer, "refused a connection: {limit} is reached{left_out}");
                }
                continue;
            }
        };
        let id = counts.next_id.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(run(stream, peer, id, ctx.clone(), place, (stop.clone(), alive.clone())));
    }
}

/// Closes a connection after a while, or at once when there is no place for it: its client would ask again.
fn hold_back(stream: TcpStream, pause: Duration, place: Option<Place>) {
    if let Some(place) = place {
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            drop((stream, place));
        });
    }
}

/// What the system decides by itself otherwise, up to some megabytes. The defaults are where the work for a byte was least when
/// both buffers were measured (bench/README.md): smaller ones wake each side more often, larger ones are throttled by the
/// other side's window, at more work for each.
fn size_buffers(stream: &TcpStream, limits: &ConnectionLimits) -> io::Result<()> {
    let socket = SockRef::from(stream);
    if let Some(bytes) = limits.send_buffer_bytes {
        socket.set_send_buffer_size(bytes)?;
    }
    if let Some(bytes) = limits.receive_buffer_bytes {
        socket.set_recv_buffer_size(bytes)?;
    }
    Ok(())
}

async fn run(stream: TcpStream, peer: SocketAddr, id: u64, ctx: Arc<Context>, place: Place, (mut stop, _alive): Life) {
    let Ok(local) = stream.local_addr() else { return };
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!(%peer, "failed to set TCP_NODELAY: {e}");
    }
    if let Err(e) = size_buffers(&stream, &ctx.config.limits) {
        tracing::debug!(%peer, "failed to set the sizes of socket buffers: {e}");
    }
    let mut connection = Connection::new(ctx, ConnectionInfo::new(id, peer, local), stream);
    let closed = tokio::select! {
        closed = poll_fn(|cx| connection.poll(cx)) => closed,
        _ = stop.changed() => {
            connection.drain();
            let drained = tokio::time::timeout(MAX_DRAIN, poll_fn(|cx| connection.poll(cx))).await;
            if drained.is_ok() {
                connection.linger(MAX_LINGER).await;
            }
            drained.unwrap_or(Closed::Undrained(MAX_DRAIN))
        }
    };
    match &closed {
        Closed::Peer | Closed::Io(_) | Closed::Idle(_) => tracing::debug!(%peer, "connection ended: {closed}"),
        Closed::Frame(_) | Closed::Refused(_) => warn_closed(&place.counts.malformed, peer, &closed),
        Closed::Stalled(_) | Closed::Slow | Closed::Undrained(_) => warn_closed(&place.counts.slow, peer, &closed),
    }
    drop(place);
}

fn warn_closed(alike: &Seldom, peer: SocketAddr, closed: &Closed) {
    if let Some(left_out) = alike.now() {
        tracing::warn!(%peer, "closed a connection: {closed}{left_out}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sockets_get_the_buffers_of_the_settings() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut limits = BrokerConfig::new("unused").limits;
        assert_eq!((limits.send_buffer_bytes, limits.receive_buffer_bytes), (Some(204_800), Some(524_288)));
        let sizes = || {
            let socket = SockRef::from(&stream);
            (socket.send_buffer_size().unwrap(), socket.recv_buffer_size().unwrap())
        };
        let given = sizes();
        (limits.send_buffer_bytes, limits.receive_buffer_bytes) = (None, None);
        size_buffers(&stream, &limits).unwrap();
        assert_eq!(sizes(), given);
        (limits.send_buffer_bytes, limits.receive_buffer_bytes) = (Some(50_000), Some(60_000));
        size_buffers(&stream, &limits).unwrap();
        // Linux doubles them for its own book-keeping.
        let (send, receive) = sizes();
        assert!((50_000..=100_000).contains(&send) && (60_000..=120_000).contains(&receive), "{send} {receive}");
    }
}
