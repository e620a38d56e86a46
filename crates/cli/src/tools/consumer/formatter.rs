//! The console consumer's formatters: how a record is shown, by the properties of `--formatter-property`.

use std::collections::BTreeMap;
use std::io::Write as _;

use super::coordinator;
use super::deserializer::Deserializer;
use crate::tools::tell;

/// A record to show.
#[derive(Debug, Clone, Default)]
pub struct Shown<'a> {
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: i64,
    pub is_append_time: bool,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: Vec<(&'a [u8], Option<&'a [u8]>)>,
}

/// How records are shown.
#[derive(Debug)]
pub enum Formatter {
    Default(Box<DefaultFormatter>),
    /// Committed offsets, read from `__consumer_offsets`.
    Offsets,
    /// Groups and their members, read from `__consumer_offsets`.
    Groups,
    /// Transactional ids and their transactions, read from `__transaction_state`.
    Transactions,
    /// Nothing.
    NoOp,
}

impl Formatter {
    /// The formatter of a Java class, by its name of today or of older releases.
    pub fn by_class(class: &str, properties: &BTreeMap<String, String>) -> Result<Formatter, String> {
        let simple = class.rsplit(['.', '$']).next().unwrap_or(class);
        match simple {
            // The logging formatter shows the same, and logs it at a level that the tools do not print.
            "DefaultMessageFormatter" | "LoggingMessageFormatter" => {
                Ok(Formatter::Default(Box::new(DefaultFormatter::new(properties))))
            }
            "NoOpMessageFormatter" => Ok(Formatter::NoOp),
            "OffsetsMessageFormatter" => Ok(Formatter::Offsets),
            "GroupMetadataMessageFormatter" => Ok(Formatter::Groups),
            "TransactionLogMessageFormatter" => Ok(Formatter::Transactions),
            _ => Err(format!(
                "{class} is not a formatter that is known here; use DefaultMessageFormatter, LoggingMessageFormatter, \
                 NoOpMessageFormatter, OffsetsMessageFormatter, GroupMetadataMessageFormatter or \
                 TransactionLogMessageFormatter of org.apache.kafka.tools.consumer"
            )),
        }
    }

    /// Appends what is shown of a record.
    pub fn write(&self, record: &Shown, out: &mut Vec<u8>) -> Result<(), String> {
        match self {
            Formatter::Default(formatter) => formatter.write(record, out),
            Formatter::Offsets => coordinator::write_offset(record, out),
            Formatter::Groups => coordinator::write_group(record, out),
            Formatter::Transactions => coordinator::write_transaction(record, out),
            Formatter::NoOp => Ok(()),
        }
    }
}

/// `DefaultMessageFormatter`: the fields that are asked for, separated, a record per line.
#[derive(Debug)]
pub struct DefaultFormatter {
    timestamp: bool,
    partition: bool,
    offset: bool,
    delivery: bool,
    epoch: bool,
    headers: bool,
    key: bool,
    value: bool,
    key_separator: Vec<u8>,
    line_separator: Vec<u8>,
    headers_separator: Vec<u8>,
    null_literal: Vec<u8>,
    key_deserializer: Option<Deserializer>,
    value_deserializer: Option<Deserializer>,
    headers_deserializer: Option<Deserializer>,
}

impl DefaultFormatter {
    fn new(properties: &BTreeMap<String, String>) -> DefaultFormatter {
        let is_on =
            |name: &str, default: bool| properties.get(name).map_or(default, |v| v.trim().eq_ignore_ascii_case("true"));
        let text = |name: &str, default: &str| properties.get(name).map_or(default, String::as_str).as_bytes().to_vec();
        let deserializer = |name: &str| {
            let class = properties.get(name)?;
            let found = Deserializer::by_class(class);
            if found.is_none() {
                tell!(
                    "ERROR Unable to instantiate a deserializer from {class}: it is not known here; showing the bytes"
                );
            }
            found
        };
        DefaultFormatter {
            timestamp: is_on("print.timestamp", false),
            partition: is_on("print.partition", false),
            offset: is_on("print.offset", false),
            delivery: is_on("print.delivery", false),
            epoch: is_on("print.epoch", false),
            headers: is_on("print.headers", false),
            key: is_on("print.key", false),
            value: is_on("print.value", true),
            key_separator: text("key.separator", "\t"),
            line_separator: text("line.separator", "\n"),
            headers_separator: text("headers.separator", ","),
            null_literal: text("null.literal", "null"),
            key_deserializer: deserializer("key.deserializer"),
            value_deserializer: deserializer("value.deserializer"),
            headers_deserializer: deserializer("headers.deserializer"),
        }
    }

    fn write(&self, record: &Shown, out: &mut Vec<u8>) -> Result<(), String> {
        let kind = if record.is_append_time { "LogAppendTime" } else { "CreateTime" };
        // Every field but the value is followed by a separator, the last one by the end of the line.
        let columns = [
            (self.timestamp, format!("{kind}:{}", record.timestamp_ms)),
            (self.partition, format!("Partition:{}", record.partition)),
            (self.offset, format!("Offset:{}", record.offset)),
            (self.delivery, "Delivery:NOT_PRESENT".to_owned()),
            // The original does not hand the epoch on to its formatters.
            (self.epoch, "Epoch:NOT_PRESENT".to_owned()),
        ];
        let mut left = columns.iter().filter(|(is_on, _)| *is_on).count();
        left += [self.headers, self.key, self.value].iter().filter(|is_on| **is_on).count();
        let mut end = |out: &mut Vec<u8>| {
            left = left.saturating_sub(1);
            out.extend_from_slice(if left > 0 { &self.key_separator } else { &self.line_separator });
        };
        for (_, text) in columns.iter().filter(|(is_on, _)| *is_on) {
            out.extend_from_slice(text.as_bytes());
            end(out);
        }
        if self.headers {
            self.write_headers(record, out)?;
            end(out);
        }
        if self.key {
            self.write_field(record.key, self.key_deserializer.as_ref(), out)?;
            end(out);
        }
        if self.value {
            self.write_field(record.value, self.value_deserializer.as_ref(), out)?;
            end(out);
        }
        Ok(())
    }

    fn write_headers(&self, record: &Shown, out: &mut Vec<u8>) -> Result<(), String> {
        if record.headers.is_empty() {
            out.extend_from_slice(b"NO_HEADERS");
        }
        for (i, (name, value)) in record.headers.iter().enumerate() {
            if i > 0 {
                out.extend_from_slice(&self.headers_separator);
            }
            let _ = write!(out, "{}:", String::from_utf8_lossy(name));
            self.write_field(*value, self.headers_deserializer.as_ref(), out)?;
        }
        Ok(())
    }

    fn write_field(
        &self,
        bytes: Option<&[u8]>,
        deserializer: Option<&Deserializer>,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        match (bytes, deserializer) {
            (None, _) => out.extend_from_slice(&self.null_literal),
            (Some(bytes), None) => out.extend_from_slice(bytes),
            (Some(bytes), Some(deserializer)) => deserializer.write(bytes, out)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(properties: &[(&str, &str)], record: &Shown) -> String {
        let properties = properties.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let formatter = Formatter::by_class("kafka.tools.DefaultMessageFormatter", &properties).unwrap();
        let mut out = Vec::new();
        formatter.write(record, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn fields_and_separators() {
        let record = Shown {
            partition: 1,
            offset: 7,
            timestamp_ms: 1700,
            key: Some(b"k"),
            value: None,
            headers: vec![(b"h", Some(b"v")), (b"h", None)],
            ..Shown::default()
        };
        let on = "true";
        assert_eq!(shown(&[], &record), "null\n");
        assert_eq!(shown(&[("print.key", on), ("null.literal", "NIL")], &record), "k\tNIL\n");
        assert_eq!(shown(&[("print.key", on), ("print.value", "false")], &record), "k\n");
        let all = ["timestamp", "partition", "offset", "epoch", "headers", "key"].map(|n| format!("print.{n}"));
        let mut properties: Vec<(&str, &str)> = all.iter().map(|n| (n.as_str(), on)).collect();
        properties.extend([("key.separator", "|"), ("headers.separator", ";"), ("line.separator", "$")]);
        assert_eq!(
            shown(&properties, &record),
            "CreateTime:1700|Partition:1|Offset:7|Epoch:NOT_PRESENT|h:v;h:null|k|null$"
        );
        let plain = Shown { value: Some(b"v"), is_append_time: true, ..Shown::default() };
        assert_eq!(
            shown(&[("print.headers", on), ("print.timestamp", on)], &plain),
            "LogAppendTime:0\tNO_HEADERS\tv\n"
        );
        assert_eq!(shown(&[("print.value", "false")], &plain), "");
    }

    #[test]
    fn class_names_of_all_ages() {
        let none = BTreeMap::new();
        for class in [
            "kafka.tools.DefaultMessageFormatter",
            "org.apache.kafka.tools.consumer.DefaultMessageFormatter",
            "kafka.tools.LoggingMessageFormatter",
            "kafka.tools.NoOpMessageFormatter",
            "kafka.coordinator.group.GroupMetadataManager$OffsetsMessageFormatter",
            "org.apache.kafka.tools.consumer.GroupMetadataMessageFormatter",
        ] {
            assert!(Formatter::by_class(class, &none).is_ok(), "{class}");
        }
        let error = Formatter::by_class("com.example.Mine", &none).unwrap_err();
        assert!(error.starts_with("com.example.Mine is not a formatter"), "{error}");
    }
}
