//! Before something is run: has somebody else done it already, is somebody at it, and are
//! server and repository there at all?
//!
//! Several daemons may serve one cluster, its standbys' among them. Each claims what it is about
//! to do by a lease; of two claims the older one goes first, and who waits looks again. A base
//! backup or a drill that is there is not made again; a copy or an expiry leaves nothing to
//! look for, and the whole of it is gone through once more, which does no harm. Leases only
//! inform: where they cannot be written or are ignored, the same is done twice, which costs and
//! harms nothing.

use std::time::Duration;

use jiff::Timestamp;

use super::agenda::CORRECTION;
use super::operation::{Job, Operation};
use crate::config::{ClusterConfig, Config};
use crate::error::{Error, Result};
use crate::postgres::control::ControlFile;
use crate::postgres::sql::Client;
use crate::repository::Repository;
use crate::repository::keys::BackupKind;
use crate::repository::leases::{Held, LEASE_TIME, Lease, Work};
use crate::time::signed;

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
    if job.operation.is_backup()
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
            // Of a pair whose daemons share a configuration, the standby's leaves it to the other.
            Ok(true) if cluster.primary.is_none() => Some(Look::NotNow(
                "the server is a standby, and `primary` is not set".into(),
            )),
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
    let period = Period::since(due, Timestamp::now());
    match job.operation {
        Operation::Full | Operation::Incremental => {
            let system_id = match &cluster.data_directory {
                Some(data_directory) => ControlFile::read(data_directory)?.system_id,
                None => {
                    Client::of_cluster(cluster)
                        .await?
                        .system_identifier()
                        .await?
                }
            };
            let system = repository.system(&job.cluster, system_id);
            for id in system.backup_ids().await?.into_iter().rev() {
                // A full one does what an incremental one would.
                let counts =
                    job.operation == Operation::Incremental || id.kind() == BackupKind::Full;
                if !counts || !period.holds(id.as_str()) {
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
            let found = ids.into_iter().rfind(|id| period.holds(id));
            Ok(found.map(|id| format!("there is drill {id}")))
        }
        Operation::Copy | Operation::Expire => Ok(None),
    }
}

/// From a time on the schedule until now, as names of backups and drills have it: both begin
/// with the time at which they began.
struct Period {
    first: String,
    last: String,
}

impl Period {
    fn since(due: Timestamp, now: Timestamp) -> Self {
        let name = |time: Timestamp| time.strftime("%Y%m%dT%H%M%SZ").to_string();
        Self {
            first: name(due),
            last: name(now + CORRECTION),
        }
    }

    /// What bears a later time comes from a clock that was ahead. It must not count as the
    /// result of everything that is due until then: that may be years.
    fn holds(&self, id: &str) -> bool {
        let time = id.get(..self.last.len()).unwrap_or(id);
        (self.first.as_str()..=self.last.as_str()).contains(&time)
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
    // Nobody's lease ends later than this, but one of a clock that was ahead.
    let latest = now + signed(LEASE_TIME) + CORRECTION;
    for lease in repository.leases(&job.cluster).await? {
        if !lease.holds(now) || lease.until > latest || lease.is_left_by_the_dead() {
            continue;
        }
        let same = match lease.work {
            Work::Backup => job.operation.is_backup(),
            Work::Copy => job.operation == Operation::Copy,
            // One at a time on a host, as many as there are hosts.
            Work::Drill => false,
            Work::Scheduled => {
                // One of our own was left where its store was away when it was to go: of one
                // job there is never a second attempt.
                lease.operation() == Some(&operation)
                    && !lease.is_of_this_process()
                    && claim.came_after(&lease).await
            }
            Work::CopySource | Work::Restore | Work::Other => false,
        };
        if same {
            return Ok(Some(lease));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::storage::Store;

    fn scene(operation: Operation) -> (Repository, ClusterConfig, Job) {
        let text = "[cluster.main]\ndata_directory = \"/main\"\n[[repository]]\nname = \"near\"\nurl = \"file:///near\"";
        let config = Config::parse(text, "/x.toml".into()).unwrap();
        let job = Job {
            cluster: "main".into(),
            operation,
        };
        let repository = Repository::over("near", Store::memory().unwrap());
        (repository, config.cluster["main"].clone(), job)
    }

    #[tokio::test]
    async fn what_bears_a_time_of_the_future_is_no_result() {
        let (repository, cluster, job) = scene(Operation::Drill);
        let now = Timestamp::now();
        let due = now - SignedDuration::from_mins(5);
        let put = async |id: &str| {
            let report = serde_json::json!({"format": 1});
            repository.put_drill("main", id, &report).await.unwrap();
        };
        let found = async || {
            result_since(&repository, &cluster, &job, due)
                .await
                .unwrap()
        };
        put("20990101T000000Z-0a0b0c0d").await;
        assert_eq!(found().await, None);
        // The clocks of two hosts may differ by a little.
        let id = (now + SignedDuration::from_mins(2)).strftime("%Y%m%dT%H%M%SZ-0a0b0c0d");
        put(&id.to_string()).await;
        assert_eq!(found().await, Some(format!("there is drill {id}")));

        let period = Period::since(due, now);
        assert!(!period.holds("20990101T000000Z-full-0a0b0c0d"));
        assert!(!period.holds("20000101T000000Z-full-0a0b0c0d"));
        let full = now.strftime("%Y%m%dT%H%M%SZ-full-0a0b0c0d").to_string();
        assert!(period.holds(&full));
    }

    #[tokio::test]
    async fn neither_a_lease_of_the_future_nor_a_claim_left_by_oneself_holds_anything_up() {
        let (repository, _, job) = scene(Operation::Full);
        let old = repository.claim("main", "full").await;
        let claim = repository.claim("main", "full").await;
        let at_it = async || somebody_at_it(&repository, &job, &claim).await.unwrap();
        assert_eq!(at_it().await, None);

        let [mine, _] = &repository.leases("main").await.unwrap()[..] else {
            panic!("two leases")
        };
        let mut lease = mine.clone();
        lease.holder = "elsewhere-1-00000000".into();
        lease.until = Timestamp::now() + SignedDuration::from_hours(24 * 365);
        for work in [Work::Scheduled, Work::Backup] {
            lease.work = work;
            repository.put_lease("main", &lease).await.unwrap();
            assert_eq!(at_it().await, None, "{work:?}");
        }
        lease.until = Timestamp::now() + SignedDuration::from_mins(11);
        repository.put_lease("main", &lease).await.unwrap();
        let found = at_it().await.map(|found| found.holder);
        assert_eq!(found, Some(lease.holder));
        old.release().await;
    }
}
