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
    use std::sync::Arc;

    use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
    use arrow::row::{RowConverter, SortField};

    use super::*;

    /// Changing these values would orphan the state of every existing checkpoint: the hash of a key's encoding decides
    /// in which partition its group lives.
    #[test]
    fn hash_is_fixed_for_ever() {
        let golden: [(&[u8], u64); 6] = [
            (b"", 13_730_537_811_256_138_321),
            (b"a", 4_559_384_733_140_619_897),
            (b"a\0", 11_581_263_786_543_898_815),
            (b"12345678", 1_643_536_238_911_196_835),
            (b"123456780", 7_035_830_747_040_835_444),
            (&[0xff; 24], 7_213_484_677_844_413_504),
        ];
        assert_eq!(golden.map(|(bytes, _)| (bytes, stable_hash(bytes))), golden);
    }

    /// As above, for the encoding itself, which is arrow-row's.
    #[test]
    fn encoded_keys_are_fixed_for_ever() {
        let names = StringArray::from(vec![
            Some("player-7"),
            Some(""),
            None,
            Some("a name of more than 32 bytes, in two blocks"),
        ]);
        let numbers = Int64Array::from(vec![Some(1), Some(-1), None, Some(i64::MAX)]);
        let floats = Float64Array::from(vec![Some(0.5), Some(-0.0), None, Some(f64::INFINITY)]);
        let times = TimestampMicrosecondArray::from(vec![Some(1_577_836_800_000_000), Some(-1), None, Some(0)]);
        let truths = BooleanArray::from(vec![Some(true), Some(false), None, Some(true)]);
        let columns: Vec<ArrayRef> =
            vec![Arc::new(names), Arc::new(numbers), Arc::new(floats), Arc::new(times), Arc::new(truths)];
        let golden: [[u64; 4]; 6] = [
            [
                702_318_266_854_824_192,
                9_740_607_811_037_517_663,
                13_219_327_274_146_447_212,
                15_985_898_180_405_291_490,
            ],
            [
                1_265_155_685_196_300_105,
                10_278_958_795_039_735_501,
                2_204_343_597_994_812_180,
                16_042_193_426_164_804_572,
            ],
            [
                11_864_785_317_991_391_408,
                10_278_958_795_039_735_501,
                2_204_343_597_994_812_180,
                6_454_046_865_378_227_558,
            ],
            [
                15_553_754_003_689_672_575,
                10_278_958_795_039_735_501,
                2_204_343_597_994_812_180,
                1_489_663_459_280_140_729,
            ],
            [
                5_791_950_746_220_170_861,
                14_275_807_222_205_694_433,
                7_431_943_304_015_872_254,
                5_791_950_746_220_170_861,
            ],
            [
                12_406_990_528_006_732_038,
                7_161_699_481_008_843_951,
                8_623_366_984_756_926_435,
                1_539_732_783_169_961_810,
            ],
        ];
        let hashes = |columns: &[ArrayRef]| -> Vec<u64> {
            let fields = columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
            let rows = RowConverter::new(fields).unwrap().convert_columns(columns).unwrap();
            rows.iter().map(|row| stable_hash(row.data())).collect()
        };
        let mut all: Vec<Vec<u64>> = columns.iter().map(|column| hashes(std::slice::from_ref(column))).collect();
        // And all of them as one key.
        all.push(hashes(&columns));
        assert_eq!(all, golden);
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
