//! Whether the broker serves.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;

use caudal_protocol::{ErrorCode, TopicPartition};
use caudal_storage::{CorruptRange, Offline};

use crate::context::Context;
use crate::group::offsets_log::OFFSETS_TOPIC;
use crate::log_dirs::LogDirs;
use crate::partition::Partition;
use crate::topics::TopicsView;
use crate::transaction::STATE_TOPIC;

/// As many partitions are told of one by one.
const NAMED_MOST: usize = 5;

/// How bad something is.
#[derive(Debug)]
enum State {
    Ok,
    /// A part is out of service; the rest is served, so clients are welcome.
    Degraded(String),
    Unavailable(String),
}

/// What was looked at.
#[derive(Debug)]
pub struct Health {
    /// Of the cluster that is served; empty while the broker starts.
    cluster_id: String,
    checks: Vec<(&'static str, State)>,
}

impl Health {
    pub fn of(ctx: Option<&Context>) -> Health {
        let Some(ctx) = ctx else {
            let starting = State::Unavailable("it is starting".to_owned());
            return Health { cluster_id: String::new(), checks: vec![("broker", starting)] };
        };
        let groups = coordinator(ctx.groups.readiness_to_list(), OFFSETS_TOPIC, &ctx.groups.unreadable());
        let loading = ctx.transactions.view(|_| ()).err().unwrap_or(ErrorCode::None);
        let transactions = coordinator(loading, STATE_TOPIC, &ctx.transactions.unreadable());
        let checks = vec![
            ("broker", State::Ok),
            ("log_dir", log_dirs(&ctx.replicas.log_dirs)),
            ("partitions", partitions(&ctx.topics.view())),
            ("groups", groups),
            ("transactions", transactions),
        ];
        Health { cluster_id: ctx.cluster_id.clone(), checks }
    }

    pub fn is_ready(&self) -> bool {
        !self.checks.iter().any(|(_, state)| matches!(state, State::Unavailable(_)))
    }

    pub fn to_json(&self) -> String {
        let is_ok = self.checks.iter().all(|(_, state)| matches!(state, State::Ok));
        let status = match self.is_ready() {
            true if is_ok => "ok",
            true => "degraded",
            false => "unavailable",
        };
        let mut text = format!("{{\"status\":\"{status}\",\"cluster_id\":");
        push_string(&mut text, &self.cluster_id);
        text.push_str(",\"checks\":{");
        for (at, (name, state)) in self.checks.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            let _ = write!(text, "{comma}\"{name}\":");
            push_string(
                &mut text,
                match state {
                    State::Ok => "ok",
                    State::Degraded(problem) | State::Unavailable(problem) => problem,
                },
            );
        }
        text.push_str("}}\n");
        text
    }
}

/// A broker whose disk is full serves readers, and one of whose directories is out of use what lies in the others: who sent
/// their clients away would make that worse.
fn log_dirs(dirs: &LogDirs) -> State {
    let mut problems: Vec<String> = dirs.offline().iter().map(Offline::to_string).collect();
    let full = dirs.full();
    problems.extend(full.iter().map(|dir| {
        format!("the disk of {} is full: writes are refused, reads go on. Free space there", dir.display())
    }));
    let text = problems.join("; ");
    match problems.is_empty() {
        true => State::Ok,
        false if !dirs.is_any_in_use() || dirs.metadata().check_online().is_err() => State::Unavailable(text),
        false => State::Degraded(text),
    }
}

/// A coordinator serves what lies in the partitions of its topic that it could read when it started.
fn coordinator(loading: ErrorCode, topic: &str, unreadable: &BTreeSet<i32>) -> State {
    if loading.is_error() {
        return State::Unavailable(loading.message().to_owned());
    }
    let problems = unreadable.iter().map(|index| {
        format!("what is in {topic}-{index} is not served: the log of the broker's start says why, and what to do")
    });
    few(problems.collect(), "are not served")
}

/// A partition whose log is not there or cannot be used is offline, alone or with its directory; one with damaged records
/// serves the others.
fn partitions(view: &TopicsView) -> State {
    let offline = view.iter().flat_map(|topic| topic.offline.iter().map(|(index, why)| (&*topic.name, *index, why)));
    let mut offline: Vec<_> = offline.collect();
    offline.sort_unstable();
    let offline: Vec<String> =
        offline.iter().map(|(topic, index, why)| format!("{topic}-{index} is offline: {why}")).collect();
    let partitions = view.iter().flat_map(|topic| topic.partitions.iter().flatten());
    let ranges = |p: &'_ Arc<Partition>| {
        // What was deleted since is asked for by nobody.
        let start = p.log.log_start_offset();
        p.log.corrupt_ranges().into_iter().filter(move |range| range.next_offset > start)
    };
    let mut damaged: Vec<_> = partitions.flat_map(|p| ranges(p).map(|range| (&p.name, range))).collect();
    damaged.sort_unstable_by_key(|(name, range)| (&*name.topic, name.partition, range.first_offset));
    let told = |(name, range): &(&TopicPartition, CorruptRange)| {
        format!("{name} has damaged records: offsets {} to {}", range.first_offset, range.next_offset - 1)
    };
    let damaged = damaged.iter().map(told).collect();
    match (few(offline, "are offline"), few(damaged, "are damaged")) {
        (State::Degraded(offline), State::Degraded(damaged)) => State::Degraded(format!("{offline}; {damaged}")),
        (State::Ok, other) | (other, _) => other,
    }
}

/// The first of these problems; `what` the others are as well.
fn few(mut problems: Vec<String>, what: &str) -> State {
    let more = problems.len().saturating_sub(NAMED_MOST);
    problems.truncate(NAMED_MOST);
    if more > 0 {
        problems.push(format!("{more} more {what}"));
    }
    if problems.is_empty() { State::Ok } else { State::Degraded(problems.join("; ")) }
}

fn push_string(text: &mut String, value: &str) {
    text.push('"');
    for c in value.chars() {
        match c {
            '"' | '\\' => {
                text.push('\\');
                text.push(c);
            }
            c if c.is_control() => _ = write!(text, "\\u{:04x}", u32::from(c)),
            c => text.push(c),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use caudal_protocol::Uuid;

    use super::*;
    use crate::topics::Topic;

    #[test]
    fn partitions_that_are_offline_are_told() {
        let view = |count| {
            let offline: BTreeMap<i32, String> = (0..count).map(|index| (index, format!("why {index}"))).collect();
            TopicsView::new([Topic { name: "t".into(), id: Uuid([7; 16]), partitions: Vec::new(), offline }])
        };
        let told = |count| match partitions(&view(count)) {
            State::Degraded(text) => text.split("; ").map(str::to_owned).collect(),
            state => vec![format!("{state:?}")],
        };
        assert_eq!(told(0), ["Ok"]);
        assert_eq!(told(2), ["t-0 is offline: why 0", "t-1 is offline: why 1"]);
        assert_eq!((told(5).len(), told(7).len(), told(7).pop().unwrap()), (5, 6, "2 more are offline".to_owned()));
    }

    #[test]
    fn text_is_quoted() {
        let bad = || State::Unavailable("no \"x\\y\"\n".to_owned());
        let degraded = || State::Degraded("one of two".to_owned());
        let told = |checks| Health { cluster_id: "id".to_owned(), checks }.to_json();
        assert_eq!(
            told(vec![("a", State::Ok), ("b", bad()), ("c", degraded())]),
            "{\"status\":\"unavailable\",\"cluster_id\":\"id\",\"checks\":{\"a\":\"ok\",\"b\":\"no \\\"x\\\\y\\\"\\u000a\",\"c\":\"one of two\"}}\n"
        );
        assert_eq!(
            told(vec![("a", State::Ok), ("b", degraded())]),
            "{\"status\":\"degraded\",\"cluster_id\":\"id\",\"checks\":{\"a\":\"ok\",\"b\":\"one of two\"}}\n"
        );
        assert_eq!(
            told(vec![("a", State::Ok)]),
            "{\"status\":\"ok\",\"cluster_id\":\"id\",\"checks\":{\"a\":\"ok\"}}\n"
        );
    }
}
