//! Tools that measure: `kafka-producer-perf-test`, `kafka-consumer-perf-test` and `kafka-e2e-latency`. Options, lines and the
//! way percentiles are taken are Kafka's.

pub mod consumer;
pub mod date;
pub mod latency;
pub mod producer;
mod stats;
pub mod throttle;

use super::Stop;

/// A runtime whose workers serve the connections while the caller's thread makes or counts records.
pub fn run_beside<T>(tool: impl Future<Output = Result<T, Stop>>) -> Result<T, Stop> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(tool);
    runtime.shutdown_background();
    done
}

/// A number as `%.Nf` of Java shows it.
pub fn fixed(value: f64, digits: usize) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "Infinity".to_owned() } else { "-Infinity".to_owned() };
    }
    format!("{value:.digits$}")
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A count as a number to calculate with; exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "printed with a few digits")]
pub fn float(n: i64) -> f64 {
    n as f64
}

/// Bytes in the tools' megabytes of 1024 * 1024.
pub fn megabytes(bytes: i64) -> f64 {
    float(bytes) / (1024.0 * 1024.0)
}

/// The client's own figures are not the Java client's.
pub fn refuse_metrics(is_asked: bool) -> Result<(), Stop> {
    if !is_asked {
        return Ok(());
    }
    let reason = "--print-metrics prints metrics of the Java client, which does not run here; leave it out, and look at the \
         broker's metrics instead";
    Err(Stop::Failed(reason.to_owned()))
}
