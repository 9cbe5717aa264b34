//! Reading parts of files from a chain: what the indexes planned is fetched, opened and handed
//! over in the order of the file, each block once.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::files::{ChainFile, Extent};
use super::frames::{Ahead, Cursor, Run, frames_of};
use crate::digest::PlainDigest;
use crate::error::{Error, Result};
use crate::repository::waiter::Waiter;
use crate::storage::Store;

/// What lies between extents, in pieces.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What is fetched ahead of the backup that most is read from: nearly always the full one.
const MOST: Ahead = Ahead {
    range: 4 << 20,
    requests: 3,
};

/// And of each of the others of a chain.
const LESS: Ahead = Ahead {
    range: 1 << 20,
    requests: 2,
};

/// Consecutive bytes of a file, with where they are stored.
#[derive(Debug)]
pub struct Part {
    /// The file.
    pub file: Arc<ChainFile>,
    /// Which of its bytes.
    pub range: Range<u64>,
    extents: Vec<Extent>,
}

impl Part {
    /// Plans a part. It begins, and ends unless with the file, with a block.
    pub fn new(file: Arc<ChainFile>, range: Range<u64>) -> Self {
        let extents = file.extents(range.clone());
        Self {
            file,
            range,
            extents,
        }
    }

    /// All of a file.
    pub fn whole(file: ChainFile) -> Self {
        let range = 0..file.size;
        Self::new(Arc::new(file), range)
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Whether it is all of the file.
    pub fn is_whole(&self) -> bool {
        self.range == (0..self.file.size)
    }
}

/// Reads parts. Memory: a [`Cursor`] for each backup of the chain that they are read from.
pub struct Reader {
    /// By the backup's place in the chain.
    cursors: Vec<Option<Cursor>>,
}

impl Reader {
    /// Begins to fetch `parts`, which must be in the order of the chain's files.
    pub fn new<'a>(
        store: &Store,
        waiter: &Waiter,
        parts: impl IntoIterator<Item = &'a Part>,
    ) -> Result<Self> {
        let mut wanted: Vec<Vec<Run>> = Vec::new();
        for extent in parts.into_iter().flat_map(|part| &part.extents) {
            if wanted.len() <= extent.link {
                wanted.resize_with(extent.link + 1, Vec::new);
            }
            let runs = &mut wanted[extent.link];
            let frames = frames_of(extent.offset, extent.length);
            match runs.last_mut() {
                Some(last)
                    if last.pack.number == extent.pack.number
                        && last.frames.start <= frames.start
                        && frames.start <= last.frames.end =>
                {
                    last.frames.end = last.frames.end.max(frames.end);
                }
                _ => runs.push(Run {
                    pack: Arc::clone(&extent.pack),
                    frames,
                }),
            }
        }
        let frames = |runs: &Vec<Run>| -> u64 {
            let counts = runs.iter().map(|run| run.frames.end - run.frames.start);
            counts.map(u64::from).sum()
        };
        let most = wanted.iter().map(frames).max();
        let cursors = wanted.into_iter().map(|runs| {
            let ahead = match Some(frames(&runs)) == most {
                true => MOST,
                false => LESS,
            };
            let some = !runs.is_empty();
            some.then(|| Cursor::new(store, waiter, runs, ahead))
                .transpose()
        });
        Ok(Self {
            cursors: cursors.collect::<Result<_>>()?,
        })
    }

    /// A small file whole, verified.
    pub fn read_small(&mut self, part: &Part) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        self.read(part, &mut |bytes| {
            content.extend_from_slice(bytes);
            Ok(())
        })?;
        part.file.verify(PlainDigest::of(&content))?;
        Ok(content)
    }

    /// Hands over the bytes of `part`, in order and all of them. Parts must be asked for in the
    /// order in which they were given.
    pub fn read(&mut self, part: &Part, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut at = part.range.start;
        for extent in &part.extents {
            zeros(extent.at - at, sink)?;
            let cursor = self.cursors.get_mut(extent.link).and_then(Option::as_mut);
            let cursor = cursor
                .ok_or_else(|| Error::failed(format!("{} was not planned", part.file.path)))?;
            cursor.read(&extent.pack, extent.offset, extent.length, sink)?;
            at = extent.at + extent.length;
        }
        zeros(part.range.end - at, sink)
    }

    /// Stored bytes that were fetched so far.
    pub fn fetched(&self) -> u64 {
        self.cursors
            .iter()
            .flatten()
            .map(|cursor| cursor.fetched)
            .sum()
    }

    /// How long this thread waited for them.
    pub fn waited(&self) -> Duration {
        self.cursors
            .iter()
            .flatten()
            .map(|cursor| cursor.waited)
            .sum()
    }
}

fn zeros(mut count: u64, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    while count > 0 {
        let now = count.min(ZEROS.len() as u64);
        sink(&ZEROS[..now as usize])?;
        count -= now;
    }
    Ok(())
}
