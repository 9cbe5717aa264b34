//! The repository, format 1: what lies where and how it is encoded, the order of writes, and
//! which backup leads to which target. `docs/repository-format.md` is the same in prose.
//!
//! A [`Repository`] is a store with a name; a [`System`] is the part of it that belongs to one
//! cluster and one system identifier. Nothing here knows how WAL or base backups come to be:
//! that is the work of `wal` and `backup`.

pub mod bridge;
pub mod catalogue;
pub mod chain;
mod clock;
pub mod codec;
pub mod commit;
pub mod commits;
pub mod drills;
pub mod expired;
pub mod frames;
pub mod health;
pub mod index;
pub mod keys;
pub mod leases;
pub mod line;
pub mod marker;
pub mod order;
pub mod pack;
pub mod pins;
pub mod plan;
pub mod points;
pub mod scan;
pub mod seek_table;
pub mod segments;
mod system;
mod tar_header;
pub mod timeline_wal;
pub mod tombstones;
pub mod waiter;
pub mod wal_objects;
pub mod windows;

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::{Config, RepositoryConfig};
use crate::digest::StoredDigest;
use crate::error::{Error, Result};
use crate::storage::{Bandwidth, Created, RetryPolicy, Store, StoreSettings};

pub use system::{System, SystemRecord};

/// The format that this version reads and writes.
pub const FORMAT: u32 = 1;

/// Small JSON objects are refused beyond this size: nothing that lies may fill our memory.
const SMALL_OBJECT: u64 = 64 << 20;

/// `seawall.json`: made once, by `seawall init`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RepositoryRecord {
    /// The format of this object.
    pub format: u32,
    /// Random; tells two repositories apart whatever their URLs are.
    pub repository_id: String,
    /// The oldest format that a reader must know.
    pub oldest_reader: u32,
    /// The oldest format that a writer must know.
    pub oldest_writer: u32,
    /// When it was made, by the clock of the host that made it.
    pub created: Timestamp,
    /// What newer versions added.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// A place that holds base backups and WAL of many clusters.
#[derive(Clone)]
pub struct Repository {
    name: String,
    store: Store,
}

impl Repository {
    /// Opens what the configuration describes, without touching the network.
    pub fn open(config: &RepositoryConfig) -> Result<Self> {
        let options = config
            .options
            .iter()
            .map(|(key, value)| Ok((key.clone(), value.resolve()?)))
            .collect::<Result<_>>()?;
        let mut retry = RetryPolicy::default();
        if let Some(attempts) = config.attempts {
            retry.attempts = attempts.max(1);
        }
        if let Some(timeout) = config.timeout {
            retry.attempt_timeout = timeout.0.max(Duration::from_millis(1));
        }
        let settings = StoreSettings {
            url: config.url.clone(),
            options,
            retry,
        };
        Ok(Self {
            name: config.name.clone(),
            store: Store::open(&settings)?,
        })
    }

    /// The same repository, to which no more than that is written.
    pub fn limited(&self, bandwidth: Bandwidth) -> Self {
        Self {
            name: self.name.clone(),
            store: self.store.limited(bandwidth),
        }
    }

    /// Opens the repositories called `names`, in that order, or all where none is named.
    pub fn open_all(config: &Config, names: &[String]) -> Result<Vec<Self>> {
        config
            .repositories(names)?
            .into_iter()
            .map(Self::open)
            .collect()
    }

    /// Opens the repositories called `names`, or all where none is named: those that can be
    /// opened, and why the others cannot. For work that one unmounted disk must not hold up.
    ///
    /// # Errors
    /// A name that the configuration does not know.
    pub fn open_each(config: &Config, names: &[String]) -> Result<(Vec<Self>, Vec<Error>)> {
        let mut opened = Vec::new();
        let mut failures = Vec::new();
        for repository in config.repositories(names)? {
            match Self::open(repository) {
                Ok(repository) => opened.push(repository),
                Err(error) => failures.push(error),
            }
        }
        Ok((opened, failures))
    }

    /// A repository over a store that is open already, for tests.
    pub fn over(name: &str, store: Store) -> Self {
        Self {
            name: name.to_owned(),
            store,
        }
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Name and URL, for messages.
    pub fn place(&self) -> String {
        format!("repository {} ({})", self.name, self.store.url())
    }

    /// The store below.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Makes `seawall.json` where there is none. Says whether it did.
    pub async fn init(&self) -> Result<Created> {
        let record = RepositoryRecord {
            format: FORMAT,
            repository_id: format!("{:032x}", rand::random::<u128>()),
            oldest_reader: FORMAT,
            oldest_writer: FORMAT,
            created: Timestamp::now(),
            other: serde_json::Map::new(),
        };
        let created = self
            .store
            .put_new(keys::REPOSITORY_RECORD, to_json(&record)?)
            .await?;
        self.record().await?;
        Ok(created)
    }

    /// Reads `seawall.json`: proof that the repository is there, reachable, and of a format
    /// that this version may read and write. Its absence is an error, never "empty".
    pub async fn record(&self) -> Result<RepositoryRecord> {
        let record: RepositoryRecord =
            self.read_json(keys::REPOSITORY_RECORD).await?.ok_or_else(|| {
                Error::failed("there is no repository here")
                    .at(self.place())
                    .hint("make it with `seawall init`; if it existed before, this is the wrong place or its disk is not mounted")
            })?;
        if record.oldest_reader > FORMAT {
            return Err(Error::failed(format!(
                "the repository needs a reader of format {}, this one knows {FORMAT}",
                record.oldest_reader
            ))
            .at(self.place())
            .hint("install a newer Seawall"));
        }
        Ok(record)
    }

    /// Like [`record`](Self::record), for one who is about to write.
    pub async fn record_for_writing(&self) -> Result<RepositoryRecord> {
        let record = self.record().await?;
        if record.oldest_writer > FORMAT {
            return Err(Error::failed(format!(
                "the repository needs a writer of format {}, this one knows {FORMAT}",
                record.oldest_writer
            ))
            .at(self.place())
            .hint("install a newer Seawall"));
        }
        Ok(record)
    }

    /// Reads one small JSON object. Absent is `None`; anything that does not parse is an error.
    pub(crate) async fn read_json<T: serde::de::DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Option<T>> {
        self.try_read_json(key).await?.transpose()
    }

    /// The same for one who can do without this object: the outer error is the store's, the
    /// inner one says that the object is there and damaged, or newer than this version knows.
    pub(crate) async fn try_read_json<T: serde::de::DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Option<Result<T>>> {
        let bytes = self.store.get_limited(key, SMALL_OBJECT).await?;
        Ok(bytes.map(|bytes| self.parse_json(key, &bytes)))
    }

    /// The bytes of one small JSON object as they lie there, for a copy of it. Absent is `None`;
    /// one that its seal does not fit is an error.
    pub(crate) async fn sealed_bytes(&self, key: &str) -> Result<Option<bytes::Bytes>> {
        let bytes = self.store.get_limited(key, SMALL_OBJECT).await?;
        if let Some(bytes) = &bytes {
            self.parse_json::<serde_json::Value>(key, bytes)?;
        }
        Ok(bytes)
    }

    fn parse_json<T: serde::de::DeserializeOwned>(&self, key: &str, bytes: &[u8]) -> Result<T> {
        let damaged = |why: String| {
            Error::failed(format!("{key} is damaged: {why}"))
                .at(self.place())
                .hint("restore the object from another copy of the repository; if it is a backup.json, moving it away makes the other backups usable")
        };
        if !is_sealed(bytes) {
            return Err(damaged(
                "its last line does not hold the SHA-256 of what is before".into(),
            ));
        }
        serde_json::from_slice(bytes).map_err(|error| {
            // A newer format may have fields that this version cannot read.
            match serde_json::from_slice(bytes) {
                Ok(Versioned { format }) if format > FORMAT => self.too_new(key, format),
                _ => damaged(error.to_string()),
            }
        })
    }

    /// The error about an object of a newer format.
    pub(crate) fn too_new(&self, key: &str, format: u32) -> Error {
        Error::failed(format!(
            "{key} has format {format}, this version knows {FORMAT}"
        ))
        .at(self.place())
        .hint("install a newer Seawall")
    }
}

/// What every JSON object says of itself.
#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

/// The field that seals a JSON object: the SHA-256 of every byte before its line.
const SEAL: &str = "sha256";

/// One JSON object, readable by people, sealed by its last field so that a byte that was
/// changed anywhere is noticed: `head -n -2 OBJECT | sha256sum` prints the seal.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<bytes::Bytes> {
    let failed = |error| Error::failed("cannot write JSON").because(error);
    let mut value = serde_json::to_value(value).map_err(failed)?;
    if let Some(object) = value.as_object_mut() {
        object.shift_remove(SEAL);
    }
    let text = serde_json::to_string_pretty(&value).map_err(failed)?;
    let mut text = text
        .strip_suffix("\n}")
        .map(|fields| format!("{fields},\n"))
        .ok_or_else(|| Error::failed("only JSON objects with fields can be stored"))?;
    let seal = StoredDigest::of(text.as_bytes());
    text += &format!("  \"{SEAL}\": \"{seal}\"\n}}\n");
    Ok(text.into_bytes().into())
}

/// Whether the last field is the digest of what is before it.
fn is_sealed(bytes: &[u8]) -> bool {
    let line = format!("  \"{SEAL}\": \"");
    // The seal's line and the closing brace have a fixed length.
    let Some(start) = bytes.len().checked_sub(line.len() + 64 + "\"\n}\n".len()) else {
        return false;
    };
    let (before, end) = bytes.split_at(start);
    end == format!("{line}{}\"\n}}\n", StoredDigest::of(before)).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_object_reads_back_and_any_changed_byte_is_noticed() {
        let sealed =
            to_json(&serde_json::json!({"format": 1, "name": "x", "sha256": "old"})).unwrap();
        assert!(is_sealed(&sealed));
        let value: serde_json::Value = serde_json::from_slice(&sealed).unwrap();
        assert_eq!(value["name"], "x");
        assert_eq!(to_json(&value).unwrap(), sealed);
        for at in 0..sealed.len() {
            let mut damaged = sealed.to_vec();
            damaged[at] ^= 0x20;
            assert!(!is_sealed(&damaged), "byte {at}");
        }
        assert!(!is_sealed(b""));
        assert!(!is_sealed(b"{\"format\": 1}"));
    }
}
