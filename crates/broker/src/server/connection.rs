//! One connection: requests are worked on concurrently and answered in the order they came.
//!
//! A single task does it all: it cuts the stream into frames, starts each request at once (a produce has appended, a join
//! is in its group before the next frame is looked at), keeps what has to wait (fsync, long poll, join) and writes answers
//! from the front of the queue. It stops reading while too much is in work, so that a client that does not read its
//! answers cannot fill the memory.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::frame::{FrameError, FrameReader};
use super::memory::{Claim, Kept};
use super::outgoing::{Outgoing, Response};
use crate::api::{self, Refused, Work};
use crate::clock;
use crate::config::ConnectionLimits;
use crate::context::Context;
use crate::metrics::Timing;

/// Frames that are started before answers are written and other connections get their turn.
const BURST: usize = 32;

/// A claim on the shared memory is looked at again after this time.
const CLAIM_AGAIN: Duration = Duration::from_secs(1);

/// Who is connected.
#[derive(Debug)]
pub struct ConnectionInfo {
    pub id: u64,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    /// No further request is started meanwhile.
    held: AtomicBool,
    /// The moment, on the monotonic clock, until which nothing is read.
    muted_until_ms: AtomicI64,
    /// Held by the request of a transactional producer that may have to wait before it appends.
    pub transactional: tokio::sync::Mutex<()>,
    /// The first client id that was named; clients name one for all their requests.
    client_id: OnceLock<String>,
    /// What is noted of the request that is being started.
    wait_ms: AtomicU64,
    named: AtomicU64,
    /// What is noted of the request that is being worked on.
    aside: Mutex<Option<Aside>>,
}

impl ConnectionInfo {
    pub fn new(id: u64, peer: SocketAddr, local: SocketAddr) -> ConnectionInfo {
        ConnectionInfo {
            id,
            peer,
            local,
            held: AtomicBool::new(false),
            muted_until_ms: AtomicI64::new(i64::MIN),
            transactional: Default::default(),
            client_id: OnceLock::new(),
            wait_ms: AtomicU64::new(0),
            named: AtomicU64::new(0),
            aside: Mutex::default(),
        }
    }

    pub fn note_client(&self, client_id: &str) {
        if self.client_id.get().is_none() {
            self.client_id.get_or_init(|| client_id.to_owned());
        }
    }

    pub fn client_id(&self) -> &str {
        self.client_id.get().map_or("", String::as_str)
    }

    /// The request that is being started means to wait for so long at most.
    pub fn note_wait(&self, most: Duration) {
        self.wait_ms.store(u64::try_from(most.as_millis()).unwrap_or(u64::MAX).saturating_add(1), Ordering::Relaxed);
    }

    /// How many topics (a fetch: partitions) the request that is being started is about.
    pub fn note_named(&self, count: usize) {
        self.named.store(count as u64 + 1, Ordering::Relaxed);
    }

    /// What another thread did for the request that is being polled.
    pub fn note_aside(&self, aside: Aside) {
        *self.aside.lock() = Some(aside);
    }

    /// What was noted of the request that was started last. `open_ended`: it waits for others as long as they take, if it did not
    /// say how long.
    fn take_notes(&self, open_ended: bool) -> Notes {
        let wait = match self.wait_ms.swap(0, Ordering::Relaxed).checked_sub(1) {
            Some(ms) => Duration::from_millis(ms),
            None if open_ended => Duration::MAX,
            None => Duration::ZERO,
        };
        Notes { wait, named: self.named.swap(0, Ordering::Relaxed).checked_sub(1) }
    }

    /// Starts no further request for that long: the client has used more than its quota.
    pub fn mute(&self, throttle_ms: i32) {
        if throttle_ms > 0 {
            let until_ms = clock::monotonic_ms().saturating_add(throttle_ms.into());
            self.muted_until_ms.fetch_max(until_ms, Ordering::AcqRel);
        }
    }

    /// How much longer nothing is read; `None`: it is.
    fn muted(&self) -> Option<Duration> {
        let until_ms = self.muted_until_ms.load(Ordering::Acquire);
        if until_ms == i64::MIN {
            return None;
        }
        let left_ms = until_ms.saturating_sub(clock::monotonic_ms());
        u64::try_from(left_ms).ok().filter(|left_ms| *left_ms > 0).map(Duration::from_millis)
    }

    /// How long ago the last pause ended; `None`: there was none.
    fn unmuted_for(&self) -> Option<Duration> {
        let until_ms = self.muted_until_ms.load(Ordering::Acquire);
        let past_ms = (until_ms != i64::MIN).then(|| clock::monotonic_ms().saturating_sub(until_ms))?;
        u64::try_from(past_ms).ok().map(Duration::from_millis)
    }

    /// Keeps back the requests that follow until the guard is dropped, for the one that must take effect before them and has
    /// to wait first.
    pub fn hold(self: &Arc<Self>) -> Hold {
        self.held.store(true, Ordering::Release);
        Hold(self.clone())
    }

    fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }
}

/// What a request is about, for the log of slow ones.
#[derive(Debug, Clone, Copy)]
pub struct Notes {
    /// How long it means to wait at most.
    pub wait: Duration,
    /// Topics, or partitions of a fetch.
    pub named: Option<u64>,
}

/// What a thread that may block did for a request.
#[derive(Debug, Clone, Copy)]
pub struct Aside {
    /// Until it was its turn.
    pub waited: Duration,
    pub worked: Duration,
    /// As much of that as batches were decompressed and checked.
    pub unfolded_for: Duration,
}

/// See [`ConnectionInfo::hold`].
#[derive(Debug)]
pub struct Hold(Arc<ConnectionInfo>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.held.store(false, Ordering::Release);
    }
}

/// Why a connection ended other than by the peer's wish.
#[derive(Debug, thiserror::Error)]
pub enum Closed {
    #[error("closed by the peer")]
    Peer,
    #[error("failed to use the socket: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("idle for {0:?} (connections.max.idle.ms)")]
    Idle(Duration),
    #[error("a request stopped arriving half-way for {0:?}")]
    Stalled(Duration),
    #[error("a large request arrived too slowly while others waited for its memory (queued.max.request.bytes)")]
    Slow,
    #[error("not all requests were answered within {0:?} of a stop")]
    Undrained(Duration),
}

enum Slot {
    /// `open_ended`: it waits for others (a long poll, a rebalance), not for work that ends by itself.
    Waiting {
        work: Work,
        bytes: usize,
        open_ended: bool,
        timing: Timing,
        notes: Notes,
        /// Given back when the work is done.
        _memory: Option<Kept>,
    },
    Done(Option<Response>, Timing),
}

/// The state of a connection's task.
pub struct Connection {
    ctx: Arc<Context>,
    info: Arc<ConnectionInfo>,
    stream: TcpStream,
    frames: FrameReader,
    /// Memory for the request that is arriving.
    claim: Claim,
    queue: VecDeque<Slot>,
    /// Slots of the queue that still wait.
    waiting: usize,
    waiting_bytes: usize,
    outgoing: Outgoing,
    /// Requests whose responses are in `outgoing`.
    sending: Vec<Timing>,
    last_active: Instant,
    /// When bytes last arrived.
    last_read: Instant,
    timer: Pin<Box<Sleep>>,
    /// Ends when the connection is read again; only while it is not.
    muted: Option<Pin<Box<Sleep>>>,
    draining: bool,
}

impl Connection {
    pub fn new(ctx: Arc<Context>, info: ConnectionInfo, stream: TcpStream) -> Connection {
        let limits = &ctx.config.limits;
        Connection {
            frames: FrameReader::new(limits.request_max_bytes),
            timer: Box::pin(tokio::time::sleep(limits.max_stall.min(limits.max_idle))),
            info: Arc::new(info),
            claim: Claim::None,
            stream,
            queue: VecDeque::new(),
            waiting: 0,
            waiting_bytes: 0,
            outgoing: Outgoing::default(),
            sending: Vec::new(),
            last_active: Instant::now(),
            muted: None,
            last_read: Instant::now(),
            draining: false,
            ctx,
        }
    }

    /// From now on no request is read; [`Connection::poll`] ends when what was begun has been answered and written. Requests
    /// that wait for others are not waited for.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Drives the connection until it ends.
    pub fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<Closed> {
        match self.poll_inner(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Closed::Peer),
            Poll::Ready(Err(closed)) => Poll::Ready(closed),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_inner(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), Closed>> {
        self.poll_waiting(cx)?;
        let mut started = 0;
        loop {
            self.queue_answers()?;
            let written = self.outgoing.poll_write(&self.stream, cx)?;
            if written.is_ready() && !self.sending.is_empty() {
                self.note_sent();
            }
            if self.draining && written.is_ready() && self.is_drained() {
                return Poll::Ready(Ok(()));
            }
            if !self.may_read() {
                break;
            }
            if started >= BURST {
                // The others of this thread first.
                cx.waker().wake_by_ref();
                break;
            }
            let burst = self.start_requests(cx)?;
            started += burst;
            if burst > 0 {
                continue;
            }
            let arriving = self.frames.arriving()?.unwrap_or(0);
            if self.claim.poll(&self.ctx.request_memory, arriving, cx).is_pending() {
                break;
            }
            if self.claim.is_held() && self.timer.deadline() > self.last_read + self.limits().max_slow {
                let soon = Instant::now() + self.limits().max_slow;
                self.timer.as_mut().reset(soon);
            }
            match self.frames.poll_fill(&mut self.stream, cx)? {
                Poll::Ready(0) => return Poll::Ready(Ok(())),
                Poll::Ready(_) => {
                    self.last_read = Instant::now();
                    self.last_active = self.last_read;
                }
                Poll::Pending => break,
            }
            started += self.start_requests(cx)?;
        }
        self.poll_muted(cx);
        self.poll_timer(cx)
    }

    /// Has the connection looked at again when it is to be read again.
    fn poll_muted(&mut self, cx: &mut TaskContext<'_>) {
        while let Some(left) = self.info.muted().filter(|_| !self.draining) {
            let timer = self.muted.get_or_insert_with(|| Box::pin(tokio::time::sleep(left)));
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
            // It may have been muted for longer meanwhile.
            self.muted = None;
        }
        if self.muted.take().is_some() {
            cx.waker().wake_by_ref();
        }
    }

    /// Says that nothing more comes and waits for the peer to hang up, unless it was silent for long: a socket that is closed
    /// with requests unread in it takes away from the peer the answers that it has not read.
    pub async fn linger(&mut self, longest: Duration) {
        if self.last_active.elapsed() > longest {
            return;
        }
        let mut unread = [0; 4096];
        let read_out = async {
            if self.stream.shutdown().await.is_ok() {
                while matches!(self.stream.read(&mut unread).await, Ok(1..)) {}
            }
        };
        // A peer that stays is cut off.
        let _ = tokio::time::timeout(longest, read_out).await;
    }

    fn is_drained(&self) -> bool {
        self.queue.iter().all(|slot| matches!(slot, Slot::Waiting { open_ended: true, .. }))
    }

    fn limits(&self) -> &ConnectionLimits {
        &self.ctx.config.limits
    }

    fn may_read(&self) -> bool {
        !self.draining
            && !self.info.is_held()
            && self.info.muted().is_none()
            && self.outgoing.is_empty()
            && self.queue.len() < self.limits().max_in_flight
            && self.waiting_bytes < self.limits().max_in_flight_bytes
    }

    /// Starts the requests that have arrived completely, up to a number; how many.
    fn start_requests(&mut self, cx: &mut TaskContext<'_>) -> Result<usize, Closed> {
        let mut started = 0;
        while started < BURST
            && !self.info.is_held()
            && self.info.muted().is_none()
            && self.queue.len() < self.limits().max_in_flight
            && self.waiting_bytes < self.limits().max_in_flight_bytes
        {
            let Some(frame) = self.frames.take_frame()? else { break };
            let bytes = frame.len();
            let memory = self.claim.take();
            let open_ended = api::is_open_ended(&frame);
            let begun = Instant::now();
            // What waits while the client pauses for its quota was not there before, as it is not in Kafka, which does not
            // read it meanwhile.
            let unmuted = self.info.unmuted_for().and_then(|ago| begun.checked_sub(ago));
            let arrived = unmuted.map_or(self.last_read, |unmuted| self.last_read.max(unmuted)).min(begun);
            let (mut work, asked) = api::dispatch(&self.ctx, &self.info, frame)?;
            let polled = work.as_mut().poll(cx);
            let mut timing = Timing::begin(asked, arrived, begun, Instant::now());
            if let Some(aside) = self.info.aside.lock().take() {
                // It was done before anybody looked for it.
                timing.unfolding = aside.unfolded_for.min(timing.local);
            }
            let notes = self.info.take_notes(open_ended);
            match polled {
                Poll::Ready(done) => {
                    self.ctx.metrics.slow.check(&timing, notes, &self.info);
                    self.queue.push_back(Slot::Done(done?, timing));
                }
                Poll::Pending => {
                    self.waiting += 1;
                    self.waiting_bytes += bytes;
                    let shared = &self.ctx.request_memory;
                    let memory = if open_ended { memory.map(|kept| kept.park(shared)) } else { memory };
                    self.queue.push_back(Slot::Waiting { work, bytes, open_ended, timing, notes, _memory: memory });
                }
            }
            started += 1;
        }
        Ok(started)
    }

    fn poll_waiting(&mut self, cx: &mut TaskContext<'_>) -> Result<(), Closed> {
        if self.waiting == 0 {
            return Ok(());
        }
        for slot in &mut self.queue {
            let Slot::Waiting { work, bytes, timing, notes, .. } = slot else { continue };
            let polled = work.as_mut().poll(cx);
            if let Some(aside) = self.info.aside.lock().take() {
                timing.aside(aside);
            }
            if let Poll::Ready(done) = polled {
                self.waiting -= 1;
                self.waiting_bytes -= *bytes;
                timing.done(Instant::now());
                self.ctx.metrics.slow.check(timing, *notes, &self.info);
                *slot = Slot::Done(done?, timing.clone());
            }
        }
        Ok(())
    }

    /// Moves answers from the front of the queue to the socket's side, as far as they are complete.
    fn queue_answers(&mut self) -> Result<(), Closed> {
        while let Some(Slot::Done(..)) = self.queue.front() {
            let Some(Slot::Done(response, mut timing)) = self.queue.pop_front() else { break };
            let now = Instant::now();
            timing.answered(now);
            let Some(response) = response else {
                self.ctx.metrics.requests.record(&timing, now);
                continue;
            };
            self.outgoing.push(response)?;
            self.sending.push(timing);
            self.last_active = now;
        }
        Ok(())
    }

    /// The responses are in the socket.
    fn note_sent(&mut self) {
        let now = Instant::now();
        for timing in self.sending.drain(..) {
            self.ctx.metrics.requests.record(&timing, now);
        }
    }

    /// Ends the connection when it is overdue. A connection that waits for its own requests is not idle.
    fn poll_timer(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), Closed>> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let quiet = self.last_active.elapsed();
            let grace = self.limits().max_slow;
            if self.may_read() && self.claim.is_slow(&self.ctx.request_memory, grace, self.frames.arrived()) {
                return Poll::Ready(Err(Closed::Slow));
            }
            let stalled = self.frames.is_partial() && self.may_read() && !self.claim.is_waiting();
            let (allowed, closed) = if stalled {
                (self.limits().max_stall, Closed::Stalled(quiet))
            } else {
                (self.limits().max_idle, Closed::Idle(quiet))
            };
            if quiet >= allowed && self.queue.is_empty() && self.info.muted().is_none() {
                return Poll::Ready(Err(closed));
            }
            if quiet >= self.limits().max_stall {
                self.frames.release();
            }
            // Looked at again when the shorter of the two limits could have passed: a frame may begin meanwhile.
            let again = self.limits().max_stall.min(self.limits().max_idle);
            let again = if self.claim.is_held() { again.min(CLAIM_AGAIN) } else { again };
            self.timer.as_mut().reset(Instant::now() + again);
        }
        Poll::Pending
    }
}
