//! What happens to transactional ids by themselves: transactions that take too long are aborted, ids that nobody uses are
//! forgotten.

use std::sync::Arc;

use tokio::time::{Instant, sleep_until};

use super::service::Outcome;
use crate::context::Context;

/// Runs until it is dropped.
pub async fn run(ctx: Arc<Context>) {
    let config = ctx.transactions.config.clone();
    let (mut next_abort, mut next_removal) =
        (Instant::now() + config.abort_interval, Instant::now() + config.remove_interval);
    loop {
        sleep_until(next_abort.min(next_removal)).await;
        if Instant::now() >= next_abort {
            next_abort = Instant::now() + config.abort_interval;
            abort_timed_out(&ctx).await;
        }
        if Instant::now() >= next_removal {
            next_removal = Instant::now() + config.remove_interval;
            ctx.transactions.remove_expired(ctx.replicas.log_dirs.now_ms()).await;
        }
    }
}

async fn abort_timed_out(ctx: &Context) {
    let now_ms = ctx.replicas.log_dirs.now_ms();
    for id in ctx.transactions.timed_out(now_ms) {
        let mut aborted = ctx.transactions.abort_timed_out(&id, None, now_ms).await;
        if aborted == Ok(Outcome::NeedsProducerId) {
            match ctx.next_producer_id().await {
                Ok(fresh_id) => aborted = ctx.transactions.abort_timed_out(&id, Some(fresh_id), now_ms).await,
                Err(error) => aborted = Err(error),
            }
        }
        match aborted {
            Ok(_) => tracing::info!(transactional_id = %id, "aborted a transaction that took longer than its timeout"),
            Err(error) => tracing::debug!(transactional_id = %id, error = error.name(), "not aborted yet"),
        }
    }
}
