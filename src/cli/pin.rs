//! `seawall pin` and `seawall unpin`.

use clap::Parser;
use jiff::Timestamp;

use super::output::{moment, print};
use super::{Common, become_cluster_owner};
use crate::config::RepositoryConfig;
use crate::error::{Error, Exit, Result};
use crate::repository::keys::BackupId;
use crate::repository::pins::Pin;
use crate::repository::{Repository, System};

/// Keep a backup whatever the rules of retention say
///
/// With it stays the WAL that it needs itself: it can be restored to its own end.
#[derive(Debug, Parser)]
pub struct PinArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// A repository; may be repeated [default: all that hold the backup]
    #[arg(long, value_name = "NAME")]
    pub repository: Vec<String>,
    /// Why it stays, for those who see it in a year
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub reason: String,
    /// Until when, such as 2027-01-31T00:00:00Z [default: until it is unpinned]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub until: Option<Timestamp>,
    /// The backup
    pub id: BackupId,
}

/// Leave a backup to the rules of retention again
#[derive(Debug, Parser)]
pub struct UnpinArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    /// A repository; may be repeated [default: all]
    #[arg(long, value_name = "NAME")]
    pub repository: Vec<String>,
    /// The backup
    pub id: BackupId,
}

/// Pins the backup in each repository that holds it.
pub fn run(args: &PinArgs) -> Result<Exit> {
    let now = Timestamp::now();
    if args.until.is_some_and(|until| until <= now) {
        return Err(
            Error::usage("--until is over already").hint("give a time in the future, or none")
        );
    }
    let pin = Pin::new(args.id.clone(), &args.reason, args.until, now);
    each(&args.common, &args.repository, async |systems| {
        let mut pinned = 0;
        for system in systems {
            if system.marker_if_finished(&args.id).await?.is_none() {
                continue;
            }
            system.pin(&pin).await?;
            pinned += 1;
            let until = args
                .until
                .map_or("until it is unpinned".to_owned(), |until| {
                    format!("until {}", moment(until))
                });
            print(&format!(
                "backup {} stays in {} {until}",
                args.id,
                system.repository().place()
            ));
        }
        Ok(pinned)
    })
    .and_then(|(exit, pinned)| found(exit, pinned, &args.id, "backup"))
}

/// Takes the pins of the backup away, in each repository.
pub fn run_unpin(args: &UnpinArgs) -> Result<Exit> {
    each(&args.common, &args.repository, async |systems| {
        let mut removed = 0;
        for system in systems {
            let pins = system.unpin(&args.id).await?;
            if pins > 0 {
                print(&format!(
                    "backup {} is left to the rules again in {}",
                    args.id,
                    system.repository().place()
                ));
            }
            removed += pins;
        }
        Ok(removed)
    })
    .and_then(|(exit, removed)| found(exit, removed, &args.id, "pin of backup"))
}

/// Does `work` in each repository, and says how much was done. One that fails does not hold up
/// the others.
fn each(
    common: &Common,
    names: &[String],
    work: impl AsyncFn(&[System]) -> Result<usize>,
) -> Result<(Exit, usize)> {
    let config = common.load()?;
    let (cluster, cluster_config) = config.cluster(common.cluster.as_deref())?;
    let repositories = config.repositories(names)?;
    become_cluster_owner(cluster_config)?;
    let mut sum = 0;
    let exit = super::run(async {
        let mut exit = Exit::Done;
        for settings in repositories {
            let done = async { work(&systems(settings, cluster).await?).await };
            match done.await {
                Ok(done) => sum += done,
                Err(error) => exit = super::report(&error),
            }
        }
        Ok(exit)
    });
    Ok((exit, sum))
}

async fn systems(settings: &RepositoryConfig, cluster: &str) -> Result<Vec<System>> {
    let repository = Repository::open(settings)?;
    repository.record_for_writing().await?;
    let systems = repository.systems(cluster).await?.into_iter();
    Ok(systems.map(|(system, _)| system).collect())
}

fn found(exit: Exit, number: usize, id: &BackupId, what: &str) -> Result<Exit> {
    if exit == Exit::Done && number == 0 {
        return Err(Error::failed(format!("there is no {what} {id}"))
            .hint("`seawall list` shows backups and their pins"));
    }
    Ok(exit)
}

fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.len() > 500 || text.chars().any(char::is_control) {
        return Err("write one line of at most 500 bytes".to_owned());
    }
    Ok(text.to_owned())
}

fn time(text: &str) -> Result<Timestamp, String> {
    text.trim().parse().map_err(|_| {
        format!("{text:?} is no time with its offset, such as '2027-01-31 00:00:00+00'")
    })
}
