//! How the leader of a group spreads partitions over its members: Kafka's range, round robin and cooperative sticky.
//! Pure functions of the members' subscriptions and the topics' sizes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use caudal_protocol::TopicPartition;

use crate::config::ConfigError;

/// A strategy of `partition.assignment.strategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assignor {
    Range,
    RoundRobin,
    CooperativeSticky,
}

/// What a member told when it joined.
#[derive(Debug, Clone, Default)]
pub(crate) struct Subscriber {
    pub member_id: String,
    pub instance_id: Option<String>,
    pub topics: Vec<String>,
    /// What it holds at present; believed for the newest generation only.
    pub owned: Vec<TopicPartition>,
    pub generation: i32,
}

/// Partitions by member id.
pub(crate) type Assignment = BTreeMap<String, Vec<TopicPartition>>;

impl Assignor {
    /// The protocol's name in JoinGroup.
    pub fn name(self) -> &'static str {
        match self {
            Assignor::Range => "range",
            Assignor::RoundRobin => "roundrobin",
            Assignor::CooperativeSticky => "cooperative-sticky",
        }
    }

    /// Whether members keep their partitions while a rebalance is under way (KIP-429).
    pub(crate) fn is_cooperative(self) -> bool {
        self == Assignor::CooperativeSticky
    }

    pub(crate) fn from_name(name: &str) -> Option<Assignor> {
        match name {
            "range" | "org.apache.kafka.clients.consumer.RangeAssignor" => Some(Assignor::Range),
            "roundrobin" | "org.apache.kafka.clients.consumer.RoundRobinAssignor" => Some(Assignor::RoundRobin),
            "cooperative-sticky" | "org.apache.kafka.clients.consumer.CooperativeStickyAssignor" => {
                Some(Assignor::CooperativeSticky)
            }
            _ => None,
        }
    }

    /// The strategies of a list, as names or as Java class names.
    pub(crate) fn parse_list(list: &str) -> Result<Vec<Assignor>, ConfigError> {
        let unknown = |name: &str| ConfigError::BadValue {
            name: "partition.assignment.strategy".to_owned(),
            value: name.to_owned(),
            allowed: "one or more of range, roundrobin, cooperative-sticky".to_owned(),
        };
        let names = list.split(',').map(|n| n.trim().trim_start_matches("class ")).filter(|n| !n.is_empty());
        let parsed: Vec<Assignor> =
            names.map(|n| Assignor::from_name(n).ok_or_else(|| unknown(n))).collect::<Result<_, _>>()?;
        if parsed.is_empty() { Err(unknown(list)) } else { Ok(parsed) }
    }

    /// Spreads the partitions of `topics` (name to number of partitions).
    pub(crate) fn assign(self, members: &[Subscriber], topics: &BTreeMap<String, usize>) -> Assignment {
        let mut members: Vec<&Subscriber> = members.iter().collect();
        members.sort_by(|a, b| match (&a.instance_id, &b.instance_id) {
            (Some(x), Some(y)) => x.cmp(y),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (None, None) => a.member_id.cmp(&b.member_id),
        });
        match self {
            Assignor::Range => range(&members, topics),
            Assignor::RoundRobin => round_robin(&members, topics),
            Assignor::CooperativeSticky => {
                let sticky = sticky(&members, topics);
                without_moves(&members, sticky)
            }
        }
    }
}

fn empty(members: &[&Subscriber]) -> Assignment {
    members.iter().map(|m| (m.member_id.clone(), Vec::new())).collect()
}

fn subscribes(member: &Subscriber, topic: &str) -> bool {
    member.topics.iter().any(|t| t == topic)
}

fn index(partition: usize) -> i32 {
    i32::try_from(partition).unwrap_or(i32::MAX)
}

/// Topic by topic, consecutive partitions to each member; the first members get one more.
fn range(members: &[&Subscriber], topics: &BTreeMap<String, usize>) -> Assignment {
    let mut assignment = empty(members);
    for (topic, count) in topics {
        let consumers: Vec<&&Subscriber> = members.iter().filter(|m| subscribes(m, topic)).collect();
        if consumers.is_empty() {
            continue;
        }
        let (each, more) = (count / consumers.len(), count % consumers.len());
        let mut next = 0;
        for (i, member) in consumers.iter().enumerate() {
            let take = each + usize::from(i < more);
            if let Some(assigned) = assignment.get_mut(&member.member_id) {
                assigned.extend((next..next + take).map(|p| TopicPartition::new(topic.clone(), index(p))));
            }
            next += take;
        }
    }
    assignment
}

/// All partitions in order, to the members in turn.
fn round_robin(members: &[&Subscriber], topics: &BTreeMap<String, usize>) -> Assignment {
    let mut assignment = empty(members);
    let mut turn = members.iter().cycle();
    for (topic, count) in topics {
        if !members.iter().any(|m| subscribes(m, topic)) {
            continue;
        }
        for partition in 0..*count {
            // Ends: some member subscribes.
            let Some(member) = turn.find(|m| subscribes(m, topic)) else { continue };
            if let Some(assigned) = assignment.get_mut(&member.member_id) {
                assigned.push(TopicPartition::new(topic.clone(), index(partition)));
            }
        }
    }
    assignment
}

/// The present owner of each partition: claims of the newest generation count, and of two equal ones none.
fn owners<'a>(members: &[&'a Subscriber]) -> HashMap<&'a TopicPartition, &'a str> {
    let mut claims: HashMap<&TopicPartition, (i32, Option<&str>)> = HashMap::new();
    for member in members {
        for tp in &member.owned {
            let claim = (member.generation, Some(member.member_id.as_str()));
            claims
                .entry(tp)
                .and_modify(|best| match best.0.cmp(&member.generation) {
                    std::cmp::Ordering::Less => *best = claim,
                    std::cmp::Ordering::Equal => best.1 = None,
                    std::cmp::Ordering::Greater => {}
                })
                .or_insert(claim);
        }
    }
    claims.into_iter().filter_map(|(tp, (_, owner))| owner.map(|o| (tp, o))).collect()
}

/// As balanced as the subscriptions allow, with as few moves as that takes.
fn sticky(members: &[&Subscriber], topics: &BTreeMap<String, usize>) -> Assignment {
    let all: BTreeSet<TopicPartition> =
        topics.iter().flat_map(|(t, n)| (0..*n).map(|p| TopicPartition::new(t.clone(), index(p)))).collect();
    let owners = owners(members);
    let mut assignment = empty(members);
    let mut homeless: Vec<&TopicPartition> = Vec::new();
    for tp in &all {
        let owner = owners.get(tp).and_then(|id| members.iter().find(|m| m.member_id == **id));
        match owner.filter(|m| subscribes(m, &tp.topic)).and_then(|m| assignment.get_mut(&m.member_id)) {
            Some(assigned) => assigned.push(tp.clone()),
            None => homeless.push(tp),
        }
    }
    // The least choice first.
    homeless.sort_by_key(|tp| members.iter().filter(|m| subscribes(m, &tp.topic)).count());
    for tp in homeless {
        if let Some(member) = least_loaded(members, &assignment, &tp.topic)
            && let Some(assigned) = assignment.get_mut(&member)
        {
            assigned.push(tp.clone());
        }
    }
    balance(members, &mut assignment);
    for assigned in assignment.values_mut() {
        assigned.sort();
    }
    assignment
}

fn least_loaded(members: &[&Subscriber], assignment: &Assignment, topic: &str) -> Option<String> {
    let load = |m: &&&Subscriber| assignment.get(&m.member_id).map_or(0, Vec::len);
    members.iter().filter(|m| subscribes(m, topic)).min_by_key(load).map(|m| m.member_id.clone())
}

/// Moves partitions from those who have two or more above another that could take them. Every move lowers the sum of
/// the squares, so this ends.
fn balance(members: &[&Subscriber], assignment: &mut Assignment) {
    loop {
        let mut moves = None;
        let mut by_load: Vec<(&String, &Vec<TopicPartition>)> = assignment.iter().collect();
        by_load.sort_by_key(|(_, assigned)| std::cmp::Reverse(assigned.len()));
        'search: for (from, assigned) in by_load {
            for (at, tp) in assigned.iter().enumerate().rev() {
                let Some(to) = least_loaded(members, assignment, &tp.topic) else { continue };
                if assignment.get(&to).map_or(0, Vec::len) + 1 < assigned.len() {
                    moves = Some((from.clone(), at, to));
                    break 'search;
                }
            }
        }
        let Some((from, at, to)) = moves else { return };
        let Some(tp) = assignment.get_mut(&from).map(|assigned| assigned.remove(at)) else { return };
        if let Some(assigned) = assignment.get_mut(&to) {
            assigned.push(tp);
        }
    }
}

/// What changes hands is given to nobody in this round: its owner must let go of it first and join again (KIP-429).
fn without_moves(members: &[&Subscriber], mut assignment: Assignment) -> Assignment {
    let holders: Vec<(&TopicPartition, &str)> =
        members.iter().flat_map(|m| m.owned.iter().map(|tp| (tp, m.member_id.as_str()))).collect();
    for (member, assigned) in &mut assignment {
        assigned.retain(|tp| !holders.iter().any(|(held, holder)| *held == tp && *holder != member.as_str()));
    }
    assignment
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(id: &str, topics: &[&str]) -> Subscriber {
        let topics = topics.iter().map(|t| (*t).to_owned()).collect();
        Subscriber { member_id: id.to_owned(), topics, generation: 1, ..Default::default() }
    }

    fn sizes(topics: &[(&str, usize)]) -> BTreeMap<String, usize> {
        topics.iter().map(|(t, n)| ((*t).to_owned(), *n)).collect()
    }

    fn show(assignment: &Assignment) -> String {
        let one = |(m, tps): (&String, &Vec<TopicPartition>)| {
            format!("{m}:{}", tps.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
        };
        assignment.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn range_gives_consecutive_partitions_of_each_topic() {
        let members = [member("b", &["t", "u"]), member("a", &["t"])];
        let assigned = Assignor::Range.assign(&members, &sizes(&[("t", 3), ("u", 2)]));
        assert_eq!(show(&assigned), "a:t-0,t-1 b:t-2,u-0,u-1");
    }

    #[test]
    fn static_members_come_first_by_instance() {
        let mut z = member("z", &["t"]);
        z.instance_id = Some("i".to_owned());
        let assigned = Assignor::Range.assign(&[member("a", &["t"]), z], &sizes(&[("t", 3)]));
        assert_eq!(show(&assigned), "a:t-2 z:t-0,t-1");
    }

    #[test]
    fn round_robin_deals_all_partitions_in_turn() {
        let members = [member("a", &["t", "u"]), member("b", &["t", "u"]), member("c", &["u"])];
        let assigned = Assignor::RoundRobin.assign(&members, &sizes(&[("t", 3), ("u", 3), ("v", 9)]));
        assert_eq!(show(&assigned), "a:t-0,t-2,u-2 b:t-1,u-0 c:u-1");
    }

    #[test]
    fn what_moves_is_first_taken_away_then_given() {
        let mut a = member("a", &["t"]);
        let mut b = member("b", &["t"]);
        a.owned = (0..4).map(|p| TopicPartition::new("t", p)).collect();
        let first = Assignor::CooperativeSticky.assign(&[a.clone(), b.clone()], &sizes(&[("t", 4)]));
        assert_eq!(show(&first), "a:t-0,t-1 b:");
        a.owned = first["a"].clone();
        b.owned = first["b"].clone();
        let second = Assignor::CooperativeSticky.assign(&[a, b], &sizes(&[("t", 4)]));
        assert_eq!(show(&second), "a:t-0,t-1 b:t-2,t-3");
    }

    #[test]
    fn strategies_are_known_by_both_names() {
        let parsed = Assignor::parse_list("range, org.apache.kafka.clients.consumer.CooperativeStickyAssignor");
        assert_eq!(parsed.unwrap(), [Assignor::Range, Assignor::CooperativeSticky]);
        assert!(Assignor::parse_list("best").is_err());
        assert!(Assignor::parse_list("").is_err());
    }

    proptest! {
        #[test]
        fn every_partition_goes_to_exactly_one_subscriber(
            subscriptions in proptest::collection::vec(proptest::collection::vec(0..4usize, 0..4), 1..6),
            counts in proptest::collection::vec(0..7usize, 4),
        ) {
            let names = ["t0", "t1", "t2", "t3"];
            let members: Vec<Subscriber> = subscriptions.iter().enumerate().map(|(i, topics)| {
                let topics: Vec<&str> = topics.iter().map(|t| names[*t]).collect();
                member(&format!("m{i}"), &topics)
            }).collect();
            let topics: BTreeMap<String, usize> = names.iter().zip(&counts).map(|(t, n)| ((*t).to_owned(), *n)).collect();
            for assignor in [Assignor::Range, Assignor::RoundRobin, Assignor::CooperativeSticky] {
                let assigned = assignor.assign(&members, &topics);
                let mut seen = BTreeSet::new();
                for (id, tps) in &assigned {
                    let m = members.iter().find(|m| m.member_id == *id).unwrap();
                    for tp in tps {
                        prop_assert!(subscribes(m, &tp.topic));
                        prop_assert!(seen.insert(tp.clone()), "{tp} twice");
                    }
                }
                let wanted: usize = topics.iter()
                    .filter(|(t, _)| members.iter().any(|m| subscribes(m, t))).map(|(_, n)| n).sum();
                prop_assert_eq!(seen.len(), wanted);
            }
        }

        #[test]
        fn cooperative_rounds_settle_in_balance(members in 1..6usize, before in 1..6usize, partitions in 0..20usize) {
            let topics = sizes(&[("t", partitions)]);
            let mut group: Vec<Subscriber> = (0..before).map(|i| member(&format!("m{i}"), &["t"])).collect();
            for size in [before, members] {
                group.truncate(size);
                while group.len() < size { group.push(member(&format!("m{}", group.len()), &["t"])); }
                for _ in 0..3 {
                    let assigned = Assignor::CooperativeSticky.assign(&group, &topics);
                    for m in &mut group { m.owned = assigned[&m.member_id].clone(); }
                }
                let loads: Vec<usize> = group.iter().map(|m| m.owned.len()).collect();
                prop_assert_eq!(loads.iter().sum::<usize>(), partitions);
                prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "{:?}", loads);
            }
        }
    }
}
