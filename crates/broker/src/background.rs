//! How many of the tasks that come again and again run at a time (`background.threads`).

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The turns of background tasks.
#[derive(Debug, Default)]
pub struct Background {
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    most: usize,
}

/// Held while a task runs.
#[derive(Debug)]
pub struct Turn<'a>(&'a Background);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state.lock().running -= 1;
        self.0.freed.notify_one();
    }
}

impl Background {
    /// At least 1. Tasks that run go on.
    pub fn set_most(&self, most: usize) {
        self.state.lock().most = most;
        self.freed.notify_waiters();
    }

    fn try_turn(&self) -> Option<Turn<'_>> {
        let mut state = self.state.lock();
        let is_free = state.running < state.most;
        state.running += usize::from(is_free);
        is_free.then(|| Turn(self))
    }

    /// Waits until a task may run.
    pub async fn turn(&self) -> Turn<'_> {
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            if let Some(turn) = self.try_turn() {
                return turn;
            }
            freed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_more_run_than_is_said() {
        let background = Background::default();
        background.set_most(2);
        let (one, two) = (background.turn().await, background.turn().await);
        assert!(background.try_turn().is_none());
        background.set_most(3);
        let three = background.turn().await;
        background.set_most(1);
        drop((one, two));
        assert!(background.try_turn().is_none());
        drop(three);
        drop(background.turn().await);
    }
}
