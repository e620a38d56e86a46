//! `kafka-features`: which levels of its features a cluster has, and how to change them.

use std::collections::BTreeMap;

use caudal_client::Admin;
use caudal_cluster::format::{MetadataVersion, default_levels, highest_level};
use caudal_protocol::messages::api_versions_response::ApiVersionsResponse;
use caudal_protocol::messages::update_features_request::FeatureUpdateKey;

use super::argparse::{Command, Grammar, HELP, SHORT_HELP};
use super::cluster::{CallError, check};
use super::options::{NO_ZOOKEEPER, Opt, Parsed, flag, former, gone, value};
use super::{Stop, Tool, connect, run_async, say, storage};

const METADATA_VERSION: &str = "metadata.version";

pub static TOOL: Tool = Tool {
    name: "kafka-features",
    about: "This tool manages feature flags in Kafka.",
    options: &[SERVER, CONFIG, HELP],
    run: |tool, args| GRAMMAR.run(tool, &args),
};

const SERVER: Opt = value("bootstrap-server", "BOOTSTRAP_SERVER", "Brokers to connect to first, separated by commas.");
const CONTROLLER: Opt =
    value("bootstrap-controller", "BOOTSTRAP_CONTROLLER", "Controllers to connect to first, in place of brokers.");
const CONFIG: Opt = value("command-config", "COMMAND_CONFIG", "Properties file for the admin client.");
const BROKER_LIST: Opt = former("broker-list", "bootstrap-server");
const ZOOKEEPER: Opt = gone("zookeeper", true, NO_ZOOKEEPER);
const METADATA: Opt = value("metadata", "METADATA", "DEPRECATED: the level of metadata.version, as in 4.3-IV0.");
const RELEASE: Opt = value("release-version", "RELEASE_VERSION", "The release whose levels all features are set to.");
const LEVEL: Opt =
    value("feature", "FEATURE", "A feature and its level, as in metadata.version=30; may be given several times.");
const UNSAFE: Opt = flag("unsafe", "Also when metadata may be lost for good.");
const DRY_RUN: Opt = flag("dry-run", "Only check whether it can be done.");

static GRAMMAR: Grammar = Grammar {
    program: "kafka-features",
    usage: "[-h] [--command-config COMMAND_CONFIG] [--bootstrap-server BOOTSTRAP_SERVER | --bootstrap-controller \
            BOOTSTRAP_CONTROLLER] {describe,upgrade,downgrade,disable,version-mapping,feature-dependencies} ...",
    options: &[SERVER, CONTROLLER, CONFIG, HELP, SHORT_HELP, BROKER_LIST, ZOOKEEPER],
    required: &[],
    one_of: &["bootstrap-server", "bootstrap-controller"],
    needs_one: false,
    is_terse: true,
    commands: COMMANDS,
};

static COMMANDS: &[Command] = &[
    Command {
        name: "describe",
        about: "Describes the current active feature flags.",
        usage: "describe [-h] [--node-id NODE_ID]",
        options: &[
            SERVER,
            CONTROLLER,
            CONFIG,
            value("node-id", "NODE_ID", "Ask this broker; any without it.").int(),
            HELP,
            SHORT_HELP,
            BROKER_LIST,
            ZOOKEEPER,
        ],
        run: |parsed| served(parsed).and_then(|()| run_async(describe(parsed))),
        ..Command::PLAIN
    },
    Command {
        name: "upgrade",
        about: "Upgrade one or more feature flags.",
        usage: "upgrade [-h] [--metadata METADATA] [--release-version RELEASE_VERSION] [--feature FEATURE] [--dry-run]",
        options: &[
            SERVER,
            CONTROLLER,
            CONFIG,
            METADATA,
            RELEASE,
            LEVEL,
            DRY_RUN,
            HELP,
            SHORT_HELP,
            BROKER_LIST,
            ZOOKEEPER,
        ],
        run: |parsed| change(parsed, "upgrade", UPGRADE),
        ..Command::PLAIN
    },
    Command {
        name: "downgrade",
        about: "Downgrade one or more feature flags.",
        usage: "downgrade [-h] [--metadata METADATA] [--release-version RELEASE_VERSION] [--feature FEATURE] [--unsafe] \
                [--dry-run]",
        options: &[
            SERVER,
            CONTROLLER,
            CONFIG,
            METADATA,
            RELEASE,
            LEVEL,
            UNSAFE,
            DRY_RUN,
            HELP,
            SHORT_HELP,
            BROKER_LIST,
            ZOOKEEPER,
        ],
        run: |parsed| change(parsed, "downgrade", downgrade_type(parsed)),
        ..Command::PLAIN
    },
    Command {
        name: "disable",
        about: "Disable one or more feature flags. This is the same as downgrading the version to zero.",
        usage: "disable [-h] [--feature FEATURE] [--unsafe] [--dry-run]",
        options: &[
            SERVER,
            CONTROLLER,
            CONFIG,
            value("feature", "FEATURE", "A feature; may be given several times."),
            UNSAFE,
            DRY_RUN,
            HELP,
            SHORT_HELP,
            BROKER_LIST,
            ZOOKEEPER,
        ],
        run: disable,
        ..Command::PLAIN
    },
    Command {
        name: "version-mapping",
        about: "Show the features of a release.",
        usage: "version-mapping [-h] [--release-version RELEASE_VERSION]",
        options: &[SERVER, CONTROLLER, CONFIG, RELEASE, HELP, SHORT_HELP, BROKER_LIST, ZOOKEEPER],
        run: storage::features::version_mapping,
        ..Command::PLAIN
    },
    Command {
        name: "feature-dependencies",
        about: "Show what a level of a feature needs.",
        usage: "feature-dependencies [-h] --feature FEATURE",
        required: &["feature"],
        options: &[SERVER, CONTROLLER, CONFIG, LEVEL, HELP, SHORT_HELP, BROKER_LIST, ZOOKEEPER],
        run: |parsed| {
            let levels =
                parsed.all("feature").iter().map(|text| name_and_level(text)).collect::<Result<Vec<_>, _>>()?;
            levels.into_iter().try_for_each(|(name, level)| dependencies(name, level))
        },
        ..Command::PLAIN
    },
];

const UPGRADE: i8 = 1;
const SAFE_DOWNGRADE: i8 = 2;
const UNSAFE_DOWNGRADE: i8 = 3;

fn downgrade_type(parsed: &Parsed) -> i8 {
    if parsed.has("unsafe") { UNSAFE_DOWNGRADE } else { SAFE_DOWNGRADE }
}

/// Refuses a command line without brokers.
fn served(parsed: &Parsed) -> Result<(), Stop> {
    if parsed.has("bootstrap-server") || parsed.has("bootstrap-controller") {
        return Ok(());
    }
    let error = "You must specify either --bootstrap-controller or --bootstrap-server.";
    Err(Stop::Failed(format!("Command line error: {error}. Type --help for help.")))
}

async fn describe(parsed: &Parsed) -> Result<(), Stop> {
    let node = parsed.int("node-id")?;
    if let Some(id) = node.filter(|id| *id < 0) {
        return Err(Stop::Failed(format!("Invalid node id {id}: must be non-negative.")));
    }
    let cluster = connect(parsed, "command-config").await?;
    let known = cluster.brokers().await?;
    let Some(node) = node.or_else(|| known.first().copied()).filter(|id| known.contains(id)) else {
        let ids = known.iter().map(i32::to_string).collect::<Vec<_>>().join(",");
        return Err(Stop::Failed(format!("There is no broker {}; there are {ids}", node.unwrap_or(-1))));
    };
    let versions = cluster.admin.client().api_versions(node).await.map_err(CallError::from)?;
    lines(&versions).iter().try_for_each(|line| say!("{line}"))
}

fn lines(versions: &ApiVersionsResponse) -> Vec<String> {
    let epoch = Some(versions.finalized_features_epoch).filter(|epoch| *epoch >= 0);
    let epoch = epoch.map_or_else(|| "-".to_owned(), |epoch| epoch.to_string());
    let mut supported: Vec<_> = versions.supported_features.iter().collect();
    supported.sort_by(|a, b| a.name.cmp(&b.name));
    let line = |s: &&caudal_protocol::messages::api_versions_response::SupportedFeatureKey| {
        let finalized = versions.finalized_features.iter().find(|f| f.name == s.name);
        let level = |level| level_text(&s.name, level);
        format!(
            "Feature: {:40}  SupportedMinVersion: {:15}  SupportedMaxVersion: {:15}  FinalizedVersionLevel: {:15}  Epoch: \
             {epoch}",
            s.name,
            level(s.min_version),
            level(s.max_version),
            level(finalized.map_or(0, |f| f.max_version_level))
        )
    };
    supported.iter().map(line).collect()
}

fn level_text(feature: &str, level: i16) -> String {
    if feature != METADATA_VERSION {
        return level.to_string();
    }
    MetadataVersion::of_level(level).map_or_else(|_| format!("UNKNOWN {level}"), |version| version.name.to_owned())
}

/// `name=level`
fn name_and_level(text: &str) -> Result<(&str, i16), Stop> {
    let fail = |reason: String| Stop::Failed(format!("Can't parse feature=level string {text}: {reason}"));
    let (name, level) = text.split_once('=').ok_or_else(|| fail("equals sign not found.".to_owned()))?;
    let (name, level) = (name.trim(), level.trim());
    let level = level.parse().map_err(|_| fail(format!("unable to parse {level} as a short.")))?;
    Ok((name, level))
}

fn dependencies(name: &str, level: i16) -> Result<(), Stop> {
    if highest_level(name).is_some_and(|max| !(0..=max).contains(&level)) {
        return Err(Stop::Failed(format!("No feature:{name} with feature level {level}")));
    }
    storage::features::print_dependencies(name, level)
}

type Levels = BTreeMap<String, i16>;

fn change(parsed: &Parsed, verb: &str, kind: i8) -> Result<(), Stop> {
    served(parsed)?;
    let levels = levels(parsed, kind)?;
    run_async(update(parsed, verb, levels, kind))
}

fn levels(parsed: &Parsed, kind: i8) -> Result<Levels, Stop> {
    let fail = |e: caudal_cluster::format::FormatError| Stop::Failed(e.to_string());
    let mut levels = Levels::new();
    if let Some(release) = parsed.text("release-version")? {
        if parsed.has("metadata") || parsed.has("feature") {
            return Err(Stop::Failed("Can not specify `release-version` with other feature flags.".to_owned()));
        }
        let version = MetadataVersion::of_release(release).map_err(fail)?;
        levels.insert(METADATA_VERSION.to_owned(), version.level);
        // An upgrade to 0 is none.
        let others = default_levels(version.level).into_iter().filter(|(_, level)| kind != UPGRADE || *level > 0);
        levels.extend(others.map(|(name, level)| (name.to_owned(), level)));
        return Ok(levels);
    }
    if let Some(metadata) = parsed.text("metadata")? {
        say!(" `metadata` flag is deprecated and may be removed in a future release.")?;
        levels.insert(METADATA_VERSION.to_owned(), MetadataVersion::of_release(metadata).map_err(fail)?.level);
    }
    for text in parsed.all("feature") {
        let (name, level) = name_and_level(text)?;
        once(&mut levels, name, level)?;
    }
    Ok(levels)
}

fn once(levels: &mut Levels, name: &str, level: i16) -> Result<(), Stop> {
    match levels.insert(name.to_owned(), level) {
        Some(_) => Err(Stop::Failed(format!("Feature {name} was specified more than once."))),
        None => Ok(()),
    }
}

fn disable(parsed: &Parsed) -> Result<(), Stop> {
    served(parsed)?;
    let mut levels = Levels::new();
    for name in parsed.all("feature") {
        once(&mut levels, name, 0)?;
    }
    run_async(update(parsed, "disable", levels, downgrade_type(parsed)))
}

async fn update(parsed: &Parsed, verb: &str, levels: Levels, kind: i8) -> Result<(), Stop> {
    if levels.is_empty() {
        return Err(Stop::Failed(format!("You must specify at least one feature to {verb}")));
    }
    let dry_run = parsed.has("dry-run");
    let cluster = connect(parsed, "command-config").await?;
    let errors = send(&cluster.admin, &levels, kind, dry_run).await;
    let mut failures = 0;
    for (name, level) in &levels {
        if let Some(error) = errors.get(name) {
            let could = if dry_run { "Can not" } else { "Could not" };
            let what = if verb == "disable" { format!("disable {name}") } else { format!("{verb} {name} to {level}") };
            say!("{could} {what}. {}", error.message)?;
            failures += 1;
        } else {
            let was = if dry_run { "can be" } else { "was" };
            let done = if verb == "disable" { "disabled.".to_owned() } else { format!("{verb}d to {level}.") };
            say!("{name} {was} {done}")?;
        }
    }
    match failures {
        0 => Ok(()),
        _ => Err(Stop::Failed(format!("{failures} out of {} operation(s) failed.", levels.len()))),
    }
}

/// What was refused, by feature.
async fn send(admin: &Admin, levels: &Levels, kind: i8, dry_run: bool) -> BTreeMap<String, CallError> {
    let update = |(name, level): (&String, &i16)| FeatureUpdateKey {
        feature: name.clone(),
        max_version_level: *level,
        upgrade_type: kind,
        ..Default::default()
    };
    let all = |error: &CallError| levels.keys().map(|name| (name.clone(), error.clone())).collect();
    let answer = match admin.update_features(levels.iter().map(update).collect(), dry_run).await {
        Ok(answer) => answer,
        Err(error) => return all(&error.into()),
    };
    if let Err(error) = check(answer.error_code, answer.error_message.as_deref()) {
        return all(&error);
    }
    let failed = answer.results.into_iter().filter_map(|r| {
        let error = check(r.error_code, r.error_message.as_deref()).err()?;
        Some((r.feature, error))
    });
    failed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_levels() {
        assert_eq!(name_and_level(" group.version = 1").unwrap(), ("group.version", 1));
        let cases = [
            ("x", "Can't parse feature=level string x: equals sign not found."),
            ("x=y", "Can't parse feature=level string x=y: unable to parse y as a short."),
        ];
        for (text, error) in cases {
            assert_eq!(name_and_level(text).unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn levels_of_metadata_versions_have_names() {
        assert_eq!(level_text(METADATA_VERSION, 30), "4.3-IV0");
        assert_eq!(level_text(METADATA_VERSION, 99), "UNKNOWN 99");
        assert_eq!(level_text("group.version", 1), "1");
    }
}
