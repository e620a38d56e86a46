//! `caudal up` and `caudal broker`: a broker until SIGINT or SIGTERM.

use std::process::ExitCode;

use caudal_broker::{Broker, BrokerConfig};
use tokio::signal::unix::{SignalKind, signal};

/// Runs a broker until it is told to stop; prints one line beginning with `ready` when it serves.
pub fn run(config: BrokerConfig) -> ExitCode {
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("caudal: {e}");
            ExitCode::FAILURE
        }
    }
}

fn serve(config: BrokerConfig) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let broker = Broker::start(config).await?;
        let addresses: Vec<String> = broker.context().bound.iter().map(ToString::to_string).collect();
        println!("ready kafka={}", addresses.join(","));
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        broker.shutdown().await;
        Ok(())
    })
}
