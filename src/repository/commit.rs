//! Committing a base backup: the marker comes last, with a look at every object and at the
//! backup's WAL before and after. For a backup that was taken here, and for one that was copied
//! from another repository.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use jiff::Timestamp;

use super::catalogue::Catalogue;
use super::keys::{BackupId, BackupKind};
use super::leases::LEASE_TIME;
use super::marker::Marker;
use super::tombstones::Tombstone;
use super::{System, chain, to_json};
use crate::error::{Error, Result};
use crate::storage::Created;

/// Why a backup of a chain cannot be relied upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LostLink {
    /// It is not there any more.
    Gone(BackupId),
    /// It is to be deleted, or its WAL is: who wrote it may yet withdraw it for that.
    Doomed {
        /// The tombstone's key.
        tombstone: String,
        /// What it names.
        named: String,
    },
}

impl LostLink {
    fn doomed(marker: &Marker, tombstones: &[(String, Tombstone)]) -> Option<Self> {
        tombstones.iter().find_map(|(key, tombstone)| {
            Some(Self::Doomed {
                named: tombstone.names(marker)?,
                tombstone: key.clone(),
            })
        })
    }
}

impl fmt::Display for LostLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(id) => write!(f, "backup {id} is not there any more"),
            Self::Doomed { tombstone, named } => {
                write!(f, "{tombstone} says that {named} is to be deleted")
            }
        }
    }
}

const TAKE_IT_AGAIN: &str =
    "take it again; find out what deletes there, and whether this machine was asleep";

impl System {
    /// Commits a backup whose objects and WAL are all here: looks at the tombstones and at each
    /// of them, puts the marker create-only, and then looks at the tombstones and at everything
    /// once more, the marker among it. What was deleted meanwhile, or is about to be, withdraws
    /// the marker.
    ///
    /// # Errors
    /// Something is missing or about to go; then there is no marker, or the error says that it
    /// could not be withdrawn.
    pub async fn commit(&self, marker: &Marker) -> Result<()> {
        self.commit_as(marker, to_json(marker)?).await
    }

    /// The same with the bytes of a marker that another repository holds: a copy of a backup is
    /// the same backup, byte for byte.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub async fn commit_as(&self, marker: &Marker, bytes: Bytes) -> Result<()> {
        let looked = Timestamp::now();
        // The tombstones as well: this machine may have slept for so long that what it wrote
        // was named, and waits no more. Only what is written after this look is young.
        if let Some(lost) = self.what_is_lost(marker).await? {
            return Err(Error::failed(format!(
                "backup {} was not committed: part of it was deleted, or is about to be",
                marker.id
            ))
            .at(self.place())
            .because(lost)
            .hint(TAKE_IT_AGAIN));
        }
        let again = bytes.clone();
        if self.put_marker(marker, bytes).await? == Created::Exists {
            // Another process copies the same backup, and has put the same marker: it may have
            // promised it long ago, so it is not ours to withdraw.
            return match self.what_is_lost_of_committed(marker).await? {
                None => Ok(()),
                Some(lost) => Err(Error::failed(format!(
                    "backup {} was committed by another process, and is about to go",
                    marker.id
                ))
                .at(self.place())
                .because(lost)),
            };
        }
        // One who expires on another host may have taken this backup for a dead one meanwhile.
        let lost = match self.what_is_lost_of_committed(marker).await {
            Ok(None) => return Ok(()),
            Ok(Some(lost)) => lost,
            Err(error) => {
                let since = Timestamp::now().duration_since(looked).unsigned_abs();
                if since < LEASE_TIME {
                    // All was there a moment ago, named by nobody, and no tombstone's wait is so
                    // short.
                    tracing::warn!(
                        "the last look at the committed backup failed: {}",
                        error.one_line()
                    );
                    return Ok(());
                }
                format!(
                    "it took {} s from the first look at its objects to the marker, and the last look failed: {}",
                    since.as_secs(),
                    error.one_line()
                )
            }
        };
        if let Some(child) = self.relied_upon_by(marker, &lost).await? {
            return Err(self.stays_for(marker, &child, lost));
        }
        self.withdraw(marker, &lost).await?;
        // It may have been taken on top of this one just before the marker went.
        if let Ok(Some(child)) = self.child_of(marker).await {
            self.put_marker(marker, again).await?;
            return Err(self.stays_for(marker, &child, lost));
        }
        Err(Error::failed(format!(
            "backup {} was withdrawn: part of it was deleted while it was being committed, or is about to be",
            marker.id
        ))
        .at(self.place())
        .because(lost)
        .hint(TAKE_IT_AGAIN))
    }

    fn stays_for(&self, marker: &Marker, child: &BackupId, lost: String) -> Error {
        Error::failed(format!(
            "backup {} was committed too late to be relied upon, and stays for {child}, which needs it",
            marker.id
        ))
        .at(self.place())
        .because(lost)
        .hint("take it again; find out whether this machine was asleep")
    }

    /// A backup that was taken on top of this one while we slept between the marker and the last
    /// look, if nothing of this one is gone. Its own commit found no tombstone that names this
    /// one, or it would not be there; those that came later spare what it needs.
    async fn relied_upon_by(&self, marker: &Marker, lost: &str) -> Result<Option<BackupId>> {
        let child = self.child_of(marker).await;
        let child = child.map_err(|error| self.still_there(marker, lost, error))?;
        let Some(child) = child else {
            return Ok(None);
        };
        let whole = async {
            let marked = matches!(self.marker_if_finished(&marker.id).await?, Some(Ok(_)));
            Ok::<_, Error>(marked && self.missing_object(marker).await?.is_none())
        };
        let whole = whole
            .await
            .map_err(|error| self.still_there(marker, lost, error))?;
        Ok(whole.then_some(child))
    }

    /// A finished backup that was taken on top of this one.
    async fn child_of(&self, marker: &Marker) -> Result<Option<BackupId>> {
        let ids = self.backup_ids().await?.into_iter();
        for id in ids.filter(|id| id.kind() == BackupKind::Incremental) {
            if let Some(Ok(child)) = self.marker_if_finished(&id).await?
                && marker.is_parent_of(&child)
            {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// The same as [`what_is_lost`](Self::what_is_lost), and whether the marker can be read.
    async fn what_is_lost_of_committed(&self, marker: &Marker) -> Result<Option<String>> {
        if let Some(lost) = self.what_is_lost(marker).await? {
            return Ok(Some(lost));
        }
        let key = self.keys().marker(&marker.id);
        Ok(match self.marker_if_finished(&marker.id).await? {
            Some(Ok(_)) => None,
            Some(Err(error)) => Some(format!("the marker is damaged: {}", error.one_line())),
            None => Some(format!("{key} was written and is not there")),
        })
    }

    /// Which of the `links` of a chain is gone, or else about to be deleted.
    pub async fn lost_link(&self, links: &[BackupId]) -> Result<Option<LostLink>> {
        self.look_at_links(links, |_| ()).await
    }

    /// The same, and `seen` gets the marker of each that is there, in their order.
    pub async fn look_at_links(
        &self,
        links: &[BackupId],
        mut seen: impl FnMut(Marker),
    ) -> Result<Option<LostLink>> {
        let tombstones = self.repository().tombstones(self.cluster()).await?.read;
        let mut doomed = None;
        for id in links {
            let Some(marker) = self.marker_if_finished(id).await? else {
                return Ok(Some(LostLink::Gone(id.clone())));
            };
            let marker = marker?;
            doomed = doomed.or_else(|| LostLink::doomed(&marker, &tombstones));
            seen(marker);
        }
        Ok(doomed)
    }

    /// What of the chain of an incremental backup is gone, or about to be deleted.
    pub async fn lost_chain(&self, marker: &Marker) -> Result<Option<String>> {
        if marker.kind == BackupKind::Full {
            return Ok(None);
        }
        let tombstones = self.repository().tombstones(self.cluster()).await?.read;
        self.lost_chain_by(marker, &tombstones).await
    }

    /// The same by tombstones that were listed a moment ago.
    async fn lost_chain_by(
        &self,
        marker: &Marker,
        tombstones: &[(String, Tombstone)],
    ) -> Result<Option<String>> {
        let mut below = None;
        loop {
            let child = below.as_ref().unwrap_or(marker);
            if child.kind == BackupKind::Full {
                return Ok(None);
            }
            match self.named_parent(child).await? {
                Some(parent) if LostLink::doomed(&parent, tombstones).is_none() => {
                    below = Some(parent);
                }
                // Another may stand in its place, or in that of one further up, which only all
                // of them together tell.
                _ => return self.lost_of_all(marker).await,
            }
        }
    }

    /// The backup that `child` names as its parent.
    async fn named_parent(&self, child: &Marker) -> Result<Option<Marker>> {
        let Some(named) = &child.parent else {
            return Ok(None);
        };
        let marker = self.marker_if_finished(&named.id).await?;
        // Starts go down along a chain: it has an end, whatever markers say.
        let is_parent =
            |other: &Marker| other.is_parent_of(child) && other.start_lsn < child.start_lsn;
        Ok(marker.and_then(Result::ok).filter(is_parent))
    }

    /// What of the chain is lost, with all finished backups looked at.
    async fn lost_of_all(&self, marker: &Marker) -> Result<Option<String>> {
        let others = Catalogue::load(self).await?.backups;
        match chain::of(&others, marker) {
            Err(broken) => Ok(Some(broken.to_string())),
            Ok(links) => {
                let links: Vec<BackupId> = links[1..].iter().map(|l| l.id.clone()).collect();
                Ok(self.lost_link(&links).await?.map(|lost| lost.to_string()))
            }
        }
    }

    /// What keeps a backup from being one. The order matters: a tombstone is taken
    /// away only after what it names is gone.
    async fn what_is_lost(&self, marker: &Marker) -> Result<Option<String>> {
        let tombstones = self.repository().tombstones(self.cluster()).await?.read;
        if let Some(doomed) = LostLink::doomed(marker, &tombstones) {
            return Ok(Some(doomed.to_string()));
        }
        if let Some(lost) = self.lost_chain_by(marker, &tombstones).await? {
            return Ok(Some(lost));
        }
        self.what_is_missing(marker).await
    }

    /// The first object of the backup, or the WAL, that is certainly not there as it was
    /// written.
    async fn what_is_missing(&self, marker: &Marker) -> Result<Option<String>> {
        if let Some(missing) = self.missing_object(marker).await? {
            return Ok(Some(missing));
        }
        let size = marker.segment_size;
        let [first, last] = [marker.wal[0].number(size)?, marker.wal[1].number(size)?];
        let held = self.timeline_wal(marker.timeline, size, first).await?;
        let gone = !held.holds(first, last);
        Ok(gone.then(|| "the WAL of the backup is not in the archive any more".to_owned()))
    }

    /// The first object of the backup that is not listed with the size in the marker, which
    /// must have its list of objects.
    pub async fn missing_object(&self, marker: &Marker) -> Result<Option<String>> {
        let directory = self.keys().backup(&marker.id);
        let listed: BTreeMap<String, u64> = self
            .store()
            .list(&directory, None)
            .await?
            .into_iter()
            .map(|info| (info.key, info.size))
            .collect();
        for object in &marker.objects {
            let key = format!("{directory}/{}", object.key);
            match listed.get(&key) {
                Some(size) if *size == object.size => {}
                Some(size) => {
                    return Ok(Some(format!(
                        "{key} has {size} bytes, {} were written",
                        object.size
                    )));
                }
                None => return Ok(Some(format!("{key} is not in the store any more"))),
            }
        }
        Ok(None)
    }

    /// Puts the marker create-only. After `Ok` it is there, or nobody can tell; `Exists` means
    /// that somebody else has put the same one, byte for byte.
    async fn put_marker(&self, marker: &Marker, bytes: Bytes) -> Result<Created> {
        let key = self.keys().marker(&marker.id);
        match self.store().put_new(&key, bytes.clone()).await {
            Ok(Created::Created) => Ok(Created::Created),
            Ok(Created::Exists)
                if self.repository().sealed_bytes(&key).await?.as_ref() == Some(&bytes) =>
            {
                Ok(Created::Exists)
            }
            Ok(Created::Exists) => Err(Error::failed(format!(
                "backup {} is committed already",
                marker.id
            ))
            .at(self.place())),
            // An answer that was lost says nothing about the marker: it may be there, and then
            // it must be looked after.
            Err(error) => match self.marker_if_finished(&marker.id).await {
                Ok(Some(_)) => Ok(Created::Created),
                Ok(None) => Err(error.into()),
                Err(_) => {
                    self.withdraw(marker, &error.to_string()).await?;
                    Err(error.into())
                }
            },
        }
    }

    async fn withdraw(&self, marker: &Marker, why: &str) -> Result<()> {
        let deleted = self.store().delete(&self.keys().marker(&marker.id)).await;
        deleted.map_err(|error| self.still_there(marker, why, error))
    }

    fn still_there(
        &self,
        marker: &Marker,
        why: &str,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        let key = self.keys().marker(&marker.id);
        Error::failed(format!(
            "backup {} is INCOMPLETE and its marker could not be withdrawn: {why}",
            marker.id
        ))
        .at(self.place())
        .because(cause)
        .hint(format!(
            "delete {key} by hand, unless `seawall list` shows a backup on top of it, and take the backup again"
        ))
    }
}

#[cfg(test)]
pub(super) mod tests;
