//! The codecs of record batches, in the framings that Kafka uses for magic 2: gzip (RFC 1952), snappy in xerial's
//! framing (raw snappy is accepted when reading, as librdkafka and Kafka do), lz4 frames, zstd frames.
//!
//! Decompressed sizes come from whoever produced the batch, so every decoder here is bounded by a limit of the caller.

use std::cell::RefCell;
use std::io::{Read, Write};

use zstd::zstd_safe;

thread_local! {
    /// Making one costs more than decompressing a small batch.
    static ZSTD: RefCell<zstd_safe::DCtx<'static>> = RefCell::new(zstd_safe::DCtx::create());
}
/// A decoder that has become larger is not kept.
const ZSTD_KEPT: usize = 4 << 20;

/// The codec in bits 0..=2 of a batch's attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Codec {
    #[default]
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

/// Why bytes could not be compressed or decompressed.
#[derive(Debug, thiserror::Error)]
pub enum CompressionError {
    #[error("failed to decompress {codec} data: it expands beyond the limit of {limit_bytes} bytes")]
    LimitExceeded { codec: &'static str, limit_bytes: usize },
    #[error("failed to decompress {codec} data: {reason}")]
    Corrupt { codec: &'static str, reason: String },
    #[error("failed to compress with {codec}: {reason}")]
    Compress { codec: &'static str, reason: String },
}

impl Codec {
    pub const ALL: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

    /// The codec with this id in the attributes; `None` for ids that Kafka does not define.
    pub fn from_id(id: i16) -> Option<Codec> {
        match id {
            0 => Some(Codec::None),
            1 => Some(Codec::Gzip),
            2 => Some(Codec::Snappy),
            3 => Some(Codec::Lz4),
            4 => Some(Codec::Zstd),
            _ => None,
        }
    }

    pub fn id(self) -> i16 {
        match self {
            Codec::None => 0,
            Codec::Gzip => 1,
            Codec::Snappy => 2,
            Codec::Lz4 => 3,
            Codec::Zstd => 4,
        }
    }

    /// The name used by `compression.type`.
    pub fn name(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Gzip => "gzip",
            Codec::Snappy => "snappy",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }

    /// The codec of a `compression.type` value; `None` for anything else (`producer` and `uncompressed` included,
    /// which are instructions to a broker and no codecs).
    pub fn from_name(name: &str) -> Option<Codec> {
        Codec::ALL.into_iter().find(|codec| codec.name() == name)
    }
}

impl std::fmt::Display for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Appends `input`, compressed, to `out`. Levels are the codecs' defaults, as in Kafka's Java client.
pub fn compress(codec: Codec, input: &[u8], out: &mut Vec<u8>) -> Result<(), CompressionError> {
    compress_at(codec, None, input, out)
}

/// As [`compress`], at a level of the codec's own scale: gzip 1 to 9, lz4 1 to 17, zstd -131072 to 22. `None`: its default.
///
/// # Errors
/// The codec fails.
pub fn compress_at(codec: Codec, level: Option<i32>, input: &[u8], out: &mut Vec<u8>) -> Result<(), CompressionError> {
    let failed =
        |reason: &dyn std::fmt::Display| CompressionError::Compress { codec: codec.name(), reason: reason.to_string() };
    match codec {
        Codec::None => out.extend_from_slice(input),
        Codec::Gzip => {
            let level = level.and_then(|level| u32::try_from(level).ok());
            let level = level.map_or_else(flate2::Compression::default, flate2::Compression::new);
            let mut encoder = flate2::write::GzEncoder::new(out, level);
            encoder.write_all(input).and_then(|()| encoder.finish()).map_err(|e| failed(&e))?;
        }
        Codec::Snappy => compress_xerial(input, out).map_err(|e| failed(&e))?,
        Codec::Lz4 => crate::lz4::compress(input, level, out).map_err(|e| failed(&e))?,
        Codec::Zstd => {
            // The size is told beforehand: tables and window are then no larger than it, at any level.
            let compressed = zstd::bulk::compress(input, level.unwrap_or(0)).map_err(|e| failed(&e))?;
            out.extend_from_slice(&compressed);
        }
    }
    Ok(())
}

/// Decompresses `input`, which may yield at most `limit_bytes` bytes.
pub fn decompress(codec: Codec, input: &[u8], limit_bytes: usize) -> Result<Vec<u8>, CompressionError> {
    let mut out = Vec::new();
    decompress_into(codec, input, limit_bytes, &mut out)?;
    Ok(out)
}

/// As [`decompress`], appending to a buffer of the caller. On an error the buffer holds what was decoded before it.
pub fn decompress_into(
    codec: Codec,
    input: &[u8],
    limit_bytes: usize,
    out: &mut Vec<u8>,
) -> Result<(), CompressionError> {
    match codec {
        Codec::None => {
            if input.len() > limit_bytes {
                return Err(CompressionError::LimitExceeded { codec: codec.name(), limit_bytes });
            }
            out.extend_from_slice(input);
            Ok(())
        }
        Codec::Gzip => read_bounded(codec, flate2::read::MultiGzDecoder::new(input), input.len(), limit_bytes, out),
        Codec::Snappy => decompress_snappy(input, limit_bytes, out),
        Codec::Lz4 => {
            let start = out.len();
            if crate::lz4::decompress_plain(input, limit_bytes, out).is_some() {
                return Ok(());
            }
            out.truncate(start);
            let reader = crate::lz4::FrameReader::new(input)
                .map_err(|e| CompressionError::Corrupt { codec: codec.name(), reason: e.to_string() })?;
            read_bounded(codec, reader, input.len(), limit_bytes, out)
        }
        Codec::Zstd => ZSTD.with_borrow_mut(|context| {
            let failed = |reason: String| CompressionError::Corrupt { codec: codec.name(), reason };
            context
                .reset(zstd_safe::ResetDirective::SessionOnly)
                .map_err(|code| failed(zstd_safe::get_error_name(code).to_owned()))?;
            let decoder = zstd::stream::read::Decoder::with_context(input, context);
            let decompressed = read_bounded(codec, decoder, input.len(), limit_bytes, out);
            // The frame says how large the window is.
            if context.sizeof() > ZSTD_KEPT {
                *context = zstd_safe::DCtx::create();
            }
            decompressed
        }),
    }
}

/// Checks how compressed data begins, in constant time: what passes may still be damaged further on.
pub fn check_start(codec: Codec, input: &[u8]) -> Result<(), CompressionError> {
    let corrupt = |reason: &str| Err(CompressionError::Corrupt { codec: codec.name(), reason: reason.to_owned() });
    if input.is_empty() {
        return if codec == Codec::None { Ok(()) } else { corrupt("there is none") };
    }
    let sound = match codec {
        Codec::None => true,
        Codec::Gzip => input.starts_with(&GZIP_MAGIC),
        Codec::Snappy => starts_as_snappy(input),
        Codec::Lz4 => input.starts_with(&[0x04, 0x22, 0x4d, 0x18]),
        // A frame, or one to be skipped.
        Codec::Zstd => match input.first_chunk::<4>() {
            Some([0x28, 0xb5, 0x2f, 0xfd]) => true,
            Some([first, 0x2a, 0x4d, 0x18]) => first & 0xf0 == 0x50,
            _ => false,
        },
    };
    if sound { Ok(()) } else { corrupt("it does not begin as such data does") }
}

/// Whether Kafka's own consumers read the form that the data has, beyond what decompressing it shows: of LZ4 they know less than
/// others do, and one such batch would stop them.
///
/// # Errors
/// They do not.
pub fn check_for_kafka(codec: Codec, input: &[u8]) -> Result<(), CompressionError> {
    if codec != Codec::Lz4 {
        return Ok(());
    }
    let corrupt = |reason: &str| CompressionError::Corrupt { codec: codec.name(), reason: reason.to_owned() };
    crate::lz4::check_for_kafka(input).map_err(corrupt)
}

/// As many bytes as decompressing `input` yields, or more, found out by its outline. What yields more in spite of it is damaged.
pub fn decompresses_to_at_most(codec: Codec, input: &[u8]) -> usize {
    match codec {
        Codec::None => input.len(),
        Codec::Gzip => {
            // How much there is stands at the end of each member, modulo 2^32.
            let trailer = input.last_chunk::<4>().map_or(0, |size| u32::from_le_bytes(*size) as usize);
            let begins = |at: usize| at > 0 && input.get(at + 3).is_none_or(|flags| flags & GZIP_RESERVED == 0);
            let may_have_more = memchr::memmem::find_iter(input, &GZIP_MAGIC).any(begins);
            let most = input.len().saturating_mul(GZIP_MOST_RATIO);
            if may_have_more || most > u32::MAX as usize { most } else { trailer.min(most) }
        }
        Codec::Snappy => snappy_blocks(input).map_or(0, |blocks| {
            let len = |block: &[u8]| snap::raw::decompress_len(block).unwrap_or(0).min(block.len().saturating_mul(64));
            blocks.map(|block| block.map_or(0, len)).fold(0, usize::saturating_add)
        }),
        Codec::Lz4 => crate::lz4::holds_at_most(input),
        Codec::Zstd => crate::zstd_frames::hold_at_most(input),
    }
}

fn starts_as_snappy(input: &[u8]) -> bool {
    let block = if input.starts_with(&XERIAL_MAGIC) {
        let first = input.get(XERIAL_HEADER.len()..).and_then(|rest| rest.split_first_chunk::<4>());
        let Some((len, rest)) = first else { return input.len() == XERIAL_HEADER.len() };
        match usize::try_from(u32::from_be_bytes(*len)).ok().and_then(|len| rest.get(..len)) {
            Some(block) => block,
            None => return false,
        }
    } else {
        input
    };
    let Ok(len) = snap::raw::decompress_len(block) else { return false };
    // Behind the length comes text: there is nothing yet that could be repeated.
    let text = block.iter().position(|byte| byte & 0x80 == 0).and_then(|end| block.get(end + 1));
    len <= block.len().saturating_mul(64) && text.is_none_or(|tag| tag & 3 == 0) && (text.is_some() || len == 0)
}

fn read_bounded(
    codec: Codec,
    reader: impl Read,
    input_len: usize,
    limit_bytes: usize,
    out: &mut Vec<u8>,
) -> Result<(), CompressionError> {
    // Record batches typically shrink to a quarter; a wrong guess costs one reallocation.
    out.reserve(input_len.saturating_mul(4).min(limit_bytes));
    let start = out.len();
    let most = u64::try_from(limit_bytes).unwrap_or(u64::MAX).saturating_add(1);
    let read = reader.take(most).read_to_end(out);
    if out.len() - start > limit_bytes {
        return Err(CompressionError::LimitExceeded { codec: codec.name(), limit_bytes });
    }
    read.map(|_| ()).map_err(|e| CompressionError::Corrupt { codec: codec.name(), reason: e.to_string() })
}

/// How each member of a gzip stream begins: two magic bytes, and deflate as the method.
const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
/// Flags that no member has.
const GZIP_RESERVED: u8 = 0xe0;
/// Deflate yields no more bytes for one.
const GZIP_MOST_RATIO: usize = 1032;

/// The eight magic bytes of xerial's snappy stream, then its version and the oldest version that can read it.
const XERIAL_MAGIC: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
const XERIAL_HEADER: [u8; 16] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0, 0, 0, 0, 1, 0, 0, 0, 1];
const XERIAL_BLOCK_BYTES: usize = 32 * 1024;

fn compress_xerial(input: &[u8], out: &mut Vec<u8>) -> Result<(), snap::Error> {
    out.extend_from_slice(&XERIAL_HEADER);
    let mut encoder = snap::raw::Encoder::new();
    for block in input.chunks(XERIAL_BLOCK_BYTES) {
        let compressed = encoder.compress_vec(block)?;
        out.extend_from_slice(&u32::try_from(compressed.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(&compressed);
    }
    Ok(())
}

fn decompress_snappy(input: &[u8], limit_bytes: usize, out: &mut Vec<u8>) -> Result<(), CompressionError> {
    let start = out.len();
    let mut decoder = snap::raw::Decoder::new();
    let mut block = |bytes: &[u8], out: &mut Vec<u8>| {
        let corrupt = |e: snap::Error| CompressionError::Corrupt { codec: "snappy", reason: e.to_string() };
        let len = snap::raw::decompress_len(bytes).map_err(corrupt)?;
        let at = out.len();
        if len > limit_bytes.saturating_sub(at - start) {
            return Err(CompressionError::LimitExceeded { codec: "snappy", limit_bytes });
        }
        // Snappy cannot expand by more than 64 bytes per 3 of input: a claim beyond that needs no memory to refute.
        if len > bytes.len().saturating_mul(64) {
            return Err(CompressionError::Corrupt { codec: "snappy", reason: "impossible block length".to_owned() });
        }
        out.resize(at + len, 0);
        let target = out.get_mut(at..).unwrap_or_default();
        let written = decoder.decompress(bytes, target).map_err(corrupt)?;
        out.truncate(at + written);
        Ok(())
    };
    let truncated = || CompressionError::Corrupt { codec: "snappy", reason: "truncated xerial stream".to_owned() };
    for bytes in snappy_blocks(input).ok_or_else(truncated)? {
        block(bytes.ok_or_else(truncated)?, out)?;
    }
    Ok(())
}

/// The blocks of xerial's stream, or the one that stands alone; `None`: it is cut.
fn snappy_blocks(input: &[u8]) -> Option<impl Iterator<Item = Option<&[u8]>>> {
    let mut alone = !input.starts_with(&XERIAL_MAGIC);
    let mut rest = if alone { input } else { input.get(XERIAL_HEADER.len()..)? };
    Some(std::iter::from_fn(move || {
        if std::mem::take(&mut alone) {
            return Some(Some(std::mem::take(&mut rest)));
        }
        if rest.is_empty() {
            return None;
        }
        let mut next = || {
            let (len, tail) = std::mem::take(&mut rest).split_first_chunk::<4>()?;
            let (block, tail) = tail.split_at_checked(usize::try_from(u32::from_be_bytes(*len)).ok()?)?;
            rest = tail;
            Some(block)
        };
        Some(next())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_codec_gives_back_what_it_was_given(data in proptest::collection::vec(0u8..8, 0..100_000)) {
            for codec in Codec::ALL {
                let mut out = Vec::new();
                compress(codec, &data, &mut out).unwrap();
                prop_assert_eq!(&decompress(codec, &out, data.len()).unwrap(), &data);
                let most = decompresses_to_at_most(codec, &out);
                // Within gzip data something may look like a second member.
                let is_close = codec == Codec::Gzip || most < data.len() + (128 << 10);
                prop_assert!(most >= data.len() && is_close, "{codec}: {most}");
                if !data.is_empty() {
                    check_start(codec, &out).unwrap();
                }
                if !data.is_empty() {
                    let refused = decompress(codec, &out, data.len() - 1);
                    let limited = matches!(refused, Err(CompressionError::LimitExceeded { .. }));
                    prop_assert!(limited, "{codec}: {refused:?}");
                }
            }
        }

        #[test]
        fn hostile_bytes_yield_errors_and_stay_below_the_limit(
            data in proptest::collection::vec(any::<u8>(), 0..2_000), flips in proptest::collection::vec(any::<(u16, u8)>(), 0..4),
        ) {
            for codec in Codec::ALL {
                let _ = decompress(codec, &data, 10_000);
                let mut valid = Vec::new();
                compress(codec, &data, &mut valid).unwrap();
                for (at, mask) in &flips {
                    let len = valid.len();
                    if len > 0 { valid[usize::from(*at) % len] ^= mask; }
                }
                if let Ok(out) = decompress(codec, &valid, 10_000) {
                    prop_assert!(out.len() <= 10_000.min(decompresses_to_at_most(codec, &valid)));
                }
            }
        }
    }

    #[test]
    fn levels_are_heard() {
        let words: Vec<u8> = (0..40_000_u32).flat_map(|n| format!("word{} ", n * n % 977).into_bytes()).collect();
        for (codec, low, high) in [(Codec::Gzip, 1, 9), (Codec::Lz4, 1, 17), (Codec::Zstd, -100, 22)] {
            let size = |level: Option<i32>| {
                let mut out = Vec::new();
                compress_at(codec, level, &words, &mut out).unwrap();
                check_start(codec, &out).unwrap();
                assert_eq!(decompress(codec, &out, words.len()).unwrap(), words);
                out.len()
            };
            assert!(size(Some(high)) < size(Some(low)), "{codec}");
            assert!(size(Some(high)) < size(None), "{codec}");
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let zeros = vec![0u8; 64 << 20];
        for codec in [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
            let mut bomb = Vec::new();
            compress(codec, &zeros, &mut bomb).unwrap();
            let mut out = Vec::new();
            let refused = decompress_into(codec, &bomb, 1 << 20, &mut out);
            assert!(matches!(refused, Err(CompressionError::LimitExceeded { .. })), "{codec}: {refused:?}");
            assert!(out.capacity() < 8 << 20, "{codec} held {} bytes", out.capacity());
        }
    }

    #[test]
    fn several_streams_in_a_row_are_counted() {
        let data = vec![7; 300_000];
        for codec in [Codec::Gzip, Codec::Zstd] {
            let mut twice = Vec::new();
            compress(codec, &data, &mut twice).unwrap();
            assert!(decompresses_to_at_most(codec, &twice) < data.len() + (128 << 10));
            // The last is a short one.
            compress(codec, b"short", &mut twice).unwrap();
            assert_eq!(decompress(codec, &twice, 1 << 20).unwrap().len(), data.len() + 5);
            assert!(decompresses_to_at_most(codec, &twice) >= data.len() + 5, "{codec}");
        }
    }

    #[test]
    fn what_another_codec_wrote_is_noticed_at_its_start() {
        let codecs = [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
        for codec in codecs {
            for other in codecs.into_iter().filter(|other| *other != codec) {
                let mut out = Vec::new();
                compress(other, b"some text that is long enough", &mut out).unwrap();
                assert!(check_start(codec, &out).is_err(), "{other} for {codec}");
            }
            for nonsense in [&b""[..], &[0], &[0xff; 50], &[0; 50], b"zzzzzzzzzzzzzz"] {
                if codec != Codec::Snappy || !matches!(nonsense, [0, ..]) {
                    assert!(check_start(codec, nonsense).is_err(), "{codec}: {nonsense:02x?}");
                }
            }
        }
    }

    #[test]
    fn raw_snappy_is_read_too() {
        let raw = snap::raw::Encoder::new().compress_vec(b"no framing here").unwrap();
        check_start(Codec::Snappy, &raw).unwrap();
        assert_eq!(decompress(Codec::Snappy, &raw, 100).unwrap(), b"no framing here");
    }
}
