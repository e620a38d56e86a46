//! Files by their path, and tables whose rows are written to files.

use std::collections::BTreeMap;
use std::path::Path;

use caudal_engine::format::show::{ShowOptions, show_string};
use caudal_engine::sql::{SessionConfig, SqlError, SqlSession, StatementResult};

fn session(warehouse: &Path) -> SqlSession {
    SqlSession::new(SessionConfig { warehouse: warehouse.to_owned(), conf: BTreeMap::new() }).unwrap()
}

/// The last statement's rows, as lines of the shown table without its frame.
async fn run(session: &SqlSession, script: impl AsRef<str>) -> Result<Vec<String>, SqlError> {
    let mut shown = String::new();
    for statement in session.parse(script.as_ref())? {
        shown.clear();
        if let StatementResult::Rows { schema, batches } = session.execute(&statement).await? {
            shown = show_string(&schema, &batches, &ShowOptions { truncate: 0, ..ShowOptions::default() });
        }
    }
    Ok(shown.lines().filter(|l| l.starts_with('|')).skip(1).map(|l| l.replace(' ', "")).collect())
}

#[tokio::test]
async fn files_are_tables_by_their_path() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().display();
    std::fs::write(dir.path().join("a.json"), "{\"a\":1,\"b\":\"x\"}\n").unwrap();
    std::fs::create_dir(dir.path().join("c")).unwrap();
    std::fs::write(dir.path().join("c/x.csv"), "1,2\n3,4\n").unwrap();
    let session = session(dir.path());
    let rows =
        run(&session, format!("SELECT t.b, c._c1 FROM JSON.`{here}/*.json` t JOIN csv.`{here}/c` c ON t.a = c._c0"));
    assert_eq!(rows.await.unwrap(), ["|x|2|"]);
    let rows = run(&session, format!("SELECT * FROM text.`{here}/c` ORDER BY value"));
    assert_eq!(rows.await.unwrap(), ["|1,2|", "|3,4|"]);

    let error = run(&session, &format!("SELECT *\nFROM parquet.`{here}/none`")).await.unwrap_err();
    assert_eq!((error.class.as_str(), error.place.as_ref().unwrap().line), ("PATH_NOT_FOUND", 2), "{error}");
    assert!(error.message.contains(&format!("{here}/none")), "{error}");
    let error = run(&session, &format!("SELECT * FROM orc.`{here}/c`")).await.unwrap_err();
    assert_eq!(error.class, "UNSUPPORTED_DATASOURCE_FOR_DIRECT_QUERY");
}
