//! Recorded restore points, with their LSN, so that a target by name finds its backup without
//! reading WAL: those made through Seawall, and those that were found in archived WAL.

use std::pin::pin;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::catalogue::Catalogue;
use super::line::Archived;
use super::scan::Segments;
use super::{FORMAT, System, to_json};
use crate::error::{Error, Result};
use crate::postgres::wal_records::Content;
use crate::postgres::{Lsn, SegmentName, TimelineId};
use crate::progress::Progress;

/// A named moment in the WAL.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RestorePoint {
    /// The format of this object.
    pub format: u32,
    /// The name, as given to PostgreSQL.
    pub name: String,
    /// The timeline that it was made on.
    pub timeline: TimelineId,
    /// The position that `pg_create_restore_point` returned: just past its record.
    pub lsn: Lsn,
    /// The server's clock.
    pub time: Timestamp,
    /// What newer versions added.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

impl RestorePoint {
    /// A restore point that was just made.
    pub fn new(name: &str, timeline: TimelineId, lsn: Lsn, time: Timestamp) -> Self {
        let other = serde_json::Map::new();
        Self {
            format: FORMAT,
            name: name.to_owned(),
            timeline,
            lsn,
            time,
            other,
        }
    }

    /// Which restore point it is, in the order of the WAL.
    pub fn place(&self) -> (Lsn, TimelineId, &str) {
        (self.lsn, self.timeline, &self.name)
    }

    /// PostgreSQL takes names of up to 63 bytes (PostgreSQL 18, xlogfuncs.c:
    /// `MAXFNAMELEN - 1`); we refuse what would not survive a key or a settings file.
    pub fn check_name(name: &str) -> Result<()> {
        let fine = |c: char| c.is_alphanumeric() || "-_.:+ ".contains(c);
        if name.is_empty() || name.len() > 63 || !name.chars().all(fine) {
            return Err(
                Error::usage(format!("{name:?} cannot be the name of a restore point"))
                    .hint("up to 63 bytes of letters, digits, spaces, '-', '_', '.', ':' and '+'"),
            );
        }
        Ok(())
    }
}

impl System {
    /// Records a restore point. The key carries random digits: a name may be used twice.
    pub async fn put_point(&self, point: &RestorePoint) -> Result<()> {
        let safe: String = point
            .name
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                    c
                } else {
                    '_'
                }
            })
            .collect();
        let random: u32 = rand::random();
        let key = format!("{}/{safe}-{random:08x}.json", self.keys().points());
        Ok(self.store().put(&key, to_json(point)?).await?)
    }

    /// All recorded restore points, by position, each once; and the keys of the records that
    /// cannot be used, each with what is wrong with it.
    pub async fn points(&self) -> Result<(Vec<RestorePoint>, Vec<(String, Error)>)> {
        let objects = self.store().list(&self.keys().points(), None).await?;
        let read: Vec<(String, Option<Result<RestorePoint>>)> = futures::stream::iter(objects)
            .map(|info| async move {
                let point = self.repository().try_read_json(&info.key).await?;
                Ok::<_, Error>((info.key, point))
            })
            .buffered(8)
            .try_collect()
            .await?;
        let mut points: Vec<RestorePoint> = Vec::new();
        let mut unreadable = Vec::new();
        for (key, point) in read {
            match point {
                Some(Ok(point)) if point.format > FORMAT => {
                    let error = self.repository().too_new(&key, point.format);
                    unreadable.push((key, error));
                }
                Some(Ok(point)) => points.push(point),
                Some(Err(error)) => unreadable.push((key, error)),
                None => {}
            }
        }
        sort(&mut points);
        Ok((points, unreadable))
    }

    /// Records what was found in WAL and is not among the `known` yet, so that it need not be
    /// looked for again. Whoever may not write there does without.
    pub async fn remember_points(&self, found: &[RestorePoint], known: &[RestorePoint]) {
        for point in found {
            if known.iter().any(|other| other.place() == point.place()) {
                continue;
            }
            if let Err(error) = self.put_point(point).await {
                tracing::info!(
                    "the restore point {:?} is not recorded: {}",
                    point.name,
                    error.one_line()
                );
                return;
            }
        }
    }
}

/// What reading all archived WAL for restore points came to.
#[derive(Debug, Default, Serialize)]
pub struct PointScan {
    /// Segments that were read.
    pub segments: u64,
    /// Those that could not be read, and why.
    pub unreadable: Vec<UnreadableSegment>,
    /// Every restore point in the others, by position, each once.
    #[serde(skip)]
    pub points: Vec<RestorePoint>,
}

/// A segment whose records could not be read.
#[derive(Debug, Serialize)]
pub struct UnreadableSegment {
    /// Its name.
    pub segment: SegmentName,
    /// What is wrong.
    pub why: String,
}

impl Catalogue {
    /// Reads all of the `archived` WAL for restore points, of whoever's making. Memory is that
    /// of a few segments' pieces and of the points themselves.
    pub async fn scan_points(&self, archived: &Archived) -> PointScan {
        let runs = archived.iter().flat_map(|(timeline, wal)| {
            let runs = wal.runs.iter();
            runs.map(|run| (*timeline, run.first, run.last))
        });
        let segments = Segments::new(runs.collect(), self.record.segment_size);
        let histories = Arc::new(self.histories.clone());
        let progress = Progress::new("reading WAL", Some(segments.bytes()));
        let mut done = PointScan::default();
        let scan = self.system().scan(segments, move |segment, record| {
            let Content::RestorePoint { name, time } = &record.content else {
                return None;
            };
            // A timeline's first segment begins with a copy of what its parent wrote.
            let history = histories.get(&segment.timeline);
            let timeline = history.map_or(segment.timeline, |h| h.ancestry_at(record.start));
            Some(RestorePoint::new(name, timeline, record.end, *time))
        });
        let mut scan = pin!(scan);
        while let Some((segment, found)) = scan.next().await {
            progress.add(self.record.segment_size.bytes());
            match found {
                Ok(points) => {
                    done.segments += 1;
                    done.points.extend(points);
                }
                Err(error) => done.unreadable.push(UnreadableSegment {
                    segment,
                    why: error.one_line(),
                }),
            }
        }
        progress.clear();
        sort(&mut done.points);
        done
    }
}

/// By position, each once: two who found the same point may both have recorded it.
pub fn sort(points: &mut Vec<RestorePoint>) {
    points.sort_by(|a, b| a.place().cmp(&b.place()));
    points.dedup_by(|a, b| a.place() == b.place());
}
