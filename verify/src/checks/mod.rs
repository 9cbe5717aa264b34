//! Questions to what was restored: PostgreSQL's own programs, what the catalogs promise, what the
//! last drill saw, and the owner's SQL.
//!
//! Nothing here changes what it asks about: sessions are read-only. A check that cannot be made
//! says so, as one that was not tested; whatever it finds is a result and never an error.

mod amcheck;
mod constraints;
mod last;
mod programs;
mod rows;
mod sequences;
mod session;
mod sql;
mod wal;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use seawall::config::DrillConfig;
use serde::Serialize;

use crate::budget::Budget;
use crate::evidence::{Evidence, Ran, round, tail};
use crate::instance::Instance;
use crate::programs::Programs;

pub use last::Last;
pub use programs::{page_checksums, verify_backup};
pub use wal::{
    broken_off, clocks, contiguity, contradicts, digests, end_of_wal, never_open, records,
};

/// How long each check that looks at many tables may take, unless the configuration says.
const BUDGET: Duration = Duration::from_secs(300);

/// The names that a detail lists before it only counts.
const NAMES: usize = 10;

/// The rows of each table by database.
pub type Rows = BTreeMap<String, BTreeMap<String, u64>>;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was made, and all was well.
    Passed,
    /// It was made, and something is wrong.
    Failed,
    /// It was not made; the detail says why.
    NotTested,
}

/// One check with its result.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found, or why it was not tested.
    pub detail: String,
    /// What the database answered to a question of the owner's; the next drill compares with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// How long it took.
    pub seconds: f64,
    /// Whether it looked into the restored database: a drill that checked nothing cannot pass.
    #[serde(skip)]
    pub proves: bool,
}

impl Check {
    /// A result.
    pub fn new(name: impl Into<String>, outcome: Outcome, detail: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            outcome,
            detail: detail.into(),
            answer: None,
            seconds: 0.0,
            proves: false,
        }
    }

    /// A check that was not made.
    pub fn not_tested(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(name, Outcome::NotTested, why)
    }

    fn failed(name: &str, why: impl Into<String>) -> Self {
        Self::new(name, Outcome::Failed, why)
    }

    /// The same, with the time since `started`.
    fn took(self, started: Instant) -> Self {
        Self {
            seconds: round(started.elapsed().as_secs_f64()),
            ..self
        }
    }

    /// The same, as one that looked into the restored database.
    fn proving(self) -> Self {
        Self {
            proves: true,
            ..self
        }
    }

    fn of_run(name: &str, ran: &Ran, well: &str, started: Instant) -> Self {
        let (outcome, detail) = if ran.success {
            (Outcome::Passed, well.to_owned())
        } else {
            (Outcome::Failed, tail(&ran.text, 10))
        };
        Self::new(name, outcome, detail).took(started).proving()
    }
}

/// What an examination needs to know.
pub struct Examination<'a> {
    /// What is to be checked, and how much of it.
    pub config: &'a DrillConfig,
    /// The moment of failure.
    pub failed_at: Timestamp,
    /// The last drill, which numbers are compared with.
    pub last: &'a Last,
    /// Relations that are read at once.
    pub jobs: usize,
    /// PostgreSQL's programs.
    pub programs: &'a Programs,
    /// Where each command is recorded.
    pub evidence: &'a Evidence,
}

/// What an examination found.
#[derive(Debug, Default)]
pub struct Findings {
    /// The checks, in the order in which they were made.
    pub checks: Vec<Check>,
    /// The rows of each table, as far as they were counted.
    pub rows: Rows,
    /// What the owner should know, and no drill fails for.
    pub warnings: Vec<String>,
}

/// Asks the running instance everything that there is to ask.
pub async fn examine(about: &Examination<'_>, instance: &Instance) -> Findings {
    let mut findings = Findings::default();
    findings.warnings.extend(about.last.warning());
    for check in &about.config.check {
        let answer = sql::ask(instance, check, about.failed_at, about.last, about.budget()).await;
        findings.checks.push(answer);
    }
    rows::count(about, instance, about.budget(), &mut findings).await;
    constraints::validate(instance, about.budget(), &mut findings).await;
    sequences::compare(instance, about.budget(), &mut findings).await;
    let amcheck = amcheck::run(about, instance).await;
    findings.checks.push(amcheck);
    findings
}

impl Examination<'_> {
    fn budget(&self) -> Budget {
        Budget::new(self.config.check_budget.map_or(BUDGET, |budget| budget.0))
    }
}

/// The first few names, and how many more there are.
fn names(all: &[String]) -> String {
    let mut text = all[..all.len().min(NAMES)].join(", ");
    if all.len() > NAMES {
        text += &format!(" and {} more", all.len() - NAMES);
    }
    text
}
