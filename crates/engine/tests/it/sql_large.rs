//! Statements that a program writes: thousands of operators in one expression.

use std::time::{Duration, Instant};

use caudal_engine::format::show::{ShowOptions, show_string};
use caudal_engine::sql::{SessionConfig, SqlSession, StatementResult};

/// What the shell gives its threads.
const STACK_BYTES: usize = 512 << 20;
/// Far more than any of these takes, and far less than planning that grows with the square of an expression would.
const BOUND: Duration = Duration::from_secs(120);

/// The first row, or the error.
fn first_row(text: String) -> Result<String, String> {
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let session = SqlSession::new(SessionConfig {
                warehouse: std::env::temp_dir(),
                conf: std::collections::BTreeMap::new(),
            })
            .map_err(|e| e.to_string())?;
            let statement = session.parse(&text).map_err(|e| e.to_string())?.remove(0);
            match session.execute(&statement).await.map_err(|e| e.to_string())? {
                StatementResult::Rows(rows) => {
                    let (schema, batches) = rows.collect().await.map_err(|e| e.to_string())?;
                    let shown = show_string(&schema, &batches, &ShowOptions { truncate: 0, ..ShowOptions::default() });
                    Ok(shown.lines().nth(3).unwrap_or_default().replace(['|', ' '], ""))
                }
                _ => Err("no rows".to_owned()),
            }
        })
    };
    std::thread::Builder::new().stack_size(STACK_BYTES).spawn(work).unwrap().join().unwrap()
}

fn run(items: impl Iterator<Item = String>, separator: &str, from: &str) -> Result<String, String> {
    let all: Vec<String> = items.collect();
    first_row(format!("SELECT {} AS x {from}", all.join(separator)))
}

#[test]
fn thousands_of_operators_are_planned_soon() {
    let started = Instant::now();
    let ones = || std::iter::repeat_n("1".to_owned(), 3000);
    assert_eq!(run(ones(), "+", "").unwrap(), "3000");
    assert_eq!(run(std::iter::repeat_n("id".to_owned(), 3000), "+", "FROM range(1, 2)").unwrap(), "3000");
    assert_eq!(run(std::iter::repeat_n("'a'".to_owned(), 3000), "||", "").unwrap(), "a".repeat(3000));
    let equal = |n: i64| (0..n).map(|i| format!("id = {i}"));
    assert_eq!(run(equal(1000), " OR ", "FROM range(999, 1000)").unwrap(), "true");
    assert_eq!(run(equal(1000), " AND ", "FROM range(1)").unwrap(), "false");
    let calls = format!("{}id{}", "abs(".repeat(150), ")".repeat(150));
    assert_eq!(first_row(format!("SELECT {calls} AS x FROM range(7, 8)")).unwrap(), "7");
    assert!(started.elapsed() < BOUND, "took {:?}", started.elapsed());
}

#[test]
fn a_long_run_of_operators_has_the_types_and_errors_of_a_short_one() {
    for (term, tail, expected) in [
        ("1", "+ 2147483647", "[ARITHMETIC_OVERFLOW]"),
        ("1", "- 0.5", "79.5"),
        ("1.25", "* 2", "200.00"),
        ("1", "/ 64", "1.25"),
        ("1L", "+ 2147483647", "2147483727"),
        ("1", "+ '2'", "82"),
        ("1", "+ NULL", "NULL"),
        ("2.5D", "/ 0", "[DIVIDE_BY_ZERO]"),
        ("1", "- cast(1 AS FLOAT) - 2", "77.0"),
    ] {
        let long = vec![term; 80].join(" + ");
        let short = format!("({}) + ({})", vec![term; 40].join("+"), vec![term; 40].join("+"));
        let mut results = [long, short].map(|run| {
            let query = match tail.split_at(1) {
                ("*" | "/", rest) => format!("SELECT ({run}) {} {rest} AS x", &tail[..1]),
                _ => format!("SELECT {run} {tail} AS x"),
            };
            first_row(query).unwrap_or_else(|e| e)
        });
        assert!(results[0].contains(expected), "{term} {tail}: {}", results[0]);
        if expected.starts_with('[') {
            results = results.map(|e| e.split(']').next().unwrap_or_default().to_owned());
        }
        assert_eq!(results[0], results[1], "{term} {tail}");
    }
    // What no row asks for does not fail.
    let long = vec!["2147483647"; 80].join(" + ");
    assert_eq!(first_row(format!("SELECT id = 1 OR {long} > 0 AS x FROM range(1, 2)")).unwrap(), "true");
}

#[test]
fn lambdas_in_lambdas_have_an_end() {
    let nested = |levels: usize| {
        let open: String = (0..levels).map(|i| format!("transform(array(1), x{i} -> ")).collect();
        first_row(format!("SELECT to_json({open}1{}) AS x", ")".repeat(levels)))
    };
    assert_eq!(nested(4).unwrap(), "[[[[1]]]]");
    let error = nested(40).unwrap_err();
    assert!(error.contains("FAILED_TO_PARSE_TOO_COMPLEX") && error.contains("10 levels"), "{error}");
}
