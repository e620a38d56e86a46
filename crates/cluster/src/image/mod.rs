//! The metadata image: what the metadata records up to an offset add up to. Nothing changes it but [`MetadataImage::apply`].
//!
//! Images are values that share their parts: cloning one copies a few pointers, and a change copies only the map it
//! touches, so a reader keeps a consistent view for as long as it likes.

mod apply;
mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use caudal_protocol::Uuid;
use caudal_protocol::records::metadata::{
    AccessControlEntryRecord, DelegationTokenRecord, RegisterBrokerRecord, RegisterControllerRecord,
    UserScramCredentialRecord,
};

pub use apply::ApplyError;

/// "No leader" in a partition.
pub const NO_LEADER: i32 = -1;

/// What a config belongs to; the order is that of the resource type's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConfigResourceType {
    Topic,
    Broker,
    BrokerLogger,
    ClientMetrics,
    Group,
}

impl ConfigResourceType {
    /// The type's number on the wire (`ConfigResource.Type`).
    pub fn code(self) -> i8 {
        match self {
            ConfigResourceType::Topic => 2,
            ConfigResourceType::Broker => 4,
            ConfigResourceType::BrokerLogger => 8,
            ConfigResourceType::ClientMetrics => 16,
            ConfigResourceType::Group => 32,
        }
    }

    pub fn from_code(code: i8) -> Option<ConfigResourceType> {
        use ConfigResourceType::*;
        [Topic, Broker, BrokerLogger, ClientMetrics, Group].into_iter().find(|t| t.code() == code)
    }

    /// The name as Kafka prints it: `TOPIC`.
    pub fn name(self) -> &'static str {
        match self {
            ConfigResourceType::Topic => "TOPIC",
            ConfigResourceType::Broker => "BROKER",
            ConfigResourceType::BrokerLogger => "BROKER_LOGGER",
            ConfigResourceType::ClientMetrics => "CLIENT_METRICS",
            ConfigResourceType::Group => "GROUP",
        }
    }
}

/// A thing that has configs. The broker resource with the empty name stands for all brokers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConfigResource {
    pub kind: ConfigResourceType,
    pub name: String,
}

impl ConfigResource {
    pub fn topic(name: impl Into<String>) -> ConfigResource {
        ConfigResource { kind: ConfigResourceType::Topic, name: name.into() }
    }

    pub fn broker(id: i32) -> ConfigResource {
        ConfigResource { kind: ConfigResourceType::Broker, name: id.to_string() }
    }

    /// The defaults of all brokers.
    pub fn all_brokers() -> ConfigResource {
        ConfigResource { kind: ConfigResourceType::Broker, name: String::new() }
    }
}

/// One partition: who holds it and who leads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    pub replicas: Vec<i32>,
    /// Log directory of each replica, in the order of `replicas`.
    pub directories: Vec<Uuid>,
    pub isr: Vec<i32>,
    pub removing_replicas: Vec<i32>,
    pub adding_replicas: Vec<i32>,
    /// Replicas outside of the ISR that are known to hold all below the high watermark (KIP-966).
    pub eligible_leader_replicas: Vec<i32>,
    /// The last members of the ISR when it became empty (KIP-966).
    pub last_known_elr: Vec<i32>,
    /// [`NO_LEADER`] while there is none.
    pub leader: i32,
    /// 0: recovered, 1: recovering from an unclean election.
    pub leader_recovery_state: i8,
    /// Rises with each election.
    pub leader_epoch: i32,
    /// Rises with each change of this partition.
    pub partition_epoch: i32,
}

impl Partition {
    /// The log directory of a replica; `None`: it has none, or it is not known in which one it lies.
    pub fn directory_of(&self, replica: i32) -> Option<Uuid> {
        let at = self.replicas.iter().position(|id| *id == replica)?;
        self.directories.get(at).copied().filter(is_directory)
    }
}

/// Whether an id is that of a log directory. Those below 100 stand for none (KIP-858): unassigned, lost, migrating.
pub fn is_directory(id: &Uuid) -> bool {
    u128::from_be_bytes(id.0) >= 100
}

/// A topic with its partitions by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    pub name: String,
    pub id: Uuid,
    pub partitions: BTreeMap<i32, Partition>,
}

impl Topic {
    /// How many replicas its first partition has.
    pub fn replication_factor(&self) -> i16 {
        let replicas = self.partitions.values().next().map_or(0, |p| p.replicas.len());
        i16::try_from(replicas).unwrap_or(i16::MAX)
    }

    /// Number of partitions.
    pub fn partition_count(&self) -> i32 {
        i32::try_from(self.partitions.len()).unwrap_or(i32::MAX)
    }
}

/// The block of producer ids that will be handed out next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextProducerIds {
    pub broker_id: i32,
    pub broker_epoch: i64,
    pub first_id: i64,
}

/// Who a quota is for: `user`, `client-id`, `ip`, each with a name, or the default for `None`.
pub type QuotaEntity = BTreeMap<String, Option<String>>;

/// Who a quota is for, with the quota's name.
pub type QuotaKey = (QuotaEntity, String);

/// All of the cluster's metadata at one offset of the metadata log.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MetadataImage {
    /// Offset of the last record contained; -1: none.
    pub offset: i64,
    /// Leader epoch of that record.
    pub epoch: i32,
    /// By name. The level of a feature that is off is absent.
    features: Arc<BTreeMap<String, i16>>,
    brokers: Arc<BTreeMap<i32, Arc<RegisterBrokerRecord>>>,
    controllers: Arc<BTreeMap<i32, Arc<RegisterControllerRecord>>>,
    topics: Arc<BTreeMap<String, Arc<Topic>>>,
    topic_names: Arc<BTreeMap<Uuid, String>>,
    configs: Arc<BTreeMap<ConfigResource, BTreeMap<String, String>>>,
    producer_ids: Option<NextProducerIds>,
    quotas: Arc<BTreeMap<QuotaKey, f64>>,
    acls: Arc<BTreeMap<Uuid, AccessControlEntryRecord>>,
    scram: Arc<BTreeMap<(String, i8), UserScramCredentialRecord>>,
    tokens: Arc<BTreeMap<String, DelegationTokenRecord>>,
}

impl MetadataImage {
    /// The image before the first record.
    pub fn empty() -> MetadataImage {
        MetadataImage { offset: -1, ..MetadataImage::default() }
    }

    /// All topics, by name.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = &Arc<Topic>> {
        self.topics.values()
    }

    /// Topics whose names come after `name` (exclusive), in order; all for `None`.
    pub fn topics_after(&self, name: Option<&str>) -> impl Iterator<Item = &Arc<Topic>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = name.map_or(Unbounded, Excluded);
        self.topics.range::<str, _>((from, Unbounded)).map(|(_, topic)| topic)
    }

    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(name)
    }

    pub fn topic_by_id(&self, id: &Uuid) -> Option<&Arc<Topic>> {
        self.topics.get(self.topic_names.get(id)?)
    }

    pub fn partition(&self, topic: &str, partition: i32) -> Option<&Partition> {
        self.topics.get(topic)?.partitions.get(&partition)
    }

    pub fn partition_count(&self) -> usize {
        self.topics.values().map(|t| t.partitions.len()).sum()
    }

    pub fn brokers(&self) -> impl ExactSizeIterator<Item = &Arc<RegisterBrokerRecord>> {
        self.brokers.values()
    }

    pub fn broker(&self, id: i32) -> Option<&Arc<RegisterBrokerRecord>> {
        self.brokers.get(&id)
    }

    /// Whether replicas may be placed on it and led by it.
    pub fn is_active(&self, broker: i32) -> bool {
        self.brokers.get(&broker).is_some_and(|b| !b.fenced && !b.in_controlled_shutdown)
    }

    pub fn controllers(&self) -> impl ExactSizeIterator<Item = &Arc<RegisterControllerRecord>> {
        self.controllers.values()
    }

    /// Level of a feature; 0 when it is off.
    pub fn feature(&self, name: &str) -> i16 {
        self.features.get(name).copied().unwrap_or(0)
    }

    pub fn features(&self) -> &BTreeMap<String, i16> {
        &self.features
    }

    /// Configs set for a resource, without defaults.
    pub fn configs(&self, resource: &ConfigResource) -> Option<&BTreeMap<String, String>> {
        self.configs.get(resource)
    }

    pub fn config(&self, resource: &ConfigResource, name: &str) -> Option<&str> {
        self.configs.get(resource)?.get(name).map(String::as_str)
    }

    /// Resources that have configs set.
    pub fn config_resources(&self) -> impl Iterator<Item = &ConfigResource> {
        self.configs.keys()
    }

    pub fn producer_ids(&self) -> Option<NextProducerIds> {
        self.producer_ids
    }

    pub fn acls(&self) -> impl ExactSizeIterator<Item = &AccessControlEntryRecord> {
        self.acls.values()
    }

    /// The quotas that are set, those of an entity one after the other.
    pub fn quotas(&self) -> &Arc<BTreeMap<QuotaKey, f64>> {
        &self.quotas
    }

    /// By user and number of the mechanism.
    pub fn scram_credentials(&self) -> &BTreeMap<(String, i8), UserScramCredentialRecord> {
        &self.scram
    }
}
