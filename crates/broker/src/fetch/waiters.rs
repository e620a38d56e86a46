//! Long polls that wait for a partition to grow. Nothing polls: whoever makes records visible wakes them.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The fetches that wait for one partition.
#[derive(Debug, Default)]
pub struct Waiters {
    waiting: Mutex<Vec<Arc<Notify>>>,
}

impl Waiters {
    /// Wakes all that wait. They stay registered until they give up their [`Registration`].
    pub fn wake(&self) {
        for notify in self.waiting.lock().iter() {
            notify.notify_one();
        }
    }

    fn add(&self, notify: &Arc<Notify>) {
        self.waiting.lock().push(notify.clone());
    }

    fn remove(&self, notify: &Arc<Notify>) {
        let mut waiting = self.waiting.lock();
        if let Some(at) = waiting.iter().position(|w| Arc::ptr_eq(w, notify)) {
            waiting.swap_remove(at);
        }
        // A burst of waiters must not keep its memory.
        if waiting.is_empty() && waiting.capacity() > 64 {
            *waiting = Vec::new();
        }
    }
}

/// Something that has waiters.
pub trait Waitable {
    fn waiters(&self) -> &Waiters;
}

/// One fetch among the waiters of all its partitions; ends when dropped.
#[derive(Debug)]
pub struct Registration<P: Waitable> {
    partitions: Vec<Arc<P>>,
    notify: Arc<Notify>,
}

impl<P: Waitable> Registration<P> {
    /// Look at the partitions after this, then wait: what becomes visible in between is not missed.
    pub fn new(partitions: Vec<Arc<P>>) -> Registration<P> {
        let notify = Arc::new(Notify::new());
        for partition in &partitions {
            partition.waiters().add(&notify);
        }
        Registration { partitions, notify }
    }

    /// Ends when any of the partitions has changed since the last call.
    pub async fn changed(&self) {
        self.notify.notified().await;
    }
}

impl<P: Waitable> Drop for Registration<P> {
    fn drop(&mut self) {
        for partition in &self.partitions {
            partition.waiters().remove(&self.notify);
        }
    }
}
