//! How an aggregate's groups go to the checkpoint and come back.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{Field, Int64Type, Schema};
use datafusion::common::DataFusionError;

use super::aggregate::{Aggregation, AggregationBatch, AggregationMetrics, PartitionState, Selection};
use super::bucket::{Bucket, BucketKey, Buckets};
use super::groups::stable_hash;
use crate::error::EngineError;
use crate::plan::watermark::from_ms;
use crate::sink::OutputMode;
use crate::state::{Change, Restored, StateIndex, StateStore, Written, encode_rows, write_snapshot};

/// State is written in batches of about this size, so that a snapshot is never in memory a second time.
const BATCH_BYTES: usize = 16 << 20;

/// Where a batch's state goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SaveAs {
    Changes,
    Snapshot,
}

/// What a partition wrote, or has for the file of changes.
#[derive(Debug)]
pub(super) enum Saved {
    Changes(Vec<u8>),
    Snapshot(PathBuf, u64),
}

impl Aggregation {
    /// What the checkpoint holds of the state.
    pub fn look(&self) -> Result<StateIndex, EngineError> {
        self.store.lock().look()
    }

    /// Replaces the state by version `version` of the checkpoint, which is whole; returns the files that it is in.
    pub fn restore(&self, version: i64, index: &mut StateIndex) -> Result<BTreeSet<PathBuf>, EngineError> {
        let mut partitions: Vec<_> = self.partitions.iter().map(|partition| partition.lock()).collect();
        partitions.iter_mut().for_each(|partition| partition.buckets = Buckets::new());
        self.store.lock().restore(version, index, &mut |restored| match restored {
            Restored::Begins { signature, path, .. } => self.check_signature(signature, path),
            Restored::Rows { partition, rows } => match partitions.get_mut(partition) {
                Some(state) => state.load_rows(&rows),
                None => Ok(()),
            },
            Restored::Ends { partition, evict_ms } => {
                partitions.get_mut(partition).into_iter().for_each(|state| state.evict(evict_ms));
                Ok(())
            }
        })
    }

    fn check_signature(&self, signature: &str, path: &Path) -> Result<(), EngineError> {
        if *signature == *self.signature {
            return Ok(());
        }
        Err(EngineError::Invalid {
            class: "STREAMING_STATEFUL_OPERATOR_NOT_MATCH_IN_STATE_METADATA",
            message: format!(
                "the state in {} was made by another query: it holds \"{signature}\", this query needs \"{}\"; use a new \
                 checkpoint location",
                path.display(),
                self.signature
            ),
        })
    }

    pub(super) fn save_as(&self) -> SaveAs {
        if self.store.lock().wants_snapshot() { SaveAs::Snapshot } else { SaveAs::Changes }
    }

    /// Removes state files that no version from `oldest` on needs.
    pub fn clean(&self, oldest: i64) -> Result<(), EngineError> {
        let path = self.store.lock().path().to_owned();
        StateStore::clean(&path, self.partitions.len(), oldest)
    }
}

/// Puts what the partitions saved on disk, without fsync.
pub(super) fn save(
    store: &mut StateStore,
    batch: AggregationBatch,
    evict_ms: Option<i64>,
    signature: &str,
    saved: Vec<Saved>,
) -> Result<Written, EngineError> {
    let (mut sections, mut snapshots) = (Vec::new(), Vec::new());
    for (partition, saved) in saved.into_iter().enumerate() {
        match saved {
            Saved::Changes(rows) if rows.is_empty() => {}
            Saved::Changes(rows) => sections.push((u32::try_from(partition).unwrap_or(u32::MAX), rows)),
            Saved::Snapshot(path, bytes) => snapshots.push((path, bytes)),
        }
    }
    if !snapshots.is_empty() {
        return Ok(store.snapshot_written(snapshots));
    }
    store.append(&Change { version: batch.version, evict_ms, signature: signature.to_owned(), sections })
}

impl PartitionState {
    /// Writes or encodes this version: the touched groups, or everything.
    pub(super) fn save(
        &self,
        touched: &BTreeSet<BucketKey>,
        batch: AggregationBatch,
        save_as: SaveAs,
        metrics: &mut AggregationMetrics,
    ) -> Result<Saved, EngineError> {
        metrics.rows_updated =
            touched.iter().filter_map(|key| self.buckets.get(key)).map(|bucket| bucket.touched().len() as u64).sum();
        if save_as == SaveAs::Changes {
            let changed = touched
                .iter()
                .filter_map(|key| self.buckets.get(key).map(|bucket| (*key, bucket, bucket.touched().to_vec())));
            return Ok(Saved::Changes(encode_rows(self.state_batches(changed))?));
        }
        let all = self.buckets.iter().map(|(key, bucket)| (*key, bucket, bucket.all_groups()));
        let path = StateStore::snapshot_path(&self.dir, self.number, batch.version)?;
        let evict_ms = saved_watermark(self.mode, batch);
        let bytes =
            write_snapshot(&path, batch.version, evict_ms, &self.exchange.signature(), self.state_batches(all))?;
        Ok(Saved::Snapshot(path, bytes))
    }

    /// Bucket, key and state columns of groups, in batches of bounded size.
    fn state_batches<'a>(
        &'a self,
        selection: impl Iterator<Item = (BucketKey, &'a Bucket, Vec<u32>)> + 'a,
    ) -> impl Iterator<Item = Result<RecordBatch, EngineError>> + 'a {
        portions(selection, BATCH_BYTES).map(|portion| self.state_rows(&portion))
    }

    fn state_rows(&self, selection: &Selection<'_>) -> Result<RecordBatch, EngineError> {
        let width: usize = self
            .exchange
            .functions()
            .iter()
            .map(|function| function.state_fields().map(|fields| fields.len()))
            .sum::<Result<usize, DataFusionError>>()?;
        let read = |bucket: &Bucket, groups: &[u32]| -> Result<Vec<ArrayRef>, EngineError> {
            let mut columns = Vec::with_capacity(width);
            for column in bucket.columns() {
                columns.extend(column.state(groups)?);
            }
            Ok(columns)
        };
        let Some((columns, buckets)) = self.collect(selection, width, read)? else {
            return Err(DataFusionError::Internal("a batch of state without groups".to_owned()).into());
        };
        let repeat = |value: fn(&BucketKey) -> i64| -> ArrayRef {
            let values = buckets.iter().flat_map(|(bucket, rows)| std::iter::repeat_n(value(bucket), *rows));
            Arc::new(Int64Array::from_iter_values(values))
        };
        let mut all = vec![repeat(|bucket| bucket.end), repeat(|bucket| bucket.start)];
        all.extend(columns);
        let fields: Vec<Field> = all
            .iter()
            .enumerate()
            .map(|(index, column)| Field::new(format!("c{index}"), column.data_type().clone(), true))
            .collect();
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), all)?)
    }

    fn evict(&mut self, evict_ms: Option<i64>) {
        if let (Some(evict_ms), Some(key)) = (evict_ms, self.exchange.event_time()) {
            let passed = from_ms(evict_ms, key.unit);
            self.buckets = self.buckets.split_off(&BucketKey { end: passed.saturating_add(1), start: i64::MIN });
        }
    }

    fn load_rows(&mut self, rows: &RecordBatch) -> Result<(), EngineError> {
        let corrupt = || DataFusionError::Internal("a state file with too few columns".to_owned());
        let [ends, starts, columns @ ..] = rows.columns() else { return Err(corrupt().into()) };
        let (ends, starts) = (ends.as_primitive::<Int64Type>(), starts.as_primitive::<Int64Type>());
        let mut first = 0;
        while first < rows.num_rows() {
            let key = BucketKey { end: ends.value(first), start: starts.value(first) };
            let len = (first..rows.num_rows())
                .take_while(|&row| ends.value(row) == key.end && starts.value(row) == key.start)
                .count();
            let (keys, mut states) = columns.split_at_checked(self.exchange.encoded_len()).ok_or_else(corrupt)?;
            let keys: Vec<ArrayRef> = keys.iter().map(|column| column.slice(first, len)).collect();
            let mut per_function = Vec::new();
            for function in self.exchange.functions() {
                let (own, rest) = states.split_at_checked(function.state_fields()?.len()).ok_or_else(corrupt)?;
                per_function.push(own.iter().map(|column| column.slice(first, len)).collect::<Vec<_>>());
                states = rest;
            }
            let encoded = self.exchange.encode_keys(&keys)?;
            let entries: Vec<(u64, &[u8])> = match &encoded {
                Some(rows) => rows.iter().map(|row| (stable_hash(row.data()), row.data())).collect(),
                None => vec![(stable_hash(&[]), &[][..]); len],
            };
            self.check_partition(&entries)?;
            self.bucket(key)?.load(&entries, &per_function)?;
            first += len;
        }
        Ok(())
    }

    /// New rows of a group would go to another partition than its state, and the group would be there twice.
    fn check_partition(&self, entries: &[(u64, &[u8])]) -> Result<(), EngineError> {
        let partitions = self.exchange.partitions() as u64;
        let Some((hash, _)) = entries.iter().find(|(hash, _)| hash % partitions != self.number as u64) else {
            return Ok(());
        };
        Err(EngineError::Invalid {
            class: "STATE_STORE_KEY_PARTITION_MISMATCH",
            message: format!(
                "the state of partition {} in {} holds a group that belongs to partition {}: it was made with another \
                 number of partitions, or by a program that hashes otherwise; use a new checkpoint location",
                self.number,
                self.dir.display(),
                hash % partitions
            ),
        })
    }
}

/// The watermark that a version's file names.
pub(super) fn saved_watermark(mode: OutputMode, batch: AggregationBatch) -> Option<i64> {
    match mode {
        OutputMode::Append | OutputMode::Update => batch.evict_ms,
        OutputMode::Complete => None,
    }
}

/// Cuts a selection into portions of about `bytes`, each of at least one group, by the average size of a bucket's groups.
fn portions<'a>(
    selection: impl Iterator<Item = (BucketKey, &'a Bucket, Vec<u32>)> + 'a,
    bytes: usize,
) -> impl Iterator<Item = Selection<'a>> + 'a {
    let mut selection = selection.filter(|(_, _, groups)| !groups.is_empty());
    let mut rest: Option<(BucketKey, &'a Bucket, Vec<u32>)> = None;
    std::iter::from_fn(move || {
        let (mut portion, mut left) = (Selection::new(), bytes);
        while let Some((key, bucket, mut groups)) = rest.take().or_else(|| selection.next()) {
            let size = (bucket.size_bytes() / bucket.keys.len().max(1)).max(1);
            let fits = (left / size).max(usize::from(portion.is_empty())).min(groups.len());
            if fits < groups.len() {
                rest = Some((key, bucket, groups.split_off(fits)));
            }
            left = left.saturating_sub(fits * size);
            if !groups.is_empty() {
                portion.push((key, bucket, groups));
            }
            if rest.is_some() {
                break;
            }
        }
        (!portion.is_empty()).then_some(portion)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_are_bounded_and_miss_no_group() {
        let mut buckets = Buckets::new();
        for (end, keys) in [(1, 1_000u32), (2, 3), (3, 0), (4, 500)] {
            let mut bucket = Bucket::new(&[], &[]).unwrap();
            for key in 0..keys {
                let key = format!("a key of some length {key}");
                bucket.touch((stable_hash(key.as_bytes()), key.as_bytes()), &[], 1, 1).unwrap();
            }
            buckets.insert(BucketKey { end, start: 0 }, bucket);
        }
        let expected: Vec<(i64, u32)> = buckets
            .iter()
            .flat_map(|(key, bucket)| bucket.all_groups().into_iter().map(|group| (key.end, group)))
            .collect();
        for bytes in [1, 1_000, 50_000, usize::MAX] {
            let all = buckets.iter().map(|(key, bucket)| (*key, bucket, bucket.all_groups()));
            let (mut found, mut portions_found) = (Vec::new(), 0);
            for portion in portions(all, bytes) {
                let size: usize = portion
                    .iter()
                    .map(|(_, bucket, groups)| groups.len() * (bucket.size_bytes() / bucket.keys.len()))
                    .sum();
                let groups: usize = portion.iter().map(|(_, _, groups)| groups.len()).sum();
                assert!(groups == 1 || size <= bytes, "{groups} groups of {size} bytes in a portion of {bytes}");
                portions_found += 1;
                found.extend(portion.iter().flat_map(|(key, _, groups)| groups.iter().map(|group| (key.end, *group))));
            }
            assert_eq!(found, expected, "portions of {bytes} bytes");
            assert_eq!(portions_found == 1, bytes == usize::MAX);
        }
    }
}
