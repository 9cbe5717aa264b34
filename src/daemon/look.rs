//! Before something is run: has somebody else done it already, is somebody at it, and are
//! server and repository there at all?
//!
//! Several daemons may serve one cluster, its standbys' among them. Each claims what it is about
//! to do by a lease; of two claims the older one goes first, and who waits looks again, finds
//! the result, and is done. Leases only inform: where they cannot be written or are ignored,
//! the same is done twice, which costs and harms nothing.

use std::time::Duration;

use jiff::Timestamp;

use super::operation::{Job, Operation};
use crate::config::{ClusterConfig, Config};
use crate::error::{Error, Result};
use crate::postgres::control::ControlFile;
use crate::postgres::sql::Client;
use crate::repository::Repository;
use crate::repository::keys::BackupKind;
use crate::repository::leases::{Held, Lease, Work};

/// What a look may take. What takes longer is as good as away.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between one's claim and the look at those of others: who looked before the claim could be
/// seen has begun by then, and shows it by a lease of its own.
const SETTLE: Duration = Duration::from_secs(2);

/// What a look found.
pub enum Look {
    /// It may begin; the claim is held while it runs.
    Go(Option<Held>),
    /// Somebody has done it; by what that is seen.
    Done(String),
    /// Not now: somebody is at it, or there is nothing to do it with.
    NotNow(String),
    /// Server or repository are away.
    Away(String),
}

/// Looks whether `job` may begin for the time `due` on its schedule.
pub async fn look(config: &Config, job: &Job, due: Timestamp) -> Look {
    match tokio::time::timeout(PATIENCE, look_closely(config, job, due)).await {
        Ok(Ok(look)) => look,
        // These two look after several repositories: that the first is away does not mean
        // that there is nothing to do.
        Ok(Err(_)) | Err(_) if matches!(job.operation, Operation::Copy | Operation::Expire) => {
            Look::Go(None)
        }
        Ok(Err(error)) => Look::Away(error.one_line()),
        Err(_) => Look::Away(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

async fn look_closely(config: &Config, job: &Job, due: Timestamp) -> Result<Look> {
    let cluster = config
        .cluster
        .get(&job.cluster)
        .ok_or_else(|| Error::usage(format!("there is no cluster {:?} any more", job.cluster)))?;
    let near = config
        .push_targets()
        .next()
        .ok_or_else(|| Error::usage("no repository is configured"))?;
    let repository = Repository::open(near)?;
    repository.record().await?;
    if let Some(found) = result_since(&repository, cluster, job, due).await? {
        return Ok(Look::Done(found));
    }
    if job.operation == Operation::Full
        && let Some(look) = server(cluster).await
    {
        return Ok(look);
    }
    if job.operation == Operation::Drill && !has_backup(&repository, job).await? {
        return Ok(Look::NotNow("there is no base backup yet".into()));
    }
    let claim = repository
        .claim(&job.cluster, &job.operation.to_string())
        .await;
    tokio::time::sleep(SETTLE).await;
    let look = match somebody_at_it(&repository, job, &claim).await {
        Ok(None) => match result_since(&repository, cluster, job, due).await {
            Ok(None) => return Ok(Look::Go(Some(claim))),
            Ok(Some(found)) => Ok(Look::Done(found)),
            Err(error) => Err(error),
        },
        Ok(Some(lease)) => Ok(Look::NotNow(format!(
            "{} is at it since {}",
            lease.holder,
            lease.since.strftime("%Y-%m-%d %H:%M:%S+00")
        ))),
        Err(error) => Err(error),
    };
    claim.release().await;
    look
}

/// Whether the server can be backed up; none if so, or if only the backup itself can tell.
async fn server(cluster: &ClusterConfig) -> Option<Look> {
    match Client::of_cluster(cluster).await {
        Ok(client) => match client.is_in_recovery().await {
            Ok(true) => Some(Look::NotNow("the server is a standby".into())),
            _ => None,
        },
        Err(error) if error.is_retryable() => Some(Look::Away(error.one_line())),
        Err(_) => None,
    }
}

/// What was done since `due`, by whomever. Times are those of the hosts that did it.
async fn result_since(
    repository: &Repository,
    cluster: &ClusterConfig,
    job: &Job,
    due: Timestamp,
) -> Result<Option<String>> {
    // Both begin with the time at which they began.
    let first = due.strftime("%Y%m%dT%H%M%SZ").to_string();
    match job.operation {
        Operation::Full => {
            let control = ControlFile::read(&cluster.data_directory)?;
            let system = repository.system(&job.cluster, control.system_id);
            for id in system.backup_ids().await?.into_iter().rev() {
                if id.kind() != BackupKind::Full || id.as_str() < first.as_str() {
                    continue;
                }
                if let Some(Ok(_)) = system.marker_if_finished(&id).await? {
                    return Ok(Some(format!("there is base backup {id}")));
                }
            }
            Ok(None)
        }
        Operation::Drill => {
            let ids = repository.drill_ids(&job.cluster).await?;
            let found = ids.into_iter().rfind(|id| *id >= first);
            Ok(found.map(|id| format!("there is drill {id}")))
        }
        Operation::Copy | Operation::Expire => Ok(None),
    }
}

/// Whether there is anything to drill.
async fn has_backup(repository: &Repository, job: &Job) -> Result<bool> {
    for (system, _) in repository.systems(&job.cluster).await? {
        for id in system.backup_ids().await?.into_iter().rev() {
            if matches!(system.marker_if_finished(&id).await?, Some(Ok(_))) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The lease of somebody who does the same, or who claimed it before us.
async fn somebody_at_it(repository: &Repository, job: &Job, claim: &Held) -> Result<Option<Lease>> {
    let operation = job.operation.to_string();
    let now = Timestamp::now();
    for lease in repository.leases(&job.cluster).await? {
        if !lease.holds(now) || lease.is_left_by_the_dead() {
            continue;
        }
        let same = match lease.work {
            Work::Backup => job.operation == Operation::Full,
            Work::Copy => job.operation == Operation::Copy,
            Work::Expire => job.operation == Operation::Expire,
            // One at a time on a host, as many as there are hosts.
            Work::Drill => false,
            Work::Scheduled => {
                lease.operation() == Some(&operation) && claim.came_after(&lease).await
            }
            Work::CopySource | Work::Restore | Work::Other => false,
        };
        if same {
            return Ok(Some(lease));
        }
    }
    Ok(None)
}
