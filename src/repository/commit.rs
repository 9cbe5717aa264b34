//! Committing a base backup: the marker comes last, with a look at every object and at the
//! backup's WAL before and after. For a backup that was taken here, and for one that was copied
//! from another repository.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;

use super::leases::LEASE_TIME;
use super::marker::Marker;
use super::{System, to_json};
use crate::error::{Error, Result};
use crate::storage::Created;

impl System {
    /// Commits a backup whose objects and WAL are all here: looks at each of them, puts the
    /// marker create-only and reads it back; then looks at the tombstones, and at everything
    /// once more. What was deleted meanwhile, or is about to be, withdraws the marker.
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
        if let Some(missing) = self.what_is_missing(marker).await? {
            return Err(Error::failed(missing).at(self.place()));
        }
        self.put_marker(marker, bytes).await?;
        // One who expires on another host may have taken this backup for a dead one meanwhile.
        let lost = match self.what_is_lost(marker).await {
            Ok(None) => return Ok(()),
            Ok(Some(lost)) => lost,
            Err(error) => {
                let since = Timestamp::now().duration_since(looked).unsigned_abs();
                if since < LEASE_TIME {
                    // All was there a moment ago, and no tombstone's wait is so short.
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
        let key = self.keys().marker(&marker.id);
        if let Err(error) = self.store().delete(&key).await {
            return Err(Error::failed(format!(
                "backup {} is INCOMPLETE and its marker could not be withdrawn: {lost}",
                marker.id
            ))
            .at(self.place())
            .because(error)
            .hint(format!("delete {key} by hand, and take the backup again")));
        }
        Err(Error::failed(format!(
            "backup {} was withdrawn: part of it was deleted while it was being committed, or is about to be",
            marker.id
        ))
        .at(self.place())
        .because(lost)
        .hint("take it again; find out what deletes there, and whether this machine was asleep"))
    }

    /// What keeps a committed backup from being one. The order matters: a tombstone is taken
    /// away only after what it names is gone.
    async fn what_is_lost(&self, marker: &Marker) -> Result<Option<String>> {
        let tombstones = self.repository().tombstones(self.cluster()).await?;
        for (key, tombstone) in &tombstones.read {
            if let Some(named) = tombstone.names(marker) {
                return Ok(Some(format!("{key} says that {named} is to be deleted")));
            }
        }
        self.what_is_missing(marker).await
    }

    /// The first object of the backup, or the WAL, that is certainly not there as it was
    /// written.
    async fn what_is_missing(&self, marker: &Marker) -> Result<Option<String>> {
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
        let size = marker.segment_size;
        let [first, last] = [marker.wal[0].number(size)?, marker.wal[1].number(size)?];
        let held = self.timeline_wal(marker.timeline, size, first).await?;
        let gone = held.run_with(first).is_none_or(|run| run.last < last);
        Ok(gone.then(|| "the WAL of the backup is not in the archive any more".to_owned()))
    }

    /// Puts the marker create-only and reads it back. Where two copy the same backup, the
    /// other's marker is this one, byte for byte.
    async fn put_marker(&self, marker: &Marker, bytes: Bytes) -> Result<()> {
        let key = self.keys().marker(&marker.id);
        let created = self.store().put_new(&key, bytes.clone()).await?;
        if created != Created::Created
            && self.repository().sealed_bytes(&key).await?.as_ref() != Some(&bytes)
        {
            return Err(
                Error::failed(format!("backup {} is committed already", marker.id))
                    .at(self.place()),
            );
        }
        match self.marker(&marker.id).await? {
            Some(_) => Ok(()),
            None => Err(
                Error::failed("the marker was written and is not there").at(format!(
                    "{} of {}",
                    key,
                    self.place()
                )),
            ),
        }
    }
}
