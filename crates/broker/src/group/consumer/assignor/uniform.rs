//! `uniform` where all members subscribe to the same topics: the members' shares differ by one partition at most, and
//! everybody keeps what they have as far as that allows.

use std::collections::{BTreeMap, BTreeSet};

use caudal_protocol::Uuid;

use super::Subscribers;
use crate::group::consumer::Partitions;

pub fn assign(
    members: &Subscribers,
    topics: &BTreeSet<Uuid>,
    partition_count: &BTreeMap<Uuid, i32>,
) -> BTreeMap<String, Partitions> {
    let count = |topic: &Uuid| partition_count.get(topic).copied().unwrap_or(0);
    let total: usize = topics.iter().map(|topic| usize::try_from(count(topic)).unwrap_or(0)).sum();
    if total == 0 {
        return members.keys().map(|id| (id.clone(), Partitions::new())).collect();
    }
    let (least, mut with_extra) = (total / members.len(), total % members.len());
    let mut taken: BTreeSet<(Uuid, i32)> = BTreeSet::new();
    let mut target: BTreeMap<String, Partitions> = BTreeMap::new();
    let mut unfilled: Vec<(String, usize)> = Vec::new();
    for (index, (id, member)) in members.iter().enumerate() {
        let has_extra = with_extra > 0;
        let mut quota = least + usize::from(has_extra);
        let mut kept = Partitions::new();
        for (topic, partitions) in member.assigned.iter().filter(|(topic, _)| topics.contains(topic)) {
            for &partition in partitions.iter().filter(|p| **p < count(topic)) {
                if quota > 0 && taken.insert((*topic, partition)) {
                    quota -= 1;
                    kept.entry(*topic).or_default().insert(partition);
                }
            }
        }
        // The extra partition is left to somebody who has it already, as long as enough members are left to take it.
        let gives_up = quota > 0 && has_extra && members.len() - index > with_extra;
        quota -= usize::from(gives_up);
        if has_extra && !gives_up {
            with_extra -= 1;
        }
        if quota > 0 {
            unfilled.push((id.clone(), quota));
        }
        target.insert(id.clone(), kept);
    }
    let all = topics.iter().flat_map(|topic| (0..count(topic)).map(|partition| (*topic, partition)));
    let mut free = all.filter(|place| !taken.contains(place)).collect::<Vec<_>>().into_iter();
    for (id, quota) in unfilled {
        let assigned = target.entry(id).or_default();
        for (topic, partition) in free.by_ref().take(quota) {
            assigned.entry(topic).or_default().insert(partition);
        }
    }
    target
}
