//! What this node writes into the metadata log by itself when it starts and stops.

use std::net::SocketAddr;

use caudal_cluster::controller::{self, Decision, Endpoint, Registration};
use caudal_protocol::Uuid;
use caudal_protocol::records::metadata::FeatureLevelRecord;

use crate::config::BrokerConfig;
use crate::metadata::Metadata;

/// Writes the first records of a new cluster, then registers this node with the addresses it listens on and makes it lead
/// its partitions. `features`: the levels a new cluster starts with. `clean`: the last run stopped in an orderly way.
///
/// # Errors
/// A sentence: the metadata log cannot be written.
pub async fn start(
    metadata: &Metadata,
    config: &BrokerConfig,
    bound: &[SocketAddr],
    directory_id: Uuid,
    features: &[FeatureLevelRecord],
    clean: bool,
) -> Result<(), String> {
    let failed = |error: caudal_protocol::ErrorCode| {
        format!("failed to register the broker in the metadata log: {}", error.message())
    };
    if metadata.image().features().is_empty() {
        let records = controller::bootstrap_records(&config.properties, features);
        metadata.change(|_| Decision { records, response: () }).await.map_err(failed)?;
    }
    let endpoints = bound.iter().map(|address| {
        let (host, port) = config.advertised.clone().unwrap_or_else(|| (address.ip().to_string(), address.port()));
        Endpoint { listener: "PLAINTEXT".to_owned(), host, port, security_protocol: 0 }
    });
    let registration = Registration {
        node_id: config.node_id,
        directory_id,
        incarnation_id: Uuid::random(),
        endpoints: endpoints.collect(),
        controller_endpoints: Vec::new(),
        rack: config.properties.get("broker.rack").map(str::to_owned),
    };
    let registered = metadata.change(|image| {
        let records = controller::start_records(image, &registration, clean, image.offset + 1);
        Decision { records, response: () }
    });
    registered.await.map_err(failed)
}

/// Takes this node out of the cluster for the time it is away.
///
/// # Errors
/// A sentence: the metadata log cannot be written.
pub async fn stop(metadata: &Metadata, node_id: i32) -> Result<(), String> {
    let stopped = metadata.change(|image| {
        let records = controller::stop_records(image, node_id);
        Decision { records, response: () }
    });
    stopped.await.map_err(|error| format!("failed to sign off in the metadata log: {}", error.message()))
}
