//! What may be copied of a timeline's segments: pure functions over what a listing said.

use crate::postgres::history::TimelineHistory;
use crate::postgres::{SegmentSize, TimelineId, WalFileName};
use crate::repository::segments::Ranges;
use crate::repository::timeline_wal::TimelineWal;

/// What the source holds of one timeline, as a copy sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    /// The last segment to be copied.
    pub(super) last: u64,
    /// Whether the source holds more behind a segment that is on its way: then `last` is the
    /// one before that.
    pub(super) more_is_coming: bool,
    /// What is missing at the source for good, ascending.
    pub(super) holes: Vec<Hole>,
}

/// Segments that the source does not hold, and will not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hole {
    /// The first of them.
    pub(super) first: u64,
    /// The last of them.
    pub(super) last: u64,
    /// Retention removed them; otherwise they are lost.
    pub(super) expired: bool,
}

impl Shape {
    /// Whether this file, of segment `number` or beside it, is to be copied.
    pub(super) fn takes(&self, name: WalFileName, number: u64) -> bool {
        match name {
            WalFileName::Segment(_) => number <= self.last,
            // A `.partial` follows the last whole segment.
            _ => number <= self.last || (number == self.last + 1 && !self.more_is_coming),
        }
    }
}

/// What is to be copied of `wal`; `None` where nothing is. `left_at` is the highest segment in
/// which another timeline leaves this one.
///
/// Nothing is copied from behind a segment that is missing because its archiver works ahead: it
/// comes once that one is there. A hole that working ahead cannot explain, or before which
/// another timeline begins, is a gap, and the copy goes on behind it. So it does behind what
/// retention removed.
///
/// The copy is done with all before segment `reached`: what is missing from there to the first
/// run is a hole like any other. Without that, a segment that was waited for in one look would
/// be passed over in the next, which lists nothing before it.
pub(super) fn shape(
    wal: &TimelineWal,
    left_at: Option<u64>,
    reached: Option<u64>,
) -> Option<Shape> {
    let begin = wal.runs.first()?.first;
    let mut next = reached.unwrap_or(begin).min(begin);
    let mut shape = Shape {
        last: next.saturating_sub(1),
        more_is_coming: false,
        holes: Vec::new(),
    };
    for run in &wal.runs {
        if next == run.first {
            (shape.last, next) = (run.last, run.last + 1);
            continue;
        }
        let (first, last) = (next, run.first - 1);
        let lost = wal.expired.outside(first, last);
        let passed = |number| left_at.is_some_and(|left_at| left_at > number);
        if lost
            .iter()
            .any(|(first, _)| wal.ends_ahead_of(*first) && !passed(*first))
        {
            shape.more_is_coming = true;
            break;
        }
        let expired = lost
            .iter()
            .copied()
            .collect::<Ranges>()
            .outside(first, last);
        let hole = |expired| {
            move |(first, last)| Hole {
                first,
                last,
                expired,
            }
        };
        let lost = lost.into_iter().map(hole(false));
        let mut holes: Vec<Hole> = lost.chain(expired.into_iter().map(hole(true))).collect();
        holes.sort_by_key(|hole| hole.first);
        shape.holes.extend(holes);
        (shape.last, next) = (run.last, run.last + 1);
    }
    Some(shape)
}

/// The highest segment in which one of `histories` leaves `timeline`.
pub(super) fn left_at<'a>(
    timeline: TimelineId,
    histories: impl IntoIterator<Item = &'a TimelineHistory>,
    size: SegmentSize,
) -> Option<u64> {
    let ends = histories
        .into_iter()
        .filter(|history| history.timeline != timeline)
        .filter_map(|history| history.end_of(timeline));
    ends.map(|end| end.segment(size)).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SEGMENTS_AHEAD;
    use crate::postgres::SegmentName;
    use crate::repository::timeline_wal::SegmentRun;

    const DEFAULT: SegmentSize = SegmentSize::DEFAULT;

    fn wal(runs: &[(u64, u64)], stored_ahead: u64) -> TimelineWal {
        let run = |&(first, last): &(u64, u64)| SegmentRun {
            first,
            last,
            first_stored: jiff::Timestamp::UNIX_EPOCH,
            last_stored: jiff::Timestamp::UNIX_EPOCH,
            stored_bytes: 0,
        };
        TimelineWal {
            runs: runs.iter().map(run).collect(),
            stored_ahead,
            ..TimelineWal::default()
        }
    }

    fn gaps(shape: &Shape) -> Vec<(u64, u64)> {
        let lost = shape.holes.iter().filter(|hole| !hole.expired);
        lost.map(|hole| (hole.first, hole.last)).collect()
    }

    #[test]
    fn what_retention_removed_is_no_gap_and_nothing_waits_for_it() {
        let mut wal = wal(&[(3, 5), (9, 12), (40, 41)], SEGMENTS_AHEAD);
        wal.expired = [(6, 8), (13, 30)].into_iter().collect();
        let shape = shape(&wal, None, None).unwrap();
        // Segments 31 to 39 were not removed, and what follows may be ahead of them.
        assert_eq!((shape.last, shape.more_is_coming), (12, true));
        let hole = |first, last, expired| Hole {
            first,
            last,
            expired,
        };
        assert_eq!(shape.holes, [hole(6, 8, true)]);
        let left = super::shape(&wal, Some(50), None).unwrap();
        assert_eq!(
            left.holes,
            [hole(6, 8, true), hole(13, 30, true), hole(31, 39, false)]
        );
    }

    #[test]
    fn what_is_stored_ahead_of_a_missing_segment_waits_for_it() {
        let ahead = |runs: &[(u64, u64)]| shape(&wal(runs, SEGMENTS_AHEAD), None, None).unwrap();
        let waits = ahead(&[(3, 5), (7, 22)]);
        assert_eq!((waits.last, waits.more_is_coming), (5, true));
        assert!(waits.holes.is_empty());
        let gap = ahead(&[(3, 5), (7, 23)]);
        assert_eq!((gap.last, gap.more_is_coming), (23, false));
        assert_eq!(gaps(&gap), [(6, 6)]);
        // A gap, and another segment on its way behind it.
        let both = ahead(&[(3, 5), (7, 40), (42, 44)]);
        assert_eq!((both.last, both.more_is_coming), (40, true));
        assert_eq!(gaps(&both), [(6, 6)]);
    }

    #[test]
    fn what_is_missing_where_the_last_look_ended_is_a_hole_like_any_other() {
        let from =
            |runs: &[(u64, u64)], at| shape(&wal(runs, SEGMENTS_AHEAD), None, Some(at)).unwrap();
        let waits = from(&[(7, 22)], 6);
        assert_eq!((waits.last, waits.more_is_coming), (5, true));
        let partial = WalFileName::Partial(SegmentName::new(TimelineId::FIRST, 6, DEFAULT));
        assert!(!waits.takes(partial, 6));
        let gap = from(&[(7, 23)], 6);
        assert_eq!((gap.last, gap.more_is_coming), (23, false));
        assert_eq!(gaps(&gap), [(6, 6)]);
        let came = from(&[(6, 22)], 6);
        assert_eq!((came.last, came.more_is_coming), (22, false));
        assert!(came.holes.is_empty());
        let mut removed = wal(&[(9, 12)], SEGMENTS_AHEAD);
        removed.expired = [(1, 8)].into_iter().collect();
        let removed = shape(&removed, None, Some(6)).unwrap();
        let hole = Hole {
            first: 6,
            last: 8,
            expired: true,
        };
        assert_eq!((removed.last, removed.holes), (12, vec![hole]));
    }

    #[test]
    fn nothing_is_waited_for_where_it_was_acknowledged_or_another_timeline_goes_on() {
        let all = shape(&wal(&[(3, 5), (7, 8)], 0), None, None).unwrap();
        assert_eq!((all.last, gaps(&all)), (8, vec![(6, 6)]));
        let left = |at| shape(&wal(&[(3, 5), (7, 8)], SEGMENTS_AHEAD), Some(at), None).unwrap();
        assert_eq!(gaps(&left(8)), [(6, 6)]);
        assert!(left(6).more_is_coming);
        assert_eq!(shape(&wal(&[], SEGMENTS_AHEAD), Some(4), Some(2)), None);
    }

    #[test]
    fn a_timeline_is_left_where_the_last_of_its_children_begins() {
        let size = SegmentSize::DEFAULT;
        let timeline = |number| TimelineId::new(number).unwrap();
        let child = |number: u32, segment: u64| {
            let text = format!("1\t0/{:X}\tx\n", segment * size.bytes() + 40);
            TimelineHistory::parse(timeline(number), text.as_bytes()).unwrap()
        };
        let histories = [TimelineHistory::first(), child(2, 5), child(3, 9)];
        assert_eq!(left_at(timeline(1), &histories, size), Some(9));
        assert_eq!(left_at(timeline(2), &histories, size), None);
    }
}
