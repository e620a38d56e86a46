//! Responses on their way into a socket: small pieces gathered into one system call, file ranges by sendfile.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use caudal_protocol::wire::{Frame, Part};
use caudal_storage::DiskFile;
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// File ranges up to this size are copied into the frame: cheaper than a sendfile and a packet of their own.
const COPY_MAX_BYTES: usize = 4096;
/// Pieces gathered into one system call.
const GATHER_MAX: usize = 32;
/// Bytes that a connection writes before the others of its thread get their turn.
const QUANTUM_BYTES: usize = 1024 * 1024;
/// Bytes that one sendfile moves.
const SENDFILE_MAX_BYTES: usize = 1024 * 1024;
/// Buffer where sendfile is not to be had.
const COPY_CHUNK_BYTES: usize = 64 * 1024;

/// Bytes of a file that belong into a response.
#[derive(Debug, Clone)]
pub struct FileRange {
    pub file: Arc<dyn DiskFile>,
    pub position: u64,
    pub len: usize,
}

/// An encoded response; its external parts are numbered by their place in `ranges`.
#[derive(Debug)]
pub struct Response {
    frame: Frame,
    ranges: Vec<FileRange>,
}

impl Response {
    pub fn new(frame: Frame) -> Response {
        Response { frame, ranges: Vec::new() }
    }

    pub fn with_ranges(frame: Frame, ranges: Vec<FileRange>) -> Response {
        Response { frame, ranges }
    }
}

#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    File(FileRange),
}

/// What is to be written, in order.
#[derive(Debug, Default)]
pub struct Outgoing {
    pieces: VecDeque<Piece>,
}

impl Outgoing {
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Puts a response at the end.
    ///
    /// # Errors
    /// A small file range could not be read.
    pub fn push(&mut self, response: Response) -> io::Result<()> {
        let Response { frame, ranges } = response;
        let mut small = BytesMut::new();
        for part in frame.parts {
            match part {
                Part::Bytes(b) if small.is_empty() => self.pieces.push_back(Piece::Bytes(b)),
                Part::Bytes(b) => small.extend_from_slice(&b),
                Part::External { id, len } => {
                    let Some(range) = ranges.get(id) else { continue };
                    let range = FileRange { len, ..range.clone() };
                    if len <= COPY_MAX_BYTES {
                        let start = small.len();
                        small.resize(start + len, 0);
                        read_exact_at(&range, small.get_mut(start..).unwrap_or_default())?;
                    } else {
                        if !small.is_empty() {
                            self.pieces.push_back(Piece::Bytes(small.split().freeze()));
                        }
                        self.pieces.push_back(Piece::File(range));
                    }
                }
            }
        }
        if !small.is_empty() {
            self.pieces.push_back(Piece::Bytes(small.freeze()));
        }
        Ok(())
    }

    /// Writes until all is out (`Ready`), the socket is full, or others have waited long enough.
    pub fn poll_write(&mut self, stream: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut written = 0;
        while !self.pieces.is_empty() {
            if written >= QUANTUM_BYTES {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(stream.poll_write_ready(cx))?;
            match self.write_once(stream) {
                Ok(sent) => written += sent,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn write_once(&mut self, stream: &TcpStream) -> io::Result<usize> {
        if let Some(Piece::File(range)) = self.pieces.front_mut() {
            let sent = stream.try_io(Interest::WRITABLE, || send_range(stream, range))?;
            if sent == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("failed to send {} bytes from {}: the file is shorter", range.len, range.position),
                ));
            }
            range.position += sent as u64;
            range.len -= sent;
            if range.len == 0 {
                self.pieces.pop_front();
            }
            return Ok(sent);
        }
        let sent = {
            let mut slices: [IoSlice<'_>; GATHER_MAX] = std::array::from_fn(|_| IoSlice::new(&[]));
            let mut count = 0;
            for (slot, piece) in slices.iter_mut().zip(&self.pieces) {
                let Piece::Bytes(b) = piece else { break };
                *slot = IoSlice::new(b);
                count += 1;
            }
            // The rest follows at once: let the kernel fill its packets.
            let more = self.pieces.len() > count;
            let gathered = slices.get(..count).unwrap_or_default();
            stream.try_io(Interest::WRITABLE, || send_bytes(stream, gathered, more))?
        };
        self.consume(sent);
        Ok(sent)
    }

    fn consume(&mut self, mut sent: usize) {
        while let Some(Piece::Bytes(b)) = self.pieces.front_mut() {
            if b.len() > sent {
                b.advance(sent);
                return;
            }
            sent -= b.len();
            self.pieces.pop_front();
            if sent == 0 {
                return;
            }
        }
    }
}

fn send_bytes(stream: &TcpStream, slices: &[IoSlice<'_>], more: bool) -> io::Result<usize> {
    let mut flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    if more {
        flags |= SendFlags::MORE;
    }
    if let [only] = slices {
        return Ok(rustix::net::send(stream, only, flags)?);
    }
    let mut control = rustix::net::SendAncillaryBuffer::default();
    Ok(rustix::net::sendmsg(stream, slices, &mut control, flags)?)
}

/// Sends from the page cache where the platform and the file allow, else through a buffer.
fn send_range(stream: &TcpStream, range: &FileRange) -> io::Result<usize> {
    #[cfg(target_os = "linux")]
    if let Some(file) = range.file.as_fd() {
        let mut position = range.position;
        let count = range.len.min(SENDFILE_MAX_BYTES);
        return Ok(rustix::fs::sendfile(stream, file, Some(&mut position), count)?);
    }
    let mut chunk = vec![0; range.len.min(COPY_CHUNK_BYTES)];
    let read = range.file.read_at(&mut chunk, range.position)?;
    Ok(rustix::net::send(stream, chunk.get(..read).unwrap_or_default(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
}

fn read_exact_at(range: &FileRange, into: &mut [u8]) -> io::Result<()> {
    if range.file.read_at(into, range.position)? < into.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
