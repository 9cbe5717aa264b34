//! Leases: who works on what in a repository, and until when that may be believed.
//!
//! They only inform. Not every store can compare and swap, a machine may pause past the end of
//! its lease, and whoever may not write goes on without one: doing a thing twice must be
//! harmless, and what deletes looks at more than leases.
//!
//! A lease is an object whose name ends with the moment until which it holds. Renewing it puts
//! a new object and deletes the old one, so that no key is written twice.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::keys::{self, BackupId};
use super::{FORMAT, Repository, to_json};
use crate::error::Result;
use crate::host;
use crate::postgres::SystemId;
use crate::time::signed;

/// How long a lease holds unless it is renewed. It is renewed in every third of it.
pub const LEASE_TIME: Duration = Duration::from_secs(600);

/// The field that names a claimed operation.
const OPERATION: &str = "operation";

/// What somebody works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Takes a base backup into this repository.
    Backup,
    /// Copies into this repository.
    Copy,
    /// Copies out of this repository.
    CopySource,
    /// Restores from here.
    Restore,
    /// Restores from here, to see whether it works.
    Drill,
    /// A daemon does, or is about to do, the [`operation`](Lease::operation) that its schedule
    /// asks for.
    Scheduled,
    /// What this version does not know.
    #[serde(other)]
    Other,
}

/// What a lease says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The format of this object.
    pub format: u32,
    /// What is done.
    pub work: Work,
    /// The system it is about; none where it is about all of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_id: Option<SystemId>,
    /// Backups that are being made or used: none of their objects may go, nor the WAL from
    /// their start on.
    #[serde(default)]
    pub backups: BTreeSet<BackupId>,
    /// Whose it is: host, process number and random digits.
    pub holder: String,
    /// When the work began, by the holder's clock.
    pub since: Timestamp,
    /// Until when it holds, by the holder's clock.
    pub until: Timestamp,
    /// What newer versions added.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

impl Lease {
    /// Whether it still holds at `now`.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.until > now
    }

    /// What a daemon has claimed by it.
    pub fn operation(&self) -> Option<&str> {
        self.other.get(OPERATION)?.as_str()
    }

    /// Whether this process took it.
    pub fn is_of_this_process(&self) -> bool {
        let own = format!("{}-{}-", own_host(), std::process::id());
        self.holder.starts_with(&own)
    }

    /// Whether it is left of a process of this host that has ended: nobody works there any
    /// more. Where host names are not unique that may be wrong, as everything about leases.
    pub fn is_left_by_the_dead(&self) -> bool {
        let mut parts = self.holder.rsplitn(3, '-');
        let (_, process, host) = (parts.next(), parts.next(), parts.next());
        host == Some(&own_host())
            && process.is_some_and(|process| {
                !process.is_empty()
                    && process.bytes().all(|b| b.is_ascii_digit())
                    && !std::path::Path::new("/proc").join(process).exists()
            })
    }
}

/// A lease that this process holds. Dropping it without [`release`](Self::release) leaves it
/// to expire.
pub struct Held {
    repository: Repository,
    cluster: String,
    renewing: tokio::task::JoinHandle<()>,
    current: std::sync::Arc<tokio::sync::Mutex<Lease>>,
}

impl Held {
    /// Whether `other` is somebody else's lease that is older than this one.
    pub async fn came_after(&self, other: &Lease) -> bool {
        let own = self.current.lock().await;
        (other.since, &other.holder) < (own.since, &own.holder)
    }

    /// Ends it: the object is deleted.
    pub async fn release(self) {
        self.renewing.abort();
        let lease = self.current.lock().await;
        let key = key(&self.cluster, &lease);
        if let Err(error) = self.repository.store().delete(&key).await {
            tracing::debug!("{key} is left to expire: {error}");
        }
    }

    /// Leaves it to end by itself so much later, without being renewed: for what goes on after
    /// this process.
    pub async fn leave(self, time: Duration) {
        self.renewing.abort();
        let mut lease = self.current.lock().await;
        let until = Timestamp::now() + time;
        self.repository
            .replace(&self.cluster, &mut lease, until)
            .await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

impl Repository {
    /// Takes a lease and keeps it renewed as long as it is held. Where it cannot be written
    /// (a reader's rights, a store that is away) that is said in the log, and work goes on.
    pub async fn lease(
        &self,
        cluster: &str,
        work: Work,
        system_id: Option<SystemId>,
        backups: impl IntoIterator<Item = BackupId>,
    ) -> Held {
        let mut lease = new_lease(work);
        lease.system_id = system_id;
        lease.backups = backups.into_iter().collect();
        self.hold(cluster, lease).await
    }

    /// Says that a daemon does `operation` for `cluster`, or is about to: others then wait and
    /// look for its result. Of two claims the [older one](Held::came_after) goes first.
    pub async fn claim(&self, cluster: &str, operation: &str) -> Held {
        let mut lease = new_lease(Work::Scheduled);
        lease.other.insert(OPERATION.to_owned(), operation.into());
        self.hold(cluster, lease).await
    }

    async fn hold(&self, cluster: &str, lease: Lease) -> Held {
        let work = lease.work;
        if let Err(error) = self.put_lease(cluster, &lease).await {
            tracing::info!(
                "nobody is told that this {work:?} uses {}: {}",
                self.place(),
                error.one_line()
            );
        }
        let current = std::sync::Arc::new(tokio::sync::Mutex::new(lease));
        let renewing = {
            let (repository, cluster) = (self.clone(), cluster.to_owned());
            let current = std::sync::Arc::clone(&current);
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(LEASE_TIME / 3).await;
                    let until = Timestamp::now() + lease_time();
                    let mut lease = current.lock().await;
                    repository.replace(&cluster, &mut lease, until).await;
                }
            })
        };
        Held {
            repository: self.clone(),
            cluster: cluster.to_owned(),
            renewing,
            current,
        }
    }

    /// All leases of a cluster that can be read, those that have ended among them.
    pub async fn leases(&self, cluster: &str) -> Result<Vec<Lease>> {
        let mut leases = Vec::new();
        for info in self.store().list(&keys::leases(cluster), None).await? {
            // `seawall check` puts its probes here, too.
            if !info.key.ends_with(".json") {
                continue;
            }
            match self.try_read_json::<Lease>(&info.key).await? {
                Some(Ok(lease)) => leases.push(lease),
                Some(Err(error)) => tracing::warn!("{}", error.one_line()),
                None => {}
            }
        }
        leases.sort_by(|a, b| (a.since, &a.holder).cmp(&(b.since, &b.holder)));
        Ok(leases)
    }

    /// The oldest lease of another process that copies into this repository, since before `own`:
    /// all of the cluster, or the one backup that is named.
    pub async fn copied_by_another(
        &self,
        cluster: &str,
        own: &Held,
        backup: Option<&BackupId>,
    ) -> Result<Option<Lease>> {
        let now = Timestamp::now();
        for lease in self.leases(cluster).await? {
            let same = match backup {
                Some(backup) => lease.backups.contains(backup),
                None => lease.backups.is_empty(),
            };
            if lease.work == Work::Copy
                && same
                && lease.holds(now)
                && !lease.is_of_this_process()
                && !lease.is_left_by_the_dead()
                && own.came_after(&lease).await
            {
                return Ok(Some(lease));
            }
        }
        Ok(None)
    }

    /// Removes the leases that ended by `now` a whole lease ago, and the damaged ones and
    /// probes that nobody has touched for a day. Says how many.
    pub async fn sweep_leases(&self, cluster: &str, now: Timestamp) -> Result<usize> {
        let mut ended = Vec::new();
        for info in self.store().list(&keys::leases(cluster), None).await? {
            let untouched = info.modified + SignedDuration::from_hours(24) < now;
            let over = match info.key.ends_with(".json") {
                // A probe whose maker died.
                false => untouched,
                true => match self.try_read_json::<Lease>(&info.key).await? {
                    Some(Ok(lease)) => lease.until + lease_time() < now,
                    Some(Err(_)) => untouched,
                    None => false,
                },
            };
            if over {
                ended.push(info.key);
            }
        }
        self.store().delete_all(&ended).await?;
        Ok(ended.len())
    }

    /// Writes one lease, without renewing it, and returns its key.
    pub async fn put_lease(&self, cluster: &str, lease: &Lease) -> Result<String> {
        let key = key(cluster, lease);
        self.store().put(&key, to_json(lease)?).await?;
        Ok(key)
    }

    async fn replace(&self, cluster: &str, lease: &mut Lease, until: Timestamp) {
        let renewed = Lease {
            until,
            ..lease.clone()
        };
        if let Err(error) = self.put_lease(cluster, &renewed).await {
            tracing::info!("a lease is not renewed: {}", error.one_line());
            return;
        }
        let old = key(cluster, lease);
        *lease = renewed;
        if let Err(error) = self.store().delete(&old).await {
            tracing::debug!("{old} is left to expire: {error}");
        }
    }
}

fn lease_time() -> SignedDuration {
    signed(LEASE_TIME)
}

fn new_lease(work: Work) -> Lease {
    let now = Timestamp::now();
    Lease {
        format: FORMAT,
        work,
        system_id: None,
        backups: BTreeSet::new(),
        holder: holder(),
        since: now,
        until: now + lease_time(),
        other: serde_json::Map::new(),
    }
}

/// `HOST-PID-RANDOM`.
pub(super) fn holder() -> String {
    let random: u32 = rand::random();
    format!("{}-{}-{random:08x}", own_host(), std::process::id())
}

fn own_host() -> String {
    let host = host::name();
    host.chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-.".contains(*c))
        .take(64)
        .collect()
}

fn key(cluster: &str, lease: &Lease) -> String {
    let until = lease.until.strftime("%Y%m%dT%H%M%SZ");
    format!("{}/{}-{until}.json", keys::leases(cluster), lease.holder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Store;

    #[tokio::test]
    async fn a_lease_is_seen_while_it_is_held_moves_on_when_renewed_and_goes_when_released() {
        let repository = Repository::over("near", Store::memory().unwrap());
        let id = BackupId::new(keys::BackupKind::Full, Timestamp::now());
        let held = repository
            .lease("main", Work::Backup, None, [id.clone()])
            .await;
        let [lease] = &repository.leases("main").await.unwrap()[..] else {
            panic!("one lease")
        };
        assert!(lease.backups.contains(&id) && lease.work == Work::Backup);
        assert!(lease.holds(Timestamp::now()));
        assert!(!lease.holds(Timestamp::now() + lease_time()));
        assert!(repository.leases("other").await.unwrap().is_empty());

        let mut renewed = lease.clone();
        renewed.until = Timestamp::now() - SignedDuration::from_hours(1);
        repository.put_lease("main", &renewed).await.unwrap();
        let until = Timestamp::now() + lease_time();
        repository.replace("main", &mut renewed, until).await;
        assert!(renewed.holds(Timestamp::now()));

        held.release().await;
        assert!(repository.leases("main").await.unwrap().is_empty());

        let left = repository.lease("main", Work::Restore, None, [id]).await;
        left.leave(Duration::from_secs(86_400)).await;
        let [lease] = &repository.leases("main").await.unwrap()[..] else {
            panic!("one lease")
        };
        assert!(lease.holds(Timestamp::now() + SignedDuration::from_hours(23)));
        let later = Timestamp::now() + SignedDuration::from_hours(25);
        assert_eq!(repository.sweep_leases("main", later).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn of_two_that_copy_the_younger_sees_the_older_and_nobody_the_dead_or_itself() {
        let repository = Repository::over("far", Store::memory().unwrap());
        let id = BackupId::new(keys::BackupKind::Full, Timestamp::now());
        let own = repository
            .lease("main", Work::Copy, None, [id.clone()])
            .await;
        let mut other = new_lease(Work::Copy);
        other.holder = "elsewhere-7-00000000".into();
        other.since = Timestamp::now() - SignedDuration::from_secs(60);
        let seen = async |lease: &Lease, backup: Option<&BackupId>| {
            let key = repository.put_lease("main", lease).await.unwrap();
            let seen = repository.copied_by_another("main", &own, backup).await;
            repository.store().delete(&key).await.unwrap();
            seen.unwrap().is_some()
        };
        assert!(seen(&other, None).await && !seen(&other, Some(&id)).await);
        let mut one = other.clone();
        one.backups.insert(id.clone());
        assert!(seen(&one, Some(&id)).await && !seen(&one, None).await);
        let changed = |change: fn(&mut Lease)| {
            let mut lease = other.clone();
            change(&mut lease);
            lease
        };
        let younger = changed(|lease| lease.since = Timestamp::now() + lease_time());
        let over = changed(|lease| lease.until = lease.since);
        let source = changed(|lease| lease.work = Work::CopySource);
        let dead = changed(|lease| lease.holder = format!("{}-4194305-00000000", own_host()));
        let ours = changed(|lease| lease.holder = holder());
        for lease in [younger, over, source, dead, ours] {
            assert!(!seen(&lease, None).await, "{lease:?}");
        }
    }

    #[tokio::test]
    async fn of_two_claims_the_older_goes_first() {
        let repository = Repository::over("near", Store::memory().unwrap());
        let first = repository.claim("main", "full").await;
        let second = repository.claim("main", "full").await;
        let leases = repository.leases("main").await.unwrap();
        assert_eq!(leases.len(), 2);
        let mut before = [0, 0];
        for lease in &leases {
            assert_eq!(lease.operation(), Some("full"));
            assert!(!lease.is_left_by_the_dead());
            before[0] += usize::from(first.came_after(lease).await);
            before[1] += usize::from(second.came_after(lease).await);
        }
        assert_eq!(before, [0, 1]);
    }

    #[test]
    fn only_a_process_of_this_host_is_known_to_be_dead_and_only_this_one_is_ours() {
        let (host, own) = (own_host(), std::process::id());
        // No process has the number 4194305: it is beyond the largest that Linux gives.
        for (holder, dead, ours) in [
            (holder(), false, true),
            (format!("{host}-4194305-00000000"), true, false),
            ("elsewhere-4194305-00000000".to_owned(), false, false),
            (format!("elsewhere-{own}-00000000"), false, false),
        ] {
            let mut lease = new_lease(Work::Copy);
            lease.holder = holder;
            assert_eq!(lease.is_left_by_the_dead(), dead, "{}", lease.holder);
            assert_eq!(lease.is_of_this_process(), ours, "{}", lease.holder);
        }
    }
}
