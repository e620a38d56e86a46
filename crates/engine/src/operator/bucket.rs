//! Buckets: the groups that the watermark passes at the same moment live and go together.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray};
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use super::column::{AggregateColumn, RowGroups, column_for};
use super::groups::GroupKeys;

/// When a bucket's groups are complete: the raw end of their window (or their event time itself), and the window's start.
/// Groups whose event time is null, and all groups of an operator without event time, live in [`BucketKey::FOREVER`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BucketKey {
    pub end: i64,
    pub start: i64,
}

impl BucketKey {
    /// No watermark reaches it.
    pub const FOREVER: Self = Self { end: i64::MAX, start: i64::MIN };
}

/// The groups of one bucket with their aggregates.
pub struct Bucket {
    pub keys: GroupKeys,
    columns: Vec<Box<dyn AggregateColumn>>,
    /// Groups touched by the current batch, each once.
    touched: Vec<u32>,
    /// Per group: the number of the update that touched it last, and its place among that update's groups.
    stamps: Vec<(u64, u32)>,
    batch_stamps: Vec<u64>,
    needs_local: bool,
}

/// The rows of one update of one bucket.
pub struct BucketRows<'a, 'k> {
    /// Hash and encoded key of each row.
    pub keys: &'a mut dyn Iterator<Item = (u64, &'k [u8])>,
    pub rows: usize,
    /// The arguments of each function.
    pub args: &'a [Vec<ArrayRef>],
    pub filters: &'a [Option<BooleanArray>],
}

#[expect(clippy::indexing_slicing, reason = "stamps are resized to the number of groups before they are read")]
impl Bucket {
    /// An empty bucket; `args` are the functions' arguments for no rows.
    pub fn new(functions: &[Arc<AggregateFunctionExpr>], args: &[Vec<ArrayRef>]) -> Result<Self> {
        let columns: Vec<_> = functions
            .iter()
            .zip(args)
            .map(|(function, args)| {
                let types: Vec<DataType> = args.iter().map(|arg| arg.data_type().clone()).collect();
                column_for(function, &types)
            })
            .collect::<Result<_>>()?;
        let needs_local = columns.iter().any(|column| column.needs_local());
        Ok(Self {
            keys: GroupKeys::default(),
            columns,
            touched: Vec::new(),
            stamps: Vec::new(),
            batch_stamps: Vec::new(),
            needs_local,
        })
    }

    /// Takes in rows. `update` is a number that no earlier update of this bucket had, `batch` likewise for batches.
    pub fn update(&mut self, rows: BucketRows<'_, '_>, update: u64, batch: u64) -> Result<()> {
        let mut groups: Vec<u32> = Vec::with_capacity(rows.rows);
        for (hash, key) in rows.keys {
            groups.push(self.keys.intern(hash, key));
        }
        let total = self.keys.len();
        self.stamps.resize(total, (0, 0));
        self.batch_stamps.resize(total, 0);
        let mut distinct: Vec<u32> = Vec::new();
        for &group in &groups {
            let stamp = &mut self.stamps[group as usize];
            if stamp.0 != update {
                #[expect(clippy::cast_possible_truncation, reason = "there are fewer groups than 2^32")]
                let place = distinct.len() as u32;
                *stamp = (update, place);
                distinct.push(group);
                if self.batch_stamps[group as usize] != batch {
                    self.batch_stamps[group as usize] = batch;
                    self.touched.push(group);
                }
            }
        }
        let local: Vec<usize> = if self.needs_local {
            groups.iter().map(|&group| self.stamps[group as usize].1 as usize).collect()
        } else {
            Vec::new()
        };
        let row_groups = RowGroups { groups: &groups, local: &local, distinct: &distinct, total };
        for ((column, args), filter) in self.columns.iter_mut().zip(rows.args).zip(rows.filters) {
            column.update(args, filter.as_ref(), &row_groups)?;
        }
        Ok(())
    }

    /// Makes sure that a group exists, with the state that its functions have before any row, and counts it as touched.
    pub fn touch(&mut self, key: (u64, &[u8]), empty_args: &[Vec<ArrayRef>], update: u64, batch: u64) -> Result<()> {
        let group = self.keys.intern(key.0, key.1);
        let total = self.keys.len();
        self.stamps.resize(total, (0, 0));
        self.batch_stamps.resize(total, 0);
        self.stamps[group as usize] = (update, 0);
        if self.batch_stamps[group as usize] != batch {
            self.batch_stamps[group as usize] = batch;
            self.touched.push(group);
        }
        let rows = RowGroups { groups: &[], local: &[], distinct: &[group], total };
        for (column, args) in self.columns.iter_mut().zip(empty_args) {
            column.update(args, None, &rows)?;
        }
        Ok(())
    }

    /// Sets groups to checkpointed states; `states` holds the arrays of each function. Keys must be distinct.
    pub fn load(&mut self, keys: &[(u64, &[u8])], states: &[Vec<ArrayRef>]) -> Result<()> {
        let groups: Vec<u32> = keys.iter().map(|(hash, key)| self.keys.intern(*hash, key)).collect();
        let total = self.keys.len();
        self.stamps.resize(total, (0, 0));
        self.batch_stamps.resize(total, 0);
        for (column, state) in self.columns.iter_mut().zip(states) {
            column.load(&groups, state, total)?;
        }
        Ok(())
    }

    /// The groups touched by the current batch.
    pub fn touched(&self) -> &[u32] {
        &self.touched
    }

    pub fn clear_touched(&mut self) {
        self.touched.clear();
    }

    #[expect(clippy::cast_possible_truncation, reason = "there are fewer groups than 2^32")]
    pub fn all_groups(&self) -> Vec<u32> {
        (0..self.keys.len() as u32).collect()
    }

    pub fn columns(&self) -> &[Box<dyn AggregateColumn>] {
        &self.columns
    }

    pub fn size_bytes(&self) -> usize {
        self.keys.size_bytes()
            + self.columns.iter().map(|column| column.size_bytes()).sum::<usize>()
            + self.stamps.capacity() * size_of::<(u64, u32)>()
            + (self.batch_stamps.capacity() + self.touched.capacity()) * size_of::<u64>()
    }
}

/// Buckets in the order in which the watermark reaches them.
pub type Buckets = BTreeMap<BucketKey, Bucket>;
