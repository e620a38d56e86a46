//! Progress reports, triggers, and what a query costs while it runs and while it waits.

use std::sync::Arc;
use std::time::Duration;

use caudal_engine::plan::StreamRelation;
use caudal_engine::query::{StreamingQuerySpec, Trigger, start};
use caudal_engine::sink::OutputMode;
use caudal_engine::sink::noop::NoopSink;
use caudal_engine::source::rate::{RateFactory, RateOptions};

use super::support::{Harness, batch};

fn keys(value: &serde_json::Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The keys are those that Spark 4.2 prints for the same query, in the same order.
#[tokio::test]
async fn progress_reads_as_sparks() {
    let harness = Harness::new(5);
    let run = harness
        .start("select tumble(ts, 10) as w, count(*) as n from w group by tumble(ts, 10)", OutputMode::Append)
        .await;
    harness.stream.add(batch(&[(1, "a", 1)]));
    run.drain().await;
    harness.stream.add(batch(&[(3, "a", 1), (60, "a", 1)]));
    run.drain().await;
    let reports = run.query.recent_progress();
    run.query.stop().await;
    let json = serde_json::to_value(reports[1].as_ref()).unwrap();
    assert_eq!(
        keys(&json),
        [
            "id",
            "runId",
            "name",
            "timestamp",
            "batchId",
            "batchDuration",
            "numInputRows",
            "inputRowsPerSecond",
            "processedRowsPerSecond",
            "durationMs",
            "eventTime",
            "stateOperators",
            "sources",
            "sink"
        ]
    );
    assert_eq!(
        keys(&json["durationMs"]),
        ["addBatch", "commitOffsets", "getBatch", "latestOffset", "queryPlanning", "triggerExecution", "walCommit"]
    );
    assert_eq!(
        serde_json::to_string(&json["eventTime"]).unwrap(),
        r#"{"avg":"1970-01-01T00:00:31.500Z","max":"1970-01-01T00:01:00.000Z","min":"1970-01-01T00:00:03.000Z","watermark":"1970-01-01T00:00:00.000Z"}"#
    );
    assert_eq!(
        keys(&json["stateOperators"][0]),
        [
            "operatorName",
            "numRowsTotal",
            "numRowsUpdated",
            "allUpdatesTimeMs",
            "numRowsRemoved",
            "allRemovalsTimeMs",
            "commitTimeMs",
            "memoryUsedBytes",
            "numRowsDroppedByWatermark",
            "numShufflePartitions",
            "numStateStoreInstances",
            "customMetrics"
        ]
    );
    assert_eq!(json["sources"][0]["startOffset"], 1);
    assert_eq!(json["sources"][0]["endOffset"], 2);
    assert_eq!(json["sink"]["description"], "MemorySink");
    // The window [0, 10) went out in a batch without data.
    let last = serde_json::to_value(reports[2].as_ref()).unwrap();
    assert_eq!((last["numInputRows"].as_u64(), last["sink"]["numOutputRows"].as_u64()), (Some(0), Some(1)));
    assert_eq!(last["stateOperators"][0]["numRowsRemoved"], 1);
}

#[tokio::test]
async fn rate_source_feeds_a_query() {
    let harness = Harness::new(0);
    let options = RateOptions { rows_per_second: 50, ..RateOptions::default() };
    let relation = StreamRelation::new("r", Arc::new(RateFactory::new(options)));
    harness.context.register_table("r", Arc::new(relation)).unwrap();
    let run = harness.start("select value * 2 as twice from r where value < 3", OutputMode::Append).await;
    let mut progress = run.query.listen();
    let report = tokio::time::timeout(Duration::from_secs(30), progress.recv()).await.unwrap().unwrap();
    assert_eq!(report.num_input_rows % 50, 0);
    run.query.stop().await;
    assert_eq!(run.all(), ["0", "2", "4"]);
}

#[tokio::test]
async fn processing_time_trigger_gathers_rows() {
    let harness = Harness::new(0);
    let trigger = Trigger::ProcessingTime(Duration::from_millis(200));
    let run = harness.try_start("select v from s", OutputMode::Append, None, trigger).await.unwrap();
    for value in 0..20 {
        harness.stream.add(batch(&[(1, "a", value)]));
        tokio::task::yield_now().await;
    }
    run.drain().await;
    assert_eq!(run.all().len(), 20);
    assert!(run.query.recent_progress().len() <= 3);
    run.query.stop().await;
}

#[tokio::test]
async fn many_batches_keep_state_and_checkpoint_small() {
    let mut harness = Harness::new(0);
    harness.conf.insert("spark.sql.streaming.minBatchesToRetain".to_owned(), "10".to_owned());
    harness.conf.insert("spark.sql.shuffle.partitions".to_owned(), "1".to_owned());
    let temp = tempfile::tempdir().unwrap();
    let spec = StreamingQuerySpec {
        checkpoint: Some(temp.path().to_owned()),
        ..harness
            .spec(
                "select tumble(ts, 10) as w, k, array_agg(v) as all_v, max(v) as m from w group by tumble(ts, 10), k",
                OutputMode::Append,
                Box::new(NoopSink),
            )
            .await
    };
    let query = start(spec).await.unwrap();
    let mut largest = 0;
    for step in 0..400i64 {
        harness.stream.add(batch(&[(step * 5, "a", step), (step * 5, "b", step)]));
        tokio::time::timeout(Duration::from_secs(60), query.process_all_available()).await.unwrap().unwrap();
        let operator = query.last_progress().unwrap().state_operators[0].clone();
        assert!(operator.num_rows_total <= 4);
        largest = operator.memory_used_bytes.max(largest);
    }
    assert!(largest < 64 * 1024, "{largest} bytes of state for four groups");
    query.stop().await;
    // Ten batches to retain, the one before them, and what comes together before it is worth a look.
    for log in ["commits", "offsets"] {
        let retained = std::fs::read_dir(temp.path().join(log)).unwrap().count();
        assert!((11..=13).contains(&retained), "{retained} entries in {log}");
    }
    let files = |dir: &str| std::fs::read_dir(temp.path().join(dir)).unwrap().count();
    // A file of changes between two snapshots; those of ten batches and of the snapshot that they are based on.
    assert!(files("state/0") <= 5 && files("state/0/0") <= 4, "{} and {}", files("state/0"), files("state/0/0"));
    let progress = query.last_progress().unwrap();
    assert!(progress.batch_id >= 400);
}
