//! Text files that are compressed, told by their suffix as Hadoop's codecs are.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use crate::error::EngineError;
use crate::file_log::io_error;
use crate::options::invalid;

/// What a compressed file may expand to, in bytes: its text is held in memory, and more does not fit into one column.
const LIMIT_BYTES: u64 = 2 * 1024 * 1024 * 1024 - 1;

/// Codecs that are told by their suffix and cannot be read.
const UNREADABLE: [&str; 14] =
    ["bz2", "bzip2", "deflate", "lz4", "snappy", "xz", "lzo", "lzma", "br", "zip", "7z", "gzip", "zstd", "z"];

/// The text of a file, decompressed when its name ends in `.gz` or `.zst`.
pub(super) fn read_text(path: &Path) -> Result<Vec<u8>, EngineError> {
    read_limited(path, LIMIT_BYTES)
}

fn read_limited(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, EngineError> {
    let suffix = path.extension().map(|suffix| suffix.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    if UNREADABLE.contains(&suffix.as_str()) {
        return Err(invalid(format!(
            "the file {} is compressed in a way that is not supported (.{suffix}); supported are .gz (gzip) and .zst \
             (Zstandard). Convert the file, or leave it out with the option 'pathGlobFilter'",
            path.display()
        )));
    }
    if suffix != "gz" && suffix != "zst" {
        return std::fs::read(path).map_err(|e| io_error("read", path, e));
    }
    let file = BufReader::with_capacity(1 << 16, File::open(path).map_err(|e| io_error("open", path, e))?);
    let failed = |e| io_error("decompress", path, e);
    let mut text = Vec::new();
    let decoder: Box<dyn Read> = match suffix.as_str() {
        "gz" => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        _ => Box::new(zstd::stream::read::Decoder::with_buffer(file).map_err(failed)?),
    };
    decoder.take(limit_bytes + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > limit_bytes {
        return Err(invalid(format!(
            "the file {} expands to more than {limit_bytes} bytes, which is the most that one compressed file may hold; \
             split it",
            path.display()
        )));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_bomb_stops_at_the_limit_and_a_cut_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = vec![b'a'; 100_000];
        let gz = dir.path().join("a.json.gz");
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&text).unwrap();
        let bytes = encoder.finish().unwrap();
        // Two members in one file, as `cat a.gz b.gz` makes them.
        std::fs::write(&gz, [bytes.clone(), bytes.clone()].concat()).unwrap();
        let zst = dir.path().join("a.csv.ZST");
        std::fs::write(&zst, zstd::stream::encode_all(&text[..], 0).unwrap()).unwrap();
        assert_eq!(read_limited(&gz, 200_000).unwrap().len(), 200_000);
        assert_eq!(read_limited(&zst, 100_000).unwrap(), text);
        for path in [&gz, &zst] {
            let error = read_limited(path, 99_999).unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()) && error.contains("more than 99999 bytes"), "{error}");
        }
        std::fs::write(&gz, &bytes[..bytes.len() / 2]).unwrap();
        let error = read_text(&gz).unwrap_err().to_string();
        assert!(error.contains("failed to decompress") && error.contains("a.json.gz"), "{error}");
    }
}
