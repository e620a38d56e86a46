//! Keys and their newest offsets, in bounded memory: a hash of the key stands for it.

use std::hash::{BuildHasher, RandomState};

/// What an entry takes: 16 bytes of hash, 8 of offset, as in Kafka.
pub(super) const ENTRY_BYTES: usize = 24;

/// Hashes of keys and offsets, with linear probing. The hash has 128 bits under a secret of this process, so that two
/// keys meet neither by chance nor by intent. Nothing is ever removed.
#[derive(Debug)]
pub(super) struct OffsetMap {
    hashers: [RandomState; 2],
    /// The hash and the offset plus one; 0 there is an empty place. Zeroed memory costs nothing until it is used.
    places: Vec<[u64; 3]>,
    most: usize,
    len: usize,
}

impl OffsetMap {
    /// A map that takes up to `memory_bytes` and is filled to `load_factor` at most, but no larger than what
    /// `most_keys` keys need.
    pub fn new(memory_bytes: usize, load_factor: f64, most_keys: u64) -> OffsetMap {
        let load_factor = load_factor.clamp(0.1, 0.99);
        let affordable = (memory_bytes / ENTRY_BYTES).max(2);
        let needed = usize::try_from(most_keys).unwrap_or(usize::MAX);
        let most = ((affordable as f64 * load_factor) as usize).min(needed).max(1);
        let places = ((most as f64 / load_factor) as usize + 1).min(affordable).max(most + 1);
        OffsetMap { hashers: [RandomState::new(), RandomState::new()], places: vec![[0; 3]; places], most, len: 0 }
    }

    /// The share of the allowed keys that are in it.
    pub fn utilization(&self) -> f64 {
        self.len as f64 / self.most as f64
    }

    /// Notes the offset of a key, larger than all before. False when there is no room for another key.
    pub fn put(&mut self, key: &[u8], offset: i64) -> bool {
        let [a, b] = self.hash(key);
        let full = self.len >= self.most;
        let Some(place) = self.probe(a, b).and_then(|at| self.places.get_mut(at)) else { return false };
        let [.., stored] = *place;
        if stored == 0 && full {
            return false;
        }
        *place = [a, b, offset.cast_unsigned() + 1];
        self.len += usize::from(stored == 0);
        true
    }

    /// The newest offset of a key.
    pub fn get(&self, key: &[u8]) -> Option<i64> {
        let [a, b] = self.hash(key);
        match self.probe(a, b).and_then(|at| self.places.get(at)) {
            Some([.., 0]) | None => None,
            Some([.., stored]) => Some((stored - 1).cast_signed()),
        }
    }

    fn hash(&self, key: &[u8]) -> [u64; 2] {
        self.hashers.each_ref().map(|hasher| hasher.hash_one(key))
    }

    /// The place of a hash, or the empty one where it would go.
    fn probe(&self, a: u64, b: u64) -> Option<usize> {
        let len = self.places.len();
        let start = usize::try_from(a % len as u64).unwrap_or(0);
        let (head, tail) = self.places.split_at_checked(start)?;
        let fits = |place: &[u64; 3]| matches!(*place, [x, y, stored] if stored == 0 || (x, y) == (a, b));
        match tail.iter().position(fits) {
            Some(at) => Some(start + at),
            None => head.iter().position(fits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn keeps_the_newest_offset_of_each_key_until_it_is_full(
            keys in proptest::collection::vec(0u16..300, 1..600), entries in 2usize..400, load in 0.2f64..0.99,
        ) {
            let mut map = OffsetMap::new(entries * ENTRY_BYTES, load, u64::MAX);
            let most = ((entries as f64 * load) as usize).max(1);
            let mut model = HashMap::new();
            for (offset, key) in (0..).zip(&keys) {
                let fits = model.contains_key(key) || model.len() < most;
                prop_assert_eq!(map.put(&key.to_be_bytes(), offset), fits);
                if fits {
                    model.insert(key, offset);
                }
            }
            prop_assert!(map.places.len() <= entries);
            for key in 0u16..310 {
                prop_assert_eq!(map.get(&key.to_be_bytes()), model.get(&key).copied());
            }
        }
    }

    #[test]
    fn takes_no_more_memory_than_there_are_keys() {
        let map = OffsetMap::new(128 << 20, 0.9, 90);
        assert!(map.places.len() <= 101, "{}", map.places.len());
        assert_eq!(map.most, 90);
        assert_eq!(OffsetMap::new(0, 0.9, 0).most, 1);
    }
}
