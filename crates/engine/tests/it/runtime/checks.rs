//! What is refused before a query starts, in Spark's words.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use caudal_engine::error::EngineError;
use caudal_engine::plan::{SourceFactory, StreamRelation};
use caudal_engine::query::{QueryManager, StreamingQuerySpec, Trigger};
use caudal_engine::sink::OutputMode;
use caudal_engine::sink::noop::NoopSink;
use caudal_engine::source::Source;

use super::support::{Harness, schema};

const WITHOUT_WATERMARK: &str = "[STREAMING_OUTPUT_MODE.UNSUPPORTED_OPERATION] Invalid streaming output mode: append. \
    This output mode is not supported for streaming aggregations without watermark on streaming DataFrames/DataSets. \
    SQLSTATE: 42KDE";
const WITHOUT_AGGREGATION: &str = "[STREAMING_OUTPUT_MODE.UNSUPPORTED_OPERATION] Invalid streaming output mode: complete. \
    This output mode is not supported for no streaming aggregations on streaming DataFrames/DataSets. SQLSTATE: 42KDE";

#[tokio::test]
async fn invalid_plans_are_refused_as_spark_does() {
    use OutputMode::{Append, Complete, Update};
    let harness = Harness::new(1);
    harness.context.sql("create table fixed as select 1 as v").await.unwrap();
    let cases = [
        ("select k, count(*) from s group by k", Append, WITHOUT_WATERMARK),
        ("select k, count(*) from w group by k", Append, WITHOUT_WATERMARK),
        ("select k from s", Complete, WITHOUT_AGGREGATION),
        ("select k from s order by k", Append, "Sorting is not supported on streaming DataFrames/Datasets"),
        (
            "select k from s limit 3",
            Update,
            "Limits are not supported on streaming DataFrames/Datasets in Update output mode",
        ),
        ("select k, count(distinct v) from s group by k", Update, "Distinct aggregations are not supported"),
        ("select row_number() over (order by v) from s", Append, "[NON_TIME_WINDOW_NOT_SUPPORTED_IN_STREAMING]"),
        ("select v from s union all select v from fixed", Append, "Union between streaming and batch"),
        ("select a.v from s a join s b on a.v = b.v", Append, "joins of two streams are not supported"),
        (
            "select v from fixed",
            Append,
            "Queries without streaming sources cannot be executed with writeStream.start()",
        ),
        (
            "select n, count(*) from (select tumble(ts, 10), count(*) as n from w group by tumble(ts, 10)) group by n",
            Update,
            "Detected pattern of possible 'correctness' issue due to global watermark",
        ),
    ];
    for (sql, mode, expected) in cases {
        let error = harness.try_start(sql, mode, None, Trigger::Default).await.err();
        let message = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(message.contains(expected), "{sql} in {mode:?}: {message}");
    }
}

#[tokio::test]
async fn a_checkpoint_serves_one_query_at_a_time() {
    let harness = Harness::new(1);
    let temp = tempfile::tempdir().unwrap();
    let run = harness.start_at("select k from s", OutputMode::Append, Some(temp.path())).await;
    let second =
        harness.try_start("select k from s", OutputMode::Append, Some(temp.path().into()), Trigger::Default).await;
    let message = second.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(message.contains("[CONCURRENT_QUERY]"), "{message}");
    let id = run.query.id().to_owned();
    run.query.stop().await;
    let run = harness.start_at("select k from s", OutputMode::Append, Some(temp.path())).await;
    assert_eq!(run.query.id(), id);
    run.query.stop().await;
}

#[tokio::test]
async fn names_are_unique_among_active_queries() {
    let harness = Harness::new(1);
    let manager = QueryManager::new();
    let spec = async || StreamingQuerySpec {
        name: Some("mine".to_owned()),
        ..harness.spec("select k from s", OutputMode::Append, Box::new(NoopSink)).await
    };
    let query = manager.start(spec().await).await.unwrap();
    let message = manager.start(spec().await).await.unwrap_err().to_string();
    assert!(message.contains("Cannot start query with name mine"), "{message}");
    assert_eq!(manager.active().await.len(), 1);
    query.stop().await;
    manager.start(spec().await).await.unwrap();
    manager.stop_all().await;
    assert!(manager.active().await.is_empty());
}

/// A source whose cluster does not answer.
#[derive(Debug)]
struct Silent;

#[async_trait]
impl SourceFactory for Silent {
    async fn open(&self, _: Option<&Path>) -> Result<Box<dyn Source>, EngineError> {
        std::future::pending().await
    }

    fn schema(&self) -> SchemaRef {
        schema()
    }

    fn description(&self) -> String {
        "Silent".to_owned()
    }
}

#[tokio::test]
async fn a_start_that_hangs_is_in_nobodys_way() {
    let harness = Harness::new(1);
    harness.context.register_table("silent", Arc::new(StreamRelation::new("silent", Arc::new(Silent)))).unwrap();
    let manager = QueryManager::new();
    let spec = async |name: &str, table: &str| StreamingQuerySpec {
        name: Some(name.to_owned()),
        ..harness.spec(&format!("select k from {table}"), OutputMode::Append, Box::new(NoopSink)).await
    };
    let hanging = {
        let (manager, spec) = (manager.clone(), spec("slow", "silent").await);
        tokio::spawn(async move { manager.start(spec).await })
    };
    // The runtime has one thread: now the start above has come as far as it can without the pool.
    tokio::task::yield_now().await;
    let other = manager.start(spec("other", "s").await);
    tokio::time::timeout(Duration::from_secs(30), other).await.unwrap().unwrap();
    assert!(manager.get("other").await.is_some());
    let message = manager.start(spec("slow", "s").await).await.unwrap_err().to_string();
    assert!(message.contains("Cannot start query with name slow"), "{message}");
    // Given up, its name is free.
    hanging.abort();
    assert!(hanging.await.unwrap_err().is_cancelled());
    manager.start(spec("slow", "s").await).await.unwrap();
    manager.stop_all().await;
    assert!(manager.active().await.is_empty());
}
