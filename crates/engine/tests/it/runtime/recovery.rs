//! Restarts: a checkpoint copied at any moment resumes to the same result.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use caudal_engine::error::EngineError;
use caudal_engine::query::{StreamingQuerySpec, Trigger, start};
use caudal_engine::sink::{OutputMode, Sink};
use parking_lot::Mutex;

use super::support::{Harness, batch, text};

const WINDOWED: &str = "select tumble(ts, 10) as w, k, count(*) as n, sum(v) as total, array_agg(v) as all_v \
                        from w group by tumble(ts, 10), k";

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// What each batch put out; the content survives restarts, and a replayed batch must bring the same rows again.
#[derive(Clone, Default)]
struct Ledger {
    batches: Arc<Mutex<BTreeMap<i64, Vec<String>>>>,
}

struct LedgerSink {
    ledger: Ledger,
    /// Fails when it is handed this batch, before or after it took the rows: a crash.
    crash_at: Option<(i64, bool)>,
}

#[async_trait]
impl Sink for LedgerSink {
    fn description(&self) -> String {
        "Ledger".to_owned()
    }

    fn check_mode(&self, _: OutputMode) -> Result<(), EngineError> {
        Ok(())
    }

    async fn add_batch(
        &mut self,
        batch_id: i64,
        _: OutputMode,
        _: SchemaRef,
        batches: Vec<RecordBatch>,
    ) -> Result<u64, EngineError> {
        let crash = || EngineError::External { action: "test".to_owned(), message: "crash".to_owned() };
        if self.crash_at == Some((batch_id, false)) {
            return Err(crash());
        }
        let rows = text(&batches);
        let count = rows.len() as u64;
        if let Some(before) = self.ledger.batches.lock().insert(batch_id, rows.clone()) {
            assert_eq!(before, rows, "batch {batch_id} replayed with other rows");
        }
        if self.crash_at == Some((batch_id, true)) {
            return Err(crash());
        }
        Ok(count)
    }
}

fn input() -> Vec<RecordBatch> {
    (0..12i64)
        .map(|step| batch(&[(step * 4, "a", step), (step * 4 + 1, "b", 2 * step), (step * 4 - 9, "a", 100 + step)]))
        .collect()
}

/// Runs to the end of the input, with one added batch per micro-batch.
async fn run(
    harness: &Harness,
    checkpoint: &Path,
    mode: OutputMode,
    ledger: &Ledger,
    crash_at: Option<(i64, bool)>,
) -> bool {
    let sink = LedgerSink { ledger: ledger.clone(), crash_at };
    let spec = StreamingQuerySpec {
        checkpoint: Some(checkpoint.to_owned()),
        trigger: Trigger::AvailableNow,
        ..harness.spec(WINDOWED, mode, Box::new(sink)).await
    };
    start(spec).await.unwrap().await_termination().await.is_ok()
}

fn fed() -> Harness {
    let stream =
        caudal_engine::source::memory::MemoryStream::new(super::support::schema()).with_max_batches_per_trigger(1);
    let mut harness = Harness::over(stream, 5);
    harness.conf.insert("spark.sql.streaming.stateStore.minDeltasForSnapshot".to_owned(), "3".to_owned());
    input().into_iter().for_each(|batch| harness.stream.add(batch));
    harness
}

#[tokio::test]
async fn a_crash_at_any_batch_changes_nothing() {
    for mode in [OutputMode::Append, OutputMode::Update, OutputMode::Complete] {
        let harness = fed();
        let temp = tempfile::tempdir().unwrap();
        let expected = Ledger::default();
        assert!(run(&harness, &temp.path().join("whole"), mode, &expected, None).await);
        let expected = expected.batches.lock().clone();
        assert!(expected.len() >= 12);
        for crash_at in [(0, false), (0, true), (3, false), (4, true), (7, false), (11, true)] {
            let path = temp.path().join(format!("crash-{crash_at:?}"));
            let ledger = Ledger::default();
            assert!(!run(&harness, &path, mode, &ledger, Some(crash_at)).await);
            assert!(run(&harness, &path, mode, &ledger, None).await);
            assert_eq!(*ledger.batches.lock(), expected, "{mode:?}, crash at {crash_at:?}");
        }
    }
}

#[tokio::test]
async fn lost_or_damaged_state_is_made_again() {
    let harness = fed();
    let temp = tempfile::tempdir().unwrap();
    let whole = temp.path().join("whole");
    let ledger = Ledger::default();
    // The last batches are left undone, so that something depends on the state.
    assert!(!run(&harness, &whole, OutputMode::Append, &ledger, Some((9, false))).await);
    let expected = Ledger::default();
    assert!(run(&harness, &temp.path().join("expected"), OutputMode::Append, &expected, None).await);
    let expected = expected.batches.lock().clone();

    let newest = |dir: &Path| {
        let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort_by_key(|path| path.file_stem().unwrap().to_str().unwrap().parse::<i64>().unwrap());
        files
    };
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 3] = [
        ("lost", |path| fs::remove_file(path).unwrap()),
        ("torn", |path| fs::write(path, &fs::read(path).unwrap()[..20]).unwrap()),
        ("empty", |path| fs::write(path, b"").unwrap()),
    ];
    for (name, damage) in damages {
        let copy = temp.path().join(name);
        copy_tree(&whole, &copy);
        for file in newest(&copy.join("state/0/1")).iter().rev().take(2) {
            damage(file);
        }
        let ledger = Ledger { batches: Arc::new(Mutex::new(ledger.batches.lock().clone())) };
        assert!(run(&harness, &copy, OutputMode::Append, &ledger, None).await, "{name}");
        assert_eq!(*ledger.batches.lock(), expected, "{name}");
    }
    // A commit that power loss took: its batch runs again.
    let copy = temp.path().join("commit");
    copy_tree(&whole, &copy);
    fs::write(copy.join("commits/8"), b"").unwrap();
    fs::remove_file(copy.join("commits/7")).unwrap();
    let ledger = Ledger { batches: Arc::new(Mutex::new(ledger.batches.lock().clone())) };
    assert!(run(&harness, &copy, OutputMode::Append, &ledger, None).await);
    assert_eq!(*ledger.batches.lock(), expected);
}

#[tokio::test]
async fn a_checkpoint_of_another_query_is_refused() {
    let harness = fed();
    let temp = tempfile::tempdir().unwrap();
    assert!(run(&harness, temp.path(), OutputMode::Append, &Ledger::default(), None).await);
    let other = "select tumble(ts, 10) as w, max(v) as m from w group by tumble(ts, 10)";
    let error = harness.try_start(other, OutputMode::Append, Some(temp.path().into()), Trigger::Default).await.err();
    let message = error.map(|error| error.to_string()).unwrap_or_default();
    assert!(message.contains("was made by another query"), "{message}");
    let other = "select k from s union all select k from s";
    let error = harness.try_start(other, OutputMode::Append, Some(temp.path().into()), Trigger::Default).await.err();
    let message = error.map(|error| error.to_string()).unwrap_or_default();
    assert!(
        message.contains("There are [1] sources in the checkpoint offsets and now there are [2] sources"),
        "{message}"
    );
}

#[tokio::test]
async fn old_files_are_removed_and_the_rest_still_resumes() {
    let mut harness = fed();
    harness.conf.insert("spark.sql.streaming.minBatchesToRetain".to_owned(), "2".to_owned());
    let temp = tempfile::tempdir().unwrap();
    let ledger = Ledger::default();
    for crash_at in (0..12).map(|batch| Some((batch, true))) {
        assert!(!run(&harness, temp.path(), OutputMode::Append, &ledger, crash_at).await);
    }
    assert!(run(&harness, temp.path(), OutputMode::Append, &ledger, None).await);
    let expected = Ledger::default();
    assert!(run(&fed(), &temp.path().join("expected"), OutputMode::Append, &expected, None).await);
    assert_eq!(*ledger.batches.lock(), *expected.batches.lock());
    let offsets = fs::read_dir(temp.path().join("offsets")).unwrap().count();
    assert!(offsets <= 6, "{offsets} entries are left in offsets/");
    assert!(!temp.path().join("state/0/0/1.delta").exists());
}
