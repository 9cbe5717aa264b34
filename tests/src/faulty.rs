//! "Fail the Nth call, for every N": stores in memory whose Nth call fails in a given way, once
//! or from then on.

use std::time::Duration;

use seawall::repository::Repository;
use seawall::storage::fault::FaultPlan;
use seawall::storage::{RetryPolicy, Store, StoreSettings};

/// Everything that can go wrong with a call; see `seawall::storage::fault`.
pub const FAULTS: [&str; 16] = [
    "refused", "403", "404", "absent", "nobucket", "500", "503", "full", "hang", "lost", "late",
    "truncate", "break", "garble", "longer", "empty",
];

/// Where stores are called without a program of ours around them.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

/// One way to fail.
#[derive(Debug, Clone)]
pub struct Case {
    /// Which call fails, from 1.
    pub number: u64,
    /// How.
    pub fault: &'static str,
    /// And every call after it as well: the store died.
    pub for_good: bool,
}

impl Case {
    /// The way as a plan.
    pub fn plan(&self) -> FaultPlan {
        self.to_string().parse().expect("it is a plan")
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plus = if self.for_good { "+" } else { "" };
        write!(f, "any@{}{plus}={}", self.number, self.fault)
    }
}

/// Each fault at the call `number`, once and for good.
pub fn cases_at(number: u64) -> Vec<Case> {
    let case = |fault, for_good| Case {
        number,
        fault,
        for_good,
    };
    FAULTS
        .into_iter()
        .flat_map(|fault| [case(fault, false), case(fault, true)])
        .collect()
}

/// Few attempts and short waits: what is tried again is, and what never answers is soon given
/// up.
pub fn impatient() -> RetryPolicy {
    RetryPolicy {
        attempts: 2,
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_millis(2),
        slowest_link: 256 << 10,
        attempt_timeout: Duration::from_millis(150),
        total_deadline: Duration::from_secs(2),
    }
}

/// The store at `url` as it is, and the same one failing as planned.
pub fn with_plan(url: &str, retry: RetryPolicy, plan: &FaultPlan) -> (Repository, Repository) {
    let settings = |retry| StoreSettings {
        retry,
        ..StoreSettings::new(url)
    };
    let sound = Store::open(&settings(RetryPolicy::default())).expect("it opens");
    let faulty = Store::open(&settings(retry)).expect("it opens");
    (
        Repository::over("near", sound),
        Repository::over("near", faulty.with_faults(plan.clone())),
    )
}

/// A store in memory of its own.
pub fn new_memory() -> String {
    format!("memory:///{:032x}", rand::random::<u128>())
}
