//! What `lz4_flex` leaves to be wished: a search for long matches, for `compression.lz4.level`, and the frames that
//! producers write read without the buffers that frames of all kinds need.
//!
//! ```text
//! frame: magic 04 22 4d 18, FLG 60 (version 1, independent blocks), BD 40 (64 KiB), checksum of the two 82,
//!        blocks { size: u32 little-endian, top bit set when stored as it is; bytes }, end: u32 0
//! block: { token: literals << 4 | match - 4, more of the literals' length, literals, distance: u16 little-endian, more
//!        of the match's length }*, of the last one only the literals
//! ```
//! Source: LZ4 Frame Format 1.6 and LZ4 Block Format.

/// Magic and descriptor of the frames that Kafka writes.
const FRAME_START: [u8; 7] = [0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82];
const BLOCK_BYTES: usize = 64 << 10;
const STORED: u32 = 1 << 31;
const MIN_MATCH: usize = 4;
/// The last match begins at least so far from the end of its block, and ends at least [`LAST_LITERALS`] from it.
const LAST_MATCH: usize = 12;
const LAST_LITERALS: usize = 5;
const HASH_BITS: u32 = 15;
const NOWHERE: u32 = u32::MAX;
/// A match of this length is not worth looking for a longer one.
const GOOD_MATCH: usize = 1 << 10;

/// Appends a frame. `level` doubles how many earlier places are tried for a match.
pub(crate) fn compress(input: &[u8], level: i32, out: &mut Vec<u8>) {
    let tries = 1_u32 << level.clamp(1, 12);
    out.extend_from_slice(&FRAME_START);
    let mut packed = Vec::with_capacity(BLOCK_BYTES);
    for block in input.chunks(BLOCK_BYTES) {
        packed.clear();
        compress_block(block, tries, &mut packed);
        let (bytes, flag) = if packed.len() < block.len() { (packed.as_slice(), 0) } else { (block, STORED) };
        out.extend_from_slice(&(bytes.len() as u32 | flag).to_le_bytes());
        out.extend_from_slice(bytes);
    }
    out.extend_from_slice(&[0; 4]);
}

/// Appends what a frame as [`compress`] writes it holds; `None`: it is of another kind, damaged, or too large, and `out` holds
/// nothing of use.
pub(crate) fn decompress_plain(input: &[u8], limit_bytes: usize, out: &mut Vec<u8>) -> Option<()> {
    let start = out.len();
    let mut rest = input.strip_prefix(&FRAME_START)?;
    loop {
        let (head, tail) = rest.split_first_chunk::<4>()?;
        let head = u32::from_le_bytes(*head);
        if head == 0 {
            return (tail.is_empty() && out.len() - start <= limit_bytes).then_some(());
        }
        let (block, tail) = tail.split_at_checked((head & !STORED) as usize)?;
        let at = out.len();
        if at - start > limit_bytes || block.len() > BLOCK_BYTES {
            return None;
        }
        if head & STORED != 0 {
            out.extend_from_slice(block);
        } else {
            out.resize(at + BLOCK_BYTES, 0);
            let len = lz4_flex::block::decompress_into(block, out.get_mut(at..)?).ok()?;
            out.truncate(at + len);
        }
        rest = tail;
    }
}

#[derive(Clone, Copy, Default)]
struct Match {
    at: usize,
    len: usize,
}

/// Places of the same four bytes, the newest first.
struct Chains<'a> {
    block: &'a [u8],
    newest: Vec<u32>,
    older: Vec<u32>,
    tries: u32,
}

impl Chains<'_> {
    fn slot(&self, at: usize) -> Option<usize> {
        let word = u32::from_le_bytes(*self.block.get(at..)?.first_chunk()?);
        Some((word.wrapping_mul(2_654_435_761) >> (32 - HASH_BITS)) as usize)
    }

    fn note(&mut self, at: usize) {
        let Some(slot) = self.slot(at) else { return };
        if let (Some(newest), Some(older)) = (self.newest.get_mut(slot), self.older.get_mut(at)) {
            *older = std::mem::replace(newest, at as u32);
        }
    }

    /// The longest match for what begins at `at`, which was not noted yet.
    fn longest(&self, at: usize) -> Match {
        let mut best = Match::default();
        let end = self.block.len().saturating_sub(LAST_LITERALS);
        let wanted = self.block.get(at..end).unwrap_or_default();
        let mut from = self.slot(at).and_then(|slot| self.newest.get(slot)).copied().unwrap_or(NOWHERE);
        for _ in 0..self.tries {
            let Some(earlier) = self.block.get(from as usize..).filter(|_| best.len < GOOD_MATCH) else { break };
            // What is not longer than the best differs at its end already.
            if best.len == 0 || earlier.get(best.len) == wanted.get(best.len) {
                let len = wanted.iter().zip(earlier).take_while(|(a, b)| a == b).count();
                if len > best.len {
                    best = Match { at: from as usize, len };
                }
            }
            from = self.older.get(from as usize).copied().unwrap_or(NOWHERE);
        }
        if best.len < MIN_MATCH { Match::default() } else { best }
    }
}

fn compress_block(block: &[u8], tries: u32, out: &mut Vec<u8>) {
    let (newest, older) = (vec![NOWHERE; 1 << HASH_BITS], vec![NOWHERE; block.len()]);
    let mut chains = Chains { block, newest, older, tries };
    let (mut at, mut literals_at) = (0, 0);
    while at + LAST_MATCH <= block.len() {
        let mut found = chains.longest(at);
        chains.note(at);
        if found.len == 0 {
            at += 1;
            continue;
        }
        // One literal more is worth a longer match.
        while at + 1 + LAST_MATCH <= block.len() {
            let next = chains.longest(at + 1);
            if next.len <= found.len {
                break;
            }
            at += 1;
            chains.note(at);
            found = next;
        }
        let literals = block.get(literals_at..at).unwrap_or_default();
        put_sequence(literals, Some(((at - found.at) as u16, found.len)), out);
        (at + 1..at + found.len).for_each(|passed| chains.note(passed));
        at += found.len;
        literals_at = at;
    }
    put_sequence(block.get(literals_at..).unwrap_or_default(), None, out);
}

fn put_sequence(literals: &[u8], repeated: Option<(u16, usize)>, out: &mut Vec<u8>) {
    let match_len = repeated.map_or(0, |(_, len)| len - MIN_MATCH);
    out.push((literals.len().min(15) << 4 | match_len.min(15)) as u8);
    put_length(literals.len(), out);
    out.extend_from_slice(literals);
    if let Some((distance, _)) = repeated {
        out.extend_from_slice(&distance.to_le_bytes());
        put_length(match_len, out);
    }
}

/// What of a length does not fit the token.
fn put_length(len: usize, out: &mut Vec<u8>) {
    let Some(mut left) = len.checked_sub(15) else { return };
    while left >= 255 {
        out.push(255);
        left -= 255;
    }
    out.push(left as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::{Codec, decompress};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
        #[test]
        fn frames_hold_what_was_put_in(
            parts in proptest::collection::vec((0u8..4, 1usize..3000), 0..60), level in 1i32..=17, noise: [u8; 32],
        ) {
            let mut data = Vec::new();
            for (kind, len) in parts {
                match kind {
                    0 => data.extend(std::iter::repeat_n(7, len)),
                    1 => data.extend(noise.iter().cycle().take(len)),
                    _ => data.extend((0..len).map(|n| (n * len) as u8)),
                }
            }
            let mut out = Vec::new();
            compress(&data, level, &mut out);
            prop_assert_eq!(&decompress(Codec::Lz4, &out, data.len()).unwrap(), &data);
            // All readers read it.
            let mut other = Vec::new();
            std::io::Read::read_to_end(&mut lz4_flex::frame::FrameDecoder::new(out.as_slice()), &mut other).unwrap();
            prop_assert_eq!(other, data);
        }
    }

    #[test]
    fn short_and_odd_sizes() {
        for len in (0..40).chain(BLOCK_BYTES - 3..BLOCK_BYTES + 20) {
            for byte in [0, 1] {
                let data: Vec<u8> = (0..len).map(|n| (n * byte) as u8).collect();
                let mut out = Vec::new();
                compress(&data, 9, &mut out);
                assert_eq!(decompress(Codec::Lz4, &out, len).unwrap(), data);
            }
        }
    }
}
