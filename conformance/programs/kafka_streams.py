"""Kafka Streams: WordCountDemo as Kafka ships it, and a program of ours with exactly_once_v2 that is killed, as is the broker."""
import collections, random, shutil

from lib import Broker, Process, compiled, equal, java, properties, until, HERE

SOURCE, SINK = "streams-plaintext-input", "streams-wordcount-output"


def word_count_demo(broker, work):
    """Its topics, its consumer group, its two internal topics; killed once; what it counts at the end is what was written."""
    broker.create(SOURCE)
    broker.create(SINK, cleanup_policy="compact")
    config = properties(work / "demo.properties", {"bootstrap.servers": broker.address, "state.dir": work / "state", "commit.interval.ms": 200, "session.timeout.ms": 6000})
    expected = collections.Counter()

    def write(lines):
        for line in lines:
            expected.update(line.lower().split())
        broker.produce(SOURCE, [(None, line) for line in lines])

    def counted():
        demo.check()
        found = {k.decode(): int.from_bytes(v, "big") for k, v in broker.read_all(SINK)}
        return found == expected

    demo = Process(java("org.apache.kafka.streams.examples.wordcount.WordCountDemo", config), work / "demo.log")
    try:
        write(["all streams lead to Kafka", "hello kafka streams", "join kafka summit"])
        until("the words are counted", counted)
        equal("internal topics", {t: n for t, n in broker.topics().items() if t.startswith("streams-wordcount-K")},
              {"streams-wordcount-KSTREAM-AGGREGATE-STATE-STORE-0000000003-changelog": 1,
               "streams-wordcount-KSTREAM-AGGREGATE-STATE-STORE-0000000003-repartition": 1})
        changelog = broker.configs("streams-wordcount-KSTREAM-AGGREGATE-STATE-STORE-0000000003-changelog")
        equal("policy of the changelog", changelog["cleanup.policy"], "compact")
        repartition = broker.configs("streams-wordcount-KSTREAM-AGGREGATE-STATE-STORE-0000000003-repartition")
        equal("retention of the repartition topic", (repartition["cleanup.policy"], repartition["retention.ms"]), ("delete", "-1"))
        # The demo has committed when its input is purged from the repartition topic; only then is at least once also exactly once.
        assert demo.stop() in (0, 130, 143), demo.tail()
        shutil.rmtree(work / "state")  # the counts must come back from the changelog
        demo = Process(java("org.apache.kafka.streams.examples.wordcount.WordCountDemo", config), work / "demo.log")
        write(["back again streams", "kafka " * 20])
        until("the words are counted after a restart", counted)
        assert demo.stop() in (0, 130, 143), demo.tail()
    finally:
        if demo.running():
            demo.kill()


def exactly_once(broker, work, rounds=4, lines=400):
    """kill -9 of the program, of the broker, of both, and of the program with its state lost: each word leaves 1, 2, ... n, once."""
    dice = random.Random(7)
    classes = compiled(HERE / "java/CountOnce.java")
    for topic in "lines", "counts", "windows", "joined":
        broker.create(topic, 2)
    broker.create("names", 2, cleanup_policy="compact")
    vocabulary = [f"word{i}" for i in range(30)]
    broker.produce("names", [(w, w.upper(), 1_700_000_000_000) for w in vocabulary])
    words, windows = collections.Counter(), collections.Counter()
    clock = 1_700_000_040_000  # the start of a minute

    def write():
        nonlocal clock
        records = []
        for _ in range(lines):
            line = dice.choices(vocabulary, k=dice.randint(1, 6))
            # Both partitions get the same time, or one of them would be late for its windows.
            records.append((None, " ".join(line), clock, len(records) % 2))
            words.update(line)
            windows.update(f"{w}@{clock - clock % 60000}" for w in line)
        clock += 20_000
        broker.produce("lines", records)

    def start():
        return Process(java("CountOnce", broker.address, work / "state", classes=classes), work / "count.log")

    def by_key(topic):
        found = collections.defaultdict(list)
        for key, value in broker.read_all(topic):
            found[key.decode()].append(value.decode())
        return found

    def all_read():
        program.check()
        return sum(len(v) for v in by_key("counts").values()) >= sum(words.values())

    program = start()
    try:
        write()
        until("some is counted", lambda: program.check() or by_key("counts"))
        for kind in ["program", "broker", "both", "state"] * (rounds // 4):
            write()
            if kind == "broker":
                broker.restart_killed()
            else:
                program.kill()
                if kind == "both":
                    broker.restart_killed()
                if kind == "state":
                    shutil.rmtree(work / "state")
                program = start()
            write()
            until(f"all is counted after kill -9 of the {kind}", all_read, 120)
        write()
        until("all is counted", all_read, 120)
        until("all windows are counted", lambda: sum(len(v) for v in by_key("windows").values()) >= sum(windows.values()))
        program.stop()
    finally:
        if program.running():
            program.kill()
    equal("counts", dict(by_key("counts")), {w: [str(i + 1) for i in range(n)] for w, n in words.items()})
    equal("windows", dict(by_key("windows")), {w: [str(i + 1) for i in range(n)] for w, n in windows.items()})
    equal("joined", dict(by_key("joined")), {w: [f"{w.upper()}={i + 1}" for i in range(n)] for w, n in words.items()})
    changelogs = [t for t in broker.topics() if t.startswith("count-once-") and t.endswith("-changelog")]
    equal("policies of the changelogs", sorted(broker.configs(t)["cleanup.policy"] for t in changelogs), ["compact", "compact", "compact,delete"])
    return f"{sum(words.values())} words"
