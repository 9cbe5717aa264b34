//! The part of a repository that belongs to one cluster and one system identifier, and
//! `system.json`, which proves that it is there.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::keys::SystemKeys;
use super::{FORMAT, Repository, to_json};
use crate::error::{Error, Result};
use crate::postgres::{SegmentSize, SystemId};
use crate::storage::Store;

/// `system.json`: made once, by `seawall init` or by the first WAL that arrives.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SystemRecord {
    /// The format of this object.
    pub format: u32,
    /// PostgreSQL's system identifier.
    pub system_id: SystemId,
    /// PostgreSQL's major version when this was made.
    pub postgresql_major: u32,
    /// `wal_segment_size` in bytes.
    pub segment_size: SegmentSize,
    /// When this was made, by the clock of the host that made it.
    pub first_seen: Timestamp,
    /// What newer versions added.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// One cluster with one system identifier in one repository.
#[derive(Clone)]
pub struct System {
    repository: Repository,
    cluster: String,
    id: SystemId,
    keys: SystemKeys,
}

impl Repository {
    /// The part that belongs to `cluster` and `id`. Touches nothing.
    pub fn system(&self, cluster: &str, id: SystemId) -> System {
        System {
            repository: self.clone(),
            cluster: cluster.to_owned(),
            id,
            keys: SystemKeys::new(cluster, id),
        }
    }

    /// The system identifiers that this repository knows of `cluster`, in the order in which
    /// they were first seen. After pg_upgrade there are two.
    pub async fn systems(&self, cluster: &str) -> Result<Vec<(System, SystemRecord)>> {
        let mut found = Vec::new();
        for directory in self.store().list_directory(cluster).await?.directories {
            let last = directory.rsplit('/').next().unwrap_or_default();
            let Ok(id) = last.parse::<SystemId>() else {
                continue;
            };
            let system = self.system(cluster, id);
            // It is written before anything else. Passing over it could mean restoring an
            // older system, without a word.
            let record = system.record().await?.ok_or_else(|| {
                Error::failed("system.json is missing, and there are objects of this system")
                    .at(system.place())
                    .hint("try again; if it stays missing, `seawall init` on the cluster's host makes it anew")
            })?;
            found.push((system, record));
        }
        found.sort_by_key(|(system, record)| (record.first_seen, system.id));
        Ok(found)
    }
}

impl System {
    /// The repository that it is in.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The store below.
    pub fn store(&self) -> &Store {
        self.repository.store()
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// PostgreSQL's system identifier.
    pub fn id(&self) -> SystemId {
        self.id
    }

    /// Where its objects lie.
    pub fn keys(&self) -> &SystemKeys {
        &self.keys
    }

    /// For messages.
    pub fn place(&self) -> String {
        format!(
            "{}, cluster {}, system {}",
            self.repository.place(),
            self.cluster,
            self.id
        )
    }

    /// Reads `system.json`. `None` means that no WAL and no backup of this system was ever
    /// stored here.
    pub async fn record(&self) -> Result<Option<SystemRecord>> {
        let record: Option<SystemRecord> = self
            .repository
            .read_json(&self.keys.system_record())
            .await?;
        match record {
            Some(record) if record.system_id != self.id => Err(Error::failed(format!(
                "system.json says that it is of system {}",
                record.system_id
            ))
            .at(self.place())),
            record => Ok(record),
        }
    }

    /// Reads `system.json`, which must be there.
    pub async fn known_record(&self) -> Result<SystemRecord> {
        self.record().await?.ok_or_else(|| {
            Error::failed("the repository knows nothing of this cluster and system identifier")
                .at(self.place())
                .hint("`seawall init` registers it; `seawall list` shows what the repository holds")
        })
    }

    /// Whether PostgreSQL may have been told that WAL is archived which this repository lacks:
    /// others were enough (`archive_ack`). Then no segment that is missing here is excused by
    /// working ahead.
    pub async fn acknowledged_without_it(&self) -> Result<bool> {
        let key = self.keys.acknowledged_without_it();
        Ok(self.store().head(&key).await?.is_some())
    }

    /// Says so, for good. To be called before WAL is stored here that is acknowledged by others.
    pub async fn note_acknowledged_without_it(&self) -> Result<()> {
        if !self.acknowledged_without_it().await? {
            let note = to_json(&serde_json::json!({"format": FORMAT, "since": Timestamp::now()}))?;
            self.store()
                .put_new(&self.keys.acknowledged_without_it(), note)
                .await?;
        }
        Ok(())
    }

    /// Makes `system.json` where there is none, and reads it back: the segment size on record
    /// must be ours.
    pub async fn register(&self, major: u32, segment_size: SegmentSize) -> Result<SystemRecord> {
        let record = match self.record().await? {
            Some(record) => record,
            None => {
                self.repository.record_for_writing().await?;
                let record = SystemRecord {
                    format: FORMAT,
                    system_id: self.id,
                    postgresql_major: major,
                    segment_size,
                    first_seen: Timestamp::now(),
                    other: serde_json::Map::new(),
                };
                self.store()
                    .put_new(&self.keys.system_record(), to_json(&record)?)
                    .await?;
                self.known_record().await?
            }
        };
        if record.segment_size != segment_size {
            return Err(Error::refused(format!(
                "the cluster writes WAL segments of {segment_size}, the repository holds segments of {}",
                record.segment_size
            ))
            .at(self.place())
            .hint("after pg_resetwal --wal-segsize, archive under another cluster name and take a full backup"));
        }
        Ok(record)
    }
}
