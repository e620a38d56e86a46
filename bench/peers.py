"""What the benchmarks share: starting brokers, building load generators, reading /proc."""
import os, re, shutil, signal, socket, statistics, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("CAUDAL_SHARED", ROOT.parent / "shared"))
PEERS = Path(os.environ.get("PEERS_DIR", Path.home() / ".cache/caudal-peers"))
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
KAFKA = PEERS / "kafka/bin"


def run(work, seconds=300, codes=(0,)):
    """The output of a command that must end with one of `codes` within some time; the whole benchmark ends when it does not."""
    work = [str(w) for w in work]
    try:
        done = subprocess.run(work, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as e:
        sys.exit(f"bench: {' '.join(work)} took more than {seconds} s; it printed: {(e.stdout or b'')[-500:]}")
    if done.returncode not in codes:
        sys.exit(f"bench: {' '.join(work)} failed ({done.returncode}): {done.stdout[-500:]}{done.stderr[-500:]}")
    return done.stdout


def need(path, how):
    if not path.exists():
        sys.exit(f"bench: {path.name} is missing; {how}")
    return path


def build(engine=False):
    """The release binary; without the engine the build takes a minute instead of twelve."""
    features = [] if engine else ["--no-default-features"]
    subprocess.run(["cargo", "build", "--release", "-p", "caudal", *features], cwd=ROOT, check=True)
    return TARGET / "release/caudal"


def touch_page_cache(where, size):
    """Has the kernel take, and give back, as many pages as the next load will fill. On a virtual machine whose host takes back free memory
    (balloon with page reporting) the first touch of a page costs 1 to 2.5 CPU-s/GB, whoever touches it; what was freed within the last
    second costs nothing. Without this the figures of all sides swing by that much from round to round."""
    file, chunk = where / "touched", os.urandom(1 << 20)
    with open(file, "wb", buffering=0) as f:
        for _ in range(size >> 20):
            f.write(chunk)
    file.unlink()


def compile_c(name, *libs):
    source = need(SHARED / "peers/load" / f"{name}.c", "the load generators lie in shared/peers/load")
    out = TARGET / "bench" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cc", "-O2", "-msse4.2", "-o", out, source, *libs], check=True)
    return out


def bare(mode, chunk, file):
    """CPU s/GB of the bare loop. It waits for ever when its port is taken, so it gets a few fresh ones."""
    for _ in range(5):
        if mode == "sink":
            touch_page_cache(file.parent, int(2.2 * (1 << 30)))
        try:
            out = subprocess.run([TARGET / "bench/bare", mode, str(free_port()), str(chunk), file], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            continue
        found = re.search(r"([\d.]+) CPU-s/GB", out.stdout)
        if found:
            return float(found[1]) / 1.073741824
    sys.exit(f"bench: bare {mode} did not end; is there room for 2 GiB in {file.parent}?")


def floor():
    """The bare loop that receives, checksums and writes ("sink") and the one that sends a file ("source"), CPU s/GB, once per size of its chunks."""
    if not (TARGET / "bench/bare").exists():
        compile_c("bare")
    with tempfile.TemporaryDirectory() as scratch:
        for chunk in 16384, 65536, 131072:
            yield {mode: bare(mode, chunk, Path(scratch) / "bare") for mode in ("sink", "source")}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def cpu_s(pid):
    """User and system time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def answers(port):
    """Whether a broker answers a Metadata request (version 1, all topics, no client id)."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as s:
            s.settimeout(10)
            s.sendall(bytes.fromhex("0000000e0003000100000007ffffffffffff"))
            return len(s.recv(8)) == 8
    except OSError:
        return False


class Broker:
    """A broker of its own on loopback, gone at the end of the `with`."""

    def __init__(self, command, port, where, topic_tool):
        self.topic_tool = topic_tool
        self.port, self.where, self.address = port, where, f"127.0.0.1:{port}"
        self.log = open(where / "broker.log", "w")
        self.command = [str(c) for c in command]
        self.start()

    def start(self):
        """`start_s` is the time to the first answer."""
        start = time.monotonic()
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=subprocess.STDOUT)
        while not answers(self.port):
            if self.process.poll() is not None or time.monotonic() - start > 120:
                sys.exit(f"bench: {self.command[0]} did not start; see {self.log.name}")
            time.sleep(0.002)
        self.start_s = time.monotonic() - start
        self.pid = self.process.pid

    def again(self, how):
        """Ends it with a signal, and starts it on the same directory."""
        self.process.send_signal(how)
        self.process.wait(120)
        self.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.where, ignore_errors=True)

    def topic(self, name, partitions, *configs):
        sets = [x for config in configs for x in ("--config", config)]
        run([*self.topic_tool, "--bootstrap-server", self.address, "--create", "--topic", name, "--partitions", partitions, "--replication-factor", 1, *sets], 60)

    def drop(self, name):
        run([*self.topic_tool, "--bootstrap-server", self.address, "--delete", "--topic", name], 60)


def caudal(binary, *settings):
    where, port = Path(tempfile.mkdtemp(prefix="caudal-bench-")), free_port()
    sets = [x for s in settings for x in ("--set", s)]
    return Broker([binary, "up", "--data-dir", where / "data", "--port", port, *sets], port, where, [binary, "kafka-topics"])


def kafka():
    where, port, controller = Path(tempfile.mkdtemp(prefix="kafka-bench-")), free_port(), free_port()
    config = where / "server.properties"
    config.write_text(f"""process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
log.dirs={where}/data
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
""")
    storage = need(KAFKA / "kafka-storage.sh", "run `install kafka` in shared/peers")
    cluster = run([storage, "random-uuid"], 60).strip()
    run([storage, "format", "-t", cluster, "-c", config], 60)
    return Broker([KAFKA / "kafka-server-start.sh", config], port, where, [need(KAFKA / "kafka-topics.sh", "run `install kafka` in shared/peers")])


class Table:
    """Prints each figure beside the peer's and the goal, and says at the end what was missed."""

    def __init__(self):
        self.missed, self.level = [], []
        print(f"{time.strftime('%Y-%m-%d %H:%M')}, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        print(f"{'':48} {'caudal':>10} {'peer':>10} {'ratio':>7}  goal", flush=True)

    def versus(self, what, ours, theirs, most):
        """A figure that may be at most so many times the peer's."""
        self.row(what, ours, theirs, f"<= {most:.2g}", ours <= most * theirs)

    def above(self, what, ours, theirs, least):
        """A figure that must be at least so many times the peer's."""
        self.row(what, ours, theirs, f">= {least:.2g}", ours >= least * theirs)

    def rounds(self, what, ours, theirs, more_is_better):
        """A figure of several rounds a side, to be no worse than the peer's by the best of them and by the median. Where the two
        disagree the sides are level: more rounds would turn it either way."""
        sign = 1 if more_is_better else -1
        by_best, by_median = ([sign * pick(sign * v for v in side) for side in (ours, theirs)] for pick in (max, statistics.median))
        ahead = [sign * mine >= sign * other for mine, other in (by_best, by_median)]
        met = ahead[0] if ahead[0] == ahead[1] else None
        medians = f"{'>=' if more_is_better else '<='} 1 (medians {by_median[0]:.2f}, {by_median[1]:.2f})"
        self.row(what, *by_best, medians + ("  level" if met is None else ""), met)
        if met is None:
            self.level.append(what)

    def row(self, what, ours, theirs=None, goal=None, met=None):
        ratio = f"{ours / theirs:7.2f}" if theirs else " " * 7
        shown = f"{theirs:10.2f}" if theirs is not None else " " * 10
        mark = "" if met is None else ("  ok" if met else "  MISSED")
        print(f"{what:48} {ours:10.2f} {shown} {ratio}  {goal or ''}{mark}", flush=True)
        if met is False:
            self.missed.append(what)

    def end(self):
        print(f"load average at the end {os.getloadavg()[0]:.1f}")
        for said, of in (("level", self.level), ("missed", self.missed)):
            if of:
                print(f"{said}: " + ", ".join(of))
