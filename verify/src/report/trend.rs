//! Earlier drills, as far as a trend needs them.

use jiff::Timestamp;
use seawall::repository::keys::BackupId;
use serde::Serialize;

use super::Report;

/// A drill that is over. Read from reports in the repository: what an older one lacks is
/// absent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Past {
    /// The drill's name.
    pub id: String,
    /// When it began.
    pub started: Timestamp,
    /// Its verdict.
    pub passed: bool,
    /// The backup that was restored.
    pub backup: BackupId,
    /// What was played through.
    pub scenario: Option<String>,
    /// The repository that it came from.
    pub repository: Option<String>,
    /// The measured RPO in seconds.
    pub rpo_seconds: Option<f64>,
    /// The measured RTO in seconds.
    pub rto_seconds: Option<f64>,
    /// Bytes that were restored, WAL not included.
    pub bytes: Option<u64>,
}

impl Report {
    /// What later drills will know of this one.
    pub fn past(&self) -> Past {
        Past {
            id: self.id.clone(),
            started: self.started,
            passed: self.passed,
            backup: self.backup.clone(),
            scenario: Some(self.scope.scenario.to_owned()),
            repository: Some(self.source.repository.clone()),
            rpo_seconds: self.rpo.measured_seconds,
            rto_seconds: self.rto.measured_seconds,
            bytes: Some(self.source.bytes),
        }
    }
}
