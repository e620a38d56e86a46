//! `kafka-cluster`: the id of a cluster, where its brokers listen, and the end of one's registration.

use caudal_client::Error;
use caudal_protocol::messages::describe_cluster_response::DescribeClusterBroker;

use super::argparse::{Command, Grammar, HELP, SHORT_HELP};
use super::cluster::{CallError, Cluster};
use super::java::columns;
use super::options::{NO_ZOOKEEPER, Opt, Parsed, flag, former, gone, value};
use super::{Stop, Tool, connect, run_async, say};

pub static TOOL: Tool = Tool {
    name: "kafka-cluster",
    about: "The Kafka cluster tool.",
    options: &[],
    run: |tool, args| GRAMMAR.run(tool, &args),
};

const SERVER: Opt = value("bootstrap-server", "BOOTSTRAP_SERVER", "Brokers to connect to first (-b).");
const CONTROLLER: Opt = value("bootstrap-controller", "BOOTSTRAP_CONTROLLER", "Controllers to connect to first (-C).");
const CONFIG: Opt =
    value("config", "CONFIG", "(DEPRECATED) Properties file for the admin client; use --command-config.");
const COMMAND_CONFIG: Opt = value("command-config", "COMMAND_CONFIG", "Properties file for the admin client (-c).");
const B: Opt = former("b", "bootstrap-server");
const BIG_C: Opt = former("C", "bootstrap-controller");
const C: Opt = former("c", "command-config");
const BROKER_LIST: Opt = former("broker-list", "bootstrap-server");
const ZOOKEEPER: Opt = gone("zookeeper", true, NO_ZOOKEEPER);
const BOOTSTRAP: &[&str] = &["bootstrap-server", "bootstrap-controller"];

static GRAMMAR: Grammar = Grammar {
    program: "kafka-cluster",
    usage: "[-h] {cluster-id,unregister,list-endpoints} ...",
    // The original has them only behind its commands.
    options: &[SERVER, CONTROLLER, CONFIG, COMMAND_CONFIG, HELP, SHORT_HELP, B, BIG_C, C, BROKER_LIST, ZOOKEEPER],
    required: &[],
    one_of: &[],
    needs_one: false,
    is_terse: false,
    commands: COMMANDS,
};

static COMMANDS: &[Command] = &[
    Command {
        name: "cluster-id",
        about: "Get information about the ID of a cluster.",
        usage: "cluster-id [-h] [--config CONFIG] [--command-config COMMAND_CONFIG] (--bootstrap-server BOOTSTRAP_SERVER \
                | --bootstrap-controller BOOTSTRAP_CONTROLLER)",
        exclusive: BOOTSTRAP,
        needs_one: true,
        options: &[SERVER, CONTROLLER, CONFIG, COMMAND_CONFIG, HELP, SHORT_HELP, B, BIG_C, C, BROKER_LIST, ZOOKEEPER],
        run: |parsed| run_async(cluster_id(parsed)),
        ..Command::PLAIN
    },
    Command {
        name: "unregister",
        about: "Unregister a broker.",
        usage: "unregister [-h] [--config CONFIG] [--command-config COMMAND_CONFIG] --id ID (--bootstrap-server \
                BOOTSTRAP_SERVER | --bootstrap-controller BOOTSTRAP_CONTROLLER)",
        required: &["id"],
        exclusive: BOOTSTRAP,
        needs_one: true,
        options: &[
            SERVER,
            CONTROLLER,
            CONFIG,
            COMMAND_CONFIG,
            value("id", "ID", "The id of the broker (-i).").int(),
            HELP,
            SHORT_HELP,
            B,
            BIG_C,
            C,
            former("i", "id"),
            BROKER_LIST,
            ZOOKEEPER,
        ],
        run: |parsed| run_async(unregister(parsed)),
    },
    Command {
        name: "list-endpoints",
        about: "List endpoints",
        usage: "list-endpoints [-h] [--config CONFIG] [--command-config COMMAND_CONFIG] [--include-fenced-brokers] \
                (--bootstrap-server BOOTSTRAP_SERVER | --bootstrap-controller BOOTSTRAP_CONTROLLER)",
        exclusive: BOOTSTRAP,
        needs_one: true,
        options: &[
            SERVER,
            CONTROLLER,
            CONFIG,
            COMMAND_CONFIG,
            flag("include-fenced-brokers", "Also brokers that are down or still starting."),
            HELP,
            SHORT_HELP,
            B,
            BIG_C,
            C,
            BROKER_LIST,
            ZOOKEEPER,
        ],
        run: |parsed| run_async(list_endpoints(parsed)),
        ..Command::PLAIN
    },
];

async fn connected(parsed: &Parsed) -> Result<Cluster, Stop> {
    if !parsed.has("config") {
        return connect(parsed, "command-config").await;
    }
    if parsed.has("command-config") {
        return Err(Stop::Failed("--config and --command-config cannot be specified together.".to_owned()));
    }
    say!("Option --config has been deprecated and will be removed in a future version. Use --command-config instead.")?;
    connect(parsed, "config").await
}

async fn cluster_id(parsed: &Parsed) -> Result<(), Stop> {
    let cluster = connected(parsed).await?;
    let described = cluster.admin.describe_cluster(false).await.map_err(CallError::from)?;
    match described.cluster_id.as_str() {
        "" => say!("No cluster ID found. The Kafka version is probably too old."),
        id => say!("Cluster ID: {id}"),
    }
}

async fn unregister(parsed: &Parsed) -> Result<(), Stop> {
    let id = parsed.int("id")?.unwrap_or_default();
    let cluster = connected(parsed).await?;
    match cluster.admin.unregister_broker(id).await {
        Ok(()) => say!("Broker {id} is no longer registered."),
        Err(Error::UnsupportedApi { .. }) => {
            say!("The target cluster does not support the broker unregistration API.")
        }
        Err(error) => Err(Stop::Failed(CallError::from(error).java())),
    }
}

async fn list_endpoints(parsed: &Parsed) -> Result<(), Stop> {
    let (has_fenced, is_controllers) = (parsed.has("include-fenced-brokers"), parsed.has("bootstrap-controller"));
    if has_fenced && is_controllers {
        let sentence = "The option --include-fenced-brokers is only supported with --bootstrap-server option";
        return Err(Stop::Failed(sentence.to_owned()));
    }
    let cluster = connected(parsed).await?;
    let described = cluster.admin.describe_cluster(has_fenced).await.map_err(CallError::from)?;
    endpoints(&described.brokers, is_controllers).iter().try_for_each(|line| say!("{line}"))
}

/// The table of brokers, or of controllers, which have no state.
fn endpoints(brokers: &[DescribeClusterBroker], is_controllers: bool) -> Vec<String> {
    let host = brokers.iter().map(|b| b.host.len()).max().unwrap_or(100);
    let rack = brokers.iter().filter_map(|b| b.rack.as_ref()).map(String::len).max().unwrap_or(10);
    let line = |id: &str, host_name: &str, port: &str, rack_name: &str, state: &str, kind: &str| match is_controllers {
        true => columns(&[10, host, 10, rack, 15], &[id, host_name, port, rack_name, kind]),
        false => columns(&[10, host, 10, rack, 10, 15], &[id, host_name, port, rack_name, state, kind]),
    };
    let mut brokers: Vec<&DescribeClusterBroker> = brokers.iter().collect();
    brokers.sort_by_key(|b| b.broker_id);
    let broker = |b: &DescribeClusterBroker| {
        let state = if b.is_fenced { "fenced" } else { "unfenced" };
        let kind = if is_controllers { "controller" } else { "broker" };
        let (id, port) = (b.broker_id.to_string(), b.port.to_string());
        line(&id, &b.host, &port, b.rack.as_deref().unwrap_or("null"), state, kind)
    };
    let titles = line("ID", "HOST", "PORT", "RACK", "STATE", "ENDPOINT_TYPE");
    std::iter::once(titles).chain(brokers.into_iter().map(broker)).collect()
}
