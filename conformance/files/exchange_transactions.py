"""A data directory with transactions goes from Caudal to Apache Kafka and back, stopped cleanly or killed: each finds what was
committed and nothing else, the transactions that the other left open, and the offsets within them, and goes on.

exchange_transactions.py CAUDAL KAFKA [--changes 8]

Each turn: the transactions that the turn before left open are looked at, then one is committed by its id's next producer (which aborts
it), others run to an end, and new ones are left open by a process that dies.
"""
import argparse, os, shutil, signal, socket, subprocess, sys, tempfile, time
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

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


def ports():
    with socket.socket() as a, socket.socket() as b:
        a.bind(("127.0.0.1", 0))
        b.bind(("127.0.0.1", 0))
        return a.getsockname()[1], b.getsockname()[1]


class Exchange:
    def __init__(self, caudal, kafka, work):
        self.caudal, self.kafka, self.work, self.process = os.path.abspath(caudal), Path(kafka), work, None
        port, controller = ports()
        self.address = f"127.0.0.1:{port}"
        self.file = work / "broker.properties"
        self.file.write_text(PROPERTIES.format(port=port, controller=controller, data=work / "data"))
        self.committed, self.all, self.offset, self.left_open = [], [], -1001, None
        self.checks = 0

    def tool(self, name, *args):
        done = subprocess.run([self.kafka / f"bin/{name}.sh", "--bootstrap-server", self.address, *args], capture_output=True, text=True, timeout=60)
        return done.stdout

    def start(self, who):
        command = [self.caudal, "broker"] if who == "caudal" else [self.kafka / "bin/kafka-server-start.sh"]
        log = open(self.work / f"{who}.log", "a")
        self.process = subprocess.Popen([*command, self.file], stdout=log, stderr=log)
        end = time.monotonic() + 90
        while True:
            if self.process.poll() is not None or time.monotonic() > end:
                sys.exit(f"exchange: {who} does not start; see {self.work}/{who}.log")
            try:
                AdminClient({"bootstrap.servers": self.address, "log_level": 0}).list_topics(timeout=2)
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
            sys.exit(f"FAIL {what}: wanted {wanted}, found {found}; files in {self.work}")

    def read(self, isolation):
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": f"read-{time.time()}", "enable.auto.commit": False,
                             "isolation.level": isolation, "enable.partition.eof": True, "log_level": 0})
        consumer.assign([TopicPartition("t", p, 0) for p in range(2)])
        values, ended, end = [], set(), time.monotonic() + 30
        while len(ended) < 2 and time.monotonic() < end:
            for m in consumer.consume(1000, 1):
                if m.error():
                    ended.add(m.partition())
                else:
                    values.append(m.value().decode())
        consumer.close()
        return sorted(values)

    def group_offset(self):
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": "open", "log_level": 0})
        offset = consumer.committed([TopicPartition("t", 0)], 20)[0].offset
        consumer.close()
        return offset

    def look(self, who):
        self.check(f"{who}: committed records", sorted(self.committed), self.read("read_committed"))
        self.check(f"{who}: all records", sorted(self.all), self.read("read_uncommitted"))
        state = "Ongoing" if self.left_open else "Empty"
        described = self.tool("kafka-transactions", "describe", "--transactional-id", "open")
        self.check(f"{who}: the state of the open transaction", True, state in described)
        hanging = self.tool("kafka-transactions", "find-hanging", "--broker-id", "1")
        self.check(f"{who}: nothing hangs", 1, len(hanging.strip().splitlines()))

    def work_on(self, who, turn):
        if self.left_open:
            # Its producer is dead; the next one aborts it.
            Producer({"bootstrap.servers": self.address, "transactional.id": "open", "log_level": 0}).init_transactions(30)
            self.left_open = None
            self.check(f"{who}: the offset was not committed", self.offset, self.group_offset())
            self.look(who)
        for kind in "commit", "abort", "commit":
            producer = Producer({"bootstrap.servers": self.address, "transactional.id": f"id-{turn % 3}", "log_level": 0})
            producer.init_transactions(30)
            for n in range(3):
                values = [f"{who} {turn} {kind} {n} {k}" for k in range(5)]
                producer.begin_transaction()
                for k, value in enumerate(values):
                    producer.produce("t", value, partition=k % 2)
                consumer = Consumer({"bootstrap.servers": self.address, "group.id": "open", "log_level": 0})
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
        self.check(f"{who}: the group's offset", self.offset, self.group_offset())
        value = f"{who} {turn} open"
        subprocess.run([sys.executable, "-c", OPEN, self.address, "open", value], check=True, timeout=60)
        self.all += [f"{value} {n}" for n in range(4)]
        self.left_open = value


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("caudal")
    parser.add_argument("kafka")
    parser.add_argument("--changes", type=int, default=8)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="caudal-exchange-"))
    exchange = Exchange(options.caudal, options.kafka, work)
    cluster = subprocess.run([exchange.caudal, "kafka-storage", "random-uuid"], capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run([exchange.caudal, "kafka-storage", "format", "--standalone", "-t", cluster, "-c", exchange.file], check=True, stdout=subprocess.DEVNULL)
    try:
        for turn in range(options.changes + 1):
            who = "kafka" if turn % 2 else "caudal"
            exchange.start(who)
            if turn == 0:
                admin = AdminClient({"bootstrap.servers": exchange.address, "log_level": 0})
                admin.create_topics([NewTopic("t", 2, 1)])["t"].result(30)
                time.sleep(0.5)
            else:
                exchange.look(who)
            exchange.work_on(who, turn)
            # Clean, clean, killed, killed, and again.
            exchange.stop(kill=turn % 4 >= 2)
    finally:
        exchange.stop(kill=True)
    shutil.rmtree(work)
    print(f"{exchange.checks} passed, 0 failed")


main()
