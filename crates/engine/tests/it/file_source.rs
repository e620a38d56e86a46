//! Streams of files: order, limits, restarts, and waking up for a new one.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use caudal_engine::format::cell::utc;
use caudal_engine::options::Options;
use caudal_engine::source::file::{FileFormat, FileTable};
use caudal_engine::source::{Source, SourceOffset};

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true), Field::new("who", DataType::Utf8, true)]))
}

fn put(dir: &Path, name: &str, text: &str, second: u64) {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + second);
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

fn table(format: FileFormat, dir: &Path, extra: &[(&str, &str)]) -> FileTable {
    let path = [("path", dir.to_str().unwrap())];
    let options: Options = path.iter().chain(extra).copied().collect();
    FileTable::stream(format, &options, Some(schema()), utc()).unwrap()
}

fn numbers(partitions: &[Vec<RecordBatch>]) -> Vec<Option<i64>> {
    let batches = partitions.iter().flatten();
    batches.flat_map(|b| b["n"].as_primitive::<Int64Type>().iter().collect::<Vec<_>>()).collect()
}

#[tokio::test]
async fn files_come_in_batches_by_age_and_a_restart_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = tempfile::tempdir().unwrap();
    let log = checkpoint.path().join("sources/0");
    for i in 0..5_u64 {
        // Names against the order of the times.
        put(dir.path(), &format!("{}.json", 9 - i), &format!("{{\"n\":{i},\"who\":\"x\"}}\n"), i);
    }
    fs::write(dir.path().join("_ignored.json"), "{\"n\":99}").unwrap();
    fs::write(dir.path().join("other.txt"), "{\"n\":99}").unwrap();
    let table = table(FileFormat::Json, dir.path(), &[("maxFilesPerTrigger", "2"), ("pathGlobFilter", "*.json")]);
    let mut source = table.open_source(Some(&log)).unwrap();
    let start = source.initial_offset().await.unwrap();
    assert_eq!(source.latest_offset().await.unwrap().0, "{\"logOffset\":2}");
    let first = source.next_offset(&start).await.unwrap();
    assert_eq!(first.0, "{\"logOffset\":0}");
    assert_eq!(numbers(&source.read(&start, &first).await.unwrap()), [Some(0), Some(1)]);
    source.commit(&first).await.unwrap();
    let second = source.next_offset(&first).await.unwrap();
    drop(source);
    let line = fs::read_to_string(log.join("0")).unwrap();
    let expected = format!(
        "v1\n{{\"path\":\"file://{0}/9.json\",\"timestamp\":1700000000000,\"batchId\":0}}\n\
         {{\"path\":\"file://{0}/8.json\",\"timestamp\":1700000001000,\"batchId\":0}}",
        dir.path().display()
    );
    assert_eq!(line, expected);

    // The query died before it wrote the second offset: the same files make the second batch.
    put(dir.path(), "late.json", "{\"n\":7}\n", 0);
    let mut source = table.open_source(Some(&log)).unwrap();
    assert_eq!(source.next_offset(&first).await.unwrap(), second);
    assert_eq!(numbers(&source.read(&first, &second).await.unwrap()), [Some(2), Some(3)]);
    let third = source.next_offset(&second).await.unwrap();
    assert_eq!(numbers(&source.read(&second, &third).await.unwrap()), [Some(7), Some(4)]);
    assert_eq!(source.next_offset(&third).await.unwrap(), third);
}

#[tokio::test]
async fn malformed_rows_become_null_and_the_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "a.json", "{\"n\":1}\nnot json\n\n{\"n\":2,\"who\":\"y\",\"extra\":[1]}\n", 0);
    let mut source = table(FileFormat::Json, dir.path(), &[]).open_source(None).unwrap();
    let start = source.initial_offset().await.unwrap();
    let end = source.next_offset(&start).await.unwrap();
    assert_eq!(numbers(&source.read(&start, &end).await.unwrap()), [Some(1), None, Some(2)]);
    let mut strict = table(FileFormat::Json, dir.path(), &[("mode", "failfast")]).open_source(None).unwrap();
    let end = strict.next_offset(&start).await.unwrap();
    let error = strict.read(&start, &end).await.unwrap_err().to_string();
    assert!(error.contains("[MALFORMED_RECORD_IN_PARSING]") && error.contains("a.json, line 2"), "{error}");
}

#[tokio::test]
async fn csv_goes_by_position_and_projection_keeps_the_asked_columns() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "a.csv", "id;name\n1;\"x;y\"\nbad;z\n3\n", 0);
    let mut source = table(FileFormat::Csv, dir.path(), &[("header", "true"), ("sep", ";")]).open_source(None).unwrap();
    assert!(source.project(&[1, 0]));
    let start = source.initial_offset().await.unwrap();
    let end = source.next_offset(&start).await.unwrap();
    let read = source.read(&start, &end).await.unwrap();
    assert_eq!(read[0][0].schema(), source.schema());
    let names: Vec<_> = read[0][0].column(0).as_string::<i32>().iter().collect();
    assert_eq!(names, [Some("x;y"), Some("z"), None]);
    assert_eq!(numbers(&read), [Some(1), None, Some(3)]);
}

#[tokio::test]
async fn a_new_file_wakes_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = table(FileFormat::Json, dir.path(), &[]).open_source(None).unwrap();
    let start = source.initial_offset().await.unwrap();
    let path = dir.path().to_owned();
    let waiting = tokio::spawn(async move {
        source.wait_beyond(&start).await.unwrap();
        source.next_offset(&start).await.unwrap()
    });
    tokio::task::yield_now().await;
    put(&path, ".tmp", "{\"n\":1}\n", 0);
    fs::rename(path.join(".tmp"), path.join("a.json")).unwrap();
    let end = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    assert_eq!(end, SourceOffset("{\"logOffset\":0}".to_owned()));
}

#[tokio::test]
async fn wrong_tables_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let error = |options: &[(&str, &str)], schema: Option<SchemaRef>| {
        let options: Options = options.iter().copied().collect();
        FileTable::stream(FileFormat::Json, &options, schema, utc()).unwrap_err().to_string()
    };
    assert!(error(&[("path", dir)], None).contains("Schema must be specified"));
    assert!(
        error(&[("path", "/nonexistent/x")], Some(schema()))
            .contains("[PATH_NOT_FOUND] Path does not exist: /nonexistent/x")
    );
    assert!(
        error(&[("path", dir), ("maxFilePerTrigger", "1")], Some(schema()))
            .contains("did you mean 'maxFilesPerTrigger'")
    );
    assert!(
        error(&[("path", dir), ("maxFilesPerTrigger", "abc")], Some(schema()))
            .contains("Invalid value 'abc' for option 'maxFilesPerTrigger', must be a positive integer")
    );
}
