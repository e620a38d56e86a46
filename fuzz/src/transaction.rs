//! Records of `__transaction_state`.
//!
//! Input: parts (two bytes of length, then as many): key and value by turns. An empty value is a tombstone.

use bytes::Bytes;
use caudal_broker::transaction::record::{decode, encode};

const NEWEST: i16 = 2;

pub fn run(mut data: &[u8]) {
    while let Some(key) = super::take_part(&mut data) {
        let value = super::take_part(&mut data).filter(|value| !value.is_empty());
        let value = value.map(Bytes::copy_from_slice);
        let Ok(Some((id, transaction))) = decode(Bytes::copy_from_slice(key), value) else { continue };
        for version in 0..=NEWEST {
            // The oldest form leaves out what it has no field for, the others nothing.
            let (key, value) = encode(&id, transaction.as_ref(), version).expect("what was read can be written");
            let again = decode(key, value).expect("what was written can be read").expect("it is of the same type");
            assert_eq!(again.0, id);
            if version > 0 {
                assert_eq!(format!("{:?}", again.1), format!("{transaction:?}"));
            }
        }
    }
}
