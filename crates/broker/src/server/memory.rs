//! What requests may take of the memory, over all connections: `queued.max.request.bytes`.
//!
//! A connection claims the announced size of a large request before it reads more than its beginning, and keeps the claim
//! until the request is answered, or waits for others (a long poll, a join). Whoever has a claim can finish, so claims cannot
//! wait for each other in a circle; others wait in the order they came. What waits for others has as much memory again; beyond
//! that it keeps its claim. Small requests need no claim: what they take is bounded by the number of connections.

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
    /// Bytes of the requests that wait for others.
    parked: Arc<AtomicUsize>,
}

/// Counts a connection that waits, as long as it lives.
struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a request that is being worked on has of the memory.
#[derive(Debug)]
pub struct Kept {
    claimed: Option<Claimed>,
    _parked: Option<Parked>,
}

/// A large request that waits for others, of the memory that such requests have for themselves.
#[derive(Debug)]
pub struct Parked {
    parked: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.parked.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Kept {
    /// For a request that waits for others: whom it waits for may be waiting for memory. So it gives its claim back, unless
    /// those that have done so take as much again already.
    pub fn park(self, memory: &RequestMemory) -> Kept {
        let Some(claimed) = &self.claimed else { return self };
        let bytes = claimed.bytes;
        let parked = Parked { parked: memory.parked.clone(), bytes };
        if memory.parked.fetch_add(bytes, Ordering::Relaxed) + bytes > memory.units * UNIT_BYTES {
            // What was added goes with `parked`.
            return self;
        }
        Kept { claimed: None, _parked: Some(parked) }
    }
}

/// Memory of one request, given back when dropped.
#[derive(Debug)]
pub struct Claimed {
    _units: OwnedSemaphorePermit,
    since: Instant,
    bytes: usize,
    /// It was found to be slow once.
    suspect: bool,
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
        RequestMemory { free: Arc::new(Semaphore::new(units)), units, waiting: Arc::default(), parked: Arc::default() }
    }

    /// Bytes that are claimed.
    pub fn claimed_bytes(&self) -> usize {
        (self.units - self.free.available_permits().min(self.units)) * UNIT_BYTES
    }

    /// Bytes of requests that wait for others, without a claim.
    pub fn parked_bytes(&self) -> usize {
        self.parked.load(Ordering::Relaxed)
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
            *self = units.map_or(Claim::None, |units| {
                Claim::Held(Claimed { _units: units, since: Instant::now(), bytes, suspect: false })
            });
        }
        Poll::Ready(())
    }

    pub fn is_waiting(&self) -> bool {
        matches!(self, Claim::Waiting(..))
    }

    /// The memory of the request that has arrived.
    pub fn take(&mut self) -> Option<Kept> {
        match std::mem::take(self) {
            Claim::Held(claimed) => Some(Kept { claimed: Some(claimed), _parked: None }),
            Claim::None | Claim::Waiting(..) => None,
        }
    }

    pub fn is_held(&self) -> bool {
        matches!(self, Claim::Held(_))
    }

    /// Whether the request, of which `arrived` bytes are here, arrives so slowly that it keeps memory from others. Nobody is slow
    /// who was not found so before: a broker that stood still finds what came meanwhile only after its timers.
    pub fn is_slow(&mut self, memory: &RequestMemory, grace: Duration, arrived: usize) -> bool {
        let Claim::Held(claimed) = self else { return false };
        let allowed = grace + Duration::from_secs((arrived / MIN_RATE) as u64);
        let slow = memory.waiting() > 0 && claimed.since.elapsed() > allowed;
        std::mem::replace(&mut claimed.suspect, slow) && slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn claim(memory: &RequestMemory, bytes: usize) -> Kept {
        let mut claim = Claim::None;
        std::future::poll_fn(|cx| claim.poll(memory, bytes, cx)).await;
        claim.take().unwrap()
    }

    #[tokio::test]
    async fn who_waits_for_others_gives_way() {
        const HALF: usize = 512 * 1024;
        let memory = RequestMemory::new(2 * HALF);
        let mut parked = Vec::new();
        for count in 1..=2 {
            parked.push(claim(&memory, HALF).await.park(&memory));
            assert_eq!((memory.claimed_bytes(), memory.parked_bytes()), (0, count * HALF));
        }
        // As much again is taken: now they keep their claims.
        let third = claim(&memory, HALF).await.park(&memory);
        assert_eq!((memory.claimed_bytes(), memory.parked_bytes()), (HALF, 2 * HALF));
        parked.pop();
        assert_eq!(memory.parked_bytes(), HALF);
        parked.push(third.park(&memory));
        assert_eq!((memory.claimed_bytes(), memory.parked_bytes()), (0, 2 * HALF));
        drop(parked);
        assert_eq!((memory.claimed_bytes(), memory.parked_bytes()), (0, 0));
    }
}
