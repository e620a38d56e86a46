//! The process itself, under the names that Prometheus' client libraries use.

use std::fs;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, getrlimit};
use tokio::io::AsyncWrite;

use super::exposition::{Exposition, Kind};

/// Linux counts CPU time for programs in hundredths of a second, whatever its own clock does.
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds since 1970 when this was first asked, which a broker does when it starts.
pub fn started_at() -> f64 {
    static STARTED: OnceLock<f64> = OnceLock::new();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    *STARTED.get_or_init(now)
}

/// User and system time, as far as the system tells.
fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in parentheses, may hold anything. Behind it: field 3 of proc_pid_stat(5); the times are 14 and 15.
    let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some((next()? + next()?) as f64 / TICKS_PER_SECOND)
}

/// A line of `/proc/self/status`, in its own unit.
fn status(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

pub fn write<W: AsyncWrite + Unpin>(page: &mut Exposition<'_, W>) {
    use Kind::{Counter, Gauge};
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(seconds) = cpu_seconds() {
        page.single("process_cpu_seconds_total", Counter, "User and system CPU time in seconds.", seconds);
    }
    if let Some(kib) = status(&text, "VmRSS") {
        page.single("process_resident_memory_bytes", Gauge, "Resident memory in bytes.", kib * 1024);
    }
    if let Some(kib) = status(&text, "VmSize") {
        page.single("process_virtual_memory_bytes", Gauge, "Virtual memory in bytes.", kib * 1024);
    }
    if let Some(threads) = status(&text, "Threads") {
        page.single("process_threads", Gauge, "Threads of the process.", threads);
    }
    // One of them is that of the listing.
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        page.single("process_open_fds", Gauge, "Open file descriptors.", files.count().saturating_sub(1));
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        page.single("process_max_fds", Gauge, "File descriptors that may be open.", most);
    }
    page.single("process_start_time_seconds", Gauge, "Start of the process in seconds since 1970.", started_at());
}
