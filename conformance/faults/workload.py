"""The clients that go on while the broker suffers, and what they write down of it. See checker.py for the history's form."""
import itertools, json, logging, random, signal, subprocess, sys, threading, time

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

QUIET = {"log_level": 0, "retry.backoff.ms": 20, "reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 100, "socket.timeout.ms": 10000}
# librdkafka tells at length what the faults do to it.
SILENT = logging.getLogger("clients")
SILENT.addHandler(logging.NullHandler())
SILENT.propagate = False
# The record never left this machine. Whatever a broker answers may be about a repetition of what it took before.
REFUSED = {KafkaError._PURGE_QUEUE, KafkaError._QUEUE_FULL}
# Of each internal topic.
COORDINATOR_PARTITIONS = 4
POSITION_GONE = {KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION}


def coordinator_log(topic, name, partitions):
    """The partition in which the state of a group or a transactional id is kept, as Kafka chooses it."""
    number = 0
    for letter in name:
        number = (31 * number + ord(letter)) & 0xFFFFFFFF
    return f"{topic}-{(number & 0x7FFFFFFF) % partitions}"


class Recorder:
    """The history: a file of JSON lines, and the values, each of which is used once."""

    def __init__(self, path):
        self.file, self.lock, self.values, self.ops = open(path, "w"), threading.Lock(), itertools.count(1), itertools.count(1)
        self.acked = self.committed = 0

    def write(self, **event):
        with self.lock:
            event.setdefault("time", time.monotonic())
            self.file.write(json.dumps(event, separators=(",", ":")) + "\n")

    def close(self):
        with self.lock:
            self.file.close()


class Client(threading.Thread):
    """Goes on until it is told to end; `error` tells why it ended otherwise."""

    def __init__(self, name, address, recorder, seed):
        super().__init__(name=name, daemon=True)
        self.address, self.recorder, self.dice = address, recorder, random.Random(f"{seed} {name}")
        self.going, self.error = True, None

    def run(self):
        try:
            self.work()
        except Exception as e:
            self.error = f"{self.name}: {e!r}"

    def stop(self):
        self.going = False

    def settings(self, **more):
        return {"bootstrap.servers": self.address, **QUIET, **{key.replace("_", "."): value for key, value in more.items()}}


class Plain(Client):
    """An idempotent producer without transactions."""

    def __init__(self, name, address, recorder, seed, keys):
        super().__init__(name, address, recorder, seed)
        self.keys, self.open = keys, 0

    def work(self):
        producer = None
        while self.going:
            producer = producer or Producer(self.settings(enable_idempotence=True, acks="all", linger_ms=self.dice.choice([0, 2, 5]), message_timeout_ms=20000), logger=SILENT)
            for _ in range(self.dice.randint(1, 8)):
                self.send(producer)
            producer.poll(0)
            time.sleep(self.dice.choice([0.001, 0.02, 0.05, 0.1]))
            if self.broken:
                producer.flush(25)
                producer = None
        if producer:
            producer.flush(25)

    broken = False

    def send(self, producer):
        topic, partition = key = self.dice.choice(self.keys)
        value, op, key = next(self.recorder.values), next(self.recorder.ops), f"{topic}-{partition}"
        self.recorder.write(process=self.name, type="invoke", f="send", op=op, value=[key, value])

        def delivered(error, message):
            if error:
                kind = "fail" if error.code() in REFUSED else "info"
                self.recorder.write(process=self.name, type=kind, f="send", op=op, value=[key, value], error=error.name())
            else:
                self.recorder.acked += 1
                self.recorder.write(process=self.name, type="ok", f="send", op=op, value=[key, [message.offset(), value]])

        try:
            producer.produce(topic, b"%d" % value, partition=partition, on_delivery=delivered)
            self.broken = False
        except (KafkaException, BufferError) as e:
            # It was not even queued.
            self.recorder.write(process=self.name, type="fail", f="send", op=op, value=[key, value], error=repr(e))
            self.broken = not isinstance(e, BufferError)


class Reading:
    """Polls a consumer and writes down what came."""

    def __init__(self, client, isolation, name=None):
        self.client, self.isolation, self.name = client, isolation, name or client.name

    def poll(self, consumer, count, seconds):
        """What was read, as {key: [[offset, value], ...]}."""
        began, found = time.monotonic(), {}
        for message in consumer.consume(count, seconds):
            key = f"{message.topic()}-{message.partition()}"
            if message.error() is None:
                found.setdefault(key, []).append([message.offset(), int(message.value())])
            elif message.error().code() in POSITION_GONE:
                self.client.recorder.write(process=self.name, type="fail", f="lost", value=f"{key}: {message.error().str()}")
        self.began = began
        return found

    def record(self, found):
        if found:
            self.client.recorder.write(process=self.name, type="ok", f="poll", isolation=self.isolation, began=self.began, value=found)


def assign(client, consumer, keys, positions):
    consumer.assign([TopicPartition(topic, partition, positions.get((topic, partition), 0)) for topic, partition in keys])
    client.recorder.write(process=client.name, type="ok", f="assign", value={f"{t}-{p}": positions.get((t, p), 0) for t, p in keys})


class Reader(Client):
    """Reads partitions from wherever it is, with a new consumer now and then, at times from further back."""

    def __init__(self, name, address, recorder, seed, keys, isolation):
        super().__init__(name, address, recorder, seed)
        self.keys, self.isolation = keys, isolation

    def work(self):
        positions, reading = {}, Reading(self, self.isolation)
        while self.going:
            consumer = Consumer(self.settings(group_id=self.name, isolation_level=self.isolation, auto_offset_reset="error", enable_auto_commit=False, fetch_wait_max_ms=self.dice.choice([10, 100, 500])), logger=SILENT)
            for key in self.keys:
                if self.dice.random() < 0.3:
                    positions[key] = self.dice.randint(0, positions.get(key, 0))
            assign(self, consumer, self.keys, positions)
            end = time.monotonic() + self.dice.uniform(3, 20)
            while self.going and time.monotonic() < end:
                found = reading.poll(consumer, 500, 0.2)
                reading.record(found)
                for key, records in found.items():
                    topic, partition = key.rsplit("-", 1)
                    positions[topic, int(partition)] = records[-1][0] + 1
            consumer.close()


class Member(Client):
    """A member of a group, with short sessions; commits what it read."""

    def __init__(self, name, address, recorder, seed, group, topic, protocol):
        super().__init__(name, address, recorder, seed)
        self.group, self.topic, self.protocol = group, topic, protocol

    def consumer(self):
        if self.protocol == "consumer":
            more = {"group_protocol": "consumer"}
        else:
            more = {"session_timeout_ms": self.dice.choice([1000, 2000, 6000]), "heartbeat_interval_ms": 300, "partition_assignment_strategy": "cooperative-sticky"}
        consumer = Consumer(self.settings(group_id=self.group, isolation_level="read_committed", auto_offset_reset="earliest", enable_auto_commit=False, **more), logger=SILENT)
        anew = lambda *_: self.recorder.write(process=self.name, type="ok", f="assign", value=None)
        consumer.subscribe([self.topic], on_assign=anew, on_revoke=anew, on_lost=anew)
        return consumer

    def work(self):
        reading = Reading(self, "read_committed")
        while self.going:
            consumer = self.consumer()
            self.recorder.write(process=self.name, type="ok", f="assign", value=None)
            end = time.monotonic() + self.dice.uniform(5, 30)
            while self.going and time.monotonic() < end:
                found = reading.poll(consumer, 200, 0.3)
                reading.record(found)
                if found and self.dice.random() < 0.5:
                    self.commit(consumer, {key: records[-1][0] + 1 for key, records in found.items()})
            consumer.close()

    def commit(self, consumer, offsets):
        places = [TopicPartition(key.rsplit("-", 1)[0], int(key.rsplit("-", 1)[1]), offset) for key, offset in offsets.items()]
        began = time.monotonic()
        try:
            done = consumer.commit(offsets=places, asynchronous=False)
        except KafkaException:
            return
        committed = {f"{p.topic}-{p.partition}": p.offset for p in done if p.error is None and p.offset >= 0}
        log = coordinator_log("__consumer_offsets", self.group, COORDINATOR_PARTITIONS)
        if committed:
            self.recorder.write(process=self.name, type="ok", f="commit", group=self.group, began=began, log=log, value=committed)


# librdkafka 2.16.0 ends the process where AddPartitionsToTxn fails on its way after the transaction was over: by then its count is 0.
ASSERTION = "rd_kafka_txn_handle_AddPartitionsToTxn: Assertion `rk->rk_eos.txn_req_cnt > 0' failed"


class Apart(Client):
    """A Transactor in a process of its own, and another one where librdkafka ended it."""
    PROGRAM = [sys.executable, __file__]

    def __init__(self, name, address, recorder, seed, keys):
        super().__init__(name, address, recorder, seed)
        self.seed, self.keys, self.deaths, self.process = seed, keys, 0, None

    def stop(self):
        super().stop()
        if self.process:
            self.process.stdin.close()

    def work(self):
        while self.going:
            # Its values are nobody else's.
            first = (int(self.name.rsplit("-", 1)[1]) + 1) * 10**9 + self.deaths * 10**6
            seed = f"{self.seed} {self.deaths}" if self.deaths else str(self.seed)
            arguments = [self.name, self.address, seed, str(first), json.dumps(self.keys)]
            self.process = subprocess.Popen([*self.PROGRAM, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            if not self.going:
                self.process.stdin.close()
            said = []
            listener = threading.Thread(target=lambda: said.extend(self.process.stderr), daemon=True)
            listener.start()
            pending = self.relay(self.process.stdout)
            status = self.process.wait()
            listener.join()
            if status == 0:
                return
            if status != -signal.SIGABRT or ASSERTION not in "".join(said):
                raise RuntimeError(f"it ended with status {status}: {''.join(said)[-500:]}")
            self.deaths += 1
            if pending:
                kind = "fail" if pending["committing"] is None else "info"
                self.recorder.write(**{**pending, "type": kind, "time": time.monotonic()})

    def relay(self, lines):
        """Records what the process says; returns the transaction it was in when it ended."""
        pending = None
        for line in lines:
            event = json.loads(line)
            if event["type"] == "begun":
                pending = event
                continue
            if event["f"] == "txn":
                pending = None
                self.recorder.committed += event["type"] == "ok"
            self.recorder.write(**event)
        return pending


class Teller:
    """The Recorder of a process apart: tells its parent."""

    def __init__(self, first):
        self.values, self.committed = itertools.count(first), 0

    def write(self, **event):
        print(json.dumps({"time": time.monotonic(), **event}), flush=True)


class Transactor(Client):
    """Transactions that append to several partitions and read from them, committed, aborted, or left to time out."""

    def __init__(self, name, address, recorder, seed, keys):
        super().__init__(name, address, recorder, seed)
        self.keys = keys

    def work(self):
        producer, consumer, positions, renew = None, None, {}, 0
        while self.going:
            if producer is None:
                producer, self.timeout_s = self.begin()
            if consumer is None or time.monotonic() > renew:
                if consumer:
                    consumer.close()
                consumer = Consumer(self.settings(group_id=self.name, isolation_level="read_committed", auto_offset_reset="error", enable_auto_commit=False, fetch_wait_max_ms=20), logger=SILENT)
                assign(self, consumer, self.keys, positions)
                renew = time.monotonic() + self.dice.uniform(10, 40)
            producer = self.transaction(producer, consumer, positions)

    def begin(self):
        """A producer whose id is its own, the one before it fenced."""
        while self.going:
            timeout_ms = self.dice.choice([1500, 3000, 8000])
            limits = dict(transaction_timeout_ms=timeout_ms, message_timeout_ms=timeout_ms, socket_timeout_ms=timeout_ms)
            producer = Producer(self.settings(transactional_id=self.name, linger_ms=self.dice.choice([0, 5]), **limits), logger=SILENT)
            try:
                producer.init_transactions(15)
                return producer, timeout_ms / 1000
            except KafkaException:
                time.sleep(0.05)
        return None, 0

    def transaction(self, producer, consumer, positions):
        """The producer, or None when another is needed."""
        if producer is None:
            return None
        steps, reading = [], Reading(self, "read_committed")
        plan = {"began": time.monotonic(), "committing": None}
        try:
            kind, again = self.steps(producer, consumer, reading, positions, steps, plan)
        except KafkaException:
            # Its commit was not asked for, or the answer is unknown.
            kind, again = "info" if plan["committing"] else "fail", False
        self.tell(kind, plan, steps)
        return producer if again else None

    def tell(self, kind, plan, steps):
        """`begun`: what becomes of it is not known yet, but this much of it is under way."""
        value = [["send", step[1], [step[2][0], step[2][1]]] if step[0] == "send" else step for step in steps]
        log = coordinator_log("__transaction_state", self.name, COORDINATOR_PARTITIONS)
        self.recorder.write(process=self.name, type=kind, f="txn", log=log, value=value, **plan)

    def steps(self, producer, consumer, reading, positions, steps, plan):
        producer.begin_transaction()
        for _ in range(self.dice.randint(1, 5)):
            if self.dice.random() < 0.3:
                found = reading.poll(consumer, 100, self.dice.choice([0.01, 0.1]))
                for key, records in found.items():
                    topic, partition = key.rsplit("-", 1)
                    positions[topic, int(partition)] = records[-1][0] + 1
                if found:
                    steps.append(["poll", found])
            else:
                self.append(producer, steps, plan)
        fate = self.dice.random()
        if fate < 0.04:
            # A zombie: its successor has the same id.
            return "fail", False
        if fate < 0.06:
            time.sleep(self.timeout_s + 1)
        if fate < 0.3:
            if self.dice.random() < 0.5:
                producer.flush(1)
            return self.abort(producer, steps)
        return self.commit(producer, plan, steps)

    def abort(self, producer, steps):
        """Another producer follows if a record's answer was out: librdkafka 2.16.0 gives its sequence number to the next record, which the
        broker, Apache Kafka's too, then takes for the old one again. Acknowledged and committed it would be nowhere."""
        producer.abort_transaction(15)
        return "fail", all(step[0] != "send" or step[2][0] is not None for step in steps)

    def append(self, producer, steps, plan):
        topic, partition = self.dice.choice(self.keys)
        step = ["send", f"{topic}-{partition}", [None, next(self.recorder.values)]]

        def delivered(error, message):
            if error is None:
                step[2][0] = message.offset()

        self.tell("begun", plan, [*steps, step])
        producer.produce(topic, b"%d" % step[2][1], partition=partition, on_delivery=delivered)
        steps.append(step)
        producer.poll(0)

    def commit(self, producer, plan, steps):
        plan["committing"] = time.monotonic()
        self.tell("begun", plan, steps)
        for _ in range(8):
            try:
                producer.commit_transaction(4)
                return "ok", True
            except KafkaException as e:
                error = e.args[0]
                if error.txn_requires_abort():
                    # What was refused here was not committed either.
                    return self.abort(producer, steps)
                if not error.retriable():
                    return "info", False
        return "info", False


# Runs in a process of its own, to be killed. Without `metadata.recovery.strategy=none` librdkafka 2.16.0 may hang in
# send_offsets_to_transaction when its only broker was away; see ../crash/transactions.py.
COPIER = """
import sys
from confluent_kafka import Consumer, Producer, KafkaException
address, source, target = sys.argv[1:]
quiet = {"log_level": 0, "retry.backoff.ms": 20, "reconnect.backoff.max.ms": 100}
while True:
    consumer = Consumer({"bootstrap.servers": address, "group.id": "copier", "auto.offset.reset": "earliest", "enable.auto.commit": False,
                         "isolation.level": "read_committed", "session.timeout.ms": 3000, "heartbeat.interval.ms": 500, **quiet})
    consumer.subscribe([source])
    producer = Producer({"bootstrap.servers": address, "transactional.id": "copier", "transaction.timeout.ms": 4000,
                         "metadata.recovery.strategy": "none", **quiet})
    try:
        producer.init_transactions(15)
        while True:
            messages = [m for m in consumer.consume(200, 0.2) if not m.error()]
            if not messages:
                continue
            producer.begin_transaction()
            for m in messages:
                producer.produce(target, m.value(), partition=m.partition())
            producer.send_offsets_to_transaction(consumer.position(consumer.assignment()), consumer.consumer_group_metadata(), 15)
            producer.commit_transaction(15)
    except KafkaException:
        try:
            consumer.close()
        except Exception:
            pass
"""


def read_all(address, keys, isolation, seconds=90):
    """{key: [[offset, value], ...]} of everything that is there; None when the end did not come in time."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": "the-end", "enable.auto.commit": False, "isolation.level": isolation,
                         "enable.partition.eof": True, "auto.offset.reset": "error", **QUIET}, logger=SILENT)
    consumer.assign([TopicPartition(topic, partition, 0) for topic, partition in keys])
    found, ended, end = {f"{t}-{p}": [] for t, p in keys}, set(), time.monotonic() + seconds
    while len(ended) < len(keys) and time.monotonic() < end:
        for m in consumer.consume(5000, 1):
            if not m.error():
                found[f"{m.topic()}-{m.partition()}"].append([m.offset(), int(m.value())])
            elif m.error().code() == KafkaError._PARTITION_EOF:
                ended.add((m.topic(), m.partition()))
    consumer.close()
    return found if len(ended) == len(keys) else None


def transactor(name, address, seed, first, keys):
    """The process of an Apart; ends when its standard input does."""
    client = Transactor(name, address, Teller(int(first)), seed, [tuple(key) for key in json.loads(keys)])
    client.start()
    sys.stdin.read()
    client.stop()
    client.join()
    if client.error:
        sys.exit(client.error)


if __name__ == "__main__":
    transactor(*sys.argv[1:])
