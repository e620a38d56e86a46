"""Spark 4.2's Kafka source and sink in batch and in streaming queries; the driver killed, the broker killed, checkpoints taken up again."""
import collections, json, os

from confluent_kafka import Producer

from lib import HERE, PEERS, Process, Skip, equal, until


def job(mode, broker, work):
    python = PEERS / "spark/bin/python"
    if not (PEERS / "spark/libs/.done").exists() or not python.exists():
        raise Skip("no Apache Spark")
    return Process([python, HERE / "python/spark_job.py", mode, broker.address, work], work / f"spark-{mode}.log",
                   env={**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_DIRS": str(work)})


def batch(broker, work):
    """Everything the source and the sink have as options, by content."""
    codecs = "none", "gzip", "snappy", "lz4", "zstd"
    for codec in codecs:
        broker.create(f"spark-{codec}", 4)
    broker.create("timed")
    broker.produce("timed", [(None, str(i), 1_700_000_000_000 + i) for i in range(100)])
    broker.create("transactions")
    for name, commit in ("a", True), ("b", False), ("c", True):
        producer = Producer({"bootstrap.servers": broker.address, "transactional.id": "spark"})
        producer.init_transactions()
        producer.begin_transaction()
        for i in range(20):
            producer.produce("transactions", f"{name}{i}")
        producer.flush()
        producer.commit_transaction() if commit else producer.abort_transaction()
    process = job("batch", broker, work)
    equal("status of the job", process.process.wait(240), 0) if process.running() else process.check()
    found = json.loads((work / "batch.json").read_text())
    expected = {p: [[f"k{i}" if i % 3 else None, f"value {i}" if i % 5 else None, [["n", str(i)], ["n", None]] if i % 2 else []] for i in range(200) if i % 4 == p] for p in range(4)}
    for codec in codecs:
        for p in range(4):
            rows = [r for r in found["all"] if r[0] == f"spark-{codec}" and r[1] == p]
            equal(f"offsets of spark-{codec}-{p}", [r[2] for r in rows], list(range(50)))
            equal(f"records of spark-{codec}-{p}", [r[4:] for r in rows], expected[p])
        equal(f"rows of spark-{codec} as our own client reads them", broker.read(f"spark-{codec}"),
              {p: [(k and k.encode(), v and v.encode()) for k, v, _ in expected[p]] for p in range(4)})
    zstd = [r for r in found["all"] if r[0] == "spark-zstd"]
    bounds = {0: (10, 12), 1: (0, 3), 2: (20, 50), 3: (45, 50)}
    equal("rows between offsets", found["offsets"], [r for r in zstd if bounds[r[1]][0] <= r[2] < bounds[r[1]][1]])
    equal("rows between times", [r[5] for r in found["times"]], [str(i) for i in range(50, 60)])
    equal("rows in pieces", found["pieces"], zstd)
    equal("committed rows", [r[5] for r in found["committed"]], [f"{n}{i}" for n in "ac" for i in range(20)])
    equal("rows that are not committed too", [r[5] for r in found["uncommitted"]], [f"{n}{i}" for n in "abc" for i in range(20)])


def stream(broker, work):
    """Three queries over one topic. The files hold every event once; the copies every event, twice only where the driver was killed."""
    for name in "events", "copies", "totals":
        broker.create(name, 2)
    total, written = collections.Counter(), []

    def write(n):
        new = [(f"key{i % 7}", str(i)) for i in range(len(written), len(written) + n)]
        total.update(k for k, _ in new)
        written.extend(new)
        broker.produce("events", new)

    def copied():
        process.check()
        return {v.decode().rsplit(":", 1)[1] for _, v in broker.read_all("copies")} == {v for _, v in written}

    write(600)
    process = job("stream", broker, work)
    try:
        until("some is copied", lambda: process.check() or broker.read_all("copies"), 400)
        write(600)
        broker.restart_killed()
        until("all is copied after kill -9 of the broker", copied, 400)
        equal("copies after kill -9 of the broker", len({v for _, v in broker.read_all("copies")}), len(written))
        write(600)
        process.kill()
        write(600)
        process = job("stream", broker, work)
        until("all is copied after kill -9 of the driver", copied, 400)
        (work / "stop").touch()
        equal("status of the job", process.process.wait(120), 0)
        (work / "stop").unlink()
        before = collections.Counter(broker.read_all("copies"))
        write(100)
        process = job("stream", broker, work)
        until("all is copied after a stop", copied, 400)
        (work / "stop").touch()
        equal("status of the job", process.process.wait(120), 0)
    finally:
        process.kill()
    events = [[p, o, k.decode(), v.decode()] for p, records in broker.read("events").items() for o, (k, v) in enumerate(records)]
    equal("the files", json.loads((work / "files.json").read_text()), sorted(events))
    copies = broker.read_all("copies")
    equal("the copies", sorted(set(copies)), sorted((k.encode(), f"{p}:{o}:{v}".encode()) for p, o, k, v in events))
    equal("copies since the clean stop", len(copies) - sum(before.values()), 100)
    last = {k.decode(): int(v) for k, v in broker.read_all("totals")}
    equal("the totals", last, dict(total))
