//! What the lines of a server's log say about recovery.
//!
//! It recognises messages and draws no conclusion: whether a failure is final is known when
//! the server has ended. Facts: `src/backend/access/transam/xlogrecovery.c`, `xlog.c` and
//! `xlogarchive.c`.

use crate::postgres::{Lsn, TimelineId};

/// What a line of the server's log says about recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryEvent {
    /// Archive or point-in-time recovery begins, or that of a backup goes on after a restart.
    /// Newer servers say so in two lines.
    Starting,
    /// Standby mode begins.
    EnteringStandby,
    /// A file came from the archive.
    Restored(String),
    /// Replay begins at that position.
    RedoStarts(Lsn),
    /// There was nothing to replay.
    RedoNotRequired,
    /// The backup is consistent: what follows is optional.
    Consistent(Lsn),
    /// The target is reached.
    Stopping(StopPoint),
    /// Replay ended; the last record replayed begins there.
    RedoDone(Lsn),
    /// The time of the last transaction replayed, as printed in `log_timezone`.
    LastTransaction(String),
    /// Replay waits at the target.
    Paused,
    /// The server stops at the target, as asked.
    ShutdownAtTarget,
    /// Recovery ended with a new timeline.
    NewTimeline(TimelineId),
    /// Recovery is over.
    Complete,
    /// Open for reading only.
    ReadyReadOnly,
    /// Open for writing.
    Ready,
    /// Recovery failed.
    Failed(RecoveryFailure),
}

/// Where recovery stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopPoint {
    /// Whether what lies there was replayed.
    pub after: bool,
    /// What lies there.
    pub at: StopAt,
}

/// What lies where recovery stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopAt {
    /// A transaction's end.
    Transaction {
        /// Its number, the lower 32 bits.
        xid: u32,
        /// Whether it committed; it was rolled back otherwise.
        committed: bool,
        /// When, as printed in `log_timezone`.
        time: String,
    },
    /// A position.
    Lsn(Lsn),
    /// A restore point.
    Name {
        /// Its name.
        name: String,
        /// When it was made, as printed.
        time: String,
    },
    /// The end of the backup.
    Consistency,
}

/// Why recovery failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryFailure {
    /// The WAL ended before the target.
    TargetNotReached,
    /// The target lies before the backup's end.
    TargetBeforeConsistency,
    /// The WAL ends inside the backup.
    WalEndsInBackup,
    /// The WAL ends before the minimum recovery point.
    WalEndsBeforeConsistency,
    /// The target timeline does not descend from the backup's.
    NotAChild(u32),
    /// The target timeline lacks the minimum recovery point.
    LacksMinimumRecoveryPoint(u32),
    /// The target timeline has no history file.
    NoSuchTimeline(u32),
    /// The settings name two targets.
    SeveralTargets,
    /// The backup's first checkpoint could not be read.
    NoCheckpoint,
    /// `restore_command` ended with a code over 125 or by a signal: it could not tell.
    RestoreCommand(String),
    /// Any other FATAL or PANIC message. It may be a client's that was turned away (wrong
    /// password, unknown role): it counts only when the server ends.
    Other(String),
}

impl RecoveryEvent {
    /// What a log line says; none for lines that say nothing about recovery. Whatever
    /// `log_line_prefix` puts before the severity does not matter.
    pub fn parse(line: &str) -> Option<Self> {
        let (place, severity) = ["LOG:  ", "FATAL:  ", "PANIC:  "]
            .into_iter()
            .filter_map(|severity| Some((line.find(severity)?, severity)))
            .min()?;
        let message = line[place + severity.len()..].trim_end();
        if severity == "LOG:  " {
            Self::of_log(message)
        } else {
            RecoveryFailure::of(message).map(Self::Failed)
        }
    }

    fn of_log(message: &str) -> Option<Self> {
        let after = |prefix: &str| message.strip_prefix(prefix);
        Some(match message {
            "redo is not required" => Self::RedoNotRequired,
            "archive recovery complete" => Self::Complete,
            "entering standby mode" => Self::EnteringStandby,
            "starting archive recovery" => Self::Starting,
            "recovery has paused" | "pausing at the end of recovery" => Self::Paused,
            "shutdown at recovery target" => Self::ShutdownAtTarget,
            "database system is ready to accept connections" => Self::Ready,
            "database system is ready to accept read-only connections"
            | "database system is ready to accept read only connections" => Self::ReadyReadOnly,
            _ => {
                let starting = [
                    "starting point-in-time",
                    "starting backup",
                    "restarting backup",
                ];
                let to = starting.into_iter().find_map(after);
                if to.is_some_and(|rest| rest.starts_with(" recovery ")) {
                    Self::Starting
                } else if let Some(rest) = after("restored log file \"") {
                    Self::Restored(rest.strip_suffix("\" from archive")?.to_owned())
                } else if let Some(rest) = after("redo starts at ") {
                    Self::RedoStarts(first_lsn(rest)?)
                } else if let Some(rest) = after("redo done at ") {
                    Self::RedoDone(first_lsn(rest)?)
                } else if let Some(rest) = after("consistent recovery state reached at ") {
                    Self::Consistent(first_lsn(rest)?)
                } else if let Some(rest) = after("last completed transaction was at log time ") {
                    Self::LastTransaction(rest.to_owned())
                } else if let Some(rest) = after("selected new timeline ID: ") {
                    Self::NewTimeline(rest.parse().ok()?)
                } else {
                    Self::Stopping(StopPoint::of(after("recovery stopping ")?)?)
                }
            }
        })
    }
}

impl StopPoint {
    /// What follows "recovery stopping ".
    fn of(text: &str) -> Option<Self> {
        if let Some(rest) = text.strip_prefix("at restore point \"") {
            let (name, time) = rest.rsplit_once("\", time ")?;
            let (name, time) = (name.to_owned(), time.to_owned());
            let at = StopAt::Name { name, time };
            return Some(Self { after: true, at });
        }
        let (edge, rest) = text.split_once(' ')?;
        let after = match edge {
            "after" => true,
            "before" => false,
            _ => return None,
        };
        let at = if rest == "reaching consistency" {
            StopAt::Consistency
        } else if let Some(lsn) = rest.strip_prefix("WAL location (LSN) \"") {
            StopAt::Lsn(lsn.strip_suffix('"')?.parse().ok()?)
        } else {
            let (end, rest) = rest.split_once(" of transaction ")?;
            let (xid, time) = rest.split_once(", time ")?;
            StopAt::Transaction {
                xid: xid.parse().ok()?,
                committed: end == "commit",
                time: time.to_owned(),
            }
        };
        Some(Self { after, at })
    }
}

impl RecoveryFailure {
    fn of(message: &str) -> Option<Self> {
        let is = |text: &str| message.starts_with(text);
        let timeline = |before: &str, after: &str| {
            let (number, _) = message.strip_prefix(before)?.split_once(after)?;
            number.parse().ok()
        };
        let requested = "requested timeline ";
        Some(
            if is("recovery ended before configured recovery target was reached") {
                Self::TargetNotReached
            } else if is("requested recovery stop point is before consistent recovery point") {
                Self::TargetBeforeConsistency
            } else if is("WAL ends before end of online backup") {
                Self::WalEndsInBackup
            } else if is("WAL ends before consistent recovery point") {
                Self::WalEndsBeforeConsistency
            } else if let Some(id) = timeline(requested, " is not a child of this server's history")
            {
                Self::NotAChild(id)
            } else if let Some(id) = timeline(requested, " does not contain minimum recovery") {
                Self::LacksMinimumRecoveryPoint(id)
            } else if let Some(id) = timeline("recovery target timeline ", " does not exist") {
                Self::NoSuchTimeline(id)
            } else if is("multiple recovery targets specified") {
                Self::SeveralTargets
            } else if is("could not locate required checkpoint record")
                || is("could not locate a valid checkpoint record")
                || is("could not find redo location")
            {
                Self::NoCheckpoint
            } else if let Some(rest) = message.strip_prefix("could not restore file ") {
                Self::RestoreCommand(rest.to_owned())
            } else if is("the database system is ") || is("terminating ") {
                // Clients that connect too early, or are sent away at a shutdown.
                return None;
            } else {
                Self::Other(message.to_owned())
            },
        )
    }
}

/// The position at the start of `text`, whatever follows it.
fn first_lsn(text: &str) -> Option<Lsn> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    #[test]
    fn the_lines_of_the_releases_are_recognised() {
        use RecoveryEvent as E;
        let stop = |after, at| E::Stopping(StopPoint { after, at });
        let transaction = |committed| StopAt::Transaction {
            xid: 738,
            committed,
            time: "2026-11-20 11:09:25.5+00".into(),
        };
        for (line, event) in [
            ("starting point-in-time recovery to XID 7", E::Starting),
            ("starting archive recovery", E::Starting),
            (
                "starting backup recovery with redo LSN 0/2000028, checkpoint LSN 0/2000080, on timeline ID 1",
                E::Starting,
            ),
            (
                "restarting backup recovery with redo LSN 0/2000028",
                E::Starting,
            ),
            ("entering standby mode", E::EnteringStandby),
            (
                "restored log file \"00000002.history\" from archive",
                E::Restored("00000002.history".into()),
            ),
            ("redo starts at 0/2000028", E::RedoStarts(Lsn(0x200_0028))),
            ("redo is not required", E::RedoNotRequired),
            (
                "consistent recovery state reached at 0/02000100",
                E::Consistent(Lsn(0x200_0100)),
            ),
            (
                "recovery stopping before commit of transaction 738, time 2026-11-20 11:09:25.5+00",
                stop(false, transaction(true)),
            ),
            (
                "recovery stopping after abort of transaction 738, time 2026-11-20 11:09:25.5+00",
                stop(true, transaction(false)),
            ),
            (
                "recovery stopping after WAL location (LSN) \"0/3000000\"",
                stop(true, StopAt::Lsn(Lsn(0x300_0000))),
            ),
            (
                "recovery stopping after reaching consistency",
                stop(true, StopAt::Consistency),
            ),
            (
                "recovery stopping at restore point \"a\", time b\", time 2026",
                stop(
                    true,
                    StopAt::Name {
                        name: "a\", time b".into(),
                        time: "2026".into(),
                    },
                ),
            ),
            (
                "redo done at 1/28 system usage: CPU: user: 0.00 s",
                E::RedoDone(Lsn(0x1_0000_0028)),
            ),
            (
                "last completed transaction was at log time 2026-11-20 11:09:25+00",
                E::LastTransaction("2026-11-20 11:09:25+00".into()),
            ),
            ("recovery has paused", E::Paused),
            ("shutdown at recovery target", E::ShutdownAtTarget),
            ("selected new timeline ID: 3", E::NewTimeline(id(3))),
            ("archive recovery complete", E::Complete),
            (
                "database system is ready to accept read-only connections",
                E::ReadyReadOnly,
            ),
            ("database system is ready to accept connections", E::Ready),
        ] {
            for prefix in ["", "2026-11-20 11:09:25.123 UTC [4711] ", "db=,user= "] {
                let line = format!("{prefix}LOG:  {line}");
                assert_eq!(RecoveryEvent::parse(&line).as_ref(), Some(&event), "{line}");
            }
        }
    }

    #[test]
    fn each_way_to_fail_is_told_apart() {
        use RecoveryFailure as F;
        for (line, failure) in [
            (
                "recovery ended before configured recovery target was reached",
                F::TargetNotReached,
            ),
            (
                "requested recovery stop point is before consistent recovery point",
                F::TargetBeforeConsistency,
            ),
            ("WAL ends before end of online backup", F::WalEndsInBackup),
            (
                "WAL ends before consistent recovery point",
                F::WalEndsBeforeConsistency,
            ),
            (
                "requested timeline 4 is not a child of this server's history",
                F::NotAChild(4),
            ),
            (
                "requested timeline 4 does not contain minimum recovery point 0/1 on timeline 3",
                F::LacksMinimumRecoveryPoint(4),
            ),
            (
                "recovery target timeline 9 does not exist",
                F::NoSuchTimeline(9),
            ),
            ("multiple recovery targets specified", F::SeveralTargets),
            (
                "could not locate required checkpoint record",
                F::NoCheckpoint,
            ),
            (
                "could not restore file \"x\" from archive: child process exited with exit code 200",
                F::RestoreCommand(
                    "\"x\" from archive: child process exited with exit code 200".into(),
                ),
            ),
            ("something new", F::Other("something new".into())),
        ] {
            let line = format!("2026 [1] FATAL:  {line}");
            assert_eq!(
                RecoveryEvent::parse(&line),
                Some(RecoveryEvent::Failed(failure))
            );
        }
    }

    #[test]
    fn other_lines_say_nothing() {
        for line in [
            "",
            "LOG:  checkpoint starting: end-of-recovery",
            "FATAL:  the database system is starting up",
            "FATAL:  terminating connection due to administrator command",
            "DETAIL:  redo starts at 0/1",
            "LOG:  recovery stopping",
            "LOG:  recovery stopping before",
            "LOG:  redo starts at",
            "LOG:  selected new timeline ID: 0",
        ] {
            assert_eq!(RecoveryEvent::parse(line), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_line_panics(line in ".{0,60}", kind in 0usize..4) {
            let starts = ["LOG:  ", "FATAL:  ", "LOG:  recovery stopping ", "LOG:  redo done at "];
            let _ = RecoveryEvent::parse(&format!("{}{line}", starts[kind]));
            let _ = RecoveryEvent::parse(&line);
        }
    }
}
