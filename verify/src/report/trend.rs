//! Earlier drills, as far as a trend needs them.

use jiff::Timestamp;
use seawall::repository::keys::BackupId;
use serde::{Deserialize, Serialize};

/// A drill that is over. Read from reports in the repository: fields that an older one lacks
/// are absent.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
