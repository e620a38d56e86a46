//! Paths, URLs, glob patterns and Hive partition directories.

use std::path::{Path, PathBuf};

use crate::error::EngineError;
use crate::options::invalid;

/// A local path from what the user gave: a plain path or a `file:` URL.
pub fn local_path(text: &str) -> Result<PathBuf, EngineError> {
    if let Some(rest) = text.strip_prefix("file:") {
        let path = rest.trim_start_matches('/');
        return Ok(PathBuf::from(format!("/{}", percent_decode(path))));
    }
    match text.split_once("://") {
        Some((scheme, _)) => {
            Err(invalid(format!("the file system '{scheme}' of path '{text}' is not available; use a local path")))
        }
        None => Ok(PathBuf::from(text)),
    }
}

/// `file:///a/b%20c` for an absolute path, encoded as `java.net.URI` encodes a path.
pub fn file_url(path: &Path) -> String {
    let mut url = String::from("file://");
    for byte in path.to_string_lossy().bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-_.!~*'()/:@&=+$,;".contains(&byte) || byte >= 0x80;
        if plain && byte < 0x80 {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url
}

/// Undoes `%XX`.
pub fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A partition column's name or value as part of a directory name (Hive's and Spark's `escapePathName`).
pub fn escape_partition(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_control() || "\"#%'*/:=?\\{[]^".contains(c) {
            out.push_str(&format!("%{:02X}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
}

/// The `name=value` directories between `base` and the file, decoded; `None` for the null partition.
pub fn partition_values(base: &Path, file: &Path) -> Vec<(String, Option<String>)> {
    let Some(parent) = file.strip_prefix(base).ok().and_then(Path::parent) else { return Vec::new() };
    parent
        .components()
        .filter_map(|c| {
            let part = c.as_os_str().to_string_lossy();
            let (name, value) = part.split_once('=')?;
            let value = (value != "__HIVE_DEFAULT_PARTITION__").then(|| percent_decode(value));
            Some((percent_decode(name), value))
        })
        .collect()
}

/// Whether readers skip a file or directory of this name: hidden, or a log such as `_spark_metadata`.
pub fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || (name.starts_with('_') && !name.contains('='))
}

/// Whether a path component has to be matched rather than opened.
pub fn is_glob(text: &str) -> bool {
    text.contains(['*', '?', '[', '{'])
}

/// Hadoop's globs for one component: `*`, `?`, `[a-c]`, `[^x]`, `{json,csv}`, `\` before a literal.
pub fn glob_match(pattern: &str, name: &str) -> bool {
    expand_braces(pattern).iter().any(|p| {
        let pattern: Vec<char> = p.chars().collect();
        let name: Vec<char> = name.chars().collect();
        matches_from(&pattern, &name)
    })
}

fn expand_braces(pattern: &str) -> Vec<String> {
    let Some((head, rest)) = pattern.split_once('{') else { return vec![pattern.to_owned()] };
    let Some((alternatives, tail)) = rest.split_once('}') else { return vec![pattern.to_owned()] };
    alternatives.split(',').flat_map(|a| expand_braces(&format!("{head}{a}{tail}"))).collect()
}

fn matches_from(pattern: &[char], name: &[char]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, rest) => rest.is_none(),
        (Some(('*', rest)), _) => (0..=name.len()).any(|skip| matches_from(rest, name.get(skip..).unwrap_or_default())),
        (Some(('?', rest)), Some((_, after))) => matches_from(rest, after),
        (Some(('[', rest)), Some((c, after))) => {
            let Some(end) = rest.iter().position(|x| *x == ']') else { return false };
            let (set, tail) = rest.split_at(end);
            in_set(set, *c) && matches_from(tail.get(1..).unwrap_or_default(), after)
        }
        (Some(('\\', rest)), Some((c, after))) => {
            rest.split_first().is_some_and(|(literal, rest)| literal == c && matches_from(rest, after))
        }
        (Some((literal, rest)), Some((c, after))) => literal == c && matches_from(rest, after),
        (Some(_), None) => false,
    }
}

fn in_set(set: &[char], c: char) -> bool {
    let (negated, set) = match set.split_first() {
        Some(('^' | '!', rest)) => (true, rest),
        _ => (false, set),
    };
    let mut found = false;
    let mut rest = set;
    while let Some((first, after)) = rest.split_first() {
        if let ['-', last, tail @ ..] = after {
            found |= (*first..=*last).contains(&c);
            rest = tail;
        } else {
            found |= *first == c;
            rest = after;
        }
    }
    found != negated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_partitions_are_encoded_as_spark_does() {
        // The directory that Spark 4.2 makes for b = "x y/0" and its line in _spark_metadata.
        let directory = format!("b={}", escape_partition("x y/0"));
        assert_eq!(directory, "b=x y%2F0");
        let path = PathBuf::from(format!("/out/{directory}/part-0.parquet"));
        assert_eq!(file_url(&path), "file:///out/b=x%20y%252F0/part-0.parquet");
        assert_eq!(local_path(&file_url(&path)).unwrap(), path);
        assert_eq!(local_path("file:/out/x").unwrap(), PathBuf::from("/out/x"));
        assert_eq!(partition_values(Path::new("/out"), &path), vec![("b".to_owned(), Some("x y/0".to_owned()))]);
        assert!(local_path("s3://bucket/x").is_err());
    }

    #[test]
    fn globs() {
        assert!(glob_match("*.{json,csv}", "a.csv"));
        assert!(!glob_match("*.{json,csv}", "a.txt"));
        assert!(glob_match("part-[0-3]?", "part-2x"));
        assert!(!glob_match("part-[^0-3]", "part-2"));
    }
}
