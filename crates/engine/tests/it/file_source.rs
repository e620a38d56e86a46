//! Streams of files: order, limits, restarts, and waking up for a new one.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use caudal_engine::format::cell::utc;
use caudal_engine::options::Options;
use caudal_engine::source::file::{FileFormat, FileSource, FileTable};
use caudal_engine::source::{NextOffset, ReadLimit, Source, SourceOffset};

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

async fn next(source: &mut FileSource, start: &SourceOffset) -> SourceOffset {
    source.next_offset(start, ReadLimit::Options).await.unwrap().end
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
    let NextOffset { end: first, latest } = source.next_offset(&start, ReadLimit::Options).await.unwrap();
    assert_eq!(latest.0, "{\"logOffset\":2}");
    assert_eq!(first.0, "{\"logOffset\":0}");
    assert_eq!(numbers(&source.read(&start, &first).await.unwrap()), [Some(0), Some(1)]);
    source.commit(&first).await.unwrap();
    let second = next(&mut source, &first).await;
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
    assert_eq!(next(&mut source, &first).await, second);
    assert_eq!(numbers(&source.read(&first, &second).await.unwrap()), [Some(2), Some(3)]);
    let third = next(&mut source, &second).await;
    assert_eq!(numbers(&source.read(&second, &third).await.unwrap()), [Some(7), Some(4)]);
    assert_eq!(next(&mut source, &third).await, third);
}

#[tokio::test]
async fn malformed_rows_become_null_and_the_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "a.json", "{\"n\":1}\nnot json\n\n{\"n\":2,\"who\":\"y\",\"extra\":[1]}\n", 0);
    let mut source = table(FileFormat::Json, dir.path(), &[]).open_source(None).unwrap();
    let start = source.initial_offset().await.unwrap();
    let end = next(&mut source, &start).await;
    assert_eq!(numbers(&source.read(&start, &end).await.unwrap()), [Some(1), None, Some(2)]);
    let mut strict = table(FileFormat::Json, dir.path(), &[("mode", "failfast")]).open_source(None).unwrap();
    let end = next(&mut strict, &start).await;
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
    let end = next(&mut source, &start).await;
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
        next(&mut source, &start).await
    });
    tokio::task::yield_now().await;
    put(&path, ".tmp", "{\"n\":1}\n", 0);
    fs::rename(path.join(".tmp"), path.join("a.json")).unwrap();
    let end = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    assert_eq!(end, SourceOffset("{\"logOffset\":0}".to_owned()));
}

/// The numbers of each batch, until there are no more.
async fn batches(source: &mut FileSource, limit: ReadLimit) -> Vec<Vec<i64>> {
    let mut at = source.initial_offset().await.unwrap();
    let mut all = Vec::new();
    loop {
        let end = source.next_offset(&at, limit).await.unwrap().end;
        if end == at {
            return all;
        }
        let read = source.read(&at, &end).await.unwrap();
        all.push(numbers(&read).into_iter().map(Option::unwrap).collect());
        at = end;
    }
}

#[tokio::test]
async fn a_batch_is_bounded_by_the_bytes_of_its_files() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..4 {
        put(dir.path(), &format!("{i}.json"), &format!("{{\"n\":{i}}}\n"), i);
    }
    put(dir.path(), "4.json", "{\"n\":4, \"who\": \"longer than the others\"}\n", 4);
    let open = |options: &[(&str, &str)]| table(FileFormat::Json, dir.path(), options).open_source(None).unwrap();
    let by_bytes = batches(&mut open(&[("maxBytesPerTrigger", "16")]), ReadLimit::Options).await;
    assert_eq!(by_bytes, [vec![0, 1], vec![2, 3], vec![4]]);
    let piece = batches(&mut open(&[("maxFilesPerTrigger", "1")]), ReadLimit::Bytes(24)).await;
    assert_eq!(piece, [vec![0, 1, 2], vec![3], vec![4]]);
    // Far less than what fits into memory.
    assert_eq!(batches(&mut open(&[]), ReadLimit::Options).await.len(), 1);
    let everything = batches(&mut open(&[("maxFilesPerTrigger", "1")]), ReadLimit::Everything).await;
    assert_eq!(everything, [vec![0, 1, 2, 3, 4]]);
    let newest = [("latestFirst", "true"), ("maxFilesPerTrigger", "2")];
    assert_eq!(batches(&mut open(&newest), ReadLimit::Options).await, [vec![4, 3], vec![2, 1], vec![0]]);
}

#[tokio::test]
async fn available_now_ends_at_the_files_that_were_there() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "a.json", "{\"n\":1}\n", 0);
    put(dir.path(), "b.json", "{\"n\":2}\n", 1);
    let mut source = table(FileFormat::Json, dir.path(), &[("maxFilesPerTrigger", "1")]).open_source(None).unwrap();
    source.prepare_available_now().await.unwrap();
    put(dir.path(), "c.json", "{\"n\":3}\n", 2);
    assert_eq!(batches(&mut source, ReadLimit::Options).await, [vec![1], vec![2]]);
}

#[tokio::test]
async fn the_log_of_a_sink_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("_spark_metadata");
    fs::create_dir(&log).unwrap();
    let commit = |id: i64| {
        put(dir.path(), &format!("{id}.json"), &format!("{{\"n\":{id}}}\n"), 0);
        let line = format!(
            "v1\n{{\"path\":\"file://{}/{id}.json\",\"size\":8,\"isDir\":false,\"modificationTime\":{},\
             \"blockReplication\":1,\"blockSize\":1,\"action\":\"add\"}}",
            dir.path().display(),
            1_700_000_000_000 + id
        );
        fs::write(log.join(id.to_string()), line).unwrap();
    };
    (0..3).for_each(commit);
    let mut source = table(FileFormat::Json, dir.path(), &[]).open_source(None).unwrap();
    let start = source.initial_offset().await.unwrap();
    let first = next(&mut source, &start).await;
    assert_eq!(numbers(&source.read(&start, &first).await.unwrap()), [Some(0), Some(1), Some(2)]);
    assert_eq!(next(&mut source, &first).await, first);
    // What was listed is not read again: its entries could not be.
    (0..3).for_each(|id: i64| fs::write(log.join(id.to_string()), "gone").unwrap());
    (3..5).for_each(commit);
    let second = next(&mut source, &first).await;
    assert_eq!(numbers(&source.read(&first, &second).await.unwrap()), [Some(3), Some(4)]);
}

#[tokio::test]
async fn a_file_that_is_still_open_wakes_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = table(FileFormat::Json, dir.path(), &[]).open_source(None).unwrap();
    let start = source.initial_offset().await.unwrap();
    let waiting = source.wait_beyond(&start);
    tokio::pin!(waiting);
    assert!(futures::poll!(waiting.as_mut()).is_pending());
    let mut file = File::create(dir.path().join("a.json")).unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(100), waiting.as_mut()).await.is_err());
    file.write_all(b"{\"n\":1}\n").unwrap();
    drop(file);
    let woken = tokio::time::timeout(Duration::from_secs(10), waiting).await;
    assert!(woken.is_ok_and(|result| result.is_ok()));
}

#[tokio::test]
async fn csv_headers_are_held_against_the_schema_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "a.csv", "N,who\n1,x\n", 0);
    let options = [("header", "true"), ("enforceSchema", "false")];
    let mut source = table(FileFormat::Csv, dir.path(), &options).open_source(None).unwrap();
    assert_eq!(batches(&mut source, ReadLimit::Options).await, [vec![1]]);
    put(dir.path(), "b.csv", "who,n\nx,1\n", 1);
    let mut source = table(FileFormat::Csv, dir.path(), &options).open_source(None).unwrap();
    let start = source.initial_offset().await.unwrap();
    let end = next(&mut source, &start).await;
    let error = source.read(&start, &end).await.unwrap_err().to_string();
    assert!(error.contains("CSV header does not conform to the schema.") && error.contains("b.csv"), "{error}");
    assert!(error.contains("Header: who, n") && error.contains("Schema: n, who"), "{error}");
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
