//! What a drill has found so far, wherever it ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seawall::repository::catalogue::Plan;
use seawall_restore::Restored;

use super::guest::Guest;
use super::recovery_time::RecoveryClock;
use crate::checks::Check;
use crate::evidence::Evidence;
use crate::instance::Instance;
use crate::programs::Programs;
use crate::replay::Replay;
use crate::report::Rehearsal;

pub(super) struct Course {
    pub(super) plan: Plan,
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
    pub(super) rows: BTreeMap<String, BTreeMap<String, u64>>,
    pub(super) rehearsal: Option<Rehearsal>,
}

impl Course {
    pub(super) fn new(
        plan: Plan,
        programs: Programs,
        postgres: PathBuf,
        scratch: &Path,
        guest: Guest,
    ) -> Self {
        Self {
            plan,
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
            rows: BTreeMap::new(),
            rehearsal: None,
        }
    }
}
