//! The arguments of `seawall drill`, which runs `seawall-drill`.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;

use super::Common;
use super::restore::TargetArgs;

/// Restore into a scratch instance, measure, verify, report
///
/// Exit code 0: passed. 3: it ran to its report, and an objective was missed or a check
/// failed. Anything else: it did not get as far as a report.
#[derive(Debug, Parser)]
#[command(
    name = "seawall-drill",
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true
)]
#[command(group(ArgGroup::new("moment").args(["time", "lsn", "xid", "name", "immediate", "random_time"])))]
pub struct DrillArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: Option<DrillCommand>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub target: TargetArgs,
    /// Recover to a moment drawn from those that retention promises
    #[arg(long, conflicts_with_all = ["timeline", "backup", "end_at_gap"])]
    pub random_time: bool,
    /// Draw the same moment as a drill before, which printed this number
    #[arg(long, value_name = "NUMBER", requires = "random_time")]
    pub seed: Option<u64>,
    /// Stop just before the target instead of just after it
    #[arg(long)]
    pub exclusive: bool,
    /// What is played through
    #[arg(long, value_name = "SCENARIO", default_value = "restore")]
    pub scenario: Scenario,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub rehearsal: RehearsalArgs,
    /// The repository to restore from [default: the first]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
    /// Where the scratch instance is made, in a directory of its own
    /// [default: drill.scratch, then the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// Write report.html, report.json, report.md and report.xml (JUnit) into this directory
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// The moment of failure that the RPO is measured from [default: now]
    #[arg(long, value_name = "TIME")]
    pub failed_at: Option<Timestamp>,
    /// Ask the primary first how far it has come, so that bytes and transactions that would
    /// be lost are exact
    #[arg(long, conflicts_with = "failed_at")]
    pub measure_loss: bool,
    /// What or who ordered this drill, for the report
    #[arg(long, value_name = "WORDS", default_value = "typed by hand")]
    pub trigger: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub limits: LimitArgs,
    /// Leave the scratch instance running, and say how to reach and end it
    #[arg(long)]
    pub keep: bool,
    /// Print the report as JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// What is played through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// The database is restored, as it would be on any day
    Restore,
    /// The primary, its disks and its network are gone: the drill is kept away from them
    TotalLoss,
    /// A migration is tried on the restored copy, and each statement measured
    Rehearsal,
}

/// What a rehearsal runs.
#[derive(Debug, Clone, Args)]
pub struct RehearsalArgs {
    /// The migration to rehearse: SQL statements, as psql would run them
    #[arg(long, value_name = "FILE", required_if_eq("scenario", "rehearsal"))]
    pub sql: Option<PathBuf>,
    /// The database that it changes [default: the only one, or postgres]
    #[arg(long, value_name = "NAME", requires = "sql")]
    pub database: Option<String>,
}

/// What a drill may use of this host; each overrides its setting in `[drill]`.
#[derive(Debug, Clone, Args)]
pub struct LimitArgs {
    /// Use so many processors
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    pub processors: Option<u16>,
    /// Use about so much memory
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// Let the scratch directory grow to this
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<ByteSize>,
}

/// What can be asked about drills that are over.
#[derive(Debug, Clone, Subcommand)]
pub enum DrillCommand {
    /// Past drills: verdicts, and the trend of RPO and RTO against the objectives
    History(HistoryArgs),
}

/// Which drills to list.
#[derive(Debug, Clone, Args)]
pub struct HistoryArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// The repository that holds the results [default: the first]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
    /// The newest so many
    #[arg(long, value_name = "COUNT", default_value = "20")]
    pub last: usize,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}
