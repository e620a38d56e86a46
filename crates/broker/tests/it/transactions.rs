//! Transactions: every way to write in one, what readers of committed records see of it, and what a stop leaves.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use caudal_protocol::ErrorCode;
use caudal_protocol::batch::Batches;
use caudal_protocol::messages as m;
use caudal_protocol::messages::add_partitions_to_txn_request::{
    AddPartitionsToTxnTopic, AddPartitionsToTxnTransaction,
};
use caudal_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use caudal_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use caudal_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use caudal_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use caudal_protocol::messages::write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic};
use caudal_protocol::wire::Records;

use crate::produce::{batch_of, request};
use crate::raw::{RawClient, TestBroker};

type Producer = (i64, i16);

const TRANSACTIONS: i8 = 1;

/// Asks again while a transaction before it is not over.
fn until_free<T>(mut ask: impl FnMut() -> Result<T, ErrorCode>) -> Result<T, ErrorCode> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match ask() {
            Err(ErrorCode::ConcurrentTransactions | ErrorCode::CoordinatorLoadInProgress)
                if Instant::now() < deadline =>
            {
                std::thread::yield_now();
            }
            other => return other,
        }
    }
}

fn checked<T>(error_code: i16, value: T) -> Result<T, ErrorCode> {
    match ErrorCode::from_code(error_code) {
        ErrorCode::None => Ok(value),
        error => Err(error),
    }
}

fn find(client: &mut RawClient, id: &str) {
    let request =
        m::FindCoordinatorRequest { coordinator_keys: vec![id.into()], key_type: TRANSACTIONS, ..Default::default() };
    let response: m::FindCoordinatorResponse = client.ask(&request, 4);
    assert_eq!(response.coordinators[0].error_code, 0, "{:?}", response.coordinators[0].error_message);
}

pub fn init_with(client: &mut RawClient, id: &str, timeout_ms: i32) -> Result<Producer, ErrorCode> {
    find(client, id);
    let request = m::InitProducerIdRequest {
        transactional_id: Some(id.into()),
        transaction_timeout_ms: timeout_ms,
        producer_id: -1,
        producer_epoch: -1,
        ..Default::default()
    };
    until_free(|| {
        let response: m::InitProducerIdResponse = client.ask(&request, 5);
        checked(response.error_code, (response.producer_id, response.producer_epoch))
    })
}

fn init(client: &mut RawClient, id: &str) -> Producer {
    init_with(client, id, 60_000).unwrap()
}

fn batch(producer: Producer, sequence: i32, count: usize) -> BytesMut {
    batch_of(count, 10, |builder| builder.producer(producer.0, producer.1, sequence).transactional(true))
}

fn produce_as(
    client: &mut RawClient,
    (id, producer): (&str, Producer),
    (partition, sequence): (i32, i32),
    version: i16,
) -> Result<i64, ErrorCode> {
    let mut request = request("t", partition, batch(producer, sequence, 2).freeze());
    request.transactional_id = Some(id.into());
    until_free(|| {
        let response: m::ProduceResponse = client.ask(&request, version);
        let answer = &response.responses[0].partition_responses[0];
        checked(answer.error_code, answer.base_offset)
    })
}

fn produce(client: &mut RawClient, id: &str, producer: Producer, partition: i32, sequence: i32) -> i64 {
    produce_as(client, (id, producer), (partition, sequence), 12).unwrap()
}

fn end_as(
    client: &mut RawClient,
    (id, producer): (&str, Producer),
    committed: bool,
    version: i16,
) -> Result<Producer, ErrorCode> {
    let request = m::EndTxnRequest {
        transactional_id: id.into(),
        producer_id: producer.0,
        producer_epoch: producer.1,
        committed,
    };
    until_free(|| {
        let response: m::EndTxnResponse = client.ask(&request, version);
        checked(response.error_code, (response.producer_id, response.producer_epoch))
    })
}

fn end(client: &mut RawClient, id: &str, producer: Producer, committed: bool) -> Producer {
    end_as(client, (id, producer), committed, 5).unwrap()
}

fn fetch(client: &mut RawClient, offset: i64, isolation_level: i8, wait_ms: i32) -> m::fetch_response::PartitionData {
    let partition = FetchPartition {
        partition: 0,
        fetch_offset: offset,
        partition_max_bytes: 1 << 20,
        current_leader_epoch: -1,
        ..Default::default()
    };
    let request = m::FetchRequest {
        max_wait_ms: wait_ms,
        min_bytes: 1,
        max_bytes: 1 << 20,
        isolation_level,
        session_epoch: -1,
        replica_id: -1,
        topics: vec![FetchTopic { topic: "t".into(), partitions: vec![partition], ..Default::default() }],
        ..Default::default()
    };
    let mut response: m::FetchResponse = client.ask(&request, 12);
    let answer = response.responses.remove(0).partitions.remove(0);
    assert_eq!(answer.error_code, 0);
    answer
}

/// Offsets of the records that a consumer of committed ones hands out.
fn read_committed(client: &mut RawClient) -> Vec<i64> {
    let answer = fetch(client, 0, 1, 0);
    let aborted = answer.aborted_transactions.unwrap();
    let Some(Records::Bytes(bytes)) = answer.records else { panic!("no records") };
    let mut ended = Vec::new();
    let mut offsets = Vec::new();
    for batch in Batches::new(bytes).map(Result::unwrap) {
        let header = batch.header;
        if header.is_control() {
            ended.push((header.producer_id, header.base_offset));
            continue;
        }
        let is_aborted = aborted.iter().any(|t| {
            t.producer_id == header.producer_id
                && t.first_offset <= header.base_offset
                && !ended
                    .iter()
                    .any(|(id, at)| *id == t.producer_id && (t.first_offset..header.base_offset).contains(at))
        });
        if !is_aborted {
            offsets.extend(header.base_offset..=header.last_offset());
        }
    }
    offsets
}

fn wait_for<T: PartialEq + std::fmt::Debug>(what: &T, mut look: impl FnMut() -> T) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let seen = look();
        if seen == *what {
            return;
        }
        assert!(Instant::now() < deadline, "{seen:?} is not {what:?}");
        std::thread::yield_now();
    }
}

pub fn describe(client: &mut RawClient, id: &str) -> m::describe_transactions_response::TransactionState {
    let request = m::DescribeTransactionsRequest { transactional_ids: vec![id.into()] };
    let mut response: m::DescribeTransactionsResponse = client.ask(&request, 0);
    response.transaction_states.remove(0)
}

fn started() -> (TestBroker, RawClient) {
    let broker = TestBroker::start();
    broker.create_topic("t", 3);
    let client = broker.connect();
    (broker, client)
}

#[test]
fn committed_records_are_read_and_aborted_ones_are_not() {
    let (_broker, mut client) = started();
    let mut producer = init(&mut client, "id");
    assert_eq!(produce(&mut client, "id", producer, 0, 0), 0);
    assert_eq!(produce(&mut client, "id", producer, 0, 2), 2);
    assert_eq!(read_committed(&mut client), Vec::<i64>::new());
    let open = fetch(&mut client, 0, 1, 0);
    assert_eq!((open.last_stable_offset, open.high_watermark), (0, 4));
    let bytes = |answer: m::fetch_response::PartitionData| answer.records.unwrap().len();
    let uncommitted = fetch(&mut client, 0, 0, 0);
    assert!(bytes(open) == 0 && bytes(uncommitted) != 0);
    let list = m::ListOffsetsRequest {
        replica_id: -1,
        isolation_level: 1,
        topics: vec![ListOffsetsTopic {
            name: "t".into(),
            partitions: vec![ListOffsetsPartition { timestamp: -1, current_leader_epoch: -1, ..Default::default() }],
        }],
        ..Default::default()
    };
    let listed: m::ListOffsetsResponse = client.ask(&list, 6);
    assert_eq!(listed.topics[0].partitions[0].offset, 0);
    let next = end(&mut client, "id", producer, false);
    assert_eq!(next, (producer.0, producer.1 + 1), "each transaction has an epoch");
    producer = next;
    produce(&mut client, "id", producer, 0, 0);
    end(&mut client, "id", producer, true);
    // Two records each and a marker: 0 to 4 aborted, 5 to 7 committed.
    wait_for(&vec![5, 6], || read_committed(&mut client));
    let listed: m::ListOffsetsResponse = client.ask(&list, 6);
    assert_eq!(listed.topics[0].partitions[0].offset, 8);
    wait_for(&"CompleteCommit".to_owned(), || describe(&mut client, "id").transaction_state);
}

#[test]
fn a_reader_of_committed_records_is_woken_by_the_marker() {
    let (broker, mut client) = started();
    let producer = init(&mut client, "id");
    produce(&mut client, "id", producer, 0, 0);
    let mut reader = broker.connect();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let begin = Instant::now();
            (fetch(&mut reader, 0, 1, 15_000).records.unwrap().len(), begin.elapsed())
        });
        end(&mut client, "id", producer, true);
        let (bytes, waited) = waiting.join().unwrap();
        assert!(bytes > 0 && waited < Duration::from_secs(10), "{bytes} bytes after {waited:?}");
    });
}

#[test]
fn old_clients_say_first_which_partitions_they_write() {
    let (_broker, mut client) = started();
    let producer = init(&mut client, "id");
    for version in [3, 10] {
        let refused = produce_as(&mut client, ("id", producer), (0, 0), version);
        assert_eq!(refused, Err(ErrorCode::InvalidTxnState), "version {version}");
    }
    assert_eq!(produce_as(&mut client, ("id", producer), (0, 0), 11), Err(ErrorCode::TransactionAbortable));
    let topics = |partitions: Vec<i32>| vec![AddPartitionsToTxnTopic { name: "t".into(), partitions }];
    for (version, sequence) in [(0, 0), (3, 2)] {
        let add = m::AddPartitionsToTxnRequest {
            v3_and_below_transactional_id: "id".into(),
            v3_and_below_producer_id: producer.0,
            v3_and_below_producer_epoch: producer.1,
            v3_and_below_topics: topics(vec![0, 1]),
            ..Default::default()
        };
        let added = until_free(|| {
            let response: m::AddPartitionsToTxnResponse = client.ask(&add, version);
            let answers = &response.results_by_topic_v3_and_below[0].results_by_partition;
            assert_eq!(answers.len(), 2);
            checked(answers[0].partition_error_code, ())
        });
        assert_eq!(added, Ok(()));
        produce_as(&mut client, ("id", producer), (0, sequence), 10).unwrap();
        assert_eq!(end_as(&mut client, ("id", producer), true, 4).map(|_| ()), Ok(()), "the epoch stays");
    }
    wait_for(&vec![0, 1, 3, 4], || read_committed(&mut client));
    let unknown = m::AddPartitionsToTxnRequest {
        transactions: vec![AddPartitionsToTxnTransaction {
            transactional_id: "id".into(),
            producer_id: producer.0,
            producer_epoch: producer.1,
            verify_only: false,
            topics: topics(vec![0, 9]),
        }],
        ..Default::default()
    };
    let response: m::AddPartitionsToTxnResponse = client.ask(&unknown, 5);
    let answers = &response.results_by_transaction[0].topic_results[0].results_by_partition;
    let codes: Vec<i16> = answers.iter().map(|answer| answer.partition_error_code).collect();
    assert_eq!(codes, [ErrorCode::OperationNotAttempted.code(), ErrorCode::UnknownTopicOrPartition.code()]);
}

#[test]
fn who_comes_later_fences() {
    let (_broker, mut client) = started();
    let first = init(&mut client, "id");
    produce(&mut client, "id", first, 0, 0);
    let second = init(&mut client, "id");
    assert_eq!(second.0, first.0);
    assert!(second.1 > first.1 + 1, "what was open is aborted with an epoch of its own");
    assert_eq!(produce_as(&mut client, ("id", first), (0, 2), 12), Err(ErrorCode::InvalidProducerEpoch));
    assert_eq!(produce_as(&mut client, ("id", first), (1, 0), 12), Err(ErrorCode::InvalidProducerEpoch));
    assert_eq!(end_as(&mut client, ("id", first), true, 5), Err(ErrorCode::ProducerFenced));
    assert_eq!(end_as(&mut client, ("id", first), true, 1), Err(ErrorCode::InvalidProducerEpoch), "an old client");
    produce(&mut client, "id", second, 0, 0);
    end(&mut client, "id", second, true);
    wait_for(&vec![3, 4], || read_committed(&mut client));
    assert_eq!(end_as(&mut client, ("other", second), true, 5), Err(ErrorCode::InvalidProducerIdMapping));
    assert_eq!(init_with(&mut client, "id", 900_001), Err(ErrorCode::InvalidTransactionTimeout));
    let mut without_id = request("t", 0, batch(second, 0, 1).freeze());
    without_id.transactional_id = None;
    let response: m::ProduceResponse = client.ask(&without_id, 12);
    let code = response.responses[0].partition_responses[0].error_code;
    assert_eq!(code, ErrorCode::TransactionalIdAuthorizationFailed.code());
}

#[test]
fn pipelined_batches_keep_their_order() {
    let (_broker, mut client) = started();
    let mut producer = init(&mut client, "id");
    for _ in 0..5 {
        let sent: Vec<i32> = (0..5)
            .map(|n| {
                let mut request = request("t", 0, batch(producer, n * 2, 2).freeze());
                request.transactional_id = Some("id".into());
                client.send(&request, 12)
            })
            .collect();
        for id in sent {
            let (answered, response): (i32, m::ProduceResponse) = client.receive(12);
            assert_eq!((answered, response.responses[0].partition_responses[0].error_code), (id, 0));
        }
        producer = end(&mut client, "id", producer, true);
    }
    wait_for(&50, || read_committed(&mut client).len());
}

fn commit_offset(client: &mut RawClient, id: &str, producer: Producer, offset: i64, version: i16) -> ErrorCode {
    let committed = until_free(|| match commit_once(client, id, producer, offset, version) {
        ErrorCode::None => Ok(()),
        error => Err(error),
    });
    committed.err().unwrap_or(ErrorCode::None)
}

fn commit_once(client: &mut RawClient, id: &str, producer: Producer, offset: i64, version: i16) -> ErrorCode {
    let request = m::TxnOffsetCommitRequest {
        transactional_id: id.into(),
        group_id: "g".into(),
        producer_id: producer.0,
        producer_epoch: producer.1,
        generation_id: -1,
        topics: vec![TxnOffsetCommitRequestTopic {
            name: "t".into(),
            partitions: vec![TxnOffsetCommitRequestPartition { committed_offset: offset, ..Default::default() }],
        }],
        ..Default::default()
    };
    let response: m::TxnOffsetCommitResponse = client.ask(&request, version);
    ErrorCode::from_code(response.topics[0].partitions[0].error_code)
}

/// Two connections make partitions part of one transaction at once: neither is told to come again.
#[test]
fn records_and_offsets_join_together() {
    let (broker, mut client) = started();
    client.find_group("g");
    let mut other = broker.connect();
    let mut producer = init(&mut client, "id");
    for round in 0..10 {
        let mut records = request("t", 0, batch(producer, 0, 1).freeze());
        records.transactional_id = Some("id".into());
        client.send(&records, 12);
        assert_eq!(commit_once(&mut other, "id", producer, round, 5), ErrorCode::None);
        let (_, response): (i32, m::ProduceResponse) = client.receive(12);
        assert_eq!(response.responses[0].partition_responses[0].error_code, 0);
        producer = end(&mut client, "id", producer, true);
        // While the markers are written the next one would wait, and not for as long as a busy disk takes.
        wait_for(&"CompleteCommit".to_owned(), || describe(&mut client, "id").transaction_state);
    }
    wait_for(&Ok(9), || committed_offset(&mut client, true));
    wait_for(&10, || read_committed(&mut client).len());
}

fn committed_offset(client: &mut RawClient, require_stable: bool) -> Result<i64, ErrorCode> {
    let topics = vec![OffsetFetchRequestTopics { name: "t".into(), partition_indexes: vec![0], ..Default::default() }];
    let group = OffsetFetchRequestGroup { group_id: "g".into(), topics: Some(topics), ..Default::default() };
    let request = m::OffsetFetchRequest { groups: vec![group], require_stable, ..Default::default() };
    let response: m::OffsetFetchResponse = client.ask(&request, 8);
    let answer = &response.groups[0].topics[0].partitions[0];
    checked(answer.error_code, answer.committed_offset)
}

#[test]
fn offsets_count_when_their_transaction_is_committed() {
    let (broker, mut client) = started();
    client.find_group("g");
    let mut producer = init(&mut client, "id");
    assert_eq!(commit_offset(&mut client, "id", producer, 5, 5), ErrorCode::None);
    assert_eq!(committed_offset(&mut client, false), Ok(-1));
    assert_eq!(committed_offset(&mut client, true), Err(ErrorCode::UnstableOffsetCommit));
    producer = end(&mut client, "id", producer, true);
    wait_for(&Ok(5), || committed_offset(&mut client, true));
    assert_eq!(commit_offset(&mut client, "id", producer, 6, 5), ErrorCode::None);
    producer = end(&mut client, "id", producer, false);
    wait_for(&Ok(5), || committed_offset(&mut client, true));
    // An old client names the group first.
    assert_eq!(commit_offset(&mut client, "id", producer, 7, 3), ErrorCode::InvalidTxnState);
    let add = m::AddOffsetsToTxnRequest {
        transactional_id: "id".into(),
        producer_id: producer.0,
        producer_epoch: producer.1,
        group_id: "g".into(),
    };
    let added = until_free(|| {
        let response: m::AddOffsetsToTxnResponse = client.ask(&add, 3);
        checked(response.error_code, ())
    });
    assert_eq!(added, Ok(()));
    assert_eq!(commit_offset(&mut client, "id", producer, 7, 3), ErrorCode::None);
    // Killed with the offsets undecided: they are still.
    let broker = broker.crash_and_restart();
    let mut client = broker.connect();
    assert_eq!(committed_offset(&mut client, false), Ok(5));
    assert_eq!(committed_offset(&mut client, true), Err(ErrorCode::UnstableOffsetCommit));
    end_as(&mut client, ("id", producer), true, 4).unwrap();
    wait_for(&Ok(7), || committed_offset(&mut client, true));
    let broker = broker.restart();
    assert_eq!(committed_offset(&mut broker.connect(), true), Ok(7));
}

#[test]
fn an_open_transaction_outlives_a_restart() {
    let (broker, mut client) = started();
    let producer = init(&mut client, "id");
    produce(&mut client, "id", producer, 0, 0);
    produce(&mut client, "id", producer, 1, 0);
    let broker = broker.crash_and_restart();
    let mut client = broker.connect();
    let state = describe(&mut client, "id");
    assert_eq!((state.transaction_state.as_str(), state.topics[0].partitions.as_slice()), ("Ongoing", &[0, 1][..]));
    assert_eq!(fetch(&mut client, 0, 1, 0).last_stable_offset, 0);
    produce(&mut client, "id", producer, 0, 2);
    let broker = broker.restart();
    let mut client = broker.connect();
    let next = end(&mut client, "id", producer, true);
    wait_for(&vec![0, 1, 2, 3], || read_committed(&mut client));
    let broker = broker.restart();
    let mut client = broker.connect();
    assert_eq!(read_committed(&mut client), [0, 1, 2, 3]);
    produce(&mut client, "id", next, 0, 0);
}

#[test]
fn a_decision_is_carried_out_however_often_the_broker_dies() {
    let (mut broker, mut client) = started();
    let mut expected = Vec::new();
    let mut producer = init(&mut client, "id");
    for n in 0..8 {
        let base = produce(&mut client, "id", producer, 0, 0);
        produce(&mut client, "id", producer, 2, 0);
        let commit = n % 3 != 1;
        producer = end(&mut client, "id", producer, commit);
        if commit {
            expected.extend([base, base + 1]);
        }
        // The markers are on their way, or not yet.
        broker = broker.crash_and_restart();
        client = broker.connect();
    }
    wait_for(&expected, || read_committed(&mut client));
    let state = if producer.1 % 3 == 2 { "CompleteAbort" } else { "CompleteCommit" };
    wait_for(&state.to_owned(), || describe(&mut client, "id").transaction_state);
}

#[test]
fn what_takes_too_long_is_aborted() {
    let broker = TestBroker::start_with(|config| {
        config.transactions.abort_interval = Duration::from_millis(20);
    });
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    let producer = init_with(&mut client, "id", 50).unwrap();
    produce(&mut client, "id", producer, 0, 0);
    wait_for(&3, || fetch(&mut client, 0, 1, 0).last_stable_offset);
    wait_for(&"CompleteAbort".to_owned(), || describe(&mut client, "id").transaction_state);
    assert_eq!(read_committed(&mut client), Vec::<i64>::new());
    assert_eq!(end_as(&mut client, ("id", producer), true, 5), Err(ErrorCode::InvalidTxnState));
    assert_eq!(produce_as(&mut client, ("id", producer), (0, 2), 12), Err(ErrorCode::InvalidProducerEpoch));
}

#[test]
fn ids_that_nobody_uses_are_forgotten() {
    let broker = TestBroker::start_with(|config| {
        config.transactions.remove_interval = Duration::from_millis(20);
        config.transactions.id_expiration_ms = 1;
    });
    broker.create_topic("t", 1);
    let mut client = broker.connect();
    init(&mut client, "id");
    wait_for(&ErrorCode::TransactionalIdNotFound.code(), || describe(&mut client, "id").error_code);
    let broker = broker.restart();
    let mut client = broker.connect();
    assert_eq!(describe(&mut client, "id").error_code, ErrorCode::TransactionalIdNotFound.code());
    assert_eq!(describe(&mut client, "").error_code, ErrorCode::InvalidRequest.code());
}

#[test]
fn transactions_are_listed() {
    let (_broker, mut client) = started();
    let list = |client: &mut RawClient, change: &dyn Fn(&mut m::ListTransactionsRequest)| {
        let mut request = m::ListTransactionsRequest { duration_filter: -1, ..Default::default() };
        change(&mut request);
        let mut response: m::ListTransactionsResponse = client.ask(&request, 2);
        response.transaction_states.sort_by(|a, b| a.transactional_id.cmp(&b.transactional_id));
        response
    };
    let ids = |response: &m::ListTransactionsResponse| -> Vec<String> {
        response.transaction_states.iter().map(|state| state.transactional_id.clone()).collect()
    };
    let one = init(&mut client, "one");
    init(&mut client, "two");
    produce(&mut client, "one", one, 0, 0);
    assert_eq!(ids(&list(&mut client, &|_| {})), ["one", "two"]);
    let ongoing = list(&mut client, &|r| r.state_filters = vec!["Ongoing".into(), "Nonsense".into()]);
    assert_eq!((ids(&ongoing), ongoing.unknown_state_filters), (vec!["one".to_owned()], vec!["Nonsense".to_owned()]));
    assert_eq!(ids(&list(&mut client, &|r| r.producer_id_filters = vec![one.0])), ["one"]);
    assert_eq!(ids(&list(&mut client, &|r| r.transactional_id_pattern = Some("t.*".into()))), ["two"]);
    assert_eq!(ids(&list(&mut client, &|r| r.transactional_id_pattern = Some("w".into()))), [""; 0]);
    let bad = list(&mut client, &|r| r.transactional_id_pattern = Some("(".into()));
    assert_eq!(bad.error_code, ErrorCode::InvalidRegularExpression.code());
}

#[test]
fn a_hanging_transaction_is_ended_by_hand() {
    let (broker, mut client) = started();
    let view = broker.context().topics.view();
    // Written behind the coordinator's back.
    let partition = view.partition("t", 0).unwrap();
    let verification = caudal_storage::Verification::Off;
    partition.append(&batch((99, 4), 0, 2), caudal_storage::AppendOrigin::Client, verification, |_| {}).unwrap();
    let describe = m::DescribeProducersRequest {
        topics: vec![m::describe_producers_request::TopicRequest { name: "t".into(), partition_indexes: vec![0] }],
    };
    let response: m::DescribeProducersResponse = client.ask(&describe, 0);
    let hanging = &response.topics[0].partitions[0].active_producers[0];
    assert_eq!((hanging.producer_id, hanging.current_txn_start_offset, hanging.coordinator_epoch), (99, 0, -1));
    let marker = |partition, coordinator_epoch| m::WriteTxnMarkersRequest {
        markers: vec![WritableTxnMarker {
            producer_id: 99,
            producer_epoch: 4,
            transaction_result: false,
            topics: vec![WritableTxnMarkerTopic { name: "t".into(), partition_indexes: vec![partition] }],
            coordinator_epoch,
            transaction_version: 0,
        }],
    };
    let mut write = |partition, epoch| {
        let response: m::WriteTxnMarkersResponse = client.ask(&marker(partition, epoch), 1);
        ErrorCode::from_code(response.markers[0].topics[0].partitions[0].error_code)
    };
    assert_eq!(write(9, 0), ErrorCode::UnknownTopicOrPartition);
    assert_eq!(write(0, 3), ErrorCode::None);
    assert_eq!(write(0, 2), ErrorCode::TransactionCoordinatorFenced);
    assert_eq!(fetch(&mut client, 0, 1, 0).last_stable_offset, 3);
    assert_eq!(read_committed(&mut client), Vec::<i64>::new());
}

/// What a request repeats all over does not grow in memory, and has its effect once.
#[test]
fn entries_that_repeat_count_once() {
    let (_broker, mut client) = started();
    let producer = init(&mut client, "id");
    let many = 1_000_000;
    let topics = |partition| vec![AddPartitionsToTxnTopic { name: "t".into(), partitions: vec![partition; many] }];
    for (partition, error) in [(0, ErrorCode::None), (9, ErrorCode::UnknownTopicOrPartition)] {
        let add = m::AddPartitionsToTxnRequest {
            transactions: vec![AddPartitionsToTxnTransaction {
                transactional_id: "id".into(),
                producer_id: producer.0,
                producer_epoch: producer.1,
                verify_only: false,
                topics: topics(partition),
            }],
            ..Default::default()
        };
        let response: m::AddPartitionsToTxnResponse = client.ask(&add, 5);
        let answers = &response.results_by_transaction[0].topic_results[0].results_by_partition;
        assert_eq!((answers.len(), answers[0].partition_error_code), (many, error.code()));
    }
    let markers = m::WriteTxnMarkersRequest {
        markers: vec![WritableTxnMarker {
            producer_id: 5,
            topics: vec![WritableTxnMarkerTopic { name: "t".into(), partition_indexes: vec![1; many] }],
            ..Default::default()
        }],
    };
    let response: m::WriteTxnMarkersResponse = client.ask(&markers, 1);
    assert_eq!(response.markers[0].topics[0].partitions.len(), 1);
}

#[test]
fn empty_requests_are_answered() {
    let (_broker, mut client) = started();
    let request = m::ProduceRequest { acks: -1, transactional_id: Some("id".into()), ..Default::default() };
    let response: m::ProduceResponse = client.ask(&request, 12);
    assert!(response.responses.is_empty());
    let mut nonsense = self::request("t", 0, Bytes::from_static(b"no batch"));
    nonsense.transactional_id = Some("id".into());
    let response: m::ProduceResponse = client.ask(&nonsense, 12);
    assert_ne!(response.responses[0].partition_responses[0].error_code, 0);
}
