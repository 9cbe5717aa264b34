//! Writing what a chain comes to into new packs, several at once.

use std::sync::{Arc, Mutex, PoisonError, mpsc};

use bytes::Bytes;

use crate::backup::manifest::StreamedManifest;
use crate::backup::packer::PackedFile;
use crate::config::Compression;
use crate::digest::{PlainDigest, StoredDigest};
use crate::error::{Error, Result};
use crate::postgres::{label, layout};
use crate::progress::Progress;
use crate::repository::bridge::ObjectWriter;
use crate::repository::chain::files::ChainFile;
use crate::repository::chain::join::{Entry, Join};
use crate::repository::chain::read::{Part, Reader};
use crate::repository::codec::FrameCompressor;
use crate::repository::index::{self, Member, MemberKind};
use crate::repository::keys;
use crate::repository::marker::StoredObject;
use crate::repository::pack::PackWriter;
use crate::repository::waiter::{StopSwitch, Waiter};
use crate::storage::Store;

/// Files up to so many bytes share a pack of at most so many; a larger one has its own.
const PACK_BYTES: u64 = 256 << 20;

/// Members of a pack.
const PACK_MEMBERS: usize = 16_384;

/// Damaged pages that the marker names.
const NAMED_DAMAGE: usize = 1000;

/// What the packs add up to.
#[derive(Debug, Default)]
pub(super) struct Sums {
    pub(super) objects: Vec<StoredObject>,
    pub(super) files: u64,
    pub(super) plain_bytes: u64,
    pub(super) damaged_pages: Vec<String>,
    pub(super) damaged_page_count: u64,
}

/// Makes the packs of a merged backup.
pub(super) struct Merger {
    pub(super) store: Store,
    /// The new backup's directory.
    pub(super) directory: String,
    pub(super) compression: Compression,
    pub(super) waiter: Waiter,
    pub(super) switch: Arc<StopSwitch>,
    pub(super) progress: Progress,
}

/// What becomes one pack.
enum Content {
    Directory(Box<Member>),
    File(Part),
}

struct Batch {
    number: u32,
    bytes: u64,
    contents: Vec<Content>,
}

struct Packed {
    objects: [StoredObject; 2],
    files: Vec<PackedFile>,
}

impl Merger {
    /// Reads all of `join` and writes it with `jobs` threads. Blocks.
    pub(super) fn run(
        &self,
        join: Join,
        mut manifest: StreamedManifest,
        jobs: usize,
    ) -> Result<(Sums, StreamedManifest)> {
        let (batches, received) = mpsc::sync_channel::<Batch>(1);
        let received = Mutex::new(Some(received));
        let (finished, results) = mpsc::channel::<Result<Packed>>();
        std::thread::scope(|scope| {
            for _ in 0..jobs.max(1) {
                let (received, finished) = (&received, finished.clone());
                scope.spawn(move || {
                    while let Some(batch) = next(received) {
                        let packed = self.pack(batch);
                        let failed = packed.is_err();
                        if finished.send(packed).is_err() || failed {
                            break;
                        }
                    }
                });
            }
            let planning = scope.spawn(move || Batches::new(batches).run(join));
            drop(finished);
            let mut sums = Sums::default();
            let mut first_error = None;
            for packed in results {
                if first_error.is_some() {
                    continue;
                }
                let added = packed.and_then(|packed| {
                    manifest.add(&packed.files)?;
                    sums.add(packed);
                    Ok(())
                });
                if let Err(error) = added {
                    first_error = Some(error);
                    self.switch.stop();
                    // The next send of who plans fails, and it ends.
                    lock(&received).take();
                }
            }
            // Nobody takes batches any more, also where threads died.
            lock(&received).take();
            let planned = planning
                .join()
                .unwrap_or_else(|_| Err(Error::failed("the thread that plans a merge died")));
            match first_error {
                Some(error) => Err(error),
                None => planned.map(|()| (sums, manifest)),
            }
        })
    }

    fn pack(&self, batch: Batch) -> Result<Packed> {
        let pack_key = keys::backup::pack(batch.number);
        let writer = {
            let _inside = self.waiter.runtime().enter();
            let key = format!("{}/{pack_key}", self.directory);
            ObjectWriter::new(&self.store, key, batch.bytes)
        };
        let mut crcs = Vec::new();
        let packed =
            PackWriter::new(self.compression, |bytes| writer.write(bytes)).and_then(|mut pack| {
                self.fill(&mut pack, &batch.contents, &mut crcs)?;
                pack.finish()
            });
        let summary = match packed {
            Ok(summary) => summary,
            Err(error) => return Err(self.waiter.runtime().block_on(writer.give_up(error))),
        };
        self.waiter.wait(writer.finish())?;
        let mut text = Vec::new();
        let mut members = summary.members;
        let files = members.iter_mut().filter(|m| m.kind == MemberKind::File);
        for (member, crc32c) in files.zip(&crcs) {
            member.crc32c = Some(*crc32c);
        }
        index::write(&mut text, &pack_key, None, &members)
            .map_err(|error| Error::failed("cannot write an index").because(error))?;
        let stored = FrameCompressor::new(self.compression)?.compress(&text)?;
        let index = StoredObject {
            key: keys::backup::index(batch.number),
            size: stored.len() as u64,
            sha256: StoredDigest::of(&stored),
        };
        let key = format!("{}/{}", self.directory, index.key);
        self.waiter
            .wait(async { Ok(self.store.put(&key, stored.into()).await?) })?;
        let pack = StoredObject {
            key: pack_key,
            size: summary.stored_size,
            sha256: summary.sha256,
        };
        let files = members
            .into_iter()
            .filter(|member| member.kind == MemberKind::File)
            .zip(crcs)
            .map(|(member, crc32c)| PackedFile {
                damaged: member.damaged_blocks.len() as u64,
                member,
                crc32c,
            });
        Ok(Packed {
            files: files.collect(),
            objects: [pack, index],
        })
    }

    fn fill<S: FnMut(Bytes) -> Result<()>>(
        &self,
        pack: &mut PackWriter<S>,
        contents: &[Content],
        crcs: &mut Vec<u32>,
    ) -> Result<()> {
        let parts = contents.iter().filter_map(|content| match content {
            Content::File(part) => Some(part),
            Content::Directory(_) => None,
        });
        let mut reader = Reader::new(&self.store, &self.waiter, parts)?;
        for content in contents {
            let part = match content {
                Content::Directory(member) => {
                    pack.directory(Member::clone(member))?;
                    continue;
                }
                Content::File(part) => part,
            };
            let file = &part.file;
            let mut crc = 0;
            let mut hasher = crate::digest::PlainHasher::default();
            if file.path == layout::BACKUP_LABEL {
                let label = read_label(&mut reader, part)?;
                pack.begin_file(member_of(file, label.len() as u64))?;
                pack.write(&label)?;
                crc = crc32c::crc32c(&label);
            } else {
                pack.begin_file(member_of(file, file.size))?;
                reader.read(part, &mut |bytes| {
                    crc = crc32c::crc32c_append(crc, bytes);
                    hasher.update(bytes);
                    pack.write(bytes)
                })?;
                verify(file, hasher.finish())?;
            }
            pack.end_file(file.damaged_blocks.clone())?;
            crcs.push(crc);
            self.progress.add(file.size);
        }
        Ok(())
    }
}

impl Sums {
    fn add(&mut self, packed: Packed) {
        self.objects.extend(packed.objects);
        for file in packed.files {
            self.files += 1;
            self.plain_bytes += file.member.size;
            self.damaged_page_count += file.damaged;
            for block in &file.member.damaged_blocks {
                if self.damaged_pages.len() < NAMED_DAMAGE {
                    let named = format!("{}: block {block}", file.member.path);
                    self.damaged_pages.push(named);
                }
            }
        }
    }
}

/// Gathers what becomes one pack, in order.
struct Batches {
    sender: mpsc::SyncSender<Batch>,
    next: u32,
    current: Vec<Content>,
    bytes: u64,
}

impl Batches {
    fn new(sender: mpsc::SyncSender<Batch>) -> Self {
        Self {
            sender,
            next: 1,
            current: Vec::new(),
            bytes: 0,
        }
    }

    fn run(mut self, join: Join) -> Result<()> {
        let mut is_last = false;
        for entry in join {
            match entry? {
                Entry::Directory(member) => self.add(Content::Directory(Box::new(member)), 0)?,
                Entry::File(file) => {
                    // pg_control and the labels stand alone, outside of the order.
                    if file.is_of_last_pack() && !is_last {
                        is_last = true;
                        self.flush()?;
                    }
                    let size = file.size;
                    self.add(Content::File(Part::whole(file)), size)?;
                }
            }
        }
        self.flush()
    }

    fn add(&mut self, content: Content, size: u64) -> Result<()> {
        if self.bytes + size > PACK_BYTES || self.current.len() >= PACK_MEMBERS {
            self.flush()?;
        }
        self.bytes += size;
        self.current.push(content);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.current.is_empty() {
            return Ok(());
        }
        let batch = Batch {
            number: self.next,
            bytes: self.bytes + 1536 * self.current.len() as u64,
            contents: std::mem::take(&mut self.current),
        };
        self.next += 1;
        self.bytes = 0;
        self.sender
            .send(batch)
            .map_err(|_| Error::failed("packing ended early"))
    }
}

/// The label of a full backup.
fn read_label(reader: &mut Reader, part: &Part) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    reader.read(part, &mut |bytes| {
        content.extend_from_slice(bytes);
        Ok(())
    })?;
    verify(&part.file, PlainDigest::of(&content))?;
    Ok(label::without_increment(&content))
}

fn verify(file: &ChainFile, found: PlainDigest) -> Result<()> {
    match file.digest {
        Some(digest) if digest != found => Err(Error::failed(format!(
            "the backup is damaged: {} has another digest than the index says",
            file.path
        ))),
        _ => Ok(()),
    }
}

fn member_of(file: &ChainFile, size: u64) -> Member {
    let mut member = Member::directory(file.path.clone(), file.mode, file.modified);
    member.kind = MemberKind::File;
    member.size = size;
    member.identity = file.identity.clone();
    member
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn next<T>(received: &Mutex<Option<mpsc::Receiver<T>>>) -> Option<T> {
    // Held while waiting: the others wait for the same.
    lock(received).as_ref()?.recv().ok()
}
