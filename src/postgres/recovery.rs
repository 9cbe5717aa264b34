//! Recovery in PostgreSQL's own words: the settings that lead to a target, and what the
//! server's log says on the way there.
//!
//! It writes and reads text only; who stores the settings and who follows the log is not its
//! matter. The log is recognised in English: whoever reads it starts the server with
//! `lc_messages = C`. Facts: the scanner of `guc-file.l`, and the recovery settings'
//! check and assign hooks in `src/backend/access/transam/xlogrecovery.c`.

mod log;

use jiff::Timestamp;

use super::{FormatError, Lsn, TimelineId};

pub use log::{RecoveryEvent, RecoveryFailure, StopAt, StopPoint};

/// Where recovery stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryTarget {
    /// At the end of the WAL that there is.
    Latest,
    /// At the first commit past (or at) that time.
    Time(Timestamp),
    /// At that position.
    Lsn(Lsn),
    /// At that transaction's end. PostgreSQL looks at the lower 32 bits.
    Xid(u64),
    /// At a restore point; at the first of that name.
    Name(String),
    /// As soon as the backup is consistent.
    Immediate,
}

/// What the server does at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryAction {
    /// Wait, open for reading, until someone decides.
    Pause,
    /// Open for writing, on a new timeline.
    Promote,
    /// Stop; `recovery.signal` stays.
    Shutdown,
}

/// Which timeline recovery follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryTimeline {
    /// The newest that the archive has.
    Latest,
    /// That one.
    Id(TimelineId),
}

/// The settings of one recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoverySettings {
    /// How to fetch WAL, from [`restore_command`]; none for a server whose WAL lies in pg_wal.
    pub restore_command: Option<String>,
    /// Where to stop.
    pub target: RecoveryTarget,
    /// Whether what lies exactly at the target is replayed; only for time, LSN and xid.
    pub inclusive: bool,
    /// What to do there.
    pub action: RecoveryAction,
    /// Which timeline to follow.
    pub timeline: RecoveryTimeline,
}

/// The settings that lead a recovery. PostgreSQL refuses two targets at once, and an empty
/// value after a target as well, so earlier lines must go: see [`without_recovery_settings`].
pub const RECOVERY_SETTINGS: [&str; 11] = [
    "archive_cleanup_command",
    "recovery_end_command",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
];

/// What the archive_command of a restored cluster says until someone releases it. Whoever sees
/// it in a command knows that nothing is archived, whatever else the command mentions.
pub const ARCHIVING_ON_HOLD: &str = "seawall: archiving of this restored cluster is on hold";

impl RecoverySettings {
    /// The lines for `postgresql.auto.conf`. An error if a value cannot be written there.
    pub fn render(&self) -> Result<String, FormatError> {
        let mut lines = String::new();
        let mut set =
            |name: &str, value: &str| setting(name, value).map(|line| lines.push_str(&line));
        if let Some(command) = &self.restore_command {
            set("restore_command", command)?;
        }
        let timeline = match self.timeline {
            RecoveryTimeline::Latest => "latest".to_owned(),
            RecoveryTimeline::Id(timeline) => timeline.to_string(),
        };
        set("recovery_target_timeline", &timeline)?;
        let (name, value, has_edge) = match &self.target {
            RecoveryTarget::Latest => return Ok(lines),
            RecoveryTarget::Time(time) => ("recovery_target_time", time_text(*time), true),
            RecoveryTarget::Lsn(lsn) => ("recovery_target_lsn", lsn.to_string(), true),
            RecoveryTarget::Xid(xid) => ("recovery_target_xid", xid.to_string(), true),
            RecoveryTarget::Name(name) if name.is_empty() || name.len() > 63 => {
                let why = format!("{name:?} is not 1 to 63 bytes long");
                return Err(FormatError::new("restore point", why));
            }
            RecoveryTarget::Name(name) => ("recovery_target_name", name.clone(), false),
            RecoveryTarget::Immediate => ("recovery_target", "immediate".to_owned(), false),
        };
        set(name, &value)?;
        if has_edge {
            let inclusive = if self.inclusive { "on" } else { "off" };
            set("recovery_target_inclusive", inclusive)?;
        }
        let action = match self.action {
            RecoveryAction::Pause => "pause",
            RecoveryAction::Promote => "promote",
            RecoveryAction::Shutdown => "shutdown",
        };
        set("recovery_target_action", action)?;
        Ok(lines)
    }
}

/// A time as `recovery_target_time` takes it under any setting of the server, in UTC:
/// `2026-11-20 11:09:25.123456+00`. PostgreSQL counts microseconds; the rest is cut off.
pub fn time_text(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S.%6f+00").to_string()
}

/// One line of a configuration file: `name = 'value'`, with quotes and backslashes doubled.
///
/// A value with a line break or a NUL is refused: the file cannot hold it.
pub fn setting(name: &str, value: &str) -> Result<String, FormatError> {
    if value.contains(['\n', '\r', '\0']) {
        return Err(FormatError::new(
            "setting",
            format!("{name}: {value:?} holds a line break or a NUL"),
        ));
    }
    let value = value.replace('\\', "\\\\").replace('\'', "''");
    Ok(format!("{name} = '{value}'\n"))
}

/// A configuration file without the lines that set any of [`RECOVERY_SETTINGS`]; everything
/// else byte for byte.
pub fn without_recovery_settings(content: &[u8]) -> Vec<u8> {
    let sets_one = |line: &[u8]| {
        let line = line.trim_ascii_start();
        let end = line
            .iter()
            .position(|b| !(b.is_ascii_alphanumeric() || *b == b'_'));
        let name = &line[..end.unwrap_or(line.len())];
        let mut known = RECOVERY_SETTINGS.into_iter();
        known.any(|setting| name.eq_ignore_ascii_case(setting.as_bytes()))
    };
    let lines = content.split_inclusive(|byte| *byte == b'\n');
    lines
        .filter(|line| !sets_one(line))
        .flatten()
        .copied()
        .collect()
}

/// A word for the POSIX shell: as it is where that is safe, in single quotes otherwise.
pub fn shell_quote(word: &str) -> String {
    let safe = |b: u8| b.is_ascii_alphanumeric() || b"_-./:=@,+".contains(&b);
    if !word.is_empty() && word.bytes().all(safe) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A command for `restore_command` or `archive_command` from its words: each quoted for the
/// shell and its `%` doubled for PostgreSQL. `placeholders` follow as they are: `%f "%p"`.
pub fn server_command(words: &[&str], placeholders: &str) -> String {
    let mut command = String::new();
    for word in words {
        command.push_str(&shell_quote(word).replace('%', "%%"));
        command.push(' ');
    }
    command + placeholders
}

/// A `restore_command` from its words, to which PostgreSQL adds the file's name and the path
/// to write it to. The path is quoted: pg_rewind passes one that may hold spaces.
pub fn restore_command(words: &[&str]) -> String {
    server_command(words, "%f \"%p\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::testing::Server;
    use proptest::prelude::*;
    use std::path::Path;

    fn settings(target: RecoveryTarget) -> RecoverySettings {
        RecoverySettings {
            restore_command: None,
            target,
            inclusive: false,
            action: RecoveryAction::Promote,
            timeline: RecoveryTimeline::Latest,
        }
    }

    #[test]
    fn each_target_becomes_its_own_setting() {
        let time: Timestamp = "2026-11-20T11:09:25.1234567Z".parse().unwrap();
        for (target, line) in [
            (
                RecoveryTarget::Time(time),
                "recovery_target_time = '2026-11-20 11:09:25.123456+00'\nrecovery_target_inclusive = 'off'\n",
            ),
            (
                RecoveryTarget::Lsn(Lsn(0x1_0000_0028)),
                "recovery_target_lsn = '1/28'\nrecovery_target_inclusive = 'off'\n",
            ),
            (
                RecoveryTarget::Xid(1 << 40),
                "recovery_target_xid = '1099511627776'\nrecovery_target_inclusive = 'off'\n",
            ),
            (
                RecoveryTarget::Name("o'clock".into()),
                "recovery_target_name = 'o''clock'\n",
            ),
            (RecoveryTarget::Immediate, "recovery_target = 'immediate'\n"),
        ] {
            let expected = format!(
                "recovery_target_timeline = 'latest'\n{line}recovery_target_action = 'promote'\n"
            );
            assert_eq!(settings(target).render().unwrap(), expected);
        }
        let latest = settings(RecoveryTarget::Latest).render().unwrap();
        assert_eq!(latest, "recovery_target_timeline = 'latest'\n");
    }

    #[test]
    fn what_a_configuration_file_cannot_hold_is_refused() {
        for name in ["", "a\nb", "a\0b", &"x".repeat(64)] {
            let target = RecoveryTarget::Name(name.to_owned());
            assert!(settings(target).render().is_err(), "{name:?}");
        }
        let mut with_command = settings(RecoveryTarget::Latest);
        with_command.restore_command = Some("a\nrecovery_target = 'immediate'".into());
        assert!(with_command.render().is_err());
    }

    #[test]
    fn only_lines_that_set_recovery_are_removed() {
        let content = b"# recovery_target = 'x'\nport = 1\n recovery_target_lsn='0/1'\nRestore_Command = 'cp'\nrestore_commander = 1\n\xff\nrecovery_target 'immediate'";
        let rest = without_recovery_settings(content);
        assert_eq!(
            rest,
            b"# recovery_target = 'x'\nport = 1\nrestore_commander = 1\n\xff\n"
        );
    }

    #[test]
    fn the_shell_gives_back_every_word() {
        let words = [
            "seawall-fetch",
            "--config",
            "/etc/a b/it's $(x) 100% `y`\"\\.toml",
            "",
            "é",
        ];
        let command = restore_command(&words);
        assert_eq!(
            command,
            "seawall-fetch --config '/etc/a b/it'\\''s $(x) 100%% `y`\"\\.toml' '' 'é' %f \"%p\""
        );
        let run = command
            .replace("%%", "%")
            .replacen("seawall-fetch", "printf '<%s>' x", 1);
        let output = std::process::Command::new("sh")
            .args(["-c", &run])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let expected: String = words[1..].iter().map(|word| format!("<{word}>")).collect();
        assert_eq!(said, format!("<x>{expected}<%f><%p>"));
    }

    /// A server that archives into a directory beside it, with a base backup under `copy`.
    fn archiving() -> (Server, String) {
        let server = Server::create(&[], "");
        let archive = server.path().join("archive");
        std::fs::create_dir(&archive).unwrap();
        server.give_away(&archive);
        let archive = archive.to_string_lossy().into_owned();
        let mut server = server;
        let command = server_command(&["cp"], &format!("%p {archive}/%f"));
        server.configure("archive_mode = on\n");
        server.configure(&setting("archive_command", &command).unwrap());
        server.launch();
        let (host, port) = (
            server.path().display().to_string(),
            server.port().to_string(),
        );
        let copy = server.path().join("copy").display().to_string();
        let connect = ["-h", &host, "-p", &port, "-U", "postgres"];
        let how = ["-c", "fast", "-X", "none", "-D", &copy];
        server.run("pg_basebackup", &[&connect[..], &how[..]].concat());
        (server, archive)
    }

    /// Stops the server and puts the base backup in its place, with `settings`.
    fn restore(server: &mut Server, settings: &RecoverySettings) {
        server.stop();
        let (data, old) = (server.data(), server.path().join("old"));
        crate::durable::publish(&data, &old).unwrap();
        crate::durable::publish(&server.path().join("copy"), &data).unwrap();
        server.write(&data.join("recovery.signal"), "");
        server.write(
            &data.join("postgresql.auto.conf"),
            &settings.render().unwrap(),
        );
    }

    fn events(server: &Server) -> Vec<RecoveryEvent> {
        server
            .log()
            .lines()
            .filter_map(RecoveryEvent::parse)
            .collect()
    }

    #[test]
    fn a_live_server_recovers_to_the_restore_point_and_its_log_says_so() {
        let (mut server, archive) = archiving();
        server.sql("create table t as select 1 as x");
        let name = "it's \\ here 100%";
        let point = server.sql(&format!("select pg_create_restore_point($x${name}$x$)"));
        server.sql("insert into t select 2");
        server.sql("select pg_switch_wal()");
        let mut wanted = settings(RecoveryTarget::Name(name.into()));
        let command = format!("test ! -e 'it''s 100%%' && cp {archive}/%f \"%p\"");
        wanted.restore_command = Some(command.clone());
        let before = events(&server).len();
        restore(&mut server, &wanted);
        server.launch();
        assert_eq!(server.sql("show restore_command"), command);
        assert_eq!(server.sql("show recovery_target_name"), name);
        assert_eq!(server.sql("select sum(x) from t"), "1");
        // A hot standby answers before recovery has ended.
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while events(&server).last() != Some(&RecoveryEvent::Ready) {
            assert!(std::time::Instant::now() < limit, "{}", server.log());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let events = events(&server).split_off(before);
        let at = |wanted: fn(&RecoveryEvent) -> bool| events.iter().position(wanted);
        // Files may come from the archive before it is said what they are for.
        let starting = at(|e| *e == RecoveryEvent::Starting).unwrap();
        let starts = at(|e| matches!(e, RecoveryEvent::RedoStarts(_))).unwrap();
        let consistent = at(|e| matches!(e, RecoveryEvent::Consistent(_))).unwrap();
        let stopping = at(|e| matches!(e, RecoveryEvent::Stopping(_))).unwrap();
        let done = at(|e| matches!(e, RecoveryEvent::RedoDone(_))).unwrap();
        let last = at(|e| matches!(e, RecoveryEvent::LastTransaction(_))).unwrap();
        let complete = at(|e| *e == RecoveryEvent::Complete).unwrap();
        assert!(
            starting < starts && starts < consistent && consistent < stopping && stopping < done
        );
        assert!(done < last && last < complete, "{events:#?}");
        assert_eq!(events.last(), Some(&RecoveryEvent::Ready));
        let branch = RecoveryEvent::NewTimeline(TimelineId::new(2).unwrap());
        assert!(events.contains(&branch));
        let RecoveryEvent::Stopping(StopPoint {
            after: true,
            at: StopAt::Name { name: n, .. },
        }) = &events[stopping]
        else {
            panic!("{:?}", events[stopping])
        };
        assert_eq!(n, name);
        let RecoveryEvent::RedoDone(end) = events[done] else {
            unreachable!()
        };
        assert!(end < point.parse().unwrap());
    }

    #[test]
    fn a_target_that_the_wal_does_not_reach_is_told_apart_from_a_command_that_failed() {
        let (mut server, archive) = archiving();
        server.sql("select pg_switch_wal()");
        let mut wanted = settings(RecoveryTarget::Lsn(Lsn(1 << 60)));
        wanted.restore_command = Some(format!("cp {archive}/%f \"%p\""));
        restore(&mut server, &wanted);
        let failed = |server: &mut Server| {
            let before = events(server).len();
            server.launch_and_wait_for_its_end();
            let events = events(server).split_off(before);
            let failure = events.into_iter().find_map(|event| match event {
                RecoveryEvent::Failed(failure) => Some(failure),
                _ => None,
            });
            failure.unwrap_or_else(|| panic!("{}", server.log()))
        };
        assert_eq!(failed(&mut server), RecoveryFailure::TargetNotReached);

        wanted.restore_command = Some("exit 200".into());
        let path = server.data().join("postgresql.auto.conf");
        server.write(&path, &wanted.render().unwrap());
        let failure = failed(&mut server);
        assert!(
            matches!(failure, RecoveryFailure::RestoreCommand(_)),
            "{failure:?}"
        );

        // And two targets, as a line left from an earlier recovery would give.
        server.configure("recovery_target_xid = '7'\n");
        assert_eq!(failed(&mut server), RecoveryFailure::SeveralTargets);
        assert!(Path::new(&archive).exists());
    }

    proptest! {
        #[test]
        fn a_setting_is_one_line_and_its_quotes_are_even(value in ".{0,40}") {
            if let Ok(line) = setting("x", &value) {
                prop_assert_eq!(line.matches('\n').count(), 1);
                prop_assert_eq!(line.matches('\'').count() % 2, 0);
            }
            let _ = without_recovery_settings(value.as_bytes());
        }

        #[test]
        fn no_word_leaves_its_quotes(word in ".{0,40}") {
            let quoted = shell_quote(&word);
            let inside = quoted.replace("'\\''", "");
            prop_assert!(quoted == word || inside.matches('\'').count() == 2);
        }
    }
}
