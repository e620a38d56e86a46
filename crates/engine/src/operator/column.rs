//! The state of one aggregate function over all groups of a bucket, by column.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray};
use arrow::compute;
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion_functions_aggregate_common::aggregate::groups_accumulator::GroupsAccumulatorAdapter;

use super::primitive;

/// The rows of one update: row `i` belongs to group `groups[i]`, which is number `local[i]` of the groups touched.
pub struct RowGroups<'a> {
    pub groups: &'a [u32],
    /// Empty unless a column of the operator asks for it ([`AggregateColumn::needs_local`]).
    pub local: &'a [usize],
    /// The groups touched by this update, each once.
    pub distinct: &'a [u32],
    /// The number of groups in the bucket, new ones included.
    pub total: usize,
}

/// Aggregate state by column. All reads leave the state as it is.
pub trait AggregateColumn: Send {
    /// Takes in rows; `filter` (`FILTER (WHERE ...)`) says which of them count.
    fn update(&mut self, args: &[ArrayRef], filter: Option<&BooleanArray>, rows: &RowGroups<'_>) -> Result<()>;

    /// The intermediate state of `groups`, in the function's state schema: what a checkpoint holds.
    fn state(&self, groups: &[u32]) -> Result<Vec<ArrayRef>>;

    /// Replaces the state of `groups` (distinct) by rows that [`Self::state`] once returned; `total` as in [`RowGroups`].
    fn load(&mut self, groups: &[u32], state: &[ArrayRef], total: usize) -> Result<()>;

    /// The function's result for `groups`.
    fn evaluate(&self, groups: &[u32]) -> Result<ArrayRef>;

    /// Bytes held.
    fn size_bytes(&self) -> usize;

    fn needs_local(&self) -> bool {
        false
    }
}

/// The column for `function`: a typed one where there is one, else the generic one.
pub fn column_for(function: &Arc<AggregateFunctionExpr>, arguments: &[DataType]) -> Result<Box<dyn AggregateColumn>> {
    if let Some(column) = primitive::column_for(function, arguments)? {
        return Ok(column);
    }
    Ok(Box::new(GenericColumn::new(Arc::clone(function))))
}

/// Any aggregate function, through its accumulator: per update the touched groups' states go into a fresh accumulator,
/// the rows after them, and the new states come out. Nothing is assumed about an accumulator's life after `state()`.
struct GenericColumn {
    function: Arc<AggregateFunctionExpr>,
    /// State arrays of past updates; a chunk goes when no group points at it any more.
    chunks: Vec<Option<Vec<ArrayRef>>>,
    live: Vec<usize>,
    /// Chunk and row of each group's state; `NOWHERE` before its first update.
    places: Vec<(u32, u32)>,
}

const NOWHERE: (u32, u32) = (u32::MAX, u32::MAX);
/// Chunks are merged into one when there are more of them than this.
const MAX_CHUNKS: usize = 64;

#[expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "places point into chunks made here; groups are dense numbers below 2^32"
)]
impl GenericColumn {
    fn new(function: Arc<AggregateFunctionExpr>) -> Self {
        Self { function, chunks: Vec::new(), live: Vec::new(), places: Vec::new() }
    }

    fn accumulator(&self) -> Result<Box<dyn GroupsAccumulator>> {
        if self.function.groups_accumulator_supported() {
            return self.function.create_groups_accumulator();
        }
        let function = Arc::clone(&self.function);
        Ok(Box::new(GroupsAccumulatorAdapter::new(move || function.create_accumulator())))
    }

    /// The states of groups that have one.
    fn gather(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        // Only the chunks in use are handed to `interleave`.
        let mut numbers: Vec<usize> = vec![usize::MAX; self.chunks.len()];
        let mut used: Vec<&Vec<ArrayRef>> = Vec::new();
        let mut picks: Vec<(usize, usize)> = Vec::with_capacity(groups.len());
        for &group in groups {
            let (chunk, row) = self.places[group as usize];
            let Some(arrays) = self.chunks.get(chunk as usize).and_then(Option::as_ref) else { continue };
            let number = &mut numbers[chunk as usize];
            if *number == usize::MAX {
                *number = used.len();
                used.push(arrays);
            }
            picks.push((*number, row as usize));
        }
        let width = self.function.state_fields()?.len();
        (0..width)
            .map(|column| {
                let arrays: Vec<&dyn Array> = used.iter().map(|chunk| chunk[column].as_ref()).collect();
                Ok(compute::interleave(&arrays, &picks)?)
            })
            .collect()
    }

    fn store(&mut self, groups: &[u32], state: Vec<ArrayRef>) -> Result<()> {
        let chunk = match self.chunks.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                self.chunks.push(None);
                self.live.push(0);
                self.chunks.len() - 1
            }
        };
        self.chunks[chunk] = Some(state);
        self.live[chunk] = groups.len();
        for (row, &group) in groups.iter().enumerate() {
            let old = std::mem::replace(&mut self.places[group as usize], (chunk as u32, row as u32));
            if old != NOWHERE {
                let old = old.0 as usize;
                self.live[old] -= 1;
                if self.live[old] == 0 {
                    self.chunks[old] = None;
                }
            }
        }
        self.compact()
    }

    /// Keeps the number of chunks, and with it the rows held in vain, bounded.
    fn compact(&mut self) -> Result<()> {
        let held: usize = self.chunks.iter().flatten().filter_map(|chunk| chunk.first()).map(|array| array.len()).sum();
        let live: usize = self.live.iter().sum();
        if self.chunks.iter().flatten().count() <= MAX_CHUNKS && held <= 2 * live + 1_024 {
            return Ok(());
        }
        let groups: Vec<u32> =
            (0..self.places.len() as u32).filter(|&group| self.places[group as usize] != NOWHERE).collect();
        let state = self.gather(&groups)?;
        for (row, &group) in groups.iter().enumerate() {
            self.places[group as usize] = (0, row as u32);
        }
        self.live = vec![groups.len()];
        self.chunks = vec![Some(state)];
        Ok(())
    }
}

#[expect(clippy::indexing_slicing, reason = "groups are dense numbers below places' length")]
impl AggregateColumn for GenericColumn {
    fn update(&mut self, args: &[ArrayRef], filter: Option<&BooleanArray>, rows: &RowGroups<'_>) -> Result<()> {
        self.places.resize(rows.total, NOWHERE);
        let mut accumulator = self.accumulator()?;
        let (known, locals): (Vec<u32>, Vec<usize>) = rows
            .distinct
            .iter()
            .enumerate()
            .filter(|&(_, &group)| self.places[group as usize] != NOWHERE)
            .map(|(local, &group)| (group, local))
            .unzip();
        if !known.is_empty() {
            accumulator.merge_batch(&self.gather(&known)?, &locals, rows.distinct.len())?;
        }
        accumulator.update_batch(args, rows.local, filter, rows.distinct.len())?;
        let state = accumulator.state(EmitTo::All)?;
        self.store(rows.distinct, state)
    }

    fn state(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        self.gather(groups)
    }

    fn load(&mut self, groups: &[u32], state: &[ArrayRef], total: usize) -> Result<()> {
        self.places.resize(total, NOWHERE);
        self.store(groups, state.to_vec())
    }

    fn evaluate(&self, groups: &[u32]) -> Result<ArrayRef> {
        let mut accumulator = self.accumulator()?;
        let locals: Vec<usize> = (0..groups.len()).collect();
        accumulator.merge_batch(&self.gather(groups)?, &locals, groups.len())?;
        accumulator.evaluate(EmitTo::All)
    }

    fn size_bytes(&self) -> usize {
        self.places.capacity() * size_of::<(u32, u32)>()
            + self.chunks.iter().flatten().flatten().map(|array| array.get_array_memory_size()).sum::<usize>()
    }

    fn needs_local(&self) -> bool {
        true
    }
}
