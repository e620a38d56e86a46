//! An image as the shortest list of records that makes it, in the order that Kafka's `MetadataImage.write` has.

use caudal_protocol::records::metadata::client_quota_record::EntityData;
use caudal_protocol::records::metadata::*;

use super::{MetadataImage, Partition, Topic};
use crate::record::MetadataRecord;

impl MetadataImage {
    /// Records that, applied to the empty image, give this one (but for its offset and epoch).
    pub fn to_records(&self) -> Vec<MetadataRecord> {
        let mut out: Vec<MetadataRecord> = Vec::new();
        // metadata.version first: it decides how everything after it is read.
        let (version, others): (Vec<_>, Vec<_>) =
            self.features.iter().partition(|(name, _)| name.as_str() == "metadata.version");
        for (name, level) in version.into_iter().chain(others) {
            out.push(FeatureLevelRecord { name: name.clone(), feature_level: *level }.into());
        }
        out.extend(self.brokers.values().map(|b| MetadataRecord::RegisterBroker((**b).clone())));
        out.extend(self.controllers.values().map(|c| MetadataRecord::RegisterController((**c).clone())));
        for topic in self.topics.values() {
            out.push(TopicRecord { name: topic.name.clone(), topic_id: topic.id }.into());
            out.extend(topic.partitions.iter().map(|(id, p)| p.to_record(topic, *id).into()));
        }
        for (resource, configs) in self.configs.iter() {
            out.extend(configs.iter().map(|(name, value)| {
                MetadataRecord::Config(ConfigRecord {
                    resource_type: resource.kind.code(),
                    resource_name: resource.name.clone(),
                    name: name.clone(),
                    value: Some(value.clone()),
                })
            }));
        }
        self.security_records(&mut out);
        out
    }

    fn security_records(&self, out: &mut Vec<MetadataRecord>) {
        for ((entity, key), value) in self.quotas.iter() {
            let entity =
                entity.iter().map(|(kind, name)| EntityData { entity_type: kind.clone(), entity_name: name.clone() });
            out.push(
                ClientQuotaRecord { entity: entity.collect(), key: key.clone(), value: *value, remove: false }.into(),
            );
        }
        if let Some(next) = self.producer_ids {
            out.push(
                ProducerIdsRecord {
                    broker_id: next.broker_id,
                    broker_epoch: next.broker_epoch,
                    next_producer_id: next.first_id,
                }
                .into(),
            );
        }
        out.extend(self.acls.values().cloned().map(MetadataRecord::from));
        out.extend(self.scram.values().cloned().map(MetadataRecord::from));
        out.extend(self.tokens.values().cloned().map(MetadataRecord::from));
    }
}

impl Partition {
    /// The record that creates the partition as it is.
    pub fn to_record(&self, topic: &Topic, partition_id: i32) -> PartitionRecord {
        let some = |list: &Vec<i32>| (!list.is_empty()).then(|| list.clone());
        PartitionRecord {
            partition_id,
            topic_id: topic.id,
            replicas: self.replicas.clone(),
            isr: self.isr.clone(),
            removing_replicas: self.removing_replicas.clone(),
            adding_replicas: self.adding_replicas.clone(),
            leader: self.leader,
            leader_recovery_state: self.leader_recovery_state,
            leader_epoch: self.leader_epoch,
            partition_epoch: self.partition_epoch,
            directories: self.directories.clone(),
            eligible_leader_replicas: some(&self.eligible_leader_replicas),
            last_known_elr: some(&self.last_known_elr),
        }
    }
}
