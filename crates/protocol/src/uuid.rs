//! Kafka's 128-bit ids and their text form: URL-safe base64 without padding, 22 characters.

use std::fmt;
use std::str::FromStr;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// A topic id, directory id, cluster id or incarnation id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// "No id" on the wire.
    pub const ZERO: Uuid = Uuid([0; 16]);
    /// The topic id of `__cluster_metadata`.
    pub const METADATA_TOPIC: Uuid = Uuid([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    /// A random (version 4) id that Kafka's tools accept on a command line: its text does not begin with a dash,
    /// and it is none of the reserved ids (those below 100).
    pub fn random() -> Uuid {
        loop {
            let mut bytes: [u8; 16] = rand::random();
            bytes[6] = bytes[6] & 0x0f | 0x40;
            bytes[8] = bytes[8] & 0x3f | 0x80;
            let id = Uuid(bytes);
            if !id.to_string().starts_with('-') {
                return id;
            }
        }
    }

    pub fn is_zero(&self) -> bool {
        *self == Uuid::ZERO
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        let value = u128::from_be_bytes(self.0);
        for i in 0..22u32 {
            // 22 digits of 6 bits are 132 bits: the last digit carries the low 2 bits, shifted up by 4.
            let digit = if i == 21 { (value << 4) & 63 } else { (value >> (122 - 6 * i)) & 63 };
            let c = ALPHABET.get(digit as usize).copied().unwrap_or(b'A');
            f.write_char(char::from(c))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is no Kafka id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a Kafka id: expected 22 characters of URL-safe base64, as `kafka-storage.sh random-uuid` prints")]
pub struct ParseUuidError(String);

impl FromStr for Uuid {
    type Err = ParseUuidError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseUuidError(text.to_owned());
        let digits = text.trim_end_matches('=').as_bytes();
        if digits.len() != 22 {
            return Err(bad());
        }
        let mut value: u128 = 0;
        for (i, c) in digits.iter().enumerate() {
            let digit = ALPHABET.iter().position(|a| a == c).ok_or_else(bad)? as u128;
            value = if i == 21 { value << 2 | digit >> 4 } else { value << 6 | digit };
        }
        Ok(Uuid(value.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_kafkas() {
        assert_eq!(Uuid::METADATA_TOPIC.to_string(), "AAAAAAAAAAAAAAAAAAAAAQ");
        assert_eq!(Uuid::ZERO.to_string(), "AAAAAAAAAAAAAAAAAAAAAA");
        for _ in 0..100 {
            let id = Uuid::random();
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        assert!("short".parse::<Uuid>().is_err());
    }
}
