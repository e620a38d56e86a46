//! Options of the Kafka tools: declared once per tool as a table of [`Opt`], from which come parsing, `--help` and
//! shell completion.
//!
//! Parsing follows jopt-simple 5 as Kafka's tools use it: `--name value`, `--name=value` and `-name value` are the same,
//! a required value is taken whatever it looks like, an optional one only when it does not look like an option, `--` ends
//! the options, and what is left over is kept aside. On top of that a dash that a word processor has prettied up
//! (`–list`) counts as two hyphens, and options that Kafka has removed say what replaced them.

use std::collections::BTreeMap;

/// Whether an option takes a value, and what the value is called in `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arg {
    None,
    Required(&'static str),
    Optional(&'static str),
}

/// What a value must look like; checked when it is read, as jopt-simple does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Int,
    Long,
}

/// What becomes of an option that Kafka 4.3 no longer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Former {
    /// An option of today.
    No,
    /// Taken as the option of this name.
    SameAs(&'static str),
    /// Refused with this sentence.
    Gone(&'static str),
}

/// One option of one tool.
#[derive(Debug, Clone, Copy)]
pub struct Opt {
    pub name: &'static str,
    pub arg: Arg,
    pub kind: Kind,
    pub default: Option<&'static str>,
    /// Only allowed together with one of these options; empty: always.
    pub with: &'static [&'static str],
    /// Values may be several, separated by commas.
    pub list: bool,
    pub former: Former,
    pub doc: &'static str,
}

/// An option without a value.
pub const fn flag(name: &'static str, doc: &'static str) -> Opt {
    Opt { name, arg: Arg::None, kind: Kind::Text, default: None, with: &[], list: false, former: Former::No, doc }
}

/// An option with a value; `what` names it in `--help`.
pub const fn value(name: &'static str, what: &'static str, doc: &'static str) -> Opt {
    Opt { arg: Arg::Required(what), ..flag(name, doc) }
}

/// An option that went by this name in older Kafka releases and means what `today` means.
pub const fn former(name: &'static str, today: &'static str) -> Opt {
    Opt { arg: Arg::Required("value"), former: Former::SameAs(today), ..flag(name, "") }
}

/// An option of older Kafka releases that cannot be honoured; `instead` is the sentence that says what to use.
pub const fn gone(name: &'static str, takes_value: bool, instead: &'static str) -> Opt {
    let arg = if takes_value { Arg::Optional("value") } else { Arg::None };
    Opt { arg, former: Former::Gone(instead), ..flag(name, "") }
}

/// The answer to `--zookeeper`, which Kafka 4 no longer has anywhere.
pub const NO_ZOOKEEPER: &str = "zookeeper is not a recognized option: Kafka has no ZooKeeper since 4.0; use \
     --bootstrap-server HOST:PORT (for example --bootstrap-server localhost:9092)";

impl Opt {
    pub const fn int(self) -> Opt {
        Opt { kind: Kind::Int, ..self }
    }
    pub const fn long(self) -> Opt {
        Opt { kind: Kind::Long, ..self }
    }
    pub const fn default(self, default: &'static str) -> Opt {
        Opt { default: Some(default), ..self }
    }
    pub const fn optional(self) -> Opt {
        match self.arg {
            Arg::Required(what) => Opt { arg: Arg::Optional(what), ..self },
            _ => self,
        }
    }
    pub const fn with(self, with: &'static [&'static str]) -> Opt {
        Opt { with, ..self }
    }
    pub const fn list(self) -> Opt {
        Opt { list: true, ..self }
    }

    /// Whether `--help` and completions show it.
    pub fn is_shown(&self) -> bool {
        self.former == Former::No
    }
}

/// What is wrong with a command line, in jopt-simple's words.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OptionError {
    #[error("{name} is not a recognized option{}", hint.as_ref().map(|h| format!(" (did you mean --{h}?)")).unwrap_or_default())]
    Unrecognized { name: String, hint: Option<String> },
    #[error("Option {0} requires an argument")]
    MissingArgument(&'static str),
    #[error("Cannot parse argument '{value}' of option {name}")]
    Unparsable { name: &'static str, value: String },
    #[error("Found multiple arguments for option {0}, but you asked for only one")]
    Multiple(&'static str),
    #[error("Option(s) [{0}] are unavailable given other options on the command line")]
    Unavailable(String),
    #[error("{0}")]
    Gone(&'static str),
}

/// A parsed command line.
#[derive(Debug, Default)]
pub struct Parsed {
    specs: BTreeMap<&'static str, &'static Opt>,
    values: BTreeMap<&'static str, Vec<String>>,
    /// Names of the options in the order in which they were given, repeats included.
    pub order: Vec<&'static str>,
    /// Arguments that belong to no option.
    pub rest: Vec<String>,
    /// How many arguments there were.
    pub count: usize,
}

impl Parsed {
    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// The values given for an option; its default does not count.
    pub fn all(&self, name: &str) -> &[String] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }

    /// The value of an option, its default when it was not given; an error when it was given twice.
    pub fn text(&self, name: &str) -> Result<Option<&str>, OptionError> {
        let spec = self.specs.get(name);
        match self.all(name) {
            [] => Ok(spec.and_then(|s| s.default)),
            [one] => Ok(Some(one)),
            _ => Err(OptionError::Multiple(spec.map_or("", |s| s.name))),
        }
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, OptionError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let digits = text.strip_prefix('+').unwrap_or(text);
        let name = self.specs.get(name).map_or("", |s| s.name);
        digits.parse().map(Some).map_err(|_| OptionError::Unparsable { name, value: text.to_owned() })
    }

    pub fn int(&self, name: &str) -> Result<Option<i32>, OptionError> {
        self.number(name)
    }

    pub fn long(&self, name: &str) -> Result<Option<i64>, OptionError> {
        self.number(name)
    }
}

const DASHES: [char; 8] = ['-', '\u{2010}', '\u{2011}', '\u{2012}', '\u{2013}', '\u{2014}', '\u{2015}', '\u{2212}'];

/// The argument as it was meant: a leading dash that is not a hyphen counts as the hyphens it replaced.
pub fn plain_dashes(arg: &str) -> String {
    let name = arg.trim_start_matches(DASHES);
    let lead: String = arg.chars().take_while(|c| DASHES.contains(c)).collect();
    if lead.chars().all(|c| c == '-') || !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return arg.to_owned();
    }
    let is_letter = name.chars().nth(1).is_none_or(|c| c == '=');
    format!("{}{name}", if is_letter { "-" } else { "--" })
}

/// Parses `args` (without the program's name) by `specs`.
pub fn parse(specs: &'static [Opt], args: &[String]) -> Result<Parsed, OptionError> {
    let mut parsed =
        Parsed { specs: specs.iter().map(|s| (s.name, s)).collect(), count: args.len(), ..Parsed::default() };
    let mut args = args.iter().peekable();
    while let Some(arg) = args.next() {
        let arg = plain_dashes(arg);
        if arg == "--" {
            parsed.rest.extend(args.by_ref().cloned());
            break;
        }
        let Some(name) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).filter(|n| !n.is_empty()) else {
            parsed.rest.push(arg);
            continue;
        };
        let (name, inline) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned()).filter(|v| !v.is_empty())),
            None => (name, None),
        };
        let given = find(specs, name).ok_or_else(|| unrecognized(specs, name, arg.starts_with("--")))?;
        let spec = match given.former {
            Former::No => given,
            Former::SameAs(today) => find(specs, today).unwrap_or(given),
            Former::Gone(instead) => return Err(OptionError::Gone(instead)),
        };
        let values = parsed.values.entry(spec.name).or_default();
        parsed.order.push(spec.name);
        let value = match (spec.arg, inline) {
            (Arg::None, _) => None,
            (_, Some(value)) => Some(value),
            (Arg::Required(_), None) => Some(args.next().cloned().ok_or(OptionError::MissingArgument(given.name))?),
            // A number below zero is a value where one is wanted.
            (Arg::Optional(_), None) => args
                .next_if(|a| !plain_dashes(a).starts_with('-') || (spec.kind != Kind::Text && a.parse::<i64>().is_ok()))
                .cloned(),
        };
        match value {
            Some(value) if spec.list => values.extend(value.split(',').map(str::to_owned)),
            Some(value) => values.push(value),
            None => {}
        }
    }
    check_available(&parsed)?;
    Ok(parsed)
}

fn find(specs: &'static [Opt], name: &str) -> Option<&'static Opt> {
    specs.iter().find(|s| s.name == name)
}

fn check_available(parsed: &Parsed) -> Result<(), OptionError> {
    if parsed.has("help") || parsed.has("version") {
        return Ok(());
    }
    let missing = |s: &&&Opt| parsed.has(s.name) && !s.with.is_empty() && !s.with.iter().any(|w| parsed.has(w));
    let names: Vec<&str> = parsed.specs.values().filter(missing).map(|s| s.name).collect();
    if names.is_empty() { Ok(()) } else { Err(OptionError::Unavailable(names.join(", "))) }
}

fn unrecognized(specs: &'static [Opt], name: &str, is_long: bool) -> OptionError {
    let hint = nearest(name, specs.iter().filter(|s| s.is_shown()).map(|s| s.name));
    let name = if is_long || hint.is_some() { name.to_owned() } else { name.chars().take(1).collect() };
    OptionError::Unrecognized { name, hint: hint.map(str::to_owned) }
}

/// The name closest to a mistyped one: the only one that it begins, else one a few letters away.
pub fn nearest<'a>(typed: &str, names: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    let mut begun = names.clone().filter(|n| typed.len() > 1 && n.starts_with(typed));
    if let (Some(only), None) = (begun.next(), begun.next()) {
        return Some(only);
    }
    let normal = typed.to_lowercase().replace('_', "-");
    let (distance, name) = names.map(|n| (edit_distance(&normal, n), n)).min_by_key(|(d, _)| *d)?;
    (distance <= 1 + typed.len() / 5).then_some(name)
}

/// Levenshtein distance, in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cb, cell) in b.chars().zip(row.iter_mut().skip(1)) {
            let cost = (diagonal + usize::from(ca != cb)).min(*cell + 1).min(left + 1);
            diagonal = *cell;
            *cell = cost;
            left = cost;
        }
    }
    row.last().copied().unwrap_or(0)
}

/// The table that `--help` prints, in jopt-simple's layout: 80 columns, options in alphabetical order.
pub fn help(specs: &[Opt]) -> String {
    const WIDTH: usize = 80;
    let mut specs: Vec<&Opt> = specs.iter().filter(|s| s.is_shown()).collect();
    specs.sort_by_key(|s| s.name);
    let rows: Vec<(String, String)> = specs.iter().map(|s| (synopsis(s), description(s))).collect();
    let left = rows.iter().map(|(l, _)| l.len()).max().unwrap_or(0).clamp(20, 39);
    let right = WIDTH - left - 2;
    let mut out = format!("{:left$}  Description\n{:left$}  -----------\n", "Option", "------");
    for (option, text) in rows {
        let option = wrap(&option, left, "  ");
        let text: Vec<String> = text.split('\n').flat_map(|line| wrap(line, right, "  ")).collect();
        for i in 0..option.len().max(text.len()) {
            let cell = |column: &[String]| column.get(i).cloned().unwrap_or_default();
            out.push_str(format!("{:left$}  {}", cell(&option), cell(&text)).trim_end());
            out.push('\n');
        }
    }
    out
}

fn synopsis(spec: &Opt) -> String {
    let kind = match spec.kind {
        Kind::Text => "String",
        Kind::Int => "Integer",
        Kind::Long => "Long",
    };
    let described = |what: &str| if what.is_empty() { kind.to_owned() } else { format!("{kind}: {what}") };
    match spec.arg {
        Arg::None => format!("--{}", spec.name),
        Arg::Required(what) => format!("--{} <{}>", spec.name, described(what)),
        Arg::Optional(what) => format!("--{} [{}]", spec.name, described(what)),
    }
}

fn description(spec: &Opt) -> String {
    match spec.default {
        Some(default) => format!("{} (default: {default})", spec.doc),
        None => spec.doc.to_owned(),
    }
}

/// Breaks a line at spaces; every line after the first begins with `indent`.
fn wrap(line: &str, width: usize, indent: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let lead: String = line.chars().take_while(|c| *c == ' ').collect();
    let mut current = lead.clone();
    for word in line.split_whitespace() {
        let is_fresh = current.trim().is_empty();
        if !is_fresh && current.len() + 1 + word.len() > width {
            lines.push(std::mem::replace(&mut current, format!("{lead}{indent}{word}")));
        } else {
            if !is_fresh {
                current.push(' ');
            }
            current.push_str(word);
        }
    }
    lines.push(current);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    static SPECS: &[Opt] = &[
        flag("list", "List."),
        flag("describe", "Describe."),
        value("topic", "topic", "Topic."),
        value("partitions", "# of partitions", "How many.").int(),
        value("state", "", "State.").optional().with(&["describe", "list"]),
        value("delete-config", "name", "Names.").list(),
        value("bootstrap-server", "server to connect to", "REQUIRED: where."),
        former("broker-list", "bootstrap-server"),
        gone("zookeeper", true, NO_ZOOKEEPER),
        flag("help", "Help."),
    ];

    fn line(text: &str) -> Result<Parsed, OptionError> {
        parse(SPECS, &text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn values_come_in_every_form() {
        for text in
            ["--topic a", "--topic=a", "-topic a", "-topic=a", "--topic= a", "–topic a", "—topic=a", "–-topic a"]
        {
            assert_eq!(line(text).unwrap().text("topic").unwrap(), Some("a"), "{text}");
        }
        assert_eq!(line("--topic --list").unwrap().text("topic").unwrap(), Some("--list"));
        assert_eq!(line("--broker-list h:1").unwrap().text("bootstrap-server").unwrap(), Some("h:1"));
        assert_eq!(line("--delete-config a,b --delete-config c").unwrap().all("delete-config"), ["a", "b", "c"]);
        assert_eq!(line("--list x -- --topic y").unwrap().rest, ["x", "--topic", "y"]);
    }

    #[test]
    fn optional_values_stop_at_options() {
        let parsed = line("--list --state --topic t").unwrap();
        assert!(parsed.has("state") && parsed.all("state").is_empty());
        assert_eq!(line("--list --state stable").unwrap().text("state").unwrap(), Some("stable"));
    }

    #[test]
    fn numbers_are_checked_when_read() {
        assert_eq!(line("--partitions 3").unwrap().int("partitions"), Ok(Some(3)));
        assert_eq!(line("--partitions -1").unwrap().int("partitions"), Ok(Some(-1)));
        let error = line("--partitions x").unwrap().int("partitions").unwrap_err();
        assert_eq!(error.to_string(), "Cannot parse argument 'x' of option partitions");
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("--topik t", "topik is not a recognized option (did you mean --topic?)"),
            ("--part 3", "part is not a recognized option (did you mean --partitions?)"),
            ("--wholly-unlike", "wholly-unlike is not a recognized option"),
            ("-zz", "z is not a recognized option"),
            ("--topic", "Option topic requires an argument"),
            ("--topic a --state", "Option(s) [state] are unavailable given other options on the command line"),
            ("--zookeeper localhost:2181 --list", NO_ZOOKEEPER),
        ];
        for (text, message) in cases {
            assert_eq!(line(text).unwrap_err().to_string(), message, "{text}");
        }
        let twice = line("--topic a --topic b").unwrap();
        assert_eq!(
            twice.text("topic").unwrap_err().to_string(),
            "Found multiple arguments for option topic, but you asked for only one"
        );
    }

    #[test]
    fn help_shows_every_option_of_today() {
        let text = help(SPECS);
        assert!(text.contains("--partitions <Integer: # of"), "{text}");
        assert!(text.contains("--state [String]"), "{text}");
        assert!(!text.contains("zookeeper") && !text.contains("broker-list"), "{text}");
        assert!(text.lines().all(|l| l.len() <= 80), "{text}");
    }
}
