//! The report of a drill, format 1: what JSON holds, and what every other form is made of. What
//! was not tested is said, with the reason: a silent gap is worse than a failure.

mod copies;
#[cfg(test)]
mod document;
mod environment;
mod gaps;
mod loss;
mod rehearsal;
mod source;
mod time;
mod trend;

use std::collections::BTreeMap;

use jiff::Timestamp;
use seawall::repository::keys::BackupId;
use serde::Serialize;

use crate::checks::Check;
use crate::evidence::Step;

pub use copies::{Digit, Digits};
pub use environment::{Environment, Isolation, Limits};
pub use gaps::{NotTested, never_tested};
pub use loss::{Lost, Rpo};
pub use rehearsal::{Lock, Rehearsal, Rewritten, Statement};
pub use source::{Drawn, Identity, Scope, Source, Target};
pub use time::{Dominant, Forecast, Phase, Rto};
pub use trend::Past;

/// Everything that a drill found out.
#[derive(Debug, Clone, Serialize)]
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
    /// What was drilled, and what not.
    pub scope: Scope,
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
    /// The rows of each table by database, as far as they were counted: `schema.table`. The
    /// next drill compares with them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rows: BTreeMap<String, BTreeMap<String, u64>>,
    /// What a migration did to the restored copy, if one was rehearsed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<Rehearsal>,
    /// 3-2-1-1-0.
    pub copies: Digits,
    /// The drills before, oldest first.
    pub trend: Vec<Past>,
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
