"""Kill -9 under transactions: what a consumer of committed records reads is exactly what was committed, once and in order.

transactions.py CAUDAL [--rounds 20] [--seed N] [--keep]

Writers put numbered batches into two partitions of `load`, each batch a transaction that is committed or aborted; a copier moves
`load` to `copy` with its offsets in the same transactions. Each round kills the broker, and at times the copier, at a random
moment. At the end `load` holds every batch that was said to be committed, none that was said to be aborted, those in doubt wholly or not at all, and
`copy` the same records as `load`.
"""
import argparse, atexit, collections, os, random, shutil, signal, socket, subprocess, sys, tempfile, threading, time
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

WRITERS = 2
PER_BATCH = 6
QUIET = {"log_level": 0, "retry.backoff.ms": 50, "reconnect.backoff.max.ms": 200}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Broker:
    def __init__(self, binary, work):
        self.binary, self.work, self.port, self.process = binary, work, free_port(), None
        self.address = f"127.0.0.1:{self.port}"

    def start(self):
        log = open(self.work / "broker.log", "a")
        self.process = subprocess.Popen([self.binary, "up", "--data-dir", self.work / "data", "--port", str(self.port),
                                         "--set", "transaction.abort.timed.out.transaction.cleanup.interval.ms=500",
                                         "--set", "group.initial.rebalance.delay.ms=0"], stdout=log, stderr=log)
        end = time.monotonic() + 30
        while True:
            if self.process.poll() is not None or time.monotonic() > end:
                sys.exit(f"transactions: the broker does not answer; see {self.work}/broker.log")
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.01)

    def kill(self):
        if self.process:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


class Writer(threading.Thread):
    """Knows of each batch whether it was committed, aborted, or is in doubt."""

    def __init__(self, address, number, dice):
        super().__init__()
        self.number, self.dice, self.outcomes, self.running, self.error = number, dice, {}, True, None
        self.settings = {"bootstrap.servers": address, "transactional.id": f"writer-{number}", "transaction.timeout.ms": 10000,
                         "message.timeout.ms": 9000, **QUIET}

    def run(self):
        try:
            producer, batch = None, 0
            while self.running:
                if producer is None:
                    producer = self.begin()
                batch += 1
                producer = self.write(producer, batch)
        except Exception as e:
            self.error = repr(e)

    def begin(self):
        while True:
            producer = Producer(self.settings)
            try:
                producer.init_transactions(20)
                return producer
            except KafkaException as e:
                if not self.running:
                    raise
                time.sleep(0.1)

    def write(self, producer, batch):
        """The producer that may go on; None: another is needed."""
        self.outcomes[batch] = "aborted"
        try:
            producer.begin_transaction()
            for n in range(PER_BATCH):
                producer.produce("load", b"%d %d %d" % (self.number, batch, n), partition=n % 2)
            if self.dice.random() < 0.3:
                producer.flush(5)
                producer.abort_transaction(20)
                return producer
            self.outcomes[batch] = "in doubt"
            for attempt in range(10):
                try:
                    producer.commit_transaction(5)
                    self.outcomes[batch] = "committed"
                    return producer
                except KafkaException as e:
                    error = e.args[0]
                    if error.txn_requires_abort():
                        self.outcomes[batch] = "aborted"
                        producer.abort_transaction(20)
                        return producer
                    if not error.retriable():
                        return None
            return None
        except KafkaException:
            return None


# Without `metadata.recovery.strategy=none` librdkafka (2.16.0) gives up its handle of a broker when no broker can be reached, but
# keeps it as the group's coordinator; send_offsets_to_transaction then waits for that handle to connect, past its timeout and
# until some other connection comes or goes (librdkafka's issues 5511 and 5456). It does so with Apache Kafka 4.3.1, too. The
# writers commit no offsets and keep the default.
COPIER = """
import sys
from confluent_kafka import Consumer, Producer, KafkaException
address = sys.argv[1]
quiet = {"log_level": 0, "retry.backoff.ms": 50, "reconnect.backoff.max.ms": 200}
while True:
    consumer = Consumer({"bootstrap.servers": address, "group.id": "copier", "auto.offset.reset": "earliest", "enable.auto.commit": False,
                         "isolation.level": "read_committed", "session.timeout.ms": 6000, **quiet})
    consumer.subscribe(["load"])
    producer = Producer({"bootstrap.servers": address, "transactional.id": "copier", "transaction.timeout.ms": 10000,
                         "metadata.recovery.strategy": "none", **quiet})
    try:
        producer.init_transactions(20)
        while True:
            messages = [m for m in consumer.consume(200, 0.2) if not m.error()]
            if not messages:
                continue
            producer.begin_transaction()
            for m in messages:
                producer.produce("copy", m.value(), partition=m.partition())
            producer.send_offsets_to_transaction(consumer.position(consumer.assignment()), consumer.consumer_group_metadata(), 20)
            producer.commit_transaction(20)
    except KafkaException as e:
        try:
            consumer.close()
        except Exception:
            pass
"""


def read_committed(address, topic):
    """The values of each partition, in order."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": f"check-{topic}", "enable.auto.commit": False,
                         "isolation.level": "read_committed", "enable.partition.eof": True, **QUIET})
    consumer.assign([TopicPartition(topic, p, 0) for p in range(2)])
    found, ended, end = {0: [], 1: []}, set(), time.monotonic() + 60
    while len(ended) < 2 and time.monotonic() < end:
        for m in consumer.consume(5000, 1):
            if not m.error():
                found[m.partition()].append(m.value())
            elif m.error().name() == "_PARTITION_EOF":
                ended.add(m.partition())
    consumer.close()
    return found


def check_load(writers, load):
    problems = []
    stored = collections.Counter(value for values in load.values() for value in values)
    twice = [value for value, n in stored.items() if n > 1]
    if twice:
        problems.append(f"{len(twice)} records twice, e.g. {twice[0]}")
    counts = collections.Counter()
    for writer in writers:
        for batch, outcome in writer.outcomes.items():
            there = sum(1 for n in range(PER_BATCH) if b"%d %d %d" % (writer.number, batch, n) in stored)
            counts[outcome] += 1
            allowed = {"committed": (PER_BATCH,), "aborted": (0,), "in doubt": (0, PER_BATCH)}[outcome]
            if there not in allowed:
                problems.append(f"batch {batch} of writer {writer.number} is {outcome}, but {there} of {PER_BATCH} records are there")
        for values in load.values():
            order = [int(v.split()[1]) for v in values if int(v.split()[0]) == writer.number]
            if order != sorted(order):
                problems.append(f"the batches of writer {writer.number} are out of order")
    return problems, counts


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("caudal")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    dice = random.Random(options.seed)
    work = Path(tempfile.mkdtemp(prefix="caudal-transactions-"))
    print(f"transactions: seed {options.seed}, files in {work}", flush=True)
    broker = Broker(os.path.abspath(options.caudal), work)
    copier = None

    def end():
        broker.kill()
        if copier:
            copier.kill()

    atexit.register(end)
    broker.start()
    for topic in "load", "copy":
        subprocess.run([broker.binary, "topic", "create", topic, "-p", "2", "--server", broker.address], check=True, stdout=subprocess.DEVNULL)

    def start_copier():
        return subprocess.Popen([sys.executable, "-c", COPIER, broker.address], stdout=subprocess.DEVNULL, stderr=open(work / "copier.log", "a"))

    copier = start_copier()
    writers = [Writer(broker.address, number, random.Random(dice.random())) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    for _ in range(options.rounds):
        time.sleep(dice.uniform(0.2, 2))
        if dice.random() < 0.3:
            copier.kill()
            copier.wait()
            copier = start_copier()
        if dice.random() < 0.8:
            broker.kill()
            time.sleep(dice.uniform(0, 0.3))
            broker.start()
    for writer in writers:
        writer.running = False
    for writer in writers:
        writer.join(120)
    # What a writer left open is aborted when its time is over.
    time.sleep(12)
    problems = [f"writer {w.number}: {w.error}" for w in writers if w.error]
    load = read_committed(broker.address, "load")
    found, counts = check_load(writers, load)
    problems += found
    limit = time.monotonic() + 60
    while (copy := read_committed(broker.address, "copy")) != load and time.monotonic() < limit:
        time.sleep(0.5)
    for p in range(2):
        if copy[p] != load[p]:
            extra, missing = collections.Counter(copy[p]) - collections.Counter(load[p]), collections.Counter(load[p]) - collections.Counter(copy[p])
            problems.append(f"copy-{p}: {sum(extra.values())} records too many, {sum(missing.values())} missing, of {len(load[p])}")
    print(f"{options.rounds} rounds: {dict(counts)}, {sum(map(len, load.values()))} records")
    for problem in problems[:20]:
        print(f"PROBLEM {problem}")
    if not problems and not options.keep:
        end()
        shutil.rmtree(work, ignore_errors=True)
    sys.exit(1 if problems else 0)


main()
