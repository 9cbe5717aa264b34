//! The report of a drill, format 1: what JSON holds, and what the texts are made of. What was
//! not tested is said, with the reason: a silent gap is worse than a failure.

use std::path::PathBuf;

use jiff::Timestamp;
use seawall::postgres::{Lsn, SystemId, TimelineId};
use seawall::repository::keys::BackupId;
use serde::Serialize;

use crate::checks::Check;
use crate::evidence::Step;

/// Everything that a drill found out.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The format of this object.
    pub format: u32,
    /// The drill's name.
    pub id: String,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// The verdict in one word; `reasons` says why not.
    pub passed: bool,
    /// Why it did not pass; empty if it did.
    pub reasons: Vec<String>,
    /// The backup that was restored.
    pub backup: BackupId,
    /// Who and what.
    pub identity: Identity,
    /// Where it came from.
    pub source: Source,
    /// Where it was to go, and how far it came.
    pub target: Target,
    /// How much was lost.
    pub rpo: Rpo,
    /// How long it took.
    pub rto: Rto,
    /// Where it ran.
    pub environment: Environment,
    /// What was checked, and what was not.
    pub checks: Vec<Check>,
    /// What no drill tests, and why.
    pub not_tested: Vec<NotTested>,
    /// What the person should know.
    pub warnings: Vec<String>,
    /// Every command, in order: the runbook.
    pub evidence: Vec<Step>,
    /// The end of the scratch server's log.
    pub server_log: Vec<String>,
    /// What is left of the scratch instance.
    pub teardown: String,
}

/// Who ran what.
#[derive(Debug, Serialize)]
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
    /// The user that ran the drill.
    pub user: String,
    /// The host.
    pub host: String,
    /// The command line.
    pub command: Vec<String>,
}

/// What was restored.
#[derive(Debug, Serialize)]
pub struct Source {
    /// The repository's name.
    pub repository: String,
    /// Its URL.
    pub url: String,
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
    /// Whether the drill connected to the primary or read its disks. It never does.
    pub primary_touched: bool,
}

/// The target, asked for and reached.
#[derive(Debug, Serialize)]
pub struct Target {
    /// `latest`, `time`, `lsn`, `xid`, `name`, `immediate`.
    pub kind: &'static str,
    /// Its value.
    pub value: Option<String>,
    /// Whether the target itself was replayed.
    pub inclusive: bool,
    /// The timeline that was followed.
    pub timeline: TimelineId,
    /// The start of the last record that was replayed.
    pub reached_lsn: Option<Lsn>,
    /// The last transaction that was replayed.
    pub reached_time: Option<Timestamp>,
    /// Why recovery stopped.
    pub why: String,
}

/// The recovery point.
#[derive(Debug, Serialize)]
pub struct Rpo {
    /// The objective in seconds.
    pub objective_seconds: Option<f64>,
    /// The measured value in seconds. Absent where a target was chosen or recovery failed.
    pub measured_seconds: Option<f64>,
    /// Whether it was to be measured: nobody chose a target.
    #[serde(skip)]
    pub wanted: bool,
    /// True: the loss is at most this.
    pub upper_bound: bool,
    /// How it was measured.
    pub method: String,
    /// The moment that it was measured from.
    pub failed_at: Timestamp,
}

/// The recovery time.
#[derive(Debug, Serialize)]
pub struct Rto {
    /// The objective in seconds.
    pub objective_seconds: Option<f64>,
    /// From the decision to recover to the first answer, in seconds. Absent if it never came.
    pub measured_seconds: Option<f64>,
    /// Its parts, in order.
    pub phases: Vec<Phase>,
    /// The longest part.
    pub dominated_by: Option<String>,
}

/// A part of the recovery time.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
    /// What it moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// Where a drill ran, and what kept it apart from production.
#[derive(Debug, Serialize)]
pub struct Environment {
    /// Processors that it might use.
    pub processors: usize,
    /// The scratch directory.
    pub scratch: PathBuf,
    /// What kept it apart.
    pub isolation: Vec<&'static str>,
}

/// Something that a reader may look for in a report and that no drill tests.
#[derive(Debug, Clone, Serialize)]
pub struct NotTested {
    /// What.
    pub field: &'static str,
    /// Why not.
    pub why: &'static str,
}

/// What no drill tests. Said in every report: a silent gap looks like a check that passed.
pub fn never_tested() -> Vec<NotTested> {
    let gaps = [
        (
            "trigger and scope",
            "a drill does not know who ordered it; it restores one whole cluster",
        ),
        (
            "lock state and region of the repository",
            "the store is asked for objects only, not for its retention locks or its place",
        ),
        (
            "bytes and transactions lost",
            "the primary is not asked, so what it had written behind the last archived WAL is unknown",
        ),
        (
            "clock skew",
            "the primary is not asked; `seawall check` compares the clocks",
        ),
        (
            "phases detect, decrypt and warm",
            "the clock starts at the decision to recover; objects are not encrypted; caches are not warmed",
        ),
        (
            "memory, disk and network",
            "processors and bytes fetched are recorded, the load on the host is not",
        ),
        (
            "the transaction id reached",
            "the server's log names it only where recovery stops at a transaction",
        ),
        (
            "signatures",
            "objects carry digests, which tell damage; they are not signed",
        ),
        ("keys", "objects are not encrypted by Seawall"),
        (
            "comparison with the source",
            "the primary is not touched; add a [[drill.check]] with what must be there",
        ),
        (
            "trend",
            "one report is one drill; the repository keeps all of them",
        ),
        (
            "3-2-1-1-0",
            "one repository is drilled; copies elsewhere need drills of their own",
        ),
    ];
    gaps.map(|(field, why)| NotTested { field, why }).into()
}
