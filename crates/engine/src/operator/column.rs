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
    /// States of past updates; a chunk goes when no group points at it any more.
    chunks: Vec<Option<StateChunk>>,
    /// Chunk and row of each group's state; `NOWHERE` before its first update.
    places: Vec<(u32, u32)>,
}

/// What one update, or a merge of several, left.
struct StateChunk {
    state: Vec<ArrayRef>,
    /// The group of each row.
    groups: Vec<u32>,
    /// The rows that are still their group's state.
    live: usize,
}

const NOWHERE: (u32, u32) = (u32::MAX, u32::MAX);
/// So many chunks of about the same size are merged into one. A state is then copied once per power of this number of
/// groups that are touched after it, not once per so many updates.
const FANOUT: usize = 8;
/// Chunks are not merged beyond this: text and lists are addressed by 32 bits.
const MAX_CHUNK_BYTES: usize = 512 << 20;

impl StateChunk {
    /// Chunks of one class are up to `FANOUT` times as large as each other.
    fn class(&self) -> u32 {
        self.groups.len().max(1).ilog(FANOUT)
    }

    /// Mostly rows that are nobody's state any more.
    fn is_stale(&self) -> bool {
        self.groups.len() > 2 * self.live + 16
    }

    fn size_bytes(&self) -> usize {
        self.state.iter().map(|array| array.get_array_memory_size()).sum::<usize>()
            + self.groups.capacity() * size_of::<u32>()
    }
}

#[expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "places point into chunks made here; groups are dense numbers below 2^32"
)]
impl GenericColumn {
    fn new(function: Arc<AggregateFunctionExpr>) -> Self {
        Self { function, chunks: Vec::new(), places: Vec::new() }
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
        let mut used: Vec<&StateChunk> = Vec::new();
        let mut picks: Vec<(usize, usize)> = Vec::with_capacity(groups.len());
        for &group in groups {
            let (chunk, row) = self.places[group as usize];
            let Some(state) = self.chunks.get(chunk as usize).and_then(Option::as_ref) else { continue };
            let number = &mut numbers[chunk as usize];
            if *number == usize::MAX {
                *number = used.len();
                used.push(state);
            }
            picks.push((*number, row as usize));
        }
        let width = self.function.state_fields()?.len();
        (0..width)
            .map(|column| {
                let arrays: Vec<&dyn Array> = used.iter().map(|chunk| chunk.state[column].as_ref()).collect();
                Ok(compute::interleave(&arrays, &picks)?)
            })
            .collect()
    }

    fn store(&mut self, groups: &[u32], state: Vec<ArrayRef>) -> Result<()> {
        if groups.is_empty() {
            return Ok(());
        }
        let mut chunk = self.put(StateChunk { state, groups: groups.to_vec(), live: groups.len() });
        // A merge can fill up the next class.
        while let Some(merged) = self.merge(chunk)? {
            chunk = merged;
        }
        Ok(())
    }

    /// Adds a chunk and points its groups at it.
    fn put(&mut self, new: StateChunk) -> usize {
        let chunk = match self.chunks.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                self.chunks.push(None);
                self.chunks.len() - 1
            }
        };
        for (row, &group) in new.groups.iter().enumerate() {
            let (old, _) = std::mem::replace(&mut self.places[group as usize], (chunk as u32, row as u32));
            if let Some(slot) = self.chunks.get_mut(old as usize)
                && let Some(holder) = slot
            {
                holder.live -= 1;
                if holder.live == 0 {
                    *slot = None;
                }
            }
        }
        self.chunks[chunk] = Some(new);
        chunk
    }

    /// Merges the chunks of the class of `chunk` when there are enough of them, and those that are mostly stale. Returns
    /// the number of the new chunk.
    fn merge(&mut self, chunk: usize) -> Result<Option<usize>> {
        let Some(class) = self.chunks.get(chunk).and_then(Option::as_ref).map(StateChunk::class) else {
            return Ok(None);
        };
        let small = |chunk: &StateChunk| chunk.class() == class && chunk.size_bytes() <= MAX_CHUNK_BYTES / FANOUT;
        let crowded = self.chunks.iter().flatten().filter(|chunk| small(chunk)).count() >= FANOUT;
        let mut groups = Vec::new();
        for (number, chunk) in self.chunks.iter().enumerate() {
            let Some(chunk) = chunk else { continue };
            if crowded && small(chunk) || chunk.is_stale() && chunk.size_bytes() <= MAX_CHUNK_BYTES {
                let own = chunk.groups.iter().enumerate();
                groups.extend(
                    own.filter(|&(row, &group)| self.places[group as usize] == (number as u32, row as u32))
                        .map(|(_, &group)| group),
                );
            }
        }
        if groups.is_empty() {
            return Ok(None);
        }
        let state = self.gather(&groups)?;
        let live = groups.len();
        Ok(Some(self.put(StateChunk { state, groups, live })))
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
            + self.chunks.iter().flatten().map(StateChunk::size_bytes).sum::<usize>()
    }

    fn needs_local(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::{Field, Int64Type, Schema};
    use datafusion::functions_aggregate::array_agg::array_agg_udaf;
    use datafusion::physical_expr::aggregate::AggregateExprBuilder;
    use datafusion::physical_expr::expressions::col;

    use super::*;

    fn lists() -> GenericColumn {
        let schema = Arc::new(Schema::new(vec![Field::new("v", DataType::Int64, true)]));
        let function = AggregateExprBuilder::new(array_agg_udaf(), vec![col("v", &schema).unwrap()])
            .schema(schema)
            .alias("all")
            .build()
            .unwrap();
        GenericColumn::new(Arc::new(function))
    }

    fn update(column: &mut GenericColumn, groups: &[u32], value: i64, total: usize) {
        let local: Vec<usize> = (0..groups.len()).collect();
        let rows = RowGroups { groups, local: &local, distinct: groups, total };
        column.update(&[Arc::new(Int64Array::from(vec![value; groups.len()]))], None, &rows).unwrap();
    }

    /// Many groups, a few of them touched at a time: what is copied by merges must not grow with updates times groups.
    #[test]
    fn merging_costs_little_however_many_groups_there_are() {
        let mut column = lists();
        let total = 4_000;
        let all: Vec<u32> = (0..total).collect();
        update(&mut column, &all, -1, total as usize);
        let mut expected = vec![vec![-1i64]; total as usize];
        let base = column.chunks.iter().flatten().next().unwrap().state[0].to_data().buffers()[0].as_ptr();
        for step in 0..400u32 {
            let groups: Vec<u32> = (0..4).map(|i| (step * 7 + i * 1_000) % total).collect();
            update(&mut column, &groups, i64::from(step), total as usize);
            groups.iter().for_each(|&group| expected[group as usize].push(i64::from(step)));
        }
        let chunks: Vec<&StateChunk> = column.chunks.iter().flatten().collect();
        assert!(chunks.len() <= 5 * FANOUT, "{} chunks", chunks.len());
        let kept = chunks.iter().any(|chunk| chunk.state[0].to_data().buffers()[0].as_ptr() == base);
        assert!(kept, "the states of all groups were copied, although fewer than half of them changed");
        let lists = column.evaluate(&all).unwrap();
        for (group, expected) in expected.iter().enumerate() {
            let list = lists.as_list::<i32>().value(group);
            assert_eq!(list.as_primitive::<Int64Type>().values(), expected.as_slice(), "group {group}");
        }
    }

    #[test]
    fn what_is_stale_is_let_go() {
        let mut column = lists();
        let all: Vec<u32> = (0..200).collect();
        for value in 0..40 {
            // All groups but one, so that no chunk empties by itself.
            let skipped = value % 200;
            let groups: Vec<u32> = all.iter().copied().filter(|&group| i64::from(group) != skipped).collect();
            update(&mut column, &groups, value, 200);
            let rows: usize = column.chunks.iter().flatten().map(|chunk| chunk.groups.len()).sum();
            assert!(rows <= 2 * 200 + 16 * column.chunks.len(), "{rows} rows for 200 groups");
        }
    }
}
