//! Bringing finished backups to a copy, the newest first: its first backup makes the copy
//! useful. An incremental one comes behind those that it was taken on top of. The marker comes last, by the same rule as where the backup was taken.

use std::collections::BTreeMap;

use futures::StreamExt;

use super::objects::Arrived;
use super::wanted::{Backup, parents_first};
use super::{Copier, SystemCopy, lock};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::repository::System;
use crate::repository::leases::Work;
use crate::repository::marker::Marker;

/// Objects of WAL from before the copy's oldest that are brought before others get their turn.
const TURN: usize = 512;

impl Copier {
    /// Copies these backups, the newest of which stands last, and the WAL that each needs. One
    /// that cannot be copied is named, and the others are copied all the same.
    ///
    /// # Errors
    /// One of the stores does not do its work now.
    pub(super) async fn backups(&self, of: &SystemCopy, wanted: &[Backup]) -> Result<()> {
        for backup in parents_first(wanted) {
            let to = backup.start_lsn.segment(of.size);
            loop {
                let mut wal = of.wal.lock().await;
                if wal.downwards(to, TURN, &self.report).await? == super::wal::Done::All {
                    break;
                }
            }
            let sources = of.sources();
            self.hold(&of.source, &of.aim, backup).await;
            self.wait_for_another(&of.aim, backup).await;
            let copied = self.backup(&sources, &of.aim, backup).await;
            self.release_backup().await;
            match copied {
                Ok(()) => {}
                Err(error) if error.is_retryable() => return Err(error),
                Err(error) => {
                    let key = of.source.keys().marker(&backup.id);
                    let place = of.source.repository().place();
                    lock(&self.report).refuse(&key, &place, &error.one_line());
                    lock(&self.refused).insert(backup.id.clone());
                }
            }
        }
        Ok(())
    }

    async fn backup(&self, sources: &[&System], aim: &System, backup: &Backup) -> Result<()> {
        let source = sources[0];
        let key = source.keys().marker(&backup.id);
        let gone = || {
            let what = format!("backup {} was deleted while it was being copied", backup.id);
            Error::failed(what).at(source.place()).retryable(true)
        };
        let marker = source.marker(&backup.id).await?.ok_or_else(gone)?;
        let bytes = source.repository().sealed_bytes(&key).await?;
        let bytes = bytes.ok_or_else(gone)?;
        match aim.repository().sealed_bytes(&key).await? {
            Some(there) if there == bytes => {
                self.is_there(aim, &key, backup);
                return Ok(());
            }
            // Bringing its objects would replace those of the other one.
            Some(_) => {
                let what = format!("backup {} is committed with another marker", backup.id);
                return Err(Error::failed(what).at(aim.place()));
            }
            None => {}
        }
        // Before anything of it is brought.
        if let Some(lost) = aim.lost_chain(&marker).await? {
            let what = format!("backup {} is of no use there yet: {lost}", marker.id);
            return Err(Error::failed(what).at(aim.place()));
        }
        tracing::info!(
            "copying backup {} from {} to {}",
            marker.id,
            source.repository().place(),
            aim.repository().place()
        );
        lock(&self.verified).retain(|object| object.contains(backup.id.as_str()));
        if !self.objects(sources, aim, &marker).await? {
            self.is_there(aim, &key, backup);
            return Ok(());
        }
        aim.commit_as(&marker, bytes).await?;
        tracing::info!("backup {} is in {}", marker.id, aim.repository().place());
        let mut report = lock(&self.report);
        report.accept(&key);
        report.backups.push(marker.id);
        Ok(())
    }

    /// Somebody else has copied it meanwhile.
    fn is_there(&self, aim: &System, key: &str, backup: &Backup) {
        let place = aim.repository().place();
        tracing::info!(
            "backup {} was brought to {place} by another copy",
            backup.id
        );
        lock(&self.report).accept(key);
    }

    /// Everything of a backup but its marker. False: somebody else has put that meanwhile.
    async fn objects(&self, sources: &[&System], aim: &System, marker: &Marker) -> Result<bool> {
        let directory = aim.keys().backup(&marker.id);
        let listed = aim.store().list(&directory, None).await?;
        let there: BTreeMap<String, u64> = listed
            .into_iter()
            .map(|info| (info.key, info.size))
            .collect();
        let progress = Progress::new("copying", Some(marker.stored_bytes));
        let objects = marker.objects.iter().map(|object| {
            let (directory, there) = (&directory, &there);
            async move {
                let size = there.get(&format!("{directory}/{}", object.key));
                let size = size.copied();
                let brought = self.bring(sources, aim, &marker.id, object, size).await;
                (object, brought)
            }
        });
        let mut objects = futures::stream::iter(objects).buffer_unordered(self.settings.jobs);
        let mut refused = None;
        while let Some((object, brought)) = objects.next().await {
            let key = format!("{directory}/{}", object.key);
            let mut report = lock(&self.report);
            match brought? {
                Ok(Arrived::Committed) => {
                    progress.clear();
                    return Ok(false);
                }
                Ok(arrived) => {
                    report.accept(&key);
                    lock(&self.verified).insert(key);
                    match arrived {
                        Arrived::Found | Arrived::Committed => report.found_objects += 1,
                        Arrived::ServerSide | Arrived::Streamed => {
                            report.backup_objects += 1;
                            report.backup_bytes += object.size;
                            report.server_side_objects += u64::from(arrived == Arrived::ServerSide);
                        }
                    }
                    progress.add(object.size);
                }
                Err(why) => {
                    report.refuse(&key, &sources[0].repository().place(), &why);
                    refused = Some(key);
                }
            }
        }
        progress.clear();
        match refused {
            Some(key) => Err(Error::failed(format!(
                "backup {} cannot be copied: {key} is not usable",
                marker.id
            ))
            .hint("a drill of it would fail as well: take a new backup")),
            None => Ok(true),
        }
    }

    /// Waits as long as an older lease says that somebody else copies this backup there. That
    /// saves both the work; what keeps them from harming each other does not depend on it.
    async fn wait_for_another(&self, aim: &System, backup: &Backup) {
        let mut said = false;
        loop {
            let other = {
                let held = self.held.lock().await;
                let Some(own) = held.last() else { return };
                let repository = aim.repository();
                let other = repository.copied_by_another(aim.cluster(), own, Some(&backup.id));
                other.await
            };
            match other {
                Ok(Some(lease)) if !said => {
                    let (id, place) = (&backup.id, aim.repository().place());
                    tracing::info!("backup {id} waits: {} copies it to {place}", lease.holder);
                    said = true;
                }
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!("{}", error.one_line());
                    return;
                }
            }
            tokio::time::sleep(self.settings.interval).await;
        }
    }

    /// Tells everybody which backup is being copied.
    async fn hold(&self, source: &System, aim: &System, backup: &Backup) {
        let sides = [(source, Work::CopySource), (aim, Work::Copy)];
        for (system, work) in sides {
            let id = [backup.id.clone()];
            let repository = system.repository();
            let held = repository.lease(system.cluster(), work, Some(system.id()), id);
            let held = held.await;
            self.held.lock().await.push(held);
        }
    }

    /// Ends all leases. To be called as well where the work was given up.
    pub async fn release(&self) {
        self.release_backup().await;
        if let Some(lease) = self.following.lock().await.take() {
            lease.release().await;
        }
    }

    pub(super) async fn release_backup(&self) {
        let held = std::mem::take(&mut *self.held.lock().await);
        for lease in held {
            lease.release().await;
        }
    }
}
