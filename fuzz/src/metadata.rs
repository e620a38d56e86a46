//! The metadata log and its snapshots: replayed into an image, written as a snapshot, and replayed from that.
//!
//! Input: a byte of flags, a part that is a snapshot at offset 1, epoch 1, and the segment of the log. Or, by a flag, a log's segment only.

use std::path::Path;
use std::sync::Arc;

use caudal_cluster::{MetadataLog, SnapshotPolicy};
use caudal_storage::crash::CrashDisk;
use caudal_storage::disk::{Disk, OpenMode};
use caudal_storage::{LogDir, LogDirConfig};

const KEEP_CRCS: u8 = 1;
const SNAPSHOT: u8 = 2;
const NODE: i32 = 1;

pub fn run(data: &[u8]) {
    let Some((flags, mut rest)) = data.split_first() else { return };
    let disk = CrashDisk::new();
    let dir = Path::new("/d/__cluster_metadata-0");
    disk.create_dir_all(dir).expect("a directory in memory");
    let put = |name: &str, content: &[u8]| {
        let mut content = content.to_vec();
        if flags & KEEP_CRCS == 0 {
            super::fix_crcs(&mut content);
        }
        let file = disk.open(&dir.join(name), OpenMode::Truncate).expect("a file in memory");
        file.write_all_at(&mut [std::io::IoSlice::new(&content)], 0).expect("memory is not full");
    };
    if flags & SNAPSHOT != 0 {
        let Some(snapshot) = super::take_part(&mut rest) else { return };
        put("00000000000000000001-0000000001.checkpoint", snapshot);
        put("00000000000000000001.log", rest);
    } else {
        put("00000000000000000000.log", rest);
    }
    let Some(mut log) = load(&disk) else { return };
    if log.begin_epoch().is_err() {
        return;
    }
    let image = format!("{:?}", log.image());
    // A snapshot has to say the same as the records that it stands for.
    log.snapshot().expect("an image is written");
    drop(log);
    let log = load(&disk).expect("what was written is read");
    assert_eq!(format!("{:?}", log.image()), image);
}

fn load(disk: &CrashDisk) -> Option<MetadataLog> {
    let config = LogDirConfig { flush_threads: 1, recovery_threads: 1, ..LogDirConfig::default() };
    let (dir, _) = LogDir::open(Path::new("/d"), config, Arc::new(disk.clone())).ok()?;
    MetadataLog::load(Arc::new(dir), NODE, SnapshotPolicy::default()).ok()
}
