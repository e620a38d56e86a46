//! Rows on standard output: Spark's table, JSON objects or CSV.

use std::io::{self, Write};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Schema, SchemaRef};
use caudal_engine::error::EngineError;
use caudal_engine::format::cell::utc;
use caudal_engine::format::show::{ShowOptions, show};
use caudal_engine::options::Options;
use caudal_engine::sink::console::ConsoleSink;
use caudal_engine::sink::{OutputMode, Sink};
use caudal_engine::sql::{PLAIN_TEXT, RowStream};

use super::Failure;

/// What the rows of a table may take, in memory: its columns are as wide as their widest cells.
const TABLE_BYTES: usize = 256 << 20;
const OUT_BYTES: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Table,
    Json,
    Csv,
}

/// Prints the results of statements.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    format: Format,
}

impl Printer {
    pub fn new(format: Format) -> Printer {
        Printer { format }
    }

    /// The rows of a query: JSON and CSV as they come, a table when all are there.
    pub async fn rows(&self, mut rows: RowStream) -> Result<(), Failure> {
        let schema = rows.schema();
        match self.format {
            Format::Table => {
                let (schema, batches) = rows.collect_within(TABLE_BYTES).await?;
                print(|out| write_table(out, &schema, &batches))?;
            }
            Format::Json => {
                while let Some(batch) = rows.next().await? {
                    print(|out| write_json(out, &[batch]))?;
                    // A signal is looked for between two batches.
                    tokio::task::yield_now().await;
                }
            }
            Format::Csv => {
                // The header comes with the first rows, or when it is known that there are none.
                let mut header = true;
                while let Some(batch) = rows.next().await? {
                    print(|out| write_csv(out, &[batch], std::mem::take(&mut header)))?;
                    tokio::task::yield_now().await;
                }
                if header {
                    print(|out| write_csv(out, &[RecordBatch::new_empty(schema)], true))?;
                }
            }
        }
        Ok(())
    }

    /// What a statement without rows says. Only people read it.
    pub fn message(&self, text: &str) {
        if !text.is_empty() {
            eprintln!("{text}");
        }
    }

    /// Where the rows of a `SELECT` over streams go.
    pub fn sink(&self) -> Result<Box<dyn Sink>, EngineError> {
        Ok(match self.format {
            Format::Table => {
                let options: Options = [("truncate", "false"), ("numRows", "1000")].into_iter().collect();
                Box::new(ConsoleSink::new(io::stdout(), &options, utc())?)
            }
            Format::Json | Format::Csv => Box::new(RowSink { format: self.format, header: true }),
        })
    }
}

/// Writes to standard output, which others may write to before and after.
fn print(write: impl FnOnce(&mut io::BufWriter<io::StdoutLock<'_>>) -> io::Result<()>) -> io::Result<()> {
    let mut out = io::BufWriter::with_capacity(OUT_BYTES, io::stdout().lock());
    write(&mut out)?;
    out.flush()
}

fn write_table(out: &mut impl Write, schema: &Schema, batches: &[RecordBatch]) -> io::Result<()> {
    if let [field] = schema.fields().iter().as_slice()
        && field.metadata().contains_key(PLAIN_TEXT)
    {
        for text in batches.iter().filter_map(|b| b.column(0).as_string_opt::<i32>()).flatten().flatten() {
            writeln!(out, "{text}")?;
        }
        return Ok(());
    }
    // All of them and in full: whoever asks in SQL limits in SQL.
    let options = ShowOptions { num_rows: usize::MAX - 1, truncate: 0, zone: utc() };
    show(out, schema, batches, &options)?;
    writeln!(out)
}

fn write_json(out: &mut impl Write, batches: &[RecordBatch]) -> io::Result<()> {
    let mut line = String::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            line.clear();
            caudal_engine::format::lines::write_json_row(&mut line, batch.schema_ref().fields(), batch.columns(), row);
            line.push('\n');
            out.write_all(line.as_bytes())?;
        }
    }
    Ok(())
}

fn write_csv(out: &mut impl Write, batches: &[RecordBatch], header: bool) -> io::Result<()> {
    let mut writer = arrow::csv::WriterBuilder::new().with_header(header).build(&mut *out);
    for batch in batches {
        let flat = caudal_engine::format::lines::flat(batch).map_err(io::Error::other)?;
        writer.write(&flat).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Rows of micro-batches, one after the other.
#[derive(Debug)]
struct RowSink {
    format: Format,
    header: bool,
}

#[async_trait::async_trait]
impl Sink for RowSink {
    fn description(&self) -> String {
        "stdout".into()
    }

    fn check_mode(&self, _mode: OutputMode) -> Result<(), EngineError> {
        Ok(())
    }

    async fn add_batch(
        &mut self,
        _batch_id: i64,
        _mode: OutputMode,
        _schema: SchemaRef,
        batches: Vec<RecordBatch>,
    ) -> Result<u64, EngineError> {
        let mut out = io::stdout().lock();
        let written = match self.format {
            Format::Csv => write_csv(&mut out, &batches, std::mem::take(&mut self.header)),
            Format::Json | Format::Table => write_json(&mut out, &batches),
        };
        written.and_then(|()| out.flush()).map_err(|source| EngineError::Io {
            action: "print rows to",
            path: "standard output".into(),
            source,
        })?;
        Ok(batches.iter().map(|b| b.num_rows() as u64).sum())
    }
}
