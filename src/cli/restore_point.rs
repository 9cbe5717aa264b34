//! `seawall restore-point`.

use std::time::Duration;

use clap::Parser;
use serde::Serialize;

use super::output::{print, print_json};
use super::{Common, become_cluster_owner, connect};
use crate::config::HumanDuration;
use crate::error::{Error, Exit, Result};
use crate::postgres::sql::Client;
use crate::repository::Repository;
use crate::repository::points::RestorePoint;
use crate::wal::recoverable::{self, Awaited, Recoverable};

/// How long --wait waits where nothing else is said.
const PATIENCE: Duration = Duration::from_secs(600);

/// Make a named restore point and record it in every repository that WAL is pushed to
///
/// `seawall restore --name NAME` then finds the backup that leads to it. With --wait it returns
/// once that restore would succeed from every repository, copies included: before a deployment,
/// say. Exit code 1: it is not so after --timeout. Exit code 4: the name was used before. Exit
/// code 5: no backup leads to it.
#[derive(Debug, Parser)]
pub struct RestorePointArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// Switch the segment, and wait until the point can be recovered to
    #[arg(long)]
    pub wait: bool,
    /// How long to wait [default: 10m]
    #[arg(long, value_name = "DURATION", requires = "wait")]
    pub timeout: Option<HumanDuration>,
    /// A repository to wait for; may be repeated [default: all]
    #[arg(long, value_name = "NAME", requires = "wait")]
    pub repository: Vec<String>,
    /// Print the restore point as JSON
    #[arg(long)]
    pub json: bool,
    /// The name
    pub name: String,
}

/// What is printed.
#[derive(Serialize)]
struct Made<'a> {
    #[serde(flatten)]
    point: &'a RestorePoint,
    /// With --wait: from where it can be recovered to.
    #[serde(skip_serializing_if = "Option::is_none")]
    recoverable: Option<Vec<Recoverable>>,
}

/// Makes the restore point.
pub fn run(args: &RestorePointArgs) -> Result<Exit> {
    RestorePoint::check_name(&args.name)?;
    let config = args.common.load()?;
    let (cluster_name, cluster) = config.cluster(args.common.cluster.as_deref())?;
    config.repositories(&args.repository)?;
    become_cluster_owner(cluster)?;
    Ok(super::run(async {
        let client = connect(cluster).await?;
        let id = client.system_identifier().await?;
        let mut awaited = Vec::new();
        if args.wait {
            for repository in config.repositories(&args.repository)? {
                awaited.push(Awaited {
                    system: Repository::open(repository)?.system(cluster_name, id),
                    is_copy: repository.copy_from.is_some(),
                });
            }
            can_be_waited_for(&awaited, &client, &args.name).await?;
        }
        let mut recording = Vec::new();
        for repository in config.push_targets() {
            let name = &repository.name;
            let known = async {
                let system = Repository::open(repository)?.system(cluster_name, id);
                system.known_record().await?;
                Ok::<_, Error>(system)
            };
            let mut names = awaited.iter().map(|a| a.system.repository().name());
            match known.await {
                Ok(system) => recording.push(system),
                Err(error) if !args.wait || names.any(|awaited| awaited == name) => {
                    return Err(error);
                }
                // Nobody waits for it; a restore from there finds the point by reading WAL.
                Err(error) => tracing::warn!("not recorded in {name}: {}", error.one_line()),
            }
        }
        let timeline = client.current_timeline().await?;
        let lsn = client.create_restore_point(&args.name).await?;
        let time = client.clock().await?;
        let point = RestorePoint::new(&args.name, timeline, lsn, time);
        for system in &recording {
            match system.put_point(&point).await {
                // What can be recovered to is judged below.
                Err(error) if args.wait => tracing::warn!("{}", error.one_line()),
                put => put?,
            }
        }
        let mut recoverable = None;
        if args.wait {
            // Its segment would otherwise be archived only once it is full.
            client.switch_wal().await?;
            let timeout = args.timeout.map_or(PATIENCE, |timeout| timeout.0);
            let waited = recoverable::until_recoverable(&awaited, &point, timeout);
            recoverable = Some(waited.await?);
        }
        show(args, &point, recoverable)?;
        Ok(Exit::Done)
    }))
}

/// What waiting could not mend is said before the point is made.
async fn can_be_waited_for(awaited: &[Awaited], client: &Client, name: &str) -> Result<()> {
    let timeline = client.current_timeline().await?;
    let lsn = client.current_wal_lsn().await?;
    for awaited in awaited {
        match recoverable::may_become(awaited, name, timeline, lsn).await {
            // It may answer later.
            Err(error) if error.exit() == Exit::Failed && awaited.is_copy => {
                tracing::warn!("{}", error.one_line());
            }
            checked => checked?,
        }
    }
    Ok(())
}

fn show(
    args: &RestorePointArgs,
    point: &RestorePoint,
    recoverable: Option<Vec<Recoverable>>,
) -> Result<()> {
    if args.json {
        return print_json(&Made { point, recoverable });
    }
    let (lsn, timeline) = (point.lsn, point.timeline);
    let Some(recoverable) = recoverable else {
        print(&format!(
            "restore point {:?} is at {lsn} on timeline {timeline}; it can be reached once the WAL up to there is archived",
            args.name
        ));
        return Ok(());
    };
    print(&format!(
        "restore point {:?} is at {lsn} on timeline {timeline}, and can be recovered to:",
        args.name
    ));
    for Recoverable {
        repository,
        backup,
        timeline,
        after,
    } in &recoverable
    {
        let seconds = after.as_secs_f64();
        let told = timeline.map(|timeline| format!(", with --timeline {timeline}"));
        print(&format!(
            "  from repository {repository}, by backup {backup}, after {seconds:.1} s{}",
            told.unwrap_or_default()
        ));
    }
    let told = recoverable.iter().find_map(|one| one.timeline);
    let told = told.map(|timeline| format!(" --timeline {timeline}"));
    let command = format!(
        "seawall restore --to DIRECTORY --name {}{}",
        quoted(&args.name),
        told.as_deref().unwrap_or_default()
    );
    if told.is_some() {
        super::say(
            "warning: the newest timeline does not pass this point; a restore must be told --timeline",
        );
    }
    print(&format!("to go back to it: {command}"));
    Ok(())
}

/// As a shell takes it. A name holds no quotes.
fn quoted(name: &str) -> String {
    match name.contains(' ') {
        true => format!("'{name}'"),
        false => name.to_owned(),
    }
}
