"""confluent-kafka (librdkafka) against a broker, with both group protocols; see common.py."""
import threading, time

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, NewTopic

from common import BOOTSTRAP, CODECS, equal, fresh, kill_broker, main, until

BASE = {"bootstrap.servers": BOOTSTRAP, "log_level": 0, "reconnect.backoff.max.ms": 200, "metadata.recovery.strategy": "none"}
admin = AdminClient(BASE)


def create(name, partitions=1, **config):
    admin.create_topics([NewTopic(name, partitions, 1, config=config)])[name].result(20)
    return name


def everything(topic, level="read_uncommitted"):
    consumer = Consumer({**BASE, "group.id": fresh("everything"), "enable.auto.commit": False, "enable.partition.eof": True, "auto.offset.reset": "earliest", "isolation.level": level, "check.crcs": True})
    open_ = set(consumer.list_topics(topic, timeout=20).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, p, 0) for p in open_])
    found = []

    def at_end():
        for m in consumer.consume(1000, 0.2):
            if not m.error():
                found.append(m)
            elif m.error().code() == KafkaError._PARTITION_EOF:
                open_.discard(m.partition())
            else:
                raise KafkaException(m.error())
        return not open_

    until(f"the end of {topic}", at_end)
    consumer.close()
    return found


def read(topic, records):
    found = everything(topic)
    equal(topic, [(m.key(), m.value(), m.headers() or [], m.timestamp()[1]) for m in found], records)
    equal(f"offsets of {topic}", [m.offset() for m in found], list(range(len(records))))


def round_trips(records, prefix):
    for codec in CODECS:
        topic, offsets = create(prefix + codec), []
        producer = Producer({**BASE, "compression.type": codec, "linger.ms": 20})
        for k, v, h, t in records:
            producer.produce(topic, v, k, headers=h, timestamp=t, on_delivery=lambda e, m: offsets.append(e or m.offset()))
        equal("records left", producer.flush(30), 0)
        equal("offsets", offsets, list(range(len(records))))
        read(topic, records)


class Member(threading.Thread):
    """Reads until it is stopped, and commits then."""

    def __init__(self, topic, group, options):
        super().__init__(daemon=True)
        self.seen, self.stopping, self.error = [], False, None
        self.consumer = Consumer({**BASE, "group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": True, "enable.auto.offset.store": True, **options})
        self.consumer.subscribe([topic])
        self.assigned = set()
        self.start()

    def run(self):
        try:
            while not self.stopping:
                for m in self.consumer.consume(100, 0.1):
                    if m.error():
                        raise KafkaException(m.error())
                    self.seen.append(m.value())
                self.assigned = {p.partition for p in self.consumer.assignment()}
            self.consumer.close()
        except Exception as e:
            self.error = e

    def stop(self):
        self.stopping = True
        self.join(30)
        assert not self.error and not self.is_alive(), self.error


def group_of(options):
    topic, group, producer = create(fresh("confluent"), 4), fresh("confluent"), Producer(BASE)

    def write(a, b):
        for i in range(a, b):
            producer.produce(topic, str(i), partition=i % 4)
        equal("records left", producer.flush(30), 0)

    expect = lambda a, b: {str(i).encode() for i in range(a, b)}
    write(0, 100)
    first = Member(topic, group, options)
    until("the first member has all", lambda: first.assigned == {0, 1, 2, 3} and set(first.seen) == expect(0, 100))
    second = Member(topic, group, options)
    until("two members share", lambda: len(first.assigned) == len(second.assigned) == 2 and not first.assigned & second.assigned)
    write(100, 200)
    until("two members read all", lambda: set(first.seen + second.seen) == expect(0, 200))
    equal("records read once", len(first.seen + second.seen), 200)
    described = admin.describe_consumer_groups([group])[group].result(20)
    equal("members", sorted(len(m.assignment.topic_partitions) for m in described.members), [2, 2])
    first.stop()
    until("the second member has all", lambda: second.assigned == {0, 1, 2, 3})
    write(200, 240)
    until("the second member reads all", lambda: set(first.seen + second.seen) == expect(0, 240))
    second.stop()
    offsets = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result(20).topic_partitions
    equal("committed offsets", {p.partition: p.offset for p in offsets}, {p: 60 for p in range(4)})
    write(240, 250)
    third = Member(topic, group, options)
    until("the third member goes on", lambda: set(third.seen) == expect(240, 250))
    third.stop()
    equal("records read by the third", len(third.seen), 10)
    assert group in {g.group_id for g in admin.list_consumer_groups().result(20).valid}
    admin.delete_consumer_groups([group])[group].result(20)
    assert group not in {g.group_id for g in admin.list_consumer_groups().result(20).valid}


def classic_groups():
    for strategy in "range", "roundrobin", "cooperative-sticky":
        group_of({"partition.assignment.strategy": strategy, "session.timeout.ms": 6000, "heartbeat.interval.ms": 500})


def consumer_groups():
    group_of({"group.protocol": "consumer"})


def transactions():
    topic, source, group, identity = create(fresh("confluent")), create(fresh("confluent")), fresh("confluent"), fresh("confluent")
    consumer = Consumer({**BASE, "group.id": group})
    start = lambda: Producer({**BASE, "transactional.id": identity})
    producer = start()
    producer.init_transactions(30)
    for round_, commit in enumerate([True, False, True, False, True]):
        producer.begin_transaction()
        for i in range(10):
            producer.produce(topic, f"{round_}-{i}")
        producer.send_offsets_to_transaction([TopicPartition(source, 0, round_ + 1)], consumer.consumer_group_metadata())
        producer.flush(30)
        producer.commit_transaction(30) if commit else producer.abort_transaction(30)
    expected = [f"{r}-{i}".encode() for r in (0, 2, 4) for i in range(10)]
    equal("committed", [m.value() for m in everything(topic, "read_committed")], expected)
    equal("all", len(everything(topic)), 50)
    equal("offsets of the transactions", consumer.committed([TopicPartition(source, 0)], 20)[0].offset, 5)
    consumer.close()
    other = start()
    other.init_transactions(30)
    try:
        producer.begin_transaction()
        producer.produce(topic, "zombie")
        producer.commit_transaction(30)
        raise AssertionError("a fenced producer committed")
    except KafkaException as e:
        equal("error of a fenced producer", e.args[0].code(), KafkaError._FENCED)
    other.begin_transaction()
    other.produce(topic, "successor")
    other.commit_transaction(30)
    equal("committed after fencing", [m.value() for m in everything(topic, "read_committed")], [*expected, b"successor"])


def administration():
    topic = create(fresh("confluent"), 2, **{"retention.ms": "3600000", "cleanup.policy": "compact"})
    try:
        create(topic)
        raise AssertionError("a topic was created twice")
    except KafkaException as e:
        equal("error", e.args[0].code(), KafkaError.TOPIC_ALREADY_EXISTS)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    config = lambda: {k: v.value for k, v in admin.describe_configs([resource])[resource].result(20).items() if k in ("retention.ms", "cleanup.policy")}
    equal("config", config(), {"retention.ms": "3600000", "cleanup.policy": "compact"})
    change = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[
        ConfigEntry("retention.ms", "60000", incremental_operation=AlterConfigOpType.SET), ConfigEntry("cleanup.policy", "delete", incremental_operation=AlterConfigOpType.APPEND)])
    admin.incremental_alter_configs([change])[change].result(20)
    equal("altered config", config(), {"retention.ms": "60000", "cleanup.policy": "compact,delete"})
    admin.create_partitions([NewPartitions(topic, 5)])[topic].result(20)
    equal("partitions after growing", len(admin.list_topics(topic, timeout=20).topics[topic].partitions), 5)
    producer = Producer(BASE)
    for i in range(10):
        producer.produce(topic, str(i), key="k", partition=0)
    producer.flush(20)
    [low] = admin.delete_records([TopicPartition(topic, 0, 7)]).values()
    equal("first offset after a deletion", low.result(20).low_watermark, 7)
    equal("records after a deletion", [m.offset() for m in everything(topic)], [7, 8, 9])
    admin.delete_topics([topic])[topic].result(20)
    assert topic not in admin.list_topics(timeout=20).topics
    try:
        admin.delete_topics([topic])[topic].result(20)
        raise AssertionError("a topic was deleted twice")
    except KafkaException as e:
        equal("error", e.args[0].code(), KafkaError.UNKNOWN_TOPIC_OR_PART)


def broker_killed():
    """An idempotent producer goes on over a kill -9 of the broker: every record once, in order."""
    topic, offsets = create(fresh("confluent")), []
    producer = Producer({**BASE, "enable.idempotence": True, "retry.backoff.ms": 50})
    for i in range(3000):
        if i == 1000:
            kill_broker()
        producer.produce(topic, str(i), on_delivery=lambda e, m: offsets.append(e or m.offset()))
        producer.poll(0)
        if i % 20 == 0:
            time.sleep(0.005)
    equal("records left", producer.flush(60), 0)
    equal("offsets", offsets, list(range(3000)))
    equal("records", [int(m.value()) for m in everything(topic)], list(range(3000)))


main([round_trips, classic_groups, consumer_groups, transactions, administration, broker_killed], read)
