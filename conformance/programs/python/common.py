"""What the Python clients share: the records, the scenarios' loop, and waiting."""
import asyncio, base64, inspect, json, sys, time, traceback, uuid

BOOTSTRAP = sys.argv[1]
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]


def bytes_of(text):
    return None if text is None else base64.b64decode(text)


def load(path):
    """(key, value, headers, timestamp) of each record in a file."""
    with open(path) as f:
        return [(bytes_of(r["key"]), bytes_of(r["value"]), [(h["key"], bytes_of(h["value"])) for h in r["headers"]], r["timestamp"]) for r in json.load(f)]


def fresh(name):
    return f"{name}-{uuid.uuid4().hex[:8]}"


def until(what, done, seconds=60):
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.02)
    return found


def equal(what, found, expected):
    assert found == expected, f"{what}: found {str(found)[:600]}, expected {str(expected)[:600]}"


def kill_broker():
    """The driver kills the broker, and starts it again, while the program goes on."""
    print("kill", flush=True)


def main(scenarios, read):
    """PROGRAM BOOTSTRAP write RECORDS PREFIX: all scenarios; PROGRAM BOOTSTRAP read (TOPIC RECORDS)...: topics that others wrote."""
    call = lambda f, *a: asyncio.run(f(*a)) if inspect.iscoroutinefunction(f) else f(*a)
    rest = sys.argv[3:]
    if sys.argv[2] == "read":
        jobs = [(f"read {t}", read, (t, load(records))) for t, records in zip(rest[::2], rest[1::2])]
    else:
        records, prefix = load(rest[0]), rest[1]
        jobs = [(f.__name__, f, (records, prefix) if f.__name__ == "round_trips" else ()) for f in scenarios]
    failed = 0
    for name, f, arguments in jobs:
        try:
            call(f, *arguments)
            print(f"ok {name}", flush=True)
        except Exception as e:
            traceback.print_exc()
            print(f"FAIL {name}: {type(e).__name__}: {str(e)[:1000]}", flush=True)
            failed += 1
    sys.exit(failed > 0)
