//! Restarts: a checkpoint copied at any moment resumes to the same result.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use caudal_engine::error::EngineError;
use caudal_engine::query::{StreamingQuerySpec, Trigger, start};
use caudal_engine::sink::{OutputMode, Sink};
use parking_lot::Mutex;

use super::support::{Harness, batch, directory, text};

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

impl Ledger {
    /// As it was when batch `end` began.
    fn before(&self, end: i64) -> Self {
        let batches = self.batches.lock().range(..end).map(|(id, rows)| (*id, rows.clone())).collect();
        Ledger { batches: Arc::new(Mutex::new(batches)) }
    }
}

struct LedgerSink {
    ledger: Ledger,
    /// The checkpoint, and where to copy it to when a batch comes: its state is written then, its commit is not.
    images: Option<(PathBuf, PathBuf)>,
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
        if let Some((checkpoint, images)) = &self.images {
            copy_tree(checkpoint, &images.join(batch_id.to_string()));
        }
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
    try_run(harness, checkpoint, mode, LedgerSink { ledger: ledger.clone(), images: None, crash_at }).await.is_ok()
}

async fn try_run(harness: &Harness, checkpoint: &Path, mode: OutputMode, sink: LedgerSink) -> Result<(), String> {
    let spec = StreamingQuerySpec {
        checkpoint: Some(checkpoint.to_owned()),
        trigger: Trigger::AvailableNow,
        ..harness.spec(WINDOWED, mode, Box::new(sink)).await
    };
    let query = start(spec).await.map_err(|error| error.to_string())?;
    query.await_termination().await.map_err(|error| error.to_string())
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
        let temp = directory();
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
    let temp = directory();
    let whole = temp.path().join("whole");
    let ledger = Ledger::default();
    // The last batches are left undone, so that something depends on the state.
    assert!(!run(&harness, &whole, OutputMode::Append, &ledger, Some((9, false))).await);
    let expected = Ledger::default();
    assert!(run(&harness, &temp.path().join("expected"), OutputMode::Append, &expected, None).await);
    let expected = expected.batches.lock().clone();

    type Damage = fn(&Path);
    let damages: [(&str, Damage); 3] = [
        ("lost", |path| fs::remove_file(path).unwrap()),
        ("torn", |path| fs::write(path, &fs::read(path).unwrap()[..20]).unwrap()),
        ("empty", |path| fs::write(path, b"").unwrap()),
    ];
    for (name, damage) in damages {
        let copy = temp.path().join(name);
        copy_tree(&whole, &copy);
        for file in state_files(&copy).iter().rev().take(2) {
            damage(file);
        }
        let ledger = Ledger { batches: Arc::new(Mutex::new(ledger.batches.lock().clone())) };
        assert!(run(&harness, &copy, OutputMode::Append, &ledger, None).await, "{name}");
        assert_eq!(*ledger.batches.lock(), expected, "{name}");
    }
}

/// The files of the one operator's state, by version.
fn state_files(checkpoint: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![checkpoint.join("state/0")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { dirs.push(path) } else { files.push(path) }
        }
    }
    files.sort_by_key(|path| path.file_stem().unwrap().to_str().unwrap().parse::<i64>().unwrap());
    files
}

fn replace_tree(from: &Path, to: &Path) {
    fs::remove_dir_all(to).unwrap();
    copy_tree(from, to);
}

#[tokio::test]
async fn a_crash_between_any_two_writes_changes_nothing() {
    let harness = fed();
    let temp = directory();
    let (whole, images) = (temp.path().join("whole"), temp.path().join("images"));
    let expected = Ledger::default();
    let sink = LedgerSink { ledger: expected.clone(), images: Some((whole.clone(), images.clone())), crash_at: None };
    try_run(&harness, &whole, OutputMode::Append, sink).await.unwrap();
    let last = *expected.batches.lock().last_key_value().unwrap().0;
    assert!(last >= 12);
    for id in 0..=last {
        let image = |name: &str| {
            let path = temp.path().join(format!("{id}-{name}"));
            copy_tree(&images.join(id.to_string()), &path);
            path
        };
        // The state as it was before this batch: that which the batch before it left.
        let without_state = |path: &Path| match id {
            0 => state_files(path).iter().for_each(|file| fs::remove_file(file).unwrap()),
            _ => replace_tree(&images.join((id - 1).to_string()).join("state"), &path.join("state")),
        };
        let mut cases = Vec::new();
        cases.push((image("before the sink"), id));
        let path = image("before the commit");
        fs::write(path.join(format!("commits/.{id}.tmp")), b"v1\n{\"nextB").unwrap();
        cases.push((path, id + 1));
        let path = image("before the state");
        without_state(&path);
        cases.push((path, id));
        let path = image("while the state is written");
        if let Some(file) = state_files(&path).last() {
            let bytes = fs::read(file).unwrap();
            fs::write(file, &bytes[..bytes.len() - 5]).unwrap();
        }
        cases.push((path, id));
        let path = image("after the state, before the offsets");
        fs::remove_file(path.join(format!("offsets/{id}"))).unwrap();
        cases.push((path, id));
        let path = image("before the offsets");
        without_state(&path);
        fs::rename(path.join(format!("offsets/{id}")), path.join(format!("offsets/.{id}.tmp"))).unwrap();
        cases.push((path, id));
        let path = image("while the offsets are written");
        without_state(&path);
        fs::write(path.join(format!("offsets/{id}")), b"v1\n{\"batchW").unwrap();
        cases.push((path, id));
        for (path, end) in cases {
            let ledger = expected.before(end);
            assert!(run(&harness, &path, OutputMode::Append, &ledger, None).await, "{}", path.display());
            assert_eq!(*ledger.batches.lock(), *expected.batches.lock(), "{}", path.display());
        }
    }
}

/// Commits and state wait for their fsync: power loss takes the newest of both, whole or in part, and all if there were
/// no more than that.
#[tokio::test]
async fn commits_that_power_loss_took_are_made_again() {
    let harness = fed();
    let temp = directory();
    let whole = temp.path().join("whole");
    let ledger = Ledger::default();
    assert!(!run(&harness, &whole, OutputMode::Append, &ledger, Some((9, false))).await);
    let expected = Ledger::default();
    assert!(run(&harness, &temp.path().join("expected"), OutputMode::Append, &expected, None).await);
    let contents: [&[u8]; 4] = [b"", b"v1", b"v1\n{\"next", &[0; 37]];
    for lost in 1..=9i64 {
        for (variant, content) in contents.iter().enumerate() {
            let copy = temp.path().join(format!("{lost}-{variant}"));
            copy_tree(&whole, &copy);
            for id in 9 - lost..9 {
                let path = copy.join(format!("commits/{id}"));
                // One of them did not even get its name.
                if id == 7 { fs::remove_file(path).unwrap() } else { fs::write(path, content).unwrap() }
            }
            if variant == 0 {
                for file in state_files(&copy).iter().rev().take(usize::try_from(lost).unwrap()) {
                    fs::write(file, b"").unwrap();
                }
            }
            let ledger = ledger.before(9);
            assert!(run(&harness, &copy, OutputMode::Append, &ledger, None).await, "{}", copy.display());
            assert_eq!(*ledger.batches.lock(), *expected.batches.lock(), "{}", copy.display());
        }
    }
}

/// Taken for an empty one, such a checkpoint would begin again at batch 0, and a sink that knows its ids would take nothing.
#[tokio::test]
async fn a_checkpoint_that_cannot_be_read_is_refused() {
    let harness = fed();
    let temp = directory();
    let whole = temp.path().join("whole");
    assert!(run(&harness, &whole, OutputMode::Append, &Ledger::default(), None).await);
    let offsets: Vec<i64> = fs::read_dir(whole.join("offsets"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().ok())
        .collect();
    let last = *offsets.iter().max().unwrap();
    type Damage<'a> = Box<dyn Fn(&Path) + 'a>;
    let all = |content: &'static [u8]| -> Damage<'_> {
        let offsets = &offsets;
        Box::new(move |path: &Path| {
            offsets.iter().for_each(|id| fs::write(path.join(format!("offsets/{id}")), content).unwrap())
        })
    };
    let one = |name: String, content: &'static [u8]| -> Damage<'_> {
        Box::new(move |path: &Path| fs::write(path.join(&name), content).unwrap())
    };
    let cases: Vec<(&str, Damage<'_>, String)> = vec![
        (
            "version",
            one(format!("offsets/{last}"), b"v2\n{}\n12"),
            format!("offsets/{last}: its first line must be v1"),
        ),
        ("commit", one(format!("commits/{last}"), b"v2\n{}"), format!("commits/{last}: its first line must be v1")),
        ("torn", all(b"v1\n{"), "it is cut off".to_owned()),
        ("empty", all(b""), "it is cut off".to_owned()),
        ("gone", Box::new(|path| fs::remove_dir_all(path.join("offsets")).unwrap()), "has entries, but".to_owned()),
    ];
    for (name, damage, message) in cases {
        let copy = temp.path().join(name);
        copy_tree(&whole, &copy);
        damage(&copy);
        let sink = LedgerSink { ledger: Ledger::default(), images: None, crash_at: None };
        let error = try_run(&harness, &copy, OutputMode::Append, sink).await.unwrap_err();
        assert!(error.contains(&message) && error.contains("new checkpoint location"), "{name}: {error}");
    }
}

#[tokio::test]
async fn state_of_another_number_of_partitions_is_refused() {
    let harness = fed();
    let temp = directory();
    assert!(!run(&harness, temp.path(), OutputMode::Append, &Ledger::default(), Some((5, false))).await);
    // As if another program had hashed the keys.
    for entry in fs::read_dir(temp.path().join("offsets")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(
            &path,
            text.replace("\"spark.sql.shuffle.partitions\":\"3\"", "\"spark.sql.shuffle.partitions\":\"4\""),
        )
        .unwrap();
    }
    fs::create_dir_all(temp.path().join("state/0/3")).unwrap();
    for snapshot in state_files(temp.path()).iter().filter(|path| path.starts_with(temp.path().join("state/0/2"))) {
        fs::copy(snapshot, temp.path().join("state/0/3").join(snapshot.file_name().unwrap())).unwrap();
    }
    let sink = LedgerSink { ledger: Ledger::default(), images: None, crash_at: None };
    let error = try_run(&harness, temp.path(), OutputMode::Append, sink).await.unwrap_err();
    assert!(error.contains("holds a group that belongs to partition"), "{error}");
}

#[tokio::test]
async fn a_checkpoint_of_another_query_is_refused() {
    let harness = fed();
    let temp = directory();
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
    let temp = directory();
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
    assert!(!temp.path().join("state/0/1.changes").exists());
    assert!(state_files(temp.path()).len() < 20);
}
