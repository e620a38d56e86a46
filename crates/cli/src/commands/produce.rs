//! `caudal produce TOPIC`: a record for each line of standard input.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use caudal_client::admin::ConfigResourceType;
use caudal_client::{Producer, Record};
use caudal_protocol::ErrorCode;
use clap::Args;
use serde_json::json;

use super::output::Output;
use super::server::Server;
use super::topic::missing;
use crate::tools::cluster::{CallError, Cluster};
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
    check_topic(&cluster, &produce.topic).await?;
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

/// Tells at once that a topic is missing, whether the broker is going to make it or not: the producer would wait for it for a
/// minute.
async fn check_topic(cluster: &Cluster, topic: &str) -> Result<(), Stop> {
    let error = match cluster.partitions(&[topic.to_owned()]).await {
        Err(error) if error.code == Some(ErrorCode::UnknownTopicOrPartition) => error,
        // Any other trouble is the producer's to tell, or to live with.
        _ => return Ok(()),
    };
    match creates_topics(cluster).await {
        // Whoever may not ask may produce all the same.
        None => Ok(()),
        Some(true) => {
            tell!("There is no topic {topic}: the broker makes it, as auto.create.topics.enable is true.");
            Ok(())
        }
        Some(false) => {
            let missing = missing(cluster, topic, error).await;
            Err(Stop::Failed(format!(
                "{missing}. `caudal topic create {topic}` makes it (the broker does not, as auto.create.topics.enable is false)"
            )))
        }
    }
}

/// Whether a broker makes topics that are written to; `None`: it does not tell.
async fn creates_topics(cluster: &Cluster) -> Option<bool> {
    let broker = *cluster.brokers().await.ok()?.first()?;
    let configs = cluster.configs(ConfigResourceType::Broker, &broker.to_string()).await.ok()?;
    let config = configs.into_iter().find(|config| config.name == "auto.create.topics.enable")?;
    Some(config.value? == "true")
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
