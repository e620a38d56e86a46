//! Text in lines that fit the terminal. Commands stay such that they can be copied.

use std::io::{self, IsTerminal};

use super::view::Screen;

/// Columns where there is no terminal.
const UNSEEN_COLUMNS: usize = 100;

/// The columns that text on standard output has.
pub fn columns() -> usize {
    if io::stdout().is_terminal() { Screen::size().0 } else { UNSEEN_COLUMNS }
}

/// Sentences, each line behind `indent`.
pub fn prose(indent: &str, text: &str, columns: usize) -> String {
    fill(text.split(' ').map(|word| (word, "")), [indent, indent], columns)
}

/// A command of a shell. Where it does not fit it goes on in the next line; `query`, its last argument, is quoted and may
/// have line ends between any two of its words.
pub fn command(words: &[&str], query: &[&str], columns: usize) -> String {
    let mut query: Vec<String> = query.iter().map(|word| word.replace('\'', r"'\''")).collect();
    if let Some(first) = query.first_mut() {
        first.insert(0, '\'');
    }
    if let Some(last) = query.last_mut() {
        last.push('\'');
    }
    let words = words.iter().map(|word| (*word, " \\")).chain(query.iter().map(|word| (word.as_str(), "")));
    fill(words, ["  ", "    "], columns)
}

/// A word of a command that stands for this text.
pub fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,=@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Lines of words; each word is with what goes behind it at the end of a line. Ends with a line end.
fn fill<'a>(words: impl Iterator<Item = (&'a str, &'a str)>, indents: [&str; 2], columns: usize) -> String {
    let [first, next] = indents;
    let (mut out, mut line) = (String::new(), first.to_owned());
    let mut words = words.peekable();
    let mut end = "";
    let mut begun = false;
    while let Some((word, own_end)) = words.next() {
        // At the end of all nothing goes behind it.
        let behind = if words.peek().is_some() { own_end } else { "" };
        let width = |text: &str| text.chars().count();
        if begun && width(&line) + 1 + width(word) + width(behind) > columns {
            out.push_str(&format!("{line}{end}\n"));
            line = next.to_owned();
            begun = false;
        }
        if begun {
            line.push(' ');
        }
        line.push_str(word);
        begun = true;
        end = own_end;
    }
    out + &line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit_and_commands_stay_whole() {
        assert_eq!(prose("  ", "one two three", 80), "  one two three\n");
        assert_eq!(prose("  ", "one two three", 10), "  one two\n  three\n");
        let words = ["caudal", "sql", "-e"];
        let query = ["SELECT", "'a',", "b", "FROM", "t"];
        assert_eq!(command(&words, &query, 80), "  caudal sql -e 'SELECT '\\''a'\\'', b FROM t'\n");
        let narrow = command(&words, &query, 18);
        assert_eq!(narrow, "  caudal sql -e \\\n    'SELECT\n    '\\''a'\\'', b\n    FROM t'\n");
        assert!(narrow.lines().all(|line| line.chars().count() <= 18));
        assert_eq!(command(&["rm", "-r", "dir"], &[], 8), "  rm \\\n    -r \\\n    dir\n");
    }

    #[test]
    fn what_a_shell_would_read_otherwise_is_quoted() {
        assert_eq!(
            [quoted("a/b-1.x"), quoted("my dir"), quoted("it's"), quoted("")],
            ["a/b-1.x", "'my dir'", r"'it'\''s'", "''"]
        );
    }
}
