//! Prepares rows for a stateful operator: evaluates keys and arguments, drops late rows, and sorts what is left by
//! bucket and state partition, without an allocation per row.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StructArray, UInt32Array};
use arrow::compute;
use arrow::datatypes::{DataType, Field, SchemaRef, TimeUnit};
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::{DFSchema, DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Aggregate, Expr};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::aggregate::{AggregateFunctionExpr, LoweredAggregateBuilder};
use datafusion::physical_expr::create_physical_expr;
use datafusion::physical_plan::PhysicalExpr;

use super::bucket::BucketKey;
use super::groups::stable_hash;
use super::normal::normalise;
use crate::error::EngineError;
use crate::plan::fragment::evaluate_all;
use crate::plan::guard::guard_expression;
use crate::plan::nodes::{is_time_window, watermark_delay_ms};
use crate::plan::watermark::{from_ms, raw_event_time};

/// The grouping column that carries event time.
#[derive(Debug)]
pub struct EventTimeKey {
    /// Its position among the grouping columns.
    pub index: usize,
    pub unit: TimeUnit,
    /// A `struct<start, end>` that the bucket's key alone restores; else the bucket's end is the timestamp itself.
    pub window: bool,
}

/// What a stateful aggregate evaluates on its input.
pub struct Exchange {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    functions: Vec<Arc<AggregateFunctionExpr>>,
    args: Vec<Vec<Arc<dyn PhysicalExpr>>>,
    filters: Vec<Option<Arc<dyn PhysicalExpr>>>,
    schema: SchemaRef,
    event_time: Option<EventTimeKey>,
    /// The grouping columns in the row-encoded key: all but the event time.
    encoded: Vec<usize>,
    converter: Option<RowConverter>,
    partitions: usize,
    empty_args: Vec<Vec<ArrayRef>>,
}

/// Consecutive rows of a chunk that go to the same bucket of the same partition.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub bucket: BucketKey,
    pub partition: usize,
    pub start: usize,
    pub len: usize,
}

/// A batch of rows ready for the state partitions.
pub struct Chunk {
    rows: Option<Rows>,
    hashes: Vec<u64>,
    /// The rows in the order of the runs; `None`: as they came.
    order: Option<Vec<u32>>,
    pub runs: Vec<Run>,
    args: Vec<Vec<ArrayRef>>,
    filters: Vec<Option<BooleanArray>>,
    /// Rows dropped because the watermark had passed them.
    pub late_rows: u64,
}

/// Some functions exist only as what the optimiser makes of them; it sees the fragments below an aggregate, not the
/// aggregate itself.
fn simplify(expr: &Expr, input: &DFSchema, session: &SessionState) -> Result<Expr> {
    let context = SimplifyContext::builder()
        .with_schema(Arc::new(input.clone()))
        .with_config_options(Arc::clone(session.config_options()))
        .build();
    ExprSimplifier::new(context).simplify(expr.clone())
}

impl Exchange {
    /// Plans the expressions of `aggregate` over the output of the fragment that feeds it.
    pub fn try_new(
        aggregate: &Aggregate,
        input: &DFSchema,
        session: &SessionState,
        partitions: usize,
    ) -> Result<Self, EngineError> {
        let context = PhysicalPlanningContext::default();
        let properties = session.execution_props();
        let schema: SchemaRef = Arc::new(aggregate.schema.as_arrow().clone());
        let mut keys = Vec::with_capacity(aggregate.group_expr.len());
        for expr in &aggregate.group_expr {
            if matches!(expr, Expr::GroupingSet(_)) {
                return Err(EngineError::Invalid {
                    class: "UNSUPPORTED_FEATURE",
                    message:
                        "GROUPING SETS, ROLLUP and CUBE are not supported on streams yet; write one query per grouping"
                            .to_owned(),
                });
            }
            let expr = guard_expression(simplify(expr, input, session)?, input, false)?.data;
            keys.push(create_physical_expr(&expr, input, properties, &context)?);
        }
        let (mut functions, mut args, mut filters) = (Vec::new(), Vec::new(), Vec::new());
        for expr in &aggregate.aggr_expr {
            let name = NamePreserver::new_for_projection().save(expr);
            let expr = name.restore(simplify(expr, input, session)?);
            let expr = guard_expression(expr, input, false)?.data;
            let lowered = LoweredAggregateBuilder::new(&expr, input, input.as_arrow(), properties, &context).build()?;
            if lowered.aggregate.order_sensitivity().hard_requires() {
                return Err(EngineError::Invalid {
                    class: "UNSUPPORTED_FEATURE",
                    message: format!("ORDER BY inside {} is not supported on streams", lowered.aggregate.name()),
                });
            }
            let mut arguments = lowered.aggregate.expressions();
            arguments.extend(lowered.order_bys.iter().map(|order| Arc::clone(&order.expr)));
            args.push(arguments);
            filters.push(lowered.filter);
            functions.push(lowered.aggregate);
        }
        let event_time = find_event_time(&schema, keys.len());
        let encoded: Vec<usize> =
            (0..keys.len()).filter(|index| event_time.as_ref().is_none_or(|key| key.index != *index)).collect();
        let fields: Vec<SortField> =
            encoded.iter().map(|&index| SortField::new(schema.field(index).data_type().clone())).collect();
        let converter = if fields.is_empty() { None } else { Some(RowConverter::new(fields)?) };
        let empty = RecordBatch::new_empty(Arc::new(input.as_arrow().clone()));
        let empty_args = args.iter().map(|args| evaluate_all(args, &empty)).collect::<Result<_>>()?;
        Ok(Self { keys, functions, args, filters, schema, event_time, encoded, converter, partitions, empty_args })
    }

    pub fn functions(&self) -> &[Arc<AggregateFunctionExpr>] {
        &self.functions
    }

    pub fn partitions(&self) -> usize {
        self.partitions
    }

    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub fn event_time(&self) -> Option<&EventTimeKey> {
        self.event_time.as_ref()
    }

    /// Whether the operator has no grouping columns: one group, which exists without rows too.
    pub fn is_global(&self) -> bool {
        self.keys.is_empty()
    }

    /// The functions' arguments for no rows at all.
    pub fn empty_args(&self) -> &[Vec<ArrayRef>] {
        &self.empty_args
    }

    /// The largest raw event time that a watermark has passed, in the unit of the event-time column.
    pub fn passed(&self, watermark_ms: Option<i64>) -> Option<i64> {
        Some(from_ms(watermark_ms?, self.event_time.as_ref()?.unit))
    }

    /// What identifies the operator's state in a checkpoint: its keys and functions with their types.
    pub fn signature(&self) -> String {
        let keys: Vec<String> = self
            .schema
            .fields()
            .iter()
            .take(self.keys.len())
            .map(|field| format!("{} {}", field.name(), field.data_type()))
            .collect();
        let functions: Vec<String> = self
            .functions
            .iter()
            .map(|function| format!("{} {}", function.fun().name(), function.field().data_type()))
            .collect();
        format!("group by [{}] aggregate [{}]", keys.join(", "), functions.join(", "))
    }

    /// Evaluates `batch`; rows whose event time the watermark `late_ms` has passed are dropped and counted.
    pub fn chunk(&self, batch: &RecordBatch, late_ms: Option<i64>) -> Result<Chunk, EngineError> {
        let keys = evaluate_all(&self.keys, batch)?;
        let rows = match &self.converter {
            Some(converter) => {
                let columns: Vec<ArrayRef> =
                    self.encoded.iter().filter_map(|&index| keys.get(index).cloned()).collect();
                Some(converter.convert_columns(&normalise(&columns)?)?)
            }
            None => None,
        };
        let hashes: Vec<u64> = match &rows {
            Some(rows) => rows.iter().map(|row| stable_hash(row.data())).collect(),
            None => vec![stable_hash(&[]); batch.num_rows()],
        };
        let mut sorter = Sorter::new(self.partitions);
        match &self.event_time {
            Some(key) => {
                let Some(column) = keys.get(key.index) else {
                    return Err(DataFusionError::Internal("an event time that is no key".to_owned()).into());
                };
                let late = self.passed(late_ms).unwrap_or(i64::MIN);
                sorter.sort_by_event_time(&hashes, column, key.window, late)?;
            }
            None => sorter.sort(&hashes),
        }
        let (order, runs, late_rows) = sorter.finish();
        let mut args = Vec::with_capacity(self.args.len());
        let mut filters = Vec::with_capacity(self.filters.len());
        let taken = order.as_ref().map(|order| UInt32Array::from(order.clone()));
        for (expressions, filter) in self.args.iter().zip(&self.filters) {
            let mut columns = evaluate_all(expressions, batch)?;
            let mut mask = match filter {
                Some(filter) => Some(filter.evaluate(batch)?.into_array(batch.num_rows())?),
                None => None,
            };
            if let Some(indices) = &taken {
                for column in columns.iter_mut().chain(mask.as_mut()) {
                    *column = compute::take(column, indices, None)?;
                }
            }
            args.push(columns);
            filters.push(mask.map(|mask| mask.as_boolean().clone()));
        }
        Ok(Chunk { rows, hashes, order, runs, args, filters, late_rows })
    }

    /// Encodes key columns (those in the key, in order) as [`Exchange::chunk`] does.
    pub fn encode_keys(&self, columns: &[ArrayRef]) -> Result<Option<Rows>> {
        self.converter.as_ref().map(|converter| Ok(converter.convert_columns(&normalise(columns)?)?)).transpose()
    }

    /// The number of columns in the encoded key.
    pub fn encoded_len(&self) -> usize {
        self.encoded.len()
    }

    /// Turns encoded keys back into columns.
    pub fn decode_keys<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>> {
        match &self.converter {
            Some(converter) => {
                let parser = converter.parser();
                let rows: Vec<_> = keys.map(|key| parser.parse(key)).collect();
                Ok(converter.convert_rows(rows)?)
            }
            None => Ok(Vec::new()),
        }
    }

    /// The grouping columns in the order of the output schema, from decoded keys and the rows' buckets.
    pub fn group_columns(&self, decoded: Vec<ArrayRef>, buckets: &[(BucketKey, usize)]) -> Result<Vec<ArrayRef>> {
        let mut decoded = decoded.into_iter();
        let mut columns = Vec::with_capacity(self.keys.len());
        for index in 0..self.keys.len() {
            match &self.event_time {
                Some(key) if key.index == index => {
                    columns.push(event_time_column(self.schema.field(index), key.window, buckets)?);
                }
                _ => columns.extend(decoded.next()),
            }
        }
        Ok(columns)
    }
}

/// The first grouping column with a watermark: a window of exactly start and end, or a timestamp.
fn find_event_time(schema: &SchemaRef, keys: usize) -> Option<EventTimeKey> {
    schema.fields().iter().take(keys).enumerate().find_map(|(index, field)| {
        watermark_delay_ms(field)?;
        match field.data_type() {
            DataType::Timestamp(unit, _) => Some(EventTimeKey { index, unit: *unit, window: false }),
            DataType::Struct(fields) if is_time_window(field) => match (fields.first(), fields.get(1), fields.len()) {
                (Some(start), Some(end), 2) if start.name() == "start" && end.name() == "end" => {
                    match end.data_type() {
                        DataType::Timestamp(unit, _) => Some(EventTimeKey { index, unit: *unit, window: true }),
                        _ => None,
                    }
                }
                _ => None,
            },
            _ => None,
        }
    })
}

/// Restores the event-time column of rows that come bucket by bucket.
fn event_time_column(field: &Field, window: bool, buckets: &[(BucketKey, usize)]) -> Result<ArrayRef> {
    let repeat = |value: fn(&BucketKey) -> i64| -> Int64Array {
        buckets
            .iter()
            .flat_map(|(bucket, rows)| {
                let value = (*bucket != BucketKey::FOREVER).then(|| value(bucket));
                std::iter::repeat_n(value, *rows)
            })
            .collect()
    };
    let end = repeat(|bucket| bucket.end);
    match field.data_type() {
        DataType::Struct(fields) if window => {
            let nulls = end.nulls().cloned();
            let start = repeat(|bucket| bucket.start);
            let columns = fields
                .iter()
                .zip([start, end])
                .map(|(field, values)| Ok(restore(&values, field)?))
                .collect::<Result<Vec<_>>>()?;
            Ok(Arc::new(StructArray::try_new(fields.clone(), columns, nulls)?))
        }
        _ => Ok(restore(&end, field)?),
    }
}

/// Raw integers as the timestamp type of `field`; null rows of a not-null field (under a null struct) become 0.
fn restore(values: &Int64Array, field: &Field) -> Result<ArrayRef, arrow::error::ArrowError> {
    let values = if field.is_nullable() {
        values.clone()
    } else {
        values.iter().map(|value| Some(value.unwrap_or(0))).collect()
    };
    compute::cast(&values, field.data_type())
}

/// A counting sort of rows by (bucket, partition).
struct Sorter {
    partitions: usize,
    buckets: Vec<BucketKey>,
    numbers: HashMap<BucketKey, usize>,
    /// Per row: bucket number * partitions + partition; `LATE` for rows to drop.
    slots: Vec<usize>,
    counts: Vec<usize>,
    late_rows: u64,
}

const LATE: usize = usize::MAX;

#[expect(clippy::indexing_slicing, reason = "slots index counts, which grows with the buckets")]
impl Sorter {
    fn new(partitions: usize) -> Self {
        Self {
            partitions,
            buckets: Vec::new(),
            numbers: HashMap::new(),
            slots: Vec::new(),
            counts: Vec::new(),
            late_rows: 0,
        }
    }

    fn bucket_number(&mut self, bucket: BucketKey) -> usize {
        if let Some(&number) = self.numbers.get(&bucket) {
            return number;
        }
        let number = self.buckets.len();
        self.buckets.push(bucket);
        self.numbers.insert(bucket, number);
        self.counts.resize((number + 1) * self.partitions, 0);
        number
    }

    #[expect(clippy::cast_possible_truncation, reason = "the remainder is below the number of partitions")]
    fn push(&mut self, number: usize, hash: u64) {
        let slot = number * self.partitions + (hash % self.partitions as u64) as usize;
        self.counts[slot] += 1;
        self.slots.push(slot);
    }

    fn sort(&mut self, hashes: &[u64]) {
        let number = self.bucket_number(BucketKey::FOREVER);
        self.slots.reserve(hashes.len());
        for &hash in hashes {
            self.push(number, hash);
        }
    }

    fn sort_by_event_time(&mut self, hashes: &[u64], column: &ArrayRef, window: bool, late: i64) -> Result<()> {
        let (ends, _) = raw_event_time(column)?;
        let starts = match window.then(|| column.as_struct().column_by_name("start")).flatten() {
            Some(start) => Some(raw_event_time(start)?.0),
            None => None,
        };
        let nulls = column.nulls();
        self.slots.reserve(hashes.len());
        let mut last: Option<(BucketKey, usize)> = None;
        for (row, &hash) in hashes.iter().enumerate() {
            let bucket = if nulls.is_some_and(|nulls| nulls.is_null(row)) || ends.is_null(row) {
                BucketKey::FOREVER
            } else {
                let end = ends.value(row);
                if end <= late {
                    self.late_rows += 1;
                    self.slots.push(LATE);
                    continue;
                }
                BucketKey { end, start: starts.as_ref().map_or(end, |starts| starts.value(row)) }
            };
            let number = match last {
                Some((key, number)) if key == bucket => number,
                _ => self.bucket_number(bucket),
            };
            last = Some((bucket, number));
            self.push(number, hash);
        }
        Ok(())
    }

    fn finish(self) -> (Option<Vec<u32>>, Vec<Run>, u64) {
        let mut runs = Vec::new();
        let mut starts = vec![0usize; self.counts.len()];
        let mut total = 0;
        for (slot, &len) in self.counts.iter().enumerate() {
            starts[slot] = total;
            if len > 0 {
                let bucket = self.buckets[slot / self.partitions];
                runs.push(Run { bucket, partition: slot % self.partitions, start: total, len });
            }
            total += len;
        }
        if runs.len() <= 1 && self.late_rows == 0 {
            return (None, runs, 0);
        }
        let mut order = vec![0u32; total];
        for (row, &slot) in self.slots.iter().enumerate() {
            if slot != LATE {
                #[expect(clippy::cast_possible_truncation, reason = "a batch has fewer than 2^32 rows")]
                {
                    order[starts[slot]] = row as u32;
                }
                starts[slot] += 1;
            }
        }
        (Some(order), runs, self.late_rows)
    }
}

#[expect(clippy::indexing_slicing, reason = "runs lie within the chunk that they came from")]
impl Chunk {
    /// Hash and encoded key of each row of a run.
    pub fn keys(&self, run: Run) -> impl Iterator<Item = (u64, &[u8])> {
        (run.start..run.start + run.len).map(move |position| {
            let row = self.order.as_ref().map_or(position, |order| order[position] as usize);
            (self.hashes[row], self.rows.as_ref().map_or(&[][..], |rows| rows.row(row).data()))
        })
    }

    /// The functions' arguments for the rows of a run.
    pub fn args(&self, run: Run) -> Vec<Vec<ArrayRef>> {
        self.args
            .iter()
            .map(|columns| columns.iter().map(|column| column.slice(run.start, run.len)).collect())
            .collect()
    }

    pub fn filters(&self, run: Run) -> Vec<Option<BooleanArray>> {
        self.filters.iter().map(|filter| filter.as_ref().map(|filter| filter.slice(run.start, run.len))).collect()
    }
}
