//! How many connections are accepted per second: of all clients together (`max.connection.creation.rate`), and of an address
//! (the quota `connection_creation_rate`, KIP-612).

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, ToSocketAddrs};
use std::time::Duration;

use caudal_cluster::controller::IP;
use caudal_cluster::image::QuotaKey;

use super::clients::Clients;
use super::{Quotas, Rate};
use crate::clock;

const KEY: &str = "connection_creation_rate";

/// The quotas of addresses; `None`: the default of all that have none of their own.
pub(super) type Limits = HashMap<Option<IpAddr>, f64>;

#[derive(Debug, Default)]
pub(super) struct Connections {
    pub limits: Limits,
    /// Of all addresses.
    all: Option<Rate>,
    /// By address, or by whom a limit is of.
    rates: Clients<Option<IpAddr>, Rate>,
}

/// What a new connection has to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    Now,
    /// It and those behind it wait.
    Later(Duration),
    /// It is closed when its address has waited long enough.
    Refused(Duration),
}

/// Names of hosts are looked up.
pub(super) fn limits_of(quotas: &BTreeMap<QuotaKey, f64>) -> Limits {
    let mut limits = Limits::new();
    for ((entity, key), value) in quotas {
        match entity.get(IP) {
            Some(None) if key == KEY => _ = limits.insert(None, *value),
            Some(Some(name)) if key == KEY => {
                let found = match name.parse::<IpAddr>() {
                    Ok(ip) => Some(ip),
                    // As Java does, the first of the fourth version where there is one.
                    Err(_) => (name.as_str(), 0)
                        .to_socket_addrs()
                        .ok()
                        .and_then(|all| all.map(|address| address.ip()).min_by_key(IpAddr::is_ipv6)),
                };
                match found {
                    Some(ip) => _ = limits.insert(Some(ip.to_canonical()), *value),
                    None => tracing::warn!("the quota {KEY} of {name} is not in effect: there is no such host"),
                }
            }
            _ => {}
        }
    }
    limits
}

impl Quotas {
    /// Counts a connection. `most_per_second`: `max.connection.creation.rate`.
    pub fn connect(&self, ip: IpAddr, most_per_second: i64) -> Admission {
        let now_ms = clock::monotonic_ms();
        let mut inner = self.inner.lock();
        let connections = &mut inner.connections;
        let ip = ip.to_canonical();
        let of = |quota: Option<IpAddr>| connections.limits.get(&quota).map(|limit| (quota, *limit));
        if let Some((quota, limit)) = of(Some(ip)).or_else(|| of(None)) {
            let begun = || Rate::new(self.windows);
            let (rate, _) = connections.rates.get(Some(ip), quota, now_ms, begun, |rate| rate.is_idle(now_ms));
            rate.record(1.0, now_ms);
            let pause_ms = rate.throttle_ms(limit, now_ms);
            if pause_ms > 0 {
                rate.record(-1.0, now_ms);
                return Admission::Refused(self.at_most_a_window(pause_ms));
            }
        }
        // What it is without being set; nothing is counted then.
        if most_per_second >= i32::MAX.into() {
            return Admission::Now;
        }
        let rate = connections.all.get_or_insert_with(|| Rate::new(self.windows));
        rate.record(1.0, now_ms);
        match rate.throttle_ms(most_per_second.max(1) as f64, now_ms) {
            0 => Admission::Now,
            pause_ms => Admission::Later(self.at_most_a_window(pause_ms)),
        }
    }

    fn at_most_a_window(&self, pause_ms: i64) -> Duration {
        Duration::from_millis(u64::try_from(pause_ms.min(self.windows.window_ms)).unwrap_or(0))
    }
}
