//! `seawall merge`.

use clap::Parser;

use super::output::{print, print_json, size};
use super::{Common, become_cluster_owner};
use crate::backup::merge::{self, Settings};
use crate::error::{Error, Exit, Result};
use crate::repository::Repository;
use crate::repository::keys::BackupId;

/// Make a full backup out of an incremental one and those that it is on top of
///
/// It is made inside the repository and needs no server. Nothing of the chain is deleted:
/// `seawall expire` does that once no rule keeps it.
#[derive(Debug, Parser)]
pub struct MergeArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// The repository [default: the first that holds the backup]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
    /// Print what was made as JSON
    #[arg(long)]
    pub json: bool,
    /// The incremental backup
    pub id: BackupId,
}

/// Merges the chain of the backup.
pub fn run(args: &MergeArgs) -> Result<Exit> {
    let config = args.common.load()?;
    let (name, cluster) = config.cluster(args.common.cluster.as_deref())?;
    become_cluster_owner(cluster)?;
    let wanted: Vec<String> = args.repository.clone().into_iter().collect();
    let repositories = config.repositories(&wanted)?;
    let settings = Settings {
        compression: config.compression,
        jobs: config.backup.jobs,
    };
    Ok(super::run(async {
        let started = std::time::Instant::now();
        for repository in repositories {
            // A copy is filled from its source, and by nobody else.
            if repository.copy_from.is_some() {
                continue;
            }
            let repository = Repository::open(repository)?;
            repository.record_for_writing().await?;
            for (system, _) in repository.systems(name).await? {
                if system.marker_if_finished(&args.id).await?.is_none() {
                    continue;
                }
                let marker = merge::merge(&system, &args.id, &settings).await?;
                if args.json {
                    print_json(&marker)?;
                } else {
                    print(&format!(
                        "backup {} is complete in {}, merged from {}: {} files, {}, stored as {}, in {:.1} s",
                        marker.id,
                        repository.place(),
                        args.id,
                        marker.files,
                        size(marker.plain_bytes),
                        size(marker.stored_bytes),
                        started.elapsed().as_secs_f64()
                    ));
                }
                return Ok(Exit::Done);
            }
        }
        Err(
            Error::unreachable(format!("there is no finished backup {}", args.id))
                .hint("`seawall list` shows them; copies of repositories are not looked at"),
        )
    }))
}
