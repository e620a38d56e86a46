//! Learning of new files without asking again and again: inotify where there is one, a slow poll beside it for file
//! systems that do not report changes made elsewhere.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// How often to look when the operating system tells nothing.
const POLL_UNWATCHED: Duration = Duration::from_millis(250);
/// How often to look anyway (network file systems).
const POLL_WATCHED: Duration = Duration::from_secs(2);

/// Watches directories. Set it up before listing them: a file that arrives in between is then reported.
#[derive(Debug, Default)]
pub(super) struct Watch {
    watched: BTreeSet<PathBuf>,
    #[cfg(target_os = "linux")]
    inotify: Option<tokio::io::unix::AsyncFd<rustix::fd::OwnedFd>>,
}

impl Watch {
    /// Adds directories. Those that cannot be watched are polled.
    #[cfg(target_os = "linux")]
    pub(super) fn add(&mut self, dirs: &[PathBuf]) -> bool {
        use rustix::fs::inotify;
        if self.inotify.is_none() {
            let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).ok();
            #[expect(
                deprecated,
                reason = "unsound only for a descriptor that is closed while registered; this one is owned"
            )]
            let registered = fd.and_then(|fd| tokio::io::unix::AsyncFd::new(fd).ok());
            self.inotify = registered;
        }
        let Some(fd) = &self.inotify else { return false };
        let events = inotify::WatchFlags::CREATE
            | inotify::WatchFlags::CLOSE_WRITE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::DELETE_SELF;
        let mut added = false;
        for dir in dirs {
            if !self.watched.contains(dir) && inotify::add_watch(fd.get_ref(), dir, events).is_ok() {
                self.watched.insert(dir.clone());
                added = true;
            }
        }
        added
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn add(&mut self, _dirs: &[PathBuf]) -> bool {
        false
    }

    /// Returns when something changed, or after a while. Cancel safe.
    pub(super) async fn changed(&mut self) {
        #[cfg(target_os = "linux")]
        if let Some(fd) = self.inotify.as_ref().filter(|_| !self.watched.is_empty()) {
            tokio::select! {
                ready = fd.readable() => {
                    if let Ok(mut guard) = ready {
                        let mut buffer = [0u8; 4096];
                        while rustix::io::read(fd.get_ref(), &mut buffer).is_ok_and(|n| n > 0) {}
                        guard.clear_ready();
                    }
                }
                () = tokio::time::sleep(POLL_WATCHED) => {}
            }
            return;
        }
        tokio::time::sleep(POLL_UNWATCHED).await;
    }
}
