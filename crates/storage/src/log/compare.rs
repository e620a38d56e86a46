//! Whether one copy of a partition's log makes another dispensable.

use std::sync::Arc;

use caudal_protocol::batch::BatchHeader;

use super::Log;
use crate::scan::{HeaderScan, ScanError};
use crate::segment::Segment;

impl Log {
    /// Whether both logs have the same batches from the later of their starts up to the end of `other`. By the headers: they hold
    /// a CRC-32C of the rest. False as well where damage keeps that from being told.
    pub fn covers(&self, other: &Log) -> bool {
        let from = self.log_start_offset().max(other.log_start_offset());
        let (own, others) = (self.snapshot(), other.snapshot());
        let (mut own, mut others) = (Headers::new(&own, from), Headers::new(&others, from));
        loop {
            match others.next() {
                // What it has lost it does not tell.
                Ok(None) => {
                    let end = other.log_end_offset();
                    return own.next().is_ok_and(|next| next.is_none_or(|header| header.base_offset >= end));
                }
                Ok(Some(wanted)) if matches!(own.next(), Ok(Some(found)) if found == wanted) => {}
                Ok(Some(_)) | Err(_) => return false,
            }
        }
    }
}

/// The headers of a log's batches from the one on that holds an offset or comes next.
struct Headers<'a> {
    segments: std::slice::Iter<'a, Arc<Segment>>,
    scan: Option<HeaderScan<'a>>,
    from: i64,
}

impl<'a> Headers<'a> {
    fn new(segments: &'a [Arc<Segment>], from: i64) -> Headers<'a> {
        let first = segments.partition_point(|segment| segment.base_offset <= from).saturating_sub(1);
        Headers { segments: segments.get(first..).unwrap_or_default().iter(), scan: None, from }
    }

    fn next(&mut self) -> Result<Option<BatchHeader>, ScanError> {
        loop {
            if let Some(scan) = &mut self.scan {
                while let Some((_, header)) = scan.next()? {
                    if header.next_offset() > self.from {
                        return Ok(Some(header));
                    }
                }
            }
            let Some(segment) = self.segments.next() else { return Ok(None) };
            self.scan = Some(HeaderScan::new(segment.file.as_ref(), 0, segment.size()));
        }
    }
}
