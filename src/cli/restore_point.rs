//! `seawall restore-point`.

use clap::Parser;

use super::output::{print, print_json};
use super::{Common, become_cluster_owner, connect};
use crate::error::{Exit, Result};
use crate::repository::Repository;
use crate::repository::points::RestorePoint;

/// Make a named restore point and record it in every repository
///
/// `seawall restore --name NAME` then finds the backup that leads to it.
#[derive(Debug, Parser)]
pub struct RestorePointArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// Print the restore point as JSON
    #[arg(long)]
    pub json: bool,
    /// The name
    pub name: String,
}

/// Makes the restore point.
pub fn run(args: &RestorePointArgs) -> Result<Exit> {
    RestorePoint::check_name(&args.name)?;
    let config = args.common.load()?;
    let (cluster_name, cluster) = config.cluster(args.common.cluster.as_deref())?;
    become_cluster_owner(cluster)?;
    Ok(super::run(async {
        let client = connect(cluster).await?;
        let system_id = client.system_identifier().await?;
        let repositories = Repository::open_all(&config, &[])?;
        let systems: Vec<_> = repositories
            .iter()
            .map(|r| r.system(cluster_name, system_id))
            .collect();
        for system in &systems {
            system.known_record().await?;
        }
        let timeline = client.current_timeline().await?;
        let lsn = client.create_restore_point(&args.name).await?;
        let time = client.clock().await?;
        let point = RestorePoint::new(&args.name, timeline, lsn, time);
        for system in &systems {
            system.put_point(&point).await?;
        }
        if args.json {
            print_json(&point)?;
        } else {
            print(&format!(
                "restore point {:?} is at {lsn} on timeline {timeline}; it can be reached once the WAL up to there is archived",
                args.name
            ));
        }
        Ok(Exit::Done)
    }))
}
