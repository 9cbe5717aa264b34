//! Bringing files into place. One thread joins the indexes of the chain and hands out work in
//! the order of the files: some small files together, or a part of a large one. `jobs` threads
//! fetch, open, verify and write, each piece once and straight into place.
//!
//! Memory for each job: a buffer of 1 MiB; for the work at hand and for the next one 20 MiB
//! fetched ahead and a frame of 1 MiB for the backup that most is read from, 4 MiB and a frame
//! for each other of a chain; the plan of two works. And for each backup of the chain an open
//! index, with the next three as they are stored.

mod schedule;

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use seawall::digest::{PlainDigest, PlainHasher, Subtree};
use seawall::error::{Error, Result};
use seawall::postgres::{label, layout};
use seawall::progress::Progress;
use seawall::repository::System;
use seawall::repository::chain::files::ChainFile;
use seawall::repository::chain::join::Join;
use seawall::repository::chain::read::{Part, Reader};
use seawall::repository::marker::Marker;
use seawall::repository::waiter::Waiter;
use seawall::storage::Store;
use tokio::sync::mpsc;

use crate::delta;
use crate::manifest::NewManifest;
use crate::objects::{blocking, create};
use crate::only::Only;
use crate::write::{Buffer, Destination, Writer};
use schedule::{PART_SIZE, Schedule, Split, Work, WrittenPart};

/// What was written.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) files: u64,
    pub(crate) plain_bytes: u64,
    pub(crate) fetched_bytes: u64,
    /// Files that were right already, and their bytes. They are not among the others.
    pub(crate) kept_files: u64,
    pub(crate) kept_bytes: u64,
    /// How long threads waited for bytes of packs, all together.
    pub(crate) waited: Duration,
    /// How long threads were making and writing files, all together.
    pub(crate) wrote: Duration,
    /// `pg_control`, which is written last, by the caller.
    pub(crate) control: Vec<u8>,
    pub(crate) control_mode: u32,
}

impl Written {
    fn add(&mut self, other: Self) {
        self.files += other.files;
        self.plain_bytes += other.plain_bytes;
        self.fetched_bytes += other.fetched_bytes;
        self.kept_files += other.kept_files;
        self.kept_bytes += other.kept_bytes;
        self.waited += other.waited;
        self.wrote += other.wrote;
        if !other.control.is_empty() {
            self.control = other.control;
            self.control_mode = other.control_mode;
        }
    }
}

/// How files are brought into place.
pub(crate) struct Means {
    /// Where to.
    pub(crate) root: PathBuf,
    /// Threads that fetch and write.
    pub(crate) jobs: usize,
    /// Files that are there may be those that are wanted.
    pub(crate) delta: bool,
    /// Where files are put together from several backups: what becomes their manifest.
    pub(crate) manifest: Option<Arc<NewManifest>>,
    /// Which databases are restored, where it is not all of them.
    pub(crate) only: Option<Arc<Only>>,
    pub(crate) progress: Progress,
}

/// Brings every file of the backup that `chain` leads to below the root, but for `pg_control`,
/// `tablespace_map` and the signal files of the source. `chain` is newest first.
pub(crate) async fn write_all(system: &System, chain: &[&Marker], means: Means) -> Result<Written> {
    let marker = *chain
        .first()
        .ok_or_else(|| Error::failed("a chain of no backups"))?;
    let (_stop, waiter) = Waiter::new();
    let jobs = means.jobs.max(1);
    let shared = Arc::new(Shared {
        store: system.store().clone(),
        place: system.place(),
        waiter,
        failure: Mutex::new(None),
        is_chain: chain.len() > 1,
        means,
    });
    let join = Join::new(system, chain, &shared.waiter)?;
    let (sender, receiver) = mpsc::channel(1);
    let receiver = Arc::new(Mutex::new(receiver));
    let scheduling = {
        let shared = Arc::clone(&shared);
        blocking(move || {
            let mut schedule = Schedule::new(&shared, sender);
            Ok(shared.unless_failed(|| schedule.run(join)))
        })
    };
    let working = (0..jobs).map(|_| {
        let (shared, receiver) = (Arc::clone(&shared), Arc::clone(&receiver));
        blocking(move || Ok(shared.unless_failed(|| shared.work(&receiver))))
    });
    let working = futures::future::join_all(working);
    drop(receiver);
    let (scheduled, worked) = tokio::join!(scheduling, working);
    let mut written = Written::default();
    let mut died = None;
    for one in worked {
        match one {
            Ok(one) => written.add(one.unwrap_or_default()),
            Err(error) => died = Some(error),
        }
    }
    if let Some(error) = lock(&shared.failure).take() {
        return Err(error);
    }
    if let Some(died) = died {
        return Err(died);
    }
    let files = scheduled?.unwrap_or_default();
    if files != marker.files {
        return Err(Error::failed(format!(
            "backup {} has {} files, its packs hold {files}",
            marker.id, marker.files
        ))
        .at(system.place()));
    }
    written.files = files - written.kept_files;
    if written.control.is_empty() {
        return Err(
            Error::failed(format!("backup {} holds no pg_control", marker.id)).at(system.place()),
        );
    }
    Ok(written)
}

/// What the threads share.
struct Shared {
    store: Store,
    place: String,
    waiter: Waiter,
    /// The first error: those that follow only say that all were told to stop.
    failure: Mutex<Option<Error>>,
    is_chain: bool,
    means: Means,
}

impl Shared {
    fn unless_failed<T>(&self, work: impl FnOnce() -> Result<T>) -> Option<T> {
        let error = match work() {
            Ok(done) => return Some(done),
            Err(error) if error.advice().is_none() => error.at(&self.place),
            Err(error) => error,
        };
        lock(&self.failure).get_or_insert(error);
        self.waiter.stop();
        None
    }

    fn work(&self, receiver: &Mutex<mpsc::Receiver<Work>>) -> Result<Written> {
        let mut worker = Worker {
            shared: self,
            written: Written::default(),
            buffer: Buffer::default(),
        };
        // Held while waiting: the others wait for the same.
        let next = || lock(receiver).blocking_recv();
        let at_hand = || receiver.try_lock().ok()?.try_recv().ok();
        let mut begun: Option<Begun> = None;
        while let Some(Begun { work, reader }) = match begun.take() {
            None => next().map(|work| self.begin(work)).transpose()?,
            begun => begun,
        } {
            self.waiter.check()?;
            // The first bytes of the next come while this one is written.
            begun = at_hand().map(|work| self.begin(work)).transpose()?;
            match work.split {
                Some((split, number)) => worker.part(&split, number, &work.parts, reader)?,
                None => worker.files(&work.parts, reader)?,
            }
        }
        Ok(worker.written)
    }

    fn begin(&self, work: Work) -> Result<Begun> {
        let reader = match self.means.delta {
            true => None,
            false => Some(Reader::new(&self.store, &self.waiter, &work.parts)?),
        };
        Ok(Begun { work, reader })
    }
}

/// A work, and what is fetched for it already.
struct Begun {
    work: Work,
    /// None with `--delta`: what is there may be right.
    reader: Option<Reader>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread that fetches and writes.
struct Worker<'a> {
    shared: &'a Shared,
    written: Written,
    buffer: Buffer,
}

impl Worker<'_> {
    fn files(&mut self, parts: &[Part], reader: Option<Reader>) -> Result<()> {
        let mut wanted = Vec::with_capacity(parts.len());
        for part in parts {
            if !self.shared.means.delta || !self.keep(&part.file)? {
                wanted.push(part);
            }
        }
        let mut reader = self.reader(reader, wanted.iter().copied())?;
        for part in wanted {
            self.file(&mut reader, part)?;
        }
        self.count(&reader);
        Ok(())
    }

    fn reader<'a>(
        &self,
        begun: Option<Reader>,
        parts: impl IntoIterator<Item = &'a Part>,
    ) -> Result<Reader> {
        match begun {
            Some(reader) => Ok(reader),
            None => Reader::new(&self.shared.store, &self.shared.waiter, parts),
        }
    }

    fn count(&mut self, reader: &Reader) {
        self.written.fetched_bytes += reader.fetched();
        self.written.waited += reader.waited();
    }

    /// Whether the file is there as it is to be, and may stay.
    fn keep(&mut self, file: &ChainFile) -> Result<bool> {
        let special = file.path == layout::CONTROL_FILE
            || file.path == layout::BACKUP_LABEL
            || is_left_out(&file.path);
        let path = self.shared.means.root.join(&file.path);
        if special {
            return Ok(false);
        }
        let waiter = &self.shared.waiter;
        let there = delta::crc32c_if_already(&path, file, &mut self.buffer, waiter)?;
        let Some(crc32c) = there else {
            return Ok(false);
        };
        self.listed(file, file.size, crc32c)?;
        self.written.kept_files += 1;
        self.written.kept_bytes += file.size;
        self.shared.means.progress.add(file.size);
        Ok(true)
    }

    /// Writes one file.
    fn file(&mut self, reader: &mut Reader, part: &Part) -> Result<()> {
        let file = &part.file;
        let path = self.shared.means.root.join(&file.path);
        match file.path.as_str() {
            layout::CONTROL_FILE => {
                let content = reader.read_small(part)?;
                self.done(file, file.size, crc32c::crc32c(&content))?;
                self.written.control = content;
                self.written.control_mode = file.mode;
            }
            name if is_left_out(name) => {
                reader.read_small(part)?;
            }
            layout::BACKUP_LABEL if self.shared.is_chain => {
                let content = reader.read_small(part)?;
                let content = label::without_increment(&content);
                let target = create(&path, file.mode)?;
                let to = Destination::of(&target, &path);
                let mut writer = Writer::new(to, 0, &mut self.buffer);
                writer.push(&content)?;
                self.written.wrote += writer.finish()?;
                self.done(file, content.len() as u64, crc32c::crc32c(&content))?;
            }
            _ => {
                let started = std::time::Instant::now();
                let in_place = self.shared.means.delta && file.digest.is_none();
                let target = match (self.shared.means.delta, in_place) {
                    (_, true) => delta::open_in_place(&path, file.mode, file.size)?,
                    (true, false) => delta::create_anew(&path, file.mode)?,
                    (false, false) => create(&path, file.mode)?,
                };
                self.written.wrote += started.elapsed();
                let to = Destination {
                    compare: in_place,
                    ..Destination::of(&target, &path)
                };
                let (hasher, crc) = self.copy(reader, part, to)?;
                if let Some(hasher) = hasher {
                    file.verify(hasher.finish())?;
                }
                self.done(file, file.size, crc)?;
            }
        }
        Ok(())
    }

    /// Writes a part to its place. What its bytes come to, and their CRC-32C where anybody wants
    /// to know.
    fn copy(
        &mut self,
        reader: &mut Reader,
        part: &Part,
        to: Destination<'_>,
    ) -> Result<(Option<PlainHasher>, u32)> {
        let start = part.range.start;
        let mut writer = Writer::new(to, start, &mut self.buffer);
        // What is put together from several backups has no digest to compare with.
        let mut hasher = part.file.digest.map(|_| PlainHasher::of_part(start));
        let mut crc = 0;
        let with_crc = self.shared.means.manifest.is_some();
        reader.read(part, &mut |bytes| {
            if let Some(hasher) = &mut hasher {
                hasher.update(bytes);
            }
            if with_crc {
                crc = crc32c::crc32c_append(crc, bytes);
            }
            writer.push(bytes)
        })?;
        self.written.wrote += writer.finish()?;
        Ok((hasher, crc))
    }

    /// Writes a part of a large file, and ends the file with its last part.
    fn part(
        &mut self,
        split: &Split,
        number: usize,
        parts: &[Part],
        reader: Option<Reader>,
    ) -> Result<()> {
        let mut reader = self.reader(reader, parts)?;
        for part in parts {
            let to = Destination {
                file: &split.file,
                path: &split.path,
                direct: split.direct.as_ref(),
                compare: self.shared.means.delta,
            };
            let (hasher, crc) = self.copy(&mut reader, part, to)?;
            self.shared.means.progress.add(part.size());
            self.written.plain_bytes += part.size();
            lock(&split.parts)[number] = Some(WrittenPart {
                digest: hasher.map(|hasher| hasher.finish_part()),
                crc32c: crc,
            });
        }
        self.count(&reader);
        if split.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Ok(());
        }
        let parts: Vec<WrittenPart> = lock(&split.parts).iter().copied().flatten().collect();
        let trees: Option<Vec<Subtree>> = parts.iter().map(|part| part.digest).collect();
        let file = &split.whole;
        if let Some(trees) = trees {
            file.verify(PlainDigest::of_parts(&trees, PART_SIZE, file.size))?;
        }
        let sizes = (0..).map(|at| (file.size - at * PART_SIZE).min(PART_SIZE));
        let crc = parts.iter().zip(sizes).fold(0, |crc, (part, size)| {
            crc32c::crc32c_combine(crc, part.crc32c, size as usize)
        });
        self.listed(file, file.size, crc)
    }

    fn done(&mut self, file: &ChainFile, size: u64, crc32c: u32) -> Result<()> {
        self.written.plain_bytes += size;
        self.shared.means.progress.add(size);
        self.listed(file, size, crc32c)
    }

    fn listed(&self, file: &ChainFile, size: u64, crc32c: u32) -> Result<()> {
        match &self.shared.means.manifest {
            Some(manifest) => manifest.add(&file.path, size, file.modified, crc32c),
            None => Ok(()),
        }
    }
}

/// A restored directory has no tablespace_map, since recovery would make every link from it,
/// and no signal file of its source.
pub(crate) fn is_left_out(path: &str) -> bool {
    [layout::TABLESPACE_MAP, "recovery.signal", "standby.signal"].contains(&path)
}
