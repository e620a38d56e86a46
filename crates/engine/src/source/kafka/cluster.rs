//! What the source needs of a Kafka cluster: a seam where tests put a script.

use async_trait::async_trait;
use caudal_client::admin::OffsetAndMetadata;
use caudal_client::{
    Admin, Available, Chunk, ChunkStream, Client, ClientConfig, Error, Fetcher, OffsetRange, OffsetSpec, Topics,
};
use caudal_protocol::{TopicPartition, Uuid};

/// A topic and its partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicInfo {
    pub name: String,
    /// Zero where the cluster has no topic ids.
    pub id: Uuid,
    pub partitions: Vec<i32>,
}

/// Chunks as they arrive, in order per partition.
#[async_trait]
pub trait Chunks: Send {
    /// `None` when all ranges are complete.
    async fn next(&mut self) -> Result<Option<Chunk>, Error>;
}

/// Reading access to a cluster.
#[async_trait]
pub trait Cluster: Send + Sync {
    /// The topics as they are now; a name that does not exist is an error.
    async fn topics(&self, topics: &Topics) -> Result<Vec<TopicInfo>, Error>;
    /// One offset per question; -1 when no record matches a time.
    async fn offsets(&self, wanted: &[(TopicPartition, OffsetSpec)]) -> Result<Vec<(TopicPartition, i64)>, Error>;
    fn read(&self, ranges: Vec<OffsetRange>) -> Box<dyn Chunks>;
    /// Returns when some partition has records at or beyond its offset.
    async fn wait_beyond(&self, offsets: &[(TopicPartition, i64)]) -> Result<Vec<Available>, Error>;
    async fn commit(&self, group: &str, offsets: &[(TopicPartition, i64)]) -> Result<(), Error>;
}

/// A real cluster.
#[derive(Debug, Clone)]
pub(super) struct ClientCluster {
    fetcher: Fetcher,
}

impl ClientCluster {
    pub(super) async fn connect(config: ClientConfig) -> Result<Self, Error> {
        Ok(ClientCluster { fetcher: Fetcher::new(Client::connect(config).await?) })
    }
}

#[async_trait]
impl Chunks for ChunkStream {
    async fn next(&mut self) -> Result<Option<Chunk>, Error> {
        ChunkStream::next(self).await
    }
}

#[async_trait]
impl Cluster for ClientCluster {
    async fn topics(&self, topics: &Topics) -> Result<Vec<TopicInfo>, Error> {
        let found = self.fetcher.topics(topics).await?;
        let info = |t: &caudal_client::TopicMetadata| TopicInfo {
            name: t.name.clone(),
            id: t.id,
            partitions: t.partitions.iter().map(|p| p.partition).collect(),
        };
        Ok(found.iter().map(|t| info(t)).collect())
    }

    async fn offsets(&self, wanted: &[(TopicPartition, OffsetSpec)]) -> Result<Vec<(TopicPartition, i64)>, Error> {
        let listed = self.fetcher.client().list_offsets(wanted, self.fetcher.isolation()).await?;
        listed.into_iter().map(|(tp, offset)| Ok((tp, offset?.offset))).collect()
    }

    fn read(&self, ranges: Vec<OffsetRange>) -> Box<dyn Chunks> {
        Box::new(self.fetcher.read(ranges))
    }

    async fn wait_beyond(&self, offsets: &[(TopicPartition, i64)]) -> Result<Vec<Available>, Error> {
        self.fetcher.wait_beyond(offsets).await
    }

    async fn commit(&self, group: &str, offsets: &[(TopicPartition, i64)]) -> Result<(), Error> {
        let offset = |offset| OffsetAndMetadata { offset, leader_epoch: None, metadata: String::new() };
        let offsets: Vec<_> = offsets.iter().map(|(tp, o)| (tp.clone(), offset(*o))).collect();
        let admin = Admin::new(self.fetcher.client().clone());
        for (_, result) in admin.commit_group_offsets(group, &offsets).await? {
            result?;
        }
        Ok(())
    }
}
