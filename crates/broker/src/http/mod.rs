//! The page of metrics and the health checks, over HTTP/1.1: GET and HEAD of a few paths, an answer for each connection, then
//! its end. What clients may cost is bounded: the bytes of a request, the time of it and of its answer, connections at a time,
//! of which those that say nothing, or do not take what they asked for, give way to new ones.

mod health;
mod host;
mod places;
mod request;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use self::health::Health;
use self::host::Hosts;
use self::places::{Place, Places};
use self::request::{MAX_REQUEST_BYTES, Request, RequestError};
use crate::config::BrokerConfig;
use crate::context::Context;
use crate::metrics::{Exposition, write_page};
use crate::server::{BindError, bind_all};

/// Connections at a time. One more takes the place of another, see [`places`].
const MAX_CONNECTIONS: usize = 16;
/// For a request to arrive.
const MAX_REQUEST_TIME: Duration = Duration::from_secs(10);
/// For an answer to be taken: the page of a large broker over a slow line too.
const MAX_ANSWER_TIME: Duration = Duration::from_secs(60);
/// What is said of a port that is taken.
const HINT: &str = "caudal.http.listeners=http://IP:PORT";

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

const INDEX: &str = "Caudal\n\n/metrics       for Prometheus\n/health        the same as /health/ready\n\
                     /health/live   the process answers\n/health/ready  the broker serves\n";

/// The broker as the listener knows it: empty while it is starting.
pub type Serving = Arc<OnceLock<Arc<Context>>>;

/// Sockets that listen but do not accept yet.
#[derive(Debug, Default)]
pub struct HttpListener {
    sockets: Vec<TcpListener>,
    pub bound: Vec<SocketAddr>,
    hosts: Hosts,
}

impl HttpListener {
    /// Takes the addresses of `caudal.http.listeners`; none of them where they are optional and one is taken.
    ///
    /// # Errors
    /// An address is taken, is not one of this machine, or is open to others without leave.
    pub fn bind(config: &BrokerConfig) -> Result<HttpListener, BindError> {
        match bind_all(&config.http_listen, config.allow_insecure, HINT) {
            Ok((sockets, bound)) => Ok(HttpListener { sockets, bound, hosts: Hosts::of(config) }),
            Err(BindError::InUse { address, .. }) if config.http_optional => {
                tracing::info!("no metrics and health checks: {address} is in use ({HINT} chooses another)");
                Ok(HttpListener::default())
            }
            Err(error) => Err(error),
        }
    }

    /// Accepts until `stop` turns true or its sender is gone.
    pub fn serve(self, serving: &Serving, stop: &watch::Receiver<bool>) {
        let (places, hosts) = (Arc::new(Places::new(MAX_CONNECTIONS)), Arc::new(self.hosts));
        for socket in self.sockets {
            tokio::spawn(accept(socket, (serving.clone(), hosts.clone()), places.clone(), stop.clone()));
        }
    }
}

async fn accept(
    socket: TcpListener,
    (serving, hosts): (Serving, Arc<Hosts>),
    places: Arc<Places>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = stop.changed() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("failed to accept an HTTP connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let place = tokio::select! {
            place = places.take() => place,
            _ = stop.changed() => return,
        };
        let (serving, hosts, mut stop) = (serving.clone(), hosts.clone(), stop.clone());
        tokio::spawn(async move {
            let answered = tokio::select! {
                answered = answer(stream, place, &serving, &hosts) => answered,
                _ = stop.changed() => Ok(()),
            };
            if let Err(error) = answered {
                tracing::debug!(%peer, "an HTTP connection ended: {error}");
            }
        });
    }
}

async fn answer(mut stream: TcpStream, mut place: Place, serving: &Serving, hosts: &Hosts) -> io::Result<()> {
    let request = tokio::select! {
        request = timeout(MAX_REQUEST_TIME, read(&mut stream)) => request.map_err(|_| io::ErrorKind::TimedOut)??,
        () = place.wanted() => return Err(io::Error::other("it said nothing, and another one came")),
    };
    place.answering();
    let ends = Instant::now() + MAX_ANSWER_TIME;
    tokio::select! {
        answered = timeout_at(ends, respond(&mut stream, request, serving, hosts)) => answered.map_err(|_| io::ErrorKind::TimedOut)??,
        () = place.wanted() => return Err(io::Error::other("it did not take its answer, and another one came")),
    }
    place.answered();
    tokio::select! {
        left = timeout_at(ends, leave(&mut stream)) => left.map_err(|_| io::ErrorKind::TimedOut)?,
        () = place.wanted() => Ok(()),
    }
}

/// Waits until the peer has ended too: what it had yet to say must not make the system take back what was answered.
async fn leave(stream: &mut TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut unread = [0; 1024];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}

/// Reads the head of a request; GET and HEAD have no more.
async fn read(stream: &mut TcpStream) -> io::Result<Result<Request, RequestError>> {
    let mut head = Vec::new();
    loop {
        match Request::parse(&head) {
            Err(RequestError::Incomplete) if head.len() < MAX_REQUEST_BYTES => {}
            Err(RequestError::Incomplete) => return Ok(Err(RequestError::TooLarge)),
            parsed => return Ok(parsed),
        }
        let mut chunk = [0; 1024];
        let read = stream.read(&mut chunk).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(chunk.get(..read).unwrap_or_default());
    }
}

async fn respond(
    stream: &mut TcpStream,
    request: Result<Request, RequestError>,
    serving: &Serving,
    hosts: &Hosts,
) -> io::Result<()> {
    let request = match request {
        Ok(request) => request,
        Err(error) => {
            let allow = if error == RequestError::Method { "Allow: GET, HEAD\r\n" } else { "" };
            return write_all(stream, (error.status(), allow), (TEXT, &format!("{error}\n")), true).await;
        }
    };
    let local = stream.local_addr()?.ip();
    if let Some(host) = request.host.as_ref().filter(|host| !hosts.allow(local, host)) {
        let text = format!(
            "'{host}' is not a name of this broker. Ask for it by IP address, as localhost, or by a host that \
             caudal.http.listeners or advertised.listeners names.\n"
        );
        return write_all(stream, ("421 Misdirected Request", ""), (TEXT, &text), true).await;
    }
    let ctx = serving.get();
    let with_body = !request.is_head;
    match request.path.as_str() {
        "/metrics" => {
            let framing = if request.takes_chunks { "Transfer-Encoding: chunked\r\n" } else { "" };
            let head = head("200 OK", &format!("Content-Type: {METRICS}\r\n{framing}"));
            stream.write_all(head.as_bytes()).await?;
            if with_body {
                let mut page = Exposition::new(stream, request.takes_chunks);
                write_page(ctx.map(|ctx| &**ctx), &mut page).await?;
            }
            Ok(())
        }
        "/health/live" => write_all(stream, ("200 OK", ""), (JSON, "{\"status\":\"ok\"}\n"), with_body).await,
        "/health" | "/health/ready" => {
            let health = Health::of(ctx.map(|ctx| &**ctx));
            let status = if health.is_ready() { "200 OK" } else { "503 Service Unavailable" };
            write_all(stream, (status, ""), (JSON, &health.to_json()), with_body).await
        }
        "/" => write_all(stream, ("200 OK", ""), (TEXT, INDEX), with_body).await,
        _ => write_all(stream, ("404 Not Found", ""), (TEXT, &format!("Not found. {INDEX}")), with_body).await,
    }
}

fn head(status: &str, more: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\n{more}Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
}

async fn write_all(
    stream: &mut TcpStream,
    (status, more): (&str, &str),
    (kind, body): (&str, &str),
    with_body: bool,
) -> io::Result<()> {
    let mut text = head(status, &format!("{more}Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len()));
    if with_body {
        text.push_str(body);
    }
    stream.write_all(text.as_bytes()).await
}
