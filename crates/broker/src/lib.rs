//! The server: listeners and connections ([`server`]), one file per Kafka API ([`api`]), and what they share
//! ([`context`]).

pub mod api;
pub mod background;
mod cleaner;
pub mod clock;
pub mod config;
pub mod context;
mod coordinator_log;
mod data_dir;
mod descriptors;
pub mod fetch;
pub mod group;
mod http;
pub mod log_dirs;
pub mod metadata;
pub mod metrics;
pub mod moves;
pub mod partition;
pub mod producer_ids;
pub mod quota;
mod registration;
pub mod replicas;
mod seldom;
pub mod server;
pub mod topics;
pub mod transaction;
pub mod unfolding;
pub mod wanted_topics;

mod broker;

pub use broker::{Broker, StartError};
pub use config::BrokerConfig;
pub use context::Context;
pub use data_dir::DataDirError;
