"""See `compare`. compare.py CAUDAL KAFKA_BIN PIPELINE"""
import json, re, shutil, signal, socket, subprocess, sys, tempfile, time
from pathlib import Path

import kafka

CAUDAL, KAFKA, PIPELINE = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
work = Path(tempfile.mkdtemp(prefix="football-"))
running = []


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(command, port):
    log = open(work / f"{port}.log", "w")
    p = subprocess.Popen([str(c) for c in command], stdout=log, stderr=log, cwd=work)
    running.append(p)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            kafka.KafkaAdminClient(bootstrap_servers=f"127.0.0.1:{port}").close()
            return f"127.0.0.1:{port}"
        except Exception:
            time.sleep(0.2)
    sys.exit(f"football: {command[0]} did not start; see {log.name}")


def caudal_broker(data):
    port = free_port()
    return start([CAUDAL, "up", "--data-dir", data, "--port", port], port)


def apache_kafka():
    port, controller, config = free_port(), free_port(), work / "kafka.properties"
    config.write_text(f"process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n"
                      f"listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\ncontroller.listener.names=CONTROLLER\n"
                      f"log.dirs={work}/kafka\noffsets.topic.replication.factor=1\n")
    cluster = subprocess.run([KAFKA / "kafka-storage.sh", "random-uuid"], check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run([KAFKA / "kafka-storage.sh", "format", "-t", cluster, "-c", config], check=True, stdout=subprocess.DEVNULL)
    return start([KAFKA / "kafka-server-start.sh", config], port)


def read(address, topic):
    consumer = kafka.KafkaConsumer(bootstrap_servers=address, group_id=None, enable_auto_commit=False)
    parts = [kafka.TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic))]
    consumer.assign(parts)
    ends = consumer.end_offsets(parts)
    consumer.seek_to_beginning(*parts)
    found = []
    while any(consumer.position(p) < ends[p] for p in parts):
        for messages in consumer.poll(1000).values():
            found += messages
    consumer.close()
    return found


def rows(messages):
    found = []
    for m in messages:
        v = json.loads(m.value)
        found.append((v["player_id"], v["second"], v["meters"], v["speed"], v["sprint"]))
    return sorted(found)


def copy(source, target, topic, partitions):
    admin = kafka.KafkaAdminClient(bootstrap_servers=target)
    for name in topic, "player-second":
        subprocess.run([CAUDAL, "topic", "create", name, "-p", str(partitions), "--server", target], check=True, stdout=subprocess.DEVNULL)
    admin.close()
    producer = kafka.KafkaProducer(bootstrap_servers=target, linger_ms=20)
    for m in read(source, topic):
        producer.send(topic, key=m.key, value=m.value, partition=m.partition, timestamp_ms=m.timestamp)
    producer.flush()
    producer.close()


def caudal_on(address):
    subprocess.run([CAUDAL, "sql", "-f", PIPELINE, "--set", f"bootstrap={address}", "--trigger", "availableNow", "--output", "json",
                    "--warehouse", work / "warehouse"], check=True, stdout=subprocess.DEVNULL, timeout=120)
    return rows(read(address, "player-second"))


def spark_on(address):
    from pyspark.sql import SparkSession
    spark = (SparkSession.builder.master("local[2]").config("spark.sql.shuffle.partitions", "2").config("spark.ui.enabled", "false")
             .config("spark.sql.session.timeZone", "UTC").getOrCreate())
    spark.sparkContext.setLogLevel("ERROR")
    spark.readStream.format("kafka").option("kafka.bootstrap.servers", address).option("subscribe", "player-position") \
        .option("startingOffsets", "earliest").load().createOrReplaceTempView("player_position")
    text = "\n".join(l for l in PIPELINE.read_text().splitlines() if not l.lstrip().startswith("--"))
    query = re.search(r"CREATE STREAMING TABLE player_second USING kafka OPTIONS \([^)]*\) AS\s(.*?);", text, re.S)[1]
    found = []
    stream = spark.sql(query).writeStream.outputMode("append").trigger(availableNow=True) \
        .foreachBatch(lambda batch, _: found.extend(batch.collect())).start()
    stream.awaitTermination()
    spark.stop()
    return rows(found)


def main():
    demo = json.loads(subprocess.run([CAUDAL, "demo", "football", "--minutes", "3", "--speed", "0", "--output", "json", "--data-dir", work / "demo"],
                                     check=True, capture_output=True, text=True).stdout)
    ours = caudal_broker(demo["broker"])
    theirs = apache_kafka()
    live = rows(read(ours, "player-second"))
    copy(ours, theirs, "player-position", 2)
    found = {"Caudal on Apache Kafka": caudal_on(theirs), "Apache Spark on Caudal": spark_on(ours)}
    failed = 0
    seconds = 11 * 180
    if len(live) != seconds:
        failed += 1
        print(f"football: {len(live)} rows, not {seconds}: one for each player and second")
    for name, other in found.items():
        if other == live:
            print(f"football: {name}: the same {len(other)} rows")
        else:
            failed += 1
            extra, missing = set(other) - set(live), set(live) - set(other)
            print(f"football: {name}: {len(other)} rows, {len(extra)} not in Caudal's {len(live)}, {len(missing)} missing; e.g. {sorted(extra)[:2]} {sorted(missing)[:2]}")
    print(f"{3 - failed} passed, {failed} failed")
    return 1 if failed else 0


try:
    status = main()
finally:
    for p in running:
        p.send_signal(signal.SIGTERM)
    for p in running:
        p.wait(30)
    shutil.rmtree(work, ignore_errors=True)
sys.exit(status)
