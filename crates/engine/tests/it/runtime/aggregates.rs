//! Incremental aggregation against a one-shot aggregation of the same rows.

use caudal_engine::sink::OutputMode;
use proptest::prelude::*;

use super::support::{Harness, batch, text};

/// Typed columns and generic ones, filters, several keys, null results.
const EVERYTHING: &str = "select k, v % 3 as r, count(*) as n, count(v) as c, sum(v) as total, min(v) as lo, max(v) as hi, \
    avg(v) as mean, min(ts) as first_ts, max(ts) as last_ts, sum(v) filter (where v > 5) as big, min(k) as least, \
    stddev(v) as deviation, array_sort(array_agg(v)) as all_v, bool_and(v > 0) as positive, approx_distinct(v) as kinds \
    from s group by k, v % 3";

fn rounded(rows: Vec<String>) -> Vec<String> {
    // Sums of doubles depend on the order in the last digits; six of them are compared.
    let round = |word: &str| match (word.contains('.'), word.parse::<f64>()) {
        (true, Ok(number)) => format!("{number:.6}"),
        _ => word.to_owned(),
    };
    rows.iter().map(|row| row.split(' ').map(round).collect::<Vec<_>>().join(" ")).collect()
}

async fn check(batches: Vec<Vec<(i64, String, i64)>>) {
    let harness = Harness::new(0);
    let run = harness.start(EVERYTHING, OutputMode::Complete).await;
    let mut all = Vec::new();
    for rows in &batches {
        let rows: Vec<(i64, &str, i64)> = rows.iter().map(|(ts, k, v)| (*ts, k.as_str(), *v)).collect();
        harness.stream.add(batch(&rows));
        all.push(batch(&rows));
        run.drain().await;
    }
    let incremental = rounded(run.all());
    run.query.stop().await;
    let context = datafusion::prelude::SessionContext::new();
    let table = datafusion::catalog::MemTable::try_new(super::support::schema(), vec![all]).unwrap();
    context.register_table("s", std::sync::Arc::new(table)).unwrap();
    let at_once = context.sql(EVERYTHING).await.unwrap().collect().await.unwrap();
    assert_eq!(incremental, rounded(text(&at_once)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn incremental_equals_at_once(
        batches in prop::collection::vec(prop::collection::vec((0i64..100, "[abc]", -20i64..20), 1..30), 1..6)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check(batches));
    }
}

#[tokio::test]
async fn large_batches_are_spread_over_partitions() {
    let rows: Vec<(i64, String, i64)> = (0..20_000).map(|row| (row / 100, format!("key {}", row % 501), row)).collect();
    check(rows.chunks(9_000).map(<[_]>::to_vec).collect()).await;
}

#[tokio::test]
async fn chained_windows_in_append_mode() {
    let harness = Harness::new(0);
    let sql = "select tumble(win, 20) as w, max(n) as busiest from \
               (select get_field(tumble(ts, 10), 'end') as win, count(*) as n from w group by tumble(ts, 10)) \
               group by tumble(win, 20)";
    // The window's end carries no watermark of its own here, so Spark's rule refuses the outer aggregate.
    let refused = harness
        .try_start(sql, OutputMode::Append, None, caudal_engine::query::Trigger::Default)
        .await
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(refused.contains("streaming aggregations without watermark"), "{refused}");

    let sql = "select w, sum(n) as total from (select tumble(ts, 10) as w, k, count(*) as n from w group by tumble(ts, 10), k) \
               group by w";
    let run = harness.start(sql, OutputMode::Append).await;
    harness.stream.add(batch(&[(1, "a", 1), (2, "b", 1), (3, "a", 1), (12, "a", 1)]));
    run.drain().await;
    assert_eq!(run.take(), ["[0,10] 3"]);
    harness.stream.add(batch(&[(25, "a", 1)]));
    run.drain().await;
    assert_eq!(run.take(), ["[10,20] 1"]);
    run.query.stop().await;
}

#[tokio::test]
async fn stream_joins_a_table() {
    let harness = Harness::new(0);
    harness.context.sql("create table names as select 'a' as id, 'Ann' as name").await.unwrap();
    let run = harness.start("select name, v from s join names on k = id", OutputMode::Append).await;
    for value in 1..4 {
        harness.stream.add(batch(&[(1, "a", value), (1, "b", value)]));
        run.drain().await;
    }
    assert_eq!(run.all(), ["Ann 1", "Ann 2", "Ann 3"]);
    run.query.stop().await;
}

#[tokio::test]
async fn zeros_of_both_signs_and_all_nans_are_one_group() {
    let query = "select key, struct(key) as nested, count(*) as n from \
        (select cast(case k when 'z' then '0' when 'm' then '-0' else 'NaN' end as double) * v as key from s) \
        group by key, struct(key)";
    let dir = super::support::directory();
    let harness = Harness::new(0);
    let run = harness.start_at(query, OutputMode::Complete, Some(dir.path())).await;
    harness.stream.add(batch(&[(0, "z", 1), (0, "m", 1), (0, "n", 1)]));
    run.drain().await;
    harness.stream.add(batch(&[(1, "m", 1), (1, "z", 1), (1, "n", -1)]));
    run.drain().await;
    let groups = ["0.0 [0.0] 4", "NaN [NaN] 2"];
    assert_eq!(run.all(), groups);
    run.query.stop().await;
    // The same keys are found again in the state that was read back.
    let run = harness.start_at(query, OutputMode::Complete, Some(dir.path())).await;
    harness.stream.add(batch(&[(2, "m", 1)]));
    run.drain().await;
    assert_eq!(run.take().first().map(String::as_str), Some("0.0 [0.0] 5"));
    run.query.stop().await;
}
