//! Where the console consumer's records come from: partitions given by a group, or, without a group, all partitions of
//! the topics, found anew from time to time.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use caudal_client::{Consumer, ConsumerRecord, OffsetSpec, TopicPattern, Topics, WAITING_TARGET};
use caudal_protocol::messages::metadata_request::{MetadataRequest, MetadataRequestTopic};
use caudal_protocol::{ErrorCode, TopicPartition};

use super::options::Start;
use crate::tools::Stop;
use crate::tools::cluster::{CallError, Cluster};
use crate::tools::java::is_internal;

/// How often topics are looked for while there are none, and how often for new ones.
const SEARCH: Duration = Duration::from_millis(200);
const REFRESH: Duration = Duration::from_secs(10);
/// How long there may be none before that is told.
const PATIENCE: Duration = Duration::from_secs(2);

/// What to read.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// One partition, from a place of its own.
    Partition(TopicPartition, Start),
    /// A topic; with a group, what the group gives.
    Topic { name: String, has_group: bool },
    /// Topics by regular expression.
    Pattern { pattern: String, has_group: bool },
}

/// An open consumer.
pub struct Source {
    consumer: Option<Consumer>,
    cluster: Cluster,
    /// Topics to look for; `None` when a group or the command line says which partitions.
    search: Option<Search>,
    looked_at: Option<Instant>,
    missing_since: Option<Instant>,
}

enum Search {
    Name(String),
    Pattern(TopicPattern),
}

/// Why nothing is read yet.
impl fmt::Display for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Search::Name(name) => write!(f, "topic '{name}' does not exist, and nobody has made it yet"),
            Search::Pattern(_) => f.write_str("no topic fits the regular expression of --include yet"),
        }
    }
}

impl Source {
    pub async fn open(cluster: Cluster, wanted: &Wanted) -> Result<Source, Stop> {
        let mut consumer = Consumer::new(cluster.admin.client().clone()).map_err(CallError::from)?;
        let bad_pattern = |_| Stop::Failed("the regular expression of --include is invalid".to_owned());
        let search = match wanted {
            Wanted::Partition(partition, start) => {
                consumer.assign(std::slice::from_ref(partition)).await;
                let placed = match start {
                    Start::Earliest => consumer.seek_to(partition, OffsetSpec::Earliest),
                    Start::Latest => consumer.seek_to(partition, OffsetSpec::Latest),
                    Start::Offset(offset) => consumer.seek(partition, *offset),
                };
                placed.map_err(CallError::from)?;
                None
            }
            Wanted::Topic { name, has_group: true } => {
                consumer.subscribe(Topics::names([name.as_str()])).map_err(CallError::from)?;
                None
            }
            Wanted::Pattern { pattern, has_group: true } => {
                let topics = Topics::pattern(pattern).map_err(bad_pattern)?;
                consumer.subscribe(topics).map_err(CallError::from)?;
                None
            }
            Wanted::Topic { name, has_group: false } => Some(Search::Name(name.clone())),
            Wanted::Pattern { pattern, has_group: false } => {
                Some(Search::Pattern(TopicPattern::new(pattern).map_err(bad_pattern)?))
            }
        };
        Ok(Source { consumer: Some(consumer), cluster, search, looked_at: None, missing_since: None })
    }

    /// Records as soon as there are any; none when `timeout` has passed, or earlier.
    pub async fn poll(&mut self, timeout: Duration) -> caudal_client::Result<Vec<ConsumerRecord>> {
        let Some(consumer) = &mut self.consumer else { return Ok(Vec::new()) };
        let mut wait = timeout;
        if let Some(search) = &self.search {
            let assigned = consumer.assignment();
            let pause = if assigned.is_empty() { SEARCH } else { REFRESH };
            if self.looked_at.is_none_or(|at| at.elapsed() >= pause) {
                self.looked_at = Some(Instant::now());
                let found = find(&self.cluster, search).await?;
                if found != assigned && !found.is_empty() {
                    consumer.assign(&found).await;
                }
            }
            if consumer.assignment().is_empty() {
                let since = *self.missing_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= PATIENCE {
                    tracing::warn!(target: WAITING_TARGET, "{search}");
                }
                tokio::time::sleep(wait.min(SEARCH)).await;
                return Ok(Vec::new());
            }
            wait = wait.min(REFRESH);
        }
        // A timer of the runtime takes no more than some decades.
        consumer.poll(wait.min(Duration::from_secs(3600))).await
    }

    /// Puts records back that were not used: they must not be committed as read.
    pub fn give_back(&mut self, unread: &[ConsumerRecord]) {
        let mut first: BTreeMap<TopicPartition, i64> = BTreeMap::new();
        for record in unread {
            first.entry(TopicPartition::new(&*record.topic, record.partition)).or_insert(record.offset);
        }
        let Some(consumer) = &mut self.consumer else { return };
        for (partition, offset) in first {
            // Fails when the group has taken the partition away, and then nothing is to be done.
            let _ = consumer.seek(&partition, offset);
        }
    }

    /// Commits, if the consumer does so by itself, and leaves the group.
    pub async fn close(&mut self) -> caudal_client::Result<()> {
        match self.consumer.take() {
            Some(consumer) => consumer.close().await,
            None => Ok(()),
        }
    }
}

/// The partitions of the topics there are, in order. A topic that is named is created if the cluster does so.
async fn find(cluster: &Cluster, search: &Search) -> caudal_client::Result<Vec<TopicPartition>> {
    let client = cluster.admin.client();
    let mut found = Vec::new();
    match search {
        Search::Name(name) => {
            let topic = MetadataRequestTopic { name: Some(name.clone()), ..MetadataRequestTopic::default() };
            let allows_creation = client.config().get("allow.auto.create.topics").eq_ignore_ascii_case("true");
            let request = MetadataRequest {
                topics: Some(vec![topic]),
                allow_auto_topic_creation: allows_creation,
                ..MetadataRequest::default()
            };
            for topic in client.send_any(&request).await?.topics {
                if topic.error_code == ErrorCode::InvalidTopicException.code() {
                    // No topic will ever have this name.
                    return Err(caudal_client::Error::of_topic(name, ErrorCode::InvalidTopicException));
                }
                found.extend(topic.partitions.iter().map(|p| TopicPartition::new(name.clone(), p.partition_index)));
            }
        }
        Search::Pattern(pattern) => {
            for topic in client.all_topics().await? {
                if pattern.matches(&topic.name) && !is_internal(&topic.name) {
                    found.extend(topic.partitions.iter().map(|p| TopicPartition::new(topic.name.clone(), p.partition)));
                }
            }
        }
    }
    found.sort();
    Ok(found)
}
