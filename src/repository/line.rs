//! Following archived WAL from a backup along a timeline: how far it reaches, and what breaks
//! it. A pure function over what listings said.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::timeline_wal::TimelineWal;
use crate::postgres::history::TimelineHistory;
use crate::postgres::{SegmentName, SegmentSize, TimelineId};

/// The segments of each timeline, as far as they were listed.
pub type Archived = BTreeMap<TimelineId, TimelineWal>;

/// How far archived WAL reaches without a break.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Timeline, first and last segment number, oldest first.
    pub segments: Vec<(TimelineId, u64, u64)>,
    /// Number of the last segment, and when it was stored by the store's clock; where more WAL
    /// lies behind it, at that time or before.
    pub end: Option<(u64, Timestamp)>,
    /// Why it goes no further, if not because WAL simply ends.
    pub broken: Option<Break>,
}

/// What breaks a line of WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Break {
    /// A segment is absent and later WAL is there.
    Gap {
        /// The first segment that is absent.
        missing: SegmentName,
        /// Its number.
        number: u64,
        /// When the first segment after the gap was stored.
        resumed: Option<Timestamp>,
    },
    /// Retention removed what follows.
    Expired {
        /// The first segment that was removed.
        segment: SegmentName,
        /// Its number.
        number: u64,
    },
    /// A segment has more than one content.
    Conflict {
        /// That segment.
        segment: SegmentName,
        /// Its number.
        number: u64,
    },
}

impl Break {
    /// The number of the segment that breaks the line.
    pub fn number(&self) -> u64 {
        match self {
            Self::Gap { number, .. }
            | Self::Expired { number, .. }
            | Self::Conflict { number, .. } => *number,
        }
    }
}

/// The stretches of a timeline's line from segment `start` on: timeline, first segment, and
/// last segment, which is `None` where the line is open.
///
/// The segment that holds a switch point is read from the newer timeline, which begins it with
/// a copy of the older one's content (PostgreSQL 18, xlogrecovery.c, `XLogFileReadAnyTLI`).
pub fn stretches(
    history: &TimelineHistory,
    start: u64,
    size: SegmentSize,
) -> Vec<(TimelineId, u64, Option<u64>)> {
    let spans: Vec<_> = history.spans().collect();
    let mut stretches = Vec::new();
    for (at, span) in spans.iter().enumerate() {
        let first = span.start.segment(size).max(start);
        let next = spans.get(at + 1).map(|next| next.start.segment(size));
        if next.is_none_or(|next| first < next) {
            stretches.push((span.timeline, first, next.map(|next| next - 1)));
        }
    }
    stretches
}

/// Follows the line from segment `start` until it ends or breaks.
pub fn follow(history: &TimelineHistory, start: u64, size: SegmentSize, wal: &Archived) -> Line {
    let empty = TimelineWal::default();
    let mut line = Line {
        segments: Vec::new(),
        end: None,
        broken: None,
    };
    for (timeline, first, last) in stretches(history, start, size) {
        let held = wal.get(&timeline).unwrap_or(&empty);
        let run = held.run_with(first);
        let present = run.map(|run| run.last.min(last.unwrap_or(u64::MAX)));
        let conflict = present.and_then(|present| held.first_conflict(first, present, size));
        // No reader takes a segment in conflict, nor gets behind it.
        let reached = match conflict {
            Some((_, number)) => (number > first).then(|| number - 1),
            None => present,
        };
        if let (Some(run), Some(reached)) = (run, reached) {
            line.segments.push((timeline, first, reached));
            line.end = Some((reached, run.last_stored));
        }
        if let Some((segment, number)) = conflict {
            line.broken = Some(Break::Conflict { segment, number });
            return line;
        }
        let end = reached.map_or(first, |reached| reached + 1);
        if last.is_some_and(|last| end > last) {
            continue;
        }
        let later_here = held.runs.iter().find(|run| run.first > end);
        let nothing_here = held.runs.is_empty();
        match (later_here, last) {
            // Also where nothing is there behind it: what was removed did exist, so WAL does not
            // end here.
            _ if held.expired.contains(end) => {
                let segment = SegmentName::new(timeline, end, size);
                line.broken = Some(Break::Expired {
                    segment,
                    number: end,
                });
            }
            (None, None) => {
                // The child has archived nothing yet: PostgreSQL then takes the segment of the
                // switch point from its parent, if that finished it.
                let parent = history
                    .spans()
                    .take_while(|span| span.timeline != timeline)
                    .last();
                if let (true, Some(parent)) = (nothing_here, parent.map(|span| span.timeline))
                    && let Some(held) = wal.get(&parent)
                    && let Some(run) = held.run_with(end)
                {
                    if let Some((segment, number)) = held.first_conflict(end, end, size) {
                        line.broken = Some(Break::Conflict { segment, number });
                    } else {
                        line.segments.push((parent, end, end));
                        line.end = Some((end, run.last_stored));
                    }
                }
            }
            // Stored ahead of what is missing: WAL ends here.
            (Some(_), None) if held.ends_ahead_of(end) => {}
            (later, _) => {
                line.broken = Some(Break::Gap {
                    missing: SegmentName::new(timeline, end, size),
                    number: end,
                    resumed: later.map(|run| run.first_stored),
                });
            }
        }
        return line;
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SEGMENTS_AHEAD;
    use crate::postgres::Lsn;
    use crate::repository::timeline_wal::SegmentRun;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn at(second: u64) -> Timestamp {
        Timestamp::from_second(second as i64).unwrap()
    }

    fn archived(timelines: &[(u32, &[(u64, u64)])]) -> Archived {
        let run = |&(first, last): &(u64, u64)| SegmentRun {
            first,
            last,
            first_stored: at(first),
            last_stored: at(last),
            stored_bytes: 0,
        };
        timelines
            .iter()
            .map(|(number, runs)| {
                let wal = TimelineWal {
                    runs: runs.iter().map(run).collect(),
                    stored_ahead: SEGMENTS_AHEAD,
                    ..TimelineWal::default()
                };
                (timeline(*number), wal)
            })
            .collect()
    }

    /// Timeline 3, from 2 at segment 9, from 1 in the middle of segment 5.
    fn third() -> TimelineHistory {
        let text = format!(
            "1\t{}\tx\n2\t{}\ty\n",
            Lsn(5 * SIZE.bytes() + 40),
            Lsn(9 * SIZE.bytes())
        );
        TimelineHistory::parse(timeline(3), text.as_bytes()).unwrap()
    }

    #[test]
    fn a_line_crosses_timelines_at_their_switch_points() {
        let wal = archived(&[(1, &[(1, 5)]), (2, &[(5, 8)]), (3, &[(9, 12)])]);
        let line = follow(&third(), 2, SIZE, &wal);
        let segments: Vec<_> = line
            .segments
            .iter()
            .map(|(t, a, b)| (t.get(), *a, *b))
            .collect();
        assert_eq!(segments, [(1, 2, 4), (2, 5, 8), (3, 9, 12)]);
        assert_eq!(line.end, Some((12, at(12))));
        assert_eq!(line.broken, None);
    }

    #[test]
    fn a_missing_segment_breaks_the_line_wherever_it_lies() {
        for (wal, missing) in [
            (
                archived(&[(1, &[(1, 2), (4, 5)]), (2, &[(5, 8)]), (3, &[(9, 12)])]),
                (1, 3),
            ),
            (
                archived(&[(1, &[(1, 5)]), (2, &[(6, 8)]), (3, &[(9, 12)])]),
                (2, 5),
            ),
            (
                archived(&[(1, &[(1, 5)]), (2, &[(5, 7)]), (3, &[(9, 12)])]),
                (2, 8),
            ),
            (
                archived(&[(1, &[(1, 5)]), (2, &[(5, 8)]), (3, &[(10, 26)])]),
                (3, 9),
            ),
            (archived(&[(2, &[(5, 8)]), (3, &[(9, 12)])]), (1, 2)),
            (archived(&[(1, &[(1, 5)]), (3, &[(9, 12)])]), (2, 5)),
        ] {
            let line = follow(&third(), 2, SIZE, &wal);
            match line.broken {
                Some(Break::Gap {
                    missing: name,
                    number,
                    ..
                }) => {
                    assert_eq!((name.timeline.get(), number), missing);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_only_working_ahead_left_behind_ends_the_line_and_more_than_that_breaks_it() {
        let first = TimelineHistory::first();
        for last in [7, 21, 22] {
            let line = follow(&first, 3, SIZE, &archived(&[(1, &[(1, 5), (7, last)])]));
            assert_eq!((line.end, line.broken), (Some((5, at(5))), None), "{last}");
        }
        let line = follow(&first, 3, SIZE, &archived(&[(1, &[(1, 5), (7, 23)])]));
        assert!(matches!(line.broken, Some(Break::Gap { number: 6, .. })));
        // Where nothing of the line is there at all.
        let line = follow(&first, 3, SIZE, &archived(&[(1, &[(7, 19)])]));
        assert_eq!((line.end, line.broken), (None, None));
        // A timeline that was left lies wholly before what followed it.
        let wal = archived(&[(1, &[(1, 2), (4, 5)]), (2, &[(5, 8)]), (3, &[(9, 12)])]);
        let line = follow(&third(), 1, SIZE, &wal);
        assert!(matches!(line.broken, Some(Break::Gap { number: 3, .. })));
    }

    #[test]
    fn the_line_ends_where_wal_ends_and_that_is_no_break() {
        let wal = archived(&[(1, &[(1, 5)]), (2, &[(5, 8)])]);
        let line = follow(&third(), 6, SIZE, &wal);
        assert_eq!((line.end, line.broken), (Some((8, at(8))), None));
        let first = TimelineHistory::first();
        let line = follow(&first, 3, SIZE, &archived(&[(1, &[(1, 5)])]));
        assert_eq!((line.end, line.broken), (Some((5, at(5))), None));
        let line = follow(&first, 6, SIZE, &archived(&[(1, &[(1, 5)])]));
        assert_eq!((line.end, line.broken), (None, None));
    }

    #[test]
    fn what_retention_removed_is_not_the_end_of_the_wal() {
        let first = TimelineHistory::first();
        let mut wal = archived(&[(1, &[(3, 5)])]);
        let held = wal.get_mut(&TimelineId::FIRST).unwrap();
        held.expired = [(6, 40)].into_iter().collect();
        let line = follow(&first, 3, SIZE, &wal);
        assert_eq!(line.end, Some((5, at(5))));
        assert!(matches!(
            line.broken,
            Some(Break::Expired { number: 6, .. })
        ));
        // Removed up to the backup, and nothing behind it yet: there the WAL does end.
        let held = wal.get_mut(&TimelineId::FIRST).unwrap();
        held.expired = [(1, 2)].into_iter().collect();
        let line = follow(&first, 3, SIZE, &wal);
        assert_eq!((line.end, line.broken), (Some((5, at(5))), None));
    }

    #[test]
    fn a_child_that_archived_nothing_yet_is_read_from_its_parent_up_to_the_switch() {
        let second = TimelineHistory::parse(
            timeline(2),
            format!("1\t{}\tx\n", Lsn(5 * SIZE.bytes() + 40)).as_bytes(),
        )
        .unwrap();
        let line = follow(&second, 2, SIZE, &archived(&[(1, &[(1, 7)])]));
        assert_eq!((line.end.map(|end| end.0), line.broken), (Some(5), None));
        // Also where the backup began in that very segment.
        let line = follow(&second, 5, SIZE, &archived(&[(1, &[(1, 7)])]));
        assert_eq!((line.end.map(|end| end.0), line.broken), (Some(5), None));
    }

    #[test]
    fn a_conflict_counts_only_where_the_line_passes() {
        let mut wal = archived(&[(1, &[(1, 7)]), (2, &[(5, 8)]), (3, &[(9, 12)])]);
        let one = wal.get_mut(&timeline(1)).unwrap();
        one.conflicts.push(SegmentName::new(timeline(1), 7, SIZE));
        assert_eq!(follow(&third(), 2, SIZE, &wal).broken, None);
        // Both in one run; the order of what was noted does not matter.
        let one = wal.get_mut(&timeline(1)).unwrap();
        one.conflicts.push(SegmentName::new(timeline(1), 4, SIZE));
        one.conflicts.push(SegmentName::new(timeline(1), 3, SIZE));
        assert!(matches!(
            follow(&third(), 2, SIZE, &wal).broken,
            Some(Break::Conflict { number: 3, .. })
        ));
    }

    #[test]
    fn the_line_ends_before_a_conflict_as_it_does_before_a_gap() {
        let conflict = |on: u32, number| {
            let mut wal = archived(&[(1, &[(1, 7)]), (2, &[(5, 8)]), (3, &[(9, 12)])]);
            let held = wal.get_mut(&timeline(on)).unwrap();
            let name = SegmentName::new(timeline(on), number, SIZE);
            held.conflicts.push(name);
            follow(&third(), 2, SIZE, &wal)
        };
        let segments = |line: &Line| -> Vec<_> {
            let all = line.segments.iter();
            all.map(|(t, a, b)| (t.get(), *a, *b)).collect()
        };
        for (on, number, passed) in [
            // At the start of all, at the start of a stretch, within one and at its end.
            (1, 2, vec![]),
            (1, 4, vec![(1, 2, 3)]),
            (2, 5, vec![(1, 2, 4)]),
            (2, 7, vec![(1, 2, 4), (2, 5, 6)]),
            (3, 12, vec![(1, 2, 4), (2, 5, 8), (3, 9, 11)]),
        ] {
            let line = conflict(on, number);
            assert_eq!(segments(&line), passed, "{on} {number}");
            assert_eq!(line.end.map(|end| end.0), passed.last().map(|last| last.2));
            assert_eq!(line.broken.map(|broken| broken.number()), Some(number));
        }
        // The segment of the switch, taken from the parent.
        let text = format!("1\t{}\tx\n", Lsn(5 * SIZE.bytes() + 40));
        let second = TimelineHistory::parse(timeline(2), text.as_bytes()).unwrap();
        let mut wal = archived(&[(1, &[(1, 7)])]);
        let first = wal.get_mut(&timeline(1)).unwrap();
        first.conflicts.push(SegmentName::new(timeline(1), 5, SIZE));
        let line = follow(&second, 2, SIZE, &wal);
        assert_eq!(line.end.map(|end| end.0), Some(4));
        assert!(matches!(
            line.broken,
            Some(Break::Conflict { number: 5, .. })
        ));
    }
}
