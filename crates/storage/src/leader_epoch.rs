//! At which offset each leader epoch began: `leader-epoch-checkpoint`.

use std::path::{Path, PathBuf};

use crate::checkpoint::{self, CheckpointError};
use crate::disk::Disk;

pub const FILE_NAME: &str = "leader-epoch-checkpoint";

/// The epoch and the offset of "not known" in OffsetForLeaderEpoch answers.
pub const UNDEFINED_EPOCH: i32 = -1;
pub const UNDEFINED_OFFSET: i64 = -1;

/// The epochs of a log in ascending order, epochs and offsets alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaderEpochs {
    entries: Vec<(i32, i64)>,
}

impl LeaderEpochs {
    pub fn read(disk: &dyn Disk, dir: &Path) -> Result<LeaderEpochs, CheckpointError> {
        let entries = checkpoint::read_entries(disk, &path(dir), |line| {
            let (epoch, offset) = line.split_once(' ')?;
            Some((epoch.trim().parse::<i32>().ok()?, offset.trim().parse::<i64>().ok()?))
        })?;
        let mut epochs = LeaderEpochs::default();
        for (epoch, offset) in entries.unwrap_or_default() {
            epochs.assign(epoch, offset);
        }
        Ok(epochs)
    }

    pub fn write(&self, disk: &dyn Disk, dir: &Path) -> Result<(), CheckpointError> {
        let lines = self.entries.iter().map(|(epoch, offset)| format!("{epoch} {offset}"));
        checkpoint::write_entries(disk, &path(dir), lines)
    }

    /// Notes that `epoch` begins at `start_offset`. True when that was news. Entries that contradict it go.
    pub fn assign(&mut self, epoch: i32, start_offset: i64) -> bool {
        if epoch < 0 || self.entries.last().is_some_and(|&(latest, start)| epoch <= latest && start_offset >= start) {
            return false;
        }
        self.entries.retain(|&(e, start)| e < epoch && start < start_offset);
        self.entries.push((epoch, start_offset));
        true
    }

    pub fn latest(&self) -> Option<i32> {
        self.entries.last().map(|&(epoch, _)| epoch)
    }

    /// Where the latest epoch begins.
    pub fn latest_start(&self) -> Option<i64> {
        self.entries.last().map(|&(_, start)| start)
    }

    /// The epoch in which the record at `offset` was written.
    pub fn epoch_for_offset(&self, offset: i64) -> Option<i32> {
        self.entries.iter().rev().find(|&&(_, start)| start <= offset).map(|&(epoch, _)| epoch)
    }

    /// The largest epoch known that is not above `epoch`, and the offset behind its last record. Both are undefined
    /// (-1) when the question cannot be answered. Source: KIP-101, KIP-279.
    pub fn end_offset_for(&self, epoch: i32, log_end_offset: i64) -> (i32, i64) {
        if epoch == UNDEFINED_EPOCH {
            return (UNDEFINED_EPOCH, UNDEFINED_OFFSET);
        }
        if self.latest() == Some(epoch) {
            return (epoch, log_end_offset);
        }
        let above = self.entries.partition_point(|&(e, _)| e <= epoch);
        let Some(&(_, end)) = self.entries.get(above) else {
            return (UNDEFINED_EPOCH, UNDEFINED_OFFSET);
        };
        match above.checked_sub(1).and_then(|below| self.entries.get(below)) {
            Some(&(floor, _)) => (floor, end),
            // All that is known began later: the asker's epoch ended where the first known one began.
            None => (epoch, end),
        }
    }

    /// Forgets epochs that begin at `end_offset` or later. True when there were some.
    pub fn truncate_from_end(&mut self, end_offset: i64) -> bool {
        let before = self.entries.len();
        self.entries.retain(|&(_, start)| start < end_offset);
        before != self.entries.len()
    }

    /// Forgets epochs that ended before `start_offset`. True when something changed.
    pub fn truncate_from_start(&mut self, start_offset: i64) -> bool {
        let keep_from = self.entries.partition_point(|&(_, start)| start <= start_offset).saturating_sub(1);
        let mut changed = keep_from > 0;
        self.entries.drain(..keep_from);
        if let Some((_, start)) = self.entries.first_mut().filter(|(_, start)| *start < start_offset) {
            *start = start_offset;
            changed = true;
        }
        changed
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join(FILE_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epochs(entries: &[(i32, i64)]) -> LeaderEpochs {
        let mut epochs = LeaderEpochs::default();
        for &(epoch, start) in entries {
            epochs.assign(epoch, start);
        }
        epochs
    }

    #[test]
    fn end_offsets_follow_kip_101() {
        let epochs = epochs(&[(2, 10), (5, 20), (7, 30)]);
        for (asked, answer) in
            [(-1, (-1, -1)), (1, (1, 10)), (2, (2, 20)), (3, (2, 20)), (5, (5, 30)), (7, (7, 99)), (8, (-1, -1))]
        {
            assert_eq!(epochs.end_offset_for(asked, 99), answer, "epoch {asked}");
        }
        assert_eq!((epochs.epoch_for_offset(25), epochs.epoch_for_offset(5)), (Some(5), None));
    }

    #[test]
    fn truncation_keeps_what_still_holds() {
        let mut some = epochs(&[(2, 10), (5, 20), (7, 30)]);
        assert!(some.truncate_from_start(25));
        assert_eq!(some.entries, [(5, 25), (7, 30)]);
        assert!(some.truncate_from_end(30));
        assert_eq!(some.entries, [(5, 25)]);
        assert!(!some.truncate_from_end(30) && !some.truncate_from_start(25));
        assert!(!some.assign(5, 40) && some.assign(6, 40));
    }
}
