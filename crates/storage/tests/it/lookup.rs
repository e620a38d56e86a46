//! Lookups by time and by epoch, against a model.

use std::path::Path;
use std::sync::Arc;

use caudal_protocol::batch::BatchBuilder;
use caudal_protocol::compression::Codec;
use caudal_storage::crash::CrashDisk;
use caudal_storage::{AppendOrigin, LogConfig, LogDir, LogDirConfig};
use proptest::prelude::*;

use crate::support::*;

#[test]
fn timestamps_are_found_within_compressed_batches_over_segments() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, small_segments());
    for n in 0..100 {
        let mut builder = BatchBuilder::new(Codec::ALL[n % 5]);
        for m in 0..3 {
            builder.append(BASE_TIME_MS + (n * 3 + m) as i64 * 10, None, Some(&[7; 90]), &[]);
        }
        log.append(&builder.build().unwrap(), 4, AppendOrigin::Client).unwrap();
    }
    assert!(log.segment_count() > 2);
    for wanted in 0..300 {
        for timestamp in [BASE_TIME_MS + wanted * 10, BASE_TIME_MS + wanted * 10 - 9] {
            let found = log.offset_for_timestamp(timestamp).unwrap().unwrap();
            let expected = (wanted, BASE_TIME_MS + wanted * 10, Some(4));
            assert_eq!((found.offset, found.timestamp_ms, found.leader_epoch), expected);
        }
    }
    assert_eq!(log.offset_for_timestamp(BASE_TIME_MS + 2991).unwrap(), None);
    assert_eq!(log.offset_of_max_timestamp().unwrap().map(|found| found.offset), Some(299));
    log.flush().unwrap();
    log.delete_records_before(150).unwrap();
    assert_eq!(log.offset_for_timestamp(0).unwrap().map(|found| found.offset), Some(150));
}

#[test]
fn a_log_without_records_has_no_times() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, _) = open(temp.path());
    let log = create(&dir, LogConfig::default());
    assert_eq!((log.offset_for_timestamp(0).unwrap(), log.offset_of_max_timestamp().unwrap()), (None, None));
    let mut builder = BatchBuilder::new(Codec::None);
    builder.append(-1, None, None, &[]);
    log.append(&builder.build().unwrap(), 0, AppendOrigin::Client).unwrap();
    assert_eq!((log.offset_for_timestamp(0).unwrap(), log.offset_of_max_timestamp().unwrap()), (None, None));
}

#[derive(Clone, Debug)]
enum Step {
    Append { timestamps: Vec<i64>, codec: Codec },
    Roll,
    Checkpoint,
    Restart { clean: bool },
    DeleteBefore(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let append = (proptest::collection::vec(0i64..2000, 1..6), proptest::sample::select(Codec::ALL.to_vec()))
        .prop_map(|(timestamps, codec)| Step::Append { timestamps, codec });
    prop_oneof![
        12 => append,
        1 => Just(Step::Roll),
        1 => Just(Step::Checkpoint),
        2 => any::<bool>().prop_map(|clean| Step::Restart { clean }),
        1 => any::<u8>().prop_map(Step::DeleteBefore),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever happens to the log, lookups answer as a list of timestamps does.
    #[test]
    fn lookups_agree_with_a_model(steps in proptest::collection::vec(step(), 1..60)) {
        let disk = CrashDisk::new();
        let open = || LogDir::open(Path::new("/data"), LogDirConfig::default(), Arc::new(disk.clone())).unwrap();
        let config = LogConfig { segment_bytes: 1000, index_interval_bytes: 150, ..LogConfig::default() };
        let (mut dir, _) = open();
        let mut log = create(&dir, config.clone());
        let mut model: Vec<i64> = Vec::new();
        let mut start = 0;
        for step in steps {
            match step {
                Step::Append { timestamps, codec } => {
                    let mut builder = BatchBuilder::new(codec);
                    for timestamp in &timestamps {
                        let offset = model.len();
                        model.push(*timestamp);
                        builder.append(*timestamp, None, Some(format!("value {offset}").as_bytes()), &[]);
                    }
                    log.append(&builder.build().unwrap(), 0, AppendOrigin::Client).unwrap();
                }
                Step::Roll => log.roll().unwrap(),
                Step::Checkpoint => dir.checkpoint().unwrap(),
                Step::Restart { clean } => {
                    if clean {
                        dir.close(-1).unwrap();
                    } else {
                        // The log start is checkpointed, not logged.
                        dir.checkpoint().unwrap();
                        log.append(&batch(model.len() as i64, 1), 0, AppendOrigin::Client).unwrap();
                        model.push(BASE_TIME_MS + model.len() as i64);
                    }
                    drop(log);
                    drop(dir);
                    (dir, _) = open();
                    log = dir.log(&tp()).unwrap();
                    log.set_config(config.clone());
                }
                Step::DeleteBefore(part) => {
                    log.flush().unwrap();
                    let offset = model.len() as i64 * i64::from(part) / 255;
                    start = start.max(offset);
                    prop_assert_eq!(log.delete_records_before(offset).unwrap(), start);
                }
            }
            prop_assert_eq!((log.log_start_offset(), log.log_end_offset()), (start, model.len() as i64));
        }
        let values: Vec<_> = (start..model.len() as i64).map(|n| (n, format!("value {n}"))).collect();
        prop_assert_eq!(read_all(&log, start), values);
        let live = || model.iter().enumerate().skip(start as usize).map(|(offset, time)| (offset as i64, *time));
        for wanted in (0..2100).step_by(53).chain([BASE_TIME_MS]) {
            let expected = live().find(|(_, time)| *time >= wanted);
            let found = log.offset_for_timestamp(wanted).unwrap().map(|found| (found.offset, found.timestamp_ms));
            prop_assert_eq!(found, expected, "time {}", wanted);
        }
    }
}
