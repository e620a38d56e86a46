//! The statements of Spark SQL that Caudal knows, parsed from tokens; queries go through `sqlparser`.

use sqlparser::ast;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Location, Token, TokenWithSpan};

use super::dialect::Spark;
use super::error::{SqlError, did_you_mean};
use super::qualifier::{CATALOG, is_schema, schema_missing, unqualified};
use super::rewrite::{self, properties, unexpected};
use super::token::{Lines, Piece, RelationMark, is_token, is_word, tokens};

/// One statement of a script.
#[derive(Debug, Clone)]
pub struct Statement {
    /// The statement as it stands in the script, without its `;`.
    pub text: String,
    /// Where it begins; both count from 1.
    pub line: u64,
    pub column: u64,
    pub(crate) padded: String,
    pub(crate) kind: Kind,
}

/// A query with what its stream relations say beside their names.
#[derive(Debug, Clone)]
pub(crate) struct ParsedQuery {
    pub query: Box<ast::Query>,
    pub marks: Vec<RelationMark>,
}

/// `CREATE ... TABLE`.
#[derive(Debug, Clone, Default)]
pub(crate) struct CreateTable {
    pub name: String,
    pub name_at: Option<Location>,
    pub or_replace: bool,
    /// `OR REFRESH`: a table that is there goes on.
    pub or_refresh: bool,
    pub if_not_exists: bool,
    pub temporary: bool,
    pub schema: Option<String>,
    pub format: Option<String>,
    pub options: Vec<(String, String)>,
    pub properties: Vec<(String, String)>,
    pub partitioned_by: Vec<String>,
    pub location: Option<String>,
    pub comment: Option<String>,
    pub query: Option<ParsedQuery>,
}

/// What `SHOW` lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listed {
    Tables,
    Views,
    /// With whether functions of Spark, which are all there are, belong to the list.
    Functions {
        system: bool,
    },
}

/// A named object of `DESCRIBE`.
#[derive(Debug, Clone)]
pub(crate) struct Described {
    pub name: String,
    pub at: Location,
    pub extended: bool,
    /// Only this column.
    pub column: Option<String>,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// Holds `${...}`: parsed when it is run, after substitution.
    Deferred,
    Query(ParsedQuery),
    CreateTable(CreateTable),
    CreateStreamingTable(CreateTable),
    CreateMaterializedView(CreateTable),
    CreateView(CreateTable),
    Insert {
        name: String,
        at: Location,
        columns: Vec<String>,
        overwrite: bool,
        query: ParsedQuery,
    },
    Drop {
        what: &'static str,
        name: String,
        at: Location,
        if_exists: bool,
    },
    Show {
        listed: Listed,
        /// Of names, with `*` and `|`.
        pattern: Option<String>,
    },
    Describe(Described),
    /// `USE` of the one schema that there is.
    Use,
    DescribeQuery(ParsedQuery),
    Set {
        key: Option<String>,
        value: Option<String>,
    },
    Reset {
        key: Option<String>,
    },
    Explain {
        extended: bool,
        of: Box<Kind>,
    },
}

/// Splits a script into statements and parses each.
pub(crate) fn parse_script(script: &str) -> Result<Vec<Statement>, SqlError> {
    super::token::split(script)?.into_iter().map(parse_piece).collect()
}

fn parse_piece(piece: Piece) -> Result<Statement, SqlError> {
    let lines = usize::try_from(piece.start.line.saturating_sub(1)).unwrap_or(0);
    let columns = usize::try_from(piece.start.column.saturating_sub(1)).unwrap_or(0);
    let padded = format!("{}{}{}", "\n".repeat(lines), " ".repeat(columns), piece.text);
    let kind = if piece.text.contains("${") { Kind::Deferred } else { parse_kind(&padded)? };
    Ok(Statement { text: piece.text, line: piece.start.line, column: piece.start.column, padded, kind })
}

/// Parses one statement. `text` may begin with blanks that put it at its place in the script.
pub(crate) fn parse_kind(text: &str) -> Result<Kind, SqlError> {
    let all = tokens(text)?;
    let end = all.iter().position(|t| t.token == Token::EOF).unwrap_or(all.len());
    let tokens = all.get(..end).unwrap_or_default();
    let mut cursor = Cursor { text, lines: Lines::new(text), tokens, at: 0 };
    let kind = cursor.statement()?;
    cursor.end()?;
    Ok(kind)
}

const STATEMENTS: [&str; 16] = [
    "SELECT", "WITH", "VALUES", "FROM", "CREATE", "INSERT", "DROP", "SHOW", "DESCRIBE", "DESC", "SET", "RESET",
    "EXPLAIN", "TABLE", "REFRESH", "USE",
];

const NOT_BUILT: [&str; 17] = [
    "ALTER", "ANALYZE", "CACHE", "UNCACHE", "CLEAR", "DELETE", "UPDATE", "MERGE", "TRUNCATE", "LOAD", "REFRESH",
    "MSCK", "DECLARE", "EXECUTE", "BEGIN", "GRANT", "COMMENT",
];

struct Cursor<'a> {
    text: &'a str,
    lines: Lines<'a>,
    tokens: &'a [TokenWithSpan],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self, ahead: usize) -> Option<&'a TokenWithSpan> {
        self.tokens.get(self.at + ahead)
    }

    fn rest(&self) -> &'a [TokenWithSpan] {
        self.tokens.get(self.at..).unwrap_or_default()
    }

    fn is(&self, text: &str) -> bool {
        is_word(self.peek(0), text)
    }

    /// Takes the words when all of them follow.
    fn take(&mut self, words: &[&str]) -> bool {
        let all = words.iter().enumerate().all(|(i, w)| is_word(self.peek(i), w));
        if all {
            self.at += words.len();
        }
        all
    }

    fn expect(&mut self, word: &str) -> Result<(), SqlError> {
        if self.take(&[word]) { Ok(()) } else { Err(self.unexpected(word)) }
    }

    fn unexpected(&self, expected: &str) -> SqlError {
        unexpected(self.text, self.peek(0), expected)
    }

    fn end(&self) -> Result<(), SqlError> {
        if self.at >= self.tokens.len() { Ok(()) } else { Err(self.unexpected("the end of the statement")) }
    }

    fn here(&self) -> Location {
        self.peek(0).map_or(Location { line: 0, column: 0 }, |t| t.span.start)
    }

    fn statement(&mut self) -> Result<Kind, SqlError> {
        if is_token(self.peek(0), &Token::LParen) {
            return Ok(Kind::Query(self.query()?));
        }
        let Some(Token::Word(first)) = self.peek(0).map(|t| t.token.clone()) else {
            return Err(self.unexpected("a statement"));
        };
        match first.value.to_ascii_uppercase().as_str() {
            "SELECT" | "WITH" | "VALUES" | "FROM" | "TABLE" => Ok(Kind::Query(self.query()?)),
            "CREATE" => self.create(),
            "INSERT" => self.insert(),
            "DROP" => self.drop_object(),
            "SHOW" => self.show(),
            "DESCRIBE" | "DESC" => self.describe(),
            "SET" => self.set(),
            "RESET" => {
                self.at += 1;
                Ok(Kind::Reset { key: self.remaining_text() })
            }
            "EXPLAIN" => self.explain(),
            "USE" => self.use_schema(),
            other if NOT_BUILT.contains(&other) => {
                let error = SqlError::unsupported(format!("the statement {other}"));
                Err(error.at(self.text, self.here(), other.len()))
            }
            other => {
                let error = self.unexpected("a statement");
                Err(match did_you_mean(other, STATEMENTS) {
                    Some(word) => error.hint(format!("Did you mean {word}?")),
                    None => error,
                })
            }
        }
    }

    fn remaining_text(&mut self) -> Option<String> {
        let rest = self.rest();
        let text = match (rest.first(), rest.last()) {
            (Some(first), Some(last)) => Some(self.lines.slice(first.span.start, last.span.end).trim().to_owned()),
            _ => None,
        };
        self.at = self.tokens.len();
        text
    }

    fn create(&mut self) -> Result<Kind, SqlError> {
        self.at += 1;
        let mut table = CreateTable { or_replace: self.take(&["OR", "REPLACE"]), ..CreateTable::default() };
        let refresh = self.take(&["OR", "REFRESH"]);
        table.temporary = self.take(&["GLOBAL", "TEMPORARY"]) || self.take(&["TEMPORARY"]) || self.take(&["TEMP"]);
        if self.take(&["STREAMING", "TABLE"]) {
            table.or_refresh = refresh;
            self.table_clauses(&mut table)?;
            if table.query.is_none() {
                return Err(self.unexpected("AS SELECT of CREATE STREAMING TABLE"));
            }
            return Ok(Kind::CreateStreamingTable(table));
        }
        if self.take(&["MATERIALIZED", "VIEW"]) {
            table.or_replace |= refresh;
            self.table_clauses(&mut table)?;
            if table.query.is_none() {
                return Err(self.unexpected("AS SELECT of CREATE MATERIALIZED VIEW"));
            }
            return Ok(Kind::CreateMaterializedView(table));
        }
        if refresh {
            return Err(self.unexpected("STREAMING TABLE or MATERIALIZED VIEW"));
        }
        if self.take(&["VIEW"]) {
            return self.create_view(table);
        }
        self.take(&["EXTERNAL"]);
        if self.take(&["TABLE"]) {
            self.table_clauses(&mut table)?;
            return Ok(Kind::CreateTable(table));
        }
        for what in ["FLOW", "FUNCTION", "DATABASE", "SCHEMA", "NAMESPACE", "VARIABLE", "INDEX", "CATALOG"] {
            if self.is(what) {
                let error = SqlError::unsupported(format!("CREATE {what}"));
                return Err(error.at(self.text, self.here(), what.len()));
            }
        }
        Err(self.unexpected("TABLE, STREAMING TABLE, VIEW or MATERIALIZED VIEW"))
    }

    /// A view is either `AS query`, or `USING format OPTIONS (...)`, which is a table.
    fn create_view(&mut self, mut table: CreateTable) -> Result<Kind, SqlError> {
        self.table_clauses(&mut table)?;
        if table.query.is_some() {
            return Ok(Kind::CreateView(table));
        }
        if table.format.is_some() {
            return Ok(Kind::CreateTable(table));
        }
        Err(self.unexpected("AS SELECT or USING"))
    }

    fn table_clauses(&mut self, table: &mut CreateTable) -> Result<(), SqlError> {
        table.if_not_exists = self.take(&["IF", "NOT", "EXISTS"]);
        let at = self.here();
        table.name_at = Some(at);
        table.name = self.new_name()?;
        // Tables are directories below the warehouse; a temporary view is nothing but a name.
        if !table.temporary && !table.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            let message = format!(
                "`{}` is not a valid name for tables/schemas. Valid names only contain alphabet characters, numbers and _. SQLSTATE: 42602",
                table.name
            );
            return Err(SqlError::new("INVALID_SCHEMA_OR_RELATION_NAME", message).at(self.text, at, 1));
        }
        if is_token(self.peek(0), &Token::LParen) {
            table.schema = Some(self.parenthesised()?);
        }
        loop {
            if self.take(&["USING"]) {
                table.format = Some(self.parts()?.pop().unwrap_or_default().to_ascii_lowercase());
            } else if self.take(&["OPTIONS"]) {
                table.options = self.properties()?;
            } else if self.take(&["TBLPROPERTIES"]) {
                table.properties = self.properties()?;
            } else if self.take(&["PARTITIONED", "BY"]) {
                let list = self.parenthesised()?;
                table.partitioned_by = list.split(',').map(|c| c.trim().trim_matches('`').to_owned()).collect();
            } else if self.take(&["LOCATION"]) {
                table.location = Some(self.string()?);
            } else if self.take(&["COMMENT"]) {
                table.comment = Some(self.string()?);
            } else {
                break;
            }
        }
        if self.take(&["AS"]) || self.is("SELECT") || self.is("WITH") {
            table.query = Some(self.query()?);
        }
        Ok(())
    }

    fn properties(&mut self) -> Result<Vec<(String, String)>, SqlError> {
        let (list, used) = properties(self.text, self.rest())?;
        self.at += used;
        Ok(list)
    }

    fn string(&mut self) -> Result<String, SqlError> {
        match self.peek(0).map(|t| &t.token) {
            Some(Token::SingleQuotedString(s) | Token::DoubleQuotedString(s)) => {
                self.at += 1;
                Ok(s.clone())
            }
            _ => Err(self.unexpected("a string")),
        }
    }

    /// The text between a `(` and its `)`.
    fn parenthesised(&mut self) -> Result<String, SqlError> {
        let open = self.peek(0);
        let mut depth = 0usize;
        for (i, token) in self.rest().iter().enumerate() {
            match token.token {
                Token::LParen => depth += 1,
                Token::RParen => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 {
                self.at += i + 1;
                let start = open.map_or(token.span.start, |t| t.span.end);
                return Ok(self.lines.slice(start, token.span.start).to_owned());
            }
        }
        self.at = self.tokens.len();
        Err(self.unexpected("')'"))
    }

    /// The parts of a qualified name.
    fn parts(&mut self) -> Result<Vec<String>, SqlError> {
        let mut parts = Vec::new();
        loop {
            match self.peek(0).map(|t| &t.token) {
                Some(Token::Word(w)) => parts.push(w.value.clone()),
                _ => return Err(self.unexpected("a name")),
            }
            self.at += 1;
            if !is_token(self.peek(0), &Token::Period) {
                return Ok(parts);
            }
            self.at += 1;
        }
    }

    /// A name without the qualifiers that all names have here. Nothing has a name that keeps others.
    fn name(&mut self) -> Result<String, SqlError> {
        let parts = self.parts()?;
        Ok(unqualified(&parts).map_or_else(|| parts.join("."), str::to_owned))
    }

    /// The name of something to be made, in the one schema that there is.
    fn new_name(&mut self) -> Result<String, SqlError> {
        let at = self.here();
        let parts = self.parts()?;
        match (unqualified(&parts), parts.as_slice()) {
            (Some(name), _) => Ok(name.to_owned()),
            (None, [schema, _]) => Err(schema_missing(schema).at(self.text, at, schema.len())),
            (None, [catalog, schema, _]) if catalog.eq_ignore_ascii_case(CATALOG) => {
                Err(schema_missing(schema).at(self.text, at, catalog.len()))
            }
            (None, _) => {
                let message = format!(
                    "spark_catalog requires a single-part namespace, but got identifier `{}`. SQLSTATE: 42K05",
                    parts.join("`.`")
                );
                Err(SqlError::new("REQUIRES_SINGLE_PART_NAMESPACE", message).at(self.text, at, 1))
            }
        }
    }

    /// The name of a schema (or catalog); there is one of each.
    fn schema(&mut self) -> Result<(), SqlError> {
        let at = self.here();
        let parts = self.parts()?;
        let known = match parts.as_slice() {
            [one] => is_schema(one) || one.eq_ignore_ascii_case(CATALOG),
            [catalog, schema] => catalog.eq_ignore_ascii_case(CATALOG) && is_schema(schema),
            _ => false,
        };
        let name = parts.last().map_or("", String::as_str);
        if known { Ok(()) } else { Err(schema_missing(name).at(self.text, at, parts.join(".").len())) }
    }

    fn use_schema(&mut self) -> Result<Kind, SqlError> {
        self.at += 1;
        for word in ["CATALOG", "SCHEMA", "DATABASE", "NAMESPACE"] {
            if self.peek(1).is_some() && self.take(&[word]) {
                break;
            }
        }
        self.schema()?;
        Ok(Kind::Use)
    }

    fn explain(&mut self) -> Result<Kind, SqlError> {
        self.at += 1;
        for mode in ["FORMATTED", "COST", "CODEGEN"] {
            if self.is(mode) {
                let error = SqlError::unsupported(format!("EXPLAIN {mode}"));
                return Err(error
                    .at(self.text, self.here(), mode.len())
                    .hint("EXPLAIN shows the plan that runs, EXPLAIN EXTENDED also those that it was made from."));
            }
        }
        let extended = self.take(&["EXTENDED"]);
        Ok(Kind::Explain { extended, of: Box::new(self.statement()?) })
    }

    fn insert(&mut self) -> Result<Kind, SqlError> {
        self.at += 1;
        let overwrite = self.take(&["OVERWRITE"]);
        if !overwrite {
            self.expect("INTO")?;
        }
        self.take(&["TABLE"]);
        let at = self.here();
        let name = self.name()?;
        let by_name = is_token(self.peek(0), &Token::LParen)
            && !is_word(self.peek(1), "SELECT")
            && !is_word(self.peek(1), "WITH");
        let columns = if by_name {
            self.parenthesised()?.split(',').map(|c| c.trim().trim_matches('`').to_owned()).collect()
        } else {
            Vec::new()
        };
        Ok(Kind::Insert { name, at, columns, overwrite, query: self.query()? })
    }

    fn drop_object(&mut self) -> Result<Kind, SqlError> {
        self.at += 1;
        let temporary = self.take(&["TEMPORARY"]);
        let what = if self.take(&["TABLE"]) {
            "TABLE"
        } else if self.take(&["MATERIALIZED", "VIEW"]) || self.take(&["VIEW"]) {
            "VIEW"
        } else if self.take(&["STREAMING", "TABLE"]) {
            "TABLE"
        } else {
            return Err(self.unexpected(if temporary { "VIEW" } else { "TABLE or VIEW" }));
        };
        let if_exists = self.take(&["IF", "EXISTS"]);
        let at = self.here();
        let name = self.name()?;
        self.take(&["PURGE"]);
        Ok(Kind::Drop { what, name, at, if_exists })
    }

    fn show(&mut self) -> Result<Kind, SqlError> {
        self.at += 1;
        let user = self.take(&["USER"]);
        let system = self.take(&["SYSTEM"]) || self.take(&["ALL"]) || !user;
        let listed = if self.take(&["FUNCTIONS"]) {
            Listed::Functions { system }
        } else if self.take(&["TABLES"]) {
            Listed::Tables
        } else if self.take(&["VIEWS"]) {
            Listed::Views
        } else {
            return Err(self.not_shown());
        };
        if self.take(&["FROM"]) || self.take(&["IN"]) {
            self.schema()?;
        }
        let like = self.take(&["LIKE"]);
        let pattern = match self.peek(0).map(|t| &t.token) {
            None if !like => None,
            // A function may be asked for by its name.
            Some(Token::Word(_)) if !like && matches!(listed, Listed::Functions { .. }) => Some(self.name()?),
            _ => Some(self.string()?),
        };
        Ok(Kind::Show { listed, pattern })
    }

    fn not_shown(&self) -> SqlError {
        for what in
            ["DATABASES", "SCHEMAS", "NAMESPACES", "CATALOGS", "COLUMNS", "CREATE", "PARTITIONS", "TBLPROPERTIES"]
        {
            if self.is(what) {
                let error = SqlError::unsupported(format!("SHOW {what}"));
                return error
                    .at(self.text, self.here(), what.len())
                    .hint("There are SHOW TABLES, SHOW VIEWS, SHOW FUNCTIONS and DESCRIBE name.");
            }
        }
        self.unexpected("TABLES, VIEWS or FUNCTIONS")
    }

    fn describe(&mut self) -> Result<Kind, SqlError> {
        self.at += 1;
        let query = self.take(&["QUERY"]);
        if query || self.is("SELECT") || self.is("WITH") || self.is("VALUES") {
            return Ok(Kind::DescribeQuery(self.query()?));
        }
        for what in ["FUNCTION", "SCHEMA", "DATABASE", "NAMESPACE", "CATALOG"] {
            if self.is(what) && self.peek(1).is_some() {
                let error = SqlError::unsupported(format!("DESCRIBE {what}"));
                return Err(error.at(self.text, self.here(), what.len()));
            }
        }
        self.take(&["TABLE"]);
        let more = self.peek(1).is_some();
        let extended = more && (self.take(&["EXTENDED"]) || self.take(&["FORMATTED"]));
        let at = self.here();
        let name = self.name()?;
        let column = match self.peek(0).map(|t| &t.token) {
            Some(Token::Word(w)) => Some(w.value.clone()),
            _ => None,
        };
        self.at += usize::from(column.is_some());
        Ok(Kind::Describe(Described { name, at, extended, column }))
    }

    fn set(&mut self) -> Result<Kind, SqlError> {
        self.at += 1;
        let start = self.here();
        if ["VAR", "VARIABLE", "CATALOG", "SCHEMA", "ROLE"].iter().any(|w| self.is(w))
            && matches!(self.peek(1).map(|t| &t.token), Some(Token::Word(_)))
        {
            return Err(SqlError::unsupported("SET of variables, catalogs and roles").at(self.text, start, 1));
        }
        if self.take(&["TIME", "ZONE"]) {
            let zone = match self.string() {
                Ok(zone) => zone,
                Err(_) => self.remaining_text().ok_or_else(|| self.unexpected("a time zone such as 'UTC'"))?,
            };
            return Ok(Kind::Set { key: Some("spark.sql.session.timeZone".to_owned()), value: Some(zone) });
        }
        let Some(text) = self.remaining_text() else { return Ok(Kind::Set { key: None, value: None }) };
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key.trim(), Some(value.trim())),
            None => (text.as_str(), None),
        };
        let quoted = |v: &str| ['`', '\'', '"'].into_iter().any(|c| v.len() > 1 && v.starts_with(c) && v.ends_with(c));
        if key.is_empty() || (key.contains(char::is_whitespace) && !quoted(key)) {
            let message = "Expected format is 'SET', 'SET key', or 'SET key=value'. If you want to include special characters in key, use backquotes, e.g., SET `key`=value.";
            return Err(SqlError::new("INVALID_SET_SYNTAX", message).at(self.text, start, key.chars().count()));
        }
        let unquoted = |v: &str| match quoted(v) {
            true => v.get(1..v.len() - 1).unwrap_or(v).to_owned(),
            false => v.to_owned(),
        };
        Ok(Kind::Set { key: Some(unquoted(key)), value: value.map(unquoted) })
    }

    /// Everything up to the end as a query.
    fn query(&mut self) -> Result<ParsedQuery, SqlError> {
        let rest = self.rest();
        self.at = self.tokens.len();
        parse_query(self.text, rest)
    }
}

/// The names in a view's list of columns, with their comments.
pub(crate) fn view_columns(text: &str) -> Result<Vec<(String, Option<String>)>, SqlError> {
    let all = tokens(text)?;
    let wrong = || SqlError::parse(format!("Syntax error in the columns of the view: {}.", text.trim()));
    all.split(|t| t.token == Token::Comma)
        .map(|column| {
            let mut rest = column.iter().map(|t| &t.token).filter(|t| **t != Token::EOF);
            let (Some(Token::Word(name)), comment, text, None) = (rest.next(), rest.next(), rest.next(), rest.next())
            else {
                return Err(wrong());
            };
            match (comment, text) {
                (None, None) => Ok((name.value.clone(), None)),
                (
                    Some(Token::Word(w)),
                    Some(Token::SingleQuotedString(comment) | Token::DoubleQuotedString(comment)),
                ) if w.value.eq_ignore_ascii_case("COMMENT") => Ok((name.value.clone(), Some(comment.clone()))),
                _ => Err(wrong()),
            }
        })
        .collect()
}

/// Parses the tokens of a query with `sqlparser`, after rewriting what it does not know.
fn parse_query(text: &str, tokens: &[TokenWithSpan]) -> Result<ParsedQuery, SqlError> {
    let depth = nesting(text, tokens)?;
    if depth < SHALLOW {
        return parse_shallow(text, tokens, depth);
    }
    // The parser recurses for each level, and the caller's stack may be small.
    std::thread::scope(|scope| {
        let parse = || parse_shallow(text, tokens, depth);
        match std::thread::Builder::new().stack_size(DEEP_STACK_BYTES).spawn_scoped(scope, parse).map(|t| t.join()) {
            Ok(Ok(parsed)) => parsed,
            _ => Err(too_complex("The statement could not be parsed.")),
        }
    })
}

/// Levels of nesting that any thread's stack is deep enough for.
const SHALLOW: usize = 12;
/// More levels than a person writes.
const DEEPEST: usize = 200;
const DEEP_STACK_BYTES: usize = 128 << 20;

fn too_complex(message: &str) -> SqlError {
    SqlError::new("FAILED_TO_PARSE_TOO_COMPLEX", message)
}

/// How deep parentheses, `CASE` and runs of `NOT` and `-` are nested; fails beyond [`DEEPEST`].
fn nesting(text: &str, tokens: &[TokenWithSpan]) -> Result<usize, SqlError> {
    let (mut depth, mut run, mut deepest) = (0usize, 0usize, 0usize);
    for token in tokens {
        let prefix = token.token == Token::Minus || is_word(Some(token), "NOT");
        run = if prefix { run + 1 } else { 0 };
        match &token.token {
            Token::LParen | Token::LBracket => depth += 1,
            Token::RParen | Token::RBracket => depth = depth.saturating_sub(1),
            _ if is_word(Some(token), "CASE") => depth += 1,
            _ if is_word(Some(token), "END") => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth + run);
        if deepest > DEEPEST {
            let message =
                format!("The statement is too complex to parse: it is nested more than {DEEPEST} levels deep.");
            return Err(too_complex(&message).at(text, token.span.start, 1));
        }
    }
    Ok(deepest)
}

fn parse_shallow(text: &str, tokens: &[TokenWithSpan], depth: usize) -> Result<ParsedQuery, SqlError> {
    let rewritten = rewrite::rewrite(text, tokens)?;
    let mut parser =
        Parser::new(&Spark).with_tokens_with_locations(rewritten.tokens.clone()).with_recursion_limit(50 + 8 * depth);
    let failed = |message: &str| parser_error(text, &rewritten.tokens, message);
    let query = parser.parse_query().map_err(|e| failed(&e.to_string()))?;
    let after = parser.peek_token();
    if after.token != Token::EOF {
        let index = rewritten.tokens.iter().position(|t| t.span.start == after.span.start);
        let error = unexpected(text, Some(&after), "the end of the statement");
        return Err(suggest_clause(error, &rewritten.tokens, index));
    }
    Ok(ParsedQuery { query, marks: rewritten.marks })
}

/// Parses the tokens of one expression.
pub(crate) fn parse_expression(text: &str, tokens: &[TokenWithSpan]) -> Result<ast::Expr, SqlError> {
    let rewritten = rewrite::rewrite(text, tokens)?;
    let mut parser = Parser::new(&Spark).with_tokens_with_locations(rewritten.tokens.clone());
    parser.parse_expr().map_err(|e| parser_error(text, &rewritten.tokens, &e.to_string()))
}

const CLAUSES: [&str; 22] = [
    "SELECT",
    "FROM",
    "WHERE",
    "GROUP",
    "BY",
    "HAVING",
    "ORDER",
    "LIMIT",
    "JOIN",
    "ON",
    "AS",
    "WATERMARK",
    "DELAY",
    "OF",
    "STREAM",
    "INTERVAL",
    "UNION",
    "LATERAL",
    "VIEW",
    "WINDOW",
    "DISTINCT",
    "OFFSET",
];

/// Turns `sqlparser`'s message, whose end says where, into an error with a place.
fn parser_error(text: &str, tokens: &[TokenWithSpan], message: &str) -> SqlError {
    let message = message.trim_start_matches("sql parser error: ");
    let (said, location) = match message.rfind(" at Line: ") {
        Some(i) => (message.get(..i).unwrap_or(message), location(message.get(i..).unwrap_or(""))),
        None => (message, None),
    };
    let index = location.and_then(|l| tokens.iter().position(|t| t.span.start == l));
    let said = said.strip_prefix("Expected an expression, found").map_or(said, |_| "an expression before this word");
    let expected = said.strip_prefix("Expected: ").and_then(|s| s.split(", found").next());
    let found = index.and_then(|i| tokens.get(i));
    let error = match (expected, found) {
        (Some(expected), _) => unexpected(text, found, expected),
        (None, Some(_)) => unexpected(text, found, said),
        (None, None) => SqlError::parse(format!("{said}.")),
    };
    suggest_clause(error, tokens, index)
}

/// Hints at a mistyped clause word: the token at fault, or the one before it (which was read as an alias).
fn suggest_clause(error: SqlError, tokens: &[TokenWithSpan], index: Option<usize>) -> SqlError {
    let last = tokens.len().checked_sub(1).filter(|_| index.is_none());
    let suspects = [index, index.and_then(|i| i.checked_sub(1)), last];
    for suspect in suspects.into_iter().flatten().filter_map(|i| tokens.get(i)) {
        let Token::Word(w) = &suspect.token else { continue };
        let exact = CLAUSES.iter().any(|c| c.eq_ignore_ascii_case(&w.value));
        if let Some(clause) = did_you_mean(&w.value, CLAUSES).filter(|_| !exact && w.value.len() > 2) {
            return error.hint(format!("Did you mean {clause} instead of {}?", w.value));
        }
    }
    error
}

fn location(text: &str) -> Option<Location> {
    let rest = text.trim().strip_prefix("at Line: ")?;
    let (line, column) = rest.split_once(", Column: ")?;
    Some(Location { line: line.trim().parse().ok()?, column: column.trim().parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Kind {
        parse_kind(text).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn a_kafka_table() {
        let kind = one(
            "CREATE TABLE IF NOT EXISTS t USING kafka OPTIONS ('subscribe' 'x', kafka.bootstrap.servers = 'h:1', n 5)",
        );
        let Kind::CreateTable(table) = kind else { panic!("{kind:?}") };
        assert_eq!((table.name.as_str(), table.format.as_deref(), table.if_not_exists), ("t", Some("kafka"), true));
        let keys: Vec<_> = table.options.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(keys, ["subscribe=x", "kafka.bootstrap.servers=h:1", "n=5"]);
    }

    #[test]
    fn a_streaming_table_with_a_query() {
        let kind = one(
            "CREATE OR REFRESH STREAMING TABLE x USING kafka OPTIONS (topic 'y') TBLPROPERTIES ('a'='b') AS SELECT * FROM STREAM t WATERMARK ts DELAY OF INTERVAL 1 SECOND",
        );
        let Kind::CreateStreamingTable(table) = kind else { panic!("{kind:?}") };
        assert_eq!(table.query.unwrap().marks.len(), 1);
        assert_eq!(table.properties, [("a".to_owned(), "b".to_owned())]);
    }

    #[test]
    fn mistakes_name_the_place_and_the_word() {
        let error = parse_script("SET a=1;\nSELECT a, b\nFORM t WHERE x").unwrap_err();
        let place = error.place.clone().unwrap();
        assert_eq!((place.line, place.excerpt.as_str()), (3, "FORM t WHERE x"), "{error}");
        assert_eq!(error.hint.as_deref(), Some("Did you mean FROM instead of FORM?"), "{error}");
        let error = parse_script("SELEC 1").unwrap_err();
        assert_eq!(error.hint.as_deref(), Some("Did you mean SELECT?"));
        let error = parse_script("ALTER TABLE t ADD COLUMN x INT").unwrap_err();
        assert!(error.to_string().starts_with("[UNSUPPORTED_FEATURE] the statement ALTER is not supported"), "{error}");
    }
}
