"""Clients write, read and commit while the broker is killed, paused, loses what it never synced, fails to sync, finds its disk full,
loses one of its log directories for a while and sees its clock leap, and while partitions move between those directories. At the end
their whole history is checked for Jepsen's anomalies.

run.py CAUDAL [--faults 200] [--seconds 900] [--seed N] [--keep] [--only KIND,...] [--dirs 3]

The seed decides all faults (and the clients' own dice): `--seed` runs the same schedule again. `checker.py` tells what is looked for.
"""
import argparse, atexit, collections, random, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path

import checker
from broker import Broker
from workload import COORDINATOR_PARTITIONS, COPIER, Apart, Member, Plain, Reader, Recorder, read_all

PARTITIONS = 3
PLAIN, TXN, COPY = ([(topic, p) for p in range(PARTITIONS)] for topic in ("plain", "txn", "copy"))
SETTINGS = [
    "transaction.abort.timed.out.transaction.cleanup.interval.ms=200", "group.initial.rebalance.delay.ms=0", "group.min.session.timeout.ms=500",
    "group.consumer.min.session.timeout.ms=1000", "group.consumer.session.timeout.ms=2000", "group.consumer.min.heartbeat.interval.ms=100",
    "group.consumer.heartbeat.interval.ms=500", f"offsets.topic.num.partitions={COORDINATOR_PARTITIONS}", f"transaction.state.log.num.partitions={COORDINATOR_PARTITIONS}",
    "log.retention.check.interval.ms=500", "offsets.retention.check.interval.ms=500", "log.cleaner.backoff.ms=500",
]
WEIGHTS = {"kill": 20, "power": 16, "pause": 24, "fsync": 16, "full": 12, "clock": 12, "dir": 14}
# What an fsync fails on, and after how many more that succeed.
SYNCED = ["/plain-0/", "/plain-1/", "/txn-0/", "/txn-2/", "/copy-1/", "/__transaction_state-", "/__consumer_offsets-", "/__cluster_metadata-0/", ".log", ""]
LEAPS_S = [-0.5, 2, -30, 60, 3600, -3600, 3 * 86400, -3 * 86400, 40 * 86400]
DAY_S = 86400


def schedule(seed, count, only, dirs):
    """The faults: dictionaries of nothing but what the seed says."""
    dice = random.Random(f"{seed} faults")
    weights = {kind: weight for kind, weight in WEIGHTS.items() if (not only or kind in only) and (kind != "dir" or dirs > 1)}
    faults = []
    kinds = dice.sample(list(weights), len(weights))
    for number in range(count):
        # Each once, then by their weights.
        kind = kinds[number] if number < len(kinds) else dice.choices(list(weights), list(weights.values()))[0]
        fault = dict(kind=kind, after_s=dice.choice([0.05, 0.3, dice.uniform(0.3, 2)]), for_s=0.0, seed=dice.randrange(2**32))
        if kind in ("kill", "power"):
            fault.update(for_s=dice.choice([0, 0, dice.uniform(0, 1)]))
        elif kind == "pause":
            fault.update(for_s=dice.choice([0.1, 0.5, 1.2, 2.5, 4]), killed=dice.random() < 0.15)
        elif kind == "fsync":
            fault.update(for_s=dice.uniform(0.2, 1), path=dice.choice(SYNCED), passed=dice.choice([0, 0, 1, 3, 10]), mode=dice.choice([1, 1, 2]))
        elif kind == "full":
            fault.update(for_s=dice.uniform(0.3, 2.5), space=dice.choice([0, 0, 30, 300, 3000]), killed=dice.random() < 0.25)
        elif kind == "dir":
            # It fails, its name is gone while it is in use, or it is away at a start.
            fault.update(for_s=dice.uniform(1, 4), place=dice.randrange(1, dirs), how=dice.choice(["fails", "fails", "vanishes", "away"]))
        else:
            fault.update(for_s=dice.uniform(0.3, 2), leap_s=dice.choice(LEAPS_S), back=dice.random() < 0.7, killed=dice.random() < 0.25)
        if dirs > 1:
            fault["moves"] = [(*dice.choice(PLAIN + TXN + COPY), dice.randrange(dirs)) for _ in range(dice.choice([0, 0, 1, 3]))]
        faults.append(fault)
    return faults


class Nemesis:
    def __init__(self, broker, recorder):
        self.broker, self.recorder, self.problems, self.slowest_s = broker, recorder, [], 0.0
        self.counts, self.lost, self.moves, self.idle = collections.Counter(), 0, 0, 0

    def do(self, number, fault):
        time.sleep(fault["after_s"])
        before, acked = time.monotonic(), self.recorder.acked
        self.recorder.write(process="nemesis", type="info", f="fault", value=fault)
        for topic, partition, place in fault.get("moves", ()):
            self.moves += self.broker.move(topic, partition, self.broker.dirs[place]) == 0
        told = getattr(self, fault["kind"])(fault, random.Random(fault["seed"])) or ""
        self.counts[fault["kind"]] += 1
        healed, acked_then = time.monotonic(), self.recorder.acked
        took = self.wait_for_progress(acked_then)
        shown = " ".join(f"{key}={value:.2f}" if isinstance(value, float) else f"{key}={value}" for key, value in fault.items() if key not in ("seed", "kind", "after_s", "moves"))
        print(f"{number}: {fault['kind']} {shown} {told}; {healed - before:.1f} s, {acked_then - acked} acknowledged meanwhile, the next {took:.1f} s later", flush=True)

    def wait_for_progress(self, acked, limit_s=40):
        begin = time.monotonic()
        while self.recorder.acked == acked:
            if self.broker.process.poll() is not None:
                raise SystemExit(f"faults: the broker ended by itself with status {self.broker.process.poll()}; see {self.broker.work}/broker.log")
            if time.monotonic() - begin > limit_s:
                raise SystemExit(f"faults: nothing was acknowledged for {limit_s} s after a fault was over; see {self.broker.work}/broker.log")
            time.sleep(0.01)
        took = time.monotonic() - begin
        self.slowest_s = max(self.slowest_s, took)
        return took

    def start(self):
        self.recorder.write(process="nemesis", type="info", f="start")
        took = self.broker.start()
        if took is None:
            raise SystemExit(f"faults: the broker does not start; see {self.broker.work}/broker.log")
        return took

    def kill(self, fault, dice):
        self.broker.kill()
        time.sleep(fault["for_s"])
        return f"back in {self.start():.2f} s"

    def power(self, fault, dice):
        self.broker.kill()
        self.broker.failed_syncs()
        lost = self.broker.lose_unsynced(dice)
        self.lost += lost
        time.sleep(fault["for_s"])
        return f"{lost} bytes lost, back in {self.start():.2f} s"

    def pause(self, fault, dice):
        self.broker.signal(signal.SIGSTOP)
        time.sleep(fault["for_s"])
        if fault["killed"]:
            return self.kill(dict(for_s=0), dice)
        self.broker.signal(signal.SIGCONT)

    def fsync(self, fault, dice):
        """Goes on until one failed, or where there is none to fail, until its time is over. Then the kernel's copy of what was not
        synced is gone, and the broker begins anew."""
        control = self.broker.control
        failed, end = control["fsyncs_failed"], time.monotonic() + 3
        control.text("fsync_path", fault["path"])
        control["fsync_pass"] = fault["passed"]
        control["fsync_mode"] = fault["mode"]
        while control["fsyncs_failed"] == failed and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(fault["for_s"])
        ended = self.broker.process.poll()
        failures, lost, took = self.begin_anew(dice)
        if not failures:
            self.counts["fsync"] -= 1
        return f"{failures} failed{'' if ended is None else f', the broker stopped with status {ended}'}, {lost} bytes lost, back in {took:.2f} s"

    def begin_anew(self, dice):
        """After a failed fsync: how many failed, the bytes lost, and the time that the start took."""
        self.broker.kill()
        self.broker.control["fsync_mode"] = 0
        failures = self.broker.failed_syncs()
        for at, path in failures:
            self.recorder.write(process="nemesis", type="info", f="fsync-failed", time=at, value=Path(path).parent.name if path.endswith(".log") else None)
        lost = self.broker.lose_unsynced(dice)
        self.lost += lost
        return len(failures), lost, self.start()

    def dir(self, fault, dice):
        """One of several log directories is out of use; the others go on."""
        broker, path = self.broker, self.broker.dirs[fault["place"]]
        # Below the data, where fsyncs are watched.
        away = broker.data / "away"
        if fault["how"] == "fails":
            broker.control.text("fsync_path", f"/{path.name}/")
            broker.control["fsync_pass"], broker.control["fsync_mode"] = 0, 2
        elif fault["how"] == "vanishes":
            path.rename(away)
        else:
            broker.kill()
            path.rename(away)
            self.start()
        # Until it is noticed, and those who write only there are stuck.
        time.sleep(1)
        acked = self.recorder.acked
        time.sleep(fault["for_s"])
        meanwhile = self.recorder.acked - acked
        if broker.process.poll() is not None:
            raise SystemExit(f"faults: the broker ended when one of its log directories did; see {broker.work}/broker.log")
        if away.exists():
            broker.kill()
            if path.exists():
                self.problems.append(f"{path.name} was made again while it was away")
                path.rename(broker.work / f"made-again-{time.time()}")
            away.rename(path)
        failures, lost, took = self.begin_anew(dice)
        if meanwhile == 0:
            self.idle += 1
        return f"{meanwhile} acknowledged without it, {failures} failed, {lost} bytes lost, back in {took:.2f} s"

    def full(self, fault, dice):
        control = self.broker.control
        refused = control["writes_refused"]
        control["space_left"] = fault["space"]
        time.sleep(fault["for_s"])
        told = ""
        if fault["killed"]:
            self.broker.kill()
            self.recorder.write(process="nemesis", type="info", f="start")
            took = self.broker.start()
            told = ", starts without space" if took else ", does not start without space"
            time.sleep(fault["for_s"] if took else 0)
        control["space_left"] = -1
        if self.broker.process.poll() is not None:
            if not fault["killed"]:
                raise SystemExit(f"faults: the broker ended when its disk was full; see {self.broker.work}/broker.log")
            self.start()
        return f"{control['writes_refused'] - refused} writes refused{told}"

    def clock(self, fault, dice):
        control = self.broker.control
        control["clock_offset_ns"] = int(fault["leap_s"] * 1e9)
        if fault["killed"]:
            self.kill(dict(for_s=0), dice)
        time.sleep(fault["for_s"])
        if fault["back"] or abs(fault["leap_s"]) >= 3600:
            control["clock_offset_ns"] = 0


def final_reads(broker, recorder, problems):
    """Everything that is there, once what was left open has timed out; and the copy, once it is complete."""
    time.sleep(9)
    content = {}
    for isolation in checker.UNCOMMITTED, checker.COMMITTED:
        content[isolation] = read_all(broker.address, PLAIN + TXN, isolation)
        if content[isolation] is None:
            problems.append(f"the end of the log could not be read with {isolation}")
            return
        recorder.write(process="the end", type="ok", f="final", isolation=isolation, value=content[isolation])
    wanted = {f"copy-{p}": [value for _, value in content[checker.COMMITTED][f"txn-{p}"]] for p in range(PARTITIONS)}
    limit, found = time.monotonic() + 60, {}
    while time.monotonic() < limit:
        copied = read_all(broker.address, COPY, checker.COMMITTED) or {}
        found = {key: [value for _, value in records] for key, records in copied.items()}
        if all(len(found.get(key, ())) >= len(wanted[key]) for key in wanted):
            break
        time.sleep(0.5)
    recorder.write(process="the end", type="ok", f="copy", value={key: [wanted[key], found.get(key, [])] for key in wanted})


def committed_offsets(broker, recorder, groups):
    from confluent_kafka import Consumer, TopicPartition

    for group in groups:
        consumer = Consumer({"bootstrap.servers": broker.address, "group.id": group})
        found = consumer.committed([TopicPartition(*key) for key in PLAIN], timeout=30)
        consumer.close()
        recorder.write(process="the end", type="ok", f="committed", group=group, value={f"{p.topic}-{p.partition}": p.offset for p in found if p.offset >= 0})


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("caudal")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=900, help="no fault begins later than this")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--dirs", type=int, default=3, help="log directories")
    parser.add_argument("--only", default="", help="kinds of faults: " + ",".join(WEIGHTS))
    parser.add_argument("--keep", action="store_true", help="keep the files of a run that found nothing")
    return parser.parse_args()


def main():
    options = arguments()
    work = Path(tempfile.mkdtemp(prefix="caudal-faults-"))
    print(f"faults: seed {options.seed}, files in {work}", flush=True)
    broker, recorder = Broker(options.caudal, work, SETTINGS, options.dirs), Recorder(work / "history.jsonl")
    nemesis = Nemesis(broker, recorder)
    copier, transactors = None, []

    def end():
        broker.kill()
        for process in [copier, *(client.process for client in transactors)]:
            if process:
                process.kill()

    atexit.register(end)
    nemesis.start()
    for topic in "plain", "txn", "copy":
        command = [broker.binary, "topic", "create", topic, "-p", str(PARTITIONS), "--config", "internal.segment.bytes=60000", "--server", broker.address]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    groups = {"classic-group": "classic", "consumer-group": "consumer"}
    common = (broker.address, recorder, options.seed)
    clients = [Plain(f"producer-{n}", *common, PLAIN) for n in range(2)]
    transactors = [Apart(f"transactor-{n}", *common, TXN) for n in range(3)]
    clients += transactors
    clients += [Reader(f"reader-{isolation[5:]}", *common, PLAIN + TXN, isolation) for isolation in (checker.COMMITTED, checker.UNCOMMITTED)]
    clients += [Member(f"{group}-{n}", *common, group, "plain", protocol) for group, protocol in groups.items() for n in range(2)]

    def start_copier():
        return subprocess.Popen([sys.executable, "-c", COPIER, broker.address, "txn", "copy"], stdout=subprocess.DEVNULL, stderr=open(work / "copier.log", "a"))

    copier = start_copier()
    for client in clients:
        client.start()
    nemesis.wait_for_progress(recorder.acked)
    begin, dice = time.monotonic(), random.Random(f"{options.seed} copier")
    for number, fault in enumerate(schedule(options.seed, options.faults, options.only.split(",") if options.only else [], options.dirs), 1):
        if time.monotonic() - begin > options.seconds:
            print(f"faults: the time is over after {number - 1} faults")
            break
        nemesis.do(number, fault)
        if dice.random() < 0.1 or copier.poll() is not None:
            copier.kill()
            copier.wait()
            copier = start_copier()
    if died := sum(client.deaths for client in transactors):
        print(f"faults: librdkafka ended the process of a transactor by an assertion of its own {died} times; others followed")
    sys.exit(finish(options, nemesis, clients, groups, end))


def finish(options, nemesis, clients, groups, end):
    broker, recorder, problems = nemesis.broker, nemesis.recorder, nemesis.problems
    broker.control["clock_offset_ns"] = 0
    time.sleep(2)
    for client in clients:
        client.stop()
    for client in clients:
        client.join(120)
        if client.is_alive():
            problems.append(f"{client.name} does not end")
        elif client.error:
            problems.append(client.error)
    final_reads(broker, recorder, problems)
    committed_offsets(broker, recorder, groups)
    recorder.close()
    control = {name: broker.control[name] for name in ("fsyncs", "writes", "clock_reads", "fsyncs_failed", "writes_refused")}
    if nemesis.idle > nemesis.counts["dir"] / 2:
        problems.append(f"with one of {options.dirs} log directories out of use nothing was acknowledged in {nemesis.idle} of {nemesis.counts['dir']} cases")
    problems += [f"the library saw no {name}" for name in ("fsyncs", "writes", "clock_reads") if control[name] == 0]
    events = checker.read(broker.work / "history.jsonl")
    found = checker.anomalies(events)
    for anomaly, texts in found.items():
        problems.append(f"{anomaly}: {len(texts)}, e.g. {'; '.join(texts[:3])}")
    outcomes = collections.Counter(f"{e['f']} {e.get('type')}" for e in events if e["f"] in ("txn", "send", "poll", "commit") and e.get("type") != "invoke")
    print(f"faults: {sum(nemesis.counts.values())} faults ({', '.join(f'{n} {kind}' for kind, n in nemesis.counts.items())}), {nemesis.moves} moves, {nemesis.lost} unsynced bytes lost, {control}")
    print(f"faults: {len(events)} events ({', '.join(f'{n} {kind}' for kind, n in sorted(outcomes.items()))}); slowest start {broker.slowest_start_s:.2f} s, slowest acknowledgement after a fault {nemesis.slowest_s:.1f} s")
    for problem in problems[:30]:
        print(f"PROBLEM {problem}")
    print(f"faults: {len(found)} kinds of anomalies, seed {options.seed}" + (f", files in {broker.work}" if problems or options.keep else ""))
    end()
    if not problems and not options.keep:
        shutil.rmtree(broker.work, ignore_errors=True)
    return 1 if problems else 0


signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
if __name__ == "__main__":
    main()
