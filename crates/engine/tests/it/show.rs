//! Tables against what Spark 4.2 printed for the same rows (`data/show/*.txt`: `df.show(numRows, truncate)`).

use std::sync::Arc;

use arrow::array::*;
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::*;
use caudal_engine::format::show::{ShowOptions, show_string};
use caudal_engine::options::Options;
use caudal_engine::sink::console::ConsoleSink;
use caudal_engine::sink::{OutputMode, Sink};

fn micros(text: &str) -> i64 {
    chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f").unwrap().and_utc().timestamp_micros()
}

fn days(text: &str) -> i32 {
    let date = chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d").unwrap();
    i32::try_from((date - chrono::NaiveDate::from_ymd_opt(1970, 1, 1).unwrap()).num_days()).unwrap()
}

fn column(name: &str, array: impl Array + 'static) -> (FieldRef, ArrayRef) {
    (Arc::new(Field::new(name, array.data_type().clone(), true)), Arc::new(array))
}

fn batch(columns: Vec<(FieldRef, ArrayRef)>) -> RecordBatch {
    let (fields, arrays): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
}

fn map_column() -> MapArray {
    let mut builder = MapBuilder::new(None, StringBuilder::new(), Int32Builder::new());
    builder.keys().append_value("k");
    builder.values().append_value(1);
    builder.keys().append_value("l");
    builder.values().append_null();
    builder.append(true).unwrap();
    builder.append(false).unwrap();
    builder.append(true).unwrap();
    builder.keys().append_value("日");
    builder.values().append_value(2);
    builder.append(true).unwrap();
    builder.finish()
}

fn struct_column() -> StructArray {
    let fields: Fields = vec![
        Field::new("a", DataType::Int32, true),
        Field::new("b", DataType::Utf8, true),
        Field::new("c", DataType::Int32, true),
    ]
    .into();
    StructArray::new(
        fields,
        vec![
            Arc::new(Int32Array::from(vec![Some(1), None, None, None])),
            Arc::new(StringArray::from(vec![Some("x"), None, Some("日本"), None])),
            Arc::new(Int32Array::from(vec![None, None, Some(1), None])),
        ],
        Some(NullBuffer::from(vec![true, false, true, false])),
    )
}

fn kinds() -> RecordBatch {
    let timestamps = TimestampMicrosecondArray::from(vec![
        Some(micros("2020-01-02 03:04:05.123")),
        Some(micros("1969-12-31 23:59:59.999999")),
        Some(micros("0001-01-01 00:00:00")),
        None,
    ])
    .with_timezone("UTC");
    let local = TimestampMicrosecondArray::from(vec![
        Some(micros("2020-01-02 03:04:05")),
        None,
        Some(micros("9999-12-31 23:59:59.999999")),
        None,
    ]);
    let decimals = Decimal128Array::from(vec![Some(12_340), None, Some(0), Some(-1_500)]);
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![
        Some(vec![Some(1), None, Some(3)]),
        None,
        Some(vec![]),
        Some(vec![Some(7)]),
    ]);
    let second = 1_000_000;
    let day_time = vec![Some(93_784 * second + 500_000), None, Some(-86_400 * second), None];
    batch(vec![
        column("i", Int32Array::from(vec![Some(1), None, Some(-5), Some(7)])),
        column(
            "s",
            StringViewArray::from(vec![
                "a",
                "a long string of more than twenty characters",
                "line\nbreak\ttab",
                "日本語テキスト全角",
            ]),
        ),
        column("d", Float64Array::from(vec![1.5, 1e-5, 123_456_789.125, -0.0])),
        column("e", Float64Array::from(vec![1e10, f64::NAN, 0.001, 9_999_999.0])),
        column("f", Float32Array::from(vec![1.25, f32::INFINITY, 1e7, 0.1])),
        column("dec", decimals.with_precision_and_scale(10, 3).unwrap()),
        column("b", BooleanArray::from(vec![Some(true), None, Some(false), Some(false)])),
        column(
            "dt",
            Date32Array::from(vec![Some(days("2020-01-02")), Some(days("1969-12-31")), Some(days("0001-01-01")), None]),
        ),
        column("ts", timestamps),
        column("ntz", local),
        column("bin", BinaryArray::from_opt_vec(vec![Some(b"ab"), None, Some(b""), Some(b"\x00\xff\x7f")])),
        column("arr", lists),
        column("m", map_column()),
        column("st", struct_column()),
        column("itv", DurationMicrosecondArray::from(day_time)),
        column("ym", IntervalYearMonthArray::from(vec![Some(14), None, Some(-36), None])),
    ])
}

fn nested() -> RecordBatch {
    let inner: Fields = vec![
        Field::new("ts", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("d", DataType::Float64, true),
        Field::new("b", DataType::Binary, true),
    ]
    .into();
    let structs = StructArray::new(
        inner.clone(),
        vec![
            Arc::new(TimestampMicrosecondArray::from(vec![micros("2020-01-01 00:00:00.5")]).with_timezone("UTC")),
            Arc::new(Float64Array::from(vec![1.0])),
            Arc::new(BinaryArray::from_vec(vec![b"a"])),
        ],
        None,
    );
    let a = ListArray::new(
        Arc::new(Field::new("item", DataType::Struct(inner), true)),
        OffsetBuffer::from_lengths([1]),
        Arc::new(structs),
        None,
    );
    let mut m = MapBuilder::new(None, Int32Builder::new(), ListBuilder::new(StringBuilder::new()));
    m.keys().append_value(1);
    m.values().append_value([Some("x"), None]);
    m.append(true).unwrap();
    let mut aa = ListBuilder::new(ListBuilder::new(Int32Builder::new()));
    aa.values().append_value([Some(1)]);
    aa.values().append(false);
    aa.append(true);
    let decimal =
        |unscaled: i128, scale| Decimal128Array::from(vec![unscaled]).with_precision_and_scale(38, scale).unwrap();
    let mut columns = vec![
        column("a", a),
        column("m", m.finish()),
        column("aa", aa.finish()),
        column("dd", decimal(10_i128.pow(22), 2)),
        column("de", decimal(1_000, 10)),
    ];
    for (name, value) in [("ee", 1e-7), ("ef", 1e-3), ("eg", 12_345_678.9)] {
        columns.push(column(name, Float64Array::from(vec![value])));
    }
    columns.push(column("eh", Float32Array::from(vec![f32::MAX])));
    for (name, value) in [("ei", 4.9e-324), ("ej", 100.0), ("ek", 2e-3), ("el", 1e21)] {
        columns.push(column(name, Float64Array::from(vec![value])));
    }
    batch(columns)
}

fn wide() -> RecordBatch {
    let cells = ["é", "😀 smile", "a\\b", "①½※", "ｶﾅ", "한글", "—"];
    let names = ["a", "b", "c", "d", "e", "f", "g"];
    batch(names.iter().zip(cells).map(|(name, cell)| column(name, StringArray::from(vec![cell]))).collect())
}

#[track_caller]
fn check(rows: &RecordBatch, num_rows: usize, truncate: usize, printed: &str) {
    let options = ShowOptions { num_rows, truncate, ..ShowOptions::default() };
    let table = show_string(rows.schema_ref(), std::slice::from_ref(rows), &options);
    similar(&format!("{table}\n"), printed);
}

#[track_caller]
fn similar(ours: &str, theirs: &str) {
    for (i, (a, b)) in ours.lines().zip(theirs.lines()).enumerate() {
        assert_eq!(a, b, "line {}", i + 1);
    }
    assert_eq!(ours, theirs);
}

#[test]
fn tables_are_those_of_spark() {
    let rows = kinds();
    check(&rows, 20, 20, include_str!("data/show/20_true.txt"));
    check(&rows, 2, 20, include_str!("data/show/2_true.txt"));
    check(&rows, 1, 20, include_str!("data/show/1_true.txt"));
    check(&rows, 0, 20, include_str!("data/show/0_true.txt"));
    check(&rows, 20, 0, include_str!("data/show/20_false.txt"));
    check(&rows, 20, 3, include_str!("data/show/20_3.txt"));
    check(&rows, 20, 8, include_str!("data/show/20_8.txt"));
    check(&nested(), 20, 0, include_str!("data/show/nested.txt"));
    check(&wide(), 20, 20, include_str!("data/show/wide.txt"));
}

#[tokio::test]
async fn the_console_sink_prints_batches_with_their_number() {
    let options: Options = [("numRows", "1"), ("truncate", "false")].into_iter().collect();
    let mut sink = ConsoleSink::new(Vec::new(), &options, "+00:00".parse().unwrap()).unwrap();
    let rows = batch(vec![column("word", StringArray::from(vec!["caudal", "river"]))]);
    sink.add_batch(3, OutputMode::Append, rows.schema(), vec![rows.slice(0, 1)]).await.unwrap();
    sink.add_batch(4, OutputMode::Append, rows.schema(), vec![rows]).await.unwrap();
    let rule = "-------------------------------------------";
    let table = "+------+\n|word  |\n+------+\n|caudal|\n+------+\n";
    similar(
        &String::from_utf8(sink.into_inner()).unwrap(),
        &format!("{rule}\nBatch: 3\n{rule}\n{table}\n{rule}\nBatch: 4\n{rule}\n{table}only showing top 1 row\n"),
    );
    let typo: Options = [("numrow", "1")].into_iter().collect();
    let error = ConsoleSink::new(Vec::new(), &typo, "+00:00".parse().unwrap()).err().unwrap().to_string();
    assert!(error.contains("did you mean 'numRows'?"), "{error}");
}
