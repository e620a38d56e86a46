//! The fold: one record onto an image.

use std::sync::Arc;

use caudal_protocol::Uuid;
use caudal_protocol::records::metadata::*;

use super::{ConfigResource, ConfigResourceType, MetadataImage, NextProducerIds, Partition, QuotaKey, Topic};
use crate::record::MetadataRecord;

/// A record that does not fit the image: the log is damaged, or was written by something that is not Kafka.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    #[error("failed to apply a {record}: there is no topic with id {id}")]
    NoTopic { record: &'static str, id: Uuid },
    #[error("failed to apply a {record}: topic {topic} has no partition {partition}")]
    NoPartition { record: &'static str, topic: String, partition: i32 },
    #[error("failed to apply a {record}: broker {id} is not registered with epoch {epoch}")]
    NoBroker { record: &'static str, id: i32, epoch: i64 },
    #[error("failed to apply a TopicRecord: topic {name} exists already, with id {id}")]
    TopicExists { name: String, id: Uuid },
    #[error("failed to apply a ConfigRecord: resource type {0} is not known")]
    ConfigResource(i8),
    #[error("failed to apply a {0}: only the log's loader may see it")]
    Transaction(&'static str),
}

/// "Leader unchanged" in a PartitionChangeRecord.
const NO_LEADER_CHANGE: i32 = -2;

impl MetadataImage {
    /// Applies one record; the image is unchanged on error. `offset` and `epoch` stay the caller's to set.
    pub fn apply(&mut self, record: &MetadataRecord) -> Result<(), ApplyError> {
        match record {
            MetadataRecord::RegisterBroker(r) => {
                Arc::make_mut(&mut self.brokers).insert(r.broker_id, Arc::new(r.clone()));
            }
            MetadataRecord::UnregisterBroker(r) => {
                self.registered("UnregisterBrokerRecord", r.broker_id, r.broker_epoch)?;
                Arc::make_mut(&mut self.brokers).remove(&r.broker_id);
            }
            MetadataRecord::FenceBroker(r) => self.set_fenced("FenceBrokerRecord", r.id, r.epoch, true)?,
            MetadataRecord::UnfenceBroker(r) => self.set_fenced("UnfenceBrokerRecord", r.id, r.epoch, false)?,
            MetadataRecord::BrokerRegistrationChange(r) => self.change_registration(r)?,
            MetadataRecord::RegisterController(r) => {
                Arc::make_mut(&mut self.controllers).insert(r.controller_id, Arc::new(r.clone()));
            }
            MetadataRecord::FeatureLevel(r) => {
                let features = Arc::make_mut(&mut self.features);
                match r.feature_level {
                    0 => features.remove(&r.name),
                    level => features.insert(r.name.clone(), level),
                };
            }
            MetadataRecord::Topic(r) => self.add_topic(r)?,
            MetadataRecord::RemoveTopic(r) => self.remove_topic(r)?,
            MetadataRecord::Partition(r) => self.put_partition(r)?,
            MetadataRecord::PartitionChange(r) => self.change_partition(r)?,
            MetadataRecord::ClearElr(r) => self.clear_elr(r),
            MetadataRecord::Config(r) => self.set_config(r)?,
            MetadataRecord::ProducerIds(r) => {
                self.producer_ids = Some(NextProducerIds {
                    broker_id: r.broker_id,
                    broker_epoch: r.broker_epoch,
                    first_id: r.next_producer_id,
                });
            }
            MetadataRecord::NoOp(_) => {}
            MetadataRecord::BeginTransaction(_)
            | MetadataRecord::EndTransaction(_)
            | MetadataRecord::AbortTransaction(_) => return Err(ApplyError::Transaction(record.name())),
            security => self.apply_security(security),
        }
        Ok(())
    }

    /// Quotas, ACLs and credentials: kept, so that a snapshot written here loses nothing that Kafka stored.
    fn apply_security(&mut self, record: &MetadataRecord) {
        match record {
            MetadataRecord::ClientQuota(r) => {
                let entity = r.entity.iter().map(|e| (e.entity_type.clone(), e.entity_name.clone())).collect();
                let key: QuotaKey = (entity, r.key.clone());
                let quotas = Arc::make_mut(&mut self.quotas);
                if r.remove {
                    quotas.remove(&key)
                } else {
                    quotas.insert(key, r.value)
                };
            }
            MetadataRecord::AccessControlEntry(r) => {
                Arc::make_mut(&mut self.acls).insert(r.id, r.clone());
            }
            MetadataRecord::RemoveAccessControlEntry(r) => {
                Arc::make_mut(&mut self.acls).remove(&r.id);
            }
            MetadataRecord::UserScramCredential(r) => {
                Arc::make_mut(&mut self.scram).insert((r.name.clone(), r.mechanism), r.clone());
            }
            MetadataRecord::RemoveUserScramCredential(r) => {
                Arc::make_mut(&mut self.scram).remove(&(r.name.clone(), r.mechanism));
            }
            MetadataRecord::DelegationToken(r) => {
                Arc::make_mut(&mut self.tokens).insert(r.token_id.clone(), r.clone());
            }
            MetadataRecord::RemoveDelegationToken(r) => {
                Arc::make_mut(&mut self.tokens).remove(&r.token_id);
            }
            _ => {}
        }
    }

    fn registered(&self, record: &'static str, id: i32, epoch: i64) -> Result<(), ApplyError> {
        match self.brokers.get(&id) {
            Some(broker) if broker.broker_epoch == epoch => Ok(()),
            _ => Err(ApplyError::NoBroker { record, id, epoch }),
        }
    }

    fn broker_mut(
        &mut self,
        record: &'static str,
        id: i32,
        epoch: i64,
    ) -> Result<&mut RegisterBrokerRecord, ApplyError> {
        self.registered(record, id, epoch)?;
        let broker = Arc::make_mut(&mut self.brokers).get_mut(&id);
        broker.map(Arc::make_mut).ok_or(ApplyError::NoBroker { record, id, epoch })
    }

    fn set_fenced(&mut self, record: &'static str, id: i32, epoch: i64, fenced: bool) -> Result<(), ApplyError> {
        self.broker_mut(record, id, epoch)?.fenced = fenced;
        Ok(())
    }

    fn change_registration(&mut self, r: &BrokerRegistrationChangeRecord) -> Result<(), ApplyError> {
        let broker = self.broker_mut("BrokerRegistrationChangeRecord", r.broker_id, r.broker_epoch)?;
        match r.fenced {
            1 => broker.fenced = true,
            -1 => broker.fenced = false,
            _ => {}
        }
        if r.in_controlled_shutdown == 1 {
            broker.in_controlled_shutdown = true;
        }
        if !r.log_dirs.is_empty() {
            broker.log_dirs.clone_from(&r.log_dirs);
        }
        if let Some(cordoned) = &r.cordoned_log_dirs {
            broker.cordoned_log_dirs = Some(cordoned.clone());
        }
        Ok(())
    }

    fn add_topic(&mut self, r: &TopicRecord) -> Result<(), ApplyError> {
        if let Some(existing) = self.topics.get(&r.name) {
            return Err(ApplyError::TopicExists { name: r.name.clone(), id: existing.id });
        }
        let topic = Topic { name: r.name.clone(), id: r.topic_id, partitions: Default::default() };
        Arc::make_mut(&mut self.topics).insert(r.name.clone(), Arc::new(topic));
        Arc::make_mut(&mut self.topic_names).insert(r.topic_id, r.name.clone());
        Ok(())
    }

    fn remove_topic(&mut self, r: &RemoveTopicRecord) -> Result<(), ApplyError> {
        let missing = ApplyError::NoTopic { record: "RemoveTopicRecord", id: r.topic_id };
        let name = Arc::make_mut(&mut self.topic_names).remove(&r.topic_id).ok_or(missing)?;
        Arc::make_mut(&mut self.topics).remove(&name);
        let resource = ConfigResource::topic(name);
        if self.configs.contains_key(&resource) {
            Arc::make_mut(&mut self.configs).remove(&resource);
        }
        Ok(())
    }

    fn topic_mut(&mut self, record: &'static str, id: Uuid) -> Result<&mut Topic, ApplyError> {
        let missing = || ApplyError::NoTopic { record, id };
        let name = self.topic_names.get(&id).ok_or_else(missing)?;
        let topic = Arc::make_mut(&mut self.topics).get_mut(name);
        topic.map(Arc::make_mut).ok_or_else(missing)
    }

    fn put_partition(&mut self, r: &PartitionRecord) -> Result<(), ApplyError> {
        let topic = self.topic_mut("PartitionRecord", r.topic_id)?;
        let mut directories = r.directories.clone();
        directories.resize(r.replicas.len(), Uuid::ZERO);
        let partition = Partition {
            replicas: r.replicas.clone(),
            directories,
            isr: r.isr.clone(),
            removing_replicas: r.removing_replicas.clone(),
            adding_replicas: r.adding_replicas.clone(),
            eligible_leader_replicas: r.eligible_leader_replicas.clone().unwrap_or_default(),
            last_known_elr: r.last_known_elr.clone().unwrap_or_default(),
            leader: r.leader,
            leader_recovery_state: r.leader_recovery_state,
            leader_epoch: r.leader_epoch,
            partition_epoch: r.partition_epoch,
        };
        topic.partitions.insert(r.partition_id, partition);
        Ok(())
    }

    fn change_partition(&mut self, r: &PartitionChangeRecord) -> Result<(), ApplyError> {
        const RECORD: &str = "PartitionChangeRecord";
        let topic = self.topic_mut(RECORD, r.topic_id)?;
        let Some(partition) = topic.partitions.get_mut(&r.partition_id) else {
            let (topic, partition) = (topic.name.clone(), r.partition_id);
            return Err(ApplyError::NoPartition { record: RECORD, topic, partition });
        };
        let set = |to: &mut Vec<i32>, from: &Option<Vec<i32>>| {
            if let Some(from) = from {
                to.clone_from(from);
            }
        };
        if let Some(replicas) = &r.replicas {
            let old = partition.replicas.iter().zip(&partition.directories);
            let known: Vec<(i32, Uuid)> = old.map(|(id, dir)| (*id, *dir)).collect();
            let dir = |id: &i32| known.iter().find(|(k, _)| k == id).map_or(Uuid::ZERO, |(_, d)| *d);
            partition.directories = replicas.iter().map(dir).collect();
            partition.replicas.clone_from(replicas);
        }
        if let Some(directories) = &r.directories {
            partition.directories.clone_from(directories);
            partition.directories.resize(partition.replicas.len(), Uuid::ZERO);
        }
        set(&mut partition.isr, &r.isr);
        set(&mut partition.removing_replicas, &r.removing_replicas);
        set(&mut partition.adding_replicas, &r.adding_replicas);
        set(&mut partition.eligible_leader_replicas, &r.eligible_leader_replicas);
        set(&mut partition.last_known_elr, &r.last_known_elr);
        if r.leader != NO_LEADER_CHANGE {
            partition.leader = r.leader;
            partition.leader_epoch += 1;
        }
        if r.leader_recovery_state >= 0 {
            partition.leader_recovery_state = r.leader_recovery_state;
        }
        partition.partition_epoch += 1;
        Ok(())
    }

    fn clear_elr(&mut self, r: &ClearElrRecord) {
        let all = r.topic_name.is_empty();
        let has_elr = |p: &Partition| !p.eligible_leader_replicas.is_empty() || !p.last_known_elr.is_empty();
        for (name, topic) in Arc::make_mut(&mut self.topics) {
            if (all || *name == r.topic_name) && topic.partitions.values().any(has_elr) {
                for partition in Arc::make_mut(topic).partitions.values_mut().filter(|p| has_elr(p)) {
                    partition.eligible_leader_replicas.clear();
                    partition.last_known_elr.clear();
                    partition.partition_epoch += 1;
                }
            }
        }
    }

    fn set_config(&mut self, r: &ConfigRecord) -> Result<(), ApplyError> {
        let kind = ConfigResourceType::from_code(r.resource_type).ok_or(ApplyError::ConfigResource(r.resource_type))?;
        let resource = ConfigResource { kind, name: r.resource_name.clone() };
        let configs = Arc::make_mut(&mut self.configs);
        match &r.value {
            Some(value) => {
                configs.entry(resource).or_default().insert(r.name.clone(), value.clone());
            }
            None => {
                if let Some(set) = configs.get_mut(&resource) {
                    set.remove(&r.name);
                    if set.is_empty() {
                        configs.remove(&resource);
                    }
                }
            }
        }
        Ok(())
    }
}
