//! When the daemon does what.

use std::path::PathBuf;

use serde::Deserialize;

use super::HumanDuration;

/// When the daemon does what, as crontab(5) lines. What has no line is not done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// Full base backups.
    pub full: Option<String>,
    /// Incremental base backups. Not in this version.
    pub incremental: Option<String>,
    /// Copies to the repositories that have `copy_from`: a crontab line, or `continuous`.
    /// Default: `continuous`.
    pub copy: Option<String>,
    /// The deletion of what no rule keeps.
    pub expire: Option<String>,
    /// Drills.
    pub drill: Option<String>,
    /// The zone in which the lines are meant, such as `Europe/Berlin`. Default: UTC.
    pub timezone: Option<String>,
    /// Each run begins up to so much later, by an amount that depends on host and cluster: a
    /// fleet does not begin at once.
    pub jitter: Option<HumanDuration>,
}

/// Settings of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DaemonConfig {
    /// Where it remembers what it did when.
    pub state_directory: PathBuf,
}

impl Default for DaemonConfig {
    fn default() -> Self {
        Self {
            state_directory: "/var/lib/seawall".into(),
        }
    }
}

/// A tiny message in the WAL, so that the age of the newest recoverable moment is known also
/// on an idle server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeartbeatConfig {
    /// How often. Default: not at all.
    pub interval: Option<HumanDuration>,
    /// Segments are switched for `objectives.rpo` at most so often: each switch costs a whole
    /// segment. Default: one minute.
    pub switch_floor: Option<HumanDuration>,
}
