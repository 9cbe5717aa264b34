//! The arguments of `seawall drill`, which runs `seawall-drill`.

use std::path::PathBuf;

use clap::Parser;
use jiff::Timestamp;

use super::Common;
use super::restore::TargetArgs;

/// Restore into a scratch instance, measure, verify, report
///
/// Exit code 0: passed. 3: it ran to its report, and an objective was missed or a check
/// failed. Anything else: it did not get as far as a report.
#[derive(Debug, Parser)]
#[command(name = "seawall-drill", version, max_term_width = 100)]
pub struct DrillArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub target: TargetArgs,
    /// Stop just before the target instead of just after it
    #[arg(long)]
    pub exclusive: bool,
    /// The repository to restore from [default: the first]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
    /// Where the scratch instance is made, in a directory of its own
    /// [default: drill.scratch, then the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// Write report.json and report.md into this directory
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// The moment of failure that the RPO is measured from [default: now]
    #[arg(long, value_name = "TIME")]
    pub failed_at: Option<Timestamp>,
    /// Leave the scratch instance running, and say how to reach and end it
    #[arg(long)]
    pub keep: bool,
    /// Print the report as JSON instead of text
    #[arg(long)]
    pub json: bool,
}
