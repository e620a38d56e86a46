//! Group commit: threads that fsync the logs that have somebody waiting. While one fsync runs, further appends gather;
//! the next fsync begins as soon as it ends and serves them all.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::error::FlushError;
use crate::histogram::Histogram;
use crate::log::Log;

/// Called once, on a flusher thread or at once on the caller's; it must not block.
pub type DurableCallback = Box<dyn FnOnce(Result<(), FlushError>) + Send>;

/// Who waits for a log, kept with the log.
#[derive(Default)]
pub(crate) struct Waiters {
    /// The log is in the queue, or a thread flushes it and will look again.
    queued: bool,
    pub(crate) waiting: Vec<(i64, DurableCallback)>,
}

impl fmt::Debug for Waiters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Waiters({})", self.waiting.len())
    }
}

/// The logs that want an fsync.
#[derive(Debug, Default)]
pub(crate) struct FlushQueue {
    state: Mutex<QueueState>,
    changed: Condvar,
    /// How long fsyncs took.
    pub times: Arc<Histogram>,
}

#[derive(Debug, Default)]
struct QueueState {
    logs: VecDeque<Arc<Log>>,
    stopped: bool,
}

impl FlushQueue {
    /// `times`: where those of fsyncs are noted.
    pub fn new(times: Arc<Histogram>) -> FlushQueue {
        FlushQueue { times, ..FlushQueue::default() }
    }

    /// Asks for a flush that nobody waits for.
    pub fn request(&self, log: &Arc<Log>) {
        let queued = std::mem::replace(&mut log.waiters.lock().queued, true);
        if !queued {
            self.push(Arc::clone(log));
        }
    }

    fn push(&self, log: Arc<Log>) {
        let mut state = self.state.lock();
        if state.stopped {
            drop(state);
            log.waiters.lock().queued = false;
            fail_waiters(&log);
            return;
        }
        state.logs.push_back(log);
        drop(state);
        self.changed.notify_one();
    }

    fn run(&self) {
        loop {
            let mut state = self.state.lock();
            let log = loop {
                match state.logs.pop_front() {
                    Some(log) => break log,
                    None if state.stopped => return,
                    None => self.changed.wait(&mut state),
                }
            };
            drop(state);
            self.flush(log);
        }
    }

    fn flush(&self, log: Arc<Log>) {
        let mut result = log.flush();
        let mut closed = Vec::new();
        let (done, again) = {
            let mut waiters = log.waiters.lock();
            let done = match &result {
                // A log that is closed by now may have been made durable before.
                Err(FlushError::Closed { .. }) => {
                    let durable = log.durable_end_offset();
                    closed.extend(waiters.waiting.extract_if(.., |(end, _)| *end > durable));
                    std::mem::take(&mut waiters.waiting)
                }
                Err(_) => std::mem::take(&mut waiters.waiting),
                Ok(durable) => waiters.waiting.extract_if(.., |(end, _)| *end <= *durable).collect(),
            };
            waiters.queued = !waiters.waiting.is_empty();
            (done, waiters.queued)
        };
        for (_, callback) in closed {
            callback(Err(log.closed()));
        }
        if matches!(result, Err(FlushError::Closed { .. })) {
            result = Ok(log.durable_end_offset());
        }
        if again {
            self.push(log);
        }
        for (_, callback) in done {
            callback(result.as_ref().map(|_| ()).map_err(Clone::clone));
        }
    }
}

fn fail_waiters(log: &Log) {
    let waiting = std::mem::take(&mut log.waiters.lock().waiting);
    for (_, callback) in waiting {
        callback(Err(log.closed()));
    }
}

/// The flusher threads of a log directory.
#[derive(Debug)]
pub struct Flusher {
    queue: Arc<FlushQueue>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Flusher {
    /// Starts the threads. Several let fsyncs of different partitions share the file system's journal commits.
    pub(crate) fn start(queue: Arc<FlushQueue>, threads: usize) -> io::Result<Flusher> {
        let mut handles = Vec::new();
        for n in 0..threads.max(1) {
            let queue = Arc::clone(&queue);
            handles.push(std::thread::Builder::new().name(format!("flush-{n}")).spawn(move || queue.run())?);
        }
        Ok(Flusher { queue, threads: Mutex::new(handles) })
    }

    /// How long the fsyncs of the log directory took, whoever asked for them.
    pub fn times(&self) -> &Histogram {
        &self.queue.times
    }

    /// Calls back when all records of `log` below `end_offset` (exclusive) survive a power loss, or when that failed
    /// and they must not be acknowledged. At once, on this thread, when it is so already.
    pub fn notify_durable(&self, log: &Arc<Log>, end_offset: i64, callback: DurableCallback) {
        if let Err(offline) = log.check_online() {
            return callback(Err(offline.into()));
        }
        if log.durable_end_offset() >= end_offset {
            return callback(Ok(()));
        }
        let queued = {
            let mut waiters = log.waiters.lock();
            waiters.waiting.push((end_offset, callback));
            std::mem::replace(&mut waiters.queued, true)
        };
        if !queued {
            self.queue.push(Arc::clone(log));
        }
    }

    /// Serves those that wait, then ends the threads. Later waiters are refused.
    pub(crate) fn stop(&self) {
        self.queue.state.lock().stopped = true;
        self.queue.changed.notify_all();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a flusher thread panicked");
            }
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.stop();
    }
}
