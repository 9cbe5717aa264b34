//! What `seawall list` prints for people.

use super::super::output::{moment, print, size, table};
use super::{LastDrill, ListedBackup, ListedRepository, ListedSystem, ListedTimeline};
use crate::repository::points::{PointScan, RestorePoint};

pub(super) fn print_repository(repository: &ListedRepository) {
    print(&format!(
        "repository {} ({})",
        repository.name, repository.url
    ));
    if let Some(error) = &repository.error {
        print(&format!("  NOT LISTED: {error}"));
    } else if repository.systems.is_empty() {
        print("  nothing of this cluster");
    }
    for system in &repository.systems {
        print(&format!(
            "\ncluster {}, system {}, PostgreSQL {}",
            system.cluster, system.system_id, system.postgresql_major
        ));
        print_backups(&system.backups);
        print_timelines(&system.timelines);
        print_points(&system.restore_points);
        print_unusable(system);
        print_lag(system);
        for id in &system.unfinished_backups {
            print(&format!("unfinished, or still running: {id}"));
        }
    }
}

fn print_backups(backups: &[ListedBackup]) {
    let rows = backups.iter().map(|backup| {
        let to_lsn = match &backup.reach {
            Some(reach) => reach.end.to_string(),
            None => "WAL missing".to_owned(),
        };
        let to = match &backup.window {
            Some(window) => window.to.map_or("unknown".to_owned(), moment),
            None => "-".to_owned(),
        };
        let drilled = match &backup.last_drill {
            Some(LastDrill { passed: true, .. }) => "passed".to_owned(),
            Some(LastDrill { time, .. }) => format!("FAILED {}", moment(*time)),
            None => "-".to_owned(),
        };
        let proven = match &backup.last_passed_drill {
            Some(LastDrill { time, .. }) => moment(*time),
            None => "never".to_owned(),
        };
        vec![
            backup.id.to_string(),
            backup.timeline.to_string(),
            size(backup.bytes),
            size(backup.stored_bytes),
            moment(backup.stop_time),
            to,
            backup.stop_lsn.to_string(),
            to_lsn,
            proven,
            drilled,
        ]
    });
    let header = [
        "backup",
        "timeline",
        "size",
        "stored",
        "recovers from",
        "to",
        "from LSN",
        "to LSN",
        "last proven",
        "last drill",
    ];
    if backups.is_empty() {
        print("no finished backup");
    } else {
        print(&table(&header, rows.collect()));
    }
    for backup in backups {
        if let Some(why) = &backup.broken_chain {
            print(&format!("NOT RESTORABLE: {}: {why}", backup.id));
        } else if let Some(parent) = &backup.parent {
            print(&format!("{} is on top of {parent}", backup.id));
        }
        for pin in &backup.pins {
            let until = pin
                .until
                .map_or(String::new(), |until| format!(" until {}", moment(until)));
            print(&format!("PINNED: {}{until}: {}", backup.id, pin.reason));
        }
        let window = backup.window.as_ref();
        if let Some(why) = window.and_then(|window| window.unknown.as_ref()) {
            print(&format!("to when {} recovers is unknown: {why}", backup.id));
        }
    }
}

fn print_points(points: &[RestorePoint]) {
    let rows = points.iter().map(|point| {
        // Anyone may have chosen the name: it must not move the cursor.
        let name = match point.name.chars().any(char::is_control) {
            true => format!("{:?}", point.name),
            false => point.name.clone(),
        };
        vec![
            name,
            point.timeline.to_string(),
            point.lsn.to_string(),
            moment(point.time),
        ]
    });
    if !points.is_empty() {
        let header = ["restore point", "timeline", "LSN", "time"];
        print(&table(&header, rows.collect()));
    }
}

fn print_lag(system: &ListedSystem) {
    let Some(listed) = &system.lag else { return };
    let source = &listed.copy_from;
    match (&listed.lag, &listed.unknown) {
        (Some(lag), _) => print(&format!(
            "copy of {source}: {}",
            super::super::copy::describe(lag, source)
        )),
        (None, Some(why)) => print(&format!(
            "copy of {source}: how far it is behind is unknown: {why}"
        )),
        (None, None) => {}
    }
}

fn print_unusable(system: &ListedSystem) {
    for object in &system.unreadable {
        let what = match (&object.backup, object.timeline) {
            (Some(id), _) => format!("backup {id}"),
            (None, Some(timeline)) => format!("the history of timeline {timeline}"),
            (None, None) => "a restore point".to_owned(),
        };
        print(&format!("UNREADABLE: {what}: {}", object.why));
    }
    if let Some(PointScan {
        segments,
        unreadable,
        ..
    }) = &system.scan
    {
        print(&format!("read {segments} segments for restore points"));
        for failed in unreadable {
            print(&format!("UNREADABLE: {}: {}", failed.segment, failed.why));
        }
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
