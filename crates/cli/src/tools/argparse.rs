//! Tools with commands (`kafka-features describe`): what argparse4j decides in the originals. Options are declared and
//! parsed as everywhere ([`options`]); on top of that options of the tool itself may stand before its command, as the
//! originals want it, or after it, which those refuse.

use super::options::{self, Arg, Former, Kind, Opt, OptionError, Parsed};
use super::{Stop, Tool, say};

/// What a tool with commands understands.
#[derive(Debug)]
pub struct Grammar {
    /// The name in messages.
    pub program: &'static str,
    /// What follows the name in `usage:`.
    pub usage: &'static str,
    /// Options of the tool itself; each command has them too.
    pub options: &'static [Opt],
    /// Options of the tool itself that must be given.
    pub required: &'static [&'static str],
    /// Options of the tool itself of which only one may be given.
    pub one_of: &'static [&'static str],
    /// One of `one_of` must be given.
    pub needs_one: bool,
    /// Mistakes are told in one line, without `usage:`.
    pub is_terse: bool,
    pub commands: &'static [Command],
}

/// One of a tool's commands.
#[derive(Debug)]
pub struct Command {
    pub name: &'static str,
    pub about: &'static str,
    /// What follows the program's name in `usage:`.
    pub usage: &'static str,
    pub required: &'static [&'static str],
    /// Options of which only one may be given.
    pub exclusive: &'static [&'static str],
    /// One of `exclusive` must be given.
    pub needs_one: bool,
    pub options: &'static [Opt],
    pub run: fn(&Parsed) -> Result<(), Stop>,
}

impl Command {
    /// For `..`: a command without options of its own.
    pub const PLAIN: Command = Command {
        name: "",
        about: "",
        usage: "",
        required: &[],
        exclusive: &[],
        needs_one: false,
        options: &[],
        run: |_| Ok(()),
    };
}

pub const HELP: Opt = options::flag("help", "Print this (-h).");
pub const SHORT_HELP: Opt = options::former("h", "help");

impl Grammar {
    /// Parses a command line and runs its command.
    pub fn run(&self, tool: &Tool, args: &[String]) -> Result<(), Stop> {
        let (before, rest) = self.split(args);
        if let Some(answer) = self.asked(tool, before)? {
            return Ok(answer);
        }
        let Some((name, after)) = rest.split_first() else {
            return Err(self.refuse(self.usage, "too few arguments"));
        };
        let Some(command) = self.commands.iter().find(|c| c.name == name) else { return Err(self.unknown(name)) };
        let args: Vec<String> = before.iter().chain(after).cloned().collect();
        let parsed = self.parse(command, &args)?;
        if parsed.has("help") {
            say!("{}\n\n{}\n", self.usage_of(command.usage), command.about)?;
            return say!("{}", options::help(command.options).trim_end());
        }
        (command.run)(&parsed)
    }

    /// The arguments before the command, and those from it on.
    fn split<'a>(&self, args: &'a [String]) -> (&'a [String], &'a [String]) {
        let mut at = 0;
        while let Some(arg) = args.get(at).map(|a| options::plain_dashes(a)).filter(|a| a.starts_with('-')) {
            let name = arg.trim_start_matches('-');
            let spec = self.options.iter().find(|o| o.name == name);
            at += if spec.is_some_and(|s| s.arg != Arg::None) { 2 } else { 1 };
        }
        args.split_at(at.min(args.len()))
    }

    /// Answers `--help` and `--version` before the command.
    fn asked(&self, tool: &Tool, before: &[String]) -> Result<Option<()>, Stop> {
        let has = |names: [&str; 2]| before.iter().any(|a| names.contains(&options::plain_dashes(a).as_str()));
        if has(["-h", "--help"]) {
            say!("{}\n\n{}\n", self.usage_of(self.usage), tool.about)?;
            self.commands.iter().try_for_each(|c| say!("  {:27}{}", c.name, c.about))?;
            let own = if self.options.is_empty() { String::new() } else { options::help(self.options) };
            return if own.is_empty() { Ok(Some(())) } else { say!("\n{}", own.trim_end()).map(Some) };
        }
        if has(["-v", "--version"]) && self.options.iter().any(|o| o.name == "version") {
            return say!("{}", crate::version::KAFKA).map(Some);
        }
        Ok(None)
    }

    fn unknown(&self, name: &str) -> Stop {
        let names = self.commands.iter().map(|c| c.name);
        let hint = options::nearest(name, names.clone());
        let hint = hint.map(|n| format!("\n\nDid you mean:\n\t{n}")).unwrap_or_default();
        let choices = names.map(|n| format!("'{n}'")).collect::<Vec<_>>().join(", ");
        self.refuse(self.usage, &format!("invalid choice: '{name}' (choose from {choices}){hint}"))
    }

    fn usage_of(&self, usage: &str) -> String {
        let program = self.program;
        // Broken where the original says so, else where a line is full.
        if usage.contains('\n') {
            return format!("usage: {program} {usage}");
        }
        let lead = format!("usage: {program}");
        let mut lines = vec![lead.clone()];
        for word in usage.split(' ') {
            match lines.last_mut() {
                Some(line) if line.len() + 1 + word.len() <= 78 => {
                    line.push(' ');
                    line.push_str(word);
                }
                _ => lines.push(format!("{} {word}", " ".repeat(lead.len()))),
            }
        }
        lines.join("\n")
    }

    fn refuse(&self, usage: &str, error: &str) -> Stop {
        Stop::Failed(if self.is_terse {
            format!("Command line error: {error}. Type --help for help.")
        } else {
            format!("{}\n{}: error: {error}", self.usage_of(usage), self.program)
        })
    }

    fn parse(&self, command: &Command, args: &[String]) -> Result<Parsed, Stop> {
        let refuse = |error: &str| self.refuse(command.usage, error);
        let parsed = options::parse(command.options, args).map_err(|e| match e {
            OptionError::Unrecognized { name, hint: Some(hint) } => {
                refuse(&format!("unrecognized arguments: '--{name}'\n\nDid you mean:\n\t--{hint}"))
            }
            OptionError::Unrecognized { name, .. } => refuse(&format!("unrecognized arguments: '--{name}'")),
            OptionError::MissingArgument(name) => {
                let name = command.today(name);
                refuse(&format!("argument {}: expected one argument", command.both_forms(name)))
            }
            other => refuse(&other.to_string()),
        })?;
        if parsed.has("help") {
            return Ok(parsed);
        }
        command.check(&parsed).map_err(|e| refuse(&e))?;
        self.check(command, &parsed).map_err(|e| self.refuse(self.usage, &e))?;
        Ok(parsed)
    }

    /// Checks the options of the tool itself.
    fn check(&self, command: &Command, parsed: &Parsed) -> Result<(), String> {
        check_exclusive(command, parsed, self.one_of, self.needs_one)?;
        match self.required.iter().find(|r| !parsed.has(r)) {
            Some(missing) => Err(format!("argument {} is required", command.both_forms(missing))),
            None => Ok(()),
        }
    }
}

/// At most one option of `names` may be given, and with `needs_one` one must be.
fn check_exclusive(command: &Command, parsed: &Parsed, names: &[&str], needs_one: bool) -> Result<(), String> {
    let mut given = parsed.order.iter().filter(|o| names.contains(o));
    let first = given.next();
    if let Some(first) = first
        && let Some(second) = given.find(|o| *o != first)
    {
        let (first, second) = (command.both_forms(first), command.both_forms(second));
        return Err(format!("argument {second}: not allowed with argument {first}"));
    }
    if first.is_none() && needs_one {
        let names: Vec<String> = names.iter().map(|n| command.both_forms(n)).collect();
        return Err(format!("one of the arguments {} is required", names.join(" ")));
    }
    Ok(())
}

impl Command {
    fn check(&self, parsed: &Parsed) -> Result<(), String> {
        self.check_numbers(parsed)?;
        if let Some(extra) = parsed.rest.first() {
            return Err(format!("unrecognized arguments: '{extra}'"));
        }
        check_exclusive(self, parsed, self.exclusive, self.needs_one)?;
        match self.required.iter().find(|r| !parsed.has(r)) {
            Some(missing) => Err(format!("argument {} is required", self.both_forms(missing))),
            None => Ok(()),
        }
    }

    fn check_numbers(&self, parsed: &Parsed) -> Result<(), String> {
        for spec in self.options {
            let (is_number, kind): (fn(&str) -> bool, &str) = match spec.kind {
                Kind::Text => continue,
                Kind::Int => (|text| text.parse::<i32>().is_ok(), "Integer"),
                Kind::Long => (|text| text.parse::<i64>().is_ok(), "Long"),
            };
            if let Some(text) = parsed.all(spec.name).iter().find(|text| !is_number(text)) {
                let option = self.both_forms(spec.name);
                return Err(format!(
                    "argument {option}: could not convert '{text}' to {kind} (For input string: \"{text}\")"
                ));
            }
        }
        Ok(())
    }

    /// An option with its short form: `--cluster-id/-t`.
    fn both_forms(&self, option: &str) -> String {
        let is_short = |o: &&Opt| matches!(o.former, Former::SameAs(long) if long == option) && o.name.len() == 1;
        match self.options.iter().find(is_short) {
            Some(short) => format!("--{option}/-{}", short.name),
            None => format!("--{option}"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::options::{flag, former, value};

    const SERVER: Opt = value("bootstrap-server", "BOOTSTRAP_SERVER", "Where.");
    const OTHER: Opt = value("bootstrap-controller", "BOOTSTRAP_CONTROLLER", "Where.");

    static GRAMMAR: Grammar = Grammar {
        program: "kafka-test",
        usage: "[-h] {show} ...",
        options: &[SERVER, OTHER, HELP, SHORT_HELP],
        required: &[],
        one_of: &["bootstrap-server", "bootstrap-controller"],
        needs_one: true,
        is_terse: false,
        commands: &[Command {
            name: "show",
            about: "Show.",
            usage: "show [-h] --id ID [--all]",
            required: &["id"],
            options: &[SERVER, OTHER, value("id", "ID", "Which.").int(), flag("all", "All."), former("i", "id"), HELP],
            run: |parsed| if parsed.has("all") { Ok(()) } else { Err(Stop::Exit(7)) },
            ..Command::PLAIN
        }],
    };
    static TOOL: Tool =
        Tool { name: "kafka-test", about: "Test.", options: &[], run: |tool, args| GRAMMAR.run(tool, &args) };

    fn run(line: &str) -> Result<(), String> {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        (TOOL.run)(&TOOL, args).map_err(|e| e.to_string())
    }

    #[test]
    fn options_stand_before_the_command_and_after() {
        for line in [
            "--bootstrap-server a:1 show --id 1 --all",
            "show --id 1 --all --bootstrap-server a:1",
            "--bootstrap-server=a:1 show -i 1 –all",
        ] {
            assert_eq!(run(line), Ok(()), "{line}");
        }
    }

    #[test]
    fn mistakes_in_the_words_of_the_originals() {
        let cases = [
            ("", "too few arguments"),
            ("shw", "invalid choice: 'shw' (choose from 'show')\n\nDid you mean:\n\tshow"),
            ("show --bootstrap-server a:1", "argument --id/-i is required"),
            ("show --id x", "argument --id/-i: could not convert 'x' to Integer (For input string: \"x\")"),
            ("show --id", "argument --id/-i: expected one argument"),
            ("show --id 1", "one of the arguments --bootstrap-server --bootstrap-controller is required"),
            (
                "--bootstrap-server a:1 show --bootstrap-controller b:1 --id 1",
                "argument --bootstrap-controller: not allowed with argument --bootstrap-server",
            ),
            ("--bootstrap-server a:1 show --id 1 more", "unrecognized arguments: 'more'"),
            ("--bootstrap-server a:1 show --id 1 --most", "unrecognized arguments: '--most'"),
        ];
        for (line, error) in cases {
            let said = run(line).unwrap_err();
            assert!(said.starts_with("usage: kafka-test ") && said.ends_with(&format!("error: {error}")), "{said}");
        }
    }
}
