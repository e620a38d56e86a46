//! The active queries of a process.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::handle::{Listeners, StreamingQuery};
use super::progress::StreamingQueryProgress;
use super::spec::StreamingQuerySpec;
use super::start::start_with;
use crate::error::EngineError;

#[derive(Debug, Default)]
struct Queries {
    running: Vec<StreamingQuery>,
    /// The names of queries whose start is under way: it may take long, or never end.
    starting: BTreeSet<String>,
}

/// The name of a query that is being started; free again when the start has come to an end, or was given up.
struct Reserved<'a> {
    queries: &'a Mutex<Queries>,
    name: Option<String>,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            self.queries.lock().starting.remove(name);
        }
    }
}

/// Starts queries and knows which are running; their names are unique.
#[derive(Debug, Clone, Default)]
pub struct QueryManager {
    queries: Arc<Mutex<Queries>>,
    listeners: Listeners,
}

impl QueryManager {
    pub fn new() -> Self {
        Self::default()
    }

    /// Has `on_progress` called after every batch of every query that is started from now on, on the query's own task:
    /// it must not block (Spark's `StreamingQueryListener.onQueryProgress`).
    pub fn add_listener(&mut self, on_progress: impl Fn(&StreamingQueryProgress) + Send + Sync + 'static) {
        self.listeners.add(Arc::new(on_progress));
    }

    /// Starts a query. Must be called on a tokio runtime, which then carries the query's waiting and network I/O.
    pub async fn start(&self, spec: StreamingQuerySpec) -> Result<StreamingQuery, EngineError> {
        let reserved = self.reserve(spec.name.clone())?;
        let query = start_with(spec, self.listeners.clone()).await?;
        self.queries.lock().running.push(query.clone());
        drop(reserved);
        Ok(query)
    }

    /// Two queries of one name cannot both pass here.
    fn reserve(&self, name: Option<String>) -> Result<Reserved<'_>, EngineError> {
        let mut queries = self.queries.lock();
        queries.running.retain(StreamingQuery::is_active);
        if let Some(name) = &name {
            let running = queries.running.iter().any(|query| query.name() == Some(name));
            if running || !queries.starting.insert(name.clone()) {
                return Err(EngineError::Invalid {
                    class: "STREAMING_QUERY_NAME_IN_USE",
                    message: format!(
                        "Cannot start query with name {name} as a query with that name is already active in this \
                         SparkSession. Stop it first or choose another name"
                    ),
                });
            }
        }
        Ok(Reserved { queries: &self.queries, name })
    }

    /// The queries that are running.
    pub async fn active(&self) -> Vec<StreamingQuery> {
        let mut queries = self.queries.lock();
        queries.running.retain(StreamingQuery::is_active);
        queries.running.clone()
    }

    /// The active query with this id or name.
    pub async fn get(&self, id_or_name: &str) -> Option<StreamingQuery> {
        self.active().await.into_iter().find(|query| query.id() == id_or_name || query.name() == Some(id_or_name))
    }

    /// Stops all queries.
    pub async fn stop_all(&self) {
        for query in self.active().await {
            query.stop().await;
        }
    }
}
