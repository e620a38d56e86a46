//! Starting and stopping a broker.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use crate::config::BrokerConfig;
use crate::context::Context;
use crate::server::{self, BindError};

/// Why a broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// A running broker. Dropping it without [`Broker::shutdown`] is a crash.
#[derive(Debug)]
pub struct Broker {
    ctx: Arc<Context>,
    stop: watch::Sender<bool>,
}

impl Broker {
    /// Opens the data, listens, and serves; must be called within a tokio runtime.
    ///
    /// # Errors
    /// The address or the data directory cannot be used.
    pub async fn start(config: BrokerConfig) -> Result<Broker, StartError> {
        let listener = server::bind(&config)?;
        let ctx = Arc::new(Context { bound: listener.bound.clone(), config });
        let (stop, stopped) = watch::channel(false);
        listener.serve(&ctx, &stopped);
        Ok(Broker { ctx, stop })
    }

    pub fn context(&self) -> &Arc<Context> {
        &self.ctx
    }

    /// The first address it listens on.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.ctx.bound.first().copied()
    }

    /// Stops accepting, ends the connections, closes the data cleanly.
    pub async fn shutdown(self) {
        self.stop.send_replace(true);
    }
}
