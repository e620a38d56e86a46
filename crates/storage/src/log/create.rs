//! Making an empty log.

use std::path::PathBuf;
use std::sync::Arc;

use caudal_protocol::{TopicPartition, Uuid};

use super::recover::{Parts, Shared};
use super::{Log, Writer, wall_clock_ms};
use crate::checkpoint;
use crate::config::LogConfig;
use crate::error::OpenError;
use crate::leader_epoch::LeaderEpochs;
use crate::segment::Segment;

impl Log {
    /// Creates an empty log in a new directory. Names become durable with the first flush.
    pub(crate) fn create(
        shared: &Shared,
        topic_partition: TopicPartition,
        topic_id: Option<Uuid>,
        config: LogConfig,
    ) -> Result<Arc<Log>, OpenError> {
        let dir = shared.health.dir().join(topic_partition.to_string());
        Log::create_in(shared, dir, topic_partition, topic_id, config, 0)
    }

    /// As [`Log::create`], in a directory of another name and with another first offset.
    pub(crate) fn create_in(
        shared: &Shared,
        dir: PathBuf,
        topic_partition: TopicPartition,
        topic_id: Option<Uuid>,
        config: LogConfig,
        first_offset: i64,
    ) -> Result<Arc<Log>, OpenError> {
        let failed = |source| OpenError::Log { log: topic_partition.clone(), dir: dir.clone(), source };
        shared.disk.create_dir_all(&dir).map_err(failed)?;
        if let Some(topic_id) = topic_id {
            checkpoint::write_partition_metadata(shared.disk.as_ref(), &dir, topic_id).map_err(failed)?;
        }
        let segment = Segment::create(&shared.disk, &dir, first_offset, wall_clock_ms()).map_err(failed)?;
        segment.reserve(&config);
        let parts = Parts {
            segments: vec![Arc::new(segment)],
            epochs: LeaderEpochs::default(),
            aborted: Vec::new(),
            writer: Writer::default(),
            next_offset: first_offset,
            log_start_offset: first_offset,
            recovery_point: -1,
            scanned_bytes: 0,
        };
        Ok(Log::assemble(shared, topic_partition, topic_id, dir, config, parts))
    }
}
