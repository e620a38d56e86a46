//! Incremental fetch sessions (KIP-227): the broker remembers which partitions a consumer fetches and what it was told of
//! them, so that requests and responses name only what changed.
//!
//! Pure: time is handed in, the id of a new session too.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use caudal_protocol::messages::fetch_request::{FetchPartition, FetchRequest};
use caudal_protocol::messages::fetch_response::PartitionData;
use caudal_protocol::{ErrorCode, Uuid};
use parking_lot::Mutex;

/// No session.
const NO_SESSION: i32 = 0;
/// Epoch of a request that wants a new session.
const INITIAL_EPOCH: i32 = 0;
/// Epoch of a request that wants no session.
const FINAL_EPOCH: i32 = -1;

/// A topic as a request names it: by name up to version 12, by id from 13 on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TopicKey {
    Name(Arc<str>),
    Id(Uuid),
}

/// A partition as a request names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PartitionKey {
    pub topic: TopicKey,
    pub partition: i32,
}

/// What a fetch wants of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub offset: i64,
    pub max_bytes: i32,
    pub current_leader_epoch: i32,
    pub last_fetched_epoch: i32,
}

impl From<&FetchPartition> for Wanted {
    fn from(p: &FetchPartition) -> Wanted {
        Wanted {
            offset: p.fetch_offset,
            max_bytes: p.partition_max_bytes,
            current_leader_epoch: p.current_leader_epoch,
            last_fetched_epoch: p.last_fetched_epoch,
        }
    }
}

#[derive(Debug)]
struct Cached {
    key: PartitionKey,
    wanted: Wanted,
    /// What the consumer was told last; -1: nothing.
    high_watermark: i64,
    log_start_offset: i64,
}

/// One consumer's session.
#[derive(Debug)]
struct Session {
    epoch: i32,
    uses_topic_ids: bool,
    created_ms: i64,
    last_used_ms: i64,
    /// By turn: who got records goes to the end, so that all get theirs when a response is full.
    partitions: BTreeMap<u64, Cached>,
    turns: HashMap<PartitionKey, u64>,
    next_turn: u64,
}

impl Session {
    fn put(&mut self, key: PartitionKey, wanted: Wanted) {
        if let Some(cached) = self.turns.get(&key).and_then(|turn| self.partitions.get_mut(turn)) {
            cached.wanted = wanted;
            return;
        }
        let turn = self.next_turn;
        self.next_turn += 1;
        self.turns.insert(key.clone(), turn);
        self.partitions.insert(turn, Cached { key, wanted, high_watermark: -1, log_start_offset: -1 });
    }

    fn forget(&mut self, key: &PartitionKey) {
        if let Some(turn) = self.turns.remove(key) {
            self.partitions.remove(&turn);
        }
    }

    /// Notes what is answered for a partition; whether it has to be answered at all.
    fn note(&mut self, key: &PartitionKey, data: &PartitionData) -> bool {
        let Some(turn) = self.turns.get(key).copied() else { return true };
        let Some(cached) = self.partitions.get_mut(&turn) else { return true };
        let has_records = data.records.as_ref().is_some_and(|r| !r.is_empty());
        let is_error = data.error_code != ErrorCode::None.code();
        let must_answer = has_records
            || is_error
            || cached.high_watermark != data.high_watermark
            || cached.log_start_offset != data.log_start_offset
            || data.diverging_epoch.epoch >= 0;
        // After an error the consumer is told everything again.
        cached.high_watermark = if is_error { -1 } else { data.high_watermark };
        cached.log_start_offset = data.log_start_offset;
        if has_records && let Some(cached) = self.partitions.remove(&turn) {
            let last = self.next_turn;
            self.next_turn += 1;
            self.turns.insert(key.clone(), last);
            self.partitions.insert(last, cached);
        }
        must_answer
    }
}

fn next_epoch(epoch: i32) -> i32 {
    if epoch == i32::MAX { 1 } else { epoch + 1 }
}

/// What kind of fetch this is.
#[derive(Debug)]
pub enum Kind {
    /// No session, none wanted.
    Sessionless,
    /// All partitions are named; a session is made of them if there is room.
    Full { uses_topic_ids: bool },
    /// Goes on with a session.
    Incremental { session_id: i32, epoch: i32 },
}

/// A fetch: its partitions in the order in which they are served.
#[derive(Debug)]
pub struct FetchContext {
    pub kind: Kind,
    pub partitions: Vec<(PartitionKey, Wanted)>,
}

impl FetchContext {
    /// The session that the fetch goes on with; 0: none.
    pub fn session_id(&self) -> i32 {
        match self.kind {
            Kind::Incremental { session_id, .. } => session_id,
            Kind::Sessionless | Kind::Full { .. } => NO_SESSION,
        }
    }
}

/// The sessions of all consumers.
#[derive(Debug)]
pub struct Sessions {
    inner: Mutex<Inner>,
    max_sessions: usize,
}

#[derive(Debug, Default)]
struct Inner {
    sessions: HashMap<i32, Session>,
    /// Partitions of all sessions together.
    partitions: usize,
}

/// Sessions that were not used for this long make room for new ones.
const EVICTION_MS: i64 = 120_000;
/// Partitions that one session may hold; beyond it a fetch goes on without one.
const MAX_PARTITIONS: usize = 100_000;
/// Partitions that all sessions together may hold, about 200 bytes each.
const MAX_PARTITIONS_IN_ALL: usize = 500_000;

impl Sessions {
    /// `max_sessions`: `max.incremental.fetch.session.cache.slots`.
    pub fn new(max_sessions: usize) -> Sessions {
        Sessions { inner: Mutex::default(), max_sessions }
    }

    /// Sessions, and the partitions of all of them.
    pub fn sizes(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.sessions.len(), inner.partitions)
    }

    /// Finds out what a request fetches.
    ///
    /// # Errors
    /// The session is unknown, at another epoch, or named its topics otherwise.
    pub fn open(&self, request: &FetchRequest, version: i16, now_ms: i64) -> Result<FetchContext, ErrorCode> {
        let named = named_partitions(request, version);
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        if matches!(request.session_epoch, INITIAL_EPOCH | FINAL_EPOCH) {
            inner.remove(request.session_id);
            let kind = match request.session_epoch {
                FINAL_EPOCH => Kind::Sessionless,
                _ => Kind::Full { uses_topic_ids: version >= 13 },
            };
            return Ok(FetchContext { kind, partitions: named });
        }
        let session = inner.sessions.get_mut(&request.session_id).ok_or(ErrorCode::FetchSessionIdNotFound)?;
        if session.epoch != request.session_epoch {
            return Err(ErrorCode::InvalidFetchSessionEpoch);
        }
        if session.uses_topic_ids != (version >= 13) {
            return Err(ErrorCode::FetchSessionTopicIdError);
        }
        let before = session.partitions.len();
        for (key, wanted) in &named {
            session.put(key.clone(), *wanted);
        }
        for topic in &request.forgotten_topics_data {
            let topic_key = topic_key(&topic.topic, topic.topic_id, version);
            for &partition in &topic.partitions {
                session.forget(&PartitionKey { topic: topic_key.clone(), partition });
            }
        }
        let after = session.partitions.len();
        inner.partitions = inner.partitions - before + after;
        if after == 0 || after > MAX_PARTITIONS || (after > before && inner.partitions > MAX_PARTITIONS_IN_ALL) {
            inner.remove(request.session_id);
            return Ok(FetchContext { kind: Kind::Sessionless, partitions: named });
        }
        session.last_used_ms = now_ms;
        session.epoch = next_epoch(session.epoch);
        let partitions = session.partitions.values().map(|c| (c.key.clone(), c.wanted)).collect();
        let kind = Kind::Incremental { session_id: request.session_id, epoch: session.epoch };
        Ok(FetchContext { kind, partitions })
    }

    /// Notes an answer; its session id, and for each partition whether it is in it.
    ///
    /// # Errors
    /// The session has gone on meanwhile: the request came twice.
    pub fn close<'a>(
        &self,
        context: &FetchContext,
        answers: impl ExactSizeIterator<Item = (&'a PartitionKey, &'a PartitionData)>,
        now_ms: i64,
        mut new_id: impl FnMut() -> i32,
    ) -> Result<(i32, Vec<bool>), ErrorCode> {
        match context.kind {
            Kind::Sessionless => Ok((NO_SESSION, vec![true; answers.len()])),
            Kind::Full { uses_topic_ids } => {
                let count = answers.len();
                let answers: Vec<_> = answers.collect();
                let unknown = answers.iter().filter(|(_, data)| is_unknown(data)).count();
                let mut inner = self.inner.lock();
                // Whoever asks for what is not there asks in full each time: it costs no memory in between.
                if unknown * 2 > count
                    || count == 0
                    || count > MAX_PARTITIONS
                    || !inner.make_room(self.max_sessions, count, now_ms)
                {
                    return Ok((NO_SESSION, vec![true; count]));
                }
                let mut session = Session {
                    epoch: next_epoch(INITIAL_EPOCH),
                    uses_topic_ids,
                    created_ms: now_ms,
                    last_used_ms: now_ms,
                    partitions: BTreeMap::new(),
                    turns: HashMap::new(),
                    next_turn: 0,
                };
                for (key, wanted) in &context.partitions {
                    session.put(key.clone(), *wanted);
                }
                for (key, data) in answers {
                    session.note(key, data);
                }
                let id = loop {
                    let id = new_id();
                    if id > NO_SESSION && !inner.sessions.contains_key(&id) {
                        break id;
                    }
                };
                inner.partitions += session.partitions.len();
                inner.sessions.insert(id, session);
                Ok((id, vec![true; count]))
            }
            Kind::Incremental { session_id, epoch } => {
                let mut inner = self.inner.lock();
                // An evicted session is answered once more; the next request learns that it is gone.
                let Some(session) = inner.sessions.get_mut(&session_id) else {
                    return Ok((session_id, vec![true; answers.len()]));
                };
                if session.epoch != epoch {
                    return Err(ErrorCode::InvalidFetchSessionEpoch);
                }
                Ok((session_id, answers.map(|(key, data)| session.note(key, data)).collect()))
            }
        }
    }
}

impl Inner {
    /// Room for a session of `partitions` partitions: a free one, or that of stale sessions, or that of older and smaller
    /// ones.
    fn make_room(&mut self, max_sessions: usize, partitions: usize, now_ms: i64) -> bool {
        while self.sessions.len() >= max_sessions || self.partitions + partitions > MAX_PARTITIONS_IN_ALL {
            if !self.evict(partitions, now_ms) {
                return false;
            }
        }
        true
    }

    fn remove(&mut self, id: i32) -> bool {
        let Some(session) = self.sessions.remove(&id) else { return false };
        self.partitions -= session.partitions.len();
        true
    }

    fn evict(&mut self, partitions: usize, now_ms: i64) -> bool {
        let Some((&oldest, session)) = self.sessions.iter().min_by_key(|(_, s)| s.last_used_ms) else {
            return false;
        };
        if now_ms - session.last_used_ms > EVICTION_MS {
            return self.remove(oldest);
        }
        let smallest = self
            .sessions
            .iter()
            .filter(|(_, s)| now_ms - s.created_ms > EVICTION_MS)
            .min_by_key(|(_, s)| s.partitions.len())
            .filter(|(_, s)| s.partitions.len() <= partitions)
            .map(|(&id, _)| id);
        smallest.is_some_and(|id| self.remove(id))
    }
}

fn is_unknown(data: &PartitionData) -> bool {
    [ErrorCode::UnknownTopicOrPartition, ErrorCode::UnknownTopicId].iter().any(|error| error.code() == data.error_code)
}

fn topic_key(name: &str, id: Uuid, version: i16) -> TopicKey {
    if version >= 13 { TopicKey::Id(id) } else { TopicKey::Name(name.into()) }
}

/// What a request asks for. A partition that is named twice is asked for once, as it was named last: each may be answered with
/// megabytes.
fn named_partitions(request: &FetchRequest, version: i16) -> Vec<(PartitionKey, Wanted)> {
    let mut named: Vec<(PartitionKey, Wanted)> = Vec::new();
    let mut places: HashMap<PartitionKey, usize> = HashMap::new();
    for topic in &request.topics {
        let key = topic_key(&topic.topic, topic.topic_id, version);
        for partition in &topic.partitions {
            let key = PartitionKey { topic: key.clone(), partition: partition.partition };
            let place = *places.entry(key.clone()).or_insert(named.len());
            match named.get_mut(place) {
                Some((_, wanted)) => *wanted = Wanted::from(partition),
                None => named.push((key, Wanted::from(partition))),
            }
        }
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use caudal_protocol::messages::fetch_request::{FetchTopic, ForgottenTopic};
    use caudal_protocol::wire::Records;

    fn request(session_id: i32, session_epoch: i32, partitions: &[i32]) -> FetchRequest {
        let partition = |&partition| FetchPartition { partition, fetch_offset: 5, ..FetchPartition::default() };
        let topic = FetchTopic {
            topic: "t".into(),
            partitions: partitions.iter().map(partition).collect(),
            ..FetchTopic::default()
        };
        FetchRequest { session_id, session_epoch, topics: vec![topic], ..FetchRequest::default() }
    }

    fn data(partition_index: i32, high_watermark: i64, bytes: usize) -> PartitionData {
        PartitionData {
            partition_index,
            high_watermark,
            records: Some(Records::Bytes(Bytes::from(vec![0; bytes]))),
            ..PartitionData::default()
        }
    }

    fn close(
        sessions: &Sessions,
        context: &FetchContext,
        answers: &[PartitionData],
    ) -> Result<(i32, Vec<bool>), ErrorCode> {
        let keys: Vec<_> = context.partitions.iter().map(|(key, _)| key).zip(answers).collect();
        sessions.close(context, keys.into_iter(), 0, || 7)
    }

    fn order(context: &FetchContext) -> Vec<i32> {
        context.partitions.iter().map(|(key, _)| key.partition).collect()
    }

    #[test]
    fn a_session_answers_only_what_changed() {
        let sessions = Sessions::new(10);
        let full = sessions.open(&request(0, 0, &[0, 1]), 12, 0).unwrap();
        assert_eq!(close(&sessions, &full, &[data(0, 5, 0), data(1, 9, 10)]), Ok((7, vec![true, true])));

        // Whoever got records comes last the next time.
        let next = sessions.open(&request(7, 1, &[]), 12, 0).unwrap();
        assert_eq!(order(&next), [0, 1]);
        assert_eq!(close(&sessions, &next, &[data(0, 6, 10), data(1, 9, 0)]), Ok((7, vec![true, false])));
        let next = sessions.open(&request(7, 2, &[]), 12, 0).unwrap();
        assert_eq!(order(&next), [1, 0]);
        assert_eq!(close(&sessions, &next, &[data(1, 9, 0), data(0, 7, 0)]), Ok((7, vec![false, true])));
    }

    #[test]
    fn partitions_are_added_changed_and_forgotten() {
        let sessions = Sessions::new(10);
        let full = sessions.open(&request(0, 0, &[0, 1]), 12, 0).unwrap();
        close(&sessions, &full, &[data(0, 5, 0), data(1, 9, 0)]).unwrap();
        let mut change = request(7, 1, &[1, 2]);
        change.topics[0].partitions[0].fetch_offset = 6;
        change.forgotten_topics_data =
            vec![ForgottenTopic { topic: "t".into(), partitions: vec![0], ..ForgottenTopic::default() }];
        let next = sessions.open(&change, 12, 0).unwrap();
        assert_eq!(order(&next), [1, 2]);
        assert_eq!(next.partitions[0].1.offset, 6);
        let mut forget = request(7, 2, &[]);
        forget.forgotten_topics_data =
            vec![ForgottenTopic { topic: "t".into(), partitions: vec![1, 2], ..ForgottenTopic::default() }];
        assert!(matches!(sessions.open(&forget, 12, 0).unwrap().kind, Kind::Sessionless));
        assert!(sessions.inner.lock().sessions.is_empty());
    }

    #[test]
    fn epochs_and_topic_ids_are_held_to() {
        let sessions = Sessions::new(10);
        assert_eq!(sessions.open(&request(7, 1, &[]), 12, 0).err(), Some(ErrorCode::FetchSessionIdNotFound));
        let full = sessions.open(&request(0, 0, &[0]), 12, 0).unwrap();
        close(&sessions, &full, &[data(0, 5, 0)]).unwrap();
        assert_eq!(sessions.open(&request(7, 2, &[]), 12, 0).err(), Some(ErrorCode::InvalidFetchSessionEpoch));
        assert_eq!(sessions.open(&request(7, 1, &[]), 13, 0).err(), Some(ErrorCode::FetchSessionTopicIdError));
        // The same request twice: the first answer comes too late.
        let first = sessions.open(&request(7, 1, &[]), 12, 0).unwrap();
        sessions.open(&request(7, 2, &[]), 12, 0).unwrap();
        assert_eq!(close(&sessions, &first, &[data(0, 6, 0)]), Err(ErrorCode::InvalidFetchSessionEpoch));
        // A full fetch ends the session it names; epoch -1 makes none.
        let last = sessions.open(&request(7, -1, &[0]), 12, 0).unwrap();
        assert_eq!(close(&sessions, &last, &[data(0, 6, 0)]), Ok((0, vec![true])));
        assert!(sessions.inner.lock().sessions.is_empty());
    }

    #[test]
    fn a_partition_that_is_named_twice_is_fetched_once() {
        for epoch in [INITIAL_EPOCH, FINAL_EPOCH] {
            let mut twice = request(0, epoch, &[0, 1, 0]);
            twice.topics[0].partitions[2].fetch_offset = 8;
            let mut again = twice.topics[0].clone();
            again.partitions.truncate(2);
            again.partitions[1].fetch_offset = 9;
            again.partitions.remove(0);
            twice.topics.push(again);
            let asked = Sessions::new(10).open(&twice, 12, 0).unwrap();
            assert_eq!(order(&asked), [0, 1]);
            assert_eq!(asked.partitions.iter().map(|(_, wanted)| wanted.offset).collect::<Vec<_>>(), [8, 9]);
        }
    }

    #[test]
    fn what_all_sessions_hold_is_bounded() {
        let sessions = Sessions::new(1000);
        let partitions: Vec<i32> = (0..90_000).collect();
        let mut made = 0;
        for id in 1..=20 {
            let full = sessions.open(&request(0, 0, &partitions), 12, 0).unwrap();
            let answers: Vec<PartitionData> = partitions.iter().map(|&p| data(p, 1, 0)).collect();
            let keys: Vec<_> = full.partitions.iter().map(|(key, _)| key).zip(&answers).collect();
            made += i32::from(sessions.close(&full, keys.into_iter(), 0, || id).unwrap().0 != 0);
        }
        assert_eq!(made, 5);
        assert_eq!(sessions.inner.lock().partitions, 450_000);
        // A session that grows beyond the bound ends; what is forgotten counts no more.
        let more: Vec<i32> = (100_000..109_000).collect();
        for id in 1..=4 {
            assert!(matches!(sessions.open(&request(id, 1, &more), 12, 0).unwrap().kind, Kind::Incremental { .. }));
        }
        sessions.open(&request(5, -1, &[]), 12, 0).unwrap();
        assert_eq!(sessions.inner.lock().partitions, 4 * 99_000);
        sessions.open(&request(4, 2, &(200_000..202_000).collect::<Vec<_>>()), 12, 0).unwrap();
        assert_eq!(sessions.inner.lock().partitions, 3 * 99_000);
    }

    #[test]
    fn what_is_not_there_makes_no_session() {
        let sessions = Sessions::new(10);
        let unknown = |partition_index| PartitionData {
            partition_index,
            error_code: ErrorCode::UnknownTopicOrPartition.code(),
            ..PartitionData::default()
        };
        let full = sessions.open(&request(0, 0, &[0, 1, 2]), 12, 0).unwrap();
        assert_eq!(close(&sessions, &full, &[unknown(0), data(1, 5, 0), unknown(2)]), Ok((0, vec![true; 3])));
        assert_eq!(close(&sessions, &full, &[unknown(0), data(1, 5, 0), data(2, 5, 0)]), Ok((7, vec![true; 3])));
    }

    #[test]
    fn stale_and_smaller_sessions_make_room() {
        let sessions = Sessions::new(1);
        let make = |id: i32, partitions: &[i32], now_ms: i64| {
            let full = sessions.open(&request(0, 0, partitions), 12, now_ms).unwrap();
            let answers: Vec<PartitionData> = partitions.iter().map(|&p| data(p, 1, 0)).collect();
            let keys: Vec<_> = full.partitions.iter().map(|(key, _)| key).zip(&answers).collect();
            sessions.close(&full, keys.into_iter(), now_ms, || id).unwrap().0
        };
        assert_eq!(make(1, &[0], 0), 1);
        assert_eq!(make(2, &[0, 1], 1_000), 0, "the other session is young and in use");
        assert_eq!(make(3, &[0], EVICTION_MS + 1), 3, "the other session is stale");
        sessions.open(&request(3, 1, &[]), 12, 2 * EVICTION_MS + 1).unwrap();
        assert_eq!(make(4, &[0, 1], 2 * EVICTION_MS + 2), 4, "the other session is old and smaller");
    }
}
