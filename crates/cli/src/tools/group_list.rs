//! `kafka-groups`: the groups of a cluster, of all types.

use caudal_protocol::messages::list_groups_response::ListedGroup;

use super::cluster::CallError;
use super::options::{NO_ZOOKEEPER, Opt, Parsed, flag, former, gone, value};
use super::{Stop, Tool, connect, exclude, run_async, say};

const TYPES: [&str; 4] = ["Classic", "Consumer", "Share", "Streams"];

pub static TOOL: Tool =
    Tool { name: "kafka-groups", about: "This tool helps to list groups of all types.", options: OPTIONS, run };

#[rustfmt::skip]
static OPTIONS: &[Opt] = &[
    value("bootstrap-server", "server to connect to", "REQUIRED: brokers to connect to first."),
    value("command-config", "command config property file", "Properties file for the admin client."),
    flag("consumer", "Only consumer groups: those of type 'consumer', and those of type 'classic' whose protocol is 'consumer' or empty."),
    value("group-type", "type", "Only groups of this type: 'classic', 'consumer', 'share' or 'streams'."),
    flag("help", "Print this."),
    flag("list", "List the groups."),
    value("protocol", "protocol", "Only groups with this protocol."),
    flag("share", "Only share groups."),
    flag("streams", "Only streams groups."),
    flag("version", "Print the version."),
    former("broker-list", "bootstrap-server"),
    gone("zookeeper", true, NO_ZOOKEEPER),
];

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let parsed = tool.parse(&args).map_err(|e| Stop::Usage(e.to_string()))?;
    tool.help_or_version(&parsed)?;
    if !parsed.has("bootstrap-server") {
        return Err(Stop::Usage("Missing required option(s) [bootstrap-server]".to_owned()));
    }
    if !parsed.has("list") {
        return Err(Stop::Usage("Command must include exactly one action: --list.".to_owned()));
    }
    let group_type = group_type(&parsed)?;
    exclude(&parsed, "consumer", &["group-type", "protocol", "share", "streams"])?;
    exclude(&parsed, "share", &["consumer", "group-type", "protocol", "streams"])?;
    exclude(&parsed, "streams", &["consumer", "group-type", "protocol", "share"])?;
    run_async(async {
        let cluster = connect(&parsed, "command-config").await?;
        let groups = match cluster.admin.list_groups(&[], &[]).await {
            Ok(groups) => groups,
            Err(error) => {
                say!("Error while executing groups command : {}", CallError::from(error).message)?;
                return Err(Stop::Exit(1));
            }
        };
        let shown = groups.iter().filter(|g| is_shown(g, &parsed, group_type));
        print(&shown.collect::<Vec<_>>())
    })
}

fn group_type(parsed: &Parsed) -> Result<Option<&'static str>, Stop> {
    let Some(text) = parsed.text("group-type")? else { return Ok(None) };
    match known(text) {
        Some(known) => Ok(Some(known)),
        None => Err(Stop::Failed("--group-type must be a valid group type.".to_owned())),
    }
}

/// The type of that name, in the spelling of the original.
fn known(text: &str) -> Option<&'static str> {
    TYPES.into_iter().find(|t| t.eq_ignore_ascii_case(text))
}

fn is_shown(group: &ListedGroup, parsed: &Parsed, wanted: Option<&str>) -> bool {
    let (group_type, protocol) = (known(&group.group_type), group.protocol_type.as_str());
    let has_protocol = parsed.all("protocol").first().is_none_or(|p| p == protocol);
    if wanted.is_some() || parsed.has("protocol") {
        return has_protocol && (wanted.is_none() || group_type == wanted);
    }
    if parsed.has("consumer") {
        return matches!(protocol, "consumer" | "") || group_type == Some("Consumer");
    }
    (!parsed.has("share") || group_type == Some("Share")) && (!parsed.has("streams") || group_type == Some("Streams"))
}

fn print(groups: &[&ListedGroup]) -> Result<(), Stop> {
    let type_text = |g: &ListedGroup| match known(&g.group_type) {
        Some(known) => known,
        None if g.group_type.is_empty() => "",
        None => "Unknown",
    };
    let width = groups.iter().flat_map(|g| [g.group_id.len(), type_text(g).len(), g.protocol_type.len()]);
    let width = width.max().unwrap_or(0).max(20);
    say!("{:width$} {:width$} {:width$}", "GROUP", "TYPE", "PROTOCOL")?;
    groups.iter().try_for_each(|g| say!("{:width$} {:width$} {:width$} ", g.group_id, type_text(g), g.protocol_type))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        let group = |group_type: &str, protocol: &str| ListedGroup {
            group_type: group_type.to_owned(),
            protocol_type: protocol.to_owned(),
            ..Default::default()
        };
        let all = [
            group("classic", "consumer"),
            group("classic", ""),
            group("classic", "connect"),
            group("consumer", "consumer"),
            group("share", "share"),
            group("streams", "streams"),
        ];
        let cases: [(&str, &[usize]); 7] = [
            ("", &[0, 1, 2, 3, 4, 5]),
            ("--consumer", &[0, 1, 3]),
            ("--share", &[4]),
            ("--streams", &[5]),
            ("--group-type CLASSIC", &[0, 1, 2]),
            ("--group-type classic --protocol connect", &[2]),
            ("--protocol consumer", &[0, 3]),
        ];
        for (line, expected) in cases {
            let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let parsed = TOOL.parse(&args).unwrap();
            let wanted = group_type(&parsed).unwrap();
            let shown: Vec<usize> = (0..all.len()).filter(|i| is_shown(&all[*i], &parsed, wanted)).collect();
            assert_eq!(shown, expected, "{line}");
        }
    }
}
