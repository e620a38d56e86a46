//! One TCP connection to a broker: requests are pipelined, answers matched by correlation id.

use std::io::IoSlice;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use caudal_protocol::api::ApiKey;
use caudal_protocol::messages::api_versions_response::{ApiVersion, ApiVersionsResponse};
use caudal_protocol::messages::{ApiVersionsRequest, RequestHeader, ResponseHeader};
use caudal_protocol::wire::{Message, Part, Reader, Writer};
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::error::{Error, Result};
use crate::request::Request;

/// No answer is longer: a larger length prefix comes from something that is no Kafka broker ("HTTP" read as a length
/// is 1.2 GB).
const MAX_ANSWER_BYTES: usize = 512 * 1024 * 1024;
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// How a connection is made.
#[derive(Debug, Clone)]
pub(crate) struct ConnectOptions {
    pub client_id: String,
    pub connect_timeout: Duration,
    pub request_timeout: Duration,
    /// `None`: as the system has it.
    pub send_buffer_bytes: Option<usize>,
    pub receive_buffer_bytes: Option<usize>,
}

#[derive(Debug, Default)]
struct Pending {
    waiting: HashMap<i32, oneshot::Sender<Bytes>>,
    next_correlation_id: i32,
    closed: bool,
    /// What the peer did that no Kafka broker does.
    misbehaviour: Option<String>,
}

/// A request on its way to the socket.
#[derive(Debug)]
struct Outgoing {
    parts: Vec<Bytes>,
    /// Told when the socket has taken all of it.
    gone: Option<oneshot::Sender<()>>,
}

/// An open connection. Dropping it closes the socket; requests in flight then end as [`Error::Disconnected`].
#[derive(Debug)]
pub(crate) struct Connection {
    address: String,
    host: String,
    port: u16,
    client_id: String,
    versions: Vec<ApiVersion>,
    /// Feature levels and the rest of what the broker said of itself.
    pub(crate) api_versions: ApiVersionsResponse,
    pending: Arc<Mutex<Pending>>,
    outgoing: mpsc::UnboundedSender<Outgoing>,
    tasks: [AbortHandle; 2],
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

impl ConnectOptions {
    fn size_buffers(&self, stream: &TcpStream) -> std::io::Result<()> {
        let socket = socket2::SockRef::from(stream);
        self.send_buffer_bytes.map_or(Ok(()), |bytes| socket.set_send_buffer_size(bytes))?;
        self.receive_buffer_bytes.map_or(Ok(()), |bytes| socket.set_recv_buffer_size(bytes))
    }
}

impl Connection {
    /// Connects and asks which versions the broker serves.
    pub(crate) async fn open(host: &str, port: u16, options: &ConnectOptions) -> Result<Connection> {
        let address = format!("{host}:{port}");
        let unreachable = |reason: String| Error::Unreachable { address: address.clone(), reason };
        let stream = tokio::time::timeout(options.connect_timeout, TcpStream::connect((host, port)))
            .await
            .map_err(|_| unreachable(format!("no connection within {} ms", options.connect_timeout.as_millis())))?
            .map_err(|e| unreachable(io_reason(&e)))?;
        stream.set_nodelay(true).map_err(|e| unreachable(io_reason(&e)))?;
        options.size_buffers(&stream).map_err(|e| unreachable(io_reason(&e)))?;
        let (read, write) = stream.into_split();
        let pending = Arc::new(Mutex::new(Pending::default()));
        let (outgoing, queue) = mpsc::unbounded_channel();
        let reader = tokio::spawn(read_answers(read, Arc::clone(&pending), address.clone())).abort_handle();
        let writer = tokio::spawn(write_requests(write, queue, Arc::clone(&pending))).abort_handle();
        let mut connection = Connection {
            address,
            host: host.to_owned(),
            port,
            client_id: options.client_id.clone(),
            versions: Vec::new(),
            api_versions: ApiVersionsResponse::default(),
            pending,
            outgoing,
            tasks: [reader, writer],
        };
        connection.negotiate(options.request_timeout).await?;
        Ok(connection)
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn leads_to(&self, host: &str, port: u16) -> bool {
        self.port == port && self.host == host
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.pending.lock().closed
    }

    /// Closes the socket; whoever waits for an answer gets [`Error::Disconnected`].
    pub(crate) fn close(&self) {
        close(&self.pending);
        for task in &self.tasks {
            task.abort();
        }
    }

    /// ApiVersions with the newest version, then with the newest that the broker says it knows (KIP-511).
    async fn negotiate(&mut self, timeout: Duration) -> Result<()> {
        let request = ApiVersionsRequest {
            client_software_name: "caudal".to_owned(),
            client_software_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let mut version = ApiVersionsRequest::MAX_VERSION;
        let response = loop {
            let frame = self.submit_version(&request, version)?.frame(timeout).await?;
            let answer = self.decode_api_versions(frame, version)?;
            if answer.error_code == 0 {
                break answer;
            }
            let served = answer.api_keys.iter().find(|a| a.api_key == ApiKey::ApiVersions.code());
            let lower = served.map_or(0, |a| a.max_version).min(version - 1);
            if lower < 0 {
                let what = format!("agree on protocol versions with broker {}", self.address);
                return Err(Error::server(what, answer.error_code, None));
            }
            version = lower;
        };
        self.versions.clone_from(&response.api_keys);
        self.api_versions = response;
        Ok(())
    }

    fn decode_api_versions(&self, frame: Bytes, version: i16) -> Result<ApiVersionsResponse> {
        let failed = |e| Error::decode(&self.address, "ApiVersions", &e);
        let read = |version| {
            let mut reader = Reader::new(frame.clone());
            ResponseHeader::decode(&mut reader, 0)?;
            ApiVersionsResponse::decode(&mut reader, version)
        };
        match read(version) {
            Ok(response) => Ok(response),
            // A broker that does not know the version answers with version 0.
            Err(first) => read(0).map_err(|_| failed(first)),
        }
    }

    /// The newest version of a request that both sides know, at most `cap`.
    pub(crate) fn version_of<R: Request>(&self, cap: i16) -> Result<i16> {
        let ours = R::MAX_VERSION.min(cap);
        let served = self.versions.iter().find(|v| v.api_key == R::API_KEY);
        if let Some(served) = served {
            let version = served.max_version.min(ours);
            if version >= served.min_version && version >= R::MIN_VERSION {
                return Ok(version);
            }
        }
        Err(Error::UnsupportedApi {
            address: self.address.clone(),
            request: R::NAME,
            served: served.map_or_else(
                || "no such request".to_owned(),
                |s| format!("versions {} to {}", s.min_version, s.max_version),
            ),
            known: format!("{} to {ours}", R::MIN_VERSION),
        })
    }

    /// Puts a request on the wire, after all that were submitted before. The answer is awaited separately.
    pub(crate) fn submit<R: Request>(&self, request: &R, cap: i16) -> Result<InFlight<R>> {
        self.submit_version(request, self.version_of::<R>(cap)?)
    }

    fn submit_version<R: Request>(&self, request: &R, version: i16) -> Result<InFlight<R>> {
        let (answer, receiver) = oneshot::channel();
        let correlation_id = self.register(R::NAME, Some(answer))?;
        if let Err(error) = self.enqueue(request, version, correlation_id, None) {
            self.pending.lock().waiting.remove(&correlation_id);
            return Err(error);
        }
        Ok(InFlight {
            receiver,
            pending: Arc::clone(&self.pending),
            address: self.address.clone(),
            version,
            response: PhantomData,
        })
    }

    /// Puts a request on the wire that has no answer (produce with `acks=0`).
    pub(crate) fn submit_one_way<R: Request>(&self, request: &R, cap: i16) -> Result<Leaving> {
        let correlation_id = self.register(R::NAME, None)?;
        let (gone, receiver) = oneshot::channel();
        self.enqueue(request, self.version_of::<R>(cap)?, correlation_id, Some(gone))?;
        Ok(Leaving { receiver, address: self.address.clone(), request: R::NAME })
    }

    fn register(&self, request: &'static str, answer: Option<oneshot::Sender<Bytes>>) -> Result<i32> {
        let mut pending = self.pending.lock();
        if pending.closed {
            return Err(Error::Disconnected { address: self.address.clone(), request });
        }
        let id = pending.next_correlation_id;
        pending.next_correlation_id = id.wrapping_add(1) & i32::MAX;
        if let Some(answer) = answer {
            pending.waiting.insert(id, answer);
        }
        Ok(id)
    }

    fn enqueue<R: Request>(
        &self,
        request: &R,
        version: i16,
        correlation_id: i32,
        gone: Option<oneshot::Sender<()>>,
    ) -> Result<()> {
        let api = ApiKey::from_code(R::API_KEY);
        let header = RequestHeader {
            request_api_key: R::API_KEY,
            request_api_version: version,
            correlation_id,
            client_id: Some(self.client_id.clone()),
        };
        let failed = |source| Error::Encode { request: R::NAME, source };
        let mut writer = Writer::new();
        header.encode(&mut writer, api.map_or(1, |a| a.request_header_version(version))).map_err(failed)?;
        request.encode(&mut writer, version).map_err(failed)?;
        let frame = writer.finish();
        let mut prefix = BytesMut::with_capacity(4);
        prefix.put_u32(u32::try_from(frame.len()).unwrap_or(u32::MAX));
        let mut parts = vec![prefix.freeze()];
        for part in frame.parts {
            match part {
                Part::Bytes(bytes) => parts.push(bytes),
                Part::External { .. } => {
                    return Err(failed(caudal_protocol::wire::EncodeError::External));
                }
            }
        }
        // A closed queue means that the connection is gone; the answer's channel reports it.
        if self.outgoing.send(Outgoing { parts, gone }).is_err() {
            close(&self.pending);
        }
        Ok(())
    }
}

/// A request whose answer is still to come. Dropping it discards the answer.
#[derive(Debug)]
pub(crate) struct InFlight<R> {
    receiver: oneshot::Receiver<Bytes>,
    pending: Arc<Mutex<Pending>>,
    address: String,
    version: i16,
    response: PhantomData<fn() -> R>,
}

impl<R: Request> InFlight<R> {
    /// The answer, within `timeout` from now.
    pub(crate) async fn answer(self, timeout: Duration) -> Result<R::Response> {
        let (address, version) = (self.address.clone(), self.version);
        let frame = self.frame(timeout).await?;
        let failed = |e| Error::decode(&address, R::NAME, &e);
        let mut reader = Reader::new(frame);
        let header = ApiKey::from_code(R::API_KEY).map_or(0, |a| a.response_header_version(version));
        ResponseHeader::decode(&mut reader, header).map_err(failed)?;
        R::Response::decode(&mut reader, version).map_err(failed)
    }

    async fn frame(self, timeout: Duration) -> Result<Bytes> {
        match tokio::time::timeout(timeout, self.receiver).await {
            Ok(Ok(frame)) => Ok(frame),
            Ok(Err(_)) => Err(match self.pending.lock().misbehaviour.clone() {
                Some(reason) => Error::BadAnswer { address: self.address, request: R::NAME, reason },
                None => Error::Disconnected { address: self.address, request: R::NAME },
            }),
            Err(_) => Err(Error::RequestTimeout {
                address: self.address,
                request: R::NAME,
                timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }
}

/// A request without an answer.
#[derive(Debug)]
pub(crate) struct Leaving {
    receiver: oneshot::Receiver<()>,
    address: String,
    request: &'static str,
}

impl Leaving {
    /// Waits until the socket has taken the request, so that no more is queued than the peer keeps up with.
    pub(crate) async fn gone(self, timeout: Duration) -> Result<()> {
        let (address, request) = (self.address, self.request);
        match tokio::time::timeout(timeout, self.receiver).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Error::Disconnected { address, request }),
            Err(_) => {
                let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                Err(Error::RequestTimeout { address, request, timeout_ms })
            }
        }
    }
}

fn close(pending: &Mutex<Pending>) {
    let waiting = {
        let mut pending = pending.lock();
        pending.closed = true;
        std::mem::take(&mut pending.waiting)
    };
    drop(waiting);
}

/// The reason in few words: no "(os error 111)".
fn io_reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        _ => error.to_string(),
    }
}

async fn write_requests(
    mut socket: OwnedWriteHalf,
    mut queue: mpsc::UnboundedReceiver<Outgoing>,
    pending: Arc<Mutex<Pending>>,
) {
    let mut batch: Vec<Outgoing> = Vec::new();
    while queue.recv_many(&mut batch, 64).await > 0 {
        let parts: Vec<Bytes> = batch.iter_mut().flat_map(|outgoing| std::mem::take(&mut outgoing.parts)).collect();
        if let Err(error) = write_all_vectored(&mut socket, &parts).await {
            tracing::debug!(%error, "failed to write to a broker");
            break;
        }
        for gone in batch.drain(..).filter_map(|outgoing| outgoing.gone) {
            // Nobody may wait for it any more.
            let _ = gone.send(());
        }
    }
    close(&pending);
}

async fn write_all_vectored(socket: &mut OwnedWriteHalf, parts: &[Bytes]) -> std::io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut rest = slices.as_mut_slice();
    while !rest.is_empty() {
        let written = socket.write_vectored(rest).await?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}

async fn read_answers(mut socket: OwnedReadHalf, pending: Arc<Mutex<Pending>>, address: String) {
    let mut buffer = BytesMut::with_capacity(READ_BUFFER_BYTES);
    loop {
        match read_frame(&mut socket, &mut buffer).await {
            Ok(Some(frame)) => {
                let id = frame.first_chunk::<4>().map(|raw| i32::from_be_bytes(*raw));
                let waiting = id.and_then(|id| pending.lock().waiting.remove(&id));
                match waiting {
                    // The one who asked may have gone; the answer is then dropped.
                    Some(waiting) => drop(waiting.send(frame)),
                    None => {
                        pending.lock().misbehaviour = Some("it answers what was not asked".to_owned());
                        break;
                    }
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(address, %error, "failed to read from a broker");
                if error.kind() == std::io::ErrorKind::InvalidData {
                    pending.lock().misbehaviour = Some(error.to_string());
                }
                break;
            }
        }
    }
    close(&pending);
}

/// The next frame without its length; `None` when the peer closed between frames.
async fn read_frame(socket: &mut OwnedReadHalf, buffer: &mut BytesMut) -> std::io::Result<Option<Bytes>> {
    let wanted = loop {
        if let Some(prefix) = buffer.first_chunk::<4>() {
            break u32::from_be_bytes(*prefix) as usize;
        }
        buffer.reserve(READ_BUFFER_BYTES);
        if socket.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    if wanted > MAX_ANSWER_BYTES {
        let reason = format!("it would be {wanted} bytes long");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, reason));
    }
    drop(buffer.split_to(4));
    while buffer.len() < wanted {
        // A length that is not true must not take memory: the buffer doubles as bytes arrive.
        if buffer.len() == buffer.capacity() {
            buffer.reserve(buffer.len().max(READ_BUFFER_BYTES).min(wanted - buffer.len()));
        }
        if socket.read_buf(buffer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Some(buffer.split_to(wanted).freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_length_takes_no_memory_before_its_bytes_arrive() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut peer, accepted) =
            (TcpStream::connect(listener.local_addr().unwrap()).await.unwrap(), listener.accept().await.unwrap());
        let (mut socket, _write) = accepted.0.into_split();
        peer.write_all(&u32::try_from(MAX_ANSWER_BYTES).unwrap().to_be_bytes()).await.unwrap();
        peer.write_all(&[7; 100]).await.unwrap();
        drop(peer);
        let mut buffer = BytesMut::new();
        let error = read_frame(&mut socket, &mut buffer).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
        assert!(buffer.capacity() <= 4 * READ_BUFFER_BYTES, "{}", buffer.capacity());
    }
}
