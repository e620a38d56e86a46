//! Output modes, watermarks and late data against results worked out by hand.

use caudal_engine::query::Trigger;
use caudal_engine::sink::OutputMode;

use super::support::{Harness, batch};

const WINDOWED: &str =
    "select tumble(ts, 10) as w, k, count(*) as n, sum(v) as total from w group by tumble(ts, 10), k";

#[tokio::test]
async fn stateless_query_passes_rows_on() {
    let harness = Harness::new(0);
    let run = harness.start("select k, v * 2 as d from s where v > 1", OutputMode::Append).await;
    harness.stream.add(batch(&[(1, "a", 1), (2, "b", 2)]));
    run.drain().await;
    harness.stream.add(batch(&[(3, "c", 3)]));
    run.drain().await;
    assert_eq!(run.all(), ["b 4", "c 6"]);
    let progress = run.query.last_progress().unwrap();
    assert_eq!((progress.num_input_rows, progress.sink.num_output_rows), (1, 1));
    run.query.stop().await;
    assert!(!run.query.is_active());
}

#[tokio::test]
async fn update_mode_puts_out_changed_groups_only() {
    let harness = Harness::new(0);
    let run =
        harness.start("select k, count(*) as n, avg(v) as m, max(v) as x from s group by k", OutputMode::Update).await;
    harness.stream.add(batch(&[(1, "a", 1), (2, "b", 2), (3, "a", 4)]));
    run.drain().await;
    assert_eq!(run.take(), ["a 2 2.5 4", "b 1 2.0 2"]);
    harness.stream.add(batch(&[(1, "b", 6)]));
    run.drain().await;
    assert_eq!(run.take(), ["b 2 4.0 6"]);
    run.query.stop().await;
}

#[tokio::test]
async fn complete_mode_puts_out_everything() {
    let harness = Harness::new(0);
    let run = harness.start("select k, min(v) as m from s group by k order by k", OutputMode::Complete).await;
    harness.stream.add(batch(&[(1, "a", 5), (2, "b", 2)]));
    run.drain().await;
    assert_eq!(run.all(), ["a 5", "b 2"]);
    harness.stream.add(batch(&[(1, "a", 1)]));
    run.drain().await;
    assert_eq!(run.all(), ["a 1", "b 2"]);
    run.query.stop().await;
}

#[tokio::test]
async fn append_mode_puts_out_a_window_when_the_watermark_has_passed_it() {
    let harness = Harness::new(5);
    let run = harness.start(WINDOWED, OutputMode::Append).await;
    harness.stream.add(batch(&[(1, "a", 1), (2, "a", 2), (9, "b", 3), (11, "a", 4)]));
    run.drain().await;
    // The watermark is 11 - 5 = 6: [0, 10) is still open.
    assert_eq!(run.all(), Vec::<String>::new());
    harness.stream.add(batch(&[(8, "a", 10), (16, "a", 5)]));
    run.drain().await;
    // 8 was in time; the watermark is now 11, so [0, 10) is put out, by a batch without data.
    assert_eq!(run.take(), ["[0,10] a 3 13", "[0,10] b 1 3"]);
    let late = batch(&[(9, "a", 100), (12, "a", 6)]);
    harness.stream.add(late);
    run.drain().await;
    assert_eq!(run.take(), Vec::<String>::new());
    let dropped: u64 = run
        .query
        .recent_progress()
        .iter()
        .map(|progress| progress.state_operators[0].num_rows_dropped_by_watermark)
        .sum();
    assert_eq!(dropped, 1);
    harness.stream.add(batch(&[(40, "c", 1)]));
    run.drain().await;
    assert_eq!(run.take(), ["[10,20] a 3 15"]);
    run.query.stop().await;
}

#[tokio::test]
async fn update_mode_with_watermark_drops_late_rows_and_evicts() {
    let harness = Harness::new(5);
    let run = harness.start(WINDOWED, OutputMode::Update).await;
    harness.stream.add(batch(&[(1, "a", 1), (21, "a", 4)]));
    run.drain().await;
    assert_eq!(run.take(), ["[0,10] a 1 1", "[20,30] a 1 4"]);
    harness.stream.add(batch(&[(2, "a", 100), (12, "b", 1), (22, "a", 4)]));
    run.drain().await;
    // The watermark is 16: the row at 2 is late; that at 12 is not, its window ends at 20.
    assert_eq!(run.take(), ["[10,20] b 1 1", "[20,30] a 2 8"]);
    let progress = run.query.last_progress().unwrap();
    assert_eq!(progress.state_operators[0].num_rows_total, 2);
    run.query.stop().await;
}

#[tokio::test]
async fn an_aggregate_without_keys_has_one_row() {
    let harness = Harness::new(0);
    let run = harness.start("select count(*) as n, sum(v) as total from s where v > 10", OutputMode::Complete).await;
    harness.stream.add(batch(&[(1, "a", 1)]));
    run.drain().await;
    assert_eq!(run.all(), ["0 null"]);
    harness.stream.add(batch(&[(1, "a", 11), (1, "b", 12)]));
    run.drain().await;
    assert_eq!(run.all(), ["2 23"]);
    run.query.stop().await;
}

#[tokio::test]
async fn available_now_stops_by_itself() {
    let harness = Harness::new(5);
    harness.stream.add(batch(&[(1, "a", 1), (30, "b", 2)]));
    let run = harness.try_start(WINDOWED, OutputMode::Append, None, Trigger::AvailableNow).await.unwrap();
    run.query.await_termination().await.unwrap();
    assert_eq!(run.all(), ["[0,10] a 1 1"]);
}

#[tokio::test]
async fn rows_are_counted_without_reading_a_column() {
    let harness = Harness::new(0);
    let run = harness.start("select count(*) as n from s", OutputMode::Update).await;
    harness.stream.add(batch(&[(1, "a", 1), (2, "b", 1)]));
    run.drain().await;
    assert_eq!(run.take(), ["2"]);
    harness.stream.add(batch(&[(1, "a", 1)]));
    run.drain().await;
    assert_eq!(run.take(), ["3"]);
    run.query.stop().await;
}

#[tokio::test]
async fn distinct_rows_of_a_watermarked_stream() {
    let harness = Harness::new(0);
    let run = harness.start("select distinct ts, k from w", OutputMode::Append).await;
    harness.stream.add(batch(&[(1, "a", 1), (1, "a", 2), (1, "b", 3), (5, "a", 4)]));
    run.drain().await;
    assert_eq!(run.take(), ["1 a", "1 b", "5 a"]);
    harness.stream.add(batch(&[(5, "a", 5), (6, "c", 6)]));
    run.drain().await;
    assert_eq!(run.take(), ["6 c"]);
    run.query.stop().await;
}

#[tokio::test]
async fn current_timestamp_is_the_time_of_the_batch() {
    let harness = Harness::new(0);
    let run = harness.start("select v, now() as t, to_char(now(), '%Y') as y from s", OutputMode::Append).await;
    let mut times = Vec::new();
    for value in 0..2 {
        harness.stream.add(batch(&[(1, "a", value), (1, "b", value)]));
        run.drain().await;
        let rows = run.take();
        let time = |row: &String| row.split(' ').nth(1).unwrap().to_owned();
        assert_eq!(time(&rows[0]), time(&rows[1]));
        times.push(time(&rows[0]));
    }
    assert!(times[0] < times[1], "{times:?}");
    run.query.stop().await;
}
