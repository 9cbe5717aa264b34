//! `seawall merge`: a full backup out of a chain of incremental ones, inside the repository,
//! without the primary.
//!
//! The new backup has the timeline, positions and times of the one that the chain leads to, and
//! is what a restore of it would be. Nothing of the chain is changed: until the new marker is
//! there nothing counts, and afterwards both do. Those that are on top of the merged backup find
//! either as their parent: the new one says of which backups it was made.

mod packs;

use jiff::Timestamp;

use super::blocking;
use super::manifest::StreamedManifest;
use super::packer::Packer;
use crate::config::Compression;
use crate::error::{Error, Result};
use crate::postgres::manifest::WalRange;
use crate::progress::Progress;
use crate::repository::System;
use crate::repository::catalogue::Catalogue;
use crate::repository::chain::join::Join;
use crate::repository::keys::{self, BackupId, BackupKind};
use crate::repository::leases::Work;
use crate::repository::marker::{Marker, StoredObject};
use crate::repository::waiter::Waiter;

use packs::Merger;

/// How a merge is done.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How objects are compressed.
    pub compression: Compression,
    /// Packs that are made at once.
    pub jobs: usize,
}

/// Makes a full backup out of the chain of `id`. Memory: for each job a pack's index and what a
/// restore holds, as a packer says; what a [`Join`] reads of each backup of the chain.
///
/// After `Ok` the new backup is complete. After an error, and after a kill at any point, the
/// chain is what it was.
///
/// # Errors
/// Exit code 5 where there is no such backup, 4 where it is full already, 1 where its chain is
/// broken or part of it is about to be deleted.
pub async fn merge(system: &System, id: &BackupId, settings: &Settings) -> Result<Marker> {
    let catalogue = Catalogue::load(system).await?;
    let mut backups = catalogue.backups.iter();
    let backup = backups.find(|backup| backup.id == *id).ok_or_else(|| {
        Error::unreachable(format!("there is no finished backup {id}"))
            .at(system.place())
            .hint("`seawall list` shows them")
    })?;
    if backup.kind == BackupKind::Full {
        return Err(Error::refused(format!("backup {id} is a full one already"))
            .at(system.place())
            .hint("name an incremental backup"));
    }
    let mut others = catalogue.backups.iter();
    if let Some(merged) = others.find(|other| other.is_merged_from(id)) {
        return Err(
            Error::refused(format!("backup {id} was merged into {} already", merged.id))
                .at(system.place())
                .hint("restore from that one; a second would be the same"),
        );
    }
    let chain: Vec<BackupId> = catalogue
        .chain_of(backup)?
        .into_iter()
        .map(|backup| backup.id.clone())
        .collect();
    let new = BackupId::new(BackupKind::Full, Timestamp::now());
    let used = chain.iter().chain([&new]).cloned();
    let lease = system
        .repository()
        .lease(system.cluster(), Work::Backup, Some(system.id()), used)
        .await;
    let done = run(system, &chain, new, settings).await;
    lease.release().await;
    done
}

/// Reads the chain, which a lease names, and commits what it comes to.
async fn run(
    system: &System,
    chain: &[BackupId],
    id: BackupId,
    settings: &Settings,
) -> Result<Marker> {
    // Whoever expires has seen the lease, or has named one of them before: both are looked at
    // only now.
    let mut markers = Vec::new();
    let looked = system.look_at_links(chain, |marker| markers.push(marker));
    if let Some(lost) = looked.await? {
        return Err(Error::failed("part of the chain is about to be deleted")
            .at(system.place())
            .because(lost.to_string())
            .hint("take a full backup, or pin the chain's backups before they expire"));
    }
    let refs: Vec<&Marker> = markers.iter().collect();
    let newest = refs
        .first()
        .ok_or_else(|| Error::failed("a chain of no backups"))?;
    tracing::info!(
        "backup {id} is made of {} backups up to {}",
        refs.len(),
        newest.id
    );
    let marker = write(system, &refs, newest, id, settings).await?;
    system.commit(&marker).await?;
    Ok(marker)
}

async fn write(
    system: &System,
    chain: &[&Marker],
    newest: &Marker,
    id: BackupId,
    settings: &Settings,
) -> Result<Marker> {
    let (_stop, waiter) = Waiter::new();
    let directory = system.keys().backup(&id);
    let progress = Progress::new("merge", Some(newest.restored_bytes()));
    let join = Join::new(system, chain, &waiter)?;
    let manifest = StreamedManifest::new(
        system.store(),
        &directory,
        settings.compression,
        newest.major(),
        newest.system_id,
    )?;
    let merger = Merger {
        packer: Packer::new(
            system.store(),
            directory.clone(),
            settings.compression,
            progress.clone(),
            waiter,
            settings.jobs,
        ),
        block_size: newest.block_size,
    };
    let (jobs, range) = (
        settings.jobs,
        WalRange {
            timeline: newest.timeline,
            start: newest.start_lsn,
            end: newest.stop_lsn,
        },
    );
    let written = blocking(move || {
        let (mut sums, manifest) = merger.run(join, manifest, jobs)?;
        sums.objects.push(manifest.finish(range)?);
        Ok(sums)
    })
    .await;
    progress.clear();
    let mut sums = written.map_err(|error| match error.advice() {
        None => error.at(system.place()),
        Some(_) => error,
    })?;
    if sums.files != newest.files {
        return Err(Error::failed(format!(
            "backup {} has {} files, its packs hold {}",
            newest.id, newest.files, sums.files
        ))
        .at(system.place()));
    }
    sums.objects
        .extend(copy_configuration(system, newest, &directory).await?);
    sums.objects.sort_by(|a, b| a.key.cmp(&b.key));
    let from: Vec<BackupId> = chain.iter().map(|marker| marker.id.clone()).collect();
    let mut merged = Marker {
        id,
        kind: BackupKind::Full,
        parent: None,
        change_rule: None,
        in_order: true,
        seawall_version: env!("CARGO_PKG_VERSION").to_owned(),
        files: sums.files,
        plain_bytes: sums.plain_bytes,
        whole_bytes: None,
        stored_bytes: sums.objects.iter().map(|object| object.size).sum(),
        damaged_pages: sums.damaged_pages,
        damaged_page_count: sums.damaged_page_count,
        objects: sums.objects,
        ..newest.clone()
    };
    merged.merged_from(&from);
    Ok(merged)
}

/// The configuration that lay outside the data directory, as the newest backup has it.
async fn copy_configuration(
    system: &System,
    newest: &Marker,
    directory: &str,
) -> Result<Option<StoredObject>> {
    let Ok(object) = newest.object(keys::backup::CONFIGURATION) else {
        return Ok(None);
    };
    let from = system.keys().backup(&newest.id);
    let content = system.object_of(&from, object).await?;
    let key = format!("{directory}/{}", object.key);
    system.store().put(&key, content).await?;
    Ok(Some(object.clone()))
}
