//! When members are taken for gone, and when to look. A heartbeat puts off one member's deadline: the others are not looked
//! at for it. What is kept instead is a moment that is no later than the earliest deadline; when it comes, all are looked at.

use std::collections::BTreeMap;

/// When a member is taken for gone, on the caller's monotonic clock.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Deadlines {
    pub session_ms: Option<i64>,
    /// To have given up partitions in this epoch.
    pub revoke: Option<(i64, i32)>,
    /// A member of the classic protocol is to join again.
    pub join_ms: Option<i64>,
    /// It is to ask for its assignment.
    pub sync_ms: Option<i64>,
}

impl Deadlines {
    fn next_ms(&self) -> Option<i64> {
        let revoke = self.revoke.map(|(until, _)| until);
        [self.session_ms, revoke, self.join_ms, self.sync_ms].into_iter().flatten().min()
    }
}

/// The deadlines of a group's members.
#[derive(Debug, Clone, Default)]
pub struct Schedule {
    of_members: BTreeMap<String, Deadlines>,
    /// No later than the earliest deadline.
    look_ms: Option<i64>,
}

/// When to look is no part of what the group is.
impl PartialEq for Schedule {
    fn eq(&self, other: &Schedule) -> bool {
        self.of_members == other.of_members
    }
}

impl Schedule {
    /// Changes the deadlines of a member.
    pub fn change<T>(&mut self, member: &str, change: impl FnOnce(&mut Deadlines) -> T) -> T {
        let deadlines = self.of_members.entry(member.to_owned()).or_default();
        let result = change(deadlines);
        let next = deadlines.next_ms();
        self.look_ms = [self.look_ms, next].into_iter().flatten().min();
        result
    }

    pub fn remove(&mut self, member: &str) {
        self.of_members.remove(member);
        if self.of_members.is_empty() {
            self.look_ms = None;
        }
    }

    pub fn contains(&self, member: &str) -> bool {
        self.of_members.contains_key(member)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Deadlines)> {
        self.of_members.iter()
    }

    /// Forgets times to give up partitions that have passed.
    pub fn forget_revocations(&mut self, by_ms: i64) {
        for deadlines in self.of_members.values_mut() {
            deadlines.revoke = deadlines.revoke.filter(|(until, _)| *until > by_ms);
        }
    }

    /// When to look at all of them: no later than the earliest deadline.
    pub fn look_ms(&self) -> Option<i64> {
        self.look_ms
    }

    /// The earliest deadline; looks at all of them.
    pub fn earliest_ms(&self) -> Option<i64> {
        self.of_members.values().filter_map(Deadlines::next_ms).min()
    }

    /// All were looked at: the next time is when the earliest deadline is.
    pub fn looked(&mut self) {
        self.look_ms = self.earliest_ms();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Session(u8, i64),
        Revoke(u8, Option<i64>),
        Join(u8, Option<i64>),
        Remove(u8),
        Wait(i64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let (member, ms) = (0..6_u8, 1..50_i64);
        prop_oneof![
            4 => (member.clone(), ms.clone()).prop_map(|(m, ms)| Step::Session(m, ms)),
            1 => (member.clone(), proptest::option::of(ms.clone())).prop_map(|(m, ms)| Step::Revoke(m, ms)),
            1 => (member.clone(), proptest::option::of(ms.clone())).prop_map(|(m, ms)| Step::Join(m, ms)),
            1 => member.prop_map(Step::Remove),
            3 => ms.prop_map(Step::Wait),
        ]
    }

    /// Who is overdue is removed, as of `next`: what the group did when each heartbeat looked at everybody.
    fn run(steps: &[Step], next: impl Fn(&Schedule) -> Option<i64>) -> Vec<(i64, String)> {
        let (mut schedule, mut now_ms, mut ended) = (Schedule::default(), 0, Vec::new());
        let name = |member: &u8| member.to_string();
        for step in steps {
            match step {
                Step::Session(m, ms) => schedule.change(&name(m), |d| d.session_ms = Some(now_ms + ms)),
                Step::Revoke(m, ms) => schedule.change(&name(m), |d| d.revoke = ms.map(|ms| (now_ms + ms, 1))),
                Step::Join(m, ms) => schedule.change(&name(m), |d| d.join_ms = ms.map(|ms| now_ms + ms)),
                Step::Remove(m) => schedule.remove(&name(m)),
                Step::Wait(ms) => {
                    let until = now_ms + ms;
                    while let Some(due) = next(&schedule).filter(|due| *due <= until) {
                        now_ms = now_ms.max(due);
                        let overdue = schedule.iter().filter(|(_, d)| d.next_ms().is_some_and(|ms| ms <= now_ms));
                        let overdue: Vec<String> = overdue.map(|(member, _)| member.clone()).collect();
                        for member in overdue {
                            schedule.remove(&member);
                            ended.push((now_ms, member));
                        }
                        schedule.looked();
                    }
                    now_ms = until;
                }
            }
            let (look, earliest) = (schedule.look_ms(), schedule.earliest_ms());
            assert!(earliest.is_none_or(|earliest| look.is_some_and(|look| look <= earliest)), "{look:?} {earliest:?}");
        }
        ended
    }

    proptest! {
        #[test]
        fn members_end_when_they_did_when_all_were_looked_at(steps in proptest::collection::vec(step(), 0..60)) {
            prop_assert_eq!(run(&steps, Schedule::look_ms), run(&steps, Schedule::earliest_ms));
        }
    }

    #[test]
    fn heartbeats_look_at_one_member() {
        let mut schedule = Schedule::default();
        for member in 0..100 {
            schedule.change(&member.to_string(), |d| d.session_ms = Some(45_000));
        }
        let look = schedule.look_ms();
        schedule.change("0", |d| d.session_ms = Some(50_000));
        assert_eq!((look, schedule.look_ms()), (Some(45_000), Some(45_000)));
        schedule.looked();
        assert_eq!(schedule.look_ms(), Some(45_000));
        schedule.change("1", |d| d.revoke = Some((1_000, 3)));
        assert_eq!(schedule.look_ms(), Some(1_000));
    }
}
