//! `range`: of each topic every subscriber gets a run of neighbouring partitions, the first ones one more where it does not
//! divide evenly. Static members come first, by instance id, so that they keep their places; with topics of the same size
//! and the same subscribers, a member gets the same partitions of each.

use std::collections::BTreeMap;

use caudal_protocol::Uuid;

use super::{Subscriber, Subscribers};
use crate::group::consumer::Partitions;

struct Topic {
    partitions: i32,
    subscribers: i32,
    extra: i32,
    next: i32,
}

pub fn assign(members: &Subscribers, partition_count: &BTreeMap<Uuid, i32>) -> BTreeMap<String, Partitions> {
    let mut order: Vec<(&String, &Subscriber)> = members.iter().collect();
    // Those without an instance id after those with one.
    order.sort_by_key(|(id, member)| match &member.instance_id {
        Some(instance) => (false, instance.as_str()),
        None => (true, id.as_str()),
    });
    let mut topics: BTreeMap<Uuid, Topic> = BTreeMap::new();
    for topic in members.values().flat_map(|member| &member.topics) {
        let partitions = partition_count.get(topic).copied().unwrap_or(0);
        topics.entry(*topic).or_insert(Topic { partitions, subscribers: 0, extra: 0, next: 0 }).subscribers += 1;
    }
    topics.values_mut().for_each(|topic| topic.extra = topic.partitions % topic.subscribers);
    let part = |(id, member): (&String, &Subscriber)| {
        let mut assigned = Partitions::new();
        for topic_id in &member.topics {
            let Some(topic) = topics.get_mut(topic_id) else { continue };
            let extra = i32::from(topic.extra > 0);
            topic.extra -= extra;
            let end = (topic.next + topic.partitions / topic.subscribers + extra).min(topic.partitions);
            if topic.next < end {
                assigned.insert(*topic_id, (topic.next..end).collect());
            }
            topic.next = end;
        }
        (id.clone(), assigned)
    };
    order.into_iter().map(part).collect()
}
