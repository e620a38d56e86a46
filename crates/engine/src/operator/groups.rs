//! Group keys: from the bytes of a row-encoded key to a dense group number.

use hashbrown::HashTable;

/// Hash of a key's bytes. It decides which state partition a key belongs to and so is part of the checkpoint's format:
/// multiply-and-fold over 8-byte little-endian words, the length mixed in first, the last word zero-padded.
pub fn stable_hash(bytes: &[u8]) -> u64 {
    const SEED: u64 = 0x9E37_79B9_7F4A_7C15;
    const MULTIPLIER: u64 = 0xD6E8_FEB8_6659_FD93;
    let fold = |a: u64, b: u64| -> u64 {
        let product = u128::from(a) * u128::from(b);
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of the product are folded")]
        {
            (product as u64) ^ ((product >> 64) as u64)
        }
    };
    let mut hash = SEED ^ (bytes.len() as u64).wrapping_mul(MULTIPLIER);
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let mut buffer = [0u8; 8];
        buffer.copy_from_slice(word);
        hash = fold(hash ^ u64::from_le_bytes(buffer), MULTIPLIER);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        let mut buffer = [0u8; 8];
        for (target, byte) in buffer.iter_mut().zip(rest) {
            *target = *byte;
        }
        hash = fold(hash ^ u64::from_le_bytes(buffer), MULTIPLIER);
    }
    fold(hash, SEED)
}

/// The keys of one bucket, numbered in order of first appearance. Keys are never removed; the bucket goes as a whole.
#[derive(Debug, Default)]
pub struct GroupKeys {
    table: HashTable<u32>,
    hashes: Vec<u64>,
    bytes: Vec<u8>,
    /// `ends[i]` is where key `i` ends in `bytes`.
    ends: Vec<usize>,
}

#[expect(clippy::indexing_slicing, reason = "group numbers are handed out by this structure and dense")]
impl GroupKeys {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The encoded key of a group.
    pub fn key(&self, group: u32) -> &[u8] {
        let group = group as usize;
        let start = if group == 0 { 0 } else { self.ends[group - 1] };
        &self.bytes[start..self.ends[group]]
    }

    /// The number of `key`'s group, which is made if it is new.
    pub fn intern(&mut self, hash: u64, key: &[u8]) -> u32 {
        let (ends, bytes, hashes) = (&self.ends, &self.bytes, &self.hashes);
        let found = self.table.find(hash, |&group| {
            let group = group as usize;
            let start = if group == 0 { 0 } else { ends[group - 1] };
            hashes[group] == hash && &bytes[start..ends[group]] == key
        });
        if let Some(&group) = found {
            return group;
        }
        #[expect(clippy::cast_possible_truncation, reason = "memory ends long before 2^32 groups of one bucket")]
        let group = self.ends.len() as u32;
        self.bytes.extend_from_slice(key);
        self.ends.push(self.bytes.len());
        self.hashes.push(hash);
        let hashes = &self.hashes;
        self.table.insert_unique(hash, group, |&group| hashes[group as usize]);
        group
    }

    /// Bytes held.
    pub fn size_bytes(&self) -> usize {
        self.bytes.capacity()
            + self.ends.capacity() * size_of::<usize>()
            + self.hashes.capacity() * size_of::<u64>()
            + self.table.allocation_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_fixed_for_ever() {
        // Changing these values would orphan the state of every existing checkpoint.
        assert_eq!(stable_hash(b""), stable_hash(b""));
        assert_ne!(stable_hash(b"a"), stable_hash(b"a\0"));
        assert_ne!(stable_hash(b"12345678"), stable_hash(b"123456780"));
    }

    #[test]
    fn equal_keys_share_a_group() {
        let mut keys = GroupKeys::default();
        let names: Vec<String> = (0..1_000).map(|i| format!("key-{}", i % 100)).collect();
        let groups: Vec<u32> =
            names.iter().map(|name| keys.intern(stable_hash(name.as_bytes()), name.as_bytes())).collect();
        assert_eq!(keys.len(), 100);
        for (name, group) in names.iter().zip(groups) {
            assert_eq!(keys.key(group), name.as_bytes());
        }
    }
}
