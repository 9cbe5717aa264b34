//! Sets of WAL segments, as ranges of numbers for each timeline: memory grows with the number
//! of ranges, and not of segments.

use std::collections::{BTreeMap, BTreeSet};

use crate::postgres::TimelineId;
use crate::postgres::history::TimelineHistory;
use crate::postgres::{Lsn, SegmentSize};

/// First and last number of consecutive segments.
pub type Range = (u64, u64);

/// Numbers of segments of one timeline: ranges, ascending, neither overlapping nor touching.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Range>);

impl Ranges {
    /// The ranges.
    pub fn as_slice(&self) -> &[Range] {
        &self.0
    }

    /// Whether there is no number in them.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the number lies in one of them.
    pub fn contains(&self, number: u64) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < number);
        self.0.get(at).is_some_and(|(first, _)| *first <= number)
    }

    /// What of `first` to `last` lies in none of them.
    pub fn outside(&self, first: u64, last: u64) -> Vec<Range> {
        let mut left = Vec::new();
        let mut next = first;
        for (begin, end) in self.0.iter().filter(|(_, end)| *end >= first) {
            if *begin > last {
                break;
            }
            if *begin > next {
                left.push((next, begin - 1));
            }
            match end.checked_add(1) {
                Some(behind) => next = next.max(behind),
                // Nothing lies behind the highest number.
                None => return left,
            }
        }
        if next <= last {
            left.push((next, last));
        }
        left
    }
}

impl FromIterator<Range> for Ranges {
    fn from_iter<T: IntoIterator<Item = Range>>(ranges: T) -> Self {
        let ranges: BTreeSet<_> = ranges.into_iter().collect();
        let mut joined: Vec<Range> = Vec::new();
        for (first, last) in ranges {
            match joined.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last);
                }
                _ => joined.push((first, last)),
            }
        }
        Self(joined)
    }
}

/// Segments of several timelines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SegmentSet(BTreeMap<TimelineId, Ranges>);

impl SegmentSet {
    /// Adds the segments from number `first` to `last`.
    pub fn add(&mut self, timeline: TimelineId, first: u64, last: u64) {
        if first > last {
            return;
        }
        let ranges = self.0.entry(timeline).or_default();
        let known = std::mem::take(&mut ranges.0);
        *ranges = known.into_iter().chain([(first, last)]).collect();
    }

    /// Adds all of another set.
    pub fn add_all(&mut self, other: &Self) {
        for (timeline, more) in &other.0 {
            let ranges = self.0.entry(*timeline).or_default();
            let known = std::mem::take(&mut ranges.0);
            *ranges = known.into_iter().chain(more.0.iter().copied()).collect();
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
        let ranges = self.0.get(&timeline);
        ranges.is_some_and(|ranges| ranges.contains(number))
    }

    /// All ranges.
    pub fn iter(&self) -> impl Iterator<Item = (TimelineId, Range)> {
        let all = self.0.iter();
        all.flat_map(|(timeline, ranges)| ranges.0.iter().map(|range| (*timeline, *range)))
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.values().all(Ranges::is_empty)
    }

    /// What of it is not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let nothing = Ranges::default();
        let mut left = Self::default();
        for (timeline, ranges) in &self.0 {
            let others = other.0.get(timeline).unwrap_or(&nothing);
            let ranges = ranges.0.iter();
            let rest: Ranges = ranges
                .flat_map(|(first, last)| others.outside(*first, *last))
                .collect();
            if !rest.is_empty() {
                left.0.insert(*timeline, rest);
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

    #[test]
    fn what_lies_outside_of_the_ranges_is_left() {
        let ranges: Ranges = [(9, 12), (3, 4), (5, 5)].into_iter().collect();
        assert_eq!(ranges.0, [(3, 5), (9, 12)]);
        assert_eq!(ranges.outside(1, 20), [(1, 2), (6, 8), (13, 20)]);
        assert_eq!(ranges.outside(4, 10), [(6, 8)]);
        assert_eq!(ranges.outside(9, 12), []);
        assert_eq!(Ranges::default().outside(7, 7), [(7, 7)]);
        let up: Ranges = [(5, u64::MAX)].into_iter().collect();
        assert_eq!(up.outside(3, u64::MAX), [(3, 4)]);
        assert_eq!(up.outside(u64::MAX, u64::MAX), []);
        let inside: Vec<u64> = (0..14).filter(|n| ranges.contains(*n)).collect();
        assert_eq!(inside, [3, 4, 5, 9, 10, 11, 12]);
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
