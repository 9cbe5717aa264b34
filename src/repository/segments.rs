//! Sets of WAL segments, as ranges of numbers for each timeline: memory grows with the number
//! of ranges, and not of segments.

use std::collections::BTreeMap;

use crate::postgres::TimelineId;
use crate::postgres::history::TimelineHistory;
use crate::postgres::{Lsn, SegmentSize};

/// First and last number of consecutive segments.
pub type Range = (u64, u64);

/// Segments of several timelines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SegmentSet(BTreeMap<TimelineId, Vec<Range>>);

impl SegmentSet {
    /// Adds the segments from number `first` to `last`.
    pub fn add(&mut self, timeline: TimelineId, first: u64, last: u64) {
        if first > last {
            return;
        }
        let ranges = self.0.entry(timeline).or_default();
        ranges.push((first, last));
        ranges.sort_unstable();
        let mut merged: Vec<Range> = Vec::new();
        for (first, last) in ranges.drain(..) {
            match merged.last_mut() {
                Some(range) if first <= range.1.saturating_add(1) => range.1 = range.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        *ranges = merged;
    }

    /// Adds all of another set.
    pub fn add_all(&mut self, other: &Self) {
        for (timeline, ranges) in &other.0 {
            for (first, last) in ranges {
                self.add(*timeline, *first, *last);
            }
        }
    }

    /// Adds what recovery along `history` from `start` on may ask for. The segment of a switch
    /// point belongs to both timelines: where the child has archived nothing yet, PostgreSQL
    /// takes its parent's.
    pub fn add_line(&mut self, history: &TimelineHistory, start: Lsn, size: SegmentSize) {
        for span in history.spans() {
            let first = span.start.max(start).segment(size);
            let last = span.end.map_or(u64::MAX, |end| end.segment(size));
            self.add(span.timeline, first, last);
        }
    }

    /// Whether segment `number` of `timeline` is in it.
    pub fn contains(&self, timeline: TimelineId, number: u64) -> bool {
        let ranges = self.of(timeline).iter();
        ranges
            .clone()
            .any(|(first, last)| (*first..=*last).contains(&number))
    }

    /// The ranges of one timeline, ascending.
    pub fn of(&self, timeline: TimelineId) -> &[Range] {
        self.0.get(&timeline).map_or(&[], Vec::as_slice)
    }

    /// All ranges.
    pub fn iter(&self) -> impl Iterator<Item = (TimelineId, Range)> {
        let all = self.0.iter();
        all.flat_map(|(timeline, ranges)| ranges.iter().map(|range| (*timeline, *range)))
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.values().all(Vec::is_empty)
    }

    /// What of it is not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = Self::default();
        for (timeline, (mut first, last)) in self.iter() {
            let mut done = false;
            for (begin, end) in other.of(timeline) {
                if *end < first || *begin > last {
                    continue;
                }
                if *begin > first {
                    left.add(timeline, first, begin - 1);
                }
                match end.checked_add(1) {
                    Some(next) if next <= last => first = next,
                    _ => done = true,
                }
            }
            if !done {
                left.add(timeline, first, last);
            }
        }
        left
    }

    /// What is in both.
    #[must_use]
    pub fn within(&self, other: &Self) -> Self {
        self.without(&self.without(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn set(ranges: &[(u32, u64, u64)]) -> SegmentSet {
        let mut set = SegmentSet::default();
        for (number, first, length) in ranges {
            set.add(timeline(*number), *first, first + length);
        }
        set
    }

    fn members(set: &SegmentSet) -> BTreeSet<(u32, u64)> {
        let ranges = set.iter();
        ranges
            .flat_map(|(timeline, (first, last))| (first..=last).map(move |n| (timeline.get(), n)))
            .collect()
    }

    #[test]
    fn a_line_has_the_segment_of_a_switch_point_on_both_timelines() {
        let size = SegmentSize::DEFAULT;
        let switch = Lsn(5 * size.bytes() + 40);
        let history =
            TimelineHistory::parse(timeline(2), format!("1\t{switch}\tx").as_bytes()).unwrap();
        let mut line = SegmentSet::default();
        line.add_line(&history, Lsn(3 * size.bytes() + 1), size);
        let ranges: Vec<_> = line.iter().map(|(t, range)| (t.get(), range)).collect();
        assert_eq!(ranges, [(1, (3, 5)), (2, (5, u64::MAX))]);
        assert!(line.contains(timeline(2), u64::MAX) && !line.contains(timeline(1), 6));
        let everything = set(&[(1, 0, 9), (2, 0, 9)]);
        let left = everything.without(&line);
        let ranges: Vec<_> = left.iter().map(|(t, range)| (t.get(), range)).collect();
        assert_eq!(ranges, [(1, (0, 2)), (1, (6, 9)), (2, (0, 4))]);
    }

    proptest! {
        #[test]
        fn sets_of_ranges_are_sets(
            one in proptest::collection::vec((1u32..3, 0u64..30, 0u64..6), 0..8),
            two in proptest::collection::vec((1u32..3, 0u64..30, 0u64..6), 0..8),
        ) {
            let (a, b) = (set(&one), set(&two));
            let (left, right) = (members(&a), members(&b));
            prop_assert_eq!(members(&a.without(&b)), &left - &right);
            prop_assert_eq!(members(&a.within(&b)), &left & &right);
            let mut both = a.clone();
            both.add_all(&b);
            prop_assert_eq!(members(&both), &left | &right);
            prop_assert!(left.iter().all(|(t, n)| a.contains(timeline(*t), *n)));
            prop_assert!(right.iter().all(|(t, n)| a.contains(timeline(*t), *n) == left.contains(&(*t, *n))));
        }
    }
}
