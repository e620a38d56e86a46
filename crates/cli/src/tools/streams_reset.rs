//! `kafka-streams-application-reset`: let a Kafka Streams application begin anew: the offsets of its input topics are moved,
//! its internal topics deleted.

use std::collections::{BTreeMap, BTreeSet};

use caudal_client::OffsetSpec;
use caudal_client::admin::OffsetAndMetadata;
use caudal_protocol::messages::leave_group_request::MemberIdentity;
use caudal_protocol::{ErrorCode, TopicPartition};

use super::cluster::{self, Cluster, Offsets};
use super::groups::model;
use super::java::{date_time_ms, duration_ms, is_internal};
use super::options::{NO_ZOOKEEPER, Opt, Parsed, flag, former, gone, value};
use super::{Stop, Tool, client_config, client_properties, exclude, run_async, say, tell};

/// Where input topics may be reset to.
const SCENARIOS: &[&str] =
    &["to-offset", "to-datetime", "by-duration", "to-earliest", "to-latest", "from-file", "shift-by"];
/// How the names of internal topics end.
const SUFFIXES: [&str; 4] =
    ["-changelog", "-repartition", "-subscription-registration-topic", "-subscription-response-topic"];
/// What the names of those of foreign-key joins have before a number and `-topic`.
const JOINS: [&str; 2] = ["-KTABLE-FK-JOIN-SUBSCRIPTION-REGISTRATION-", "-KTABLE-FK-JOIN-SUBSCRIPTION-RESPONSE-"];

pub static TOOL: Tool = Tool {
    name: "kafka-streams-application-reset",
    about: "This tool helps to quickly reset an application in order to reprocess its data from scratch.\n\
            * It resets the offsets of input topics, to the earliest by default.\n\
            * It deletes the internal topics that Kafka Streams made (those that start with \"<application.id>-\"), or with \
            --internal-topics some of them.\n\
            * It does not delete output topics; kafka-topics does.\n\
            * It does not clean up the local state of the application's instances: call KafkaStreams#cleanUp(), or delete \
            what is under state.dir. Without that you get wrong output.\n\
            * Members that have stopped keep their place until their session times out; --force removes them at once. Stop \
            all instances first.\n\
            What it does cannot be undone: run it with --dry-run first.\n",
    options: OPTIONS,
    run,
};

#[rustfmt::skip]
static OPTIONS: &[Opt] = &[
    value("application-id", "id", "REQUIRED: the application.id of the Kafka Streams application."),
    value("bootstrap-server", "server to connect to", "Brokers to connect to first, HOST1:PORT1,HOST2:PORT2. (default: localhost:9092)"),
    value("by-duration", "duration", "Reset to the time this long ago. Format: 'PnDTnHnMnS'"),
    value("command-config", "file name", "Properties file for the clients."),
    value("config-file", "file name", "(DEPRECATED) Properties file for the clients; use --command-config."),
    flag("dry-run", "Only show what would be done."),
    flag("force", "Remove the members of the application's group first."),
    value("from-file", "path to CSV file", "Reset to the offsets of a CSV file, with lines of topic,partition,offset."),
    flag("help", "Print this."),
    value("input-topics", "list", "The application's input topics, separated by commas.").list(),
    value("intermediate-topics", "list", "[deprecated] Topics that are both input and output, separated by commas: reset to their end.").list(),
    value("internal-topics", "list", "Delete only these internal topics, separated by commas.").list(),
    value("shift-by", "number-of-offsets", "Reset by so many records, forwards or (negative) backwards.").long(),
    value("to-datetime", "datetime", "Reset to a time. Format: 'YYYY-MM-DDThh:mm:ss.sss'"),
    flag("to-earliest", "Reset to the first offset; the default."),
    flag("to-latest", "Reset to the end."),
    value("to-offset", "offset", "Reset to an offset.").long(),
    flag("version", "Print the version."),
    former("bootstrap-servers", "bootstrap-server"),
    former("broker-list", "bootstrap-server"),
    gone("zookeeper", true, NO_ZOOKEEPER),
];

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let parsed = tool.parse(&args).map_err(|e| Stop::Usage(e.to_string()))?;
    tool.help_or_version(&parsed)?;
    if !parsed.has("application-id") {
        return Err(Stop::Usage("Missing required option(s) [application-id]".to_owned()));
    }
    for scenario in SCENARIOS {
        let others: Vec<&str> = SCENARIOS.iter().copied().filter(|s| s != scenario).collect();
        exclude(&parsed, scenario, &others)?;
    }
    exclude(&parsed, "config-file", &["command-config"])?;
    run_async(async {
        match reset(&parsed).await {
            Err(Stop::Failed(sentence)) => Err(Stop::Failed(format!("ERROR: {sentence}"))),
            done => done,
        }
    })
}

async fn reset(parsed: &Parsed) -> Result<(), Stop> {
    let app = parsed.text("application-id")?.unwrap_or_default();
    let file = if parsed.has("config-file") { "config-file" } else { "command-config" };
    if parsed.has("config-file") {
        say!(
            "Option --config-file has been deprecated and will be removed in a future version. Use --command-config \
             instead."
        )?;
    }
    let mut properties = client_properties(parsed, file)?;
    properties.entry("bootstrap.servers".to_owned()).or_insert_with(|| "localhost:9092".to_owned());
    let cluster = Cluster::connect(client_config(&properties)?, cluster::PATIENCE).await?;
    end_members(&cluster, app, parsed.has("force")).await?;
    let mut topics: BTreeSet<String> = cluster.topic_names().await?.into_iter().collect();
    topics.retain(|name| !is_internal(name));
    if parsed.has("dry-run") {
        say!("----Dry run displays the actions which will be performed when running Streams Reset Tool----")?;
    }
    let is_complete = move_offsets(&cluster, parsed, app, &topics).await?;
    delete_internal_topics(&cluster, parsed, app, &topics).await?;
    if is_complete { Ok(()) } else { Err(Stop::Exit(1)) }
}

/// Refuses an application that runs, or ends its members.
async fn end_members(cluster: &Cluster, app: &str, force: bool) -> Result<(), Stop> {
    let members = match model::describe(cluster, app).await {
        Ok(group) => group.members,
        Err(e) if e.code == Some(ErrorCode::GroupIdNotFound) => return Ok(()),
        Err(e) => return Err(Stop::Failed(e.java())),
    };
    if members.is_empty() {
        return Ok(());
    }
    if !force {
        let ids: Vec<&str> = members.iter().map(|m| m.id.as_str()).collect();
        return Err(Stop::Failed(format!(
            "Consumer group '{app}' is still active and has following members: [{}]. Make sure to stop all running \
             application instances before running the reset tool. You can use option '--force' to remove active members \
             from the group.",
            ids.join(", ")
        )));
    }
    say!("Force deleting all active members in the group: {app}")?;
    let identity = |m: model::Member| MemberIdentity {
        member_id: if m.instance_id.is_empty() { m.id } else { String::new() },
        group_instance_id: Some(m.instance_id).filter(|id| !id.is_empty()),
        reason: Some("member was removed by an admin".to_owned()),
    };
    let removed = cluster.admin.remove_group_members(app, members.into_iter().map(identity).collect()).await;
    for (_, result) in removed.map_err(|e| Stop::Failed(e.to_string()))? {
        // One that is not known any more has left by itself.
        match result {
            Err(e) if e.code() != Some(ErrorCode::UnknownMemberId) => return Err(Stop::Failed(e.to_string())),
            _ => {}
        }
    }
    Ok(())
}

/// Moves the offsets of input and intermediate topics; returns whether all topics are there.
async fn move_offsets(cluster: &Cluster, parsed: &Parsed, app: &str, topics: &BTreeSet<String>) -> Result<bool, Stop> {
    let (input, intermediate) = (parsed.all("input-topics"), parsed.all("intermediate-topics"));
    if parsed.has("intermediate-topics") {
        say!("WARN: `--intermediate-topics` is deprecated and will be removed in a future release")?;
    }
    if input.is_empty() && intermediate.is_empty() {
        say!("No input or intermediate topics specified. Skipping seek.")?;
        return Ok(true);
    }
    for (list, what) in
        [(input, "Reset-offsets for input topics"), (intermediate, "Seek-to-end for intermediate topics")]
    {
        if !list.is_empty() {
            say!("{what} [{}]", list.join(", "))?;
        }
    }
    let mut is_complete = true;
    let mut split = |list: &[String], what: &str, label: &str| -> Result<Vec<String>, Stop> {
        let (there, missing): (Vec<&String>, Vec<&String>) = list.iter().partition(|name| topics.contains(*name));
        if !missing.is_empty() {
            say!("Following {what} topics are not found, skipping them")?;
            missing.iter().try_for_each(|name| say!("{label}{name}"))?;
            is_complete = false;
        }
        Ok(there.into_iter().cloned().collect())
    };
    let input = split(input, "input", "Topic: ")?;
    let mut intermediate = split(intermediate, "intermediate", "Topic:")?;
    intermediate.retain(|name| !input.contains(name));
    if input.is_empty() && intermediate.is_empty() {
        return Ok(is_complete);
    }
    let mut offsets =
        if input.is_empty() { BTreeMap::new() } else { reset_input(cluster, parsed, app, &input).await? };
    if !intermediate.is_empty() {
        say!("Following intermediate topics offsets will be reset to end (for consumer group {app})")?;
        let partitions = cluster.partitions(&intermediate).await?;
        partitions.iter().try_for_each(|tp| say!("Topic: {}", tp.topic))?;
        offsets.extend(listed(cluster, &partitions, OffsetSpec::Latest).await?);
    }
    if !parsed.has("dry-run") {
        let offsets: Offsets = offsets.into_iter().map(|(tp, o)| (tp, OffsetAndMetadata::from(o))).collect();
        cluster.commit(app, &offsets).await?;
    }
    say!("Done.")?;
    Ok(is_complete)
}

type Positions = BTreeMap<TopicPartition, i64>;

async fn reset_input(cluster: &Cluster, parsed: &Parsed, app: &str, topics: &[String]) -> Result<Positions, Stop> {
    say!("Following input topics offsets will be reset to (for consumer group {app})")?;
    let partitions = cluster.partitions(topics).await?;
    let positions = match positions(cluster, parsed, app, &partitions).await {
        Err(Stop::Failed(sentence)) => {
            tell!("ERROR: Resetting offsets failed.");
            return Err(Stop::Failed(sentence));
        }
        found => found?,
    };
    positions
        .iter()
        .try_for_each(|(tp, offset)| say!("Topic: {} Partition: {} Offset: {offset}", tp.topic, tp.partition))?;
    Ok(positions)
}

async fn positions(
    cluster: &Cluster,
    parsed: &Parsed,
    app: &str,
    partitions: &[TopicPartition],
) -> Result<Positions, Stop> {
    if let Some(offset) = parsed.long("to-offset")? {
        return in_range(cluster, partitions.iter().map(|tp| (tp.clone(), offset)).collect()).await;
    }
    if parsed.has("to-latest") {
        return listed(cluster, partitions, OffsetSpec::Latest).await;
    }
    if let Some(shift) = parsed.long("shift-by")? {
        let committed = cluster.committed(app).await?;
        let mut positions = listed(cluster, partitions, OffsetSpec::Latest).await?;
        for (tp, position) in &mut positions {
            // Without a committed offset a consumer would start at the end.
            *position = committed.get(tp).map_or(*position, |o| o.offset).saturating_add(shift);
        }
        return in_range(cluster, positions).await;
    }
    if let Some(text) = parsed.text("to-datetime")? {
        return at_time(cluster, partitions, date_time_ms(text).map_err(Stop::Failed)?).await;
    }
    if let Some(text) = parsed.text("by-duration")? {
        let back = duration_ms(text).map_err(Stop::Failed)?;
        return at_time(cluster, partitions, chrono::Utc::now().timestamp_millis().saturating_sub(back)).await;
    }
    if let Some(path) = parsed.text("from-file")? {
        let text = std::fs::read_to_string(path).map_err(|e| Stop::Failed(format!("failed to read {path}: {e}")))?;
        let plan = plan(&text)?;
        if let Some(missing) = partitions.iter().find(|tp| !plan.contains_key(tp)) {
            return Err(Stop::Failed(format!("{path} has no offset for {missing}; it needs one for every partition")));
        }
        return in_range(cluster, plan.into_iter().filter(|(tp, _)| partitions.contains(tp)).collect()).await;
    }
    listed(cluster, partitions, OffsetSpec::Earliest).await
}

async fn listed(cluster: &Cluster, partitions: &[TopicPartition], spec: OffsetSpec) -> Result<Positions, Stop> {
    let found = cluster.list_offsets(partitions, spec).await?;
    found.into_iter().map(|(tp, listed)| Ok((tp, listed.map_err(|e| Stop::Failed(e.java()))?.offset))).collect()
}

async fn at_time(cluster: &Cluster, partitions: &[TopicPartition], time_ms: i64) -> Result<Positions, Stop> {
    let mut positions = listed(cluster, partitions, OffsetSpec::Timestamp(time_ms)).await?;
    let late: Vec<TopicPartition> = positions.iter().filter(|(_, o)| **o < 0).map(|(tp, _)| tp.clone()).collect();
    for tp in &late {
        say!(
            "Partition {} from topic {} is empty, without a committed record. Falling back to latest known offset.",
            tp.partition,
            tp.topic
        )?;
    }
    positions.extend(listed(cluster, &late, OffsetSpec::Latest).await?);
    Ok(positions)
}

/// Moves positions that are not in the log to its nearest end.
async fn in_range(cluster: &Cluster, mut positions: Positions) -> Result<Positions, Stop> {
    let partitions: Vec<TopicPartition> = positions.keys().cloned().collect();
    let starts = listed(cluster, &partitions, OffsetSpec::Earliest).await?;
    let ends = listed(cluster, &partitions, OffsetSpec::Latest).await?;
    for (tp, offset) in &mut positions {
        let start = starts.get(tp).copied().unwrap_or(0);
        let end = ends.get(tp).copied().unwrap_or(i64::MAX);
        let (limit, what) = if *offset >= end { (end, "higher than latest") } else { (start, "lower than earliest") };
        if *offset >= end || *offset <= start {
            say!("New offset ({offset}) is {what} offset. Value will be set to {limit}")?;
            *offset = limit;
        }
    }
    Ok(positions)
}

/// Lines of `topic,partition,offset`.
fn plan(text: &str) -> Result<Positions, Stop> {
    if text.is_empty() {
        return Err(Stop::Failed("Error parsing reset plan CSV file. It is empty,".to_owned()));
    }
    let entry = |line: &str| {
        let wrong =
            || Stop::Failed("Reset plan CSV file is not following the format `TOPIC,PARTITION,OFFSET`.".to_owned());
        match line.split(',').map(str::trim).collect::<Vec<_>>().as_slice() {
            [topic, partition, offset] => {
                let partition = partition.parse().map_err(|_| wrong())?;
                Ok((TopicPartition::new(*topic, partition), offset.parse().map_err(|_| wrong())?))
            }
            _ => Err(wrong()),
        }
    };
    text.lines().map(entry).collect()
}

/// Whether a topic looks like one that Kafka Streams made for the application.
fn is_made_by(app: &str, topic: &str) -> bool {
    let Some(rest) = topic.strip_prefix(app).filter(|rest| rest.starts_with('-')) else { return false };
    let is_numbered = |join: &str| {
        let number = rest.rsplit_once(join).and_then(|(_, tail)| tail.strip_suffix("-topic"));
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    SUFFIXES.iter().any(|suffix| rest.ends_with(suffix)) || JOINS.iter().any(|join| is_numbered(join))
}

async fn delete_internal_topics(
    cluster: &Cluster,
    parsed: &Parsed,
    app: &str,
    topics: &BTreeSet<String>,
) -> Result<(), Stop> {
    let is_own =
        |name: &String| parsed.all("input-topics").contains(name) || parsed.all("intermediate-topics").contains(name);
    let inferred: Vec<String> = topics.iter().filter(|name| !is_own(name) && is_made_by(app, name)).cloned().collect();
    let wanted = parsed.all("internal-topics");
    if wanted.iter().any(|name| !inferred.contains(name)) {
        let sentence = "Invalid topic specified in the --internal-topics option. Ensure that the topics specified are all \
                        internal topics. Do a dry run without the --internal-topics option to see the list of all internal \
                        topics that can be deleted.";
        return Err(Stop::Failed(sentence.to_owned()));
    }
    let (kind, names) = if wanted.is_empty() { ("inferred", inferred.as_slice()) } else { ("specified", wanted) };
    say!("Deleting {kind} internal topics [{}]", names.join(", "))?;
    if !parsed.has("dry-run") && !names.is_empty() {
        let mut failed = false;
        for name in names {
            if let Err(error) = cluster.delete_topics(std::slice::from_ref(name)).await {
                tell!("ERROR: deleting topic {name}: {}", error.message);
                failed = true;
            }
        }
        if failed {
            return Err(Stop::Failed("Encountered an error deleting one or more topics".to_owned()));
        }
    }
    say!("Done.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internal_topics() {
        for topic in [
            "app-store-changelog",
            "app-KSTREAM-1-repartition",
            "app-KTABLE-FK-JOIN-SUBSCRIPTION-REGISTRATION-0000000004-topic",
            "app-x-KTABLE-FK-JOIN-SUBSCRIPTION-RESPONSE-12-topic",
            "app-x-subscription-response-topic",
        ] {
            assert!(is_made_by("app", topic), "{topic}");
        }
        for topic in [
            "app",
            "app-output",
            "application-changelog",
            "other-changelog",
            "app-KTABLE-FK-JOIN-SUBSCRIPTION-RESPONSE-x-topic",
        ] {
            assert!(!is_made_by("app", topic), "{topic}");
        }
    }

    #[test]
    fn plans_in_files() {
        let found = plan("t,0,5\nt,1,7\n").unwrap();
        assert_eq!(found, BTreeMap::from([(TopicPartition::new("t", 0), 5), (TopicPartition::new("t", 1), 7)]));
        assert!(plan("").unwrap_err().to_string().contains("It is empty"));
        assert!(plan("t,0").unwrap_err().to_string().contains("`TOPIC,PARTITION,OFFSET`"));
    }
}
