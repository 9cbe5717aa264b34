//! What somebody on call asks of a cluster: up to which moment one can recover, how old that is,
//! what waits to be archived and to be copied, what is missing, what was proven. One look at the
//! server and at every repository, all at once, each within its time: what does not answer is
//! said, and holds up nothing else.
//!
//! A [`Watch`] looks again and again, and asks the stores for little: all of a repository is
//! listed when a backup or a timeline came or went, once an hour, and every five minutes while
//! something is wrong; otherwise what lies behind the newest backup.

mod background;
mod listing;
mod repository;
mod server;

use std::time::{Duration, Instant};

use futures::future::join_all;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::{ClusterConfig, Config, Objectives};
use crate::copy::Lag;
use crate::postgres::{Lsn, SegmentName, SystemId, TimelineId};
use crate::repository::keys::{BackupId, BackupKind};
use crate::repository::windows::Window;
use crate::wal::backlog::Backlog;

use repository::RepositoryWatch;
use server::ServerWatch;

/// The format of [`ClusterStatus`].
pub const FORMAT: u32 = 1;

/// What a look of many may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One look at a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The format of this object.
    pub format: u32,
    /// The cluster's name.
    pub cluster: String,
    /// When it was looked at.
    pub time: Timestamp,
    /// How many seconds that took.
    pub seconds: f64,
    /// What a disaster may cost.
    pub objectives: ObjectivesStatus,
    /// What the server says.
    pub server: ServerStatus,
    /// What each repository holds, in the order of the configuration.
    pub repositories: Vec<RepositoryStatus>,
}

/// The objectives, in seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ObjectivesStatus {
    /// How much time's worth of commits may be lost.
    pub rpo_seconds: Option<f64>,
    /// How long it may take until the database answers again.
    pub rto_seconds: Option<f64>,
}

impl From<&Objectives> for ObjectivesStatus {
    fn from(objectives: &Objectives) -> Self {
        Self {
            rpo_seconds: objectives.rpo.map(|rpo| rpo.0.as_secs_f64()),
            rto_seconds: objectives.rto.map(|rto| rto.0.as_secs_f64()),
        }
    }
}

/// The server, and what waits in its pg_wal.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Why it could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its major version.
    pub postgresql_major: Option<u32>,
    /// Its system identifier.
    pub system_id: Option<SystemId>,
    /// Whether it is a standby, or recovers.
    pub in_recovery: Option<bool>,
    /// Up to where it has written WAL, or replayed it.
    pub position: Option<Lsn>,
    /// Its archiver.
    pub archiver: Option<ArchiverStatus>,
    /// What waits to be archived; none where its data directory is not on this host.
    pub backlog: Option<Backlog>,
    /// Seconds until pg_wal's file system is full, at the rates of the last minutes; none while
    /// archiving keeps up.
    pub seconds_until_full: Option<f64>,
    /// Why pg_wal could not be looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backlog_error: Option<String>,
}

/// PostgreSQL's archiver (pg_stat_archiver).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ArchiverStatus {
    /// Files archived since its statistics were reset.
    pub archived: u64,
    /// Failed attempts since then.
    pub failed: u64,
    /// The last file that was archived.
    pub last_archived: Option<String>,
    /// When that was.
    pub last_archived_time: Option<Timestamp>,
    /// When an attempt last failed.
    pub last_failed_time: Option<Timestamp>,
    /// Whether the last attempt failed.
    pub failing: bool,
    /// Bytes of WAL written behind the last archived segment, that of the open one among them.
    pub unarchived_bytes: Option<u64>,
}

/// What one repository holds of the cluster: of its newest system, as of `looked`, but for sizes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RepositoryStatus {
    /// Its name.
    pub name: String,
    /// The repository that it is a copy of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy_from: Option<String>,
    /// Why it could not be looked at. What else is said of it is older then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it was last looked at without an error.
    pub looked: Option<Timestamp>,
    /// When all of it was last listed: gaps, conflicts and sizes are of that moment.
    pub listed: Option<Timestamp>,
    /// PostgreSQL's system identifier.
    pub system_id: Option<SystemId>,
    /// Its major version.
    pub postgresql_major: Option<u32>,
    /// The newest moment that one can recover to. Now less this is the live RPO.
    pub newest_recoverable: Option<Timestamp>,
    /// The end of the archived WAL that a backup leads to.
    pub archived_until: Option<ArchivedUntil>,
    /// The spans of time that one can recover to, oldest first. Between them lie gaps.
    pub windows: Vec<Span>,
    /// Finished backups, oldest first.
    pub backups: Vec<BackupStatus>,
    /// Backups that are under way, or were interrupted.
    pub unfinished_backups: u64,
    /// Ranges of segments that must have been written and are missing.
    pub gaps: Vec<[SegmentName; 2]>,
    /// WAL files with more than one content.
    pub conflicts: u64,
    /// Markers, histories and restore points that cannot be used, and why.
    pub unreadable: Vec<String>,
    /// What it takes of the store, of all systems.
    pub sizes: Sizes,
    /// Of a copy: what it lacks of its source.
    pub lag: Option<Lag>,
    /// When the two were last compared.
    pub compared: Option<Timestamp>,
    /// Why that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_error: Option<String>,
    /// The newest drills from it, oldest first.
    pub drills: Vec<DrillStatus>,
}

/// Where archived WAL ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArchivedUntil {
    /// The timeline.
    pub timeline: TimelineId,
    /// The end of the last segment.
    pub lsn: Lsn,
    /// When that was stored, by the store's clock.
    pub stored: Timestamp,
}

/// A span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Its begin.
    pub from: Timestamp,
    /// Its end.
    pub to: Timestamp,
}

/// A finished backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupStatus {
    /// Its name.
    pub id: BackupId,
    /// Full or incremental.
    pub kind: BackupKind,
    /// When it ended.
    pub stop_time: Timestamp,
    /// How many seconds it took.
    pub seconds: f64,
    /// Bytes of what a restore writes.
    pub bytes: u64,
    /// Bytes in the repository.
    pub stored_bytes: u64,
    /// Pages whose checksum was wrong.
    pub damaged_pages: u64,
    /// The moments that it leads to; none where its own WAL is missing.
    pub window: Option<Window>,
    /// Why it cannot be restored: part of its chain is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken_chain: Option<String>,
    /// Whether a pin holds it.
    pub pinned: bool,
    /// When a drill last proved it.
    pub proven: Option<Timestamp>,
}

/// Bytes in the repository by class of object, as stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// WAL segments.
    pub wal: u64,
    /// Full backups.
    pub full: u64,
    /// Incremental backups.
    pub incremental: u64,
}

/// A drill's result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrillStatus {
    /// Its name.
    pub id: String,
    /// The backup that was restored.
    pub backup: BackupId,
    /// When it began.
    pub started: Timestamp,
    /// Its verdict.
    pub passed: bool,
    /// Why it did not pass.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// The measured RTO in seconds.
    pub rto_seconds: Option<f64>,
    /// The measured RPO in seconds.
    pub rpo_seconds: Option<f64>,
}

impl RepositoryStatus {
    /// Seconds from the newest moment that one can recover to until `now`.
    pub fn live_rpo(&self, now: Timestamp) -> Option<f64> {
        let newest = self.newest_recoverable?;
        Some(now.duration_since(newest).as_secs_f64().max(0.0))
    }

    /// The newest backup of a kind, or of any.
    pub fn newest(&self, kind: Option<BackupKind>) -> Option<&BackupStatus> {
        let of_kind = |backup: &&BackupStatus| kind.is_none_or(|kind| backup.kind == kind);
        self.backups.iter().rev().find(of_kind)
    }
}

/// Looks at a cluster again and again.
pub struct Watch {
    cluster: String,
    server: ServerWatch,
    objectives: ObjectivesStatus,
    repositories: Vec<RepositoryWatch>,
}

impl Watch {
    /// One that has not looked yet.
    pub fn new(config: &Config, cluster: &str, cluster_config: &ClusterConfig) -> Self {
        let repositories = config.repository.iter();
        Self {
            cluster: cluster.to_owned(),
            server: ServerWatch::new(cluster_config),
            objectives: ObjectivesStatus::from(&config.objectives),
            repositories: repositories
                .map(|repository| RepositoryWatch::new(config, repository, cluster))
                .collect(),
        }
    }

    /// Looks for `patience` at most. What cannot be looked at says so in its part; what takes
    /// longer than that goes on, for the next look.
    pub async fn look(&mut self, patience: Duration) -> ClusterStatus {
        let (time, started) = (Timestamp::now(), Instant::now());
        let repositories = self.repositories.iter_mut();
        let repositories = repositories.map(|repository| repository.look(patience));
        let (server, repositories) =
            futures::join!(self.server.look(patience), join_all(repositories));
        ClusterStatus {
            format: FORMAT,
            cluster: self.cluster.clone(),
            time,
            seconds: started.elapsed().as_secs_f64(),
            objectives: self.objectives.clone(),
            server,
            repositories,
        }
    }
}
