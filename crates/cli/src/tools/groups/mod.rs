//! `kafka-consumer-groups`: list, describe, delete and reset consumer groups.

mod describe;
pub mod model;
mod reset;

use std::collections::BTreeMap;
use std::time::Duration;

use caudal_protocol::messages::list_groups_response::ListedGroup;
use caudal_protocol::{ErrorCode, TopicPartition};

use super::cluster::{CallError, Cluster, check as check_code};
use super::java::columns;
use super::options::{NO_ZOOKEEPER, Opt, Parsed, flag, former, gone, value};
use super::{Stop, Tool, client_config, client_properties, cluster, exclude, require, run_async, say, tell};

const ACTIONS: &[&str] = &["list", "describe", "delete", "reset-offsets", "delete-offsets", "validate-regex"];
const SCENARIOS: &[&str] =
    &["to-offset", "shift-by", "to-datetime", "by-duration", "to-earliest", "to-latest", "to-current", "from-file"];
/// The states a consumer group can be in.
const STATES: &[&str] =
    &["PreparingRebalance", "CompletingRebalance", "Stable", "Dead", "Empty", "Assigning", "Reconciling"];
const TYPES: &[&str] = &["Classic", "Consumer"];

pub static TOOL: Tool = Tool {
    name: "kafka-consumer-groups",
    about: "This tool helps to list all consumer groups, describe a consumer group, delete consumer group info, or reset \
            consumer group offsets.",
    options: OPTIONS,
    run,
};

#[rustfmt::skip]
static OPTIONS: &[Opt] = &[
    flag("all-groups", "All consumer groups."),
    flag("all-topics", "With --reset-offsets: all topics that the group has offsets for."),
    value("bootstrap-server", "server to connect to", "Brokers to connect to first. REQUIRED except with --validate-regex."),
    value("by-duration", "duration", "Reset to the time this long ago. Format: 'PnDTnHnMnS'"),
    value("command-config", "command config property file", "Properties file for the admin client."),
    flag("delete", "Delete groups with all their offsets: --group g1 --group g2."),
    flag("delete-offsets", "Delete the offsets of a group for topics."),
    flag("describe", "Show a group's offsets and how far it lags behind."),
    flag("dry-run", "With --reset-offsets: only show what would be done."),
    flag("execute", "With --reset-offsets: do it."),
    flag("export", "With --reset-offsets: print CSV, for --from-file."),
    value("from-file", "path to CSV file", "Reset to the offsets of a CSV file."),
    value("group", "consumer group", "The consumer group."),
    flag("help", "Print this."),
    flag("list", "List the consumer groups."),
    flag("members", "With --describe: the members of the group.").with(&["describe"]),
    flag("offsets", "With --describe: the offsets of the group; the default.").with(&["describe"]),
    flag("reset-offsets", "Move the offsets of a group without members. Where to: --to-datetime, --by-duration, --to-earliest, --to-latest, --shift-by, --from-file, --to-current or --to-offset. Which: --all-topics or --topic. Only shown unless --execute is given; --export prints it as CSV."),
    value("shift-by", "number-of-offsets", "Reset by so many records, forwards or (negative) backwards.").long(),
    value("state", "", "With --describe: the state of the group. With --list: the state of each group, or only groups in the states given, separated by commas.").optional().with(&["describe", "list"]),
    value("timeout", "timeout (ms)", "How long to wait for the cluster.").long().default("30000"),
    flag("to-current", "Reset to the current offset."),
    value("to-datetime", "datetime", "Reset to a time. Format: 'YYYY-MM-DDThh:mm:ss.sss'"),
    flag("to-earliest", "Reset to the first offset."),
    flag("to-latest", "Reset to the end."),
    value("to-offset", "offset", "Reset to an offset.").long(),
    value("topic", "topic", "The topic whose offsets are reset or deleted, with partitions as in topic1:0,1,2. May be given several times."),
    value("type", "", "With --list: the type of each group, or only groups of the types given, separated by commas.").optional().with(&["list"]),
    value("validate-regex", "regex", "Check a regular expression for a subscription (RE2 syntax)."),
    flag("verbose", "With --describe: more columns.").with(&["describe"]),
    flag("version", "Print the version."),
    former("broker-list", "bootstrap-server"),
    gone("zookeeper", true, NO_ZOOKEEPER),
    gone("new-consumer", false, "new-consumer is not a recognized option: there is no other consumer since Kafka 2.0; leave it out"),
];

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let parsed = tool.parse(&args)?;
    check(tool, &parsed)?;
    if let Some(regex) = parsed.text("validate-regex")? {
        return validate_regex(regex);
    }
    run_async(async {
        let acted = async {
            let mut properties = client_properties(&parsed, "command-config")?;
            let timeout = parsed.long("timeout")?.unwrap_or(30_000);
            properties.insert("default.api.timeout.ms".to_owned(), timeout.to_string());
            let patience = cluster::PATIENCE.min(Duration::from_millis(u64::try_from(timeout).unwrap_or(0)));
            let cluster = Cluster::connect(client_config(&properties)?, patience).await?;
            act(&cluster, &parsed).await
        };
        match acted.await {
            Err(Stop::Failed(sentence)) => {
                print_error(&format!("Executing consumer group command failed due to {sentence}"))
            }
            done => done,
        }
    })
}

async fn act(cluster: &Cluster, parsed: &Parsed) -> Result<(), Stop> {
    if parsed.has("list") {
        list(cluster, parsed).await
    } else if parsed.has("describe") {
        describe::run(cluster, parsed, &selected(cluster, parsed).await?).await
    } else if parsed.has("delete") {
        delete(cluster, &selected(cluster, parsed).await?).await
    } else if parsed.has("reset-offsets") {
        reset::run(cluster, parsed, &selected(cluster, parsed).await?).await
    } else {
        delete_offsets(cluster, parsed).await
    }
}

/// An error that does not change the exit code, as the original prints it.
fn print_error(sentence: &str) -> Result<(), Stop> {
    say!("\nError: {sentence}")
}

fn check(tool: &Tool, parsed: &Parsed) -> Result<(), Stop> {
    tool.help_or_version(parsed)?;
    if !parsed.has("validate-regex") {
        require(parsed, &["bootstrap-server"])?;
    }
    let has_scope = parsed.has("group") || parsed.has("all-groups");
    let wants_scope = |action: &str| {
        if parsed.has(action) && !has_scope {
            let sentence = format!("Option [{action}] takes one of these options: [group], [all-groups]");
            return Err(Stop::Usage(sentence));
        }
        Ok(())
    };
    if parsed.has("describe") {
        wants_scope("describe")?;
        if ["members", "offsets", "state"].iter().filter(|o| parsed.has(o)).count() > 1 {
            let sentence = "Option [describe] takes at most one of these options: [members], [offsets], [state]";
            return Err(Stop::Usage(sentence.to_owned()));
        }
        if parsed.text("state")?.is_some() {
            return Err(Stop::Usage("Option [describe] does not take a value for [state]".to_owned()));
        }
    }
    if parsed.has("delete") {
        wants_scope("delete")?;
        if parsed.has("topic") {
            let sentence = "The consumer does not support topic-specific offset deletion from a consumer group.";
            return Err(Stop::Usage(sentence.to_owned()));
        }
    }
    if parsed.has("delete-offsets") && !(parsed.has("group") && parsed.has("topic")) {
        let sentence = "Option [delete-offsets] takes the following options: [group], [topic]";
        return Err(Stop::Usage(sentence.to_owned()));
    }
    if parsed.has("reset-offsets") {
        check_reset(parsed)?;
        wants_scope("reset-offsets")?;
        for scenario in SCENARIOS {
            let others: Vec<&str> = SCENARIOS.iter().copied().filter(|s| s != scenario).collect();
            exclude(parsed, scenario, &others)?;
        }
    }
    exclude(parsed, "group", &["all-groups", "list"])?;
    exclude(parsed, "topic", &["list", "describe"])?;
    if ACTIONS.iter().filter(|a| parsed.has(a)).count() != 1 {
        let actions: Vec<String> = ACTIONS.iter().map(|a| format!("--{a}")).collect();
        return Err(Stop::Usage(format!("Command must include exactly one action: {}", actions.join(", "))));
    }
    Ok(())
}

fn check_reset(parsed: &Parsed) -> Result<(), Stop> {
    match (parsed.has("dry-run"), parsed.has("execute")) {
        (true, true) => {
            Err(Stop::Usage("Option [reset-offsets] only accepts one of [execute] and [dry-run]".to_owned()))
        }
        (false, false) => {
            tell!(
                "WARN: No action will be performed as the --execute option is missing. In version 5.0, this command will \
                 require either --dry-run or --execute to be specified. You should add the --dry-run option explicitly if \
                 you are scripting this command and want to keep the current default behavior without prompting."
            );
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The consumer groups of the cluster, as the brokers list them.
pub async fn consumer_groups(cluster: &Cluster) -> Result<Vec<ListedGroup>, CallError> {
    let mut groups = cluster.admin.list_groups(&[], &[]).await?;
    groups.retain(|g| matches!(g.protocol_type.as_str(), "" | "consumer"));
    groups.retain(|g| matches!(g.group_type.to_lowercase().as_str(), "" | "classic" | "consumer"));
    Ok(groups)
}

/// The groups of `--group` or `--all-groups`.
async fn selected(cluster: &Cluster, parsed: &Parsed) -> Result<Vec<String>, Stop> {
    if parsed.has("all-groups") {
        return Ok(consumer_groups(cluster).await?.into_iter().map(|g| g.group_id).collect());
    }
    Ok(parsed.all("group").to_vec())
}

/// The names of a comma-separated list that are among `valid`, in the spelling of `valid`.
fn names(list: &str, valid: &[&'static str], what: &str) -> Result<Vec<&'static str>, Stop> {
    let find = |name: &str| valid.iter().find(|v| v.eq_ignore_ascii_case(name.trim())).copied();
    let found: Option<Vec<_>> = list.split(',').map(find).collect();
    let invalid = || Stop::Usage(format!("Invalid {what} list '{list}'. Valid {what} are: {}", valid.join(", ")));
    found.ok_or_else(invalid)
}

async fn list(cluster: &Cluster, parsed: &Parsed) -> Result<(), Stop> {
    let filter = |option: &str, valid: &[&'static str], what: &str| match parsed.text(option)? {
        Some(list) if !list.is_empty() => names(list, valid, what),
        _ => Ok(Vec::new()),
    };
    let states = filter("state", STATES, "states").map_err(|e| singular(e, "states", "state"))?;
    let types = filter("type", TYPES, "types")?;
    let is_in = |value: &str, names: &[&str]| names.is_empty() || names.iter().any(|n| n.eq_ignore_ascii_case(value));
    let mut groups = consumer_groups(cluster).await?;
    groups.retain(|g| is_in(&g.group_state, &states) && is_in(&g.group_type, &types));
    let (has_type, has_state) = (parsed.has("type"), parsed.has("state"));
    if !has_type && !has_state {
        return groups.iter().try_for_each(|g| say!("{}", g.group_id));
    }
    let width = groups.iter().map(|g| g.group_id.len()).max().unwrap_or(0).max(15) + 10;
    let row = |group: &str, kind: &str, state: &str| {
        let mut cells = vec![group.to_owned()];
        cells.extend(has_type.then(|| kind.to_owned()));
        cells.extend(has_state.then(|| state.to_owned()));
        let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
        say!("{}", columns(&[width, 20, 20], &cells))
    };
    row("GROUP", "TYPE", "STATE")?;
    let known = |text: &str, valid: &[&'static str]| {
        valid.iter().find(|v| v.eq_ignore_ascii_case(text)).copied().unwrap_or("Unknown").to_owned()
    };
    groups.iter().try_for_each(|g| row(&g.group_id, &known(&g.group_type, TYPES), &known(&g.group_state, STATES)))
}

/// The original says "Invalid state list" but "Invalid types list".
fn singular(stop: Stop, plural: &str, singular: &str) -> Stop {
    match stop {
        Stop::Usage(s) => Stop::Usage(s.replacen(&format!("Invalid {plural}"), &format!("Invalid {singular}"), 1)),
        other => other,
    }
}

async fn delete(cluster: &Cluster, groups: &[String]) -> Result<(), Stop> {
    let results = cluster.admin.delete_groups(groups).await.map_err(CallError::from)?;
    let quote = |names: &[&str]| names.iter().map(|n| format!("'{n}'")).collect::<Vec<_>>().join(", ");
    let deleted: Vec<&str> = results.iter().filter(|r| r.error_code == 0).map(|r| r.group_id.as_str()).collect();
    if deleted.len() == results.len() {
        return say!("Deletion of requested consumer groups ({}) was successful.", quote(&deleted));
    }
    print_error("Deletion of some consumer groups failed:")?;
    for result in &results {
        if let Err(e) = check_code(result.error_code, None) {
            say!("* Group '{}' could not be deleted due to: {}", result.group_id, e.java())?;
        }
    }
    if deleted.is_empty() {
        return Ok(());
    }
    say!("\nThese consumer groups were deleted successfully: {}", quote(&deleted))
}

async fn delete_offsets(cluster: &Cluster, parsed: &Parsed) -> Result<(), Stop> {
    let group = parsed.text("group")?.unwrap_or_default();
    let mut status: BTreeMap<String, (TopicPartition, Option<CallError>)> = BTreeMap::new();
    let mut note = |tp: TopicPartition, error| status.insert(format!("{}{}", tp.topic, tp.partition), (tp, error));
    let mut partitions = Vec::new();
    for topic in parsed.all("topic") {
        if topic.contains(':') {
            partitions.extend(reset::topic_partitions(topic)?);
            continue;
        }
        match cluster.partitions(std::slice::from_ref(topic)).await {
            Ok(found) => partitions.extend(found),
            Err(e) => _ = note(TopicPartition::new(topic.clone(), -1), Some(e)),
        }
    }
    partitions.sort();
    partitions.dedup();
    let mut first = None;
    match cluster.admin.delete_group_offsets(group, &partitions).await.map_err(CallError::from) {
        Ok(results) => {
            for (tp, result) in results {
                let error = result.err().map(CallError::from);
                first = first.or_else(|| error.clone());
                note(tp, error);
            }
        }
        Err(e) => {
            for tp in partitions {
                note(tp, Some(e.clone()));
            }
            first = Some(e);
        }
    }
    match first {
        None => say!("Request succeeded for deleting offsets from group {group}.")?,
        Some(e) => print_error(&top_level(&e))?,
    }
    print_status(status.into_values())
}

/// What the original says first when deleting offsets failed.
fn top_level(error: &CallError) -> String {
    use ErrorCode::{
        GroupAuthorizationFailed, GroupIdNotFound, GroupSubscribedToTopic, InvalidGroupId, NonEmptyGroup,
        TopicAuthorizationFailed, UnknownTopicOrPartition,
    };
    match error.code {
        Some(code @ (InvalidGroupId | GroupIdNotFound | GroupAuthorizationFailed | NonEmptyGroup)) => {
            code.message().to_owned()
        }
        Some(GroupSubscribedToTopic | TopicAuthorizationFailed | UnknownTopicOrPartition) => {
            "Encountered some partition-level error, see the follow-up details.".to_owned()
        }
        Some(code) => format!("Encountered some unknown error: {}", code.name()),
        None => format!("Encountered some unknown error: {}", error.message),
    }
}

fn print_status(status: impl Iterator<Item = (TopicPartition, Option<CallError>)>) -> Result<(), Stop> {
    let rows: Vec<_> = status.collect();
    let width = rows.iter().map(|(tp, _)| tp.topic.len()).max().unwrap_or(0).max(15);
    let row =
        |topic: &str, partition: &str, status: &str| say!("{}", columns(&[width, 10, 15], &[topic, partition, status]));
    say!("")?;
    row("TOPIC", "PARTITION", "STATUS")?;
    rows.iter().try_for_each(|(tp, error)| {
        let partition = if tp.partition < 0 { "-".to_owned() } else { tp.partition.to_string() };
        let status = error.as_ref().map_or_else(|| "Successful".to_owned(), |e| format!("Error: {}", e.java()));
        row(&tp.topic, &partition, &status)
    })
}

fn validate_regex(pattern: &str) -> Result<(), Stop> {
    let Err(error) = regex::Regex::new(pattern) else {
        return say!("The regular expression `{pattern}` is valid.");
    };
    let text = error.to_string();
    let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
    // RE2's words for the same.
    let reason = match reason {
        "unclosed character class" => "missing closing ]",
        "unclosed group" => "missing closing )",
        "unopened group" => "unexpected )",
        "repetition operator missing expression" => "missing argument to repetition operator",
        "incomplete escape sequence, reached end of pattern prematurely" => "trailing backslash at end of expression",
        other => other,
    };
    say!("The regular expression `{pattern}` is invalid: {reason}.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines() {
        let server = "--bootstrap-server a:1 ";
        let cases = [
            ("--describe", "Option [describe] takes one of these options: [group], [all-groups]"),
            ("--list --members", "Option(s) [members] are unavailable given other options on the command line"),
            (
                "--describe --group g --members --state",
                "Option [describe] takes at most one of these options: [members], [offsets], [state]",
            ),
            ("--describe --group g --state stable", "Option [describe] does not take a value for [state]"),
            (
                "--reset-offsets --group g --execute --dry-run",
                "Option [reset-offsets] only accepts one of [execute] and [dry-run]",
            ),
            (
                "--reset-offsets --group g --dry-run --to-latest --to-earliest",
                "Option \"[to-earliest]\" can't be used with option \"[to-latest]\"",
            ),
            ("--list --group g", "Option \"[group]\" can't be used with option \"[list]\""),
            ("--delete-offsets --group g", "Option [delete-offsets] takes the following options: [group], [topic]"),
            (
                "--group g",
                "Command must include exactly one action: --list, --describe, --delete, --reset-offsets, \
                 --delete-offsets, --validate-regex",
            ),
        ];
        let checked = |line: &str| -> Result<(), Stop> {
            let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            check(&TOOL, &TOOL.parse(&args)?)
        };
        for (line, sentence) in cases {
            assert_eq!(checked(&format!("{server}{line}")).unwrap_err().to_string(), sentence, "{line}");
        }
        for line in ["--list --state", "--list --state stable --type", "--describe --all-groups --verbose"] {
            assert!(checked(&format!("{server}{line}")).is_ok(), "{line}");
        }
    }

    #[test]
    fn lists_of_states() {
        assert_eq!(names("stable, EMPTY", STATES, "states").unwrap(), ["Stable", "Empty"]);
        let error = singular(names("sleepy", STATES, "states").unwrap_err(), "states", "state").to_string();
        assert!(error.starts_with("Invalid state list 'sleepy'. Valid states are: "), "{error}");
    }
}
