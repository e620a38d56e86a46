//! Java's standard deserializers by class name, as far as a console shows what they make of bytes.

use std::io::Write as _;

use crate::tools::java;

/// What bytes are read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deserializer {
    /// Shown as they are.
    Bytes,
    Utf8,
    /// Printable characters as they are, all others as `\xNN` (Kafka's `Bytes`).
    Escaped,
    Boolean,
    Short,
    Integer,
    Long,
    Float,
    Double,
    /// The text form of a UUID.
    Uuid,
    Void,
}

impl Deserializer {
    /// The deserializer of a class of `org.apache.kafka.common.serialization`; the package may be left out.
    pub fn by_class(class: &str) -> Option<Deserializer> {
        let simple = class.strip_prefix("org.apache.kafka.common.serialization.").unwrap_or(class);
        Some(match simple.strip_suffix("Deserializer")? {
            "ByteArray" | "ByteBuffer" => Deserializer::Bytes,
            "String" => Deserializer::Utf8,
            "Bytes" => Deserializer::Escaped,
            "Boolean" => Deserializer::Boolean,
            "Short" => Deserializer::Short,
            "Integer" => Deserializer::Integer,
            "Long" => Deserializer::Long,
            "Float" => Deserializer::Float,
            "Double" => Deserializer::Double,
            "UUID" => Deserializer::Uuid,
            "Void" => Deserializer::Void,
            _ => return None,
        })
    }

    /// Appends the text of the value; the error is the sentence of Java's `SerializationException`.
    pub fn write(self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let text = match self {
            Deserializer::Bytes | Deserializer::Utf8 => {
                out.extend_from_slice(bytes);
                return Ok(());
            }
            Deserializer::Escaped => {
                write_escaped(bytes, out);
                return Ok(());
            }
            Deserializer::Boolean => match number::<1>(bytes, "BooleanDeserializer")? {
                [0] => "false".to_owned(),
                [1] => "true".to_owned(),
                [other] => return Err(format!("Unexpected byte received by BooleanDeserializer: {other}")),
            },
            Deserializer::Short => i16::from_be_bytes(number(bytes, "ShortDeserializer")?).to_string(),
            Deserializer::Integer => i32::from_be_bytes(number(bytes, "IntegerDeserializer")?).to_string(),
            Deserializer::Long => i64::from_be_bytes(number(bytes, "LongDeserializer")?).to_string(),
            Deserializer::Float => java::float(f32::from_be_bytes(number(bytes, "Deserializer")?)),
            Deserializer::Double => java::double(f64::from_be_bytes(number(bytes, "Deserializer")?)),
            Deserializer::Uuid => uuid(bytes)?,
            Deserializer::Void => return Err("Data should be null for a VoidDeserializer.".to_owned()),
        };
        out.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

fn number<const N: usize>(bytes: &[u8], name: &str) -> Result<[u8; N], String> {
    bytes.try_into().map_err(|_| format!("Size of data received by {name} is not {N}"))
}

fn uuid(bytes: &[u8]) -> Result<String, String> {
    let text = String::from_utf8_lossy(bytes);
    let groups: Vec<&str> = text.split('-').collect();
    let is_hex = |group: &&str| !group.is_empty() && group.chars().all(|c| c.is_ascii_hexdigit());
    if groups.len() == 5 && groups.iter().all(is_hex) {
        return Ok(text.to_lowercase());
    }
    Err("Error parsing data into UUID".to_owned())
}

fn write_escaped(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        match byte {
            b' '..=b'~' if *byte != b'\\' => out.push(*byte),
            _ => _ = write!(out, "\\x{byte:02X}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(class: &str, bytes: &[u8]) -> Result<String, String> {
        let mut out = Vec::new();
        Deserializer::by_class(class).unwrap().write(bytes, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn values() {
        let package = "org.apache.kafka.common.serialization.";
        let cases: &[(&str, &[u8], &str)] = &[
            ("LongDeserializer", &42i64.to_be_bytes(), "42"),
            ("IntegerDeserializer", &(-1i32).to_be_bytes(), "-1"),
            ("ShortDeserializer", &7i16.to_be_bytes(), "7"),
            ("DoubleDeserializer", &0.1f64.to_be_bytes(), "0.1"),
            ("FloatDeserializer", &0.1f32.to_be_bytes(), "0.1"),
            ("BooleanDeserializer", &[1], "true"),
            ("StringDeserializer", b"ab", "ab"),
            ("ByteArrayDeserializer", b"ab", "ab"),
            ("BytesDeserializer", b"a\x00\\", "a\\x00\\x5C"),
            ("UUIDDeserializer", b"123E4567-e89b-12d3-a456-426614174000", "123e4567-e89b-12d3-a456-426614174000"),
        ];
        for (class, bytes, text) in cases {
            assert_eq!(shown(&format!("{package}{class}"), bytes).as_deref(), Ok(*text), "{class}");
            assert_eq!(shown(class, bytes).as_deref(), Ok(*text), "{class}");
        }
        assert_eq!(
            shown("LongDeserializer", b"null").unwrap_err(),
            "Size of data received by LongDeserializer is not 8"
        );
        assert!(Deserializer::by_class("io.confluent.kafka.serializers.KafkaAvroDeserializer").is_none());
    }
}
