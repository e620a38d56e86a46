"""compact.py SERVER write|read GENERATION: fills compacted topics in the same way each time, or looks for what must be left of it."""
import random, sys, time
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

server, what, generations = sys.argv[1], sys.argv[2], int(sys.argv[3])
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]


def history(generation):
    """(topic, producer, key, value) in the order of writing; value None deletes."""
    rng = random.Random(generation)
    for n in range(9000):
        key = f"key {rng.randrange(400)}"
        yield "table", n * 10 // 9000, key, None if rng.random() < 0.05 else f"{generation}.{n} " + f"{rng.getrandbits(2400):0600x}"
    # Few keys, mostly deletions; the marks go in the next generation.
    for n in range(4000):
        yield "marks", 0, f"mark {rng.randrange(1000)}", None if rng.random() < 0.7 else f"{rng.getrandbits(4800):01200x}"


def write():
    admin = AdminClient({"bootstrap.servers": server})
    topics = [("table", "86400000"), ("marks", "1")]
    if generations == 1:
        common = {"cleanup.policy": "compact", "segment.bytes": "1048576"}
        made = admin.create_topics([NewTopic(t, 1, 1, config=common | {"delete.retention.ms": ms}) for t, ms in topics])
        [future.result() for future in made.values()]
    producers = [
        Producer({"bootstrap.servers": server, "compression.type": CODECS[i % 5], "linger.ms": 20, "enable.idempotence": i % 2 == 0, "batch.num.messages": 50})
        for i in range(10)
    ]
    # Producers whose records are old are forgotten at a start, by Kafka at least.
    last, now_ms = None, time.time_ns() // 1_000_000
    for n, (topic, producer, key, value) in enumerate(history(generations)):
        if last is not None and last is not producers[producer]:
            assert last.flush(60) == 0
        last = producers[producer]
        last.produce(topic, key=key, value=value, timestamp=now_ms + n, headers=[("n", str(n)), ("n", None)])
        if n % 500 == 499:
            assert last.flush(60) == 0
    assert last.flush(60) == 0
    group = Consumer({"bootstrap.servers": server, "group.id": "readers", "enable.auto.commit": False})
    for n in range(8000):
        group.commit(offsets=[TopicPartition("table", 0, n, metadata=f"{generations}.{n} " + "m" * 100)], asynchronous=n % 100 != 99)
    group.commit(offsets=[TopicPartition("table", 0, committed(), metadata=f"generation {generations}")], asynchronous=False)
    group.close()


def committed():
    return 5000 + generations


def newest():
    wanted = {"table": {}, "marks": {}}
    for generation in range(1, generations + 1):
        for topic, _, key, value in history(generation):
            wanted[topic][key] = value
    return wanted


def read():
    consumer = Consumer({"bootstrap.servers": server, "group.id": "readers", "enable.auto.commit": False, "enable.partition.eof": True, "check.crcs": True})
    for topic, wanted in newest().items():
        consumer.assign([TopicPartition(topic, 0, 0)])
        found, last = {}, -1
        while True:
            message = consumer.poll(30)
            assert message is not None, f"{topic}: no end"
            if message.error():
                break
            assert message.offset() > last, f"{topic}: {message.offset()} after {last}"
            last = message.offset()
            assert message.headers()[0][0] == "n" and message.timestamp()[1] >= 1_700_000_000_000
            found[message.key().decode()] = message.value() and message.value().decode()
        for key, value in wanted.items():
            assert found.get(key) == value, f"{topic}: {key} is {found.get(key)!r:.40}, not {value!r:.40}"
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, 0))
        assert (low, high) == (0, generations * (9000 if topic == "table" else 4000)), (topic, low, high)
    found = consumer.committed([TopicPartition("table", 0)], timeout=30)[0]
    assert (found.offset, found.metadata) == (committed(), f"generation {generations}"), found
    consumer.close()
    print("good")


try:
    {"write": write, "read": read}[what]()
except (AssertionError, KafkaException) as error:
    sys.exit(print(f"{type(error).__name__}: {error}"))
