//! `caudal produce TOPIC`: a record for each line of standard input.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use caudal_client::{Producer, Record};
use clap::Args;
use serde_json::json;

use super::output::Output;
use super::server::Server;
use crate::tools::cluster::CallError;
use crate::tools::producer::{LineReader, blocks, lines};
use crate::tools::{Stop, briefly, interrupted, say, tell};

/// Write the lines of standard input to a topic
#[derive(Debug, Args)]
pub struct ProduceArgs {
    /// The topic to write to
    topic: String,
    /// Lines begin with a key, up to this separator; a tab if none is given
    #[arg(long, short, value_name = "SEPARATOR", num_args = 0..=1, default_missing_value = "\t")]
    key: Option<String>,
    /// Lines that equal this (or keys) are null
    #[arg(long, value_name = "TEXT")]
    null: Option<String>,
    /// none, gzip, snappy, lz4 or zstd
    #[arg(long, short, default_value = "none")]
    compression: String,
    /// all, 1 or 0: who must have a record before it counts as written
    #[arg(long, default_value = "all")]
    acks: String,
}

pub async fn run(server: &Server, produce: ProduceArgs) -> Result<(), Stop> {
    let more = [("compression.type", produce.compression.as_str()), ("acks", produce.acks.as_str())];
    let cluster = server.connect(&more).await?;
    let producer = Producer::new(cluster.admin.client().clone()).map_err(CallError::from)?;
    let mut properties = BTreeMap::new();
    if let Some(separator) = produce.key {
        properties.insert("parse.key".to_owned(), "true".to_owned());
        properties.insert("key.separator".to_owned(), separator);
    }
    properties.extend(produce.null.map(|null| ("null.marker".to_owned(), null)));
    let mut reader = LineReader::new(&properties).map_err(Stop::Failed)?;
    let tally = Arc::new(Tally::default());
    let done = tokio::select! {
        done = send(&producer, &mut reader, &produce.topic, &tally) => done,
        code = interrupted() => Err(Stop::Exit(code)),
    };
    match &done {
        Ok(()) => producer.close().await,
        Err(_) => _ = briefly(producer.close()).await,
    }
    let [sent, written] = [&tally.sent, &tally.written].map(|count| count.load(Ordering::Relaxed));
    match server.output {
        Output::Json => say!("{}", json!({"topic": produce.topic, "records": written}))?,
        Output::Table => {
            tell!("{written} record(s) written to {}", produce.topic);
        }
    }
    if sent > written {
        tell!("{} record(s) were not acknowledged: they are lost, or written without our knowing", sent - written);
    }
    done
}

/// Records handed to the producer, and those of them that the cluster has.
#[derive(Debug, Default)]
struct Tally {
    sent: AtomicU64,
    written: AtomicU64,
}

/// Sends all lines; the first record that fails is the error.
async fn send(producer: &Producer, reader: &mut LineReader, topic: &str, tally: &Arc<Tally>) -> Result<(), Stop> {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel::<caudal_client::Delivery>();
    let count = Arc::clone(tally);
    let written = tokio::spawn(async move {
        while let Some(delivery) = receiver.recv().await {
            delivery.await?;
            count.written.fetch_add(1, Ordering::Relaxed);
        }
        Ok::<(), caudal_client::Error>(())
    });
    let mut input = blocks();
    while let Some(block) = input.recv().await {
        let block = block.map_err(|e| Stop::Failed(format!("failed to read standard input: {e}")))?;
        for line in lines(&block) {
            let line = reader.read(line).map_err(Stop::Failed)?;
            let record = Record { headers: &line.headers, ..Record::new(topic, line.key, line.value) };
            let delivery = producer.send(record).await.map_err(|e| Stop::Failed(e.to_string()))?;
            tally.sent.fetch_add(1, Ordering::Relaxed);
            if sender.send(delivery).is_err() {
                // A record failed; the task says why.
                break;
            }
        }
        if sender.is_closed() {
            break;
        }
    }
    drop(sender);
    producer.flush().await;
    match written.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Stop::Failed(error.to_string())),
        Err(error) => Err(Stop::Failed(error.to_string())),
    }
}
