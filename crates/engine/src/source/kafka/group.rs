//! The query's progress as committed offsets of a consumer group, so that lag tools see it. Spark does not do this.
//! Beside the query and at most once a second: what counts is the checkpoint.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::cluster::Cluster;
use super::offsets::KafkaOffsets;

const INTERVAL: Duration = Duration::from_secs(1);
/// How long the end of a query waits for the last commit.
const LAST_COMMIT: Duration = Duration::from_secs(1);

/// Hands offsets to a task that commits the newest. Ends, after a last commit, when dropped.
#[derive(Debug)]
pub(super) struct GroupCommits {
    newest: watch::Sender<KafkaOffsets>,
    task: JoinHandle<()>,
}

impl GroupCommits {
    pub(super) fn start(cluster: Arc<dyn Cluster>, group: String) -> Self {
        let (newest, mut offsets) = watch::channel(KafkaOffsets::default());
        let task = tokio::spawn(async move {
            let mut warned = false;
            while offsets.changed().await.is_ok() {
                let newest: Vec<_> =
                    offsets.borrow_and_update().0.iter().map(|(tp, offset)| (tp.clone(), *offset)).collect();
                match cluster.commit(&group, &newest).await {
                    Ok(()) => warned = false,
                    Err(error) if warned => tracing::debug!(%group, %error, "failed to commit offsets"),
                    Err(error) => {
                        tracing::warn!(%group, %error, "failed to commit offsets to the group; lag tools show old ones");
                        warned = true;
                    }
                }
                let mut watching = offsets.clone();
                tokio::select! {
                    () = tokio::time::sleep(INTERVAL) => {}
                    // Nobody is left to send: commit what came since, if anything, without waiting.
                    () = closed(&mut watching) => {}
                }
            }
        });
        GroupCommits { newest, task }
    }

    /// Makes the last commit; gives it up when it takes long.
    pub(super) async fn finish(self) {
        let Self { newest, task } = self;
        drop(newest);
        if tokio::time::timeout(LAST_COMMIT, task).await.is_err() {
            tracing::debug!("the last commit to the query's group takes too long");
        }
    }

    pub(super) fn commit(&self, offsets: KafkaOffsets) {
        self.newest.send_replace(offsets);
    }
}

async fn closed(offsets: &mut watch::Receiver<KafkaOffsets>) {
    while offsets.changed().await.is_ok() {}
}
