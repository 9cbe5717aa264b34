//! Reading and checking base backups as they are stored, for `seawall verify`: every object
//! whole, every file, every page, and that all of it belongs together. Without PostgreSQL, and
//! without writing anything.
//!
//! Packs are read in parallel, each once and from its first byte to its last. Memory: for each
//! job one index as it is stored, one seek table and one frame.

mod chain;
mod checker;
mod finding;
mod frames;
mod manifest;
mod members;
mod pack;
#[cfg(test)]
mod tests;
mod wal;

use std::collections::HashMap;

use futures::StreamExt;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::postgres::control::ControlFile;
use crate::postgres::layout;
use crate::progress::Progress;
use crate::repository::catalogue::{Catalogue, Unreadable};
use crate::repository::chain as chains;
use crate::repository::index;
use crate::repository::keys::{self, BackupId, BackupKind};
use crate::repository::marker::{Marker, StoredObject};
use crate::repository::{System, codec};
use crate::storage::ObjectStream;
use crate::wal::object::Trouble;

use super::pages::Pages;
use members::FoldedFiles;

pub use finding::{Finding, Kind, NAMED};

/// What is to be verified.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// This backup and those that it stands on; none: all.
    pub backup: Option<BackupId>,
    /// How many objects are read at once.
    pub jobs: usize,
    /// Only whether all objects are there with their sizes, and the backups' WAL: nothing but
    /// markers and indexes is read.
    pub quick: bool,
}

/// One backup that was verified.
#[derive(Debug, Serialize)]
pub struct Verified {
    /// Its name.
    pub id: BackupId,
    /// Full or incremental.
    pub kind: BackupKind,
    /// Objects that it has, its marker not counted.
    pub objects: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Files that were read.
    pub files: u64,
    /// Bytes of those files.
    pub plain_bytes: u64,
    /// Pages whose checksum was looked at.
    pub pages: u64,
    /// Pages that were damaged on the source already, as the backup says.
    pub known_damaged_pages: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// What was verified of one system.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Finished backups, oldest first.
    pub backups: Vec<Verified>,
    /// Markers, restore points and histories that are there and cannot be used.
    pub unreadable: Vec<Unreadable>,
}

impl Report {
    /// Everything that was found in backups.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.backups.iter().flat_map(|backup| &backup.findings)
    }

    /// Whether nothing is wrong.
    pub fn passed(&self) -> bool {
        self.unreadable.is_empty() && self.findings().next().is_none()
    }
}

/// A backup, and where its objects are.
struct Backup<'a> {
    system: &'a System,
    marker: &'a Marker,
    directory: String,
}

impl Backup<'_> {
    fn key(&self, object: &StoredObject) -> String {
        format!("{}/{}", self.directory, object.key)
    }

    fn marker_key(&self) -> String {
        self.system.keys().marker(&self.marker.id)
    }

    async fn stream(&self, key: &str) -> Result<Option<ObjectStream>, Trouble> {
        let stream = self.system.store().get_stream(key).await;
        stream.map_err(pack::of_storage)
    }
}

/// Verifies the backups of a system. What cannot be read is a finding.
///
/// # Errors
/// Listings or `system.json` failed.
pub async fn verify(system: &System, scope: &Scope) -> Result<Report> {
    let catalogue = Catalogue::load(system).await?;
    let mut report = Report::default();
    let wanted = wanted(&catalogue, scope);
    report.unreadable = catalogue
        .unreadable
        .iter()
        .filter(|unreadable| match &scope.backup {
            None => true,
            Some(id) => unreadable.backup.as_ref().is_none_or(|other| other == id),
        })
        .cloned()
        .collect();
    let progress = match scope.quick {
        true => Progress::hidden(),
        false => {
            let total = wanted.iter().map(|marker| marker.stored_bytes).sum();
            Progress::new("verifying", Some(total))
        }
    };
    for marker in wanted {
        // With its objects, which the catalogue leaves out.
        let Some(marker) = system.marker(&marker.id).await? else {
            continue; // retention was faster
        };
        tracing::info!("verifying backup {}", marker.id);
        let verified = verify_backup(system, &catalogue.backups, &marker, scope, &progress).await;
        match verified {
            Ok(verified) if verified.findings.is_empty() => report.backups.push(verified),
            Ok(verified) if system.marker(&marker.id).await?.is_some() => {
                report.backups.push(verified);
            }
            Ok(_) => tracing::info!("backup {} was deleted meanwhile", marker.id),
            Err(error) => {
                progress.clear();
                return Err(error);
            }
        }
    }
    progress.clear();
    Ok(report)
}

/// The backups to verify, oldest first.
fn wanted<'a>(catalogue: &'a Catalogue, scope: &Scope) -> Vec<&'a Marker> {
    let all = &catalogue.backups;
    let Some(id) = &scope.backup else {
        return all.iter().collect();
    };
    let Some(marker) = all.iter().find(|marker| marker.id == *id) else {
        return Vec::new();
    };
    // One whose chain is broken is verified for itself, and said to be broken.
    let mut chain = chains::of(all, marker).unwrap_or_else(|_| vec![marker]);
    chain.reverse();
    chain
}

async fn verify_backup(
    system: &System,
    markers: &[Marker],
    marker: &Marker,
    scope: &Scope,
    progress: &Progress,
) -> Result<Verified> {
    let backup = &Backup {
        system,
        marker,
        directory: system.keys().backup(&marker.id),
    };
    let mut verified = Verified {
        id: marker.id.clone(),
        kind: marker.kind,
        objects: marker.objects.len() as u64,
        stored_bytes: marker.objects.iter().map(|object| object.size).sum(),
        files: 0,
        plain_bytes: 0,
        pages: 0,
        known_damaged_pages: marker.damaged_page_count,
        findings: Vec::new(),
    };
    // What a listing tells is not read again.
    let listed = listed(backup, &mut verified.findings).await?;
    let is_there = |object: &StoredObject| listed.get(&object.key) == Some(&object.size);
    let broken = chain::check(system, markers, marker);
    verified.findings.extend(broken);
    let packs = match marker.packs() {
        Ok(packs) => packs,
        Err(error) => {
            let found = Finding::new(Kind::Inconsistent, backup.marker_key(), error.what());
            verified.findings.push(found);
            Vec::new()
        }
    };
    let mut control = None;
    if !scope.quick {
        let (pages, wrong_control) = pages(backup, &packs).await;
        let mut reading = futures::stream::iter(&packs)
            .filter(|(pack, index)| std::future::ready(is_there(pack) && is_there(index)))
            .map(|(pack, index)| pack::check(backup, pack, index, pages, progress))
            .buffered(scope.jobs.max(1));
        let mut packed = FoldedFiles::default();
        while let Some(walked) = reading.next().await {
            verified.files += walked.files;
            verified.plain_bytes += walked.plain_bytes;
            verified.pages += walked.pages;
            packed.join(walked.folded);
            verified.findings.extend(walked.findings);
        }
        let all_read = verified
            .findings
            .iter()
            .all(|found| found.kind == Kind::Page);
        if all_read && (verified.files, verified.plain_bytes) != (marker.files, marker.plain_bytes)
        {
            let what = format!(
                "it counts {} files with {} bytes, the packs hold {} with {}",
                marker.files, marker.plain_bytes, verified.files, verified.plain_bytes
            );
            let found = Finding::new(Kind::Inconsistent, backup.marker_key(), what);
            verified.findings.push(found);
        }
        let whole = |key: &str| marker.object(key).map_or(true, is_there);
        if whole(keys::backup::MANIFEST) {
            let packed = all_read.then_some(packed);
            let findings = manifest::check(backup, packed, progress).await;
            verified.findings.extend(findings);
        }
        if whole(keys::backup::CONFIGURATION) {
            let findings = manifest::check_configuration(backup, progress).await;
            verified.findings.extend(findings);
        }
        control = wrong_control;
    }
    // Indexes are joined only where all of them are what was written.
    let is_whole = |found: &Finding| found.kind == Kind::Page;
    if verified.findings.iter().all(is_whole) {
        let parent = parent(system, markers, marker).await?;
        if marker.kind == BackupKind::Incremental && parent.is_none() {
            let what = "the backup that it was taken on top of has just gone";
            let found = Finding::new(Kind::Chain, backup.marker_key(), what);
            verified.findings.push(found);
        }
        let findings = chain::check_files(system, marker, parent).await;
        verified.findings.extend(findings);
    }
    verified.findings.extend(control);
    let findings = wal::check(system, marker, scope.jobs, scope.quick, progress).await;
    verified.findings.extend(findings);
    // What one look has found, another may have met again.
    let mut known = std::collections::HashSet::new();
    verified
        .findings
        .retain(|found| known.insert((found.key.clone(), found.what.clone())));
    Ok(verified)
}

/// The backup below, with its objects.
async fn parent(system: &System, markers: &[Marker], marker: &Marker) -> Result<Option<Marker>> {
    let parent = chains::of(markers, marker)
        .ok()
        .and_then(|chain| chain.get(1).map(|parent| parent.id.clone()));
    match parent {
        Some(id) => system.marker(&id).await,
        None => Ok(None),
    }
}

/// The sizes of the objects that are there, by their keys as the marker has them.
async fn listed(backup: &Backup<'_>, findings: &mut Vec<Finding>) -> Result<HashMap<String, u64>> {
    let prefix = format!("{}/", backup.directory);
    let listing = backup.system.store().list(&backup.directory, None).await?;
    let sizes: HashMap<String, u64> = listing
        .into_iter()
        .filter_map(|info| Some((info.key.strip_prefix(&prefix)?.to_owned(), info.size)))
        .collect();
    for object in &backup.marker.objects {
        let key = backup.key(object);
        match sizes.get(&object.key) {
            None => findings.push(Finding::missing(key, &backup.marker.id)),
            Some(size) if *size != object.size => {
                let what = format!("it has {size} bytes, {} were written", object.size);
                findings.push(Finding::new(Kind::Damaged, key, what));
            }
            Some(_) => {}
        }
    }
    Ok(sizes)
}

/// What pages look like: pg_control in the last pack says how many are in a file. It is small,
/// and checked for itself as well; where it cannot be read PostgreSQL's own number is taken.
async fn pages(
    backup: &Backup<'_>,
    packs: &[(&StoredObject, &StoredObject)],
) -> (Pages, Option<Finding>) {
    let marker = backup.marker;
    let usual = (1 << 30) / marker.block_size.max(1);
    let control = match packs.last() {
        Some((pack, index)) => control_file(backup, pack, index).await,
        None => None,
    };
    let (control, wrong) = match control {
        Some(Ok(control)) => (Some(control), None),
        Some(Err(why)) => {
            let found = Finding::new(Kind::Inconsistent, backup.marker_key(), why);
            (None, Some(found))
        }
        None => (None, None),
    };
    let pages = Pages {
        block_size: marker.block_size.max(512),
        blocks_per_file: control.map_or(usual, |control| control.relation_segment_blocks),
        checksums: marker.data_checksums,
        backup_start: marker.start_lsn,
    };
    (pages, wrong)
}

/// pg_control of the backup. `None`: it cannot be read, which its pack's own check tells.
async fn control_file(
    backup: &Backup<'_>,
    pack: &StoredObject,
    index: &StoredObject,
) -> Option<Result<ControlFile, String>> {
    /// A last pack is a few pages.
    const LARGEST: u64 = 16 << 20;
    let get = async |object: &StoredObject| {
        let key = backup.key(object);
        let stored = backup.system.store().get_limited(&key, LARGEST).await;
        codec::decode(&stored.ok()??, LARGEST).ok()
    };
    let (plain, text) = (get(pack).await?, get(index).await?);
    let members = index::read(&text[..], &pack.key).ok()?;
    let member = members
        .filter_map(Result::ok)
        .find(|member| member.path == layout::CONTROL_FILE);
    let Some(member) = member else {
        return Some(Err("its last pack holds no pg_control".to_owned()));
    };
    let end = member.offset.checked_add(member.size)?;
    let bytes = plain.get(member.offset as usize..end as usize)?;
    let control = match ControlFile::parse(bytes) {
        Ok(control) => control,
        Err(error) => return Some(Err(error.to_string())),
    };
    if control.system_id != backup.marker.system_id {
        return Some(Err(format!(
            "its pg_control is of system {}",
            control.system_id
        )));
    }
    Some(Ok(control))
}

/// Runs what blocks on a thread that may. An error of the store is told from damaged bytes.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Trouble> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Trouble::Unread(Error::failed("reading died").because(error)))?
        .map_err(crate::wal::object::trouble)
}
