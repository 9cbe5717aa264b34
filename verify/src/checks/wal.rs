//! What came from the repository: digests, WAL without a hole up to where recovery ended, and
//! whether the clocks that its times come from can be right.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use seawall::error::{Error, Result};
use seawall::postgres::recovery::RecoveryTarget;
use seawall::postgres::{SegmentName, SegmentSize, TimelineId};
use seawall::repository::System;
use seawall::repository::catalogue::{Plan, Request, Unreadable};
use seawall_restore::Restored;

use super::{Check, Outcome};
use crate::replay::Replay;

const DIGESTS: &str = "digests of everything that was used";
const END_OF_WAL: &str = "recovery reached the end of the archived WAL";
const BROKEN_OFF: &str = "archived WAL without a gap";
const CONTIGUITY: &str = "WAL without a hole";
const CLOCKS: &str = "clocks";

/// How long a segment may be on its way while those behind it are there.
const HELD_UP: Duration = Duration::from_secs(15);

/// Clocks that are kept in step differ by less, and so do the moments that are compared.
const IN_STEP: SignedDuration = SignedDuration::from_secs(30);

/// The restore itself verified every byte; without that it would not have come this far.
pub fn digests(restored: &Restored) -> Check {
    let detail = format!(
        "seawall.json, system.json and backup.json by their SHA-256; every pack's index by SHA-256; {} files, {} bytes, by BLAKE3; the manifest by its own SHA-256; every WAL file that recovery takes by BLAKE3",
        restored.files, restored.plain_bytes
    );
    Check::new(DIGESTS, Outcome::Passed, detail)
}

/// What cannot be told of a server that did not open.
pub fn never_open() -> Vec<Check> {
    let why = "the server did not open";
    let names = [
        END_OF_WAL,
        CONTIGUITY,
        "row counts",
        "foreign keys",
        "sequences",
        "pg_amcheck",
    ];
    names.map(|name| Check::not_tested(name, why)).into()
}

/// Archived WAL breaks off before its end, as the plan found.
pub fn broken_off(error: &Error) -> Check {
    Check::new(BROKEN_OFF, Outcome::Failed, error.one_line())
}

/// Whether every marker, restore point and history of the system can be read: what cannot is a
/// backup or a moment that is lost, also where this drill found another way.
pub fn records(unreadable: &[Unreadable]) -> Check {
    const NAME: &str = "records of the repository";
    match unreadable {
        [] => Check::new(NAME, Outcome::Passed, "all can be read"),
        some => {
            let words = some
                .iter()
                .map(|object| format!("{}: {}", object.key, object.why));
            let words: Vec<String> = words.collect();
            Check::new(NAME, Outcome::Failed, words.join("; "))
        }
    }
}

/// Whether recovery took the last segment that is archived, where it was to take all.
///
/// WAL ends before a segment that is missing, also where a few are there behind it: an archiver
/// that works ahead stores them first. That passes within moments. Who still misses it after
/// the whole restore, and `HELD_UP` later, has lost it, or has an archiver that is stuck.
pub async fn end_of_wal(system: &System, request: &Request, plan: &Plan, replay: &Replay) -> Check {
    if request.target != RecoveryTarget::Latest {
        return Check::not_tested(END_OF_WAL, "a target was chosen");
    }
    if request.end_at_gap {
        return Check::not_tested(END_OF_WAL, "recovery was to end at a gap");
    }
    let Some((timeline, _, number)) = plan.segments.last() else {
        return Check::not_tested(END_OF_WAL, "the plan names no segment");
    };
    let last = SegmentName::new(*timeline, *number, plan.backup.segment_size).to_string();
    if !replay.restored.contains(&last) {
        let detail = format!("{last} is archived, and recovery ended without asking for it");
        return Check::failed(END_OF_WAL, detail);
    }
    let deadline = Instant::now() + HELD_UP;
    loop {
        match stored_behind_a_hole(system, plan, number + 1).await {
            Ok(None) => {
                return Check::new(END_OF_WAL, Outcome::Passed, format!("{last} was replayed"));
            }
            Ok(Some(detail)) if Instant::now() >= deadline => {
                return Check::failed(END_OF_WAL, detail);
            }
            Ok(Some(_)) => tokio::time::sleep(Duration::from_secs(1)).await,
            Err(error) => {
                let why = format!(
                    "{last} was replayed; whether there is more behind it cannot be asked: {}",
                    error.one_line()
                );
                return Check::not_tested(END_OF_WAL, why);
            }
        }
    }
}

/// Says so if segment `next` is missing and later ones are there.
async fn stored_behind_a_hole(system: &System, plan: &Plan, next: u64) -> Result<Option<String>> {
    let (timeline, size) = (plan.history.timeline, plan.backup.segment_size);
    let wal = system.timeline_wal(timeline, size, next).await?;
    let name = |number| SegmentName::new(timeline, number, size);
    Ok(match (wal.run_with(next), wal.last()) {
        (None, Some(last)) if last > next => Some(format!(
            "{} is missing, and WAL up to {} is archived behind it: it was lost, or the archiver is stuck at it",
            name(next),
            name(last)
        )),
        _ => None,
    })
}

/// Whether every segment from the backup's start to where recovery ended came from the archive,
/// in order, and each from the timeline that the plan follows there.
pub fn contiguity(plan: &Plan, replay: &Replay) -> Check {
    let Some((_, redo_done)) = replay.redo_done else {
        return Check::not_tested(CONTIGUITY, "the server did not say where replay ended");
    };
    let size = plan.backup.segment_size;
    let wanted = Wanted {
        first: plan.backup.start_lsn.segment(size),
        last: redo_done.segment(size),
        size,
        stretches: &plan.segments,
        follows: plan.history.timeline,
    };
    match wanted.held_against(&replay.restored) {
        Ok(detail) => Check::new(CONTIGUITY, Outcome::Passed, detail),
        Err(detail) => Check::new(CONTIGUITY, Outcome::Failed, detail),
    }
}

/// The WAL that recovery must have taken.
struct Wanted<'a> {
    first: u64,
    last: u64,
    size: SegmentSize,
    stretches: &'a [(TimelineId, u64, u64)],
    follows: TimelineId,
}

impl Wanted<'_> {
    /// The names in the order in which they came. Before the first segment PostgreSQL takes that
    /// of the backup's checkpoint, which may lie behind it, and segments come more than once: at
    /// the end the last is read anew (PostgreSQL 18, xlogrecovery.c, `InitWalRecovery` and
    /// `FinishWalRecovery`).
    fn held_against(&self, restored: &[String]) -> Result<String, String> {
        let segments: Vec<(SegmentName, u64)> = restored
            .iter()
            .filter_map(|name| name.parse::<SegmentName>().ok())
            .filter_map(|segment| Some((segment, segment.number(self.size).ok()?)))
            .collect();
        let histories = restored.iter().filter(|name| name.ends_with(".history"));
        // Each is asked for when recovery begins, and once more when the server opens.
        let histories: BTreeSet<&str> = histories.map(String::as_str).collect();
        let begin = segments
            .iter()
            .position(|(_, number)| *number == self.first);
        let Some(begin) = begin else {
            let name = SegmentName::new(self.timeline_of(self.first), self.first, self.size);
            return Err(format!(
                "{name}, where the backup begins, did not come from the archive"
            ));
        };
        let mut reached = self.first;
        for (segment, number) in &segments {
            let timeline = self.timeline_of(*number);
            if segment.timeline != timeline {
                return Err(format!(
                    "{segment} was taken, and the WAL there is that of timeline {timeline}"
                ));
            }
        }
        for (segment, number) in &segments[begin..] {
            if *number > reached + 1 {
                let missing =
                    SegmentName::new(self.timeline_of(reached + 1), reached + 1, self.size);
                return Err(format!("{segment} came, and {missing} before it did not"));
            }
            reached = reached.max(*number);
        }
        let name = |number| SegmentName::new(self.timeline_of(number), number, self.size);
        if reached < self.last {
            return Err(format!(
                "replay ended in {}, and the last that came from the archive is {}",
                name(self.last),
                name(reached)
            ));
        }
        let mut detail = format!(
            "{} segments from {} to {}, one after the other, each by its digest",
            reached - self.first + 1,
            name(self.first),
            name(reached)
        );
        for history in histories {
            detail += &format!(", {history}");
        }
        Ok(detail)
    }

    /// The timeline whose segment of that number is on the line. The one that holds a switch is
    /// the newer timeline's, as the plan has it.
    fn timeline_of(&self, number: u64) -> TimelineId {
        let within =
            |(_, first, last): &&(TimelineId, u64, u64)| (*first..=*last).contains(&number);
        let found = self.stretches.iter().find(within);
        // Behind the plan lies what was archived since.
        found.map_or(self.follows, |(timeline, ..)| *timeline)
    }
}

/// Whether [`clocks`] was among these checks and found that they cannot be right.
pub fn contradicts(checks: &[Check]) -> bool {
    let mut clocks = checks.iter().filter(|check| check.name == CLOCKS);
    clocks.any(|check| check.outcome == Outcome::Failed)
}

/// Whether the times that the RPO is worked out from can be right: nothing that was recovered may
/// come from a time that was not yet. It is the primary's clock that dates commits, the store's
/// that dates objects, and this host's that says that recovery is over. Call it then.
pub fn clocks(plan: &Plan, replay: &Replay, failed_at: Timestamp) -> Check {
    if replay.ready.is_none() {
        return Check::not_tested(CLOCKS, "recovery did not come to its end");
    }
    let size = plan.backup.segment_size;
    let planned_to = plan.segments.last().map(|(_, _, last)| *last);
    // WAL that was stored since the plan has a time of its own, which nobody asked for.
    let planned = replay
        .restored
        .iter()
        .filter_map(|name| name.parse::<SegmentName>().ok()?.number(size).ok())
        .all(|number| Some(number) <= planned_to);
    let last_commit = replay.last_transaction;
    let times = Times {
        last_commit,
        backup_ended: plan.backup.stop_time,
        stored: planned.then_some(plan.wal_end_stored),
        // The clock that the moment of failure is read from, and not the server's log.
        recovered: Timestamp::now(),
    };
    if let Some(wrong) = times.contradiction() {
        return Check::new(
            CLOCKS,
            Outcome::Failed,
            format!("{wrong}: a clock is wrong, and the RPO cannot be trusted"),
        );
    }
    let mut detail =
        "no commit, no backup and no object comes from a time that was not yet".to_owned();
    if let Some(commit) = last_commit.filter(|commit| *commit > failed_at) {
        detail += &format!(
            "; the last recovered commit, of {commit}, was made after the moment of failure, {failed_at}"
        );
    }
    Check::new(CLOCKS, Outcome::Passed, detail)
}

struct Times {
    /// By the primary's clock.
    last_commit: Option<Timestamp>,
    /// By the primary's clock.
    backup_ended: Timestamp,
    /// By the store's clock: when the last segment that was recovered was stored.
    stored: Option<Timestamp>,
    /// By this host's clock.
    recovered: Timestamp,
}

impl Times {
    fn contradiction(&self) -> Option<String> {
        let newest = self.last_commit.max(Some(self.backup_ended));
        let primarys = [
            ("the last recovered commit", self.last_commit),
            ("the end of the backup", Some(self.backup_ended)),
        ];
        for (what, time) in primarys {
            if let Some(time) = time
                && let Some(ahead) = ahead(time, self.recovered)
            {
                return Some(format!(
                    "{what} is of {time} by the primary's clock, {ahead} s after this host had recovered it"
                ));
            }
        }
        let stored = self.stored?;
        if let Some(ahead) = ahead(stored, self.recovered) {
            return Some(format!(
                "the last WAL was stored at {stored} by the store's clock, {ahead} s after this host had recovered it"
            ));
        }
        let newest = newest?;
        ahead(newest, stored).map(|ahead| {
            format!(
                "{newest} by the primary's clock lies in WAL that was stored at {stored} by the store's, {ahead} s before"
            )
        })
    }
}

/// By how many seconds `time` lies after `limit`, if that is more than clocks differ.
fn ahead(time: Timestamp, limit: Timestamp) -> Option<i64> {
    let ahead = time.duration_since(limit);
    (ahead > IN_STEP).then(|| ahead.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn names(numbers: &[(u32, u64)]) -> Vec<String> {
        let size = SegmentSize::new(16 << 20).unwrap();
        let name = |(t, n): &(u32, u64)| SegmentName::new(timeline(*t), *n, size).to_string();
        numbers.iter().map(name).collect()
    }

    fn held(restored: &[(u32, u64)]) -> Result<String, String> {
        let wanted = Wanted {
            first: 4,
            last: 8,
            size: SegmentSize::new(16 << 20).unwrap(),
            stretches: &[(timeline(1), 4, 5), (timeline(2), 6, 8)],
            follows: timeline(2),
        };
        let mut names = names(restored);
        names.insert(0, "00000002.history".to_owned());
        wanted.held_against(&names)
    }

    #[test]
    fn a_recovery_takes_every_segment_from_the_backups_start_to_its_end() {
        let whole = held(&[(1, 4), (1, 5), (2, 6), (2, 7), (2, 8)]).unwrap();
        assert!(whole.starts_with("5 segments"), "{whole}");
        // The checkpoint's segment first, the last once more, and what came after the plan.
        held(&[
            (1, 5),
            (1, 4),
            (1, 5),
            (2, 6),
            (2, 7),
            (2, 8),
            (2, 9),
            (2, 8),
        ])
        .unwrap();
        for (wrong, words) in [
            (&[(1, 4), (1, 5), (2, 7), (2, 8)][..], "before it did not"),
            (&[(1, 5), (2, 6), (2, 7), (2, 8)], "where the backup begins"),
            (&[(1, 4), (1, 5), (2, 6), (2, 7)], "replay ended in"),
            (
                &[(1, 4), (1, 5), (1, 6), (2, 7), (2, 8)],
                "that of timeline 2",
            ),
            (&[], "where the backup begins"),
        ] {
            let why = held(wrong).unwrap_err();
            assert!(why.contains(words), "{wrong:?}: {why}");
        }
    }

    #[test]
    fn what_was_recovered_cannot_come_from_a_time_that_was_not_yet() {
        let at = |second| Timestamp::from_second(1_790_000_000 + second).unwrap();
        let times = |commit: i64, backup, stored: Option<i64>| Times {
            last_commit: Some(at(commit)),
            backup_ended: at(backup),
            stored: stored.map(at),
            recovered: at(1000),
        };
        assert_eq!(times(900, 100, Some(930)).contradiction(), None);
        // Live WAL, which came after the plan.
        assert_eq!(times(999, 100, None).contradiction(), None);
        assert_eq!(times(904, 100, Some(900)).contradiction(), None);
        for (times, words) in [
            (times(1100, 100, Some(930)), "the last recovered commit"),
            (times(900, 1100, Some(930)), "the end of the backup"),
            (times(900, 100, Some(1100)), "by the store's clock"),
            (times(900, 100, Some(800)), "100 s before"),
        ] {
            let why = times.contradiction().unwrap();
            assert!(why.contains(words), "{why}");
        }
    }
}
