//! Following a recovery by the server's log: when replay began, when the cluster was
//! consistent, when the target was reached, and why it failed if it did.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::strtime;
use seawall::error::Result;
use seawall::postgres::recovery::{RecoveryEvent, RecoveryFailure, StopAt, StopPoint};
use seawall::postgres::sql::Client;
use seawall::postgres::{Lsn, TimelineId};

use crate::instance::Instance;

/// What the log has said so far, each with the time that the server wrote.
#[derive(Debug, Default, Clone)]
pub struct Replay {
    /// Replay began.
    pub redo_starts: Option<Timestamp>,
    /// The cluster was consistent.
    pub consistent: Option<Timestamp>,
    /// Replay ended.
    pub redo_done: Option<(Timestamp, Lsn)>,
    /// The target was reached, in PostgreSQL's words.
    pub stopped: Option<String>,
    /// The last transaction that was replayed.
    pub last_transaction: Option<Timestamp>,
    /// The new timeline.
    pub timeline: Option<TimelineId>,
    /// The server is open for writing.
    pub ready: Option<Timestamp>,
    /// Segments that came from the archive.
    pub segments: u64,
    /// Every file that came from the archive, in order; one may come more than once.
    pub restored: Vec<String>,
    /// Why recovery failed.
    pub failure: Option<String>,
}

impl Replay {
    /// Reads a line of a log with `log_line_prefix = '%m '` in UTC.
    fn read(&mut self, line: &str) {
        let (Some(time), Some(event)) = (time_of(line), RecoveryEvent::parse(line)) else {
            return;
        };
        match event {
            RecoveryEvent::RedoStarts(_) => self.redo_starts = Some(time),
            RecoveryEvent::Consistent(_) => {
                self.consistent.get_or_insert(time);
            }
            RecoveryEvent::RedoDone(lsn) => self.redo_done = Some((time, lsn)),
            RecoveryEvent::Stopping(point) => self.stopped = Some(words(&point)),
            RecoveryEvent::LastTransaction(text) => {
                self.last_transaction = parse_time(&text);
            }
            RecoveryEvent::NewTimeline(timeline) => self.timeline = Some(timeline),
            RecoveryEvent::Ready => self.ready = Some(time),
            RecoveryEvent::Restored(name) => {
                self.segments += 1;
                self.restored.push(name);
            }
            RecoveryEvent::Failed(failure) => {
                // The first says why; what follows are its consequences.
                self.failure.get_or_insert(failure_words(&failure, line));
            }
            _ => {}
        }
    }
}

/// A log that grows: each line is read once, when its end is there. A long recovery writes a
/// line for each segment, and to read them all again and again would count as its time.
#[derive(Debug, Default)]
struct Follower {
    read: u64,
    unfinished: Vec<u8>,
}

impl Follower {
    fn follow(&mut self, gained: &[u8], replay: &mut Replay) {
        self.read += gained.len() as u64;
        self.unfinished.extend_from_slice(gained);
        let Some(end) = self.unfinished.iter().rposition(|byte| *byte == b'\n') else {
            return;
        };
        let whole: Vec<u8> = self.unfinished.drain(..=end).collect();
        for line in String::from_utf8_lossy(&whole).lines() {
            replay.read(line);
        }
    }
}

/// Waits until the instance is open for writing, or has ended; `replay` follows its log.
/// Returns a session, or `None` with the reason in the replay.
pub async fn wait_until_open(
    instance: &mut Instance,
    replay: &mut Replay,
) -> Result<Option<Client>> {
    let mut follower = Follower::default();
    loop {
        let ended = instance.ended();
        follower.follow(&instance.log_from(follower.read), replay);
        if let Some(status) = ended {
            replay
                .failure
                .get_or_insert_with(|| format!("the server ended: {status}"));
            return Ok(None);
        }
        if replay.ready.is_some() {
            return Ok(Some(instance.connect("template1").await?));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// `2026-11-20 13:39:43.254 UTC LOG:  …`
fn time_of(line: &str) -> Option<Timestamp> {
    parse_time(line.get(..27)?)
}

/// `2026-11-20 13:39:43.254 UTC`, or with an offset as PostgreSQL prints transaction times.
fn parse_time(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    if let Some(utc) = text.strip_suffix(" UTC") {
        return strtime::parse("%Y-%m-%d %H:%M:%S%.f", utc)
            .and_then(|parsed| parsed.to_datetime())
            .and_then(|time| time.to_zoned(jiff::tz::TimeZone::UTC))
            .map(|zoned| zoned.timestamp())
            .ok();
    }
    text.parse().ok()
}

fn words(point: &StopPoint) -> String {
    let edge = if point.after { "after" } else { "before" };
    match &point.at {
        StopAt::Transaction {
            xid,
            committed,
            time,
        } => {
            let end = if *committed { "commit" } else { "abort" };
            format!("stopped {edge} {end} of transaction {xid} at {time}")
        }
        StopAt::Lsn(lsn) => format!("stopped {edge} {lsn}"),
        StopAt::Name { name, time } => format!("stopped at restore point {name:?}, made at {time}"),
        StopAt::Consistency => "stopped as soon as the backup was consistent".to_owned(),
    }
}

fn failure_words(failure: &RecoveryFailure, line: &str) -> String {
    let message = line.split_once(":  ").map_or(line, |(_, message)| message);
    match failure {
        RecoveryFailure::TargetNotReached => "the archived WAL ends before the target".to_owned(),
        RecoveryFailure::RestoreCommand(_) => {
            format!("WAL could not be fetched, and recovery stopped rather than guess: {message}")
        }
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(log: &str) -> Replay {
        let mut replay = Replay::default();
        Follower::default().follow(log.as_bytes(), &mut replay);
        replay
    }

    #[test]
    fn a_log_that_grows_in_pieces_is_read_once_and_in_whole_lines() {
        let log = "\
2026-11-20 13:39:44.852 UTC LOG:  restored log file \"00000001000000000000000A\" from archive
2026-11-20 13:39:44.948 UTC LOG:  redo starts at 0/A0E2D00
2026-11-20 13:39:45.852 UTC LOG:  restored log file \"00000001000000000000000B\" from archive
";
        for size in [1, 7, 60, 1000] {
            let (mut follower, mut replay) = (Follower::default(), Replay::default());
            for piece in log.as_bytes().chunks(size) {
                follower.follow(piece, &mut replay);
            }
            assert_eq!((replay.segments, follower.read), (2, log.len() as u64));
            assert!(replay.redo_starts.is_some());
        }
    }

    #[test]
    fn the_log_of_a_recovery_tells_its_phases() {
        let log = "\
2026-11-20 13:39:44.799 UTC LOG:  starting point-in-time recovery to 2026-11-20 13:39:38+00
2026-11-20 13:39:44.852 UTC LOG:  restored log file \"00000001000000000000000A\" from archive
2026-11-20 13:39:44.948 UTC LOG:  redo starts at 0/A0E2D00
2026-11-20 13:39:45.075 UTC LOG:  consistent recovery state reached at 0/A6131D0
2026-11-20 13:39:45.141 UTC LOG:  recovery stopping before commit of transaction 4411, time 2026-11-20 13:39:38.468799+00
2026-11-20 13:39:46.142 UTC LOG:  redo done at 0/B9DB7E8 system usage: CPU: user: 0.00 s
2026-11-20 13:39:46.142 UTC LOG:  last completed transaction was at log time 2026-11-20 13:39:38.46405+00
2026-11-20 13:39:46.162 UTC LOG:  selected new timeline ID: 2
2026-11-20 13:39:47.000 UTC LOG:  database system is ready to accept connections
";
        let replay = parse(log);
        let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
        assert_eq!(replay.redo_starts, at("2026-11-20T13:39:44.948Z"));
        assert_eq!(replay.consistent, at("2026-11-20T13:39:45.075Z"));
        assert_eq!(replay.last_transaction, at("2026-11-20T13:39:38.46405Z"));
        assert_eq!(replay.ready, at("2026-11-20T13:39:47Z"));
        assert_eq!((replay.segments, replay.failure.clone()), (1, None));
        assert!(replay.stopped.unwrap().contains("transaction 4411"));
    }

    #[test]
    fn the_first_failure_is_the_reason() {
        let log = "\
2026-11-20 13:39:46.142 UTC FATAL:  recovery ended before configured recovery target was reached
2026-11-20 13:39:46.150 UTC FATAL:  the database system is shutting down
";
        assert_eq!(
            parse(log).failure.unwrap(),
            "the archived WAL ends before the target"
        );
    }
}
