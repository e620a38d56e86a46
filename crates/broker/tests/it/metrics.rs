//! The page of metrics, the health checks, and what HTTP clients may cost.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use caudal_broker::StartError;
use caudal_protocol::messages::{DeleteTopicsRequest, DeleteTopicsResponse, FetchRequest, FetchResponse};

use crate::fetch;
use crate::produce::{batch, produce};
use crate::raw::TestBroker;

fn start() -> TestBroker {
    TestBroker::start_with(|config| config.http_listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))])
}

fn http(broker: &TestBroker) -> TcpStream {
    let stream = TcpStream::connect(broker.context().http_bound[0]).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Sends `text` and returns all that is answered.
pub fn ask(broker: &TestBroker, text: &str) -> String {
    let mut stream = http(broker);
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The samples of the page by name and labels.
fn samples(broker: &TestBroker) -> BTreeMap<String, f64> {
    let answer = ask(broker, "GET /metrics HTTP/1.0\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("text/plain; version=0.0.4"), "{head}");
    let lines = body.lines().filter(|line| !line.starts_with('#'));
    let all: Vec<(String, f64)> = lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect();
    let unique: BTreeMap<String, f64> = all.iter().cloned().collect();
    assert_eq!(unique.len(), all.len(), "a sample is there twice");
    unique
}

#[test]
fn traffic_is_counted_and_stays_counted() {
    let broker = start();
    broker.create_topic("t", 2);
    let mut client = broker.connect();
    let sent = batch(3, 10);
    let bytes = sent.len() as f64;
    assert_eq!(produce(&mut client, "t", 1, sent).error_code, 0);
    let fetched: FetchResponse = client.ask(&fetch::request("t", &[(1, 0)]), 4);
    assert_eq!(fetch::offsets(&fetched.responses[0].partitions[0]), [0]);
    // A request is counted when its answer is in the socket, which the client may notice first.
    let deadline = Instant::now() + Duration::from_secs(20);
    let page = loop {
        let page = samples(&broker);
        if page.keys().any(|name| name.starts_with("kafka_network_requestmetrics_requests_total{request=\"Fetch\"")) {
            break page;
        }
        assert!(Instant::now() < deadline, "the fetch is not counted");
    };
    for (name, value) in [
        ("kafka_brokers", 1.0),
        ("kafka_server_kafkaserver_brokerstate", 3.0),
        ("kafka_topic_partitions{topic=\"t\"}", 2.0),
        ("kafka_topic_partition_current_offset{topic=\"t\",partition=\"1\"}", 3.0),
        ("kafka_topic_partition_current_offset{topic=\"t\",partition=\"0\"}", 0.0),
        ("kafka_topic_partition_leader_is_preferred{topic=\"t\",partition=\"0\"}", 1.0),
        ("kafka_server_brokertopicmetrics_messagesin_total{topic=\"t\"}", 3.0),
        ("kafka_server_brokertopicmetrics_messagesin_total", 3.0),
        ("kafka_server_brokertopicmetrics_bytesin_total{topic=\"t\"}", bytes),
        ("kafka_server_brokertopicmetrics_bytesout_total{topic=\"t\"}", bytes),
        ("kafka_log_log_size{topic=\"t\",partition=\"1\"}", bytes),
        ("kafka_network_requestmetrics_totaltimems_count{request=\"Produce\"}", 1.0),
        ("kafka_controller_kafkacontroller_offlinepartitionscount", 0.0),
        ("kafka_server_socket_server_metrics_connection_count{listener=\"PLAINTEXT\"}", 1.0),
    ] {
        assert_eq!(page.get(name), Some(&value), "{name}");
    }
    assert!(page["kafka_log_logflushstats_logflushrateandtimems_count"] >= 1.0);
    assert!(page["process_resident_memory_bytes"] > 1e6 && page["process_open_fds"] > 3.0);
    let mut request = DeleteTopicsRequest { topic_names: vec!["t".into()], ..Default::default() };
    request.timeout_ms = 5000;
    let deleted: DeleteTopicsResponse = client.ask(&request, 5);
    assert_eq!(deleted.responses[0].error_code, 0);
    let page = samples(&broker);
    assert_eq!(page["kafka_server_brokertopicmetrics_bytesin_total"], bytes, "a counter fell");
    assert!(!page.keys().any(|name| name.contains("topic=\"t\"")), "a topic that is gone is told");
}

/// What a request means to wait does not make it slow.
#[test]
fn slow_requests_are_counted() {
    let start = |slow_ms: &str| {
        TestBroker::start_with(|config| {
            config.http_listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
            Arc::make_mut(&mut config.properties).set("caudal.slow.request.ms", slow_ms);
        })
    };
    for (slow_ms, expected) in [("0", 2), ("4000", 0), ("-1", 0)] {
        let broker = start(slow_ms);
        broker.create_topic("t", 1);
        let mut client = broker.connect();
        assert_eq!(produce(&mut client, "t", 0, batch(1, 10)).error_code, 0);
        // Longer than the limit that is not passed, which is more than a busy machine takes for the rest.
        let max_wait_ms = if slow_ms == "4000" { 4500 } else { 100 };
        let poll = FetchRequest { max_wait_ms, ..fetch::request("t", &[(0, 1)]) };
        let polled: FetchResponse = client.ask(&poll, 4);
        assert_eq!(polled.responses[0].partitions[0].high_watermark, 1);
        assert_eq!(broker.context().metrics.slow.count(), expected, "caudal.slow.request.ms={slow_ms}");
    }
}

#[test]
fn health() {
    let broker = start();
    for path in ["/health", "/health/ready", "/health/live"] {
        let answer = ask(&broker, &format!("GET {path} HTTP/1.1\r\nHost: localhost:9404\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\"status\":\"ok\""), "{answer}");
    }
    let head = ask(&broker, "HEAD /health HTTP/1.1\r\n\r\n");
    assert!(head.contains("Content-Length: ") && head.ends_with("\r\n\r\n"), "{head}");
}

#[test]
fn hostile_requests_are_refused() {
    let broker = start();
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n", "y".repeat(10_000));
    for (sent, status) in [
        ("POST /metrics HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcd", "405 "),
        ("GET /../../etc/passwd HTTP/1.1\r\n\r\n", "404 "),
        ("GET /metrics HTTP/2.0\r\n\r\n", "505 "),
        ("nonsense\r\n\r\n", "400 "),
        ("\u{16}\u{3}\u{1}", "400 "),
        (long.as_str(), "431 "),
        ("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", "421 "),
    ] {
        let answer = ask(&broker, sent);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{sent:.40}: {answer}");
    }
    // Whoever hangs up half-way is no trouble, and neither are many that say nothing.
    http(&broker).write_all(b"GET /met").unwrap();
    let silent: Vec<TcpStream> = (0..40).map(|_| http(&broker)).collect();
    let asked = Instant::now();
    assert!(ask(&broker, "GET /health HTTP/1.1\r\n\r\n").contains("\"ok\""));
    assert!(asked.elapsed() < Duration::from_secs(5), "they hold up whoever asks");
    drop(silent);
}

#[test]
fn addresses_beyond_this_machine_need_leave() {
    let dir = tempfile::tempdir().unwrap();
    let address = SocketAddr::from(([0, 0, 0, 0], 0));
    let refused = TestBroker::start_in(dir, |config| config.http_listen = vec![address]).err().unwrap();
    assert!(matches!(&refused, StartError::Bind(_)) && refused.to_string().contains("caudal.allow.insecure"));
}

#[test]
fn a_port_that_is_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let refused = TestBroker::start_in(dir, |config| config.http_listen = vec![address]).err().unwrap();
    assert!(refused.to_string().contains("caudal.http.listeners"), "{refused}");
    let broker = TestBroker::start_with(|config| {
        config.http_listen = vec![address];
        config.http_optional = true;
    });
    assert!(broker.context().http_bound.is_empty());
}
