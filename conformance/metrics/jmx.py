#!/usr/bin/env python3
"""conformance/metrics/jmx.py CAUDAL KAFKA AGENT: the page of metrics beside Apache Kafka's meters, as the JMX exporter gives them.

KAFKA is its directory, AGENT the jar of jmx_prometheus_javaagent. Both brokers get the same load. Every name of Caudal's page that
is Kafka's must be there with the same labels, and what the load decides (offsets, sizes, numbers of topics and groups) with the same value.
"""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager

from check import free_port, samples, scrape

RULES = r"""lowercaseOutputName: true
rules:
- {pattern: 'kafka.([\w.]+)<type=(.+), name=(.+)PerSec\w*, (.+)=(.+), (.+)=(.+)><>Count', name: kafka_$1_$2_$3_total, labels: {$4: $5, $6: $7}, type: COUNTER}
- {pattern: 'kafka.([\w.]+)<type=(.+), name=(.+)PerSec\w*, (.+)=(.+)><>Count', name: kafka_$1_$2_$3_total, labels: {$4: $5}, type: COUNTER}
- {pattern: 'kafka.([\w.]+)<type=(.+), name=(.+)PerSec\w*><>Count', name: kafka_$1_$2_$3_total, type: COUNTER}
- {pattern: 'kafka.([\w.]+)<type=(.+), name=(.+), (.+)=(.+), (.+)=(.+)><>(Value|Number)', name: kafka_$1_$2_$3, labels: {$4: $5, $6: $7}}
- {pattern: 'kafka.([\w.]+)<type=(.+), name=(.+), (.+)=(.+)><>(Value|Number)', name: kafka_$1_$2_$3, labels: {$4: $5}}
- {pattern: 'kafka.([\w.]+)<type=(.+), name=(.+)><>(Value|Number)', name: kafka_$1_$2_$3}
- {pattern: 'kafka.([\w.]+)<type=(.+), name=(.+), (.+)=(.+)><>(\d+)thPercentile', name: kafka_$1_$2_$3, labels: {$4: $5, quantile: '0.$6'}}
- {pattern: 'kafka.([\w.]+)<type=(.+), name=(.+)><>(\d+)thPercentile', name: kafka_$1_$2_$3, labels: {quantile: '0.$4'}}
- {pattern: 'kafka.([\w.]+)<type=([^,>]+), (.+)=(.+), (.+)=(.+)><>([\w-]+)', name: kafka_$1_$2_$7, labels: {$3: $4, $5: $6}}
- {pattern: 'kafka.([\w.]+)<type=([^,>]+), (.+)=(.+)><>([\w-]+)', name: kafka_$1_$2_$5, labels: {$3: $4}}
- {pattern: 'kafka.([\w.]+)<type=([^,>]+)><>([\w-]+)', name: kafka_$1_$2_$3}
"""
# kafka_exporter's names (check.py compares them), and what Prometheus has of a summary, JMX of a histogram otherwise.
NOT_JMX = ("kafka_topic_", "kafka_consumergroup_", "kafka_brokers", "kafka_broker_info")
# The exporter takes `_total` off what it does not know to be a counter; and the labels by which it tells Kafka's threads are not here.
ALIAS = {"kafka_server_socket_server_metrics_connection_creation_total": "kafka_server_socket_server_metrics_connection_creation"}
THREADS = {"networkProcessor"}
# What the load decides, by the beginning of the name; of topics only those that the load made. Kafka counts its groups once a minute.
DECIDED = (
    "kafka_server_brokertopicmetrics_messagesin_total", "kafka_log_log_log", "kafka_log_log_num", "kafka_cluster_partition_",
    "kafka_server_replicamanager_", "kafka_controller_kafkacontroller_active", "kafka_controller_kafkacontroller_fenced",
    "kafka_controller_kafkacontroller_global", "kafka_controller_kafkacontroller_offline", "kafka_controller_kafkacontroller_preferred",
    "kafka_coordinator_group_groupmetadatamanager_numoffsets", "kafka_log_logmanager_",
)


@contextmanager
def running(command, **more):
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def load(binary, port):
    def caudal(*args, text=""):
        deadline = time.monotonic() + 60
        while True:
            done = subprocess.run([binary, *args, "--server", f"127.0.0.1:{port}"], input=text, text=True, capture_output=True)
            if done.returncode == 0:
                return
            assert time.monotonic() < deadline, done.stderr
            time.sleep(0.2)

    caudal("topic", "create", "a", "-p", "3")
    caudal("produce", "a", "--key", text="".join(f"{n}\t{n}\n" for n in range(300)))
    caudal("consume", "a", "-b", "-g", "readers", "-n", "300")


def page(port):
    """By name: the labels' names of its samples, and the values by labels."""
    found = {}
    for (name, labels), (_, value) in samples(scrape(port), False).items():
        labels = tuple((label, text) for label, text in labels if label not in THREADS)
        shapes, values = found.setdefault(name, (set(), {}))
        shapes.add(tuple(label for label, _ in labels))
        values[labels] = value
    return found


def compare(ours, theirs):
    bad, names, equal = [], 0, 0
    for name, (shapes, values) in sorted(ours.items()):
        if not name.startswith("kafka_") or name.startswith(NOT_JMX) or name.endswith(("_sum", "_count")) and name not in theirs:
            continue
        their_shapes, their_values = theirs.get(name) or theirs.get(ALIAS.get(name), (set(), {}))
        names += 1
        # Kafka gives a topic's failures when it has had one.
        if not shapes & their_shapes:
            bad.append(f"{name} has the labels {shapes}, in Kafka {their_shapes or 'it is not there'}")
        if name.startswith(DECIDED):
            for labels, value in values.items():
                if dict(labels).get("topic", "a") == "a" and not (name.startswith("kafka_server_brokertopic") and not labels):
                    if their_values.get(labels) != value:
                        bad.append(f"{name}{dict(labels)} is {value}, in Kafka {their_values.get(labels)}")
                    equal += 1
    print("\n".join(bad))
    print(f"{names} names are those of Kafka, {equal} values equal" if not bad else f"{len(bad)} of {names} names and {equal} values differ")
    return not bad


def main(binary, kafka, agent):
    ports = [free_port() for _ in range(5)]
    with tempfile.TemporaryDirectory() as data:
        properties = {
            "process.roles": "broker,controller", "node.id": 1, "controller.quorum.voters": f"1@127.0.0.1:{ports[1]}",
            "listeners": f"PLAINTEXT://127.0.0.1:{ports[0]},CONTROLLER://127.0.0.1:{ports[1]}", "controller.listener.names": "CONTROLLER",
            "log.dirs": f"{data}/kafka", "offsets.topic.replication.factor": 1, "group.initial.rebalance.delay.ms": 0,
        }
        files = {"server.properties": "".join(f"{k}={v}\n" for k, v in properties.items()), "rules.yml": RULES}
        for name, text in files.items():
            with open(f"{data}/{name}", "w") as file:
                file.write(text)
        format = [f"{kafka}/bin/kafka-storage.sh", "format", "-t", "5L6g3nShT-eMCtK--X86sw", "-c", f"{data}/server.properties"]
        subprocess.run(format, check=True, capture_output=True)
        java = ["java", "-Xmx512m", f"-javaagent:{agent}=127.0.0.1:{ports[2]}:{data}/rules.yml", "-cp", f"{kafka}/libs/*", "kafka.Kafka"]
        up = [binary, "up", "--data-dir", f"{data}/caudal", "--port", str(ports[3]), "--set", "num.partitions=1"]
        up += ["--set", f"caudal.http.listeners=http://127.0.0.1:{ports[4]}", "--set", "group.initial.rebalance.delay.ms=0"]
        with running([*java, f"{data}/server.properties"], cwd=data), running(up):
            load(binary, ports[0])
            load(binary, ports[3])
            sys.exit(0 if compare(page(ports[4]), page(ports[2])) else 1)


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]), *sys.argv[2:])
