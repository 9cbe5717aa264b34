//! Records of archived WAL that was deleted because nothing needed it: what is missing there is
//! no gap. Backups that are kept without the WAL between them leave such holes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::segments::SegmentSet;
use super::{FORMAT, System, to_json};
use crate::error::Result;
use crate::postgres::{SegmentName, SegmentSize};

/// One record.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    format: u32,
    noted: Timestamp,
    wal: Vec<[SegmentName; 2]>,
    #[serde(flatten)]
    other: serde_json::Map<String, serde_json::Value>,
}

impl System {
    /// What was deleted from here because nothing needed it. Records that cannot be used are
    /// logged and left out: then a gap is reported that is none.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn expired_wal(&self, size: SegmentSize) -> Result<SegmentSet> {
        Ok(self.records(size).await?.1)
    }

    /// Notes that these segments are about to be deleted, in one new record that holds all that
    /// was noted before as well.
    pub async fn note_expired(
        &self,
        mut wal: SegmentSet,
        size: SegmentSize,
        now: Timestamp,
    ) -> Result<()> {
        let (old, noted) = self.records(size).await?;
        wal.add_all(&noted);
        if wal == noted {
            return Ok(());
        }
        let random: u64 = rand::random();
        let key = format!("{}/{random:016x}.json", self.keys().expired());
        let ranges = wal.iter().map(|(timeline, (first, last))| {
            [first, last].map(|number| SegmentName::new(timeline, number, size))
        });
        let record = Record {
            format: FORMAT,
            noted: now,
            wal: ranges.collect(),
            other: serde_json::Map::new(),
        };
        self.store().put(&key, to_json(&record)?).await?;
        Ok(self.store().delete_all(&old).await?)
    }

    /// The keys of the records that can be used, and what they say together.
    async fn records(&self, size: SegmentSize) -> Result<(Vec<String>, SegmentSet)> {
        let (mut keys, mut wal) = (Vec::new(), SegmentSet::default());
        for info in self.store().list(&self.keys().expired(), None).await? {
            match self.repository().try_read_json::<Record>(&info.key).await? {
                Some(Ok(record)) if record.format <= FORMAT => {
                    keys.push(info.key);
                    for [first, last] in record.wal {
                        if first.timeline == last.timeline {
                            wal.add(first.timeline, first.number(size)?, last.number(size)?);
                        }
                    }
                }
                Some(Ok(record)) => {
                    let error = self.repository().too_new(&info.key, record.format);
                    tracing::warn!("{}", error.one_line());
                }
                Some(Err(error)) => tracing::warn!("{}", error.one_line()),
                None => {}
            }
        }
        Ok((keys, wal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::{SystemId, TimelineId};
    use crate::repository::Repository;
    use crate::storage::Store;

    #[tokio::test]
    async fn one_record_holds_everything_that_was_noted() {
        let repository = Repository::over("near", Store::memory().unwrap());
        let system = repository.system("main", SystemId(7));
        let size = SegmentSize::DEFAULT;
        let mut all = SegmentSet::default();
        for (timeline, first, last) in [(1, 250, 259), (1, 260, 300), (2, 7, 7), (1, 1, 5)] {
            let timeline = TimelineId::new(timeline).unwrap();
            let mut gone = SegmentSet::default();
            gone.add(timeline, first, last);
            system
                .note_expired(gone, size, Timestamp::now())
                .await
                .unwrap();
            all.add(timeline, first, last);
            assert_eq!(system.expired_wal(size).await.unwrap(), all);
        }
        let records = system.store().list(&system.keys().expired(), None).await;
        assert_eq!(records.unwrap().len(), 1);
    }
}
