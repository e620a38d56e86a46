"""Spark's Kafka source and sink: spark_job.py batch|stream BOOTSTRAP DIRECTORY."""
import json, sys
from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql import functions as f

mode, bootstrap, directory = sys.argv[1], sys.argv[2], Path(sys.argv[3])
spark = (SparkSession.builder.master("local[2]").config("spark.sql.shuffle.partitions", 2).config("spark.ui.enabled", False)
         .config("spark.driver.memory", "600m").config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1")
         .config("spark.sql.session.timeZone", "UTC").config("spark.sql.warehouse.dir", str(directory / "warehouse")).getOrCreate())
spark.sparkContext.setLogLevel("WARN")


def kafka(reader, topic, **options):
    reader = reader.format("kafka").option("kafka.bootstrap.servers", bootstrap).option("includeHeaders", True)
    reader = reader.option("subscribePattern" if "*" in topic else "subscribe", topic)
    for name, value in options.items():
        reader = reader.option(name.replace("_", "."), value if isinstance(value, str) else json.dumps(value))
    return reader.load()


def rows(frame):
    """Rows of the source as the driver compares them."""
    return sorted([r.topic, r.partition, r.offset, r.timestamp.isoformat() if r.timestamp else None, r.key and r.key.decode(), r.value and r.value.decode(),
                   [[h.key, h.value and h.value.decode()] for h in r.headers or []]] for r in frame.collect())


def batch():
    """Writes a topic by the sink with keys, headers and partitions, and reads it back in every way the source has."""
    data = [(f"k{i}" if i % 3 else None, f"value {i}" if i % 5 else None, i % 4, [("n", str(i).encode()), ("n", None)] if i % 2 else None) for i in range(200)]
    frame = spark.createDataFrame(data, "key string, value string, partition int, headers array<struct<key:string,value:binary>>")
    for codec in "none", "gzip", "snappy", "lz4", "zstd":
        out = frame.coalesce(1).write.format("kafka").option("kafka.bootstrap.servers", bootstrap)
        out.option("topic", f"spark-{codec}").option("includeHeaders", True).option("kafka.compression.type", codec).save()
    all_ = kafka(spark.read, "spark-.*")
    found = {"all": rows(all_)}
    one = lambda **options: rows(kafka(spark.read, "spark-zstd", **options))
    found["offsets"] = one(startingOffsets={"spark-zstd": {"0": 10, "1": -2, "2": 20, "3": 45}}, endingOffsets={"spark-zstd": {"0": 12, "1": 3, "2": -1, "3": -1}})
    found["times"] = rows(kafka(spark.read, "timed", startingOffsetsByTimestamp={"timed": {"0": 1_700_000_000_050}}, endingOffsetsByTimestamp={"timed": {"0": 1_700_000_000_060}}))
    found["pieces"] = one(minPartitions="9")
    found["committed"] = rows(kafka(spark.read, "transactions", kafka_isolation_level="read_committed"))
    found["uncommitted"] = rows(kafka(spark.read, "transactions"))
    (directory / "batch.json").write_text(json.dumps(found))


def stream():
    """events -> files, exactly once; events -> topic; events -> counts by word, complete; until the file `stop` appears or it is killed."""
    source = kafka(spark.readStream, "events", startingOffsets="earliest", maxOffsetsPerTrigger="150")
    text = source.select("partition", "offset", f.col("key").cast("string"), f.col("value").cast("string"))

    def start(name, writer):
        return writer.queryName(name).option("checkpointLocation", str(directory / "checkpoints" / name)).trigger(processingTime="200 milliseconds").start()

    to_topic = text.select("key", f.concat_ws(":", "partition", "offset", "value").alias("value"))
    counts = text.groupBy(f.col("key")).count().select("key", f.col("count").cast("string").alias("value"))
    queries = [start("files", text.writeStream.format("parquet").option("path", str(directory / "files"))),
               start("topic", to_topic.writeStream.format("kafka").option("kafka.bootstrap.servers", bootstrap).option("topic", "copies")),
               start("counts", counts.writeStream.outputMode("update").format("kafka").option("kafka.bootstrap.servers", bootstrap).option("topic", "totals"))]
    while not (directory / "stop").exists():
        spark.streams.awaitAnyTermination(1)
        for q in queries:
            if q.exception():
                raise q.exception()
    for q in queries:
        q.processAllAvailable()
        q.stop()
    found = spark.read.parquet(str(directory / "files")).collect()
    (directory / "files.json").write_text(json.dumps(sorted([r.partition, r.offset, r.key, r.value] for r in found)))


{"batch": batch, "stream": stream}[mode]()
spark.stop()
