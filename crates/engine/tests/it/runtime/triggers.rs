//! When batches run, and where a query that comes to an end ends.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::{DataType, Field, Schema};
use caudal_engine::format::cell::utc;
use caudal_engine::options::Options;
use caudal_engine::plan::StreamRelation;
use caudal_engine::query::Trigger;
use caudal_engine::sink::OutputMode;
use caudal_engine::source::file::{FileFormat, FileTable};
use chrono::Utc;

use super::support::{Harness, batch};

fn with_files(dir: &Path) -> Harness {
    let harness = Harness::new(0);
    let options: Options = [("path", dir.to_str().unwrap()), ("maxFilesPerTrigger", "1")].into_iter().collect();
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
    let table = FileTable::stream(FileFormat::Json, &options, Some(schema), utc()).unwrap();
    harness.context.register_table("f", Arc::new(StreamRelation::new("f", Arc::new(table)))).unwrap();
    harness
}

#[tokio::test]
async fn once_takes_all_files_in_one_batch_and_can_go_on() {
    let files = tempfile::tempdir().unwrap();
    let checkpoint = tempfile::tempdir().unwrap();
    let put = |n: i64| fs::write(files.path().join(format!("{n}.json")), format!("{{\"n\":{n}}}\n")).unwrap();
    (0..3).for_each(put);
    let run_once = async || {
        let harness = with_files(files.path());
        let at = Some(checkpoint.path().to_owned());
        let run = harness.try_start("select n from f", OutputMode::Append, at, Trigger::Once).await.unwrap();
        run.query.await_termination().await.unwrap();
        let batches: Vec<i64> = run.query.recent_progress().iter().map(|progress| progress.batch_id).collect();
        (batches, run.all())
    };
    assert_eq!(run_once().await, (vec![0], vec!["0".to_owned(), "1".to_owned(), "2".to_owned()]));
    (3..5).for_each(put);
    assert_eq!(run_once().await, (vec![1], vec!["3".to_owned(), "4".to_owned()]));
    assert_eq!(run_once().await, (vec![], vec![]));
}

#[tokio::test]
async fn a_tick_that_passed_while_there_was_nothing_to_do_is_not_made_up() {
    const INTERVAL_MS: i64 = 1_600;
    let harness = Harness::new(0);
    let trigger = Trigger::ProcessingTime(Duration::from_millis(1_600));
    let run = harness.try_start("select v from s", OutputMode::Append, None, trigger).await.unwrap();
    let started_ms = Utc::now().timestamp_millis();
    // In the middle between two ticks, the first such after one that passed while the query waited.
    let middle_ms = (started_ms / INTERVAL_MS + 2) * INTERVAL_MS + INTERVAL_MS / 2;
    let deadline = Instant::now() + Duration::from_secs(20);
    while Utc::now().timestamp_millis() < middle_ms {
        assert!(Instant::now() < deadline, "the clock does not reach {middle_ms}");
        tokio::task::yield_now().await;
    }
    let now_ms = Utc::now().timestamp_millis();
    harness.stream.add(batch(&[(1, "a", 1)]));
    run.drain().await;
    let progress = run.query.last_progress().unwrap();
    run.query.stop().await;
    let at = chrono::DateTime::parse_from_rfc3339(&progress.timestamp).unwrap();
    let next_tick_ms = (now_ms / INTERVAL_MS + 1) * INTERVAL_MS;
    // What the report calls the start is reckoned from its end.
    assert!(at.timestamp_millis() > next_tick_ms - 100, "{} is before {next_tick_ms}", progress.timestamp);
}
