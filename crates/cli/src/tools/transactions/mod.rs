//! `kafka-transactions`: look at transactions and their producers, end those that hang.

mod hanging;

use caudal_client::admin::HangingTransaction;
use caudal_protocol::messages::ListTransactionsRequest;
use caudal_protocol::messages::describe_producers_response::{PartitionResponse, ProducerState};
use caudal_protocol::messages::describe_transactions_response::TransactionState;
use caudal_protocol::{ErrorCode, TopicPartition};

use super::argparse::{Command, Grammar, HELP, SHORT_HELP};
use super::cluster::CallError;
use super::java::table;
use super::options::{NO_ZOOKEEPER, Opt, Parsed, flag, former, gone, value};
use super::{Stop, Tool, connect, run_async, say};

pub static TOOL: Tool = Tool {
    name: "kafka-transactions",
    about: "This tool is used to analyze the transactional state of producers in the cluster. It can be used to detect and \
            recover from hanging transactions.",
    options: &[SERVER, CONFIG, HELP, VERSION],
    run: |tool, args| GRAMMAR.run(tool, &args),
};

const SERVER: Opt = value("bootstrap-server", "host:port", "Brokers to connect to first, separated by commas.");
const CONFIG: Opt = value("command-config", "FILE", "Properties file for the admin client.");
const VERSION: Opt = flag("version", "Print the version (-v).");
const SHORT_VERSION: Opt = former("v", "version");
const BROKER_LIST: Opt = former("broker-list", "bootstrap-server");
const ZOOKEEPER: Opt = gone("zookeeper", true, NO_ZOOKEEPER);
const TOPIC: Opt = value("topic", "TOPIC", "The topic's name.");
const PARTITION: Opt = value("partition", "PARTITION", "The partition's number.").int();

static GRAMMAR: Grammar = Grammar {
    program: "kafka-transactions.sh",
    usage: "[-h] [-v] [--command-config FILE] --bootstrap-server host:port COMMAND ...",
    options: &[SERVER, CONFIG, HELP, VERSION, SHORT_HELP, SHORT_VERSION, BROKER_LIST, ZOOKEEPER],
    required: &["bootstrap-server"],
    one_of: &[],
    needs_one: false,
    is_terse: false,
    commands: COMMANDS,
};

static COMMANDS: &[Command] = &[
    Command {
        name: "list",
        about: "list transactions",
        usage: "--bootstrap-server host:port list [-h] [--duration-filter DURATION_FILTER] [--transactional-id-pattern \
                TRANSACTIONAL_ID_PATTERN]",
        options: &[
            SERVER,
            CONFIG,
            value(
                "duration-filter",
                "DURATION_FILTER",
                "Only transactions that run for longer than this, in ms; all when negative.",
            )
            .long(),
            value(
                "transactional-id-pattern",
                "TRANSACTIONAL_ID_PATTERN",
                "Only transactional ids that match this regular expression.",
            ),
            HELP,
            SHORT_HELP,
            BROKER_LIST,
            ZOOKEEPER,
        ],
        run: |parsed| run_async(list(parsed)),
        ..Command::PLAIN
    },
    Command {
        name: "describe",
        about: "describe the state of an active transactional-id",
        usage: "--bootstrap-server host:port describe [-h] --transactional-id TRANSACTIONAL_ID",
        required: &["transactional-id"],
        options: &[
            SERVER,
            CONFIG,
            value("transactional-id", "TRANSACTIONAL_ID", "The transactional id."),
            HELP,
            SHORT_HELP,
            BROKER_LIST,
            ZOOKEEPER,
        ],
        run: |parsed| run_async(describe(parsed)),
        ..Command::PLAIN
    },
    Command {
        name: "describe-producers",
        about: "describe the states of active producers for a topic partition",
        usage: "--bootstrap-server host:port describe-producers [-h] [--broker-id BROKER_ID] --topic TOPIC --partition \
                PARTITION",
        required: &["topic", "partition"],
        options: &[
            SERVER,
            CONFIG,
            value("broker-id", "BROKER_ID", "Ask this broker, which has a replica, in place of the leader.").int(),
            TOPIC,
            PARTITION,
            HELP,
            SHORT_HELP,
            BROKER_LIST,
            ZOOKEEPER,
        ],
        run: |parsed| run_async(describe_producers(parsed)),
        ..Command::PLAIN
    },
    Command {
        name: "abort",
        about: "abort a hanging transaction (requires administrative privileges)",
        usage: "--bootstrap-server host:port abort [-h] --topic TOPIC --partition PARTITION [--start-offset START_OFFSET] \
                [--producer-id PRODUCER_ID] [--producer-epoch PRODUCER_EPOCH] [--coordinator-epoch COORDINATOR_EPOCH]",
        required: &["topic", "partition"],
        options: &[
            SERVER,
            CONFIG,
            TOPIC,
            PARTITION,
            value(
                "start-offset",
                "START_OFFSET",
                "Where the transaction starts; all that brokers of 3.0 and above need.",
            )
            .long(),
            value("producer-id", "PRODUCER_ID", "The producer's id, for older brokers.").long(),
            value("producer-epoch", "PRODUCER_EPOCH", "The producer's epoch, for older brokers.").int(),
            value("coordinator-epoch", "COORDINATOR_EPOCH", "The coordinator's epoch, for older brokers.").int(),
            HELP,
            SHORT_HELP,
            BROKER_LIST,
            ZOOKEEPER,
        ],
        run: |parsed| run_async(abort(parsed)),
        ..Command::PLAIN
    },
    Command {
        name: "find-hanging",
        about: "find hanging transactions",
        usage: "--bootstrap-server host:port find-hanging [-h] [--broker-id BROKER_ID] [--max-transaction-timeout \
                MAX_TRANSACTION_TIMEOUT] [--topic TOPIC] [--partition PARTITION]",
        options: &[
            SERVER,
            CONFIG,
            value("broker-id", "BROKER_ID", "Search the replicas of this broker.").int(),
            value(
                "max-transaction-timeout",
                "MAX_TRANSACTION_TIMEOUT",
                "Only transactions without a record for longer than this, in minutes.",
            )
            .int()
            .default("15"),
            TOPIC,
            PARTITION,
            HELP,
            SHORT_HELP,
            BROKER_LIST,
            ZOOKEEPER,
        ],
        run: |parsed| run_async(hanging::run(parsed)),
        ..Command::PLAIN
    },
    Command {
        name: "forceTerminateTransaction",
        about: "Force abort an ongoing transaction on transactionalId (requires administrative privileges)",
        usage: "--bootstrap-server host:port forceTerminateTransaction [-h] --transactionalId TRANSACTIONALID",
        required: &["transactionalId"],
        options: &[
            SERVER,
            CONFIG,
            value("transactionalId", "TRANSACTIONALID", "The transactional id."),
            HELP,
            SHORT_HELP,
            former("transactional-id", "transactionalId"),
            BROKER_LIST,
            ZOOKEEPER,
        ],
        run: |parsed| run_async(force_terminate(parsed)),
        ..Command::PLAIN
    },
];

/// A sentence of the tool with its cause.
fn failed(what: &str, cause: &str) -> Stop {
    Stop::Failed(format!("{what}: {cause}. Enable debug logging for additional detail."))
}

/// `Failed to ...: <what the broker said>`
fn call_failed(what: &str) -> impl FnOnce(caudal_client::Error) -> Stop {
    move |error| failed(what, &CallError::from(error).message)
}

async fn list(parsed: &Parsed) -> Result<(), Stop> {
    let request = ListTransactionsRequest {
        duration_filter: parsed.long("duration-filter")?.unwrap_or(-1),
        transactional_id_pattern: parsed.text("transactional-id-pattern")?.map(str::to_owned),
        ..Default::default()
    };
    let cluster = connect(parsed, "command-config").await?;
    let listed = cluster.admin.list_transactions(&request).await.map_err(call_failed("Failed to list transactions"))?;
    let rows: Vec<Vec<String>> = listed
        .into_iter()
        .flat_map(|(broker, transactions)| {
            transactions.into_iter().map(move |t| {
                vec![t.transactional_id, broker.to_string(), t.producer_id.to_string(), t.transaction_state]
            })
        })
        .collect();
    print(&["TransactionalId", "Coordinator", "ProducerId", "TransactionState"], &rows)
}

fn print(headers: &[&str], rows: &[Vec<String>]) -> Result<(), Stop> {
    table(headers, rows).iter().try_for_each(|line| say!("{line}"))
}

async fn describe(parsed: &Parsed) -> Result<(), Stop> {
    let id = parsed.text("transactional-id")?.unwrap_or_default();
    let cluster = connect(parsed, "command-config").await?;
    let what = format!("Failed to describe transaction state of transactional-id `{id}`");
    let (coordinator, state) = cluster.admin.describe_transaction(id).await.map_err(call_failed(&what))?;
    let request = format!("DescribeTransactions request for transactionalId `{id}` failed");
    match ErrorCode::from_code(state.error_code) {
        ErrorCode::None => print_state(coordinator, id, &state),
        ErrorCode::TransactionalIdNotFound => {
            Err(failed(&what, &format!("{request} because the ID could not be found")))
        }
        ErrorCode::TransactionalIdAuthorizationFailed => {
            Err(failed(&what, &format!("{request} due to authorization failure")))
        }
        code => Err(failed(&what, &format!("{request} due to unexpected error: {}", code.message()))),
    }
}

fn print_state(coordinator: i32, id: &str, state: &TransactionState) -> Result<(), Stop> {
    let start = Some(state.transaction_start_time_ms).filter(|start| *start >= 0);
    let number = |value: Option<i64>| value.map_or_else(|| "None".to_owned(), |v| v.to_string());
    let partitions = state.topics.iter().flat_map(|t| t.partitions.iter().map(|p| format!("{}-{p}", t.topic)));
    let row = vec![
        coordinator.to_string(),
        id.to_owned(),
        state.producer_id.to_string(),
        state.producer_epoch.to_string(),
        state.transaction_state.clone(),
        state.transaction_timeout_ms.to_string(),
        number(start),
        number(start.map(|start| now_ms() - start)),
        partitions.collect::<Vec<_>>().join(","),
    ];
    let headers = [
        "CoordinatorId",
        "TransactionalId",
        "ProducerId",
        "ProducerEpoch",
        "TransactionState",
        "TransactionTimeoutMs",
        "CurrentTransactionStartTimeMs",
        "TransactionDurationMs",
        "TopicPartitions",
    ];
    print(&headers, &[row])
}

fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

/// The partition of `--topic` and `--partition`.
fn partition(parsed: &Parsed) -> Result<TopicPartition, Stop> {
    let topic = parsed.text("topic")?.unwrap_or_default();
    Ok(TopicPartition::new(topic, parsed.int("partition")?.unwrap_or_default()))
}

/// The producers of one partition, in the order of the broker.
fn producers(tp: &TopicPartition, found: &PartitionResponse, on: &str) -> Result<Vec<ProducerState>, String> {
    match ErrorCode::from_code(found.error_code) {
        ErrorCode::None => Ok(found.active_producers.clone()),
        ErrorCode::NotLeaderOrFollower => {
            Err(format!("Failed to describe active producers for partition {tp} on {on}"))
        }
        code => {
            let message = found.error_message.as_deref().filter(|m| !m.is_empty()).unwrap_or(code.message());
            Err(format!("Failed to describe active producers for partition {tp}: {message}"))
        }
    }
}

async fn describe_producers(parsed: &Parsed) -> Result<(), Stop> {
    let (tp, broker) = (partition(parsed)?, parsed.int("broker-id")?);
    let on = broker.map_or_else(|| "leader".to_owned(), |id| format!("broker {id}"));
    let cluster = connect(parsed, "command-config").await?;
    let what = format!("Failed to describe producers for partition {tp} on {on}");
    let wanted = std::slice::from_ref(&tp);
    let found = cluster.admin.describe_producers(wanted, broker).await.map_err(call_failed(&what))?;
    let found = found.into_iter().next().map(|(_, p)| p).unwrap_or_default();
    let on = broker.map_or_else(|| "its leader".to_owned(), |id| format!("brokerId {id}"));
    let states = producers(&tp, &found, &on).map_err(|e| failed(&what, &e))?;
    let row = |p: &ProducerState| {
        let start = Some(p.current_txn_start_offset).filter(|start| *start >= 0);
        vec![
            p.producer_id.to_string(),
            p.producer_epoch.to_string(),
            p.coordinator_epoch.max(-1).to_string(),
            p.last_sequence.to_string(),
            p.last_timestamp.to_string(),
            start.map_or_else(|| "None".to_owned(), |start| start.to_string()),
        ]
    };
    let rows: Vec<Vec<String>> = states.iter().map(row).collect();
    let headers = [
        "ProducerId",
        "ProducerEpoch",
        "LatestCoordinatorEpoch",
        "LastSequence",
        "LastTimestamp",
        "CurrentTransactionStartOffset",
    ];
    print(&headers, &rows)
}

async fn abort(parsed: &Parsed) -> Result<(), Stop> {
    let tp = partition(parsed)?;
    let missing = |option: &str| Stop::Failed(format!("Missing required argument --{option}"));
    let hanging = match (parsed.long("start-offset")?, parsed.long("producer-id")?) {
        (Some(start), _) => Err(start),
        (None, Some(producer_id)) => {
            let epoch = parsed.int("producer-epoch")?.ok_or_else(|| missing("producer-epoch"))?;
            let coordinator = parsed.int("coordinator-epoch")?.ok_or_else(|| missing("coordinator-epoch"))?;
            let producer_epoch = i16::try_from(epoch)
                .map_err(|_| Stop::Failed(format!("--producer-epoch {epoch} is not between -32768 and 32767")))?;
            Ok(HangingTransaction {
                partition: tp.clone(),
                producer_id,
                producer_epoch,
                // A producer that hangs in its first transaction has no coordinator epoch yet.
                coordinator_epoch: coordinator.max(0),
            })
        }
        (None, None) => {
            let sentence = "The transaction to abort must be identified either with --start-offset (for brokers on 3.0 or \
                            above) or with --producer-id, --producer-epoch, and --coordinator-epoch (for older brokers)";
            return Err(Stop::Failed(sentence.to_owned()));
        }
    };
    let cluster = connect(parsed, "command-config").await?;
    let hanging = match hanging {
        Ok(given) => given,
        Err(start) => {
            let what = format!("Failed to validate producer state for partition {tp}");
            let wanted = std::slice::from_ref(&tp);
            let found = cluster.admin.describe_producers(wanted, None).await.map_err(call_failed(&what))?;
            let found = found.into_iter().next().map(|(_, p)| p).unwrap_or_default();
            let states = producers(&tp, &found, "its leader").map_err(|e| failed(&what, &e))?;
            let Some(producer) = states.iter().find(|p| p.current_txn_start_offset == start) else {
                let sentence = "Could not find any open transactions starting at offset";
                return Err(Stop::Failed(format!("{sentence} {start} on partition {tp}")));
            };
            HangingTransaction::of(tp, producer)
        }
    };
    let what = format!(
        "Failed to abort transaction AbortTransactionSpec(topicPartition={}, producerId={}, producerEpoch={}, \
         coordinatorEpoch={})",
        hanging.partition, hanging.producer_id, hanging.producer_epoch, hanging.coordinator_epoch
    );
    cluster.admin.abort_transaction(&hanging).await.map_err(call_failed(&what))
}

async fn force_terminate(parsed: &Parsed) -> Result<(), Stop> {
    let id = parsed.text("transactionalId")?.unwrap_or_default();
    let cluster = connect(parsed, "command-config").await?;
    let what = format!("Failed to force terminate transactionalId `{id}`");
    cluster.admin.fence_producer(id).await.map_err(call_failed(&what))
}
