//! Topics that clients asked for and that are created for it (`auto.create.topics.enable`): some time after the request was
//! answered, all together. Who asks again at once is told once more that there is no such topic, as on Apache Kafka, where the
//! way to the controller and back takes that time; clients' tests count on it. It is less than what they wait before they
//! ask again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use caudal_cluster::controller::{self, Decision, Node};
use caudal_protocol::messages::CreateTopicsRequest;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::context::Context;

/// From the first request to the creation.
const GATHER: Duration = Duration::from_millis(60);

/// Topics that are created at a time; more are created when they are asked for again.
const MOST: usize = 1000;

/// What was asked for and is not created yet.
#[derive(Debug, Default)]
pub struct WantedTopics {
    names: Mutex<BTreeSet<String>>,
    come: Notify,
}

impl WantedTopics {
    /// Has topics created.
    pub fn want<S: AsRef<str>>(&self, names: impl Iterator<Item = S>) {
        let mut wanted = self.names.lock();
        for name in names {
            if wanted.len() < MOST {
                wanted.insert(name.as_ref().to_owned());
            }
        }
        if !wanted.is_empty() {
            self.come.notify_one();
        }
    }

    /// Creates what is asked for; runs until it is dropped.
    pub async fn create(ctx: Arc<Context>) {
        loop {
            ctx.wanted_topics.come.notified().await;
            tokio::time::sleep(GATHER).await;
            let names = std::mem::take(&mut *ctx.wanted_topics.names.lock());
            create(&ctx, &names).await;
        }
    }
}

/// Creates topics in one change. Why one could not be is not told, as in Kafka.
async fn create(ctx: &Context, names: &BTreeSet<String>) {
    let created = ctx.metadata.change(|image| {
        let mut request = CreateTopicsRequest::default();
        for name in names.iter().filter(|name| image.topic(name).is_none()) {
            let wanted = controller::auto_create_request(&ctx.config.properties, name);
            request.topics.extend(wanted.into_iter().flat_map(|wanted| wanted.topics));
        }
        let node = Node { node_id: ctx.node_id(), config: &ctx.config.properties };
        let Decision { records, response } = controller::create_topics(image, &node, &request);
        Decision { records, response: response.topics }
    });
    match created.await {
        Ok(results) => {
            for result in results.iter().filter(|r| r.error_code != 0) {
                tracing::warn!(topic = result.name, error = ?result.error_message, "topic not created automatically");
            }
        }
        Err(error) => tracing::error!(topics = names.len(), "topics not created automatically: {error}"),
    }
}
