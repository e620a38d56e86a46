//! From text to tokens with places: splitting a script into statements, `${name}` substitution, and the few
//! constructs that `sqlparser` does not know, rewritten on tokens so that every place stays right.

use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan, Tokenizer, TokenizerError, Word};

use super::dialect::Spark;
use super::error::SqlError;

/// The tokens of `text` without blanks and comments.
pub(crate) fn tokens(text: &str) -> Result<Vec<TokenWithSpan>, SqlError> {
    let mut tokenizer = Tokenizer::new(&Spark, text);
    let all = tokenizer.tokenize_with_location().map_err(|e| lexical_error(text, &e))?;
    Ok(all.into_iter().filter(|t| !matches!(t.token, Token::Whitespace(_))).collect())
}

fn lexical_error(text: &str, error: &TokenizerError) -> SqlError {
    SqlError::parse(format!("{}.", error.message)).at(text, error.location, 1)
}

/// One statement of a script: its text and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub text: String,
    pub start: Location,
}

/// Splits a script at its `;`, respecting strings, identifiers in backticks and comments.
pub(crate) fn split(script: &str) -> Result<Vec<Piece>, SqlError> {
    let lines = Lines::new(script);
    let mut pieces = Vec::new();
    let mut first: Option<Location> = None;
    let mut last = Location { line: 1, column: 1 };
    for token in tokens(script)? {
        if token.token == Token::SemiColon {
            if let Some(start) = first.take() {
                pieces.push(lines.piece(start, last));
            }
            continue;
        }
        if token.token == Token::EOF {
            break;
        }
        first.get_or_insert(token.span.start);
        last = token.span.end;
    }
    if let Some(start) = first {
        pieces.push(lines.piece(start, last));
    }
    Ok(pieces)
}

/// Byte offsets of the lines of a text, to turn places into slices.
#[derive(Debug)]
pub(crate) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Lines { text, starts }
    }

    /// The byte offset of a place (its character, counted from the line's start).
    pub(crate) fn offset(&self, at: Location) -> usize {
        let line = usize::try_from(at.line.saturating_sub(1)).unwrap_or(0);
        let start = self.starts.get(line).copied().unwrap_or(self.text.len());
        let column = usize::try_from(at.column.saturating_sub(1)).unwrap_or(0);
        let rest = self.text.get(start..).unwrap_or("");
        start + rest.char_indices().nth(column).map_or(rest.len(), |(i, _)| i)
    }

    pub(crate) fn slice(&self, start: Location, end: Location) -> &'a str {
        self.text.get(self.offset(start)..self.offset(end)).unwrap_or("")
    }

    fn piece(&self, start: Location, end: Location) -> Piece {
        Piece { text: self.slice(start, end).to_owned(), start }
    }
}

/// Replaces `${name}` (also `${spark:name}`, `${sparkconf:name}`, `${hivevar:name}`) by the value that `lookup`
/// gives. Spark takes an unknown name for an empty text; here it is an error, except behind `--`, where it stays.
pub(crate) fn substitute(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, SqlError> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, from) = rest.split_at(start);
        result.push_str(before);
        let Some(end) = from.find('}') else {
            result.push_str(from);
            return Ok(result);
        };
        let name = from.get(2..end).unwrap_or("");
        let name = ["spark:", "sparkconf:", "hivevar:", "hiveconf:"]
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix))
            .unwrap_or(name);
        let read = text.get(..text.len() - from.len()).unwrap_or("");
        let line = read.rsplit('\n').next().unwrap_or("");
        match lookup(name) {
            Some(value) => result.push_str(&value),
            None if line.contains("--") => result.push_str(from.get(..=end).unwrap_or("")),
            None => {
                let at =
                    Location { line: read.matches('\n').count() as u64 + 1, column: line.chars().count() as u64 + 1 };
                let message = format!("The variable ${{{name}}} is not set.");
                return Err(SqlError::new("VARIABLE_NOT_SET", message)
                    .at(text, at, from.get(..=end).map_or(1, |variable| variable.chars().count()))
                    .hint(format!("Start with --set {name}=VALUE, or SET {name}=VALUE before it.")));
            }
        }
        rest = from.get(end + 1..).unwrap_or("");
    }
    result.push_str(rest);
    Ok(result)
}

/// What `STREAM t [WITH (...)] [WATERMARK e [AS n] DELAY OF INTERVAL ...]` says beside the table's name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RelationMark {
    pub stream: bool,
    pub options: Vec<(String, String)>,
    pub watermark: Option<Watermark>,
}

/// A `WATERMARK` clause: the expression's tokens, the name of the column when the expression has an alias, the delay.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Watermark {
    pub expression: Vec<TokenWithSpan>,
    pub alias: Option<String>,
    pub delay_ms: i64,
    pub at: Location,
}

/// Prefix of the table names and aliases under which a mark travels through the parser: `\u{1}3\u{1}name`.
/// The character cannot occur in SQL text outside of quotes, so that no user's name collides.
pub(crate) const MARK: char = '\u{1}';

/// The name that carries mark `index` beside `name`.
pub(crate) fn marked(index: usize, name: &str) -> String {
    format!("{MARK}{index}{MARK}{name}")
}

/// Splits a marked name into index and name.
pub(crate) fn unmark(name: &str) -> Option<(usize, &str)> {
    let (index, name) = name.strip_prefix(MARK)?.split_once(MARK)?;
    Some((index.parse().ok()?, name))
}

pub(crate) fn word(name: &str, quoted: bool, span: Span) -> TokenWithSpan {
    let word = Word { value: name.to_owned(), quote_style: quoted.then_some('`'), keyword: Keyword::NoKeyword };
    TokenWithSpan::new(Token::Word(word), span)
}

/// Whether a token is the unquoted word `text`, in any case.
pub(crate) fn is_word(token: Option<&TokenWithSpan>, text: &str) -> bool {
    matches!(token.map(|t| &t.token), Some(Token::Word(w)) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(text))
}

pub(crate) fn is_token(token: Option<&TokenWithSpan>, expected: &Token) -> bool {
    token.is_some_and(|t| t.token == *expected)
}

/// How a token reads in Spark's `Syntax error at or near ...`.
pub(crate) fn shown(token: &Token) -> String {
    match token {
        Token::EOF => "end of input".to_owned(),
        other => format!("'{other}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_split_outside_of_strings_and_comments() {
        let script = "SELECT ';' AS a; -- one; two\n/* ; */ SELECT `x;y`\n FROM t;;\n";
        let pieces = split(script).unwrap();
        let texts: Vec<_> = pieces.iter().map(|p| p.text.as_str()).collect();
        assert_eq!(texts, ["SELECT ';' AS a", "SELECT `x;y`\n FROM t"]);
        assert_eq!(pieces[1].start, Location { line: 2, column: 9 });
    }

    #[test]
    fn variables_are_substituted() {
        let known = |name: &str| (name != "no").then(|| name.to_uppercase());
        assert_eq!(substitute("a ${x} ${spark:y} -- ${no}", known).unwrap(), "a X Y -- ${no}");
        let error = substitute("a\n ${x} ${no}", known).unwrap_err();
        assert_eq!(error.place.map(|place| (place.line, place.column, place.width)), Some((2, 7, 5)));
    }
}
