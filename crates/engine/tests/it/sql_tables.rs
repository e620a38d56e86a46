//! What the clauses of `CREATE STREAMING TABLE` do, and what goes with a table that is dropped or replaced.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use caudal_engine::format::show::{ShowOptions, show_string};
use caudal_engine::query::StreamingQuery;
use caudal_engine::sink::OutputMode;
use caudal_engine::sql::{SessionConfig, SqlError, SqlSession, StatementResult};

fn session(warehouse: &Path) -> SqlSession {
    let conf = BTreeMap::from([("caudal.sql.trigger".to_owned(), "availableNow".to_owned())]);
    SqlSession::new(SessionConfig { warehouse: warehouse.to_owned(), conf }).unwrap()
}

/// The last statement's rows, and the queries that were started, which have ended.
async fn run(session: &SqlSession, script: &str) -> Result<(Vec<String>, Vec<StreamingQuery>), SqlError> {
    let (mut shown, mut queries) = (String::new(), Vec::new());
    for statement in session.parse(script)? {
        shown.clear();
        match session.execute(&statement).await? {
            StatementResult::Rows(rows) => {
                let (schema, batches) = rows.collect().await?;
                shown = show_string(&schema, &batches, &ShowOptions { truncate: 0, ..ShowOptions::default() });
            }
            StatementResult::Streaming(query) => {
                query.await_termination().await.unwrap();
                queries.push(query);
            }
            StatementResult::StreamingSelect(_) | StatementResult::Done(_) => {}
        }
    }
    Ok((shown.lines().filter(|l| l.starts_with('|')).skip(1).map(|l| l.replace(' ', "")).collect(), queries))
}

/// A directory with a warehouse and a table `source (a INT)` of two rows.
async fn with_source() -> (tempfile::TempDir, SqlSession) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("in")).unwrap();
    fs::write(dir.path().join("in/1.json"), "{\"a\": 1}\n{\"a\": 2}\n").unwrap();
    let session = session(&dir.path().join("warehouse"));
    let script = format!("CREATE TABLE source (a INT) USING json OPTIONS (path '{}/in')", dir.path().display());
    run(&session, &script).await.unwrap();
    (dir, session)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checkpoint_and_the_name_may_be_options() {
    let (dir, session) = with_source().await;
    let here = dir.path().display();
    for (number, format) in ["parquet", "console", "noop", "memory"].into_iter().enumerate() {
        let script = format!(
            "CREATE STREAMING TABLE t{number} USING {format}
             OPTIONS (checkpointLocation '{here}/cp{number}', QUERYNAME 'named {number}') AS SELECT * FROM STREAM source"
        );
        let (_, queries) = run(&session, &script).await.unwrap();
        assert_eq!(queries[0].name(), Some(format!("named {number}").as_str()));
        assert!(dir.path().join(format!("cp{number}/offsets/0")).exists(), "{format}");
    }
    assert!(!dir.path().join("warehouse/_checkpoints").exists());
    let script =
        "CREATE STREAMING TABLE u OPTIONS (checkpointLocation '/a') TBLPROPERTIES ('checkpointLocation' = '/b')
        AS SELECT * FROM STREAM source";
    let error = run(&session, script).await.unwrap_err();
    assert!(error.to_string().contains("'/b' in TBLPROPERTIES and '/a' in OPTIONS"), "{error}");
    // What was in memory is gone: its checkpoint cannot be gone on from.
    let script = format!(
        "CREATE STREAMING TABLE again USING memory OPTIONS (checkpointLocation '{here}/cp3') AS SELECT * FROM STREAM source"
    );
    let error = run(&session, &script).await.unwrap_err();
    assert!(error.to_string().contains("does not support recovering from checkpoint"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_and_properties_without_effect_are_told() {
    let (dir, session) = with_source().await;
    fs::remove_file(dir.path().join("in/1.json")).unwrap();
    let script = "CREATE STREAMING TABLE k USING kafka OPTIONS (kafka.bootstrap.servers '127.0.0.1:1', topic 't',
        kafka.linger.ms '5', kafka.BATCH.SIZE '1', kafka.retries '3') AS SELECT CAST(a AS STRING) AS value FROM STREAM source";
    run(&session, script).await.unwrap();
    let warnings = session.take_warnings();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("kafka.BATCH.SIZE has no effect") && warnings[1].contains("kafka.linger.ms"));
    let script =
        "CREATE STREAMING TABLE n USING noop TBLPROPERTIES ('triger' = 'once', 'owner' = 'me', 'OUTPUTMODE' = 'append')
        AS SELECT a FROM STREAM source";
    run(&session, script).await.unwrap();
    assert_eq!(session.take_warnings(), ["warning: the property triger of `n` has no effect; did you mean trigger?"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clause_acts_or_is_refused_by_name() {
    let (_dir, session) = with_source().await;
    let refused = [
        ("OR REPLACE STREAMING TABLE t", "OR REPLACE of a streaming table"),
        ("TEMPORARY STREAMING TABLE t", "TEMPORARY of a streaming table"),
        ("STREAMING TABLE t USING noop OPTIONS (a 'b')", "the option a of a streaming table USING noop"),
        ("STREAMING TABLE t USING memory OPTIONS (path 'b')", "the option path of a streaming table USING memory"),
        ("STREAMING TABLE t USING console OPTIONS (path 'b')", "no option 'path'"),
        ("STREAMING TABLE t USING console LOCATION '/x'", "LOCATION of a streaming table USING console"),
        ("STREAMING TABLE t USING kafka LOCATION '/x'", "LOCATION of a streaming table USING kafka"),
        ("STREAMING TABLE t USING kafka PARTITIONED BY (a)", "PARTITIONED BY of a streaming table USING kafka"),
        ("STREAMING TABLE t USING memory PARTITIONED BY (a)", "PARTITIONED BY of a streaming table USING memory"),
        ("STREAMING TABLE t (b INT)", "it names (b INT), the query gives (a INT)"),
        ("STREAMING TABLE t (a BIGINT)", "it names (a BIGINT), the query gives (a INT)"),
        ("STREAMING TABLE t (a INT NOT NULL)", "it names (a INT NOT NULL), the query gives (a INT)"),
        ("STREAMING TABLE t (a INT, b INT)", "it names (a INT, b INT), the query gives (a INT)"),
    ];
    for (clauses, reason) in refused {
        let error = run(&session, &format!("CREATE {clauses} AS SELECT * FROM STREAM source")).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{clauses}: {error}");
    }
    let script = "CREATE STREAMING TABLE t (a INT COMMENT 'the number') AS SELECT * FROM STREAM source; DESCRIBE t";
    assert_eq!(run(&session, script).await.unwrap().0, ["|a|int|thenumber|"]);
    let script = "CREATE OR REFRESH STREAMING TABLE t AS SELECT * FROM STREAM source; SELECT count(*) FROM t";
    assert_eq!(run(&session, script).await.unwrap().0, ["|2|"], "it goes on, there is nothing new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_table_takes_its_files_and_its_checkpoint_along() {
    let (dir, session) = with_source().await;
    let warehouse = dir.path().join("warehouse");
    let script = "CREATE STREAMING TABLE t AS SELECT * FROM STREAM source; SELECT sum(a) FROM t";
    for _ in 0..2 {
        assert_eq!(run(&session, script).await.unwrap().0, ["|3|"], "begun anew");
        run(&session, "DROP TABLE t").await.unwrap();
        assert!(!warehouse.join("t").exists() && !warehouse.join("_checkpoints/t").exists());
    }
    // What has a place of its own stays, and its checkpoint with it.
    let out = dir.path().join("out");
    let place = format!("CREATE STREAMING TABLE p LOCATION '{}' AS SELECT * FROM STREAM source", out.display());
    run(&session, &format!("{place}; DROP TABLE p")).await.unwrap();
    assert!(out.exists() && warehouse.join("_checkpoints/p").exists());
    assert_eq!(run(&session, &format!("{place}; SELECT count(*) FROM p")).await.unwrap().0, ["|2|"]);
    // A query that runs would write on.
    let running = "CREATE TABLE r USING rate;
        CREATE STREAMING TABLE s TBLPROPERTIES ('trigger' = 'default') AS SELECT * FROM STREAM r";
    for statement in session.parse(running).unwrap() {
        session.execute(&statement).await.unwrap();
    }
    for statement in ["DROP TABLE s", "CREATE OR REPLACE TABLE s USING parquet AS SELECT 1 AS a"] {
        let error = run(&session, statement).await.unwrap_err();
        assert_eq!(error.class, "CONCURRENT_QUERY", "{error}");
    }
    session.queries().stop_all().await;
    run(&session, "CREATE OR REPLACE TABLE s USING parquet AS SELECT 1 AS a").await.unwrap();
    assert!(!warehouse.join("_checkpoints/s").exists());
    assert_eq!(run(&session, "SELECT * FROM s").await.unwrap().0, ["|1|"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_replaced_whose_directory_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let session = session(dir.path());
    run(&session, "CREATE TABLE t USING parquet AS SELECT 1 AS a").await.unwrap();
    fs::remove_dir_all(dir.path().join("t")).unwrap();
    let script = "CREATE OR REPLACE TABLE t USING parquet AS SELECT 2 AS a; SELECT * FROM t";
    assert_eq!(run(&session, script).await.unwrap().0, ["|2|"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_select_over_streams_has_the_output_mode_of_the_session() {
    let (_dir, session) = with_source().await;
    let select = "SELECT a, count(*) AS n FROM STREAM source GROUP BY a ORDER BY n DESC LIMIT 2";
    let statement = session.parse(select).unwrap().remove(0);
    let StatementResult::StreamingSelect(before) = session.execute(&statement).await.unwrap() else { panic!() };
    assert_eq!(before.output_mode, OutputMode::Update);
    let sink = Box::new(caudal_engine::sink::noop::NoopSink);
    let error = session.start(&before, sink, before.output_mode, None, None).await.unwrap_err();
    assert!(error.hint.as_ref().is_some_and(|hint| hint.contains("SET caudal.sql.outputMode=complete")), "{error}");
    run(&session, "SET caudal.sql.outputMode=complete").await.unwrap();
    let StatementResult::StreamingSelect(select) = session.execute(&statement).await.unwrap() else { panic!() };
    assert_eq!(select.output_mode, OutputMode::Complete);
    let sink = Box::new(caudal_engine::sink::noop::NoopSink);
    let query = session.start(&select, sink, select.output_mode, None, None).await.unwrap();
    query.await_termination().await.unwrap();
}

#[tokio::test]
async fn a_variable_that_is_not_set_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let session = session(dir.path());
    let error = run(&session, "SELECT 1;\nSELECT '${bootstrap}', 2").await.unwrap_err();
    let place = error.place.clone().unwrap();
    assert_eq!(
        (error.class.as_str(), place.line, place.column, place.width),
        ("VARIABLE_NOT_SET", 2, 9, 12),
        "{error}"
    );
    assert!(error.hint.as_ref().unwrap().contains("--set bootstrap="), "{error}");
    let script = "SET bootstrap=here; SELECT '${bootstrap}' -- ${nobody}";
    assert_eq!(run(&session, script).await.unwrap().0, ["|here|"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_without_using_is_parquet_below_the_warehouse() {
    let dir = tempfile::tempdir().unwrap();
    let first = session(dir.path());
    let script = "CREATE TABLE t AS SELECT 1 AS a; INSERT INTO t VALUES (2), (3); SELECT sum(a) FROM t";
    assert_eq!(run(&first, script).await.unwrap().0, ["|6|"]);
    let script = "CREATE TABLE e (a INT, b STRING); SELECT count(*) FROM e";
    assert_eq!(run(&first, script).await.unwrap().0, ["|0|"]);
    let script = "INSERT INTO e VALUES (1, 'x'); INSERT OVERWRITE e SELECT a + 1, b FROM e; SELECT * FROM e";
    assert_eq!(run(&first, script).await.unwrap().0, ["|2|x|"]);
    let parts =
        "CREATE TABLE p USING json PARTITIONED BY (k) AS SELECT 1 AS v, 'x' AS k; INSERT INTO p VALUES (2, 'y');
        SELECT v, k FROM p ORDER BY v";
    assert_eq!(run(&first, parts).await.unwrap().0, ["|1|x|", "|2|y|"]);
    assert!(dir.path().join("p/k=y").is_dir());
    let empty = "CREATE TABLE c (a INT, k STRING) USING csv OPTIONS (header 'true') PARTITIONED BY (k);
        INSERT INTO c VALUES (1, 'x'); INSERT INTO c VALUES (2, 'y'); SELECT * FROM c ORDER BY a";
    assert_eq!(run(&first, empty).await.unwrap().0, ["|1|x|", "|2|y|"]);
    // The next run does not know the table; its files are there, and are in nobody's way who replaces it.
    let second = session(dir.path());
    let direct = format!("SELECT sum(a) FROM parquet.`{}/t`", dir.path().display());
    assert_eq!(run(&second, &direct).await.unwrap().0, ["|6|"]);
    let error = run(&second, "CREATE TABLE t AS SELECT 1 AS a").await.unwrap_err();
    assert_eq!(error.class, "LOCATION_ALREADY_EXISTS");
    let script = "CREATE OR REPLACE TABLE t AS SELECT 7 AS a; SELECT a FROM t";
    assert_eq!(run(&second, script).await.unwrap().0, ["|7|"]);
    let out = dir.path().join("out");
    let script =
        format!("CREATE TABLE o USING parquet LOCATION '{}' AS SELECT 1 AS a; INSERT INTO o VALUES (2)", out.display());
    assert_eq!(run(&second, &script).await.unwrap_err().class, "UNSUPPORTED_FEATURE");
}

/// Rows come while they are computed, and a table of them has an end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_taken_as_they_come() {
    let dir = tempfile::tempdir().unwrap();
    let session = session(dir.path());
    let select = async |text: &str| {
        let statement = session.parse(text).unwrap().remove(0);
        let StatementResult::Rows(rows) = session.execute(&statement).await.unwrap() else { panic!() };
        rows
    };
    let mut rows = select("SELECT id, id * 2 FROM range(1000000000000)").await;
    assert!(rows.next().await.unwrap().is_some_and(|batch| batch.num_rows() > 0));
    drop(rows);
    let rows = select("SELECT * FROM range(1000000000000)").await;
    let error = rows.collect_within(1 << 20).await.unwrap_err();
    assert_eq!(error.class, "RESULT_TOO_LARGE");
    assert!(error.message.contains("1 MiB") && error.hint.unwrap().contains("--output csv"));
    let (_, batches) = select("SELECT * FROM range(1000)").await.collect_within(1 << 20).await.unwrap();
    assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_has_a_limit_that_sorts_spill_at() {
    let dir = tempfile::tempdir().unwrap();
    let conf = BTreeMap::from([("caudal.sql.memory.limit".to_owned(), "96m".to_owned())]);
    let small = SqlSession::new(SessionConfig { warehouse: dir.path().to_owned(), conf }).unwrap();
    let joined = "SELECT count(*) FROM range(8000000) a JOIN range(8000000) b ON a.id = b.id";
    let error = run(&small, joined).await.unwrap_err();
    assert_eq!(error.class, "OUT_OF_MEMORY", "{error}");
    assert!(error.hint.as_ref().unwrap().contains("--set caudal.sql.memory.limit="), "{error}");
    // What a sort keeps of these is more than its share.
    let sorted = "SELECT max(n), max(id) FROM
        (SELECT id, row_number() OVER (ORDER BY id DESC) AS n FROM range(4000000)) WHERE n > 3999990";
    assert_eq!(run(&small, sorted).await.unwrap().0, ["|4000000|9|"]);
    let error = run(&small, "SET caudal.sql.memory.limit=1g").await.unwrap_err();
    assert_eq!(error.class, "CANNOT_MODIFY_CONFIG");
    let conf = BTreeMap::from([("caudal.sql.memory.limit".to_owned(), "lots".to_owned())]);
    let error = SqlSession::new(SessionConfig { warehouse: dir.path().to_owned(), conf }).err().unwrap();
    assert_eq!(error.class, "INVALID_CONF_VALUE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recursion_has_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let session = session(dir.path());
    let count = |to: u32| {
        format!("WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < {to}) SELECT max(n) FROM t")
    };
    assert_eq!(run(&session, &count(100)).await.unwrap().0, ["|100|"]);
    let endless = "WITH RECURSIVE t AS (SELECT 1 UNION ALL SELECT * FROM t) SELECT count(*) FROM t";
    for query in [count(102), endless.to_owned()] {
        let error = run(&session, &query).await.unwrap_err();
        assert_eq!(error.class, "RECURSION_LEVEL_LIMIT_EXCEEDED", "{error}");
        assert!(error.message.contains("SET spark.sql.cteRecursionLevelLimit=1000"), "{error}");
    }
    let script = format!("SET spark.sql.cteRecursionLevelLimit=200; {}", count(102));
    assert_eq!(run(&session, &script).await.unwrap().0, ["|102|"]);
    let doubling = "SET spark.sql.cteRecursionLevelLimit=-1;
        WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n FROM t JOIN (VALUES (1), (2)) AS two(x) ON true)
        SELECT count(*) FROM t";
    assert_eq!(run(&session, doubling).await.unwrap_err().class, "RECURSION_ROW_LIMIT_EXCEEDED");
    assert_eq!(run(&session, "SET spark.sql.cteRecursionRowLimit=few").await.unwrap_err().class, "INVALID_CONF_VALUE");
}

#[tokio::test]
async fn an_unresolved_column_is_shown_where_it_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let session = session(dir.path());
    let ctes = "WITH a AS (SELECT 1 AS x, 2 AS y), b AS (SELECT y FROM a WHERE x > 0)\n";
    let cases = [
        ("SELECT x FROM b", 2, 8),
        ("SELECT y FROM b WHERE y = 1 AND X = 2", 2, 33),
        ("SELECT y + b.x FROM b", 2, 12),
        ("SELECT b.y FROM b JOIN a ON b.x = a.x", 2, 29),
        ("SELECT y FROM (SELECT y,\n x FROM b)", 3, 2),
    ];
    for (query, line, column) in cases {
        let error = run(&session, &format!("{ctes}{query}")).await.unwrap_err();
        assert_eq!(error.class, "UNRESOLVED_COLUMN.WITH_SUGGESTION", "{error}");
        let place = error.place.clone().unwrap();
        assert_eq!((place.line, place.column), (line, column), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_read_as_they_were_written() {
    let (dir, session) = with_source().await;
    let script = "CREATE STREAMING TABLE c USING csv OPTIONS (HEADER 'true', sep ';', compression 'gzip')
            AS SELECT a, 'x;y' AS b FROM STREAM source;
        SELECT * FROM c ORDER BY a";
    assert_eq!(run(&session, script).await.unwrap().0, ["|1|x;y|", "|2|x;y|"]);
    let out = dir.path().join("Out");
    for what in ["TABLE p AS SELECT 7 AS a", "STREAMING TABLE s AS SELECT a FROM STREAM source"] {
        let (head, query) = what.split_once(" AS ").unwrap();
        let script = format!("CREATE {head} USING json OPTIONS (PATH '{}') AS {query}", out.display());
        run(&session, &script).await.unwrap();
        assert!(
            out.join("_spark_metadata").is_dir()
                && !dir.path().join("warehouse").join(&head[head.len() - 1..]).exists()
        );
        fs::remove_dir_all(&out).unwrap();
    }
    for (head, query) in [
        ("TABLE q (a INT)", ""),
        ("TABLE q", "AS SELECT 1 AS a"),
        ("STREAMING TABLE q", "AS SELECT a FROM STREAM source"),
    ] {
        let script = format!("CREATE {head} USING json OPTIONS (path '/a') LOCATION '/b' {query}");
        let error = run(&session, &script).await.unwrap_err();
        assert!(error.to_string().contains("Duplicated table paths found: '/a' and '/b'"), "{script}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_of_one_reading_stand_behind_the_table() {
    let (dir, session) = with_source().await;
    fs::write(dir.path().join("in/2.json"), "{\"a\": 5}\n").unwrap();
    let count = async |from: &str| run(&session, &format!("SELECT count(*) FROM {from}")).await;
    for (from, rows) in [
        ("source", "|3|"),
        ("source WITH ('pathGlobFilter' = '2*')", "|1|"),
        ("spark_catalog.default.source WITH (PATHGLOBFILTER '1*') AS s WHERE s.a > 1", "|1|"),
        ("source WITH (pathGlobFilter '1*') s JOIN source t ON s.a = t.a", "|2|"),
    ] {
        assert_eq!(count(from).await.unwrap().0, [rows], "{from}");
    }
    let path = dir.path().join("in");
    let direct = format!("json.`{}` WITH (pathGlobFilter '2*')", path.display());
    assert_eq!(count(&direct).await.unwrap().0, ["|1|"]);
    let error = count("source WITH (pathGlobFilters '2*')").await.unwrap_err();
    assert!(error.to_string().contains("did you mean 'pathGlobFilter'?"), "{error}");
    run(&session, "CREATE VIEW v AS SELECT 1 AS a; CREATE TEMPORARY TABLE m (a INT)").await.unwrap();
    for from in ["v WITH (a 'b')", "m WITH (a 'b')"] {
        let error = count(from).await.unwrap_err();
        assert!(error.to_string().contains("takes no options"), "{from}: {error}");
    }
    // Of two spellings the one of the query counts.
    let script = "CREATE TABLE one (a INT) USING json OPTIONS (PathGlobFilter '1*', path '{path}');
        CREATE STREAMING TABLE s AS SELECT * FROM STREAM one WITH (PATHGLOBFILTER = '2*');
        SELECT * FROM s";
    let script = script.replace("{path}", &path.display().to_string());
    assert_eq!(run(&session, &script).await.unwrap().0, ["|5|"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_a_topic_may_have_an_end() {
    let (_dir, session) = with_source().await;
    let script = r#"CREATE TABLE k USING kafka OPTIONS (kafka.bootstrap.servers '127.0.0.1:1', subscribe 't',
        endingOffsets '{"t":{"0":7}}')"#;
    run(&session, script).await.unwrap();
    assert!(session.plan("SELECT value FROM k").await.is_ok());
    let error = session.plan("SELECT value FROM STREAM k").await.unwrap_err();
    assert!(error.to_string().contains("ending offset not valid in streaming queries"), "{error}");
    let error = run(&session, "CREATE TABLE l USING kafka OPTIONS (subscribe 't')").await.unwrap_err();
    assert!(error.to_string().contains("kafka.bootstrap.servers"), "{error}");
    for format in ["kafka OPTIONS (kafka.bootstrap.servers '127.0.0.1:1', subscribe 't')", "rate"] {
        let error = run(&session, &format!("CREATE TABLE l (a INT) USING {format}")).await.unwrap_err();
        assert_eq!(error.class, "USER_SPECIFIED_SCHEMA_UNSUPPORTED", "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_replaces_rows_is_written_before_they_go() {
    let (dir, session) = with_source().await;
    let warehouse = dir.path().join("warehouse");
    let rows = async || run(&session, "SELECT * FROM t ORDER BY a").await.unwrap().0;
    run(&session, "CREATE TABLE t USING parquet PARTITIONED BY (k) AS SELECT 1 AS a, 'x' AS k").await.unwrap();
    // CSV has no arrays, a division by zero no value.
    for wrong in [
        "CREATE OR REPLACE TABLE t USING csv AS SELECT array(1) AS a",
        "CREATE OR REPLACE TABLE t AS SELECT a DIV 0 AS a FROM source",
        "INSERT OVERWRITE t SELECT a DIV 0, 'y' FROM source",
        "CREATE OR REPLACE TABLE t USING parquet PARTITIONED BY (nobody) AS SELECT 1 AS a",
    ] {
        assert!(run(&session, wrong).await.is_err(), "{wrong}");
        assert_eq!(rows().await, ["|1|x|"], "{wrong}");
    }
    assert!(
        run(&session, "CREATE TABLE u PARTITIONED BY (k) AS SELECT a DIV (a - 2) AS b, a AS k FROM source")
            .await
            .is_err()
    );
    assert!(!warehouse.join("u").exists());
    run(&session, "INSERT OVERWRITE t SELECT a, concat(k, 'y') FROM t").await.unwrap();
    assert_eq!(rows().await, ["|1|xy|"]);
    assert!(warehouse.join("t/k=xy").is_dir() && !warehouse.join("t/k=x").exists());
    run(&session, "INSERT INTO t VALUES (2, 'z'); INSERT OVERWRITE t SELECT a, 'w' FROM t WHERE a > 1").await.unwrap();
    assert_eq!(rows().await, ["|2|w|"]);
    run(&session, "CREATE OR REPLACE TABLE t USING json AS SELECT a + 1 AS a FROM t").await.unwrap();
    assert_eq!(rows().await, ["|3|"]);
    let files = fs::read_dir(warehouse.join("t")).unwrap().count();
    assert_eq!(files, 2, "one file and the log");
    // Elsewhere, but not inside of what goes then.
    let inside = warehouse.join("t/more");
    let script = format!("CREATE OR REPLACE TABLE t USING json LOCATION '{}' AS SELECT 4 AS a", inside.display());
    assert_eq!(run(&session, &script).await.unwrap_err().class, "LOCATION_ALREADY_EXISTS");
    assert_eq!(rows().await, ["|3|"]);
    let out = dir.path().join("out");
    let script =
        format!("CREATE OR REPLACE TABLE t USING json LOCATION '{}' AS SELECT a + 1 AS a FROM t", out.display());
    run(&session, &script).await.unwrap();
    assert_eq!(rows().await, ["|4|"]);
    assert!(!warehouse.join("t").exists());
    // Also one that a streaming query wrote, whose checkpoint goes with its rows.
    let script = "CREATE STREAMING TABLE s AS SELECT a FROM STREAM source;
        CREATE OR REPLACE TABLE s AS SELECT sum(a) AS a FROM s; INSERT INTO s VALUES (9); SELECT * FROM s ORDER BY a";
    assert_eq!(run(&session, script).await.unwrap().0, ["|3|", "|9|"]);
    assert!(!warehouse.join("_checkpoints/s").exists() && !warehouse.join("s/_spark_metadata/query").exists());
}
