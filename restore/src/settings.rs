//! What a restored cluster is told: how to fetch WAL, where to stop, and what it does about
//! archiving. All of it goes into `postgresql.auto.conf` and one signal file.

use std::path::{Path, PathBuf};

use seawall::durable;
use seawall::error::{IoContext, Result};
use seawall::postgres::primary::Primary;
use seawall::postgres::recovery::{
    self, ARCHIVING_ON_HOLD, RecoverySettings, RecoveryTimeline, setting, without_recovery_settings,
};
use seawall::repository::catalogue::Plan;
use seawall::wal::fetch::Left;

use crate::Settings;
use crate::floor::TooLow;
use crate::target::Tablespaces;

/// What the restored cluster does about archiving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Archive {
    /// archive_mode stays on with a command that fails until someone releases it. With
    /// archive_mode off the new timeline's history file would never reach the archive, and the
    /// next recovery would take the same timeline again.
    #[default]
    Hold,
    /// Off: for drills, which must never fork a timeline into production's archive.
    Off,
    /// As the source did.
    On,
}

/// The words of restore_command, without `%f` and `%p`.
#[derive(Debug, Clone, Default)]
pub struct RestoreCommand {
    /// The program `seawall-fetch`.
    pub program: PathBuf,
    /// The configuration file.
    pub config: PathBuf,
    /// The cluster's name.
    pub cluster: String,
    /// The repository that was restored from.
    pub repository: String,
    /// Segments that are fetched at once at the most; absent: as configured.
    pub jobs: Option<usize>,
}

impl RestoreCommand {
    fn render(&self, plan: &Plan, settings: &Settings) -> String {
        let (program, config) = (
            self.program.to_string_lossy(),
            self.config.to_string_lossy(),
        );
        let mut words: Vec<&str> = vec![
            &program,
            "--config",
            &config,
            "--cluster",
            &self.cluster,
            "--repository",
            &self.repository,
        ];
        let left: Vec<String> = left(plan).iter().map(Left::to_string).collect();
        for left in &left {
            words.extend(["--left", left]);
        }
        let jobs = self.jobs.map(|jobs| jobs.to_string());
        if let Some(jobs) = &jobs {
            words.extend(["--jobs", jobs]);
        }
        // A standby follows whoever is promoted.
        let timeline = plan.history.timeline.to_string();
        if !settings.standby || settings.request.timeline.is_some() {
            words.extend(["--timeline", &timeline]);
        }
        if settings.request.end_at_gap {
            words.push("--end-at-gap");
        }
        // Replay makes tablespaces that are younger than the backup where the source made them.
        let rule = match settings.tablespaces {
            Tablespaces::AllUnder(_) => "refuse",
            Tablespaces::Mapped(_) => "unused",
        };
        words.extend(["--new-tablespaces", rule]);
        recovery::restore_command(&words)
    }
}

/// The timelines from the backup's own on that this recovery leaves for their successors.
fn left(plan: &Plan) -> Vec<Left> {
    let spans = plan.history.spans();
    spans
        .filter(|span| span.timeline >= plan.backup.timeline)
        .filter_map(|span| {
            Some(Left {
                timeline: span.timeline,
                at: span.end?,
            })
        })
        .collect()
}

/// What a cluster on hold answers PostgreSQL's archiver. It ends in failure: nothing is
/// acknowledged, and the WAL stays in pg_wal.
fn hold_command(release: &str) -> String {
    let says = format!("{ARCHIVING_ON_HOLD}; release it with {release}");
    recovery::server_command(&["echo", &says], ">&2; exit 1")
}

/// The SQL that ends the hold.
///
/// An archive_command that the source had set by ALTER SYSTEM is gone with a RESET, and an
/// empty one archives nothing and fails nowhere.
fn release(old: &[u8]) -> String {
    let set = match archive_command_of(old) {
        Some(command) => format!("SET archive_command = '{}'", command.replace('\'', "''")),
        None => "RESET archive_command".to_owned(),
    };
    format!("ALTER SYSTEM {set}; SELECT pg_reload_conf();")
}

/// The archive_command that a postgresql.auto.conf sets, as ALTER SYSTEM writes it.
fn archive_command_of(content: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(content);
    let value = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("archive_command"))
        .filter_map(|rest| rest.trim_start().strip_prefix('='))
        .filter_map(|rest| rest.trim().strip_prefix('\'')?.strip_suffix('\''))
        .rfind(|value| !value.is_empty() && !value.contains(ARCHIVING_ON_HOLD))?;
    Some(value.replace("''", "'").replace("\\\\", "\\"))
}

/// Writes postgresql.auto.conf and the signal file. Returns the SQL that releases archiving
/// where it is on hold.
pub(crate) fn write(
    root: &Path,
    plan: &Plan,
    settings: &Settings,
    too_low: &[TooLow],
) -> Result<Option<String>> {
    let path = root.join("postgresql.auto.conf");
    let old = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        old => old.on("read", &path)?,
    };
    let mut text = if settings.keep_source_settings {
        without_recovery_settings(&old)
    } else {
        Vec::new()
    };
    text.extend_from_slice(b"# Written by seawall restore:\n");
    let release = release(&text);
    text.extend_from_slice(lines(plan, settings, &release)?.as_bytes());
    for TooLow { name, needed, .. } in too_low {
        text.extend_from_slice(setting(name, &needed.to_string())?.as_bytes());
    }
    durable::write_file(&path, &text, plan.backup.file_mode()).on("write", &path)?;
    let signal = if settings.standby {
        "standby.signal"
    } else {
        "recovery.signal"
    };
    let signal = root.join(signal);
    durable::write_file(&signal, b"", plan.backup.file_mode()).on("write", &signal)?;
    Ok((settings.archive == Archive::Hold).then_some(release))
}

fn lines(plan: &Plan, settings: &Settings, release: &str) -> Result<String> {
    let request = &settings.request;
    let recovery = RecoverySettings {
        restore_command: Some(settings.restore_command.render(plan, settings)),
        target: request.target.clone(),
        inclusive: request.inclusive,
        action: settings.action,
        // A standby follows whoever is promoted; a recovery goes where it was planned to go.
        timeline: if settings.standby && request.timeline.is_none() {
            RecoveryTimeline::Latest
        } else {
            RecoveryTimeline::Id(plan.history.timeline)
        },
    };
    let mut text = recovery.render()?;
    let Primary { conninfo, slot } = &settings.primary;
    for (name, value) in [("primary_conninfo", conninfo), ("primary_slot_name", slot)] {
        if let Some(value) = value {
            text += &setting(name, value)?;
        }
    }
    // Reading ahead, PostgreSQL asks for the segment behind the target's before it has got
    // there, and an error about that one would stop it short of its target.
    if plan.broken_behind && plan.backup.major() >= 15 {
        text += &setting("recovery_prefetch", "off")?;
    }
    match settings.archive {
        Archive::On => {}
        Archive::Off => text += &setting("archive_mode", "off")?,
        Archive::Hold => {
            text += &setting("archive_mode", "on")?;
            text += &setting("archive_command", &hold_command(release))?;
            if plan.backup.major() >= 15 {
                text += &setting("archive_library", "")?;
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_brings_back_what_alter_system_had_set() {
        let reset = "ALTER SYSTEM RESET archive_command; SELECT pg_reload_conf();";
        assert_eq!(release(b"work_mem = '4MB'\n"), reset);
        let set = setting("archive_command", "echo '%p' \\x; x %p").unwrap();
        let released = release(format!("{set}work_mem = '4MB'\n").as_bytes());
        assert_eq!(
            released,
            "ALTER SYSTEM SET archive_command = 'echo ''%p'' \\x; x %p'; SELECT pg_reload_conf();"
        );
        // A restore of a restored cluster does not hand out the old hold.
        let held = setting("archive_command", &hold_command(reset)).unwrap();
        assert_eq!(release(format!("{set}{held}").as_bytes()), released);
    }
}
