//! `kafka-storage`: format log directories, look at them, make ids.

mod features;
mod format;

use std::path::Path;

use caudal_cluster::config::{Properties, StaticConfig};
use caudal_protocol::Uuid;
use caudal_storage::disk::RealDisk;

use super::options::{self, Former, Opt, OptionError, Parsed, flag, former, value};
use super::{Stop, Tool, say};

pub static TOOL: Tool = Tool { name: "kafka-storage", about: "The Kafka storage tool.", options: &[], run };

const USAGE: &str = "usage: kafka-storage [-h]
                     {info,format,version-mapping,feature-dependencies,random-uuid}
                     ...";

/// One of the tool's commands.
struct Command {
    name: &'static str,
    about: &'static str,
    /// What follows the name, in the order and layout of the original.
    usage: &'static str,
    required: &'static [&'static str],
    /// Options of which only one may be given.
    exclusive: &'static [&'static str],
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
        usage: "[-h] --config CONFIG",
        required: &["config"],
        exclusive: &[],
        options: &[CONFIG, HELP, former("c", "config"), former("h", "help")],
        run: info,
    },
    Command {
        name: "format",
        about: "Format the log directories of this node.",
        usage: "[-h] --config CONFIG --cluster-id CLUSTER_ID
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
        usage: "[-h]
                     [--release-version RELEASE_VERSION]",
        required: &[],
        exclusive: &[],
        options: &[HELP, RELEASE, former("h", "help"), former("r", "release-version")],
        run: features::version_mapping,
    },
    Command {
        name: "feature-dependencies",
        about: "Show what a level of a feature needs.",
        usage: "[-h] --feature FEATURE",
        required: &["feature"],
        exclusive: &[],
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
        usage: "[-h]",
        required: &[],
        exclusive: &[],
        options: &[HELP, former("h", "help")],
        run: |_| say!("{}", Uuid::random()),
    },
];

impl Command {
    fn usage(&self) -> String {
        format!("usage: kafka-storage {} {}", self.name, self.usage)
    }

    fn refuse(&self, error: &str) -> Stop {
        Stop::Failed(format!("{}\nkafka-storage: error: {error}", self.usage()))
    }

    /// An option with its short form: `--cluster-id/-t`.
    fn both_forms(&self, option: &str) -> String {
        let is_short = |o: &&Opt| matches!(o.former, Former::SameAs(long) if long == option);
        match self.options.iter().find(is_short) {
            Some(short) => format!("--{option}/-{}", short.name),
            None => format!("--{option}"),
        }
    }

    fn parse(&self, args: &[String]) -> Result<Parsed, Stop> {
        let parsed = options::parse(self.options, args).map_err(|e| match e {
            OptionError::Unrecognized { name, hint: Some(hint) } => {
                self.refuse(&format!("unrecognized arguments: '--{name}'\n\nDid you mean:\n\t--{hint}"))
            }
            OptionError::Unrecognized { name, .. } => self.refuse(&format!("unrecognized arguments: '--{name}'")),
            OptionError::MissingArgument(name) => {
                let name = self.today(name);
                self.refuse(&format!("argument {}: expected one argument", self.both_forms(name)))
            }
            other => self.refuse(&other.to_string()),
        })?;
        if parsed.has("help") {
            return Ok(parsed);
        }
        let mut exclusive = parsed.order.iter().filter(|o| self.exclusive.contains(o));
        if let Some(first) = exclusive.next()
            && let Some(second) = exclusive.find(|o| *o != first)
        {
            let (first, second) = (self.both_forms(first), self.both_forms(second));
            return Err(self.refuse(&format!("argument {second}: not allowed with argument {first}")));
        }
        if let Some(extra) = parsed.rest.first() {
            return Err(self.refuse(&format!("unrecognized arguments: '{extra}'")));
        }
        match self.required.iter().find(|r| !parsed.has(r)) {
            Some(missing) => Err(self.refuse(&format!("argument {} is required", self.both_forms(missing)))),
            None => Ok(parsed),
        }
    }

    /// The long name of an option that was given by its short one.
    fn today(&self, name: &'static str) -> &'static str {
        match self.options.iter().find(|o| o.name == name).map(|o| o.former) {
            Some(Former::SameAs(today)) => today,
            _ => name,
        }
    }
}

fn run(tool: &Tool, args: Vec<String>) -> Result<(), Stop> {
    let names: Vec<&str> = COMMANDS.iter().map(|c| c.name).collect();
    let Some((name, rest)) = args.split_first() else {
        return Err(Stop::Failed(format!("{USAGE}\nkafka-storage: error: too few arguments")));
    };
    if ["-h", "--help"].contains(&options::plain_dashes(name).as_str()) {
        say!("{USAGE}\n\n{}\n", tool.about)?;
        return COMMANDS.iter().try_for_each(|c| say!("  {:22}{}", c.name, c.about));
    }
    let Some(command) = COMMANDS.iter().find(|c| c.name == name) else {
        let hint = options::nearest(name, names.iter().copied());
        let hint = hint.map(|n| format!("\n\nDid you mean:\n\t{n}")).unwrap_or_default();
        let choices = names.iter().map(|n| format!("'{n}'")).collect::<Vec<_>>().join(", ");
        let error = format!("kafka-storage: error: invalid choice: '{name}' (choose from {choices}){hint}");
        return Err(Stop::Failed(format!("{USAGE}\n{error}")));
    };
    let parsed = command.parse(rest)?;
    if parsed.has("help") {
        return say!("{}\n\n{}\n\n{}", command.usage(), command.about, options::help(command.options).trim_end());
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
