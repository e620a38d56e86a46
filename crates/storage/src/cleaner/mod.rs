//! Log compaction: of each key only the newest record stays, offsets stay what they are.
//!
//! A compacted log has a clean part, in which no key occurs twice, a dirty part behind it, and a part that is not to be
//! cleaned yet: the active segment, what is not durable or undecided, and what is younger than `min.compaction.lag.ms`. A
//! round ([`round`]) notes the newest offset of each key of the dirty part in bounded memory ([`offset_map`]), then copies
//! all segments up to there without the records that have a newer one ([`destination`]) and puts the copies in their
//! place ([`crate::log::replace`]). A deletion (a record without value) stays for `delete.retention.ms` after the first
//! round that met it; the time of its end is stored in its batch (KIP-534).
//!
//! Everything happens on the cleaner's own threads and without a log's locks, but for the moment of the exchange.
//! Source: Apache Kafka's `LogCleaner`, whose rules and files these are.

mod choose;
mod destination;
mod offset_map;
mod round;
mod throttle;
mod transactions;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use caudal_protocol::TopicPartition;
use parking_lot::{Condvar, Mutex};

use self::choose::Candidate;
use self::round::{Round, Tools};
use self::throttle::Throttle;
use crate::checkpoint::CheckpointError;
use crate::error::{Offline, is_disk_full, is_exhausted};
use crate::log::replace::ReplaceError;
use crate::log_dir::LogDir;
use crate::scan::ScanError;
use crate::segment::{LookupError, Segment};

/// Of the cleaner's threads, so that where processors are short producers and consumers come first.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// Bounds the memory that one compressed batch may take.
const DECOMPRESSED_LIMIT: usize = 256 << 20;

/// How the cleaner works (`log.cleaner.*`). Memory is taken while a log is cleaned only.
#[derive(Clone, Debug, PartialEq)]
pub struct CleanerConfig {
    /// `threads`; with 0 nothing is cleaned.
    pub threads: usize,
    /// `dedupe.buffer.size`: what the maps of keys of all threads may take; 24 bytes a key.
    pub dedupe_buffer_bytes: usize,
    /// `io.buffer.load.factor`: how full a map may be.
    pub dedupe_load_factor: f64,
    /// `io.buffer.size`: for reading and writing, of all threads. A larger batch is read whole.
    pub io_buffer_bytes: usize,
    /// `io.max.bytes.per.second`: read and written, all threads together.
    pub io_max_bytes_per_second: f64,
    /// `backoff.ms`: how long to wait when there is nothing to clean.
    pub backoff: Duration,
}

impl Default for CleanerConfig {
    /// Kafka's defaults.
    fn default() -> CleanerConfig {
        CleanerConfig {
            threads: 1,
            dedupe_buffer_bytes: 128 << 20,
            dedupe_load_factor: 0.9,
            io_buffer_bytes: 512 << 10,
            io_max_bytes_per_second: f64::MAX,
            backoff: Duration::from_secs(15),
        }
    }
}

/// What a cleaning of a log did.
#[derive(Clone, Debug)]
pub struct Cleaned {
    pub topic_partition: TopicPartition,
    /// Where the dirty part began.
    pub from_offset: i64,
    /// Up to where (exclusive) no key occurs twice now.
    pub end_offset: i64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub records_read: u64,
    pub records_kept: u64,
    /// How much of the map's room the keys took, 1 for all; then the round ended early.
    pub buffer_utilization: f64,
    pub elapsed: Duration,
}

impl Cleaned {
    fn of(candidate: &Candidate) -> Cleaned {
        Cleaned {
            topic_partition: candidate.log.topic_partition().clone(),
            from_offset: candidate.first_dirty,
            end_offset: candidate.first_dirty,
            bytes_read: 0,
            bytes_written: 0,
            records_read: 0,
            records_kept: 0,
            buffer_utilization: 0.0,
            elapsed: Duration::ZERO,
        }
    }
}

/// Why a log was not cleaned, or not to the end. It holds what it held.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    #[error("{path} is damaged at byte {position}: {reason}")]
    Damaged { path: PathBuf, position: u64, reason: String },
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Offline(#[from] Offline),
    /// The cleaner is being stopped, the log closed or deleted, or its old segments are gone by now.
    #[error("it was interrupted")]
    Interrupted,
}

impl From<ReplaceError> for CleanError {
    fn from(error: ReplaceError) -> CleanError {
        match error {
            ReplaceError::Gone => CleanError::Interrupted,
            ReplaceError::Io(error) => CleanError::Io(error),
            ReplaceError::Offline(offline) => CleanError::Offline(offline),
        }
    }
}

impl From<CheckpointError> for CleanError {
    fn from(error: CheckpointError) -> CleanError {
        match error {
            CheckpointError::Io { source, .. } => CleanError::Io(source),
            other => CleanError::Io(io::Error::other(other)),
        }
    }
}

impl CleanError {
    fn from_scan(error: ScanError, segment: &Segment) -> CleanError {
        match error {
            ScanError::Io(error) => CleanError::Io(error),
            ScanError::Batch { position, error } => {
                CleanError::Damaged { path: segment.path.clone(), position, reason: error.to_string() }
            }
        }
    }

    fn from_lookup(error: LookupError, segment: &Segment) -> CleanError {
        match error {
            LookupError::Io(error) => CleanError::Io(error),
            LookupError::Corrupt { position } => {
                CleanError::Damaged { path: segment.path.clone(), position, reason: "no batch begins there".to_owned() }
            }
        }
    }

    /// Whether another try may succeed: room on the disk and descriptors come back, damage stays.
    fn is_passing(&self) -> bool {
        match self {
            CleanError::Io(error) => is_disk_full(error) || is_exhausted(error),
            CleanError::Interrupted => true,
            CleanError::Damaged { .. } | CleanError::Offline(_) => false,
        }
    }
}

/// Cleans the logs of a directory that are due, the dirtiest first, until none is; on the caller's thread. `now_ms`: the
/// time by which records are young and deletions are old.
///
/// # Errors
/// The first log that could not be cleaned.
pub fn clean_due(dir: &LogDir, config: &CleanerConfig, now_ms: i64) -> Result<Vec<Cleaned>, CleanError> {
    let throttle = Throttle::new(config.io_max_bytes_per_second);
    let tools = Tools { config, throttle: &throttle, is_stopped: &|| false, pause: &std::thread::sleep, now_ms };
    let mut all = Vec::new();
    while let Some(cleaned) = clean_dirtiest(dir, &tools)? {
        all.push(cleaned);
    }
    Ok(all)
}

/// How compaction stands in a directory.
#[derive(Clone, Copy, Debug, Default)]
pub struct CleanerStanding {
    /// Logs that are not compacted before a restart: they are damaged.
    pub uncleanable: usize,
    /// The largest share of a log, from 0 to 1, that could be cleaned and was not yet.
    pub max_dirty_ratio: f64,
}

impl CleanerStanding {
    pub fn of(dir: &LogDir) -> CleanerStanding {
        let mut logs = dir.logs();
        logs.retain(|log| log.config().cleanup_compact);
        let (uncleanable, others): (Vec<_>, Vec<_>) = logs.iter().partition(|log| log.is_uncleanable());
        let candidates = others
            .into_iter()
            .filter_map(|log| Candidate::of(log, dir.cleaned_offset(log.topic_partition()), dir.now_ms()));
        let max_dirty_ratio = candidates.map(|candidate| candidate.dirty_ratio()).fold(0.0, f64::max);
        CleanerStanding { uncleanable: uncleanable.len(), max_dirty_ratio }
    }
}

/// Cleans the log that needs it most. `None` when none is due.
fn clean_dirtiest(dir: &LogDir, tools: &Tools<'_>) -> Result<Option<Cleaned>, CleanError> {
    let logs = dir.logs();
    let mut due: Vec<Candidate> = logs
        .iter()
        .filter(|log| log.config().cleanup_compact && !log.is_uncleanable() && !log.is_closing())
        .filter_map(|log| Candidate::of(log, dir.cleaned_offset(log.topic_partition()), tools.now_ms))
        .filter(Candidate::is_due)
        .collect();
    due.sort_by(|a, b| b.dirty_ratio().total_cmp(&a.dirty_ratio()));
    for candidate in due {
        let log = &candidate.log;
        // Another thread has it.
        let Some(_cleaning) = log.cleaning.try_lock() else { continue };
        // That thread may just have ended.
        let cleaned_to = dir.cleaned_offset(log.topic_partition());
        let Some(candidate) = Candidate::of(log, cleaned_to, tools.now_ms).filter(Candidate::is_due) else { continue };
        if log.is_closing() {
            continue;
        }
        let result = Round::run(tools, &candidate).and_then(|cleaned| {
            dir.set_cleaned_offset(log, cleaned.end_offset)?;
            log.delete_below_start()?;
            Ok(cleaned)
        });
        if let Err(error) = &result
            && !error.is_passing()
        {
            log.set_uncleanable();
            tracing::error!(log = %log.topic_partition(), %error, "not compacted, nor will it be before a restart");
        }
        return result.map(Some);
    }
    Ok(None)
}

/// The cleaner's threads. They end when it is dropped.
pub struct Cleaner {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    /// Not kept open by the cleaner.
    dir: Weak<LogDir>,
    throttle: Throttle,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    config: Arc<CleanerConfig>,
    /// Rises with each set of threads; those of an older one end.
    generation: u64,
}

impl fmt::Debug for Cleaner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cleaner").field("config", &self.shared.state.lock().config).finish_non_exhaustive()
    }
}

impl Cleaner {
    /// Starts to clean the logs of a directory.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start(dir: &Arc<LogDir>, config: CleanerConfig) -> io::Result<Cleaner> {
        let shared = Shared {
            dir: Arc::downgrade(dir),
            throttle: Throttle::new(config.io_max_bytes_per_second),
            state: Mutex::new(State { config: Arc::new(config), generation: 0 }),
            changed: Condvar::new(),
        };
        let cleaner = Cleaner { shared: Arc::new(shared), threads: Mutex::default() };
        cleaner.start_threads()?;
        Ok(cleaner)
    }

    /// Goes on with other settings. Rounds that are under way go on too, unless the number of threads changes.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn reconfigure(&self, config: CleanerConfig) -> io::Result<()> {
        let other_threads = {
            let mut state = self.shared.state.lock();
            if *state.config == config {
                return Ok(());
            }
            tracing::info!(?config, "the log cleaner is reconfigured");
            self.shared.throttle.set_rate(config.io_max_bytes_per_second);
            let other_threads = state.config.threads != config.threads;
            state.config = Arc::new(config);
            other_threads
        };
        self.shared.changed.notify_all();
        if other_threads {
            self.stop();
            self.start_threads()?;
        }
        Ok(())
    }

    fn start_threads(&self) -> io::Result<()> {
        let (count, generation) = {
            let state = self.shared.state.lock();
            (state.config.threads, state.generation)
        };
        let mut threads = self.threads.lock();
        for n in 0..count {
            let shared = Arc::clone(&self.shared);
            let name = format!("log-cleaner-{n}");
            threads.push(std::thread::Builder::new().name(name).spawn(move || shared.run(generation))?);
        }
        Ok(())
    }

    /// Ends the threads; a round that is under way is given up.
    pub fn stop(&self) {
        self.shared.state.lock().generation += 1;
        self.shared.changed.notify_all();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a cleaner thread panicked");
            }
        }
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn run(&self, generation: u64) {
        // On Linux a niceness is a thread's own, elsewhere the process's.
        #[cfg(target_os = "linux")]
        if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
            tracing::debug!(%error, "the log cleaner runs at the priority of the broker");
        }
        let is_stopped = || self.state.lock().generation != generation;
        while !is_stopped() {
            let Some(dir) = self.dir.upgrade() else { return };
            let cleaned = self.clean_one(&dir, &is_stopped);
            drop(dir);
            let mut state = self.state.lock();
            if !cleaned && state.generation == generation {
                let config = Arc::clone(&state.config);
                self.changed.wait_for(&mut state, config.backoff);
            }
        }
    }

    fn clean_one(&self, dir: &LogDir, is_stopped: &dyn Fn() -> bool) -> bool {
        let config = Arc::clone(&self.state.lock().config);
        let pause = |time| {
            let mut state = self.state.lock();
            self.changed.wait_for(&mut state, time);
        };
        let tools =
            Tools { config: &config, throttle: &self.throttle, is_stopped, pause: &pause, now_ms: dir.now_ms() };
        match clean_dirtiest(dir, &tools) {
            Ok(None) => false,
            Ok(Some(cleaned)) => {
                tracing::info!(
                    log = %cleaned.topic_partition, from = cleaned.from_offset, to = cleaned.end_offset,
                    bytes = cleaned.bytes_read, bytes_left = cleaned.bytes_written,
                    records = cleaned.records_read, records_left = cleaned.records_kept,
                    elapsed = ?cleaned.elapsed, "compacted"
                );
                true
            }
            Err(CleanError::Interrupted) => false,
            Err(error) => {
                if error.is_passing() {
                    tracing::warn!(dir = %dir.path().display(), %error, "compaction is put off");
                }
                false
            }
        }
    }
}
