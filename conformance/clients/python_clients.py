"""kafka-python and confluent-kafka (librdkafka) against a broker: what users do with them.

python_clients.py BOOTSTRAP [FILTER]
"""
import sys, threading, time, traceback, uuid

import confluent_kafka
import kafka
from confluent_kafka.admin import AdminClient, NewTopic
from kafka.errors import MessageSizeTooLargeError

BOOTSTRAP = sys.argv[1]
FILTER = sys.argv[2] if len(sys.argv) > 2 else ""
LIMIT = 1048588  # message.max.bytes: a whole batch
tests = []


def test(f):
    tests.append(f)
    return f


def topic(partitions=1, **config):
    name = f"clients-{uuid.uuid4().hex[:10]}"
    admin = AdminClient({"bootstrap.servers": BOOTSTRAP})
    admin.create_topics([NewTopic(name, partitions, 1, config=config)])[name].result(20)
    return name


def until(what, done, seconds=30):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.02)


RECORDS = [
    (b"k", b"v", [("h", b"1")], 1_700_000_000_000),
    (None, b"no key", [], 1_700_000_000_001),
    (b"no value", None, [("same", b"1"), ("same", b"2"), ("empty", b"")], 1_700_000_000_002),
    (None, None, [], 1_700_000_000_003),
    (b"", b"", [("null", None)], 1_700_000_000_004),
    ("ñandú".encode(), "café".encode() * 100, [("ü", b"\x00\xff")], 1_700_000_000_005),
]


def read_kafka_python(name, n, **options):
    consumer = kafka.KafkaConsumer(name, bootstrap_servers=BOOTSTRAP, auto_offset_reset="earliest", consumer_timeout_ms=20000, group_id=None, **options)
    found = []
    for m in consumer:
        found.append(m)
        if len(found) == n:
            break
    consumer.close()
    return found


def read_confluent(name, n, offset=0):
    consumer = confluent_kafka.Consumer({"bootstrap.servers": BOOTSTRAP, "group.id": f"read-{uuid.uuid4()}", "enable.auto.commit": False})
    consumer.assign([confluent_kafka.TopicPartition(name, 0, offset)])
    found, end = [], time.monotonic() + 20
    while len(found) < n and time.monotonic() < end:
        for m in consumer.consume(n - len(found), 1):
            assert not m.error(), m.error()
            found.append(m)
    consumer.close()
    return found


def check_both(name, records):
    ours = [(m.key, m.value, [(k, v) for k, v in m.headers], m.timestamp) for m in read_kafka_python(name, len(records))]
    assert ours == records, ours
    theirs = [(m.key(), m.value(), m.headers() or [], m.timestamp()[1]) for m in read_confluent(name, len(records))]
    assert theirs == records, theirs


@test
def kafka_python_round_trips():
    # kafka-python sends neither a record without key and value nor a null header.
    records = [r for r in RECORDS if r[:2] != (None, None) and all(v is not None for _, v in r[2])]
    for codec in None, "gzip", "snappy", "lz4", "zstd":
        name = topic()
        producer = kafka.KafkaProducer(bootstrap_servers=BOOTSTRAP, acks="all", compression_type=codec, linger_ms=20)
        futures = [producer.send(name, key=k, value=v, headers=h, timestamp_ms=t) for k, v, h, t in records]
        producer.flush()
        assert [f.get(10).offset for f in futures] == list(range(len(records)))
        producer.close()
        check_both(name, records)


@test
def confluent_round_trips():
    for codec in "none", "gzip", "snappy", "lz4", "zstd":
        name = topic()
        offsets = []
        producer = confluent_kafka.Producer({"bootstrap.servers": BOOTSTRAP, "compression.type": codec, "linger.ms": 20})
        for k, v, h, t in RECORDS:
            producer.produce(name, v, k, headers=h, timestamp=t, on_delivery=lambda e, m: offsets.append(e or m.offset()))
        assert producer.flush(20) == 0
        assert offsets == list(range(len(RECORDS))), offsets
        check_both(name, RECORDS)


@test
def largest_record_and_one_byte_more():
    name = topic(**{"max.message.bytes": "100000"})
    # A batch of one record: 61 bytes of header, then the record with its varints.
    def outcome(size):
        result = []
        producer = confluent_kafka.Producer({"bootstrap.servers": BOOTSTRAP, "message.max.bytes": 2_000_000, "enable.idempotence": True})
        producer.produce(name, b"x" * size, on_delivery=lambda e, m: result.append(e))
        producer.flush(20)
        return result[0]
    overhead = next(n for n in range(61, 100) if outcome(100_000 - n) is None)
    error = outcome(100_000 - overhead + 1)
    assert error is not None and error.code() == confluent_kafka.KafkaError.MSG_SIZE_TOO_LARGE, error
    producer = kafka.KafkaProducer(bootstrap_servers=BOOTSTRAP, max_request_size=2_000_000)
    try:
        producer.send(name, b"x" * 200_000).get(20)
        raise AssertionError("a record over the limit was taken")
    except MessageSizeTooLargeError:
        pass
    producer.close()
    whole = topic()
    producer = confluent_kafka.Producer({"bootstrap.servers": BOOTSTRAP, "message.max.bytes": 2_000_000})
    result = []
    producer.produce(whole, b"y" * (LIMIT - overhead), on_delivery=lambda e, m: result.append(e))
    producer.flush(20)
    assert result == [None], result
    assert len(read_confluent(whole, 1)[0].value()) == LIMIT - overhead


class Member(threading.Thread):
    """A kafka-python consumer in a group."""

    def __init__(self, name, group, **options):
        super().__init__(daemon=True)
        self.seen, self.stopping, self.dying, self.assigned = [], False, False, set()
        self.consumer = kafka.KafkaConsumer(bootstrap_servers=BOOTSTRAP, group_id=group, auto_offset_reset="earliest", session_timeout_ms=6000,
                                            heartbeat_interval_ms=500, enable_auto_commit=False, **options)
        self.consumer.subscribe([name])
        self.start()

    def run(self):
        while not self.stopping:
            for messages in self.consumer.poll(100).values():
                self.seen += [(m.partition, m.offset) for m in messages]
            self.assigned = {p.partition for p in self.consumer.assignment()}
            if self.seen and not self.dying:
                try:
                    self.consumer.commit()
                except kafka.errors.KafkaError:
                    pass  # a rebalance is under way
        if not self.dying:
            self.consumer.close()

    def leave(self):
        self.stopping = True
        self.join(30)


def shared_out(members, partitions):
    lists = [m.assigned for m in members]
    return all(lists) and sum(map(len, lists)) == partitions and set().union(*lists) == set(range(partitions))


@test
def group_of_three_joins_leaves_and_dies():
    name, group = topic(6), f"g-{uuid.uuid4()}"
    producer = kafka.KafkaProducer(bootstrap_servers=BOOTSTRAP)
    for i in range(60):
        producer.send(name, b"%d" % i, partition=i % 6)
    producer.flush()
    a = Member(name, group)
    until("one member has all", lambda: a.assigned == set(range(6)))
    b, c = Member(name, group), Member(name, group)
    until("three members share", lambda: shared_out([a, b, c], 6))
    b.leave()
    until("two members share after one left", lambda: shared_out([a, c], 6))
    # c dies: its socket is cut and no heartbeat comes any more, so its session runs out.
    c.dying = True
    c.leave()
    coordinator = getattr(c.consumer, "_coordinator", None)
    if coordinator is not None and hasattr(coordinator, "_close_heartbeat_thread"):
        coordinator._close_heartbeat_thread()
    c.consumer._client.close()
    until("one member has all again", lambda: a.assigned == set(range(6)), 40)
    until("every record was seen", lambda: len(set(a.seen + b.seen + c.seen)) == 60)
    a.leave()
    resumed = kafka.KafkaConsumer(name, bootstrap_servers=BOOTSTRAP, group_id=group, auto_offset_reset="earliest", consumer_timeout_ms=8000)
    for i in range(6):
        producer.send(name, b"new", partition=i)
    producer.close()
    assert {m.value for m in resumed} == {b"new"}, "committed offsets were not resumed"
    resumed.close()


@test
def confluent_group_with_static_members():
    name, group = topic(4), f"g-{uuid.uuid4()}"
    make = lambda i: confluent_kafka.Consumer({"bootstrap.servers": BOOTSTRAP, "group.id": group, "group.instance.id": f"i{i}", "auto.offset.reset": "earliest",
                                               "session.timeout.ms": 10000, "partition.assignment.strategy": "range"})
    members = [make(0), make(1)]
    rebalances = []
    for m in members:
        m.subscribe([name], on_assign=lambda c, p: rebalances.append(sorted(x.partition for x in p)))
    def spread():
        for m in members:
            m.poll(0.1)
        return all(len(m.assignment()) == 2 for m in members)
    until("two static members share", spread, 40)
    count = len(rebalances)
    before = sorted(p.partition for p in members[1].assignment())
    members[1].close()  # a static member does not leave when it closes
    members[1] = make(1)
    members[1].subscribe([name])
    until("the static member is back", spread, 40)
    assert sorted(p.partition for p in members[1].assignment()) == before
    assert len(rebalances) == count, "the other member was rebalanced"
    for m in members:
        m.close()


@test
def confluent_consumer_protocol():
    """KIP-848: three share, one leaves, one gives all back; then the admin client describes the group and deletes it."""
    from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
    name, group = topic(6), f"g-{uuid.uuid4()}"
    admin = AdminClient({"bootstrap.servers": BOOTSTRAP})
    quick = {"consumer.session.timeout.ms": "4000", "consumer.heartbeat.interval.ms": "500", "consumer.assignment.interval.ms": "0"}
    entries = [ConfigEntry(k, v, incremental_operation=AlterConfigOpType.SET) for k, v in quick.items()]
    for f in admin.incremental_alter_configs([ConfigResource(ResourceType.GROUP, group, incremental_configs=entries)]).values():
        f.result(20)
    producer = confluent_kafka.Producer({"bootstrap.servers": BOOTSTRAP})
    for i in range(60):
        producer.produce(name, str(i).encode(), partition=i % 6)
    producer.flush(20)
    seen, members = set(), []

    def read():
        for m in members:
            r = m.poll(0.05)
            if r is not None and not r.error():
                seen.add((r.partition(), r.offset()))

    def settled():
        read()
        parts = [sorted(p.partition for p in m.assignment()) for m in members]
        return sorted(sum(parts, [])) == list(range(6)) and max(map(len, parts)) - min(map(len, parts)) <= 1

    for _ in range(3):
        members.append(confluent_kafka.Consumer({"bootstrap.servers": BOOTSTRAP, "group.id": group, "group.protocol": "consumer", "auto.offset.reset": "earliest",
                                                 "enable.auto.commit": False}))
        members[-1].subscribe([name])
    until("three members settle", settled)
    members.pop().close()
    until("two members settle", settled)
    members.pop().unsubscribe()
    until("one member settles", settled)
    until("all read", lambda: read() or len(seen) == 60)
    until("read to the end", lambda: read() or all(p.offset == 10 for p in members[0].position(members[0].assignment())))
    members[0].commit(asynchronous=False)
    described = admin.describe_consumer_groups([group])[group].result(20)
    assert str(described.type).endswith("CONSUMER") and str(described.state).endswith("STABLE"), (described.type, described.state)
    members.pop().close()
    admin.delete_consumer_groups([group])[group].result(20)


@test
def auto_commit_and_replay():
    name, group = topic(), f"g-{uuid.uuid4()}"
    producer = kafka.KafkaProducer(bootstrap_servers=BOOTSTRAP)
    start = 1_700_000_000_000
    for i in range(100):
        producer.send(name, b"%d" % i, timestamp_ms=start + i * 1000)
    producer.close()
    first = kafka.KafkaConsumer(name, bootstrap_servers=BOOTSTRAP, group_id=group, auto_offset_reset="earliest", auto_commit_interval_ms=100, max_poll_records=10)
    until("ten were read", lambda: bool(first.poll(200, max_records=10)))
    first.close()
    tp = kafka.TopicPartition(name, 0)
    second = kafka.KafkaConsumer(bootstrap_servers=BOOTSTRAP, group_id=group, enable_auto_commit=False)
    assert second.committed(tp) == 10
    second.assign([tp])
    at = second.offsets_for_times({tp: start + 41_500})[tp]
    assert (at.offset, at.timestamp) == (42, start + 42_000), at
    assert second.offsets_for_times({tp: start + 10**9})[tp] is None
    assert second.beginning_offsets([tp]) == {tp: 0} and second.end_offsets([tp]) == {tp: 100}
    for offset in 0, 57, 99, at.offset:
        second.seek(tp, offset)
        messages = []
        until("a record after the seek", lambda: messages.extend(second.poll(200, max_records=1).get(tp, [])) or messages)
        assert messages[0].offset == offset and messages[0].value == b"%d" % offset
    second.commit({tp: kafka.OffsetAndMetadata(77, "here", -1)})
    assert second.committed(tp) == 77
    second.close()


@test
def out_of_range_and_unknown_topics():
    name = topic()
    consumer = kafka.KafkaConsumer(bootstrap_servers=BOOTSTRAP, auto_offset_reset="none", group_id=None)
    consumer.assign([kafka.TopicPartition(name, 0)])
    consumer.seek(kafka.TopicPartition(name, 0), 5)
    try:
        consumer.poll(5000)
        raise AssertionError("an offset beyond the end was read")
    except kafka.errors.OffsetOutOfRangeError:
        pass
    consumer.close()
    admin = AdminClient({"bootstrap.servers": BOOTSTRAP})
    try:
        admin.delete_topics(["no-such-topic"])["no-such-topic"].result(10)
        raise AssertionError("a topic that is not there was deleted")
    except confluent_kafka.KafkaException as e:
        assert e.args[0].code() == confluent_kafka.KafkaError.UNKNOWN_TOPIC_OR_PART


def committed_values(name, n, partitions=1):
    """What both clients read of committed records: n values, and no more behind them."""
    found = [m.value for m in read_kafka_python(name, n, isolation_level="read_committed")]
    consumer = confluent_kafka.Consumer({"bootstrap.servers": BOOTSTRAP, "group.id": f"read-{uuid.uuid4()}", "enable.auto.commit": False,
                                         "isolation.level": "read_committed", "enable.partition.eof": True})
    consumer.assign([confluent_kafka.TopicPartition(name, p, 0) for p in range(partitions)])
    theirs, ended, end = [], set(), time.monotonic() + 20
    while len(ended) < partitions and time.monotonic() < end:
        for m in consumer.consume(500, 1):
            if m.error():
                assert m.error().code() == confluent_kafka.KafkaError._PARTITION_EOF, m.error()
                ended.add(m.partition())
            else:
                theirs.append(m.value())
    consumer.close()
    assert sorted(found) == sorted(theirs), (len(found), len(theirs))
    return sorted(theirs)


def transactional(id):
    producer = confluent_kafka.Producer({"bootstrap.servers": BOOTSTRAP, "transactional.id": id, "linger.ms": 0, "log_level": 2})
    producer.init_transactions(20)
    return producer


@test
def committed_and_aborted_transactions():
    name, expected = topic(2), []
    ours = transactional(f"confluent-{uuid.uuid4()}")
    theirs = kafka.KafkaProducer(bootstrap_servers=BOOTSTRAP, transactional_id=f"kafka-python-{uuid.uuid4()}")
    theirs.init_transactions()
    for n in range(20):
        values = [f"{n} {k}".encode() for k in range(10)]
        ours.begin_transaction()
        theirs.begin_transaction()
        for k, value in enumerate(values):
            ours.produce(name, b"c " + value, partition=k % 2)
            theirs.send(name, b"k " + value, partition=k % 2)
        ours.flush(20)
        theirs.flush()
        if n % 3 == 1:
            ours.abort_transaction(20)
            theirs.commit_transaction()
            expected += [b"k " + value for value in values]
        else:
            ours.commit_transaction(20)
            theirs.abort_transaction()
            expected += [b"c " + value for value in values]
    theirs.close()
    assert committed_values(name, len(expected), 2) == sorted(expected)
    uncommitted = read_kafka_python(name, 400)
    assert len(uncommitted) == 400


@test
def offsets_within_transactions():
    source, target, group = topic(2), topic(1), f"copy-{uuid.uuid4()}"
    plain = confluent_kafka.Producer({"bootstrap.servers": BOOTSTRAP})
    values = [f"{n}".encode() for n in range(300)]
    for n, value in enumerate(values):
        plain.produce(source, value, partition=n % 2)
    plain.flush(20)
    copied, batches = 0, 0
    while copied < len(values):
        # A new member now and then, as after a crash: it goes on where the last committed transaction ended.
        consumer = confluent_kafka.Consumer({"bootstrap.servers": BOOTSTRAP, "group.id": group, "auto.offset.reset": "earliest",
                                             "enable.auto.commit": False, "isolation.level": "read_committed"})
        consumer.subscribe([source])
        producer = transactional(group)
        for _ in range(4):
            messages = consumer.consume(20, 5)
            if not messages:
                break
            producer.begin_transaction()
            for m in messages:
                producer.produce(target, m.value())
            producer.send_offsets_to_transaction(consumer.position(consumer.assignment()), consumer.consumer_group_metadata(), 20)
            batches += 1
            if batches % 4 == 0:
                producer.flush(20)
                producer.abort_transaction(20)
                break
            producer.commit_transaction(20)
            copied += len(messages)
        consumer.close()
    assert committed_values(target, len(values)) == sorted(values)


@test
def a_new_producer_fences_the_old_one():
    name, id = topic(), f"fenced-{uuid.uuid4()}"
    old = transactional(id)
    old.begin_transaction()
    old.produce(name, b"of the old one")
    old.flush(20)
    new = transactional(id)
    new.begin_transaction()
    new.produce(name, b"of the new one")
    new.commit_transaction(20)
    try:
        old.commit_transaction(20)
        raise AssertionError("the old producer committed")
    except confluent_kafka.KafkaException as e:
        assert e.args[0].code() in (confluent_kafka.KafkaError._FENCED, confluent_kafka.KafkaError.PRODUCER_FENCED), e
        assert e.args[0].fatal()
    assert committed_values(name, 1) == [b"of the new one"]


def main():
    failed = 0
    chosen = [t for t in tests if FILTER in t.__name__]
    for t in chosen:
        start = time.monotonic()
        try:
            t()
            print(f"ok   {t.__name__} ({time.monotonic() - start:.1f} s)", flush=True)
        except Exception:
            failed += 1
            print(f"FAIL {t.__name__}", flush=True)
            traceback.print_exc()
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return 1 if failed else 0


sys.exit(main())
