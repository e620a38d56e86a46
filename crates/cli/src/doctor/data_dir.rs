//! The data directory: what file system, how much room, how quick an fsync.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use caudal_storage::RealDisk;
use caudal_storage::checkpoint::MetaProperties;
use rustix::fs::{statfs, statvfs};

use super::Findings;

const CHECK: &str = "data directory";
const CLOCK: &str = "clock";

/// Less room than this, or than this part of the file system, and writes will soon be refused.
const BYTES_LEAST: u64 = 256 << 20;
const PART_LEAST: f64 = 0.02;
const PART_LOW: f64 = 0.1;
const FSYNCS: usize = 20;
const FSYNC_SLOW: Duration = Duration::from_millis(30);
const FSYNC_BAD: Duration = Duration::from_millis(300);
/// Files from later than this, as seen from now, mean that the clock was put back.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(3600);
/// 2026-01-01, before this program was.
const BEFORE_US_S: u64 = 1_767_225_600;

/// File systems by the magic numbers of statfs(2): the name, and what is wrong with logs on it.
const FILE_SYSTEMS: &[(u64, &str, Option<&str>)] = &[
    (0xEF53, "ext4", None),
    (0x5846_5342, "xfs", None),
    (0x9123_683E, "btrfs", None),
    (0x2FC1_2FC1, "zfs", None),
    (0xF2F5_2010, "f2fs", None),
    (0x0102_1994, "tmpfs", Some("it is memory: a restart of the machine takes the data")),
    (0x8584_58F6, "ramfs", Some("it is memory: a restart of the machine takes the data")),
    (0x794C_7630, "overlayfs", Some("it is a container's own layer, and goes with the container")),
    (0x6969, "NFS", Some("locks and fsync over a network are not what a log needs")),
    (0xFF53_4D42, "CIFS", Some("locks and fsync over a network are not what a log needs")),
    (0xFE53_4D42, "SMB", Some("locks and fsync over a network are not what a log needs")),
    (0x6573_5546, "FUSE", Some("what an fsync means there depends on the program behind it")),
    (0x0102_1997, "9p", Some("what an fsync means there depends on the machine behind it")),
];

/// Looks at all log directories; returns the id of the cluster that they belong to.
pub fn check(dirs: &[PathBuf], findings: &mut Findings) -> Option<String> {
    check_clock(dirs, findings);
    let read: Vec<_> = dirs.iter().map(|dir| (dir, MetaProperties::read(&RealDisk, dir))).collect();
    let formatted: Vec<_> = read.iter().filter_map(|(dir, read)| Some((*dir, read.as_ref().ok()?.as_ref()?))).collect();
    check_belong(&formatted, findings);
    for (dir, read) in &read {
        match read {
            Ok(Some(meta)) => findings
                .ok(CHECK, format!("{} belongs to node {} of cluster {}", dir.display(), meta.node_id, meta.cluster_id)),
            Ok(None) if !formatted.is_empty() => findings.problem(
                CHECK,
                format!(
                    "{} is {}, and others of log.dirs are in use",
                    dir.display(),
                    if dir.exists() { "not formatted" } else { "not there" }
                ),
                "mount its disk if it has one: partitions that lie there are offline without it. A new directory is formatted by \
                 the next start, unless partitions lie in one that is missing",
            ),
            Ok(None) if dir.exists() => findings.note(
                CHECK,
                format!("{} is not formatted", dir.display()),
                "`caudal up` formats an empty directory; `caudal kafka-storage format` does it for a properties file",
            ),
            Ok(None) => findings.ok(CHECK, format!("{} is yet to be made", dir.display())),
            Err(error) => findings.problem(CHECK, error.to_string(), "see to its disk, its owner and permissions"),
        }
        check_logs(dir, findings);
        // Of a directory that is yet to be made, that in which it will be.
        let Some(existing) = absolute(dir).ancestors().find(|dir| dir.is_dir()).map(Path::to_owned) else { continue };
        check_file_system(&existing, findings);
        check_room(&existing, findings);
        check_fsync(&existing, findings);
    }
    formatted.first().map(|(_, meta)| meta.cluster_id.clone())
}

/// Directories of one node have its id and its cluster's, and each one of its own.
fn check_belong(formatted: &[(&PathBuf, &MetaProperties)], findings: &mut Findings) {
    for (at, (dir, meta)) in formatted.iter().enumerate() {
        let others = || formatted.iter().take(at);
        let differs = |other: &MetaProperties| (&other.cluster_id, other.node_id) != (&meta.cluster_id, meta.node_id);
        if let Some((other, _)) = others().find(|(_, other)| differs(other)) {
            findings.problem(
                CHECK,
                format!("{} and {} belong to different nodes or clusters", other.display(), dir.display()),
                "correct log.dirs: the broker does not start with them",
            );
        }
        let is_copy = |other: &MetaProperties| meta.directory_id.is_some() && other.directory_id == meta.directory_id;
        if let Some((other, _)) = others().find(|(_, other)| is_copy(other)) {
            findings.problem(
                CHECK,
                format!("{} and {} have the same directory.id: one is a copy", other.display(), dir.display()),
                "leave the copy out of log.dirs: the broker does not start with both",
            );
        }
    }
}

fn absolute(dir: &Path) -> PathBuf {
    std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned())
}

/// What bears the name of a partition.
fn named_as_partitions(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let is_partition = |name: &str| name.rsplit_once('-').is_some_and(|(_, number)| number.parse::<u32>().is_ok());
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(move |entry| is_partition(&entry.file_name().to_string_lossy())).map(|entry| entry.path())
}

/// How many partitions a data directory has.
pub fn partitions(dir: &Path) -> usize {
    named_as_partitions(dir).count()
}

/// What is in the place of a partition's directory, or of a segment in it.
fn check_logs(dir: &Path, findings: &mut Findings) {
    let fix = "restore what was there from a backup, or move it away, and the partition goes on without it, empty if that was all; then \
               restart";
    for path in named_as_partitions(dir) {
        if path.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path());
            let is_segment = |path: &Path| path.extension().is_some_and(|suffix| suffix == "log");
            for entry in entries.filter(|entry| is_segment(entry) && entry.is_dir()) {
                let text =
                    format!("{} is a directory in place of a segment: its partition is offline", entry.display());
                findings.problem(CHECK, text, fix);
            }
            continue;
        }
        let what = match fs::read_link(&path) {
            Ok(target) => format!("a link to {}, which is no directory", target.display()),
            Err(_) => "no directory".to_owned(),
        };
        findings.problem(
            CHECK,
            format!("{} bears the name of a partition and is {what}: that partition is offline", path.display()),
            fix,
        );
    }
}

fn check_file_system(dir: &Path, findings: &mut Findings) {
    #[cfg(target_os = "linux")]
    if let Ok(found) = statfs(dir) {
        let magic = u64::try_from(found.f_type).unwrap_or(0) & 0xFFFF_FFFF;
        let known = FILE_SYSTEMS.iter().find(|(number, _, _)| *number == magic);
        match known {
            Some((_, name, Some(reason))) => findings.problem(
                CHECK,
                format!("{} is on {name}: {reason}", dir.display()),
                "choose a directory on a disk of this machine (in a container: a volume)",
            ),
            Some((_, name, None)) => findings.ok(CHECK, format!("{} is on {name}", dir.display())),
            None => findings.ok(CHECK, format!("{} is on a file system of type {magic:#x}", dir.display())),
        }
    }
}

fn check_room(dir: &Path, findings: &mut Findings) {
    let Ok(found) = statvfs(dir) else { return };
    let (free, all) = (found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize);
    let part = if all == 0 { 0.0 } else { free as f64 / all as f64 };
    let text = format!("{:.1} GiB of {:.1} GiB are free for {}", gib(free), gib(all), dir.display());
    let fix = "free space, shorten retention (retention.ms, retention.bytes), or move the data";
    if free < BYTES_LEAST || part < PART_LEAST {
        findings.problem(CHECK, text, fix);
    } else if part < PART_LOW {
        findings.note(CHECK, text, fix);
    } else {
        findings.ok(CHECK, text);
    }
    if found.f_files > 0 && found.f_favail < found.f_files / 100 {
        findings.problem(
            CHECK,
            format!("only {} files can still be made (inodes)", found.f_favail),
            "delete small files",
        );
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

fn check_fsync(dir: &Path, findings: &mut Findings) {
    let mut times = match measure_fsync(dir) {
        Ok(times) => times,
        Err(error) => {
            let text = format!("failed to write to {}: {error}", dir.display());
            return findings.problem(CHECK, text, "see to its owner and permissions, and to the room on its disk");
        }
    };
    times.sort_unstable();
    let (median, most) = (times.get(times.len() / 2), times.last());
    let (median, most) = (median.copied().unwrap_or_default(), most.copied().unwrap_or_default());
    let took = format!("an fsync takes {:.2} ms, at most {:.2} ms", millis(median), millis(most));
    let text = format!("{took}, in {}", dir.display());
    let fix = "acknowledgements wait for it: choose a quicker disk, or caudal.flush.before.ack=false if losing the last records in a \
               power cut is bearable";
    if median > FSYNC_BAD {
        findings.problem(CHECK, text, fix);
    } else if median > FSYNC_SLOW {
        findings.note(CHECK, text, fix);
    } else {
        findings.ok(CHECK, text);
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Appends to a file of its own, as a log does, and removes it.
fn measure_fsync(dir: &Path) -> io::Result<Vec<Duration>> {
    let path = dir.join(format!(".caudal-doctor-{}.tmp", std::process::id()));
    let measured = File::create_new(&path).and_then(|mut file| {
        let mut times = Vec::new();
        for _ in 0..FSYNCS {
            file.write_all(&[0; 4096])?;
            let began = Instant::now();
            file.sync_data()?;
            times.push(began.elapsed());
        }
        Ok(times)
    });
    let removed = fs::remove_file(&path);
    let times = measured?;
    removed.map(|()| times)
}

fn check_clock(dirs: &[PathBuf], findings: &mut Findings) {
    let now = SystemTime::now();
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    if seconds < BEFORE_US_S {
        return findings.problem(
            CLOCK,
            "it is behind the day on which this program was made",
            "set it (`timedatectl set-ntp true`): records, retention and transactions go by it",
        );
    }
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    let files = dirs.iter().flat_map(|dir| entries(dir)).flat_map(|entry| entries(&entry.path()));
    let newest = files.filter_map(|file| file.metadata().ok()?.modified().ok()).max();
    match newest.and_then(|newest| newest.duration_since(now).ok()).filter(|ahead| *ahead > CLOCK_TOLERANCE) {
        Some(ahead) => findings.problem(
            CLOCK,
            format!("it is {} minutes behind the newest file of the data", ahead.as_secs() / 60),
            "set it right: until it has caught up, retention by time and the times of new records are off",
        ),
        None => findings.ok(CLOCK, "it is not behind the data"),
    }
}
