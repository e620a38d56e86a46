//! What the broker counts, and the page that tells it: Kafka's meters under the names that the JMX exporter gives them, and
//! what kafka_exporter asks of a cluster under its names.
//!
//! Counting is a few relaxed additions. Everything else is looked up when the page is asked for, and written in pieces, so
//! that its size does not matter.

mod broker;
mod exporter;
mod exposition;
mod process;
mod requests;
mod slow;
mod traffic;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::AsyncWrite;

use crate::context::Context;
pub use exposition::Exposition;
pub use requests::{Asked, Requests, Timing};
pub use slow::SlowRequests;
pub use traffic::{Meter, Retired, Traffic};

/// The connections of a listener.
#[derive(Debug, Default)]
pub struct Connections {
    opened: AtomicU64,
    closed: AtomicU64,
}

impl Connections {
    pub fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    pub fn closed(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }

    fn accepted(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    fn open(&self) -> u64 {
        let closed = self.closed.load(Ordering::Relaxed);
        self.accepted().saturating_sub(closed)
    }
}

/// What is counted beside the traffic of each partition.
#[derive(Debug)]
pub struct Metrics {
    pub requests: Requests,
    pub slow: SlowRequests,
    /// By the places of the listeners.
    pub connections: Vec<Connections>,
}

impl Metrics {
    /// `slow_ms`: `caudal.slow.request.ms`.
    pub fn new(listeners: usize, slow_ms: i64) -> Metrics {
        process::started_at();
        let connections = (0..listeners).map(|_| Connections::default()).collect();
        Metrics { requests: Requests::default(), slow: SlowRequests::new(slow_ms), connections }
    }
}

/// Writes the whole page; without a context (the broker is starting) what is known then.
///
/// # Errors
/// Whoever reads it has gone.
pub async fn write_page<W: AsyncWrite + Unpin>(ctx: Option<&Context>, page: &mut Exposition<'_, W>) -> io::Result<()> {
    process::write(page);
    broker::write_state(ctx, page);
    if let Some(ctx) = ctx {
        exporter::write(ctx, page).await?;
        broker::write(ctx, page).await?;
    }
    page.finish().await
}
