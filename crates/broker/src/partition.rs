//! A partition that this broker leads: its log, and who waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use caudal_protocol::{ErrorCode, TopicPartition, Uuid};
use caudal_storage::{
    AppendCost, AppendError, AppendInfo, AppendOrigin, FlushError, Log, LogDir, LogSlice, ReadError, Verification,
};
use parking_lot::Mutex;
use tokio::runtime::RuntimeFlavor;
use tokio::sync::oneshot;

use crate::fetch::waiters::{Waitable, Waiters};
use crate::metrics::{Meter, Traffic};
use crate::seldom::Seldom;
use crate::transaction::service::Marking;

/// A partition of a topic on this broker.
#[derive(Debug)]
pub struct Partition {
    pub name: TopicPartition,
    pub topic_id: Uuid,
    pub log: Arc<Log>,
    leader_epoch: AtomicI32,
    short_of_replicas: AtomicBool,
    /// Goes on where the partition goes on.
    pub traffic: Arc<Traffic>,
    pub log_dir: Arc<LogDir>,
    flush_before_ack: bool,
    waiters: Arc<Waiters>,
    /// The same partition in another log directory; held while it is moved there.
    pub successor: Mutex<Option<Arc<Partition>>>,
    failed_reads: Seldom,
}

impl Waitable for Partition {
    fn waiters(&self) -> &Waiters {
        &self.waiters
    }
}

/// The size of a batch that ends a transaction.
const MARKER_BYTES: usize = 78;

/// Completes when appended records are as durable as the broker promises.
#[derive(Debug)]
pub struct Durable(Option<oneshot::Receiver<Result<(), FlushError>>>);

impl Durable {
    /// # Errors
    /// The records could not be made durable; they must not be acknowledged. `None`: the flusher was shut down.
    pub async fn wait(self) -> Result<(), Option<FlushError>> {
        match self.0 {
            None => Ok(()),
            Some(receiver) => receiver.await.map_err(|_| None)?.map_err(Some),
        }
    }
}

/// Does what blocks where it is called, for the sake of the order, and lets another thread carry the sockets meanwhile.
pub fn off_the_network<T>(work: impl FnOnce() -> T) -> T {
    let runtime = tokio::runtime::Handle::try_current();
    match runtime.map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        // There is no other thread, or this is none of them.
        _ => work(),
    }
}

impl Partition {
    pub fn new(
        name: TopicPartition,
        topic_id: Uuid,
        log: Arc<Log>,
        leader_epoch: i32,
        log_dir: Arc<LogDir>,
    ) -> Partition {
        let flush_before_ack = log_dir.flush_before_ack();
        let leader_epoch = AtomicI32::new(leader_epoch);
        Partition {
            name,
            topic_id,
            log,
            leader_epoch,
            short_of_replicas: AtomicBool::new(false),
            traffic: Arc::default(),
            log_dir,
            flush_before_ack,
            waiters: Arc::default(),
            successor: Mutex::new(None),
            failed_reads: Seldom::default(),
        }
    }

    /// The partition with its log in another directory.
    pub fn in_place(&self, log: Arc<Log>, log_dir: Arc<LogDir>) -> Partition {
        Partition {
            name: self.name.clone(),
            topic_id: self.topic_id,
            log,
            leader_epoch: AtomicI32::new(self.leader_epoch()),
            short_of_replicas: AtomicBool::new(self.is_short_of_replicas()),
            traffic: self.traffic.clone(),
            log_dir,
            flush_before_ack: self.flush_before_ack,
            waiters: self.waiters.clone(),
            successor: Mutex::new(None),
            failed_reads: Seldom::default(),
        }
    }

    /// Where the partition went whose log here is closed; waits for the end of a move.
    fn successor(&self) -> Option<Arc<Partition>> {
        off_the_network(|| self.successor.lock().clone())
    }

    pub fn leader_epoch(&self) -> i32 {
        self.leader_epoch.load(Ordering::Relaxed)
    }

    pub fn set_leader_epoch(&self, epoch: i32) {
        self.leader_epoch.store(epoch, Ordering::Relaxed);
    }

    /// Whether fewer replicas are in sync than `min.insync.replicas` asks for: nothing is taken with acks=all then.
    pub fn is_short_of_replicas(&self) -> bool {
        self.short_of_replicas.load(Ordering::Relaxed)
    }

    pub fn set_short_of_replicas(&self, short: bool) {
        self.short_of_replicas.store(short, Ordering::Relaxed);
    }

    /// Appends whole batches, stamped with offsets. `on_durable` is called once when they may be acknowledged, or with
    /// the reason why they must not be; not at all when this fails.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing was appended then.
    pub fn append(
        &self,
        batches: &[u8],
        origin: AppendOrigin,
        verification: Verification,
        on_durable: impl FnOnce(Result<(), FlushError>) + Send + 'static,
    ) -> Result<AppendInfo, AppendError> {
        let appended = match self.log.append_verified(batches, self.leader_epoch(), origin, verification) {
            Err(AppendError::Closed { log }) => match self.successor() {
                Some(there) => return there.append(batches, origin, verification, on_durable),
                None => Err(AppendError::Closed { log }),
            },
            appended => appended,
        };
        let info = self.count(batches.len(), appended)?;
        self.when_durable(&info, on_durable);
        Ok(info)
    }

    fn count(&self, bytes: usize, appended: Result<AppendInfo, AppendError>) -> Result<AppendInfo, AppendError> {
        self.traffic.add(Meter::ProduceRequests, 1);
        match &appended {
            Ok(info) => {
                let records = info.last_offset - info.base_offset + 1;
                self.traffic.add(Meter::MessagesIn, records.unsigned_abs());
                self.traffic.add(Meter::BytesIn, bytes as u64);
            }
            Err(error) => self.traffic.append_failed(error.error_code(), bytes),
        }
        appended
    }

    fn when_durable(&self, info: &AppendInfo, on_durable: impl FnOnce(Result<(), FlushError>) + Send + 'static) {
        if self.flush_before_ack {
            // Not the partition: the flusher's threads must not be what keeps its log directory open.
            let waiters = self.waiters.clone();
            let durable = move |result: Result<(), FlushError>| {
                waiters.wake();
                on_durable(result);
            };
            self.log_dir.flusher().notify_durable(&self.log, info.last_offset + 1, Box::new(durable));
        } else {
            self.waiters.wake();
            on_durable(Ok(()));
        }
    }

    /// Appends what a coordinator of this broker wrote; tells once how that ended.
    pub fn append_then(
        &self,
        batch: &[u8],
        origin: AppendOrigin,
        verification: Verification,
        done: impl FnOnce(ErrorCode) + Send + 'static,
    ) {
        let cost = self.append_cost(batch, origin);
        self.tell(cost, done, |on_durable| self.append(batch, origin, verification, on_durable));
    }

    /// Ends a producer's transaction here; tells once how that ended.
    pub fn append_marker(&self, marking: Marking, done: impl FnOnce(ErrorCode) + Send + 'static) {
        let Marking { producer, marker, version } = marking;
        let cost = self.log.marker_cost(producer, marker, self.leader_epoch());
        self.tell(cost, done, |on_durable| {
            let append = |to: &Partition| to.log.append_marker(producer, marker, version, to.leader_epoch());
            let (mut appended, mut there) = (append(self), None);
            if matches!(appended, Err(AppendError::Closed { .. })) {
                there = self.successor();
                appended = there.as_deref().map_or(appended, append);
            }
            let info = self.count(MARKER_BYTES, appended)?;
            there.as_deref().unwrap_or(self).when_durable(&info, on_durable);
            Ok(info)
        });
    }

    fn tell(
        &self,
        cost: AppendCost,
        done: impl FnOnce(ErrorCode) + Send + 'static,
        append: impl FnOnce(Box<dyn FnOnce(Result<(), FlushError>) + Send>) -> Result<AppendInfo, AppendError>,
    ) {
        let waiting = Arc::new(Mutex::new(Some(done)));
        let take = waiting.clone();
        let on_durable = move |result: Result<(), FlushError>| {
            let done = take.lock().take();
            if let Some(done) = done {
                done(result.map_or_else(|error| error.error_code(), |()| ErrorCode::None));
            }
        };
        let append = || append(Box::new(on_durable));
        let appended = match cost {
            AppendCost::Quick => append(),
            AppendCost::Syncs | AppendCost::Unfolds { .. } => off_the_network(append),
        };
        if let Err(error) = appended {
            let code = error.error_code();
            match (code, &error) {
                // That the disk is full, or out of use, was logged once when it was noticed.
                (ErrorCode::KafkaStorageError | ErrorCode::UnknownServerError, _)
                    if !matches!(error, AppendError::DiskFull { .. } | AppendError::Offline(_)) =>
                {
                    tracing::error!(partition = %self.name, "{error}");
                }
                _ => tracing::debug!(partition = %self.name, "{error}"),
            }
            let done = waiting.lock().take();
            if let Some(done) = done {
                done(code);
            }
        }
    }

    /// What appending these batches would cost now; see [`Log::append_cost`].
    pub fn append_cost(&self, batches: &[u8], origin: AppendOrigin) -> AppendCost {
        self.log.append_cost(batches, self.leader_epoch(), origin)
    }

    /// See [`Log::start_verification`].
    pub fn start_verification(&self, producer: (i64, i16), sequence: i32, bumps_epoch: bool) -> Option<Verification> {
        let start = || self.log.start_verification(producer, sequence, bumps_epoch);
        // Whoever keeps it busy keeps this waiting.
        if self.log.is_busy() { off_the_network(start) } else { start() }
    }

    /// As [`Partition::append`], with a value to wait on.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing was appended then.
    pub fn append_client(
        &self,
        batches: &[u8],
        verification: Verification,
    ) -> Result<(AppendInfo, Durable), AppendError> {
        if !self.flush_before_ack {
            let info = self.append(batches, AppendOrigin::Client, verification, |_| {})?;
            return Ok((info, Durable(None)));
        }
        let (done, receiver) = oneshot::channel();
        // Nobody waits for acks=0.
        let info = self.append(batches, AppendOrigin::Client, verification, move |result| _ = done.send(result))?;
        Ok((info, Durable(Some(receiver))))
    }

    /// The offset up to which (exclusive) records may be served.
    pub fn high_watermark(&self) -> i64 {
        if self.flush_before_ack { self.log.durable_end_offset() } else { self.log.log_end_offset() }
    }

    /// Whole batches from the one that holds `offset` on, up to `end_offset` (exclusive) and `max_bytes`; with
    /// `min_one_batch` the first is read however large it is.
    ///
    /// # Errors
    /// The offset is not in the log, or the log cannot be read.
    pub fn read(
        &self,
        offset: i64,
        max_bytes: usize,
        end_offset: i64,
        min_one_batch: bool,
    ) -> Result<LogSlice, ErrorCode> {
        let mut read = self.log.read(offset, max_bytes, end_offset, min_one_batch);
        if matches!(read, Err(ReadError::Closed { .. }))
            && let Some(there) = self.successor()
        {
            read = there.log.read(offset, max_bytes, end_offset, min_one_batch);
        }
        read.map_err(|error| {
            // A consumer asks for the same damaged record again and again.
            if !matches!(error, ReadError::OffsetOutOfRange { .. })
                && let Some(left_out) = self.failed_reads.now()
            {
                tracing::error!("{error}{left_out}");
            }
            self.traffic.read_failed(error.error_code());
            error.error_code()
        })
    }

    /// Compares the leader epoch that a client knows (-1: none) with the current one.
    ///
    /// # Errors
    /// The client is behind, or ahead of this broker.
    pub fn check_leader_epoch(&self, known: i32) -> Result<(), ErrorCode> {
        match known {
            ..0 => Ok(()),
            known if known < self.leader_epoch() => Err(ErrorCode::FencedLeaderEpoch),
            known if known > self.leader_epoch() => Err(ErrorCode::UnknownLeaderEpoch),
            _ => Ok(()),
        }
    }

    /// Makes waiting fetches look again.
    pub fn wake(&self) {
        self.waiters.wake();
    }
}
