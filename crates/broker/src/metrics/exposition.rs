//! Prometheus' text format, version 0.0.4, written piece by piece.
//!
//! ```text
//! # HELP name what it is
//! # TYPE name counter|gauge|summary
//! name{label="value",...} 12.5
//! ```

use std::fmt::{Display, Write};
use std::io;

use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Text that is held back before it is written.
const PIECE_BYTES: usize = 64 * 1024;

/// The kinds of metrics that there are here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Summary,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Summary => "summary",
        }
    }
}

/// Names and values; the names are ours and need no escaping.
pub type Labels<'a> = &'a [(&'a str, &'a dyn Display)];

/// A page that is being written.
#[derive(Debug)]
pub struct Exposition<'o, W> {
    text: String,
    out: &'o mut W,
    /// In chunks of HTTP/1.1, whose reader knows the end by an empty one.
    chunked: bool,
}

/// A label's value, with what would end it escaped.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for c in text.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

impl<'o, W: AsyncWrite + Unpin> Exposition<'o, W> {
    pub fn new(out: &'o mut W, chunked: bool) -> Exposition<'o, W> {
        Exposition { text: String::new(), out, chunked }
    }

    /// Begins a metric; its samples follow, all of them before the next metric.
    pub fn metric(&mut self, name: &str, kind: Kind, help: &str) {
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {}\n", kind.name());
    }

    pub fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        self.text.push_str(name);
        for (at, (label, value)) in labels.iter().enumerate() {
            self.text.push(if at == 0 { '{' } else { ',' });
            self.text.push_str(label);
            self.text.push_str("=\"");
            let _ = write!(Escaped(&mut self.text), "{value}");
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    /// A metric that has one sample without labels.
    pub fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.metric(name, kind, help);
        self.sample(name, &[], value);
    }

    /// Writes out what has gathered, if that is much.
    ///
    /// # Errors
    /// Whoever reads it has gone.
    pub async fn relieve(&mut self) -> io::Result<()> {
        if self.text.len() < PIECE_BYTES {
            return Ok(());
        }
        self.write_out().await
    }

    /// Writes out the rest, and the end.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.write_out().await?;
        if self.chunked {
            self.out.write_all(b"0\r\n\r\n").await?;
        }
        self.out.flush().await
    }

    async fn write_out(&mut self) -> io::Result<()> {
        if self.text.is_empty() {
            return Ok(());
        }
        if self.chunked {
            self.out.write_all(format!("{:x}\r\n", self.text.len()).as_bytes()).await?;
            self.text.push_str("\r\n");
        }
        self.out.write_all(self.text.as_bytes()).await?;
        self.text.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn text_in_chunks() {
        let mut out = Vec::new();
        let mut page = Exposition::new(&mut out, true);
        page.metric("m", Kind::Gauge, "A metric");
        page.sample("m", &[("group", &"a\"b\\c\nd"), ("partition", &3)], 1.5);
        page.sample("m", &[], 2);
        page.relieve().await.unwrap();
        page.finish().await.unwrap();
        let text = "# HELP m A metric\n# TYPE m gauge\nm{group=\"a\\\"b\\\\c\\nd\",partition=\"3\"} 1.5\nm 2\n";
        assert_eq!(String::from_utf8(out).unwrap(), format!("{:x}\r\n{text}\r\n0\r\n\r\n", text.len()));
    }

    #[tokio::test]
    async fn much_is_written_as_it_comes() {
        let mut out = Vec::new();
        let mut page = Exposition::new(&mut out, false);
        for n in 0..20_000 {
            page.sample("name_of_a_metric", &[("partition", &n)], n);
            page.relieve().await.unwrap();
            assert!(page.text.capacity() < 3 * PIECE_BYTES);
        }
        page.finish().await.unwrap();
        assert_eq!(String::from_utf8(out).unwrap().lines().count(), 20_000);
    }
}
