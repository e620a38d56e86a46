//! How many requests of each API there were, and how long they took: Kafka's `RequestMetrics`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use caudal_storage::Histogram;
use tokio::time::Instant;

use crate::api::{SERVED, Served};
use crate::server::Aside;

/// Parts of a request's time, in the order in which they pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Queue,
    Local,
    Remote,
    ResponseQueue,
    ResponseSend,
    Total,
}

/// All phases with Kafka's name and what they mean here.
pub const PHASES: [(Phase, &str, &str); 6] = [
    (
        Phase::Queue,
        "requestqueuetimems",
        "Milliseconds between a request's arrival and the start of its work, its turn at decompressing batches included",
    ),
    (Phase::Local, "localtimems", "Milliseconds of a request's own work: checks, the append, the read"),
    (
        Phase::Remote,
        "remotetimems",
        "Milliseconds that a request waits: a produce for its fsync, a fetch for records, a join for the others",
    ),
    (Phase::ResponseQueue, "responsequeuetimems", "Milliseconds that a response waits for those before it"),
    (Phase::ResponseSend, "responsesendtimems", "Milliseconds until a response is in the socket"),
    (Phase::Total, "totaltimems", "Milliseconds between a request's arrival and its response"),
];

/// Versions are small numbers.
const VERSIONS: usize = 32;

/// The requests of one API.
#[derive(Debug, Default)]
pub struct OfApi {
    versions: [AtomicU64; VERSIONS],
    phases: [Histogram; PHASES.len()],
}

impl OfApi {
    /// The versions that were asked for, with how often.
    pub fn versions(&self) -> impl Iterator<Item = (usize, u64)> {
        let counts = self.versions.iter().map(|count| count.load(Ordering::Relaxed));
        counts.enumerate().filter(|(_, count)| *count > 0)
    }

    pub fn times(&self, phase: Phase) -> Option<&Histogram> {
        self.phases.get(phase as usize)
    }
}

/// The requests of all APIs; those that nobody asks for take no memory.
#[derive(Debug)]
pub struct Requests([OnceLock<Box<OfApi>>; SERVED.len()]);

impl Default for Requests {
    fn default() -> Requests {
        Requests(std::array::from_fn(|_| OnceLock::new()))
    }
}

/// What a request asks for: a place in [`SERVED`], and the version.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub api: usize,
    pub version: i16,
}

impl Asked {
    pub fn name(self) -> &'static str {
        SERVED.get(self.api).map_or("", |served| served.key.name())
    }
}

/// A request on its way.
#[derive(Debug, Clone)]
pub struct Timing {
    pub asked: Asked,
    arrived: Instant,
    pub queue: Duration,
    pub local: Duration,
    /// As much of `local` as batches were decompressed and checked.
    pub unfolding: Duration,
    pub remote: Duration,
    response_queue: Duration,
}

impl Timing {
    /// The request arrived, was started, and had done at `now` what it could without waiting.
    pub fn begin(asked: Asked, arrived: Instant, started: Instant, now: Instant) -> Timing {
        Timing {
            asked,
            arrived,
            queue: started - arrived,
            local: now - started,
            unfolding: Duration::ZERO,
            remote: Duration::ZERO,
            response_queue: Duration::ZERO,
        }
    }

    fn so_far(&self) -> Duration {
        self.queue + self.local + self.remote + self.response_queue
    }

    /// Another thread has done a part of its work.
    pub fn aside(&mut self, aside: Aside) {
        self.queue += aside.waited;
        self.local += aside.worked;
        self.unfolding += aside.unfolded_for;
    }

    /// What it waited for has come.
    pub fn done(&mut self, now: Instant) {
        self.remote = now.saturating_duration_since(self.arrived + self.queue + self.local);
    }

    /// Its response is the next.
    pub fn answered(&mut self, now: Instant) {
        self.response_queue = now.saturating_duration_since(self.arrived + self.so_far());
    }
}

impl Requests {
    /// Takes note of a request whose response is sent.
    pub fn record(&self, timing: &Timing, now: Instant) {
        let Some(of_api) = self.0.get(timing.asked.api) else { return };
        let of_api = of_api.get_or_init(Box::default);
        let version = usize::try_from(timing.asked.version).ok().and_then(|version| of_api.versions.get(version));
        if let Some(count) = version {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let total = now.saturating_duration_since(timing.arrived);
        let send = total.saturating_sub(timing.so_far());
        let parts = [timing.queue, timing.local, timing.remote, timing.response_queue, send, total];
        let now = now.into_std();
        for (times, part) in of_api.phases.iter().zip(parts) {
            times.record(part, now);
        }
    }

    /// The APIs that somebody asked for.
    pub fn all(&self) -> impl Iterator<Item = (&'static Served, &OfApi)> {
        SERVED.iter().zip(&self.0).filter_map(|(served, of_api)| Some((served, &**of_api.get()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_parts_make_the_whole() {
        let requests = Requests::default();
        assert_eq!(requests.all().count(), 0);
        let at = |ms: u64| Instant::now() + Duration::from_millis(ms);
        let mut timing = Timing::begin(Asked { api: 1, version: 4 }, at(0), at(1), at(3));
        let ms = Duration::from_millis;
        timing.aside(Aside { waited: ms(32), worked: ms(64), unfolded_for: ms(60) });
        timing.done(at(103));
        timing.answered(at(111));
        requests.record(&timing, at(127));
        let (served, of_api) = requests.all().next().unwrap();
        assert_eq!(served.key, caudal_protocol::ApiKey::Fetch);
        assert_eq!(of_api.versions().collect::<Vec<_>>(), [(4, 1)]);
        let times = PHASES.map(|(phase, _, _)| of_api.times(phase).unwrap().sum().as_millis());
        assert_eq!(times, [33, 66, 4, 8, 16, 127]);
    }
}
