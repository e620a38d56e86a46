//! Producers that got no answer send up to five batches again: they are known after a stop and after a crash.

use std::path::Path;
use std::sync::Arc;

use caudal_storage::crash::{CrashDisk, Fate};
use caudal_storage::{AppendOrigin, Log, LogConfig, LogDir, LogDirConfig};

use crate::support::*;

const SENT: i32 = 40;

fn open_on(disk: &CrashDisk) -> (LogDir, Arc<Log>) {
    let dir = LogDir::open(Path::new("/data"), LogDirConfig::default(), Arc::new(disk.clone())).unwrap().0;
    let log = create(&dir, LogConfig { segment_bytes: 2_000, index_interval_bytes: 100, ..LogConfig::default() });
    (dir, log)
}

/// Two producers by turns, two records a batch.
fn send(log: &Arc<Log>, from: i32, to: i32) {
    for n in from..to {
        for producer_id in [5, 6] {
            let info = log.append(&idempotent(producer_id, 0, 2 * n, 2), 0, AppendOrigin::Client).unwrap();
            assert!(!info.duplicate);
        }
    }
}

fn send_again(log: &Arc<Log>, from: i32, to: i32) {
    for n in from..to {
        for producer_id in [5, 6] {
            let info = log.append(&idempotent(producer_id, 0, 2 * n, 2), 0, AppendOrigin::Client).unwrap();
            let offset = i64::from(n) * 4 + (producer_id - 5) * 2;
            assert_eq!((info.duplicate, info.base_offset), (true, offset), "batch {n} of {producer_id}");
        }
    }
}

#[test]
fn after_a_stop() {
    for sent in 1..SENT {
        let disk = CrashDisk::new();
        let (dir, log) = open_on(&disk);
        send(&log, 0, sent);
        dir.close(-1).unwrap();
        drop((dir, log));
        let (_dir, log) = open_on(&disk);
        send_again(&log, (sent - 5).max(0), sent);
        send(&log, sent, sent + 1);
    }
}

#[test]
fn after_a_crash_behind_a_checkpoint() {
    for before in [1, 3, 7, SENT] {
        for after in 0..6 {
            let disk = CrashDisk::new();
            let (dir, log) = open_on(&disk);
            send(&log, 0, before);
            dir.checkpoint().unwrap();
            send(&log, before, before + after);
            log.flush().unwrap();
            let image = disk.image(disk.operations(), |_| Fate::Dropped);
            let (_dir, log) = open_on(&image);
            let sent = before + after;
            send_again(&log, (sent - 5).max(0), sent);
            send(&log, sent, sent + 1);
        }
    }
}
