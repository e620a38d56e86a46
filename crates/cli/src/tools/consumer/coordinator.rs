//! Formatters of `__consumer_offsets` and `__transaction_state`: their records as JSON, one object per line (the original
//! writes no line ends).

use bytes::Bytes;
use caudal_protocol::schema::{self, GROUP, Schema, TRANSACTION, Value};
use caudal_protocol::wire::{DecodeError, Reader};

use super::formatter::Shown;
use crate::tools::dump_log::json;

/// Shows a committed offset; other records are passed over.
pub fn write_offset(record: &Shown, out: &mut Vec<u8>) -> Result<(), String> {
    write(record, out, GROUP, &[0, 1])
}

/// Shows a group; other records are passed over.
pub fn write_group(record: &Shown, out: &mut Vec<u8>) -> Result<(), String> {
    write(record, out, GROUP, &[2])
}

/// Shows a transactional id and its transaction.
pub fn write_transaction(record: &Shown, out: &mut Vec<u8>) -> Result<(), String> {
    write(record, out, TRANSACTION, &[0])
}

/// Both key and value begin with a number of two bytes: the kind of record, and the value's version.
fn write(record: &Shown, out: &mut Vec<u8>, table: &'static [Schema], kinds: &[i16]) -> Result<(), String> {
    let Some(bytes) = record.key else { return Ok(()) };
    let decoded = || -> Result<Option<String>, DecodeError> {
        let mut reader = Reader::new(Bytes::copy_from_slice(bytes));
        let kind = reader.i16()?;
        let schemas = (schema::find(table, kind, "Key"), schema::find(table, kind, "Value"));
        let (true, (Some(key), Some(value))) = (kinds.contains(&kind), schemas) else { return Ok(None) };
        let key = json::text(&Value::Struct(key.read(&mut reader, 0)?));
        let value = match record.value {
            None => "null".to_owned(),
            Some(bytes) => {
                let mut reader = Reader::new(Bytes::copy_from_slice(bytes));
                let version = reader.i16()?;
                let data = json::text(&Value::Struct(value.read(&mut reader, version)?));
                json::object(&[("version", version.to_string()), ("data", data)])
            }
        };
        let key = json::object(&[("type", kind.to_string()), ("data", key)]);
        Ok(Some(json::object(&[("key", key), ("value", value)])))
    };
    let shown = decoded().map_err(|e| format!("Could not read record at offset {} due to: {e}", record.offset))?;
    if let Some(shown) = shown {
        out.extend_from_slice(shown.as_bytes());
        out.push(b'\n');
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_committed_offset() {
        // Key: type 1, "g1", "t2", 1. Value: version 3, offset 5, epoch -1, "", time 9.
        let key = [0, 1, 0, 2, b'g', b'1', 0, 2, b't', b'2', 0, 0, 0, 1];
        let mut value = vec![0, 3];
        value.extend(5i64.to_be_bytes());
        value.extend((-1i32).to_be_bytes());
        value.extend([0, 0]);
        value.extend(9i64.to_be_bytes());
        let record = Shown { key: Some(&key), value: Some(&value), ..Shown::default() };
        let mut out = Vec::new();
        write_offset(&record, &mut out).unwrap();
        let expected = r#"{"key":{"type":1,"data":{"group":"g1","topic":"t2","partition":1}},"value":{"version":3,"data":{"offset":5,"leaderEpoch":-1,"metadata":"","commitTimestamp":9}}}"#;
        assert_eq!(String::from_utf8(out).unwrap(), format!("{expected}\n"));
        let mut out = Vec::new();
        write_group(&record, &mut out).unwrap();
        assert!(out.is_empty());
        let tombstone = Shown { key: Some(&key), value: None, ..Shown::default() };
        write_offset(&tombstone, &mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().ends_with("\"value\":null}\n"));
    }

    /// The fields and their order are those of Kafka 4.3.1's `TransactionLogMessageFormatter`.
    #[test]
    fn a_transaction() {
        let key = [0, 0, 0, 1, b'x'];
        let mut value = vec![0, 0];
        value.extend(4000i64.to_be_bytes());
        value.extend(7i16.to_be_bytes());
        value.extend(60_000i32.to_be_bytes());
        value.extend([1, 0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1, 0, 0, 0, 2]);
        value.extend(5i64.to_be_bytes());
        value.extend(4i64.to_be_bytes());
        let mut out = Vec::new();
        write_transaction(&Shown { key: Some(&key), value: Some(&value), ..Shown::default() }, &mut out).unwrap();
        let expected = r#"{"key":{"type":0,"data":{"transactionalId":"x"}},"value":{"version":0,"data":{"producerId":4000,"producerEpoch":7,"transactionTimeoutMs":60000,"transactionStatus":1,"transactionPartitions":[{"topic":"t","partitionIds":[2]}],"transactionLastUpdateTimestampMs":5,"transactionStartTimestampMs":4}}}"#;
        assert_eq!(String::from_utf8(out).unwrap(), format!("{expected}\n"));
    }
}
