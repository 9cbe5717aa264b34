//! Packs: a tar stream cut into independent zstd frames, closed by the seek table of zstd's
//! seekable format.
//!
//! `zstd -d | tar x` opens a pack; a reader that knows the index fetches one file, or one
//! block, by a range request. The table is written here because no crate writes frames that
//! were compressed elsewhere; `zeekstd` reads it back in the tests.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::codec::FrameCompressor;
use super::frames::{Frame, Frames};
use super::index::{Member, MemberKind};
use super::tar_header::{self, TAR_BLOCK};
use crate::config::Compression;
use crate::digest::{PlainHasher, StoredDigest, StoredHasher};
use crate::error::{Error, Result};

/// Plain bytes of a frame, at most.
pub const FRAME_SIZE: usize = 1 << 20;

/// Magic number of the skippable frame that holds the seek table
/// (zstd, contrib/seekable_format/zstd_seekable_compression_format.md).
pub(super) const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
/// Magic number at the very end of a seekable object.
pub(super) const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;

/// Writes one pack. Memory: one frame and those that other threads compress, their compressed
/// form, and 8 bytes a frame.
pub struct PackWriter<S> {
    sink: S,
    helpers: Arc<Frames>,
    compressor: FrameCompressor,
    /// Of [`FRAME_SIZE`] bytes, of which `filled` count.
    frame: Vec<u8>,
    filled: usize,
    /// Frames that are full and not yet stored, with their plain sizes.
    away: VecDeque<(usize, Frame)>,
    /// False for a pack that is only looked at: its frames go nowhere.
    stores: bool,
    /// Stored and plain size of each finished frame.
    frames: Vec<(u32, u32)>,
    plain: u64,
    stored: u64,
    stored_hasher: StoredHasher,
    members: Vec<Member>,
    open: Option<OpenFile>,
}

struct OpenFile {
    member: Member,
    hasher: PlainHasher,
    left: u64,
}

/// What a finished pack is.
#[derive(Debug)]
pub struct PackSummary {
    /// Its members, in order, with all that the index says of them.
    pub members: Vec<Member>,
    /// Bytes as stored.
    pub stored_size: u64,
    /// SHA-256 of the stored bytes.
    pub sha256: StoredDigest,
}

impl<S: FnMut(Bytes) -> Result<()>> PackWriter<S> {
    /// A pack whose stored bytes go to `sink`, in order, compressed by the calling thread.
    pub fn new(compression: Compression, sink: S) -> Result<Self> {
        Self::with_helpers(Arc::new(Frames::new(compression)), sink)
    }

    /// The same; threads that wait in `helpers` compress some of its frames.
    pub fn with_helpers(helpers: Arc<Frames>, sink: S) -> Result<Self> {
        Ok(Self {
            sink,
            compressor: helpers.compressor()?,
            frame: helpers.buffer(),
            filled: 0,
            away: VecDeque::new(),
            stores: true,
            helpers,
            frames: Vec::new(),
            plain: 0,
            stored: 0,
            stored_hasher: StoredHasher::default(),
            members: Vec::new(),
            open: None,
        })
    }

    /// A pack of which nothing is compressed or stored: for its [`members`](Self::members).
    pub fn only_looking(helpers: Arc<Frames>, sink: S) -> Result<Self> {
        let mut pack = Self::with_helpers(helpers, sink)?;
        pack.stores = false;
        Ok(pack)
    }

    /// What was added so far. Where a file is stored is known when the pack is finished.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Adds a directory.
    pub fn directory(&mut self, member: Member) -> Result<()> {
        self.header(&member)?;
        self.members.push(member);
        Ok(())
    }

    /// Begins a file of exactly `member.size` bytes, which [`write`](Self::write) then brings.
    pub fn begin_file(&mut self, member: Member) -> Result<()> {
        // Before the header is written, which says it too.
        let member = Member {
            kind: MemberKind::File,
            ..member
        };
        self.header(&member)?;
        let left = member.size;
        let member = Member {
            offset: self.plain,
            ..member
        };
        self.open = Some(OpenFile {
            member,
            hasher: PlainHasher::default(),
            left,
        });
        Ok(())
    }

    /// The next bytes of the open file. More than its size is an error.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let open = self
            .open
            .as_mut()
            .ok_or_else(|| Error::failed("no file is open in the pack"))?;
        open.left = open.left.checked_sub(bytes.len() as u64).ok_or_else(|| {
            Error::failed(format!("{} got more bytes than it has", open.member.path))
        })?;
        open.hasher.update(bytes);
        self.plain_bytes(bytes)
    }

    /// How many of the open file's next bytes [`fill`](Self::fill) takes at once.
    pub fn room(&self) -> usize {
        FRAME_SIZE - self.filled
    }

    /// The next `size` bytes of the open file, at most [`room`](Self::room), which `read` puts
    /// straight into the frame: the same as [`write`](Self::write), without a copy.
    pub fn fill(&mut self, size: usize, read: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        let end = self.filled + size;
        let (Some(open), Some(frame)) = (&mut self.open, self.frame.get_mut(self.filled..end))
        else {
            return Err(Error::failed("no file is open in the pack, or no room"));
        };
        open.left = open.left.checked_sub(size as u64).ok_or_else(|| {
            Error::failed(format!("{} got more bytes than it has", open.member.path))
        })?;
        read(frame)?;
        open.hasher.update(frame);
        self.plain += size as u64;
        self.filled = end;
        if self.filled == FRAME_SIZE {
            self.end_frame()?;
        }
        Ok(())
    }

    /// Ends the open file, all of whose bytes have come.
    pub fn end_file(&mut self, damaged_blocks: Vec<u32>) -> Result<()> {
        let open = self
            .open
            .take()
            .ok_or_else(|| Error::failed("no file is open in the pack"))?;
        let mut member = open.member;
        if open.left > 0 {
            return Err(Error::failed(format!(
                "{} lacks {} bytes",
                member.path, open.left
            )));
        }
        member.digest = Some(open.hasher.finish());
        member.damaged_blocks = damaged_blocks;
        self.pad_to_tar_block(member.size)?;
        self.members.push(member);
        Ok(())
    }

    /// Plain bytes so far, headers included.
    pub fn plain_size(&self) -> u64 {
        self.plain
    }

    /// Ends the tar stream, writes the seek table, and says what was written.
    pub fn finish(mut self) -> Result<PackSummary> {
        if let Some(open) = &self.open {
            return Err(Error::failed(format!("{} was not ended", open.member.path)));
        }
        self.plain_bytes(&[0; 2 * TAR_BLOCK as usize])?;
        self.end_frame()?;
        while !self.away.is_empty() {
            self.store_first()?;
        }
        self.helpers.give_back(std::mem::take(&mut self.frame));
        let table = self.seek_table()?;
        self.store(table.into())?;
        self.locate_members();
        Ok(PackSummary {
            members: self.members,
            stored_size: self.stored,
            sha256: self.stored_hasher.finish(),
        })
    }

    /// Tells each file which frames hold it, and where they are stored.
    fn locate_members(&mut self) {
        let mut starts = Vec::with_capacity(self.frames.len() + 1);
        let mut at = 0u64;
        for (stored, _) in &self.frames {
            starts.push(at);
            at += u64::from(*stored);
        }
        starts.push(at);
        for member in self
            .members
            .iter_mut()
            .filter(|member| member.kind == MemberKind::File)
        {
            // All frames but the last hold exactly FRAME_SIZE plain bytes.
            let first = member.offset / FRAME_SIZE as u64;
            let past = (member.offset + member.size)
                .div_ceil(FRAME_SIZE as u64)
                .max(first);
            member.frames = [first as u32, past as u32];
            let stored = |frame: u64| starts.get(frame as usize).copied().unwrap_or(at);
            member.stored = [stored(first), stored(past)];
        }
    }

    fn header(&mut self, member: &Member) -> Result<()> {
        let header = tar_header::of(member, self.members.len())?;
        self.plain_bytes(&header)
    }

    fn pad_to_tar_block(&mut self, size: u64) -> Result<()> {
        let padding = size.next_multiple_of(TAR_BLOCK) - size;
        self.plain_bytes(&[0; TAR_BLOCK as usize][..padding as usize])
    }

    fn plain_bytes(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.plain += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(self.room()));
            self.frame[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == FRAME_SIZE {
                self.end_frame()?;
            }
        }
        Ok(())
    }

    /// Compresses the frame, or has it compressed, and stores what is ready.
    fn end_frame(&mut self) -> Result<()> {
        let size = std::mem::take(&mut self.filled);
        if size == 0 || !self.stores {
            return Ok(());
        }
        let frame = match self.helpers.offer(&mut self.frame, size) {
            Some(frame) => frame,
            None => Frame::Stored(self.compressor.compress(&self.frame[..size])?),
        };
        self.away.push_back((size, frame));
        let most = self.helpers.most_away();
        while let Some((_, first)) = self.away.front_mut() {
            if !first.is_ready() && self.away.len() <= most {
                break;
            }
            self.store_first()?;
        }
        Ok(())
    }

    fn store_first(&mut self) -> Result<()> {
        let Some((size, frame)) = self.away.pop_front() else {
            return Ok(());
        };
        let stored = self.helpers.wait(frame, &mut self.compressor)?;
        // Both fit: a frame holds at most 1 MiB, and zstd adds less than 1 % to it.
        self.frames.push((stored.len() as u32, size as u32));
        self.store(stored.into())
    }

    fn store(&mut self, bytes: Bytes) -> Result<()> {
        self.stored += bytes.len() as u64;
        self.stored_hasher.update(&bytes);
        (self.sink)(bytes)
    }

    fn seek_table(&self) -> Result<Vec<u8>> {
        let frames = u32::try_from(self.frames.len())
            .ok()
            .filter(|frames| *frames <= 0x0800_0000)
            .ok_or_else(|| Error::failed("a file is too large for the seek table of its pack"))?;
        let size = 8 * frames + 9;
        let mut table = Vec::with_capacity(8 + size as usize);
        table.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
        table.extend_from_slice(&size.to_le_bytes());
        for (stored, plain) in &self.frames {
            table.extend_from_slice(&stored.to_le_bytes());
            table.extend_from_slice(&plain.to_le_bytes());
        }
        table.extend_from_slice(&frames.to_le_bytes());
        table.push(0); // no checksums here: each frame carries its own
        table.extend_from_slice(&SEEKABLE_MAGIC.to_le_bytes());
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::repository::codec;

    fn pack(files: &[(String, Vec<u8>)]) -> (Vec<u8>, PackSummary) {
        let mut stored = Vec::new();
        let sink = |bytes: Bytes| {
            stored.extend_from_slice(&bytes);
            Ok(())
        };
        let mut writer = PackWriter::new(Compression::default(), sink).unwrap();
        writer
            .directory(Member::directory(
                "base".into(),
                0o700,
                Timestamp::UNIX_EPOCH,
            ))
            .unwrap();
        for (path, content) in files {
            let mut member = Member::directory(path.clone(), 0o600, Timestamp::UNIX_EPOCH);
            member.kind = MemberKind::File;
            member.size = content.len() as u64;
            writer.begin_file(member).unwrap();
            for piece in content.chunks(8192) {
                writer.write(piece).unwrap();
            }
            writer.end_file(Vec::new()).unwrap();
        }
        let summary = writer.finish().unwrap();
        (stored, summary)
    }

    fn sample() -> Vec<(String, Vec<u8>)> {
        let noise = |seed: u32, size: usize| -> Vec<u8> {
            (0..size as u32)
                .map(|i| (i.wrapping_mul(seed) >> 13) as u8)
                .collect()
        };
        vec![
            ("base/1".into(), noise(2_654_435_761, 3 * FRAME_SIZE + 77)),
            ("base/empty".into(), Vec::new()),
            ("x/".repeat(200) + "deep", noise(40_503, 5000)),
            ("base/2".into(), noise(97, FRAME_SIZE)),
        ]
    }

    #[test]
    fn tar_reads_every_file_of_a_pack_long_names_included() {
        let files = sample();
        let (stored, summary) = pack(&files);
        assert_eq!(summary.stored_size, stored.len() as u64);
        assert_eq!(summary.sha256, StoredDigest::of(&stored));
        let mut archive = tar::Archive::new(codec::stream_decoder(&stored[..]).unwrap());
        let mut entries = archive.entries().unwrap();
        assert_eq!(
            entries.next().unwrap().unwrap().path().unwrap().to_str(),
            Some("base/")
        );
        for (path, content) in &files {
            let mut entry = entries.next().unwrap().unwrap();
            assert_eq!(entry.path().unwrap().to_str(), Some(path.as_str()));
            let mut read = Vec::new();
            entry.read_to_end(&mut read).unwrap();
            assert_eq!(&read, content);
        }
        assert!(entries.next().is_none());
    }

    #[test]
    fn one_file_is_read_from_its_stored_range_alone() {
        let files = sample();
        let (stored, summary) = pack(&files);
        for ((path, content), member) in files.iter().zip(&summary.members[1..]) {
            assert_eq!(&member.path, path);
            let [start, end] = member.stored;
            let plain = codec::decode(&stored[start as usize..end as usize], 64 << 20).unwrap();
            let skip = (member.offset - u64::from(member.frames[0]) * FRAME_SIZE as u64) as usize;
            assert_eq!(&plain[skip..skip + content.len()], content);
        }
    }

    #[test]
    fn another_reader_of_the_seekable_format_understands_the_seek_table() {
        let (stored, _) = pack(&sample());
        let plain = codec::decode(&stored, 64 << 20).unwrap();
        let mut decoder = zeekstd::Decoder::new(std::io::Cursor::new(stored)).unwrap();
        decoder.set_offset(FRAME_SIZE as u64 + 5).unwrap();
        let mut read = vec![0; 100];
        decoder.read_exact(&mut read).unwrap();
        assert_eq!(read, plain[FRAME_SIZE + 5..FRAME_SIZE + 105]);
    }

    #[test]
    fn a_file_with_more_or_fewer_bytes_than_it_began_with_is_an_error() {
        let mut writer = PackWriter::new(Compression::default(), |_| Ok(())).unwrap();
        let mut member = Member::directory("f".into(), 0o600, Timestamp::UNIX_EPOCH);
        member.size = 20_000;
        writer.begin_file(member).unwrap();
        writer.write(&[1; 500]).unwrap();
        assert!(writer.end_file(vec![]).is_err());
        let member = Member::directory("g".into(), 0o600, Timestamp::UNIX_EPOCH);
        writer.begin_file(member).unwrap();
        assert!(writer.write(&[1]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn files_of_any_size_come_back(sizes in prop::collection::vec(0usize..70_000, 0..40)) {
            let files: Vec<_> = sizes
                .iter()
                .enumerate()
                .map(|(at, size)| (format!("f{at}"), vec![at as u8; *size]))
                .collect();
            let (stored, summary) = pack(&files);
            let plain = codec::decode(&stored, 64 << 20).unwrap();
            for ((_, content), member) in files.iter().zip(&summary.members[1..]) {
                let start = member.offset as usize;
                prop_assert_eq!(&plain[start..start + content.len()], &content[..]);
            }
        }
    }
}
