//! What a running broker knows of itself that Kafka's protocol has no place for.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::{Findings, local};

const CHECK: &str = "health";
const PATIENCE: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MOST: u64 = 1 << 20;
/// What other checks look at, who name what is wrong one by one: directories, and partitions that are offline.
const TOLD_ELSEWHERE: &str = "log_dir";

/// Asks where the broker of these settings serves its health. Another cluster's broker there is left alone, and so is what
/// does not answer: a broker need not serve that.
pub fn check(listeners: &[SocketAddr], cluster_id: &str, findings: &mut Findings) {
    let here = listeners.iter().filter_map(|listener| local(*listener));
    let told = here
        .filter_map(|address| ask(address).ok())
        .find(|told| told.get("cluster_id").is_some_and(|id| id == cluster_id));
    let Some(told) = told else { return };
    let mut is_well = true;
    for (name, state) in told.get("checks").and_then(Value::as_object).into_iter().flatten() {
        let state = state.as_str().unwrap_or_default();
        if state != "ok" && name != TOLD_ELSEWHERE {
            is_well = false;
            findings.problem(CHECK, format!("{name}: {state}"), "the broker's log says more, and what to do");
        }
    }
    if is_well {
        findings.ok(CHECK, "the broker knows of nothing that it does not serve");
    }
}

fn ask(address: SocketAddr) -> io::Result<Value> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET /health HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MOST).read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok(serde_json::from_str(body)?)
}
