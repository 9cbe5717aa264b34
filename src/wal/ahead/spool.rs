//! What was archived ahead of PostgreSQL's asking: one small file for each segment in
//! `pg_wal/seawall/archive/`, locked by whoever archives it, holding a record once it is
//! durable.
//!
//! A record is believed only while the segment is the very file that was read, unchanged, and
//! the record is whole, young, and about the repositories of today. Locks are the kernel's, so
//! they end with their process; a file without a whole record says nothing.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::PlainDigest;
use crate::postgres::{SegmentName, SystemId};
use crate::wal::identity::Identity;

/// A record that is older is not believed: what lies in a repository may have changed.
const LONGEST_BELIEF: Duration = Duration::from_secs(60);

/// A record is a few hundred bytes; nothing that lies may fill our memory.
const LARGEST_RECORD: u64 = 64 << 10;

/// The directory of one data directory's records.
#[derive(Debug, Clone)]
pub struct Spool {
    directory: PathBuf,
}

/// What a record must be about in order to count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whose {
    /// The cluster's name in the repositories.
    pub cluster: String,
    /// PostgreSQL's system identifier.
    pub system_id: SystemId,
    /// The configuration: where the repositories are is in it.
    pub configuration: PlainDigest,
}

/// A segment that is durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Whose it is.
    pub whose: Whose,
    /// The file that was read.
    pub file: Identity,
    /// The names of the repositories that hold it.
    pub held_by: Vec<String>,
    /// When it was confirmed, by this host's clock.
    pub confirmed: Timestamp,
}

/// One segment's file, locked. The lock ends when this is dropped, or with the process.
#[derive(Debug)]
pub struct Claim {
    file: File,
    path: PathBuf,
}

impl Spool {
    /// The spool of the data directory that this `pg_wal` belongs to. Touches nothing.
    pub fn beside(pg_wal: &Path) -> Self {
        Self {
            directory: pg_wal.join("seawall").join("archive"),
        }
    }

    /// Where it lies.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn open(&self, name: &str) -> io::Result<File> {
        let path = self.directory.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.mode(0o600);
        match options.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Only below a pg_wal that is there: a data directory that was removed must
                // not come back.
                for directory in [self.directory.parent(), Some(&self.directory)] {
                    let Some(directory) = directory else { continue };
                    match std::fs::DirBuilder::new().mode(0o700).create(directory) {
                        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                            return Err(error);
                        }
                        _ => {}
                    }
                }
                options.open(&path)
            }
            other => other,
        }
    }

    /// Claims a segment. `None` where another process has it.
    pub fn try_claim(&self, segment: SegmentName) -> io::Result<Option<Claim>> {
        let path = self.directory.join(segment.to_string());
        loop {
            let file = self.open(&segment.to_string())?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
                // Whoever had it may have removed it.
                Ok(()) if file.metadata()?.nlink() == 0 => {}
                Ok(()) => return Ok(Some(Claim { file, path })),
            }
        }
    }

    /// Claims a segment, and waits for the process that has it. `None` if that takes longer
    /// than `patience`.
    pub fn claim(&self, segment: SegmentName, patience: Duration) -> io::Result<Option<Claim>> {
        if let Some(claim) = self.try_claim(segment)? {
            return Ok(Some(claim));
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        let spool = self.clone();
        // A lock cannot be waited for with a limit; a thread can. It ends with the process.
        std::thread::spawn(move || {
            let wait = || -> io::Result<Option<Claim>> {
                loop {
                    spool.open(&segment.to_string())?.lock()?;
                    // Another who waited may have been quicker.
                    if let Some(claim) = spool.try_claim(segment)? {
                        return Ok(Some(claim));
                    }
                }
            };
            let _ = sender.send(wait());
        });
        receiver.recv_timeout(patience).unwrap_or(Ok(None))
    }

    /// The lock of the process that works ahead. `None` where another has it.
    pub fn worker_lock(&self) -> io::Result<Option<File>> {
        let file = self.open("worker.lock")?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Tells the process that works ahead which segment PostgreSQL asks for.
    pub fn tell(&self, segment: SegmentName) -> io::Result<()> {
        let file = self.open("asked")?;
        file.write_all_at(segment.to_string().as_bytes(), 0)
    }

    /// The segment that PostgreSQL asked for last without finding it archived ahead.
    pub fn told(&self) -> Option<SegmentName> {
        let text = std::fs::read_to_string(self.directory.join("asked")).ok()?;
        text.parse().ok()
    }

    /// Forgets it.
    pub fn forget_told(&self) {
        let _ = std::fs::remove_file(self.directory.join("asked"));
    }

    /// Removes the files of segments for which `keep` is false, unless somebody is at work on
    /// them.
    pub fn clean(&self, keep: impl Fn(SegmentName) -> bool) {
        for entry in std::fs::read_dir(&self.directory).into_iter().flatten() {
            let name = entry
                .ok()
                .and_then(|entry| entry.file_name().into_string().ok());
            let segment = name.and_then(|name| name.parse::<SegmentName>().ok());
            if let Some(segment) = segment.filter(|segment| !keep(*segment))
                && let Ok(Some(claim)) = self.try_claim(segment)
            {
                claim.remove();
            }
        }
    }
}

impl Claim {
    /// The record, if it is whole, young enough, and about this cluster and this file.
    pub fn record(&mut self, whose: &Whose, file: &Identity) -> Option<Record> {
        let mut text = String::new();
        self.file.rewind().ok()?;
        (&self.file)
            .take(LARGEST_RECORD)
            .read_to_string(&mut text)
            .ok()?;
        let (json, digest) = text.strip_suffix('\n')?.split_once('\n')?;
        if digest.parse() != Ok(PlainDigest::of(json.as_bytes())) {
            return None;
        }
        let record: Record = serde_json::from_str(json).ok()?;
        let age = Timestamp::now().duration_since(record.confirmed);
        let young = Duration::try_from(age).is_ok_and(|age| age < LONGEST_BELIEF);
        (young && record.whose == *whose && record.file == *file).then_some(record)
    }

    /// Writes the record. A crash in the middle leaves one that is not believed.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let json = serde_json::to_string(record)?;
        let text = format!("{json}\n{}\n", PlainDigest::of(json.as_bytes()));
        self.file.set_len(0)?;
        self.file.write_all_at(text.as_bytes(), 0)?;
        self.file.flush()
    }

    /// Removes the file.
    pub fn remove(self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment() -> SegmentName {
        "000000010000000000000005".parse().unwrap()
    }

    fn whose() -> Whose {
        Whose {
            cluster: "main".to_owned(),
            system_id: SystemId(7),
            configuration: PlainDigest::of(b""),
        }
    }

    fn record(file: &Identity) -> Record {
        Record {
            whose: whose(),
            file: file.clone(),
            held_by: vec!["near".to_owned()],
            confirmed: Timestamp::now(),
        }
    }

    #[test]
    fn a_record_is_believed_only_of_the_same_unchanged_file() {
        let pg_wal = tempfile::tempdir().unwrap();
        let spool = Spool::beside(pg_wal.path());
        let path = pg_wal.path().join("x");
        crate::durable::write_file(&path, b"one", 0o600).unwrap();
        let file = Identity::of(&path).unwrap();
        let mut claim = spool.try_claim(segment()).unwrap().unwrap();
        assert_eq!(claim.record(&whose(), &file), None);
        claim.write(&record(&file)).unwrap();
        assert_eq!(claim.record(&whose(), &file).unwrap().held_by.len(), 1);
        let other = Whose {
            system_id: SystemId(8),
            ..whose()
        };
        assert_eq!(claim.record(&other, &file), None);
        // The same bytes, written again: another file.
        crate::durable::write_file(&path, b"one", 0o600).unwrap();
        let again = Identity::of(&path).unwrap();
        assert_eq!(claim.record(&whose(), &again), None);
        // Renamed and back, as PostgreSQL recycles segments.
        std::thread::sleep(Duration::from_millis(20));
        crate::durable::publish(&path, &pg_wal.path().join("y")).unwrap();
        crate::durable::publish(&pg_wal.path().join("y"), &path).unwrap();
        claim.write(&record(&again)).unwrap();
        assert_eq!(claim.record(&whose(), &Identity::of(&path).unwrap()), None);
    }

    #[test]
    fn a_torn_or_old_record_is_not_believed() {
        let pg_wal = tempfile::tempdir().unwrap();
        let spool = Spool::beside(pg_wal.path());
        let file = Identity::of(pg_wal.path()).unwrap();
        let mut claim = spool.try_claim(segment()).unwrap().unwrap();
        claim.write(&record(&file)).unwrap();
        let path = spool.directory().join(segment().to_string());
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            claim.file.set_len(0).unwrap();
            claim.file.write_all_at(&whole[..length], 0).unwrap();
            assert_eq!(claim.record(&whose(), &file), None, "{length} bytes");
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            claim.file.write_all_at(&flipped, 0).unwrap();
            assert_eq!(claim.record(&whose(), &file), None, "byte {at}");
        }
        let mut old = record(&file);
        for hours in [-1, 1] {
            old.confirmed = Timestamp::now() - jiff::SignedDuration::from_hours(hours);
            claim.write(&old).unwrap();
            assert_eq!(claim.record(&whose(), &file), None, "{hours} hours ago");
        }
    }

    #[test]
    fn a_claim_is_waited_for_and_ends_with_its_holder() {
        let pg_wal = tempfile::tempdir().unwrap();
        let spool = Spool::beside(pg_wal.path());
        let claim = spool.try_claim(segment()).unwrap().unwrap();
        assert!(spool.try_claim(segment()).unwrap().is_none());
        let short = Duration::from_millis(50);
        // Of another segment: who gives up waiting still takes its turn, and lets it go.
        let other: SegmentName = "000000010000000000000006".parse().unwrap();
        let held = spool.try_claim(other).unwrap().unwrap();
        assert!(spool.claim(other, short).unwrap().is_none());
        drop(held);
        let waiting = {
            let spool = spool.clone();
            std::thread::spawn(move || spool.claim(segment(), Duration::from_secs(60)).unwrap())
        };
        std::thread::sleep(short);
        // Removed by its holder: who waited gets one that others see.
        claim.remove();
        let claim = waiting.join().unwrap().unwrap();
        assert!(spool.try_claim(segment()).unwrap().is_none());
        drop(claim);
        spool.clean(|_| false);
        assert!(!spool.directory().join(segment().to_string()).exists());
    }
}
