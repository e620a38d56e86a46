//! What the house promises of the code's shape: sizes, edges between crates, nothing left over.

use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;

/// Which crates of ours each crate may depend on.
const EDGES: &[(&str, &[&str])] = &[
    ("protocol", &[]),
    ("storage", &["protocol"]),
    ("cluster", &["protocol", "storage"]),
    ("broker", &["protocol", "storage", "cluster"]),
    ("client", &["protocol"]),
    ("engine", &["protocol", "client"]),
    ("cli", &["protocol", "storage", "cluster", "broker", "client", "engine"]),
];

/// Only these may reach DataFusion, Arrow or Parquet.
const COLUMNAR: &[&str] = &["engine", "cli"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "target" | "generated" | ".git") {
                walk(&path, found);
            }
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    walk(&root().join("crates"), &mut files);
    walk(&root().join("xtask"), &mut files);
    assert!(files.len() > 50, "the walk misses the sources");
    files.into_iter().map(|f| (f.clone(), fs::read_to_string(f).unwrap())).collect()
}

fn report(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn files_are_rooms_not_halls() {
    let long =
        sources().into_iter().map(|(path, text)| (path, text.lines().count())).filter(|(_, n)| *n > FILE_LINES_MAX);
    report(long.map(|(path, n)| format!("{}: {n} lines", path.display())).collect());
}

/// The code is formatted, so a function ends at the first `}` that stands as deep as its `fn`.
fn long_functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let head =
            trimmed.trim_start_matches("pub ").trim_start_matches("pub(crate) ").trim_start_matches("pub(super) ");
        let is_function = ["fn ", "async fn ", "const fn ", "unsafe fn "].iter().any(|k| head.starts_with(k));
        // A doubled brace is a template of the code generator.
        if !is_function || line.ends_with([';', '}']) || line.ends_with("{{") {
            continue;
        }
        let close = format!("{}}}", &line[..line.len() - trimmed.len()]);
        let end = lines[start..].iter().position(|l| *l == close).unwrap_or(0);
        if end + 1 > FUNCTION_LINES_MAX {
            found.push((start + 1, end + 1));
        }
    }
    found
}

#[test]
fn functions_fit_on_a_screen() {
    // A test that walks through one story may take longer to tell it.
    let is_test = |path: &Path| path.ends_with("tests.rs") || path.components().any(|c| c.as_os_str() == "tests");
    let long = sources().into_iter().filter(|(path, _)| !is_test(path)).flat_map(|(path, text)| {
        long_functions(&text).into_iter().map(move |(line, n)| format!("{}:{line}: {n} lines", path.display()))
    });
    report(long.collect());
}

#[test]
fn nothing_is_left_over() {
    // Put together here so that this file does not find itself. A test may be left out with a reason, never without.
    let marks = [["FIX", "ME"].concat(), ["XX", "X:"].concat(), ["HA", "CK:"].concat(), ["#[ig", "nore]"].concat()];
    let left = sources().into_iter().flat_map(|(path, text)| {
        let hits = text.lines().enumerate().filter(|(_, l)| marks.iter().any(|m| l.contains(m.as_str())));
        hits.map(|(n, l)| format!("{}:{}: {}", path.display(), n + 1, l.trim())).collect::<Vec<_>>()
    });
    report(left.collect());
}

/// Names of the dependencies in a manifest's section.
fn dependencies(manifest: &str, section: &str) -> Vec<String> {
    let mut inside = false;
    let mut names = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.trim() == format!("[{section}]");
        } else if inside && let Some((name, _)) = line.split_once(['=', '.']) {
            names.push(name.trim().to_owned());
        }
    }
    names
}

#[test]
fn crates_depend_as_the_architecture_says() {
    let mut complaints = Vec::new();
    for (name, allowed) in EDGES {
        let manifest = fs::read_to_string(root().join("crates").join(name).join("Cargo.toml")).unwrap();
        for dependency in dependencies(&manifest, "dependencies") {
            if let Some(ours) = dependency.strip_prefix("caudal-")
                && !allowed.contains(&ours)
            {
                complaints.push(format!("{name} must not depend on {ours}"));
            }
            let columnar = ["datafusion", "arrow", "parquet"].iter().any(|c| dependency.starts_with(c));
            if columnar && !COLUMNAR.contains(name) {
                complaints.push(format!("{name} must build without {dependency}"));
            }
        }
        if !manifest.contains("[lints]\nworkspace = true") {
            complaints.push(format!("{name} does not take the workspace's lints"));
        }
    }
    let known: Vec<String> = EDGES.iter().map(|(n, _)| (*n).to_owned()).collect();
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        if !known.contains(&name) {
            complaints.push(format!("crate {name} has no line in the table of edges"));
        }
    }
    report(complaints);
}

#[test]
fn each_crate_has_one_integration_test_binary() {
    let mut complaints = Vec::new();
    for (name, _) in EDGES {
        let Ok(tests) = fs::read_dir(root().join("crates").join(name).join("tests")) else { continue };
        for entry in tests {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "rs") {
                complaints.push(format!("{}: put it under tests/it", path.display()));
            }
            if path.is_dir() && path.join("main.rs").exists() && !path.ends_with("it") {
                complaints.push(format!("{}: a second test binary", path.display()));
            }
        }
    }
    report(complaints);
}

#[test]
fn long_functions_are_found() {
    let body = "    x();\n".repeat(FUNCTION_LINES_MAX);
    assert_eq!(long_functions(&format!("fn a() {{\n{body}}}\n")), [(1, FUNCTION_LINES_MAX + 2)]);
    assert!(long_functions("fn a() {\n    x();\n}\n").is_empty());
}
