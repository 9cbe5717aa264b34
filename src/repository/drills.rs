//! Drill results as they lie in a repository: the whole report, and the few fields of it that
//! listings need.

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::keys::{self, BackupId};
use super::{Repository, to_json};
use crate::error::Result;

/// So many drills are read at most to find one that passed: a report may be megabytes.
const LOOK_BACK: usize = 100;

/// What a listing wants to know of a drill.
#[derive(Debug, Clone, Deserialize)]
pub struct DrillSummary {
    /// The drill's name.
    pub id: String,
    /// The backup that was restored.
    pub backup: BackupId,
    /// When it began.
    pub started: Timestamp,
    /// Its verdict.
    pub passed: bool,
}

/// So many reports are read at once.
const READ_AT_ONCE: usize = 8;

impl Repository {
    /// Stores a drill's report under its id.
    pub async fn put_drill(
        &self,
        cluster: &str,
        id: &str,
        report: &impl serde::Serialize,
    ) -> Result<()> {
        let key = format!("{}/{id}.json", keys::drills(cluster));
        Ok(self.store().put(&key, to_json(report)?).await?)
    }

    /// The names of all drills of a cluster, oldest first: each begins with its time.
    pub async fn drill_ids(&self, cluster: &str) -> Result<Vec<String>> {
        let objects = self.store().list(&keys::drills(cluster), None).await?;
        let name = |key: &str| Some(key.rsplit('/').next()?.strip_suffix(".json")?.to_owned());
        let mut ids: Vec<String> = objects.iter().filter_map(|info| name(&info.key)).collect();
        ids.sort();
        Ok(ids)
    }

    /// All drills of a cluster, oldest first. A record that is damaged, or newer than this
    /// version knows, is logged and left out.
    pub async fn drills(&self, cluster: &str) -> Result<Vec<DrillSummary>> {
        let objects = self.store().list(&keys::drills(cluster), None).await?;
        let mut read = futures::stream::iter(objects)
            .map(|info| async move { self.try_read_json::<DrillSummary>(&info.key).await })
            .buffered(READ_AT_ONCE);
        let mut drills = Vec::new();
        while let Some(drill) = read.try_next().await? {
            match drill {
                Some(Ok(drill)) => drills.push(drill),
                Some(Err(error)) => tracing::warn!("{}", error.one_line()),
                None => {}
            }
        }
        drills.sort_by_key(|drill| drill.started);
        Ok(drills)
    }

    /// The newest `most` reports of a cluster, oldest first, as far as `T` wants to know them.
    /// Their names tell which those are, so that no others are read; what is damaged, or newer
    /// than this version knows, is logged, and an older one takes its place.
    pub async fn newest_drills<T: DeserializeOwned>(
        &self,
        cluster: &str,
        most: usize,
    ) -> Result<Vec<T>> {
        let mut ids = self.drill_ids(cluster).await?;
        ids.retain(|id| begins_with_a_time(id));
        let keys = ids.into_iter().rev();
        let keys = keys.map(|id| format!("{}/{id}.json", keys::drills(cluster)));
        let mut read = futures::stream::iter(keys)
            .map(|key| async move { self.try_read_json::<T>(&key).await })
            .buffered(READ_AT_ONCE.min(most.max(1)));
        let mut drills = Vec::new();
        while drills.len() < most {
            match read.try_next().await? {
                Some(Some(Ok(drill))) => drills.push(drill),
                Some(Some(Err(error))) => tracing::warn!("{}", error.one_line()),
                Some(None) => {}
                None => break,
            }
        }
        drills.reverse();
        Ok(drills)
    }

    /// The report of the last drill of a cluster that passed and that is `wanted`, the newest
    /// that is among the last hundred. A record that is damaged, or newer than this version
    /// knows, is logged and left out.
    pub async fn last_passed_report(
        &self,
        cluster: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Option<Value>> {
        let ids = self.drill_ids(cluster).await?;
        for id in ids.iter().rev().take(LOOK_BACK) {
            let key = format!("{}/{id}.json", keys::drills(cluster));
            match self.try_read_json::<Value>(&key).await? {
                Some(Ok(report)) if report["passed"] == true && wanted(&report) => {
                    return Ok(Some(report));
                }
                Some(Err(error)) => tracing::warn!("{}", error.one_line()),
                _ => {}
            }
        }
        Ok(None)
    }
}

/// Whether a drill of ours may have this name: `20261121T050000Z-…`.
fn begins_with_a_time(id: &str) -> bool {
    let time = id.split('-').next().unwrap_or_default().as_bytes();
    let digit_or = |at: usize, byte: u8| match at {
        8 => byte == b'T',
        15 => byte == b'Z',
        _ => byte.is_ascii_digit(),
    };
    time.len() == 16
        && time
            .iter()
            .enumerate()
            .all(|(at, byte)| digit_or(at, *byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_drills_are_taken_for_the_newest() {
        assert!(begins_with_a_time("20261121T050000Z-0a1b2c3d"));
        for other in ["zebra", "2026", "20261121T0500000-0a1b2c3d", ""] {
            assert!(!begins_with_a_time(other), "{other}");
        }
    }
}
