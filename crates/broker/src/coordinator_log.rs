//! How a coordinator reads what it stored in a partition of its topic.

use caudal_protocol::batch::{Batch, BatchError, Batches, check_crc};
use caudal_storage::Log;

/// Bounds what a compressed batch may unfold to.
pub const DECOMPRESSED_MAX_BYTES: usize = 64 * 1024 * 1024;
const READ_BYTES: usize = 1024 * 1024;

/// Shows `each` batch from the start of the log to the end that it has now; blocks.
///
/// # Errors
/// What cannot be read, with its offset. A batch whose CRC does not fit its bytes is not shown: with a bit turned over
/// it may still be read, as of another group or another state. Nor is one out of its order, as its base offset is not
/// covered by the CRC.
pub fn replay(log: &Log, mut each: impl FnMut(&Batch) -> Result<(), String>) -> Result<(), String> {
    let start = log.log_start_offset();
    let mut offset = start;
    let end = log.log_end_offset();
    while offset < end {
        let slice = log.read(offset, READ_BYTES, end, true).map_err(|e| e.to_string())?;
        let bytes = slice.to_bytes().map_err(|e| e.to_string())?;
        let before = offset;
        for batch in Batches::new(bytes) {
            let batch = batch.map_err(|e| format!("offset {offset}: {e}"))?;
            check_crc(&batch.bytes).map_err(|e| e.to_string())?;
            let (base_offset, next_offset) = (batch.header.base_offset, batch.header.next_offset());
            // The first one may begin before the log does.
            if next_offset <= offset || next_offset > end || (base_offset < offset && offset != start) {
                return Err(BatchError::Misplaced { base_offset, expected: offset }.to_string());
            }
            offset = next_offset;
            each(&batch).map_err(|e| format!("the batch at offset {base_offset}: {e}"))?;
        }
        if offset == before {
            return Err(format!("no whole batch at offset {offset}"));
        }
    }
    Ok(())
}
