//! `kafka-metadata-quorum`: the controllers of a cluster, and how far each has got.

use std::path::Path;

use caudal_cluster::config::Properties;
use caudal_protocol::Uuid;
use caudal_protocol::messages::add_raft_voter_request::Listener;
use caudal_protocol::messages::describe_quorum_response::{Node, PartitionData, ReplicaState};
use caudal_protocol::messages::{AddRaftVoterRequest, RemoveRaftVoterRequest};
use caudal_storage::checkpoint::MetaProperties;
use caudal_storage::disk::RealDisk;

use super::argparse::{Command, Grammar, HELP, SHORT_HELP};
use super::cluster::CallError;
use super::java::table;
use super::options::{NO_ZOOKEEPER, Opt, Parsed, flag, former, gone, value};
use super::{Stop, Tool, connect, run_async, say};

pub static TOOL: Tool = Tool {
    name: "kafka-metadata-quorum",
    about: "This tool describes kraft metadata quorum status.",
    options: &[SERVER, CONFIG, HELP],
    run: |tool, args| GRAMMAR.run(tool, &args),
};

const SERVER: Opt = value("bootstrap-server", "BOOTSTRAP_SERVER", "Brokers to connect to first, separated by commas.");
const CONTROLLER: Opt =
    value("bootstrap-controller", "BOOTSTRAP_CONTROLLER", "Controllers to connect to first, in place of brokers.");
const CONFIG: Opt = value(
    "command-config",
    "COMMAND_CONFIG",
    "Properties file for the admin client; with add-controller also that of the controller.",
);
const BROKER_LIST: Opt = former("broker-list", "bootstrap-server");
const ZOOKEEPER: Opt = gone("zookeeper", true, NO_ZOOKEEPER);
const DRY_RUN: Opt = flag("dry-run", "Only say what would be done.");

static GRAMMAR: Grammar = Grammar {
    program: "kafka-metadata-quorum",
    usage: "[-h] [--command-config COMMAND_CONFIG] (--bootstrap-server BOOTSTRAP_SERVER | --bootstrap-controller \
            BOOTSTRAP_CONTROLLER) {describe,add-controller,remove-controller} ...",
    options: &[SERVER, CONTROLLER, CONFIG, HELP, SHORT_HELP, BROKER_LIST, ZOOKEEPER],
    required: &[],
    one_of: &["bootstrap-server", "bootstrap-controller"],
    needs_one: true,
    is_terse: false,
    commands: COMMANDS,
};

static COMMANDS: &[Command] = &[
    Command {
        name: "describe",
        about: "Describe the metadata quorum info",
        usage: "(--bootstrap-server BOOTSTRAP_SERVER | --bootstrap-controller BOOTSTRAP_CONTROLLER) describe [-h] \
                [--status] [--replication] [--human-readable]",
        options: &[
            SERVER,
            CONTROLLER,
            CONFIG,
            flag("human-readable", "With --replication: how long ago, in place of times."),
            flag("replication", "A table of the controllers and brokers and how far each has got."),
            flag("status", "A summary."),
            HELP,
            SHORT_HELP,
            BROKER_LIST,
            ZOOKEEPER,
        ],
        run: describe,
        ..Command::PLAIN
    },
    Command {
        name: "add-controller",
        about: "Add a controller to the KRaft controller cluster",
        usage: "(--bootstrap-server BOOTSTRAP_SERVER | --bootstrap-controller BOOTSTRAP_CONTROLLER) add-controller [-h] \
                [--dry-run]",
        options: &[SERVER, CONTROLLER, CONFIG, DRY_RUN, HELP, SHORT_HELP, BROKER_LIST, ZOOKEEPER],
        run: |parsed| run_async(add(parsed)),
        ..Command::PLAIN
    },
    Command {
        name: "remove-controller",
        about: "Remove a controller from the KRaft controller cluster",
        usage: "(--bootstrap-server BOOTSTRAP_SERVER | --bootstrap-controller BOOTSTRAP_CONTROLLER) remove-controller \
                [-h] --controller-id CONTROLLER_ID --controller-directory-id CONTROLLER_DIRECTORY_ID [--dry-run]",
        required: &["controller-id", "controller-directory-id"],
        options: &[
            SERVER,
            CONTROLLER,
            CONFIG,
            value("controller-directory-id", "CONTROLLER_DIRECTORY_ID", "The controller's directory id (-d)."),
            value("controller-id", "CONTROLLER_ID", "The controller's id (-i).").int(),
            DRY_RUN,
            HELP,
            former("d", "controller-directory-id"),
            former("i", "controller-id"),
            SHORT_HELP,
            BROKER_LIST,
            ZOOKEEPER,
        ],
        run: |parsed| run_async(remove(parsed)),
        ..Command::PLAIN
    },
];

fn describe(parsed: &Parsed) -> Result<(), Stop> {
    let fail = |sentence: &str| Err(Stop::Failed(sentence.to_owned()));
    let is_readable = parsed.has("human-readable");
    match (parsed.has("status"), parsed.has("replication")) {
        (true, true) => fail("Only one of --status or --replication should be specified with describe sub-command"),
        (false, false) => fail("One of --status or --replication must be specified with describe sub-command"),
        (true, false) if is_readable => fail("The option --human-readable is only supported along with --replication"),
        (true, false) => run_async(status(parsed)),
        (false, true) => run_async(replication(parsed, is_readable)),
    }
}

/// The voter that leads.
fn leader(quorum: &PartitionData) -> Result<&ReplicaState, Stop> {
    let found = quorum.current_voters.iter().find(|v| v.replica_id == quorum.leader_id);
    found.ok_or_else(|| Stop::Failed("the metadata quorum has no leader at the moment; try again".to_owned()))
}

async fn status(parsed: &Parsed) -> Result<(), Stop> {
    let cluster = connect(parsed, "command-config").await?;
    let id = cluster.admin.describe_cluster(false).await.map_err(CallError::from)?.cluster_id;
    let (quorum, nodes) = cluster.admin.describe_quorum().await.map_err(CallError::from)?;
    let leader = leader(&quorum)?;
    let last = quorum.current_voters.iter().min_by_key(|v| v.log_end_offset).unwrap_or(leader);
    let behind_ms = if last.replica_id == leader.replica_id {
        0
    } else if leader.last_caught_up_timestamp >= 0 && last.last_caught_up_timestamp >= 0 {
        leader.last_caught_up_timestamp - last.last_caught_up_timestamp
    } else {
        -1
    };
    say!("ClusterId:              {id}")?;
    say!("LeaderId:               {}", quorum.leader_id)?;
    say!("LeaderEpoch:            {}", quorum.leader_epoch)?;
    say!("HighWatermark:          {}", quorum.high_watermark)?;
    say!("MaxFollowerLag:         {}", leader.log_end_offset - last.log_end_offset)?;
    say!("MaxFollowerLagTimeMs:   {behind_ms}")?;
    say!("CurrentVoters:          {}", replicas(&quorum.current_voters, &nodes))?;
    say!("CurrentObservers:       {}", replicas(&quorum.observers, &nodes))
}

/// `[{"id": 1, "directoryId": "...", "endpoints": ["CONTROLLER://host:port"]}]`
fn replicas(replicas: &[ReplicaState], nodes: &[Node]) -> String {
    let text = |replica: &ReplicaState| {
        let mut text = format!("{{\"id\": {}", replica.replica_id);
        if !replica.replica_directory_id.is_zero() {
            text += &format!(", \"directoryId\": \"{}\"", replica.replica_directory_id);
        }
        let listeners = nodes.iter().find(|n| n.node_id == replica.replica_id).map(|n| n.listeners.as_slice());
        let endpoint = |l: &caudal_protocol::messages::describe_quorum_response::Listener| {
            format!("\"{}\"", endpoint(&l.name, &l.host, l.port))
        };
        let endpoints: Vec<String> = listeners.unwrap_or_default().iter().map(endpoint).collect();
        if !endpoints.is_empty() {
            text += &format!(", \"endpoints\": [{}]", endpoints.join(", "));
        }
        text + "}"
    };
    format!("[{}]", replicas.iter().map(text).collect::<Vec<_>>().join(", "))
}

fn endpoint(name: &str, host: &str, port: u16) -> String {
    if host.contains(':') { format!("{name}://[{host}]:{port}") } else { format!("{name}://{host}:{port}") }
}

async fn replication(parsed: &Parsed, is_readable: bool) -> Result<(), Stop> {
    let cluster = connect(parsed, "command-config").await?;
    let (quorum, _) = cluster.admin.describe_quorum().await.map_err(CallError::from)?;
    let leader = leader(&quorum)?;
    let now = chrono::Utc::now().timestamp_millis();
    let time = |time_ms: i64| match time_ms {
        ..0 => "-1".to_owned(),
        _ if is_readable => format!("{} ms ago", (now - time_ms).max(0)),
        _ => time_ms.to_string(),
    };
    let row = |replica: &ReplicaState, status: &str| {
        vec![
            replica.replica_id.to_string(),
            replica.replica_directory_id.to_string(),
            replica.log_end_offset.to_string(),
            (leader.log_end_offset - replica.log_end_offset).to_string(),
            time(replica.last_fetch_timestamp),
            time(replica.last_caught_up_timestamp),
            status.to_owned(),
        ]
    };
    let followers = quorum.current_voters.iter().filter(|v| v.replica_id != quorum.leader_id);
    let mut rows = vec![row(leader, "Leader")];
    rows.extend(followers.map(|f| row(f, "Follower")));
    rows.extend(quorum.observers.iter().map(|o| row(o, "Observer")));
    let headers =
        ["NodeId", "DirectoryId", "LogEndOffset", "Lag", "LastFetchTimestamp", "LastCaughtUpTimestamp", "Status"];
    table(&headers, &rows).iter().try_for_each(|line| say!("{line}"))
}

/// The controller that a properties file describes.
struct Controller {
    id: i32,
    directory_id: Uuid,
    listeners: Vec<Listener>,
}

async fn add(parsed: &Parsed) -> Result<(), Stop> {
    let Some(path) = parsed.text("command-config")? else {
        let sentence =
            "You must supply the configuration file of the controller you are adding when using add-controller.";
        return Err(Stop::Failed(sentence.to_owned()));
    };
    let properties = Properties::read(Path::new(path)).map_err(|e| Stop::Failed(e.to_string()))?;
    let controller = controller(&properties)?;
    let endpoints: Vec<String> = controller.listeners.iter().map(|l| endpoint(&l.name, &l.host, l.port)).collect();
    let dry_run = parsed.has("dry-run");
    if !dry_run {
        let cluster = connect(parsed, "command-config").await?;
        let request = AddRaftVoterRequest {
            timeout_ms: 60_000,
            voter_id: controller.id,
            voter_directory_id: controller.directory_id,
            listeners: controller.listeners,
            ack_when_committed: true,
            ..Default::default()
        };
        cluster.admin.add_raft_voter(&request).await.map_err(|e| Stop::Failed(CallError::from(e).java()))?;
    }
    say!(
        "{} controller {} with directory id {} and endpoints: {}",
        if dry_run { "DRY RUN of adding" } else { "Added" },
        controller.id,
        controller.directory_id,
        endpoints.join(", ")
    )
}

fn controller(properties: &Properties) -> Result<Controller, Stop> {
    let fail = |what: &str| Stop::Failed(format!("{what} Is this a valid controller configuration file?"));
    let id = properties.get("node.id").ok_or_else(|| fail("node.id not found in configuration file."))?;
    let id: i32 = id.trim().parse().map_err(|_| fail(&format!("node.id is {id}, which is no number.")))?;
    if id < 0 {
        return Err(fail("node.id was negative in configuration file."));
    }
    if !properties.get("process.roles").unwrap_or_default().contains("controller") {
        return Err(fail("process.roles did not contain 'controller' in configuration file."));
    }
    let dirs = properties.get("log.dirs").and_then(|dirs| dirs.trim().split(',').next());
    let dir = properties.get("metadata.log.dir").or(dirs).map(str::trim);
    let dir = dir.ok_or_else(|| fail("Neither metadata.log.dir nor log.dirs were found."))?;
    let meta = MetaProperties::read(&RealDisk, Path::new(dir)).map_err(|e| Stop::Failed(e.to_string()))?;
    let meta = meta.ok_or_else(|| Stop::Failed(format!("Unable to read meta.properties from {dir}")))?;
    let directory_id = meta.directory_id.ok_or_else(|| Stop::Failed(format!("No directory id found in {dir}")))?;
    Ok(Controller { id, directory_id, listeners: listeners(properties)? })
}

/// Where the controller listens, as others reach it.
fn listeners(properties: &Properties) -> Result<Vec<Listener>, Stop> {
    let names = properties.get("controller.listener.names").ok_or_else(|| {
        Stop::Failed(
            "controller.listener.names was not found. Is this a valid controller configuration file?".to_owned(),
        )
    })?;
    let mut known: Vec<Listener> = Vec::new();
    for list in ["advertised.listeners", "listeners"] {
        for item in properties.get(list).unwrap_or_default().split(',').map(str::trim).filter(|i| !i.is_empty()) {
            let wrong = || Stop::Failed(format!("{list}: '{item}' is not NAME://HOST:PORT"));
            let (name, address) = item.split_once("://").ok_or_else(wrong)?;
            let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
            let host = host.trim_start_matches('[').trim_end_matches(']');
            known.push(Listener {
                name: name.to_uppercase(),
                host: if host.is_empty() { "localhost" } else { host }.to_owned(),
                port: port.parse().map_err(|_| wrong())?,
            });
        }
    }
    let listener = |name: &str| {
        let name = name.trim().to_uppercase();
        let missing = || Stop::Failed(format!("Cannot find information about controller listener name: {name}"));
        known.iter().find(|l| l.name == name).cloned().ok_or_else(missing)
    };
    names.split(',').map(listener).collect()
}

async fn remove(parsed: &Parsed) -> Result<(), Stop> {
    let id = parsed.int("controller-id")?.unwrap_or_default();
    if id < 0 {
        return Err(Stop::Failed(format!("Invalid negative --controller-id: {id}")));
    }
    let text = parsed.text("controller-directory-id")?.unwrap_or_default();
    let directory_id: Uuid =
        text.parse().map_err(|e| Stop::Failed(format!("Failed to parse --controller-directory-id: {e}")))?;
    let dry_run = parsed.has("dry-run");
    if !dry_run {
        let cluster = connect(parsed, "command-config").await?;
        let request = RemoveRaftVoterRequest { cluster_id: None, voter_id: id, voter_directory_id: directory_id };
        cluster.admin.remove_raft_voter(&request).await.map_err(|e| Stop::Failed(CallError::from(e).java()))?;
    }
    let done = if dry_run { "DRY RUN of removing " } else { "Removed " };
    say!("{done} KRaft controller {id} with directory id {directory_id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn voters_as_text() {
        let listener = caudal_protocol::messages::describe_quorum_response::Listener {
            name: "C".to_owned(),
            host: "::1".to_owned(),
            port: 9093,
        };
        let nodes = [Node { node_id: 1, listeners: vec![listener] }];
        let voter = |id| ReplicaState { replica_id: id, ..Default::default() };
        assert_eq!(
            replicas(&[voter(1), voter(2)], &nodes),
            "[{\"id\": 1, \"endpoints\": [\"C://[::1]:9093\"]}, {\"id\": 2}]"
        );
        assert_eq!(replicas(&[], &nodes), "[]");
    }

    #[test]
    fn listeners_of_a_controller() {
        let text =
            "controller.listener.names=ctl\nlisteners=PLAINTEXT://:9092,CTL://:9093\nadvertised.listeners=CTL://h:1";
        let found = listeners(&Properties::parse(text, "f").unwrap()).unwrap();
        assert_eq!(endpoint(&found[0].name, &found[0].host, found[0].port), "CTL://h:1");
        let error = listeners(&Properties::parse("controller.listener.names=x", "f").unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "Cannot find information about controller listener name: X");
    }
}
