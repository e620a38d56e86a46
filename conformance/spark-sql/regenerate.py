"""Writes what Apache Spark 4.2 answers into the case files of crates/engine/tests/it/sql/, or checks it with --check.

    SPARK_PYTHON conformance/spark-sql/regenerate.py [--check] [FILE.slt ...]

A case is `query` or `statement`, its SQL, and after `----` the table that `show()` prints, or `error CLASS`.
Cases under a line `# ours` are not run: there Caudal differs from Spark on purpose, as the comment says.
"""

import logging
import re
import sys
import tempfile
from pathlib import Path

from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

FILES = Path(__file__).resolve().parents[2] / "crates/engine/tests/it/sql"


def answer(spark, sql):
    """The table that Spark shows for a script, or the class of its error."""
    shown = ""
    try:
        for statement in [s for s in sql.split(";\n") if s.strip().rstrip(";")]:
            frame = spark.sql(statement.strip().rstrip(";"))
            if frame.columns:
                shown = frame._jdf.showString(1000, 0, False).rstrip()
    except PySparkException as error:
        condition = error.getCondition() if hasattr(error, "getCondition") else error.getErrorClass()
        return f"error {condition}"
    except Exception as error:  # an error of the JVM that PySpark did not translate
        named = re.search(r"\[([A-Z_]+(?:\.[A-Z_]+)*)\]", str(error))
        return f"error {named.group(1) if named else type(error).__name__}"
    return shown


def regenerate(spark, text):
    """The file with every expectation replaced, how many queries Spark answered, and what is ours by intent.

    What is ours are the lines of the comments that say so; what differs, the lines of the queries.
    """
    out, lines, i, ours = [], text.split("\n"), 0, False
    compared, intended, different = 0, [], []
    while i < len(lines):
        line = lines[i]
        out.append(line)
        i += 1
        if line.startswith("# ours"):
            ours = True
            intended.append((i, line.removeprefix("# ours").lstrip(" :")))
        if line not in ("query", "statement"):
            continue
        sql, at = [], i
        while i < len(lines) and lines[i] not in ("", "----"):
            sql.append(lines[i])
            i += 1
        expected = []
        if i < len(lines) and lines[i] == "----":
            i += 1
            while i < len(lines) and lines[i] != "":
                expected.append(lines[i])
                i += 1
        out.extend(sql)
        if line == "statement":
            if not ours:
                answer(spark, "\n".join(sql) + "\n")
        else:
            out.append("----")
            if not ours:
                answered = answer(spark, "\n".join(sql) + "\n").split("\n")
                compared += 1
                if answered != expected:
                    different.append((at, " ".join(sql), answered))
                expected = answered
            out.extend(expected)
        ours = False
    return "\n".join(out), compared, intended, different


def main():
    arguments = [a for a in sys.argv[1:] if a != "--check"]
    check = "--check" in sys.argv
    files = [Path(a) for a in arguments] or sorted(FILES.glob("*.slt"))
    builder = SparkSession.builder.master("local[2]").config("spark.sql.session.timeZone", "UTC")
    builder = builder.config("spark.ui.enabled", "false").config("spark.ui.showConsoleProgress", "false").config("spark.sql.shuffle.partitions", "2")
    # What a case makes outside of the warehouse is within the directory, too.
    scratch = tempfile.TemporaryDirectory(prefix="caudal-spark-sql-")
    builder = builder.config("spark.sql.warehouse.dir", f"{scratch.name}/warehouse")
    spark = builder.config("spark.driver.bindAddress", "127.0.0.1").getOrCreate()
    spark.sparkContext.setLogLevel("OFF")
    logging.getLogger("SQLQueryContextLogger").setLevel(logging.CRITICAL + 1)
    compared, differing, ours = 0, 0, []
    for file in files:
        text = file.read_text()
        written, queries, intended, different = regenerate(spark.newSession(), text)
        compared += queries
        differing += len(different)
        ours.extend(f"{file.name}:{line}: {why}" for line, why in intended)
        for line, sql, answered in different:
            print(f"{file.name}:{line}: {'differs' if check else 'rewritten'}: {sql}")
            if check:
                print("  Spark answers:", *answered, sep="\n    ")
        if written != text and not check:
            file.write_text(written)
    spark.stop()
    print(f"{compared} queries of {len(files)} files compared with Apache Spark, {differing} differ")
    if ours:
        print(f"{len(ours)} are ours by intent:", *ours, sep="\n  ")
    sys.exit(1 if check and (differing or not compared) else 0)


if __name__ == "__main__":
    main()
