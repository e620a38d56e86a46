//! The handle on a running query.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast, watch};

use super::progress::{StreamingQueryProgress, StreamingQueryStatus};
use crate::error::EngineError;

/// How many progress reports a query keeps (`spark.sql.streaming.numRecentProgressUpdates`).
const RECENT_PROGRESS: usize = 100;

type OnProgress = Arc<dyn Fn(&StreamingQueryProgress) + Send + Sync>;

/// Who is told of every batch.
#[derive(Clone, Default)]
pub(super) struct Listeners(Vec<OnProgress>);

impl Listeners {
    pub fn add(&mut self, listener: OnProgress) {
        self.0.push(listener);
    }
}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listeners({})", self.0.len())
    }
}

/// What the query's task and its handles share.
#[derive(Debug)]
pub(super) struct Shared {
    pub id: String,
    pub run_id: String,
    pub name: Option<String>,
    recent: Mutex<VecDeque<Arc<StreamingQueryProgress>>>,
    events: broadcast::Sender<Arc<StreamingQueryProgress>>,
    listeners: Listeners,
    status: Mutex<StreamingQueryStatus>,
    exception: Mutex<Option<Arc<EngineError>>>,
    pub stopping: watch::Sender<bool>,
    pub ended: watch::Sender<bool>,
    /// Requests by `process_all_available`, numbered; the query tells which it has answered.
    requests: AtomicU64,
    pub request_made: Notify,
    answered: watch::Sender<u64>,
}

impl Shared {
    pub fn new(id: String, run_id: String, name: Option<String>, listeners: Listeners) -> Arc<Self> {
        let status = StreamingQueryStatus {
            message: "Initializing sources".to_owned(),
            is_data_available: false,
            is_trigger_active: false,
        };
        Arc::new(Self {
            id,
            run_id,
            name,
            recent: Mutex::default(),
            events: broadcast::channel(256).0,
            listeners,
            status: Mutex::new(status),
            exception: Mutex::default(),
            stopping: watch::channel(false).0,
            ended: watch::channel(false).0,
            requests: AtomicU64::new(0),
            request_made: Notify::new(),
            answered: watch::channel(0).0,
        })
    }

    pub fn set_status(&self, message: &str, is_data_available: bool, is_trigger_active: bool) {
        let mut status = self.status.lock();
        if status.message != message {
            message.clone_into(&mut status.message);
        }
        status.is_data_available = is_data_available;
        status.is_trigger_active = is_trigger_active;
    }

    pub fn report(&self, progress: StreamingQueryProgress) {
        for listener in &self.listeners.0 {
            listener(&progress);
        }
        let progress = Arc::new(progress);
        let mut recent = self.recent.lock();
        if recent.len() == RECENT_PROGRESS {
            recent.pop_front();
        }
        recent.push_back(Arc::clone(&progress));
        drop(recent);
        // An error means that nobody listens.
        let _ = self.events.send(progress);
    }

    /// The number of the newest request so far.
    pub fn request(&self) -> u64 {
        self.requests.load(Ordering::Acquire)
    }

    /// All data that was there at request `number` has been processed.
    pub fn answer(&self, number: u64) {
        self.answered.send_if_modified(|answered| {
            let newer = number > *answered;
            *answered = number.max(*answered);
            newer
        });
    }

    pub fn end(&self, result: Result<(), EngineError>) {
        match result {
            Ok(()) => self.set_status("Stopped", false, false),
            Err(error) => {
                self.set_status(&format!("Terminated with exception: {error}"), false, false);
                *self.exception.lock() = Some(Arc::new(error));
            }
        }
        self.ended.send_replace(true);
    }
}

/// A started query. Clones refer to the same query; dropping them does not stop it.
#[derive(Debug, Clone)]
pub struct StreamingQuery {
    pub(super) shared: Arc<Shared>,
}

impl StreamingQuery {
    /// The id that is kept in the checkpoint: the same after a restart.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// The id of this run.
    pub fn run_id(&self) -> &str {
        &self.shared.run_id
    }

    pub fn name(&self) -> Option<&str> {
        self.shared.name.as_deref()
    }

    pub fn is_active(&self) -> bool {
        !*self.shared.ended.borrow()
    }

    /// Stops the query: a batch that is being written is finished first, one that is being read is run again by the
    /// next start.
    pub async fn stop(&self) {
        self.shared.stopping.send_replace(true);
        self.ended().await;
    }

    /// Waits until the query stops; an error when it failed.
    pub async fn await_termination(&self) -> Result<(), Arc<EngineError>> {
        self.ended().await;
        self.exception().map_or(Ok(()), Err)
    }

    /// Waits until all data that the sources had when this was called is in the sink.
    pub async fn process_all_available(&self) -> Result<(), Arc<EngineError>> {
        let number = self.shared.requests.fetch_add(1, Ordering::AcqRel) + 1;
        self.shared.request_made.notify_one();
        let mut answered = self.shared.answered.subscribe();
        tokio::select! {
            // The sender lives in `shared`, so waiting cannot fail.
            _ = answered.wait_for(|answered| *answered >= number) => Ok(()),
            () = self.ended() => self.exception().map_or(Ok(()), Err),
        }
    }

    pub fn last_progress(&self) -> Option<Arc<StreamingQueryProgress>> {
        self.shared.recent.lock().back().cloned()
    }

    /// The last hundred reports, oldest first.
    pub fn recent_progress(&self) -> Vec<Arc<StreamingQueryProgress>> {
        self.shared.recent.lock().iter().cloned().collect()
    }

    /// Progress reports from now on; a listener that falls 256 behind loses the oldest.
    pub fn listen(&self) -> broadcast::Receiver<Arc<StreamingQueryProgress>> {
        self.shared.events.subscribe()
    }

    pub fn status(&self) -> StreamingQueryStatus {
        self.shared.status.lock().clone()
    }

    /// Why the query failed, if it did.
    pub fn exception(&self) -> Option<Arc<EngineError>> {
        self.shared.exception.lock().clone()
    }

    async fn ended(&self) {
        let mut ended = self.shared.ended.subscribe();
        // The sender lives in `shared`, so waiting cannot fail.
        let _ = ended.wait_for(|ended| *ended).await;
    }
}
