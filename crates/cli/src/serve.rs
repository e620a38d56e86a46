//! `caudal up` and `caudal broker`: a broker until SIGINT or SIGTERM.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use caudal_broker::{Broker, BrokerConfig};
use tokio::signal::unix::{SignalKind, signal};

/// Runs a broker until it is told to stop; prints one line beginning with `ready` when it serves, then `announce` if
/// that is not empty.
pub fn run(config: BrokerConfig, announce: &str) -> ExitCode {
    match serve(config, announce) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("caudal: {e}");
            ExitCode::FAILURE
        }
    }
}

fn serve(config: BrokerConfig, announce: &str) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let data = config.log_dir.display().to_string();
        let has_http = !config.http_listen.is_empty();
        let durability = if config.flush_before_ack { "fsync before ack" } else { "fsync after ack" };
        let broker = tokio::select! {
            started = Broker::start(config) => started?,
            // Starting may take long after a crash. What it does is as safe to leave as a power failure is.
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        };
        let (kafka, http) = (join(&broker.context().bound), join(&broker.context().http_bound));
        let http = match (has_http, http.is_empty()) {
            (false, _) => String::new(),
            (true, true) => " http=off".to_owned(),
            (true, false) => format!(" http={http}"),
        };
        let ready = format!("ready kafka={kafka}{http} data={data} ({durability})\n");
        let rest = if announce.is_empty() { String::new() } else { format!("{announce}\n") };
        // Nobody may be listening any more; the broker serves all the same.
        let _ = std::io::stdout().write_all(format!("{ready}{rest}").as_bytes());
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        broker.shutdown().await;
        Ok(())
    });
    // Threads that still read logs for a start that was given up are not waited for.
    runtime.shutdown_background();
    served
}

fn join(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
