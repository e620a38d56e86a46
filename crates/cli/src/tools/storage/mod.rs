//! `kafka-storage`: format log directories, look at them, make ids.

pub mod features;
mod format;

use std::path::Path;

use caudal_cluster::config::{Properties, StaticConfig};
use caudal_protocol::Uuid;
use caudal_storage::disk::RealDisk;

use super::argparse::{Command, Grammar, HELP, SHORT_HELP};
use super::options::{Opt, Parsed, flag, former, value};
use super::{Stop, Tool, say};

pub static TOOL: Tool = Tool { name: "kafka-storage", about: "The Kafka storage tool.", options: &[], run };

static GRAMMAR: Grammar = Grammar {
    program: "kafka-storage",
    usage: "[-h]
                     {info,format,version-mapping,feature-dependencies,random-uuid}
                     ...",
    options: &[HELP, SHORT_HELP],
    required: &[],
    one_of: &[],
    needs_one: false,
    is_terse: false,
    commands: COMMANDS,
};

const CONFIG: Opt = value("config", "CONFIG", "The server's properties file (-c).");
const RELEASE: Opt = value(
    "release-version",
    "RELEASE_VERSION",
    "The release whose features to take (-r); 3.3-IV3 or later, 4.3-IV0 without it.",
);

static COMMANDS: &[Command] = &[
    Command {
        name: "info",
        about: "Show the log directories of this node.",
        usage: "info [-h] --config CONFIG",
        required: &["config"],
        options: &[CONFIG, HELP, former("c", "config"), SHORT_HELP],
        run: info,
        ..Command::PLAIN
    },
    Command {
        name: "format",
        about: "Format the log directories of this node.",
        usage: "format [-h] --config CONFIG --cluster-id CLUSTER_ID
                     [--add-scram ADD_SCRAM] [--ignore-formatted]
                     [--release-version RELEASE_VERSION]
                     [--feature FEATURE] [--standalone |
                     --no-initial-controllers |
                     --initial-controllers INITIAL_CONTROLLERS]",
        required: &["cluster-id", "config"],
        exclusive: &["standalone", "no-initial-controllers", "initial-controllers"],
        options: &[
            value("add-scram", "ADD_SCRAM", "A SCRAM credential to begin with (-S)."),
            value("cluster-id", "CLUSTER_ID", "The id of the cluster (-t), as random-uuid prints them."),
            CONFIG,
            value("feature", "FEATURE", "The level of a feature, name=level (-f)."),
            HELP,
            flag("ignore-formatted", "Pass over directories that are formatted already (-g)."),
            value("initial-controllers", "INITIAL_CONTROLLERS", "The first controllers of a dynamic quorum (-I)."),
            flag("no-initial-controllers", "The node joins a dynamic quorum later (-N)."),
            RELEASE,
            flag("standalone", "The node is the first controller of a dynamic quorum (-s)."),
            former("c", "config"),
            former("f", "feature"),
            former("g", "ignore-formatted"),
            SHORT_HELP,
            former("I", "initial-controllers"),
            former("N", "no-initial-controllers"),
            former("r", "release-version"),
            former("s", "standalone"),
            former("S", "add-scram"),
            former("t", "cluster-id"),
        ],
        run: format::run,
        ..Command::PLAIN
    },
    Command {
        name: "version-mapping",
        about: "Show the features of a release.",
        usage: "version-mapping [-h]
                     [--release-version RELEASE_VERSION]",
        options: &[HELP, RELEASE, SHORT_HELP, former("r", "release-version")],
        run: features::version_mapping,
        ..Command::PLAIN
    },
    Command {
        name: "feature-dependencies",
        about: "Show what a level of a feature needs.",
        usage: "feature-dependencies [-h] --feature FEATURE",
        required: &["feature"],
        options: &[
            value("feature", "FEATURE", "A feature and its level, name=level (-f); may be given several times."),
            HELP,
            former("f", "feature"),
            SHORT_HELP,
        ],
        run: features::dependencies,
        ..Command::PLAIN
    },
    Command {
        name: "random-uuid",
        about: "Print a random id.",
        usage: "random-uuid [-h]",
        options: &[HELP, SHORT_HELP],
        run: |_| say!("{}", Uuid::random()),
        ..Command::PLAIN
    },
];

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    GRAMMAR.run(tool, &args)
}

/// The settings in the properties file that `--config` names. Keys that are not known are passed over.
fn settings(parsed: &Parsed) -> Result<StaticConfig, Stop> {
    let path = parsed.text("config")?.unwrap_or_default();
    let properties = Properties::read(Path::new(path)).map_err(|e| Stop::Failed(e.to_string()))?;
    let (config, _) = StaticConfig::from_properties(&properties).map_err(|e| Stop::Failed(e.to_string()))?;
    Ok(config)
}

fn info(parsed: &Parsed) -> Result<(), Stop> {
    let (lines, well) = caudal_cluster::format::info(&RealDisk, &settings(parsed)?);
    lines.iter().try_for_each(|line| say!("{line}"))?;
    if well { Ok(()) } else { Err(Stop::Exit(1)) }
}
