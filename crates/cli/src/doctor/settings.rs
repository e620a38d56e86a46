//! The broker's settings: those that are refused, those that do nothing, those that open a door.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use caudal_broker::BrokerConfig;
use caudal_cluster::config::Properties;

use super::Findings;

const CHECK: &str = "settings";
const LISTENERS: &str = "listeners";

/// What the properties come to; `None` where a broker would refuse them.
pub fn check(properties: &Properties, findings: &mut Findings) -> Option<BrokerConfig> {
    let (config, warnings) = match BrokerConfig::from_properties(properties) {
        Ok(read) => read,
        Err(error) => {
            findings.problem(CHECK, error.to_string(), "correct it: the broker does not start with it");
            return None;
        }
    };
    if warnings.is_empty() {
        findings.ok(CHECK, "every key is known and has an effect");
    }
    for warning in warnings {
        if warning.contains("unknown key") {
            findings.problem(CHECK, warning, "correct the key, or remove it");
        } else {
            findings.note(CHECK, warning, "remove it, unless another program reads the file too");
        }
    }
    for address in &config.listen {
        check_listener("Kafka clients", *address, &config, findings);
    }
    for address in &config.http_listen {
        check_listener("metrics and health checks", *address, &config, findings);
    }
    check_advertised(&config, findings);
    if !config.flush_before_ack {
        findings.note(
            CHECK,
            "caudal.flush.before.ack=false: a power cut may take acknowledged records, as with one Kafka broker",
            "leave it out if they matter",
        );
    }
    let is_cleared = |dir: &&PathBuf| dir.starts_with("/tmp") || dir.starts_with("/var/tmp");
    if let Some(dir) = super::all_dirs(&config).iter().find(is_cleared) {
        findings.problem(
            CHECK,
            format!("data lies in {}, which systems clear by themselves", dir.display()),
            "choose another log.dirs (`caudal up --data-dir DIR`)",
        );
    }
    Some(config)
}

fn check_listener(whom: &str, address: SocketAddr, config: &BrokerConfig, findings: &mut Findings) {
    if address.ip().is_loopback() {
        findings.ok(LISTENERS, format!("{whom} of this machine only, on {address}"));
    } else if config.allow_insecure {
        findings.problem(
            LISTENERS,
            format!("{whom} of the whole network on {address}: nobody has to authenticate, and nothing is encrypted"),
            "listen on 127.0.0.1, or see to it that a firewall lets in only whom you trust",
        );
    } else {
        findings.problem(
            LISTENERS,
            format!("{address} ({whom}) is refused: other machines reach it, and nobody has to authenticate"),
            "listen on 127.0.0.1, or set caudal.allow.insecure=true where a firewall protects it",
        );
    }
}

/// Clients go where they are told: a name of this machine leads those of others astray.
fn check_advertised(config: &BrokerConfig, findings: &mut Findings) {
    let is_local = |host: &str| host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    for (at, address) in config.listen.iter().enumerate() {
        let Some(told) = config.advertised_on(config.listener_name(at)) else { continue };
        if is_local(&told.host) && !address.ip().is_loopback() {
            findings.problem(
                LISTENERS,
                format!(
                    "clients of {address} are told to connect to {}:{}, which is their own machine",
                    told.host, told.port
                ),
                format!("set advertised.listeners={}://NAME:{} with a name that they know", told.listener, told.port),
            );
        }
    }
}
