use caudal_cluster::MetadataImage;
use caudal_protocol::batch::BatchBuilder;
use caudal_protocol::compression::Codec;
use caudal_protocol::records::metadata::{PartitionRecord, TopicRecord};
use caudal_storage::crash::{CrashDisk, Fate};
use caudal_storage::{AppendOrigin, Disk, LogConfig, LogDirConfig};

use super::*;
use crate::moves;

const RECORDS: i64 = 30;
const NODE: i32 = 1;
const A: Uuid = Uuid([0xa; 16]);
const B: Uuid = Uuid([0xb; 16]);
const TOPIC: Uuid = Uuid([7; 16]);

fn name() -> TopicPartition {
    TopicPartition::new("t", 0)
}

/// The only partition of the only topic lies in `directory`.
fn image(directory: Uuid) -> MetadataImage {
    let mut image = MetadataImage::empty();
    let topic = TopicRecord { name: "t".into(), topic_id: TOPIC };
    let partition = PartitionRecord {
        partition_id: 0,
        topic_id: TOPIC,
        replicas: vec![NODE],
        isr: vec![NODE],
        leader: NODE,
        directories: vec![directory],
        ..PartitionRecord::default()
    };
    image.apply(&topic.into()).unwrap();
    image.apply(&partition.into()).unwrap();
    image
}

fn open(disk: &CrashDisk, names: &[(&str, Uuid)]) -> LogDirs {
    let places = names.iter().map(|(path, id)| {
        let disk = Arc::new(disk.clone());
        let log_dir = LogDir::open(Path::new(path), LogDirConfig::default(), disk).unwrap().0;
        Ok(Dir { id: *id, path: PathBuf::from(path), log_dir: Arc::new(log_dir) })
    });
    let places: Vec<Result<Dir, Offline>> = places.collect();
    let metadata = places[0].as_ref().unwrap().log_dir.clone();
    LogDirs::new(metadata, places)
}

fn open_both(disk: &CrashDisk, directory: Uuid) -> LogDirs {
    let mut dirs = open(disk, &[("/a", A), ("/b", B)]);
    dirs.settle_moves(&image(directory), NODE).unwrap();
    dirs
}

fn wanted() -> TopicLog {
    let config = LogConfig { segment_bytes: 1000, file_delete_delay_ms: 0, ..LogConfig::default() };
    TopicLog { topic_partition: name(), topic_id: Some(TOPIC), config }
}

fn append(log: &Arc<Log>, n: i64) {
    let mut batch = BatchBuilder::new(Codec::None).producer(7, 0, i32::try_from(n).unwrap());
    batch.append(n, Some(b"key"), Some(&[b'v'; 50]), &[]);
    log.append(&batch.build().unwrap(), i32::try_from(n / 10).unwrap(), AppendOrigin::Client).unwrap();
}

/// The partition in the first directory, with its records.
fn fill(dirs: &LogDirs) {
    let log = dirs.create_log(wanted(), Some(A), true).unwrap().0;
    (0..RECORDS).for_each(|n| append(&log, n));
    log.flush().unwrap();
}

fn dir(dirs: &LogDirs, id: Uuid) -> &Arc<LogDir> {
    &dirs.iter().find(|dir| dir.id == id).unwrap().log_dir
}

fn holders(dirs: &LogDirs) -> Vec<(Uuid, Arc<Log>)> {
    dirs.iter().filter_map(|dir| Some((dir.id, dir.log_dir.log(&name())?))).collect()
}

/// Moves the partition as [`crate::replicas::Replicas::exchange`] does, where it is not moved yet; goes on with what is there.
fn carry_over(dirs: &LogDirs) {
    let (from, to) = (dir(dirs, A), dir(dirs, B));
    let Some(source) = from.log(&name()) else { return };
    let left = to.futures().pop();
    let future = left.unwrap_or_else(|| to.create_future(wanted(), 0).unwrap());
    moves::copy(&source, &future, source.durable_end_offset() / 2, &|| false, &|_| ()).unwrap();
    future.flush().unwrap();
    moves::copy(&source, &future, source.durable_end_offset(), &|| false, &|_| ()).unwrap();
    let end = source.pause().unwrap();
    moves::copy(&source, &future, end, &|| false, &|_| ()).unwrap();
    to.adopt_future(&future, None).unwrap();
    from.delete_log(&name()).unwrap();
    from.remove_doomed();
}

/// Stops half-way through a move from the first directory to the second; where the copy ends.
fn copy_half(disk: &CrashDisk) -> i64 {
    let dirs = open_both(disk, A);
    fill(&dirs);
    let source = dir(&dirs, A).log(&name()).unwrap();
    let future = dir(&dirs, B).create_future(wanted(), 0).unwrap();
    moves::copy(&source, &future, RECORDS / 2, &|| false, &|_| ()).unwrap();
    future.flush().unwrap();
    dirs.close(-1).unwrap();
    future.log_end_offset()
}

/// Names in both directories that end so.
fn named(disk: &CrashDisk, suffix: &str) -> usize {
    let names = ["/a", "/b"].into_iter().flat_map(|dir| disk.list(Path::new(dir)).unwrap());
    names.filter(|entry| entry.name.ends_with(suffix)).count()
}

fn is_whole(dirs: &LogDirs) -> bool {
    let holders = holders(dirs);
    let [(_, log)] = holders.as_slice() else { return false };
    (0..RECORDS).for_each(|offset| assert!(log.read(offset, 1, RECORDS, true).is_ok()));
    (log.log_start_offset(), log.log_end_offset()) == (0, RECORDS)
        && (log.latest_epoch(), log.end_offset_for_epoch(1)) == (Some(2), (1, 20))
        && log.active_producers().len() == 1
}

#[test]
fn a_move_may_be_cut_off_anywhere() {
    let disk = CrashDisk::new();
    let dirs = open_both(&disk, A);
    fill(&dirs);
    let begin = disk.operations();
    carry_over(&dirs);
    assert!(holders(&dirs)[0].0 == B && is_whole(&dirs));
    let mut gone_on_with = 0;
    for cut in begin..=disk.operations() {
        for fate in [Fate::Kept, Fate::Dropped] {
            // The metadata follows the exchange a moment later.
            for told in [A, B] {
                let image = disk.image(cut, |_| fate);
                let dirs = open_both(&image, told);
                assert!(is_whole(&dirs), "cut at {cut}, {fate:?}");
                assert_eq!(named(&image, "-stray"), 0, "cut at {cut}, {fate:?}");
                let futures: Vec<_> = dirs.iter().flat_map(|dir| dir.log_dir.futures()).collect();
                assert_eq!(named(&image, "-future"), futures.len(), "cut at {cut}, {fate:?}");
                gone_on_with += usize::from(futures.iter().any(|log| log.log_end_offset() > 0));
                carry_over(&dirs);
                assert!(holders(&dirs)[0].0 == B && is_whole(&dirs), "cut at {cut}, {fate:?}");
            }
        }
    }
    assert!(gone_on_with > 0);
}

/// The log is where a disk is not mounted: what is copied of it must not be taken for it.
#[test]
fn a_part_does_not_stand_for_a_log_that_is_away() {
    let disk = CrashDisk::new();
    copy_half(&disk);
    let mut alone = open(&disk, &[("/b", B)]);
    alone.settle_moves(&image(A), NODE).unwrap();
    assert!(holders(&alone).is_empty() && alone.lies_elsewhere(&name(), Some(A)));
    alone.close(-1).unwrap();
    let dirs = open_both(&disk, A);
    let [left] = dir(&dirs, B).futures().try_into().unwrap();
    assert!(left.log_end_offset() >= RECORDS / 2 && is_whole(&dirs));
    carry_over(&dirs);
    assert!(holders(&dirs)[0].0 == B && is_whole(&dirs));
}

/// The log was lost while it was moved: what was copied of it is kept, and does not take the place of the one that begins anew.
#[test]
fn a_part_does_not_replace_a_log_that_began_anew() {
    let disk = CrashDisk::new();
    let copied = copy_half(&disk);
    disk.rename(Path::new("/a/t-0"), Path::new("/away")).unwrap();
    let dirs = open_both(&disk, A);
    let (anew, _) = dirs.create_log(wanted(), Some(A), false).unwrap();
    append(&anew, 0);
    anew.flush().unwrap();
    assert!(dir(&dirs, B).futures().is_empty() && named(&disk, "-future") == 0);
    dirs.close(-1).unwrap();
    let dirs = open_both(&disk, A);
    assert!(dir(&dirs, B).futures().is_empty());
    assert_eq!((holders(&dirs)[0].0, holders(&dirs)[0].1.log_end_offset()), (A, 1));
    dirs.close(-1).unwrap();

    // It can be put back by hand.
    let kept = disk.list(Path::new("/b")).unwrap().into_iter().find(|entry| entry.name.ends_with("-stray")).unwrap();
    disk.rename(&Path::new("/b").join(kept.name), Path::new("/b/t-0")).unwrap();
    disk.remove_dir_all(Path::new("/a/t-0")).unwrap();
    let dirs = open_both(&disk, B);
    assert_eq!((holders(&dirs)[0].0, holders(&dirs)[0].1.log_end_offset()), (B, copied));
}

#[test]
fn logs_that_differ_are_both_kept() {
    let disk = CrashDisk::new();
    let dirs = open_both(&disk, A);
    fill(&dirs);
    let other = dir(&dirs, B).create_log(wanted()).unwrap();
    append(&other, 5);
    append(&other, 6);
    dirs.close(-1).unwrap();
    let dirs = open_both(&disk, B);
    assert_eq!((holders(&dirs)[0].0, holders(&dirs).len(), named(&disk, "-stray")), (B, 1, 1));
}

#[test]
fn a_directory_that_fails_at_the_start_is_left_out() {
    let disk = CrashDisk::new();
    let dirs = open_both(&disk, A);
    fill(&dirs);
    append(&dir(&dirs, B).create_log(wanted()).unwrap(), 5);
    dirs.close(-1).unwrap();
    for (failing, named_in) in [("/a", B), ("/b", A)] {
        let mut dirs = open(&disk, &[("/a", A), ("/b", B)]);
        disk.set_dir_sync_fails(Some(Path::new(failing)));
        let settled = dirs.settle_moves(&image(named_in), NODE);
        // The first one is that of the metadata log too.
        assert_eq!(settled.is_ok(), failing == "/b", "{settled:?}");
        if settled.is_ok() {
            let offline: Vec<_> = dirs.unopened().map(|offline| offline.dir.clone()).collect();
            assert_eq!(offline, [Path::new("/b")]);
            assert!(is_whole(&dirs) && !dirs.lies_elsewhere(&name(), Some(A)) && dirs.lies_elsewhere(&name(), Some(B)));
        }
        disk.set_dir_sync_fails(None);
        drop(dirs);
        if failing == "/a" {
            // It was renamed, and only that could not be made durable.
            let away = disk.list(Path::new("/a")).unwrap().into_iter().find(|entry| entry.name.ends_with("-stray"));
            disk.rename(&Path::new("/a").join(away.unwrap().name), Path::new("/a/t-0")).unwrap();
        }
    }
    assert!(is_whole(&open_both(&disk, A)));
}

#[test]
fn a_log_of_an_earlier_topic_of_that_name_gives_way() {
    let disk = CrashDisk::new();
    let dirs = open_both(&disk, A);
    fill(&dirs);
    let earlier = TopicLog { topic_id: Some(Uuid([6; 16])), ..wanted() };
    let earlier = dir(&dirs, B).create_log(earlier).unwrap();
    (0..2 * RECORDS).for_each(|n| append(&earlier, n));
    dirs.close(-1).unwrap();
    let dirs = open_both(&disk, A);
    assert!(holders(&dirs)[0].0 == A && is_whole(&dirs) && named(&disk, "-stray") == 1);
}
