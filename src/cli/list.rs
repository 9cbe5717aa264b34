//! `seawall list`.

use std::collections::BTreeMap;

use clap::Parser;
use jiff::Timestamp;
use serde::Serialize;

use super::Common;
use super::output::{moment, print, print_json, size, table};
use crate::error::{Exit, Result};
use crate::postgres::{Lsn, SegmentName, SystemId, TimelineId};
use crate::repository::catalogue::{Catalogue, Reach};
use crate::repository::keys::{BackupId, BackupKind};
use crate::repository::points::RestorePoint;
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
    #[serde(skip_serializing_if = "Option::is_none")]
    last_drill: Option<LastDrill>,
}

/// When a backup was last proven.
#[derive(Debug, Clone, Serialize)]
struct LastDrill {
    time: Timestamp,
    passed: bool,
}

/// Lists what the repositories hold.
pub fn run(args: &ListArgs) -> Result<Exit> {
    let config = args.common.load()?;
    let (cluster, _) = config.cluster(args.common.cluster.as_deref())?;
    Ok(super::run(async {
        let mut listed = Listed {
            format: 1,
            repositories: Vec::new(),
        };
        for repository in Repository::open_all(&config, &args.repository)? {
            repository.record().await?;
            let drills = last_drills(&repository, cluster).await?;
            let mut systems = Vec::new();
            for (system, _) in repository.systems(cluster).await? {
                systems.push(list_system(&system, &drills).await?);
            }
            listed.repositories.push(ListedRepository {
                name: repository.name().to_owned(),
                url: repository.store().url().to_owned(),
                systems,
            });
        }
        if args.json {
            print_json(&listed)?;
        } else {
            listed.repositories.iter().for_each(print_repository);
        }
        Ok(Exit::Done)
    }))
}

async fn list_system(
    system: &System,
    drills: &BTreeMap<BackupId, LastDrill>,
) -> Result<ListedSystem> {
    let catalogue = Catalogue::load(system).await?;
    let record = &catalogue.record;
    let size = record.segment_size;
    let archived = catalogue.everything_archived().await?;
    let timelines = archived
        .iter()
        .map(|(timeline, wal)| {
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
        })
        .collect();
    let backups = catalogue
        .backups
        .iter()
        .map(|backup| ListedBackup {
            id: backup.id.clone(),
            kind: backup.kind,
            postgresql_major: backup.major(),
            timeline: backup.timeline,
            start_lsn: backup.start_lsn,
            stop_lsn: backup.stop_lsn,
            stop_time: backup.stop_time,
            wal: backup.wal,
            files: backup.files,
            bytes: backup.plain_bytes,
            stored_bytes: backup.stored_bytes,
            damaged_pages: backup.damaged_page_count,
            reach: catalogue.reach(backup, &archived),
            last_drill: drills.get(&backup.id).cloned(),
        })
        .collect();
    let finished: Vec<_> = catalogue.backups.iter().map(|backup| &backup.id).collect();
    let mut unfinished_backups = system.backup_ids().await?;
    unfinished_backups.retain(|id| !finished.contains(&id));
    Ok(ListedSystem {
        cluster: system.cluster().to_owned(),
        system_id: system.id(),
        postgresql_major: record.postgresql_major,
        segment_size: size.bytes(),
        first_seen: record.first_seen,
        timelines,
        backups,
        unfinished_backups,
        restore_points: catalogue.points,
    })
}

/// The newest drill of each backup.
async fn last_drills(
    repository: &Repository,
    cluster: &str,
) -> Result<BTreeMap<BackupId, LastDrill>> {
    let mut last = BTreeMap::new();
    for drill in repository.drills(cluster).await? {
        last.insert(
            drill.backup,
            LastDrill {
                time: drill.started,
                passed: drill.passed,
            },
        );
    }
    Ok(last)
}

fn print_repository(repository: &ListedRepository) {
    print(&format!(
        "repository {} ({})",
        repository.name, repository.url
    ));
    if repository.systems.is_empty() {
        print("  nothing of this cluster");
    }
    for system in &repository.systems {
        print(&format!(
            "\ncluster {}, system {}, PostgreSQL {}",
            system.cluster, system.system_id, system.postgresql_major
        ));
        print_backups(&system.backups);
        print_timelines(&system.timelines);
        if !system.restore_points.is_empty() {
            let rows = system.restore_points.iter().map(|point| {
                vec![
                    point.name.clone(),
                    point.timeline.to_string(),
                    point.lsn.to_string(),
                    moment(point.time),
                ]
            });
            print(&table(
                &["restore point", "timeline", "LSN", "time"],
                rows.collect(),
            ));
        }
        for id in &system.unfinished_backups {
            print(&format!("unfinished, or still running: {id}"));
        }
    }
}

fn print_backups(backups: &[ListedBackup]) {
    let rows = backups.iter().map(|backup| {
        let (to, until) = match &backup.reach {
            Some(reach) => (reach.end.to_string(), moment(reach.end_stored)),
            None => ("WAL missing".to_owned(), "-".to_owned()),
        };
        let proven = match &backup.last_drill {
            Some(LastDrill { time, passed: true }) => moment(*time),
            Some(LastDrill {
                time,
                passed: false,
            }) => format!("FAILED {}", moment(*time)),
            None => "never".to_owned(),
        };
        vec![
            backup.id.to_string(),
            backup.timeline.to_string(),
            size(backup.bytes),
            size(backup.stored_bytes),
            moment(backup.stop_time),
            backup.stop_lsn.to_string(),
            to,
            until,
            proven,
        ]
    });
    let header = [
        "backup",
        "timeline",
        "size",
        "stored",
        "recovers from",
        "LSN",
        "to LSN",
        "stored until",
        "last drill",
    ];
    if backups.is_empty() {
        print("no finished backup");
    } else {
        print(&table(&header, rows.collect()));
    }
}

fn print_timelines(timelines: &[ListedTimeline]) {
    let rows = timelines.iter().map(|timeline| {
        let range = match (timeline.segments.first(), timeline.segments.last()) {
            (Some([first, _]), Some([_, last])) => format!("{first} to {last}"),
            _ => "none".to_owned(),
        };
        let from = match (timeline.parent, timeline.switch_lsn) {
            (Some(parent), Some(lsn)) => format!("{parent} at {lsn}"),
            _ => "-".to_owned(),
        };
        vec![
            timeline.timeline.to_string(),
            from,
            range,
            size(timeline.stored_bytes),
            timeline.gaps.len().to_string(),
            timeline.conflicts.len().to_string(),
        ]
    });
    let header = ["timeline", "from", "WAL", "stored", "gaps", "conflicts"];
    if !timelines.is_empty() {
        print(&table(&header, rows.collect()));
    }
    for timeline in timelines {
        for [first, last] in &timeline.gaps {
            print(&format!("GAP: {first} to {last} are missing"));
        }
        for segment in &timeline.conflicts {
            print(&format!(
                "CONFLICT: {segment} is archived with different contents"
            ));
        }
    }
}
