//! `seawall check`.

use clap::Parser;
use serde::Serialize;

use super::output::{print, print_json};
use super::{Common, become_cluster_owner, connect, init};
use crate::config::HumanDuration;
use crate::doctor::{self, Finding, Level};
use crate::error::{Exit, Result};

/// Examine settings, archiving, gaps, stores, clock, and say what to do about each finding
///
/// Switches a WAL segment and waits until it has arrived in every repository. Exit code 3:
/// there is a problem; the findings say what to do.
#[derive(Debug, Parser)]
pub struct CheckArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// How long to wait for the switched segment
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    pub timeout: HumanDuration,
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Checked<'a> {
    format: u32,
    cluster: &'a str,
    passed: bool,
    findings: &'a [Finding],
}

/// Examines everything.
pub fn run(args: &CheckArgs) -> Result<Exit> {
    let config = args.common.load()?;
    config.check_schedules()?;
    let (name, cluster) = config.cluster(args.common.cluster.as_deref())?;
    become_cluster_owner(cluster)?;
    Ok(super::run(async {
        let command = init::archive_command(&config, name).ok();
        let client = connect(cluster).await;
        let findings = doctor::examine(
            &config,
            name,
            cluster,
            client,
            command.as_deref(),
            args.timeout.0,
        )
        .await;
        let worst = findings
            .iter()
            .map(|finding| finding.level)
            .max()
            .unwrap_or(Level::Problem);
        let passed = worst < Level::Problem;
        if args.json {
            print_json(&Checked {
                format: 1,
                cluster: name,
                passed,
                findings: &findings,
            })?;
        } else {
            findings.iter().for_each(show);
        }
        Ok(if passed { Exit::Done } else { Exit::Missed })
    }))
}

fn show(finding: &Finding) {
    let word = match finding.level {
        Level::Ok => "ok",
        Level::Warning => "warning",
        Level::Problem => "PROBLEM",
    };
    print(&format!(
        "{word:<8} {}: {}",
        finding.subject, finding.finding
    ));
    if let Some(advice) = &finding.advice {
        print(&format!("         -> {advice}"));
    }
}
