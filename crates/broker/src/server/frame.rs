//! Frames off a socket: a length of four bytes, then as many bytes.
//!
//! A length allocates nothing: the buffer grows as bytes arrive. It is kept from frame to frame, since a fresh buffer
//! costs page faults and cache misses that dwarf what is done with its content.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Room for the first read of a connection, and for reads between frames.
const CHUNK_BYTES: usize = 64 * 1024;
/// A buffer that has grown beyond this is given back once it is empty.
const KEEP_BYTES: usize = 2 * 1024 * 1024;

/// The first four bytes do not begin a Kafka request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("failed to read a request: its length {length} is negative")]
    Negative { length: i32 },
    #[error(
        "failed to read a request: {length} bytes are more than socket.request.max.bytes={max_bytes} allows; raise it there if the client is right"
    )]
    TooLong { length: usize, max_bytes: usize },
    #[error(
        "failed to read a request: the client speaks TLS, but this listener is PLAINTEXT; set security.protocol=PLAINTEXT there, or connect to an SSL listener"
    )]
    Tls,
    #[error("failed to read a request: the client speaks HTTP, but this is a Kafka listener")]
    Http,
}

/// Cuts a byte stream into frames.
#[derive(Debug)]
pub struct FrameReader {
    buf: BytesMut,
    max_bytes: usize,
    first: bool,
}

impl FrameReader {
    pub fn new(max_bytes: usize) -> FrameReader {
        FrameReader { buf: BytesMut::new(), max_bytes, first: true }
    }

    /// Whether a frame has begun to arrive.
    pub fn is_partial(&self) -> bool {
        !self.buf.is_empty()
    }

    /// Bytes of it that have arrived.
    pub fn arrived(&self) -> usize {
        self.buf.len()
    }

    /// Takes the next complete frame, without its length.
    pub fn take_frame(&mut self) -> Result<Option<BytesMut>, FrameError> {
        let Some(length) = self.peek_length()? else { return Ok(None) };
        if self.buf.len() < 4 + length {
            return Ok(None);
        }
        self.buf.advance(4);
        Ok(Some(self.buf.split_to(length)))
    }

    /// Gives the buffer back, unless there is something in it.
    pub fn release(&mut self) {
        if self.buf.is_empty() {
            self.buf = BytesMut::new();
        }
    }

    /// The length of the frame that is arriving; `None` as long as it is not known.
    pub fn arriving(&mut self) -> Result<Option<usize>, FrameError> {
        self.peek_length()
    }

    fn peek_length(&mut self) -> Result<Option<usize>, FrameError> {
        let Some(head) = self.buf.first_chunk::<4>() else { return Ok(None) };
        let length = i32::from_be_bytes(*head);
        let max_bytes = self.max_bytes;
        match usize::try_from(length) {
            Ok(length) if length <= max_bytes => {
                self.first = false;
                Ok(Some(length))
            }
            _ if self.first && head.starts_with(&[0x16, 0x03]) => Err(FrameError::Tls),
            _ if self.first && [b"GET ", b"POST", b"HEAD", b"PUT ", b"PRI "].contains(&head) => Err(FrameError::Http),
            Ok(length) => Err(FrameError::TooLong { length, max_bytes }),
            Err(_) => Err(FrameError::Negative { length }),
        }
    }

    /// Reads once from the socket; 0: the peer has closed.
    pub fn poll_fill<S: AsyncRead + Unpin>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let missing = match self.peek_length() {
            Ok(Some(length)) => (4 + length).saturating_sub(self.buf.len()),
            _ => 0,
        };
        // The rest of a large frame is read up to its end and no further: what follows starts at the buffer's front
        // again, in memory that is still in the cache.
        let limit = if missing > CHUNK_BYTES { missing } else { CHUNK_BYTES };
        if self.buf.capacity() - self.buf.len() < missing.clamp(1, CHUNK_BYTES) {
            self.buf.reserve(limit.min(self.buf.len().max(CHUNK_BYTES)));
        }
        if self.buf.is_empty() && self.buf.capacity() > KEEP_BYTES {
            self.buf = BytesMut::with_capacity(CHUNK_BYTES);
        }
        let mut limited = (&mut self.buf).limit(limit);
        let read = ready!(pin!(stream.read_buf(&mut limited)).poll(cx));
        Poll::Ready(read)
    }
}
