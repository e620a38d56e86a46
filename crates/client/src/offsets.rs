//! Offsets by position or time (ListOffsets), over all the brokers that lead the partitions.

use caudal_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use caudal_protocol::messages::{ListOffsetsRequest, ListOffsetsResponse};
use caudal_protocol::{ErrorCode, TopicPartition};
use hashbrown::HashMap;

use crate::client::{ANY_VERSION, Client, Lane};
use crate::error::{Error, Result};

/// Which offset of a partition is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OffsetSpec {
    /// The first offset that can be read.
    Earliest,
    /// The offset after the last record that may be read: the high watermark, or the last stable offset for
    /// `read_committed`.
    Latest,
    /// The offset of the first record with at least this time, in milliseconds since the epoch.
    Timestamp(i64),
    /// The offset of the record with the greatest time (KIP-734).
    MaxTimestamp,
    /// The first offset that is not yet in tiered storage.
    EarliestLocal,
    /// The last offset that is in tiered storage.
    LatestTiered,
    /// The first offset that has not been uploaded to tiered storage yet (KIP-1023).
    EarliestPendingUpload,
}

impl OffsetSpec {
    /// The value on the wire.
    pub fn timestamp(self) -> i64 {
        match self {
            OffsetSpec::Latest => -1,
            OffsetSpec::Earliest => -2,
            OffsetSpec::MaxTimestamp => -3,
            OffsetSpec::EarliestLocal => -4,
            OffsetSpec::LatestTiered => -5,
            OffsetSpec::EarliestPendingUpload => -6,
            OffsetSpec::Timestamp(ms) => ms,
        }
    }
}

/// What a reader may see of transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Isolation {
    #[default]
    ReadUncommitted,
    ReadCommitted,
}

impl Isolation {
    pub(crate) fn level(self) -> i8 {
        match self {
            Isolation::ReadUncommitted => 0,
            Isolation::ReadCommitted => 1,
        }
    }

    pub(crate) fn from_name(name: &str) -> Isolation {
        if name.eq_ignore_ascii_case("read_committed") { Isolation::ReadCommitted } else { Isolation::ReadUncommitted }
    }
}

/// An offset that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedOffset {
    /// -1 when no record matches (a time after the last record).
    pub offset: i64,
    /// Time of the record at the offset; -1 when the question was not about time or nothing matches.
    pub timestamp_ms: i64,
    pub leader_epoch: i32,
}

/// One answer per question, in the order of the questions.
pub type ListedOffsets = Vec<(TopicPartition, Result<ListedOffset>)>;

impl Client {
    /// Asks the leaders for offsets. Errors that pass (an election, a broker restarting) are retried within
    /// `default.api.timeout.ms`; what is then still missing fails by itself and leaves the others.
    pub async fn list_offsets(
        &self,
        wanted: &[(TopicPartition, OffsetSpec)],
        isolation: Isolation,
    ) -> Result<ListedOffsets> {
        let mut found: HashMap<TopicPartition, Result<ListedOffset>> = HashMap::new();
        self.list_offsets_in_turn(wanted, isolation, |tp, answer| drop(found.insert(tp, answer))).await;
        let answer =
            |tp: &TopicPartition| found.get(tp).cloned().unwrap_or(Err(Error::Closed { what: "list offsets" }));
        Ok(wanted.iter().map(|(tp, _)| (tp.clone(), answer(tp))).collect())
    }

    /// As [`Client::list_offsets`], each answer as soon as it is there: those of partitions without a leader are long in coming.
    pub(crate) async fn list_offsets_in_turn(
        &self,
        wanted: &[(TopicPartition, OffsetSpec)],
        isolation: Isolation,
        mut found: impl FnMut(TopicPartition, Result<ListedOffset>),
    ) {
        let mut open: Vec<(TopicPartition, OffsetSpec)> = wanted.to_vec();
        let mut attempts = self.api_attempts("list offsets");
        while !open.is_empty() {
            let again = self.list_offsets_once(open, isolation, &mut found).await;
            let Some((_, _, failure)) = again.first() else { return };
            if attempts.pause(failure.clone()).await.is_err() {
                again.into_iter().for_each(|(tp, _, failure)| found(tp, Err(attempts.gave_up(failure))));
                return;
            }
            open = again.into_iter().map(|(tp, spec, _)| (tp, spec)).collect();
        }
    }

    /// One round over the leaders. Returns what is worth another round, and why.
    async fn list_offsets_once(
        &self,
        open: Vec<(TopicPartition, OffsetSpec)>,
        isolation: Isolation,
        found: &mut impl FnMut(TopicPartition, Result<ListedOffset>),
    ) -> Vec<(TopicPartition, OffsetSpec, Error)> {
        let mut requests: HashMap<i32, Vec<(TopicPartition, OffsetSpec)>> = HashMap::new();
        let mut again = Vec::new();
        for (tp, spec) in open {
            match self.by_leader([&tp]).await {
                Ok(leader) => {
                    for id in leader.into_keys() {
                        requests.entry(id).or_default().push((tp.clone(), spec));
                    }
                }
                // A topic that does not exist is an answer, not a hiccup.
                Err(error) if error.is_retriable() && error.code() != Some(ErrorCode::UnknownTopicOrPartition) => {
                    again.push((tp, spec, error));
                }
                Err(error) => found(tp, Err(error)),
            }
        }
        for (node, asked) in requests {
            let request = list_request(self, &asked, isolation);
            let timeout = self.request_timeout();
            match self.send_on(node, Lane::General, &request, ANY_VERSION, timeout).await {
                Ok(response) => self.take_offsets(&response, asked, found, &mut again),
                Err(error) => {
                    for (tp, spec) in asked {
                        self.forget_topic(&tp.topic);
                        again.push((tp, spec, error.clone()));
                    }
                }
            }
        }
        again
    }

    fn take_offsets(
        &self,
        response: &ListOffsetsResponse,
        asked: Vec<(TopicPartition, OffsetSpec)>,
        found: &mut impl FnMut(TopicPartition, Result<ListedOffset>),
        again: &mut Vec<(TopicPartition, OffsetSpec, Error)>,
    ) {
        for (tp, spec) in asked {
            let topic = response.topics.iter().find(|t| t.name == tp.topic);
            let answer = topic.and_then(|t| t.partitions.iter().find(|p| p.partition_index == tp.partition));
            let code = answer.map_or(ErrorCode::UnknownServerError.code(), |a| a.error_code);
            if let (0, Some(a)) = (code, answer) {
                let listed = ListedOffset { offset: a.offset, timestamp_ms: a.timestamp, leader_epoch: a.leader_epoch };
                found(tp, Ok(listed));
                continue;
            }
            let error = Error::server(format!("list the offsets of {tp}"), code, None);
            if error.is_retriable() {
                self.forget_topic(&tp.topic);
                again.push((tp, spec, error));
            } else {
                found(tp, Err(error));
            }
        }
    }

    /// One offset per partition; the first failure fails the call.
    pub async fn offsets(
        &self,
        partitions: &[TopicPartition],
        spec: OffsetSpec,
        isolation: Isolation,
    ) -> Result<Vec<(TopicPartition, ListedOffset)>> {
        let wanted: Vec<_> = partitions.iter().map(|tp| (tp.clone(), spec)).collect();
        let listed = self.list_offsets(&wanted, isolation).await?;
        listed.into_iter().map(|(tp, offset)| Ok((tp, offset?))).collect()
    }
}

fn list_request(client: &Client, asked: &[(TopicPartition, OffsetSpec)], isolation: Isolation) -> ListOffsetsRequest {
    let mut topics: Vec<ListOffsetsTopic> = Vec::new();
    for (tp, spec) in asked {
        let partition = ListOffsetsPartition {
            partition_index: tp.partition,
            current_leader_epoch: -1,
            timestamp: spec.timestamp(),
        };
        match topics.iter_mut().find(|t| t.name == tp.topic) {
            Some(topic) => topic.partitions.push(partition),
            None => topics.push(ListOffsetsTopic { name: tp.topic.clone(), partitions: vec![partition] }),
        }
    }
    let timeout_ms = i32::try_from(client.request_timeout().as_millis()).unwrap_or(i32::MAX);
    ListOffsetsRequest { replica_id: -1, isolation_level: isolation.level(), topics, timeout_ms }
}
