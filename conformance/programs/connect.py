"""Kafka Connect 4.3.1, standalone and distributed: a file through a topic into a file, and the worker's REST."""
import json, shutil, urllib.error, urllib.request

from lib import KAFKA, Process, equal, free_port, java, properties, until

STRING = "org.apache.kafka.connect.storage.StringConverter"
FILE = "org.apache.kafka.connect.file.FileStream"


def worker(broker, work, **more):
    plugins = work / "plugins"
    if not plugins.exists():
        plugins.mkdir()
        shutil.copy(next((KAFKA / "libs").glob("connect-file-*.jar")), plugins)
    port = free_port()
    values = {"bootstrap.servers": broker.address, "offset.flush.interval.ms": 500, "listeners": f"http://127.0.0.1:{port}",
              "plugin.discovery": "service_load", "plugin.path": plugins, "key.converter": STRING, "value.converter": STRING,
              **{k.replace("_", "."): v for k, v in more.items()}}
    return port, properties(work / f"worker-{port}.properties", values)


def source(work, name="source", topic="lines"):
    return {"name": name, "connector.class": f"{FILE}SourceConnector", "tasks.max": "1", "file": str(work / f"{name}.txt"), "topic": topic}


def sink(work, name="sink", topic="lines"):
    return {"name": name, "connector.class": f"{FILE}SinkConnector", "tasks.max": "1", "file": str(work / f"{name}.out"), "topics": topic}


class Lines:
    """A growing file of numbered lines, and what the other file must be. ASCII: FileStreamSource counts its offset in characters."""

    def __init__(self, path, out):
        self.path, self.out, self.all = path, out, []

    def write(self, n):
        new = [f"line {i} of {self.path.stem}" for i in range(len(self.all), len(self.all) + n)]
        self.all += new
        with open(self.path, "a") as f:
            f.writelines(line + "\n" for line in new)

    def arrived(self):
        return self.out.read_text().splitlines() if self.out.exists() else []


def standalone(broker, work):
    """Both connectors from property files; stopped and started again it goes on from its offset file and its group's offsets."""
    broker.create("lines", 3)
    _, config = worker(broker, work, offset_storage_file_filename=work / "offsets")
    files = [properties(work / f"{c['name']}.properties", c) for c in (source(work), sink(work))]
    lines = Lines(work / "source.txt", work / "sink.out")
    for _ in range(2):
        process = Process(java("org.apache.kafka.connect.cli.ConnectStandalone", config, *files), work / "connect.log")
        try:
            lines.write(500)
            until("all lines are in the sink", lambda: process.check() or sorted(lines.arrived()) == sorted(lines.all), 90)
            assert process.stop() in (0, 130, 143), process.tail()
        finally:
            if process.running():
                process.kill()
    equal("the topic", [v.decode() for v in sorted(v for _, v in broker.read_all("lines"))], sorted(lines.all))
    equal("the sink", sorted(lines.arrived()), sorted(lines.all))


class Rest:
    def __init__(self, port):
        self.base = f"http://127.0.0.1:{port}"

    def __call__(self, method, path, body=None):
        """Status and answer; a rebalance (409) and a worker that starts are waited for."""
        def once():
            request = urllib.request.Request(self.base + path, method=method, headers={"Content-Type": "application/json"},
                                             data=None if body is None else json.dumps(body).encode())
            try:
                try:
                    answer = urllib.request.urlopen(request, timeout=30)
                except urllib.error.HTTPError as e:
                    answer = e
                text = answer.read()
                return None if answer.status in (409, 503) else (answer.status, json.loads(text) if text else None)
            except (OSError, json.JSONDecodeError):
                return None
        return until(f"an answer to {method} {path}", once, 120)

    def state(self, name):
        """State of the connector, and of its tasks."""
        status, answer = self("GET", f"/connectors/{name}/status")
        return (answer["connector"]["state"], *(t["state"] for t in answer["tasks"])) if status == 200 else status

    def wait(self, name, *state):
        until(f"{name} is {state}", lambda: self.state(name) == state or None, 90)


def distributed(broker, work):
    """Two workers in a group: every call of the REST that changes something, a worker killed, the broker killed, the internal topics."""
    settings = {"group_id": "workers", "config_storage_topic": "connect-configs", "offset_storage_topic": "connect-offsets",
                "status_storage_topic": "connect-status", "config_storage_replication_factor": 1, "offset_storage_replication_factor": 1,
                "status_storage_replication_factor": 1, "offset_storage_partitions": 5, "session_timeout_ms": 6000, "heartbeat_interval_ms": 1000,
                "scheduled_rebalance_max_delay_ms": 1000, "consumer_auto_offset_reset": "earliest", "exactly_once_source_support": "enabled"}

    def start(n):
        port, config = worker(broker, work, **settings)
        return Process(java("org.apache.kafka.connect.cli.ConnectDistributed", config), work / f"connect-{n}.log"), Rest(port)

    broker.create("lines", 3)
    lines = Lines(work / "source.txt", work / "sink.out")
    lines.write(300)
    first, rest = start(1)
    second = None

    def all_arrived(what):
        until(f"all lines are in the sink {what}", lambda: sorted(lines.arrived()) == sorted(lines.all), 120)

    try:
        equal("create source", rest("POST", "/connectors", {"name": "source", "config": source(work)})[0], 201)
        equal("create sink", rest("PUT", "/connectors/sink/config", sink(work))[0], 201)
        equal("list", sorted(rest("GET", "/connectors")[1]), ["sink", "source"])
        equal("validate", rest("PUT", "/connector-plugins/FileStreamSource/config/validate", {k: v for k, v in source(work).items() if k != "topic"})[1]["error_count"], 1)
        for name in "source", "sink":
            rest.wait(name, "RUNNING", "RUNNING")
        all_arrived("at first")
        topics_of_connect(broker)

        # Paused, nothing moves; resumed, everything does.
        equal("pause", rest("PUT", "/connectors/source/pause")[0], 202)
        rest.wait("source", "PAUSED", "PAUSED")
        lines.write(100)
        broker.read_all("lines")
        equal("lines while paused", len(broker.read_all("lines")), 300)
        equal("resume", rest("PUT", "/connectors/source/resume")[0], 202)
        rest.wait("source", "RUNNING", "RUNNING")
        all_arrived("after a pause")
        equal("restart", rest("POST", "/connectors/sink/restart?includeTasks=true&onlyFailed=false")[0], 202)
        equal("restart of a task", rest("POST", "/connectors/source/tasks/0/restart")[0], 204)
        for name in "source", "sink":
            rest.wait(name, "RUNNING", "RUNNING")
        lines.write(100)
        all_arrived("after restarts")

        # A second worker takes its part; the first is killed, and then the broker.
        second, rest2 = start(2)
        owners = lambda r: {r("GET", f"/connectors/{n}/status")[1]["tasks"][0]["worker_id"] for n in ("source", "sink")}
        until("two workers share the tasks", lambda: len(owners(rest2)) == 2, 90)
        first.kill()
        for name in "source", "sink":
            rest2.wait(name, "RUNNING", "RUNNING")
        until("one worker has both tasks", lambda: len(owners(rest2)) == 1, 90)
        lines.write(100)
        until("all lines are on the topic after a worker was killed", lambda: len(broker.read_all("lines")) == len(lines.all), 120)
        broker.restart_killed()
        lines.write(100)
        until("all lines are on the topic after the broker was killed", lambda: len(broker.read_all("lines")) == len(lines.all), 120)
        # A source with exactly-once support; the sink is at least once, and a killed one may write again.
        equal("the topic", sorted(v.decode() for _, v in broker.read_all("lines")), sorted(lines.all))
        until("all lines are in the sink", lambda: set(lines.arrived()) == set(lines.all), 120)
        offsets(broker, rest2, lines, work)

        for name in "source", "sink":
            equal("delete", rest2("DELETE", f"/connectors/{name}")[0], 204)
        equal("list after deletes", rest2("GET", "/connectors")[1], [])
        equal("a connector that is not there", rest2("GET", "/connectors/sink")[0], 404)
        assert second.stop() in (0, 130, 143), second.tail()
        # A worker that starts on these topics knows that there is nothing.
        second, rest3 = start(3)
        equal("list in a new worker", rest3("GET", "/connectors")[1], [])
        assert second.stop() in (0, 130, 143), second.tail()
    finally:
        for process in first, second:
            if process and process.running():
                process.kill()


def topics_of_connect(broker):
    topics = broker.topics()
    for name, partitions in ("configs", 1), ("offsets", 5), ("status", 5):
        equal(f"partitions of connect-{name}", topics[f"connect-{name}"], partitions)
        equal(f"policy of connect-{name}", broker.configs(f"connect-{name}")["cleanup.policy"], "compact")
    configs = {k.decode(): v for k, v in broker.read_all("connect-configs")}
    equal("the config in its topic", json.loads(configs["connector-source"])["properties"]["topic"], "lines")
    status = {k.decode() for k, _ in broker.read_all("connect-status")}
    assert {"status-connector-source", "status-task-source-0", "status-connector-sink"} <= status, status


def offsets(broker, rest, lines, work):
    """Offsets read, altered and reset, of both kinds: a sink's are a consumer group's."""
    size = lines.path.stat().st_size
    until("the source's offset is the file's size", lambda: rest("GET", "/connectors/source/offsets")[1] == {"offsets": [
        {"partition": {"filename": str(lines.path)}, "offset": {"position": size}}]}, 60)
    def committed():
        return sum(o["offset"]["kafka_offset"] for o in rest("GET", "/connectors/sink/offsets")[1]["offsets"])
    until("the sink has committed all", lambda: committed() >= len(lines.all), 60)
    for name in "source", "sink":
        equal("stop", rest("PUT", f"/connectors/{name}/stop")[0], 204)
        rest.wait(name, "STOPPED")
    equal("reset of a sink's offsets", rest("DELETE", "/connectors/sink/offsets")[0], 200)
    equal("a sink's offsets after a reset", rest("GET", "/connectors/sink/offsets")[1], {"offsets": []})
    half = len("".join(line + "\n" for line in lines.all[:350]).encode())
    equal("a source's offset altered", rest("PATCH", "/connectors/source/offsets", {"offsets": [
        {"partition": {"filename": str(lines.path)}, "offset": {"position": half}}]})[0], 200)
    lines.out.unlink()
    for name in "source", "sink":
        equal("resume", rest("PUT", f"/connectors/{name}/resume")[0], 202)
        rest.wait(name, "RUNNING", "RUNNING")
    again = sorted(lines.all + lines.all[350:])
    until("all lines are there once, and what was read again twice", lambda: sorted(lines.arrived()) == again, 120)
