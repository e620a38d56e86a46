//! The places that connections have. All are taken? Then one has to go for whoever comes: of those that say nothing who came
//! first, at once; else of those that do not take their answer, once they had [`ANSWER_GRACE`] for it.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep_until};

/// For an answer to be taken where others wait.
const ANSWER_GRACE: Duration = Duration::from_secs(2);

/// Since when a place may be asked for, then the number of its connection.
type Turn = (Instant, u64);

/// All places.
#[derive(Debug)]
pub struct Places {
    free: Arc<Semaphore>,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    /// Dropped where the place is wanted.
    holders: BTreeMap<Turn, oneshot::Sender<()>>,
}

/// One place; free when it is dropped.
#[derive(Debug)]
pub struct Place {
    _permit: Option<OwnedSemaphorePermit>,
    turn: Turn,
    wanted: oneshot::Receiver<()>,
    taken: Arc<Mutex<Taken>>,
}

impl Places {
    pub fn new(count: usize) -> Places {
        Places { free: Arc::new(Semaphore::new(count)), taken: Arc::default() }
    }

    /// Waits for a place, and has somebody give theirs up where there is none.
    pub async fn take(&self) -> Place {
        let mut asked = false;
        let permit = loop {
            let due = self.taken.lock().holders.first_key_value().map(|(turn, _)| turn.0);
            let somebody_is_due = async {
                match due.filter(|_| !asked) {
                    Some(due) => sleep_until(due).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                // It is never closed.
                permit = self.free.clone().acquire_owned() => break permit.ok(),
                () = somebody_is_due => asked = self.taken.lock().ask(),
            }
        };
        let (sender, wanted) = oneshot::channel();
        let mut taken = self.taken.lock();
        taken.next += 1;
        let turn = (Instant::now(), taken.next);
        taken.holders.insert(turn, sender);
        Place { _permit: permit, turn, wanted, taken: self.taken.clone() }
    }
}

impl Taken {
    /// Asks one whose turn it is; whether there is one.
    fn ask(&mut self) -> bool {
        let now = Instant::now();
        let due = self.holders.first_entry().filter(|first| first.key().0 <= now);
        due.map(|first| first.remove()).is_some()
    }
}

impl Place {
    /// Ends when the place is wanted by somebody else.
    pub async fn wanted(&mut self) {
        // The sender is dropped, nothing is sent.
        _ = (&mut self.wanted).await;
    }

    /// Something was asked: there is time to take the answer.
    pub fn answering(&mut self) {
        self.not_before(Instant::now() + ANSWER_GRACE);
    }

    /// The answer was taken.
    pub fn answered(&mut self) {
        self.not_before(Instant::now());
    }

    fn not_before(&mut self, due: Instant) {
        let mut taken = self.taken.lock();
        // Who was asked already has to go.
        if let Some(sender) = taken.holders.remove(&self.turn) {
            self.turn.0 = due;
            taken.holders.insert(self.turn, sender);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.taken.lock().holders.remove(&self.turn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn give_way(mut place: Place) {
        place.wanted().await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_gives_way_and_who_does_not_listen_later() {
        let places = Places::new(2);
        let (mut asking, silent) = (places.take().await, places.take().await);
        asking.answering();
        let began = Instant::now();
        let (mut third, ()) = tokio::join!(places.take(), give_way(silent));
        assert_eq!(began.elapsed(), Duration::ZERO);
        third.answering();
        // Nobody is silent: the one that does not take its answer goes, once it had its time, and only one.
        let (fourth, ()) = tokio::join!(places.take(), give_way(asking));
        assert!(began.elapsed() >= ANSWER_GRACE);
        drop(fourth);
        third.answered();
        let (_fifth, _sixth, ()) = tokio::join!(places.take(), places.take(), give_way(third));
    }
}
