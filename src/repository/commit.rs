//! Committing a base backup: the marker comes last, with a look at every object and at the
//! backup's WAL before and after. For a backup that was taken here, and for one that was copied
//! from another repository.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::marker::Marker;
use super::{System, to_json};
use crate::error::{Error, Result};
use crate::storage::Created;

impl System {
    /// Commits a backup whose objects and WAL are all here: looks at each of them, puts the
    /// marker create-only, reads it back, and looks again.
    ///
    /// # Errors
    /// Something of the backup is missing; then there is no marker, or it was withdrawn.
    pub async fn commit(&self, marker: &Marker) -> Result<()> {
        self.commit_as(marker, to_json(marker)?).await
    }

    /// The same with the bytes of a marker that another repository holds: a copy of a backup is
    /// the same backup, byte for byte.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub async fn commit_as(&self, marker: &Marker, bytes: Bytes) -> Result<()> {
        let lost = |what: String| Error::failed(what).at(self.place());
        if let Some(missing) = self.what_is_missing(marker).await? {
            return Err(lost(missing));
        }
        self.put_marker(marker, bytes).await?;
        // An expiry on another host may have taken this backup for a dead one meanwhile. Only a
        // certain loss withdraws the marker: all was there just before it.
        let missing = match self.what_is_missing(marker).await {
            Ok(None) => return Ok(()),
            Ok(Some(missing)) => missing,
            Err(error) => {
                tracing::warn!(
                    "the last look at the committed backup failed: {}",
                    error.one_line()
                );
                return Ok(());
            }
        };
        let key = self.keys().marker(&marker.id);
        if let Err(error) = self.store().delete(&key).await {
            return Err(lost(format!(
                "backup {} is INCOMPLETE and its marker could not be withdrawn: {missing}",
                marker.id
            ))
            .because(error)
            .hint(format!("delete {key} by hand, and take the backup again")));
        }
        Err(lost(format!(
            "backup {} was withdrawn: part of it was deleted while it was being committed",
            marker.id
        ))
        .because(missing)
        .hint("take it again; find out what deletes there"))
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

    /// Puts the marker create-only and reads it back.
    async fn put_marker(&self, marker: &Marker, bytes: Bytes) -> Result<()> {
        let key = self.keys().marker(&marker.id);
        let created = self.store().put_new(&key, bytes).await?;
        if created != Created::Created {
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
