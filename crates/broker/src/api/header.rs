//! The header before every request.
//!
//! ```text
//! apiKey i16, apiVersion i16, correlationId i32, clientId: i16 length (-1: null) + UTF-8   header version 1
//! tagged fields: uvarint count, each uvarint tag, uvarint size, bytes                       header version 2
//! ```
//! The client id has a classic length in both versions (KIP-511).

use bytes::{Buf, BytesMut};
use std::sync::Arc;

use caudal_protocol::ApiKey;

use crate::server::ConnectionInfo;

/// Who asks what, in which version.
#[derive(Debug, Clone)]
pub struct RequestHeader {
    pub api: ApiKey,
    pub version: i16,
    pub correlation_id: i32,
    pub client_id: Option<String>,
    /// Of the request with its header.
    pub size_bytes: usize,
    pub connection: Arc<ConnectionInfo>,
}

impl RequestHeader {
    /// The client's address as Kafka prints it: `/127.0.0.1`.
    pub fn client_host(&self) -> String {
        format!("/{}", self.connection.peer.ip())
    }
}

/// The fixed start of a header.
#[derive(Debug, Clone, Copy)]
pub struct HeaderStart {
    pub api_key: i16,
    pub version: i16,
    pub correlation_id: i32,
}

/// Takes the fixed start off a frame.
pub fn take_start(frame: &mut BytesMut) -> Option<HeaderStart> {
    if frame.len() < 8 {
        return None;
    }
    Some(HeaderStart { api_key: frame.get_i16(), version: frame.get_i16(), correlation_id: frame.get_i32() })
}

/// Takes the rest of the header off a frame: the client id. Outer `None`: malformed.
pub fn take_client_id(frame: &mut BytesMut, header_version: i16) -> Option<Option<String>> {
    if frame.len() < 2 {
        return None;
    }
    let client_id = match usize::try_from(frame.get_i16()) {
        Err(_) => None,
        Ok(length) if length <= frame.len() => {
            let text = std::str::from_utf8(frame.get(..length)?).ok()?.to_owned();
            frame.advance(length);
            Some(text)
        }
        Ok(_) => return None,
    };
    if header_version >= 2 {
        skip_tags(frame)?;
    }
    Some(client_id)
}

/// Takes tagged fields off a frame without looking at them.
pub fn skip_tags(frame: &mut BytesMut) -> Option<()> {
    let count = take_uvarint(frame)?;
    for _ in 0..count {
        take_uvarint(frame)?;
        let size = take_uvarint(frame)? as usize;
        if size > frame.len() {
            return None;
        }
        frame.advance(size);
    }
    Some(())
}

/// Takes an unsigned varint of at most 32 bits off a frame.
pub fn take_uvarint(frame: &mut BytesMut) -> Option<u32> {
    let mut value = 0u32;
    for shift in [0, 7, 14, 21, 28] {
        if frame.is_empty() {
            return None;
        }
        let byte = frame.get_u8();
        if shift == 28 && byte > 0x0f {
            return None;
        }
        value |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
