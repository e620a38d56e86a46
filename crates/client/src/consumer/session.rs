//! An incremental fetch session with one broker (KIP-227): only what changed is sent. No I/O.

use std::collections::BTreeMap;

use caudal_protocol::messages::FetchRequest;
use caudal_protocol::messages::fetch_request::ForgottenTopic;
use caudal_protocol::{ErrorCode, TopicPartition, Uuid};

use crate::fetch::request::{Limits, Position, topics};
use crate::offsets::Isolation;

/// The client's side of a session.
#[derive(Debug, Default)]
pub(super) struct FetchSession {
    id: i32,
    /// 0: the next request opens a session.
    epoch: i32,
    /// What the broker holds for the session.
    held: BTreeMap<TopicPartition, Position>,
}

impl FetchSession {
    /// The next request for exactly these partitions.
    pub(super) fn request(
        &mut self,
        wanted: Vec<Position>,
        limits: Limits,
        isolation: Isolation,
        rack: &str,
    ) -> FetchRequest {
        let wanted: BTreeMap<TopicPartition, Position> = wanted.into_iter().map(|p| (p.partition.clone(), p)).collect();
        let same = |a: &Position, b: &Position| {
            (a.offset, a.leader_epoch, a.topic_id) == (b.offset, b.leader_epoch, b.topic_id)
        };
        let full = self.epoch == 0;
        let sent: Vec<Position> = wanted
            .iter()
            .filter(|(tp, p)| full || !self.held.get(tp).is_some_and(|held| same(held, p)))
            .map(|(_, p)| p.clone())
            .collect();
        let mut forgotten: Vec<ForgottenTopic> = Vec::new();
        // A topic that was made anew has another id: its old self is to be forgotten.
        let gone = |tp: &TopicPartition, id: &Uuid| wanted.get(tp).is_none_or(|p| p.topic_id != *id);
        for (tp, held) in self.held.iter().filter(|(tp, held)| !full && gone(tp, &held.topic_id)) {
            match forgotten.last_mut().filter(|t| t.topic == tp.topic && t.topic_id == held.topic_id) {
                Some(topic) => topic.partitions.push(tp.partition),
                None => forgotten.push(ForgottenTopic {
                    topic: tp.topic.clone(),
                    topic_id: held.topic_id,
                    partitions: vec![tp.partition],
                }),
            }
        }
        self.held = wanted;
        FetchRequest {
            max_wait_ms: limits.max_wait_ms,
            min_bytes: limits.min_bytes,
            max_bytes: limits.max_bytes,
            isolation_level: isolation.level(),
            session_id: if full { 0 } else { self.id },
            session_epoch: self.epoch,
            topics: topics(&sent, limits.partition_max_bytes),
            forgotten_topics_data: forgotten,
            rack_id: rack.to_owned(),
            ..Default::default()
        }
    }

    /// Takes note of an answer.
    pub(super) fn answered(&mut self, code: i16, session_id: i32) {
        if code != ErrorCode::None.code() || session_id == 0 {
            self.reset();
            return;
        }
        self.id = session_id;
        self.epoch = if self.epoch == i32::MAX { 1 } else { self.epoch + 1 };
    }

    /// No answer came: it is not known what the broker holds.
    pub(super) fn reset(&mut self) {
        *self = FetchSession::default();
    }

    pub(super) fn topic_name(&self, id: &Uuid) -> Option<String> {
        self.held.values().find(|p| p.topic_id == *id).map(|p| p.partition.topic.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(partition: i32, offset: i64) -> Position {
        Position { partition: TopicPartition::new("t", partition), topic_id: Uuid([7; 16]), leader_epoch: 3, offset }
    }

    fn sent(request: &FetchRequest) -> Vec<(i32, i64)> {
        request.topics.iter().flat_map(|t| &t.partitions).map(|p| (p.partition, p.fetch_offset)).collect()
    }

    #[test]
    fn only_changes_are_sent() {
        let limits = Limits { max_wait_ms: 1, min_bytes: 1, max_bytes: 1, partition_max_bytes: 1 };
        let mut session = FetchSession::default();
        let ask = |session: &mut FetchSession, wanted| session.request(wanted, limits, Isolation::default(), "");
        let first = ask(&mut session, vec![at(0, 0), at(1, 0)]);
        assert_eq!((first.session_id, first.session_epoch, sent(&first)), (0, 0, vec![(0, 0), (1, 0)]));
        session.answered(0, 42);
        let second = ask(&mut session, vec![at(0, 5), at(1, 0)]);
        assert_eq!((second.session_id, second.session_epoch, sent(&second)), (42, 1, vec![(0, 5)]));
        session.answered(0, 42);
        let third = ask(&mut session, vec![at(0, 5)]);
        assert_eq!((third.session_epoch, sent(&third)), (2, vec![]));
        assert_eq!(third.forgotten_topics_data[0].partitions, [1]);
        session.answered(ErrorCode::FetchSessionIdNotFound.code(), 0);
        let again = ask(&mut session, vec![at(0, 5)]);
        assert_eq!((again.session_id, again.session_epoch, sent(&again)), (0, 0, vec![(0, 5)]));
    }

    #[test]
    fn a_topic_made_anew_is_forgotten_by_its_old_id() {
        let limits = Limits { max_wait_ms: 1, min_bytes: 1, max_bytes: 1, partition_max_bytes: 1 };
        let mut session = FetchSession::default();
        session.request(vec![at(0, 0)], limits, Isolation::default(), "");
        session.answered(0, 1);
        let anew = Position { topic_id: Uuid([8; 16]), ..at(0, 0) };
        let request = session.request(vec![anew], limits, Isolation::default(), "");
        assert_eq!(request.forgotten_topics_data[0].topic_id, Uuid([7; 16]));
        assert_eq!(request.topics[0].topic_id, Uuid([8; 16]));
    }
}
