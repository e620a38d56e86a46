//! Random histories of a compacted log against a model: the list of all that was ever written.

use std::collections::{BTreeMap, BTreeSet};

use caudal_protocol::batch::BatchBuilder;
use caudal_protocol::compression::Codec;
use caudal_storage::{AppendOrigin, CleanerConfig, Log, LogConfig, LogDir, clean_due};
use proptest::prelude::*;

use crate::support::*;

const DELETE_RETENTION_MS: i64 = 1000;

#[derive(Clone, Debug)]
enum Step {
    /// Keys with values (`None`: deleted) as one batch; by one of two idempotent producers or by none.
    Append {
        codec: Codec,
        producer: Option<i64>,
        records: Vec<(u8, Option<u8>)>,
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
    let records = proptest::collection::vec((0u8..12, proptest::option::weighted(0.8, any::<u8>())), 1..8);
    let codec = proptest::sample::select(Codec::ALL.to_vec());
    let producer = proptest::option::of(1i64..3);
    let append = (codec, producer, records);
    let append = append.prop_map(|(codec, producer, records)| Step::Append { codec, producer, records });
    let clean = (0i64..700, 1usize..20).prop_map(|(elapsed_ms, keys)| Step::Clean { elapsed_ms, keys });
    let reopen = any::<bool>().prop_map(|cleanly| Step::Reopen { cleanly });
    proptest::collection::vec(prop_oneof![12 => append, 2 => Just(Step::Roll), 3 => clean, 1 => reopen], 1..60)
}

fn config() -> LogConfig {
    LogConfig { segment_bytes: 600, delete_retention_ms: DELETE_RETENTION_MS, ..compacted() }
}

#[derive(Default)]
struct Model {
    /// All that was ever written, by offset.
    written: BTreeMap<i64, Seen>,
    /// Up to where the log was cleaned.
    cleaned: i64,
    now_ms: i64,
    sequences: BTreeMap<i64, i32>,
}

impl Model {
    fn append(&mut self, log: &std::sync::Arc<Log>, codec: Codec, producer: Option<i64>, records: &[(u8, Option<u8>)]) {
        let mut builder = BatchBuilder::new(codec);
        if let Some(id) = producer {
            let sequence = self.sequences.entry(id).or_default();
            builder.set_producer(id, 0, *sequence);
            *sequence += records.len() as i32;
        }
        let base = log.log_end_offset();
        for (offset, (key, value)) in (base..).zip(records) {
            let (key, value) = (format!("key {key}"), value.map(|v| format!("value {v} {}", "y".repeat(30))));
            let time = BASE_TIME_MS + offset * 7 % 50;
            builder.append(time, Some(key.as_bytes()), value.as_deref().map(str::as_bytes), &[(b"n", None)]);
            self.written.insert(offset, (offset, time, key, value));
        }
        let info = log.append(&builder.build().unwrap(), 0, AppendOrigin::Client).unwrap();
        assert_eq!(info.base_offset, base);
    }

    fn clean(&mut self, dir: &LogDir, elapsed_ms: i64, keys: usize) {
        self.now_ms += elapsed_ms;
        let config = CleanerConfig { dedupe_buffer_bytes: keys * 24, ..CleanerConfig::default() };
        for cleaned in clean_due(dir, &config, self.now_ms).unwrap() {
            assert_eq!(cleaned.from_offset, self.cleaned);
            assert!(cleaned.end_offset > self.cleaned);
            self.cleaned = cleaned.end_offset;
        }
    }

    fn check(&self, log: &Log) {
        let end = log.log_end_offset();
        let seen = read_records(log, 0);
        for record in &seen {
            assert_eq!(Some(record), self.written.get(&record.0), "nothing is changed");
        }
        let left: BTreeSet<i64> = seen.iter().map(|record| record.0).collect();
        let mut newest: BTreeMap<&str, i64> = BTreeMap::new();
        let mut newest_clean: BTreeMap<&str, i64> = BTreeMap::new();
        for (&offset, (_, _, key, _)) in &self.written {
            newest.insert(key, offset);
            if offset < self.cleaned {
                newest_clean.insert(key, offset);
            }
        }
        for (key, offset) in newest {
            let is_tombstone = self.written[&offset].3.is_none();
            assert!(left.contains(&offset) || is_tombstone, "the newest of {key} is gone: {offset}");
            assert!(left.contains(&offset) || self.now_ms >= DELETE_RETENTION_MS, "{key} was forgotten too early");
        }
        for &offset in left.range(..self.cleaned) {
            let key = &self.written[&offset].2;
            assert_eq!(newest_clean[key.as_str()], offset, "{key} has older values in the clean part");
        }
        assert!(left.range(self.cleaned..).count() == self.written.range(self.cleaned..).count());
        // A reader may begin anywhere.
        for offset in (0..end).step_by(3) {
            let from: Vec<i64> = read_records(log, offset).into_iter().map(|record| record.0).collect();
            assert_eq!(from, left.range(offset..).copied().collect::<Vec<_>>());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, ..ProptestConfig::default() })]

    #[test]
    fn the_newest_value_of_every_key_survives_and_nothing_else_in_the_clean_part(steps in steps()) {
        let temp = tempfile::tempdir().unwrap();
        let mut dir = open(temp.path()).0;
        let mut log = create(&dir, config());
        let mut model = Model::default();
        for step in &steps {
            match step {
                Step::Append { codec, producer, records } => model.append(&log, *codec, *producer, records),
                Step::Roll => log.roll().unwrap(),
                Step::Clean { elapsed_ms, keys } => {
                    log.flush().unwrap();
                    model.clean(&dir, *elapsed_ms, *keys);
                    model.check(&log);
                }
                Step::Reopen { cleanly } => {
                    log.flush().unwrap();
                    if *cleanly {
                        dir.close(-1).unwrap();
                    }
                    drop((log, dir));
                    dir = open(temp.path()).0;
                    log = create(&dir, config());
                    prop_assert_eq!(log.log_end_offset(), model.written.len() as i64);
                    model.check(&log);
                }
            }
        }
        model.check(&log);
    }
}
