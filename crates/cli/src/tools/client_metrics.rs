//! `kafka-client-metrics`: which metrics clients are asked for (KIP-714).

use caudal_client::admin::ConfigResourceType;
use caudal_protocol::Uuid;

use super::cluster::Cluster;
use super::options::{NO_ZOOKEEPER, Opt, Parsed, flag, former, gone, value};
use super::{Stop, Tool, connect, exclude, run_async, say};

const ACTIONS: [&str; 4] = ["alter", "delete", "describe", "list"];

pub static TOOL: Tool = Tool {
    name: "kafka-client-metrics",
    about: "This tool helps to manipulate and describe client metrics configurations.",
    options: OPTIONS,
    run,
};

#[rustfmt::skip]
static OPTIONS: &[Opt] = &[
    flag("alter", "Make a subscription, or change one."),
    value("bootstrap-server", "server to connect to", "REQUIRED: brokers to connect to first."),
    value("command-config", "command config property file", "Properties file for the admin client."),
    flag("delete", "Delete a subscription."),
    flag("describe", "Show subscriptions."),
    flag("generate-name", "With --alter: a random name."),
    flag("help", "Print this."),
    value("interval", "push interval", "How often clients send, in ms; empty: the default."),
    flag("list", "List the names of the subscriptions."),
    value("match", "k1=v1,k2=v2", "Only clients that match all of these; empty: all. Values are regular expressions. Keys:\n  client_id\n  client_instance_id\n  client_software_name\n  client_software_version\n  client_source_address\n  client_source_port").list(),
    value("metrics", "m1,m2", "What the names of the metrics begin with; empty: none.").list(),
    value("name", "name", "The name of the subscription."),
    flag("version", "Print the version."),
    former("broker-list", "bootstrap-server"),
    gone("zookeeper", true, NO_ZOOKEEPER),
];

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let parsed = tool.parse(&args).map_err(|e| Stop::Usage(e.to_string()))?;
    tool.help_or_version(&parsed)?;
    check(&parsed)?;
    run_async(async {
        let acted = match connect(&parsed, "command-config").await {
            Ok(cluster) => act(&cluster, &parsed).await,
            Err(stop) => Err(stop),
        };
        match acted {
            Err(Stop::Failed(sentence)) => {
                say!("Error while executing client metrics command : {sentence}")?;
                Err(Stop::Exit(1))
            }
            done => done,
        }
    })
}

fn check(parsed: &Parsed) -> Result<(), Stop> {
    let fail = |sentence: &str| Err(Stop::Failed(sentence.to_owned()));
    if ACTIONS.iter().filter(|a| parsed.has(a)).count() != 1 {
        let sentence = "Command must include exactly one action: --alter, --delete, --describe or --list.";
        return Err(Stop::Usage(sentence.to_owned()));
    }
    if !parsed.has("bootstrap-server") {
        return fail("--bootstrap-server must be specified.");
    }
    exclude(parsed, "delete", &["generate-name", "interval", "match", "metrics"])?;
    exclude(parsed, "describe", &["generate-name", "interval", "match", "metrics"])?;
    exclude(parsed, "list", &["name", "generate-name", "interval", "match", "metrics"])?;
    if parsed.has("alter") {
        if parsed.has("name") == parsed.has("generate-name") {
            return fail("One of --name or --generate-name must be specified with --alter.");
        }
        let interval = parsed.text("interval")?.unwrap_or_default();
        if !interval.is_empty() && interval.parse::<i32>().is_err() {
            return fail("Invalid interval value. Enter an integer, or leave empty to reset.");
        }
    }
    if parsed.has("delete") && !parsed.has("name") {
        return fail("A client metrics resource name must be specified with --delete.");
    }
    Ok(())
}

async fn act(cluster: &Cluster, parsed: &Parsed) -> Result<(), Stop> {
    let name = parsed.text("name")?;
    if parsed.has("alter") {
        let name = name.map_or_else(|| Uuid::random().to_string(), str::to_owned);
        alter(cluster, &name, &changes(parsed)?).await?;
        return say!("Altered client metrics config for {name}.");
    }
    if parsed.has("delete") {
        let name = name.unwrap_or_default();
        let entries = cluster.configs(ConfigResourceType::ClientMetrics, name).await?;
        let gone: Vec<_> = entries.into_iter().map(|e| (e.name, None)).collect();
        alter(cluster, name, &gone).await?;
        return say!("Deleted client metrics config for {name}.");
    }
    let names = cluster.config_resources(ConfigResourceType::ClientMetrics).await?.unwrap_or_default();
    if parsed.has("list") {
        return say!("{}", names.join("\n"));
    }
    describe(cluster, name, names).await
}

/// What `--interval`, `--metrics` and `--match` say; an empty value deletes.
fn changes(parsed: &Parsed) -> Result<Vec<(String, Option<String>)>, Stop> {
    let value = |text: String| Some(text).filter(|t| !t.is_empty());
    let mut changes = Vec::new();
    if let Some(interval) = parsed.text("interval")? {
        changes.push(("interval.ms".to_owned(), value(interval.to_owned())));
    }
    for option in ["metrics", "match"] {
        if parsed.has(option) {
            changes.push((option.to_owned(), value(parsed.all(option).join(","))));
        }
    }
    Ok(changes)
}

async fn alter(cluster: &Cluster, name: &str, changes: &[(String, Option<String>)]) -> Result<(), Stop> {
    Ok(cluster.alter_configs(ConfigResourceType::ClientMetrics, name, changes).await?)
}

async fn describe(cluster: &Cluster, name: Option<&str>, mut names: Vec<String>) -> Result<(), Stop> {
    if let Some(name) = name {
        if !names.iter().any(|n| n == name) {
            return say!("The client metric resource {name} doesn't exist and doesn't have dynamic config.");
        }
        names = vec![name.to_owned()];
    }
    for name in names {
        say!("Client metrics configs for {name} are:")?;
        let mut entries = cluster.configs(ConfigResourceType::ClientMetrics, &name).await?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in entries {
            say!("  {}={}", entry.name, entry.value.unwrap_or_else(|| "null".to_owned()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Parsed {
        let args: Vec<String> = format!("--bootstrap-server a:1 {line}").split(' ').map(str::to_owned).collect();
        TOOL.parse(&args).unwrap()
    }

    #[test]
    fn command_lines() {
        let cases = [
            ("--list --describe", "Command must include exactly one action: --alter, --delete, --describe or --list."),
            ("--list --name n", "Option \"[list]\" can't be used with option \"[name]\""),
            ("--alter", "One of --name or --generate-name must be specified with --alter."),
            ("--alter --name n --interval x", "Invalid interval value. Enter an integer, or leave empty to reset."),
            ("--delete", "A client metrics resource name must be specified with --delete."),
        ];
        for (line, sentence) in cases {
            assert_eq!(check(&parsed(line)).unwrap_err().to_string(), sentence, "{line}");
        }
    }

    #[test]
    fn empty_values_delete() {
        let found = changes(&parsed("--alter --name n --interval 5 --metrics a,b --match ")).unwrap();
        let pair = |name: &str, value: Option<&str>| (name.to_owned(), value.map(str::to_owned));
        assert_eq!(found, [pair("interval.ms", Some("5")), pair("metrics", Some("a,b")), pair("match", None)]);
    }
}
