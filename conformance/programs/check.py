"""See `check`."""
import argparse, shutil, sys, tempfile, time, traceback
from pathlib import Path

import clients, connect, faust_streaming, kafka_streams, spark
from lib import Broker, Skip

CLIENTS = ["kafka-python", "aiokafka", "confluent-kafka", "kafka.js", "franz-go", "sarama", "rdkafka"]
PROGRAMS = {
    "streams-word-count": kafka_streams.word_count_demo,
    "streams-exactly-once": kafka_streams.exactly_once,
    "connect-standalone": connect.standalone,
    "connect-distributed": connect.distributed,
    "spark-batch": spark.batch,
    "spark-stream": spark.stream,
    "faust": faust_streaming.words,
}
counts = {"passed": 0, "failed": 0, "skipped": 0}


def one(name, f, *arguments):
    begin = time.monotonic()
    try:
        result, why = "passed", f(*arguments)
    except Skip as e:
        result, why = "skipped", e
    except Exception as e:
        if not isinstance(e, AssertionError):
            traceback.print_exc()
        result, why = "failed", e
    counts[result] += 1
    word = {"passed": "ok  ", "failed": "FAIL", "skipped": "skip"}[result]
    print(f"{word} {name}{f': {why}' if why else ''} ({time.monotonic() - begin:.0f} s)", flush=True)
    return result == "passed"


def with_broker(binary, keep, f):
    """A fresh broker, whose end counts too; its directory stays where something failed."""
    work = Path(tempfile.mkdtemp(prefix="programs-"))
    before, broker = counts["failed"], Broker(binary, work)
    try:
        broker.start()
        f(broker, work)
        if counts["failed"] == before:
            try:
                broker.stop()
            except AssertionError as e:
                counts["failed"] += 1
                print(f"FAIL the broker's end: {e}", flush=True)
    finally:
        if broker.process:
            broker.kill()
        if keep or counts["failed"] > before:
            print(f"     see {work}", flush=True)
        else:
            shutil.rmtree(work, ignore_errors=True)


def all_clients(names):
    def f(broker, work):
        wrote = [n for n in names if one(n, clients.write, broker, work, n)]
        for n in wrote if len(wrote) > 1 else []:
            one(f"{n} reads the others", clients.read_others, broker, work, n, wrote)
    return f


def main():
    parser = argparse.ArgumentParser(prog="conformance/programs/check", description="Real programs, unchanged, against a broker.")
    parser.add_argument("binary", help="Caudal's binary, or the word kafka: Apache Kafka of the peers")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all, or some of: {', '.join([*CLIENTS, *PROGRAMS])}")
    parser.add_argument("--keep", action="store_true", help="leave the directories")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {*CLIENTS, *PROGRAMS}
    if unknown:
        parser.error(f"no program is named {', '.join(sorted(unknown))}")
    wanted = lambda name: not arguments.names or name in arguments.names
    some = [n for n in CLIENTS if wanted(n)]
    if some:
        with_broker(arguments.binary, arguments.keep, all_clients(some))
    for name, f in PROGRAMS.items():
        if wanted(name):
            with_broker(arguments.binary, arguments.keep, lambda broker, work: one(name, f, broker, work))
    print(", ".join(f"{n} {k}" for k, n in counts.items()))
    sys.exit(counts["failed"] > 0 or not counts["passed"])


main()
