//! Reading JSON tokens from bytes: blanks, strings, numbers, and skipping whole values.

#![expect(clippy::indexing_slicing, reason = "the hot loop of the decoder; every index is below a checked bound")]

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
        let mut at = start;
        let mut escaped = false;
        loop {
            // Eight bytes at a time up to the first that ends the string or means something.
            while let Some(word) = self.text.get(at..).and_then(<[u8]>::first_chunk::<8>) {
                let found = special_bytes(u64::from_le_bytes(*word), quote);
                if found != 0 {
                    at += (found.trailing_zeros() / 8) as usize;
                    break;
                }
                at += 8;
            }
            match self.text.get(at) {
                Some(byte) if *byte == quote => {
                    self.at = at + 1;
                    return Ok((&self.text[start..at], escaped));
                }
                Some(b'\\') => {
                    escaped = true;
                    // What follows is a control character at most once: the scan goes on behind it.
                    if self.text.get(at + 1).is_none_or(|byte| *byte < 0x20) {
                        return Err(Bad::Syntax);
                    }
                    at += 2;
                }
                Some(byte) if *byte < 0x20 => return Err(Bad::Syntax),
                Some(_) => at += 1,
                None => return Err(Bad::Syntax),
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

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// The high bit of each byte that is the quote, a backslash or a control character; bytes behind the first such one may
/// be marked wrongly.
#[inline]
const fn special_bytes(word: u64, quote: u8) -> u64 {
    let quotes = word ^ (ONES * quote as u64);
    let slashes = word ^ (ONES * b'\\' as u64);
    let is_quote = quotes.wrapping_sub(ONES) & !quotes;
    let is_slash = slashes.wrapping_sub(ONES) & !slashes;
    let is_control = word.wrapping_sub(ONES * 0x20) & !word;
    (is_quote | is_slash | is_control) & HIGHS
}

/// Whether `text` begins with `name`, without a call for the short names of fields.
#[inline]
pub(super) fn begins_with(text: &[u8], name: &[u8]) -> bool {
    let Some(text) = text.get(..name.len()) else { return false };
    let (head, tail) = text.as_chunks::<8>();
    let (name_head, name_tail) = name.as_chunks::<8>();
    head.iter().zip(name_head).all(|(a, b)| u64::from_le_bytes(*a) == u64::from_le_bytes(*b))
        && tail.iter().zip(name_tail).all(|(a, b)| a == b)
}

/// Appends a string of a record, `text[start..end]`. Most are shorter than sixteen bytes: those are stored whole and cut.
#[inline]
pub(super) fn append(out: &mut Vec<u8>, text: &[u8], start: usize, end: usize) {
    let len = end - start;
    match text.get(start..).and_then(<[u8]>::first_chunk::<16>) {
        Some(block) if len <= 16 => {
            let before = out.len();
            out.extend_from_slice(block);
            out.truncate(before + len);
        }
        _ => out.extend_from_slice(&text[start..end]),
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

/// A plain decimal at the start of `text` - sign, digits, a point and digits - with its length, when it is short enough
/// to be exact and nothing but a blank or the end of a value follows. Others go the long way.
#[inline]
pub(super) fn plain_float(text: &[u8]) -> Option<(f64, usize)> {
    let negative = text.first() == Some(&b'-');
    let start = usize::from(negative);
    let mut at = start;
    let mut mantissa = 0u64;
    while let Some(digit) = text.get(at).map(|b| b.wrapping_sub(b'0')).filter(|d| *d < 10) {
        mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit));
        at += 1;
    }
    let whole = at - start;
    let mut decimals = 0;
    if text.get(at) == Some(&b'.') {
        at += 1;
        let point = at;
        while let Some(digit) = text.get(at).map(|b| b.wrapping_sub(b'0')).filter(|d| *d < 10) {
            mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit));
            at += 1;
        }
        decimals = at - point;
        if decimals == 0 {
            return None;
        }
    }
    let leading_zero = whole > 1 && text.get(start) == Some(&b'0');
    let ended = matches!(text.get(at), None | Some(b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t'));
    // Eighteen digits cannot have wrapped around.
    if whole == 0 || leading_zero || !ended || whole + decimals > 18 || mantissa >= 1 << 53 {
        return None;
    }
    let value = mantissa as f64 / POWERS[decimals];
    Some((if negative { -value } else { value }, at))
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
        fn plain_floats_are_what_the_long_way_gives(v in "-?[0-9]{0,12}(\\.[0-9]{0,12})?(e1)?[,} x]?") {
            let text = v.as_bytes();
            if let Some((value, used)) = plain_float(text) {
                let mut scanner = Scanner::new(text);
                let number = scanner.number().unwrap();
                prop_assert_eq!((Some(value), used), (parse_float(number.text), number.text.len()), "{}", v);
            }
        }

        #[test]
        fn strings_end_where_a_bytewise_scan_says(
            text in proptest::collection::vec(prop_oneof![6 => 0x20u8..=255, 1 => Just(b'"'), 1 => Just(b'\\'), 1 => 0u8..0x20], 0..40)
        ) {
            let quoted = [b"\"", text.as_slice()].concat();
            let mut at = 1;
            let expected = loop {
                match quoted.get(at) {
                    None => break None,
                    Some(b'"') => break Some(at),
                    Some(b'\\') if quoted.get(at + 1).is_some_and(|b| *b >= 0x20) => at += 2,
                    Some(b'\\' | 0..0x20) => break None,
                    Some(_) => at += 1,
                }
            };
            let mut scanner = Scanner::new(&quoted);
            let found = scanner.raw_string().ok().map(|(raw, _)| raw.len() + 1);
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn names_and_appended_strings(text in proptest::collection::vec(any::<u8>(), 0..40), at in 0usize..40, len in 0usize..40) {
            let start = at.min(text.len());
            let end = (start + len).min(text.len());
            let mut out = b"before".to_vec();
            append(&mut out, &text, start, end);
            prop_assert_eq!(&out, &[b"before", &text[start..end]].concat());
            prop_assert!(begins_with(&text[start..], &text[start..end]));
            let mut other = text[start..end].to_vec();
            if let Some(last) = other.last_mut() {
                *last ^= 1;
                prop_assert!(!begins_with(&text[start..], &other));
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
