//! Broker configs of Apache Kafka 4.3: listeners, logs, topics, groups, offsets, quorum.

use super::definition::{ConfigDef, config_table};

config_table! {
    /// In the order of their names; see [`super::broker_config`].
    BROKER_CONFIGS_CORE:
    "advertised.listeners" List null Any High fixed acts
        "Addresses that clients are told to connect to, when they differ from listeners.";
    "auto.create.topics.enable" Boolean "true" Any High fixed acts
        "Whether asking for a topic that does not exist creates it.";
    "auto.leader.rebalance.enable" Boolean "true" Any High fixed idle "";
    "background.threads" Int "10" AtLeast(1) High dynamic acts
        "How many of the tasks that come again and again (retention, checkpoints, upkeep) run at a time.";
    "broker.heartbeat.interval.ms" Int "2000" Any Medium fixed idle "";
    "broker.id" Int "-1" Any High fixed acts
        "Old name of node.id.";
    "broker.rack" String null Any Medium fixed acts
        "Where the broker stands; clients that set client.rack can prefer it.";
    "broker.session.timeout.ms" Int "9000" Any Medium fixed idle "";
    "connections.max.idle.ms" Long "600000" Any Medium fixed acts
        "Milliseconds without a request after which a connection is closed.";
    "connections.max.reauth.ms" Long "0" Any Medium fixed idle "";
    "controller.listener.names" List required Any High fixed acts
        "Names of the listeners that only controllers use.";
    "controller.performance.always.log.threshold.ms" Long "2000" AtLeast(0) Medium internal idle "";
    "controller.performance.sample.period.ms" Long "60000" AtLeast(100) Medium internal idle "";
    "controller.quorum.append.linger.ms" Int "25" AtLeast(0) Medium fixed idle "";
    "controller.quorum.auto.join.enable" Boolean "false" Any Low fixed idle "";
    "controller.quorum.bootstrap.servers" List "" Any High fixed idle
        "Addresses at which controllers of a dynamic quorum are found. This node is its own quorum and looks for none.";
    "controller.quorum.election.backoff.max.ms" Int "1000" AtLeast(0) High fixed idle "";
    "controller.quorum.election.timeout.ms" Int "1000" AtLeast(0) High fixed idle "";
    "controller.quorum.fetch.max.bytes" Int "1048576" AtLeast(1) Low fixed idle "";
    "controller.quorum.fetch.snapshot.max.bytes" Int "1048576" AtLeast(1) Low fixed idle "";
    "controller.quorum.fetch.timeout.ms" Int "2000" AtLeast(0) High fixed idle "";
    "controller.quorum.request.timeout.ms" Int "2000" AtLeast(0) Medium fixed idle "";
    "controller.quorum.retry.backoff.ms" Int "20" AtLeast(0) Low fixed idle "";
    "controller.quorum.voters" List "" Any High fixed acts
        "Voters of a static quorum: id@host:port. This node alone.";
    "controller.quota.window.num" Int "11" AtLeast(1) Low fixed acts
        "Windows' worth of controller_mutation_rate that a client may save up.";
    "controller.quota.window.size.seconds" Int "1" AtLeast(1) Low fixed acts
        "Seconds of a window of controller_mutation_rate.";
    "controller.socket.timeout.ms" Int "30000" Any Medium fixed idle "";
    "default.replication.factor" Int "1" Any Medium fixed acts
        "Replicas of a topic that is created without saying how many.";
    "delete.topic.enable" Boolean "true" Any High fixed acts
        "Whether topics can be deleted.";
    "fetch.max.bytes" Int "57671680" AtLeast(1024) Medium fixed acts
        "Most bytes that one fetch is answered with.";
    "fetch.purgatory.purge.interval.requests" Int "1000" Any Medium fixed idle "";
    "group.consumer.assignment.interval.ms" Int "1000" AtLeast(0) Medium dynamic acts
        "Milliseconds between two assignments of a consumer group at the least.";
    "group.consumer.assignors" List "uniform,range" Any Medium fixed acts
        "Assignors of consumer groups (KIP-848), the default one first: uniform and range.";
    "group.consumer.heartbeat.interval.ms" Int "5000" AtLeast(1) Medium fixed acts
        "Milliseconds between the heartbeats of a member of a consumer group.";
    "group.consumer.max.assignment.interval.ms" Int "15000" AtLeast(0) Medium fixed acts
        "Highest consumer.assignment.interval.ms that a group may have.";
    "group.consumer.max.heartbeat.interval.ms" Int "15000" AtLeast(1) Medium fixed acts
        "Highest consumer.heartbeat.interval.ms that a group may have.";
    "group.consumer.max.session.timeout.ms" Int "60000" AtLeast(1) Medium fixed acts
        "Highest consumer.session.timeout.ms that a group may have.";
    "group.consumer.max.size" Int "2147483647" AtLeast(1) Medium fixed acts
        "Members that a consumer group may have.";
    "group.consumer.migration.policy" String "bidirectional" OneOfNoCase(&["DISABLED", "DOWNGRADE", "UPGRADE", "BIDIRECTIONAL"]) Medium fixed acts
        "Whether groups change from the classic to the consumer protocol and back while they are in use.";
    "group.consumer.min.assignment.interval.ms" Int "0" AtLeast(0) Medium fixed acts
        "Lowest consumer.assignment.interval.ms that a group may have.";
    "group.consumer.min.heartbeat.interval.ms" Int "5000" AtLeast(1) Medium fixed acts
        "Lowest consumer.heartbeat.interval.ms that a group may have.";
    "group.consumer.min.session.timeout.ms" Int "45000" AtLeast(1) Medium fixed acts
        "Lowest consumer.session.timeout.ms that a group may have.";
    "group.consumer.regex.refresh.interval.ms" Int "600000" AtLeast(10000) Medium internal acts
        "Milliseconds after which the topics of a subscription by expression are looked for again at the latest.";
    "group.consumer.session.timeout.ms" Int "45000" AtLeast(1) Medium fixed acts
        "Milliseconds after which a silent member of a consumer group is taken for gone.";
    "group.coordinator.append.linger.ms" Int "-1" AtLeast(-1) Medium fixed idle "";
    "group.coordinator.background.threads" Int "2" AtLeast(1) High fixed acts
        "How many expressions, and assignments of large groups, are computed beside the group coordinator at a time.";
    "group.coordinator.cached.buffer.max.bytes" Int "1048588" AtLeast(524288) Medium dynamic idle "";
    "group.coordinator.rebalance.protocols" List "classic,consumer,streams" ListOf(&["consumer", "classic", "share", "streams"]) Medium fixed acts
        "Whether consumer groups (KIP-848) are served; share and streams groups are not, whatever it says.";
    "group.coordinator.threads" Int "4" AtLeast(1) High fixed idle "";
    "group.initial.rebalance.delay.ms" Int "3000" Any Medium fixed acts
        "Milliseconds that a new group waits for further members before its first rebalance.";
    "group.max.session.timeout.ms" Int "1800000" Any Medium fixed acts
        "Longest session timeout a member may ask for, in milliseconds.";
    "group.max.size" Int "2147483647" AtLeast(1) Medium fixed acts
        "Members that a group may have.";
    "group.min.session.timeout.ms" Int "6000" Any Medium fixed acts
        "Shortest session timeout a member may ask for, in milliseconds.";
    "inter.broker.listener.name" String null Any Medium fixed idle
        "Listener that brokers use among themselves. There is one broker.";
    "leader.imbalance.check.interval.seconds" Long "300" AtLeast(1) High fixed idle "";
    "listener.security.protocol.map" String "SASL_SSL:SASL_SSL,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_PLAINTEXT:SASL_PLAINTEXT" Any Low dynamic acts
        "Security protocol of each listener name.";
    "listeners" List "PLAINTEXT://:9092" Any High dynamic acts
        "Addresses to accept connections on: NAME://host:port, separated by commas. Port 0 takes a free one.";
    "log.cleaner.backoff.ms" Long "15000" AtLeast(0) Medium dynamic acts
        "Milliseconds that the log cleaner waits when there is nothing to clean.";
    "log.cleaner.dedupe.buffer.size" Long "134217728" Any Medium dynamic acts
        "Bytes that all cleaner threads together may take for keys while they clean, 24 for each key; at least 1 MiB a thread.";
    "log.cleaner.delete.retention.ms" Long "86400000" AtLeast(0) Medium dynamic acts
        "Default of delete.retention.ms.";
    "log.cleaner.enable" Boolean "true" Any Medium fixed acts
        "Whether topics with cleanup.policy=compact are compacted, __consumer_offsets among them; otherwise they grow for ever.";
    "log.cleaner.io.buffer.load.factor" Double "0.9" Ratio(0.1, 0.99) Medium dynamic acts
        "How full the memory for keys may become.";
    "log.cleaner.io.buffer.size" Int "524288" AtLeast(0) Medium dynamic acts
        "Bytes that all cleaner threads together read and write at a time.";
    "log.cleaner.io.max.bytes.per.second" Double "1.7976931348623157E308" Positive Medium dynamic acts
        "Bytes that all cleaner threads together read and write in a second, at most.";
    "log.cleaner.max.compaction.lag.ms" Long "9223372036854775807" AtLeast(1) Medium dynamic acts
        "Default of max.compaction.lag.ms.";
    "log.cleaner.min.cleanable.ratio" Double "0.5" Ratio(0.0, 1.0) Medium dynamic acts
        "Default of min.cleanable.dirty.ratio.";
    "log.cleaner.min.compaction.lag.ms" Long "0" AtLeast(0) Medium dynamic acts
        "Default of min.compaction.lag.ms.";
    "log.cleaner.threads" Int "1" AtLeast(0) Medium dynamic acts
        "Threads that compact logs.";
    "log.cleanup.policy" List "delete" ListOf(&["compact", "delete"]) Medium dynamic acts
        "Default of cleanup.policy.";
    "log.dir" List "/tmp/kafka-logs" Any High fixed acts
        "Directory for the data, when log.dirs is not set.";
    "log.dir.failure.timeout.ms" Long "30000" AtLeast(1) Low fixed idle "";
    "log.dirs" List null Any High fixed acts
        "Directories for the data, separated by commas.";
    "log.flush.interval.messages" Long "9223372036854775807" AtLeast(1) High dynamic acts
        "Default of flush.messages.";
    "log.flush.interval.ms" Long null Any High dynamic acts
        "Default of flush.ms.";
    "log.flush.offset.checkpoint.interval.ms" Int "60000" AtLeast(0) High fixed idle "";
    "log.flush.scheduler.interval.ms" Long "9223372036854775807" Any High fixed acts
        "Default of flush.ms when log.flush.interval.ms is not set.";
    "log.flush.start.offset.checkpoint.interval.ms" Int "60000" AtLeast(0) High fixed idle "";
    "log.index.interval.bytes" Int "4096" AtLeast(0) Medium dynamic acts
        "Default of index.interval.bytes.";
    "log.index.size.max.bytes" Int "10485760" AtLeast(4) Medium dynamic acts
        "Default of segment.index.bytes.";
    "log.initial.task.delay.ms" Long "30000" AtLeast(0) Low internal idle "";
    "log.local.retention.bytes" Long "-2" AtLeast(-2) Medium dynamic idle "";
    "log.local.retention.ms" Long "-2" AtLeast(-2) Medium dynamic idle "";
    "log.message.timestamp.after.max.ms" Long "3600000" AtLeast(0) Medium dynamic acts
        "Default of message.timestamp.after.max.ms.";
    "log.message.timestamp.before.max.ms" Long "9223372036854775807" AtLeast(0) Medium dynamic acts
        "Default of message.timestamp.before.max.ms.";
    "log.message.timestamp.type" String "CreateTime" OneOf(&["CreateTime", "LogAppendTime"]) Medium dynamic acts
        "Default of message.timestamp.type.";
    "log.preallocate" Boolean "false" Any Medium dynamic acts
        "Whether the space of a new segment is set aside on disk when it is begun, where the file system can.";
    "log.retention.bytes" Long "-1" Any High dynamic acts
        "Default of retention.bytes.";
    "log.retention.check.interval.ms" Long "300000" AtLeast(1) Medium fixed acts
        "Milliseconds between two searches for segments past their retention.";
    "log.retention.hours" Int "168" Any High fixed acts
        "Hours after which a segment may be deleted.";
    "log.retention.minutes" Int null Any High fixed acts
        "Minutes after which a segment may be deleted; log.retention.hours when not set.";
    "log.retention.ms" Long null Retention High dynamic acts
        "Milliseconds after which a segment may be deleted; log.retention.minutes when not set.";
    "log.roll.hours" Int "168" AtLeast(1) High fixed acts
        "Hours after which a new segment is begun.";
    "log.roll.jitter.hours" Int "0" AtLeast(0) High fixed acts
        "Hours by which log.roll.hours is shortened at random.";
    "log.roll.jitter.ms" Long null AtLeast(0) High dynamic acts
        "Default of segment.jitter.ms; log.roll.jitter.hours when not set.";
    "log.roll.ms" Long null AtLeast(1) High dynamic acts
        "Default of segment.ms; log.roll.hours when not set.";
    "log.segment.bytes" Int "1073741824" AtLeast(1048576) High dynamic acts
        "Default of segment.bytes.";
    "log.segment.delete.delay.ms" Long "60000" AtLeast(0) High dynamic acts
        "Default of file.delete.delay.ms.";
    "max.connection.creation.rate" Int "2147483647" AtLeast(0) Medium dynamic acts
        "Connections per second that are accepted; more wait.";
    "max.connections" Int "2147483647" AtLeast(0) Medium dynamic acts
        "Connections that are open at a time.";
    "max.connections.per.ip" Int "2147483647" AtLeast(0) Medium dynamic acts
        "Connections that are open at a time from one address.";
    "max.connections.per.ip.overrides" String "" Any Medium dynamic acts
        "max.connections.per.ip of single addresses: ADDRESS:COUNT,...";
    "max.incremental.fetch.session.cache.slots" Int "1000" AtLeast(0) Medium fixed acts
        "Fetch sessions that are remembered at a time.";
    "max.request.partition.size.limit" Int "2000" AtLeast(1) Medium fixed acts
        "Partitions that one answer to DescribeTopicPartitions lists, at most.";
    "message.max.bytes" Int "1048588" AtLeast(0) High dynamic acts
        "Largest record batch that is accepted, in bytes, after compression; a topic's max.message.bytes overrides it.";
    "metadata.log.dir" String null Any High fixed acts
        "Directory for the metadata log: that of log.dirs, where it lies when this is not set.";
    "metadata.log.max.record.bytes.between.snapshots" Long "20971520" AtLeast(1) High fixed acts
        "Bytes of metadata records after which a snapshot is written.";
    "metadata.log.max.snapshot.interval.ms" Long "3600000" AtLeast(0) High fixed acts
        "Milliseconds after which a snapshot is written if there are new metadata records.";
    "metadata.log.segment.bytes" Int "1073741824" AtLeast(8388608) High fixed idle "";
    "metadata.log.segment.ms" Long "604800000" Any High fixed idle "";
    "metadata.max.idle.interval.ms" Int "500" AtLeast(0) Low fixed idle "";
    "metadata.max.retention.bytes" Long "104857600" Any High fixed acts
        "Bytes of the metadata log above which the part that an older snapshot covers is deleted.";
    "metadata.max.retention.ms" Long "604800000" Any High fixed idle "";
    "min.insync.replicas" Int "1" AtLeast(1) High dynamic acts
        "Replicas that must have a record before acks=all is answered; topics can override it.";
    "node.id" Int required AtLeast(0) High fixed acts
        "Number of this node in the cluster.";
    "num.io.threads" Int "8" AtLeast(1) High dynamic idle "";
    "num.network.threads" Int "3" AtLeast(1) High dynamic idle "";
    "num.partitions" Int "1" AtLeast(1) Medium fixed acts
        "Partitions of a topic that is created without saying how many.";
    "num.recovery.threads.per.data.dir" Int "2" AtLeast(1) High dynamic acts
        "Threads that open and recover the logs at start.";
    "num.replica.alter.log.dirs.threads" Int null Any High fixed idle "";
    "num.replica.fetchers" Int "1" AtLeast(1) High dynamic idle "";
    "offset.metadata.max.bytes" Int "4096" Any High fixed acts
        "Longest text that may be stored with a committed offset, in bytes.";
    "offsets.commit.timeout.ms" Int "5000" AtLeast(1) High fixed idle "";
    "offsets.load.buffer.size" Int "5242880" AtLeast(1) High fixed idle "";
    "offsets.retention.check.interval.ms" Long "600000" AtLeast(1) High fixed acts
        "Milliseconds between two searches for offsets that have expired.";
    "offsets.retention.minutes" Int "10080" AtLeast(1) High fixed acts
        "Minutes for which the offsets of a group without members are kept.";
    "offsets.topic.compression.codec" Int "0" Any High fixed idle "";
    "offsets.topic.num.partitions" Int "50" AtLeast(1) High fixed acts
        "Partitions of __consumer_offsets when it is created.";
    "offsets.topic.replication.factor" Short "3" AtLeast(1) High fixed acts
        "Replicas of __consumer_offsets when it is created.";
    "offsets.topic.segment.bytes" Int "104857600" AtLeast(1) High fixed acts
        "segment.bytes of __consumer_offsets when it is created.";
    "process.roles" List required ListOf(&["broker", "controller"]) High fixed acts
        "What this process does: broker,controller, which is both.";
    "producer.id.expiration.check.interval.ms" Int "600000" AtLeast(1) Low internal idle "";
    "producer.id.expiration.ms" Int "86400000" AtLeast(1) Low dynamic acts
        "Milliseconds without a record after which an idempotent producer is forgotten.";
    "producer.purgatory.purge.interval.requests" Int "1000" Any Medium fixed idle "";
    "queued.max.request.bytes" Long "-1" Any Medium fixed acts
        "Bytes that requests of more than 64 KiB may take together, over all connections, from when they begin to arrive until they are answered; connections that would take more wait. -1: 268435456, or socket.request.max.bytes if that is more.";
    "queued.max.requests" Int "500" AtLeast(1) High fixed idle "";
    "replica.fetch.backoff.ms" Int "1000" AtLeast(0) Medium fixed idle "";
    "replica.fetch.max.bytes" Int "1048576" AtLeast(0) Medium fixed idle "";
    "replica.fetch.min.bytes" Int "1" Any High fixed idle "";
    "replica.fetch.response.max.bytes" Int "10485760" AtLeast(0) Medium fixed idle "";
    "replica.fetch.wait.max.ms" Int "500" Any High fixed idle "";
    "replica.high.watermark.checkpoint.interval.ms" Long "5000" Any High fixed idle "";
    "replica.lag.time.max.ms" Long "30000" Any High fixed idle "";
    "replica.selector.class" String null Any Medium fixed idle "";
    "replica.socket.receive.buffer.bytes" Int "65536" Any High fixed idle "";
    "replica.socket.timeout.ms" Int "30000" Any High fixed idle "";
    "replication.quota.window.num" Int "11" AtLeast(1) Low fixed idle "";
    "replication.quota.window.size.seconds" Int "1" AtLeast(1) Low fixed idle "";
    "request.timeout.ms" Int "30000" Any High fixed acts
        "Milliseconds that the first write of a transaction waits for the one before at the most.";
    "socket.connection.setup.timeout.max.ms" Long "30000" Any Medium fixed idle "";
    "socket.connection.setup.timeout.ms" Long "10000" Any Medium fixed idle "";
    "socket.listen.backlog.size" Int "50" AtLeast(1) Medium fixed idle "";
    "socket.receive.buffer.bytes" Int "524288" Any High fixed acts
        "Receive buffer of a connection's socket, in bytes; -1: what the system gives. Kafka's default is 102400.";
    "socket.request.max.bytes" Int "104857600" AtLeast(1) High fixed acts
        "Largest request that is read, in bytes.";
    "socket.send.buffer.bytes" Int "204800" Any High fixed acts
        "Send buffer of a connection's socket, in bytes; -1: what the system gives. Kafka's default is 102400.";
    "transaction.abort.timed.out.transaction.cleanup.interval.ms" Int "10000" AtLeast(1) Low fixed acts
        "How often transactions are looked for that take longer than their timeout.";
    "transaction.max.timeout.ms" Int "900000" AtLeast(1) High fixed acts
        "Longest transaction.timeout.ms that a producer may ask for.";
    "transaction.partition.verification.enable" Boolean "true" Any Low dynamic acts
        "Whether writes of clients before KIP-890 are verified to be part of a transaction.";
    "transaction.remove.expired.transaction.cleanup.interval.ms" Int "3600000" AtLeast(1) Low fixed acts
        "How often transactional ids are looked for that nobody uses.";
    "transaction.state.log.load.buffer.size" Int "5242880" AtLeast(1) High fixed idle "";
    "transaction.state.log.min.isr" Int "2" AtLeast(1) High fixed acts
        "min.insync.replicas of __transaction_state when it is created.";
    "transaction.state.log.num.partitions" Int "50" AtLeast(1) High fixed acts
        "Partitions of __transaction_state when it is created.";
    "transaction.state.log.replication.factor" Short "3" AtLeast(1) High fixed acts
        "Replicas of __transaction_state when it is created.";
    "transaction.state.log.segment.bytes" Int "104857600" AtLeast(1) High fixed acts
        "segment.bytes of __transaction_state when it is created.";
    "transaction.two.phase.commit.enable" Boolean "false" Any Low fixed idle "";
    "transactional.id.expiration.ms" Int "604800000" AtLeast(1) High fixed acts
        "How long a transactional id is known after its last use.";
    "unclean.leader.election.enable" Boolean "false" Any High dynamic acts
        "Default of the topics' unclean.leader.election.enable.";
    "unclean.leader.election.interval.ms" Long "300000" AtLeast(1) Medium internal idle "";
    "caudal.allow.insecure" Boolean "false" Any High fixed acts
        "Allows listeners beyond loopback although nobody has to authenticate.";
    "caudal.http.listeners" List null Any Medium fixed acts
        "Where /metrics (for Prometheus) and /health are served: http://127.0.0.1:9308. Empty: nowhere; `caudal up` serves them there if the port is free.";
    "caudal.metadata.accept.loss" Boolean "false" Any High fixed acts
        "Start although records of the metadata log that were on disk are missing or damaged, and go on without them. For one start, when there is no backup.";
    "caudal.slow.request.ms" Long "1000" AtLeast(-1) Medium fixed acts
        "Requests that take longer are logged; what a fetch or a join means to wait does not count. -1: none.";
    "caudal.flush.before.ack" Boolean "true" Any High fixed acts
        "Whether a produce is answered only after its records were flushed to disk. 'false' is Kafka's behaviour: quicker, and a power cut may take what was acknowledged.";
}

config_table! {
    /// Those that are not listed unless they are set, and can be set while the broker runs only: what a reassignment of replicas
    /// sets for as long as it lasts.
    BROKER_CONFIGS_UNLISTED:
    "follower.replication.throttled.rate" Long null AtLeast(0) Medium dynamic acts
        "Bytes per second of the replicas whose replication is throttled on the follower's side: none on a single node.";
    "leader.replication.throttled.rate" Long null AtLeast(0) Medium dynamic acts
        "Bytes per second of the replicas whose replication is throttled on the leader's side: none on a single node.";
    "replica.alter.log.dirs.io.max.bytes.per.second" Long null AtLeast(0) Medium dynamic acts
        "Bytes per second that are copied between the log directories of a broker; as many as go when it is not set.";
}
