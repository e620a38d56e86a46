//! `kafka-storage`: format log directories, look at them, make ids.

mod features;
mod format;

use std::path::Path;

use caudal_cluster::config::{Properties, StaticConfig};
use caudal_protocol::Uuid;
use caudal_storage::disk::RealDisk;

use super::options::{self, Opt, OptionError, Parsed, flag, former, value};
use super::{Stop, Tool, say};

pub static TOOL: Tool = Tool { name: "kafka-storage", about: "The Kafka storage tool.", options: &[], run };

/// One of the tool's commands.
struct Command {
    name: &'static str,
    about: &'static str,
    required: &'static [&'static str],
    options: &'static [Opt],
    run: fn(&Parsed) -> Result<(), Stop>,
}

const CONFIG: Opt = value("config", "CONFIG", "The server's properties file (-c).");
const RELEASE: Opt = value(
    "release-version",
    "RELEASE_VERSION",
    "The release whose features to take (-r); 3.3-IV3 or later, 4.3-IV0 without it.",
);
const HELP: Opt = flag("help", "Print this (-h).");

static COMMANDS: &[Command] = &[
    Command {
        name: "info",
        about: "Show the log directories of this node.",
        required: &["config"],
        options: &[CONFIG, HELP, former("c", "config"), former("h", "help")],
        run: info,
    },
    Command {
        name: "format",
        about: "Format the log directories of this node.",
        required: &["cluster-id", "config"],
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
            former("h", "help"),
            former("I", "initial-controllers"),
            former("N", "no-initial-controllers"),
            former("r", "release-version"),
            former("s", "standalone"),
            former("S", "add-scram"),
            former("t", "cluster-id"),
        ],
        run: format::run,
    },
    Command {
        name: "version-mapping",
        about: "Show the features of a release.",
        required: &[],
        options: &[HELP, RELEASE, former("h", "help"), former("r", "release-version")],
        run: features::version_mapping,
    },
    Command {
        name: "feature-dependencies",
        about: "Show what a level of a feature needs.",
        required: &["feature"],
        options: &[
            value("feature", "FEATURE", "A feature and its level, name=level (-f); may be given several times."),
            HELP,
            former("f", "feature"),
            former("h", "help"),
        ],
        run: features::dependencies,
    },
    Command {
        name: "random-uuid",
        about: "Print a random id.",
        required: &[],
        options: &[HELP, former("h", "help")],
        run: |_| say!("{}", Uuid::random()),
    },
];

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let names: Vec<&str> = COMMANDS.iter().map(|c| c.name).collect();
    let usage = format!("usage: kafka-storage [-h] {{{}}} ...", names.join(","));
    let Some((name, rest)) = args.split_first() else {
        return Err(Stop::Failed(format!("{usage}\nkafka-storage: error: too few arguments")));
    };
    if ["-h", "--help"].contains(&options::plain_dashes(name).as_str()) {
        say!("{usage}\n\n{}\n", tool.about)?;
        return COMMANDS.iter().try_for_each(|c| say!("  {:22}{}", c.name, c.about));
    }
    let Some(command) = COMMANDS.iter().find(|c| c.name == name) else {
        let hint =
            options::nearest(name, names.iter().copied()).map(|n| format!("\nDid you mean: {n}")).unwrap_or_default();
        let choices = names.iter().map(|n| format!("'{n}'")).collect::<Vec<_>>().join(", ");
        let error = format!("kafka-storage: error: invalid choice: '{name}' (choose from {choices}){hint}");
        return Err(Stop::Failed(format!("{usage}\n{error}")));
    };
    let refuse = |error: String| {
        Stop::Failed(format!(
            "kafka-storage {name}: error: {error}\nRun 'kafka-storage {name} --help' for the options."
        ))
    };
    let parsed = options::parse(command.options, rest).map_err(|e| match e {
        OptionError::Unrecognized { name, .. } => refuse(format!("unrecognized arguments: '--{name}'")),
        other => refuse(other.to_string()),
    })?;
    if parsed.has("help") {
        return say!(
            "usage: kafka-storage {name}\n\n{}\n\n{}",
            command.about,
            options::help(command.options).trim_end()
        );
    }
    if let Some(extra) = parsed.rest.first() {
        return Err(refuse(format!("unrecognized arguments: '{extra}'")));
    }
    if let Some(missing) = command.required.iter().find(|r| !parsed.has(r)) {
        let short = if *missing == "cluster-id" { "t" } else { missing.get(..1).unwrap_or_default() };
        return Err(refuse(format!("argument --{missing}/-{short} is required")));
    }
    (command.run)(&parsed)
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
