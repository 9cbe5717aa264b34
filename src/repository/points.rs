//! Recorded restore points, with their LSN, so that a target by name finds its backup without
//! reading WAL: those made through Seawall, and those that were found in archived WAL.

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{FORMAT, System, to_json};
use crate::error::{Error, Result};
use crate::postgres::{Lsn, TimelineId};

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
        // Two who found the same point in the WAL may both have recorded it.
        points.sort_by(|a, b| a.place().cmp(&b.place()));
        points.dedup_by(|a, b| a.place() == b.place());
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
