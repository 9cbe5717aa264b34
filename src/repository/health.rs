//! What is wrong with archived WAL, by listing alone: missing segments, files with different
//! contents, timelines that lead nowhere, and what one repository holds and another lacks.
//! Pure functions over what listings said; memory grows with what is wrong, not with the
//! number of segments.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::System;
use super::line::{Archived, stretches};
use super::marker::Marker;
use super::timeline_wal::TimelineWal;
use super::wal_objects::HistoryFiles;
use crate::error::Result;
use crate::postgres::{Lsn, SegmentName, SegmentSize, TimelineId, WalFileName};

/// All that listings say of a system's WAL, and its `.history` files.
#[derive(Debug)]
pub struct Survey {
    /// `wal_segment_size`.
    pub segment_size: SegmentSize,
    /// The `.history` files.
    pub histories: HistoryFiles,
    /// The segments of each timeline.
    pub archived: Archived,
}

/// A backup, as far as it says which WAL must be there.
#[derive(Debug, Clone, Copy)]
pub struct Needed {
    /// The timeline that it was taken on.
    pub timeline: TimelineId,
    /// The first position that restoring it needs.
    pub start: Lsn,
    /// Where it ended.
    pub stop: Lsn,
}

impl Needed {
    /// What the marker of a backup says of it.
    pub fn of(backup: &Marker) -> Self {
        Self {
            timeline: backup.timeline,
            start: backup.start_lsn,
            stop: backup.stop_lsn,
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Illness {
    /// Segments are absent that must have been written.
    Missing {
        /// The first of them.
        first: SegmentName,
        /// The last of them.
        last: SegmentName,
        /// How one knows.
        evidence: Evidence,
    },
    /// A file has more than one content.
    Conflict(WalFileName),
    /// A timeline's history is absent.
    NoHistory(TimelineId, Mention),
    /// A timeline's history cannot be read, and why.
    BadHistory(TimelineId, String),
}

/// How one knows that absent segments were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evidence {
    /// Later ones of the timeline are there.
    Later,
    /// A finished backup needs them.
    Backup,
    /// They are the first of a timeline whose later ones are there.
    Begin,
    /// A timeline branched off behind them.
    Child(TimelineId),
}

/// Where a timeline is named that has no history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mention {
    /// There is WAL of it.
    Wal,
    /// The history of this one names it as a parent.
    Child(TimelineId),
    /// Timelines have higher numbers. PostgreSQL looks for the newest by counting up to the
    /// first that has no history.
    Later(TimelineId),
}

impl System {
    /// Lists all archived WAL and reads the `.history` files.
    pub async fn survey(&self, segment_size: SegmentSize) -> Result<Survey> {
        let mut archived = Archived::new();
        for timeline in self.timelines_with_wal().await? {
            let wal = self.timeline_wal(timeline, segment_size, 0).await?;
            archived.insert(timeline, wal);
        }
        Ok(Survey {
            segment_size,
            histories: self.history_files().await?,
            archived,
        })
    }
}

/// Everything that is wrong with what was surveyed, in the order of files.
///
/// WAL from before the first backup of a line is not missed: it may have expired. Where there
/// is no backup at all, each line counts from its oldest segment.
pub fn examine(survey: &Survey, backups: &[Needed]) -> Vec<Illness> {
    let mut illnesses: Vec<Illness> = Vec::new();
    illnesses.extend(missing_segments(survey, backups));
    for wal in survey.archived.values() {
        let segments = wal.conflicts.iter().copied().map(WalFileName::Segment);
        let names = segments.chain(wal.conflicts_beside.iter().copied());
        illnesses.extend(names.map(Illness::Conflict));
    }
    let histories = survey.histories.conflicts.iter();
    illnesses.extend(histories.map(|t| Illness::Conflict(WalFileName::History(*t))));
    illnesses.extend(missing_histories(survey));
    let unreadable = survey.histories.unreadable.iter();
    illnesses
        .extend(unreadable.map(|(timeline, why)| Illness::BadHistory(*timeline, why.one_line())));
    illnesses
}

fn missing_segments(survey: &Survey, backups: &[Needed]) -> Vec<Illness> {
    let size = survey.segment_size;
    let mut holes: BTreeMap<TimelineId, BTreeSet<Hole>> = BTreeMap::new();
    let mut hole = |timeline, first, last, evidence| {
        let reversed = std::cmp::Reverse(last);
        holes
            .entry(timeline)
            .or_default()
            .insert((first, reversed, evidence));
    };
    for (timeline, wal) in &survey.archived {
        for (first, last) in wal.gaps() {
            hole(*timeline, first, last, Evidence::Later);
        }
    }
    let empty = TimelineWal::default();
    for backup in backups {
        // What a backup itself needs is missed whatever became of it.
        let Some(wal) = survey.archived.get(&backup.timeline) else {
            continue;
        };
        let last = backup.stop.previous_segment(size);
        let absent = wal.absent(backup.start.segment(size), last).into_iter();
        for (first, last) in absent.filter(|(first, _)| wal.expired.contains(*first)) {
            hole(backup.timeline, first, last, Evidence::Backup);
        }
    }
    for history in survey.histories.read.values() {
        let on_line = backups
            .iter()
            .filter(|backup| history.contains(backup.timeline, backup.stop))
            .map(|backup| backup.start.segment(size));
        let oldest = history.spans().filter_map(|span| {
            let runs = &survey.archived.get(&span.timeline)?.runs;
            runs.first().map(|run| run.first)
        });
        let start = match backups.is_empty() {
            true => oldest.min(),
            false => on_line.min(),
        };
        let Some(start) = start else { continue };
        let stretches = stretches(history, start, size);
        for (at, (timeline, first, last)) in stretches.iter().enumerate() {
            let wal = survey.archived.get(timeline).unwrap_or(&empty);
            match (last, wal.runs.first()) {
                (Some(last), _) => {
                    let child = stretches
                        .get(at + 1)
                        .map_or(history.timeline, |next| next.0);
                    for (first, last) in wal.missing(*first, *last) {
                        hole(*timeline, first, last, Evidence::Child(child));
                    }
                }
                (None, Some(run)) if run.first > *first => {
                    let evidence = match !backups.is_empty() && *first == start {
                        true => Evidence::Backup,
                        false if wal.ends_ahead_of(*first) => continue,
                        false => Evidence::Begin,
                    };
                    for (first, last) in wal.missing(*first, run.first - 1) {
                        hole(*timeline, first, last, evidence);
                    }
                }
                // WAL that ends, or that has not begun yet.
                (None, _) => {}
            }
        }
    }
    let mut missing = Vec::new();
    for (timeline, holes) in holes {
        let mut covered = None;
        for (first, std::cmp::Reverse(last), evidence) in holes {
            // Several lines pass here: each hole is told once.
            if covered.is_none_or(|covered| last > covered) {
                missing.push(Illness::Missing {
                    first: SegmentName::new(timeline, first, size),
                    last: SegmentName::new(timeline, last, size),
                    evidence,
                });
                covered = Some(last);
            }
        }
    }
    missing
}

/// First segment, last segment (the longest first), and how one knows.
type Hole = (u64, std::cmp::Reverse<u64>, Evidence);

fn missing_histories(survey: &Survey) -> Vec<Illness> {
    let files = &survey.histories;
    let known = |timeline: &TimelineId| {
        *timeline == TimelineId::FIRST
            || files.read.contains_key(timeline)
            || files.conflicts.contains(timeline)
            || files.unreadable.iter().any(|(t, _)| t == timeline)
    };
    let mut unknown: BTreeMap<TimelineId, Mention> = BTreeMap::new();
    let mut mention = |timeline: TimelineId, mention: Mention| {
        if !known(&timeline) {
            unknown.entry(timeline).or_insert(mention);
        }
    };
    for timeline in survey.archived.keys() {
        mention(*timeline, Mention::Wal);
    }
    for history in files.read.values() {
        for parent in &history.parents {
            mention(parent.timeline, Mention::Child(history.timeline));
        }
    }
    // Each hole in the numbers is told by its first timeline.
    let all: BTreeSet<_> = files.read.keys().chain(&files.conflicts).copied().collect();
    let mut before = TimelineId::FIRST;
    for timeline in all {
        if let Ok(next) = TimelineId::new(before.get().saturating_add(1))
            && next < timeline
        {
            mention(next, Mention::Later(timeline));
        }
        before = timeline;
    }
    unknown
        .into_iter()
        .map(|(timeline, mention)| Illness::NoHistory(timeline, mention))
        .collect()
}

/// What one repository lacks that others hold.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Lacking {
    /// First and last of each run of segments.
    pub segments: Vec<(SegmentName, SegmentName)>,
    /// How many segments these are.
    pub count: u64,
    /// Timelines whose `.history` it lacks.
    pub histories: Vec<TimelineId>,
}

/// What `one` lacks and any of `others` holds: from its own oldest segment on, for a repository
/// that was added later need not hold what is older. Segments behind `until` are not looked at,
/// if it is given: they may be on their way.
pub fn lacking(one: &Survey, others: &[&Survey], until: Option<SegmentName>) -> Lacking {
    let size = one.segment_size;
    let oldest = one
        .archived
        .values()
        .filter_map(|wal| wal.runs.first())
        .map(|run| run.first)
        .min()
        .unwrap_or(0);
    let empty = TimelineWal::default();
    let mut lacking = Lacking::default();
    let mut holes: BTreeSet<(TimelineId, u64, u64)> = BTreeSet::new();
    for other in others {
        for (timeline, wal) in &other.archived {
            let own = one.archived.get(timeline).unwrap_or(&empty);
            let end = match until {
                Some(until) if until.timeline == *timeline => {
                    until.number(size).unwrap_or(u64::MAX)
                }
                _ => u64::MAX,
            };
            for run in wal.runs.iter().filter(|run| run.last >= oldest) {
                let holes_here = own.missing(run.first.max(oldest), run.last.min(end));
                holes.extend(holes_here.into_iter().map(|(a, b)| (*timeline, a, b)));
            }
        }
        for timeline in other.histories.read.keys() {
            let files = &one.histories;
            let held = files.read.contains_key(timeline)
                || files.conflicts.contains(timeline)
                || files.unreadable.iter().any(|(t, _)| t == timeline);
            if !held && !lacking.histories.contains(timeline) {
                lacking.histories.push(*timeline);
            }
        }
    }
    // The holes that several others fill overlap.
    let mut joined: Vec<(TimelineId, u64, u64)> = Vec::new();
    for (timeline, first, last) in holes {
        match joined.last_mut() {
            Some(before) if before.0 == timeline && first <= before.2.saturating_add(1) => {
                before.2 = before.2.max(last);
            }
            _ => joined.push((timeline, first, last)),
        }
    }
    for (timeline, first, last) in joined {
        let name = |number| SegmentName::new(timeline, number, size);
        lacking.segments.push((name(first), name(last)));
        lacking.count += last - first + 1;
    }
    lacking
}

/// The logs of which two repositories hold something and do not hold the same: there they lack
/// segments of each other, or hold different contents under one name. And the timelines whose
/// histories differ.
pub fn differing(one: &Survey, other: &Survey) -> (Vec<(TimelineId, u32)>, Vec<TimelineId>) {
    let mut logs = Vec::new();
    for (timeline, wal) in &one.archived {
        let Some(theirs) = other.archived.get(timeline) else {
            continue;
        };
        let both = wal.fingerprints.iter().filter_map(|(log, ours)| {
            let theirs = theirs.fingerprints.get(log)?;
            (ours != theirs).then_some((*timeline, *log))
        });
        logs.extend(both);
    }
    let theirs = &other.histories.read;
    let ours = one.histories.read.iter();
    let histories = ours.filter(|(timeline, history)| {
        theirs
            .get(timeline)
            .is_some_and(|theirs| theirs != *history)
    });
    (logs, histories.map(|(timeline, _)| *timeline).collect())
}

impl Lacking {
    /// Whether it lacks nothing.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.histories.is_empty()
    }
}

impl fmt::Display for Illness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing {
                first,
                last,
                evidence,
            } => {
                match first == last {
                    true => write!(f, "{first}")?,
                    false => write!(f, "{first} to {last}")?,
                }
                match evidence {
                    Evidence::Later => Ok(()),
                    Evidence::Child(child) => write!(f, " (timeline {child} begins behind)"),
                    Evidence::Backup => write!(f, " (a backup needs it)"),
                    Evidence::Begin => write!(f, " (where timeline {} begins)", first.timeline),
                }
            }
            Self::Conflict(name) => write!(f, "{name}"),
            Self::NoHistory(timeline, mention) => {
                write!(f, "{}.history is missing, and ", timeline.hex())?;
                match mention {
                    Mention::Wal => write!(f, "there is WAL of timeline {timeline}"),
                    Mention::Child(child) => write!(f, "timeline {child} descends from it"),
                    Mention::Later(later) => write!(f, "timeline {later} is there"),
                }
            }
            Self::BadHistory(_, why) => f.write_str(why),
        }
    }
}

#[cfg(test)]
mod tests;
