"""The broker under faults: started with `faults.c` beneath it, killed, paused, robbed of what it never synced."""
import mmap, os, signal, socket, struct, subprocess, time
from pathlib import Path

# As `struct control` in faults.c.
NUMBERS = ["clock_offset_ns", "fsync_mode", "fsync_pass", "space_left", "fsyncs_failed", "writes_refused", "clock_reads", "fsyncs", "writes"]
TEXTS = {"fsync_path": 128, "directory": 384}
SIZE = 640
READY = bytes.fromhex("0000000a0012000000000007ffff")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Control:
    """The shared memory that the library obeys."""

    def __init__(self, path, directory):
        path.write_bytes(bytes(SIZE))
        with open(path, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), SIZE)
        self["space_left"] = -1
        self.text("directory", str(directory))

    def __getitem__(self, name):
        return struct.unpack_from("<q", self.memory, 8 * NUMBERS.index(name))[0]

    def __setitem__(self, name, value):
        struct.pack_into("<q", self.memory, 8 * NUMBERS.index(name), value)

    def text(self, name, value):
        at = TEXTS[name]
        self.memory[at : at + 256] = value.encode().ljust(256, b"\0")


class Broker:
    def __init__(self, binary, work, settings, dirs):
        self.binary, self.work, self.settings, self.port = os.path.abspath(binary), work, settings, free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.data = work / "data"
        # The metadata log is in the first.
        self.dirs = [self.data / f"dir-{n}" for n in range(dirs)]
        self.process, self.slowest_start_s, self.starts = None, 0.0, 0
        self.library = work / "faults.so"
        source = Path(__file__).with_name("faults.c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", self.library, source, "-ldl"], check=True)
        self.control = Control(work / "control", self.data)
        self.journal = work / "journal"
        self.journal.touch()
        self.read_to = 0
        # inode -> length of the file as of the last fsync that succeeded.
        self.synced = {}

    def start(self, wait_s=30):
        """How long it took until the first answer; None when the process ended instead."""
        begin = time.monotonic()
        environment = dict(os.environ, LD_PRELOAD=str(self.library), FAULTS_CONTROL=str(self.work / "control"), FAULTS_JOURNAL=str(self.journal))
        with open(self.work / "broker.log", "a") as log:
            arguments = [self.binary, "up", "--port", str(self.port), "--set", "log.dirs=" + ",".join(map(str, self.dirs))]
            for setting in self.settings:
                arguments += ["--set", setting]
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log, env=environment, cwd=self.work)
        self.starts += 1
        while not self.answers():
            if self.process.poll() is not None:
                return None
            if time.monotonic() - begin > wait_s:
                raise SystemExit(f"faults: the broker does not answer within {wait_s} s of its start; see {self.work}/broker.log")
            time.sleep(0.01)
        took = time.monotonic() - begin
        self.slowest_start_s = max(self.slowest_start_s, took)
        return took

    def answers(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as s:
                s.settimeout(5)
                s.sendall(READY)
                return len(s.recv(8)) == 8
        except OSError:
            return False

    def move(self, topic, partition, to):
        """Asks that a partition be moved to another log directory (AlterReplicaLogDirs 1); the error code."""
        text = lambda value: struct.pack(">h", len(value)) + value.encode()
        body = struct.pack(">hhi", 34, 1, 7) + text("faults") + struct.pack(">i", 1) + text(str(to)) + struct.pack(">i", 1) + text(topic) + struct.pack(">ii", 1, partition)
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as s:
                s.settimeout(5)
                s.sendall(struct.pack(">i", len(body)) + body)
                answer = s.makefile("rb")
                return struct.unpack(">h", answer.read(struct.unpack(">i", answer.read(4))[0])[-2:])[0]
        except (OSError, struct.error):
            return None

    def signal(self, number):
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self):
        """The exit status; below zero: the signal."""
        self.signal(signal.SIGKILL)
        return self.process.wait() if self.process else None

    def failed_syncs(self):
        """Reads what the library wrote down since the last call: (time, path) of each fsync that was made to fail."""
        failed = []
        with open(self.journal) as file:
            file.seek(self.read_to)
            for line in file:
                if not line.endswith("\n"):
                    break
                self.read_to += len(line.encode())
                kind, first, rest = line.rstrip("\n").split(" ", 2)
                if kind == "S":
                    self.synced[int(first)] = int(rest.split(" ", 1)[0])
                else:
                    failed.append((float(first), rest))
        return failed

    def lose_unsynced(self, dice):
        """What a power loss takes of a broker that was killed: of each segment, a part of what was not synced. Returns the bytes."""
        lost = 0
        for path in sorted(self.data.rglob("*.log")):
            status = path.stat()
            synced = self.synced.get(status.st_ino, 0)
            if status.st_size > synced:
                keep = synced + dice.choice([0, 0, dice.randrange(status.st_size - synced)])
                lost += status.st_size - keep
                os.truncate(path, keep)
        return lost
