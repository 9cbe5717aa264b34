//! Writing one file, or a part of one, in large pieces.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use seawall::error::{IoContext, Result};

/// Small pieces are gathered up to so many bytes.
const BUFFER: usize = 1 << 20;

/// Pieces of so many bytes are written as they come.
const LARGE: usize = 128 << 10;

/// Writes what it is given, one byte after the other, from a position on.
pub(crate) struct Writer<'a> {
    file: &'a File,
    path: &'a Path,
    at: u64,
    buffer: &'a mut Vec<u8>,
    /// What the file has already, where that may be what is to be written.
    there: Option<Vec<u8>>,
    wrote: Duration,
}

impl<'a> Writer<'a> {
    /// Begins at byte `at`. `buffer` is used, and empty afterwards.
    pub(crate) fn new(file: &'a File, path: &'a Path, at: u64, buffer: &'a mut Vec<u8>) -> Self {
        buffer.clear();
        Self {
            file,
            path,
            at,
            buffer,
            there: None,
            wrote: Duration::ZERO,
        }
    }

    /// Whether pieces that the file has already are not written again.
    pub(crate) fn compare(&mut self, compare: bool) {
        self.there = compare.then(Vec::new);
    }

    /// The next bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<()> {
        if self.buffer.is_empty() && bytes.len() >= LARGE {
            return self.put(bytes);
        }
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER {
            self.flush()?;
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
        let put = self.put(&gathered);
        gathered.clear();
        *self.buffer = gathered;
        put
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let started = Instant::now();
        if !self.is_there(bytes)? {
            let written = self.file.write_all_at(bytes, self.at);
            written.on("write", self.path)?;
        }
        self.at += bytes.len() as u64;
        self.wrote += started.elapsed();
        Ok(())
    }

    fn is_there(&mut self, bytes: &[u8]) -> Result<bool> {
        let Some(there) = &mut self.there else {
            return Ok(false);
        };
        there.resize(bytes.len(), 0);
        match self.file.read_exact_at(there, self.at) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            read => read.on("read", self.path).map(|()| there == bytes),
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
        let content: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7) as u8).collect();
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        for compare in [false, true] {
            let mut buffer = Vec::new();
            let mut writer = Writer::new(&file, &path, 0, &mut buffer);
            writer.compare(compare);
            let mut rest = &content[..];
            for size in [1, 8192, 200_000, 5, 1_500_000, 8192, usize::MAX] {
                let (now, later) = rest.split_at(size.min(rest.len()));
                writer.push(now).unwrap();
                rest = later;
            }
            writer.finish().unwrap();
            assert!(std::fs::read(&path).unwrap() == content);
            file.write_all_at(b"damage", 1_000_000).unwrap();
        }
    }
}
