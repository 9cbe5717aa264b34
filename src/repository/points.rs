//! Restore points that were made through Seawall, with their LSN, so that a target by name
//! finds its backup without reading WAL.

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

    /// All recorded restore points, by position.
    pub async fn points(&self) -> Result<Vec<RestorePoint>> {
        let objects = self.store().list(&self.keys().points(), None).await?;
        let mut points: Vec<RestorePoint> = futures::stream::iter(objects)
            .map(|info| async move { self.repository().read_json::<RestorePoint>(&info.key).await })
            .buffered(8)
            .try_filter_map(|point| async move { Ok(point) })
            .try_collect()
            .await?;
        points.sort_by_key(|point| (point.lsn, point.timeline));
        Ok(points)
    }
}
