//! Which segments retention removed from the middle of a timeline's WAL, so that nobody takes
//! what is missing there for lost, nor for WAL that was never written.
//!
//! A backup that is kept for years needs its own WAL and none behind it. Between that and what
//! recent backups need lies a hole. Each range of segments that is removed is put on record
//! first, under a key that names its first and its last segment: a listing tells all.

use serde_json::json;

use super::segments::{Range, Ranges};
use super::{FORMAT, System, to_json};
use crate::error::Result;
use crate::postgres::{SegmentName, SegmentSize, TimelineId};

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
        (first, last): Range,
    ) -> Result<()> {
        let known = self.recorded_ranges(timeline, size).await?;
        let all = known.iter().map(|(_, range)| *range);
        let joined: Ranges = all.chain([(first, last)]).collect();
        let mut joined = joined.as_slice().iter().copied();
        let Some((first, last)) = joined.find(|range| range.0 <= first && last <= range.1) else {
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
    ) -> Result<Vec<(String, Range)>> {
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

    #[tokio::test]
    async fn records_that_touch_are_joined_and_those_of_other_timelines_left_alone() {
        let repository = Repository::over("near", Store::memory().unwrap());
        let system = repository.system("main", SystemId(1));
        let (one, two) = (TimelineId::FIRST, TimelineId::new(2).unwrap());
        for range in [(3, 7), (20, 30), (8, 9), (8, 9), (5, 6)] {
            system.note_expired(one, SIZE, range).await.unwrap();
        }
        assert_eq!(
            system.expired(one, SIZE).await.unwrap().as_slice(),
            [(3, 9), (20, 30)]
        );
        assert_eq!(system.expired(two, SIZE).await.unwrap(), Ranges::default());
        assert_eq!(repository.store().list("", None).await.unwrap().len(), 2);
    }
}
