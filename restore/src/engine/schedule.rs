//! The thread that plans: it joins the indexes, makes directories, and hands out the files in
//! works of about the same size.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use seawall::digest::Subtree;
use seawall::error::{Error, Result};
use seawall::repository::chain::files::ChainFile;
use seawall::repository::chain::join::{Entry, Join};
use seawall::repository::chain::read::Part;
use tokio::sync::mpsc;

use super::Shared;
use crate::delta;
use crate::objects::{create, make_directory, set_mode};
use crate::write::open_direct;

/// A work holds about so many bytes, and a larger file is cut into parts of exactly so many: a
/// power of two, as [`Subtree`] wants it.
pub(super) const PART_SIZE: u64 = 64 << 20;

/// And at most so many files.
const PART_FILES: usize = 4096;

/// Some small files, or a part of a large one.
pub(super) struct Work {
    pub(super) parts: Vec<Part>,
    /// For a part: the file, and the number of the part.
    pub(super) split: Option<(Arc<Split>, usize)>,
}

/// A file whose parts are written by several threads.
pub(super) struct Split {
    pub(super) file: File,
    /// The same, to be written past the page cache.
    pub(super) direct: Option<File>,
    pub(super) path: PathBuf,
    pub(super) whole: Arc<ChainFile>,
    /// Those that are written.
    pub(super) parts: Mutex<Vec<Option<WrittenPart>>>,
    pub(super) left: AtomicUsize,
}

/// What is known of a part that is written.
#[derive(Clone, Copy)]
pub(super) struct WrittenPart {
    /// Of its bytes, where there is a digest of the whole to compare with.
    pub(super) digest: Option<Subtree>,
    /// Of its bytes, where anybody wants to know.
    pub(super) crc32c: u32,
}

/// The thread that plans.
pub(super) struct Schedule<'a> {
    shared: &'a Shared,
    sender: mpsc::Sender<Work>,
    parts: Vec<Part>,
    bytes: u64,
    files: u64,
}

impl<'a> Schedule<'a> {
    pub(super) fn new(shared: &'a Shared, sender: mpsc::Sender<Work>) -> Self {
        Self {
            shared,
            sender,
            parts: Vec::new(),
            bytes: 0,
            files: 0,
        }
    }

    /// Returns how many files there are.
    pub(super) fn run(&mut self, join: Join) -> Result<u64> {
        for entry in join {
            match entry? {
                Entry::Directory(member) => {
                    let path = self.shared.means.root.join(&member.path);
                    make_directory(&path)?;
                    set_mode(&path, member.mode)?;
                }
                Entry::File(file) => self.file(file)?,
            }
        }
        self.flush()?;
        Ok(self.files)
    }

    fn file(&mut self, file: ChainFile) -> Result<()> {
        self.files += 1;
        if self.shared.means.stub(&file)? {
            return Ok(());
        }
        // What may stay as it is, is judged as a whole.
        let may_stay = self.shared.means.delta && file.digest.is_some();
        if file.size > PART_SIZE && !may_stay {
            return self.split(file);
        }
        self.bytes += file.size;
        self.parts.push(Part::whole(file));
        if self.bytes >= PART_SIZE || self.parts.len() >= PART_FILES {
            self.flush()?;
        }
        Ok(())
    }

    fn split(&mut self, file: ChainFile) -> Result<()> {
        let path = self.shared.means.root.join(&file.path);
        let opened = match self.shared.means.delta {
            true => delta::open_in_place(&path, file.mode, file.size)?,
            false => create(&path, file.mode)?,
        };
        let direct = match self.shared.means.delta {
            true => None,
            false => open_direct(&opened, &path, file.size)?,
        };
        let count = file.size.div_ceil(PART_SIZE) as usize;
        let whole = Arc::new(file);
        let split = Arc::new(Split {
            file: opened,
            direct,
            path,
            whole: Arc::clone(&whole),
            parts: Mutex::new(vec![None; count]),
            left: AtomicUsize::new(count),
        });
        for number in 0..count {
            let start = number as u64 * PART_SIZE;
            let end = (start + PART_SIZE).min(whole.size);
            self.send(Work {
                parts: vec![Part::new(Arc::clone(&whole), start..end)],
                split: Some((Arc::clone(&split), number)),
            })?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.bytes = 0;
        let parts = std::mem::take(&mut self.parts);
        match parts.is_empty() {
            true => Ok(()),
            false => self.send(Work { parts, split: None }),
        }
    }

    fn send(&self, work: Work) -> Result<()> {
        let sent = self.sender.blocking_send(work);
        sent.map_err(|_| Error::failed("writing ended early"))
    }
}
