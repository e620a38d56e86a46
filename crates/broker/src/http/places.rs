//! The places that connections have. All are taken by those who say nothing? Then whoever came first of these has to go.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// All places.
#[derive(Debug)]
pub struct Places {
    free: Arc<Semaphore>,
    silent: Arc<Mutex<Silent>>,
}

#[derive(Debug, Default)]
struct Silent {
    next: u64,
    /// By the order in which they came. Dropped where the place is wanted.
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
}

/// One place; free when it is dropped.
#[derive(Debug)]
pub struct Place {
    _taken: Option<OwnedSemaphorePermit>,
    number: u64,
    wanted: Option<oneshot::Receiver<()>>,
    silent: Arc<Mutex<Silent>>,
}

impl Places {
    pub fn new(count: usize) -> Places {
        Places { free: Arc::new(Semaphore::new(count)), silent: Arc::default() }
    }

    /// Waits for a place, and has somebody silent give theirs up where there is none.
    pub async fn take(&self) -> Place {
        let taken = match self.free.clone().try_acquire_owned() {
            Ok(taken) => Some(taken),
            Err(_) => {
                drop(self.silent.lock().waiting.pop_first());
                // It is never closed.
                self.free.clone().acquire_owned().await.ok()
            }
        };
        let (sender, wanted) = oneshot::channel();
        let mut silent = self.silent.lock();
        silent.next += 1;
        let number = silent.next;
        silent.waiting.insert(number, sender);
        Place { _taken: taken, number, wanted: Some(wanted), silent: self.silent.clone() }
    }
}

impl Place {
    /// Ends when the place is wanted by somebody else.
    pub async fn wanted(&mut self) {
        match &mut self.wanted {
            Some(wanted) => _ = wanted.await,
            None => pending().await,
        }
    }

    /// Something was asked: the place is kept until that is answered.
    pub fn keep(&mut self) {
        self.silent.lock().waiting.remove(&self.number);
        self.wanted = None;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.silent.lock().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_says_nothing_gives_way() {
        let places = Places::new(2);
        let (mut asking, mut silent) = (places.take().await, places.take().await);
        asking.keep();
        let third = async {
            silent.wanted().await;
            drop(silent);
        };
        let (mut third, ()) = tokio::join!(places.take(), third);
        third.keep();
        // Nobody is silent: the next one waits for the end of an answer.
        let fourth = tokio::spawn(async move { places.take().await });
        tokio::task::yield_now().await;
        assert!(!fourth.is_finished());
        drop(asking);
        drop(fourth.await.unwrap());
    }
}
