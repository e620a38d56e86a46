//! Errors of SQL text: Spark's class, the place, the line with a caret, and the nearest name.

use std::fmt;

use sqlparser::tokenizer::Location;

use crate::error::EngineError;

/// Why a statement could not be parsed, planned or run.
///
/// Shown as `[CLASS] message (line 3, column 8)`, the line with a caret below it, and a hint where there is one.
#[derive(Debug, Clone)]
pub struct SqlError {
    /// Spark's error class, e.g. `UNRESOLVED_COLUMN.WITH_SUGGESTION`.
    pub class: String,
    pub message: String,
    /// Where, when the error belongs to a place in the text.
    pub place: Option<Place>,
    /// What to do about it.
    pub hint: Option<String>,
}

/// A place in the text of a script. Lines and columns count from 1; a column is a character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub line: u64,
    pub column: u64,
    /// Characters to underline, at least 1.
    pub width: usize,
    /// The whole line, without its end.
    pub excerpt: String,
}

impl SqlError {
    pub(crate) fn new(class: impl Into<String>, message: impl Into<String>) -> Self {
        SqlError { class: class.into(), message: message.into(), place: None, hint: None }
    }

    /// A part of Spark's SQL that is understood but not built.
    pub(crate) fn unsupported(what: impl fmt::Display) -> Self {
        SqlError::new("UNSUPPORTED_FEATURE", format!("{what} is not supported by Caudal yet"))
    }

    pub(crate) fn parse(message: impl Into<String>) -> Self {
        SqlError::new("PARSE_SYNTAX_ERROR", message)
    }

    pub(crate) fn at(mut self, text: &str, location: Location, width: usize) -> Self {
        if location.line > 0 && self.place.is_none() {
            let line = usize::try_from(location.line).unwrap_or(usize::MAX);
            let excerpt = text.lines().nth(line.saturating_sub(1)).unwrap_or("").to_owned();
            self.place = Some(Place { line: location.line, column: location.column, width: width.max(1), excerpt });
        }
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.class, shortened(&self.message))?;
        if let Some(place) = &self.place {
            let number = place.line.to_string();
            let gutter = " ".repeat(number.len());
            let line = place.excerpt.trim_start();
            let blanks = place.excerpt.chars().count() - line.chars().count();
            let before = usize::try_from(place.column.saturating_sub(1)).unwrap_or(0).saturating_sub(blanks);
            let indent: String = line.chars().take(before).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            write!(f, " (line {}, column {})", place.line, place.column)?;
            let (line, indent) = clip(line, indent);
            let width = place.width.min(line.chars().count().saturating_sub(indent.chars().count()).max(1));
            write!(f, "\n {number} | {line}\n {gutter} | {indent}{}", "^".repeat(width))?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n {hint}")?;
        }
        Ok(())
    }
}

/// Characters of a message that are shown; what is longer repeats a program's statement.
const MESSAGE_CHARS: usize = 4_000;
/// Characters of a line that are shown, and how many of them stand before the place.
const LINE_CHARS: usize = 240;
const BEFORE_CHARS: usize = 100;

fn shortened(message: &str) -> std::borrow::Cow<'_, str> {
    match message.char_indices().nth(MESSAGE_CHARS) {
        Some((end, _)) => format!("{}... (and more)", message.get(..end).unwrap_or_default()).into(),
        None => message.into(),
    }
}

/// The part of a long line around the place that `indent` leads to.
fn clip(line: &str, indent: String) -> (std::borrow::Cow<'_, str>, String) {
    let chars = line.chars().count();
    if chars <= LINE_CHARS {
        return (line.into(), indent);
    }
    let skipped = indent.chars().count().saturating_sub(BEFORE_CHARS);
    let part: String = line.chars().skip(skipped).take(LINE_CHARS).collect();
    let (before, after) = (if skipped > 0 { "..." } else { "" }, if skipped + LINE_CHARS < chars { "..." } else { "" });
    let indent = " ".repeat(before.len()) + &indent.chars().skip(skipped).collect::<String>();
    (format!("{before}{part}{after}").into(), indent)
}

impl std::error::Error for SqlError {}

impl From<EngineError> for SqlError {
    fn from(error: EngineError) -> Self {
        SqlError::from(&error)
    }
}

impl From<&EngineError> for SqlError {
    fn from(error: &EngineError) -> Self {
        match error {
            EngineError::Invalid { class, message } => {
                let error = SqlError::new(*class, message.as_str());
                if message.contains("aggregations without watermark") {
                    return error.hint(
                        "Append puts a group out once, when a watermark has passed it: FROM STREAM t WATERMARK ts DELAY OF INTERVAL 10 SECONDS ... GROUP BY window(ts, '1 minute'). Or let groups change, into a sink that takes changes (kafka, console, memory or noop, not files): TBLPROPERTIES ('outputMode'='update'), or SET caudal.sql.outputMode=update.",
                    );
                }
                if message.starts_with("Limits are not supported") || message.starts_with("Sorting is not supported") {
                    return error.hint(
                        "A result with groups can be put out as a whole, sorted and cut off, after every batch: SET caudal.sql.outputMode=complete, or TBLPROPERTIES ('outputMode'='complete') of a table.",
                    );
                }
                error
            }
            EngineError::DataFusion(error) => super::resolve::runtime_error(error),
            other => SqlError::new("EXECUTION_FAILED", other.to_string()),
        }
    }
}

/// The candidates nearest to `name` by edit distance, nearest first, at most five: what Spark lists in
/// `Did you mean one of the following?`.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let wanted = name.to_lowercase();
    let mut scored: Vec<(usize, &str)> =
        candidates.into_iter().map(|c| (edit_distance(&wanted, &c.to_lowercase()), c)).collect();
    scored.sort();
    scored.dedup();
    scored.into_iter().take(5).map(|(_, c)| c).collect()
}

/// The nearest candidate, when it is near enough to be a typing error.
pub(crate) fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let best = nearest(name, candidates).into_iter().next()?;
    let distance = edit_distance(&name.to_lowercase(), &best.to_lowercase());
    (distance <= 1 + name.chars().count() / 3).then_some(best)
}

/// Levenshtein distance with adjacent transpositions counted as one edit.
fn edit_distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    let get = |row: &[usize], i: usize| row.get(i).copied().unwrap_or(usize::MAX / 2);
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let substitution = get(&last, j) + usize::from(x != y);
            let mut cost = substitution.min(get(&last, j + 1) + 1).min(get(&row, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                cost = cost.min(get(&before_last, j - 1) + 1);
            }
            row.push(cost);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    get(&last, b.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_comes_first() {
        assert_eq!(nearest("plyer_id", ["match_id", "player_id", "ts"]).first(), Some(&"player_id"));
        assert_eq!(did_you_mean("xyzzy", ["player_id"]), None);
        assert_eq!(edit_distance("form", "from"), 1);
    }

    #[test]
    fn a_long_line_is_cut_around_the_place() {
        let text = format!("SELECT {}FORM{}", "1 + ".repeat(100), " + 1".repeat(100_000));
        let error = SqlError::parse(text.clone()).at(&text, Location { line: 1, column: 408 }, 4).to_string();
        assert!(error.len() < 5_000, "{}", error.len());
        let lines: Vec<&str> = error.lines().rev().take(2).collect();
        let at = lines[0].find('^').unwrap();
        assert_eq!((lines[0].trim_start_matches([' ', '|']), lines[1].get(at..at + 4)), ("^^^^", Some("FORM")));
        assert!(lines[1].contains("| ...") && lines[1].ends_with("..."), "{}", lines[1]);
    }

    #[test]
    fn an_error_shows_its_line_with_a_caret() {
        let error = SqlError::parse("Syntax error at or near 'FORM'.").at(
            "SELECT a\n  FORM t",
            Location { line: 2, column: 3 },
            4,
        );
        assert_eq!(
            error.to_string(),
            "[PARSE_SYNTAX_ERROR] Syntax error at or near 'FORM'. (line 2, column 3)\n 2 | FORM t\n   | ^^^^"
        );
    }
}
