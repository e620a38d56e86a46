//! The topics and partitions on this broker: an immutable view that is replaced when the metadata changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use caudal_protocol::{ErrorCode, Uuid};
use parking_lot::RwLock;

use crate::partition::Partition;

/// A topic and its partitions by number; `None` where this broker does not have one.
#[derive(Debug)]
pub struct Topic {
    pub name: Arc<str>,
    pub id: Uuid,
    pub partitions: Vec<Option<Arc<Partition>>>,
    /// Those of this broker whose log is not there, or could not be opened or created, and why.
    pub offline: BTreeMap<i32, String>,
}

/// Of partitions that wait for the directory they lie in.
pub const AWAY: &str = "its log directory is not there";

impl Topic {
    pub fn partition(&self, index: i32) -> Option<&Arc<Partition>> {
        self.partitions.get(usize::try_from(index).ok()?)?.as_ref()
    }

    /// The partition, if its log is in use.
    ///
    /// # Errors
    /// What a client that asks for it is answered.
    pub fn find(&self, index: i32) -> Result<&Arc<Partition>, ErrorCode> {
        match self.partition(index) {
            Some(partition) if partition.log.check_online().is_ok() => Ok(partition),
            None if !self.offline.contains_key(&index) => Err(ErrorCode::UnknownTopicOrPartition),
            _ => Err(ErrorCode::KafkaStorageError),
        }
    }
}

/// All topics at one moment.
#[derive(Debug, Default)]
pub struct TopicsView {
    by_name: HashMap<Arc<str>, Arc<Topic>>,
    by_id: HashMap<Uuid, Arc<Topic>>,
}

impl TopicsView {
    pub fn new(topics: impl IntoIterator<Item = Topic>) -> TopicsView {
        TopicsView::from_shared(topics.into_iter().map(Arc::new))
    }

    pub fn from_shared(topics: impl IntoIterator<Item = Arc<Topic>>) -> TopicsView {
        let mut view = TopicsView::default();
        for topic in topics {
            view.by_id.insert(topic.id, topic.clone());
            view.by_name.insert(topic.name.clone(), topic);
        }
        view
    }

    pub fn by_name(&self, name: &str) -> Option<&Arc<Topic>> {
        self.by_name.get(name)
    }

    pub fn by_id(&self, id: &Uuid) -> Option<&Arc<Topic>> {
        self.by_id.get(id)
    }

    pub fn partition(&self, name: &str, index: i32) -> Option<&Arc<Partition>> {
        self.by_name(name)?.partition(index)
    }

    /// As [`Topic::find`].
    ///
    /// # Errors
    /// What a client that asks for it is answered.
    pub fn find(&self, name: &str, index: i32) -> Result<&Arc<Partition>, ErrorCode> {
        self.by_name(name).ok_or(ErrorCode::UnknownTopicOrPartition)?.find(index)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.by_name.values()
    }

    /// Every partition on this broker.
    pub fn partitions(&self) -> impl Iterator<Item = &Arc<Partition>> {
        self.iter().flat_map(|t| t.partitions.iter().flatten())
    }
}

/// The current view.
#[derive(Debug, Default)]
pub struct Topics {
    view: RwLock<Arc<TopicsView>>,
}

impl Topics {
    pub fn view(&self) -> Arc<TopicsView> {
        self.view.read().clone()
    }

    pub fn replace(&self, view: TopicsView) {
        *self.view.write() = Arc::new(view);
    }
}
