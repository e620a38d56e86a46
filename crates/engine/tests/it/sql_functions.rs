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
