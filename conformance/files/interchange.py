"""A data directory that is used hard goes from Caudal to Apache Kafka and back, stopped cleanly or killed.

interchange.py CAUDAL KAFKA [--trips 10] [--formatted-by caudal|kafka]

A trip is one turn of each broker. At the start of a turn the broker must show all that the one before it left: committed records and
no others, transactions left open and the offsets within them, groups of both kinds with their offsets, the last value of each key
of a compacted topic, topics with their ids and partitions, dynamic configs of topics and of the broker. Then it goes on with each of these, is stopped, and
the bytes of every segment that is not compacted must still begin with the bytes that were there before; Apache's kafka-dump-log finds
all of it valid. Of four turns two end with a kill.
"""
import argparse, os, shutil, signal, socket, subprocess, sys, tempfile, time
from pathlib import Path

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, ConsumerGroupType, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ConfigSource, NewPartitions, NewTopic

PROPERTIES = """process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=3
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=3
group.initial.rebalance.delay.ms=0
log.cleaner.backoff.ms=500
"""
# Leaves a transaction open, with records and an offset in it.
OPEN = """
import os, sys
from confluent_kafka import Consumer, Producer, TopicPartition
address, id, value = sys.argv[1:]
producer = Producer({"bootstrap.servers": address, "transactional.id": id, "transaction.timeout.ms": 600000, "log_level": 0})
producer.init_transactions(30)
producer.begin_transaction()
for n in range(4):
    producer.produce("t", f"{value} {n}", partition=n % 2)
consumer = Consumer({"bootstrap.servers": address, "group.id": "open", "log_level": 0})
producer.send_offsets_to_transaction([TopicPartition("t", 0, 424242)], consumer.consumer_group_metadata(), 30)
producer.flush(30)
os._exit(0)
"""
GROUPS = {"old": "classic", "new": "consumer"}
SMALL = {"segment.bytes": "1048576", "min.cleanable.dirty.ratio": "0.01", "cleanup.policy": "compact"}


def ports():
    with socket.socket() as a, socket.socket() as b:
        a.bind(("127.0.0.1", 0))
        b.bind(("127.0.0.1", 0))
        return a.getsockname()[1], b.getsockname()[1]


def until(what, condition, seconds=30):
    """Waits for something that a broker does in its own time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"FAIL {what}: not within {seconds} s")
        time.sleep(0.1)


class Interchange:
    def __init__(self, caudal, kafka, work):
        self.caudal, self.kafka, self.work, self.process, self.checks = os.path.abspath(caudal), Path(kafka), work, None, 0
        port, controller = ports()
        self.address, self.data = f"127.0.0.1:{port}", work / "data"
        self.file = work / "broker.properties"
        self.file.write_text(PROPERTIES.format(port=port, controller=controller, data=self.data))
        # What the next broker must find.
        self.committed, self.all, self.offset, self.left_open = [], [], -1001, False
        self.read = {group: [] for group in GROUPS}
        self.produced, self.last, self.topics, self.configs, self.bytes = [], {}, {}, {}, {}

    def tool(self, name, *args):
        return subprocess.run([self.kafka / f"bin/{name}.sh", *args], capture_output=True, text=True, timeout=120).stdout

    def format(self, who):
        tool = [self.caudal, "kafka-storage"] if who == "caudal" else [self.kafka / "bin/kafka-storage.sh"]
        cluster = subprocess.run([*tool, "random-uuid"], capture_output=True, text=True, check=True).stdout.strip()
        subprocess.run([*tool, "format", "--standalone", "-t", cluster, "-c", self.file], check=True, stdout=subprocess.DEVNULL)

    def start(self, who):
        command = [self.caudal, "broker"] if who == "caudal" else [self.kafka / "bin/kafka-server-start.sh"]
        log = open(self.work / f"{who}.log", "a")
        self.process = subprocess.Popen([*command, self.file], stdout=log, stderr=log)
        self.admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        end = time.monotonic() + 90
        while True:
            if self.process.poll() is not None or time.monotonic() > end:
                sys.exit(f"FAIL {who} does not start; see {self.work}/{who}.log")
            try:
                self.admin.list_topics(timeout=2)
                return
            except KafkaException:
                time.sleep(0.2)

    def stop(self, kill):
        if self.process:
            self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            self.process.wait()
            self.process = None

    def check(self, what, wanted, found):
        self.checks += 1
        if wanted != found:
            sys.exit(f"FAIL {what}: wanted {str(wanted)[:2000]}, found {str(found)[:2000]}; files in {self.work}")

    def producer(self, **more):
        return Producer({"bootstrap.servers": self.address, "log_level": 0, **more})

    def consumer(self, group, **more):
        return Consumer({"bootstrap.servers": self.address, "group.id": group, "enable.auto.commit": False, "log_level": 0, **more})

    def records(self, topic, isolation):
        consumer = self.consumer(f"read-{time.time()}", **{"isolation.level": isolation, "enable.partition.eof": True})
        partitions = len(self.admin.list_topics(topic).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, p, 0) for p in range(partitions)])
        found, ended, end = [], set(), time.monotonic() + 30
        while len(ended) < partitions and time.monotonic() < end:
            for m in consumer.consume(1000, 1):
                if m.error():
                    ended.add(m.partition())
                else:
                    found.append((m.key() and m.key().decode(), m.value() and m.value().decode()))
        consumer.close()
        return found

    def values(self, isolation):
        return sorted(value for _, value in self.records("t", isolation))

    def group_offsets(self, group):
        end = time.monotonic() + 30
        while True:
            found = self.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)], require_stable=True)[group].result(30)
            # An offset whose transaction is about to end comes with an error of its partition.
            if not any(p.error for p in found.topic_partitions) or time.monotonic() > end:
                return {(p.topic, p.partition): p.offset for p in found.topic_partitions if p.offset >= 0}
            time.sleep(0.1)

    def described_topics(self):
        names = sorted(n for n in self.admin.list_topics(timeout=10).topics if not n.startswith("__"))
        found = self.admin.describe_topics(TopicCollection(names))
        return {name: (str(f.result(30).topic_id), len(f.result(30).partitions)) for name, f in found.items()}

    def described_configs(self):
        dynamic = ConfigSource.DYNAMIC_TOPIC_CONFIG.value, ConfigSource.DYNAMIC_BROKER_CONFIG.value, ConfigSource.DYNAMIC_DEFAULT_BROKER_CONFIG.value
        found = self.admin.describe_configs([ConfigResource("topic", "t"), ConfigResource("topic", "keys"), ConfigResource("broker", "1")])
        return {str(resource): {k: (v.value, v.source) for k, v in sorted(f.result(30).items()) if v.source in dynamic} for resource, f in found.items()}

    def look(self, who):
        self.check(f"{who}: committed records", sorted(self.committed), self.values("read_committed"))
        self.check(f"{who}: all records", sorted(self.all), self.values("read_uncommitted"))
        described = self.tool("kafka-transactions", "--bootstrap-server", self.address, "describe", "--transactional-id", "open")
        self.check(f"{who}: the state of the open transaction", True, ("Ongoing" if self.left_open else "Empty") in described)
        hanging = self.tool("kafka-transactions", "--bootstrap-server", self.address, "find-hanging", "--broker-id", "1")
        self.check(f"{who}: nothing hangs", 1, len(hanging.strip().splitlines()))

    def look_at_all(self, who):
        self.look(who)
        self.check(f"{who}: topics, ids, partitions", self.topics, self.described_topics())
        self.check(f"{who}: dynamic configs", self.configs, self.described_configs())
        last = {}
        for key, value in self.records("keys", "read_uncommitted"):
            last[key] = value
        self.check(f"{who}: last value of each key", self.last, {k: v for k, v in last.items() if v is not None})
        kinds = {g.group_id: g.type for g in self.admin.list_consumer_groups().result(30).valid}
        for group, kind in GROUPS.items():
            self.check(f"{who}: kind of group {group}", ConsumerGroupType[kind.upper()], kinds.get(group))
            self.check(f"{who}: offsets of group {group}", len(self.read[group]), sum(self.group_offsets(group).values()))

    def transactions(self, who, turn):
        if self.left_open:
            # Its producer is dead; the next one aborts it.
            self.producer(**{"transactional.id": "open"}).init_transactions(30)
            self.left_open = False
            self.check(f"{who}: the offset was not committed", self.offset, self.group_offsets("open").get(("t", 0), -1001))
            self.look(who)
        for kind in "commit", "abort", "commit":
            producer = self.producer(**{"transactional.id": f"id-{turn % 3}"})
            producer.init_transactions(30)
            for n in range(3):
                values = [f"{who} {turn} {kind} {n} {k}" for k in range(5)]
                producer.begin_transaction()
                for k, value in enumerate(values):
                    producer.produce("t", value, partition=k % 2)
                consumer = self.consumer("open")
                producer.send_offsets_to_transaction([TopicPartition("t", 0, turn * 10 + n)], consumer.consumer_group_metadata(), 30)
                consumer.close()
                producer.flush(30)
                self.all += values
                if kind == "commit":
                    producer.commit_transaction(30)
                    self.committed += values
                    self.offset = turn * 10 + n
                else:
                    producer.abort_transaction(30)
        self.check(f"{who}: the offset committed in transactions", self.offset, self.group_offsets("open").get(("t", 0)))
        value = f"{who} {turn} open"
        subprocess.run([sys.executable, "-c", OPEN, self.address, "open", value], check=True, timeout=60)
        self.all += [f"{value} {n}" for n in range(4)]
        self.left_open = True

    def groups(self, who, turn):
        """Each group reads on where it stood: every record once, whoever served the ones before."""
        producer, values = self.producer(), [f"{turn} {n}" for n in range(60)]
        for n, value in enumerate(values):
            producer.produce("g", value, partition=n % 3)
        producer.flush(30)
        self.produced += values
        for group, protocol in GROUPS.items():
            consumer = self.consumer(group, **{"group.protocol": protocol, "auto.offset.reset": "earliest"})
            consumer.subscribe(["g"])
            wanted, found, end = len(self.produced) - len(self.read[group]), [], time.monotonic() + 60
            while len(found) < wanted and time.monotonic() < end:
                found += [m.value().decode() for m in consumer.consume(wanted, 0.5) if not m.error()]
            consumer.commit(asynchronous=False)
            consumer.close()
            self.read[group] += found
            self.check(f"{who}: what group {group} read", sorted(self.produced), sorted(self.read[group]))

    def keys(self, turn):
        """Two segments and more of 300 keys; every seventh is deleted, another in each turn."""
        producer = self.producer()
        for n in range(2400):
            key, value = f"k{n % 300}", f"{turn} {n} " + "x" * 1000
            if n >= 2100 and n % 7 == turn % 7:
                value = None
            producer.produce("keys", value, key)
            producer.poll(0)
            self.last[key] = value
        producer.flush(60)
        self.last = {k: v for k, v in self.last.items() if v is not None}

    def administer(self, turn):
        def alter(kind, name, key, value):
            entry = ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
            for f in self.admin.incremental_alter_configs([ConfigResource(kind, name, incremental_configs=[entry])]).values():
                f.result(30)

        alter("topic", "t", "max.message.bytes", str(1_000_000 + turn))
        alter("broker", "1", "log.retention.ms", str(600_000_000 + turn))
        # librdkafka has no word for the default of all brokers.
        subprocess.run([self.caudal, "kafka-configs", "--bootstrap-server", self.address, "--alter", "--entity-type", "brokers", "--entity-default",
                        "--add-config", f"message.max.bytes={2_000_000 + turn}"], check=True, stdout=subprocess.DEVNULL, timeout=60)
        for f in self.admin.create_topics([NewTopic(f"made-{turn}", 1 + turn % 3, 1)]).values():
            f.result(30)
        if turn:
            for f in self.admin.delete_topics([f"made-{turn - 1}"]).values():
                f.result(30)
        if turn % 4 == 3:
            for f in self.admin.create_partitions([NewPartitions("grows", 2 + turn // 4)]).values():
                f.result(30)
        made, gone, wanted = f"made-{turn}", f"made-{turn - 1}", 1 + (turn + 1) // 4

        def shows():
            """Kafka shows what it was told a moment later."""
            now = self.admin.list_topics(timeout=10).topics
            values = {value for found in self.described_configs().values() for value, _ in found.values()}
            told = {str(1_000_000 + turn), str(2_000_000 + turn), str(600_000_000 + turn)}
            return made in now and gone not in now and len(now["grows"].partitions) == wanted and told <= values

        until("what was changed", shows)

    def work_on(self, who, turn):
        self.transactions(who, turn)
        self.groups(who, turn)
        self.keys(turn)
        self.administer(turn)
        self.topics, self.configs = self.described_topics(), self.described_configs()

    def segments(self):
        """The bytes of all segments but those of the compacted topic, by path within the data directory."""
        return {str(f.relative_to(self.data)): f.read_bytes() for f in sorted(self.data.glob("*/*.log")) if not f.parent.name.startswith("keys-") and "-delete" not in f.parent.name}

    def look_at_files(self, who):
        now = self.segments()
        for name, before in self.bytes.items():
            if name.startswith("made-"):
                continue  # may have been deleted since
            self.check(f"{who}: the bytes that were in {name}", True, now.get(name, b"").rstrip(b"\0").startswith(before.rstrip(b"\0")))
        self.bytes = now
        files = ",".join(str(f) for f in sorted(self.data.glob("*/*.log")) if "-delete" not in f.parent.name)
        dumped = self.tool("kafka-dump-log", "--print-data-log", "--files", files)
        self.check(f"{who}: kafka-dump-log finds batches", True, "baseOffset: 0 " in dumped)
        self.check(f"{who}: kafka-dump-log finds them valid", [], [line for line in dumped.splitlines() if "isvalid: false" in line or "invalid" in line.lower() and "isvalid" not in line][:5])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("caudal")
    parser.add_argument("kafka")
    parser.add_argument("--trips", type=int, default=10)
    parser.add_argument("--formatted-by", choices=["caudal", "kafka"], default="caudal")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="caudal-interchange-"))
    change = Interchange(options.caudal, options.kafka, work)
    change.format(options.formatted_by)
    order = ["caudal", "kafka"] if options.formatted_by == "caudal" else ["kafka", "caudal"]
    try:
        for turn in range(2 * options.trips + 1):
            who = order[turn % 2]
            change.start(who)
            if turn == 0:
                new = [NewTopic("t", 2, 1), NewTopic("g", 3, 1), NewTopic("keys", 1, 1, config=SMALL), NewTopic("grows", 1, 1)]
                for f in change.admin.create_topics(new).values():
                    f.result(30)
                until("new topics", lambda: {"t", "g", "keys", "grows"} <= set(change.admin.list_topics(timeout=10).topics))
            else:
                change.look_at_all(who)
            change.work_on(who, turn)
            # Clean, clean, killed, killed, and again: each broker takes over after each kind of end.
            kill = turn % 4 >= 2
            change.stop(kill)
            change.look_at_files(who)
            print(f"  {time.strftime('%T')} turn {turn}: {who} {'killed' if kill else 'stopped'}, {change.checks} checks", file=sys.stderr, flush=True)
    finally:
        change.stop(kill=True)
    shutil.rmtree(work)
    print(f"{change.checks} passed, 0 failed")


main()
