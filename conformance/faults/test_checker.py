"""Does the checker find what it should? Plants each anomaly in a history that was recorded (data/recorded.jsonl), and reads the small
ones in data/, whose first line names what is in them."""
import copy, itertools, json, sys, time
from pathlib import Path

import checker
from workload import ASSERTION, Apart

DATA = Path(__file__).with_name("data")
COMMITTED, UNCOMMITTED = checker.COMMITTED, checker.UNCOMMITTED


class Recorded:
    """The recorded history and ways to change it."""

    def __init__(self, events):
        self.events = copy.deepcopy(events)

    def of(self, f, kind=None):
        return [e for e in self.events if e["f"] == f and kind in (None, e.get("type"))]

    def final(self, isolation):
        return next(e["value"] for e in self.of("final") if e["isolation"] == isolation)

    def finals(self):
        return [self.final(COMMITTED), self.final(UNCOMMITTED)]

    def polls(self):
        """All reads: (event, key, records)."""
        found = [(e, key, records) for e in self.of("poll") for key, records in e["value"].items()]
        return found + [(e, key, records) for e in self.of("txn") for step in e["value"] if step[0] == "poll" for key, records in step[1].items()]

    def acked(self, key="plain-0"):
        """The acknowledged sends of a key, by offset: [key, [offset, value]]."""
        return sorted((e["value"] for e in self.of("send", "ok") if e["value"][0] == key), key=lambda v: v[1][0])

    def forget(self, value, polls=True):
        """Takes a value out of everything that was read."""
        for content in self.finals():
            for records in content.values():
                records[:] = [r for r in records if r[1] != value]
        for copied in self.of("copy"):
            for lists in copied["value"].values():
                for values in lists:
                    values[:] = [v for v in values if v != value]
        for _, _, records in self.polls() if polls else ():
            records[:] = [r for r in records if r[1] != value]

    def writes(self, kind, count=1):
        """A transaction that ended so, with at least so many sends that were acknowledged, and these."""
        for txn in self.of("txn", kind):
            sends = [step for step in txn["value"] if step[0] == "send" and step[2][0] is not None]
            if len(sends) >= count:
                return txn, sends
        raise SystemExit(f"the recorded history has no transaction that {kind} with {count} sends")

    def reader(self, isolation=COMMITTED):
        """A read of a plain reader with at least three records."""
        return next((e, key, records) for e, key, records in self.polls() if e["f"] == "poll" and e["isolation"] == isolation and e["process"].startswith("reader") and len(records) >= 3)


def lost_write(h):
    h.forget(h.acked()[5][1][1], polls=False)


def lost_after_it_was_read(h):
    send = h.acked()[5]
    event = next(e for e in h.of("send", "ok") if e["value"] == send)
    event.update(type="info", value=[send[0], send[1][1]])
    h.forget(send[1][1], polls=False)


def unseen(h):
    last = h.acked()[-1]
    h.forget(last[1][1])


def duplicate(h):
    _, key, records = h.reader()
    for content in h.finals():
        content[key].append([content[key][-1][0] + 10, records[0][1]])


def aborted_read(h):
    _, sends = h.writes("fail")
    key, (offset, value) = sends[0][1:]
    content = h.final(COMMITTED)[key]
    content.append([offset, value])
    content.sort()


def refused_and_stored(h):
    send = h.acked()[3]
    event = next(e for e in h.of("send", "ok") if e["value"] == send)
    event.update(type="fail", value=[send[0], send[1][1]])


def dirty_read(h):
    txn, sends = h.writes("ok")
    key, record = sends[0][1:]
    early = txn["committing"] - 0.001
    h.events.insert(0, dict(time=early, process="reader-x", type="ok", f="poll", isolation=COMMITTED, began=early, value={key: [record]}))


def never_committed(h):
    txn, sends = h.writes("ok")
    txn["type"] = "info"
    for _, key, (offset, value) in sends:
        h.forget(value, polls=False)
    key, record = sends[0][1:]
    h.events.append(dict(time=txn["time"] + 1, process="reader-x", type="ok", f="poll", isolation=COMMITTED, began=txn["time"], value={key: [record]}))


def circular_flow(h):
    first, second = (txn for txn, _ in two_writers(h))
    for txn, other in ((first, second), (second, first)):
        _, key, record = next(step for step in other["value"] if step[0] == "send" and step[2][0] is not None)
        txn["value"].append(["poll", {key: [record]}])
        # After the other asked for its commit, and before its own: only the circle is wrong.
        txn["time"] = max(first["committing"], second["committing"]) + 0.01


def two_writers(h):
    seen = {}
    for txn in h.of("txn", "ok"):
        sends = [step for step in txn["value"] if step[0] == "send" and step[2][0] is not None]
        if sends:
            seen.setdefault(txn["process"], (txn, sends))
    return list(seen.values())[:2]


def torn(h):
    txn, sends = h.writes("ok", 2)
    txn["type"] = "info"
    value = sends[0][2][1]
    h.forget(value)


def poll_skip(h):
    event, key, records = h.reader()
    del records[1]


def group_skip(h):
    """Nobody can tell a skip from a new assignment, but none of the group's members has read it."""
    key, offset = next((key, records[0][0]) for event, key, records in h.polls() if event["process"].startswith("consumer-group"))
    for event, read, records in h.polls():
        if event["process"].startswith("consumer-group") and read == key:
            records[:] = [r for r in records if r[0] != offset]


def nonmonotonic_poll(h):
    event, key, records = h.reader()
    records.insert(2, records[0])


def nonmonotonic_send(h):
    """Two records of one producer that were in flight at once change places."""
    swap(h, *next((a, b) for a, b in itertools.pairwise(sends(h)) if a["process"] == b["process"] and a["ended"] > b["invoked"]))


def behind_the_acknowledged(h):
    """A record lies in front of one that was acknowledged before it was sent, by somebody else."""
    swap(h, *next((a, b) for a, b in itertools.combinations(sends(h), 2) if a["process"] != b["process"] and a["ended"] < b["invoked"]))


def sends(h):
    found = [s for s in checker.History(h.events).sends if s["txn"] is None and s["key"] == "plain-0" and s["outcome"] == "ok"]
    return sorted(found, key=lambda s: s["offset"])


def swap(h, a, b):
    places = {a["value"]: b["offset"], b["value"]: a["offset"]}
    for event in h.of("send", "ok"):
        if event["value"][1][1] in places:
            event["value"][1][0] = places[event["value"][1][1]]
    contents = [content[a["key"]] for content in h.finals()] + [records for _, key, records in h.polls() if key == a["key"]]
    for records in contents:
        for record in records:
            record[0] = places.get(record[1], record[0])
        records.sort()


def inconsistent_offsets(h):
    a, b = h.acked()[4], h.acked()[5]
    event = next(e for e in h.of("send", "ok") if e["value"] == a)
    h.forget(a[1][1])
    event["value"] = [a[0], [b[1][0], a[1][1]]]


def out_of_range(h):
    h.events.append(dict(time=99.0, process="reader-committed", type="fail", f="lost", value="plain-0: Broker: Offset out of range"))


def lost_commit(h):
    group, offsets = next((e["group"], e["value"]) for e in reversed(h.of("commit")))
    found = next(e["value"] for e in h.of("committed") if e["group"] == group)
    key = next(iter(offsets))
    found[key] = 0


def copied_twice(h):
    for wanted, found in h.of("copy")[0]["value"].values():
        found.append(found[0])
        return


def not_copied(h):
    for wanted, found in h.of("copy")[0]["value"].values():
        del found[1]
        return


def invented(h):
    content = h.final(UNCOMMITTED)["plain-0"]
    content.append([content[-1][0] + 1, 10**9])


def acked_after_failed_fsync(h):
    key, (offset, value) = h.acked()[10]
    invoked = next(e for e in h.of("send", "invoke") if e["value"] == [key, value])
    h.events.append(dict(time=invoked["time"] - 0.0001, process="nemesis", type="info", f="fsync-failed", value=key))


def committed_after_failed_fsync(h):
    commit = h.of("commit")[0]
    h.events.append(dict(time=commit["began"] - 0.0001, process="nemesis", type="info", f="fsync-failed", value=commit["log"]))


def transaction_after_failed_fsync(h):
    txn = h.of("txn", "ok")[0]
    h.events.append(dict(time=txn["committing"] - 0.0001, process="nemesis", type="info", f="fsync-failed", value=txn["log"]))


# What is planted, what must be found, and what may be found beside it since it follows.
PLANTED = [
    (lost_write, "lost-write", set()),
    (lost_after_it_was_read, "lost-write", set()),
    (unseen, "unseen", set()),
    (duplicate, "duplicate", set()),
    (aborted_read, "aborted-read", {"poll-skip"}),
    (refused_and_stored, "aborted-read", set()),
    (dirty_read, "dirty-read", set()),
    (never_committed, "dirty-read", {"lost-write"}),
    (circular_flow, "circular-flow", {"nonmonotonic-poll", "poll-skip"}),
    (torn, "torn-transaction", set()),
    (poll_skip, "poll-skip", set()),
    (group_skip, "poll-skip", set()),
    (nonmonotonic_poll, "nonmonotonic-poll", {"poll-skip"}),
    (nonmonotonic_send, "nonmonotonic-send", set()),
    (behind_the_acknowledged, "nonmonotonic-send", {"nonmonotonic-poll", "poll-skip"}),
    (inconsistent_offsets, "inconsistent-offsets", {"lost-write", "nonmonotonic-send"}),
    (out_of_range, "offset-out-of-range", set()),
    (lost_commit, "lost-commit", set()),
    (copied_twice, "duplicate", set()),
    (not_copied, "lost-write", set()),
    (invented, "invented", set()),
    (acked_after_failed_fsync, "acknowledged-after-failed-fsync", set()),
    (committed_after_failed_fsync, "acknowledged-after-failed-fsync", set()),
    (transaction_after_failed_fsync, "acknowledged-after-failed-fsync", set()),
]


# A process apart that tells of a transaction that ended and of one that has begun, and then dies: of the assertion before and after
# its commit was asked for, and then of something else, or, where it is asked to, ends when its standard input does.
DYING = """
import json, os, sys
last, assertion, name, address, seed, first, keys = sys.argv[1:]
deaths = int(first) % 10**9 // 10**6
event = {"process": name, "f": "txn", "began": 1, "log": "__transaction_state-0", "time": 2}
for kind, committing, value in [("ok", 1, int(first)), ("begun", [None, 3, None][deaths], int(first) + 1)]:
    print(json.dumps({**event, "type": kind, "committing": committing, "value": [["send", "t-0", [None, value]], seed]}), flush=True)
if deaths == 2 and last == "ends":
    sys.stdin.read()
    sys.exit()
sys.stderr.write(assertion if deaths < 2 else "another fault")
sys.stderr.flush()
os.abort()
"""


class Written:
    """A Recorder in memory."""

    def __init__(self):
        self.events, self.committed = [], 0

    def write(self, **event):
        self.events.append(event)


def apart(last):
    """What is wrong with what an Apart makes of the deaths of its process."""
    recorder = Written()
    client = Apart("transactor-0", "nowhere", recorder, 7, [["t", 0]])
    client.PROGRAM = [sys.executable, "-c", DYING, last, f"x: {ASSERTION}\n"]
    client.start()
    deadline = time.monotonic() + 60
    while recorder.committed < 3 and client.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    if last == "ends":
        client.stop()
    client.join(60)
    # What the last process was in when it ended was told by nobody.
    expected, at = [], 10**9
    for deaths, ended in enumerate(["fail", "info", None]):
        seed = f"7 {deaths}" if deaths else "7"
        for kind, value in [("ok", at), (ended, at + 1)]:
            expected += [(kind, [["send", "t-0", [None, value]], seed])] if kind else []
        at += 10**6
    found = [(event["type"], event["value"]) for event in recorder.events]
    if found != expected:
        return f"found {json.dumps(found)}, expected {json.dumps(expected)}"
    if client.is_alive() or client.deaths != 2 or recorder.committed != 3:
        return f"alive: {client.is_alive()}, deaths: {client.deaths}, committed: {recorder.committed}"
    if any(event["time"] <= 2 for event in recorder.events if event["type"] != "ok"):
        return "what became of a transaction is said to have been known before the process died"
    is_told = "another fault" in (client.error or "")
    return None if is_told == (last == "dies") else f"its error is {client.error}"


def main():
    recorded = checker.read(DATA / "recorded.jsonl")
    failed = []
    clean = checker.anomalies(recorded)
    if clean:
        failed.append(f"the recorded history: {clean}")
    for plant, expected, beside in PLANTED:
        history = Recorded(recorded)
        plant(history)
        found = checker.anomalies(history.events)
        if expected not in found or set(found) - beside != {expected}:
            failed.append(f"{plant.__name__}: expected {expected}, found { {name: texts[:2] for name, texts in found.items()} }")
    small = [path for path in sorted(DATA.glob("*.jsonl")) if path.name != "recorded.jsonl"]
    for path in small:
        expected = set(path.open().readline().removeprefix("# expect:").split())
        found = checker.anomalies(checker.read(path))
        if set(found) != expected:
            failed.append(f"{path.name}: expected {sorted(expected)}, found {found}")
    ways = ["ends", "dies"]
    failed += [f"a process apart that {last}: {wrong}" for last in ways if (wrong := apart(last))]
    for text in failed:
        print(f"FAILED {text}")
    print(f"checker: {1 + len(PLANTED) + len(small) + len(ways) - len(failed)} passed, {len(failed)} failed")
    sys.exit(1 if failed else 0)


main()
