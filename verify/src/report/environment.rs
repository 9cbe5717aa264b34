//! Where a drill ran, and what kept it apart from production.

use std::path::PathBuf;

use serde::Serialize;

/// Where a drill ran.
#[derive(Debug, Clone, Serialize)]
pub struct Environment {
    /// Processors of this host.
    pub processors: usize,
    /// Memory of this host in bytes.
    pub memory_bytes: Option<u64>,
    /// The most memory that all processes of the drill took together, in bytes. Files that the
    /// kernel keeps in memory are not part of it.
    pub memory_used_bytes: Option<u64>,
    /// The operating system, as `uname` names it.
    pub system: String,
    /// The scratch directory.
    pub scratch: PathBuf,
    /// Free bytes there before the drill.
    pub scratch_free_bytes: u64,
    /// The most that the scratch directory held, in bytes.
    pub scratch_used_bytes: Option<u64>,
    /// What the drill was allowed.
    pub limits: Limits,
    /// What kept it apart, each looked at while the instance ran.
    pub isolation: Vec<Isolation>,
    /// What had to be different from the source's server so that the instance would start:
    /// settings, libraries, locales, collations.
    pub adapted: Vec<String>,
}

/// What a drill was allowed to use; absent: all that there is.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Limits {
    /// Processors.
    pub processors: Option<usize>,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// The size of the scratch directory in bytes.
    pub disk_bytes: Option<u64>,
    /// How much less urgent than everything else it was: nice(1)'s 0 to 19.
    pub nice: i32,
}

/// One wall between the drill and production.
#[derive(Debug, Clone, Serialize)]
pub struct Isolation {
    /// What is claimed, such as `no TCP port`.
    pub claim: &'static str,
    /// Whether it was found to hold; absent: not tested.
    pub held: Option<bool>,
    /// What was looked at, and seen.
    pub proof: String,
}
