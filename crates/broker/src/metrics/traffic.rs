//! What went in and out of a partition: Kafka's `BrokerTopicMetrics`.

use std::sync::atomic::{AtomicU64, Ordering};

use caudal_protocol::ErrorCode;
use parking_lot::{Mutex, MutexGuard};

/// What is counted of each partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meter {
    MessagesIn,
    BytesIn,
    BytesOut,
    BytesRejected,
    ProduceRequests,
    FetchRequests,
    FailedProduceRequests,
    FailedFetchRequests,
}

/// All meters with Kafka's name and meaning, in the order of [`Meter`].
pub const METERS: [(Meter, &str, &str); 8] = [
    (Meter::MessagesIn, "messagesin", "Records appended"),
    (Meter::BytesIn, "bytesin", "Bytes of record batches appended"),
    (Meter::BytesOut, "bytesout", "Bytes of record batches fetched"),
    (Meter::BytesRejected, "bytesrejected", "Bytes of record batches refused as too large"),
    (Meter::ProduceRequests, "totalproducerequests", "Writes to a partition, failed ones too"),
    (Meter::FetchRequests, "totalfetchrequests", "Reads of a partition, failed ones too"),
    (Meter::FailedProduceRequests, "failedproducerequests", "Writes that failed unexpectedly"),
    (Meter::FailedFetchRequests, "failedfetchrequests", "Reads that failed unexpectedly"),
];

/// The sums of all meters.
pub type Sums = [u64; METERS.len()];

/// The counters of one partition, on a cache line of their own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Traffic([AtomicU64; METERS.len()]);

impl Traffic {
    pub fn add(&self, meter: Meter, count: u64) {
        if let Some(counter) = self.0.get(meter as usize) {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Adds what this partition has seen.
    pub fn add_to(&self, sums: &mut Sums) {
        for (sum, counter) in sums.iter_mut().zip(&self.0) {
            *sum += counter.load(Ordering::Relaxed);
        }
    }

    /// Takes note of an append that failed.
    pub fn append_failed(&self, error: ErrorCode, bytes: usize) {
        match error {
            ErrorCode::MessageTooLarge | ErrorCode::RecordListTooLarge => self.add(Meter::BytesRejected, bytes as u64),
            // Kafka counts what it does not know how to expect.
            ErrorCode::CorruptMessage | ErrorCode::KafkaStorageError | ErrorCode::NotLeaderOrFollower => {}
            _ => self.add(Meter::FailedProduceRequests, 1),
        }
    }

    /// Takes note of a read that failed.
    pub fn read_failed(&self, error: ErrorCode) {
        if matches!(error, ErrorCode::CorruptMessage | ErrorCode::UnknownServerError) {
            self.add(Meter::FailedFetchRequests, 1);
        }
    }
}

/// The traffic of partitions that are no more, so that the sums over all topics never fall.
#[derive(Debug, Default)]
pub struct Retired(Mutex<Sums>);

impl Retired {
    /// Whoever takes partitions away adds their traffic while holding this, and whoever adds up holds it while it looks at
    /// the partitions that there are: nothing is counted twice.
    pub fn lock(&self) -> MutexGuard<'_, Sums> {
        self.0.lock()
    }
}
