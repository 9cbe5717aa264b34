//! The metrics of what the last look at each cluster found.

use jiff::Timestamp;

use super::{Labels, Sheet, label, seconds, truth};
use crate::repository::keys::BackupKind;
use crate::status::{ClusterStatus, RepositoryStatus};

/// So many backups before the newest of a kind say what is usual.
const USUAL: usize = 7;

pub(super) fn add(sheet: &mut Sheet, statuses: &[&ClusterStatus], now: Timestamp) {
    clusters(sheet, statuses);
    servers(sheet, statuses);
    repositories(sheet, statuses, now);
    backups(sheet, statuses);
    copies(sheet, statuses);
    drills(sheet, statuses);
}

fn clusters(sheet: &mut Sheet, statuses: &[&ClusterStatus]) {
    let all = || statuses.iter().map(|status| (of_cluster(status), status));
    sheet.gauge(
        "look_duration_seconds",
        "How long that took.",
        all().map(|(labels, status)| (labels, status.seconds)),
    );
    sheet.gauge(
        "objective_rpo_seconds",
        "The objective: how much time's worth of commits may be lost.",
        all().filter_map(|(labels, status)| Some((labels, status.objectives.rpo_seconds?))),
    );
    sheet.gauge(
        "objective_rto_seconds",
        "The objective: how long it may take until the database answers again.",
        all().filter_map(|(labels, status)| Some((labels, status.objectives.rto_seconds?))),
    );
}

fn servers(sheet: &mut Sheet, statuses: &[&ClusterStatus]) {
    let all = || {
        statuses
            .iter()
            .map(|status| (of_cluster(status), &status.server))
    };
    sheet.gauge(
        "server_up",
        "1 if the server answered when it was last looked at.",
        all().map(|(labels, server)| (labels, truth(server.error.is_none()))),
    );
    sheet.gauge(
        "server_in_recovery",
        "1 if the server is a standby, or recovers.",
        all().filter_map(|(labels, server)| Some((labels, truth(server.in_recovery?)))),
    );
    let archivers =
        || all().filter_map(|(labels, server)| Some((labels, server.archiver.as_ref()?)));
    sheet.counter(
        "archived_files",
        "Files that PostgreSQL's archiver has archived since its statistics were reset.",
        archivers().map(|(labels, archiver)| (labels, archiver.archived)),
    );
    sheet.counter(
        "archive_failures",
        "Attempts of PostgreSQL's archiver that failed since its statistics were reset.",
        archivers().map(|(labels, archiver)| (labels, archiver.failed)),
    );
    sheet.gauge(
        "archive_failing",
        "1 while the last attempt of PostgreSQL's archiver failed.",
        archivers().map(|(labels, archiver)| (labels, truth(archiver.failing))),
    );
    sheet.gauge(
        "archive_last_timestamp_seconds",
        "When a file was last archived, in seconds since 1970.",
        archivers().filter_map(|(labels, a)| Some((labels, seconds(a.last_archived_time?)))),
    );
    sheet.gauge(
        "archive_lag_bytes",
        "WAL written behind the last archived segment, that in the open segment among it.",
        archivers().filter_map(|(labels, a)| Some((labels, a.unarchived_bytes? as f64))),
    );
    let backlogs = || all().filter_map(|(labels, server)| Some((labels, server.backlog.as_ref()?)));
    sheet.gauge(
        "archive_lag_segments",
        "Files in pg_wal that wait to be archived.",
        backlogs().map(|(labels, backlog)| (labels, backlog.files as f64)),
    );
    sheet.gauge(
        "archive_lag_seconds",
        "How long the oldest of them has waited; 0 where none waits.",
        backlogs().map(|(labels, backlog)| (labels, backlog.oldest_seconds.unwrap_or(0.0))),
    );
    sheet.gauge(
        "wal_written_bytes_per_second",
        "WAL that the server wrote in a second, over the last five minutes.",
        backlogs().map(|(labels, backlog)| (labels, backlog.written_per_second)),
    );
    sheet.gauge(
        "wal_archived_bytes_per_second",
        "WAL that was archived in a second, over the last five minutes.",
        backlogs().map(|(labels, backlog)| (labels, backlog.archived_per_second)),
    );
    sheet.gauge(
        "pg_wal_free_bytes",
        "What PostgreSQL can still write to the file system of pg_wal.",
        backlogs().map(|(labels, backlog)| (labels, backlog.free_bytes as f64)),
    );
    sheet.gauge(
        "pg_wal_full_in_seconds",
        "How long that lasts at these rates; absent while archiving keeps up.",
        all().filter_map(|(labels, server)| Some((labels, server.seconds_until_full?))),
    );
}

/// Each repository of each cluster, with its labels.
fn each<'a>(
    statuses: &'a [&ClusterStatus],
) -> impl Iterator<Item = (Labels, &'a RepositoryStatus)> {
    statuses.iter().flat_map(|status| {
        let repositories = status.repositories.iter();
        repositories.map(|repository| {
            let mut labels = of_cluster(status);
            labels.push(label("repository", &repository.name));
            (labels, repository)
        })
    })
}

fn repositories(sheet: &mut Sheet, statuses: &[&ClusterStatus], now: Timestamp) {
    sheet.gauge(
        "repository_up",
        "1 if the repository could be looked at.",
        each(statuses).map(|(labels, r)| (labels, truth(r.error.is_none()))),
    );
    sheet.gauge(
        "repository_look_timestamp_seconds",
        "When the repository was last looked at without an error, in seconds since 1970.",
        each(statuses).filter_map(|(labels, r)| Some((labels, seconds(r.looked?)))),
    );
    sheet.gauge(
        "live_rpo_seconds",
        "The live RPO: now less the newest moment that one can recover to from the repository.",
        each(statuses).filter_map(|(labels, r)| Some((labels, r.live_rpo(now)?))),
    );
    sheet.gauge(
        "newest_recoverable_timestamp_seconds",
        "The newest moment that one can recover to, in seconds since 1970.",
        each(statuses).filter_map(|(labels, r)| Some((labels, seconds(r.newest_recoverable?)))),
    );
    sheet.gauge(
        "oldest_recoverable_timestamp_seconds",
        "The oldest moment that one can recover to, in seconds since 1970.",
        each(statuses).filter_map(|(labels, r)| Some((labels, seconds(r.windows.first()?.from)))),
    );
    sheet.gauge(
        "recoverable_spans",
        "Spans of time that one can recover to; between them lie gaps.",
        each(statuses).filter_map(|(labels, r)| r.listed.map(|_| (labels, r.windows.len() as f64))),
    );
    sheet.gauge(
        "wal_gaps",
        "Ranges of WAL segments that were written and are missing.",
        each(statuses).filter_map(|(labels, r)| r.listed.map(|_| (labels, r.gaps.len() as f64))),
    );
    sheet.gauge(
        "wal_conflicts",
        "WAL files with more than one content.",
        each(statuses).filter_map(|(labels, r)| r.listed.map(|_| (labels, r.conflicts as f64))),
    );
    sheet.gauge(
        "unreadable_objects",
        "Markers, histories and restore points that cannot be used.",
        each(statuses)
            .filter_map(|(labels, r)| r.listed.map(|_| (labels, r.unreadable.len() as f64))),
    );
    sheet.gauge(
        "stored_bytes",
        "What the repository holds of the cluster, by class of object.",
        each(statuses)
            .filter(|(_, r)| r.listed.is_some())
            .flat_map(|(labels, r)| {
                let sizes = [
                    ("wal", r.sizes.wal),
                    ("full", r.sizes.full),
                    ("incremental", r.sizes.incremental),
                ];
                sizes.map(|(class, bytes)| {
                    let mut labels = labels.clone();
                    labels.push(label("class", class));
                    (labels, bytes as f64)
                })
            }),
    );
}

/// Each kind of backup of each repository, with its labels.
fn each_kind<'a>(
    statuses: &'a [&ClusterStatus],
) -> impl Iterator<Item = (Labels, &'a RepositoryStatus, BackupKind)> {
    let seen = each(statuses).filter(|(_, repository)| repository.listed.is_some());
    seen.flat_map(|(labels, repository)| {
        [BackupKind::Full, BackupKind::Incremental].map(|kind| {
            let mut labels = labels.clone();
            labels.push(label(
                "kind",
                match kind {
                    BackupKind::Full => "full",
                    BackupKind::Incremental => "incremental",
                },
            ));
            (labels, repository, kind)
        })
    })
}

fn backups(sheet: &mut Sheet, statuses: &[&ClusterStatus]) {
    sheet.gauge(
        "backups",
        "Finished backups in the repository.",
        each_kind(statuses).map(|(labels, repository, kind)| {
            let of_kind = repository.backups.iter().filter(|b| b.kind == kind);
            (labels, of_kind.count() as f64)
        }),
    );
    let newest = || {
        each_kind(statuses)
            .filter_map(|(labels, repository, kind)| Some((labels, repository.newest(Some(kind))?)))
    };
    sheet.gauge(
        "backup_newest_timestamp_seconds",
        "When the newest finished backup ended, in seconds since 1970.",
        newest().map(|(labels, backup)| (labels, seconds(backup.stop_time))),
    );
    sheet.gauge(
        "backup_newest_duration_seconds",
        "How long it took.",
        newest().map(|(labels, backup)| (labels, backup.seconds)),
    );
    sheet.gauge(
        "backup_newest_bytes",
        "What a restore of it writes.",
        newest().map(|(labels, backup)| (labels, backup.bytes as f64)),
    );
    sheet.gauge(
        "backup_newest_stored_bytes",
        "What it takes in the repository.",
        newest().map(|(labels, backup)| (labels, backup.stored_bytes as f64)),
    );
    sheet.gauge(
        "backup_usual_stored_bytes",
        "The median of what the backups of that kind before it took, seven at most.",
        each_kind(statuses).filter_map(|(labels, r, kind)| Some((labels, usual(r, kind)? as f64))),
    );
    sheet.gauge(
        "backup_damaged_pages",
        "Pages with a wrong checksum in the newest backup of that kind.",
        newest().map(|(labels, backup)| (labels, backup.damaged_pages as f64)),
    );
    let seen = || each(statuses).filter(|(_, repository)| repository.listed.is_some());
    sheet.gauge(
        "backups_unusable",
        "Finished backups that cannot be restored: their own WAL, or a part of their chain, is missing.",
        seen().map(|(labels, r)| {
            let unusable = r.backups.iter().filter(|backup| backup.window.is_none());
            (labels, unusable.count() as f64)
        }),
    );
    sheet.gauge(
        "backups_unfinished",
        "Backups that are under way, or were interrupted.",
        seen().map(|(labels, r)| (labels, r.unfinished_backups as f64)),
    );
    sheet.gauge(
        "backup_newest_proven_timestamp_seconds",
        "When a drill last proved a backup of the repository, in seconds since 1970; 0: none of the last 30 did.",
        seen().map(|(labels, r)| {
            let proven = r.drills.iter().rev().find(|drill| drill.passed);
            (labels, proven.map_or(0.0, |drill| seconds(drill.started)))
        }),
    );
}

/// The median size of the backups of a kind before the newest.
fn usual(repository: &RepositoryStatus, kind: BackupKind) -> Option<u64> {
    let of_kind = repository.backups.iter().rev().filter(|b| b.kind == kind);
    let before = of_kind
        .skip(1)
        .take(USUAL)
        .map(|backup| backup.stored_bytes);
    let mut before: Vec<u64> = before.collect();
    before.sort_unstable();
    before.get(before.len() / 2).copied()
}

fn copies(sheet: &mut Sheet, statuses: &[&ClusterStatus]) {
    sheet.gauge(
        "copy_compared_timestamp_seconds",
        "When the copy was last compared with its source, in seconds since 1970; 0: not yet.",
        each(statuses)
            .filter(|(_, r)| r.copy_from.is_some())
            .map(|(labels, r)| (labels, r.compared.map_or(0.0, seconds))),
    );
    let lags = || each(statuses).filter_map(|(labels, r)| Some((labels, r.lag.as_ref()?)));
    sheet.gauge(
        "copy_lag_segments",
        "WAL segments that the source of a copy holds and the copy lacks.",
        lags().map(|(labels, lag)| (labels, lag.segments as f64)),
    );
    sheet.gauge(
        "copy_lag_bytes",
        "Stored bytes of WAL that the copy lacks.",
        lags().map(|(labels, lag)| (labels, lag.wal_bytes as f64)),
    );
    sheet.gauge(
        "copy_lag_seconds",
        "How long the oldest WAL that the copy lacks has been at the source; 0 where none lacks.",
        lags().map(|(labels, lag)| (labels, lag.seconds)),
    );
    sheet.gauge(
        "copy_lag_backups",
        "Finished backups of the source that the copy lacks.",
        lags().map(|(labels, lag)| (labels, lag.backups.len() as f64)),
    );
}

fn drills(sheet: &mut Sheet, statuses: &[&ClusterStatus]) {
    let last = || each(statuses).filter_map(|(labels, r)| Some((labels, r.drills.last()?)));
    sheet.gauge(
        "drill_last_timestamp_seconds",
        "When the last drill from the repository began, in seconds since 1970.",
        last().map(|(labels, drill)| (labels, seconds(drill.started))),
    );
    sheet.gauge(
        "drill_last_passed",
        "1 if the last drill passed.",
        last().map(|(labels, drill)| (labels, truth(drill.passed))),
    );
    sheet.gauge(
        "drill_last_rto_seconds",
        "The RTO that the last drill measured.",
        last().filter_map(|(labels, drill)| Some((labels, drill.rto_seconds?))),
    );
    sheet.gauge(
        "drill_last_rpo_seconds",
        "The RPO that the last drill measured.",
        last().filter_map(|(labels, drill)| Some((labels, drill.rpo_seconds?))),
    );
}

fn of_cluster(status: &ClusterStatus) -> Labels {
    vec![label("cluster", &status.cluster)]
}
