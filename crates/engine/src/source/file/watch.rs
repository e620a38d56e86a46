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

    /// Returns when a file is complete (written and closed, or moved here), a directory came, or after a while. Cancel
    /// safe.
    pub(super) async fn changed(&mut self) {
        #[cfg(target_os = "linux")]
        if let Some(fd) = self.inotify.as_ref().filter(|_| !self.watched.is_empty()) {
            let deadline = tokio::time::Instant::now() + POLL_WATCHED;
            loop {
                tokio::select! {
                    ready = fd.readable() => {
                        let Ok(mut guard) = ready else { return };
                        let found = drain(fd.get_ref());
                        guard.clear_ready();
                        if found {
                            return;
                        }
                    }
                    () = tokio::time::sleep_until(deadline) => return,
                }
            }
        }
        tokio::time::sleep(POLL_UNWATCHED).await;
    }
}

/// Takes all events; whether one of them is worth a look. The creation of a file is not: it is empty then.
#[cfg(target_os = "linux")]
fn drain(fd: &rustix::fd::OwnedFd) -> bool {
    use rustix::fs::inotify::{ReadFlags, Reader};
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(fd, &mut buffer);
    let mut found = false;
    while let Ok(event) = events.next() {
        let flags = event.events();
        found |= flags != ReadFlags::CREATE;
    }
    found
}
