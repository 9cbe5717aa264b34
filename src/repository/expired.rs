//! Records of archived WAL that was deleted because nothing needed it: what is missing there is
//! no gap. Backups that are kept without the WAL between them leave such holes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{FORMAT, System, to_json};
use crate::error::Result;
use crate::postgres::{SegmentName, SegmentSize, TimelineId};

/// Segments that were deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExpiredWal {
    /// The first of them.
    pub first: SegmentName,
    /// The last of them, of the same timeline.
    pub last: SegmentName,
}

/// One record.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    format: u32,
    noted: Timestamp,
    wal: Vec<ExpiredWal>,
    #[serde(flatten)]
    other: serde_json::Map<String, serde_json::Value>,
}

impl ExpiredWal {
    /// Segments by their numbers.
    pub fn new(timeline: TimelineId, first: u64, last: u64, size: SegmentSize) -> Self {
        Self {
            first: SegmentName::new(timeline, first, size),
            last: SegmentName::new(timeline, last, size),
        }
    }

    /// The numbers of the first and last segment, if it is of that timeline.
    pub fn of(&self, timeline: TimelineId, size: SegmentSize) -> Option<(u64, u64)> {
        let here = self.first.timeline == timeline && self.last.timeline == timeline;
        let (first, last) = (self.first.number(size).ok()?, self.last.number(size).ok()?);
        here.then_some((first, last))
    }
}

impl System {
    /// What was deleted from here because nothing needed it. Records that cannot be used are
    /// logged and left out: then a gap is reported that is none.
    pub async fn expired_wal(&self) -> Result<Vec<ExpiredWal>> {
        Ok(self.records().await?.1)
    }

    /// Notes that these segments are about to be deleted, in one new record that holds all that
    /// was noted before as well.
    pub async fn note_expired(&self, mut wal: Vec<ExpiredWal>, now: Timestamp) -> Result<()> {
        let (old, noted) = self.records().await?;
        wal.extend(noted.iter().copied());
        wal.sort_unstable();
        let mut merged: Vec<ExpiredWal> = Vec::new();
        for range in wal {
            match merged.last_mut() {
                Some(last)
                    if last.first.timeline == range.first.timeline
                        && touches(last.last, range.first) =>
                {
                    last.last = last.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        if merged == noted {
            return Ok(());
        }
        let random: u64 = rand::random();
        let key = format!("{}/{random:016x}.json", self.keys().expired());
        let record = Record {
            format: FORMAT,
            noted: now,
            wal: merged,
            other: serde_json::Map::new(),
        };
        self.store().put(&key, to_json(&record)?).await?;
        Ok(self.store().delete_all(&old).await?)
    }

    /// The keys of the records that can be used, and what they say together.
    async fn records(&self) -> Result<(Vec<String>, Vec<ExpiredWal>)> {
        let (mut keys, mut wal) = (Vec::new(), Vec::new());
        for info in self.store().list(&self.keys().expired(), None).await? {
            match self.repository().try_read_json::<Record>(&info.key).await? {
                Some(Ok(record)) if record.format <= FORMAT => {
                    keys.push(info.key);
                    wal.extend(record.wal);
                }
                Some(Ok(record)) => {
                    let error = self.repository().too_new(&info.key, record.format);
                    tracing::warn!("{}", error.one_line());
                }
                Some(Err(error)) => tracing::warn!("{}", error.one_line()),
                None => {}
            }
        }
        wal.sort_unstable();
        wal.dedup();
        Ok((keys, wal))
    }
}

/// Whether `next` is within a range that ends at `last`, or follows it in the same log.
fn touches(last: SegmentName, next: SegmentName) -> bool {
    next <= last || (next.log == last.log && next.low == last.low + 1)
}
