use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn topic(n: u8) -> Uuid {
    Uuid([n; 16])
}

fn members(subscriptions: &[Vec<u8>]) -> Subscribers {
    let member = |(i, topics): (usize, &Vec<u8>)| {
        let topics = topics.iter().map(|n| topic(*n)).collect();
        (format!("m{i:02}"), Subscriber { instance_id: None, topics, assigned: Partitions::new() })
    };
    subscriptions.iter().enumerate().map(member).collect()
}

fn counts(partitions: &[i32]) -> BTreeMap<Uuid, i32> {
    (0u8..).zip(partitions).map(|(n, count)| (topic(n), *count)).collect()
}

fn size(partitions: &Partitions) -> usize {
    partitions.values().map(BTreeSet::len).sum()
}

/// Every partition of a topic that somebody reads is with exactly one of those who read it.
fn check_complete(members: &Subscribers, counts: &BTreeMap<Uuid, i32>, target: &BTreeMap<String, Partitions>) {
    let mut owners: BTreeMap<(Uuid, i32), &str> = BTreeMap::new();
    for (id, partitions) in target {
        for (topic, partition) in partitions.iter().flat_map(|(topic, ps)| ps.iter().map(move |p| (*topic, *p))) {
            assert!(members[id].topics.contains(&topic), "{id} does not read {topic}");
            assert_eq!(owners.insert((topic, partition), id), None, "{topic}-{partition} twice");
        }
    }
    let read: BTreeSet<Uuid> = members.values().flat_map(|m| &m.topics).copied().collect();
    let wanted = read.iter().flat_map(|topic| (0..counts[topic]).map(move |p| (*topic, p)));
    assert!(wanted.eq(owners.keys().copied()), "{owners:?}");
}

fn settle(members: &mut Subscribers, target: &BTreeMap<String, Partitions>) {
    for (id, member) in members.iter_mut() {
        member.assigned = target.get(id).cloned().unwrap_or_default();
    }
}

fn lists(target: &BTreeMap<String, Partitions>, id: &str) -> Vec<Vec<i32>> {
    target[id].values().map(|ps| ps.iter().copied().collect()).collect()
}

#[test]
fn range_gives_neighbours_and_the_first_ones_more() {
    let mut group = members(&[vec![0, 1], vec![0, 1], vec![0]]);
    let target = assign("range", &group, &counts(&[7, 3]));
    assert_eq!(lists(&target, "m00"), [vec![0, 1, 2], vec![0, 1]]);
    assert_eq!(lists(&target, "m01"), [vec![3, 4], vec![2]]);
    assert_eq!(lists(&target, "m02"), [vec![5, 6]]);
    // Static members come first.
    group.get_mut("m02").unwrap().instance_id = Some("z".into());
    assert_eq!(lists(&assign("range", &group, &counts(&[7, 3])), "m02"), [vec![0, 1, 2]]);
    // More members than partitions.
    let many = members(&[vec![0], vec![0], vec![0]]);
    let target = assign("range", &many, &counts(&[2]));
    assert_eq!(target.values().map(size).collect::<Vec<_>>(), [1, 1, 0]);
}

#[test]
fn uniform_leaves_the_extra_partition_with_whoever_has_it() {
    let mut group = members(&[vec![0], vec![0]]);
    group.get_mut("m01").unwrap().assigned = Partitions::from([(topic(0), BTreeSet::from([0, 1]))]);
    let target = assign("uniform", &group, &counts(&[3]));
    assert_eq!((lists(&target, "m00"), lists(&target, "m01")), (vec![vec![2]], vec![vec![0, 1]]));
}

#[test]
fn nobody_and_nothing() {
    for assignor in ASSIGNORS {
        assert!(assign(assignor, &Subscribers::new(), &BTreeMap::new()).is_empty());
        let idle = members(&[vec![], vec![]]);
        assert!(assign(assignor, &idle, &BTreeMap::new()).values().all(Partitions::is_empty));
    }
}

fn subscriptions(homogeneous: bool) -> impl Strategy<Value = Vec<Vec<u8>>> {
    let one = proptest::collection::btree_set(0u8..5, 0..5).prop_map(|set| set.into_iter().collect::<Vec<u8>>());
    proptest::collection::vec(one, 1..9).prop_map(move |mut all| {
        if homogeneous {
            let first = all[0].clone();
            all.iter_mut().for_each(|one| one.clone_from(&first));
        }
        all
    })
}

proptest! {
    /// Members come and go, topics grow: shares differ by one at most, and nobody loses more than their share demands.
    #[test]
    fn uniform_is_balanced_and_sticky(
        before in subscriptions(true),
        partitions in proptest::collection::vec(0i32..12, 5),
        (gone, come) in (0usize..4, 0usize..4),
        grown in 0i32..4,
    ) {
        let mut group = members(&before);
        let target = assign("uniform", &group, &counts(&partitions));
        check_complete(&group, &counts(&partitions), &target);
        settle(&mut group, &target);
        for _ in 0..gone.min(group.len() - 1) {
            group.pop_first();
        }
        let sample = group.values().next().unwrap().clone();
        for i in 0..come {
            group.insert(format!("a{i}"), Subscriber { assigned: Partitions::new(), ..sample.clone() });
        }
        let partitions: Vec<i32> = partitions.iter().map(|count| count + grown).collect();
        let target = assign("uniform", &group, &counts(&partitions));
        check_complete(&group, &counts(&partitions), &target);
        let sizes: Vec<usize> = target.values().map(size).collect();
        prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
        for (id, member) in &group {
            let has = |(topic, partition): (&Uuid, &i32)| target[id].get(topic).is_some_and(|ps| ps.contains(partition));
            let all = member.assigned.iter().flat_map(|(topic, ps)| ps.iter().map(move |p| (topic, p)));
            let kept = all.filter(|place| has(*place)).count();
            prop_assert_eq!(kept, size(&member.assigned).min(size(&target[id])), "{}", id);
        }
        settle(&mut group, &target);
        prop_assert_eq!(assign("uniform", &group, &counts(&partitions)), target);
    }

    /// With different subscriptions no partition could move to somebody who has two less.
    #[test]
    fn no_move_would_balance_better(
        subscriptions in subscriptions(false),
        partitions in proptest::collection::vec(0i32..12, 5),
        gone in 0usize..4,
    ) {
        let mut group = members(&subscriptions);
        let counts = counts(&partitions);
        for round in 0..2 {
            let target = assign("uniform", &group, &counts);
            check_complete(&group, &counts, &target);
            for (giver, partitions) in &target {
                for topic in partitions.keys() {
                    for taker in group.iter().filter(|(_, m)| m.topics.contains(topic)).map(|(id, _)| id) {
                        prop_assert!(size(partitions) <= size(&target[taker]) + 1, "{giver} {taker} {target:?}");
                    }
                }
            }
            settle(&mut group, &target);
            prop_assert_eq!(&assign("uniform", &group, &counts), &target);
            if round == 0 {
                (0..gone.min(group.len() - 1)).for_each(|_| drop(group.pop_last()));
            }
        }
    }

    #[test]
    fn range_is_complete_and_even_in_each_topic(
        subscriptions in subscriptions(false),
        partitions in proptest::collection::vec(0i32..12, 5),
    ) {
        let group = members(&subscriptions);
        let counts = counts(&partitions);
        let target = assign("range", &group, &counts);
        check_complete(&group, &counts, &target);
        for topic in counts.keys() {
            let of_topic = |id: &String| target[id].get(topic).map_or(0, BTreeSet::len);
            let sizes: Vec<usize> = group.iter().filter(|(_, m)| m.topics.contains(topic)).map(|(id, _)| of_topic(id)).collect();
            prop_assert!(sizes.iter().max().unwrap_or(&0) - sizes.iter().min().unwrap_or(&0) <= 1, "{sizes:?}");
        }
    }
}
