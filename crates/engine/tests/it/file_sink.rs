//! File sinks: every batch exactly once, and files that Spark reads.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use caudal_engine::format::cell::utc;
use caudal_engine::options::Options;
use caudal_engine::sink::file::{FileFormat, FileSink, committed_files};
use caudal_engine::sink::{OutputMode, Sink, SinkStart};
use caudal_engine::source::file::FileTable;
use caudal_engine::source::{ReadLimit, Source};

pub fn rows(first: i64, count: i64) -> RecordBatch {
    let schema = Schema::new(vec![
        Field::new("n", DataType::Int64, false),
        Field::new("team", DataType::Utf8, true),
        Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
    ]);
    let numbers: Vec<i64> = (first..first + count).collect();
    let teams: Vec<Option<&str>> = numbers
        .iter()
        .map(|n| [Some("home"), Some("a w/y"), None].get(usize::try_from(n % 3).unwrap()).copied().flatten())
        .collect();
    let times: Vec<i64> = numbers.iter().map(|n| 1_577_836_800_000_000 + n * 1_000).collect();
    RecordBatch::try_new(
        Arc::new(schema),
        vec![
            Arc::new(Int64Array::from(numbers)),
            Arc::new(StringArray::from(teams)),
            Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")),
        ],
    )
    .unwrap()
}

fn sink(format: FileFormat, dir: &Path, partition_by: &[&str]) -> FileSink {
    let options: Options = [("path", dir.to_str().unwrap())].into_iter().collect();
    let partition_by: Vec<String> = partition_by.iter().map(|s| (*s).to_owned()).collect();
    FileSink::new(format, &options, &partition_by, utc()).unwrap()
}

/// Starts a sink as a query with that id does whose checkpoint has these batches as done and as planned.
async fn start(
    sink: &mut FileSink,
    checkpoint: &Path,
    query_id: &str,
    committed: Option<i64>,
    planned: Option<i64>,
) -> Result<(), String> {
    let state_dir = checkpoint.join("sink");
    let start = SinkStart { state_dir: &state_dir, query_id, committed, planned };
    sink.start(start).await.map_err(|e| e.to_string())
}

async fn add(sink: &mut FileSink, id: i64, rows: RecordBatch) -> u64 {
    sink.add_batch(id, OutputMode::Append, rows.schema(), vec![rows]).await.unwrap()
}

pub async fn read_all(format: FileFormat, dir: &Path) -> Vec<RecordBatch> {
    let options: Options = [("path", dir.to_str().unwrap()), ("inferSchema", "true")].into_iter().collect();
    let options =
        if format == FileFormat::Csv { options } else { [("path", dir.to_str().unwrap())].into_iter().collect() };
    let table = FileTable::table(format, &options, None, utc()).unwrap();
    let mut source = table.open_source(None).unwrap();
    let start = source.initial_offset().await.unwrap();
    let end = source.next_offset(&start, ReadLimit::Everything).await.unwrap().end;
    source.read(&start, &end).await.unwrap().into_iter().flatten().collect()
}

fn numbers(batches: &[RecordBatch]) -> Vec<i64> {
    let mut all: Vec<i64> =
        batches.iter().flat_map(|b| b["n"].as_any().downcast_ref::<Int64Array>().unwrap().values().to_vec()).collect();
    all.sort_unstable();
    all
}

#[tokio::test]
async fn a_replayed_batch_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    for restart in 0..3 {
        let mut sink = sink(FileFormat::Parquet, &out, &[]);
        for id in restart * 5..restart * 5 + 6 {
            // The first of these is the last of the run before: a replay.
            let written = add(&mut sink, id, rows(id * 10, 10)).await;
            assert_eq!(written, if restart > 0 && id == restart * 5 { 0 } else { 10 });
        }
    }
    assert_eq!(numbers(&read_all(FileFormat::Parquet, &out).await), (0..160).collect::<Vec<_>>());
    assert!(out.join("_spark_metadata/9.compact").exists());
    assert_eq!(committed_files(&out).unwrap().unwrap().len(), 16);
}

#[tokio::test]
async fn files_of_a_crashed_attempt_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut sink = sink(FileFormat::Parquet, dir.path(), &[]);
    add(&mut sink, 0, rows(0, 10)).await;
    let committed = committed_files(dir.path()).unwrap().unwrap();
    let file = dir.path().join(Path::new(&committed[0].path).file_name().unwrap());
    // Died after the data file, before the log entry's rename.
    fs::copy(&file, dir.path().join("part-00000-crashed-c000.snappy.parquet")).unwrap();
    fs::write(dir.path().join("part-00000-torn-c000.snappy.parquet"), b"PAR1").unwrap();
    fs::write(dir.path().join("_spark_metadata/.1.x.tmp"), b"v1\n{}").unwrap();
    let mut sink = self::sink(FileFormat::Parquet, dir.path(), &[]);
    add(&mut sink, 1, rows(10, 10)).await;
    assert_eq!(numbers(&read_all(FileFormat::Parquet, dir.path()).await), (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_log_ahead_of_the_checkpoint_or_of_another_query_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (out, checkpoint) = (dir.path().join("out"), dir.path().join("checkpoint"));
    let mut first = sink(FileFormat::Json, &out, &[]);
    start(&mut first, &checkpoint, "a", None, None).await.unwrap();
    for id in 0..3 {
        add(&mut first, id, rows(id * 10, 10)).await;
    }
    let restart = async |query_id: &str, committed: Option<i64>, planned: Option<i64>| {
        let mut sink = sink(FileFormat::Json, &out, &[]);
        start(&mut sink, &checkpoint, query_id, committed, planned).await.map(|()| sink)
    };
    // A new checkpoint, and one that lost its newest batches.
    let error = restart("b", None, None).await.unwrap_err();
    assert!(error.contains("STREAMING_SINK_MISMATCH") && error.contains("batches 0 to 2 of the query a"), "{error}");
    assert!(error.contains(checkpoint.to_str().unwrap()) && error.contains("write to another path"), "{error}");
    let error = restart("a", Some(1), Some(1)).await.unwrap_err();
    assert!(error.contains("up to 2, and the checkpoint") && error.contains("only batches up to 1"), "{error}");
    // A log from before queries were named in it.
    fs::remove_file(out.join("_spark_metadata/query")).unwrap();
    assert!(restart("b", None, None).await.unwrap_err().contains("knows no batch"));
    // Died between the sink and the commit, and lost all commits to power loss: these batches are there already.
    for committed in [Some(1), None] {
        let mut sink = restart("a", committed, Some(2)).await.unwrap();
        assert_eq!(add(&mut sink, 2, rows(20, 10)).await, 0);
    }
    let mut sink = restart("a", Some(2), Some(3)).await.unwrap();
    assert_eq!(add(&mut sink, 3, rows(30, 10)).await, 10);
    assert_eq!(numbers(&read_all(FileFormat::Json, &out).await), (0..40).collect::<Vec<_>>());
    // Two at once on one directory: the one that was there first does not write over the other's numbers.
    let other = dir.path().join("shared");
    let (mut one, mut two) = (self::sink(FileFormat::Json, &other, &[]), self::sink(FileFormat::Json, &other, &[]));
    start(&mut one, &checkpoint, "one", None, None).await.unwrap();
    start(&mut two, &checkpoint, "two", None, None).await.unwrap();
    let lost = one.add_batch(0, OutputMode::Append, rows(0, 1).schema(), vec![rows(0, 1)]).await.unwrap_err();
    assert!(lost.to_string().contains("the query two writes there now"), "{lost}");
    add(&mut two, 0, rows(0, 1)).await;
}

#[tokio::test]
async fn a_log_without_batches_that_were_committed_stops_the_query() {
    let dir = tempfile::tempdir().unwrap();
    let (out, log) = (dir.path().join("out"), dir.path().join("out/_spark_metadata"));
    let fresh = || sink(FileFormat::Json, &out, &[]);
    let mut running = fresh();
    start(&mut running, dir.path(), "a", None, None).await.unwrap();
    for id in 0..13 {
        add(&mut running, id, rows(id, 1)).await;
    }
    fs::remove_file(log.join("11")).unwrap();
    let error = start(&mut fresh(), dir.path(), "a", Some(12), Some(12)).await.unwrap_err();
    assert!(error.contains("STREAMING_SINK_LOG_INCOMPLETE") && error.contains("lacks batch 11"), "{error}");
    // What the compaction repeats may go.
    fs::write(log.join("11"), "v1").unwrap();
    fs::remove_file(log.join("3")).unwrap();
    start(&mut fresh(), dir.path(), "a", Some(12), Some(12)).await.unwrap();
    for gone in [&log, &out] {
        fs::remove_dir_all(gone).unwrap();
        let error = running.add_batch(13, OutputMode::Append, rows(0, 1).schema(), vec![rows(0, 1)]).await.unwrap_err();
        assert!(error.to_string().contains("was removed while the query ran"), "{error}");
        assert!(!log.join("13").exists());
        let error = start(&mut fresh(), dir.path(), "a", Some(12), Some(12)).await.unwrap_err();
        assert!(error.contains("lacks batch 0"), "{error}");
        fs::create_dir_all(&out).unwrap();
    }
}

#[tokio::test]
async fn text_is_compressed_when_asked_and_read_by_its_suffix() {
    for (codec, suffix) in [("gzip", ".gz"), ("ZSTD", ".zst"), ("none", "")] {
        for format in [FileFormat::Json, FileFormat::Csv] {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().to_str().unwrap();
            let mut options: Options = [("path", out), ("compression", codec)].into_iter().collect();
            if format == FileFormat::Csv {
                options.set("header", "true".to_owned());
            }
            let mut sink = FileSink::new(format, &options, &[], utc()).unwrap();
            add(&mut sink, 0, rows(0, 5000)).await;
            let url = committed_files(dir.path()).unwrap().unwrap()[0].path.clone();
            assert!(url.ends_with(&format!(".{}{suffix}", format.name())), "{url}");
            let schema = Schema::new(vec![
                Field::new("n", DataType::Int64, true),
                Field::new("team", DataType::Utf8, true),
                Field::new("at", DataType::Utf8, true),
            ]);
            let mut options: Options = [("path", out)].into_iter().collect();
            if format == FileFormat::Csv {
                options.set("header", "true".to_owned());
            }
            let table = FileTable::table(format, &options, Some(Arc::new(schema)), utc()).unwrap();
            let mut source = table.open_source(None).unwrap();
            let start = source.initial_offset().await.unwrap();
            let end = source.next_offset(&start, ReadLimit::Everything).await.unwrap().end;
            let read: Vec<RecordBatch> = source.read(&start, &end).await.unwrap().into_iter().flatten().collect();
            assert_eq!(numbers(&read), (0..5000).collect::<Vec<_>>());
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let options: Options = [("path", dir.path().to_str().unwrap()), ("compression", "bzip2")].into_iter().collect();
    let error = FileSink::new(FileFormat::Json, &options, &[], utc()).unwrap_err().to_string();
    assert!(error.contains("'bzip2' is not available for json") && error.contains("gzip, zstd"), "{error}");
}

/// Without a log a reader takes every file, so the log's directory comes first.
#[tokio::test]
async fn files_of_the_first_batch_are_not_read_before_it_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("deep/out");
    let mut sink = sink(FileFormat::Parquet, &out, &[]);
    start(&mut sink, dir.path(), "q", None, None).await.unwrap();
    assert_eq!(committed_files(&out).unwrap(), Some(Vec::new()));
    fs::write(out.join("part-00000-running-c000.json"), b"{\"n\":1}\n").unwrap();
    let options: Options = [("path", out.to_str().unwrap())].into_iter().collect();
    let schema = Schema::new(vec![Field::new("n", DataType::Int64, true)]);
    let table = FileTable::table(FileFormat::Json, &options, Some(Arc::new(schema)), utc()).unwrap();
    let mut source = table.open_source(None).unwrap();
    let start = source.initial_offset().await.unwrap();
    let next = source.next_offset(&start, ReadLimit::Everything).await.unwrap();
    assert_eq!(next.end, start, "a file that is not committed is read");
    add(&mut sink, 0, rows(0, 10)).await;
    assert_eq!(numbers(&read_all(FileFormat::Parquet, &out).await), (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn partitions_are_directories_and_come_back_as_columns() {
    for format in [FileFormat::Parquet, FileFormat::Json] {
        let dir = tempfile::tempdir().unwrap();
        let mut sink = sink(format, dir.path(), &["team"]);
        add(&mut sink, 0, rows(0, 6)).await;
        assert!(dir.path().join("team=a w%2Fy").is_dir());
        assert!(dir.path().join("team=__HIVE_DEFAULT_PARTITION__").is_dir());
        let read = read_all(format, dir.path()).await;
        assert_eq!(numbers(&read), (0..6).collect::<Vec<_>>());
        let mut teams = Vec::new();
        for batch in &read {
            let column = batch["team"].as_any().downcast_ref::<StringArray>().unwrap();
            teams.extend(column.iter().map(|t| t.map(str::to_owned)));
        }
        teams.sort();
        let expected = [None, None, Some("a w/y"), Some("a w/y"), Some("home"), Some("home")];
        assert_eq!(teams, expected.map(|t| t.map(str::to_owned)));
    }
}

#[tokio::test]
async fn text_formats_are_written_as_spark_writes_them() {
    let dir = tempfile::tempdir().unwrap();
    let expected = [
        (
            FileFormat::Json,
            "{\"n\":1,\"team\":\"a w/y\",\"at\":\"2020-01-01T00:00:00.001Z\"}\n{\"n\":2,\"at\":\"2020-01-01T00:00:00.002Z\"}\n",
        ),
        (FileFormat::Csv, "1,a w/y,2020-01-01T00:00:00.001Z\n2,,2020-01-01T00:00:00.002Z\n"),
    ];
    for (format, text) in expected {
        let out = dir.path().join(format.name());
        let mut sink = sink(format, &out, &[]);
        add(&mut sink, 0, rows(1, 2)).await;
        let committed = committed_files(&out).unwrap().unwrap();
        let path = caudal_engine::source::file::path::local_path(&committed[0].path).unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), text);
    }
}

#[tokio::test]
async fn what_a_format_cannot_hold_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut text = sink(FileFormat::Text, dir.path(), &[]);
    let batch = rows(0, 1);
    let error = text.add_batch(0, OutputMode::Append, batch.schema(), vec![batch.clone()]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "[UNSUPPORTED_TEXT_COLUMNS] Text data source supports only a single column, and you have 3 columns."
    );
    let mut parquet = sink(FileFormat::Parquet, dir.path(), &["nope"]);
    let error = parquet.add_batch(0, OutputMode::Append, batch.schema(), vec![batch]).await.unwrap_err();
    assert!(error.to_string().contains("Partition column nope not found in existing columns (n, team, at)"));
    let error = parquet.check_mode(OutputMode::Update).unwrap_err().to_string();
    assert_eq!(
        error,
        "[STREAMING_OUTPUT_MODE.UNSUPPORTED_DATASOURCE] Invalid streaming output mode: update. \
         This output mode is not supported in Data Source parquet."
    );
}

/// Leaves directories for another reader (Spark) to check: only when `CAUDAL_TEST_SHARED_DIR` names a place for them.
#[tokio::test]
async fn directories_for_other_readers() {
    let Some(shared) = std::env::var_os("CAUDAL_TEST_SHARED_DIR") else { return };
    for (format, partition_by) in [
        (FileFormat::Parquet, &["team"][..]),
        (FileFormat::Parquet, &[]),
        (FileFormat::Json, &[]),
        (FileFormat::Csv, &[]),
    ] {
        let dir = Path::new(&shared).join(format!("{}-{}", format.name(), partition_by.len()));
        let mut sink = sink(format, &dir, partition_by);
        for id in 0..25 {
            let before = std::time::Instant::now();
            add(&mut sink, id, rows(id * 10, 10)).await;
            eprintln!("{} batch {id}: {:?}", dir.display(), before.elapsed());
        }
        fs::write(dir.join("part-00000-torn-c000.snappy.parquet"), b"PAR1").unwrap();
    }
}

#[tokio::test]
async fn staged_rows_are_seen_when_they_are_put_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = sink(FileFormat::Parquet, dir.path(), &["team"]);
    add(&mut first, 0, rows(0, 6)).await;
    drop(first);
    let files = || walk(dir.path());
    let before = files();
    let mut second = sink(FileFormat::Parquet, dir.path(), &["n"]);
    let some = rows(10, 300);
    second.stage(&some.schema(), std::slice::from_ref(&some)).unwrap();
    assert_eq!(numbers(&read_all(FileFormat::Parquet, dir.path()).await).len(), 6);
    assert!(files().len() > before.len() + 290);
    // Given up: as if nothing had been.
    drop(second);
    assert_eq!(files(), before);
    let mut third = sink(FileFormat::Json, dir.path(), &[]);
    for first in [20, 30] {
        let some = rows(first, 2);
        third.stage(&some.schema(), std::slice::from_ref(&some)).unwrap();
    }
    third.replace().unwrap();
    assert_eq!(numbers(&read_all(FileFormat::Json, dir.path()).await), [20, 21, 30, 31]);
    assert_eq!(files().len(), 2, "{:?}", files());
    let more = rows(40, 1);
    third.stage(&more.schema(), std::slice::from_ref(&more)).unwrap();
    third.append().unwrap();
    assert_eq!(numbers(&read_all(FileFormat::Json, dir.path()).await), [20, 21, 30, 31, 40]);
}

/// The files of a directory but those of its log.
fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap).filter(|e| e.file_name() != "_spark_metadata") {
        if entry.path().is_dir() { found.extend(walk(&entry.path())) } else { found.push(entry.path()) }
    }
    found.sort();
    found
}
