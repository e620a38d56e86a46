//! Makes the logs on disk be what the metadata says: creates, configures and removes them, and keeps [`Topics`] in step.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use caudal_cluster::config::{StaticConfig, broker_config};
use caudal_cluster::controller::{elected, leaderless};
use caudal_cluster::image::{self, ConfigResource, NO_LEADER};
use caudal_cluster::log::{ACCEPT_LOSS, METADATA_TOPIC};
use caudal_cluster::{MetadataImage, MetadataRecord};
use caudal_protocol::records::metadata::{BrokerRegistrationChangeRecord, PartitionChangeRecord};
use caudal_protocol::{ErrorCode, TopicPartition, Uuid};
use caudal_storage::{Cleaner, Log, LogConfig, LogDir, TopicLog};

use tokio::sync::mpsc::UnboundedSender;

use crate::background::Background;
use crate::cleaner::cleaner_config;
use crate::log_dirs::LogDirs;
use crate::metrics::Retired;
use crate::moves::{self, MoveError};
use crate::partition::Partition;
use crate::topics::{AWAY, Topic, Topics, TopicsView};

/// The partitions of this node.
#[derive(Debug)]
pub struct Replicas {
    pub topics: Arc<Topics>,
    pub log_dirs: LogDirs,
    /// One for each directory; none when it is off.
    pub cleaners: Vec<Cleaner>,
    /// The turns of what comes again and again.
    pub background: Background,
    pub node_id: i32,
    pub static_config: Arc<StaticConfig>,
    /// What went in and out of partitions that are no more.
    pub retired: Retired,
    /// Told the names of topics that are no more.
    pub deleted: UnboundedSender<String>,
}

impl Replicas {
    /// Carries out what changed from `before` (`None`: at start) to `after`. A log that cannot be created is logged and
    /// left out: its partition is offline, everything else goes on.
    pub fn follow(&self, before: Option<&MetadataImage>, after: &MetadataImage) {
        let old = self.topics.view();
        let broker_changed = before.is_none_or(|before| self.broker_configs(before) != self.broker_configs(after));
        let mut gone: Vec<Arc<Partition>> = Vec::new();
        for topic in old.iter() {
            if after.topic_by_id(&topic.id).is_none() {
                gone.extend(topic.partitions.iter().flatten().cloned());
            }
        }
        self.remove(&gone, &old, after);
        if before.is_none() {
            self.set_strays_aside(after);
        }
        let topics = after.topics().map(|topic| {
            let known = old.by_id(&topic.id);
            let resource = ConfigResource::topic(topic.name.as_str());
            let changed = broker_changed || before.is_none_or(|b| b.configs(&resource) != after.configs(&resource));
            self.follow_topic(topic, known, changed, (before, after))
        });
        self.topics.replace(TopicsView::new(topics.collect::<Vec<_>>()));
        self.log_dirs.forget_absent(after, self.node_id);
        if before.is_none() {
            self.tell_offline(after);
        }
        if broker_changed {
            self.follow_broker_configs(after);
        }
        // Fetches that wait for what is gone are told.
        gone.iter().for_each(|partition| partition.wake());
        for topic in old.iter().filter(|topic| after.topic_by_id(&topic.id).is_none()) {
            // Only a broker that is being stopped does not listen any more.
            let _ = self.deleted.send(topic.name.to_string());
        }
    }

    /// Partitions that wait for the directory they lie in.
    fn tell_offline(&self, image: &MetadataImage) {
        let view = self.topics.view();
        let offline = view.iter().flat_map(|topic| topic.offline.iter().map(move |(index, why)| (topic, *index, why)));
        let offline: Vec<_> = offline.filter(|(.., why)| *why == AWAY).collect();
        let Some((topic, first, _)) = offline.first() else { return };
        let partition = image.partition(&topic.name, *first);
        let directory = partition.and_then(|partition| partition.directory_of(self.node_id));
        tracing::error!(
            partitions = offline.len(), first = %TopicPartition::new(&*topic.name, *first),
            directory = directory.map(|id| id.to_string()),
            "partitions are offline: their log directory (directory.id in its meta.properties) is not there. Name it in log.dirs, \
             with what it held, and restart; or delete their topics; or start once with {ACCEPT_LOSS}=true, which begins them \
             anew, empty"
        );
    }

    /// Takes over what can be set while the broker runs.
    fn follow_broker_configs(&self, image: &MetadataImage) {
        let number = |name: &str| {
            let def = broker_config(name)?;
            self.static_config.resolve_broker(image, self.node_id, def).value?.parse::<i64>().ok()
        };
        for cleaner in &self.cleaners {
            let config = cleaner_config(&self.static_config, image, self.node_id, self.cleaners.len());
            if let Err(error) = cleaner.reconfigure(config) {
                tracing::error!("failed to start the threads of the log cleaner: {error}");
            }
        }
        if let Some(after_ms) = number("producer.id.expiration.ms") {
            self.log_dirs.iter().for_each(|dir| dir.log_dir.set_producer_id_expiration_ms(after_ms));
        }
        if let Some(tasks) = number("background.threads").and_then(|tasks| tasks.try_into().ok()) {
            self.background.set_most(tasks);
        }
    }

    /// Whether a partition that belongs here has no log.
    pub fn is_missing_some(&self, image: &MetadataImage) -> bool {
        let view = self.topics.view();
        image.topics().any(|topic| {
            let known = view.by_id(&topic.id);
            topic.partitions.iter().any(|(&index, partition)| {
                partition.replicas.contains(&self.node_id) && known.and_then(|k| k.partition(index)).is_none()
            })
        })
    }

    /// A crash may come between a topic's end and that of its logs. What is left is kept, out of the way of a new topic of
    /// that name: as in Kafka it is the operator's to delete. Where there is a topic of that name the log may be its own, with
    /// another id because of damage: it stays where it is, and opening the partition fails with what to do.
    fn set_strays_aside(&self, image: &MetadataImage) {
        let logs = self.log_dirs.iter().flat_map(|dir| dir.log_dir.logs().into_iter().map(move |log| (dir, log)));
        for (dir, log) in logs {
            let name = log.topic_partition();
            // It is not among the topics of the image.
            if name.topic == METADATA_TOPIC {
                continue;
            }
            // Without an id the log was never flushed; it goes by its name.
            let topic = match log.topic_id() {
                Some(id) => image.topic_by_id(&id),
                None => image.topic(&name.topic),
            };
            let partition = topic.and_then(|topic| topic.partitions.get(&name.partition));
            let namesake = image.topic(&name.topic).and_then(|topic| topic.partitions.get(&name.partition));
            if [partition, namesake].into_iter().flatten().any(|p| p.replicas.contains(&self.node_id)) {
                continue;
            }
            match dir.log_dir.set_aside(name) {
                Ok(dir) => tracing::warn!(
                    partition = %name, dir = %dir.display(),
                    records = log.log_end_offset() - log.log_start_offset(),
                    "a log belongs to no partition of this node, as if its topic had been deleted: it was set aside. Its \
                     directory can be removed if nobody misses the topic"
                ),
                Err(error) => tracing::error!(partition = %name, "failed to set a stray log aside: {error}"),
            }
        }
    }

    fn broker_configs<'i>(
        &self,
        image: &'i MetadataImage,
    ) -> [Option<&'i std::collections::BTreeMap<String, String>>; 2] {
        [image.configs(&ConfigResource::broker(self.node_id)), image.configs(&ConfigResource::all_brokers())]
    }

    /// Takes partitions out of the view first, so that nobody starts to use what is being deleted.
    fn remove(&self, gone: &[Arc<Partition>], old: &TopicsView, after: &MetadataImage) {
        if gone.is_empty() {
            return;
        }
        let kept = old.iter().filter(|topic| after.topic_by_id(&topic.id).is_some()).cloned();
        {
            let mut retired = self.retired.lock();
            self.topics.replace(TopicsView::from_shared(kept));
            gone.iter().for_each(|partition| partition.traffic.add_to(&mut retired));
        }
        for partition in gone {
            // One that is being moved is taken away when it is there.
            let _not_moved = partition.successor.lock();
            if let Err(error) = partition.log_dir.delete_log(&partition.name) {
                tracing::error!(partition = %partition.name, "failed to delete the log: {error}");
            }
        }
    }

    fn follow_topic(
        &self,
        topic: &image::Topic,
        known: Option<&Arc<Topic>>,
        config_changed: bool,
        (before, image): (Option<&MetadataImage>, &MetadataImage),
    ) -> Topic {
        let config = OnceCell::new();
        let config = || config.get_or_init(|| self.log_config(&topic.name, image)).clone();
        let count = topic.partitions.keys().next_back().map_or(0, |last| last + 1);
        let known_before = before.and_then(|before| before.topic_by_id(&topic.id));
        let mut offline = BTreeMap::new();
        let partitions = (0..count).map(|index| {
            let wanted = topic.partitions.get(&index).filter(|p| p.replicas.contains(&self.node_id))?;
            let short = self.is_short_of_replicas(&topic.name, wanted, image);
            if let Some(partition) = known.and_then(|k| k.partition(index)) {
                partition.set_leader_epoch(wanted.leader_epoch);
                partition.set_short_of_replicas(short);
                if config_changed {
                    partition.log.set_config(config());
                }
                return Some(partition.clone());
            }
            let is_new = before.is_some() && known_before.is_none_or(|known| !known.partitions.contains_key(&index));
            match self.create(topic, index, wanted, config(), is_new) {
                Ok(created) => {
                    created.set_short_of_replicas(short);
                    Some(created)
                }
                Err(why) => {
                    // It is tried again and again.
                    if why != AWAY && known.and_then(|known| known.offline.get(&index)) != Some(&why) {
                        tracing::error!(partition = %TopicPartition::new(&*topic.name, index), "{why}");
                    }
                    offline.insert(index, why);
                    None
                }
            }
        });
        let partitions = partitions.collect();
        Topic { name: topic.name.as_str().into(), id: topic.id, partitions, offline }
    }

    /// `min.insync.replicas`, as far as there are so many replicas, against those that are in sync.
    fn is_short_of_replicas(&self, topic: &str, partition: &image::Partition, image: &MetadataImage) -> bool {
        if partition.isr.len() >= partition.replicas.len() {
            return false;
        }
        let values = self.static_config.topic_values(image, self.node_id, topic);
        let wanted = values.into_iter().find(|(name, _)| name == "min.insync.replicas");
        let wanted: usize = wanted.and_then(|(_, value)| value.parse().ok()).unwrap_or(1);
        partition.isr.len() < wanted.min(partition.replicas.len())
    }

    /// A partition with its log, created where there is none; not where that may be in a directory that is not there: only of
    /// one that `is_new` it cannot.
    fn create(
        &self,
        topic: &image::Topic,
        index: i32,
        partition: &image::Partition,
        config: LogConfig,
        is_new: bool,
    ) -> Result<Arc<Partition>, String> {
        let name = TopicPartition::new(topic.name.as_str(), index);
        let directory = partition.directory_of(self.node_id);
        let accepts_loss = self.static_config.bool(ACCEPT_LOSS);
        if let Some(unusable) = self.log_dirs.unusable(&name, directory).filter(|_| !is_new) {
            return Err(unusable.to_string());
        }
        if !is_new && !accepts_loss && self.log_dirs.lies_elsewhere(&name, directory) {
            return Err(AWAY.to_owned());
        }
        let wanted = TopicLog { topic_partition: name.clone(), topic_id: Some(topic.id), config };
        let (log, log_dir) = self.log_dirs.create_log(wanted, directory, is_new).map_err(|error| error.to_string())?;
        Ok(Arc::new(Partition::new(name, topic.id, log, partition.leader_epoch, log_dir)))
    }

    /// Puts the copy of a partition's log in the place of the log. Whoever appends waits meanwhile. `false`: the partition is
    /// not here any more.
    ///
    /// # Errors
    /// The copy could not be completed; the partition is served from where it is.
    pub fn exchange(
        &self,
        partition: &Arc<Partition>,
        to: &Arc<LogDir>,
        future: &Arc<Log>,
        cleaned: Option<i64>,
    ) -> Result<bool, MoveError> {
        let view = self.topics.view();
        let current = view.by_id(&partition.topic_id).and_then(|topic| topic.partition(partition.name.partition));
        if current.is_none_or(|current| !Arc::ptr_eq(current, partition)) {
            return Ok(false);
        }
        let mut successor = partition.successor.lock();
        let source = &partition.log;
        let end = source.pause()?;
        let complete = || -> Result<Arc<Log>, MoveError> {
            moves::copy(source, future, end, &|| false, &|_| ())?;
            future.flush()?;
            future.delete_records_before(source.log_start_offset())?;
            future.set_config(LogConfig::clone(&source.config()));
            Ok(to.adopt_future(future, cleaned)?)
        };
        let log = complete().inspect_err(|_| source.resume())?;
        if let Err(error) = partition.log_dir.delete_log(&partition.name) {
            tracing::error!(partition = %partition.name, "failed to delete the log that was moved: {error}");
        }
        let there = Arc::new(partition.in_place(log, to.clone()));
        *successor = Some(there.clone());
        drop(successor);
        let topics = view.iter().map(|topic| {
            if topic.id != partition.topic_id {
                return topic.clone();
            }
            let partitions = topic.partitions.iter().map(|known| match known {
                Some(known) if Arc::ptr_eq(known, partition) => Some(there.clone()),
                other => other.clone(),
            });
            let (name, offline) = (topic.name.clone(), topic.offline.clone());
            Arc::new(Topic { name, id: topic.id, partitions: partitions.collect(), offline })
        });
        self.topics.replace(TopicsView::from_shared(topics));
        there.wake();
        Ok(true)
    }

    /// The records that say which directories are in use, in which of them partitions are, that those which are in none have no
    /// leader and that the others have one; where the metadata says otherwise.
    pub fn whereabouts(&self, image: &MetadataImage) -> Vec<MetadataRecord> {
        let mut records = Vec::new();
        let in_use = self.log_dirs.ids();
        // None at all cannot be said.
        if let Some(broker) = image.broker(self.node_id).filter(|b| b.log_dirs != in_use && !in_use.is_empty()) {
            records.push(MetadataRecord::BrokerRegistrationChange(BrokerRegistrationChangeRecord {
                broker_id: self.node_id,
                broker_epoch: broker.broker_epoch,
                log_dirs: in_use,
                ..BrokerRegistrationChangeRecord::default()
            }));
        }
        for topic in self.topics.view().iter() {
            let Some(placed) = image.topic_by_id(&topic.id) else { continue };
            for (index, known) in &placed.partitions {
                let change = match topic.find(*index) {
                    Ok(partition) => self.whereabouts_of(partition, &partition.log_dir, known),
                    Err(ErrorCode::KafkaStorageError) if known.leader == self.node_id => {
                        Some(leaderless(image, topic.id, *index, known, self.node_id))
                    }
                    Err(_) => None,
                };
                records.extend(change.map(MetadataRecord::PartitionChange));
            }
        }
        records
    }

    /// Says of new partitions in which directory they will lie, so that the metadata tells it from the first record on: after a
    /// crash nobody looks for them elsewhere. Only where there are several is it open.
    pub fn place(&self, image: &MetadataImage, records: &mut [MetadataRecord]) {
        let topics: HashMap<Uuid, String> = records.iter().filter_map(named).collect();
        let mut open: Vec<(TopicPartition, &mut Uuid)> = Vec::new();
        for record in records {
            let MetadataRecord::Partition(partition) = record else { continue };
            let known = || image.topic_by_id(&partition.topic_id).map(|topic| topic.name.to_string());
            let Some(topic) = topics.get(&partition.topic_id).cloned().or_else(known) else { continue };
            let at = partition.replicas.iter().position(|replica| *replica == self.node_id);
            let directory = at.and_then(|at| partition.directories.get_mut(at));
            if let Some(directory) = directory.filter(|id| !image::is_directory(id)) {
                open.push((TopicPartition::new(topic, partition.partition_id), directory));
            }
        }
        if open.is_empty() {
            return;
        }
        let names: Vec<_> = open.iter().map(|(name, _)| name.clone()).collect();
        let chosen = self.log_dirs.choose(&names);
        open.into_iter().zip(chosen).for_each(|((_, directory), id)| *directory = id);
    }

    /// The record that says that a partition lies in a directory, where the metadata says otherwise.
    pub fn whereabouts_in(
        &self,
        partition: &Partition,
        dir: &Arc<LogDir>,
        image: &MetadataImage,
    ) -> Option<MetadataRecord> {
        let known = image.topic_by_id(&partition.topic_id)?.partitions.get(&partition.name.partition)?;
        self.whereabouts_of(partition, dir, known).map(MetadataRecord::PartitionChange)
    }

    fn whereabouts_of(
        &self,
        partition: &Partition,
        dir: &Arc<LogDir>,
        known: &image::Partition,
    ) -> Option<PartitionChangeRecord> {
        let at = known.replicas.iter().position(|replica| *replica == self.node_id)?;
        let id = self.log_dirs.id_of(dir)?;
        let is_misplaced = known.directories.get(at) != Some(&id);
        let (topic_id, partition_id) = (partition.topic_id, partition.name.partition);
        let elected = match known.leader {
            NO_LEADER => elected(topic_id, partition_id, known, self.node_id),
            _ => None,
        };
        if !is_misplaced {
            return elected;
        }
        let mut directories = known.directories.clone();
        directories.resize(known.replicas.len(), Uuid::ZERO);
        if let Some(directory) = directories.get_mut(at) {
            *directory = id;
        }
        let change = elected.unwrap_or_else(|| PartitionChangeRecord {
            partition_id,
            topic_id,
            ..PartitionChangeRecord::default()
        });
        Some(PartitionChangeRecord { directories: Some(directories), ..change })
    }

    /// What the log of a topic obeys: its own configs over those of the brokers over the defaults.
    fn log_config(&self, topic: &str, image: &MetadataImage) -> LogConfig {
        let mut config = LogConfig::default();
        for (name, value) in self.static_config.topic_values(image, self.node_id, topic) {
            if let Err(error) = config.set(&name, &value) {
                tracing::warn!(topic, "{error}; the default is used");
            }
        }
        config
    }
}

/// The id and the name of the topic that a record makes.
fn named(record: &MetadataRecord) -> Option<(Uuid, String)> {
    match record {
        MetadataRecord::Topic(topic) => Some((topic.topic_id, topic.name.to_string())),
        _ => None,
    }
}
