//! The server: listeners and connections ([`server`]), one file per Kafka API ([`api`]), and what they share
//! ([`context`]).

pub mod api;
pub mod config;
pub mod context;
pub mod group;
pub mod server;

mod broker;

pub use broker::{Broker, StartError};
pub use config::BrokerConfig;
pub use context::Context;
