//! Makes state and commits durable behind the back of the query loop.
//!
//! `offsets/N` is durable before the sink gets batch N, so a state version or a commit that power loss takes can be made again by
//! running the batches since the last durable ones: the ranges are known, and the sink knows the ids. That is why they may
//! wait for their fsync, for about [`SYNC_INTERVAL`]; sources are told that rows are done with only after it, and nothing
//! that recovery would need without them goes before.
//!
//! A round makes the newest commit durable and the state that goes with it, not what came in between: its cost does not
//! grow with the number of batches.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::execution::SourceRun;
use crate::checkpoint::Checkpoint;
use crate::error::EngineError;
use crate::operator::Aggregation;
use crate::pool::{CpuPool, join_error};
use crate::source::SourceOffset;
use crate::state::{Written, io_error};

/// How long state and commits wait for their fsync, so that many batches share one.
const SYNC_INTERVAL: Duration = Duration::from_millis(500);
/// The query waits for the disk when what it wrote has waited for this long.
const SYNC_LATE: Duration = Duration::from_millis(1_000);
/// Files that are synced side by side: the file system joins the waits.
const AT_ONCE: usize = 8;

/// Makes a file or a directory durable; tests put something else here.
type SyncPath = dyn Fn(&Path) -> io::Result<()> + Send + Sync;

/// The rounds of fsyncs of a query.
pub(super) struct StateSync {
    pool: &'static CpuPool,
    target: Arc<Target>,
    pending: Arc<Mutex<Option<Pending>>>,
    /// By operator, the files that the state was restored from, until the first batch is noted: the process that wrote
    /// them may have died before they were durable, and they read well from the page cache all the same.
    restored: Mutex<Vec<BTreeSet<PathBuf>>>,
    /// Ends the wait of the round that is to come.
    hurry: Arc<Notify>,
    running: Option<JoinHandle<Result<Vec<SourceOffset>, EngineError>>>,
    /// After an fsync that failed nobody knows what is on the disk, also when a later one succeeds.
    failed: bool,
}

/// What the rounds work on.
struct Target {
    checkpoint: Arc<Checkpoint>,
    operators: Vec<Arc<Aggregation>>,
    /// `spark.sql.streaming.minBatchesToRetain`.
    retain: i64,
    /// Batches before this one are gone.
    cleaned: Mutex<i64>,
    sync: Box<SyncPath>,
}

/// What was written since the last round took over.
struct Pending {
    since: Instant,
    /// The last batch, with the sources' positions after it.
    batch: i64,
    positions: Vec<SourceOffset>,
    /// By operator, the files that its state at the last batch is in.
    files: Vec<BTreeSet<PathBuf>>,
}

impl StateSync {
    pub fn new(
        pool: &'static CpuPool,
        checkpoint: Arc<Checkpoint>,
        operators: Vec<Arc<Aggregation>>,
        restored: Vec<BTreeSet<PathBuf>>,
        retain: i64,
    ) -> Self {
        Self::over(pool, checkpoint, operators, restored, retain, Box::new(sync_path))
    }

    fn over(
        pool: &'static CpuPool,
        checkpoint: Arc<Checkpoint>,
        operators: Vec<Arc<Aggregation>>,
        restored: Vec<BTreeSet<PathBuf>>,
        retain: i64,
        sync: Box<SyncPath>,
    ) -> Self {
        let target = Target { checkpoint, operators, retain: retain.max(1), cleaned: Mutex::new(0), sync };
        Self {
            pool,
            target: Arc::new(target),
            pending: Arc::default(),
            restored: Mutex::new(restored),
            hurry: Arc::default(),
            running: None,
            failed: false,
        }
    }

    /// Notes what batch `id`, whose commit is written, left in each operator's files. Waits only when the disk is late.
    pub async fn batch_done(
        &mut self,
        id: i64,
        written: Vec<Written>,
        sources: &mut [SourceRun],
    ) -> Result<(), EngineError> {
        let positions = sources.iter().map(|source| source.position.clone()).collect();
        let since = self.note(id, written, positions);
        let late = since.elapsed() >= SYNC_LATE;
        if self.running.as_ref().is_some_and(|running| late || running.is_finished()) {
            let synced = self.synced().await?;
            commit(sources, &synced).await?;
        }
        self.start();
        Ok(())
    }

    /// Adds to what waits; since when the oldest of it does.
    fn note(&self, id: i64, written: Vec<Written>, positions: Vec<SourceOffset>) -> Instant {
        let mut pending = self.pending.lock();
        let pending = pending.get_or_insert_with(|| {
            let mut files = std::mem::take(&mut *self.restored.lock());
            files.resize(written.len(), BTreeSet::new());
            Pending { since: Instant::now(), batch: id, positions: Vec::new(), files }
        });
        (pending.batch, pending.positions) = (id, positions);
        for (files, written) in pending.files.iter_mut().zip(written) {
            if written.snapshot {
                files.clear();
            }
            files.extend(written.files);
        }
        pending.since
    }

    /// Begins a round, which waits until it is due, if there is something to do and none is running.
    fn start(&mut self) {
        if self.running.is_some() || self.failed {
            return;
        }
        let Some(since) = self.pending.lock().as_ref().map(|pending| pending.since) else { return };
        let (pool, target) = (self.pool, Arc::clone(&self.target));
        let (pending, hurry) = (Arc::clone(&self.pending), Arc::clone(&self.hurry));
        self.running = Some(self.pool.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep_until((since + SYNC_INTERVAL).into()) => {}
                () = hurry.notified() => {}
            }
            let Some(round) = pending.lock().take() else { return Ok(Vec::new()) };
            pool.run_blocking(move || target.run(&round).map(|()| round.positions)).await
        }));
    }

    /// Returns the sources' positions that the next round makes good, when it has; never when nothing is to be done.
    /// Cancel safe. The caller tells the sources, by [`commit`].
    pub async fn synced(&mut self) -> Result<Vec<SourceOffset>, EngineError> {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let result = running.await.map_err(join_error).and_then(|result| result);
        self.running = None;
        self.failed |= result.is_err();
        self.start();
        result
    }

    /// Makes everything durable that was written so far.
    pub async fn flush(&mut self, sources: &mut [SourceRun]) -> Result<(), EngineError> {
        self.start();
        while self.running.is_some() {
            self.hurry.notify_one();
            let synced = self.synced().await?;
            commit(sources, &synced).await?;
        }
        Ok(())
    }
}

/// Tells the sources that the rows before `positions` are done with.
pub(super) async fn commit(sources: &mut [SourceRun], positions: &[SourceOffset]) -> Result<(), EngineError> {
    for (source, position) in sources.iter_mut().zip(positions) {
        source.source.commit(position).await?;
    }
    Ok(())
}

impl Target {
    /// State first: a commit without its state is worth nothing.
    fn run(&self, round: &Pending) -> Result<(), EngineError> {
        let state: Vec<&PathBuf> = round.files.iter().flatten().collect();
        self.sync_all(&state)?;
        // A snapshot's directory may be new, and so in its parent.
        let mut dirs: BTreeSet<&Path> = BTreeSet::new();
        for path in &state {
            dirs.extend(path.ancestors().skip(1).take(2));
        }
        self.sync_all(&dirs.into_iter().collect::<Vec<_>>())?;
        let commit = self.checkpoint.commit_path(round.batch);
        self.sync_all(&[&commit])?;
        self.sync_all(commit.parent().as_slice())?;

        let oldest = round.batch - self.retain + 1;
        // Listing directories is not free: only after some batches.
        let mut cleaned = self.cleaned.lock();
        if oldest > 0 && oldest - *cleaned >= (self.retain / 4).max(1) {
            *cleaned = oldest;
            // Batch `oldest` can still be run again: its start is the end of the batch before it.
            self.operators.iter().try_for_each(|operator| operator.clean(oldest))?;
            self.checkpoint.remove_before(oldest - 1)?;
        }
        Ok(())
    }

    fn sync_all<P: AsRef<Path> + Sync>(&self, paths: &[P]) -> Result<(), EngineError> {
        let sync = |paths: &[P]| -> Result<(), EngineError> {
            paths
                .iter()
                .map(AsRef::as_ref)
                .try_for_each(|path: &Path| (self.sync)(path).map_err(|source| io_error("make durable", path, source)))
        };
        if paths.len() <= 1 {
            return sync(paths);
        }
        std::thread::scope(|scope| {
            let chunks = paths.chunks(paths.len().div_ceil(AT_ONCE));
            let waits: Vec<_> = chunks.map(|chunk| scope.spawn(move || sync(chunk))).collect();
            waits.into_iter().try_for_each(|wait| match wait.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }
}

fn sync_path(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() { file.sync_all() } else { file.sync_data() }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::checkpoint::{CommitRecord, OffsetMetadata, OffsetRecord};
    use crate::state::{Change, StateStore, write_snapshot};

    /// A checkpoint whose fsyncs are noted, and fail on demand.
    struct Bench {
        dir: tempfile::TempDir,
        checkpoint: Arc<Checkpoint>,
        durable: Arc<Mutex<BTreeSet<PathBuf>>>,
        fails: Arc<AtomicBool>,
        sync: StateSync,
    }

    fn bench(retain: i64) -> Bench {
        restored_bench(retain, Vec::new())
    }

    fn restored_bench(retain: i64, restored: Vec<BTreeSet<PathBuf>>) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = Arc::new(Checkpoint::open(Some(dir.path().join("q"))).unwrap());
        let (durable, fails) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(AtomicBool::new(false)));
        let (noted, failing) = (Arc::clone(&durable), Arc::clone(&fails));
        let sync = move |path: &Path| {
            if failing.load(Ordering::Acquire) {
                return Err(io::Error::other("the disk is broken"));
            }
            assert!(path.exists(), "{}", path.display());
            noted.lock().insert(path.to_owned());
            Ok(())
        };
        let pool = CpuPool::shared().unwrap();
        let sync = StateSync::over(pool, Arc::clone(&checkpoint), Vec::new(), restored, retain, Box::new(sync));
        Bench { dir, checkpoint, durable, fails, sync }
    }

    impl Bench {
        /// A batch that no round takes up by itself.
        fn write(&self, id: i64, written: Vec<Written>) {
            let record = OffsetRecord { metadata: OffsetMetadata::default(), offsets: Vec::new() };
            self.checkpoint.write_offsets(id, &record).unwrap();
            self.checkpoint.write_commit(id, &CommitRecord { next_batch_watermark_ms: 0 }).unwrap();
            self.sync.note(id, written, Vec::new());
        }

        /// Leaves only what is durable of the commits: a power failure. The newest one, or -1.
        fn newest_durable_commit(&self) -> i64 {
            let durable = self.durable.lock();
            for entry in fs::read_dir(self.dir.path().join("q/commits")).unwrap() {
                let path = entry.unwrap().path();
                if !durable.contains(&path) {
                    fs::write(&path, b"").unwrap();
                }
            }
            self.checkpoint.latest_commit().unwrap().map_or(-1, |(id, _)| id)
        }
    }

    #[tokio::test]
    async fn nothing_goes_before_a_commit_that_replaces_it_is_durable() {
        for lost_after in [1, 2, 3, 5, 6, 9, 13, 19] {
            let mut bench = bench(2);
            for id in 0..lost_after {
                bench.write(id, Vec::new());
                if id % 3 == 2 {
                    bench.sync.flush(&mut []).await.unwrap();
                }
            }
            let commit = bench.newest_durable_commit();
            // What a start needs: the offsets of the batch before the next one, and of all since.
            for id in commit.max(0)..lost_after {
                assert!(bench.checkpoint.offsets(id).unwrap().is_some(), "offsets/{id} is gone after commits/{commit}");
            }
            assert!(commit >= lost_after - 3, "{commit} of {lost_after}");
            let kept = fs::read_dir(bench.dir.path().join("q/offsets")).unwrap().count();
            assert!(kept <= 7, "{kept} offsets are kept");
        }
    }

    #[tokio::test]
    async fn a_round_syncs_what_recovery_needs_and_no_more() {
        let mut bench = bench(100);
        let dir = bench.dir.path().join("state/0");
        fs::create_dir_all(dir.join("0")).unwrap();
        let file = |name: &str| {
            fs::write(dir.join(name), b"state").unwrap();
            dir.join(name)
        };
        let changes = |name: &str| vec![Written { snapshot: false, files: vec![file(name)] }];
        bench.write(0, changes("1.changes"));
        bench.write(1, changes("1.changes"));
        bench.write(2, vec![Written { snapshot: true, files: vec![file("0/3.snapshot")] }]);
        bench.write(3, changes("4.changes"));
        bench.sync.flush(&mut []).await.unwrap();
        let commit = bench.checkpoint.commit_path(3);
        let commits = commit.parent().unwrap().to_owned();
        let state = dir.parent().unwrap().to_owned();
        let expected = BTreeSet::from([
            dir.join("0/3.snapshot"),
            dir.join("4.changes"),
            dir.join("0"),
            dir.clone(),
            state,
            commit,
            commits,
        ]);
        assert_eq!(*bench.durable.lock(), expected);
    }

    #[tokio::test]
    async fn the_first_round_syncs_what_the_state_was_restored_from() {
        let temp = tempfile::tempdir().unwrap();
        // A killed process left these in the page cache.
        let mut store = StateStore::open(temp.path().join("state/0"), 1, 100).unwrap();
        let change = |version| Change { version, evict_ms: None, signature: String::new(), sections: Vec::new() };
        let snapshot = StateStore::snapshot_path(store.path(), 0, 1).unwrap();
        let bytes = write_snapshot(&snapshot, 1, None, "", std::iter::empty()).unwrap();
        store.snapshot_written(vec![(snapshot.clone(), bytes)]);
        let [first, second] = [2, 3].map(|version| store.append(&change(version)).unwrap().files.remove(0));
        assert_eq!(first, second);
        // The next one reads them and goes on.
        let mut store = StateStore::open(temp.path().join("state/0"), 1, 100).unwrap();
        let mut index = store.look().unwrap();
        let restored = store.restore(3, &mut index, &mut |_| Ok(())).unwrap();
        assert_eq!(restored, BTreeSet::from([snapshot.clone(), first.clone()]));
        let mut bench = restored_bench(100, vec![restored.clone()]);
        let next = store.append(&change(4)).unwrap();
        bench.write(3, vec![next.clone()]);
        bench.sync.flush(&mut []).await.unwrap();
        for path in [&snapshot, &first, &next.files[0]] {
            assert!(bench.durable.lock().contains(path), "{}", path.display());
        }
        bench.durable.lock().clear();
        bench.write(4, vec![next]);
        bench.sync.flush(&mut []).await.unwrap();
        assert!(!bench.durable.lock().contains(&first), "once is enough");
        // Where the first batch writes everything, nothing from before is needed.
        let mut bench = restored_bench(100, vec![restored]);
        bench.write(3, vec![Written { snapshot: true, files: Vec::new() }]);
        bench.sync.flush(&mut []).await.unwrap();
        assert!(!bench.durable.lock().contains(&first));
    }

    #[tokio::test]
    async fn rounds_come_by_themselves_and_the_query_waits_for_late_ones() {
        let mut bench = bench(100);
        bench.write(0, Vec::new());
        bench.sync.batch_done(0, Vec::new(), &mut []).await.unwrap();
        // Nothing but waiting: as an idle query does.
        let synced = tokio::time::timeout(Duration::from_secs(30), bench.sync.synced()).await;
        synced.unwrap().unwrap();
        assert_eq!(bench.newest_durable_commit(), 0);
        // A disk that does not answer, until somebody waits for it.
        let (closed, gate) = std::sync::mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let slow = move |_: &Path| {
            // Fails, and goes on, once the other end is gone.
            gate.lock().recv().ok();
            Ok(())
        };
        let pool = CpuPool::shared().unwrap();
        let mut sync =
            StateSync::over(pool, Arc::clone(&bench.checkpoint), Vec::new(), Vec::new(), 100, Box::new(slow));
        sync.batch_done(0, Vec::new(), &mut []).await.unwrap();
        sync.hurry.notify_one();
        let taken = async {
            while sync.pending.lock().is_some() {
                tokio::task::yield_now().await
            }
        };
        tokio::time::timeout(Duration::from_secs(30), taken).await.unwrap();
        let begun = sync.note(1, Vec::new(), Vec::new());
        tokio::time::sleep_until((begun + SYNC_LATE).into()).await;
        let held = tokio::time::timeout(Duration::from_millis(100), sync.batch_done(2, Vec::new(), &mut [])).await;
        assert!(held.is_err(), "the query runs on although the disk is late");
        drop(closed);
        let done = tokio::time::timeout(Duration::from_secs(30), sync.batch_done(3, Vec::new(), &mut [])).await;
        done.unwrap().unwrap();
        sync.flush(&mut []).await.unwrap();
        assert!(sync.pending.lock().is_none());
    }

    #[tokio::test]
    async fn after_a_failed_fsync_nothing_is_taken_for_durable() {
        let mut bench = bench(2);
        for id in 0..4 {
            bench.write(id, Vec::new());
        }
        bench.fails.store(true, Ordering::Release);
        let error = bench.sync.flush(&mut []).await.unwrap_err().to_string();
        assert!(error.contains("make durable") && error.contains("the disk is broken"), "{error}");
        bench.fails.store(false, Ordering::Release);
        bench.sync.note(4, Vec::new(), Vec::new());
        bench.sync.flush(&mut []).await.unwrap();
        assert!(bench.durable.lock().is_empty(), "a later fsync proves nothing about what the failed one lost");
        assert!(bench.checkpoint.offsets(0).unwrap().is_some());
    }
}
