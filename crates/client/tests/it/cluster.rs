//! What the tests of the real protocol talk to: the cluster that `CAUDAL_TEST_BOOTSTRAP_SERVERS` names (Apache Kafka in
//! `conformance/run client`), otherwise a broker of ours in this process.

use std::net::SocketAddr;
use std::path::Path;

use caudal_broker::{Broker, BrokerConfig};
use caudal_cluster::config::Properties;

/// A broker of ours on a data directory that goes with it.
pub struct OwnBroker {
    broker: Broker,
    dir: tempfile::TempDir,
}

impl OwnBroker {
    pub async fn start() -> OwnBroker {
        let dir = tempfile::tempdir().unwrap();
        OwnBroker { broker: serve(&dir, 0).await, dir }
    }

    pub fn addr(&self) -> SocketAddr {
        self.broker.local_addr().unwrap()
    }

    /// Stops and starts again: same data, same port.
    pub async fn restart(self) -> OwnBroker {
        self.restart_after(|_| {}).await
    }

    /// As [`OwnBroker::restart`], with something done to its directory while it is down.
    pub async fn restart_after(self, change: impl FnOnce(&Path)) -> OwnBroker {
        let (port, dir) = (self.addr().port(), self.dir);
        self.broker.shutdown().await;
        change(dir.path());
        OwnBroker { broker: serve(&dir, port).await, dir }
    }
}

async fn serve(dir: &tempfile::TempDir, port: u16) -> Broker {
    let mut properties = Properties::new();
    for (key, value) in [
        ("listeners", format!("PLAINTEXT://127.0.0.1:{port}")),
        ("log.dirs", dir.path().display().to_string()),
        ("offsets.topic.num.partitions", "5".to_owned()),
        ("group.initial.rebalance.delay.ms", "0".to_owned()),
        ("group.min.session.timeout.ms", "1000".to_owned()),
        ("group.consumer.min.heartbeat.interval.ms", "100".to_owned()),
        ("group.consumer.heartbeat.interval.ms", "200".to_owned()),
        ("group.consumer.min.session.timeout.ms", "1000".to_owned()),
        ("group.consumer.session.timeout.ms", "5000".to_owned()),
    ] {
        properties.set(key, value, "the test");
    }
    let (mut config, _) = BrokerConfig::from_properties(&properties).unwrap();
    config.format_if_empty = true;
    Broker::start(config).await.unwrap()
}

/// A cluster for one test.
pub enum Cluster {
    Named(String),
    Own(OwnBroker),
}

impl Cluster {
    pub async fn open() -> Cluster {
        match std::env::var("CAUDAL_TEST_BOOTSTRAP_SERVERS") {
            Ok(servers) => Cluster::Named(servers),
            Err(_) => Cluster::Own(OwnBroker::start().await),
        }
    }

    pub fn servers(&self) -> String {
        match self {
            Cluster::Named(servers) => servers.clone(),
            Cluster::Own(broker) => broker.addr().to_string(),
        }
    }
}
