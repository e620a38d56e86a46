//! What a query may call, and how much a call may make of one batch of rows.

use caudal_engine::format::show::{ShowOptions, show_string};
use caudal_engine::sql::{SessionConfig, SqlSession, StatementResult};

async fn run(sql: &str) -> Result<String, String> {
    let session = SqlSession::new(SessionConfig::default()).unwrap();
    let statements = session.parse(sql).map_err(|e| e.to_string())?;
    let mut shown = String::new();
    for statement in statements {
        if let StatementResult::Rows(rows) = session.execute(&statement).await.map_err(|e| e.to_string())? {
            let (schema, batches) = rows.collect().await.map_err(|e| e.to_string())?;
            let options = ShowOptions { num_rows: 1000, truncate: 0, ..ShowOptions::default() };
            shown.push_str(&show_string(&schema, &batches, &options));
        }
    }
    Ok(shown)
}

#[tokio::test]
async fn calls_that_would_take_too_much_memory_fail() {
    let calls = [
        ("format_string", "format_string('%999999999d%999999999d', 1)"),
        ("lpad", "lpad('a', 2000000000, 'b')"),
        ("rpad", "rpad('a', 2000000000, 'b')"),
        ("repeat", "repeat('ab', 2000000000)"),
        ("space", "space(2000000000)"),
        ("sequence", "sequence(1, 2000000000)"),
        ("replace", "replace(repeat('a', 2000000), 'a', repeat('b', 1000))"),
    ];
    for (name, call) in calls {
        let error = run(&format!("SELECT length(CAST({call} AS STRING))")).await.unwrap_err();
        assert!(error.contains("EXCEED_LIMIT_LENGTH"), "{call}: {error}");
        assert!(error.contains(&format!("`{name}`")) && error.contains("bytes"), "{call}: {error}");
    }
}

/// Each of these would take tens of gigabytes if all were written out at once.
#[tokio::test]
async fn lists_are_not_written_out_for_all_rows_at_once() {
    let last = |shown: String| shown.lines().rfind(|l| l.starts_with('|')).unwrap_or_default().replace(' ', "");
    for (query, expected) in [
        // Constants of a megabyte and of 24 kB for each row.
        ("SELECT count_if(exists(array(repeat('x', 1000000)), x -> x IS NOT NULL AND id >= 0)) FROM range(2000)", "|2000|"),
        ("SELECT sum(aggregate(sequence(1L, 3000L), 0L, (a, x) -> a + x)) FROM range(10000)", "|45015000000|"),
        // A list of the row for each of its elements.
        (
            "SELECT sum(size(filter(s, x -> x <= s[1]))), sum(aggregate(transform(s, (x, i) -> x + size(s) - i), 0L, (a, x) -> a + x))
             FROM (SELECT sequence(id, id + 1000) AS s FROM range(100))",
            "|200|105155050|",
        ),
        (
            "SELECT sum(aggregate(zip_with(s, s, (x, y) -> x - y + size(s)), 0L, (a, x) -> a + x))
             FROM (SELECT sequence(id, id + 1000) AS s FROM range(100))",
            "|100200100|",
        ),
        // Millions of pairs.
        ("SELECT array_sort(sequence(1, 2000), (x, y) -> y - x)[1] AS a FROM range(2)", "|1999|"),
    ] {
        assert_eq!(last(run(query).await.unwrap()), expected, "{query}");
    }
    for query in [
        "SELECT sequence(1, 1000000) AS s, id FROM range(9000)",
        "SELECT count_if(array_contains(sequence(1, 1000000), id)) FROM range(9000)",
        "SELECT count(*) FROM (SELECT timestamp_seconds(id) AS t FROM range(9000)) GROUP BY window(t, '1 day', '1 second')",
    ] {
        let error = run(query).await.unwrap_err();
        assert!(error.contains("EXCEED_LIMIT_LENGTH"), "{query}: {error}");
    }
}

#[tokio::test]
async fn a_comparator_decides_what_comes_first() {
    let sorted = async |list: &str, by: &str| run(&format!("SELECT array_sort({list}, {by}) AS a FROM range(3)")).await;
    let by_last_digit = "(x, y) -> CASE WHEN x % 10 < y % 10 THEN -1 WHEN x % 10 > y % 10 THEN 1 ELSE 0 END";
    let shown = sorted("array(21, 13, 40, 31, 3, 10, 11)", by_last_digit).await.unwrap();
    assert!(shown.contains("[40, 10, 21, 31, 11, 13, 3]"), "stable: {shown}");
    for list in ["filter(array(5), x -> x > 5)", "array(5)", "CAST(NULL AS ARRAY<INT>)"] {
        assert!(sorted(list, "(x, y) -> 1").await.is_ok());
    }
    // No order at all is no reason to stop.
    assert!(sorted("sequence(1, 500)", "(x, y) -> 1").await.unwrap().contains("500, 499"));
    let error = sorted("array(1, 2)", "(x, y) -> CAST(NULL AS INT)").await.unwrap_err();
    assert!(error.contains("COMPARATOR_RETURNS_NULL"), "{error}");
}

#[tokio::test]
async fn only_functions_of_spark_are_listed() {
    let all = run("SHOW FUNCTIONS").await.unwrap();
    let spark: Vec<&str> = include_str!("data/spark_functions.txt").lines().collect();
    let names: Vec<&str> =
        all.lines().skip(3).filter_map(|l| Some(l.strip_prefix('|')?.trim_end_matches('|').trim())).collect();
    assert!(names.len() > 300, "{}", names.len());
    let unknown: Vec<_> = names.iter().filter(|n| !spark.contains(*n)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[tokio::test]
async fn every_listed_function_is_known_to_the_planner() {
    let session = SqlSession::new(SessionConfig::default()).unwrap();
    // Parsed otherwise than as calls, or in a place of their own.
    let syntax = ["cast", "extract", "range", "window", "window_time"];
    for name in caudal_engine::sql::function_names() {
        let mut unknown = None;
        let calls = ["()", "(1)", "(1, 1)", "(array(1), x -> x)", "(array(1), 1, (x, y) -> x)", "() OVER (ORDER BY 1)"];
        for call in calls {
            unknown = match session.plan(&format!("SELECT {name}{call}")).await {
                Err(error) if error.class == "UNRESOLVED_ROUTINE" => Some(error.to_string()),
                _ => None,
            };
            if unknown.is_none() {
                break;
            }
        }
        assert!(syntax.contains(&name.as_str()) || unknown.is_none(), "{name}: {unknown:?}");
    }
}

#[tokio::test]
async fn what_spark_does_not_have_is_unknown_with_the_nearest_name() {
    let error = run("SELECT starts_with('a', 'b')").await.unwrap_err();
    assert!(error.contains("UNRESOLVED_ROUTINE") && error.contains("Did you mean startswith?"), "{error}");
    let error = run("SELECT __cast('a', 'INT')").await.unwrap_err();
    assert!(error.contains("UNRESOLVED_ROUTINE"), "{error}");
}
