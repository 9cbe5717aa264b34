//! The frames of a stored pack, one after the other, as a reader opens them that wants one file
//! or one block: by the seek table. One that cannot be opened does not hide those behind it.

use std::io::{self, Read};

use crate::digest::{StoredDigest, StoredHasher};
use crate::repository::bridge::ObjectReader;
use crate::repository::codec::FrameDecompressor;
use crate::repository::seek_table::SeekTable;

/// An object as it arrives, digested and counted.
pub(super) struct HashedObject {
    reader: ObjectReader,
    hasher: StoredHasher,
    bytes: u64,
}

impl HashedObject {
    pub(super) fn new(reader: ObjectReader) -> Self {
        Self {
            reader,
            hasher: StoredHasher::default(),
            bytes: 0,
        }
    }

    /// Bytes so far.
    pub(super) fn count(&self) -> u64 {
        self.bytes
    }

    /// Reads what is left, and says what all of it was.
    pub(super) fn finish(mut self) -> io::Result<(StoredDigest, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((self.hasher.finish(), self.bytes))
    }
}

impl Read for HashedObject {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

/// Reads a pack frame by frame. Memory: one frame, stored and plain.
pub(super) struct Frames<'a> {
    stored: &'a mut HashedObject,
    table: &'a SeekTable,
    opener: FrameDecompressor,
    next: u32,
    frame: Vec<u8>,
}

/// A frame: how many plain bytes it holds, and those, or why it cannot be opened.
pub(super) type Opened = (u64, Result<Vec<u8>, String>);

impl<'a> Frames<'a> {
    pub(super) fn new(stored: &'a mut HashedObject, table: &'a SeekTable) -> io::Result<Self> {
        Ok(Self {
            stored,
            table,
            opener: FrameDecompressor::new()?,
            next: 0,
            frame: Vec::new(),
        })
    }

    /// The next frame. `None` behind the last.
    ///
    /// # Errors
    /// The store failed, or the object ends early.
    pub(super) fn next(&mut self) -> io::Result<Option<Opened>> {
        if self.next == self.table.frames() {
            return Ok(None);
        }
        let (range, plain) = (self.table.stored(self.next), self.table.plain(self.next));
        self.next += 1;
        // The table was found to fit the object: no frame is larger than that.
        self.frame.resize((range.end - range.start) as usize, 0);
        self.stored.read_exact(&mut self.frame)?;
        let opened = self.opener.decompress(&self.frame, plain);
        Ok(Some((
            plain as u64,
            opened.map_err(|error| error.to_string()),
        )))
    }

    /// Stored bytes so far.
    pub(super) fn count(&self) -> u64 {
        self.stored.count()
    }
}
