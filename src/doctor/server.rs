//! The server: its settings, the role's privileges, its clock, and whether WAL that it writes
//! really arrives.

use std::time::Duration;

use jiff::Timestamp;

use super::Findings;
use crate::config::Config;
use crate::error::Result;
use crate::postgres::control::ControlFile;
use crate::postgres::recovery::ARCHIVING_ON_HOLD;
use crate::postgres::sql::Client;
use crate::postgres::{SegmentName, WalFileName};
use crate::repository::Repository;
use crate::repository::wal_objects::Held;
use crate::wal::wait;

/// Clocks that differ by more than this make times in reports doubtful.
const CLOCK_TOLERANCE: f64 = 5.0;

/// Looks at what the server says of itself. Returns whether it archives with us at all.
pub(super) async fn examine(
    client: &Client,
    config: &Config,
    control: Option<&ControlFile>,
    archive_command: Option<&str>,
    findings: &mut Findings,
) -> bool {
    let mut archives = false;
    match settings(client, config, archive_command, findings).await {
        Ok(found) => archives = found,
        Err(error) => findings.failed("settings", &error),
    }
    let parts: [(&str, Result<()>); 4] = [
        ("server", identity(client, control, findings).await),
        ("privileges", privileges(client, findings).await),
        ("archiver", archiver(client, findings).await),
        ("clock", clock(client, findings).await),
    ];
    for (subject, result) in parts {
        if let Err(error) = result {
            findings.failed(subject, &error);
        }
    }
    archives
}

async fn identity(
    client: &Client,
    control: Option<&ControlFile>,
    findings: &mut Findings,
) -> Result<()> {
    let system = client.system_identifier().await?;
    match control {
        Some(control) if control.system_id != system => findings.problem(
            "server",
            format!(
                "{} has system {system}, the data directory {}",
                client.place(),
                control.system_id
            ),
            "`connection` and `data_directory` name two different servers: mend the configuration",
        ),
        _ => findings.ok(
            "server",
            format!("{}, PostgreSQL {}", client.place(), client.major()),
        ),
    }
    Ok(())
}

async fn settings(
    client: &Client,
    config: &Config,
    archive_command: Option<&str>,
    findings: &mut Findings,
) -> Result<bool> {
    let names = [
        "wal_level",
        "archive_mode",
        "archive_command",
        "archive_library",
        "archive_timeout",
        "full_page_writes",
        "fsync",
    ];
    let settings = client.settings(&names).await?;
    let value = |name: &str| {
        settings
            .get(name)
            .map_or("", |setting| setting.value.as_str())
    };
    let lines = "`seawall init` prints the lines that postgresql.conf lacks";
    let mut fine = true;
    let mut wrong = |findings: &mut Findings, finding: String, advice: &str| {
        fine = false;
        findings.problem("settings", finding, advice);
    };
    if value("wal_level") == "minimal" {
        wrong(
            findings,
            "wal_level is minimal: WAL is of no use for recovery".into(),
            lines,
        );
    }
    if value("archive_mode") == "off" {
        wrong(
            findings,
            "archive_mode is off: no WAL is archived".into(),
            lines,
        );
    }
    let command = value("archive_command");
    if command.contains(ARCHIVING_ON_HOLD) {
        let advice = release_of(command).map_or_else(
            || "once it is production, set archive_command and reload".to_owned(),
            |release| format!("once it is production: {release}"),
        );
        wrong(
            findings,
            "archiving of this restored cluster is on hold: no WAL is archived".into(),
            &advice,
        );
    } else if !is_ours(command) {
        let advice = archive_command.map_or_else(
            || lines.to_owned(),
            |ours| {
                format!(
                    "set archive_command = '{}' and reload",
                    ours.replace('\'', "''")
                )
            },
        );
        wrong(
            findings,
            format!("archive_command is {command:?}: it is not ours"),
            &advice,
        );
    }
    if !value("archive_library").is_empty() {
        wrong(
            findings,
            format!(
                "archive_library is {:?}: it takes the place of archive_command",
                value("archive_library")
            ),
            "ALTER SYSTEM RESET archive_library, and reload",
        );
    }
    for name in ["full_page_writes", "fsync"] {
        if value(name) == "off" {
            wrong(
                findings,
                format!("{name} is off: a crash may damage the server and every backup of it"),
                "turn it on",
            );
        }
    }
    for (name, _) in settings
        .iter()
        .filter(|(_, setting)| setting.pending_restart)
    {
        findings.warning(
            "settings",
            format!("{name} was changed and waits for a restart"),
            "restart the server",
        );
    }
    let timeout: f64 = value("archive_timeout").parse().unwrap_or(0.0);
    if let Some(rpo) = config.objectives.rpo {
        let rpo = rpo.0.as_secs_f64();
        if timeout == 0.0 || timeout > rpo {
            findings.warning(
                "settings",
                format!("archive_timeout is {timeout} s and the RPO objective {rpo} s: on a quiet server the last commits wait in a segment that is not full"),
                format!("set archive_timeout = {} and reload", (rpo / 2.0).max(1.0)),
            );
        }
    }
    if fine {
        findings.ok("settings", "WAL is archived by seawall-archive");
    }
    let ours = is_ours(command);
    Ok(ours && value("archive_mode") != "off" && value("archive_library").is_empty())
}

/// Whether an archive_command calls Seawall; PostgreSQL may see it under another path.
/// The command of a cluster on hold only names ours, in the words of its release.
pub fn is_ours(command: &str) -> bool {
    let calls = command.contains("seawall-archive") || command.contains("seawall archive");
    calls && !command.contains(ARCHIVING_ON_HOLD)
}

/// The SQL that a command on hold says would release it. PostgreSQL doubled its percent signs,
/// and a shell's quoting lies around its single quotes.
fn release_of(command: &str) -> Option<String> {
    let (_, release) = command.split_once("; release it with ")?;
    let end = release.rfind("pg_reload_conf();")? + "pg_reload_conf();".len();
    Some(release[..end].replace("'\\''", "'").replace("%%", "%"))
}

/// What the least-privilege role of the documentation has.
async fn privileges(client: &Client, findings: &mut Findings) -> Result<()> {
    let functions: &[&str] = if client.major() >= 15 {
        &["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"]
    } else {
        &[
            "pg_start_backup(text, boolean, boolean)",
            "pg_stop_backup(boolean, boolean)",
        ]
    };
    let others = ["pg_switch_wal()", "pg_create_restore_point(text)"];
    let mut lacking = Vec::new();
    for function in functions.iter().chain(&others) {
        let sql = format!("SELECT has_function_privilege('{function}', 'EXECUTE')");
        if client.query_text(&sql).await?.as_deref() != Some("t") {
            lacking.push(format!(
                "GRANT EXECUTE ON FUNCTION {function} TO CURRENT_USER"
            ));
        }
    }
    for role in ["pg_read_all_settings", "pg_monitor"] {
        let sql = format!("SELECT pg_has_role('{role}', 'USAGE')");
        if client.query_text(&sql).await?.as_deref() != Some("t") {
            lacking.push(format!("GRANT {role} TO CURRENT_USER"));
        }
    }
    if lacking.is_empty() {
        findings.ok("privileges", "the role may do what backups need");
    } else {
        let user = client
            .query_text("SELECT quote_ident(current_user)")
            .await?
            .unwrap_or_default();
        let grants = lacking.join("; ").replace("CURRENT_USER", &user);
        findings.problem(
            "privileges",
            format!("the role {user} lacks {} privileges", lacking.len()),
            format!("as a superuser: {grants}"),
        );
    }
    Ok(())
}

async fn archiver(client: &Client, findings: &mut Findings) -> Result<()> {
    let sql = "SELECT coalesce(last_failed_wal, ''), \
         coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false)::text, \
         coalesce(extract(epoch FROM now() - last_failed_time)::bigint, 0)::text \
         FROM pg_stat_archiver";
    let rows = client.query_rows(sql).await?;
    let row: Vec<String> = rows
        .into_iter()
        .next()
        .unwrap_or_default()
        .into_iter()
        .map(Option::unwrap_or_default)
        .collect();
    if let [file, failing, seconds] = row.as_slice()
        && failing == "true"
    {
        findings.problem(
            "archiver",
            format!("archiving fails: {file}, last tried {seconds} s ago"),
            "the server's log holds what archive_command printed",
        );
    }
    Ok(())
}

async fn clock(client: &Client, findings: &mut Findings) -> Result<()> {
    let before = Timestamp::now();
    let theirs = client.clock().await?;
    let after = Timestamp::now();
    let skew = if theirs < before {
        before.duration_since(theirs).as_secs_f64()
    } else {
        theirs.duration_since(after).as_secs_f64().max(0.0)
    };
    if skew > CLOCK_TOLERANCE {
        findings.problem(
            "clock",
            format!("the server's clock and this host's differ by {skew:.0} s"),
            "synchronise both: targets by time and the RPO are only as good as the clocks",
        );
    } else {
        findings.ok("clock", "the server's clock and this host's agree");
    }
    Ok(())
}

/// Switches a segment and waits until it has arrived everywhere. Returns which it was.
pub(super) async fn try_archiving(
    client: &Client,
    cluster: &str,
    control: &ControlFile,
    repositories: &[Repository],
    patience: Duration,
    findings: &mut Findings,
) -> Option<SegmentName> {
    const SUBJECT: &str = "archiving";
    let switched = async {
        if client.is_in_recovery().await? {
            return Ok(None);
        }
        // Something must be in the segment, or there is nothing to switch.
        client
            .execute("SELECT pg_logical_emit_message(true, 'seawall', 'check')")
            .await?;
        let timeline = client.current_timeline().await?;
        let lsn = client.switch_wal().await?;
        Ok(Some((timeline, lsn.previous_segment(control.segment_size))))
    };
    let (timeline, number) = match switched.await {
        Ok(Some(switched)) => switched,
        Ok(None) => {
            findings.ok(SUBJECT, "not tried: the server is in recovery");
            return None;
        }
        Err(error) => {
            findings.failed(SUBJECT, &error);
            return None;
        }
    };
    let size = control.segment_size;
    let name = SegmentName::new(timeline, number, size);
    for repository in repositories {
        let subject = format!("{SUBJECT} to {}", repository.name());
        let system = repository.system(cluster, control.system_id);
        let arrived =
            wait::until_archived(&system, timeline, size, (number, number), patience).await;
        match arrived {
            Err(error) => findings.failed(&subject, &error),
            Ok(()) => {
                findings.ok(&subject, format!("{name} was switched and has arrived"));
                if let Ok(Held::One(_, info)) = system.held(WalFileName::Segment(name)).await {
                    let skew = Timestamp::now().duration_since(info.modified).as_secs_f64();
                    if skew.abs() > patience.as_secs_f64() + CLOCK_TOLERANCE {
                        findings.warning(
                            "clock",
                            format!(
                                "the clock of repository {} differs by about {skew:.0} s",
                                repository.name()
                            ),
                            "synchronise it: listings show its times",
                        );
                    }
                }
            }
        }
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::recovery::server_command;

    #[test]
    fn a_command_on_hold_is_not_ours_and_names_its_release() {
        let release = "ALTER SYSTEM SET archive_command = '/usr/bin/seawall-archive %p'; SELECT pg_reload_conf();";
        let says = format!("{ARCHIVING_ON_HOLD}; release it with {release}");
        let command = server_command(&["echo", &says], ">&2; exit 1");
        assert!(!is_ours(&command));
        assert_eq!(release_of(&command).as_deref(), Some(release), "{command}");
        assert!(is_ours("/usr/bin/seawall-archive %p"));
    }
}
