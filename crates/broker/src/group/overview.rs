//! The groups at a glance, for whoever counts them.

use super::Coordinator;
use super::machine::State;

/// One group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupOverview {
    pub id: String,
    /// Of the consumer protocol (KIP-848), not the classic one.
    pub is_consumer: bool,
    /// As ListGroups shows it.
    pub state: &'static str,
    pub members: usize,
    /// Partitions with a committed offset.
    pub offsets: usize,
}

impl Coordinator {
    /// All groups, those that only ever committed too.
    pub fn overview(&self) -> Vec<GroupOverview> {
        let offsets = |id: &str| self.offsets(id).map(|(_, partitions)| partitions.len()).sum();
        let group = |id: &String, is_consumer: bool, state: &'static str, members: usize| GroupOverview {
            id: id.clone(),
            is_consumer,
            state,
            members,
            offsets: offsets(id),
        };
        let classic = self.groups.values().map(|g| group(&g.id, false, g.state.name(), g.members.len()));
        let consumers = self.consumers.values().map(|g| group(&g.id, true, g.state().name(), g.members().len()));
        let only_offsets = self.offsets.keys().filter(|id| !self.has_group(id));
        let only_offsets = only_offsets.map(|id| group(id, false, State::Empty.name(), 0));
        classic.chain(consumers).chain(only_offsets).collect()
    }
}
