//! Drill results as they lie in a repository: the whole report, and the few fields of it that
//! listings need.

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde::Deserialize;
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
            .buffered(8);
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
