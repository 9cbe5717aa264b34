//! `backup.json`: the commit marker of a base backup. Without it a backup does not exist.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::keys::{BackupId, BackupKind};
use super::{FORMAT, System};
use crate::digest::{PlainDigest, StoredDigest};
use crate::error::{Error, Result};
use crate::postgres::{Lsn, SegmentName, SegmentSize, SystemId, TimelineId};

/// The field of a merged backup's marker that names what it was made of.
pub(super) const MERGED_FROM: &str = "merged_from";

/// Everything that is known of a base backup, with the names, sizes and digests of all its
/// objects.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Marker {
    /// The format of this object.
    pub format: u32,
    /// Its name.
    pub id: BackupId,
    /// Full or incremental.
    pub kind: BackupKind,
    /// Of an incremental backup: what it was taken on top of.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub parent: Option<Parent>,
    /// Of an incremental backup: how changed blocks were told from others.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub change_rule: Option<ChangeRule>,
    /// Whether packs and their files are in [order](super::order): only then an incremental
    /// backup can be taken on top of it.
    #[serde(default)]
    pub in_order: bool,
    /// The cluster's name.
    pub cluster: String,
    /// PostgreSQL's system identifier.
    pub system_id: SystemId,
    /// `server_version_num` of the source, such as 150018.
    pub server_version_num: u32,
    /// PostgreSQL's catalog version, which names tablespace directories.
    pub catalog_version: u32,
    /// The version of Seawall that wrote it.
    pub seawall_version: String,
    /// `wal_segment_size` in bytes.
    pub segment_size: SegmentSize,
    /// Bytes of a page.
    pub block_size: u32,
    /// Whether page checksums were on at both start and stop.
    pub data_checksums: bool,
    /// The timeline of start and stop.
    pub timeline: TimelineId,
    /// Where recovery starts.
    pub start_lsn: Lsn,
    /// Where the restored cluster becomes consistent.
    pub stop_lsn: Lsn,
    /// The server's clock when the backup started.
    pub start_time: Timestamp,
    /// The server's clock just after `pg_backup_stop`.
    pub stop_time: Timestamp,
    /// The next transaction id, with its epoch, just after `pg_backup_stop`.
    pub next_xid: u64,
    /// Whether it was taken from a standby.
    pub from_standby: bool,
    /// The first and last segment that recovery to `stop_lsn` needs.
    pub wal: [SegmentName; 2],
    /// The data directory of the source.
    pub data_directory: String,
    /// Its permission bits: 0700 or 0750.
    pub data_directory_mode: u32,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// Configuration outside the data directory, as absolute paths, in the order of the tar.
    pub configuration_files: Vec<String>,
    /// Configuration outside the data directory that could not be read, as absolute paths: a
    /// server sends none of it over the replication protocol.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub unread_configuration_files: Vec<String>,
    /// How PostgreSQL collated when the backup was made.
    #[serde(default)]
    pub collations: Vec<CollationVersion>,
    /// The role that initdb made, which may connect to every database.
    pub superuser: String,
    /// The databases when the backup began, by their numbers; empty where an older Seawall made
    /// the backup.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub databases: Vec<Database>,
    /// Logical replication slots that the server had; they are lost in a restore.
    #[serde(default)]
    pub logical_slots: Vec<String>,
    /// Regular files in the packs.
    pub files: u64,
    /// Bytes of those files.
    pub plain_bytes: u64,
    /// When the server's postmaster had started, by its own clock; absent from backups of older
    /// versions. Page checksums can only have been switched since where it is
    /// another by now (up to PostgreSQL 18).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub postmaster_start_time: Option<Timestamp>,
    /// Bytes of the files that a restore writes; absent where that is `plain_bytes`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub whole_bytes: Option<u64>,
    /// Bytes of all objects.
    pub stored_bytes: u64,
    /// Pages whose checksum was wrong, as `path: block`, at most a thousand.
    pub damaged_pages: Vec<String>,
    /// How many there were.
    pub damaged_page_count: u64,
    /// Every object of the backup but this one.
    pub objects: Vec<StoredObject>,
    /// What newer versions added.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// The backup that an incremental one was taken on top of. What counts is where it starts: a
/// merged backup takes the place of one that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its name when the incremental backup was taken.
    pub id: BackupId,
    /// Its timeline.
    pub timeline: TimelineId,
    /// Its `start_lsn`.
    pub start_lsn: Lsn,
}

/// How the blocks that changed since the parent were told from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeRule {
    /// By the server's WAL summaries (17 and later, `summarize_wal`).
    WalSummaries,
    /// By comparing the LSN of each page with the parent's start.
    PageLsn,
}

/// A tablespace outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its oid; `pg_tblspc/OID` is the link.
    pub oid: u32,
    /// Where it lay on the source.
    pub location: String,
}

/// A database, as it was called when the backup began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Its oid; `base/OID` is its directory.
    pub oid: u32,
    /// Its name.
    pub name: String,
}

/// The version of a collation provider as the server reported it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollationVersion {
    /// A database or a collation.
    pub name: String,
    /// The version that the provider reported.
    pub version: String,
}

/// One object as it lies in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredObject {
    /// Relative to the backup's directory.
    pub key: String,
    /// Bytes as stored.
    pub size: u64,
    /// SHA-256 of the stored bytes.
    pub sha256: StoredDigest,
}

/// Keys and sizes of any number of objects, folded into one: where two are equal they are of
/// the same objects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FoldedObjects(u128);

impl FoldedObjects {
    /// Adds an object, by its key relative to the backup's directory. The order is of no matter.
    pub fn add(&mut self, key: &str, size: u64) {
        let object = PlainDigest::of(format!("{size} {key}").as_bytes());
        self.0 = self.0.wrapping_add(object.as_number());
    }
}

impl Marker {
    /// Its [`objects`](Self::objects), folded.
    pub fn folded_objects(&self) -> FoldedObjects {
        let mut folded = FoldedObjects::default();
        for object in &self.objects {
            folded.add(&object.key, object.size);
        }
        folded
    }

    /// The numbers of the first and last segment that recovery to `stop_lsn` needs, all of them
    /// on `timeline`.
    pub fn own_wal(&self) -> (u64, u64) {
        let size = self.segment_size;
        let first = self.start_lsn.segment(size);
        (first, self.stop_lsn.previous_segment(size).max(first))
    }

    /// Bytes of the files that a restore of it writes.
    pub fn restored_bytes(&self) -> u64 {
        self.whole_bytes.unwrap_or(self.plain_bytes)
    }

    /// Whether `self` is what `child` was taken on top of, or stands in its place.
    pub fn is_parent_of(&self, child: &Marker) -> bool {
        let parent = child.parent.as_ref();
        parent.is_some_and(|parent| {
            (parent.timeline, parent.start_lsn) == (self.timeline, self.start_lsn)
                && (parent.id == self.id || self.is_merged_from(&parent.id))
        })
    }

    /// Says that it was merged from these, newest first.
    pub fn merged_from(&mut self, chain: &[BackupId]) {
        let chain: Vec<String> = chain.iter().map(ToString::to_string).collect();
        self.other.insert(MERGED_FROM.to_owned(), chain.into());
    }

    /// Whether it was merged from `backup` and its chain, and so is the same as it.
    pub fn is_merged_from(&self, backup: &BackupId) -> bool {
        let newest = self.merged_backup();
        newest.is_some_and(|newest| newest == backup.to_string())
    }

    /// The newest of the chain that it was merged from, and so is the same as.
    pub fn merged_backup(&self) -> Option<&str> {
        self.other.get(MERGED_FROM)?.get(0)?.as_str()
    }

    /// PostgreSQL's major version.
    pub fn major(&self) -> u32 {
        self.server_version_num / 10_000
    }

    /// The mode of files in the data directory: readable for the group where the directory is.
    pub fn file_mode(&self) -> u32 {
        0o600 | self.data_directory_mode & 0o040
    }

    /// The object called `key`.
    pub fn object(&self, key: &str) -> Result<&StoredObject> {
        self.objects
            .iter()
            .find(|object| object.key == key)
            .ok_or_else(|| {
                Error::failed(format!(
                    "the marker of backup {} names no object {key}",
                    self.id
                ))
            })
    }

    /// The packs with their indexes, in the order of `objects`: that of the files.
    pub fn packs(&self) -> Result<Vec<(&StoredObject, &StoredObject)>> {
        self.objects
            .iter()
            .filter(|object| object.key.starts_with("data/") && object.key.ends_with(".tar.zst"))
            .map(|pack| {
                let index = pack.key.replace(".tar.zst", ".index.zst");
                Ok((pack, self.object(&index)?))
            })
            .collect()
    }
}

impl System {
    /// The marker of backup `id`. `None`: there is no such backup, or it was never finished.
    pub async fn marker(&self, id: &BackupId) -> Result<Option<Marker>> {
        self.try_marker(id).await?.transpose()
    }

    /// The same; the inner error says that the marker is there and cannot be used.
    async fn try_marker(&self, id: &BackupId) -> Result<Option<Result<Marker>>> {
        let key = self.keys().marker(id);
        let read = self.repository().try_read_json::<Marker>(&key).await?;
        Ok(read.map(|read| {
            let marker = read?;
            if marker.format > FORMAT {
                return Err(self.repository().too_new(&key, marker.format));
            }
            if marker.id != *id || marker.system_id != self.id() {
                return Err(Error::failed(format!(
                    "{key} is damaged: it describes backup {} of system {}",
                    marker.id, marker.system_id
                ))
                .at(self.place()));
            }
            Ok(marker)
        }))
    }

    /// The marker of a backup whose directory is there, or why it cannot be used. `None` only
    /// if a listing agrees that it was never finished: one wrong "no such key" must not hide
    /// the newest backup.
    ///
    /// # Errors
    /// The store does not deliver what it lists, or does not answer.
    pub async fn marker_if_finished(&self, id: &BackupId) -> Result<Option<Result<Marker>>> {
        if let Some(marker) = self.try_marker(id).await? {
            return Ok(Some(marker));
        }
        let key = self.keys().marker(id);
        let directory = self.store().list_directory(&self.keys().backup(id)).await?;
        if !directory.objects.iter().any(|object| object.key == key) {
            return Ok(None);
        }
        // It may have been committed between the two looks.
        let marker = self.try_marker(id).await?.ok_or_else(|| {
            Error::failed(format!(
                "the store lists the marker of backup {id} and does not deliver it"
            ))
            .at(self.place())
            .retryable(true)
        })?;
        Ok(Some(marker))
    }

    /// The names of all backups, finished or not, in the order of their names.
    pub async fn backup_ids(&self) -> Result<Vec<BackupId>> {
        let listing = self.store().list_directory(&self.keys().backups()).await?;
        let mut ids: Vec<BackupId> = listing
            .directories
            .iter()
            .filter_map(|key| key.rsplit('/').next()?.parse().ok())
            .collect();
        ids.sort();
        Ok(ids)
    }
}
