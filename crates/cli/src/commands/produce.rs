//! `caudal produce TOPIC`: a record for each line of standard input.

use std::collections::BTreeMap;

use caudal_client::{Producer, Record};
use clap::Args;

use super::server::Server;
use crate::tools::cluster::CallError;
use crate::tools::producer::{LineReader, blocks, lines};
use crate::tools::{Stop, interrupted, tell};

/// Write the lines of standard input to a topic
#[derive(Debug, Args)]
pub struct ProduceArgs {
    topic: String,
    /// Lines begin with a key, up to this separator
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
    let sending = send(&producer, &mut reader, &produce.topic);
    let (count, stop) = tokio::select! {
        done = sending => match done {
            Ok(count) => (Some(count), None),
            Err(stop) => (None, Some(stop)),
        },
        code = interrupted() => (None, Some(Stop::Exit(code))),
    };
    producer.close().await;
    if let Some(count) = count {
        tell!("{count} record(s) written to {}", produce.topic);
    }
    stop.map_or(Ok(()), Err)
}

/// Sends all lines; the first record that fails is the error.
async fn send(producer: &Producer, reader: &mut LineReader, topic: &str) -> Result<u64, Stop> {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel::<caudal_client::Delivery>();
    let written = tokio::spawn(async move {
        let mut count = 0;
        while let Some(delivery) = receiver.recv().await {
            delivery.await?;
            count += 1;
        }
        Ok::<u64, caudal_client::Error>(count)
    });
    let mut input = blocks();
    while let Some(block) = input.recv().await {
        let block = block.map_err(|e| Stop::Failed(format!("failed to read standard input: {e}")))?;
        for line in lines(&block) {
            let line = reader.read(line).map_err(Stop::Failed)?;
            let record = Record { headers: &line.headers, ..Record::new(topic, line.key, line.value) };
            let delivery = producer.send(record).await.map_err(|e| Stop::Failed(e.to_string()))?;
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
        Ok(Ok(count)) => Ok(count),
        Ok(Err(error)) => Err(Stop::Failed(error.to_string())),
        Err(error) => Err(Stop::Failed(error.to_string())),
    }
}
