//! The spool of fetched segments that wait for PostgreSQL: `pg_wal/seawall/fetch/`, seen from
//! the call that PostgreSQL makes.
//!
//! One worker process fills it ([`super::prefetch()`]); calls only take from it. What makes a
//! file in it believed:
//!
//! - Its name, `SEGMENT-SOURCE`, is given by a rename, after every byte was written and its
//!   digest verified. SOURCE is a digest of all that decides what the segment's bytes are.
//! - **The worker that wrote it is alive**: it holds the lock of this directory, which is made
//!   anew for each worker. So the file was written by this very kernel, whose page cache still
//!   has all of it: nothing that a crash of the machine tore, and nothing of a copied or
//!   restored disk, is ever believed. A call takes 2 ms so; to verify the digest of 16 MiB again
//!   takes 4 ms more, to fsync them before the rename 15 to 40 ms, in which somebody may wait.
//! - Its length and its first page are those of the segment that was asked for.
//!
//! Whoever finds a spool without its worker removes it. Locks are flock(2)'s, which end with
//! the process that holds them, however it ends.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::turn::is_at;
use super::{Place, Request, Turn, delivery};
use crate::digest::PlainDigest;
use crate::durable;
use crate::error::{Error, IoContext, Result};
use crate::postgres::wal_page::{LONG_HEADER_SIZE, LongPageHeader, check_segment_header};
use crate::postgres::{SegmentName, SystemId, WalFileName};

/// PostgreSQL's name for the file that recovery asks for; pg_rewind uses the segment's own.
const RECOVERY_FILE: &str = "RECOVERYXLOG";
/// Below pg_wal.
const DIRECTORY: &str = "seawall/fetch";
/// What is fetched right now ends so, and is locked by the worker.
const PART: &str = "part";
/// A part that does not grow for so long is not waited for.
const STALLED: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 5000 });

/// The spool of one data directory.
#[derive(Debug, Clone)]
pub struct Spool {
    directory: PathBuf,
    source: PlainDigest,
}

impl Spool {
    /// The spool for a recovery's request. `None` for anybody else's: pg_rewind goes
    /// backwards, and nobody knows where a person goes.
    ///
    /// `source` is a digest of all that decides what is delivered under a segment's name.
    pub fn of(request: &Request<'_>, source: PlainDigest) -> Option<Self> {
        let name = request.destination.file_name()?;
        let is_segment = matches!(request.name, WalFileName::Segment(_));
        (is_segment && name == RECOVERY_FILE).then_some(Self {
            source,
            ..Self::beside(request.destination)
        })
    }

    /// Of no source.
    fn beside(destination: &Path) -> Self {
        Self {
            directory: destination.with_file_name(DIRECTORY),
            source: PlainDigest::of(b""),
        }
    }

    /// Delivers the requested segment, in its turn, if it is here or is just being fetched.
    /// False is no answer: the repositories must be asked.
    pub fn take(&self, request: &Request<'_>, system: SystemId, turn: &Turn) -> Result<bool> {
        let WalFileName::Segment(segment) = request.name else {
            return Ok(false);
        };
        if request.place() == Place::Behind || !self.has_worker() {
            return Ok(false);
        }
        // From here on it is this call's alone.
        let taken = self
            .directory
            .join(format!("{segment}.{}", std::process::id()));
        if !self.claim(segment, &taken)? {
            return Ok(false);
        }
        let delivered = check(&taken, segment, request, system)
            .and_then(|()| delivery::publish(&taken, turn, *request));
        if delivered.is_err() {
            let _ = std::fs::remove_file(&taken);
        }
        delivered.map(|()| true)
    }

    /// Tells the worker that PostgreSQL got a segment without it. A worker that is just ending
    /// needs no word.
    pub fn tell(&self, delivered: WalFileName) -> Result<()> {
        let WalFileName::Segment(segment) = delivered else {
            return Ok(());
        };
        let (note, new) = (self.note(), self.directory.join("asked.new"));
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(self.name_of(segment).as_bytes())?;
            durable::rename_without_sync(&new, &note)
        };
        ignore_absent(write()).on("write", &note)
    }

    /// Whether the disk has so many bytes left for PostgreSQL's user. Quotas are not known.
    pub fn has_room(&self, bytes: u64) -> bool {
        // pg_wal is there, the spool perhaps not yet.
        let pg_wal = self.directory.ancestors().nth(2).unwrap_or(&self.directory);
        nix::sys::statvfs::statvfs(pg_wal)
            .is_ok_and(|disk| disk.blocks_available().saturating_mul(disk.fragment_size()) >= bytes)
    }

    /// Makes an empty spool for a new worker, and its lock: whoever holds that file open is
    /// the worker. `None` where there is one already.
    pub fn begin(&self) -> Result<Option<File>> {
        if self.has_worker() {
            return Ok(None);
        }
        self.discard()?;
        let mut builder = DirBuilder::new();
        builder.mode(0o700).recursive(true);
        let parent = self.directory.parent().unwrap_or(&self.directory);
        builder.create(parent).on("make", parent)?;
        match builder.recursive(false).create(&self.directory) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(None),
            made => made.on("make", &self.directory)?,
        }
        let path = self.lock();
        let lock = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .on("create", &path)?;
        Ok(lock.try_lock().is_ok().then_some(lock))
    }

    /// Removes what a worker that was killed has left beside `destination`.
    pub fn discard_orphaned(destination: &Path) -> Result<()> {
        let spool = Self::beside(destination);
        let is_there = spool.directory.exists() || spool.ended().exists();
        if !is_there || spool.has_worker() {
            return Ok(());
        }
        spool.discard()
    }

    /// Whether `file`, opened by [`begin`](Self::begin), makes this process the worker of the
    /// spool beside `destination`.
    pub fn makes_worker(destination: &Path, file: &File) -> bool {
        Self::beside(destination).is_locked_by(file)
    }

    /// Removes the spool with all that is in it: for its worker, and where there is none.
    /// Nobody sees a part of it meanwhile.
    fn discard(&self) -> Result<()> {
        let ended = self.ended();
        let remove = || {
            ignore_absent(std::fs::remove_dir_all(&ended))?;
            ignore_absent(durable::rename_without_sync(&self.directory, &ended))?;
            ignore_absent(std::fs::remove_dir_all(&ended))
        };
        remove().on("remove", &self.directory)?;
        if let Some(parent) = self.directory.parent() {
            // Somebody else's files may be there.
            let _ = std::fs::remove_dir(parent);
        }
        Ok(())
    }

    /// Removes the spool if `lock` is still its own. The data directory may be another one by
    /// now: then nothing in it is ours.
    pub fn end(&self, lock: &File) -> Result<()> {
        match self.is_locked_by(lock) {
            true => self.discard(),
            false => Ok(()),
        }
    }

    /// Whether `file` is the lock of the spool as it is now.
    pub(super) fn is_locked_by(&self, file: &File) -> bool {
        is_at(file, &self.lock()) && file.try_lock().is_ok()
    }

    /// Where a segment waits.
    pub(super) fn path_of(&self, segment: SegmentName) -> PathBuf {
        self.directory.join(self.name_of(segment))
    }

    /// Where it is while it is fetched.
    pub(super) fn part_of(&self, segment: SegmentName) -> PathBuf {
        self.directory.join(format!("{segment}.{PART}"))
    }

    /// What [`tell`](Self::tell) told last. `None` inside is about another source.
    pub(super) fn told(&self) -> Option<(String, Option<SegmentName>)> {
        let text = std::fs::read_to_string(self.note()).ok()?;
        let segment = self.segment_of(&text);
        Some((text, segment))
    }

    /// The segments that wait here.
    pub(super) fn waiting(&self) -> std::io::Result<Vec<SegmentName>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            found.extend(self.segment_of(&entry?.file_name().to_string_lossy()));
        }
        Ok(found)
    }

    fn name_of(&self, segment: SegmentName) -> String {
        format!("{segment}-{}", self.source)
    }

    fn segment_of(&self, name: &str) -> Option<SegmentName> {
        let (segment, source) = name.split_once('-')?;
        (source == self.source.to_string()).then(|| segment.parse().ok())?
    }

    fn ended(&self) -> PathBuf {
        self.directory.with_file_name("fetch-ended")
    }

    fn lock(&self) -> PathBuf {
        self.directory.join("lock")
    }

    fn note(&self) -> PathBuf {
        self.directory.join("asked")
    }

    /// Whether a worker lives.
    pub fn has_worker(&self) -> bool {
        let lock = File::open(self.lock());
        lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Renames the segment to `taken`, waiting for it where it is just being fetched.
    fn claim(&self, segment: SegmentName, taken: &Path) -> Result<bool> {
        let path = self.path_of(segment);
        // Once more than one may have to wait: it may appear between two looks.
        for _ in 0..3 {
            match durable::rename_without_sync(&path, taken) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                renamed => return renamed.on("rename", &path).map(|()| true),
            }
            if !self.await_part(segment) && !path.exists() {
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// Waits until the worker has done with a segment, well or badly, as long as there is
    /// progress. False where there is nothing to wait for.
    fn await_part(&self, segment: SegmentName) -> bool {
        let Ok(part) = File::open(self.part_of(segment)) else {
            return false;
        };
        let (done, waiting) = mpsc::channel();
        let Ok(locking) = part.try_clone() else {
            return false;
        };
        // flock(2) has no time limit: the thread may stay behind, and ends with the process.
        std::thread::spawn(move || {
            let _ = locking.lock_shared();
            let _ = done.send(());
        });
        let length = || part.metadata().map_or(0, |metadata| metadata.len());
        let mut before = length();
        loop {
            match waiting.recv_timeout(STALLED) {
                Err(mpsc::RecvTimeoutError::Timeout) if length() == before => return false,
                Err(mpsc::RecvTimeoutError::Timeout) => before = length(),
                _ => return true,
            }
        }
    }
}

/// Whether the file is what its name says, as far as its length and its first page tell.
fn check(path: &Path, segment: SegmentName, request: &Request<'_>, system: SystemId) -> Result<()> {
    let mut first = [0; LONG_HEADER_SIZE];
    let mut file = File::open(path).on("open", path)?;
    let length = file.metadata().on("examine", path)?.len();
    file.read_exact(&mut first).on("read", path)?;
    LongPageHeader::parse(&first)
        .and_then(|header| {
            check_segment_header(&header, segment, system, request.segment_size, length)
        })
        .map_err(|error| Error::from(error).at(path.display()))
}

fn ignore_absent(done: std::io::Result<()>) -> std::io::Result<()> {
    match done {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::{SegmentSize, TimelineId};
    use std::time::Instant;

    const SYSTEM: SystemId = SystemId(77);

    fn size() -> SegmentSize {
        SegmentSize::new(1 << 20).unwrap()
    }

    /// Segment 5 of timeline 2, as PostgreSQL 15 begins it.
    fn plain() -> Vec<u8> {
        let mut bytes = vec![7; 1 << 20];
        bytes[0..2].copy_from_slice(&0xD110u16.to_le_bytes());
        bytes[2..4].copy_from_slice(&3u16.to_le_bytes());
        bytes[4..8].copy_from_slice(&2u32.to_le_bytes());
        bytes[8..16].copy_from_slice(&(5u64 << 20).to_le_bytes());
        bytes[24..32].copy_from_slice(&SYSTEM.0.to_le_bytes());
        bytes[32..36].copy_from_slice(&(1u32 << 20).to_le_bytes());
        bytes[36..40].copy_from_slice(&8192u32.to_le_bytes());
        bytes
    }

    struct Case {
        _directory: tempfile::TempDir,
        destination: PathBuf,
        spool: Spool,
        segment: SegmentName,
    }

    impl Case {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let pg_wal = directory.path().join("pg_wal");
            std::fs::create_dir(&pg_wal).unwrap();
            let destination = pg_wal.join(RECOVERY_FILE);
            let segment = SegmentName::new(TimelineId::new(2).unwrap(), 5, size());
            let source = PlainDigest::of(b"source");
            let spool = Spool::of(&Self::request(&destination, segment), source).unwrap();
            Self {
                _directory: directory,
                destination,
                spool,
                segment,
            }
        }

        fn request(destination: &Path, segment: SegmentName) -> Request<'_> {
            Request {
                name: WalFileName::Segment(segment),
                segment_size: size(),
                destination,
                end_at_gap: false,
                left: &[],
                new_tablespaces: Default::default(),
                follows: None,
            }
        }

        fn take(&self) -> Result<bool> {
            let request = Self::request(&self.destination, self.segment);
            let turn = Turn::at(&self.destination).unwrap();
            let taken = self.spool.take(&request, SYSTEM, &turn);
            assert_eq!(self.destination.exists(), matches!(taken, Ok(true)));
            taken
        }

        fn put(&self, path: &Path, content: &[u8]) -> File {
            let mut file = File::create(path).unwrap();
            file.write_all(content).unwrap();
            file
        }
    }

    #[test]
    fn a_segment_is_taken_once_and_only_while_its_worker_lives() {
        let case = Case::new();
        assert!(!case.take().unwrap(), "there is no spool");
        let lock = case.spool.begin().unwrap().unwrap();
        assert!(case.spool.begin().unwrap().is_none(), "a second worker");
        assert!(!case.take().unwrap(), "it is not there yet");
        case.put(&case.spool.path_of(case.segment), &plain());
        assert!(case.take().unwrap());
        assert!(std::fs::read(&case.destination).unwrap() == plain());
        std::fs::remove_file(&case.destination).unwrap();
        assert!(!case.take().unwrap(), "it was taken");

        case.put(&case.spool.path_of(case.segment), &plain());
        drop(lock);
        assert!(!case.take().unwrap(), "its worker is dead");
        Spool::discard_orphaned(&case.destination).unwrap();
        let pg_wal = case.destination.parent().unwrap();
        assert_eq!(std::fs::read_dir(pg_wal).unwrap().count(), 0);
    }

    #[test]
    fn a_part_is_waited_for_while_it_grows_and_no_longer() {
        let case = Case::new();
        let _lock = case.spool.begin().unwrap().unwrap();
        let (part, path) = (
            case.spool.part_of(case.segment),
            case.spool.path_of(case.segment),
        );
        let begin = || {
            let file = case.put(&part, b"");
            file.lock().unwrap();
            file
        };
        // It comes in pieces, over longer than a part that stands still is waited for.
        let mut file = begin();
        let slow = std::thread::spawn({
            let (part, path) = (part.clone(), path.clone());
            move || {
                for piece in plain().chunks(1 << 18) {
                    std::thread::sleep(STALLED / 2);
                    file.write_all(piece).unwrap();
                }
                durable::rename_without_sync(&part, &path).unwrap();
            }
        });
        assert!(case.take().unwrap());
        slow.join().unwrap();
        std::fs::remove_file(&case.destination).unwrap();
        // The worker gives it up.
        let file = begin();
        let failing = std::thread::spawn({
            let part = part.clone();
            move || {
                std::thread::sleep(STALLED / 3);
                std::fs::remove_file(&part).unwrap();
                drop(file);
            }
        });
        assert!(!case.take().unwrap());
        failing.join().unwrap();
        // It hangs.
        let file = begin();
        let started = Instant::now();
        assert!(!case.take().unwrap());
        assert!(started.elapsed() >= STALLED);
        drop(file);
    }

    #[test]
    fn another_source_sees_nothing_and_its_note_is_known_as_foreign() {
        let case = Case::new();
        let _lock = case.spool.begin().unwrap().unwrap();
        case.put(&case.spool.path_of(case.segment), &plain());
        let request = Case::request(&case.destination, case.segment);
        let other = Spool::of(&request, PlainDigest::of(b"another")).unwrap();
        let turn = Turn::at(&case.destination).unwrap();
        assert!(!other.take(&request, SYSTEM, &turn).unwrap());
        assert_eq!(case.spool.told(), None);
        case.spool.tell(request.name).unwrap();
        assert_eq!(case.spool.told().unwrap().1, Some(case.segment));
        other.tell(request.name).unwrap();
        assert_eq!(case.spool.told().unwrap().1, None);
        assert_eq!(case.spool.waiting().unwrap(), [case.segment]);
    }

    #[test]
    fn pg_rewind_and_histories_have_no_spool() {
        let case = Case::new();
        let source = PlainDigest::of(b"source");
        let own_name = case.destination.with_file_name(case.segment.to_string());
        let request = Case::request(&own_name, case.segment);
        assert!(Spool::of(&request, source).is_none());
        let history = Request {
            name: "00000002.history".parse().unwrap(),
            ..Case::request(&case.destination, case.segment)
        };
        assert!(Spool::of(&history, source).is_none());
    }
}
