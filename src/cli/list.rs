//! `seawall list`.

mod text;

use std::collections::BTreeMap;

use clap::Parser;
use jiff::Timestamp;
use serde::Serialize;

use super::output::print_json;
use super::{Common, become_cluster_owner};
use crate::config::RepositoryConfig;
use crate::copy::{Lag, lag_of};
use crate::error::{Error, Exit, Result};
use crate::postgres::{Lsn, SegmentName, SystemId, TimelineId};
use crate::repository::catalogue::{Catalogue, Reach, Unreadable};
use crate::repository::chain;
use crate::repository::keys::{BackupId, BackupKind};
use crate::repository::line::Archived;
use crate::repository::marker::{ChangeRule, Marker};
use crate::repository::pins::StoredPin;
use crate::repository::points::{self, PointScan, RestorePoint};
use crate::repository::windows::Window;
use crate::repository::{Repository, System};

/// Show backups, WAL, gaps, restore points and what one can recover to
#[derive(Debug, Parser)]
pub struct ListArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// A repository; may be repeated [default: all]
    #[arg(long, value_name = "NAME")]
    pub repository: Vec<String>,
    /// Read all archived WAL for restore points, of whoever's making, and record those that
    /// are not recorded yet. Takes as long as fetching and decompressing all of it
    #[arg(long)]
    pub scan: bool,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Listed {
    format: u32,
    repositories: Vec<ListedRepository>,
}

#[derive(Serialize)]
struct ListedRepository {
    name: String,
    url: String,
    systems: Vec<ListedSystem>,
    /// Why there may be more than is listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct ListedSystem {
    cluster: String,
    system_id: SystemId,
    postgresql_major: u32,
    segment_size: u64,
    first_seen: Timestamp,
    timelines: Vec<ListedTimeline>,
    backups: Vec<ListedBackup>,
    unfinished_backups: Vec<BackupId>,
    restore_points: Vec<RestorePoint>,
    /// Backups, restore points and timelines whose records cannot be used.
    unreadable: Vec<Unreadable>,
    /// What --scan has read.
    #[serde(skip_serializing_if = "Option::is_none")]
    scan: Option<PointScan>,
    /// What it lacks of the repository that it is a copy of.
    #[serde(skip_serializing_if = "Option::is_none")]
    lag: Option<ListedLag>,
}

/// How far a copy is behind its source.
#[derive(Serialize)]
struct ListedLag {
    copy_from: String,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    lag: Option<Lag>,
    /// Why it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<String>,
}

#[derive(Serialize)]
struct ListedTimeline {
    timeline: TimelineId,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<TimelineId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    switch_lsn: Option<Lsn>,
    segments: Vec<[SegmentName; 2]>,
    stored_bytes: u64,
    gaps: Vec<[SegmentName; 2]>,
    conflicts: Vec<SegmentName>,
}

#[derive(Serialize)]
struct ListedBackup {
    id: BackupId,
    kind: BackupKind,
    /// What an incremental backup was taken on top of.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<BackupId>,
    /// Why it cannot be restored: part of its chain is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    broken_chain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    change_rule: Option<ChangeRule>,
    postgresql_major: u32,
    timeline: TimelineId,
    start_lsn: Lsn,
    stop_lsn: Lsn,
    stop_time: Timestamp,
    wal: [SegmentName; 2],
    files: u64,
    bytes: u64,
    stored_bytes: u64,
    damaged_pages: u64,
    /// What one can recover to from this backup; absent where its own WAL is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    reach: Option<Reach>,
    /// The same in time.
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<Window>,
    /// The newest drill of it, whatever came of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_drill: Option<LastDrill>,
    /// The newest one that passed: until then it is proven.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_passed_drill: Option<LastDrill>,
    /// Why it stays whatever the rules of retention say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pins: Vec<ListedPin>,
}

/// A pin, or why it cannot be read.
#[derive(Debug, Clone, Serialize)]
struct ListedPin {
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

/// A drill of a backup.
#[derive(Debug, Clone, Serialize)]
struct LastDrill {
    id: String,
    time: Timestamp,
    passed: bool,
}

/// The newest drills of a backup: one that failed does not hide that one passed before.
#[derive(Debug, Clone, Default)]
struct LastDrills {
    any: Option<LastDrill>,
    passed: Option<LastDrill>,
}

/// Lists what the repositories hold: exit code 1 if one of them could not be listed.
pub fn run(args: &ListArgs) -> Result<Exit> {
    let config = args.common.load()?;
    let (cluster, cluster_config) = config.cluster(args.common.cluster.as_deref())?;
    if args.scan {
        // It writes what it finds.
        become_cluster_owner(cluster_config)?;
    }
    Ok(super::run(async {
        let mut listed = Listed {
            format: 1,
            repositories: Vec::new(),
        };
        let mut exit = Exit::Done;
        for settings in config.repositories(&args.repository)? {
            let mut systems = Vec::new();
            let done = list_repository(settings, cluster, args.scan, &mut systems).await;
            if let Some(source) = &settings.copy_from {
                // What is listed is worth a lot without the source, which may be lost.
                for listed in &mut systems {
                    let lag = lag_of(&config, settings, cluster, listed.system_id).await;
                    listed.lag = Some(ListedLag {
                        copy_from: source.clone(),
                        unknown: lag.as_ref().err().map(Error::one_line),
                        lag: lag.ok(),
                    });
                }
            }
            let error = match done {
                Err(error) if error.exit() == Exit::Usage => return Err(error),
                // The others are listed all the same.
                Err(error) => {
                    super::report(&error);
                    exit = Exit::Failed;
                    Some(error.one_line())
                }
                Ok(()) => None,
            };
            listed.repositories.push(ListedRepository {
                name: settings.name.clone(),
                url: settings.url.clone(),
                systems,
                error,
            });
        }
        if args.json {
            print_json(&listed)?;
        } else {
            listed.repositories.iter().for_each(text::print_repository);
        }
        Ok(exit)
    }))
}

/// Adds what could be listed to `systems`, also where the rest fails.
async fn list_repository(
    settings: &RepositoryConfig,
    cluster: &str,
    scan: bool,
    systems: &mut Vec<ListedSystem>,
) -> Result<()> {
    let repository = Repository::open(settings)?;
    repository.record().await?;
    let drills = last_drills(&repository, cluster).await?;
    for (system, _) in repository.systems(cluster).await? {
        systems.push(list_system(&system, &drills, scan).await?);
    }
    Ok(())
}

async fn list_system(
    system: &System,
    drills: &BTreeMap<BackupId, LastDrills>,
    scan: bool,
) -> Result<ListedSystem> {
    let catalogue = Catalogue::load(system).await?;
    let archived = catalogue.everything_archived().await?;
    let windows = catalogue.windows(&archived).await;
    let pins = system.pins().await?;
    let backups = catalogue.backups.iter().zip(windows);
    let backups = backups
        .map(|(backup, window)| ListedBackup {
            id: backup.id.clone(),
            kind: backup.kind,
            parent: parent_of(&catalogue, backup),
            broken_chain: chain::of(&catalogue.backups, backup)
                .err()
                .map(|broken| broken.to_string()),
            change_rule: backup.change_rule,
            postgresql_major: backup.major(),
            timeline: backup.timeline,
            start_lsn: backup.start_lsn,
            stop_lsn: backup.stop_lsn,
            stop_time: backup.stop_time,
            wal: backup.wal,
            files: backup.files,
            bytes: backup.restored_bytes(),
            stored_bytes: backup.stored_bytes,
            damaged_pages: backup.damaged_page_count,
            reach: catalogue.reach(backup, &archived),
            window,
            last_drill: drills.get(&backup.id).and_then(|last| last.any.clone()),
            last_passed_drill: drills.get(&backup.id).and_then(|last| last.passed.clone()),
            pins: list_pins(&backup.id, &pins),
        })
        .collect();
    let finished = catalogue.backups.iter().map(|backup| &backup.id);
    let unreadable = catalogue.unreadable.iter();
    let finished: Vec<&BackupId> = finished
        .chain(unreadable.filter_map(|object| object.backup.as_ref()))
        .collect();
    let mut unfinished_backups = system.backup_ids().await?;
    unfinished_backups.retain(|id| !finished.contains(&id));
    let mut restore_points = catalogue.points.clone();
    let scan = match scan {
        true => Some(catalogue.scan_points(&archived).await),
        false => None,
    };
    if let Some(scan) = &scan {
        system.remember_points(&scan.points, &restore_points).await;
        restore_points.extend(scan.points.iter().cloned());
        points::sort(&mut restore_points);
    }
    Ok(ListedSystem {
        cluster: system.cluster().to_owned(),
        system_id: system.id(),
        postgresql_major: catalogue.record.postgresql_major,
        segment_size: catalogue.record.segment_size.bytes(),
        first_seen: catalogue.record.first_seen,
        timelines: list_timelines(&catalogue, &archived),
        backups,
        unfinished_backups,
        restore_points,
        unreadable: catalogue.unreadable,
        scan,
        lag: None,
    })
}

/// What stands below an incremental backup now; where nothing does, what it names.
fn parent_of(catalogue: &Catalogue, backup: &Marker) -> Option<BackupId> {
    match chain::of(&catalogue.backups, backup) {
        Ok(chain) => chain.get(1).map(|parent| parent.id.clone()),
        Err(_) => backup.parent.as_ref().map(|parent| parent.id.clone()),
    }
}

/// The pins of a backup that hold.
fn list_pins(id: &BackupId, pins: &[StoredPin]) -> Vec<ListedPin> {
    let now = Timestamp::now();
    let of_it = pins.iter().filter(|pin| pin.backup == *id);
    let holding = of_it.filter_map(|stored| match &stored.pin {
        Ok(pin) => pin.holds(now).then(|| ListedPin {
            reason: pin.reason.clone(),
            until: pin.until,
        }),
        Err(error) => Some(ListedPin {
            reason: format!("UNREADABLE: {}", error.what()),
            until: None,
        }),
    });
    holding.collect()
}

fn list_timelines(catalogue: &Catalogue, archived: &Archived) -> Vec<ListedTimeline> {
    let size = catalogue.record.segment_size;
    let timelines = archived.iter().map(|(timeline, wal)| {
        let parent = catalogue
            .histories
            .get(timeline)
            .and_then(|h| h.parents.last());
        let name = |number| SegmentName::new(*timeline, number, size);
        ListedTimeline {
            timeline: *timeline,
            parent: parent.map(|parent| parent.timeline),
            switch_lsn: parent.map(|parent| parent.switch),
            segments: wal
                .runs
                .iter()
                .map(|run| [name(run.first), name(run.last)])
                .collect(),
            stored_bytes: wal.runs.iter().map(|run| run.stored_bytes).sum(),
            gaps: wal
                .gaps()
                .map(|(first, last)| [name(first), name(last)])
                .collect(),
            conflicts: wal.conflicts.clone(),
        }
    });
    timelines.collect()
}

/// The newest drills of each backup.
async fn last_drills(
    repository: &Repository,
    cluster: &str,
) -> Result<BTreeMap<BackupId, LastDrills>> {
    let mut last = BTreeMap::<_, LastDrills>::new();
    // Oldest first.
    for drill in repository.drills(cluster).await? {
        let of_backup = last.entry(drill.backup).or_default();
        let drill = LastDrill {
            id: drill.id,
            time: drill.started,
            passed: drill.passed,
        };
        if drill.passed {
            of_backup.passed = Some(drill.clone());
        }
        of_backup.any = Some(drill);
    }
    Ok(last)
}
