//! Turning batches of files into packs with their indexes, several at once.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::file::{self, Pages};
use super::scan::{self, Found, Tree};
use crate::config::Compression;
use crate::digest::StoredDigest;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::repository::bridge::ObjectWriter;
use crate::repository::codec::FrameCompressor;
use crate::repository::index::{self, Member, MemberKind};
use crate::repository::keys;
use crate::repository::marker::StoredObject;
use crate::repository::pack::{PackSummary, PackWriter};
use crate::storage::Store;

/// A file of a finished pack, with what only the manifest wants to know.
#[derive(Debug)]
pub struct PackedFile {
    /// The index's line.
    pub member: Member,
    /// CRC-32C of its bytes.
    pub crc32c: u32,
    /// Pages whose checksum was wrong.
    pub damaged: u64,
}

/// A pack and its index, both durable.
#[derive(Debug)]
pub struct DonePack {
    /// The pack, then the index.
    pub objects: [StoredObject; 2],
    /// Its regular files.
    pub files: Vec<PackedFile>,
}

/// Makes the packs of one backup. Memory: for each job one frame, its compressed form, a few
/// parts on their way, and the index of one pack.
#[derive(Clone)]
pub struct Packer {
    store: Store,
    /// The backup's directory.
    directory: String,
    compression: Compression,
    pages: Pages,
    progress: Progress,
    runtime: Handle,
    next: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
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
            pages,
            progress,
            runtime: Handle::current(),
            next: Arc::new(AtomicU32::new(1)),
            stop: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Tells all threads to end soon, with an error.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Packs all of `tree` with `jobs` threads, and hands each finished pack to `done`.
    /// Blocks; call it on a thread that may.
    pub fn pack_tree(
        &self,
        tree: &Tree,
        jobs: usize,
        mut done: impl FnMut(DonePack) -> Result<()>,
    ) -> Result<()> {
        // A batch waits for each job at most: the scan never runs far ahead.
        let (batches, received) = mpsc::sync_channel::<(u32, Vec<Found>)>(1);
        let received = Mutex::new(Some(received));
        let (finished, results) = mpsc::channel::<Result<DonePack>>();
        std::thread::scope(|scope| {
            for _ in 0..jobs {
                let (received, finished) = (&received, finished.clone());
                scope.spawn(move || {
                    while let Some((number, batch)) = next_batch(received) {
                        let result = self.pack_batch(number, batch);
                        let failed = result.is_err();
                        if finished.send(result).is_err() || failed {
                            break;
                        }
                    }
                });
            }
            let scanning = scope.spawn(move || {
                scan::scan(tree, |batch| {
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

    fn check_stopped(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::failed("the backup was stopped"));
        }
        Ok(())
    }

    /// Numbers are given in the order of the files, whoever packs them.
    fn next_number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn pack_batch(&self, number: u32, batch: Vec<Found>) -> Result<DonePack> {
        let expected = batch
            .iter()
            .map(|found| found.member.size + 1536)
            .sum::<u64>()
            + 1024;
        self.numbered(number, expected, |pack, read| {
            for found in batch {
                self.check_stopped()?;
                let size = found.member.size;
                read.push(file::read_into(pack, found, self.pages)?);
                self.progress.add(size);
            }
            Ok(())
        })
    }

    /// Makes one pack out of what `fill` writes, the last so far. For each file it also says what
    /// was read.
    pub fn pack(
        &self,
        expected: u64,
        fill: impl FnOnce(&mut Pack<'_>, &mut Vec<Option<file::FileRead>>) -> Result<()>,
    ) -> Result<DonePack> {
        self.numbered(self.next_number(), expected, fill)
    }

    fn numbered(
        &self,
        number: u32,
        expected: u64,
        fill: impl FnOnce(&mut Pack<'_>, &mut Vec<Option<file::FileRead>>) -> Result<()>,
    ) -> Result<DonePack> {
        let (pack_key, index_key) = (keys::backup::pack(number), keys::backup::index(number));
        let mut read = Vec::new();
        let (summary, pack) = self.object(&pack_key, expected, |pack| fill(pack, &mut read))?;
        let index = self.put_index(&pack_key, index_key, &summary.members)?;
        let files = summary
            .members
            .into_iter()
            .filter(|member| member.kind == MemberKind::File)
            .zip(read.into_iter().flatten())
            .map(|(member, read)| PackedFile {
                member,
                crc32c: read.crc32c,
                damaged: read.damaged,
            })
            .collect();
        Ok(DonePack {
            objects: [pack, index],
            files,
        })
    }

    /// Writes one seekable tar object and waits until it is durable.
    pub fn object(
        &self,
        key: &str,
        expected: u64,
        fill: impl FnOnce(&mut Pack<'_>) -> Result<()>,
    ) -> Result<(PackSummary, StoredObject)> {
        let writer = {
            let _inside = self.runtime.enter();
            ObjectWriter::new(&self.store, format!("{}/{key}", self.directory), expected)
        };
        let mut sink = |bytes| writer.write(bytes);
        let sink: &mut dyn FnMut(Bytes) -> Result<()> = &mut sink;
        let packed = PackWriter::new(self.compression, sink).and_then(|mut pack| {
            fill(&mut pack)?;
            pack.finish()
        });
        let summary = match packed {
            Ok(summary) => summary,
            Err(error) => return Err(self.runtime.block_on(writer.give_up(error))),
        };
        let stored = self.runtime.block_on(writer.finish())?;
        if stored != summary.stored_size {
            return Err(Error::failed(format!(
                "{key} was written with {} bytes and the store says {stored}",
                summary.stored_size
            )));
        }
        let object = StoredObject {
            key: key.to_owned(),
            size: stored,
            sha256: summary.sha256,
        };
        Ok((summary, object))
    }

    fn put_index(&self, pack: &str, key: String, members: &[Member]) -> Result<StoredObject> {
        let mut text = Vec::new();
        index::write(&mut text, pack, members)
            .map_err(|error| Error::failed("cannot write an index").because(error))?;
        let stored = FrameCompressor::new(self.compression)?.compress(&text)?;
        let object = StoredObject {
            key,
            size: stored.len() as u64,
            sha256: StoredDigest::of(&stored),
        };
        let full_key = format!("{}/{}", self.directory, object.key);
        self.runtime
            .block_on(self.store.put(&full_key, stored.into()))?;
        Ok(object)
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
