//! What the fuzz targets do with their input. `fuzz_targets/` hands it what the fuzzer makes up; the broker's tests
//! (`crates/broker/tests/it/fuzz.rs`) hand it the files in `corpus/` and `regressions/`.

pub mod batch;
pub mod frame;
pub mod group;
pub mod metadata;
pub mod recovery;
pub mod request;
pub mod transaction;

use caudal_protocol::batch::{BatchHeader, stamp_producer};

/// Panics where something is wrong with what the input leads to.
pub type Target = fn(&[u8]);

/// The targets by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("frame", frame::run),
    ("request", request::run),
    ("batch", batch::run),
    ("recovery", recovery::run),
    ("metadata", metadata::run),
    ("group", group::run),
    ("transaction", transaction::run),
];

/// Gives all batches that follow each other in `bytes` the CRC that fits, since no fuzzer finds one.
fn fix_crcs(bytes: &mut [u8]) {
    let mut rest = bytes;
    while let Ok(header) = BatchHeader::parse(rest) {
        let Some((batch, tail)) = rest.split_at_mut_checked(header.size_bytes()) else { return };
        stamp_producer(batch, header.producer_id, header.producer_epoch, header.base_sequence);
        rest = tail;
    }
}

/// Takes a length of two bytes and as many bytes off the input; what is there when there are less.
fn take_part<'a>(data: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = data.split_first_chunk::<2>()?;
    let (part, rest) = rest.split_at(rest.len().min(usize::from(u16::from_be_bytes(*length))));
    *data = rest;
    Some(part)
}
