//! Turning batches of files into packs with their indexes, several at once.

mod done;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::file::{self, Pages};
use super::incremental::{self, Baseline};
use super::resume::Earlier;
use super::scan::{self, Found, Tree};
use crate::config::Compression;
use crate::digest::StoredDigest;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::repository::bridge::ObjectWriter;
use crate::repository::frames::{Frames, Owner};
use crate::repository::index::{self, Made, Member, MemberKind};
use crate::repository::keys;
use crate::repository::marker::StoredObject;
use crate::repository::pack::{PackSummary, PackWriter};
use crate::storage::Store;

use done::WrittenObject;
pub(super) use done::done_pack;
pub use done::{DonePack, PackedFile};

/// A pack whose bytes are all on their way, with the index that follows it.
struct WrittenPack {
    object: WrittenObject,
    index: Index,
    read: Vec<Option<file::FileRead>>,
}

/// An index that is to be put as soon as its pack is durable.
pub(super) struct Index {
    pub(super) object: StoredObject,
    content: Bytes,
}

/// What became of a batch.
enum Packed {
    Written(WrittenPack),
    /// It is what an earlier backup had packed, and durable.
    TakenOver(DonePack),
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
    pub(super) earlier: Arc<Earlier>,
    pub(super) pages: Pages,
    pub(super) progress: Progress,
    pub(super) runtime: Handle,
    next: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    pub(super) frames: Arc<Frames>,
}

/// A pack that becomes durable.
pub struct Finishing {
    task: JoinHandle<Result<DonePack>>,
    runtime: Handle,
}

impl Finishing {
    /// Waits for it. Blocks.
    pub fn wait(self) -> Result<DonePack> {
        let done = self.runtime.block_on(self.task);
        done.unwrap_or_else(|error| Err(Error::failed("an upload died").because(error)))
    }
}

/// What a pack is filled with.
pub type Pack<'a> = PackWriter<&'a mut dyn FnMut(Bytes) -> Result<()>>;

impl Packer {
    /// A packer that writes below `directory`. Must be called inside the runtime.
    pub fn new(
        store: &Store,
        directory: String,
        compression: Compression,
        pages: Pages,
        progress: Progress,
    ) -> Self {
        Self {
            store: store.clone(),
            directory,
            compression,
            earlier: Arc::default(),
            pages,
            progress,
            runtime: Handle::current(),
            next: Arc::new(AtomicU32::new(1)),
            stop: Arc::new(AtomicBool::new(false)),
            frames: Arc::new(Frames::new(compression)),
        }
    }

    /// The same packer, which takes over what an interrupted backup left, where it can.
    pub fn resuming(self, earlier: Earlier) -> Self {
        Self {
            earlier: Arc::new(earlier),
            ..self
        }
    }

    /// Bytes of a page of the cluster.
    pub fn block_size(&self) -> u32 {
        self.pages.block_size
    }

    /// Tells all threads to end soon, with an error.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Packs all of `tree` with `jobs` threads, and hands each finished pack to `done`; of files
    /// that the `baseline` knows what changed since. Blocks; call it on a thread that may.
    pub fn pack_tree(
        &self,
        tree: &Tree,
        jobs: usize,
        mut baseline: Option<Baseline>,
        mut done: impl FnMut(DonePack) -> Result<()>,
    ) -> Result<()> {
        // A batch waits for each job at most: the scan never runs far ahead.
        let (batches, received) = mpsc::sync_channel::<(u32, Vec<Found>)>(1);
        let received = Mutex::new(Some(received));
        let (finished, results) = mpsc::channel::<Result<DonePack>>();
        let finishing = Arc::new(Semaphore::new(jobs));
        // All at once: who is early must not think that there is nobody to help.
        let owners: Vec<Owner<'_>> = (0..jobs).map(|_| self.frames.own()).collect();
        std::thread::scope(|scope| {
            for owner in owners {
                let (received, finished) = (&received, finished.clone());
                let finishing = Arc::clone(&finishing);
                scope.spawn(move || {
                    while let Some((number, batch)) = next_batch(received) {
                        match self.pack_batch(number, batch) {
                            Ok(Packed::Written(pack)) => {
                                self.finish_later(pack, &finishing, finished.clone());
                            }
                            Ok(Packed::TakenOver(pack)) => {
                                let _ = finished.send(Ok(pack));
                            }
                            Err(error) => {
                                let _ = finished.send(Err(error));
                                return;
                            }
                        }
                    }
                    drop(owner);
                    if let Err(error) = self.frames.help() {
                        let _ = finished.send(Err(error));
                    }
                });
            }
            if self.progress.is_shown() {
                // Beside the work: nobody waits for a total.
                scope.spawn(|| {
                    if let Ok(total) = scan::total_size(tree, || self.check_stopped()) {
                        self.progress.set_total(total);
                    }
                });
            }
            let scanning = scope.spawn(move || {
                let block_size = self.pages.block_size;
                let weigh = |found: &mut Found| {
                    if let Some(baseline) = &mut baseline {
                        found.basis = baseline.basis(found)?;
                    }
                    Ok(found.basis.weight(found.member.size, block_size))
                };
                let cut = |path: &str| self.earlier.begins_at(path);
                scan::scan(tree, weigh, cut, |batch| {
                    self.check_stopped()?;
                    batches
                        .send((self.next_number(), batch))
                        .map_err(|_| Error::failed("packing ended early"))
                })
            });
            drop(finished);
            let mut first_error = None;
            for result in results {
                if first_error.is_some() {
                    continue;
                }
                if let Err(error) = result.and_then(&mut done) {
                    first_error = Some(error);
                    self.stop();
                    // The scan's next send fails, and it ends.
                    received.lock().unwrap_or_else(|e| e.into_inner()).take();
                }
            }
            let scanned = scanning
                .join()
                .unwrap_or_else(|_| Err(Error::failed("the scan of the data directory died")));
            match first_error {
                Some(error) => Err(error),
                None => scanned,
            }
        })
    }

    /// So many bytes of files have been packed. An error as soon as nobody wants more.
    pub fn passed(&self, bytes: u64) -> Result<()> {
        self.progress.add(bytes);
        self.check_stopped()
    }

    pub(super) fn check_stopped(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::failed("the backup was stopped"));
        }
        Ok(())
    }

    /// Numbers are given in the order of the files, whoever packs them.
    fn next_number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn pack_batch(&self, number: u32, batch: Vec<Found>) -> Result<Packed> {
        if let Some(pack) = self.take_over(number, &batch)? {
            return Ok(Packed::TakenOver(pack));
        }
        let expected = batch
            .iter()
            .map(|found| found.member.size + 1536)
            .sum::<u64>()
            + 1024;
        let passed = |bytes| self.passed(bytes);
        let pack = self.write_pack(number, expected, |pack, read| {
            for found in batch {
                self.check_stopped()?;
                let changed = incremental::file::read_into(pack, &found, self.pages, &passed)?;
                read.push(match changed {
                    None => file::read_into(pack, found, self.pages, &passed)?,
                    changed => changed,
                });
            }
            Ok(())
        })?;
        Ok(Packed::Written(pack))
    }

    /// Waits for the pack's last bytes and puts its index while this thread goes on with the
    /// next. Blocks while as many packs as there are jobs have not become durable.
    fn finish_later(
        &self,
        pack: WrittenPack,
        finishing: &Arc<Semaphore>,
        finished: mpsc::Sender<Result<DonePack>>,
    ) {
        let permit = self.runtime.block_on(Arc::clone(finishing).acquire_owned());
        let packer = self.clone();
        self.runtime.spawn(async move {
            let done = packer.finish_pack(pack).await;
            drop(permit);
            let _ = finished.send(done);
        });
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
        fill: impl FnOnce(&mut Pack<'_>, &mut Vec<Option<file::FileRead>>) -> Result<()>,
    ) -> Result<Finishing> {
        let pack = self.write_pack(self.next_number(), expected, fill)?;
        let packer = self.clone();
        let task = self
            .runtime
            .spawn(async move { packer.finish_pack(pack).await });
        Ok(Finishing {
            task,
            runtime: self.runtime.clone(),
        })
    }

    /// Makes one pack out of what `fill` writes, the last so far. For each file it also says what
    /// was read.
    pub fn pack(
        &self,
        expected: u64,
        fill: impl FnOnce(&mut Pack<'_>, &mut Vec<Option<file::FileRead>>) -> Result<()>,
    ) -> Result<DonePack> {
        let pack = self.write_pack(self.next_number(), expected, fill)?;
        self.runtime.block_on(self.finish_pack(pack))
    }

    fn write_pack(
        &self,
        number: u32,
        expected: u64,
        fill: impl FnOnce(&mut Pack<'_>, &mut Vec<Option<file::FileRead>>) -> Result<()>,
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
        self.runtime.block_on(written.finish())
    }

    fn write_object(
        &self,
        key: String,
        expected: u64,
        fill: impl FnOnce(&mut Pack<'_>) -> Result<()>,
    ) -> Result<WrittenObject> {
        let writer = {
            let _inside = self.runtime.enter();
            ObjectWriter::new(&self.store, format!("{}/{key}", self.directory), expected)
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
            Err(error) => Err(self.runtime.block_on(writer.give_up(error))),
        }
    }
}

fn next_batch<T>(received: &Mutex<Option<mpsc::Receiver<T>>>) -> Option<T> {
    // Held while waiting: the others wait for the same.
    received
        .lock()
        .unwrap_or_else(|e| e.into_inner())
        .as_ref()?
        .recv()
        .ok()
}
