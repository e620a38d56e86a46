"""aiokafka against a broker; see common.py."""
import asyncio

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import ProducerFenced, TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code

from common import BOOTSTRAP, CODECS, equal, fresh, kill_broker, main


def good(response):
    """The answers of the admin client carry their errors."""
    for name, code, *_ in getattr(response, "topic_errors", None) or getattr(response, "topic_error_codes", None) or getattr(response, "topic_errors", []):
        if code:
            raise for_code(code)(name)
    return response


async def admin():
    client = AIOKafkaAdminClient(bootstrap_servers=BOOTSTRAP)
    await client.start()
    return client


async def create(name, partitions=1, **config):
    client = await admin()
    try:
        good(await client.create_topics([NewTopic(name, partitions, 1, topic_configs=config)]))
    finally:
        await client.close()
    return name


async def until(what, done, seconds=60):
    end = asyncio.get_running_loop().time() + seconds
    while not done():
        assert asyncio.get_running_loop().time() < end, f"{what}: not within {seconds} s"
        await asyncio.sleep(0.02)


async def take(consumer, n, seconds=60):
    found, end = [], asyncio.get_running_loop().time() + seconds
    while len(found) < n:
        assert asyncio.get_running_loop().time() < end, f"{len(found)} of {n} records within {seconds} s"
        for messages in (await consumer.getmany(timeout_ms=200)).values():
            found += messages
    return found


async def everything(topic, n, level="read_uncommitted"):
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=BOOTSTRAP, auto_offset_reset="earliest", isolation_level=level)
    await consumer.start()
    try:
        found = await take(consumer, n)
        ends = await consumer.end_offsets(consumer.assignment())
        for p, end in ends.items():
            while await consumer.position(p) < end:
                for messages in (await consumer.getmany(timeout_ms=200)).values():
                    found += messages
        return found
    finally:
        await consumer.stop()


async def read(topic, records):
    found = await everything(topic, len(records))
    equal(topic, [(m.key, m.value, list(m.headers), m.timestamp) for m in found], records)
    equal(f"offsets of {topic}", [m.offset for m in found], list(range(len(records))))


async def round_trips(records, prefix):
    for codec in CODECS:
        topic = await create(prefix + codec)
        producer = AIOKafkaProducer(bootstrap_servers=BOOTSTRAP, compression_type=None if codec == "none" else codec, acks="all", linger_ms=20)
        await producer.start()
        sent = [await producer.send(topic, v, k, headers=h, timestamp_ms=t) for k, v, h, t in records]
        equal("offsets", [(await f).offset for f in sent], list(range(len(records))))
        await producer.stop()
        await read(topic, records)


class Member(ConsumerRebalanceListener):
    def __init__(self, topic, group):
        self.consumer = AIOKafkaConsumer(bootstrap_servers=BOOTSTRAP, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False,
                                         session_timeout_ms=6000, heartbeat_interval_ms=500)
        self.topic, self.seen, self.assigned = topic, [], set()

    def on_partitions_revoked(self, revoked):
        self.assigned = set()

    def on_partitions_assigned(self, assigned):
        self.assigned = {p.partition for p in assigned}

    async def start(self):
        self.consumer.subscribe([self.topic], listener=self)
        await self.consumer.start()
        self.task = asyncio.create_task(self.run())
        return self

    async def run(self):
        while True:
            for messages in (await self.consumer.getmany(timeout_ms=100)).values():
                self.seen += [m.value for m in messages]

    async def stop(self, commit):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        if commit:
            await self.consumer.commit()
        await self.consumer.stop()


async def groups():
    """Two members: one joins, one leaves; nothing is missed; a third goes on where they committed."""
    topic, group = await create(fresh("aiokafka"), 4), fresh("aiokafka")
    producer = AIOKafkaProducer(bootstrap_servers=BOOTSTRAP, enable_idempotence=True)
    await producer.start()

    async def write(a, b):
        for i in range(a, b):
            await producer.send(topic, str(i).encode(), partition=i % 4)
        await producer.flush()

    expect = lambda a, b: {str(i).encode() for i in range(a, b)}
    await write(0, 100)
    first = await Member(topic, group).start()
    await until("the first member has all", lambda: first.assigned == {0, 1, 2, 3} and set(first.seen) == expect(0, 100))
    equal("records read once", len(first.seen), 100)
    await first.consumer.commit()
    second = await Member(topic, group).start()
    await until("two members share", lambda: len(first.assigned) == len(second.assigned) == 2 and not first.assigned & second.assigned)
    await write(100, 200)
    await until("two members read all", lambda: set(first.seen + second.seen) == expect(0, 200))
    equal("records read once", len(first.seen + second.seen), 200)
    await first.stop(commit=True)
    await until("the second member has all", lambda: second.assigned == {0, 1, 2, 3})
    await write(200, 240)
    await until("the second member reads all", lambda: set(first.seen + second.seen) == expect(0, 240))
    await second.stop(commit=True)
    client = await admin()
    committed = await client.list_consumer_group_offsets(group)
    equal("committed offsets", {p.partition: o.offset for p, o in committed.items()}, {p: 60 for p in range(4)})
    await write(240, 250)
    third = await Member(topic, group).start()
    await until("the third member goes on", lambda: set(third.seen) == expect(240, 250))
    await third.stop(commit=False)
    equal("records read by the third", len(third.seen), 10)
    assert (group, "consumer") in [tuple(g[:2]) for g in await client.list_consumer_groups()]
    await client.close()
    await producer.stop()


async def transactions():
    topic, source, group = await create(fresh("aiokafka")), await create(fresh("aiokafka")), fresh("aiokafka")
    identity = fresh("aiokafka")
    producer = AIOKafkaProducer(bootstrap_servers=BOOTSTRAP, transactional_id=identity)
    await producer.start()
    for round_, commit in enumerate([True, False, True, False, True]):
        await producer.begin_transaction()
        for i in range(10):
            await producer.send(topic, f"{round_}-{i}".encode())
        await producer.send_offsets_to_transaction({TopicPartition(source, 0): round_ + 1}, group)
        await (producer.commit_transaction() if commit else producer.abort_transaction())
    expected = [f"{r}-{i}".encode() for r in (0, 2, 4) for i in range(10)]
    equal("committed", [m.value for m in await everything(topic, 30, "read_committed")], expected)
    equal("all", len(await everything(topic, 50)), 50)
    client = await admin()
    equal("offsets of the transactions", {p.topic: o.offset for p, o in (await client.list_consumer_group_offsets(group)).items()}, {source: 5})
    await client.close()
    other = AIOKafkaProducer(bootstrap_servers=BOOTSTRAP, transactional_id=identity)
    await other.start()
    try:
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"zombie")
        await producer.commit_transaction()
        raise AssertionError("a fenced producer committed")
    except ProducerFenced:
        pass
    await other.begin_transaction()
    await other.send(topic, b"successor")
    await other.commit_transaction()
    await other.stop()
    equal("committed after fencing", [m.value for m in await everything(topic, 31, "read_committed")], [*expected, b"successor"])
    try:
        await producer.stop()
    except ProducerFenced:
        pass


async def administration():
    client = await admin()
    topic = await create(fresh("aiokafka"), 2, **{"retention.ms": "3600000", "cleanup.policy": "compact"})
    try:
        await create(topic)
        raise AssertionError("a topic was created twice")
    except TopicAlreadyExistsError:
        pass
    assert topic in await client.list_topics()
    [described] = await client.describe_topics([topic])
    equal("partitions", sorted(p["partition"] for p in described["partitions"]), [0, 1])
    resource = ConfigResource(ConfigResourceType.TOPIC, topic)
    [answer] = await client.describe_configs([resource])
    config = {entry[0]: entry[1] for entry in answer.resources[0][4]}
    equal("config", (config["retention.ms"], config["cleanup.policy"]), ("3600000", "compact"))
    await client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"retention.ms": "60000"})])
    [answer] = await client.describe_configs([resource])
    config = {entry[0]: entry[1] for entry in answer.resources[0][4]}
    # The old call sets all of a topic's configs.
    equal("altered config", (config["retention.ms"], config["cleanup.policy"]), ("60000", "delete"))
    await client.create_partitions({topic: NewPartitions(5)})
    [described] = await client.describe_topics([topic])
    equal("partitions after growing", len(described["partitions"]), 5)
    producer = AIOKafkaProducer(bootstrap_servers=BOOTSTRAP)
    await producer.start()
    for i in range(10):
        await producer.send_and_wait(topic, str(i).encode(), partition=0)
    await producer.stop()
    await client.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=7)})
    equal("records after a deletion", [m.offset for m in await everything(topic, 3)], [7, 8, 9])
    good(await client.delete_topics([topic]))
    assert topic not in await client.list_topics()
    try:
        good(await client.delete_topics([topic]))
        raise AssertionError("a topic was deleted twice")
    except UnknownTopicOrPartitionError:
        pass
    await client.close()


async def broker_killed():
    """An idempotent producer goes on over a kill -9 of the broker: every record once, in order."""
    topic = await create(fresh("aiokafka"))
    producer = AIOKafkaProducer(bootstrap_servers=BOOTSTRAP, enable_idempotence=True, retry_backoff_ms=50, request_timeout_ms=60000)
    await producer.start()
    sent = []
    for i in range(3000):
        if i == 1000:
            kill_broker()
        sent.append(await producer.send(topic, str(i).encode()))
        if i % 20 == 0:
            await asyncio.sleep(0.005)
    equal("offsets", [(await f).offset for f in sent], list(range(3000)))
    await producer.stop()
    equal("records", [int(m.value) for m in await everything(topic, 3000)], list(range(3000)))


main([round_trips, groups, transactions, administration, broker_killed], read)
