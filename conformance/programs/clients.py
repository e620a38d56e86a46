"""Client libraries: each has a program that runs the same scenarios and checks what it reads; then each reads what all others wrote.

A program is called `PROGRAM BOOTSTRAP write RECORDS PREFIX` for its scenarios and `PROGRAM BOOTSTRAP read (TOPIC RECORDS)...`. It prints
`ok NAME` or `FAIL NAME: why`, and `kill` where it wants the broker killed and started again while it goes on.
"""
import base64, json, os, random, shutil, subprocess, sys, threading

from lib import BUILT, HERE, Skip

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
PYTHON = ["kafka-python", "aiokafka", "confluent-kafka"]
# What a client cannot send, so that its own topics go without: see `records`.
CANNOT = {"kafka-python": {"null null", "null header"}, "aiokafka": {"null null"}, "kafka.js": {"null header"}}
SOME_CODECS = {"kafka.js": CODECS[:3]}


def records(without):
    """What is hard to carry: nulls, empty things, repeated headers, bytes that are no text, long values."""
    dice = random.Random(1)
    text = lambda b: None if b is None else base64.b64encode(b).decode()
    all_ = [
        ("", b"k", b"v", [("h", b"1")]),
        ("", None, b"no key", []),
        ("", b"no value", None, [("same", b"1"), ("same", b"2"), ("empty", b"")]),
        ("null null", None, None, []),
        ("", b"", b"", []),
        ("null header", b"null header", b"v", [("null", None)]),
        ("", "ñandú".encode(), "café".encode() * 100, [("ü", b"\x00\xff")]),
        ("", bytes(range(256)), bytes(range(255, -1, -1)) * 40, []),
        ("", b"long", dice.randbytes(200_000), []),
        *(("", str(i).encode(), b"x" * i, [("i", str(i).encode())]) for i in range(200)),
    ]
    return [{"key": text(k), "value": text(v), "headers": [{"key": n, "value": text(b)} for n, b in h], "timestamp": 1_700_000_000_000 + i}
            for i, (kind, k, v, h) in enumerate(all_) if kind not in without]


def program(name):
    """The command of a client's program, built where it must be."""
    if name in PYTHON:
        return [sys.executable, HERE / f"python/{name.replace('-', '_')}_client.py"]
    return {"kafka.js": kafka_js, "franz-go": go, "sarama": go, "rdkafka": rust}[name](name)


def tool(command):
    if not shutil.which(command):
        raise Skip(f"no {command}")


def build(argv, **options):
    done = subprocess.run([str(a) for a in argv], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if done.returncode:
        raise Skip(f"{' '.join(str(a) for a in argv)} failed: {done.stdout.strip()[-500:]}")


def kafka_js(_):
    tool("npm")
    directory = BUILT / "javascript"
    directory.mkdir(parents=True, exist_ok=True)
    for file in "package.json", "package-lock.json", "client.js":
        shutil.copy(HERE / "javascript" / file, directory)
    if not (directory / "node_modules/kafkajs").exists():
        build(["npm", "ci", "--no-audit", "--no-fund"], cwd=directory)
    return ["node", directory / "client.js"]


def go(name):
    tool("go")
    binary = BUILT / f"go/{name}"
    build(["go", "build", "-o", binary, f"./{name.replace('-', '')}"], cwd=HERE / "go")
    return [binary]


def rust(_):
    tool("cargo")
    target = BUILT / "rust"
    build(["cargo", "build", "--quiet", "--locked", "--manifest-path", HERE / "rust/Cargo.toml"], env={**os.environ, "CARGO_TARGET_DIR": str(target)})
    return [target / "debug/rdkafka-client"]


def run(broker, work, name, *arguments):
    """Runs a client's program to its end; what it says failed is the error."""
    argv = [str(a) for a in (*program(name), broker.address, *arguments)]
    with open(work / f"{name}.log", "a") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)
        timer = threading.Timer(300, process.kill)
        timer.start()
        lines = []
        try:
            for line in process.stdout:
                lines.append(line.rstrip())
                log.write(line)
                if line == "kill\n":
                    broker.restart_killed()
        finally:
            process.kill()
            timer.cancel()
            status = process.wait()
    failed = [l for l in lines if l.startswith("FAIL")]
    assert not failed and status == 0, "; ".join(failed) or f"status {status}: {(work / f'{name}.log').read_text()[-1500:]}"
    return sum(l.startswith("ok ") for l in lines)


def write(broker, work, name):
    file = work / f"{name}.json"
    file.write_text(json.dumps(records(CANNOT.get(name, set()))))
    return f"{run(broker, work, name, 'write', file, f'{name}-')} scenarios"


def read_others(broker, work, name, writers):
    """Topics that the other clients wrote, in every codec."""
    both = lambda w: [c for c in CODECS if c in SOME_CODECS.get(w, CODECS) and c in SOME_CODECS.get(name, CODECS)]
    topics = [a for w in writers if w != name for codec in both(w) for a in (f"{w}-{codec}", work / f"{w}.json")]
    return f"{run(broker, work, name, 'read', *topics)} topics"
