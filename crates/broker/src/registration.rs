//! What this node writes into the metadata log by itself when it starts and stops.

use std::net::SocketAddr;
use std::sync::Arc;

use caudal_cluster::config::StaticConfig;
use caudal_cluster::controller::{self, Decision, Endpoint, Registration};
use caudal_cluster::{MetadataImage, MetadataRecord};
use caudal_protocol::Uuid;
use caudal_protocol::records::metadata::FeatureLevelRecord;

use crate::config::BrokerConfig;
use crate::log_dirs::LogDirs;
use crate::metadata::Metadata;

/// What this node says of itself.
#[derive(Debug)]
pub struct Registrar {
    registration: Registration,
    properties: Arc<StaticConfig>,
    features: Vec<FeatureLevelRecord>,
    clean: bool,
}

impl Registrar {
    /// `features`: the levels a new cluster starts with. `clean`: the last run stopped in an orderly way.
    pub fn new(
        config: &BrokerConfig,
        bound: &[SocketAddr],
        log_dirs: &LogDirs,
        features: Vec<FeatureLevelRecord>,
        clean: bool,
    ) -> Registrar {
        let endpoints = bound.iter().enumerate().map(|(at, address)| {
            let listener = config.listener_name(at);
            let (host, port) = match config.advertised_on(listener) {
                Some(advertised) => (advertised.host.clone(), advertised.port),
                None => (address.ip().to_string(), address.port()),
            };
            Endpoint { listener: listener.to_owned(), host, port, security_protocol: 0 }
        });
        let registration = Registration {
            node_id: config.node_id,
            log_dirs: log_dirs.ids(),
            lacks_some: !log_dirs.offline().is_empty(),
            incarnation_id: Uuid::random(),
            endpoints: endpoints.collect(),
            controller_endpoints: Vec::new(),
            rack: config.properties.get("broker.rack").map(str::to_owned),
        };
        Registrar { registration, properties: config.properties.clone(), features, clean }
    }

    /// The first records of a new cluster.
    pub fn first_records(&self) -> Vec<MetadataRecord> {
        controller::bootstrap_records(&self.properties, &self.features)
    }

    /// Registers this node with the addresses it listens on and makes it lead its partitions.
    pub fn start_records(&self, image: &MetadataImage) -> Vec<MetadataRecord> {
        controller::start_records(image, &self.registration, self.clean, image.offset + 1)
    }
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
    stopped.await.map_err(|error| format!("failed to sign off in the metadata log: {error}"))
}
