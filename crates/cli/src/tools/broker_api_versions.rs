//! `kafka-broker-api-versions`: which requests each broker serves, in which versions.

use caudal_client::Node;
use caudal_protocol::ApiKey;
use caudal_protocol::api::APIS;
use caudal_protocol::messages::api_versions_response::{ApiVersion, ApiVersionsResponse};

use super::options::{NO_ZOOKEEPER, Opt, flag, former, gone, value};
use super::{Stop, Tool, connect, require, run_async, say};

pub static TOOL: Tool = Tool {
    name: "kafka-broker-api-versions",
    about: "This tool helps to retrieve broker version information.",
    options: OPTIONS,
    run,
};

static OPTIONS: &[Opt] = &[
    value("bootstrap-server", "server(s) to use for bootstrapping", "REQUIRED: brokers to connect to first."),
    value("command-config", "command config property file", "Properties file for the admin client."),
    flag("help", "Print this."),
    flag("version", "Print the version."),
    former("broker-list", "bootstrap-server"),
    gone("zookeeper", true, NO_ZOOKEEPER),
];

/// Keys of the requests between brokers and controllers, which no client misses: Vote, BeginQuorumEpoch, EndQuorumEpoch,
/// AlterPartition, Envelope, FetchSnapshot, BrokerRegistration, BrokerHeartbeat, AllocateProducerIds,
/// ControllerRegistration, AssignReplicasToDirs, UpdateRaftVoter.
const CONTROLLER_ONLY: &[i16] = &[52, 53, 54, 56, 58, 59, 62, 63, 67, 70, 73, 82];

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let parsed = tool.parse(&args)?;
    tool.help_or_version(&parsed)?;
    require(&parsed, &["bootstrap-server"])?;
    run_async(async {
        let cluster = connect(&parsed, "command-config").await?;
        let answers = cluster.admin.api_versions().await.map_err(|e| Stop::Failed(e.to_string()))?;
        answers.into_iter().try_for_each(|(node, answer)| {
            let node = node_text(&node);
            match answer {
                Ok(versions) => say!("{node} -> {}", versions_text(&versions)),
                Err(e) => say!("{node} -> ERROR: {e}"),
            }
        })
    })
}

fn node_text(node: &Node) -> String {
    let rack = node.rack.as_deref().unwrap_or("null");
    format!("{}:{} (id: {} rack: {rack} isFenced: false)", node.host, node.port, node.id)
}

fn versions_text(response: &ApiVersionsResponse) -> String {
    let served = response.api_keys.iter().map(|v| (v.api_key, version_text(v)));
    let missing = APIS.iter().filter(|api| api.max_version >= 0 && !CONTROLLER_ONLY.contains(&api.key.code()));
    let missing = missing.filter(|api| !response.api_keys.iter().any(|v| v.api_key == api.key.code()));
    let missing = missing.map(|api| (api.key.code(), format!("{}({}): UNSUPPORTED", api.name, api.key.code())));
    let mut lines: Vec<(i16, String)> = served.chain(missing).collect();
    lines.sort();
    let lines: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
    format!("(\n\t{}\n)", lines.join(",\n\t"))
}

fn version_text(version: &ApiVersion) -> String {
    let (key, min, max) = (version.api_key, version.min_version, version.max_version);
    let range = if min == max { min.to_string() } else { format!("{min} to {max}") };
    let Some(schema) = ApiKey::from_code(key).and_then(ApiKey::schema) else {
        return format!("UNKNOWN({key}): {range}");
    };
    let usable = if schema.max_version < min {
        "unusable: node too new".to_owned()
    } else if max < schema.min_version {
        "unusable: node too old".to_owned()
    } else {
        format!("usable: {}", schema.max_version.min(max))
    };
    format!("{}({key}): {range} [{usable}]", schema.name)
}
