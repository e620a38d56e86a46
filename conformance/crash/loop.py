"""Kill -9 at random moments under load: what was acknowledged stays, offsets are never reused, sinks hold each row once.

loop.py CAUDAL [--rounds 50] [--seed N] [--keep]

A broker and a streaming query (topic -> Parquet, and topic -> topic) run as processes of their own; an idempotent
producer with acks=all writes all the time. Each round kills the broker, the query or both at a random moment and starts
them again. At the end everything is read back and compared with what was acknowledged.
"""
import argparse, atexit, collections, json, os, random, re, shutil, signal, socket, subprocess, sys, tempfile, threading, time
from pathlib import Path

import pyarrow.parquet as parquet
from confluent_kafka import Consumer, Producer, TopicPartition

PARTITIONS = 3
PIPELINE = """
CREATE TABLE load USING kafka OPTIONS ('kafka.bootstrap.servers' '{address}', 'subscribe' 'load', 'startingOffsets' 'earliest');
CREATE STREAMING TABLE copy AS SELECT partition, offset, CAST(value AS STRING) AS value FROM STREAM load;
CREATE STREAMING TABLE out USING kafka OPTIONS ('kafka.bootstrap.servers' '{address}', 'topic' 'out') AS
  SELECT CAST(value AS STRING) AS key, CAST(value AS STRING) AS value FROM STREAM load;
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Processes:
    """The broker and the query, each killed and started at will."""

    def __init__(self, binary, work):
        self.binary, self.work, self.port = binary, work, free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.broker = self.query = None
        self.slowest_start_s = 0.0
        (work / "pipeline.sql").write_text(PIPELINE.format(address=self.address))

    def spawn(self, name, *args):
        log = open(self.work / f"{name}.log", "a")
        return subprocess.Popen([self.binary, *map(str, args)], cwd=self.work, stdout=log, stderr=log)

    def start_broker(self):
        start = time.monotonic()
        self.broker = self.spawn("broker", "up", "--data-dir", self.work / "data", "--port", self.port)
        while True:
            if self.broker.poll() is not None:
                sys.exit(f"crash: the broker ended by itself; see {self.work}/broker.log")
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as s:
                    s.settimeout(5)
                    s.sendall(bytes.fromhex("0000000a0012000000000007ffff"))
                    if len(s.recv(8)) == 8:
                        break
            except OSError:
                pass
            if time.monotonic() - start > 30:
                sys.exit(f"crash: the broker does not answer; see {self.work}/broker.log")
            time.sleep(0.005)
        took = time.monotonic() - start
        self.slowest_start_s = max(self.slowest_start_s, took)
        return took

    def start_query(self):
        self.query = self.spawn("query", "sql", "-f", self.work / "pipeline.sql")

    def kill(self, which):
        victims = [p for p, n in ((self.broker, "broker"), (self.query, "query")) if p and n in which]
        for p in victims:
            p.send_signal(signal.SIGKILL)
        for p in victims:
            p.wait()


class Load:
    """Writes numbered values and notes which offset each acknowledgement named."""

    def __init__(self, address):
        self.acked, self.errors, self.number, self.running = {}, [], 0, True
        self.producer = Producer({"bootstrap.servers": address, "acks": "all", "enable.idempotence": True, "linger.ms": 2,
                                  "message.timeout.ms": 120000, "retry.backoff.ms": 50, "reconnect.backoff.max.ms": 200, "log_level": 2})
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def delivered(self, error, message):
        if error:
            self.errors.append(str(error))
            return
        place = (message.partition(), message.offset())
        if place in self.acked:
            self.errors.append(f"offset {place} acknowledged twice: {self.acked[place]} and {message.value()}")
        self.acked[place] = message.value()

    def run(self):
        while self.running:
            for _ in range(20):
                self.number += 1
                self.producer.produce("load", b"%09d" % self.number, partition=self.number % PARTITIONS, on_delivery=self.delivered)
            self.producer.poll(0.01)
        if self.producer.flush(120):
            self.errors.append("the producer could not send everything within 120 s")

    def stop(self):
        self.running = False
        self.thread.join()


def read_all(address, topic, partitions):
    """{(partition, offset): value} of a whole topic."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": f"check-{topic}", "enable.auto.commit": False, "isolation.level": "read_committed"})
    found = {}
    for p in range(partitions):
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=20)
        consumer.assign([TopicPartition(topic, p, low)])
        position = low
        while position < high:
            messages = consumer.consume(5000, 10)
            if not messages:
                sys.exit(f"crash: {topic}-{p} stops at offset {position}, although its end is {high}")
            for m in messages:
                if m.error():
                    sys.exit(f"crash: reading {topic}-{p}: {m.error()}")
                found[(p, m.offset())] = m.value()
                position = m.offset() + 1
    consumer.close()
    return found


def parquet_rows(directory):
    """The rows that the sink's own log names, as Spark and Caudal read them."""
    log = directory / "_spark_metadata"
    names = {}
    entries = [p for p in log.iterdir() if re.fullmatch(r"\d+(\.compact)?", p.name)]
    for entry in sorted(entries, key=lambda p: int(p.name.split(".")[0])):
        for line in entry.read_text().splitlines()[1:]:
            item = json.loads(line)
            names[item["path"].rsplit("/", 1)[1]] = item
    rows = []
    for name in names:
        table = parquet.read_table(directory / name).to_pydict()
        rows += list(zip(table["partition"], table["offset"], table["value"]))
    return rows


def wait_for(what, done, seconds):
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return f"{what} did not finish within {seconds} s"
        time.sleep(0.2)
    return None


def check(processes, load):
    problems = list(load.errors)
    stored = read_all(processes.address, "load", PARTITIONS)
    for place, value in load.acked.items():
        if stored.get(place) != value:
            problems.append(f"acknowledged {value} at {place}, found {stored.get(place)}")
    twice = [v for v, n in collections.Counter(stored.values()).items() if n > 1]
    if twice:
        problems.append(f"{len(twice)} values stored twice, e.g. {twice[0]}")
    expected = sorted((p, o, v.decode()) for (p, o), v in stored.items())
    copy = processes.work / "spark-warehouse/copy"
    late = wait_for("the Parquet copy", lambda: len(parquet_rows(copy)) >= len(expected), 60)
    rows = sorted(parquet_rows(copy))
    if late or rows != expected:
        problems.append(f"Parquet holds {len(rows)} rows, the topic {len(expected)}; {len(rows) - len(set(rows))} twice")
    wanted = collections.Counter(stored.values())
    late = wait_for("the copied topic", lambda: len(read_all(processes.address, "out", 1)) >= len(stored), 60)
    copied = collections.Counter(read_all(processes.address, "out", 1).values())
    if late or copied != wanted:
        extra, missing = copied - wanted, wanted - copied
        problems.append(f"topic out: {sum(extra.values())} rows too many, {sum(missing.values())} missing")
    return problems, len(stored)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("caudal")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    dice = random.Random(options.seed)
    work = Path(tempfile.mkdtemp(prefix="caudal-crash-"))
    print(f"crash: seed {options.seed}, files in {work}", flush=True)
    processes = Processes(os.path.abspath(options.caudal), work)
    atexit.register(lambda: processes.kill(["broker", "query"]))
    processes.start_broker()
    for topic, partitions in ("load", PARTITIONS), ("out", 1):
        subprocess.run([processes.binary, "topic", "create", topic, "-p", str(partitions), "--server", processes.address], check=True, stdout=subprocess.DEVNULL)
    processes.start_query()
    load = Load(processes.address)
    for round in range(1, options.rounds + 1):
        time.sleep(dice.uniform(0.1, 1.5))
        which = dice.choice([["broker"], ["query"], ["broker", "query"]])
        before = len(load.acked)
        processes.kill(which)
        took = processes.start_broker() if "broker" in which else 0
        if processes.query.poll() is not None:
            processes.start_query()
        print(f"round {round}: killed {' and '.join(which)} after {before} acknowledgements; broker back in {took:.2f} s", flush=True)
    time.sleep(1)
    load.stop()
    if processes.query.poll() is not None:
        processes.start_query()
    problems, rows = check(processes, load)
    processes.kill(["broker", "query"])
    for problem in problems[:20]:
        print(f"crash: {problem}")
    print(f"crash: {options.rounds} kills, {len(load.acked)} acknowledged, {rows} stored, slowest start {processes.slowest_start_s:.2f} s")
    if processes.slowest_start_s > 1:
        problems.append("a restart took longer than a second")
    if not options.keep and not problems:
        shutil.rmtree(work)
    failed = 1 if problems else 0
    print(f"{1 - failed} passed, {failed} failed")
    return failed


def end(*_):
    sys.exit(1)


signal.signal(signal.SIGTERM, end)
sys.exit(main())
