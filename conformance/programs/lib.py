"""What the programs of this directory need: brokers that can be killed, programs that can be killed, and what is on a topic."""
import os, re, shutil, signal, socket, subprocess, time, uuid
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

HERE = Path(__file__).resolve().parent
PEERS = Path(os.environ.get("PEERS_DIR", Path.home() / ".cache/caudal-peers"))
KAFKA = PEERS / "kafka"
BUILT = PEERS / "programs"  # what is compiled or installed once


class Skip(Exception):
    """A peer that cannot be had here."""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(what, done, seconds=60):
    """The first true result of `done`."""
    end = time.monotonic() + seconds
    while True:
        found = done()
        if found:
            return found
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.05)


def equal(what, found, expected):
    if found != expected:
        both = f"found {str(found)[:1500]}\nexpected {str(expected)[:1500]}"
        if isinstance(found, dict) and isinstance(expected, dict):
            for key in [*expected, *found]:
                equal(f"{what}, {key}", found.get(key), expected.get(key))
        if isinstance(found, list) and isinstance(expected, list):
            at = next((i for i, (a, b) in enumerate(zip(found, expected)) if a != b), min(len(found), len(expected)))
            both = f"{len(found)} and {len(expected)} items, different from item {at}: found {str(found[at:at + 5])[:700]}, expected {str(expected[at:at + 5])[:700]}"
        raise AssertionError(f"{what}: {both}")


class Process:
    """A program whose output goes to a file."""

    def __init__(self, argv, log, **options):
        self.log = Path(log)
        with open(self.log, "a") as out:
            self.process = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, **options)

    def running(self):
        return self.process.poll() is None

    def check(self):
        assert self.running(), f"ended with status {self.process.returncode}:\n{self.tail()}"

    def tail(self, n=40):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-n:])

    def kill(self):
        """kill -9, with what it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def stop(self, seconds=60):
        """Asks it to end, as a user does with Ctrl-C or an init system does; the exit status."""
        if self.running():
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not stop within {seconds} s:\n{self.tail()}")


class Broker:
    """Caudal, or Apache Kafka if the binary is `kafka`; `settings` go beyond what each has as defaults for one node."""

    def __init__(self, binary, work, **settings):
        self.binary, self.work, self.port, self.process = binary, Path(work), free_port(), None
        self.address = f"127.0.0.1:{self.port}"
        self.admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0, "reconnect.backoff.max.ms": 200, "metadata.recovery.strategy": "none"})
        # Some records are years old, and whoever is built first may take longer than the next look for such.
        self.settings = {"log.retention.ms": -1, **{k.replace("_", "."): v for k, v in settings.items()}}
        if binary == "kafka":
            self.file = self.work / "server.properties"
            control = free_port()
            lines = {"process.roles": "broker,controller", "node.id": 1, "controller.quorum.voters": f"1@127.0.0.1:{control}",
                     "listeners": f"PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{control}", "controller.listener.names": "CONTROLLER",
                     "log.dirs": self.work / "data", "offsets.topic.replication.factor": 1, "transaction.state.log.replication.factor": 1,
                     "transaction.state.log.min.isr": 1, "share.coordinator.state.topic.replication.factor": 1,
                     "share.coordinator.state.topic.min.isr": 1, **self.settings}
            self.file.write_text("".join(f"{k}={v}\n" for k, v in lines.items()))
            run = lambda *a: subprocess.run([KAFKA / "bin/kafka-storage.sh", *a], check=True, capture_output=True, text=True).stdout
            run("format", "-t", run("random-uuid").split()[-1], "-c", self.file)

    def start(self):
        if self.binary == "kafka":
            argv, env = [KAFKA / "bin/kafka-server-start.sh", self.file], {"KAFKA_HEAP_OPTS": "-Xms512m -Xmx512m"}
        else:
            sets = [a for k, v in self.settings.items() for a in ("--set", f"{k}={v}")]
            argv, env = [self.binary, "up", "--data-dir", self.work / "data", "--port", self.port, *sets], {}
        self.process = Process(argv, self.work / "broker.log", env={**os.environ, **env})
        until("the broker answers", self.answers, 240)

    def answers(self):
        self.process.check()
        try:
            return self.admin.list_topics(timeout=2)
        except KafkaException:
            return None

    def kill(self):
        self.process.kill()

    def restart_killed(self):
        self.kill()
        self.start()

    def stop(self):
        if self.process:
            status = self.process.stop()
            assert status in (0, 143), f"the broker ended with status {status}:\n{self.process.tail()}"

    def create(self, name, partitions=1, **config):
        config = {k.replace("_", "."): str(v) for k, v in config.items()}
        self.admin.create_topics([NewTopic(name, partitions, 1, config=config)])[name].result(20)

    def topics(self):
        return {name: len(t.partitions) for name, t in self.admin.list_topics(timeout=20).topics.items()}

    def configs(self, topic):
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        found = self.admin.describe_configs([resource])[resource].result(20)
        return {k: v.value for k, v in found.items()}

    def produce(self, topic, records):
        """Records: (key, value) or (key, value, timestamp) or (key, value, timestamp, partition)."""
        errors = []
        producer = Producer({"bootstrap.servers": self.address, "enable.idempotence": True, "linger.ms": 5, "partitioner": "murmur2_random", "log_level": 0})
        for key, value, *rest in records:
            extra = {k: v for k, v in zip(("timestamp", "partition"), rest)}
            producer.produce(topic, value, key, on_delivery=lambda e, _: errors.append(e) if e else None, **extra)
            producer.poll(0)
        assert producer.flush(60) == 0 and not errors, errors[:3]

    def read(self, topic, committed=True):
        """All of a topic up to its end now, by partition and in order: (key, value), and the offsets must rise."""
        level = "read_committed" if committed else "read_uncommitted"
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": f"read-{uuid.uuid4()}", "enable.auto.commit": False,
                             "enable.partition.eof": True, "isolation.level": level, "check.crcs": True, "log_level": 0})
        try:
            partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
            consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
            found, last, open_, end = {p: [] for p in partitions}, {}, set(partitions), time.monotonic() + 60
            while open_:
                assert time.monotonic() < end, f"{topic}: no end of partitions {open_} within 60 s"
                for m in consumer.consume(1000, 0.5):
                    if m.error():
                        assert m.error().name() == "_PARTITION_EOF", m.error()
                        open_.discard(m.partition())
                        continue
                    assert m.offset() > last.get(m.partition(), -1), f"{topic}: offset {m.offset()} after {last[m.partition()]}"
                    last[m.partition()] = m.offset()
                    found[m.partition()].append((m.key(), m.value()))
            return found
        finally:
            consumer.close()

    def read_all(self, topic, committed=True):
        return [r for records in self.read(topic, committed).values() for r in records]


def java(main, *args, heap="256m", classes=None, options=()):
    if not (KAFKA / "libs/.done").exists():
        raise Skip("no Apache Kafka")
    path = f"{KAFKA}/libs/*" + (f":{classes}" if classes else "")
    config = HERE / "java/log4j2.yaml"
    return ["java", f"-Xmx{heap}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", f"-Dlog4j2.configurationFile={config}", *options, "-cp", path, main, *args]


def compiled(source):
    """The directory with the classes of a Java source file."""
    if not (KAFKA / "libs/.done").exists() or not shutil.which("javac"):
        raise Skip("no Apache Kafka or no javac")
    classes = BUILT / "java"
    target = classes / f"{Path(source).stem}.class"
    if not target.exists() or target.stat().st_mtime < Path(source).stat().st_mtime:
        classes.mkdir(parents=True, exist_ok=True)
        subprocess.run(["javac", "-nowarn", "-cp", f"{KAFKA}/libs/*", "-d", classes, source], check=True)
    return classes


def properties(path, values):
    Path(path).write_text("".join(f"{k}={v}\n" for k, v in values.items()))
    return path
