//! The early alarm: WAL that waits to be archived, and how long pg_wal's file system lasts.

use std::time::Duration;

use bytesize::ByteSize;
use tokio::time::Instant;

use super::Findings;
use crate::config::{ClusterConfig, Config, HumanDuration};
use crate::postgres::control::ControlFile;
use crate::postgres::sql::Client;
use crate::wal::backlog::Backlog;

const SUBJECT: &str = "archiver";

/// So many files may wait for the archiver without a word.
const WAITING_FILES: u64 = 8;

/// So long the oldest may wait where there is no RPO objective.
const WAITING: Duration = Duration::from_secs(600);

/// Less time than this until the file system is full is a problem, not a warning: somebody has
/// to act now.
const TIME_TO_ACT: Duration = Duration::from_secs(3600);

/// Archiving falls behind where more than [`WAITING_FILES`] wait, or one waits for longer than
/// this. With less the rates alone say nothing: PostgreSQL removes what was archived from its
/// status directory, and a moment is not the rule.
const BEHIND: Duration = Duration::from_secs(60);

/// How long the server is watched, to see how fast it writes.
const GLANCE: Duration = Duration::from_secs(1);

pub(super) async fn examine(
    config: &Config,
    cluster: &ClusterConfig,
    control: &ControlFile,
    client: Option<&Client>,
    findings: &mut Findings,
) {
    let data_directory = cluster.data_directory();
    let looked = data_directory.and_then(|path| Backlog::look(path, control.segment_size));
    let mut backlog = match looked {
        Ok(backlog) => backlog,
        Err(error) => return findings.failed(SUBJECT, &error),
    };
    if let Some(client) = client
        && backlog.files > 0
    {
        match writing(client).await {
            Ok(rate) => backlog = backlog.seen_writing(rate),
            Err(error) => findings.failed(SUBJECT, &error),
        }
    }
    judge(&backlog, config.objectives.rpo, findings);
}

/// Bytes of WAL that the server writes in a second.
async fn writing(client: &Client) -> crate::error::Result<f64> {
    let start = Instant::now();
    let before = client.current_wal_lsn().await?;
    tokio::time::sleep(GLANCE).await;
    let after = client.current_wal_lsn().await?;
    Ok(after.since(before) as f64 / start.elapsed().as_secs_f64())
}

fn judge(backlog: &Backlog, rpo: Option<HumanDuration>, findings: &mut Findings) {
    let oldest = Duration::try_from_secs_f64(backlog.oldest_seconds.unwrap_or_default());
    let oldest = whole_seconds(oldest.unwrap_or_default());
    let left = backlog.time_left().map(whole_seconds);
    let waits = format!(
        "{} files wait to be archived ({})",
        backlog.files,
        ByteSize(backlog.bytes)
    );
    let rates = format!(
        "WAL is written at {}/s and archived at {}/s, pg_wal has {} left",
        ByteSize(backlog.written_per_second as u64),
        ByteSize(backlog.archived_per_second as u64),
        ByteSize(backlog.free_bytes)
    );
    let advice = "find out why archiving fails or is slow: the server's log holds what archive_command printed. Never delete files from pg_wal by hand";
    if backlog.files == 0 {
        return findings.ok(SUBJECT, waits);
    }
    let waits = format!("{waits}, the oldest for {}", HumanDuration(oldest));
    let behind = backlog.files > WAITING_FILES || oldest > BEHIND;
    if let Some(left) = left.filter(|left| behind && *left < TIME_TO_ACT) {
        return findings.problem(
            SUBJECT,
            format!("{waits}; {rates}: it is full in {}, and PostgreSQL stops then", HumanDuration(left)),
            format!("act now: {advice}; give pg_wal more space, or bring the load down until archiving keeps up"),
        );
    }
    let too_old = match rpo {
        Some(rpo) if oldest > rpo.0 => Some(format!(", longer than the RPO objective of {rpo}")),
        None if oldest > WAITING => Some(String::new()),
        _ => None,
    };
    match too_old {
        Some(longer) => findings.warning(SUBJECT, format!("{waits}{longer}; {rates}"), advice),
        None if backlog.files > WAITING_FILES => {
            findings.warning(SUBJECT, format!("{waits}; {rates}"), advice);
        }
        None => findings.ok(SUBJECT, format!("{waits}; {rates}")),
    }
}

fn whole_seconds(duration: Duration) -> Duration {
    Duration::from_secs(duration.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    fn found(backlog: Backlog, rpo: Option<u64>) -> (Level, String) {
        let mut findings = Findings::default();
        judge(&backlog, rpo.map(HumanDuration::from_secs), &mut findings);
        let finding = findings.0.remove(0);
        assert_eq!(finding.advice.is_none(), finding.level == Level::Ok);
        (finding.level, finding.finding)
    }

    fn backlog(files: u64, oldest: f64, written: f64) -> Backlog {
        Backlog {
            files,
            bytes: files << 24,
            oldest_seconds: (files > 0).then_some(oldest),
            written_per_second: written,
            archived_per_second: 0.0,
            free_bytes: 36_000 << 20,
        }
    }

    #[test]
    fn a_backlog_warns_early_and_becomes_a_problem_when_an_hour_is_left() {
        let level = |files, oldest, written, rpo| found(backlog(files, oldest, written), rpo).0;
        let mib = f64::from(1 << 20);
        assert_eq!(level(0, 0.0, mib, None), Level::Ok);
        assert_eq!(level(2, 5.0, mib, Some(60)), Level::Ok);
        assert_eq!(level(9, 5.0, mib, Some(60)), Level::Warning);
        assert_eq!(level(2, 61.0, mib, Some(60)), Level::Warning);
        assert_eq!(level(2, 61.0, mib, None), Level::Ok);
        assert_eq!(level(2, 601.0, mib, None), Level::Warning);
        // Ten hours are left at 1 MiB/s, less than one at 11.
        assert_eq!(level(9, 601.0, 9.9 * mib, None), Level::Warning);
        assert_eq!(level(9, 5.0, 11.0 * mib, None), Level::Problem);
        assert_eq!(level(2, 61.0, 11.0 * mib, None), Level::Problem);
    }

    #[test]
    fn a_busy_server_whose_archiving_keeps_up_has_no_problem_however_fast_it_writes() {
        let busy = f64::from(1 << 30);
        assert_eq!(found(backlog(8, 60.0, busy), None).0, Level::Ok);
    }

    #[test]
    fn a_finding_says_bytes_age_rates_and_the_time_that_is_left() {
        let (_, text) = found(backlog(9, 90.5, f64::from(20 << 20)), None);
        assert_eq!(
            text,
            "9 files wait to be archived (144.0 MiB), the oldest for 1m 30s; WAL is written at 20.0 MiB/s and archived at 0 B/s, pg_wal has 35.2 GiB left: it is full in 30m, and PostgreSQL stops then"
        );
    }
}
