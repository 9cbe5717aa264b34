//! The one place where bytes are compressed and opened again.
//!
//! Every object is zstd with a content checksum and a content size. Encryption will come in
//! here too, so nothing else of the program touches zstd.

use std::io::{Read, Write};

use zstd::stream::raw::CParameter;
use zstd::zstd_safe::{self, zstd_sys::ZSTD_EndDirective};

use crate::config::Compression;
use crate::error::{Error, Result};

/// A reader may keep this much of a frame at once; zstd's own default limit. It bounds what a
/// lying object can make us allocate.
const LARGEST_WINDOW_LOG: u32 = 27;

/// Compresses whole frames, keeping zstd's working memory and one buffer between them.
pub struct FrameCompressor {
    inner: zstd::bulk::Compressor<'static>,
    stored: Vec<u8>,
}

impl FrameCompressor {
    /// A compressor with the configured parameters.
    pub fn new(parameters: Compression) -> Result<Self> {
        let make = || {
            let mut inner = zstd::bulk::Compressor::new(parameters.level)?;
            for parameter in frame_parameters(parameters) {
                inner.set_parameter(parameter)?;
            }
            let stored = Vec::new();
            Ok(Self { inner, stored })
        };
        make().map_err(|error: std::io::Error| {
            Error::usage("zstd refuses the configured compression").because(error)
        })
    }

    /// One frame, with content checksum and content size.
    pub fn compress(&mut self, plain: &[u8]) -> Result<Vec<u8>> {
        // zstd wants room for the worst case. What is handed on keeps no more than it needs.
        self.stored.clear();
        self.stored.reserve(zstd_safe::compress_bound(plain.len()));
        self.inner
            .compress_to_buffer(plain, &mut self.stored)
            .map_err(|error| Error::failed("cannot compress").because(error))?;
        Ok(self.stored.as_slice().to_vec())
    }
}

/// Compresses to one frame after the other, each handed over in pieces, keeping zstd's working
/// memory between them.
pub struct PieceCompressor {
    context: zstd_safe::CCtx<'static>,
}

impl PieceCompressor {
    /// A compressor with the configured parameters.
    pub fn new(parameters: Compression) -> Result<Self> {
        let mut context = zstd_safe::CCtx::try_create()
            .ok_or_else(|| Error::failed("no memory for zstd's working state"))?;
        let level = CParameter::CompressionLevel(parameters.level);
        for parameter in std::iter::once(level).chain(frame_parameters(parameters)) {
            context.set_parameter(parameter).map_err(|code| {
                Error::usage("zstd refuses the configured compression").because(name_of(code))
            })?;
        }
        Ok(Self { context })
    }

    /// Begins a frame of exactly `plain_size` bytes, whatever became of the one before.
    pub fn begin(&mut self, plain_size: u64) -> Result<()> {
        self.context
            .reset(zstd_safe::ResetDirective::SessionOnly)
            .and_then(|_| self.context.set_pledged_src_size(Some(plain_size)))
            .map(|_| ())
            .map_err(cannot_compress)
    }

    /// Compresses the next bytes to the end of `stored`.
    pub fn write(&mut self, plain: &[u8], stored: &mut Vec<u8>) -> Result<()> {
        let mut input = zstd_safe::InBuffer::around(plain);
        while input.pos() < plain.len() {
            self.step(&mut input, stored, ZSTD_EndDirective::ZSTD_e_continue)?;
        }
        Ok(())
    }

    /// Ends the frame.
    ///
    /// # Errors
    /// Fewer or more bytes than promised were written.
    pub fn finish(&mut self, stored: &mut Vec<u8>) -> Result<()> {
        let mut nothing = zstd_safe::InBuffer::around(&[]);
        while self.step(&mut nothing, stored, ZSTD_EndDirective::ZSTD_e_end)? > 0 {}
        Ok(())
    }

    /// One call of zstd, with room for a block. Returns what it still has to write.
    fn step(
        &mut self,
        input: &mut zstd_safe::InBuffer<'_>,
        stored: &mut Vec<u8>,
        end: ZSTD_EndDirective,
    ) -> Result<usize> {
        let written = stored.len();
        stored.reserve(zstd_safe::CCtx::out_size());
        let mut output = zstd_safe::OutBuffer::around_pos(stored, written);
        self.context
            .compress_stream2(&mut output, input, end)
            .map_err(cannot_compress)
    }
}

fn cannot_compress(code: usize) -> Error {
    Error::failed("cannot compress").because(name_of(code))
}

fn name_of(code: usize) -> String {
    zstd_safe::get_error_name(code).to_owned()
}

/// A stream that compresses what is written to it; see [`stream_compressor`].
pub type StreamCompressor<W> = zstd::stream::write::Encoder<'static, W>;

/// A stream that compresses to one frame of `plain_size` bytes into `writer`. Call `finish`
/// on what it returns; a stream of any other size is then an error.
pub fn stream_compressor<W: Write>(
    writer: W,
    parameters: Compression,
    plain_size: Option<u64>,
) -> std::io::Result<StreamCompressor<W>> {
    let mut encoder = zstd::stream::write::Encoder::new(writer, parameters.level)?;
    for parameter in frame_parameters(parameters) {
        encoder.set_parameter(parameter)?;
    }
    encoder.set_pledged_src_size(plain_size)?;
    Ok(encoder)
}

fn frame_parameters(parameters: Compression) -> impl Iterator<Item = CParameter> {
    let minimum_match =
        (parameters.minimum_match != 0).then_some(CParameter::MinMatch(parameters.minimum_match));
    [
        CParameter::ChecksumFlag(true),
        CParameter::ContentSizeFlag(true),
    ]
    .into_iter()
    .chain(minimum_match)
}

/// Opens an object of any number of frames whose plain size is at most `limit` bytes.
///
/// Content checksums are verified; an object that is cut short or that holds more is an error.
pub fn decode(stored: &[u8], limit: u64) -> std::io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    let read = stream_decoder(stored)?
        .take(limit.saturating_add(1))
        .read_to_end(&mut plain)?;
    if read as u64 > limit {
        return Err(std::io::Error::other(format!(
            "holds more than {limit} bytes"
        )));
    }
    Ok(plain)
}

/// A reader of the plain bytes of `stored`, over all its frames.
pub fn stream_decoder<R: Read>(
    stored: R,
) -> std::io::Result<zstd::stream::read::Decoder<'static, std::io::BufReader<R>>> {
    let mut decoder = zstd::stream::read::Decoder::new(stored)?;
    decoder.window_log_max(LARGEST_WINDOW_LOG)?;
    Ok(decoder)
}

/// Opens single frames, keeping zstd's working memory between them.
pub struct FrameDecompressor {
    inner: zstd::bulk::Decompressor<'static>,
}

impl FrameDecompressor {
    /// A decompressor.
    pub fn new() -> std::io::Result<Self> {
        let mut inner = zstd::bulk::Decompressor::new()?;
        inner.window_log_max(LARGEST_WINDOW_LOG)?;
        Ok(Self { inner })
    }

    /// Opens one frame that holds exactly `plain_size` bytes.
    pub fn decompress(&mut self, frame: &[u8], plain_size: usize) -> std::io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        self.decompress_into(frame, plain_size, &mut plain)?;
        Ok(plain)
    }

    /// The same into a buffer that is used again and again; what it held is gone.
    pub fn decompress_into(
        &mut self,
        frame: &[u8],
        plain_size: usize,
        plain: &mut Vec<u8>,
    ) -> std::io::Result<()> {
        plain.clear();
        plain.reserve_exact(plain_size);
        self.inner.decompress_to_buffer(frame, plain)?;
        if plain.len() != plain_size {
            return Err(std::io::Error::other(format!(
                "a frame holds {} bytes instead of {plain_size}",
                plain.len()
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(plain: &[u8]) -> Vec<u8> {
        FrameCompressor::new(Compression::default())
            .unwrap()
            .compress(plain)
            .unwrap()
    }

    #[test]
    fn a_frame_carries_its_checksum_and_size_and_any_flipped_byte_is_noticed() {
        let plain: Vec<u8> = (0..100_000u32)
            .flat_map(|i| (i / 7).to_le_bytes())
            .collect();
        let stored = frame(&plain);
        assert_eq!(
            zstd::zstd_safe::get_frame_content_size(&stored).unwrap(),
            Some(plain.len() as u64)
        );
        assert_eq!(decode(&stored, plain.len() as u64).unwrap(), plain);
        for at in (0..stored.len()).step_by(97) {
            let mut damaged = stored.clone();
            damaged[at] ^= 0x10;
            // zstd ignores nothing of a frame but reserved bits of the header.
            let result = decode(&damaged, plain.len() as u64);
            assert!(result.is_err() || result.unwrap() == plain, "byte {at}");
        }
    }

    #[test]
    fn frames_that_come_in_pieces_are_those_that_come_at_once() {
        let plain: Vec<u8> = (0..3_000_000u32)
            .flat_map(|i| (i.wrapping_mul(i) / 7).to_le_bytes())
            .collect();
        let mut compressor = PieceCompressor::new(Compression::default()).unwrap();
        for plain in [&plain[..], &plain[..1000], &plain[..0], &plain[5..]] {
            // One that was given up leaves nothing behind.
            compressor.begin(10).unwrap();
            compressor.write(b"123", &mut Vec::new()).unwrap();
            assert!(compressor.finish(&mut Vec::new()).is_err());
            let mut stored = Vec::new();
            compressor.begin(plain.len() as u64).unwrap();
            for piece in plain.chunks(100_001) {
                compressor.write(piece, &mut stored).unwrap();
            }
            compressor.finish(&mut stored).unwrap();
            assert_eq!(decode(&stored, plain.len() as u64).unwrap(), plain);
            let size = zstd::zstd_safe::get_frame_content_size(&stored).unwrap();
            assert_eq!(size, Some(plain.len() as u64));
        }
    }

    #[test]
    fn an_object_that_is_cut_short_or_too_large_is_an_error() {
        let stored = frame(&[7; 50_000]);
        assert!(decode(&stored[..stored.len() - 1], 50_000).is_err());
        assert!(decode(&stored, 49_999).is_err());
    }

    #[test]
    fn a_stream_of_another_size_than_promised_is_an_error() {
        let mut encoder = stream_compressor(Vec::new(), Compression::default(), Some(10)).unwrap();
        let written = encoder
            .write_all(&[1; 9])
            .and_then(|()| encoder.finish().map(|_| ()));
        assert!(written.is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes, 1 << 16);
            let _ = FrameDecompressor::new().unwrap().decompress(&bytes, 100);
        }
    }
}
