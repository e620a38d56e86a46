//! Where a match is played: on a broker inside of this process, or on one that is there already.

use std::collections::BTreeMap;
use std::path::Path;

use caudal_broker::{Broker, BrokerConfig};
use caudal_client::{Admin, Client, ClientConfig, Isolation, OffsetSpec};
use caudal_protocol::{ErrorCode, TopicPartition};

use super::play::Failure;

pub const POSITIONS_TOPIC: &str = "player-position";
pub const SECONDS_TOPIC: &str = "player-second";
pub const EVENTS_TOPIC: &str = "ball-event";

/// A broker with the topics of a match.
pub struct Stage {
    /// `None`: the broker is somebody else's.
    broker: Option<Broker>,
    pub address: String,
    /// Where this match begins, by topic and partition, if the topics hold earlier matches; else empty.
    starts: BTreeMap<String, BTreeMap<i32, i64>>,
}

impl Stage {
    /// Starts a broker that keeps its data in `dir`, or connects to `server`, and creates the topics that are missing.
    pub async fn open(server: Option<&str>, dir: &Path) -> Result<Stage, Failure> {
        let (broker, address) = match server {
            Some(server) => (None, server.to_owned()),
            None => {
                let mut config = BrokerConfig::new(dir.to_owned());
                config.listen.iter_mut().for_each(|address| address.set_port(0));
                let broker = Broker::start(config).await?;
                let bound = broker.context().bound.first().copied().ok_or("the broker listens nowhere")?;
                (Some(broker), bound.to_string())
            }
        };
        let mut stage = Stage { broker, address, starts: BTreeMap::new() };
        let client = Client::connect(stage.client_config()?)
            .await
            .map_err(|e| format!("{e}\n`caudal up` starts a broker; without --server the demo has one of its own"))?;
        let admin = Admin::new(client);
        for (topic, partitions) in [(POSITIONS_TOPIC, 2), (SECONDS_TOPIC, 2), (EVENTS_TOPIC, 1)] {
            match admin.create_topic(topic, Some(partitions)).await {
                Err(e) if e.code() == Some(ErrorCode::TopicAlreadyExists) && stage.broker.is_none() => {}
                made => _ = made?,
            }
        }
        if stage.broker.is_none() {
            stage.starts = ends(&admin).await?;
        }
        Ok(stage)
    }

    /// The settings of a client of the broker.
    pub fn client_config(&self) -> Result<ClientConfig, Failure> {
        Ok(ClientConfig::from_properties([("bootstrap.servers", self.address.as_str())])?)
    }

    /// Records of earlier matches in the topics.
    pub fn earlier_records(&self) -> i64 {
        self.starts.values().flat_map(BTreeMap::values).sum()
    }

    /// A script as it is; where the topics hold earlier matches it begins behind them: the watermark that they lead to
    /// would make all of this one late.
    pub fn script(&self, text: &str) -> String {
        if self.earlier_records() == 0 {
            return text.to_owned();
        }
        let offsets = |topic: &str| serde_json::json!({ topic: self.starts.get(topic) }).to_string();
        let topic = if text.contains(EVENTS_TOPIC) { EVENTS_TOPIC } else { POSITIONS_TOPIC };
        let text = text.replace("'startingOffsets' 'earliest'", &format!("'startingOffsets' '{}'", offsets(topic)));
        // A streaming table is read from its beginning; a table over the same topic says where.
        let again = format!(
            "CREATE TABLE player_second_now USING kafka OPTIONS ('kafka.bootstrap.servers' '${{bootstrap}}', \
             'subscribe' '{SECONDS_TOPIC}', 'startingOffsets' '{}');\n",
            offsets(SECONDS_TOPIC)
        );
        again + &text.replace("FROM STREAM player_second\n", "FROM STREAM player_second_now\n")
    }

    /// Stops the broker, if it is ours.
    pub async fn close(self) {
        if let Some(broker) = self.broker {
            broker.shutdown().await;
        }
    }
}

/// The ends of all partitions of the topics.
async fn ends(admin: &Admin) -> Result<BTreeMap<String, BTreeMap<i32, i64>>, Failure> {
    let names = [POSITIONS_TOPIC, SECONDS_TOPIC, EVENTS_TOPIC].map(str::to_owned);
    let mut wanted = Vec::new();
    for topic in admin.describe_topics(Some(&names)).await? {
        let name = topic.name.unwrap_or_default();
        let partitions = topic.partitions.iter();
        wanted.extend(partitions.map(|p| (TopicPartition::new(name.clone(), p.partition_index), OffsetSpec::Latest)));
    }
    let mut found: BTreeMap<String, BTreeMap<i32, i64>> = BTreeMap::new();
    for (tp, listed) in admin.list_offsets(&wanted, Isolation::ReadUncommitted).await? {
        found.entry(tp.topic).or_default().insert(tp.partition, listed?.offset);
    }
    Ok(found)
}
