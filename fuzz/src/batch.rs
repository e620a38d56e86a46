//! Record batches as producers send them: the broker's checks, the records, decompression, stamping.
//!
//! Input: a byte (odd: the CRCs are made to fit), then batches.

use bytes::Bytes;
use caudal_protocol::batch::{self, Batches, HEADER_LEN};
use caudal_protocol::record;

const LIMIT_BYTES: usize = 1 << 20;

pub fn run(data: &[u8]) {
    let Some((flags, rest)) = data.split_first() else { return };
    let mut bytes = rest.to_vec();
    if flags & 1 == 1 {
        super::fix_crcs(&mut bytes);
    }
    let _ = batch::check_crc(&bytes);
    let mut batches = Batches::new(Bytes::from(bytes));
    for batch in batches.by_ref() {
        let Ok(batch) = batch else { break };
        assert_eq!(batch.bytes.len(), batch.header.size_bytes());
        let valid = batch::validate(&batch.bytes);
        if let Ok(header) = &valid {
            assert_eq!(*header, batch.header);
            stamped(&batch.bytes);
        }
        let Ok(records) = batch.records(LIMIT_BYTES) else { continue };
        assert!(records.data().len() <= LIMIT_BYTES.max(batch.bytes.len() - HEADER_LEN), "the limit was passed");
        let mut count = 0;
        for record in records.iter() {
            let Ok(record) = record else { break };
            count += 1;
            let _ = records.share_record(&record);
            record.headers.iter().for_each(|_| {});
        }
        assert!(count <= records.len());
    }
    let _ = batches.remaining();
    checked(rest);
}

/// A batch that was good is good after it was stamped.
fn stamped(bytes: &[u8]) {
    let mut copy = bytes.to_vec();
    batch::stamp_offset(&mut copy, 77, 3);
    let header = batch::validate(&copy).expect("offset and epoch are not covered by the CRC");
    assert_eq!((header.base_offset, header.partition_leader_epoch), (77, 3));
    batch::stamp_log_append_time_parts(&mut copy, &[], 1_700_000_000_000);
    batch::validate(&copy).expect("the CRC was computed again");
}

/// The records of an uncompressed batch, as the broker walks them before it appends.
fn checked(bytes: &[u8]) {
    let count = u32::from(bytes.first().copied().unwrap_or_default());
    let _ = record::check_records(bytes, count, 0, 0, |_| {});
}
