//! Tombstones: what is about to be deleted. Written long before anything goes, so that of one
//! who deletes and one who commits meanwhile, however long either pauses, one sees the other:
//!
//! - who deletes writes the tombstone, waits, and **then** looks at markers, pins and leases;
//! - who commits writes the marker, and **then** looks at the tombstones and, after them, at
//!   the objects ([`System::commit`](super::System::commit)); on a hit it withdraws the marker.
//!
//! A tombstone outlives the deletion by the same wait once more.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::keys::{self, BackupId};
use super::marker::Marker;
use super::{FORMAT, Repository, leases, to_json};
use crate::error::{Error, Result};
use crate::postgres::{SegmentName, SystemId};
use crate::storage::Created;

/// How far two clocks may be apart that are taken to agree.
pub const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(60);

/// What is about to be deleted from a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The format of this object.
    pub format: u32,
    /// When it was written, by the writer's clock, which then agreed with the store's.
    pub created: Timestamp,
    /// Nothing in it goes before this moment.
    pub not_before: Timestamp,
    /// Who wrote it: host, process number and random digits.
    pub by: String,
    /// Finished backups, and what dead writers left of unfinished ones.
    pub backups: Vec<DoomedBackup>,
    /// Ranges of WAL segments.
    pub wal: Vec<DoomedWal>,
    /// What newer versions added.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// A backup, or the directory of an unfinished one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DoomedBackup {
    /// The system that it belongs to.
    pub system_id: SystemId,
    /// Its name.
    pub id: BackupId,
}

/// Segments of one timeline, with what lies beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DoomedWal {
    /// The system that they belong to.
    pub system_id: SystemId,
    /// The first of them.
    pub first: SegmentName,
    /// The last of them.
    pub last: SegmentName,
}

impl DoomedWal {
    /// Whether it holds a segment from `first` to `last`.
    pub fn meets(&self, system: SystemId, [first, last]: [SegmentName; 2]) -> bool {
        self.system_id == system
            && self.first.timeline == first.timeline
            && self.first <= last
            && self.last >= first
    }
}

impl Tombstone {
    /// A tombstone that is written now.
    pub fn new(
        backups: Vec<DoomedBackup>,
        wal: Vec<DoomedWal>,
        now: Timestamp,
        wait: Duration,
    ) -> Self {
        Self {
            format: FORMAT,
            created: now,
            not_before: now + wait,
            by: leases::holder(),
            backups,
            wal,
            other: serde_json::Map::new(),
        }
    }

    /// Whether what it names may go at `now`.
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.not_before <= now
    }

    /// Whether it names that backup.
    pub fn names_backup(&self, system: SystemId, id: &BackupId) -> bool {
        let mut backups = self.backups.iter();
        backups.any(|doomed| doomed.system_id == system && doomed.id == *id)
    }

    /// What it names of a backup and of the WAL that this needs.
    pub fn names(&self, marker: &Marker) -> Option<String> {
        if self.names_backup(marker.system_id, &marker.id) {
            return Some(format!("backup {}", marker.id));
        }
        let mut wal = self.wal.iter();
        let met = wal.find(|range| range.meets(marker.system_id, marker.wal))?;
        Some(format!("WAL from {} to {}", met.first, met.last))
    }
}

/// The tombstones of a cluster.
#[derive(Debug, Default)]
pub struct Tombstones {
    /// Those that can be read, with their keys, oldest first.
    pub read: Vec<(String, Tombstone)>,
    /// Those that nobody can use any more, with their keys.
    pub damaged: Vec<(String, Error)>,
}

impl Repository {
    /// Writes a tombstone under a key of its own.
    pub async fn put_tombstone(&self, cluster: &str, tombstone: &Tombstone) -> Result<String> {
        let random: u32 = rand::random();
        let time = tombstone.created.strftime("%Y%m%dT%H%M%SZ");
        let key = format!("{}/{time}-{random:08x}.json", keys::tombstones(cluster));
        match self.store().put_new(&key, to_json(tombstone)?).await? {
            Created::Created => Ok(key),
            Created::Exists => Err(Error::failed(format!("{key} is there already"))
                .at(self.place())
                .retryable(true)),
        }
    }

    /// The tombstones of a cluster.
    ///
    /// # Errors
    /// The store does not answer; one has a format that this version does not know.
    pub async fn tombstones(&self, cluster: &str) -> Result<Tombstones> {
        let mut tombstones = Tombstones::default();
        for info in self.store().list(&keys::tombstones(cluster), None).await? {
            match self.try_read_json::<Tombstone>(&info.key).await? {
                Some(Ok(read)) if read.format > FORMAT => {
                    return Err(self.too_new(&info.key, read.format));
                }
                Some(Ok(read)) => tombstones.read.push((info.key, read)),
                Some(Err(error)) => tombstones.damaged.push((info.key, error)),
                None => {}
            }
        }
        tombstones.read.sort_by_key(|(_, read)| read.created);
        Ok(tombstones)
    }
}
