//! `uniform` where members subscribe to different topics: members keep what they have, what is free goes to the least
//! loaded subscriber, and then partitions of one topic after the other move from its most to its least loaded subscribers
//! until no such move would bring them closer together.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use caudal_protocol::Uuid;

use super::Subscribers;
use crate::group::consumer::Partitions;

/// Rounds over all topics, so that a rare order in which they feed each other ends.
const ROUNDS: usize = 16;

struct Topic {
    id: Uuid,
    /// Index of the owner of each partition.
    owners: Vec<Option<usize>>,
    subscribers: Vec<usize>,
}

pub fn assign(members: &Subscribers, partition_count: &BTreeMap<Uuid, i32>) -> BTreeMap<String, Partitions> {
    let mut loads = vec![0usize; members.len()];
    let mut topics = topics(members, partition_count);
    keep(members, &mut topics, &mut loads);
    for topic in &mut topics {
        for index in 0..topic.owners.len() {
            if topic.owners.get(index).copied().flatten().is_none()
                && let Some(least) = topic.least_loaded(&loads)
            {
                topic.give(index, least, &mut loads);
            }
        }
    }
    for _ in 0..ROUNDS {
        let moved = topics.iter_mut().map(|topic| topic.balance(&mut loads)).sum::<usize>();
        if moved == 0 {
            break;
        }
    }
    let mut target: Vec<Partitions> = vec![Partitions::new(); members.len()];
    for topic in &topics {
        for (partition, owner) in (0..).zip(&topic.owners) {
            if let Some(assigned) = owner.and_then(|owner| target.get_mut(owner)) {
                assigned.entry(topic.id).or_default().insert(partition);
            }
        }
    }
    members.keys().cloned().zip(target).collect()
}

/// All topics with a subscriber: those first that give each of theirs the most, as the least can be done about them.
fn topics(members: &Subscribers, partition_count: &BTreeMap<Uuid, i32>) -> Vec<Topic> {
    let mut subscribers: BTreeMap<Uuid, Vec<usize>> = BTreeMap::new();
    for (index, member) in members.values().enumerate() {
        member.topics.iter().for_each(|topic| subscribers.entry(*topic).or_default().push(index));
    }
    let topic = |(id, subscribers): (Uuid, Vec<usize>)| {
        let partitions = partition_count.get(&id).and_then(|count| usize::try_from(*count).ok()).unwrap_or(0);
        Topic { id, owners: vec![None; partitions], subscribers }
    };
    let mut topics: Vec<Topic> = subscribers.into_iter().map(topic).collect();
    topics.sort_by(|a, b| {
        let shares = (b.owners.len() * a.subscribers.len()).cmp(&(a.owners.len() * b.subscribers.len()));
        shares.then(a.subscribers.len().cmp(&b.subscribers.len())).then_with(|| java_order(&a.id, &b.id))
    });
    topics
}

/// Java compares ids as two signed numbers.
fn java_order(a: &Uuid, b: &Uuid) -> Ordering {
    let halves = |id: &Uuid| {
        let bits = u128::from_be_bytes(id.0);
        ((bits >> 64) as i64, bits as i64)
    };
    halves(a).cmp(&halves(b))
}

/// Everybody keeps what they have and still subscribe to.
fn keep(members: &Subscribers, topics: &mut [Topic], loads: &mut [usize]) {
    let place: BTreeMap<Uuid, usize> = topics.iter().enumerate().map(|(i, topic)| (topic.id, i)).collect();
    for (index, member) in members.values().enumerate() {
        for (id, partitions) in member.assigned.iter().filter(|(id, _)| member.topics.contains(id)) {
            let Some(topic) = place.get(id).and_then(|i| topics.get_mut(*i)) else { continue };
            let places: BTreeSet<usize> = partitions.iter().filter_map(|p| usize::try_from(*p).ok()).collect();
            for partition in places {
                if topic.owners.get(partition).is_some_and(Option::is_none) {
                    topic.give(partition, index, loads);
                }
            }
        }
    }
}

impl Topic {
    fn load(loads: &[usize], member: usize) -> usize {
        loads.get(member).copied().unwrap_or(0)
    }

    fn least_loaded(&self, loads: &[usize]) -> Option<usize> {
        self.subscribers.iter().copied().min_by_key(|member| (Topic::load(loads, *member), *member))
    }

    fn give(&mut self, partition: usize, member: usize, loads: &mut [usize]) {
        let Some(owner) = self.owners.get_mut(partition) else { return };
        if let Some(load) = owner.replace(member).and_then(|old| loads.get_mut(old)) {
            *load -= 1;
        }
        if let Some(load) = loads.get_mut(member) {
            *load += 1;
        }
    }

    /// Moves partitions of this topic until its subscribers cannot come closer to each other by it. Returns how many.
    fn balance(&mut self, loads: &mut [usize]) -> usize {
        let mut of_member: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (partition, owner) in self.owners.iter().enumerate() {
            of_member.entry(owner.unwrap_or(usize::MAX)).or_default().push(partition);
        }
        let mut moved = 0;
        loop {
            // Among those as loaded, whoever comes last gives.
            let givers = of_member.iter().filter(|(_, partitions)| !partitions.is_empty()).map(|(member, _)| *member);
            let Some(most) = givers.max_by_key(|member| (Topic::load(loads, *member), *member)) else { break };
            let Some(least) = self.least_loaded(loads) else { break };
            if Topic::load(loads, most) <= Topic::load(loads, least) + 1 {
                break;
            }
            let Some(partition) = of_member.get_mut(&most).and_then(Vec::pop) else { break };
            self.give(partition, least, loads);
            moved += 1;
        }
        moved
    }
}
