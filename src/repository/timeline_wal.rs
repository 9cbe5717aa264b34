//! The archived segments of one timeline, as runs without a gap: its memory grows with the
//! number of gaps, and not of segments.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use super::segments::Ranges;
use crate::postgres::{SegmentName, SegmentSize, WalFileName};
use crate::storage::ObjectInfo;

/// Consecutive segments of one timeline, all present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SegmentRun {
    /// Number of the first segment.
    pub first: u64,
    /// Number of the last segment.
    pub last: u64,
    /// When the first was stored, by the store's clock.
    pub first_stored: Timestamp,
    /// When the last was stored, by the store's clock.
    pub last_stored: Timestamp,
    /// Bytes as stored.
    pub stored_bytes: u64,
}

/// The segments of one timeline. Memory grows with the number of gaps, not of segments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TimelineWal {
    /// Ascending; between two of them lies a gap.
    pub runs: Vec<SegmentRun>,
    /// Segments with more than one content.
    pub conflicts: Vec<SegmentName>,
    /// `.partial` and `.backup` files with more than one content.
    pub conflicts_beside: Vec<WalFileName>,
    /// Numbers of segments that have a `.partial` or `.backup` file beside them.
    pub beside: BTreeSet<u64>,
    /// For each log (4 GiB of WAL) the digests of its segments, folded into one: where two
    /// repositories hold the same segments of a log, they hold the same contents exactly if
    /// these are equal.
    pub fingerprints: BTreeMap<u32, u128>,
    /// How many segments may have been stored behind one that was never acknowledged:
    /// [`SEGMENTS_AHEAD`](crate::config::SEGMENTS_AHEAD), or none where WAL was acknowledged without this repository.
    pub stored_ahead: u64,
    /// What retention removed: it is neither missing, nor does WAL end there.
    pub expired: Ranges,
}

impl TimelineWal {
    /// The run that holds segment `number`.
    pub fn run_with(&self, number: u64) -> Option<&SegmentRun> {
        let at = self.runs.partition_point(|run| run.last < number);
        self.runs.get(at).filter(|run| run.first <= number)
    }

    /// Whether all segments from number `first` to `last` are here.
    pub fn holds(&self, first: u64, last: u64) -> bool {
        self.run_with(first).is_some_and(|run| run.last >= last)
    }

    /// First and last number of the segments that are missing between two runs. What only
    /// working ahead left out is no gap, nor is what retention removed.
    pub fn gaps(&self) -> impl Iterator<Item = (u64, u64)> {
        self.runs
            .windows(2)
            .flat_map(|pair| self.expired.outside(pair[0].last + 1, pair[1].first - 1))
            .filter(|(first, _)| !self.ends_ahead_of(*first))
    }

    /// What is missing of the segments from number `first` to `last`, and was not removed by
    /// retention.
    pub fn missing(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let absent = self.absent(first, last).into_iter();
        absent
            .flat_map(|(first, last)| self.expired.outside(first, last))
            .collect()
    }

    /// What is not here of the segments from number `first` to `last`.
    pub fn absent(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let held: Ranges = self.runs.iter().map(|run| (run.first, run.last)).collect();
        held.outside(first, last)
    }

    /// Whether what is here behind the missing segment `number` was stored ahead of it: an
    /// archiver that works ahead stores no segment more than [`SEGMENTS_AHEAD`](crate::config::SEGMENTS_AHEAD) behind the
    /// oldest that PostgreSQL was not told to be archived. So what is missing there was never
    /// acknowledged, unless others than this repository were enough for that.
    pub fn ends_ahead_of(&self, number: u64) -> bool {
        let close = |last: u64| last > number && last - number <= self.stored_ahead;
        self.last().is_some_and(close) && !self.expired.contains(number)
    }

    /// The first segment from number `first` to `last` that has more than one content, with its
    /// number.
    pub fn first_conflict(
        &self,
        first: u64,
        last: u64,
        size: SegmentSize,
    ) -> Option<(SegmentName, u64)> {
        let conflicts = self.conflicts.iter();
        conflicts
            .filter_map(|segment| Some((*segment, segment.number(size).ok()?)))
            .filter(|(_, number)| (first..=last).contains(number))
            .min_by_key(|(_, number)| *number)
    }

    /// The newest segment.
    pub fn last(&self) -> Option<u64> {
        self.runs.last().map(|run| run.last)
    }

    /// Notes whether a file has another content than the object before it.
    pub(super) fn note(&mut self, name: WalFileName, twice: bool) {
        match name {
            WalFileName::Segment(segment) if twice && self.conflicts.last() != Some(&segment) => {
                self.conflicts.push(segment);
            }
            WalFileName::Partial(_) | WalFileName::BackupHistory(..)
                if twice && self.conflicts_beside.last() != Some(&name) =>
            {
                self.conflicts_beside.push(name);
            }
            _ => {}
        }
    }

    pub(super) fn add(&mut self, number: u64, object: &ObjectInfo) {
        match self.runs.last_mut() {
            Some(run) if run.last == number => run.stored_bytes += object.size,
            Some(run) if run.last + 1 == number => {
                run.last = number;
                run.last_stored = object.modified;
                run.stored_bytes += object.size;
            }
            _ => self.runs.push(SegmentRun {
                first: number,
                last: number,
                first_stored: object.modified,
                last_stored: object.modified,
                stored_bytes: object.size,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SEGMENTS_AHEAD;

    fn wal(numbers: &[u64]) -> TimelineWal {
        let mut wal = TimelineWal {
            stored_ahead: SEGMENTS_AHEAD,
            ..TimelineWal::default()
        };
        for number in numbers {
            let info = ObjectInfo {
                key: String::new(),
                size: 10,
                modified: Timestamp::from_second(*number as i64).unwrap(),
            };
            wal.add(*number, &info);
        }
        wal
    }

    #[test]
    fn runs_end_at_gaps_and_nowhere_else() {
        let wal = wal(&[3, 4, 4, 5, 9, 10, 12]);
        let spans: Vec<_> = wal.runs.iter().map(|run| (run.first, run.last)).collect();
        assert_eq!(spans, [(3, 5), (9, 10), (12, 12)]);
        assert_eq!(wal.runs[0].stored_bytes, 40);
        assert_eq!(wal.run_with(4).map(|run| run.last), Some(5));
        assert_eq!(wal.run_with(6), None);
        assert_eq!(wal.run_with(2), None);
        assert_eq!(wal.run_with(13), None);
        assert_eq!(wal.last(), Some(12));
    }

    #[test]
    fn a_gap_is_what_working_ahead_cannot_explain() {
        let gaps = |numbers: &[u64]| wal(numbers).gaps().collect::<Vec<_>>();
        assert_eq!(
            gaps(&[3, 4, 5, 9, 10, 12, 40]),
            [(6, 8), (11, 11), (13, 39)]
        );
        // 16 behind the first that is missing, and no more.
        assert_eq!(gaps(&[3, 5, 19, 20]), []);
        assert_eq!(gaps(&[3, 5, 19, 21]), [(4, 4)]);
        assert_eq!(gaps(&[3, 5, 7, 23]), [(4, 4), (6, 6)]);
    }

    #[test]
    fn what_retention_removed_is_neither_a_gap_nor_the_end_of_the_wal() {
        let mut wal = wal(&[3, 4, 9, 60]);
        wal.expired = [(5, 8), (10, 30)].into_iter().collect();
        assert_eq!(wal.gaps().collect::<Vec<_>>(), [(31, 59)]);
        assert_eq!(wal.missing(1, 61), [(1, 2), (31, 59), (61, 61)]);
        let mut idle = self::wal(&[3, 9]);
        assert!(idle.ends_ahead_of(4));
        idle.expired = [(4, 8)].into_iter().collect();
        assert!(!idle.ends_ahead_of(4));
    }
}
