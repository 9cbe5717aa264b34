//! `seawall copy`.

use std::time::Duration;

use clap::Parser;
use serde::Serialize;

use super::output::{print, print_json, size};
use super::{Common, become_cluster_owner, interrupted};
use crate::config::{Config, HumanDuration, RepositoryConfig, RetentionConfig};
use crate::copy::{Copied, Copier, Lag, Settings, lag};
use crate::error::{Error, Exit, Result};
use crate::postgres::SystemId;
use crate::repository::Repository;

/// How long a repository that cannot be opened is left alone at least.
const OPEN_AGAIN: Duration = Duration::from_secs(10);

/// The processor belongs to the database first.
const NICE: i32 = 10;

/// Bring repositories that are copies what their sources hold, once or continuously
///
/// Copies WAL and base backups into every repository that has copy_from, verified by digest.
/// May be interrupted at any time: the copy is then an older one, and the next call goes on.
/// What is damaged at the source is not copied: it is named, the rest goes on, and the exit
/// code is 1.
#[derive(Debug, Parser)]
pub struct CopyArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// A repository to fill; may be repeated [default: all that have copy_from]
    #[arg(long, value_name = "NAME")]
    pub repository: Vec<String>,
    /// Go on until SIGTERM or Ctrl-C, and wait where a store is away
    #[arg(long, conflicts_with = "dry_run")]
    pub follow: bool,
    /// How often new WAL is looked for
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    pub interval: HumanDuration,
    /// Objects that are copied at once [default: the processors, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    pub jobs: Option<u16>,
    /// Only say what the copies lack
    #[arg(long)]
    pub dry_run: bool,
    /// Print what was done, and what is lacking, as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Report {
    format: u32,
    cluster: String,
    repositories: Vec<Filled>,
}

/// One copy.
#[derive(Serialize)]
struct Filled {
    repository: String,
    copy_from: String,
    /// What was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    copied: Option<Copied>,
    /// What is lacking now.
    systems: Vec<Lagging>,
    /// Why less is done, or known, than was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct Lagging {
    system_id: SystemId,
    #[serde(flatten)]
    lag: Lag,
}

/// Copies.
pub fn run(args: &CopyArgs) -> Result<Exit> {
    let config = args.common.load()?;
    let (cluster, cluster_config) = config.cluster(args.common.cluster.as_deref())?;
    let targets = targets(&config, &args.repository)?;
    become_cluster_owner(cluster_config)?;
    lower_priority();
    let mut settings = Settings::of(cluster);
    settings.interval = args.interval.0;
    settings.jobs = args.jobs.map_or(settings.jobs, usize::from);
    // Each copy sees to signals itself: it has leases to end.
    Ok(super::run_on_all_processors(work(
        args, &config, &targets, &settings,
    )))
}

/// The repositories to fill.
fn targets<'a>(config: &'a Config, names: &[String]) -> Result<Vec<&'a RepositoryConfig>> {
    let mut targets = config.repositories(names)?;
    if names.is_empty() {
        targets.retain(|repository| repository.copy_from.is_some());
    }
    if targets.is_empty() {
        return Err(Error::usage("no repository has copy_from")
            .at(config.path.display())
            .hint("give the copy's [[repository]] copy_from = \"NAME\", and make it with `seawall init`"));
    }
    Ok(targets)
}

/// Low priority; where that is not allowed, the usual one.
fn lower_priority() {
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::debug!("cannot lower the priority: {error}");
    }
}

async fn work(
    args: &CopyArgs,
    config: &Config,
    targets: &[&RepositoryConfig],
    settings: &Settings,
) -> Result<Exit> {
    // All are opened before the first is filled: what is wrong is said at once, for `--follow`
    // has no end at which it could be. One wrong repository must not keep the others from being
    // filled for good.
    let open = |target: &&_| Copier::new(config, target, settings.clone());
    let copiers: Vec<_> = targets.iter().map(open).collect();
    let goes_on = args.follow && copiers.iter().any(Result::is_ok);
    let mut opened = Vec::new();
    for (target, copier) in targets.iter().zip(copiers) {
        match copier {
            Err(error) if error.exit() == Exit::Usage && !goes_on => return Err(error),
            Err(error) => {
                super::report(&error);
                opened.push((*target, Err(error)));
            }
            Ok(copier) => opened.push((*target, Ok(copier))),
        }
    }
    let one = |(target, copier)| fill(args, config, target, settings, copier);
    let filled = futures::future::join_all(opened.into_iter().map(one)).await;
    let mut exit = Exit::Done;
    let mut repositories = Vec::new();
    for (filled, ended) in filled {
        if ended != Exit::Done && exit == Exit::Done {
            exit = ended;
        }
        repositories.push(filled);
    }
    match args.json {
        true => print_json(&Report {
            format: 1,
            cluster: settings.cluster.clone(),
            repositories,
        })?,
        false => repositories.iter().for_each(show),
    }
    Ok(exit)
}

/// Tries again until the repositories can be opened; `None` after a signal. What fails does not
/// end the process: it fills other copies.
async fn opened_later(
    config: &Config,
    target: &RepositoryConfig,
    settings: &Settings,
) -> Option<Copier> {
    let opened = async {
        loop {
            tokio::time::sleep(settings.interval.max(OPEN_AGAIN)).await;
            match Copier::new(config, target, settings.clone()) {
                Ok(copier) => {
                    tracing::info!("copying to {} goes on", copier.aim().place());
                    return copier;
                }
                Err(error) => tracing::debug!("{}", error.one_line()),
            }
        }
    };
    tokio::select! {
        copier = opened => Some(copier),
        () = interrupted() => None,
    }
}

async fn fill(
    args: &CopyArgs,
    config: &Config,
    target: &RepositoryConfig,
    settings: &Settings,
    copier: Result<Copier>,
) -> (Filled, Exit) {
    let (copier, error) = match copier {
        Ok(copier) => (Some(copier), None),
        Err(error) if args.follow => (opened_later(config, target, settings).await, Some(error)),
        Err(error) => (None, Some(error)),
    };
    let Some(copier) = copier else {
        let filled = Filled {
            repository: target.name.clone(),
            copy_from: target.copy_from.clone().unwrap_or_default(),
            copied: None,
            systems: Vec::new(),
            error: error.as_ref().map(Error::one_line),
        };
        return (filled, error.map_or(Exit::Failed, |error| error.exit()));
    };
    let mut failed = None;
    if args.follow {
        tokio::select! {
            () = copier.follow() => {}
            () = interrupted() => tracing::info!("copying to {} ends", copier.aim().place()),
        }
    } else if !args.dry_run {
        copier.sweep().await;
        tokio::select! {
            done = copier.once() => failed = done.err(),
            () = interrupted() => failed = Some(Error::failed("interrupted")),
        }
    }
    copier.release().await;
    let mut filled = Filled {
        repository: target.name.clone(),
        copy_from: copier.source().name().to_owned(),
        copied: (!args.dry_run).then(|| copier.report()),
        systems: Vec::new(),
        error: None,
    };
    // After a signal nobody waits for it.
    if !args.follow && failed.is_none() {
        tokio::select! {
            lags = lags(copier.source(), copier.aim(), &target.retention, &settings.cluster) => match lags {
                Ok(systems) => filled.systems = systems,
                Err(error) => failed = Some(error),
            },
            () = interrupted() => failed = Some(Error::failed("interrupted")),
        }
    }
    let mut exit = match &filled.copied {
        Some(copied) if !copied.not_copied.is_empty() => Exit::Failed,
        _ => Exit::Done,
    };
    if let Some(error) = failed {
        filled.error = Some(error.one_line());
        exit = super::report(&error);
    }
    (filled, exit)
}

async fn lags(
    source: &Repository,
    aim: &Repository,
    rules: &RetentionConfig,
    cluster: &str,
) -> Result<Vec<Lagging>> {
    let mut lags = Vec::new();
    source.record().await?;
    aim.record().await?;
    for (system, _) in source.systems(cluster).await? {
        let aim = aim.system(cluster, system.id());
        lags.push(Lagging {
            system_id: system.id(),
            lag: lag(&system, &aim, rules).await?,
        });
    }
    Ok(lags)
}

fn show(filled: &Filled) {
    if let Some(copied) = &filled.copied {
        print(&format!(
            "repository {}: copied from {}: {} WAL objects ({}), {} backups ({} objects, {}), {} restore points",
            filled.repository,
            filled.copy_from,
            copied.wal_objects,
            size(copied.wal_bytes),
            copied.backups.len(),
            copied.backup_objects,
            size(copied.backup_bytes),
            copied.restore_points,
        ));
        for (key, why) in &copied.not_copied {
            print(&format!("NOT COPIED: {key}: {why}"));
        }
    }
    for system in &filled.systems {
        print(&format!(
            "repository {}, system {}: {}",
            filled.repository,
            system.system_id,
            describe(&system.lag, &filled.copy_from)
        ));
    }
}

/// A lag in words.
pub(super) fn describe(lag: &Lag, source: &str) -> String {
    if lag.is_none() {
        return format!("holds all that {source} holds");
    }
    let backups = match lag.backups.as_slice() {
        [] => String::new(),
        [one] => format!(", backup {one}"),
        [first, ..] => format!(", {} backups from {first} on", lag.backups.len()),
    };
    format!(
        "lacks {} WAL segments of {source} ({}, the oldest for {}){backups}",
        lag.segments,
        size(lag.wal_bytes),
        humantime::format_duration(std::time::Duration::from_secs(lag.seconds as u64)),
    )
}
