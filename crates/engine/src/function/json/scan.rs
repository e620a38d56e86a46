//! Reading JSON tokens from bytes: blanks, strings, numbers, and skipping whole values.

#![expect(clippy::indexing_slicing, reason = "the hot loop of the decoder; every index is below a checked bound")]

use memchr::memchr2;

/// Why a record cannot be decoded further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bad {
    /// Not JSON.
    Syntax,
    /// JSON, but not of the wanted type; the value has not been read.
    Type,
}

/// Containers inside each other; Jackson's limit.
const MAX_DEPTH: usize = 1000;

/// A position in one record's text.
pub(super) struct Scanner<'a> {
    pub text: &'a [u8],
    pub at: usize,
    pub depth: usize,
}

/// A number's text: whether it is a whole number is known already.
pub(super) struct Number<'a> {
    pub text: &'a [u8],
    pub whole: bool,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Scanner { text, at: 0, depth: 0 }
    }

    /// The next byte that is not blank, without taking it.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.text.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }

    #[inline]
    pub(super) fn expect(&mut self, byte: u8) -> Result<(), Bad> {
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        Err(Bad::Syntax)
    }

    #[inline]
    pub(super) fn eat(&mut self, byte: u8) -> bool {
        let hit = self.peek() == Some(byte);
        self.at += usize::from(hit);
        hit
    }

    pub(super) fn word(&mut self, word: &[u8]) -> Result<(), Bad> {
        if self.text[self.at..].starts_with(word) {
            self.at += word.len();
            let ends = self.text.get(self.at).is_none_or(|b| !b.is_ascii_alphanumeric() && *b != b'_');
            return if ends { Ok(()) } else { Err(Bad::Syntax) };
        }
        Err(Bad::Syntax)
    }

    pub(super) fn enter(&mut self) -> Result<(), Bad> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(Bad::Syntax) } else { Ok(()) }
    }

    /// A string without its quotes, as it stands, and whether it holds escapes. The next byte is its quote.
    #[inline]
    pub(super) fn raw_string(&mut self) -> Result<(&'a [u8], bool), Bad> {
        let quote = self.text[self.at];
        let start = self.at + 1;
        let mut from = start;
        let mut escaped = false;
        loop {
            let Some(hit) = memchr2(quote, b'\\', &self.text[from..]) else { return Err(Bad::Syntax) };
            let at = from + hit;
            if self.text[at] == quote {
                self.at = at + 1;
                let raw = &self.text[start..at];
                let control = raw.iter().fold(false, |found, b| found | (*b < 0x20));
                return if control { Err(Bad::Syntax) } else { Ok((raw, escaped)) };
            }
            escaped = true;
            from = at + 2;
            if from > self.text.len() {
                return Err(Bad::Syntax);
            }
        }
    }

    /// A number's text by JSON's grammar (also `NaN`, `Infinity`, which Spark allows).
    #[inline]
    pub(super) fn number(&mut self) -> Result<Number<'a>, Bad> {
        let start = self.at;
        let text = self.text;
        let mut at = start;
        if text.get(at) == Some(&b'-') {
            at += 1;
        }
        match text.get(at) {
            Some(b'0') => at += 1,
            Some(b'1'..=b'9') => {
                while text.get(at).is_some_and(u8::is_ascii_digit) {
                    at += 1;
                }
            }
            Some(b'N') => {
                self.word(b"NaN")?;
                return Ok(Number { text: b"NaN", whole: false });
            }
            Some(b'I') => {
                self.at = at;
                self.word(b"Infinity")?;
                return Ok(Number { text: if at > start { b"-Infinity" } else { b"Infinity" }, whole: false });
            }
            _ => return Err(Bad::Syntax),
        }
        let mut whole = true;
        if text.get(at) == Some(&b'.') {
            whole = false;
            at += 1;
            let digits = at;
            while text.get(at).is_some_and(u8::is_ascii_digit) {
                at += 1;
            }
            if at == digits {
                return Err(Bad::Syntax);
            }
        }
        if matches!(text.get(at), Some(b'e' | b'E')) {
            whole = false;
            at += 1;
            if matches!(text.get(at), Some(b'+' | b'-')) {
                at += 1;
            }
            let digits = at;
            while text.get(at).is_some_and(u8::is_ascii_digit) {
                at += 1;
            }
            if at == digits {
                return Err(Bad::Syntax);
            }
        }
        if text.get(at).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_') {
            return Err(Bad::Syntax);
        }
        self.at = at;
        Ok(Number { text: &text[start..at], whole })
    }

    /// Skips one value of any kind.
    pub(super) fn skip(&mut self) -> Result<(), Bad> {
        match self.peek() {
            Some(b'"' | b'\'') => self.raw_string().map(drop),
            Some(b'{') => {
                self.enter()?;
                self.at += 1;
                if !self.eat(b'}') {
                    loop {
                        if !matches!(self.peek(), Some(b'"' | b'\'')) {
                            return Err(Bad::Syntax);
                        }
                        self.raw_string()?;
                        self.expect(b':')?;
                        self.skip()?;
                        if !self.eat(b',') {
                            self.expect(b'}')?;
                            break;
                        }
                    }
                }
                self.depth -= 1;
                Ok(())
            }
            Some(b'[') => {
                self.enter()?;
                self.at += 1;
                if !self.eat(b']') {
                    loop {
                        self.skip()?;
                        if !self.eat(b',') {
                            self.expect(b']')?;
                            break;
                        }
                    }
                }
                self.depth -= 1;
                Ok(())
            }
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            Some(_) => self.number().map(drop),
            None => Err(Bad::Syntax),
        }
    }
}

/// Appends a string with its escapes resolved.
pub(super) fn unescape(raw: &[u8], out: &mut Vec<u8>) -> Result<(), Bad> {
    let mut at = 0;
    while at < raw.len() {
        let Some(hit) = memchr::memchr(b'\\', &raw[at..]) else {
            out.extend_from_slice(&raw[at..]);
            return Ok(());
        };
        out.extend_from_slice(&raw[at..at + hit]);
        at += hit + 2;
        match raw.get(at - 1) {
            Some(b'n') => out.push(b'\n'),
            Some(b't') => out.push(b'\t'),
            Some(b'r') => out.push(b'\r'),
            Some(b'b') => out.push(8),
            Some(b'f') => out.push(12),
            Some(c @ (b'"' | b'\\' | b'/' | b'\'')) => out.push(*c),
            Some(b'u') => {
                let mut code = hex4(raw, at)?;
                at += 4;
                if (0xd800..0xdc00).contains(&code) && raw.get(at..at + 2) == Some(b"\\u") {
                    let low = hex4(raw, at + 2)?;
                    if (0xdc00..0xe000).contains(&low) {
                        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                        at += 6;
                    }
                }
                let c = char::from_u32(code).unwrap_or('?');
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
            _ => return Err(Bad::Syntax),
        }
    }
    Ok(())
}

fn hex4(raw: &[u8], at: usize) -> Result<u32, Bad> {
    let digits = raw.get(at..at + 4).ok_or(Bad::Syntax)?;
    digits.iter().try_fold(0, |code, d| Ok(code * 16 + char::from(*d).to_digit(16).ok_or(Bad::Syntax)?))
}

/// A whole number's value, if it fits 64 bits.
#[inline]
pub(super) fn parse_int(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.first() {
        Some(b'-') => (true, &text[1..]),
        _ => (false, text),
    };
    if digits.len() > 18 {
        return std::str::from_utf8(text).ok()?.parse().ok();
    }
    let value = digits.iter().fold(0i64, |v, d| v * 10 + i64::from(d - b'0'));
    Some(if negative { -value } else { value })
}

const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];

/// A number's value. Up to 2^53 and 22 decimals the quotient of two exact doubles is the nearest double (Clinger).
#[inline]
pub(super) fn parse_float(text: &[u8]) -> Option<f64> {
    let (negative, digits) = match text.first() {
        Some(b'-') => (true, &text[1..]),
        _ => (false, text),
    };
    let mut mantissa = 0u64;
    let mut decimals = 0;
    let mut point = false;
    if digits.len() <= 18 {
        let plain = digits.iter().all(|d| {
            if d.is_ascii_digit() {
                mantissa = mantissa * 10 + u64::from(d - b'0');
                decimals += usize::from(point);
                return true;
            }
            let first = *d == b'.' && !point;
            point = true;
            first
        });
        if plain && mantissa < 1 << 53 {
            let value = mantissa as f64 / POWERS[decimals];
            return Some(if negative { -value } else { value });
        }
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn floats_are_the_nearest_doubles(v in any::<f64>().prop_filter("finite", |v| v.is_finite()), short in -1e6..1e6f64) {
            for text in [v.to_string(), format!("{short:.6}"), format!("{v:e}")] {
                prop_assert_eq!(parse_float(text.as_bytes()), text.parse().ok(), "{}", text);
            }
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(text in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Scanner::new(&text).skip();
            let _ = unescape(&text, &mut Vec::new());
        }
    }

    #[test]
    fn strings_with_escapes() {
        let mut out = Vec::new();
        unescape(br#"a\u00e9\n\"\ud83d\ude00"#, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "aé\n\"😀");
    }
}
