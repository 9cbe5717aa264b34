//! Past drills, from the reports that a repository keeps: the trend of a report, and what
//! `seawall drill history` prints.

use jiff::Timestamp;
use seawall::config;
use seawall::error::Result;
use seawall::repository::Repository;
use seawall::repository::keys::BackupId;
use serde::{Deserialize, Serialize};

use crate::report::{Past, Report};

/// So many drills make a report's trend.
const TREND: usize = 30;

/// What `seawall drill history --json` prints, format 1.
#[derive(Debug, Clone, Serialize)]
pub struct History {
    /// The format of this object.
    pub format: u32,
    /// The cluster's name.
    pub cluster: String,
    /// The repository that holds the reports.
    pub repository: String,
    /// What the configuration asks for now.
    pub objectives: Objectives,
    /// The newest drills, oldest first.
    pub drills: Vec<Past>,
}

/// What the configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Objectives {
    /// The most that may be lost, in seconds.
    pub rpo_seconds: Option<f64>,
    /// The longest that a recovery may take, in seconds.
    pub rto_seconds: Option<f64>,
}

/// How many drills there are, and how many of them passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// All of them.
    pub drills: usize,
    /// Those that passed.
    pub passed: usize,
}

impl History {
    /// Reads the newest `most` drills of a cluster. A report that is damaged is logged and left
    /// out.
    ///
    /// # Errors
    /// The repository cannot be listed or read.
    pub async fn read(
        repository: &Repository,
        cluster: &str,
        objectives: &config::Objectives,
        most: usize,
    ) -> Result<Self> {
        Ok(Self {
            format: 1,
            cluster: cluster.to_owned(),
            repository: repository.name().to_owned(),
            objectives: Objectives {
                rpo_seconds: objectives.rpo.map(|rpo| rpo.0.as_secs_f64()),
                rto_seconds: objectives.rto.map(|rto| rto.0.as_secs_f64()),
            },
            drills: past(repository, cluster, most).await?,
        })
    }
}

impl Summary {
    /// Counts them.
    pub fn of(drills: &[Past]) -> Self {
        Self {
            drills: drills.len(),
            passed: drills.iter().filter(|drill| drill.passed).count(),
        }
    }
}

/// Fills the trend of a report with the drills before it. Where they cannot be read, the report
/// says so: the past is no part of the verdict.
pub async fn add_trend(report: &mut Report, repository: &Repository) {
    let before = past(repository, &report.identity.cluster, TREND).await;
    match before {
        Ok(mut drills) => {
            drills.retain(|drill| drill.id != report.id);
            report.trend = drills;
        }
        Err(error) => report.warnings.push(format!(
            "the drills before this one could not be read, so there is no trend: {}",
            error.one_line()
        )),
    }
}

async fn past(repository: &Repository, cluster: &str, most: usize) -> Result<Vec<Past>> {
    let stored = repository.newest_drills::<Stored>(cluster, most).await?;
    Ok(stored.into_iter().map(Past::from).collect())
}

/// A report as it lies in the repository, as far as a trend needs it. What reports had from the
/// beginning must be there.
#[derive(Debug, Deserialize)]
struct Stored {
    id: String,
    started: Timestamp,
    passed: bool,
    backup: BackupId,
    #[serde(default)]
    scope: Option<StoredScope>,
    #[serde(default)]
    source: Option<StoredSource>,
    #[serde(default)]
    rpo: Option<Measured>,
    #[serde(default)]
    rto: Option<Measured>,
}

#[derive(Debug, Deserialize)]
struct StoredScope {
    scenario: Option<String>,
}

#[derive(Debug, Deserialize)]
struct StoredSource {
    repository: Option<String>,
    bytes: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Measured {
    measured_seconds: Option<f64>,
}

impl From<Stored> for Past {
    fn from(stored: Stored) -> Self {
        let (repository, bytes) = match stored.source {
            Some(source) => (source.repository, source.bytes),
            None => (None, None),
        };
        let seconds = |measured: Option<Measured>| measured.and_then(|m| m.measured_seconds);
        Self {
            id: stored.id,
            started: stored.started,
            passed: stored.passed,
            backup: stored.backup,
            scenario: stored.scope.and_then(|scope| scope.scenario),
            repository,
            rpo_seconds: seconds(stored.rpo),
            rto_seconds: seconds(stored.rto),
            bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::sample;

    #[test]
    fn a_stored_report_is_read_as_the_report_knows_itself() {
        let report = sample::full();
        let json = serde_json::to_string(&report).unwrap();
        let stored: Stored = serde_json::from_str(&json).unwrap();
        assert_eq!(Past::from(stored), report.past());
    }

    #[test]
    fn an_older_report_lacks_figures_and_is_read_all_the_same() {
        let backup = &sample::full().backup;
        let json = format!(
            r#"{{"id":"20260101T000000Z-0","started":"2026-01-01T00:00:00Z","passed":false,"backup":"{backup}","rto":{{}}}}"#
        );
        let past = Past::from(serde_json::from_str::<Stored>(&json).unwrap());
        assert_eq!((past.rto_seconds, past.rpo_seconds), (None, None));
        assert!(!past.passed);
    }
}
