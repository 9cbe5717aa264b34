//! Who drilled what, from where, to where.

use jiff::Timestamp;
use seawall::postgres::{Lsn, SystemId, TimelineId};
use serde::Serialize;

/// Who ran what.
#[derive(Debug, Clone, Serialize)]
pub struct Identity {
    /// The cluster's name.
    pub cluster: String,
    /// PostgreSQL's system identifier.
    pub system_id: SystemId,
    /// The version of Seawall.
    pub seawall_version: String,
    /// `server_version_num` of the source.
    pub source_version_num: u32,
    /// The server that restored, as it prints its version.
    pub postgresql: Option<String>,
    /// SHA-256 of the configuration file.
    pub configuration_sha256: String,
    /// What or who ordered the drill.
    pub trigger: String,
    /// The user that ran it.
    pub user: String,
    /// The host.
    pub host: String,
    /// The command line.
    pub command: Vec<String>,
}

/// What was drilled.
#[derive(Debug, Clone, Serialize)]
pub struct Scope {
    /// `restore`, `total-loss` or `rehearsal`.
    pub scenario: &'static str,
    /// In words: what was played through.
    pub words: String,
}

/// What was restored.
#[derive(Debug, Clone, Serialize)]
pub struct Source {
    /// The repository's name.
    pub repository: String,
    /// Its URL.
    pub url: String,
    /// The repository that it is a copy of, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<String>,
    /// Its region, where the configuration names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The backup's age at the moment of failure, in seconds.
    pub backup_age_seconds: i64,
    /// The backup's timeline.
    pub backup_timeline: TimelineId,
    /// Where the backup's recovery starts.
    pub start_lsn: Lsn,
    /// Where it is consistent.
    pub stop_lsn: Lsn,
    /// Regular files.
    pub files: u64,
    /// Bytes of those files.
    pub bytes: u64,
    /// Bytes that were fetched for them.
    pub fetched_bytes: u64,
    /// WAL segments that recovery fetched.
    pub wal_segments: u64,
    /// Whether the drill connected to the primary or read its disks: only to measure the loss
    /// exactly, and only where that was asked for.
    pub primary_touched: bool,
}

/// The target, asked for and reached.
#[derive(Debug, Clone, Serialize)]
pub struct Target {
    /// `latest`, `time`, `lsn`, `xid`, `name`, `immediate`.
    pub kind: &'static str,
    /// Its value.
    pub value: Option<String>,
    /// How the moment was drawn, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drawn: Option<Drawn>,
    /// Whether archived WAL might end where a segment is missing: `--end-at-gap`.
    pub end_at_gap: bool,
    /// The timeline that was asked for, if one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked_timeline: Option<TimelineId>,
    /// The backup that was asked for, if one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked_backup: Option<String>,
    /// Whether the target itself was replayed.
    pub inclusive: bool,
    /// The timeline that was followed.
    pub timeline: TimelineId,
    /// The start of the last record that was replayed.
    pub reached_lsn: Option<Lsn>,
    /// The last transaction that was replayed.
    pub reached_time: Option<Timestamp>,
    /// The next transaction id of the recovered cluster.
    pub next_xid: Option<u64>,
    /// Why recovery stopped.
    pub why: String,
}

/// A moment drawn at random.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Drawn {
    /// With it the same moment is drawn again from the same window.
    pub seed: u64,
    /// The oldest moment that is promised.
    pub from: Timestamp,
    /// The newest one.
    pub until: Timestamp,
}
