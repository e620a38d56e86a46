//! Token rewriting before `sqlparser`: `STREAM t`, `WATERMARK ... DELAY OF ...`, interval literals, typed number
//! suffixes, and the function `exists`. What is taken out travels as a [`RelationMark`] beside the parsed query.

use sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan};

use super::error::SqlError;
use super::interval;
use super::token::{RelationMark, Watermark, is_token, is_word, marked, shown, word};

/// Tokens that `sqlparser` understands, and the marks that stand in their names.
#[derive(Debug)]
pub(crate) struct Rewritten {
    pub tokens: Vec<TokenWithSpan>,
    pub marks: Vec<RelationMark>,
}

struct Rewriter<'a> {
    text: &'a str,
    input: &'a [TokenWithSpan],
    at: usize,
    output: Vec<TokenWithSpan>,
    marks: Vec<RelationMark>,
    /// Per parenthesis depth: whether the last clause word was `FROM` or `JOIN`.
    in_from: Vec<bool>,
}

/// Rewrites the tokens of one statement; `text` is for error messages.
pub(crate) fn rewrite(text: &str, input: &[TokenWithSpan]) -> Result<Rewritten, SqlError> {
    let mut rewriter = Rewriter { text, input, at: 0, output: Vec::new(), marks: Vec::new(), in_from: vec![false] };
    while rewriter.at < input.len() {
        rewriter.step()?;
    }
    Ok(Rewritten { tokens: rewriter.output, marks: rewriter.marks })
}

impl Rewriter<'_> {
    fn peek(&self, ahead: usize) -> Option<&TokenWithSpan> {
        self.input.get(self.at + ahead)
    }

    fn step(&mut self) -> Result<(), SqlError> {
        let Some(token) = self.input.get(self.at).cloned() else { return Ok(()) };
        match &token.token {
            Token::LParen => self.in_from.push(false),
            Token::RParen if self.in_from.len() > 1 => {
                self.in_from.pop();
            }
            Token::Number(..) if self.typed_number(&token) => return Ok(()),
            Token::Word(w) if w.quote_style.is_none() => {
                let upper = w.value.to_ascii_uppercase();
                if self.special_word(&upper, &token)? {
                    return Ok(());
                }
            }
            _ => {}
        }
        self.output.push(token);
        self.at += 1;
        Ok(())
    }

    /// Handles the words that need rewriting; true when the token was consumed.
    fn special_word(&mut self, upper: &str, token: &TokenWithSpan) -> Result<bool, SqlError> {
        match upper {
            "STREAM" if self.is_stream_relation() => {
                self.stream_relation()?;
                return Ok(true);
            }
            "WATERMARK" if self.is_watermark_of_last() => {
                self.watermark_of_last()?;
                return Ok(true);
            }
            "WITH" if self.is_options_of_last() => {
                let last = self.output.len() - 1;
                let mark = self.relation_mark(false)?;
                self.mark_name(last, mark);
                return Ok(true);
            }
            "INTERVAL" => return Ok(self.interval_literal(token)),
            "EXISTS" if self.is_exists_function() => {
                self.output.push(word("exists", true, token.span));
                self.at += 1;
                return Ok(true);
            }
            "FROM" | "JOIN" => self.set_in_from(true),
            "SELECT" | "WHERE" | "GROUP" | "ORDER" | "HAVING" | "LIMIT" | "UNION" | "ON" | "USING" => {
                self.set_in_from(false);
            }
            _ => {}
        }
        Ok(false)
    }

    fn set_in_from(&mut self, value: bool) {
        if let Some(last) = self.in_from.last_mut() {
            *last = value;
        }
    }

    fn is_exists_function(&self) -> bool {
        is_token(self.peek(1), &Token::LParen)
            && !["SELECT", "WITH", "FROM", "TABLE", "VALUES"].iter().any(|w| is_word(self.peek(2), w))
            && !is_token(self.peek(2), &Token::LParen)
    }

    fn is_stream_relation(&self) -> bool {
        if !self.in_from.last().copied().unwrap_or(false) {
            return false;
        }
        let starts = self.at.checked_sub(1).and_then(|i| self.input.get(i)).is_some_and(|previous| {
            previous.token == Token::Comma || is_word(Some(previous), "FROM") || is_word(Some(previous), "JOIN")
        });
        let clause = ["WHERE", "GROUP", "ORDER", "HAVING", "LIMIT", "JOIN", "INNER", "LEFT", "RIGHT", "FULL", "CROSS"]
            .iter()
            .chain(&["ON", "AS", "UNION", "LATERAL", "NATURAL", "WATERMARK"])
            .any(|w| is_word(self.peek(1), w));
        let named = matches!(self.peek(1).map(|t| &t.token), Some(Token::Word(_))) && !clause;
        starts && (named || is_token(self.peek(1), &Token::LParen))
    }

    /// `STREAM t` and `STREAM(t)` with what may follow.
    fn stream_relation(&mut self) -> Result<(), SqlError> {
        self.at += 1;
        let parenthesised = is_token(self.peek(0), &Token::LParen);
        if parenthesised {
            self.at += 1;
        }
        let start = self.output.len();
        self.name()?;
        if parenthesised {
            self.expect(&Token::RParen)?;
        }
        let mark = self.relation_mark(true)?;
        self.mark_name(start, mark);
        Ok(())
    }

    /// What follows a relation's name: `[WITH (options)] [WATERMARK ...]`.
    fn relation_mark(&mut self, stream: bool) -> Result<RelationMark, SqlError> {
        let options = if is_word(self.peek(0), "WITH") && is_token(self.peek(1), &Token::LParen) {
            self.at += 1;
            let (options, used) = properties(self.text, self.input.get(self.at..).unwrap_or_default())?;
            self.at += used;
            options
        } else {
            Vec::new()
        };
        let watermark = if is_word(self.peek(0), "WATERMARK") { Some(self.watermark()?) } else { None };
        Ok(RelationMark { stream, options, watermark })
    }

    /// Whether `WITH (...)` stands behind the name of a table in a `FROM`.
    fn is_options_of_last(&self) -> bool {
        let named = |token: Option<&TokenWithSpan>| matches!(token.map(|t| &t.token), Some(Token::Word(_)));
        let mut first = self.at;
        while let Some(before) = first.checked_sub(1)
            && named(self.input.get(before))
        {
            first = before;
            match first.checked_sub(1) {
                Some(period) if is_token(self.input.get(period), &Token::Period) => first = period,
                _ => break,
            }
        }
        let begins = first.checked_sub(1).and_then(|i| self.input.get(i)).is_some_and(|token| {
            token.token == Token::Comma || is_word(Some(token), "FROM") || is_word(Some(token), "JOIN")
        });
        first < self.at
            && begins
            && self.in_from.last().copied().unwrap_or(false)
            && is_token(self.peek(1), &Token::LParen)
    }

    /// A possibly qualified name, copied to the output.
    fn name(&mut self) -> Result<(), SqlError> {
        loop {
            match self.peek(0).cloned() {
                Some(token) if matches!(token.token, Token::Word(_)) => self.output.push(token),
                other => return Err(self.unexpected(other.as_ref(), "a table name")),
            }
            self.at += 1;
            if !is_token(self.peek(0), &Token::Period) {
                return Ok(());
            }
            self.output.extend(self.peek(0).cloned());
            self.at += 1;
        }
    }

    fn mark_name(&mut self, from: usize, mark: RelationMark) {
        let index = self.marks.len();
        if let Some(TokenWithSpan { token: Token::Word(w), .. }) =
            self.output.get_mut(from..).and_then(|s| s.last_mut())
        {
            w.value = marked(index, &w.value);
            w.quote_style = Some('`');
            w.keyword = sqlparser::keywords::Keyword::NoKeyword;
        }
        self.marks.push(mark);
    }

    fn is_watermark_of_last(&self) -> bool {
        let follows_relation = self.at > 0
            && matches!(self.input.get(self.at - 1).map(|t| &t.token), Some(Token::Word(_) | Token::RParen));
        let window = self.input.get(self.at + 1..).unwrap_or_default();
        follows_relation && window.iter().take(64).any(|t| is_word(Some(t), "DELAY"))
    }

    /// `t WATERMARK ...` and `(SELECT ...) WATERMARK ... [AS a]`.
    fn watermark_of_last(&mut self) -> Result<(), SqlError> {
        let watermark = Some(self.watermark()?);
        let mark = RelationMark { stream: false, options: Vec::new(), watermark };
        if self.output.last().is_some_and(|t| t.token != Token::RParen) {
            let last = self.output.len() - 1;
            self.mark_name(last, mark);
            return Ok(());
        }
        if is_word(self.peek(0), "AS") {
            self.at += 1;
        }
        let reserved =
            ["WHERE", "GROUP", "ORDER", "HAVING", "LIMIT", "JOIN", "INNER", "LEFT", "RIGHT", "FULL", "CROSS"]
                .iter()
                .chain(&["ON", "UNION", "LATERAL", "NATURAL"])
                .any(|w| is_word(self.peek(0), w));
        let span = self.peek(0).map_or_else(Span::empty, |t| t.span);
        match self.peek(0).map(|t| t.token.clone()) {
            Some(Token::Word(w)) if !reserved => {
                self.at += 1;
                self.output.push(word(&w.value, true, span));
            }
            _ => self.output.push(word("", true, span)),
        }
        let last = self.output.len() - 1;
        self.mark_name(last, mark);
        Ok(())
    }

    /// `WATERMARK expression [AS name] DELAY OF INTERVAL ...`.
    fn watermark(&mut self) -> Result<Watermark, SqlError> {
        let at = self.peek(0).map_or(Location { line: 0, column: 0 }, |t| t.span.start);
        self.at += 1;
        let rest = self.input.get(self.at..).unwrap_or_default();
        let Some(length) = rest.iter().position(|t| is_word(Some(t), "DELAY")) else {
            let message =
                "Syntax error: WATERMARK needs DELAY OF INTERVAL, e.g. WATERMARK ts DELAY OF INTERVAL 10 SECONDS.";
            return Err(SqlError::parse(message).at(self.text, at, 9));
        };
        let mut expression = rest.get(..length).unwrap_or_default().to_vec();
        self.at += length + 1;
        for expected in ["OF", "INTERVAL"] {
            if !is_word(self.peek(0), expected) {
                let found = self.peek(0).cloned();
                return Err(self.unexpected(found.as_ref(), &format!("{expected} of WATERMARK ... DELAY OF INTERVAL")));
            }
            self.at += 1;
        }
        let Some((delay, used)) = interval::parse_tokens(self.input.get(self.at..).unwrap_or_default()) else {
            let found = self.peek(0).cloned();
            return Err(self.unexpected(found.as_ref(), "an interval such as 10 SECONDS"));
        };
        self.at += used;
        let Some(delay_micros) = delay.fixed_micros().filter(|m| *m >= 0) else {
            return Err(SqlError::parse(
                "The watermark's delay must be a non-negative interval without months or years.",
            )
            .at(self.text, at, 9));
        };
        let alias = take_alias(&mut expression);
        Ok(Watermark { expression, alias, delay_ms: delay_micros / 1000, at })
    }

    fn interval_literal(&mut self, token: &TokenWithSpan) -> bool {
        let Some((value, used)) = interval::parse_tokens(self.input.get(self.at + 1..).unwrap_or_default()) else {
            return false;
        };
        self.output.push(token.clone());
        self.output.push(TokenWithSpan::new(Token::SingleQuotedString(value.text()), token.span));
        self.at += 1 + used;
        true
    }

    /// `1.5D`, `2S`, `3Y`, `1F`, `1.5BD`, `10L`: the suffix becomes part of the number (see [`super::number`]).
    fn typed_number(&mut self, token: &TokenWithSpan) -> bool {
        let Token::Number(text, long) = &token.token else { return false };
        let suffix = match self.peek(1) {
            Some(TokenWithSpan { token: Token::Word(w), span }) if span.start == token.span.end => {
                w.value.to_uppercase()
            }
            _ => String::new(),
        };
        let typed = match suffix.as_str() {
            "D" | "F" | "S" | "Y" | "BD" => suffix,
            "" if *long => "L".to_owned(),
            _ => return false,
        };
        self.output.push(TokenWithSpan::new(Token::Number(format!("{text}{typed}"), false), token.span));
        self.at += 1 + usize::from(!*long);
        true
    }

    fn expect(&mut self, expected: &Token) -> Result<(), SqlError> {
        let found = self.peek(0).cloned();
        if found.as_ref().is_some_and(|t| t.token == *expected) {
            self.at += 1;
            return Ok(());
        }
        Err(self.unexpected(found.as_ref(), &format!("'{expected}'")))
    }

    fn unexpected(&self, found: Option<&TokenWithSpan>, expected: &str) -> SqlError {
        unexpected(self.text, found, expected)
    }
}

/// Takes `[AS] name` off the end of an expression's tokens.
fn take_alias(expression: &mut Vec<TokenWithSpan>) -> Option<String> {
    let n = expression.len();
    let name = match expression.last().map(|t| &t.token) {
        Some(Token::Word(w)) => w.value.clone(),
        _ => return None,
    };
    let before = n.checked_sub(2).and_then(|i| expression.get(i));
    let cut = if is_word(before, "AS") {
        2
    } else if is_token(before, &Token::RParen) {
        1
    } else {
        return None;
    };
    expression.truncate(n - cut);
    Some(name)
}

/// `Syntax error at or near 'x'` with what was expected.
pub(crate) fn unexpected(text: &str, found: Option<&TokenWithSpan>, expected: &str) -> SqlError {
    let token = found.map_or(&Token::EOF, |t| &t.token);
    let error = SqlError::parse(format!("Syntax error at or near {}: expected {expected}.", shown(token)));
    match found {
        Some(t) if t.token != Token::EOF => {
            let width = usize::try_from(t.span.end.column.saturating_sub(t.span.start.column)).unwrap_or(1);
            error.at(text, t.span.start, width)
        }
        _ => {
            let line = text.lines().count().max(1);
            let column = text.lines().last().map_or(0, |l| l.chars().count()) + 1;
            let location = Location { line: line as u64, column: column as u64 };
            error.at(text, location, 1)
        }
    }
}

/// `('k' 'v', k.l = 1, flag true, 'k')`: Spark's property list. Returns it with the number of tokens read.
pub(crate) fn properties(text: &str, tokens: &[TokenWithSpan]) -> Result<(Vec<(String, String)>, usize), SqlError> {
    let mut at = 0;
    let mut list = Vec::new();
    if !is_token(tokens.first(), &Token::LParen) {
        return Err(unexpected(text, tokens.first(), "'('"));
    }
    at += 1;
    loop {
        let (key, used) = property_key(text, tokens.get(at..).unwrap_or_default())?;
        at += used;
        if is_token(tokens.get(at), &Token::Eq) {
            at += 1;
        }
        let (value, used) = property_value(tokens.get(at..).unwrap_or_default());
        at += used;
        list.push((key, value));
        match tokens.get(at).map(|t| &t.token) {
            Some(Token::Comma) => at += 1,
            Some(Token::RParen) => return Ok((list, at + 1)),
            _ => return Err(unexpected(text, tokens.get(at), "',' or ')' in a list of properties")),
        }
    }
}

fn property_key(text: &str, tokens: &[TokenWithSpan]) -> Result<(String, usize), SqlError> {
    match tokens.first().map(|t| &t.token) {
        Some(Token::SingleQuotedString(s) | Token::DoubleQuotedString(s)) => Ok((s.clone(), 1)),
        Some(Token::Word(w)) => {
            let mut key = w.value.clone();
            let mut at = 1;
            while is_token(tokens.get(at), &Token::Period) || is_token(tokens.get(at), &Token::Minus) {
                let Some(Token::Word(w)) = tokens.get(at + 1).map(|t| &t.token) else { break };
                key.push_str(&tokens.get(at).map_or_else(String::new, |t| t.token.to_string()));
                key.push_str(&w.value);
                at += 2;
            }
            Ok((key, at))
        }
        _ => Err(unexpected(text, tokens.first(), "a property's name")),
    }
}

fn property_value(tokens: &[TokenWithSpan]) -> (String, usize) {
    match tokens.first().map(|t| &t.token) {
        Some(Token::SingleQuotedString(s) | Token::DoubleQuotedString(s)) => (s.clone(), 1),
        Some(Token::Number(n, _)) => (n.clone(), 1),
        Some(Token::Minus) => match tokens.get(1).map(|t| &t.token) {
            Some(Token::Number(n, _)) => (format!("-{n}"), 2),
            _ => (String::new(), 0),
        },
        Some(Token::Word(w)) => (w.value.clone(), 1),
        _ => (String::new(), 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::token::{tokens, unmark};

    fn rewritten(text: &str) -> (String, Vec<RelationMark>) {
        let result = rewrite(text, &tokens(text).unwrap()).unwrap();
        let shown: Vec<String> = result
            .tokens
            .iter()
            .filter(|t| t.token != Token::EOF)
            .map(|t| match &t.token {
                Token::Word(w) => unmark(&w.value).map_or(w.value.clone(), |(i, n)| format!("#{i}:{n}")),
                other => other.to_string(),
            })
            .collect();
        (shown.join(" "), result.marks)
    }

    #[test]
    fn a_stream_relation_becomes_a_marked_name() {
        let (text, marks) =
            rewritten("SELECT a FROM STREAM t WATERMARK ts DELAY OF INTERVAL 10 SECONDS AS x JOIN STREAM(u) ON 1");
        assert_eq!(text, "SELECT a FROM #0:t AS x JOIN #1:u ON 1");
        assert_eq!(marks[0].watermark.as_ref().unwrap().delay_ms, 10_000);
        assert!(marks[1].stream && marks[1].watermark.is_none());
    }

    #[test]
    fn a_watermark_may_stand_on_a_subquery_and_name_its_expression() {
        let (text, marks) = rewritten(
            "SELECT 1 FROM (SELECT 2) WATERMARK timestamp_millis(x) AS ts DELAY OF INTERVAL '1' MINUTE WHERE y",
        );
        assert_eq!(text, "SELECT 1 FROM ( SELECT 2 ) #0: WHERE y");
        let watermark = marks[0].watermark.as_ref().unwrap();
        assert_eq!((watermark.alias.as_deref(), watermark.delay_ms), (Some("ts"), 60_000));
        assert_eq!(watermark.expression.len(), 4);
    }

    #[test]
    fn options_stand_behind_the_name_of_a_table() {
        let (text, marks) = rewritten(
            "SELECT 1 FROM t WITH (a = 'b') AS x JOIN spark_catalog.default.u WITH ('c' 1) WATERMARK y DELAY OF INTERVAL 1 SECOND",
        );
        assert_eq!(text, "SELECT 1 FROM #0:t AS x JOIN spark_catalog . default . #1:u");
        assert_eq!(marks[0].options, [("a".to_owned(), "b".to_owned())]);
        assert!(!marks[1].stream && marks[1].watermark.is_some() && marks[1].options.len() == 1);
        for plain in ["SELECT 1 FROM t AS x WITH ( a )", "SELECT 1 FROM f ( 1 ) WITH ( a )", "WITH ( a )"] {
            assert_eq!(rewritten(plain).0, plain);
        }
    }

    #[test]
    fn a_table_named_stream_stays_a_table() {
        assert_eq!(rewritten("SELECT stream, b FROM stream WHERE 1").0, "SELECT stream , b FROM stream WHERE 1");
    }

    #[test]
    fn literals_are_normalised() {
        assert_eq!(rewritten("SELECT 1.5D, 10L, exists(a, x -> x)").0, "SELECT 1.5D , 10L , exists ( a , x -> x )");
        assert_eq!(rewritten("INTERVAL 1 DAY").0, "INTERVAL '0 months 1 days 0.000000 seconds'");
    }
}
