//! The outline of Zstandard data: how much it can hold, without decompressing it.
//!
//! ```text
//! frame: magic 28 b5 2f fd, descriptor: u8 (bits 7-6 form of the size, 5 single segment, 2 checksum, 1-0 form of the dictionary id),
//!        window: u8 unless single segment, dictionary id: 0, 1, 2 or 4 bytes, size: 0, 1, 2, 4 or 8 bytes,
//!        blocks { head: u24 little-endian (bit 0 last, 2-1 kind, 23-3 size); bytes }, checksum: u32 if there is one
//! to be skipped: magic 5x 2a 4d 18, size: u32 little-endian, bytes
//! ```
//! Source: RFC 8878.

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// No block holds more.
const BLOCK_BYTES: usize = 128 << 10;
const RAW: u32 = 0;
/// One byte, repeated.
const RLE: u32 = 1;
const COMPRESSED: u32 = 2;

/// As much as all frames together can hold. What is cut or no such data counts up to there, as far as it can be read.
pub(crate) fn hold_at_most(input: &[u8]) -> usize {
    let (mut rest, mut most) = (input, 0usize);
    while let Some(tail) = frame(rest, &mut most) {
        rest = tail;
    }
    most
}

/// Adds what the first frame can hold; what follows it.
fn frame<'i>(input: &'i [u8], most: &mut usize) -> Option<&'i [u8]> {
    let (magic, rest) = input.split_first_chunk::<4>()?;
    if matches!(magic, [0x50..=0x5f, 0x2a, 0x4d, 0x18]) {
        let (size, rest) = rest.split_first_chunk::<4>()?;
        return rest.get(u32::from_le_bytes(*size) as usize..);
    }
    if *magic != MAGIC {
        return None;
    }
    let (&descriptor, rest) = rest.split_first()?;
    let is_single_segment = descriptor >> 5 & 1 == 1;
    let window_bytes = usize::from(!is_single_segment);
    let dictionary_bytes = [0, 1, 2, 4].get(usize::from(descriptor & 3))?;
    let size_bytes = [usize::from(is_single_segment), 2, 4, 8].get(usize::from(descriptor >> 6)).copied()?;
    let mut rest = rest.get(window_bytes + dictionary_bytes + size_bytes..)?;
    loop {
        let (head, bytes) = rest.split_first_chunk::<3>()?;
        let [low, middle, high] = *head;
        let head = u32::from_le_bytes([low, middle, high, 0]);
        let size = (head >> 3) as usize;
        let (holds, len) = match head >> 1 & 3 {
            RAW => (size, size),
            RLE => (size, 1),
            COMPRESSED => (BLOCK_BYTES, size),
            _ => return None,
        };
        *most = most.saturating_add(holds);
        rest = bytes.get(len..)?;
        if head & 1 == 1 {
            break;
        }
    }
    rest.get(if descriptor >> 2 & 1 == 1 { 4 } else { 0 }..)
}
