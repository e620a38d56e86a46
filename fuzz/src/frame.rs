//! The cutting of a byte stream into frames, and the header of each.
//!
//! Input: a byte that says in which pieces the stream arrives, then the stream.

use std::task::{Context, Poll, Waker};

use caudal_broker::api::header;
use caudal_broker::server::FrameReader;
use caudal_protocol::ApiKey;

const MAX_BYTES: usize = 4096;

pub fn run(data: &[u8]) {
    let Some((first, stream)) = data.split_first() else { return };
    let piece = usize::from(*first).max(1);
    let whole = frames(stream, stream.len().max(1));
    assert_eq!(frames(stream, piece), whole, "in pieces of {piece} bytes");
    for frame in whole {
        let mut frame = frame.as_slice().into();
        if let Some(start) = header::take_start(&mut frame)
            && let Some(api) = ApiKey::from_code(start.api_key)
        {
            header::take_client_id(&mut frame, api.request_header_version(start.version));
        }
    }
}

/// The frames of a stream up to the first that is refused.
fn frames(stream: &[u8], piece: usize) -> Vec<Vec<u8>> {
    let mut reader = FrameReader::new(MAX_BYTES);
    let mut found = Vec::new();
    for mut arrived in stream.chunks(piece) {
        while !arrived.is_empty() {
            match reader.poll_fill(&mut arrived, &mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(read)) => assert!(read > 0, "there was something to read"),
                other => panic!("a slice is always ready: {other:?}"),
            }
            loop {
                match reader.take_frame() {
                    Ok(Some(frame)) => {
                        assert!(frame.len() <= MAX_BYTES);
                        found.push(frame.to_vec());
                    }
                    Ok(None) => break,
                    Err(_) => return found,
                }
            }
        }
    }
    found
}
