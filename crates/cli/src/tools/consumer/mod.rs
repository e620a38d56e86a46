//! `kafka-console-consumer`: records on standard output.

mod coordinator;
mod deserializer;
mod formatter;
mod options;
mod source;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use caudal_client::ConsumerRecord;
use caudal_protocol::batch::TimestampType;

pub use formatter::{Formatter, Shown};
pub use options::Options;
pub use source::{Source, Wanted};

use super::cluster::{CallError, Cluster, PATIENCE};
use super::{Stop, Tool, briefly, client_config, interrupted, run_async, say, tell};

pub static TOOL: Tool = Tool {
    name: "kafka-console-consumer",
    about: "This tool helps to read data from Kafka topics and outputs it to standard output.",
    options: options::OPTIONS,
    run,
};

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let parsed = tool.parse(&args).map_err(|e| Stop::Usage(e.to_string()))?;
    let options = Options::new(tool, &parsed)?;
    let config = client_config(&options.consumer)?;
    run_async(async {
        let start = Instant::now();
        let cluster = match Cluster::connect(config, PATIENCE.min(options.timeout)).await {
            // No record has come for that long: an end like any other, as in Kafka. Nobody waits for an address that is none.
            Err(error) if !error.is_lookup() && start.elapsed() >= options.timeout => {
                tell!("ERROR Error processing message, terminating consumer process: {}", error.java());
                tell!("Processed a total of 0 messages");
                return Ok(());
            }
            connected => connected?,
        };
        let mut reading = Reading {
            source: Source::open(cluster, &options.wanted).await?,
            formatter: &options.formatter,
            skips_errors: options.skips_errors,
            count: 0,
        };
        let done = tokio::select! {
            done = reading.run(options.max_messages, options.timeout) => done,
            code = interrupted() => Err(Stop::Exit(code)),
        };
        if let Some(Err(error)) = briefly(reading.source.close()).await {
            tell!("ERROR Failed to close the consumer: {error}");
        }
        tell!("Processed a total of {} messages", reading.count);
        if options.logs_events {
            say!("shutdown_complete")?;
        }
        done
    })
}

struct Reading<'a> {
    source: Source,
    formatter: &'a Formatter,
    skips_errors: bool,
    count: u64,
}

impl Reading<'_> {
    /// Shows records until there were `max_messages`, or none for `timeout`.
    async fn run(&mut self, max_messages: Option<u64>, timeout: Duration) -> Result<(), Stop> {
        let mut waiting_since = Instant::now();
        while max_messages.is_none_or(|max| self.count < max) {
            let left = timeout.saturating_sub(waiting_since.elapsed());
            let records = match self.source.poll(left).await {
                Ok(records) => records,
                Err(error) => {
                    let error = CallError::from(error);
                    tell!("ERROR Error processing message, terminating consumer process: {}", error.java());
                    return Ok(());
                }
            };
            if records.is_empty() {
                if waiting_since.elapsed() >= timeout {
                    return Ok(());
                }
                continue;
            }
            let room = max_messages.map_or(u64::MAX, |max| max.saturating_sub(self.count));
            let room = usize::try_from(room).unwrap_or(usize::MAX).min(records.len());
            let (shown, unread) = records.split_at(room);
            self.source.give_back(unread);
            self.show(shown)?;
            waiting_since = Instant::now();
        }
        Ok(())
    }

    fn show(&mut self, records: &[ConsumerRecord]) -> Result<(), Stop> {
        let mut out = Vec::new();
        let mut failure = None;
        for (i, record) in records.iter().enumerate() {
            self.count += 1;
            let start = out.len();
            if let Err(error) = self.formatter.write(&shown(record), &mut out) {
                if self.skips_errors {
                    out.truncate(start);
                    tell!("ERROR Error processing message, skipping this message: {error}");
                    continue;
                }
                self.source.give_back(records.get(i + 1..).unwrap_or_default());
                failure = Some(error);
                break;
            }
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(&out).and_then(|()| stdout.flush())?;
        match failure {
            Some(error) => Err(Stop::Failed(format!("ERROR Unknown error when running consumer: {error}"))),
            None => Ok(()),
        }
    }
}

/// A consumed record as formatters take it.
pub fn shown(record: &ConsumerRecord) -> Shown<'_> {
    Shown {
        partition: record.partition,
        offset: record.offset,
        timestamp_ms: record.timestamp_ms,
        is_append_time: record.timestamp_type == TimestampType::LogAppendTime,
        key: record.key.as_deref(),
        value: record.value.as_deref(),
        headers: record.headers.iter().map(|h| (h.key.as_ref(), h.value.as_deref())).collect(),
    }
}
