//! Which segments retention removed from the middle of a timeline's WAL, so that nobody takes
//! what is missing there for lost, nor for WAL that was never written.
//!
//! A backup that is kept for years needs its own WAL and none behind it. Between that and what
//! recent backups need lies a hole. Each range of segments that is removed is put on record
//! first, under a key that names its first and its last segment: a listing tells all.

use std::collections::BTreeSet;

use serde_json::json;

use super::{FORMAT, System, to_json};
use crate::error::Result;
use crate::postgres::{SegmentName, SegmentSize, TimelineId};

/// Numbers of segments: first and last of each range, ascending, neither overlapping nor
/// touching.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
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
    pub fn outside(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let mut left = Vec::new();
        let mut next = first;
        for (begin, end) in self.0.iter().filter(|(_, end)| *end >= first) {
            if *begin > last {
                break;
            }
            if *begin > next {
                left.push((next, begin - 1));
            }
            next = next.max(end + 1);
        }
        if next <= last {
            left.push((next, last));
        }
        left
    }
}

impl FromIterator<(u64, u64)> for Ranges {
    fn from_iter<T: IntoIterator<Item = (u64, u64)>>(ranges: T) -> Self {
        let ranges: BTreeSet<_> = ranges.into_iter().collect();
        let mut joined: Vec<(u64, u64)> = Vec::new();
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

impl System {
    /// The segments of a timeline that retention removed, by number.
    pub async fn expired(&self, timeline: TimelineId, size: SegmentSize) -> Result<Ranges> {
        let ranges = self.recorded_ranges(timeline, size).await?;
        Ok(ranges.into_iter().map(|(_, range)| range).collect())
    }

    /// Puts on record that the segments from number `first` to `last` are about to be removed.
    /// To be called before the first of them is. Records that the new one touches are joined
    /// with it: there is about one for each hole.
    pub async fn note_expired(
        &self,
        timeline: TimelineId,
        size: SegmentSize,
        (first, last): (u64, u64),
    ) -> Result<()> {
        let known = self.recorded_ranges(timeline, size).await?;
        let all = known.iter().map(|(_, range)| *range);
        let Ranges(joined) = all.chain([(first, last)]).collect();
        let Some((first, last)) = joined
            .into_iter()
            .find(|range| range.0 <= first && last <= range.1)
        else {
            return Ok(());
        };
        let [from, to] = [first, last].map(|number| SegmentName::new(timeline, number, size));
        let key = format!("{}/{from}-{to}.json", self.keys().expired(timeline));
        if known.iter().all(|(other, _)| *other != key) {
            let record = json!({"format": FORMAT, "first": from, "last": to});
            self.store().put(&key, to_json(&record)?).await?;
        }
        for (old, range) in known {
            if old != key && first <= range.0 && range.1 <= last {
                self.store().delete(&old).await?;
            }
        }
        Ok(())
    }

    /// The records that can be read, with their keys. A name that is none of ours excuses
    /// nothing.
    async fn recorded_ranges(
        &self,
        timeline: TimelineId,
        size: SegmentSize,
    ) -> Result<Vec<(String, (u64, u64))>> {
        let directory = self.keys().expired(timeline);
        let listed = self.store().list(&directory, None).await?;
        let ranges = listed.into_iter().filter_map(|info| {
            let name = info.key.rsplit('/').next()?.strip_suffix(".json")?;
            let (first, last) = name.split_once('-')?;
            let number = |name: &str| {
                let name: SegmentName = name.parse().ok()?;
                let number = name.number(size).ok()?;
                (name.timeline == timeline).then_some(number)
            };
            let range = (number(first)?, number(last)?);
            (range.0 <= range.1).then_some((info.key, range))
        });
        Ok(ranges.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::SystemId;
    use crate::repository::Repository;
    use crate::storage::Store;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    #[test]
    fn what_lies_outside_of_the_ranges_is_left() {
        let ranges: Ranges = [(9, 12), (3, 4), (5, 5)].into_iter().collect();
        assert_eq!(ranges.0, [(3, 5), (9, 12)]);
        assert_eq!(ranges.outside(1, 20), [(1, 2), (6, 8), (13, 20)]);
        assert_eq!(ranges.outside(4, 10), [(6, 8)]);
        assert_eq!(ranges.outside(9, 12), []);
        assert_eq!(Ranges::default().outside(7, 7), [(7, 7)]);
        let inside: Vec<u64> = (0..14).filter(|n| ranges.contains(*n)).collect();
        assert_eq!(inside, [3, 4, 5, 9, 10, 11, 12]);
    }

    #[tokio::test]
    async fn records_that_touch_are_joined_and_those_of_other_timelines_left_alone() {
        let repository = Repository::over("near", Store::memory().unwrap());
        let system = repository.system("main", SystemId(1));
        let (one, two) = (TimelineId::FIRST, TimelineId::new(2).unwrap());
        for range in [(3, 7), (20, 30), (8, 9), (8, 9), (5, 6)] {
            system.note_expired(one, SIZE, range).await.unwrap();
        }
        assert_eq!(
            system.expired(one, SIZE).await.unwrap().0,
            [(3, 9), (20, 30)]
        );
        assert_eq!(system.expired(two, SIZE).await.unwrap(), Ranges::default());
        assert_eq!(repository.store().list("", None).await.unwrap().len(), 2);
    }
}
