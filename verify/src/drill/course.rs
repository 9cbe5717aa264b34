//! What a drill has found so far, wherever it ends.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use seawall::repository::catalogue::{Plan, Request};
use seawall_restore::Restored;

use super::copies::Holders;
use super::guest::Guest;
use super::loss::Findings;
use super::recovery_time::RecoveryClock;
use crate::checks::{Check, Rows};
use crate::evidence::Evidence;
use crate::instance::Instance;
use crate::programs::Programs;
use crate::replay::Replay;
use crate::report::{Isolation, Rehearsal};

pub(super) struct Course {
    pub(super) started: Timestamp,
    pub(super) plan: Plan,
    /// What the plan is for: less than what was asked for, where archived WAL breaks off.
    pub(super) request: Request,
    pub(super) programs: Programs,
    pub(super) postgres: PathBuf,
    pub(super) data: PathBuf,
    pub(super) evidence: Evidence,
    pub(super) guest: Guest,
    pub(super) restored: Option<Restored>,
    pub(super) instance: Option<Instance>,
    pub(super) replay: Replay,
    pub(super) version: Option<String>,
    pub(super) clock: RecoveryClock,
    pub(super) checks: Vec<Check>,
    pub(super) warnings: Vec<String>,
    pub(super) rows: Rows,
    pub(super) rehearsal: Option<Rehearsal>,
    pub(super) loss: Findings,
    pub(super) walls: Vec<Isolation>,
    pub(super) holders: Holders,
}

impl Course {
    pub(super) fn new(
        started: Timestamp,
        plan: Plan,
        request: Request,
        programs: Programs,
        postgres: PathBuf,
        scratch: &Path,
        guest: Guest,
    ) -> Self {
        Self {
            started,
            loss: Findings::new(&plan),
            plan,
            request,
            programs,
            postgres,
            data: scratch.join("data"),
            evidence: Evidence::in_directory(scratch),
            guest,
            restored: None,
            instance: None,
            replay: Replay::default(),
            version: None,
            clock: RecoveryClock::default(),
            checks: Vec::new(),
            warnings: Vec::new(),
            rows: Rows::new(),
            rehearsal: None,
            walls: Vec::new(),
            holders: Holders::default(),
        }
    }
}
