//! How much memory sorts, joins and aggregations of a session may take together before they go on in files.

use std::fmt;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{
    FairSpillPool, MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation, TrackConsumersPool,
};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};

use super::error::SqlError;

/// The key of the limit.
pub(super) const MEMORY_LIMIT: &str = "caudal.sql.memory.limit";
/// Where the machine does not say what it has.
const UNKNOWN_MEMORY_BYTES: usize = 4 << 30;
/// The consumers that an error names.
const NAMED: usize = 3;

/// A runtime whose operators share this much memory; those that can spill into the directory for temporary files.
pub(super) fn runtime(limit_bytes: usize) -> Result<Arc<RuntimeEnv>> {
    let named = std::num::NonZeroUsize::new(NAMED).unwrap_or(std::num::NonZeroUsize::MIN);
    let pool = TrackConsumersPool::new(Headroom::new(limit_bytes), named);
    RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(pool))
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::OsTmpDirectory))
        .build_arc()
}

/// DataFusion's fair pool, in which those that can spill have a third at most: what a sort needs to merge the rows that it
/// is about to spill, as much again for what it compares and what it puts out, cannot wait and would find nothing left.
#[derive(Debug)]
struct Headroom {
    all: FairSpillPool,
    spilling: FairSpillPool,
}

impl Headroom {
    fn new(limit_bytes: usize) -> Self {
        Headroom { all: FairSpillPool::new(limit_bytes), spilling: FairSpillPool::new(limit_bytes / 3) }
    }
}

impl fmt::Display for Headroom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.all.fmt(f)
    }
}

impl MemoryPool for Headroom {
    fn name(&self) -> &str {
        "headroom"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.all.register(consumer);
        self.spilling.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.all.unregister(consumer);
        self.spilling.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.all.grow(reservation, additional);
        if reservation.consumer().can_spill() {
            self.spilling.grow(reservation, additional);
        }
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.all.shrink(reservation, shrink);
        if reservation.consumer().can_spill() {
            self.spilling.shrink(reservation, shrink);
        }
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        if !reservation.consumer().can_spill() {
            return self.all.try_grow(reservation, additional);
        }
        self.spilling.try_grow(reservation, additional)?;
        self.all.try_grow(reservation, additional).inspect_err(|_| self.spilling.shrink(reservation, additional))
    }

    fn reserved(&self) -> usize {
        self.all.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.all.memory_limit()
    }
}

/// The limit in bytes: the key's value, else half of what the machine, or the container, has.
pub(super) fn limit_bytes(value: Option<&str>) -> usize {
    value.and_then(parse_bytes).unwrap_or_else(|| machine_bytes().unwrap_or(UNKNOWN_MEMORY_BYTES) / 2)
}

/// Sizes as Spark writes them: `512m`, `2g`, `1048576`.
pub(super) fn parse_bytes(text: &str) -> Option<usize> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale: usize = match unit.trim() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(scale).filter(|bytes| *bytes > 0)
}

/// Linux only.
fn machine_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let total = line.trim().trim_end_matches("kB").trim().parse::<usize>().ok()?.checked_mul(1024)?;
    let group = std::fs::read_to_string("/proc/self/cgroup").ok();
    let group = group.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("0::/")));
    let limits = ["", group.unwrap_or_default()].map(|group| {
        let path = std::path::Path::new("/sys/fs/cgroup").join(group).join("memory.max");
        std::fs::read_to_string(path).ok()?.trim().parse::<usize>().ok()
    });
    Some(limits.into_iter().flatten().fold(total, usize::min))
}

/// What to do about a query that found too little memory.
pub(super) fn exhausted(message: &str) -> SqlError {
    let message = message.replace("Resources exhausted: ", "");
    let message = message.split(" with top memory consumers").next().unwrap_or_default();
    let message = message.lines().next().unwrap_or_default().trim_end_matches([':', '.', ' ']);
    SqlError::new("OUT_OF_MEMORY", format!("The query needs more memory than {MEMORY_LIMIT} allows: {message}.")).hint(
        format!(
            "Start with --set {MEMORY_LIMIT}=4g for more, or let the query keep less: filter before a sort, join or aggregation, add LIMIT."
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_bytes("512m"), Some(512 << 20));
        assert_eq!(parse_bytes(" 2 GB "), Some(2 << 30));
        assert_eq!(parse_bytes("1048576"), Some(1 << 20));
        for wrong in ["", "m", "0", "-1", "1.5g", "2 parsecs", "99999999999999999999"] {
            assert_eq!(parse_bytes(wrong), None, "{wrong}");
        }
        assert_eq!(limit_bytes(Some("1k")), 1024);
        assert!(limit_bytes(None) > 1 << 20);
    }
}
