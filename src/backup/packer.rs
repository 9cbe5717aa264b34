//! Turning files into packs with their indexes, several at once.

mod done;
mod pool;
pub mod tree;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::file::FileRead;
use crate::config::Compression;
use crate::digest::StoredDigest;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::repository::bridge::ObjectWriter;
use crate::repository::frames::Frames;
use crate::repository::index::{self, Made, Member, MemberKind};
use crate::repository::keys;
use crate::repository::marker::StoredObject;
use crate::repository::pack::{PackSummary, PackWriter};
use crate::repository::waiter::Waiter;
use crate::storage::Store;

use done::WrittenObject;
pub(super) use done::done_pack;
pub use done::{DonePack, PackedFile};
pub(super) use pool::Packed;

/// A pack whose bytes are all on their way, with the index that follows it.
pub(super) struct WrittenPack {
    object: WrittenObject,
    index: Index,
    read: Vec<Option<FileRead>>,
}

/// An index that is to be put as soon as its pack is durable.
pub(super) struct Index {
    pub(super) object: StoredObject,
    content: Bytes,
}

/// Makes the packs of one backup, with `jobs` threads that read and compress: whoever has no
/// pack helps the others. Memory: for each job a few frames, the index of one pack and a few
/// parts on their way, and the same once more for a pack that becomes durable meanwhile.
#[derive(Clone)]
pub struct Packer {
    pub(super) store: Store,
    /// The backup's directory.
    pub(super) directory: String,
    compression: Compression,
    pub(super) progress: Progress,
    pub(super) waiter: Waiter,
    next: Arc<AtomicU32>,
    pub(super) frames: Arc<Frames>,
    /// For the parts of all packs that are under way.
    slots: Arc<Semaphore>,
}

/// Parts under way for each job: as many as its two packs, the one being written and the one
/// becoming durable, would take by twos. A single pack may take all of them.
const SLOTS: usize = 4;

/// A pack that becomes durable.
pub struct Finishing {
    task: JoinHandle<Result<DonePack>>,
    runtime: Handle,
}

impl Finishing {
    /// Waits for it. Blocks.
    pub fn wait(self) -> Result<DonePack> {
        self.runtime.clone().block_on(self.end())
    }

    async fn end(self) -> Result<DonePack> {
        let done = self.task.await;
        done.unwrap_or_else(|error| Err(Error::failed("an upload died").because(error)))
    }
}

/// What a pack is filled with.
pub type Pack<'a> = PackWriter<&'a mut dyn FnMut(Bytes) -> Result<()>>;

impl Packer {
    /// A packer that writes below `directory`, for so many `jobs`. Its threads end when `waiter` is
    /// stopped.
    pub fn new(
        store: &Store,
        directory: String,
        compression: Compression,
        progress: Progress,
        waiter: Waiter,
        jobs: usize,
    ) -> Self {
        Self {
            store: store.clone(),
            directory,
            compression,
            progress,
            waiter,
            next: Arc::new(AtomicU32::new(1)),
            frames: Arc::new(Frames::new(compression)),
            slots: Arc::new(Semaphore::new(SLOTS * jobs.max(1))),
        }
    }

    /// So many bytes of files have been packed. An error as soon as nobody wants more.
    pub fn passed(&self, bytes: u64) -> Result<()> {
        self.progress.add(bytes);
        self.waiter.check()
    }

    /// Numbers are given in the order of the files, whoever packs them.
    fn next_number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Runs `work`, which makes packs one after the other, while `jobs` - 1 threads help to
    /// compress them.
    pub fn with_helpers<T>(&self, jobs: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let owner = self.frames.own();
        std::thread::scope(|scope| {
            // What a helper cannot do, whoever waits for its frame is told.
            let helpers = (1..jobs).map(|_| scope.spawn(|| self.frames.help()));
            let helpers: Vec<_> = helpers.collect();
            let done = work();
            drop(owner);
            for helper in helpers {
                let died = || Error::failed("a thread that compresses died");
                helper.join().unwrap_or_else(|_| Err(died()))?;
            }
            done
        })
    }

    /// Makes one pack as [`pack`](Self::pack) does, and lets it become durable while the caller
    /// goes on.
    pub fn pack_ahead(
        &self,
        expected: u64,
        fill: impl FnOnce(&mut Pack<'_>, &mut Vec<Option<FileRead>>) -> Result<()>,
    ) -> Result<Finishing> {
        let pack = self.write_pack(self.next_number(), expected, fill)?;
        Ok(self.finish_ahead(pack))
    }

    fn finish_ahead(&self, pack: WrittenPack) -> Finishing {
        let (packer, runtime) = (self.clone(), self.waiter.runtime().clone());
        let task = runtime.spawn(async move { packer.finish_pack(pack).await });
        Finishing { task, runtime }
    }

    /// Makes one pack out of what `fill` writes, the last so far. For each file it also says what
    /// was read.
    pub fn pack(
        &self,
        expected: u64,
        fill: impl FnOnce(&mut Pack<'_>, &mut Vec<Option<FileRead>>) -> Result<()>,
    ) -> Result<DonePack> {
        let pack = self.write_pack(self.next_number(), expected, fill)?;
        self.waiter.runtime().block_on(self.finish_pack(pack))
    }

    pub(super) fn write_pack(
        &self,
        number: u32,
        expected: u64,
        fill: impl FnOnce(&mut Pack<'_>, &mut Vec<Option<FileRead>>) -> Result<()>,
    ) -> Result<WrittenPack> {
        let mut read = Vec::new();
        let pack_key = keys::backup::pack(number);
        let mut object = self.write_object(pack_key, expected, |pack| fill(pack, &mut read))?;
        let summary = &mut object.summary;
        let members = summary.members.iter_mut();
        let files = members.filter(|member| member.kind == MemberKind::File);
        for (member, read) in files.zip(read.iter().flatten()) {
            member.crc32c = Some(read.crc32c);
        }
        let (size, sha256) = (summary.stored_size, summary.sha256);
        let index = self.index(number, &object.key, size, sha256, &summary.members)?;
        Ok(WrittenPack {
            object,
            index,
            read,
        })
    }

    pub(super) fn index(
        &self,
        number: u32,
        pack: &str,
        size: u64,
        sha256: StoredDigest,
        members: &[Member],
    ) -> Result<Index> {
        let made = Made {
            seawall_version: env!("CARGO_PKG_VERSION").to_owned(),
            level: self.compression.level,
            minimum_match: self.compression.minimum_match,
            size,
            sha256,
        };
        let mut text = Vec::new();
        index::write(&mut text, pack, Some(made), members)
            .map_err(|error| Error::failed("cannot write an index").because(error))?;
        let stored = self.frames.compressor()?.compress(&text)?;
        let object = StoredObject {
            key: keys::backup::index(number),
            size: stored.len() as u64,
            sha256: StoredDigest::of(&stored),
        };
        Ok(Index {
            object,
            content: stored.into(),
        })
    }

    pub(super) async fn put_index(&self, index: &Index) -> Result<()> {
        let key = format!("{}/{}", self.directory, index.object.key);
        Ok(self.store.put(&key, index.content.clone()).await?)
    }

    /// Waits until the pack is durable, and then puts its index.
    async fn finish_pack(&self, pack: WrittenPack) -> Result<DonePack> {
        let (summary, object) = pack.object.finish().await?;
        self.put_index(&pack.index).await?;
        Ok(done_pack(
            object,
            pack.index.object,
            summary.members,
            pack.read,
        ))
    }

    /// Writes one seekable tar object and waits until it is durable.
    pub fn object(
        &self,
        key: &str,
        expected: u64,
        fill: impl FnOnce(&mut Pack<'_>) -> Result<()>,
    ) -> Result<(PackSummary, StoredObject)> {
        let written = self.write_object(key.to_owned(), expected, fill)?;
        self.waiter.runtime().block_on(written.finish())
    }

    fn write_object(
        &self,
        key: String,
        expected: u64,
        fill: impl FnOnce(&mut Pack<'_>) -> Result<()>,
    ) -> Result<WrittenObject> {
        let writer = {
            let _inside = self.waiter.runtime().enter();
            let (key, slots) = (format!("{}/{key}", self.directory), Arc::clone(&self.slots));
            ObjectWriter::sharing(&self.store, key, expected, slots)
        };
        let mut sink = |bytes| writer.write(bytes);
        let sink: &mut dyn FnMut(Bytes) -> Result<()> = &mut sink;
        let packed =
            PackWriter::with_helpers(Arc::clone(&self.frames), sink).and_then(|mut pack| {
                fill(&mut pack)?;
                pack.finish()
            });
        match packed {
            Ok(summary) => Ok(WrittenObject {
                key,
                summary,
                writer,
            }),
            Err(error) => Err(self.waiter.runtime().block_on(writer.give_up(error))),
        }
    }
}
