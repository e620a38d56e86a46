//! The topic configs of Apache Kafka 4.3: name, type, default, allowed values, importance, whether it acts here, the
//! broker configs it takes its default from (with the factor between their units), and what it means.

use super::definition::{ConfigDef, config_table};

config_table! {
    /// In the order of their names.
    TOPIC_CONFIGS:
    "cleanup.policy" List "delete" ListOf(&["compact", "delete"]) Medium dynamic acts ["log.cleanup.policy" * 1]
        "What becomes of old records: 'delete' drops segments past the retention, 'compact' keeps the last record of each key; both may be given.";
    "compression.gzip.level" Int "-1" GzipLevel Medium dynamic acts ["compression.gzip.level" * 1]
        "Level for topics whose compression.type is gzip.";
    "compression.lz4.level" Int "9" Between(1, 17) Medium dynamic acts ["compression.lz4.level" * 1]
        "Level for topics whose compression.type is lz4. 9 is the fast compressor, as in Kafka; all others search, the longer the higher they are.";
    "compression.type" String "producer" OneOf(&["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"]) Medium dynamic acts ["compression.type" * 1]
        "Codec that batches are stored with, whatever they were sent with; with 'producer' they stay as they were sent.";
    "compression.zstd.level" Int "3" Between(-131072, 22) Medium dynamic acts ["compression.zstd.level" * 1]
        "Level for topics whose compression.type is zstd.";
    "delete.retention.ms" Long "86400000" AtLeast(0) Medium dynamic acts ["log.cleaner.delete.retention.ms" * 1]
        "Milliseconds for which compaction keeps the marker that a key was deleted.";
    "file.delete.delay.ms" Long "60000" AtLeast(0) Medium dynamic acts ["log.segment.delete.delay.ms" * 1]
        "Milliseconds between the deletion of a topic and the removal of its files. Those of a segment that retention deletes go at once; who reads them reads on.";
    "flush.messages" Long "9223372036854775807" AtLeast(1) Medium dynamic acts ["log.flush.interval.messages" * 1]
        "Records after which the log is flushed to disk, whoever waits for it.";
    "flush.ms" Long "9223372036854775807" AtLeast(0) Medium dynamic acts ["log.flush.interval.ms" * 1, "log.flush.scheduler.interval.ms" * 1]
        "Milliseconds after which the log is flushed to disk, whoever waits for it.";
    "follower.replication.throttled.replicas" List "" Throttled Medium dynamic acts []
        "Replicas whose replication is throttled on the follower's side: none on a single node.";
    "index.interval.bytes" Int "4096" AtLeast(0) Medium dynamic acts ["log.index.interval.bytes" * 1]
        "Bytes of log between two entries of the offset index.";
    "internal.segment.bytes" Int null Any Medium internal acts []
        "segment.bytes below 1 MiB, for tests.";
    "leader.replication.throttled.replicas" List "" Throttled Medium dynamic acts []
        "Replicas whose replication is throttled on the leader's side: none on a single node.";
    "local.retention.bytes" Long "-2" AtLeast(-2) Medium dynamic idle ["log.local.retention.bytes" * 1]
        "Bytes kept on the broker's own disk when tiered storage is on; -2 for retention.bytes.";
    "local.retention.ms" Long "-2" AtLeast(-2) Medium dynamic idle ["log.local.retention.ms" * 1]
        "Milliseconds for which data stays on the broker's own disk when tiered storage is on; -2 for retention.ms.";
    "max.compaction.lag.ms" Long "9223372036854775807" AtLeast(1) Medium dynamic acts ["log.cleaner.max.compaction.lag.ms" * 1]
        "Milliseconds after which a record must have been considered for compaction.";
    "max.message.bytes" Int "1048588" AtLeast(0) Medium dynamic acts ["message.max.bytes" * 1]
        "Largest record batch that is accepted, in bytes, after compression.";
    "message.timestamp.after.max.ms" Long "3600000" AtLeast(0) Medium dynamic acts ["log.message.timestamp.after.max.ms" * 1]
        "Milliseconds that a record's time may lie ahead of the broker's clock.";
    "message.timestamp.before.max.ms" Long "9223372036854775807" AtLeast(0) Medium dynamic acts ["log.message.timestamp.before.max.ms" * 1]
        "Milliseconds that a record's time may lie behind the broker's clock.";
    "message.timestamp.type" String "CreateTime" OneOf(&["CreateTime", "LogAppendTime"]) Medium dynamic acts ["log.message.timestamp.type" * 1]
        "Whose clock dates the records: the producer's (CreateTime) or the broker's (LogAppendTime).";
    "min.cleanable.dirty.ratio" Double "0.5" Ratio(0.0, 1.0) Medium dynamic acts ["log.cleaner.min.cleanable.ratio" * 1]
        "Share of the log that must be uncompacted before it is compacted.";
    "min.compaction.lag.ms" Long "0" AtLeast(0) Medium dynamic acts ["log.cleaner.min.compaction.lag.ms" * 1]
        "Milliseconds for which a record is safe from compaction.";
    "min.insync.replicas" Int "1" AtLeast(1) Medium dynamic acts ["min.insync.replicas" * 1]
        "Replicas that must have a record before acks=all is answered.";
    "preallocate" Boolean "false" Any Medium dynamic acts ["log.preallocate" * 1]
        "Whether the space of a new segment is set aside on disk when it is begun, where the file system can.";
    "remote.log.copy.disable" Boolean "false" Any Medium dynamic idle []
        "Stops copying segments to tiered storage.";
    "remote.log.delete.on.disable" Boolean "false" Any Medium dynamic idle []
        "Whether switching tiered storage off deletes what it holds.";
    "remote.storage.enable" Boolean "false" Any Medium dynamic idle []
        "Whether segments are copied to tiered storage.";
    "retention.bytes" Long "-1" Any Medium dynamic acts ["log.retention.bytes" * 1]
        "Bytes a partition may hold before its oldest segments are deleted; -1 for no limit.";
    "retention.ms" Long "604800000" AtLeast(-1) Medium dynamic acts ["log.retention.ms" * 1, "log.retention.minutes" * 60000, "log.retention.hours" * 3600000]
        "Milliseconds after which a segment may be deleted, counted from its newest record; -1 for no limit.";
    "segment.bytes" Int "1073741824" AtLeast(1048576) Medium dynamic acts ["log.segment.bytes" * 1]
        "Bytes after which a new segment is begun.";
    "segment.index.bytes" Int "10485760" AtLeast(4) Medium dynamic acts ["log.index.size.max.bytes" * 1]
        "Largest size of a segment's index, in bytes.";
    "segment.jitter.ms" Long "0" AtLeast(0) Medium dynamic acts ["log.roll.jitter.ms" * 1, "log.roll.jitter.hours" * 3600000]
        "Milliseconds by which segment.ms is shortened at random, so that partitions do not all roll at once.";
    "segment.ms" Long "604800000" AtLeast(1) Medium dynamic acts ["log.roll.ms" * 1, "log.roll.hours" * 3600000]
        "Milliseconds after which a new segment is begun even if the old one is not full.";
    "unclean.leader.election.enable" Boolean "false" Any Medium dynamic acts ["unclean.leader.election.enable" * 1]
        "Whether a replica that lags may become leader when no other is left, at the price of lost records. The replica of a single node never lags.";
}
