//! Streaming tables of SQL scripts, over sources and sinks that need no broker.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BinaryArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use caudal_engine::format::show::{ShowOptions, show_string};
use caudal_engine::sink::OutputMode;
use caudal_engine::sink::memory::{MemoryRows, MemorySink};
use caudal_engine::source::memory::MemoryStream;
use caudal_engine::sql::{SessionConfig, SqlSession, StatementResult};

fn session(warehouse: &Path) -> SqlSession {
    SqlSession::new(SessionConfig { warehouse: warehouse.to_owned(), conf: BTreeMap::new() }).unwrap()
}

/// Runs a script; queries that end by themselves are waited for. Returns the table of the last statement with rows.
async fn run(session: &SqlSession, script: &str) -> String {
    let mut shown = String::new();
    for statement in session.parse(script).unwrap_or_else(|e| panic!("{e}")) {
        match session.execute(&statement).await.unwrap_or_else(|e| panic!("{e}")) {
            StatementResult::Rows(rows) => {
                let (schema, batches) = rows.collect().await.unwrap_or_else(|e| panic!("{e}"));
                let options = ShowOptions { num_rows: 1000, truncate: 0, ..ShowOptions::default() };
                shown = show_string(&schema, &batches, &options);
            }
            StatementResult::Streaming(query) => query.await_termination().await.unwrap(),
            StatementResult::StreamingSelect(_) | StatementResult::Done(_) => {}
        }
    }
    shown
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streaming_table_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (input, warehouse) = (dir.path().join("in"), dir.path().join("warehouse"));
    fs::create_dir(&input).unwrap();
    fs::write(input.join("1.json"), "{\"a\": 1, \"b\": \"x\"}\n{\"a\": 2, \"b\": \"y\"}\n").unwrap();
    let script = format!(
        "CREATE TABLE source (a INT, b STRING) USING json OPTIONS (path '{}');
         CREATE STREAMING TABLE doubled TBLPROPERTIES ('trigger' = 'availableNow') AS
         SELECT a * 2 AS c, upper(b) AS d FROM STREAM source;
         SELECT * FROM doubled ORDER BY c",
        input.display()
    );
    let first = run(&session(&warehouse), &script).await;
    assert_eq!(first.trim_end(), "+---+---+\n|c  |d  |\n+---+---+\n|2  |X  |\n|4  |Y  |\n+---+---+");
    fs::write(input.join("2.json"), "{\"a\": 3, \"b\": \"z\"}\n").unwrap();
    let second = run(&session(&warehouse), &script).await;
    assert_eq!(second.trim_end(), "+---+---+\n|c  |d  |\n+---+---+\n|2  |X  |\n|4  |Y  |\n|6  |Z  |\n+---+---+");
}

/// Positions of one player in milliseconds and metres, as Kafka would deliver them.
fn positions(samples: &[(i64, f64, f64)]) -> RecordBatch {
    let values: Vec<String> = samples
        .iter()
        .map(|(ms, x, y)| {
            let time = chrono::DateTime::from_timestamp_millis(*ms).unwrap().format("%Y-%m-%dT%H:%M:%S%.3fZ");
            format!(
                "{{\"match_id\": \"m\", \"player_id\": \"7\", \"timestamp\": \"{time}\", \"position_x\": {x}, \"position_y\": {y}}}"
            )
        })
        .collect();
    let values: ArrayRef = Arc::new(BinaryArray::from_iter_values(&values));
    let schema = Schema::new(vec![Field::new("value", DataType::Binary, true)]);
    RecordBatch::try_new(Arc::new(schema), vec![values]).unwrap()
}

/// The part of the example's pipeline that makes seconds of positions.
fn seconds_query() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/football/pipeline.sql");
    let text = fs::read_to_string(file).unwrap();
    let start = text.find("WITH position AS").unwrap();
    let end = start + text[start..].find(';').unwrap();
    text[start..end].to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_football_pipeline_measures_every_step_once() {
    let dir = tempfile::tempdir().unwrap();
    let session = session(dir.path());
    // 20 s at 10 Hz, 0.5 m a sample: 5 m/s.
    let samples: Vec<(i64, f64, f64)> =
        (0..200).map(|i| (1_700_000_000_000 + i * 100, i as f64 * 0.3, i as f64 * 0.4)).collect();
    let schema = positions(&samples[..1]).schema();
    let stream = MemoryStream::new(schema);
    session.register_source("player_position", Arc::new(stream.clone()));
    let statements = session.parse(&seconds_query()).unwrap();
    let StatementResult::StreamingSelect(select) =
        session.execute(&statements[0]).await.unwrap_or_else(|e| panic!("{e}"))
    else {
        panic!("the pipeline reads a stream");
    };
    let rows = MemoryRows::new(select.schema());
    let sink = Box::new(MemorySink::new(rows.clone()));
    let query = session.start(&select, sink, OutputMode::Append, None, None).await.unwrap_or_else(|e| panic!("{e}"));
    for chunk in samples.chunks(37) {
        stream.add(positions(chunk));
        query.process_all_available().await.unwrap();
    }
    query.stop().await;
    let mut seconds = Vec::new();
    for batch in rows.snapshot() {
        for text in batch.column_by_name("value").unwrap().as_string::<i32>().iter().flatten() {
            let row: serde_json::Value = serde_json::from_str(text).unwrap();
            seconds.push((row["second"].as_str().unwrap().to_owned(), row["meters"].as_f64().unwrap()));
        }
    }
    seconds.sort_by(|a, b| a.0.cmp(&b.0));
    // The watermark is 2 s behind the last sample; windows that end before it are out, each of 10 steps of 0.5 m.
    assert!((15..=18).contains(&seconds.len()), "{seconds:?}");
    for (second, meters) in &seconds {
        assert!((meters - 5.0).abs() < 1e-9, "{second}: {meters}");
    }
}

/// Some of Spark's functions are only what the optimiser makes of them: they must work in keys, arguments and filters too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_in_keys_arguments_and_filters_of_streams() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    fs::create_dir(&input).unwrap();
    let rows = [("2026-01-01T10:00:00Z", "1"), ("2026-01-01T10:30:00Z", "null"), ("2026-01-01T11:00:00Z", "3")];
    let lines = rows.map(|(ts, a)| format!("{{\"ts\": \"{ts}\", \"a\": {a}}}\n"));
    fs::write(input.join("1.json"), lines.concat()).unwrap();
    let script = format!(
        "CREATE TABLE v (ts TIMESTAMP, a INT) USING json OPTIONS (path '{}');
         CREATE STREAMING TABLE hours USING memory TBLPROPERTIES ('trigger' = 'availableNow', 'outputMode' = 'complete') AS
         SELECT hour(ts) AS h, date_trunc('DAY', ts) AS d, sum(coalesce(a, 10)) AS s, sum(nvl2(a, 1, 0)) AS n,
                count(*) FILTER (WHERE if(minute(ts) > 0, true, false)) AS late
         FROM STREAM v GROUP BY hour(ts), date_trunc('DAY', ts);
         SELECT h, s, n, late FROM hours ORDER BY h",
        input.display()
    );
    let shown = run(&session(dir.path()), &script).await;
    assert_eq!(
        shown.trim_end(),
        "+---+---+---+----+\n|h  |s  |n  |late|\n+---+---+---+----+\n|10 |11 |1  |1   |\n|11 |3  |1  |0   |\n+---+---+---+----+"
    );
}
