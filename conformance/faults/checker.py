"""Finds in a history what a log must never do. The names are those of Jepsen's analyses of Kafka and Redpanda.

checker.py HISTORY...: prints the anomalies of recorded histories; the exit status tells whether there are any.

A history is a file of JSON objects, one a line, in the order in which they happened. `time` is in seconds of one monotonic clock, a key
names a partition (`load-0`), a value is in no two sends. What happens is in `f`:
  send       one record by a plain producer: `invoke` with value [key, value], then `ok` with [key, [offset, value]], `fail` (it was
             refused) or `info` (nobody knows). Both carry the same `op`.
  txn        a transaction that sends and reads: `ok` (committed), `fail` (aborted, or its commit was never asked for) or `info`, with
             steps ["send", key, [offset or null, value]] and ["poll", {key: [[offset, value], ...]}], `began`, and `committing`,
             the time at which its commit was asked for; `log` is the partition of the coordinator's log that holds its state.
  poll       what one consumer (`process`) read, with `isolation` and `began`.
  assign     the consumer starts anew, at {key: offset} or, with null, wherever its group says.
  commit     a group's offsets {key: offset} were acknowledged, asked for when it `began`; `committed` tells what they are at the end.
             `group` names it, `log` the partition of the coordinator's log.
  lost       the broker told a consumer that its position is not in the log.
  final      everything that is there at the end, with `isolation`: {key: [[offset, value], ...]}.
  copy       at the end, {key: [[value, ...], [value, ...]]}: what a copier should have copied, and its copy.
  fsync-failed  an fsync of the log of `key` (null: of something else) failed; `start`: the broker began anew.
"""
import bisect, collections, json, sys

COMMITTED, UNCOMMITTED = "read_committed", "read_uncommitted"


class History:
    def __init__(self, events):
        self.sends = []         # every send: dict(process, key, value, offset, outcome, invoked, ended, txn)
        self.txns = []          # every transaction: dict(process, steps, outcome, began, committing, time)
        self.polls = []         # every read: dict(process, isolation, began, time, value)
        self.readers = collections.defaultdict(list)  # process: its assigns and polls, in order
        self.final, self.commits, self.committed, self.lost, self.copies = {}, [], {}, [], []
        self.fsync_failures = []  # (time, key, end of that broker)
        open_sends = {}
        for event in events:
            self.add(event, open_sends)
        # A send in flight when the history ends may have happened.

    def add(self, e, open_sends):
        f, kind = e["f"], e.get("type")
        if f == "send" and kind == "invoke":
            key, value = e["value"]
            send = dict(process=e["process"], key=key, value=value, offset=None, outcome="info", invoked=e["time"], ended=None, txn=None)
            open_sends[e["op"]] = send
            self.sends.append(send)
        elif f == "send":
            send = open_sends.pop(e["op"])
            send["outcome"], send["ended"] = kind, e["time"]
            if kind == "ok":
                send["offset"] = e["value"][1][0]
        elif f == "txn":
            txn = dict(process=e["process"], steps=e["value"], outcome=kind, began=e["began"], committing=e.get("committing"), time=e["time"], log=e.get("log"))
            self.txns.append(txn)
            for step, *rest in e["value"]:
                if step == "send":
                    key, (offset, value) = rest
                    self.sends.append(dict(process=e["process"], key=key, value=value, offset=offset, outcome=kind, invoked=e["began"], ended=e["time"], txn=txn))
                else:
                    self.read(e["process"], COMMITTED, e["began"], e["time"], rest[0], txn)
        elif f == "poll":
            self.read(e["process"], e["isolation"], e["began"], e["time"], e["value"], None)
        elif f == "assign":
            self.readers[e["process"]].append(("assign", e["value"]))
        elif f == "final":
            self.final[e["isolation"]] = {key: [tuple(r) for r in records] for key, records in e["value"].items()}
        elif f == "commit":
            self.commits.append(e)
        elif f == "committed":
            self.committed[e["group"]] = e["value"]
        elif f == "lost":
            self.lost.append(e)
        elif f == "copy":
            self.copies.append(e["value"])
        elif f == "fsync-failed":
            self.fsync_failures.append([e["time"], e["value"], None])
        elif f == "start":
            for failure in self.fsync_failures:
                failure[2] = failure[2] or e["time"]

    def read(self, process, isolation, began, time, value, txn):
        poll = dict(process=process, isolation=isolation, began=began, time=time, value=value, txn=txn)
        self.polls.append(poll)
        self.readers[process].append(("poll", poll))


class Checker:
    def __init__(self, history):
        self.h, self.found = history, collections.defaultdict(list)
        self.writer = {send["value"]: send for send in history.sends}
        # (key, offset): values, and (key, value): offsets, over all that was acknowledged or read.
        self.at, self.places = collections.defaultdict(set), collections.defaultdict(set)
        for send in history.sends:
            if send["offset"] is not None:
                self.seen(send["key"], send["offset"], send["value"])
        for poll in history.polls:
            for key, records in poll["value"].items():
                for offset, value in records:
                    self.seen(key, offset, value)
        for content in history.final.values():
            for key, records in content.items():
                for offset, value in records:
                    self.seen(key, offset, value)
        self.values = {isolation: {value for records in content.values() for _, value in records} for isolation, content in history.final.items()}
        self.offsets = {isolation: {key: [offset for offset, _ in records] for key, records in content.items()} for isolation, content in history.final.items()}

    def seen(self, key, offset, value):
        self.at[key, offset].add(value)
        self.places[key, value].add(offset)

    def tell(self, anomaly, text):
        self.found[anomaly].append(text)

    def check(self):
        self.places_agree()
        self.nothing_is_lost()
        self.reads_are_committed()
        self.no_circles()
        self.polls_are_in_order()
        self.sends_are_in_order()
        self.groups_keep_offsets()
        self.copies_are_equal()
        self.nothing_after_failed_fsync()
        return dict(self.found)

    def places_agree(self):
        for (key, offset), values in self.at.items():
            if len(values) > 1:
                self.tell("inconsistent-offsets", f"{key} held {sorted(values)} at offset {offset}")
        for (key, value), offsets in self.places.items():
            if len(offsets) > 1:
                self.tell("duplicate", f"{value} is in {key} at {sorted(offsets)}")

    def nothing_is_lost(self):
        read = {isolation: set() for isolation in (COMMITTED, UNCOMMITTED)}
        for poll in self.h.polls:
            read[poll["isolation"]].update(value for records in poll["value"].values() for _, value in records)
        for send in self.h.sends:
            for isolation in (COMMITTED, UNCOMMITTED):
                if isolation not in self.values or send["value"] in self.values[isolation]:
                    continue
                was_read = send["value"] in read[isolation]
                if send["outcome"] == "ok" or (was_read and send["outcome"] == "info"):
                    # Behind the end of everything it may only not be visible yet.
                    ends = self.offsets[isolation].get(send["key"], [])
                    at_end = send["offset"] is not None and not was_read and (not ends or ends[-1] < send["offset"])
                    how = "was read" if send["outcome"] != "ok" else "was acknowledged"
                    self.tell("unseen" if at_end else "lost-write", f"{send['value']} of {send['process']} in {send['key']} {how}, and {isolation} does not find it at the end")
        for txn in self.h.txns:
            sent = [step[2][1] for step in txn["steps"] if step[0] == "send"]
            there = [value for value in sent if value in self.values.get(COMMITTED, ())]
            if txn["outcome"] == "info" and there and len(there) < len(sent):
                self.tell("torn-transaction", f"of {sent} of {txn['process']} only {there} were committed")
        for isolation, values in self.values.items():
            strangers = values - self.writer.keys()
            if strangers:
                self.tell("invented", f"{isolation} finds {sorted(strangers, key=str)[:5]}, which nobody sent")

    def reads_are_committed(self):
        reads = [(poll["time"], poll["process"], value, poll["isolation"]) for poll in self.h.polls for records in poll["value"].values() for _, value in records]
        reads += [(None, "the end", value, isolation) for isolation, values in self.values.items() for value in values]
        for time, process, value, isolation in reads:
            send = self.writer.get(value)
            if send is None:
                continue
            if send["outcome"] == "fail" and (isolation == COMMITTED or send["txn"] is None):
                self.tell("aborted-read", f"{process} read {value}, which {send['process']} {'aborted' if send['txn'] else 'was refused'}")
            elif isolation == COMMITTED and send["txn"] and time is not None:
                asked = send["txn"]["committing"]
                if asked is None or time < asked:
                    self.tell("dirty-read", f"{process} read {value} before {send['process']} asked for its commit")
                elif send["txn"]["outcome"] == "info" and COMMITTED in self.values and value not in self.values[COMMITTED]:
                    self.tell("dirty-read", f"{process} read {value} of {send['process']}, which was never committed")

    def no_circles(self):
        """Circular information flow (G1c): transactions that read from each other, or from what their process does later."""
        after = collections.defaultdict(set)
        number = {id(txn): n for n, txn in enumerate(self.h.txns)}
        last = {}
        for n, txn in enumerate(self.h.txns):
            if txn["process"] in last:
                after[last[txn["process"]]].add(n)
            last[txn["process"]] = n
        for poll in self.h.polls:
            for records in poll["value"].values() if poll["txn"] else ():
                for _, value in records:
                    writer = self.writer.get(value)
                    if writer and writer["txn"] and writer["txn"] is not poll["txn"]:
                        after[number[id(writer["txn"])]].add(number[id(poll["txn"])])
        for circle in circles(len(self.h.txns), after):
            names = [f"{self.h.txns[n]['process']} at {self.h.txns[n]['began']:.3f}" for n in circle[:6]]
            self.tell("circular-flow", f"transactions depend on each other: {', '.join(names)}")

    def polls_are_in_order(self):
        for process, events in self.h.readers.items():
            position = {}
            for kind, event in events:
                if kind == "assign":
                    position = dict(event or {})
                    continue
                offsets = self.offsets.get(event["isolation"], {})
                for key, records in event["value"].items():
                    for offset, value in records:
                        expected = position.get(key)
                        if expected is not None and offset < expected:
                            self.tell("nonmonotonic-poll", f"{process} read {key} at {offset} after it was at {expected}")
                        elif expected is not None:
                            known = offsets.get(key, [])
                            skipped = known[bisect.bisect_left(known, expected) : bisect.bisect_left(known, offset)]
                            if skipped:
                                self.tell("poll-skip", f"{process} went from {expected} to {offset} in {key}, past {skipped[:5]}")
                        position[key] = offset + 1
        for event in self.h.lost:
            self.tell("offset-out-of-range", f"{event['process']}: {event['value']}")

    def sends_are_in_order(self):
        """A producer's records are in the order in which it sent them, and anybody's behind those acknowledged before."""
        by_process, by_key = collections.defaultdict(list), collections.defaultdict(list)
        for send in self.h.sends:
            if send["offset"] is not None and send["outcome"] != "fail":
                by_process[send["process"], send["key"]].append(send)
                by_key[send["key"]].append(send)
        for (process, key), sends in by_process.items():
            for before, send in zip(sends, sends[1:]):
                if send["offset"] <= before["offset"]:
                    self.tell("nonmonotonic-send", f"{process} sent {before['value']} to {key} at {before['offset']}, then {send['value']} at {send['offset']}")
        for key, sends in by_key.items():
            ended = sorted((send for send in sends if send["outcome"] == "ok"), key=lambda send: send["ended"])
            at, highest = 0, None
            for send in sorted(sends, key=lambda send: send["invoked"]):
                while at < len(ended) and ended[at]["ended"] < send["invoked"]:
                    if highest is None or ended[at]["offset"] > highest["offset"]:
                        highest = ended[at]
                    at += 1
                if highest and send["offset"] <= highest["offset"]:
                    self.tell("nonmonotonic-send", f"{send['value']} of {send['process']} is in {key} at {send['offset']}, although {highest['offset']} was acknowledged before it was sent")

    def groups_keep_offsets(self):
        highest = collections.defaultdict(dict)
        for commit in self.h.commits:
            group = commit["group"]
            for key, offset in commit["value"].items():
                highest[group][key] = max(offset, highest[group].get(key, -1))
        for group, found in self.h.committed.items():
            for key, offset in highest[group].items():
                if found.get(key, -1) < offset:
                    self.tell("lost-commit", f"group {group} committed {offset} in {key} and finds {found.get(key)}")
            members = [poll for poll in self.h.polls if poll["process"].startswith(group)]
            read = {(key, offset) for poll in members for key, records in poll["value"].items() for offset, _ in records}
            for key, end in found.items():
                missed = [o for o in self.offsets.get(COMMITTED, {}).get(key, []) if o < end and (key, o) not in read]
                if missed:
                    self.tell("poll-skip", f"group {group} is at {end} in {key}, and none of its members read {missed[:5]}")

    def copies_are_equal(self):
        for copy in self.h.copies:
            for key, (wanted, found) in copy.items():
                if wanted != found:
                    extra, missing = collections.Counter(found) - collections.Counter(wanted), collections.Counter(wanted) - collections.Counter(found)
                    if missing:
                        self.tell("lost-write", f"the copy of {key} lacks {list(missing)[:5]}")
                    if extra:
                        self.tell("duplicate", f"the copy of {key} has {list(extra)[:5]} once more")
                    if not missing and not extra:
                        self.tell("nonmonotonic-send", f"the copy of {key} is in another order")

    def nothing_after_failed_fsync(self):
        acked = [(send["key"], send["invoked"], send["ended"], f"{send['value']} of {send['process']}") for send in self.h.sends if send["outcome"] == "ok"]
        acked += [(txn["log"], txn["committing"], txn["time"], f"a commit of {txn['process']}") for txn in self.h.txns if txn["outcome"] == "ok"]
        acked += [(commit.get("log"), commit["began"], commit["time"], f"offsets of {commit['group']}") for commit in self.h.commits]
        for failed, key, ended in self.h.fsync_failures:
            for log, asked, told, what in acked:
                if log == key and key is not None and failed < asked and (ended is None or told < ended):
                    self.tell("acknowledged-after-failed-fsync", f"{what} in {key}, asked for {asked - failed:.3f} s after the failure")


def circles(count, after):
    """The strongly connected components of more than one node (Tarjan's, without recursion)."""
    index, low, stack, on_stack, found, n = [None] * count, [0] * count, [], set(), [], 0
    for root in range(count):
        if index[root] is not None:
            continue
        work = [(root, iter(after.get(root, ())))]
        index[root] = low[root] = n
        n += 1
        stack.append(root)
        on_stack.add(root)
        while work:
            node, rest = work[-1]
            step = next(rest, None)
            if step is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    circle = []
                    while not circle or circle[-1] != node:
                        circle.append(stack.pop())
                        on_stack.discard(circle[-1])
                    if len(circle) > 1:
                        found.append(circle)
            elif index[step] is None:
                index[step] = low[step] = n
                n += 1
                stack.append(step)
                on_stack.add(step)
                work.append((step, iter(after.get(step, ()))))
            elif step in on_stack:
                low[node] = min(low[node], index[step])
    return found


def read(path):
    with open(path) as file:
        return [json.loads(line) for line in file if line.strip() and not line.startswith("#")]


def anomalies(events):
    return Checker(History(events)).check()


def main():
    bad = False
    for path in sys.argv[1:]:
        for anomaly, texts in anomalies(read(path)).items():
            bad = True
            print(f"{path}: {anomaly}: {len(texts)}, e.g. {texts[0]}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
