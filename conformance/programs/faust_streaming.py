"""faust-streaming: an agent, a repartition topic and a table with its changelog; stopped, killed, and taken up again."""
import collections, os, sys

from confluent_kafka import ConsumerGroupTopicPartitions

from lib import HERE, Process, equal, until


def words(broker, work):
    """The counts of every word are 1, 2, ... n: nothing is counted twice or forgotten over a stop and over a kill while it has nothing to do."""
    broker.create("faust-in", 2)
    expected, started = collections.Counter(), 0

    def start():
        nonlocal started
        started += 1
        process = Process([sys.executable, HERE / "python/faust_words.py", "worker", "-l", "info", "--without-web"], work / "faust.log",
                          env={**os.environ, "BOOTSTRAP": broker.address, "DATADIR": str(work / "faust")}, cwd=work)
        # What arrives while faust restores its table it may read twice.
        until("faust is ready", lambda: process.check() or process.log.read_text().count("Worker ready") == started, 120)
        return process

    def write(n):
        all_ = [f"word{i % 13}" for i in range(n)]
        expected.update(all_)
        broker.produce("faust-in", [(None, w) for w in all_])

    def found():
        lists = collections.defaultdict(list)
        for k, v in broker.read_all("faust-counts") if "faust-counts" in broker.topics() else []:
            lists[k.decode()].append(v.decode())
        return lists

    def settled():
        """Everything is counted, and the group has committed its end."""
        program.check()
        if sum(len(v) for v in found().values()) < sum(expected.values()):
            return False
        offsets = broker.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions("faust-words")])["faust-words"].result(20).topic_partitions
        committed = collections.Counter()
        for p in offsets:
            committed[p.topic] += max(p.offset, 0)
        return all(committed[t] == len(broker.read_all(t)) for t in ("faust-in", repartition()))

    def repartition():
        return next((t for t in broker.topics() if t.endswith("-repartition")), "none")

    program = start()
    try:
        for how in "at first", "after a stop", "after kill -9 of the program", "after kill -9 of the broker":
            write(200)
            until(f"all is counted {how}", settled, 120)
            equal(f"counts {how}", dict(found()), {w: [str(i + 1) for i in range(n)] for w, n in expected.items()})
            if how == "at first":
                program.stop()
                program = start()
            elif how == "after a stop":
                program.kill()
                program = start()
            elif how == "after kill -9 of the program":
                broker.restart_killed()
        changelog = next(t for t in broker.topics() if t.endswith("-changelog"))
        equal("policy of the changelog", broker.configs(changelog)["cleanup.policy"], "compact")
        last = {k: v.decode() for k, v in broker.read_all(changelog)}
        equal("what the changelog holds", sorted(map(int, last.values())), sorted(expected.values()))
        program.stop()
    finally:
        program.kill()
    return f"{sum(expected.values())} words"
