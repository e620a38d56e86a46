//! What a node writes when it starts and when it stops, in the order in which Kafka's combined node writes it.

use caudal_protocol::Uuid;
use caudal_protocol::records::metadata::register_broker_record::{BrokerEndpoint, BrokerFeature};
use caudal_protocol::records::metadata::register_controller_record::{ControllerEndpoint, ControllerFeature};
use caudal_protocol::records::metadata::*;

use crate::config::StaticConfig;
use crate::image::{ConfigResourceType, MetadataImage, NO_LEADER, Partition, Topic};
use crate::record::MetadataRecord;

/// A feature with the levels that this version can work with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SupportedFeature {
    pub name: &'static str,
    pub min: i16,
    pub max: i16,
    /// The level a new cluster of release 4.3 starts with; `None` where it is not stored as a feature record.
    pub initial: Option<i16>,
}

/// The features of Apache Kafka 4.3.
pub const FEATURES: &[SupportedFeature] = &[
    SupportedFeature { name: "metadata.version", min: 7, max: 30, initial: Some(30) },
    SupportedFeature { name: "eligible.leader.replicas.version", min: 0, max: 1, initial: Some(1) },
    SupportedFeature { name: "group.version", min: 0, max: 1, initial: Some(1) },
    SupportedFeature { name: "share.version", min: 0, max: 1, initial: Some(1) },
    SupportedFeature { name: "streams.version", min: 0, max: 1, initial: Some(1) },
    SupportedFeature { name: "transaction.version", min: 0, max: 2, initial: Some(2) },
    SupportedFeature { name: "kraft.version", min: 0, max: 1, initial: None },
];

/// A listener as it is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub listener: String,
    pub host: String,
    pub port: u16,
    /// 0 PLAINTEXT, 1 SSL, 2 SASL_PLAINTEXT, 3 SASL_SSL.
    pub security_protocol: i16,
}

/// What a node says of itself when it registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    pub node_id: i32,
    /// Ids of the log directories, from their `meta.properties`.
    pub log_dirs: Vec<Uuid>,
    /// There are others, which are out of use.
    pub lacks_some: bool,
    /// New at each start.
    pub incarnation_id: Uuid,
    pub endpoints: Vec<Endpoint>,
    /// Empty where the node is no controller that others can reach.
    pub controller_endpoints: Vec<Endpoint>,
    pub rack: Option<String>,
}

/// The first records of a cluster: its features, and the default that needs a record (KIP-966), as one transaction.
/// `features`: those of `bootstrap.checkpoint`.
pub fn bootstrap_records(config: &StaticConfig, features: &[FeatureLevelRecord]) -> Vec<MetadataRecord> {
    let begin = BeginTransactionRecord { name: Some("Bootstrap records".to_owned()) };
    let mut records: Vec<MetadataRecord> = vec![begin.into()];
    records.extend(features.iter().cloned().map(MetadataRecord::from));
    let elr = |f: &FeatureLevelRecord| f.name == "eligible.leader.replicas.version" && f.feature_level > 0;
    if features.iter().any(elr) {
        let min_isr = config.value("min.insync.replicas").unwrap_or("1");
        records.push(
            ConfigRecord {
                resource_type: ConfigResourceType::Broker.code(),
                resource_name: String::new(),
                name: "min.insync.replicas".to_owned(),
                value: Some(min_isr.to_owned()),
            }
            .into(),
        );
    }
    records.push(EndTransactionRecord::default().into());
    records
}

/// Registers the node, lets it in, and makes it lead the partitions it holds. `next_offset` is the offset that the first
/// of the records will have: a broker's epoch is the offset of its registration. After an unclean stop
/// (`clean == false`) every partition gets a new leader epoch, so that a log that lost its tail is told apart.
pub fn start_records(image: &MetadataImage, node: &Registration, clean: bool, next_offset: i64) -> Vec<MetadataRecord> {
    let broker_epoch = next_offset + 1;
    let change = |fenced: i8, cordoned_log_dirs: Option<Vec<Uuid>>| {
        MetadataRecord::BrokerRegistrationChange(BrokerRegistrationChangeRecord {
            broker_id: node.node_id,
            broker_epoch,
            fenced,
            cordoned_log_dirs,
            ..BrokerRegistrationChangeRecord::default()
        })
    };
    let mut records: Vec<MetadataRecord> = vec![
        register_controller(node).into(),
        register_broker(node, broker_epoch).into(),
        change(0, Some(Vec::new())),
        change(-1, None),
    ];
    for topic in image.topics() {
        for id in topic.partitions.keys() {
            records.extend(lead(image, topic, *id, node, clean).map(MetadataRecord::from));
        }
    }
    records
}

/// Takes the node out of the ISRs and fences it, as Kafka's controlled shutdown does.
pub fn stop_records(image: &MetadataImage, node_id: i32) -> Vec<MetadataRecord> {
    let Some(broker) = image.broker(node_id) else { return Vec::new() };
    let change = BrokerRegistrationChangeRecord {
        broker_id: node_id,
        broker_epoch: broker.broker_epoch,
        ..BrokerRegistrationChangeRecord::default()
    };
    let mut records: Vec<MetadataRecord> =
        vec![BrokerRegistrationChangeRecord { in_controlled_shutdown: 1, ..change.clone() }.into()];
    for topic in image.topics() {
        let led = topic.partitions.iter().filter(|(_, p)| p.leader == node_id && p.isr == [node_id]);
        records.extend(led.map(|(id, p)| MetadataRecord::from(leaderless(image, topic.id, *id, p, node_id))));
    }
    records.push(BrokerRegistrationChangeRecord { fenced: 1, ..change }.into());
    records
}

/// Forgets a broker: it is in no ISR any more and leads nothing, as with Kafka's controller. `None`: it is not registered.
pub fn unregister_records(image: &MetadataImage, broker_id: i32) -> Option<Vec<MetadataRecord>> {
    let broker = image.broker(broker_id)?;
    let mut records = Vec::new();
    for topic in image.topics() {
        let changes = topic.partitions.iter().filter_map(|(id, p)| resign(image, topic.id, *id, p, broker_id));
        records.extend(changes.map(MetadataRecord::from));
    }
    records.push(UnregisterBrokerRecord { broker_id, broker_epoch: broker.broker_epoch }.into());
    Some(records)
}

fn resign(
    image: &MetadataImage,
    topic_id: Uuid,
    partition_id: i32,
    partition: &Partition,
    broker_id: i32,
) -> Option<PartitionChangeRecord> {
    let leads = partition.leader == broker_id;
    let isr: Vec<i32> = partition.isr.iter().copied().filter(|id| *id != broker_id).collect();
    if isr.is_empty() {
        return leads.then(|| leaderless(image, topic_id, partition_id, partition, broker_id));
    }
    if !leads && isr.len() == partition.isr.len() {
        return None;
    }
    let change = PartitionChangeRecord { partition_id, topic_id, ..PartitionChangeRecord::default() };
    let successor = || isr.iter().copied().find(|id| image.is_active(*id)).unwrap_or(NO_LEADER);
    let leader = if leads { successor() } else { change.leader };
    Some(PartitionChangeRecord { leader, isr: Some(isr), ..change })
}

fn register_controller(node: &Registration) -> RegisterControllerRecord {
    let end_points = node.controller_endpoints.iter().map(|e| ControllerEndpoint {
        name: e.listener.clone(),
        host: e.host.clone(),
        port: e.port,
        security_protocol: e.security_protocol,
    });
    let features = FEATURES.iter().map(|f| ControllerFeature {
        name: f.name.to_owned(),
        min_supported_version: f.min,
        max_supported_version: f.max,
    });
    RegisterControllerRecord {
        controller_id: node.node_id,
        incarnation_id: node.incarnation_id,
        zk_migration_ready: false,
        end_points: end_points.collect(),
        features: features.collect(),
    }
}

fn register_broker(node: &Registration, broker_epoch: i64) -> RegisterBrokerRecord {
    let end_points = node.endpoints.iter().map(|e| BrokerEndpoint {
        name: e.listener.clone(),
        host: e.host.clone(),
        port: e.port,
        security_protocol: e.security_protocol,
    });
    let features = FEATURES.iter().map(|f| BrokerFeature {
        name: f.name.to_owned(),
        min_supported_version: f.min,
        max_supported_version: f.max,
    });
    RegisterBrokerRecord {
        broker_id: node.node_id,
        incarnation_id: node.incarnation_id,
        broker_epoch,
        end_points: end_points.collect(),
        features: features.collect(),
        rack: node.rack.clone(),
        fenced: true,
        log_dirs: node.log_dirs.clone(),
        ..RegisterBrokerRecord::default()
    }
}

/// The change that makes the node lead a partition of which it holds a replica, or not lead one that lies in a directory that is
/// not there; `None` if nothing is to change.
fn lead(
    image: &MetadataImage,
    topic: &Topic,
    partition_id: i32,
    node: &Registration,
    clean: bool,
) -> Option<PartitionChangeRecord> {
    let id = node.node_id;
    let partition = topic.partitions.get(&partition_id)?;
    let at = partition.replicas.iter().position(|r| *r == id)?;
    let directory = partition.directory_of(id);
    if directory.is_some_and(|directory| !node.log_dirs.contains(&directory)) {
        return (partition.leader == id).then(|| leaderless(image, topic.id, partition_id, partition, id));
    }
    // Among several the broker tells where it is.
    let only = match *node.log_dirs {
        [only] => (directory.is_none() && !node.lacks_some).then_some(only),
        _ => None,
    };
    if partition.leader == id && clean && only.is_none() {
        return None;
    }
    let mut change = elected(topic.id, partition_id, partition, id)?;
    change.directories = only.map(|only| {
        let mut directories = partition.directories.clone();
        if let Some(directory) = directories.get_mut(at) {
            *directory = only;
        }
        directories
    });
    Some(change)
}

/// Makes a replica the leader of its partition; `None`: it may not be, or another one is.
pub fn elected(topic_id: Uuid, partition_id: i32, partition: &Partition, id: i32) -> Option<PartitionChangeRecord> {
    let may_lead = partition.isr.contains(&id)
        || partition.eligible_leader_replicas.contains(&id)
        || partition.last_known_elr.contains(&id)
        || partition.replicas == [id];
    if !may_lead || (partition.leader != id && partition.leader != NO_LEADER) {
        return None;
    }
    let elr = !partition.eligible_leader_replicas.is_empty() || !partition.last_known_elr.is_empty();
    Some(PartitionChangeRecord {
        partition_id,
        topic_id,
        leader: id,
        isr: (!partition.isr.contains(&id)).then(|| vec![id]),
        eligible_leader_replicas: elr.then(Vec::new),
        last_known_elr: elr.then(Vec::new),
        ..PartitionChangeRecord::default()
    })
}

/// Takes the leader of a partition away, which may lead it again.
pub fn leaderless(
    image: &MetadataImage,
    topic_id: Uuid,
    partition_id: i32,
    partition: &Partition,
    leader: i32,
) -> PartitionChangeRecord {
    let elr = image.feature("eligible.leader.replicas.version") > 0 && partition.isr == [leader];
    PartitionChangeRecord {
        partition_id,
        topic_id,
        leader: NO_LEADER,
        isr: elr.then(Vec::new),
        eligible_leader_replicas: elr.then(|| vec![leader]),
        last_known_elr: elr.then(|| vec![leader]),
        ..PartitionChangeRecord::default()
    }
}
