//! Random histories of transactions in a compacted log: what a reader of committed records sees, before and behind every
//! round of cleaning.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use caudal_protocol::batch::{BatchBuilder, Batches};
use caudal_protocol::compression::Codec;
use caudal_storage::{
    AppendOrigin, CleanerConfig, EndMarker, Log, LogConfig, LogDir, TransactionMarker, Verification, clean_due,
};
use proptest::prelude::*;

use crate::support::*;

const DELETE_RETENTION_MS: i64 = 1000;

#[derive(Clone, Debug)]
enum Step {
    /// A value for a key, by a transactional producer or by none.
    Write {
        producer: Option<i64>,
        key: u8,
    },
    /// Ends the producer's transaction, or one in which it wrote nothing here.
    End {
        producer: i64,
        commit: bool,
    },
    Roll,
    /// Some milliseconds pass, then everything due is cleaned with a map for so many keys.
    Clean {
        elapsed_ms: i64,
        keys: usize,
    },
    Reopen {
        cleanly: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = (proptest::option::weighted(0.8, 1i64..4), 0u8..5);
    let end = (1i64..4, any::<bool>());
    let step = prop_oneof![
        10 => write.prop_map(|(producer, key)| Step::Write { producer, key }),
        6 => end.prop_map(|(producer, commit)| Step::End { producer, commit }),
        2 => Just(Step::Roll),
        3 => (0i64..700, 1usize..20).prop_map(|(elapsed_ms, keys)| Step::Clean { elapsed_ms, keys }),
        1 => any::<bool>().prop_map(|cleanly| Step::Reopen { cleanly }),
    ];
    proptest::collection::vec(step, 1..80)
}

fn config() -> LogConfig {
    LogConfig { segment_bytes: 600, segment_ms: i64::MAX, delete_retention_ms: DELETE_RETENTION_MS, ..compacted() }
}

/// What a reader of committed records gets from `offset` on: offsets and keys.
fn committed(log: &Log, offset: i64) -> Vec<(i64, String)> {
    let end = log.last_stable_offset();
    let mut seen = Vec::new();
    let mut next = offset;
    while next < end {
        let slice = log.read(next, 1 << 20, end, true).unwrap();
        let mut aborted = log.aborted_in(&slice, next, end);
        aborted.sort_by_key(|transaction| transaction.first_offset);
        let mut aborted = aborted.into_iter().peekable();
        let mut left_out = BTreeSet::new();
        let before = next;
        for batch in Batches::new(slice.to_bytes().unwrap()).map(Result::unwrap) {
            let header = batch.header;
            while let Some(transaction) = aborted.next_if(|t| t.first_offset <= header.last_offset()) {
                left_out.insert(transaction.producer_id);
            }
            if EndMarker::of_batch(&batch).is_some_and(|end| end.marker == TransactionMarker::Abort) {
                left_out.remove(&header.producer_id);
            }
            let passed_over =
                header.is_control() || header.is_transactional() && left_out.contains(&header.producer_id);
            if !passed_over {
                for record in batch.records(1 << 20).unwrap().to_records().unwrap() {
                    if record.offset >= offset {
                        seen.push((record.offset, String::from_utf8(record.key.unwrap().to_vec()).unwrap()));
                    }
                }
            }
            next = header.next_offset();
        }
        if next == before {
            break;
        }
    }
    seen
}

#[derive(Default)]
struct Model {
    /// By offset: the key of each record that is or may become committed.
    committed: BTreeMap<i64, String>,
    /// What open transactions wrote.
    open: BTreeMap<i64, BTreeMap<i64, String>>,
    sequence: i32,
    now_ms: i64,
}

impl Model {
    fn write(&mut self, log: &Arc<Log>, producer: Option<i64>, key: u8) {
        let key = format!("key {key}");
        let mut builder = BatchBuilder::new(Codec::None);
        if let Some(id) = producer {
            builder = builder.producer(id, 0, self.sequence).transactional(true);
            self.sequence += 1;
        }
        builder.append(BASE_TIME_MS, Some(key.as_bytes()), Some(b"some value"), &[]);
        let batch = builder.build().unwrap();
        let written = log.append_verified(&batch, 0, AppendOrigin::Coordinator, Verification::Off).unwrap();
        match producer {
            Some(id) => self.open.entry(id).or_default().insert(written.base_offset, key),
            None => self.committed.insert(written.base_offset, key),
        };
    }

    fn end(&mut self, log: &Arc<Log>, producer: i64, commit: bool) {
        let marker = if commit { TransactionMarker::Commit } else { TransactionMarker::Abort };
        log.append_marker((producer, 0), EndMarker { marker, coordinator_epoch: 0 }, 0, 0).unwrap();
        let written = self.open.remove(&producer).unwrap_or_default();
        if commit {
            self.committed.extend(written);
        }
    }

    fn check(&self, log: &Log) {
        let stable = self.open.values().flat_map(BTreeMap::keys).min().copied().unwrap_or(log.log_end_offset());
        assert_eq!(log.last_stable_offset(), stable);
        let mut newest: BTreeMap<&str, i64> = BTreeMap::new();
        for (offset, key) in self.committed.range(..stable) {
            newest.insert(key, *offset);
        }
        for from in (0..log.log_end_offset()).step_by(3) {
            let seen = committed(log, from);
            for (offset, key) in &seen {
                assert_eq!(self.committed.get(offset), Some(key), "read from {from}: {offset} was not committed");
            }
            for (key, offset) in newest.iter().filter(|(_, offset)| **offset >= from) {
                let is_there = seen.iter().any(|(seen, _)| seen == offset);
                assert!(is_there, "read from {from}: the newest of {key} is gone: {offset}");
            }
        }
    }
}

fn run(steps: &[Step]) {
    let temp = tempfile::tempdir().unwrap();
    let mut dir: LogDir = open(temp.path()).0;
    let mut log = create(&dir, config());
    let mut model = Model::default();
    for step in steps {
        match *step {
            Step::Write { producer, key } => model.write(&log, producer, key),
            Step::End { producer, commit } => model.end(&log, producer, commit),
            Step::Roll => log.roll().unwrap(),
            Step::Clean { elapsed_ms, keys } => {
                log.flush().unwrap();
                model.now_ms += elapsed_ms;
                let config = CleanerConfig { dedupe_buffer_bytes: keys * 24, ..CleanerConfig::default() };
                clean_due(&dir, &config, model.now_ms).unwrap();
                model.check(&log);
            }
            Step::Reopen { cleanly } => {
                log.flush().unwrap();
                if cleanly {
                    dir.close(-1).unwrap();
                }
                drop((log, dir));
                dir = open(temp.path()).0;
                log = create(&dir, config());
                model.check(&log);
            }
        }
    }
    log.flush().unwrap();
    model.check(&log);
}

const CLEAN: Step = Step::Clean { elapsed_ms: 600, keys: 100 };

fn write(producer: i64) -> Step {
    Step::Write { producer: Some(producer), key: 0 }
}

fn end(producer: i64, commit: bool) -> Step {
    Step::End { producer, commit }
}

#[test]
fn an_abort_of_nothing_takes_nothing_with_it() {
    run(&[write(1), end(1, true), end(1, false), Step::Roll, CLEAN]);
}

/// Cleaning stops below the open transaction, in front of the marker of the aborted one.
#[test]
fn what_was_aborted_behind_the_cleaned_part_is_no_value_either() {
    run(&[write(1), end(1, true), write(2), Step::Roll, write(3), end(2, false), Step::Roll, CLEAN, end(3, true)]);
}

#[test]
fn a_producer_whose_abort_marker_is_gone_is_read_again() {
    let other = Step::Write { producer: None, key: 1 };
    let round = [other, Step::Roll, CLEAN];
    let mut steps = vec![write(1), end(1, false), write(1), end(1, true)];
    steps.extend(std::iter::repeat_n(round, 5).flatten());
    steps.push(Step::Reopen { cleanly: true });
    run(&steps);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn readers_of_committed_records_never_notice_the_cleaner(steps in steps()) {
        run(&steps);
    }
}
