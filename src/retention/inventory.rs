//! What a repository holds of a cluster, as far as deleting must know it: listings, and the
//! small records. Anything that cannot be understood is a problem, and where a system has a
//! problem nothing of it goes.

use std::collections::{BTreeMap, BTreeSet};

use futures::TryStreamExt;
use jiff::Timestamp;

use crate::error::{Error, Result};
use crate::postgres::history::TimelineHistory;
use crate::postgres::{SegmentSize, SystemId, TimelineId};
use crate::repository::catalogue::Catalogue;
use crate::repository::chain;
use crate::repository::keys::{self, BackupId, BackupKind};
use crate::repository::line::Archived;
use crate::repository::marker::{FoldedObjects, Marker};
use crate::repository::pins::{Pin, StoredPin};
use crate::repository::segments::SegmentSet;
pub use crate::repository::tombstones::CLOCK_TOLERANCE;
use crate::repository::{Repository, System};
use crate::storage::ObjectInfo;

/// What a repository holds of a cluster.
pub struct Inventory {
    /// The systems, in the order in which they were first seen.
    pub systems: Vec<SystemInventory>,
}

/// What a repository holds of one system.
#[derive(Clone)]
pub struct SystemInventory {
    /// Its system identifier.
    pub id: SystemId,
    /// When it was first seen, by the clock of that host.
    pub first_seen: Timestamp,
    /// Its segment size.
    pub segment_size: SegmentSize,
    /// Finished backups whose markers can be read.
    pub backups: Vec<BackupState>,
    /// The histories that can be read, and that of timeline 1.
    pub histories: BTreeMap<TimelineId, TimelineHistory>,
    /// The archived segments.
    pub archived: Archived,
    /// Everything that is stored under a segment's number, `.partial` and `.backup` included.
    pub stored: SegmentSet,
    /// Directories of backups without a marker.
    pub unfinished: Vec<Unfinished>,
    /// All pins.
    pub pins: Vec<PinState>,
    /// Why nothing of this system may go.
    pub problems: Vec<String>,
}

/// A finished backup.
#[derive(Clone)]
pub struct BackupState {
    /// Its marker, without the list of objects.
    pub marker: Marker,
    /// When it ended: by the server's clock, and no later than the marker was stored.
    pub ended: Timestamp,
    /// Whether all its objects are listed, with their sizes, and its own WAL; and of an
    /// incremental one the objects of all that it was taken on top of.
    pub restorable: bool,
    /// Whether it is restorable and holds no damaged page.
    pub sound: bool,
    /// Whether it counts by itself: a full one that is sound, and of those that were merged from
    /// one chain the last. Whoever counted incremental ones as well could be left without a
    /// single full one.
    pub good: bool,
}

/// A directory of a backup without a marker.
#[derive(Clone)]
pub struct Unfinished {
    /// The backup's name.
    pub id: BackupId,
    /// When its newest object was stored.
    pub newest: Timestamp,
}

impl Inventory {
    /// Lists and reads what is there.
    ///
    /// # Errors
    /// The store does not answer, or something was stored in our future (exit code 4): then
    /// the clocks disagree.
    pub async fn load(repository: &Repository, cluster: &str, now: Timestamp) -> Result<Self> {
        repository.record().await?;
        let mut systems = Vec::new();
        for (system, _) in repository.systems(cluster).await? {
            systems.push(SystemInventory::load(&system, now).await?);
        }
        Ok(Self { systems })
    }
}

impl SystemInventory {
    async fn load(system: &System, now: Timestamp) -> Result<Self> {
        let (catalogue, named) = Catalogue::load_and(system, Marker::folded_objects).await?;
        let archived = catalogue.everything_archived().await?;
        let size = catalogue.record.segment_size;
        let directories = list_backups(system, now).await?;
        let pins = system.pins().await?;
        let problems = problems(&catalogue, &archived, &directories);
        let runs = archived.values().flat_map(|wal| &wal.runs);
        for run in runs {
            not_from_the_future(system, now, run.last_stored, "WAL")?;
        }
        let mut stored = segments(&archived);
        for (timeline, wal) in &archived {
            for number in &wal.beside {
                stored.add(*timeline, *number, *number);
            }
        }
        let mut markers: BTreeMap<BackupId, (Marker, FoldedObjects)> = catalogue
            .backups
            .into_iter()
            .zip(named)
            .map(|(marker, named)| (marker.id.clone(), (marker, named)))
            .collect();
        let (mut backups, mut unfinished) = (Vec::new(), Vec::new());
        for (id, directory) in directories {
            if let Some((marker, named)) = markers.remove(&id) {
                let marked = directory.marked.unwrap_or(directory.newest);
                let complete = directory.objects == named || holds_all_of(system, &id).await?;
                let own_wal = has_own_wal(&marker, &archived, size);
                backups.push(BackupState {
                    ended: marker.stop_time.min(marked),
                    restorable: complete && own_wal,
                    sound: complete,
                    good: false,
                    marker,
                });
            } else if directory.marked.is_none() {
                let newest = directory.newest;
                unfinished.push(Unfinished { id, newest });
            }
        }
        judge(&mut backups);
        Ok(Self {
            id: system.id(),
            first_seen: catalogue.record.first_seen,
            segment_size: size,
            backups,
            histories: catalogue.histories,
            archived,
            stored,
            unfinished,
            pins: pins.into_iter().map(PinState::of).collect(),
            problems,
        })
    }

    /// The archived segments, without what lies beside them.
    pub fn segments(&self) -> SegmentSet {
        segments(&self.archived)
    }

    /// The newest timeline, as PostgreSQL's `latest` finds it.
    pub fn newest_timeline(&self) -> TimelineId {
        let known = self.histories.keys().copied();
        known.max().unwrap_or(TimelineId::FIRST)
    }
}

/// A pin, or what is wrong with it.
#[derive(Clone)]
pub struct PinState {
    /// The backup that it names.
    pub backup: BackupId,
    /// What it says.
    pub pin: Result<Pin, String>,
}

impl PinState {
    fn of(stored: StoredPin) -> Self {
        Self {
            backup: stored.backup,
            pin: stored.pin.map_err(|error| error.what().to_owned()),
        }
    }
}

fn segments(archived: &Archived) -> SegmentSet {
    let mut segments = SegmentSet::default();
    for (timeline, wal) in archived {
        for run in &wal.runs {
            segments.add(*timeline, run.first, run.last);
        }
    }
    segments
}

/// Whether the WAL that a backup itself needs is there, and nobody disputes it.
fn has_own_wal(marker: &Marker, archived: &Archived, size: SegmentSize) -> bool {
    let (first, last) = marker.own_wal();
    archived.get(&marker.timeline).is_some_and(|wal| {
        wal.holds(first, last) && wal.first_conflict(first, last, size).is_none()
    })
}

/// Says of each backup what it is worth, given the others. Until then `restorable` speaks of its
/// own objects and WAL, and `sound` of its own objects.
fn judge(backups: &mut [BackupState]) {
    let markers: Vec<Marker> = backups.iter().map(|b| b.marker.clone()).collect();
    let complete = backups.iter().filter(|backup| backup.sound);
    let complete: BTreeSet<BackupId> = complete.map(|b| b.marker.id.clone()).collect();
    for (backup, marker) in backups.iter_mut().zip(&markers) {
        let chain = chain::of(&markers, marker);
        let whole = chain.is_ok_and(|links| links.iter().all(|l| complete.contains(&l.id)));
        backup.restorable &= whole;
        backup.sound = backup.restorable && marker.damaged_page_count == 0;
        backup.good = backup.sound && marker.kind == BackupKind::Full;
    }
    // One full backup is not two because it was merged twice.
    let mut merged = BTreeSet::new();
    for backup in backups.iter_mut().rev().filter(|backup| backup.good) {
        if let Some(newest) = backup.marker.merged_backup() {
            backup.good = merged.insert(newest.to_owned());
        }
    }
}

/// What is listed below the directory of one backup.
struct Directory {
    newest: Timestamp,
    /// When the marker was stored.
    marked: Option<Timestamp>,
    /// All but the marker, by their keys below the directory.
    objects: FoldedObjects,
}

/// Whether all that the marker names is there. To be asked where the directory holds more or
/// less than that: what a dead writer left in it is no harm.
async fn holds_all_of(system: &System, id: &BackupId) -> Result<bool> {
    match system.marker(id).await? {
        Some(marker) => Ok(system.missing_object(&marker).await?.is_none()),
        None => Ok(false),
    }
}

/// Everything below `backups`, by one listing. Memory grows with the number of backups.
async fn list_backups(system: &System, now: Timestamp) -> Result<BTreeMap<BackupId, Directory>> {
    let root = system.keys().backups();
    let mut directories: BTreeMap<BackupId, Directory> = BTreeMap::new();
    let mut listing = system.store().list_stream(&root, None);
    while let Some(ObjectInfo {
        key,
        size,
        modified,
    }) = listing.try_next().await?
    {
        // What is no backup's is not ours to judge.
        let Some(id) = keys::backup_of_key(&root, &key) else {
            continue;
        };
        let is_marker = key == system.keys().marker(&id);
        if is_marker {
            not_from_the_future(system, now, modified, &format!("the marker of backup {id}"))?;
        }
        let below = key.split_at(system.keys().backup(&id).len()).1;
        let below = below.trim_start_matches('/');
        let directory = directories.entry(id).or_insert_with(|| Directory {
            newest: modified,
            marked: None,
            objects: FoldedObjects::default(),
        });
        directory.newest = directory.newest.max(modified);
        match is_marker {
            true => directory.marked = Some(modified),
            false => directory.objects.add(below, size),
        }
    }
    Ok(directories)
}

/// Why nothing of the system may go.
fn problems(
    catalogue: &Catalogue,
    archived: &Archived,
    directories: &BTreeMap<BackupId, Directory>,
) -> Vec<String> {
    let mut problems = Vec::new();
    for object in &catalogue.unreadable {
        // Restore points decide nothing.
        if object.backup.is_some() || object.timeline.is_some() {
            problems.push(format!("{} cannot be used: {}", object.key, object.why));
        }
    }
    for timeline in archived.keys() {
        if !catalogue.histories.contains_key(timeline) {
            problems.push(format!(
                "timeline {timeline} has WAL and no history: what it descends from is unknown"
            ));
        }
    }
    let read: BTreeSet<&BackupId> = catalogue.backups.iter().map(|b| &b.id).collect();
    for backup in &catalogue.backups {
        let history = catalogue.histories.get(&backup.timeline);
        if !history.is_some_and(|h| h.contains(backup.timeline, backup.stop_lsn)) {
            problems.push(format!(
                "backup {} is of timeline {}, whose history is not here or does not hold it",
                backup.id, backup.timeline
            ));
        }
        if !directories.contains_key(&backup.id) {
            problems.push(format!("backup {} was read and is not listed", backup.id));
        }
    }
    let unreadable = catalogue.unreadable.iter();
    let unreadable: BTreeSet<_> = unreadable.filter_map(|o| o.backup.as_ref()).collect();
    for (id, directory) in directories {
        if directory.marked.is_some() && !read.contains(id) && !unreadable.contains(id) {
            problems.push(format!("backup {id} was committed a moment ago"));
        }
    }
    problems
}

/// Where something was stored after now, one of the clocks is wrong, and what is old is not
/// known.
fn not_from_the_future(
    system: &System,
    now: Timestamp,
    stored: Timestamp,
    what: &str,
) -> Result<()> {
    if stored <= now + CLOCK_TOLERANCE {
        return Ok(());
    }
    Err(Error::refused(format!(
        "{what} was stored at {stored}, and it is {now} here: nothing is deleted while the clocks disagree"
    ))
    .at(system.place())
    .hint("compare this host's clock and the store's (`seawall check` does); set the wrong one right"))
}
