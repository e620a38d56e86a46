//! What a running broker knows of itself that Kafka's protocol has no place for.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Findings, local};

const CHECK: &str = "health";
const PATIENCE: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MOST: u64 = 1 << 20;
/// What other checks look at and tell one by one.
const TOLD_ELSEWHERE: &str = "log_dir";

/// Asks a broker of this cluster, which says that it serves its health at `listeners` (`caudal.http.listeners`), seen from
/// its machine. Another cluster's broker that is found there is left alone.
pub fn check(listeners: &str, cluster_id: &str, findings: &mut Findings) {
    let urls: Vec<&str> = listeners.split(',').map(str::trim).filter(|url| !url.is_empty()).collect();
    if urls.is_empty() {
        let fix = "caudal.http.listeners=http://127.0.0.1:9308 has it served";
        return findings.note(CHECK, "not looked at: the broker serves it nowhere", fix);
    }
    let asked: Vec<io::Result<Value>> = urls.iter().map(|url| ask(url)).collect();
    let is_meant = |told: &&Value| {
        told.get("cluster_id").is_some_and(|id| id == cluster_id) && told.get("checks").is_some_and(Value::is_object)
    };
    let Some(told) = asked.iter().flatten().find(is_meant) else {
        let why = asked.iter().find_map(|asked| asked.as_ref().err()).map(io::Error::to_string);
        let why = why.unwrap_or_else(|| "another broker answers there".to_owned());
        return findings.note(
            CHECK,
            format!("not looked at, at {}: {why}", urls.join(", ")),
            "ask /health there by hand, on the broker's machine",
        );
    };
    let mut is_well = true;
    for (name, state) in told.get("checks").and_then(Value::as_object).into_iter().flatten() {
        // Whatever answers there: no control characters to the terminal.
        let [name, state] = [name, state.as_str().unwrap_or_default()].map(|text| text.replace(char::is_control, " "));
        if state != "ok" && name != TOLD_ELSEWHERE {
            is_well = false;
            findings.problem(CHECK, format!("{name}: {state}"), "the broker's log says more, and what to do");
        }
    }
    if is_well {
        findings.ok(CHECK, "the broker knows of nothing that it does not serve");
    }
}

/// What is answered within [`PATIENCE`], however slowly it comes.
fn ask(url: &str) -> io::Result<Value> {
    let name = url.strip_prefix("http://").unwrap_or(url);
    let address: Option<SocketAddr> = name.to_socket_addrs()?.find_map(local);
    let address = address.ok_or_else(|| io::Error::other("its port is not known"))?;
    let end = Instant::now() + PATIENCE;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET /health HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let (mut answer, mut some) = (Vec::new(), [0; 4096]);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || answer.len() as u64 > ANSWER_BYTES_MOST {
            return Err(io::Error::other("it does not come to the end of its answer"));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut some)? {
            0 => break,
            count => answer.extend_from_slice(some.get(..count).unwrap_or_default()),
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).map_err(|_| io::Error::other("what answers there is no Caudal broker"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::Level;
    use super::*;

    /// What is found where somebody gives this answer to whoever asks.
    fn found(answer: &'static str) -> Vec<(Level, String)> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 1024];
            assert!(stream.read(&mut asked).unwrap() > 0);
            write!(stream, "HTTP/1.1 200 OK\r\n\r\n{answer}").unwrap();
        });
        let mut findings = Findings::default();
        check(&url, "ours", &mut findings);
        server.join().unwrap();
        findings.0.into_iter().map(|found| (found.level, found.text)).collect()
    }

    #[test]
    fn only_a_broker_of_the_cluster_is_believed() {
        let well = found(r#"{"cluster_id":"ours","checks":{"groups":"ok"}}"#);
        assert!(matches!(well.as_slice(), [(Level::Ok, _)]), "{well:?}");
        for answer in
            [r#"{"cluster_id":"ours"}"#, r#"{"cluster_id":"theirs","checks":{"groups":"bad"}}"#, "garbage", ""]
        {
            let other = found(answer);
            assert!(
                matches!(other.as_slice(), [(Level::Note, text)] if text.starts_with("not looked at")),
                "{other:?}"
            );
        }
    }

    #[test]
    fn what_is_not_served_is_a_problem_without_control_characters() {
        let bad = found(
            r#"{"cluster_id":"ours","checks":{"groups":"\u001b[2J\nok all is well","broker":"ok","log_dir":"told before"}}"#,
        );
        assert_eq!(bad, [(Level::Problem, "groups:  [2J ok all is well".to_owned())]);
    }
}
