//! `caudal consume TOPIC`: records on standard output, as text or as JSON.

use std::io::Write;
use std::time::{Duration, Instant};

use caudal_client::ConsumerRecord;
use clap::Args;
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::net::unix::pipe;

use super::output::Output;
use super::server::Server;
use crate::tools::cluster::CallError;
use crate::tools::consumer::{Source, Wanted};
use crate::tools::{Stop, briefly, interrupted, java, tell};

/// Read the records of a topic
#[derive(Debug, Args)]
pub struct ConsumeArgs {
    /// The topic to read
    topic: String,
    /// Begin with the first record there is; without it only what is yet to come is shown
    #[arg(long, short = 'b', visible_alias = "from-beginning")]
    beginning: bool,
    /// Read as a member of this group: where it left off, sharing the partitions
    #[arg(long, short)]
    group: Option<String>,
    /// End after so many records
    #[arg(long, short = 'n', value_name = "N", visible_alias = "max-messages")]
    max: Option<u64>,
    /// End when no record has come for so many milliseconds
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<u64>,
    /// Show the key before the value
    #[arg(long, short)]
    key: bool,
}

pub async fn run(server: &Server, consume: ConsumeArgs) -> Result<(), Stop> {
    let reset = if consume.beginning { "earliest" } else { "latest" };
    let mut more = vec![("auto.offset.reset", reset), ("allow.auto.create.topics", "false")];
    match &consume.group {
        Some(group) => more.push(("group.id", group)),
        None => more.push(("enable.auto.commit", "false")),
    }
    let cluster = server.connect(&more).await?;
    if let Err(e) = cluster.partitions(std::slice::from_ref(&consume.topic)).await {
        return Err(super::topic::missing(&cluster, &consume.topic, e).await);
    }
    let wanted = Wanted::Topic { name: consume.topic.clone(), has_group: consume.group.is_some() };
    let mut source = Source::open(cluster, &wanted).await?;
    let done = tokio::select! {
        done = read(&mut source, &consume, server.output) => done,
        code = interrupted() => Err(Stop::Exit(code)),
    };
    match briefly(source.close()).await {
        Some(Err(error)) => {
            tell!("failed to leave the group: {error}");
        }
        None if consume.group.is_some() => {
            tell!(
                "The group was not told: what was read last may come again, and its members wait a while for this one."
            );
        }
        _ => {}
    }
    done
}

async fn read(source: &mut Source, consume: &ConsumeArgs, output: Output) -> Result<(), Stop> {
    let timeout = consume.timeout_ms.map_or(Duration::MAX, Duration::from_millis);
    let mut left = consume.max.unwrap_or(u64::MAX);
    let mut since = Instant::now();
    let unwanted = reader_gone();
    tokio::pin!(unwanted);
    while left > 0 {
        let wait = timeout.saturating_sub(since.elapsed());
        let records = tokio::select! {
            biased;
            () = &mut unwanted => return Ok(()),
            records = source.poll(wait) => records.map_err(CallError::from)?,
        };
        if records.is_empty() {
            if since.elapsed() >= timeout {
                return Ok(());
            }
            continue;
        }
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(records.len());
        let (shown, unread) = records.split_at(room);
        source.give_back(unread);
        left -= room as u64;
        let mut out = Vec::new();
        for record in shown {
            match output {
                Output::Json => {
                    out.extend_from_slice(object(record).to_string().as_bytes());
                }
                Output::Table => text(record, consume.key, &mut out),
            }
            out.push(b'\n');
        }
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&out).and_then(|()| stdout.flush())?;
        since = Instant::now();
    }
    Ok(())
}

/// Completes when whoever reads the output has gone (`| head -1`): without this only the next record would tell. Never
/// where standard output is no pipe.
async fn reader_gone() {
    // Opened a second time, since waiting makes a descriptor non-blocking, and with it all that share its description.
    if let Ok(pipe) = pipe::OpenOptions::new().open_sender("/dev/stdout")
        && pipe.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

fn text(record: &ConsumerRecord, has_key: bool, out: &mut Vec<u8>) {
    if has_key {
        out.extend_from_slice(record.key.as_deref().unwrap_or(b"null"));
        out.push(b'\t');
    }
    out.extend_from_slice(record.value.as_deref().unwrap_or(b"null"));
}

/// One line of JSON per record. Bytes that are no UTF-8 are shown as text with replacement characters.
fn object(record: &ConsumerRecord) -> Value {
    let field = |bytes: Option<&[u8]>| bytes.map(|b| String::from_utf8_lossy(b).into_owned());
    let headers: Vec<Value> = record
        .headers
        .iter()
        .map(|h| json!({"key": field(Some(h.key.as_ref())), "value": field(h.value.as_deref())}))
        .collect();
    json!({
        "topic": &*record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": java::utc_text(record.timestamp_ms),
        "key": field(record.key.as_deref()),
        "value": field(record.value.as_deref()),
        "headers": headers,
    })
}
