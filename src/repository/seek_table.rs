//! The seek table at the end of a pack: where each of its frames is stored.
//!
//! Facts: zstd, contrib/seekable_format/zstd_seekable_compression_format.md.

use std::fmt;
use std::ops::Range;

use super::pack::{FRAME_SIZE, SEEKABLE_MAGIC, SKIPPABLE_MAGIC};

/// The bytes at the very end: number of frames, descriptor, magic number.
const FOOTER: usize = 9;
/// The bytes in front: magic number and size of the skippable frame.
const HEADER: usize = 8;
/// The bytes of one frame's entry where no checksums are in it.
const ENTRY: usize = 8;

/// How much of an object's end usually holds the whole table: 8,000 frames, 8 GB of plain bytes.
pub const USUAL_TAIL: u64 = 64 << 10;

/// Where the frames of a pack are stored. Memory: 8 bytes a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeekTable {
    /// Where each frame starts in the stored object, and the end of the last.
    starts: Vec<u64>,
    plain_size: u64,
}

/// Why there is no table in what was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoSeekTable {
    /// So many bytes of the object's end are needed.
    NeedsMore(u64),
    /// What stands there is none.
    Damaged(String),
}

impl fmt::Display for NoSeekTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeedsMore(bytes) => write!(f, "its seek table takes the last {bytes} bytes"),
            Self::Damaged(why) => write!(f, "its seek table is damaged: {why}"),
        }
    }
}

impl SeekTable {
    /// Reads the table from `tail`, the last bytes of an object of `object_size` bytes.
    ///
    /// # Errors
    /// More of the object is needed, or it is no table of a pack: frames do not add up to the
    /// object, or do not hold what a pack's frames hold.
    pub fn parse(tail: &[u8], object_size: u64) -> Result<Self, NoSeekTable> {
        let damaged = |why: String| Err(NoSeekTable::Damaged(why));
        let word = |at: usize| -> u32 {
            let bytes = tail.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            u32::from_le_bytes(bytes.unwrap_or_default())
        };
        if tail.len() < FOOTER + HEADER {
            return damaged(format!("the object has only {object_size} bytes"));
        }
        let footer = tail.len() - FOOTER;
        if word(footer + 5) != SEEKABLE_MAGIC {
            return damaged("the object does not end with one".to_owned());
        }
        if tail[footer + 4] != 0 {
            return damaged(format!("its descriptor is {:#04x}", tail[footer + 4]));
        }
        let frames = word(footer) as usize;
        let size = HEADER + ENTRY * frames + FOOTER;
        if size as u64 > object_size {
            return damaged(format!("it names {frames} frames"));
        }
        let Some(start) = tail.len().checked_sub(size) else {
            return Err(NoSeekTable::NeedsMore(size as u64));
        };
        if word(start) != SKIPPABLE_MAGIC || word(start + 4) as usize != size - HEADER {
            return damaged("it does not begin where it should".to_owned());
        }
        let mut starts = Vec::with_capacity(frames + 1);
        let (mut stored, mut plain) = (0, 0);
        for frame in 0..frames {
            let at = start + HEADER + ENTRY * frame;
            let holds = word(at + 4) as usize;
            if holds != FRAME_SIZE && (frame + 1 < frames || holds > FRAME_SIZE || holds == 0) {
                return damaged(format!("frame {frame} holds {holds} bytes"));
            }
            starts.push(stored);
            stored += u64::from(word(at));
            plain += holds as u64;
        }
        starts.push(stored);
        if stored + size as u64 != object_size {
            return damaged(format!(
                "its frames and itself have {} bytes, the object {object_size}",
                stored + size as u64
            ));
        }
        Ok(Self {
            starts,
            plain_size: plain,
        })
    }

    /// How many frames there are.
    pub fn frames(&self) -> u32 {
        (self.starts.len() - 1) as u32 // at most 2^27: the number is one of 32 bits
    }

    /// Bytes of the plain tar stream.
    pub fn plain_size(&self) -> u64 {
        self.plain_size
    }

    /// Where `frame` is stored. Empty behind the last.
    pub fn stored(&self, frame: u32) -> Range<u64> {
        self.start(frame)..self.start(frame.saturating_add(1))
    }

    /// Where `frame` starts in the stored object; behind the last, where that ends.
    pub fn start(&self, frame: u32) -> u64 {
        let last = self.starts.last().copied().unwrap_or(0);
        self.starts.get(frame as usize).copied().unwrap_or(last)
    }

    /// Plain bytes in `frame`.
    pub fn plain(&self, frame: u32) -> usize {
        let left = self
            .plain_size
            .saturating_sub(u64::from(frame) * FRAME_SIZE as u64);
        left.min(FRAME_SIZE as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::config::Compression;
    use crate::repository::codec::FrameDecompressor;
    use crate::repository::index::{Member, MemberKind};
    use crate::repository::pack::PackWriter;

    fn pack(size: usize) -> Vec<u8> {
        let mut stored = Vec::new();
        let sink = |bytes: Bytes| {
            stored.extend_from_slice(&bytes);
            Ok(())
        };
        let mut writer = PackWriter::new(Compression::default(), sink).unwrap();
        let mut member = Member::directory("f".into(), 0o600, Timestamp::UNIX_EPOCH);
        member.kind = MemberKind::File;
        member.size = size as u64;
        writer.begin_file(member).unwrap();
        writer.write(&vec![7; size]).unwrap();
        writer.end_file(Vec::new()).unwrap();
        writer.finish().unwrap();
        stored
    }

    #[test]
    fn each_frame_is_where_the_table_says() {
        let stored = pack(3 * FRAME_SIZE + 5);
        let table = SeekTable::parse(&stored, stored.len() as u64).unwrap();
        assert_eq!(table.frames(), 4);
        let mut opener = FrameDecompressor::new().unwrap();
        let mut plain = 0;
        for frame in 0..table.frames() {
            let range = table.stored(frame);
            let bytes = &stored[range.start as usize..range.end as usize];
            plain += opener.decompress(bytes, table.plain(frame)).unwrap().len();
        }
        assert_eq!(plain as u64, table.plain_size());
        assert!(table.stored(4).is_empty());
    }

    #[test]
    fn a_tail_that_is_too_short_says_how_much_it_takes() {
        let stored = pack(9 * FRAME_SIZE);
        let size = stored.len() as u64;
        let short = &stored[stored.len() - 30..];
        let Err(NoSeekTable::NeedsMore(more)) = SeekTable::parse(short, size) else {
            panic!()
        };
        let enough = &stored[stored.len() - more as usize..];
        assert!(SeekTable::parse(enough, size).is_ok());
        assert!(SeekTable::parse(enough, size + 1).is_err());
        assert!(SeekTable::parse(&stored[..stored.len() - 1], size - 1).is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes: Vec<u8>, at: usize, by: u8) {
            let _ = SeekTable::parse(&bytes, bytes.len() as u64);
            let mut stored = pack(10);
            let at = at % stored.len();
            stored[at] ^= by;
            let _ = SeekTable::parse(&stored, stored.len() as u64);
        }
    }
}
