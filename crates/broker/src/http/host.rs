//! Whose name a request goes by. A page that somebody looks at in a browser can ask for a name that its owner points at this
//! machine (DNS rebinding), and read the answer; not by names that are this broker's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::config::BrokerConfig;

/// The names of this broker beside `localhost`, in small letters.
#[derive(Debug, Default)]
pub struct Hosts(BTreeSet<String>);

impl Hosts {
    pub fn of(config: &BrokerConfig) -> Hosts {
        let advertised = config.advertised.iter().map(|advertised| &advertised.host);
        Hosts(config.http_hosts.iter().chain(advertised).map(|host| host.to_ascii_lowercase()).collect())
    }

    /// Whether a request is answered that came to the address `local` with this `Host`. Only what does not leave the machine is
    /// guarded: others reach a wider address anyway, by whatever name.
    pub fn allow(&self, local: IpAddr, host: &str) -> bool {
        let name = without_port(host).trim_end_matches('.').to_ascii_lowercase();
        !local.to_canonical().is_loopback()
            || name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok()
            || name == "localhost"
            || name.ends_with(".localhost")
            || self.0.contains(&name)
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // The colons of an address are in brackets.
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_broker_are_answered() {
        let hosts = Hosts(BTreeSet::from(["kafka.internal".to_owned()]));
        let loopback = IpAddr::from([127, 0, 0, 1]);
        for good in [
            "localhost",
            "LOCALHOST:9404",
            "a.localhost",
            "127.0.0.1:9404",
            "[::1]:9404",
            "10.1.2.3",
            "Kafka.internal.:1",
        ] {
            assert!(hosts.allow(loopback, good), "{good}");
        }
        for bad in ["", "evil.example", "evil.example:9404", "localhost.evil.example", "127.0.0.1.evil.example"] {
            assert!(!hosts.allow(loopback, bad), "{bad}");
            assert!(hosts.allow(IpAddr::from([10, 0, 0, 1]), bad), "{bad}");
        }
    }
}
