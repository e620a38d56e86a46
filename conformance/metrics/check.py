#!/usr/bin/env python3
"""conformance/metrics/check.py CAUDAL: the page of metrics, read by Prometheus' own Python client, and beside kafka_exporter.

Every sample that danielqsj/kafka_exporter gives of a broker must be on the broker's own page with the same labels and value,
and no others under those names. kafka_exporter is taken from $KAFKA_EXPORTER or the PATH, or installed by Go; without it that
part is skipped, and said to be.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

EXPORTER = "github.com/danielqsj/kafka_exporter@v1.9.0"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def scrape(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return answer.read().decode()


def samples(text, strict):
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert not strict or len(names) == len(set(names)), "a metric is there twice"
    found = {}
    for family in families:
        assert not strict or (family.documentation and family.type != "unknown"), f"{family.name} has no HELP or TYPE"
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"{key} is there twice"
            found[key] = (family.type, sample.value)
    return found


def exporter():
    known = os.environ.get("KAFKA_EXPORTER") or shutil.which("kafka_exporter")
    if known or not shutil.which("go"):
        return known
    place = os.path.join(os.environ.get("PEERS_DIR", os.path.expanduser("~/.cache/caudal-peers")), "kafka_exporter")
    installed = subprocess.run(["go", "install", EXPORTER], env={**os.environ, "GOBIN": place}, capture_output=True)
    return os.path.join(place, "kafka_exporter") if installed.returncode == 0 else None


def compare(program, kafka_port, http_port):
    port = free_port()
    args = [program, f"--kafka.server=127.0.0.1:{kafka_port}", f"--web.listen-address=127.0.0.1:{port}"]
    # Without it the last metric of a scrape is lost in its own queue.
    args.append("--concurrent.enable")
    peer = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                theirs = samples(scrape(port), False)
                break
            except OSError:
                assert time.monotonic() < deadline, "kafka_exporter does not answer"
                time.sleep(0.1)
    finally:
        peer.kill()
        peer.wait()
    theirs = {k: v for k, v in theirs.items() if k[0].startswith("kafka_") and not k[0].startswith("kafka_exporter")}
    ours = samples(scrape(http_port), True)
    names = {name for name, _ in theirs}
    differing = [(key, value, ours.get(key)) for key, value in theirs.items() if ours.get(key) != value]
    more = [key for key in ours if key[0] in names and key not in theirs]
    for key, value, own in differing[:20]:
        print(f"{key}: kafka_exporter has {value}, Caudal {own}")
    for key in more[:20]:
        print(f"{key}: only Caudal has it")
    assert "kafka_consumergroup_lag" in names and "kafka_topic_partition_current_offset" in names, names
    assert not differing and not more
    print(f"{len(theirs)} samples of {len(names)} metrics are those of kafka_exporter")


def main(binary):
    kafka_port, http_port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as data:
        args = [binary, "up", "--port", str(kafka_port), "--data-dir", f"{data}/d"]
        args += ["--set", f"caudal.http.listeners=http://127.0.0.1:{http_port}"]
        broker = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert broker.stdout.readline().startswith("ready")

            def caudal(*args, text=""):
                subprocess.run(
                    [binary, *args, "--server", f"127.0.0.1:{kafka_port}"],
                    input=text, text=True, check=True, capture_output=True,
                )

            caudal("topic", "create", "a", "-p", "3")
            caudal("topic", "create", "unread", "-p", "1")
            caudal("produce", "a", "--key", text="".join(f"{n}\t{n}\n" for n in range(1000)))
            caudal("consume", "a", "-b", "-g", 'a "group"\\', "-n", "600")
            caudal("consume", "a", "-b", "-g", "all", "-n", "1000")
            page = samples(scrape(http_port), True)
            assert page[("kafka_server_brokertopicmetrics_messagesin_total", (("topic", "a"),))] == ("counter", 1000.0)
            summaries = {name for (name, labels), (kind, _) in page.items() if kind == "summary"}
            assert "kafka_network_requestmetrics_totaltimems" in summaries
            print(f"{len(page)} samples are well-formed")
            program = exporter()
            if program:
                compare(program, kafka_port, http_port)
            else:
                print("not compared: kafka_exporter cannot be had")
        finally:
            broker.terminate()
            broker.wait()


if __name__ == "__main__":
    main(sys.argv[1])
