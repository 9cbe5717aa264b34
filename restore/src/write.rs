//! Writing one file, or a part of one, in large pieces; and reading one.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, fstatfs};
use seawall::error::{IoContext, Result};

/// Small pieces are gathered up to so many bytes.
const BUFFER: usize = 1 << 20;

/// Pieces of so many bytes are written as they come.
const LARGE: usize = 128 << 10;

/// What is written past the page cache lies at a multiple of so many bytes, in memory and in
/// the file, and is as long: enough for every disk that there is.
const ALIGNMENT: usize = 4096;

/// Bytes that are gathered at an aligned place.
#[derive(Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.reserve(BUFFER + ALIGNMENT);
        self.start = self.bytes.as_ptr().align_offset(ALIGNMENT);
        self.bytes.resize(self.start, 0);
    }

    fn content(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Takes as much as there is room for. Returns the rest.
    fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let room = BUFFER - self.content().len();
        let (now, later) = bytes.split_at(room.min(bytes.len()));
        self.bytes.extend_from_slice(now);
        later
    }

    /// All of it, for reading into.
    pub(crate) fn whole(&mut self) -> &mut [u8] {
        if self.content().len() != BUFFER {
            self.clear();
            self.bytes.resize(self.start + BUFFER, 0);
        }
        &mut self.bytes[self.start..]
    }
}

/// A large new file that is opened once more, to be written past the page cache: the kernel
/// neither copies its bytes nor lets them push others out, and several threads write at once.
///
/// None on file systems of which that is not known: writing then goes the ordinary way. (btrfs
/// does not compress where space was set aside, ZFS wants more of it than there may be.)
///
/// # Errors
/// The disk has no room for it.
pub(crate) fn open_direct(file: &File, path: &Path, size: u64) -> Result<Option<File>> {
    let kind = fstatfs(file).map(|found| found.filesystem_type());
    if !matches!(kind, Ok(EXT4_SUPER_MAGIC | XFS_SUPER_MAGIC)) {
        return Ok(None);
    }
    let Some(opened) = reopen_direct(path, File::options().write(true)) else {
        return Ok(None);
    };
    // Where a file grows, or is without blocks, threads would wait for each other.
    let length = i64::try_from(size).unwrap_or(i64::MAX);
    match fallocate(file, FallocateFlags::empty(), 0, length) {
        Ok(()) => Ok(Some(opened)),
        Err(error @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG | Errno::EIO)) => {
            Err(std::io::Error::from(error)).on("set space aside for", path)
        }
        Err(_) => Ok(None),
    }
}

fn reopen_direct(path: &Path, options: &mut OpenOptions) -> Option<File> {
    let flags = OFlag::O_DIRECT | OFlag::O_NOFOLLOW;
    options.custom_flags(flags.bits()).open(path).ok()
}

/// Reads a file of `size` bytes from its beginning to its end, past the page cache where it is
/// large and not in there, so that nothing else is pushed out.
pub(crate) fn read_through(
    file: &File,
    path: &Path,
    size: u64,
    buffer: &mut Buffer,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    // Looking brings what is near into memory: not twice at the same place.
    let anywhere = SystemTime::now().duration_since(UNIX_EPOCH);
    let anywhere = anywhere.map_or(0, |now| u64::from(now.subsec_nanos()));
    let mut direct = match size > BUFFER as u64 && !is_cached(file, anywhere % size) {
        true => reopen_direct(path, File::options().read(true)),
        false => None,
    };
    let mut at = 0;
    let buffer = buffer.whole();
    loop {
        match direct.as_ref().unwrap_or(file).read_at(buffer, at) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                take(&buffer[..count])?;
                at += count as u64;
                // The end of the file; what is behind an odd place must be read the ordinary way.
                if count % ALIGNMENT != 0 {
                    direct = None;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if direct.is_some() && error.kind() == std::io::ErrorKind::InvalidInput => {
                direct = None;
            }
            Err(error) => return Err(error).on("read", path),
        }
    }
}

/// Whether the byte at that place can be read without asking the disk. Where the file system
/// cannot say, it is taken to be so.
fn is_cached(file: &File, at: u64) -> bool {
    let mut byte = [0];
    let into = &mut [std::io::IoSliceMut::new(&mut byte)];
    let read = rustix::io::preadv2(file, into, at, rustix::io::ReadWriteFlags::NOWAIT);
    read != Err(rustix::io::Errno::AGAIN)
}

/// Where bytes go.
pub(crate) struct Destination<'a> {
    pub(crate) file: &'a File,
    pub(crate) path: &'a Path,
    /// What [`open_direct`] made of it.
    pub(crate) direct: Option<&'a File>,
    /// It may have them already: then they are not written again.
    pub(crate) compare: bool,
}

impl<'a> Destination<'a> {
    /// A file that is written the ordinary way.
    pub(crate) fn of(file: &'a File, path: &'a Path) -> Self {
        Self {
            file,
            path,
            direct: None,
            compare: false,
        }
    }
}

/// Writes what it is given, one byte after the other, from a position on.
pub(crate) struct Writer<'a> {
    to: Destination<'a>,
    at: u64,
    buffer: &'a mut Buffer,
    /// What the file has already.
    there: Vec<u8>,
    wrote: Duration,
}

impl<'a> Writer<'a> {
    /// Begins at byte `at`. `buffer` is used, and empty afterwards.
    pub(crate) fn new(to: Destination<'a>, at: u64, buffer: &'a mut Buffer) -> Self {
        buffer.clear();
        Self {
            to,
            at,
            buffer,
            there: Vec::new(),
            wrote: Duration::ZERO,
        }
    }

    /// The next bytes.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        let as_they_come = self.to.direct.is_none() && self.buffer.content().is_empty();
        if as_they_come && bytes.len() >= LARGE {
            return self.put(bytes);
        }
        while !bytes.is_empty() {
            bytes = self.buffer.fill(bytes);
            if self.buffer.content().len() == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes what was gathered. Returns how long all the writing took.
    pub(crate) fn finish(mut self) -> Result<Duration> {
        self.flush()?;
        Ok(self.wrote)
    }

    fn flush(&mut self) -> Result<()> {
        let mut gathered = std::mem::take(self.buffer);
        let put = self.put(gathered.content());
        gathered.clear();
        *self.buffer = gathered;
        put
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let started = Instant::now();
        if !self.is_there(bytes)? {
            let done = self.put_directly(bytes).on("write", self.to.path)?;
            let written = self
                .to
                .file
                .write_all_at(&bytes[done..], self.at + done as u64);
            written.on("write", self.to.path)?;
        }
        self.at += bytes.len() as u64;
        self.wrote += started.elapsed();
        Ok(())
    }

    /// Writes past the page cache what can be. Returns how many bytes that were.
    fn put_directly(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let aligned = bytes.len() / ALIGNMENT * ALIGNMENT;
        let Some(direct) = self.to.direct else {
            return Ok(0);
        };
        if aligned == 0 || !self.at.is_multiple_of(ALIGNMENT as u64) {
            return Ok(0);
        }
        match direct.write_all_at(&bytes[..aligned], self.at) {
            Ok(()) => Ok(aligned),
            // A file system that wants another alignment.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
                self.to.direct = None;
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    fn is_there(&mut self, bytes: &[u8]) -> Result<bool> {
        if !self.to.compare {
            return Ok(false);
        }
        self.there.resize(bytes.len(), 0);
        match self.to.file.read_exact_at(&mut self.there, self.at) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            read => read.on("read", self.to.path).map(|()| self.there == bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_arrive_in_order_and_what_is_there_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        let content: Vec<u8> = (0..3_000_001u32).map(|i| (i / 7) as u8).collect();
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        let past_the_cache = open_direct(&file, &path, content.len() as u64).unwrap();
        let kind = fstatfs(&file).unwrap().filesystem_type();
        let should = [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC].contains(&kind);
        assert_eq!(past_the_cache.is_some(), should);
        for (compare, direct) in [
            (false, None),
            (true, None),
            (false, past_the_cache.as_ref()),
        ] {
            let mut buffer = Buffer::default();
            let to = Destination {
                file: &file,
                path: &path,
                direct,
                compare,
            };
            let mut writer = Writer::new(to, 0, &mut buffer);
            let mut rest = &content[..];
            for size in [1, 8192, 200_000, 5, 1_500_000, 8192, usize::MAX] {
                let (now, later) = rest.split_at(size.min(rest.len()));
                writer.push(now).unwrap();
                rest = later;
            }
            writer.finish().unwrap();
            let mut read = Vec::new();
            read_through(&file, &path, content.len() as u64, &mut buffer, |bytes| {
                read.extend_from_slice(bytes);
                Ok(())
            })
            .unwrap();
            assert!(read == content);
            assert!(std::fs::read(&path).unwrap() == content);
            file.write_all_at(b"damage", 1_000_000).unwrap();
        }
    }
}
