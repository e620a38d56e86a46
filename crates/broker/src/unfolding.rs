//! Turns at decompressing batches: few at a time, for the sake of the memory, and small ones never behind large ones.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Up to how many bytes the batches of a request are decompressed, and how few and how many such requests at a time; between
/// the two as many as there are processors.
const LANES: [(usize, usize, usize); 3] = [(2 << 20, 4, 64), (16 << 20, 2, 8), (usize::MAX, 1, 1)];
/// Lookups that may decompress stored batches at a time.
const LOOKUPS: usize = 4;

/// The turns; of each kind in the order in which they were asked for.
#[derive(Debug)]
pub struct Unfolding {
    lanes: [(usize, Arc<Semaphore>); LANES.len()],
    lookups: Arc<Semaphore>,
}

/// Held meanwhile. It is missing only when no turns are given any more, which never happens.
pub type Turn = Option<OwnedSemaphorePermit>;

impl Default for Unfolding {
    fn default() -> Unfolding {
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
        let lanes =
            LANES.map(|(most_bytes, few, many)| (most_bytes, Arc::new(Semaphore::new(processors.clamp(few, many)))));
        Unfolding { lanes, lookups: Arc::new(Semaphore::new(LOOKUPS)) }
    }
}

impl Unfolding {
    /// For batches that are so large decompressed, or smaller.
    pub async fn turn(&self, bytes: usize) -> Turn {
        let (_, lane) = self.lanes.iter().find(|(most_bytes, _)| bytes <= *most_bytes)?;
        lane.clone().acquire_owned().await.ok()
    }

    /// For batches that are stored, of whatever size.
    pub async fn lookup(&self) -> Turn {
        self.lookups.clone().acquire_owned().await.ok()
    }
}
