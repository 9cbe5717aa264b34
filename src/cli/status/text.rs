//! The status of a cluster as people read it.

use jiff::Timestamp;

use crate::cli::output::{moment, size};
use crate::config::HumanDuration;
use crate::repository::keys::BackupKind;
use crate::status::{ClusterStatus, RepositoryStatus, ServerStatus};

/// All of it, with an empty line at its end.
pub(super) fn of(status: &ClusterStatus) -> String {
    let now = status.time;
    let mut lines = vec![format!("{}: {}", status.cluster, server(&status.server))];
    lines.extend(archiving(&status.server, now));
    for repository in &status.repositories {
        lines.push(format!("\n  {}", title(repository)));
        lines.extend(contents(repository, status, now));
    }
    lines.join("\n") + "\n"
}

fn server(server: &ServerStatus) -> String {
    let role = match server.in_recovery {
        Some(true) => "standby",
        _ => "primary",
    };
    match (&server.error, server.postgresql_major) {
        (Some(error), _) => format!("the server CANNOT BE ASKED: {error}"),
        (None, Some(major)) => format!("PostgreSQL {major}, {role}"),
        (None, None) => "PostgreSQL".to_owned(),
    }
}

fn archiving(server: &ServerStatus, now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    let mut say = |text: String| lines.push(format!("  archiving      {text}"));
    if let Some(archiver) = &server.archiver {
        if archiver.failing {
            let when = archiver
                .last_failed_time
                .map_or(String::new(), |t| ago(t, now));
            say(format!(
                "FAILS, last tried {when}; the server's log says why"
            ));
        } else if let (Some(file), Some(time)) =
            (&archiver.last_archived, archiver.last_archived_time)
        {
            say(format!("{file} was archived {}", ago(time, now)));
        }
        if let Some(bytes) = archiver.unarchived_bytes {
            say(format!("{} of WAL are not archived yet", size(bytes)));
        }
    }
    if let Some(backlog) = &server.backlog
        && backlog.files > 0
    {
        let oldest = backlog.oldest_seconds.map_or(String::new(), |seconds| {
            format!(", the oldest for {}", span(seconds))
        });
        say(format!(
            "{} wait ({}{oldest})",
            counted(backlog.files, "file"),
            size(backlog.bytes)
        ));
    }
    if let Some(seconds) = server.seconds_until_full {
        say(format!("pg_wal is FULL in {} at this rate", span(seconds)));
    }
    if let Some(error) = &server.backlog_error {
        say(format!("pg_wal cannot be looked at: {error}"));
    }
    lines
}

fn title(repository: &RepositoryStatus) -> String {
    match &repository.copy_from {
        Some(source) => format!("{}, a copy of {source}", repository.name),
        None => repository.name.clone(),
    }
}

fn contents(repository: &RepositoryStatus, status: &ClusterStatus, now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    let mut say = |what: &str, text: String| lines.push(format!("    {what:<13}{text}"));
    if let Some(error) = &repository.error {
        say("ERROR", error.clone());
    }
    if repository.listed.is_none() {
        if repository.error.is_none() {
            say("contents", "they are being listed".into());
        }
        return lines;
    }
    match repository.live_rpo(now) {
        None => say(
            "recoverable",
            "NOTHING: there is no backup with its WAL".into(),
        ),
        Some(seconds) => {
            let objective = status.objectives.rpo_seconds;
            say(
                "live RPO",
                format!("{}{}", span(seconds), against(seconds, objective)),
            );
            for window in &repository.windows {
                let (from, to) = (moment(window.from), moment(window.to));
                say("recoverable", format!("{from} to {to}"));
            }
        }
    }
    for kind in [BackupKind::Full, BackupKind::Incremental] {
        let count = repository.backups.iter().filter(|b| b.kind == kind).count();
        if let Some(newest) = repository.newest(Some(kind)) {
            let (name, stored) = match kind {
                BackupKind::Full => ("full", repository.sizes.full),
                BackupKind::Incremental => ("incremental", repository.sizes.incremental),
            };
            say(
                "backups",
                format!(
                    "{count} {name} ({}), the newest ended {}",
                    size(stored),
                    ago(newest.stop_time, now)
                ),
            );
        }
    }
    for backup in &repository.backups {
        if let Some(broken) = &backup.broken_chain {
            say("BROKEN", format!("{}: {broken}", backup.id));
        } else if backup.window.is_none() {
            say("BROKEN", format!("{}: its own WAL is missing", backup.id));
        }
        if backup.damaged_pages > 0 {
            let pages = counted(backup.damaged_pages, "damaged page");
            say("DAMAGED", format!("{}: {pages}", backup.id));
        }
    }
    if let Some(until) = &repository.archived_until {
        let stored = ago(until.stored, now);
        let (wal, lsn) = (size(repository.sizes.wal), until.lsn);
        say(
            "WAL",
            format!(
                "{wal}, up to {lsn} on timeline {}, which came {stored}",
                until.timeline
            ),
        );
    }
    for [first, last] in &repository.gaps {
        say("GAP", format!("{first} to {last} are missing"));
    }
    if repository.conflicts > 0 {
        say(
            "CONFLICT",
            format!(
                "{} with several contents",
                counted(repository.conflicts, "WAL file")
            ),
        );
    }
    for why in &repository.unreadable {
        say("UNREADABLE", why.clone());
    }
    if let Some(lag) = &repository.lag {
        let text = match lag.is_none() {
            true => "nothing is lacking".to_owned(),
            false => format!(
                "{} behind: {} ({}) and {}",
                span(lag.seconds),
                counted(lag.segments, "segment"),
                size(lag.wal_bytes),
                counted(lag.backups.len() as u64, "backup")
            ),
        };
        say("copy", text);
    }
    if let Some(error) = &repository.lag_error {
        say("copy", format!("not known how far behind: {error}"));
    }
    match repository.drills.last() {
        Some(drill) => {
            let verdict = if drill.passed { "passed" } else { "FAILED" };
            let rto = drill.rto_seconds.map_or(String::new(), |seconds| {
                format!(
                    ", RTO {}{}",
                    span(seconds),
                    against(seconds, status.objectives.rto_seconds)
                )
            });
            let rpo = drill.rpo_seconds.map_or(String::new(), |seconds| {
                format!(
                    ", RPO {}{}",
                    span(seconds),
                    against(seconds, status.objectives.rpo_seconds)
                )
            });
            say(
                "drill",
                format!("{verdict} {}{rto}{rpo}", ago(drill.started, now)),
            );
        }
        None => say("drill", "never: nothing is proven".into()),
    }
    lines
}

fn against(seconds: f64, objective: Option<f64>) -> String {
    match objective {
        Some(objective) if seconds > objective => {
            format!(" (MISSES the objective of {})", span(objective))
        }
        Some(objective) => format!(" (objective {})", span(objective)),
        None => String::new(),
    }
}

fn ago(time: Timestamp, now: Timestamp) -> String {
    format!("{} ago", span(now.duration_since(time).as_secs_f64()))
}

/// As people say it: three digits below ten seconds, then whole seconds, and no seconds in days.
fn span(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    if seconds < 10.0 {
        return format!("{seconds:.1}s");
    }
    let whole = match seconds {
        day if day >= 86_400.0 => (day / 60.0).round() as u64 * 60,
        other => other.round() as u64,
    };
    HumanDuration::from_secs(whole).to_string()
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_at_a_glance() {
        assert_eq!(span(0.04), "0.0s");
        assert_eq!(span(7.25), "7.2s");
        assert_eq!(span(61.4), "1m 1s");
        assert_eq!(span(90_061.0), "1day 1h 1m");
        assert_eq!(against(5.0, Some(4.0)), " (MISSES the objective of 4.0s)");
        assert_eq!(against(5.0, None), "");
    }
}
