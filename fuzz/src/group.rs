//! Records of `__consumer_offsets`, and what the coordinator's state becomes of them.
//!
//! Input: parts (two bytes of length, then as many): key and value by turns. An empty value is a tombstone.

use bytes::Bytes;
use caudal_broker::group::consumer::Clock;
use caudal_broker::group::coordinator::{Coordinator, GroupConfig};
use caudal_broker::group::record::GroupRecord;

const NOW_MS: i64 = 1_700_000_000_000;

pub fn run(mut data: &[u8]) {
    let mut coordinator = Coordinator::new(GroupConfig::default());
    while let Some(key) = super::take_part(&mut data) {
        let value = super::take_part(&mut data).filter(|value| !value.is_empty());
        let value = value.map(Bytes::copy_from_slice);
        let Ok(Some(record)) = GroupRecord::decode(Bytes::copy_from_slice(key), value) else { continue };
        let (key, value) = record.encode().expect("what was read can be written");
        let again = GroupRecord::decode(key, value).expect("what was written can be read");
        assert_eq!(format!("{again:?}"), format!("{:?}", Some(&record)));
        coordinator.replay(record, NOW_MS);
    }
    served(&mut coordinator);
}

/// What a broker does with the groups that it has loaded.
fn served(coordinator: &mut Coordinator) {
    coordinator.start_consumer_clocks(NOW_MS);
    for group in coordinator.list(|_, _| true) {
        coordinator.describe(&group.group_id);
        let _ = coordinator.describe_consumer(&group.group_id);
        coordinator.delete(&group.group_id);
    }
    let later_ms = NOW_MS + 24 * 3_600_000;
    coordinator.tick(Clock { now_ms: later_ms, wall_ms: later_ms }, later_ms);
    coordinator.expire_offsets(later_ms);
}
