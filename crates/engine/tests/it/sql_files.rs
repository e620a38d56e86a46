//! Files by their path, and tables whose rows are written to files.

use std::collections::BTreeMap;
use std::path::Path;

use caudal_engine::format::show::{ShowOptions, show_string};
use caudal_engine::sql::{SessionConfig, SqlError, SqlSession, StatementResult};

fn session(warehouse: &Path) -> SqlSession {
    SqlSession::new(SessionConfig { warehouse: warehouse.to_owned(), conf: BTreeMap::new() }).unwrap()
}

/// The last statement's rows, as lines of the shown table without its frame.
async fn run(session: &SqlSession, script: impl AsRef<str>) -> Result<Vec<String>, SqlError> {
    let mut shown = String::new();
    for statement in session.parse(script.as_ref())? {
        shown.clear();
        if let StatementResult::Rows(rows) = session.execute(&statement).await? {
            let (schema, batches) = rows.collect().await?;
            shown = show_string(&schema, &batches, &ShowOptions { truncate: 0, ..ShowOptions::default() });
        }
    }
    Ok(shown.lines().filter(|l| l.starts_with('|')).skip(1).map(|l| l.replace(' ', "")).collect())
}

#[tokio::test]
async fn files_are_tables_by_their_path() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().display();
    std::fs::write(dir.path().join("a.json"), "{\"a\":1,\"b\":\"x\"}\n").unwrap();
    std::fs::create_dir(dir.path().join("c")).unwrap();
    std::fs::write(dir.path().join("c/x.csv"), "1,2\n3,4\n").unwrap();
    let session = session(dir.path());
    let rows =
        run(&session, format!("SELECT t.b, c._c1 FROM JSON.`{here}/*.json` t JOIN csv.`{here}/c` c ON t.a = c._c0"));
    assert_eq!(rows.await.unwrap(), ["|x|2|"]);
    let rows = run(&session, format!("SELECT * FROM text.`{here}/c` ORDER BY value"));
    assert_eq!(rows.await.unwrap(), ["|1,2|", "|3,4|"]);

    let error = run(&session, &format!("SELECT *\nFROM parquet.`{here}/none`")).await.unwrap_err();
    assert_eq!((error.class.as_str(), error.place.as_ref().unwrap().line), ("PATH_NOT_FOUND", 2), "{error}");
    assert!(error.message.contains(&format!("{here}/none")), "{error}");
    let error = run(&session, &format!("SELECT * FROM orc.`{here}/c`")).await.unwrap_err();
    assert_eq!(error.class, "UNSUPPORTED_DATASOURCE_FOR_DIRECT_QUERY");
}

#[tokio::test]
async fn a_table_as_select_is_written_where_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().display();
    let session = session(dir.path());
    let script = format!(
        "CREATE TABLE t USING json LOCATION '{here}/out' AS SELECT 1 AS a, 'x' AS b;
         SELECT t.a, j.b FROM t JOIN json.`{here}/out` j ON t.a = j.a"
    );
    assert_eq!(run(&session, script).await.unwrap(), ["|1|x|"]);
    let script = format!("CREATE TABLE p USING parquet AS SELECT 7 AS a; SELECT * FROM parquet.`{here}/p`");
    assert_eq!(run(&session, script).await.unwrap(), ["|7|"]);
    let script = "CREATE OR REPLACE TABLE p USING parquet AS SELECT a + 1 AS a FROM p; SELECT * FROM p";
    assert_eq!(run(&session, script).await.unwrap(), ["|8|"]);
    std::fs::create_dir(dir.path().join("q")).unwrap();
    std::fs::write(dir.path().join("q/other"), "x").unwrap();
    let error = run(&session, "CREATE TABLE q USING parquet AS SELECT 8 AS a").await.unwrap_err();
    assert_eq!(error.class, "LOCATION_ALREADY_EXISTS");
    run(&session, "DROP TABLE p; DROP TABLE t").await.unwrap();
    assert!(!dir.path().join("p").exists() && dir.path().join("out").exists());
    let error = run(&session, "CREATE TABLE k USING kafka AS SELECT 8 AS a").await.unwrap_err();
    assert_eq!(error.class, "UNSUPPORTED_FEATURE");
}

#[tokio::test]
async fn a_materialized_view_is_computed_once() {
    let dir = tempfile::tempdir().unwrap();
    let session = session(dir.path());
    let script = "CREATE TABLE t (a BIGINT); INSERT INTO t VALUES (1);
        CREATE MATERIALIZED VIEW m AS SELECT sum(a) AS s FROM t; INSERT INTO t VALUES (2); SELECT * FROM m";
    assert_eq!(run(&session, script).await.unwrap(), ["|1|"]);
    let script = "CREATE OR REFRESH MATERIALIZED VIEW m AS SELECT sum(a) AS s FROM t; SELECT * FROM m";
    assert_eq!(run(&session, script).await.unwrap(), ["|3|"]);
}

#[tokio::test]
async fn mistakes_of_the_first_hour_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let session = session(dir.path());
    let cases = [
        ("SELECT g, id FROM VALUES (1, 'a') AS t(id, g) GROUP BY g", "MISSING_AGGREGATION"),
        ("SELECT * FROM VALUES (1) AS t(id) WHERE id = 'x'", "CAST_INVALID_INPUT"),
        ("SHOW DATABASES", "UNSUPPORTED_FEATURE"),
        ("SET spark.sql.session.timeZone=Europe/Berlin", "UNSUPPORTED_FEATURE"),
        ("SET TIME ZONE 'Europe/Berlin'", "UNSUPPORTED_FEATURE"),
        ("SET two words", "INVALID_SET_SYNTAX"),
        ("CREATE TABLE x (a INT) PARTITIONED BY (a)", "UNSUPPORTED_FEATURE"),
        ("EXPLAIN FORMATTED SELECT 1", "UNSUPPORTED_FEATURE"),
        ("EXPLAIN CODEGEN SELECT 1", "UNSUPPORTED_FEATURE"),
        ("CREATE STREAMING TABLE nosuch.s AS SELECT * FROM STREAM x", "SCHEMA_NOT_FOUND"),
        ("SELECT repeat('abcdefgh', 2000000000)", "EXCEED_LIMIT_LENGTH"),
        ("SELECT lpad('a', 2000000000, 'bc')", "EXCEED_LIMIT_LENGTH"),
    ];
    for (sql, class) in cases {
        let error = run(&session, sql).await.unwrap_err();
        assert_eq!(error.class, class, "{sql}: {error}");
    }
    run(&session, "SET spark.sql.shufle.partitions=2").await.unwrap();
    assert!(session.take_warnings()[0].contains("spark.sql.shuffle.partitions"));
}

#[tokio::test]
async fn what_a_table_says_of_itself_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().display();
    std::fs::write(dir.path().join("a.json"), "{\"a\":1,\"b\":\"x\"}\n").unwrap();
    let session = session(dir.path());
    let script = format!(
        "CREATE TABLE t (a INT COMMENT 'first', b STRING) USING json OPTIONS (path '{here}/a.json') COMMENT 'my table'
         TBLPROPERTIES ('x' = 'y'); DESCRIBE EXTENDED t"
    );
    let shown = run(&session, script).await.unwrap();
    for line in
        ["|a|int|first|", "|Comment|mytable||", "|Provider|json||", "|TableProperties|[x=y]||", "|Type|EXTERNAL||"]
    {
        assert!(shown.iter().any(|l| l == line), "{line}: {shown:?}");
    }
    assert_eq!(run(&session, "DESCRIBE t a").await.unwrap(), ["|col_name|a|", "|data_type|int|", "|comment|first|"]);
    let plan = run(&session, "EXPLAIN EXTENDED SELECT a + 1 AS c FROM t").await.unwrap().join("\n");
    assert!(plan.contains("Analyzed") && plan.contains("PhysicalPlan"), "{plan}");
}

#[tokio::test]
async fn a_field_that_does_not_fit_leaves_the_row() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().display();
    let lines = "{\"a\":1,\"b\":\"x\"}\n{\"a\":\"no\",\"b\":\"y\"}\nno json\n";
    std::fs::write(dir.path().join("a.json"), lines).unwrap();
    let session = session(dir.path());
    let table = |name: &str, columns: &str, more: &str| {
        format!("CREATE TABLE {name} ({columns}) USING json OPTIONS (path '{here}/a.json'{more}); SELECT * FROM {name}")
    };
    let permissive = run(&session, table("p", "a INT, b STRING, _corrupt_record STRING", "")).await.unwrap();
    assert_eq!(permissive, ["|1|x|NULL|", "|NULL|y|{\"a\":\"no\",\"b\":\"y\"}|", "|NULL|NULL|nojson|"]);
    let dropped = run(&session, table("d", "a INT, b STRING", ", mode 'DROPMALFORMED'")).await.unwrap();
    assert_eq!(dropped, ["|1|x|"]);
    let error = run(&session, table("f", "a INT, b STRING", ", mode 'FAILFAST'")).await.unwrap_err();
    assert!(error.class == "MALFORMED_RECORD_IN_PARSING" && error.message.contains("line 2"), "{error}");
    let inferred = run(&session, format!("SELECT * FROM json.`{here}/a.json`")).await.unwrap();
    assert_eq!(inferred, ["|NULL|1|x|", "|NULL|no|y|", "|nojson|NULL|NULL|"]);
}

#[tokio::test]
async fn options_without_effect_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let session = session(dir.path());
    let options = "kafka.bootstrap.servers 'localhost:1', subscribe 't'";
    let script = format!("CREATE TABLE k USING kafka OPTIONS ({options}, fetchOffset.numRetries '3')");
    run(&session, script).await.unwrap();
    let warnings = session.take_warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("fetchOffset.numRetries"), "{warnings:?}");
    let script = format!("CREATE TABLE w USING kafka OPTIONS ({options}, startingOfsets 'latest')");
    let error = run(&session, script).await.unwrap_err();
    assert!(error.to_string().contains("did you mean 'startingOffsets'?"), "{error}");
    let script = format!("CREATE TABLE w USING kafka OPTIONS ({options}, kafka.sesion.timeout.ms '1')");
    let error = run(&session, script).await.unwrap_err();
    assert!(error.to_string().contains("session.timeout.ms"), "{error}");
}

#[tokio::test]
async fn a_streaming_table_that_does_not_start_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let warehouse = dir.path().join("warehouse");
    let session = session(&warehouse);
    let script = "CREATE TABLE r USING rate;
        CREATE STREAMING TABLE s AS SELECT value, count(*) AS n FROM STREAM r GROUP BY value";
    let error = run(&session, script).await.unwrap_err();
    assert_eq!(error.class, "STREAMING_OUTPUT_MODE.UNSUPPORTED_OPERATION");
    assert!(error.hint.as_ref().is_some_and(|h| h.contains("WATERMARK")), "{error}");
    assert!(!warehouse.join("s").exists());
}

#[tokio::test]
async fn a_compressed_file_is_decompressed_or_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().display();
    let session = session(dir.path());
    // What `gzip` makes of {"a":1}, a newline, {"a":2}, a newline.
    let gzip = "1f8b0800000000000203ab564a54b232ace5aa06d146b55c0066c05a1910000000";
    let bytes = |hex: &str| -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    };
    std::fs::write(dir.path().join("f.json.gz"), bytes(gzip)).unwrap();
    assert_eq!(run(&session, format!("SELECT a FROM json.`{here}/f.json.gz`")).await.unwrap(), ["|1|", "|2|"]);
    let script = format!("SELECT count(*) AS n, max(length(value)) AS l FROM text.`{here}/f.json.gz`");
    assert_eq!(run(&session, script).await.unwrap(), ["|2|7|"]);
    for suffix in ["bz2", "lz4", "snappy", "xz", "deflate", "zip"] {
        let name = format!("f.json.{suffix}");
        std::fs::write(dir.path().join(&name), "x").unwrap();
        for format in ["json", "csv", "text"] {
            let error = run(&session, format!("SELECT * FROM {format}.`{here}/{name}`")).await.unwrap_err().to_string();
            assert!(error.contains(&name) && error.contains("not supported"), "{error}");
        }
    }
}

#[tokio::test]
async fn rows_of_csv_that_cannot_be_converted_follow_the_mode() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.csv");
    std::fs::write(&file, "id,when,note\n1,2026-01-01,x\ntwo,2026-01-02,y\n3,,z\n4,never,\n").unwrap();
    let session = session(dir.path());
    let table = |name: &str, mode: &str| {
        format!(
            "CREATE TABLE {name} (id INT, day DATE, note STRING) USING csv OPTIONS (path '{}', header 'true', mode '{mode}')",
            file.display()
        )
    };
    for (name, mode) in [("p", "PERMISSIVE"), ("d", "DROPMALFORMED"), ("f", "FAILFAST")] {
        run(&session, table(name, mode)).await.unwrap();
    }
    let rows = run(&session, "SELECT id, day, note FROM p").await.unwrap();
    assert_eq!(rows, ["|1|2026-01-01|x|", "|NULL|2026-01-02|y|", "|3|NULL|z|", "|4|NULL|NULL|"]);
    let rows = run(&session, "SELECT id, day, note FROM d").await.unwrap();
    assert_eq!(rows, ["|1|2026-01-01|x|", "|3|NULL|z|"], "a missing value is no malformed one");
    let error = run(&session, "SELECT id, day FROM f").await.unwrap_err();
    assert_eq!(error.class, "MALFORMED_RECORD_IN_PARSING");
    for part in ["a.csv, line 3", "'two'", "`id`", "INT"] {
        assert!(error.message.contains(part), "{part}: {error}");
    }
    // Columns that nobody asks for are not parsed, as in Spark.
    assert_eq!(run(&session, "SELECT note FROM f WHERE note = 'z'").await.unwrap(), ["|z|"]);
}

#[tokio::test]
async fn inference_looks_into_every_file() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().display();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    file("j/1.json", "{\"a\": 1, \"b\": 1, \"c\": {\"y\": 1}, \"d\": [1], \"e\": null, \"f\": 18446744073709551615}\n");
    file("j/2.json", "{\"a\": 1.5, \"b\": {\"z\": 1}, \"c\": {\"x\": \"t\"}, \"d\": [null, 2.5], \"f\": 1}\n");
    file("j/3.json", "\u{feff}{\"a\": null, \"b\": true, \"g\": {}}\n");
    let session = session(dir.path());
    let rows = run(&session, format!("CREATE TABLE j USING json OPTIONS (path '{here}/j'); DESCRIBE j")).await.unwrap();
    let expected = [
        "|a|double|NULL|",
        "|b|string|NULL|",
        "|c|struct<x:string,y:bigint>|NULL|",
        "|d|array<double>|NULL|",
        "|e|string|NULL|",
        "|f|decimal(20,0)|NULL|",
    ];
    assert_eq!(rows, expected);
    let rows = run(&session, "SELECT a, b, c.x, c.y, d, f FROM j ORDER BY a NULLS LAST").await.unwrap();
    let expected = [
        "|1.0|1|NULL|1|[1.0]|18446744073709551615|",
        "|1.5|{\"z\":1}|t|NULL|[NULL,2.5]|1|",
        "|NULL|true|NULL|NULL|NULL|NULL|",
    ];
    assert_eq!(rows, expected);
    file("c/1.csv", "\u{feff}id,v,t\n1,1,true\n");
    file("c/2.csv", "\u{feff}id,v,t\n2,2.5,x\n");
    let script =
        format!("CREATE TABLE c USING csv OPTIONS (path '{here}/c', header 'true', inferSchema 'true'); DESCRIBE c");
    assert_eq!(run(&session, script).await.unwrap(), ["|id|int|NULL|", "|v|double|NULL|", "|t|string|NULL|"]);
    let rows = run(&session, "SELECT id, v, t FROM c ORDER BY id").await.unwrap();
    assert_eq!(rows, ["|1|1.0|true|", "|2|2.5|x|"]);
}
