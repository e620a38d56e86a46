//! `caudal up` and `caudal broker`: a broker until SIGINT or SIGTERM.

use std::io::Write;
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
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let data = config.log_dir.display().to_string();
        let durability = if config.flush_before_ack { "fsync before ack" } else { "fsync after ack" };
        let broker = Broker::start(config).await?;
        let addresses: Vec<String> = broker.context().bound.iter().map(ToString::to_string).collect();
        let ready = format!("ready kafka={} data={data} ({durability})\n", addresses.join(","));
        let rest = if announce.is_empty() { String::new() } else { format!("{announce}\n") };
        // Nobody may be listening any more; the broker serves all the same.
        let _ = std::io::stdout().write_all(format!("{ready}{rest}").as_bytes());
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        broker.shutdown().await;
        Ok(())
    })
}
