//! What backups that never came to their end left behind, and what of it a new one may take
//! over: packs whose files are still the very same bytes, found by reading all of them again.
//!
//! A new backup has a name and objects of its own. The store copies a pack that is taken over;
//! so whoever still writes to the old directory, or deletes it, changes nothing of the new one.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;

use super::file;
use super::packer::{self, DonePack, tree::TreePacker};
use super::scan::Found;
use crate::config::Compression;
use crate::error::{Error, Result};
use crate::repository::System;
use crate::repository::codec;
use crate::repository::index::{self, Made, Member};
use crate::repository::keys::{self, BackupId, BackupKind};
use crate::repository::marker::StoredObject;
use crate::repository::pack::PackWriter;
use crate::storage::Store;

/// So many of the newest unfinished backups are looked at.
const BACKUPS: usize = 3;
/// Indexes that are read at once to find where packs begin.
const AT_ONCE: usize = 8;
/// An index is never larger, whatever its members are called.
const LARGEST_INDEX: u64 = 256 << 20;
/// S3 copies no more by one request.
const LARGEST_COPY: u64 = 5_000_000_000;

/// The packs of unfinished backups, by the path of their first member. Memory: about 200 bytes
/// for each pack.
#[derive(Debug, Default)]
pub struct Earlier {
    /// Of which backups they are.
    pub backups: Vec<BackupId>,
    packs: HashMap<String, EarlierPack>,
}

/// A pack that became durable, with its index, in a backup that was never finished.
#[derive(Debug, Clone)]
pub struct EarlierPack {
    /// The pack's key.
    pub key: String,
    /// What it is, by its index.
    pub made: Made,
    index: String,
    name: String,
}

impl Earlier {
    /// Looks for packs that a full backup with this `compression` may take over. What cannot be
    /// read is passed over, and made anew.
    pub async fn find(system: &System, compression: Compression) -> Self {
        Self::try_find(system, compression)
            .await
            .unwrap_or_else(|error| {
                let error = error.one_line();
                tracing::warn!("nothing of an interrupted backup is taken over: {error}");
                Self::default()
            })
    }

    async fn try_find(system: &System, compression: Compression) -> Result<Self> {
        let mut earlier = Self::default();
        let leases = system.repository().leases(system.cluster()).await?;
        let now = Timestamp::now();
        let ids = system.backup_ids().await?;
        let mut looked_at = 0;
        for id in ids.iter().rev().filter(|id| id.kind() == BackupKind::Full) {
            if looked_at == BACKUPS {
                break;
            }
            let mut holders = leases.iter().filter(|lease| lease.backups.contains(id));
            if holders.any(|lease| lease.holds(now) && !lease.is_left_by_the_dead()) {
                continue;
            }
            if system.marker_if_finished(id).await?.is_some() {
                // Names begin with the time: what is older than a finished one is of no use.
                break;
            }
            looked_at += 1;
            let before = earlier.packs.len();
            earlier.add(system, id, compression).await?;
            if earlier.packs.len() > before {
                earlier.backups.push(id.clone());
            }
        }
        Ok(earlier)
    }

    async fn add(&mut self, system: &System, id: &BackupId, wanted: Compression) -> Result<()> {
        let directory = system.keys().backup(id);
        let listed = system.store().list(&directory, None).await?;
        let sizes: HashMap<&str, u64> = listed.iter().map(|i| (i.key.as_str(), i.size)).collect();
        let indexes = listed.iter().filter(|i| i.key.ends_with(".index.zst"));
        let read = futures::stream::iter(indexes.map(|info| info.key.clone()).collect::<Vec<_>>())
            .map(|index| async move {
                let text = read_index(system.store(), &index).await?;
                Ok::<_, Error>(text.and_then(|text| Some((first_of(&text)?, index))))
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<_>>()
            .await?;
        for ((first, name, made), index) in read.into_iter().flatten() {
            let key = format!("{directory}/{name}");
            let usable = (made.level, made.minimum_match) == (wanted.level, wanted.minimum_match)
                && made.seawall_version == env!("CARGO_PKG_VERSION")
                && made.size <= LARGEST_COPY
                && sizes.get(key.as_str()) == Some(&made.size);
            if usable {
                // Newer backups come first.
                self.packs.entry(first).or_insert(EarlierPack {
                    key,
                    made,
                    index,
                    name,
                });
            }
        }
        Ok(())
    }

    /// Whether a pack begins with the member of this path.
    pub fn begins_at(&self, path: &str) -> bool {
        self.packs.contains_key(path)
    }

    /// The pack that begins with it, and its members.
    pub async fn pack_at(
        &self,
        store: &Store,
        path: &str,
    ) -> Result<Option<(&EarlierPack, Vec<Member>)>> {
        let Some(pack) = self.packs.get(path) else {
            return Ok(None);
        };
        let Some(text) = read_index(store, &pack.index).await? else {
            return Ok(None);
        };
        let members = index::read(&text[..], &pack.name)?.collect::<Result<Vec<_>>>()?;
        Ok(Some((pack, members)))
    }
}

impl TreePacker {
    /// Takes a pack over that an unfinished backup left, if the batch, read as a whole, is byte
    /// for byte what is in it. `None`: it is to be packed.
    pub(super) fn take_over(&self, number: u32, batch: &[Found]) -> Result<Option<DonePack>> {
        let Some(first) = batch.first() else {
            return Ok(None);
        };
        let asked = self.earlier.pack_at(&self.packer.store, &first.member.path);
        let (pack, earlier) = match self.packer.waiter.runtime().block_on(asked) {
            Ok(Some((pack, earlier))) if earlier.len() == batch.len() => (pack, earlier),
            Ok(_) => return Ok(None),
            Err(error) => {
                tracing::info!(
                    "{} is packed again: {}",
                    first.member.path,
                    error.one_line()
                );
                return Ok(None);
            }
        };
        let mut read = Vec::new();
        let mut nowhere = |_| Ok(());
        let nowhere: &mut dyn FnMut(Bytes) -> Result<()> = &mut nowhere;
        let mut looked = PackWriter::only_looking(Arc::clone(&self.packer.frames), nowhere)?;
        for (found, earlier) in batch.iter().zip(&earlier) {
            if found.member.path != earlier.path || found.member.size != earlier.size {
                return Ok(None);
            }
            let passed = |_| self.packer.waiter.check();
            read.push(file::read_into(
                &mut looked,
                found.clone(),
                self.pages,
                &passed,
            )?);
            match looked.members().last() {
                Some(now) if is_same(now, earlier) => {}
                _ => return Ok(None),
            }
        }
        let mut members = looked.members().to_vec();
        for ((now, earlier), read) in members.iter_mut().zip(earlier).zip(&read) {
            now.frames = earlier.frames;
            now.stored = earlier.stored;
            now.crc32c = read.map(|read| read.crc32c);
        }
        let taken = self.copy_pack(number, pack, members, read);
        match self.packer.waiter.runtime().block_on(taken) {
            Ok(Some(done)) => {
                let bytes = batch.iter().map(|found| found.member.size).sum();
                self.packer.progress.add(bytes);
                Ok(Some(done))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                tracing::info!(
                    "{} is packed again: {}",
                    first.member.path,
                    error.one_line()
                );
                Ok(None)
            }
        }
    }

    /// Has the store copy the pack, and puts an index of what was read now.
    async fn copy_pack(
        &self,
        number: u32,
        pack: &EarlierPack,
        members: Vec<Member>,
        read: Vec<Option<file::FileRead>>,
    ) -> Result<Option<DonePack>> {
        let key = keys::backup::pack(number);
        let to = format!("{}/{key}", self.packer.directory);
        let store = &self.packer.store;
        let size = pack.made.size;
        if !store.copy(&pack.key, &to, size).await?
            || store.head(&to).await?.is_none_or(|copy| copy.size != size)
        {
            return Ok(None);
        }
        let index = self
            .packer
            .index(number, &key, size, pack.made.sha256, &members)?;
        self.packer.put_index(&index).await?;
        let object = StoredObject {
            key,
            size,
            sha256: pack.made.sha256,
        };
        Ok(Some(DonePack {
            taken_over: true,
            ..packer::done_pack(object, index.object, members, read)
        }))
    }
}

/// The plain text; `None` if it is not there any more, or damaged.
async fn read_index(store: &Store, key: &str) -> Result<Option<Vec<u8>>> {
    let Some(stored) = store.get(key).await? else {
        return Ok(None);
    };
    Ok(codec::decode(&stored, LARGEST_INDEX).ok())
}

/// The path of the first member, the name of the pack, and what it is.
fn first_of(text: &[u8]) -> Option<(String, String, Made)> {
    let header = index::header(text).ok()?;
    let first = index::read(text, &header.pack).ok()?.next()?.ok()?;
    Some((first.path, header.pack, header.made?))
}

/// Whether `now`, just read, is what `earlier` was when it was packed: the same bytes at the
/// same place of the same pack. When it changed and in which file of the file system it lies do
/// not matter, and are told anew.
fn is_same(now: &Member, earlier: &Member) -> bool {
    now.path == earlier.path
        && now.kind == earlier.kind
        && now.size == earlier.size
        && now.mode == earlier.mode
        && now.offset == earlier.offset
        && now.digest == earlier.digest
        && now.increment == earlier.increment
        && now.damaged_blocks == earlier.damaged_blocks
}
