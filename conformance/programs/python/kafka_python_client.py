"""kafka-python against a broker; see common.py."""
import threading, time

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, NewPartitions, NewTopic
from kafka.errors import ProducerFencedError, TopicAlreadyExistsError, UnknownTopicOrPartitionError
from kafka.structs import OffsetAndMetadata

from common import BOOTSTRAP, CODECS, equal, fresh, kill_broker, main, until


def create(name, partitions=1, **config):
    admin = KafkaAdminClient(bootstrap_servers=BOOTSTRAP)
    admin.create_topics([NewTopic(name, partitions, 1, topic_configs=config)])
    admin.close()
    return name


def everything(topic, level="read_uncommitted"):
    consumer = KafkaConsumer(bootstrap_servers=BOOTSTRAP, group_id=None, isolation_level=level, auto_offset_reset="earliest")
    partitions = [TopicPartition(topic, p) for p in sorted(until("partitions", lambda: consumer.partitions_for_topic(topic)))]
    consumer.assign(partitions)
    consumer.seek_to_beginning()
    ends, found = consumer.end_offsets(partitions), []

    def at_end():
        for messages in consumer.poll(200).values():
            found.extend(messages)
        return all(consumer.position(p) >= end for p, end in ends.items())

    until(f"the end of {topic}", at_end)
    consumer.close()
    return found


def read(topic, records):
    found = everything(topic)
    equal(topic, [(m.key, m.value, list(m.headers), m.timestamp) for m in found], records)
    equal(f"offsets of {topic}", [m.offset for m in found], list(range(len(records))))


def round_trips(records, prefix):
    for codec in CODECS:
        topic = create(prefix + codec)
        producer = KafkaProducer(bootstrap_servers=BOOTSTRAP, compression_type=None if codec == "none" else codec, acks="all", linger_ms=20)
        sent = [producer.send(topic, key=k, value=v, headers=h, timestamp_ms=t) for k, v, h, t in records]
        producer.flush()
        equal("offsets", [f.get(10).offset for f in sent], list(range(len(records))))
        producer.close()
        read(topic, records)


class Member(threading.Thread):
    """Reads until it is stopped; kafka-python commits when partitions are taken away and at the end."""

    def __init__(self, topic, group):
        super().__init__(daemon=True)
        self.seen, self.assigned, self.stopping, self.error = [], set(), False, None
        # kafka-python 3.0.12 can join without having heard of the topic, and then asks again when its metadata is too old: not in five minutes.
        self.consumer = KafkaConsumer(topic, bootstrap_servers=BOOTSTRAP, metadata_max_age_ms=5000, group_id=group, auto_offset_reset="earliest", enable_auto_commit=True,
                                      session_timeout_ms=6000, heartbeat_interval_ms=500)
        self.start()

    def run(self):
        try:
            while not self.stopping:
                for messages in self.consumer.poll(100).values():
                    self.seen += [m.value for m in messages]
                self.assigned = {p.partition for p in self.consumer.assignment()}
            self.consumer.close()
        except Exception as e:
            self.error = e

    def stop(self):
        self.stopping = True
        self.join(30)
        assert not self.error and not self.is_alive(), self.error


def groups():
    """Two members: one joins, one leaves; nothing is missed; a third goes on where they committed."""
    topic, group = create(fresh("kafka-python"), 4), fresh("kafka-python")
    producer = KafkaProducer(bootstrap_servers=BOOTSTRAP)

    def write(a, b):
        for i in range(a, b):
            producer.send(topic, str(i).encode(), partition=i % 4)
        producer.flush()

    expect = lambda a, b: {str(i).encode() for i in range(a, b)}
    write(0, 100)
    first = Member(topic, group)
    until("the first member has all", lambda: first.assigned == {0, 1, 2, 3} and set(first.seen) == expect(0, 100))
    second = Member(topic, group)
    until("two members share", lambda: len(first.assigned) == len(second.assigned) == 2 and not first.assigned & second.assigned)
    write(100, 200)
    until("two members read all", lambda: set(first.seen + second.seen) == expect(0, 200))
    equal("records read once", len(first.seen + second.seen), 200)
    first.stop()
    until("the second member has all", lambda: second.assigned == {0, 1, 2, 3})
    write(200, 240)
    until("the second member reads all", lambda: set(first.seen + second.seen) == expect(0, 240))
    second.stop()
    admin = KafkaAdminClient(bootstrap_servers=BOOTSTRAP)
    equal("committed offsets", {p.partition: o.offset for p, o in admin.list_group_offsets([group])[group].items()}, {p: 60 for p in range(4)})
    write(240, 250)
    third = Member(topic, group)
    until("the third member goes on", lambda: set(third.seen) == expect(240, 250))
    third.stop()
    equal("records read by the third", len(third.seen), 10)
    producer.close()
    assert group in str(admin.list_groups())
    admin.delete_groups([group])
    assert group not in str(admin.list_groups())
    admin.close()


def transactions():
    topic, source, group, identity = create(fresh("kafka-python")), create(fresh("kafka-python")), fresh("kafka-python"), fresh("kafka-python")
    start = lambda: KafkaProducer(bootstrap_servers=BOOTSTRAP, transactional_id=identity)
    producer = start()
    producer.init_transactions()
    for round_, commit in enumerate([True, False, True, False, True]):
        producer.begin_transaction()
        for i in range(10):
            producer.send(topic, f"{round_}-{i}".encode())
        producer.send_offsets_to_transaction({TopicPartition(source, 0): OffsetAndMetadata(round_ + 1, "", -1)}, group)
        producer.flush()  # or an abort drops what was not sent
        producer.commit_transaction() if commit else producer.abort_transaction()
    expected = [f"{r}-{i}".encode() for r in (0, 2, 4) for i in range(10)]
    equal("committed", [m.value for m in everything(topic, "read_committed")], expected)
    equal("all", len(everything(topic)), 50)
    admin = KafkaAdminClient(bootstrap_servers=BOOTSTRAP)
    equal("offsets of the transactions", {p.topic: o.offset for p, o in admin.list_group_offsets([group])[group].items()}, {source: 5})
    admin.close()
    other = start()
    other.init_transactions()
    try:
        producer.begin_transaction()
        producer.send(topic, b"zombie").get(20)
        producer.commit_transaction()
        raise AssertionError("a fenced producer committed")
    except ProducerFencedError:
        pass
    other.begin_transaction()
    other.send(topic, b"successor")
    other.commit_transaction()
    other.close()
    equal("committed after fencing", [m.value for m in everything(topic, "read_committed")], [*expected, b"successor"])


def administration():
    admin = KafkaAdminClient(bootstrap_servers=BOOTSTRAP)
    topic = create(fresh("kafka-python"), 2, **{"retention.ms": "3600000", "cleanup.policy": "compact"})
    try:
        create(topic)
        raise AssertionError("a topic was created twice")
    except TopicAlreadyExistsError:
        pass
    assert topic in admin.list_topics()
    config = lambda: {k: v["value"] if isinstance(v, dict) else v for k, v in
                      next(iter(next(iter(admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)]).values())).values())).items()}
    equal("config", {k: config()[k] for k in ("retention.ms", "cleanup.policy")}, {"retention.ms": "3600000", "cleanup.policy": "compact"})
    admin.create_partitions({topic: NewPartitions(5)})
    [described] = admin.describe_topics([topic])
    equal("partitions after growing", len(described["partitions"]), 5)
    producer = KafkaProducer(bootstrap_servers=BOOTSTRAP)
    for i in range(10):
        producer.send(topic, str(i).encode(), key=b"k", partition=0).get(20)
    producer.close()
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"retention.ms": "60000", "cleanup.policy": "compact,delete"})])
    equal("altered config", {k: config()[k] for k in ("retention.ms", "cleanup.policy")}, {"retention.ms": "60000", "cleanup.policy": "compact,delete"})
    admin.delete_records({TopicPartition(topic, 0): 7})
    equal("records after a deletion", [m.offset for m in everything(topic)], [7, 8, 9])
    admin.delete_topics([topic])
    assert topic not in admin.list_topics()
    try:
        admin.delete_topics([topic])
        raise AssertionError("a topic was deleted twice")
    except UnknownTopicOrPartitionError:
        pass
    admin.close()


def broker_killed():
    """An idempotent producer goes on over a kill -9 of the broker: every record once, in order."""
    topic = create(fresh("kafka-python"))
    producer = KafkaProducer(bootstrap_servers=BOOTSTRAP, enable_idempotence=True, retry_backoff_ms=50, delivery_timeout_ms=120000)
    sent = []
    for i in range(3000):
        if i == 1000:
            kill_broker()
        sent.append(producer.send(topic, str(i).encode()))
        if i % 20 == 0:
            time.sleep(0.005)
    equal("offsets", [f.get(60).offset for f in sent], list(range(3000)))
    producer.close()
    equal("records", [int(m.value) for m in everything(topic)], list(range(3000)))


main([round_trips, groups, transactions, administration, broker_killed], read)
