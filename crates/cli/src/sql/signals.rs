//! SIGINT and SIGTERM while statements run. They are heard on a thread of their own: what evaluates a heavy statement
//! holds the threads that it runs on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::tools::tell;

/// How long a script may take to stop by itself; what it does then is given up, as if the power had failed.
const GRACE: Duration = Duration::from_millis(2000);

/// Hears the signals of the process.
#[derive(Debug)]
pub struct Signals {
    /// The exit code that goes with each signal, as they come.
    heard: watch::Receiver<u8>,
    running: Arc<AtomicBool>,
}

/// While it lives, a signal asks for the end of what runs; without one it ends the process.
#[derive(Debug)]
pub struct Running {
    heard: watch::Receiver<u8>,
    running: Arc<AtomicBool>,
}

/// The signals that end programs. Heard from the start: the line editor restores what it has found.
struct Ears {
    interrupt: Signal,
    terminate: Signal,
}

impl Ears {
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
        }
    }

    /// Waits for the end of what runs (`false`), or for another signal (`true`).
    async fn stopped_or_again(&mut self, running: &AtomicBool) -> bool {
        let stopped = async {
            while running.load(Ordering::Acquire) {
                tokio::time::sleep(GRACE / 100).await;
            }
        };
        let again = async {
            // One Ctrl-C may arrive twice: from the terminal, and from a program that runs this one.
            tokio::time::sleep(GRACE / 8).await;
            self.forget().await;
            self.next().await
        };
        tokio::select! {
            () = stopped => false,
            _ = again => true,
        }
    }

    /// Passes over signals that have come already.
    async fn forget(&mut self) {
        while tokio::time::timeout(Duration::ZERO, self.next()).await.is_ok() {}
    }
}

impl Signals {
    pub fn listen() -> std::io::Result<Signals> {
        let (sender, heard) = watch::channel(0);
        let running = Arc::new(AtomicBool::new(false));
        let is_running = Arc::clone(&running);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut ears = {
            let _inside = runtime.enter();
            Ears { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? }
        };
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async {
                loop {
                    let code = ears.next().await;
                    if !is_running.load(Ordering::Acquire) {
                        std::process::exit(i32::from(code));
                    }
                    sender.send_replace(code);
                    if tokio::time::timeout(GRACE, ears.stopped_or_again(&is_running)).await != Ok(false) {
                        tell!(
                            "Given up in the middle of a batch; a streaming table goes on from its checkpoint when the \
                             statement is run again."
                        );
                        std::process::exit(i32::from(code));
                    }
                    ears.forget().await;
                }
            });
        })?;
        Ok(Signals { heard, running })
    }

    /// From now on something runs that stops when it is asked to.
    pub fn run(&self) -> Running {
        self.running.store(true, Ordering::Release);
        let mut heard = self.heard.clone();
        heard.mark_unchanged();
        Running { heard, running: Arc::clone(&self.running) }
    }
}

impl Running {
    /// Waits for a signal; returns the exit code that goes with it.
    pub async fn asked_to_stop(&mut self) -> u8 {
        match self.heard.changed().await {
            Ok(()) => *self.heard.borrow(),
            // The thread is gone, and signals with it.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.running.store(false, Ordering::Release);
    }
}
