//! One cluster on the page.

use jiff::Timestamp;
use maud::{Markup, html};

use super::{ago, badge, band, bytes, moment, span, trend};
use crate::repository::keys::BackupKind;
use crate::status::{BackupStatus, ClusterStatus, RepositoryStatus, ServerStatus};

/// So many backups are listed.
const BACKUPS: usize = 100;

/// A look that is older, in seconds, is no news any more.
const STALE: f64 = 900.0;

pub(super) fn section(status: &ClusterStatus, now: Timestamp) -> Markup {
    let name = &status.cluster;
    let age = now.duration_since(status.time).as_secs_f64();
    html! {
        section.card aria-labelledby={ "cluster-" (name) } {
            h2 id={ "cluster-" (name) } {
                (name)
                (server(&status.server))
                span.note { "looked at " (ago(status.time, now)) }
                @if age > STALE { (badge("bad", "stale")) }
            }
            (tiles(status, now))
            @let troubles = troubles(&status.server);
            @if !troubles.is_empty() {
                ul.trouble { @for trouble in &troubles { li { (trouble) } } }
            }
            @for repository in &status.repositories { (of_repository(status, repository, now)) }
            (band::legend())
        }
    }
}

fn server(server: &ServerStatus) -> Markup {
    let role = match server.in_recovery {
        Some(true) => "standby",
        _ => "primary",
    };
    match (&server.error, server.postgresql_major) {
        (None, Some(major)) => badge("good", &format!("PostgreSQL {major}, {role}")),
        _ => badge("bad", "the server does not answer"),
    }
}

/// The figures that one looks for first.
fn tiles(status: &ClusterStatus, now: Timestamp) -> Markup {
    let pushed_to = || status.repositories.iter().filter(|r| r.copy_from.is_none());
    // Of several repositories that WAL is pushed to the best counts: one restores from there.
    let rpo = pushed_to()
        .filter_map(|r| r.live_rpo(now))
        .min_by(f64::total_cmp);
    let drill = status.repositories.iter().filter_map(|r| r.drills.last());
    let drill = drill.max_by_key(|drill| drill.started);
    let newest = pushed_to()
        .filter_map(|r| r.newest(None))
        .max_by_key(|b| b.stop_time);
    let objectives = &status.objectives;
    let waiting = status.server.backlog.as_ref();
    html! {
        div.tiles {
            (tile("Live RPO", rpo.map(span), misses(rpo, objectives.rpo_seconds), &objective(objectives.rpo_seconds)))
            (tile(
                "RTO of the last drill",
                drill.and_then(|drill| drill.rto_seconds).map(span),
                misses(drill.and_then(|drill| drill.rto_seconds), objectives.rto_seconds),
                &match drill {
                    Some(drill) => format!("{} {}, {}", if drill.passed { "passed" } else { "FAILED" }, ago(drill.started, now), objective(objectives.rto_seconds)),
                    None => "no drill yet: nothing is proven".to_owned(),
                },
            ))
            (tile(
                "Newest backup",
                newest.map(|backup| ago(backup.stop_time, now)),
                newest.is_none(),
                &newest.map_or("there is none".to_owned(), |backup| format!("{}, {} stored", kind(backup), bytes(backup.stored_bytes))),
            ))
            (tile(
                "Waiting to be archived",
                waiting.map(|backlog| format!("{} files", backlog.files)),
                status.server.archiver.as_ref().is_some_and(|archiver| archiver.failing) || status.server.seconds_until_full.is_some(),
                &waiting.map_or("the data directory is not on this host".to_owned(), |backlog| match backlog.oldest_seconds {
                    Some(seconds) => format!("{}, the oldest for {}", bytes(backlog.bytes), span(seconds)),
                    None => "nothing waits".to_owned(),
                }),
            ))
        }
    }
}

fn tile(name: &str, figure: Option<String>, bad: bool, note: &str) -> Markup {
    html! {
        div.tile {
            h3 { (name) }
            p class={ "figure" @if figure.is_none() { " none" } @if bad { " bad" } } {
                (figure.as_deref().unwrap_or("not known"))
            }
            p.note { (note) }
        }
    }
}

fn misses(seconds: Option<f64>, objective: Option<f64>) -> bool {
    matches!((seconds, objective), (Some(seconds), Some(objective)) if seconds > objective)
}

fn objective(seconds: Option<f64>) -> String {
    seconds.map_or("no objective".to_owned(), |s| {
        format!("objective {}", span(s))
    })
}

fn kind(backup: &BackupStatus) -> &'static str {
    match backup.kind {
        BackupKind::Full => "full",
        BackupKind::Incremental => "incremental",
    }
}

fn troubles(server: &ServerStatus) -> Vec<String> {
    let mut troubles: Vec<String> = server.error.iter().cloned().collect();
    troubles.extend(server.backlog_error.iter().cloned());
    if server
        .archiver
        .as_ref()
        .is_some_and(|archiver| archiver.failing)
    {
        troubles
            .push("archiving fails: the server's log holds what archive_command printed".into());
    }
    if let Some(seconds) = server.seconds_until_full {
        troubles.push(format!(
            "pg_wal is full in {} at this rate, and PostgreSQL stops then",
            span(seconds)
        ));
    }
    troubles
}

fn of_repository(status: &ClusterStatus, repository: &RepositoryStatus, now: Timestamp) -> Markup {
    let id = format!("{}-{}", status.cluster, repository.name);
    html! {
        div.repository {
            h3 {
                (repository.name)
                @if let Some(source) = &repository.copy_from { span.note { "a copy of " (source) } }
                @if repository.error.is_some() { (badge("bad", "cannot be looked at")) }
                @if let Some(lag) = &repository.lag {
                    @if lag.is_none() { (badge("good", "lacks nothing")) }
                    @else { (badge("open", &format!("{} behind", span(lag.seconds)))) }
                }
            }
            @if repository.listed.is_some() { (band::figure(&format!("band-{id}"), repository, now)) }
            @else if repository.error.is_none() { p.note { "Its contents are being listed." } }
            p.note { (facts(repository, now)) }
            @let troubles = repository_troubles(repository);
            @if !troubles.is_empty() {
                ul.trouble { @for trouble in &troubles { li { (trouble) } } }
            }
            @if !repository.drills.is_empty() {
                div.charts {
                    (trend::chart(&format!("rto-{id}"), "RTO", &repository.drills, status.objectives.rto_seconds, |drill| drill.rto_seconds, now))
                    (trend::chart(&format!("rpo-{id}"), "RPO", &repository.drills, status.objectives.rpo_seconds, |drill| drill.rpo_seconds, now))
                }
            }
            @if !repository.backups.is_empty() { (backups(repository, now)) }
        }
    }
}

fn facts(repository: &RepositoryStatus, now: Timestamp) -> String {
    let mut facts = Vec::new();
    if let Some(newest) = repository.newest_recoverable {
        facts.push(format!("recoverable up to {}", moment(newest)));
    }
    if let Some(until) = &repository.archived_until {
        facts.push(format!(
            "WAL up to {} on timeline {}, {}",
            until.lsn,
            until.timeline,
            ago(until.stored, now)
        ));
    }
    let sizes = repository.sizes;
    if repository.listed.is_some() {
        facts.push(format!(
            "{} of full backups, {} of incremental ones, {} of WAL",
            bytes(sizes.full),
            bytes(sizes.incremental),
            bytes(sizes.wal)
        ));
    }
    if let Some(lag) = repository.lag.as_ref().filter(|lag| !lag.is_none()) {
        facts.push(format!(
            "lacks {} segments ({}) and {} backups",
            lag.segments,
            bytes(lag.wal_bytes),
            lag.backups.len()
        ));
    }
    facts.join(" · ")
}

fn repository_troubles(repository: &RepositoryStatus) -> Vec<String> {
    let mut troubles: Vec<String> = repository.error.iter().cloned().collect();
    troubles.extend(
        repository
            .lag_error
            .iter()
            .map(|why| format!("how far it is behind is not known: {why}")),
    );
    for [first, last] in &repository.gaps {
        troubles.push(format!("WAL is missing from {first} to {last}"));
    }
    if repository.conflicts > 0 {
        troubles.push(format!(
            "{} WAL files have more than one content: seawall wal verify",
            repository.conflicts
        ));
    }
    troubles.extend(repository.unreadable.iter().cloned());
    for backup in &repository.backups {
        if let Some(broken) = &backup.broken_chain {
            troubles.push(format!("backup {} cannot be restored: {broken}", backup.id));
        } else if backup.window.is_none() {
            troubles.push(format!(
                "backup {} cannot be restored: its own WAL is missing",
                backup.id
            ));
        }
        if backup.damaged_pages > 0 {
            troubles.push(format!(
                "backup {} holds {} damaged pages",
                backup.id, backup.damaged_pages
            ));
        }
    }
    if let Some(drill) = repository.drills.last().filter(|drill| !drill.passed) {
        troubles.push(format!(
            "drill {} failed: {}",
            drill.id,
            drill.reasons.join("; ")
        ));
    }
    troubles
}

fn backups(repository: &RepositoryStatus, now: Timestamp) -> Markup {
    let all = repository.backups.len();
    html! {
        details {
            summary { "The backups in " (repository.name) " (" (all) ")" }
            div.scroll tabindex="0" role="region" aria-label={ "Backups in " (repository.name) } {
                table {
                    thead { tr {
                        th scope="col" { "backup" }
                        th scope="col" { "ended" }
                        th.number scope="col" { "size" }
                        th.number scope="col" { "stored" }
                        th.number scope="col" { "took" }
                        th scope="col" { "last proven" }
                        th scope="col" { "" }
                    } }
                    tbody { @for (at, backup) in repository.backups.iter().rev().enumerate() {
                        @if at < BACKUPS { (row(backup, now)) }
                    } }
                }
            }
            @if all > BACKUPS { p.note { "The newest " (BACKUPS) " of " (all) "; seawall list shows all." } }
        }
    }
}

fn row(backup: &BackupStatus, now: Timestamp) -> Markup {
    html! {
        tr {
            th scope="row" { (backup.id) }
            td { (ago(backup.stop_time, now)) }
            td.number { (bytes(backup.bytes)) }
            td.number { (bytes(backup.stored_bytes)) }
            td.number { (span(backup.seconds)) }
            td {
                @match backup.proven {
                    Some(time) => (badge("good", &ago(time, now))),
                    None => (badge("open", "never")),
                }
            }
            td {
                @if backup.pinned { (badge("open", "pinned")) }
                @if backup.window.is_none() { (badge("bad", "not usable")) }
                @if backup.damaged_pages > 0 { (badge("bad", "damaged pages")) }
            }
        }
    }
}
