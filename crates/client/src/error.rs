//! Why a call on a cluster failed, in words that name the broker, topic or group and say what to do.

use caudal_protocol::batch::BatchError;
use caudal_protocol::record::RecordError;
use caudal_protocol::wire::{DecodeError, EncodeError};
use caudal_protocol::{ErrorCode, TopicPartition};

use crate::config::ConfigError;

/// The result of a call on a cluster.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call on a cluster failed. Cheap to clone: one failure may answer many waiting sends.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("broker {address} is not reachable: {reason}{}", hint(reason))]
    Unreachable { address: String, reason: String },
    #[error("failed to send {request} to broker {address}: the connection closed before it answered")]
    Disconnected { address: String, request: &'static str },
    #[error("failed to send {request} to broker {address}: no answer within {timeout_ms} ms (request.timeout.ms)")]
    RequestTimeout { address: String, request: &'static str, timeout_ms: u64 },
    #[error("failed to {what} within {timeout_ms} ms{}", cause_text(what, cause.as_deref()))]
    Timeout { what: String, timeout_ms: u64, cause: Option<Box<Error>> },
    #[error("failed to {what}: {message} ({})", code.name())]
    Server { what: String, code: ErrorCode, message: String },
    #[error("failed to send {request} to broker {address}: it serves {served}, this client knows versions {known}")]
    UnsupportedApi { address: String, request: &'static str, served: String, known: String },
    #[error("failed to read the answer of {address} to {request}: {reason}; is it a Kafka broker's plaintext port?")]
    BadAnswer { address: String, request: &'static str, reason: String },
    #[error("failed to write {request}: {source}")]
    Encode { request: &'static str, source: EncodeError },
    #[error("failed to find broker {node_id} in the cluster's metadata: it has left, or is still starting")]
    UnknownNode { node_id: i32 },
    #[error(
        "failed to find a leader for {partition}: its broker, or the log directory it lies in, is away; the partition is \
         offline until that is back"
    )]
    NoLeader { partition: TopicPartition },
    #[error("failed to read {partition}: {source}; continue behind it, or restore the segment from a backup")]
    Batch { partition: TopicPartition, source: BatchError },
    #[error("failed to read {partition}: {source}")]
    Record { partition: TopicPartition, source: RecordError },
    #[error(
        "failed to read {partition} at offset {offset}: its log does not hold that offset (deleted by retention, or not \
         written yet); continue at one that it holds, or set auto.offset.reset"
    )]
    OffsetOutOfRange { partition: TopicPartition, offset: i64 },
    #[error(
        "failed to read {partition} at offset {offset}: the broker says that its records there are damaged (CORRUPT_MESSAGE), \
         its log which; continue behind them, or restore the segment from a backup"
    )]
    Damaged { partition: TopicPartition, offset: i64 },
    #[error(
        "failed to read {partition}: group '{group}' has no committed offset for it and auto.offset.reset is none; \
         commit one or choose earliest or latest"
    )]
    NoOffset { partition: TopicPartition, group: String },
    #[error(
        "failed to send a record of {size_bytes} bytes to '{topic}': {property} is {limit_bytes} bytes; \
         raise it (and the topic's max.message.bytes) or send less"
    )]
    RecordTooLarge { topic: String, size_bytes: usize, property: &'static str, limit_bytes: usize },
    #[error("failed to {what}: {reason}")]
    Misuse { what: String, reason: String },
    #[error("failed to {what}: it was closed")]
    Closed { what: &'static str },
}

fn hint(reason: &str) -> &'static str {
    if reason.contains("refused") { "; is it running?" } else { "" }
}

/// `what`: what the cause need not say again.
fn cause_text(what: &str, cause: Option<&Error>) -> String {
    match cause {
        Some(Error::Server { what: same, code, message }) if same == what => format!(": {message} ({})", code.name()),
        Some(cause) => format!(": {cause}"),
        None => String::new(),
    }
}

impl Error {
    /// An error code that a broker gave; `what` completes "failed to".
    pub(crate) fn server(what: impl Into<String>, code: i16, message: Option<&str>) -> Error {
        let code = ErrorCode::from_code(code);
        let message = match message {
            Some(text) if !text.is_empty() => text,
            _ => code.message(),
        };
        Error::Server { what: what.into(), code, message: message.trim_end_matches('.').to_owned() }
    }

    pub(crate) fn decode(address: &str, request: &'static str, source: &DecodeError) -> Error {
        Error::BadAnswer { address: address.to_owned(), request, reason: source.to_string() }
    }

    /// The broker's error code, where one is at the root of this.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Error::Server { code, .. } => Some(*code),
            Error::Timeout { cause: Some(cause), .. } => cause.code(),
            _ => None,
        }
    }

    /// Whether the same call may succeed if it is made again.
    pub fn is_retriable(&self) -> bool {
        match self {
            Error::Server { code, .. } => code.is_retriable(),
            Error::Unreachable { .. }
            | Error::Disconnected { .. }
            | Error::RequestTimeout { .. }
            | Error::UnknownNode { .. }
            | Error::NoLeader { .. } => true,
            _ => false,
        }
    }

    /// A topic that could not be described.
    pub fn of_topic(name: &str, code: ErrorCode) -> Error {
        let invalid = format!("Invalid topics: [{name}]");
        let message = match code {
            ErrorCode::UnknownTopicOrPartition => Some("it does not exist; create it or check its name"),
            ErrorCode::InvalidTopicException => Some(invalid.as_str()),
            _ => None,
        };
        Error::server(format!("find topic '{name}'"), code.code(), message)
    }

    /// A partition that its topic, of `count` partitions, does not have.
    pub(crate) fn no_partition(partition: &TopicPartition, count: usize) -> Error {
        let plural = if count == 1 { "" } else { "s" };
        let what = format!("find {partition}: topic '{}' has {count} partition{plural}", partition.topic);
        Error::server(what, ErrorCode::UnknownTopicOrPartition.code(), None)
    }

    /// Whether no answer arrived, so that the request may or may not have had its effect.
    pub(crate) fn is_network(&self) -> bool {
        matches!(self, Error::Unreachable { .. } | Error::Disconnected { .. } | Error::RequestTimeout { .. })
    }
}

/// `Ok` for code 0, else the error with `what` completing "failed to".
pub(crate) fn check(code: i16, message: Option<&str>, what: impl FnOnce() -> String) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(Error::server(what(), code, message)) }
}
