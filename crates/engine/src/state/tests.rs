use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, StringArray};
use arrow::datatypes::Int64Type;
use proptest::prelude::*;

use super::*;

const SIGNATURE: &str = "group by [k]";

fn rows(values: &[i64]) -> RecordBatch {
    let names: Vec<String> = values.iter().map(|value| format!("key {value}")).collect();
    RecordBatch::try_from_iter([
        ("c0", Arc::new(Int64Array::from(values.to_vec())) as _),
        ("c1", Arc::new(StringArray::from(names)) as _),
    ])
    .unwrap()
}

fn section(values: &[i64]) -> Vec<u8> {
    encode_rows(std::iter::once(Ok(rows(values)))).unwrap()
}

fn change(version: i64, sections: &[(u32, &[i64])]) -> Change {
    let sections = sections.iter().map(|(partition, values)| (*partition, section(values))).collect();
    Change { version, evict_ms: Some(version), signature: SIGNATURE.to_owned(), sections }
}

fn snapshot(store: &mut StateStore, version: i64, values: &[&[i64]]) {
    let files = values
        .iter()
        .enumerate()
        .map(|(partition, values)| {
            let path = StateStore::snapshot_path(store.path(), partition, version).unwrap();
            // A value per record batch.
            let batches = values.iter().map(|value| Ok(rows(&[*value])));
            let bytes = write_snapshot(&path, version, None, SIGNATURE, batches).unwrap();
            assert_eq!(bytes, fs::metadata(&path).unwrap().len());
            (path, bytes)
        })
        .collect();
    let written = store.snapshot_written(files);
    assert!(written.snapshot);
}

/// The values of a version by partition, in order, with the watermarks in between as negative numbers.
fn restore(store: &mut StateStore, version: i64) -> Option<Vec<Vec<i64>>> {
    let mut index = store.look().unwrap();
    if index.newest_whole(version).unwrap() != version {
        return None;
    }
    let mut values = vec![Vec::new(); store.partitions];
    store
        .restore(version, &mut index, &mut |restored| {
            match restored {
                Restored::Begins { signature, .. } => assert_eq!(signature, SIGNATURE),
                Restored::Rows { partition, rows } => {
                    values[partition].extend(rows.column(0).as_primitive::<Int64Type>().values());
                }
                Restored::Ends { partition, evict_ms } => values[partition].extend(evict_ms.map(|ms| -ms)),
            }
            Ok(())
        })
        .unwrap();
    Some(values)
}

fn store(dir: &Path) -> StateStore {
    StateStore::open(dir.join("0"), 2, 3).unwrap()
}

#[test]
fn unchanged_partitions_take_no_room_and_batches_share_a_file() {
    let temp = tempfile::tempdir().unwrap();
    let mut store = store(temp.path());
    store.append(&change(1, &[(0, &[10]), (1, &[11])])).unwrap();
    store.append(&change(2, &[(1, &[21])])).unwrap();
    store.append(&change(3, &[])).unwrap();
    assert_eq!(fs::read_dir(temp.path().join("0")).unwrap().count(), 1);
    assert!(store.wants_snapshot());
    snapshot(&mut store, 4, &[&[40, 41], &[]]);
    assert!(!store.wants_snapshot());
    store.append(&change(5, &[(1, &[51])])).unwrap();
    for (version, expected) in [
        (5, [vec![40, 41, -5], vec![51, -5]]),
        (4, [vec![40, 41], vec![]]),
        (3, [vec![10, -1, -2, -3], vec![11, -1, 21, -2, -3]]),
        (0, [vec![], vec![]]),
    ] {
        assert_eq!(restore(&mut self::store(temp.path()), version).unwrap(), expected, "version {version}");
    }
}

#[test]
fn restart_at_an_older_version_leaves_nothing_of_the_newer_ones() {
    let temp = tempfile::tempdir().unwrap();
    let mut first = store(temp.path());
    (1..=3).for_each(|version| drop(first.append(&change(version, &[(0, &[version])])).unwrap()));
    snapshot(&mut first, 4, &[&[4], &[4]]);
    (5..=6).for_each(|version| drop(first.append(&change(version, &[(0, &[version])])).unwrap()));
    // Again from version 2 on, with other content.
    let mut second = store(temp.path());
    assert!(restore(&mut second, 2).is_some());
    assert_eq!(restore(&mut store(temp.path()), 3), None, "the next power failure must not bring version 3 back");
    (3..=5).for_each(|version| drop(second.append(&change(version, &[(0, &[version * 10])])).unwrap()));
    assert_eq!(restore(&mut store(temp.path()), 5).unwrap()[0], [1, -1, 2, -2, 30, -3, 40, -4, 50, -5]);
    assert_eq!(restore(&mut store(temp.path()), 6), None);
}

#[test]
fn what_power_loss_left_is_found() {
    let temp = tempfile::tempdir().unwrap();
    let mut store = store(temp.path());
    (1..=3).for_each(|version| drop(store.append(&change(version, &[(1, &[version])])).unwrap()));
    snapshot(&mut store, 4, &[&[4], &[4]]);
    (5..=7).for_each(|version| drop(store.append(&change(version, &[(1, &[version])])).unwrap()));
    let newest = |wanted| store.look().unwrap().newest_whole(wanted).unwrap();
    assert_eq!((newest(7), newest(9), newest(4), newest(2)), (7, 7, 4, 2));
    let changes = temp.path().join("0/5.changes");
    let whole = fs::read(&changes).unwrap();
    // Every cut of the last file leaves a prefix of its versions.
    let mut last = 4;
    for len in (0..whole.len()).step_by(11) {
        fs::write(&changes, &whole[..len]).unwrap();
        let version = newest(7);
        assert!((last..=last + 1).contains(&version) && version < 7, "{len} bytes: {version} after {last}");
        last = version;
    }
    // Pages of zeros, and a flipped bit.
    let mut zeros = whole.clone();
    zeros[whole.len() / 2..].fill(0);
    fs::write(&changes, &zeros).unwrap();
    assert_eq!(newest(7), 5);
    fs::write(&changes, &whole).unwrap();
    // A lost snapshot leaves what is before it.
    let lost = temp.path().join("0/1/4.snapshot");
    let bytes = fs::read(&lost).unwrap();
    for damaged in [&b""[..], &bytes[..bytes.len() - 1], &[&bytes[..40], &[0u8; 9], &bytes[49..]].concat()] {
        fs::write(&lost, damaged).unwrap();
        assert_eq!(newest(7), 3);
    }
    fs::remove_file(&lost).unwrap();
    assert_eq!(newest(7), 3);
}

#[test]
fn what_nobody_needs_is_removed() {
    let temp = tempfile::tempdir().unwrap();
    let mut store = store(temp.path());
    for version in 1..=12 {
        if store.wants_snapshot() {
            snapshot(&mut store, version, &[&[version], &[version]]);
        } else {
            store.append(&change(version, &[(0, &[version])])).unwrap();
        }
    }
    // Snapshots at 4, 8 and 12.
    StateStore::clean(store.path(), 2, 10).unwrap();
    let mut files: Vec<String> =
        list(&temp.path().join("0")).unwrap().iter().map(|(number, suffix, _)| format!("{number}.{suffix}")).collect();
    files.extend(list(&temp.path().join("0/1")).unwrap().iter().map(|(n, suffix, _)| format!("{n}.{suffix}")));
    assert_eq!(files, ["9.changes", "8.snapshot", "12.snapshot"]);
    for version in [8, 10, 11, 12] {
        assert_eq!(store.look().unwrap().newest_whole(version).unwrap(), version);
    }
    assert_eq!(store.look().unwrap().newest_whole(7).unwrap(), 0);
}

#[test]
fn a_format_from_the_future_is_no_damage() {
    let temp = tempfile::tempdir().unwrap();
    let mut store = store(temp.path());
    store.append(&change(1, &[(0, &[1])])).unwrap();
    let path = temp.path().join("0/1.changes");
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 3;
    fs::write(&path, &bytes).unwrap();
    let error = store.look().unwrap_err().to_string();
    assert!(error.contains("1.changes") && error.contains("format version is 3"), "{error}");
}

/// A file of format 1: one partition and version, one record batch.
fn old_file(kind: u8, version: i64, values: &[i64]) -> Vec<u8> {
    let rows = section(values);
    let mut bytes = b"CDLSTATE\x01\x00".to_vec();
    bytes.extend([kind, 1]);
    bytes.extend(version.to_le_bytes());
    bytes.extend(version.to_le_bytes());
    bytes.extend(u32::try_from(SIGNATURE.len()).unwrap().to_le_bytes());
    bytes.extend((rows.len() as u64).to_le_bytes());
    bytes.extend(SIGNATURE.as_bytes());
    bytes.extend(rows);
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend(checksum.to_le_bytes());
    bytes
}

#[test]
fn the_files_of_format_1_are_read() {
    let temp = tempfile::tempdir().unwrap();
    let mut store = store(temp.path());
    for partition in 0..2 {
        let dir = temp.path().join(format!("0/{partition}"));
        fs::create_dir_all(&dir).unwrap();
        // The partitions were not snapshot at the same version.
        let base = 2 + partition;
        fs::write(dir.join(format!("{base}.snapshot")), old_file(1, base, &[base * 100])).unwrap();
        for version in base + 1..=5 {
            fs::write(dir.join(format!("{version}.delta")), old_file(0, version, &[version])).unwrap();
        }
    }
    assert_eq!(restore(&mut store, 5).unwrap(), [vec![200, -2, 3, -3, 4, -4, 5, -5], vec![300, -3, 4, -4, 5, -5]]);
    store.append(&change(6, &[(0, &[6])])).unwrap();
    let mut store = self::store(temp.path());
    assert_eq!(
        restore(&mut store, 6).unwrap(),
        [vec![200, -2, 3, -3, 4, -4, 5, -5, 6, -6], vec![300, -3, 4, -4, 5, -5, -6]]
    );
    // A run again from version 4 on writes frames where deltas were.
    assert!(restore(&mut store, 4).is_some());
    store.append(&change(5, &[(1, &[55])])).unwrap();
    let mut store = self::store(temp.path());
    assert_eq!(restore(&mut store, 5).unwrap(), [vec![200, -2, 3, -3, 4, -4, -5], vec![300, -3, 4, -4, 55, -5]]);
    fs::write(temp.path().join("0/1/4.delta"), b"torn").unwrap();
    assert_eq!(store.look().unwrap().newest_whole(5).unwrap(), 3);
}

proptest! {
    #[test]
    fn changes_round_trip(
        evict in any::<Option<i64>>(),
        sections in prop::collection::vec(prop::collection::vec(any::<i64>(), 1..20), 0..3),
    ) {
        let temp = tempfile::tempdir().unwrap();
        let mut store = StateStore::open(temp.path().join("0"), 3, 10).unwrap();
        let encoded = sections.iter().enumerate().map(|(p, values)| (u32::try_from(p).unwrap(), section(values))).collect();
        let change = Change { version: 1, evict_ms: evict, signature: SIGNATURE.to_owned(), sections: encoded };
        store.append(&change).unwrap();
        let mut index = store.look().unwrap();
        let mut found = vec![Vec::new(); 3];
        let mut ends = 0;
        store.restore(1, &mut index, &mut |restored| {
            match restored {
                Restored::Rows { partition, rows } => {
                    found[partition].extend(rows.column(0).as_primitive::<Int64Type>().values());
                }
                Restored::Ends { evict_ms, .. } => {
                    assert_eq!(evict_ms, evict);
                    ends += 1;
                }
                Restored::Begins { .. } => {}
            }
            Ok(())
        }).unwrap();
        let mut expected = sections;
        expected.resize(3, Vec::new());
        prop_assert_eq!((found, ends), (expected, 3));
    }

    #[test]
    fn damage_is_noticed(position in any::<prop::sample::Index>(), bit in 0u8..8) {
        let temp = tempfile::tempdir().unwrap();
        let mut store = store(temp.path());
        store.append(&change(1, &[(0, &[1, 2, 3])])).unwrap();
        snapshot(&mut store, 2, &[&[1, 2], &[3]]);
        for (path, left) in [("0/1.changes", 0), ("0/1/2.snapshot", 1)] {
            let path = temp.path().join(path);
            let bytes = fs::read(&path).unwrap();
            let mut damaged = bytes.clone();
            let at = position.index(bytes.len());
            damaged[at] ^= 1 << bit;
            fs::write(&path, &damaged).unwrap();
            // A flip in the format version may look like a format from the future.
            if let Ok(mut index) = store.look()
                && let Ok(newest) = index.newest_whole(if left == 0 { 1 } else { 2 })
            {
                prop_assert_eq!(newest, left);
            } else {
                prop_assert!((8..10).contains(&at));
            }
            fs::write(&path, &bytes).unwrap();
        }
    }
}
