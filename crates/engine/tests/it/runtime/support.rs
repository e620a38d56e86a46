//! A stream `s(ts timestamp, k string, v bigint)` fed by hand, queries over it, and their results as text.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use caudal_engine::error::EngineError;
use caudal_engine::plan::nodes::{EventTimeWatermark, StreamRelation, TIME_WINDOW_KEY, WATERMARK_DELAY_KEY};
use caudal_engine::query::{StreamingQuery, StreamingQuerySpec, Trigger, start};
use caudal_engine::sink::memory::{MemoryRows, MemorySink};
use caudal_engine::sink::{OutputMode, Sink};
use caudal_engine::source::memory::MemoryStream;
use datafusion::common::{Column, Result, ScalarValue};
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{
    ColumnarValue, LogicalPlan, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::prelude::SessionContext;

/// For tests that wait for the disk very often without testing it: in memory where that is possible.
pub fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

pub const SECOND_US: i64 = 1_000_000;

pub fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("ts", timestamp(), true),
        Field::new("k", DataType::Utf8, true),
        Field::new("v", DataType::Int64, true),
    ]))
}

/// Rows of event time in seconds, key and value.
pub fn batch(rows: &[(i64, &str, i64)]) -> RecordBatch {
    let times =
        TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.0 * SECOND_US)).with_timezone("UTC");
    let keys = StringArray::from_iter_values(rows.iter().map(|row| row.1));
    let values = Int64Array::from_iter_values(rows.iter().map(|row| row.2));
    RecordBatch::try_new(schema(), vec![Arc::new(times), Arc::new(keys), Arc::new(values)]).unwrap()
}

/// Tumbling `window(ts, seconds)`, for tests without the SQL layer: a struct with the metadata that the runtime reads.
#[derive(Debug, PartialEq, Eq, Hash)]
struct TumblingWindow(Signature);

fn window_fields() -> Fields {
    vec![Field::new("start", timestamp(), true), Field::new("end", timestamp(), true)].into()
}

impl ScalarUDFImpl for TumblingWindow {
    fn name(&self) -> &str {
        "tumble"
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Struct(window_fields()))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let mut metadata: std::collections::HashMap<String, String> =
            [(TIME_WINDOW_KEY.to_owned(), "true".to_owned())].into();
        if let Some(delay) = args.arg_fields[0].metadata().get(WATERMARK_DELAY_KEY) {
            metadata.insert(WATERMARK_DELAY_KEY.to_owned(), delay.clone());
        }
        Ok(Arc::new(Field::new("window", DataType::Struct(window_fields()), true).with_metadata(metadata)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&args.args[..1])?;
        let ColumnarValue::Scalar(ScalarValue::Int64(Some(seconds))) = &args.args[1] else { panic!("literal size") };
        let size = seconds * SECOND_US;
        let times = columns[0].as_primitive::<TimestampMicrosecondType>();
        let start: TimestampMicrosecondArray = times.unary(|time| time.div_euclid(size) * size);
        let end: TimestampMicrosecondArray = start.unary(|start| start + size);
        let columns: Vec<ArrayRef> = vec![Arc::new(start.with_timezone("UTC")), Arc::new(end.with_timezone("UTC"))];
        Ok(ColumnarValue::Array(Arc::new(StructArray::new(window_fields(), columns, times.nulls().cloned()))))
    }
}

/// A stream with a session in which it is the table `s` (`w`: with a watermark of `delay_s` seconds on `ts`).
pub struct Harness {
    pub stream: MemoryStream,
    pub context: SessionContext,
    pub conf: BTreeMap<String, String>,
}

impl Harness {
    pub fn new(delay_s: i64) -> Self {
        Self::over(MemoryStream::new(schema()), delay_s)
    }

    pub fn over(stream: MemoryStream, delay_s: i64) -> Self {
        let context = SessionContext::new();
        let relation = StreamRelation::new("s", Arc::new(stream.clone()));
        context.register_table("s", Arc::new(relation)).unwrap();
        context.register_udf(ScalarUDF::from(TumblingWindow(Signature::any(2, Volatility::Immutable))));
        let scan = futures::executor::block_on(context.table("s")).unwrap().into_unoptimized_plan();
        let watermark = EventTimeWatermark::try_new(scan, Column::from_name("ts"), delay_s * 1_000).unwrap();
        let view = DataFrame::new(context.state(), watermark.into_plan()).into_view();
        context.register_table("w", view).unwrap();
        let conf = BTreeMap::from([("spark.sql.shuffle.partitions".to_owned(), "3".to_owned())]);
        Self { stream, context, conf }
    }

    pub async fn plan(&self, sql: &str) -> LogicalPlan {
        self.context.sql(sql).await.unwrap().into_unoptimized_plan()
    }

    pub async fn spec(&self, sql: &str, mode: OutputMode, sink: Box<dyn Sink>) -> StreamingQuerySpec {
        StreamingQuerySpec {
            name: None,
            plan: self.plan(sql).await,
            output_mode: mode,
            sink,
            trigger: Trigger::Default,
            checkpoint: None,
            session: self.context.state(),
            conf: self.conf.clone(),
        }
    }

    /// Starts `sql` into memory.
    pub async fn start(&self, sql: &str, mode: OutputMode) -> Run {
        self.start_at(sql, mode, None).await
    }

    pub async fn start_at(&self, sql: &str, mode: OutputMode, checkpoint: Option<&Path>) -> Run {
        self.try_start(sql, mode, checkpoint.map(PathBuf::from), Trigger::Default).await.unwrap()
    }

    pub async fn try_start(
        &self,
        sql: &str,
        mode: OutputMode,
        checkpoint: Option<PathBuf>,
        trigger: Trigger,
    ) -> Result<Run, EngineError> {
        let plan = self.plan(sql).await;
        let rows = MemoryRows::new(Arc::new(plan.schema().as_arrow().clone()));
        let spec = StreamingQuerySpec {
            checkpoint,
            trigger,
            ..self.spec(sql, mode, Box::new(MemorySink::new(rows.clone()))).await
        };
        Ok(Run { query: start(spec).await?, rows })
    }
}

/// A query with its result.
pub struct Run {
    pub query: StreamingQuery,
    pub rows: MemoryRows,
}

impl Run {
    pub async fn drain(&self) {
        tokio::time::timeout(Duration::from_secs(60), self.query.process_all_available()).await.unwrap().unwrap();
    }

    /// All rows so far, sorted.
    pub fn all(&self) -> Vec<String> {
        text(&self.rows.snapshot())
    }

    /// Forgets what was put out, so that the next look sees only what is new.
    pub fn take(&self) -> Vec<String> {
        let rows = self.all();
        self.rows.clear();
        rows
    }
}

/// Rows as sorted text, columns separated by blanks, times in seconds.
pub fn text(batches: &[RecordBatch]) -> Vec<String> {
    let mut lines: Vec<String> = batches
        .iter()
        .flat_map(|batch| {
            (0..batch.num_rows())
                .map(|row| batch.columns().iter().map(|column| cell(column, row)).collect::<Vec<_>>().join(" "))
        })
        .collect();
    lines.sort();
    lines
}

fn cell(column: &ArrayRef, row: usize) -> String {
    if column.is_null(row) {
        return "null".to_owned();
    }
    match column.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            (column.as_primitive::<TimestampMicrosecondType>().value(row) / SECOND_US).to_string()
        }
        DataType::Struct(_) => {
            let cells: Vec<String> = column.as_struct().columns().iter().map(|column| cell(column, row)).collect();
            format!("[{}]", cells.join(","))
        }
        _ => ArrayFormatter::try_new(column, &FormatOptions::default()).unwrap().value(row).to_string(),
    }
}
