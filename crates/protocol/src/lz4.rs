//! LZ4 frames as Kafka's clients write them, put together from blocks: a frame of this one kind needs none of the buffers and
//! checksums that frames of all kinds do.
//!
//! ```text
//! frame: magic 04 22 4d 18, FLG 60 (version 1, independent blocks), BD 40 (64 KiB), checksum of the two 82,
//!        blocks { size: u32 little-endian, top bit set when stored as it is; bytes }, end: u32 0
//! ```
//! Source: LZ4 Frame Format 1.6.

use std::io::{self, Read};

use lz4::block::{CompressionMode, compress_bound, compress_to_buffer, decompress_to_buffer};

/// Magic and descriptor of the frames that Kafka writes, whose reader accepts independent blocks only.
const FRAME_START: [u8; 7] = [0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82];
const BLOCK_BYTES: usize = 64 << 10;
/// A byte of a block stands for no more.
const MOST_RATIO: usize = 255;
const STORED: u32 = 1 << 31;
const FLG_INDEPENDENT: u8 = 1 << 5;
const FLG_BLOCK_CHECKSUMS: u8 = 1 << 4;
const FLG_CONTENT_SIZE: u8 = 1 << 3;
const FLG_DICTIONARY: u8 = 1;

/// Appends a frame. `level`: 1 to 17, how hard to look for matches; `None`: the fast way.
pub(crate) fn compress(input: &[u8], level: Option<i32>, out: &mut Vec<u8>) -> io::Result<()> {
    let mode = level.map(CompressionMode::HIGHCOMPRESSION);
    out.extend_from_slice(&FRAME_START);
    let mut packed = vec![0; compress_bound(BLOCK_BYTES.min(input.len()))?];
    for block in input.chunks(BLOCK_BYTES) {
        let len = compress_to_buffer(block, mode, false, &mut packed)?;
        let packed = packed.get(..len).filter(|packed| packed.len() < block.len());
        let (bytes, flag) = packed.map_or((block, STORED), |packed| (packed, 0));
        out.extend_from_slice(&(bytes.len() as u32 | flag).to_le_bytes());
        out.extend_from_slice(bytes);
    }
    out.extend_from_slice(&[0; 4]);
    Ok(())
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
            let len = decompress_to_buffer(block, Some(BLOCK_BYTES as i32), out.get_mut(at..)?).ok()?;
            out.truncate(at + len);
        }
        rest = tail;
    }
}

/// The sizes of a frame's blocks, with the flag; the last is 0. It ends where the frame does, or is cut.
struct Blocks<'i> {
    rest: &'i [u8],
    checksum_bytes: usize,
}

impl<'i> Blocks<'i> {
    fn of(input: &'i [u8], flags: u8) -> Blocks<'i> {
        // The magic number, FLG, BD, where FLG says so the content's size, and a checksum.
        let start = if flags & FLG_CONTENT_SIZE == 0 { 7 } else { 15 };
        let checksum_bytes = if flags & FLG_BLOCK_CHECKSUMS == 0 { 0 } else { 4 };
        Blocks { rest: input.get(start..).unwrap_or_default(), checksum_bytes }
    }
}

impl Iterator for Blocks<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let (head, blocks) = self.rest.split_first_chunk::<4>()?;
        let head = u32::from_le_bytes(*head);
        self.rest = match head {
            0 => &[],
            head => blocks.get((head & !STORED) as usize + self.checksum_bytes..).unwrap_or_default(),
        };
        Some(head)
    }
}

/// Why Kafka's own reader does not read a frame, though liblz4 may; damage beyond that is not looked for.
pub(crate) fn check_for_kafka(input: &[u8]) -> Result<(), &'static str> {
    let Some(&flags) = input.get(4) else { return Ok(()) };
    if flags & FLG_INDEPENDENT == 0 {
        return Err("blocks that depend on each other are not read by Kafka's consumers");
    }
    if flags & FLG_DICTIONARY != 0 {
        return Err("dictionaries are not known to Kafka's consumers");
    }
    if Blocks::of(input, flags).any(|head| head == STORED) {
        return Err("an empty block is the end for Kafka's consumers");
    }
    Ok(())
}

/// As much as the first frame can hold.
pub(crate) fn holds_at_most(input: &[u8]) -> usize {
    let (Some(&flags), Some(&descriptor)) = (input.get(4), input.get(5)) else { return 0 };
    // 4 to 7: 64 KiB to 4 MiB.
    let block_bytes = 1usize << (8 + 2 * (descriptor >> 4 & 7));
    let of_block = |head: u32| match (head & !STORED) as usize {
        len if head & STORED != 0 => len,
        len => len.saturating_mul(MOST_RATIO).min(block_bytes),
    };
    Blocks::of(input, flags).map(of_block).fold(0, usize::saturating_add)
}

/// Reads a frame of any kind, which has to be whole.
pub(crate) struct FrameReader<'i>(Option<lz4::Decoder<&'i [u8]>>);

impl FrameReader<'_> {
    pub fn new(input: &[u8]) -> io::Result<FrameReader<'_>> {
        lz4::Decoder::new(input).map(|decoder| FrameReader(Some(decoder)))
    }
}

impl Read for FrameReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(decoder) = &mut self.0 else { return Ok(0) };
        let read = decoder.read(buf)?;
        if read == 0 && !buf.is_empty() && self.0.take().is_some_and(|decoder| decoder.finish().1.is_err()) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends within a frame"));
        }
        Ok(read)
    }
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
            compress(&data, Some(level).filter(|&level| level != 9), &mut out).unwrap();
            prop_assert_eq!(&decompress(Codec::Lz4, &out, data.len()).unwrap(), &data);
            // It is a frame for others too, and none when it is cut anywhere.
            let read = |frame: &[u8]| {
                let mut data = Vec::new();
                FrameReader::new(frame)?.read_to_end(&mut data).map(|_| data)
            };
            prop_assert_eq!(read(&out).unwrap(), data);
            let cut = usize::from(noise[0]) * out.len() / 256;
            prop_assert!(read(&out[..cut]).is_err() && decompress(Codec::Lz4, &out[..cut], 1 << 20).is_err());
        }
    }

    /// With what that kind does not have: linked blocks of 4 MiB, the content's size and checksums.
    #[test]
    fn frames_of_other_kinds() {
        let data: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 1000 + n % 7) as u8).collect();
        let mut encoder = lz4::EncoderBuilder::new()
            .block_size(lz4::BlockSize::Max4MB)
            .block_mode(lz4::BlockMode::Linked)
            .checksum(lz4::ContentChecksum::ChecksumEnabled)
            .build(Vec::new())
            .unwrap();
        std::io::Write::write_all(&mut encoder, &data).unwrap();
        let (frame, done) = encoder.finish();
        done.unwrap();
        assert_eq!(decompress(Codec::Lz4, &frame, data.len()).unwrap(), data);
        assert!(check_for_kafka(&frame).unwrap_err().contains("depend"));
        for cut in [0, 3, 7, 20, frame.len() / 2, frame.len() - 4, frame.len() - 1] {
            assert!(decompress(Codec::Lz4, &frame[..cut], data.len()).is_err(), "cut at {cut}");
        }
        let mut damaged = frame;
        *damaged.last_mut().unwrap() ^= 1;
        assert!(decompress(Codec::Lz4, &damaged, data.len()).is_err());
    }

    #[test]
    fn what_kafka_reads() {
        let data: Vec<u8> = (0..200_000_u32).map(|n| (n / 1000 + n % 7) as u8).collect();
        let mut plain = Vec::new();
        compress(&data, None, &mut plain).unwrap();
        let mut encoder = lz4::EncoderBuilder::new()
            .block_mode(lz4::BlockMode::Independent)
            .content_size(data.len() as u64)
            .build(Vec::new())
            .unwrap();
        std::io::Write::write_all(&mut encoder, &data).unwrap();
        let checked = encoder.finish().0;
        assert!(checked[4] & FLG_BLOCK_CHECKSUMS != 0 && checked[4] & FLG_CONTENT_SIZE != 0);
        for frame in [&plain, &checked] {
            assert_eq!(decompress(Codec::Lz4, frame, data.len()).unwrap(), data);
            assert_eq!(check_for_kafka(frame), Ok(()));
            for cut in 0..40 {
                assert_eq!(check_for_kafka(&frame[..cut]), Ok(()), "what is cut is somebody else's to find");
            }
            let mut named = frame.clone();
            named[4] |= FLG_DICTIONARY;
            assert!(check_for_kafka(&named).unwrap_err().contains("dictionaries"));
            // Before the end of the frame, after all blocks.
            let at = frame.len() - if frame == &plain { 4 } else { 8 };
            let empty = [&frame[..at], &STORED.to_le_bytes(), &frame[at..]].concat();
            assert!(check_for_kafka(&empty).unwrap_err().contains("empty"));
        }
    }

    #[test]
    fn short_and_odd_sizes() {
        for len in (0..40).chain(BLOCK_BYTES - 3..BLOCK_BYTES + 20) {
            for byte in [0, 1] {
                let data: Vec<u8> = (0..len).map(|n| (n * byte) as u8).collect();
                let mut out = Vec::new();
                compress(&data, None, &mut out).unwrap();
                assert_eq!(decompress(Codec::Lz4, &out, len).unwrap(), data);
            }
        }
    }
}
