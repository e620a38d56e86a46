#!/usr/bin/env python3
"""files/dump.py CAUDAL KAFKA: our kafka-dump-log and Apache's print the same, byte for byte, over the same files.

Both brokers write a directory: all codecs, headers, nulls, times of the broker, transactions that were committed, aborted and left
open, groups of both protocols, a metadata log; Apache Kafka also share groups. Then copies of it are damaged: tails cut and
overwritten, bits flipped, indexes cut and disordered. Each set of files goes through both tools with all options that suit it.
"""
import os, re, shutil, signal, socket, struct, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

PROPERTIES = """process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
log.cleaner.backoff.ms=500
"""
caudal, kafka = os.path.abspath(sys.argv[1]), Path(sys.argv[2])
work = Path(tempfile.mkdtemp(prefix="caudal-dump-"))
os.environ.update(LC_ALL="C.UTF-8", KAFKA_JVM_PERFORMANCE_OPTS="-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto")


def ports():
    with socket.socket() as a, socket.socket() as b:
        a.bind(("127.0.0.1", 0))
        b.bind(("127.0.0.1", 0))
        return a.getsockname()[1], b.getsockname()[1]


class Broker:
    def __init__(self, who):
        self.data = work / who
        port, controller = ports()
        self.address, file = f"127.0.0.1:{port}", work / f"{who}.properties"
        file.write_text(PROPERTIES.format(port=port, controller=controller, data=self.data))
        format_ = [caudal, "kafka-storage"] if who == "caudal" else [kafka / "bin/kafka-storage.sh"]
        cluster = subprocess.check_output([caudal, "kafka-storage", "random-uuid"], text=True).strip()
        subprocess.run([*format_, "format", "--standalone", "-t", cluster, "-c", file], check=True, stdout=subprocess.DEVNULL)
        command = [caudal, "broker"] if who == "caudal" else [kafka / "bin/kafka-server-start.sh"]
        self.process = subprocess.Popen([*command, file], stdout=open(work / f"{who}.log", "w"), stderr=subprocess.STDOUT)
        end = time.monotonic() + 90
        while True:
            if self.process.poll() is not None or time.monotonic() > end:
                sys.exit(f"dump: {who} does not start; see {work}/{who}.log")
            try:
                AdminClient({"bootstrap.servers": self.address, "log_level": 0}).list_topics(timeout=2)
                return
            except KafkaException:
                time.sleep(0.2)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def producer(self, **more):
        return Producer({"bootstrap.servers": self.address, "log_level": 0, "linger.ms": 5, **{k.replace("_", "."): v for k, v in more.items()}})

    def consumer(self, group, **more):
        return Consumer({"bootstrap.servers": self.address, "group.id": group, "log_level": 0, "auto.offset.reset": "earliest",
                         "enable.auto.commit": False, **{k.replace("_", "."): v for k, v in more.items()}})

    def fill(self, shares):
        admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        topics = [NewTopic("plain", 1, 1, config={"index.interval.bytes": "200", "segment.bytes": "1048576"}),
                  NewTopic("append", 1, 1, config={"message.timestamp.type": "LogAppendTime", "index.interval.bytes": "100"}),
                  NewTopic("compacted", 1, 1, config={"cleanup.policy": "compact", "segment.bytes": "1048576", "min.cleanable.dirty.ratio": "0.01"}),
                  NewTopic("gone", 2, 1), NewTopic("transactions", 1, 1, config={"index.interval.bytes": "100"})]
        for future in admin.create_topics(topics).values():
            future.result(30)
        admin.create_partitions([NewPartitions("gone", 3)])["gone"].result(30)
        time.sleep(0.5)
        for codec in "none", "gzip", "snappy", "lz4", "zstd":
            p = self.producer(compression_type=codec, enable_idempotence=codec in ("none", "lz4"))
            for n in range(400):
                headers = [("one", b"1"), ("zwei", None), ("one", "ä".encode())] if n % 7 == 0 else []
                p.produce("plain", None if n % 5 == 0 else f"value {n} äöü ☃ " + "x" * (n % 900), None if n % 3 == 0 else f"key {n}", headers=headers, timestamp=1700000000000 + n * 17 % 5000)
                p.produce("append", f"value {n}")
                if n % 40 == 0:
                    p.flush()
            p.flush()
        p = self.producer()
        for n in range(3000):
            p.produce("plain", os.urandom(600).hex())
            p.produce("compacted", None if n % 11 == 0 else os.urandom(400).hex(), f"key {n % 50}")
        p.produce("plain", struct.pack(">i", 77), struct.pack(">q", -5))
        p.flush()
        for turn in range(6):
            p = self.producer(transactional_id=f"id {turn % 4}", transaction_timeout_ms=600000)
            p.init_transactions(30)
            p.begin_transaction()
            for n in range(5):
                p.produce("transactions", f"{turn} {n}")
            c = self.consumer("in transactions")
            p.send_offsets_to_transaction([TopicPartition("plain", 0, turn)], c.consumer_group_metadata(), 30)
            c.close()
            p.flush(30)
            if turn < 5:
                (p.abort_transaction if turn % 2 else p.commit_transaction)(30)
        for protocol in "classic", "consumer":
            more = {"partition_assignment_strategy": "cooperative-sticky"} if protocol == "classic" else {}
            consumers = [self.consumer(protocol, group_protocol=protocol, **more) for _ in range(2)]
            read, end = 0, time.monotonic() + 30
            for c in consumers:
                c.subscribe(["plain", "append"])
            while read < 100 and time.monotonic() < end:
                for c in consumers:
                    read += len([m for m in c.consume(100, 0.5) if not m.error()])
            for c in consumers:
                try:
                    c.commit(asynchronous=False)
                except KafkaException:
                    pass  # nothing was assigned to it
            consumers[0].close()
            if protocol == "classic":
                # Without this librdkafka is left to end a consumer whose rebalance nobody polls for any more: now and then that never
                # ends (rd_kafka_destroy waits for a thread that spins).
                consumers[1].close()
        if shares:
            subprocess.run([kafka / "bin/kafka-share-consumer-perf-test.sh", "--bootstrap-server", self.address, "--topic", "plain", "--num-records", "1000", "--group", "shared",
                            "--timeout", "5000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
        admin.delete_topics(["gone"])["gone"].result(30)
        time.sleep(2)
        consumers[1].close()


def damage(good, bad):
    """Copies of the topics' files with one kind of damage each; returns the directories."""
    made = []

    def copy(name, topic):
        to = bad / name
        shutil.copytree(good / topic, to)
        made.append(to)
        return to, sorted(to.glob("*.log"))[0]

    def change(file, act):
        raw = bytearray(file.read_bytes())
        file.write_bytes(bytes(act(raw) or raw))

    def set_at(raw, at, value):
        raw[at:at + len(value)] = value

    _, log = copy("cut-tail", "plain-0"); change(log, lambda r: r[:-100])
    _, log = copy("zero-tail", "append-0"); change(log, lambda r: r + bytes(4096))
    _, log = copy("random-tail", "append-0"); change(log, lambda r: r + b"\x7f" * 300)
    _, log = copy("short-tail", "append-0"); change(log, lambda r: r + b"\x01" * 16)
    _, log = copy("flipped-value", "transactions-0"); change(log, lambda r: set_at(r, 75, b"\x55"))
    _, log = copy("flipped-crc", "append-0"); change(log, lambda r: set_at(r, 17, b"\x00\x00\x00\x01"))
    _, log = copy("flipped-offset", "append-0"); change(log, lambda r: set_at(r, 0, struct.pack(">q", 1000)))
    _, log = copy("flipped-epoch", "append-0"); change(log, lambda r: set_at(r, 12, struct.pack(">i", -7)))
    for name, act in [("cut-index", lambda r: r[:-3]), ("zeros-after", lambda r: r + bytes(160)), ("wrong-offset", lambda r: set_at(r, 8, struct.pack(">i", 3))),
                      ("below-base", lambda r: r + struct.pack(">ii", -9, 0)), ("empty", lambda r: b"\0\0")]:
        _, log = copy(f"index-{name}", "append-0"); change(log.with_suffix(".index"), act)
    for name, act in [("cut", lambda r: r[:-5]), ("zeros", lambda r: r + bytes(120)), ("timestamp", lambda r: set_at(r, 0, struct.pack(">q", 5))),
                      ("offset", lambda r: set_at(r, 8, struct.pack(">i", 2))), ("order", lambda r: r + r[:12]), ("beyond", lambda r: r + struct.pack(">qi", 1 << 45, 900000))]:
        _, log = copy(f"time-{name}", "append-0"); change(log.with_suffix(".timeindex"), act)
    to, _ = copy("snapshot-crc", "transactions-0"); [change(f, lambda r: set_at(r, len(r) - 1, b"\xee")) for f in to.glob("*.snapshot")]
    to, _ = copy("snapshot-cut", "transactions-0"); [change(f, lambda r: r[:-4]) for f in to.glob("*.snapshot")]
    to, _ = copy("snapshot-version", "transactions-0"); [change(f, lambda r: set_at(r, 0, b"\0\x09")) for f in to.glob("*.snapshot")]
    to, _ = copy("aborted-cut", "transactions-0"); [change(f, lambda r: r[:-4]) for f in to.glob("*.txnindex")]
    return made


def plain(text):
    """Standard error without what only a JVM says: a stack trace beyond its sentence, why a buffer ended. The original takes the
    files that it complains about from a hash table, so they come in any order."""
    lines = []
    for line in text.splitlines():
        thrown = re.match(r"Exception in thread \S+ ([\w.$]+)(?:: (.*))?", line)
        if not line.startswith(("\tat ", "\t... ", "Caused by:", "SLF4J")) and not re.match(r"\[?\d{4}-", line):
            lines.append(("THROWN " + (thrown[2] or "")) if thrown else re.sub("(schema validation: ).*", r"\1", line))
    blocks = re.split(r"\n(?! |Indexed)", "\n".join(lines))
    return sorted(blocks)


def run(command, prefix):
    """Status, output and errors, without the prefix of copied files."""
    p = subprocess.run(command, capture_output=True, timeout=300)
    return p.returncode, p.stdout.replace(prefix.encode(), b""), plain(p.stderr.decode(errors="replace").replace(prefix, ""))


def copied(files, to):
    """Whole paths below another directory: segments lie beside their indexes, and the tools name what they read."""
    for directory in {file.parent for file in files}:
        shutil.copytree(directory, to + str(directory), dirs_exist_ok=True)
    return [to + str(file) for file in files]


def compare(name, options, files):
    if not files:
        return name, f"no files for {options}"
    # The original cuts an index that it opened; nobody else may see that.
    with tempfile.TemporaryDirectory(dir=work) as own:
        theirs = run([kafka / "bin/kafka-dump-log.sh", *options, "--files", ",".join(copied(files, own))], own)
    ours = run([caudal, "kafka-dump-log", *options, "--files", ",".join(map(str, files))], own)
    if theirs == ours:
        return name, None
    # Where the original dies of an exception the sentence is ours, the rest is not.
    if theirs[:2] == ours[:2] and theirs[2][0].startswith("THROWN ") and len(ours[2]) == 1:
        return name, None
    (work / "theirs.out").write_bytes(theirs[1])
    (work / "ours.out").write_bytes(ours[1])
    for a, b in zip(theirs[1].splitlines(), ours[1].splitlines()):
        if a != b:
            return name, f"theirs {a[:600]!r}\n       ours   {b[:600]!r}"
    return name, f"theirs {theirs[0]} {len(theirs[1])} bytes {theirs[2][:9]}\n       ours   {ours[0]} {len(ours[1])} bytes {ours[2][:9]}"


def todo(who, data):
    def glob(pattern):
        return [f for f in sorted(data.glob(pattern)) if f.stat().st_size]
    logs = glob("*-0/*.log")
    yield f"{who}: batches", [], logs
    yield f"{who}: records", ["--deep-iteration"], logs
    yield f"{who}: contents", ["--print-data-log"], glob("[a-z]*-0/*.log")
    yield f"{who}: contents alone", ["--print-data-log", "--skip-record-metadata"], glob("[a-z]*-0/*.log")
    yield f"{who}: some bytes", ["--deep-iteration", "--max-bytes", "30000"], logs
    yield f"{who}: offsets", ["--offsets-decoder"], glob("__consumer_offsets-*/*.log")
    yield f"{who}: transactions", ["--transaction-log-decoder"], glob("__transaction_state-*/*.log")
    yield f"{who}: metadata", ["--cluster-metadata-decoder"], [f for p in ("__cluster_metadata-0/*.log", "__cluster_metadata-0/*.checkpoint", "bootstrap.checkpoint") for f in glob(p)]
    yield f"{who}: metadata alone", ["--cluster-metadata-decoder", "--skip-record-metadata"], glob("__cluster_metadata-0/*.log")
    yield f"{who}: other decoders", ["--transaction-log-decoder"], glob("__consumer_offsets-*/*.log")
    yield f"{who}: longs", ["--key-decoder-class", "org.apache.kafka.tools.api.LongDecoder", "--value-decoder-class=org.apache.kafka.tools.api.IntegerDecoder"], glob("plain-0/*.log")[-1:]
    yield f"{who}: indexes", [], glob("*/*index")
    yield f"{who}: sanity of indexes", ["--index-sanity-check"], [f for f in glob("*/*index") if f.suffix != ".txnindex"]
    yield f"{who}: indexes against segments", ["--verify-index-only"], glob("*/*index")
    yield f"{who}: small batches", ["--max-message-size", "80"], glob("plain-0/*.index")
    yield f"{who}: producers and others", [], [*glob("*/*.snapshot"), *glob("*.checkpoint"), *glob("*checkpoint"), *glob("meta.properties"), *glob("*/partition.metadata")]
    if who == "kafka":
        yield f"{who}: share groups", ["--share-group-state-decoder"], glob("__share_group_state-*/*.log")


def main():
    cases = []
    for who in "caudal", "kafka":
        broker = Broker(who)
        try:
            broker.fill(shares=who == "kafka")
        finally:
            broker.stop()
        cases += todo(who, broker.data)
    for directory in damage(broker.data, work / "bad"):
        name = directory.name
        files = sorted(f for f in directory.iterdir() if f.suffix in (".log", ".index", ".timeindex", ".txnindex", ".snapshot"))
        wanted = {"index": ".index", "time-": ".timeindex", "snaps": ".snapshot", "abort": ".txnindex"}.get(name[:5], ".log")
        files = [f for f in files if f.suffix == wanted][:1 if wanted == ".log" else 9]
        if wanted == ".log":
            cases += [(f"damaged: {name}", [], files), (f"damaged: {name}, contents", ["--print-data-log"], files)]
        else:
            cases.append((f"damaged: {name}", [], files))
            if wanted.endswith("index") and wanted != ".txnindex":
                cases += [(f"damaged: {name}, sanity", ["--index-sanity-check"], files), (f"damaged: {name}, alone", ["--verify-index-only"], files)]
    failed = 0
    with ThreadPoolExecutor(2) as pool:
        for name, difference in pool.map(lambda c: compare(*c), cases):
            if difference:
                failed += 1
                print(f"FAIL {name}\n       {difference}", flush=True)
    print(f"{len(cases) - failed} passed, {failed} failed")
    if failed or os.environ.get("KEEP"):
        print(f"files in {work}")
    else:
        shutil.rmtree(work)
    sys.exit(bool(failed))


main()
