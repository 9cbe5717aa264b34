//! `seawall status`.

mod text;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use futures::future::join_all;
use serde::Serialize;

use super::become_cluster_owner;
use super::output::{print, print_json};
use crate::config::{ClusterConfig, Config};
use crate::error::{Error, Exit, Result};
use crate::privileges::is_root;
use crate::status::{ClusterStatus, FORMAT, PATIENCE, Watch};

/// What a single look may take: all of every repository is listed.
const ONCE: Duration = Duration::from_secs(1800);

/// Show up to which moment one can recover, what waits, what is missing, what was proven
///
/// Looks at the server and at every repository of each cluster, all at once. The exit code is 1
/// if something could not be looked at. `seawall check` examines more, and says what to do.
#[derive(Debug, Parser)]
pub struct StatusArgs {
    /// The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// One cluster only [default: all]
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Look again and again, every daemon.look_every, and print each look as one line of JSON
    #[arg(long, requires = "cluster", conflicts_with = "json")]
    pub follow: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// What to log: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: tracing::Level,
}

#[derive(Serialize)]
struct Listing {
    format: u32,
    clusters: Vec<ClusterStatus>,
}

/// Looks and prints.
pub fn run(args: &StatusArgs) -> Result<Exit> {
    let config = Config::load(args.config.as_deref())?;
    if args.follow {
        config.check_schedules()?;
        let (name, cluster) = config.cluster(args.cluster.as_deref())?;
        become_cluster_owner(cluster)?;
        return Ok(super::run(follow(&config, name, cluster)));
    }
    let chosen: Vec<(&str, &ClusterConfig)> = match &args.cluster {
        Some(name) => vec![config.cluster(Some(name))?],
        None => config
            .cluster
            .iter()
            .map(|(name, c)| (name.as_str(), c))
            .collect(),
    };
    let owner = |cluster: &ClusterConfig| {
        let directory = cluster.data_directory.as_ref()?;
        std::fs::metadata(directory).ok().map(|found| found.uid())
    };
    let mut owners = chosen.iter().map(|(_, cluster)| owner(cluster));
    let first = owners.next().flatten();
    if owners.any(|other| other != first) && is_root() {
        return Err(
            Error::usage("the clusters belong to several users, and root is none of them")
                .hint("choose one with --cluster"),
        );
    }
    if let Some((_, cluster)) = chosen.first() {
        become_cluster_owner(cluster)?;
    }
    Ok(super::run(async {
        let looks = chosen.into_iter().map(|(name, cluster)| {
            let mut watch = Watch::new(&config, name, cluster);
            async move { watch.look(ONCE).await }
        });
        let clusters = join_all(looks).await;
        let blind = clusters.iter().any(is_blind);
        let listing = Listing {
            format: FORMAT,
            clusters,
        };
        match args.json {
            true => print_json(&listing)?,
            false => listing
                .clusters
                .iter()
                .for_each(|cluster| print(&text::of(cluster))),
        }
        Ok(if blind { Exit::Failed } else { Exit::Done })
    }))
}

/// Whether something could not be looked at.
fn is_blind(status: &ClusterStatus) -> bool {
    let server = &status.server;
    let unseen = |error: &Option<String>| error.is_some();
    unseen(&server.error)
        || unseen(&server.backlog_error)
        || status
            .repositories
            .iter()
            .any(|repository| unseen(&repository.error) || unseen(&repository.lag_error))
}

async fn follow(config: &Config, name: &str, cluster: &ClusterConfig) -> Result<Exit> {
    let mut watch = Watch::new(config, name, cluster);
    loop {
        let begun = tokio::time::Instant::now();
        let status = watch.look(PATIENCE).await;
        let line = serde_json::to_string(&status)
            .map_err(|error| Error::failed("cannot write JSON").because(error))?;
        print(&line);
        let pause = config.daemon.look_every.0.max(Duration::from_secs(1));
        tokio::time::sleep_until(begun + pause).await;
    }
}
