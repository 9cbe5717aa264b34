//! `seawall expire`.

use std::time::Duration;

use clap::Parser;
use jiff::Timestamp;
use serde::Serialize;

use super::output::{moment, print, print_json, table};
use super::{Common, become_cluster_owner};
use crate::config::{Config, RepositoryConfig};
use crate::error::{Error, Exit, Result};
use crate::repository::Repository;
use crate::retention::expire::{Expired, Settings, look};
use crate::retention::plan::SystemPlan;
use crate::retention::{self, Inventory, Other, Relation};

/// Delete backups and WAL that no rule keeps
///
/// Works in two steps: what is to go is named, and deleted by a later run, once
/// retention.delete_after is over and nothing speaks against it any more. Run it every day.
#[derive(Debug, Parser)]
pub struct ExpireArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// A repository; may be repeated [default: all that have rules]
    #[arg(long, value_name = "NAME")]
    pub repository: Vec<String>,
    /// Only say what would go and, of what stays, why; nothing is written
    #[arg(long)]
    pub dry_run: bool,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Report {
    format: u32,
    dry_run: bool,
    repositories: Vec<ReportedRepository>,
}

#[derive(Serialize)]
struct ReportedRepository {
    name: String,
    url: String,
    /// Why it was not done.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(flatten)]
    expired: Expired,
}

/// Expires in each repository. One that fails does not hold up the others.
pub fn run(args: &ExpireArgs) -> Result<Exit> {
    let config = args.common.load()?;
    let (cluster, cluster_config) = config.cluster(args.common.cluster.as_deref())?;
    let mut repositories = config.repositories(&args.repository)?;
    if args.repository.is_empty() {
        repositories.retain(|repository| repository.retention.has_rules());
    }
    if repositories.is_empty() {
        return Err(
            Error::usage("no repository has rules of retention: nothing ever goes")
                .at(config.path.display())
                .hint("give one [repository.retention] with recovery_window = \"14d\", say"),
        );
    }
    if !args.dry_run {
        become_cluster_owner(cluster_config)?;
    }
    Ok(super::run(async {
        let mut report = Report {
            format: 1,
            dry_run: args.dry_run,
            repositories: Vec::new(),
        };
        let mut exit = Exit::Done;
        for repository in repositories {
            let done = expire(&config, cluster, repository, args.dry_run).await;
            let (expired, error) = match done {
                Ok(expired) => (expired, None),
                Err(error) => {
                    exit = match exit {
                        Exit::Done => super::report(&error),
                        _ => {
                            super::report(&error);
                            Exit::Failed
                        }
                    };
                    (Expired::default(), Some(error.one_line()))
                }
            };
            report.repositories.push(ReportedRepository {
                name: repository.name.clone(),
                url: repository.url.clone(),
                error,
                expired,
            });
        }
        if args.json {
            print_json(&report)?;
        } else {
            for repository in &report.repositories {
                print_repository(repository, args.dry_run);
            }
        }
        Ok(exit)
    }))
}

async fn expire(
    config: &Config,
    cluster: &str,
    wanted: &RepositoryConfig,
    dry_run: bool,
) -> Result<Expired> {
    let repository = Repository::open(wanted)?;
    let others = others(config, cluster, wanted).await;
    let settings = Settings {
        cluster,
        rules: &wanted.retention,
        wait: wait(wanted)?,
        others: &others,
        clock: &Timestamp::now,
    };
    if dry_run {
        return Ok(Expired {
            plan: look(&repository, &settings).await?,
            ..Expired::default()
        });
    }
    retention::expire(&repository, &settings).await
}

/// The other repositories that have a say: copies of this one, what it is filled from, and all
/// of them where so many must hold a backup before it goes.
async fn others(config: &Config, cluster: &str, wanted: &RepositoryConfig) -> Vec<Other> {
    let mut others = Vec::new();
    for other in &config.repository {
        let relation = if other.copy_from.as_ref() == Some(&wanted.name) {
            Relation::Copy
        } else if wanted.copy_from.as_ref() == Some(&other.name) {
            Relation::Source
        } else {
            Relation::Unrelated
        };
        let counts = relation != Relation::Unrelated || wanted.retention.minimum_copies.is_some();
        if other.name == wanted.name || !counts {
            continue;
        }
        let asked = async {
            let repository = Repository::open(other)?;
            Inventory::load(&repository, cluster, Timestamp::now()).await
        };
        let inventory = asked.await.map_err(|error| {
            tracing::warn!(
                "repository {} is taken to lack everything: {}",
                other.name,
                error.one_line()
            );
            error.what().to_owned()
        });
        others.push(Other {
            name: other.name.clone(),
            relation,
            rules: other.retention.clone(),
            inventory,
        });
    }
    others
}

/// How long what is to go waits. In builds for tests `SEAWALL_TEST_DELETE_AFTER` says so: no
/// test can wait as long as the shortest that a configuration may ask for.
fn wait(repository: &RepositoryConfig) -> Result<Duration> {
    #[cfg(feature = "fault-injection")]
    if let Ok(text) = std::env::var("SEAWALL_TEST_DELETE_AFTER") {
        let wait: crate::config::HumanDuration = text
            .parse()
            .map_err(|error| Error::usage(format!("{text:?} is no duration")).because(error))?;
        return Ok(wait.0);
    }
    Ok(repository.retention.wait())
}

fn print_repository(repository: &ReportedRepository, dry_run: bool) {
    print(&format!(
        "repository {} ({})",
        repository.name, repository.url
    ));
    if let Some(error) = &repository.error {
        print(&format!("  NOT EXPIRED: {error}"));
        return;
    }
    let expired = &repository.expired;
    for system in &expired.plan.systems {
        print(&format!("\nsystem {}", system.system_id));
        print_system(system);
    }
    if dry_run {
        return;
    }
    print(&format!(
        "deleted: {} backups, {} objects of WAL, {} objects in all",
        expired.deleted_backups.len(),
        expired.deleted_wal_objects,
        expired.deleted_objects
    ));
    if let Some(not_before) = expired.not_before {
        print(&format!(
            "named: {} backups and {} ranges of WAL, which go with the next run after {}",
            expired.named_backups,
            expired.named_wal_ranges,
            moment(not_before)
        ));
    }
}

fn print_system(system: &SystemPlan) {
    for why in &system.nothing_goes {
        print(&format!("NOTHING GOES: {why}"));
    }
    let rows = system.backups.iter().map(|backup| {
        let verdict = if backup.goes { "goes" } else { "stays" };
        let because = match backup.goes {
            true => "no rule keeps it".to_owned(),
            false => backup.because.join("; "),
        };
        vec![backup.id.to_string(), verdict.to_owned(), because]
    });
    if system.backups.is_empty() {
        print("no finished backup");
    } else {
        let header = ["backup", "", "because"];
        print(&table(&header, rows.collect()));
    }
    for id in &system.unfinished {
        print(&format!(
            "goes: {id}, which was never finished, and nobody has touched it for long"
        ));
    }
    for range in &system.wal {
        let segments = range.last_number - range.first_number + 1;
        print(&format!(
            "goes: WAL from {} to {} ({segments} segments)",
            range.first, range.last
        ));
    }
    if let Some(since) = system.wal_stays_since {
        print(&format!(
            "a backup is running: WAL that was stored since {} stays for now",
            moment(since)
        ));
    }
}
