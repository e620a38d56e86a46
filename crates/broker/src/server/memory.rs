//! What requests may take of the memory, over all connections: `queued.max.request.bytes`.
//!
//! A connection claims the announced size of a large request before it reads more than its beginning, and keeps the claim
//! until the request is answered. Whoever has a claim can finish, so claims cannot wait for each other in a circle; others
//! wait in the order they came. Small requests need no claim: what they take is bounded by the number of connections.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Requests up to this size are free.
const FREE_BYTES: usize = 64 * 1024;
/// What one permit stands for.
const UNIT_BYTES: usize = 1024;
/// A claimed request that arrives more slowly (bytes a second) ends its connection when others wait for memory.
const MIN_RATE: usize = 1024 * 1024;

/// The memory that large requests share.
#[derive(Debug, Clone)]
pub struct RequestMemory {
    free: Arc<Semaphore>,
    units: usize,
    waiting: Arc<AtomicUsize>,
}

/// Counts a connection that waits, as long as it lives.
struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Memory of one request, given back when dropped.
#[derive(Debug)]
pub struct Claimed {
    _units: OwnedSemaphorePermit,
    since: Instant,
    bytes: usize,
}

type Acquiring = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

/// What a connection has of the memory for the request that is arriving.
#[derive(Default)]
pub enum Claim {
    #[default]
    None,
    Waiting(Acquiring, usize),
    Held(Claimed),
}

impl RequestMemory {
    /// For `bytes` of large requests; the largest request that is allowed must fit.
    pub fn new(bytes: usize) -> RequestMemory {
        let units = (bytes / UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        RequestMemory { free: Arc::new(Semaphore::new(units)), units, waiting: Arc::default() }
    }

    /// Bytes that are claimed.
    pub fn claimed_bytes(&self) -> usize {
        (self.units - self.free.available_permits().min(self.units)) * UNIT_BYTES
    }

    /// Connections that wait for memory.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn acquire(&self, bytes: usize) -> Acquiring {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES).min(self.units)).unwrap_or(u32::MAX);
        let free = self.free.clone();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(self.waiting.clone());
        Box::pin(async move {
            let _waiting = waiting;
            // It is never closed.
            free.acquire_many_owned(units).await.ok()
        })
    }
}

impl Claim {
    /// Ready when a request of `bytes` may be read to its end.
    pub fn poll(&mut self, memory: &RequestMemory, bytes: usize, cx: &mut Context<'_>) -> Poll<()> {
        if bytes <= FREE_BYTES || matches!(self, Claim::Held(_)) {
            return Poll::Ready(());
        }
        if matches!(self, Claim::None) {
            *self = Claim::Waiting(memory.acquire(bytes), bytes);
        }
        if let Claim::Waiting(acquiring, bytes) = self {
            let units = ready!(acquiring.as_mut().poll(cx));
            let bytes = *bytes;
            *self =
                units.map_or(Claim::None, |units| Claim::Held(Claimed { _units: units, since: Instant::now(), bytes }));
        }
        Poll::Ready(())
    }

    pub fn is_waiting(&self) -> bool {
        matches!(self, Claim::Waiting(..))
    }

    /// The memory of the request that has arrived.
    pub fn take(&mut self) -> Option<Claimed> {
        match std::mem::take(self) {
            Claim::Held(claimed) => Some(claimed),
            Claim::None | Claim::Waiting(..) => None,
        }
    }

    /// Whether the request arrives so slowly that it keeps memory from others.
    pub fn is_slow(&self, memory: &RequestMemory, grace: Duration) -> bool {
        let Claim::Held(claimed) = self else { return false };
        let allowed = grace + Duration::from_secs((claimed.bytes / MIN_RATE) as u64);
        memory.waiting() > 0 && claimed.since.elapsed() > allowed
    }
}
