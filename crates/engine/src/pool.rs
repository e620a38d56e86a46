//! The threads that do the engine's CPU work: as many as there are cores, apart from the network's.

use std::num::NonZeroUsize;
use std::sync::OnceLock;

use crate::error::EngineError;

static POOL: OnceLock<Result<CpuPool, String>> = OnceLock::new();

/// A work-stealing pool for decoding, expressions and state; all queries of the process share it.
#[derive(Debug)]
pub struct CpuPool {
    runtime: tokio::runtime::Runtime,
    threads: usize,
}

impl CpuPool {
    /// The process's pool, started at first use.
    pub fn shared() -> Result<&'static Self, EngineError> {
        POOL.get_or_init(|| {
            let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(threads)
                .thread_name("caudal-cpu")
                .enable_time()
                .build()
                .map(|runtime| Self { runtime, threads })
                .map_err(|error| error.to_string())
        })
        .as_ref()
        .map_err(|message| EngineError::External {
            action: "start the engine's CPU threads".to_owned(),
            message: message.clone(),
        })
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `work` on the pool; a panic inside becomes an error of the query, not of the process.
    pub async fn run<T, F>(&self, work: F) -> Result<T, EngineError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, EngineError>> + Send + 'static,
    {
        self.runtime.spawn(work).await.map_err(join_error)?
    }

    /// Starts `work` without waiting for it.
    pub fn spawn<T, F>(&self, work: F) -> tokio::task::JoinHandle<Result<T, EngineError>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, EngineError>> + Send + 'static,
    {
        self.runtime.spawn(work)
    }

    /// Runs blocking file work on threads that may block.
    pub async fn run_blocking<T, F>(&self, work: F) -> Result<T, EngineError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, EngineError> + Send + 'static,
    {
        self.spawn_blocking(work).await.map_err(join_error)?
    }

    /// Starts blocking file work without waiting for it.
    pub fn spawn_blocking<T, F>(&self, work: F) -> tokio::task::JoinHandle<Result<T, EngineError>>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, EngineError> + Send + 'static,
    {
        self.runtime.spawn_blocking(work)
    }
}

/// Names what a task that panicked or was cancelled did.
pub(crate) fn join_error(error: tokio::task::JoinError) -> EngineError {
    EngineError::External { action: "finish a task of the query".to_owned(), message: error.to_string() }
}
