//! The metadata log of a one-voter quorum: read at start, appended to by changes.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use caudal_cluster::{MetadataImage, MetadataRecord};
use caudal_protocol::batch::{BatchBuilder, Batches};
use caudal_protocol::compression::Codec;
use caudal_storage::{AppendOrigin, Log};

use crate::clock;
use crate::metadata::MetadataStore;

const READ_BYTES: usize = 1024 * 1024;
const DECOMPRESSED_MAX_BYTES: usize = 64 * 1024 * 1024;
/// Records in a batch, as many as Kafka's controller puts into one.
const BATCH_RECORDS: usize = 1000;

/// `__cluster_metadata-0` and what its records add up to.
#[derive(Debug)]
pub struct LocalStore {
    log: Arc<Log>,
    image: MetadataImage,
    epoch: i32,
}

impl LocalStore {
    /// Reads the log.
    ///
    /// # Errors
    /// A sentence: the log cannot be read or a record not be applied.
    pub fn load(log: Arc<Log>) -> Result<LocalStore, String> {
        let mut replay = Replay { image: MetadataImage::empty(), open: None };
        let mut offset = log.log_start_offset();
        let end = log.log_end_offset();
        while offset < end {
            let slice = log.read(offset, READ_BYTES, end, true).map_err(|e| e.to_string())?;
            let before = offset;
            for batch in Batches::new(slice.to_bytes().map_err(|e| e.to_string())?) {
                let batch = batch.map_err(|e| e.to_string())?;
                offset = batch.header.next_offset();
                replay.image.epoch = batch.header.partition_leader_epoch;
                if batch.header.is_control() {
                    continue;
                }
                for record in batch.records(DECOMPRESSED_MAX_BYTES).map_err(|e| e.to_string())?.iter() {
                    let value =
                        record.map_err(|e| e.to_string())?.value.map(Bytes::copy_from_slice).unwrap_or_default();
                    replay.next(MetadataRecord::decode(value).map_err(|e| e.to_string())?)?;
                }
            }
            if offset == before {
                return Err(format!("failed to read the metadata log: no whole batch at offset {offset}"));
            }
        }
        let mut image = replay.image;
        image.offset = end - 1;
        let epoch = image.epoch + 1;
        Ok(LocalStore { log, image, epoch })
    }

    pub fn image(&self) -> &MetadataImage {
        &self.image
    }
}

/// Folds records into an image; those of a transaction take effect together, or not at all when it is aborted or was cut
/// off (KIP-868).
struct Replay {
    image: MetadataImage,
    open: Option<Vec<MetadataRecord>>,
}

impl Replay {
    fn next(&mut self, record: MetadataRecord) -> Result<(), String> {
        match (record, &mut self.open) {
            (MetadataRecord::BeginTransaction(_), open) => *open = Some(Vec::new()),
            (MetadataRecord::AbortTransaction(_), open) => *open = None,
            (MetadataRecord::EndTransaction(_), open) => {
                for record in open.take().unwrap_or_default() {
                    self.image.apply(&record).map_err(|e| e.to_string())?;
                }
            }
            (MetadataRecord::NoOp(_), _) => {}
            (record, Some(open)) => open.push(record),
            (record, None) => self.image.apply(&record).map_err(|e| e.to_string())?,
        }
        Ok(())
    }
}

impl MetadataStore for LocalStore {
    fn commit(&mut self, records: Vec<MetadataRecord>) -> Result<Arc<MetadataImage>, String> {
        let image = self.image.clone();
        let mut replay = Replay { image, open: None };
        for record in &records {
            replay.next(record.clone())?;
        }
        let mut image = replay.image;
        let now_ms = clock::wall_ms();
        let mut bytes = BytesMut::new();
        for chunk in records.chunks(BATCH_RECORDS) {
            let mut builder = BatchBuilder::new(Codec::None);
            for record in chunk {
                let value = record.encode().map_err(|e| e.to_string())?;
                builder.append(now_ms, None, Some(&value), &[]);
            }
            bytes.extend_from_slice(&builder.build().map_err(|e| e.to_string())?);
        }
        let info = self.log.append(&bytes, self.epoch, AppendOrigin::Coordinator).map_err(|e| e.to_string())?;
        self.log.flush().map_err(|e| e.to_string())?;
        image.offset = info.last_offset;
        image.epoch = self.epoch;
        self.image = image;
        Ok(Arc::new(self.image.clone()))
    }

    fn maybe_snapshot(&mut self, _image: &MetadataImage) {}
}
