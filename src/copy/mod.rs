//! Copies of a repository: WAL and base backups brought to another region or provider, so that
//! the copy alone is enough to recover.
//!
//! A copy is at every moment a sound repository, only older than its source; [`lag`] says how
//! much. Every object is verified by digest on its way or at its end, and what is damaged is
//! never copied. Copying reads the source's repository and nothing of a server.

mod backups;
mod difference;
mod lag;
mod objects;
mod report;
mod shape;
mod wal;
pub mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::{Config, RepositoryConfig, RetentionConfig};
use crate::error::{Error, Result};
use crate::postgres::{SegmentSize, SystemId};
use crate::repository::keys::BackupId;
use crate::repository::leases::{Held, Lease, Work};
use crate::repository::{Repository, System, SystemRecord};
use crate::storage::CopyLimits;

pub use lag::{Lag, lag, lag_of};
pub use report::Copied;

use wal::{Done, WalCopy};
use wanted::{Finished, Judged, judge};

/// What is listed anew from the beginning, though it was whole before: files that came late,
/// conflicts, what somebody deleted.
const EVERYTHING_AGAIN: Duration = Duration::from_secs(3600);

/// Unfinished uploads are dead by then.
const DEAD_UPLOAD: Duration = Duration::from_secs(86_400);

/// How a copy is made.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The cluster's name.
    pub cluster: String,
    /// Objects that are copied at once.
    pub jobs: usize,
    /// From how many bytes on the store is asked to copy an object by itself. Copying so takes
    /// as many requests as sending small objects, and they have to be read all the same.
    pub server_side_from: u64,
    /// How the store is asked.
    pub limits: CopyLimits,
    /// How often new WAL is looked for.
    pub interval: Duration,
}

impl Settings {
    /// The usual ones.
    pub fn of(cluster: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            jobs: std::thread::available_parallelism().map_or(2, |n| n.get().min(4)),
            server_side_from: 1 << 20,
            limits: CopyLimits::default(),
            interval: Duration::from_secs(10),
        }
    }
}

/// Fills one repository from its source.
pub struct Copier {
    settings: Settings,
    source: Repository,
    others: Vec<Repository>,
    aim: Repository,
    /// What the destination keeps.
    rules: RetentionConfig,
    report: Mutex<Copied>,
    /// Sources that the store cannot copy from by itself.
    not_server_side: Mutex<Vec<String>>,
    /// Backups that cannot be copied; they are tried again when everything is listed again.
    refused: Mutex<BTreeSet<BackupId>>,
    /// Objects of the backup under way that were verified: a store that fails in the middle
    /// must not make all of them be read again.
    verified: Mutex<BTreeSet<String>>,
    /// Of the backup under way: at its source, and at the destination.
    held: tokio::sync::Mutex<Vec<Held>>,
    /// Of one who copies again and again, for others who would.
    following: tokio::sync::Mutex<Option<Held>>,
    systems: tokio::sync::Mutex<BTreeMap<SystemId, SystemCopy>>,
}

/// One system on its way.
struct SystemCopy {
    source: System,
    others: Vec<System>,
    aim: System,
    size: SegmentSize,
    wal: tokio::sync::Mutex<WalCopy>,
    finished: tokio::sync::Mutex<(Finished, Finished)>,
    /// What the destination would keep: judged anew when there is more to judge, and when
    /// everything is listed again.
    judged: Option<Judged>,
    listed: Option<Instant>,
}

impl SystemCopy {
    /// The source, then who may help out.
    fn sources(&self) -> Vec<&System> {
        std::iter::once(&self.source).chain(&self.others).collect()
    }
}

/// What is going on, whoever panicked meanwhile.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Copier {
    /// For the repository `aim`, which must have `copy_from`. Opens its source, and every other
    /// repository that can be opened: they may have what the source holds damaged.
    ///
    /// # Errors
    /// It is no copy, or one of the two cannot be opened.
    pub fn new(config: &Config, aim: &RepositoryConfig, settings: Settings) -> Result<Self> {
        let name = aim.copy_from.as_ref().ok_or_else(|| {
            Error::usage(format!(
                "repository {:?} is no copy of another one",
                aim.name
            ))
            .at(config.path.display())
            .hint("set its copy_from, or name one that has it")
        })?;
        let source = config.repositories(std::slice::from_ref(name))?;
        let source = source.first().ok_or_else(|| Error::usage("no source"))?;
        let others = config
            .repository
            .iter()
            .filter(|other| other.name != aim.name && other.name != source.name)
            .filter_map(|other| Repository::open(other).ok());
        let (source, others) = (Repository::open(source)?, others.collect());
        let rules = aim.retention.clone();
        let aim = Repository::open(aim)?;
        Ok(Self::over(source, others, aim, settings).with_rules(rules))
    }

    /// With rules of the destination: what they would not keep is not copied.
    #[must_use]
    pub fn with_rules(self, rules: RetentionConfig) -> Self {
        Self { rules, ..self }
    }

    /// Over repositories that are open.
    pub fn over(
        source: Repository,
        others: Vec<Repository>,
        aim: Repository,
        settings: Settings,
    ) -> Self {
        Self {
            settings,
            source,
            others,
            aim,
            rules: RetentionConfig::default(),
            report: Mutex::default(),
            not_server_side: Mutex::default(),
            refused: Mutex::default(),
            verified: Mutex::default(),
            held: tokio::sync::Mutex::default(),
            following: tokio::sync::Mutex::default(),
            systems: tokio::sync::Mutex::default(),
        }
    }

    /// The repository that is filled.
    pub fn aim(&self) -> &Repository {
        &self.aim
    }

    /// Its source.
    pub fn source(&self) -> &Repository {
        &self.source
    }

    /// What was done so far.
    pub fn report(&self) -> Copied {
        lock(&self.report).clone()
    }

    /// Copies everything that the source holds now and the copy wants.
    ///
    /// May be given up at any moment: what is there then is an older copy, and the next call
    /// goes on. Call [`release`](Self::release) then.
    ///
    /// # Errors
    /// One of the stores failed; what was copied until then stays. What is damaged at the
    /// source is no error: see [`Copied::not_copied`].
    pub async fn once(&self) -> Result<()> {
        let ours = self.source.record().await?;
        let theirs = self.aim.record_for_writing().await?;
        if ours.repository_id == theirs.repository_id {
            return Err(Error::refused("the copy and its source are one repository")
                .at(self.aim.place())
                .hint("give the copy a place of its own and make it with `seawall init`; a seawall.json that was copied there must go first"));
        }
        let cluster = &self.settings.cluster;
        let mut systems = self.systems.lock().await;
        for (source, record) in self.source.systems(cluster).await? {
            let system = systems
                .entry(source.id())
                .or_insert_with(|| self.system(source, &record));
            self.register(system, &record).await?;
            self.copy_system(system).await?;
        }
        Ok(())
    }

    /// Copies again and again, waiting in between, until it is given up. What fails is said
    /// once, tried again, and said again when it works.
    ///
    /// Where another process does the same since before, this one only watches until that ends.
    /// Call [`release`](Self::release) at the end.
    pub async fn follow(&self) {
        let mut trouble: Option<String> = None;
        let mut swept: Option<Instant> = None;
        let mut watches = false;
        let own = self
            .aim
            .lease(&self.settings.cluster, Work::Copy, None, [])
            .await;
        *self.following.lock().await = Some(own);
        loop {
            let other = self.another_that_follows().await;
            if let Ok(other) = &other {
                self.say_who_copies(other.as_ref(), watches);
                watches = other.is_some();
            }
            let done = match other {
                Ok(Some(_)) => {
                    tokio::time::sleep(self.settings.interval).await;
                    continue;
                }
                Ok(None) => self.once().await,
                Err(error) => Err(error),
            };
            match (done, &trouble) {
                (Err(error), said) => {
                    let text = error.one_line();
                    if said.is_none() {
                        tracing::warn!("copying to {} waits: {text}", self.aim.place());
                    } else {
                        tracing::debug!("{text}");
                    }
                    trouble.get_or_insert(text);
                    self.release_backup().await;
                }
                (Ok(()), Some(_)) => {
                    tracing::info!("copying to {} goes on", self.aim.place());
                    trouble = None;
                }
                (Ok(()), None) => {}
            }
            if swept.is_none_or(|at| at.elapsed() >= DEAD_UPLOAD) && trouble.is_none() {
                self.sweep().await;
                swept = Some(Instant::now());
            }
            tokio::time::sleep(self.settings.interval).await;
        }
    }

    /// Who has followed for longer. Nobody where leases may not be read: copying twice is
    /// harmless, and copying not at all is not.
    async fn another_that_follows(&self) -> Result<Option<Lease>> {
        let own = self.following.lock().await;
        let Some(own) = own.as_ref() else {
            return Ok(None);
        };
        let found = self
            .aim
            .copied_by_another(&self.settings.cluster, own, None);
        match found.await {
            Err(error) if !error.is_retryable() => {
                tracing::debug!("{}", error.one_line());
                Ok(None)
            }
            found => found,
        }
    }

    /// Says it when that changes.
    fn say_who_copies(&self, other: Option<&Lease>, watches: bool) {
        let place = self.aim.place();
        match other {
            Some(lease) if !watches => tracing::info!(
                "{} copies to {place}: this process only watches until that ends",
                lease.holder
            ),
            None if watches => tracing::info!("this process copies to {place} now"),
            _ => {}
        }
    }

    /// Removes what copies and other writers that died left at the copy.
    pub async fn sweep(&self) {
        let cluster = &self.settings.cluster;
        match self.aim.store().sweep_leftovers(cluster, DEAD_UPLOAD).await {
            Ok(0) => {}
            Ok(swept) => tracing::info!("removed {swept} unfinished files of writers that died"),
            Err(error) => tracing::warn!("{error}"),
        }
    }

    fn system(&self, source: System, record: &SystemRecord) -> SystemCopy {
        let (cluster, id, size) = (source.cluster(), source.id(), record.segment_size);
        let others = self.others.iter().map(|other| other.system(cluster, id));
        let others: Vec<System> = others.collect();
        let aim = self.aim.system(cluster, id);
        let wal = WalCopy::new(
            source.clone(),
            others.clone(),
            aim.clone(),
            size,
            self.settings.jobs,
        );
        SystemCopy {
            source,
            others,
            aim,
            size,
            wal: tokio::sync::Mutex::new(wal),
            finished: tokio::sync::Mutex::default(),
            judged: None,
            listed: None,
        }
    }

    /// `system.json`, byte for byte where there is none: it holds when the system was first
    /// seen, by which systems are ordered.
    async fn register(&self, of: &SystemCopy, record: &SystemRecord) -> Result<()> {
        let key = of.source.keys().system_record();
        if of.aim.record().await?.is_none()
            && let Some(bytes) = self.source.sealed_bytes(&key).await?
        {
            of.aim.store().put_new(&key, bytes).await?;
        }
        let registered = of
            .aim
            .register(record.postgresql_major, record.segment_size);
        registered.await.map(drop)
    }

    async fn copy_system(&self, of: &mut SystemCopy) -> Result<()> {
        let again = of.listed.is_none_or(|at| at.elapsed() >= EVERYTHING_AGAIN);
        if again {
            lock(&self.refused).clear();
            of.judged = None;
        }
        let (wanted, missing, held) = {
            let (here, there) = &mut *of.finished.lock().await;
            let unusable = |place: String| {
                move |key: String, why: &str| lock(&self.report).refuse(&key, &place, why)
            };
            here.refresh(&of.source, unusable(self.source.place()))
                .await?;
            there.refresh(&of.aim, unusable(self.aim.place())).await?;
            let lacking = here.lacking_in(there);
            let removed = here.removed_at(&of.source, &of.aim, of.size).await?;
            let known = of.judged.take();
            let known = known.filter(|known| !known.is_outdated(&lacking, &removed));
            let judged = match known {
                Some(known) => known,
                None => judge(&of.source, &of.aim, &self.rules, lacking, removed).await?,
            };
            let wanted = judged.wanted(here.backups().cloned(), of.size);
            of.judged = Some(judged);
            let missing = wanted
                .backups
                .iter()
                .filter(|backup| !there.has(&backup.id));
            let refused = lock(&self.refused);
            let missing = missing.filter(|backup| !refused.contains(&backup.id));
            let missing: Vec<_> = missing.cloned().collect();
            let held = wanted.backups.iter().filter(|backup| there.has(&backup.id));
            let held = held.map(|backup| backup.start_lsn).min();
            (wanted, missing, held)
        };
        let from = {
            let mut wal = of.wal.lock().await;
            wal.withhold(&wanted.withheld);
            if again {
                wal.look_at_everything();
            }
            // The newest backup first, and upwards from there; older ones make the copy grow
            // backwards. What it holds already has no holes that could be filled.
            let newest = wanted.backups.last().map(|backup| backup.start_lsn);
            let from = held.or(newest).unwrap_or(wanted.wal_from).segment(of.size);
            let oldest = wal.oldest_held(wanted.wal_from.segment(of.size)).await?;
            from.min(oldest.unwrap_or(u64::MAX))
        };
        self.upwards(of, from).await?;
        of.listed = match again {
            true => Some(Instant::now()),
            false => of.listed,
        };
        self.points(of).await?;
        if missing.is_empty() {
            return Ok(());
        }
        let of = &*of;
        // Backups take hours, and new WAL must not wait for them.
        tokio::select! {
            copied = self.backups(of, &missing) => copied?,
            failed = self.tail(of, from) => failed?,
        }
        self.upwards(of, from).await
    }

    /// Brings new WAL until it is given up.
    async fn tail(&self, of: &SystemCopy, from: u64) -> Result<()> {
        loop {
            tokio::time::sleep(self.settings.interval).await;
            self.upwards(of, from).await?;
        }
    }

    /// Until nothing is left, or something changes all the time.
    async fn upwards(&self, of: &SystemCopy, from: u64) -> Result<()> {
        for _ in 0..3 {
            let mut wal = of.wal.lock().await;
            if wal.upwards(from, &self.report).await? == Done::All {
                break;
            }
        }
        Ok(())
    }

    async fn points(&self, of: &SystemCopy) -> Result<()> {
        let directory = of.source.keys().points();
        let theirs = of.aim.store().list(&directory, None).await?;
        for info in of.source.store().list(&directory, None).await? {
            if theirs.iter().any(|other| other.key == info.key) {
                continue;
            }
            match self.source.sealed_bytes(&info.key).await {
                Ok(Some(bytes)) => {
                    of.aim.store().put(&info.key, bytes).await?;
                    let mut report = lock(&self.report);
                    report.restore_points += 1;
                    report.accept(&info.key);
                }
                Ok(None) => {}
                Err(error) if error.is_retryable() => return Err(error),
                Err(error) => {
                    let place = self.source.place();
                    lock(&self.report).refuse(&info.key, &place, error.what());
                }
            }
        }
        Ok(())
    }

    /// Whether the store may be asked to copy from there by itself.
    fn server_side(&self, source: &System) -> bool {
        let name = source.repository().name();
        !lock(&self.not_server_side)
            .iter()
            .any(|known| known == name)
    }

    /// It may not, and why: said once.
    fn no_server_side(&self, source: &System, why: &str) {
        let name = source.repository().name();
        let mut known = lock(&self.not_server_side);
        if !known.iter().any(|known| known == name) {
            tracing::info!(
                "objects of {} go through this machine: {why}",
                source.repository().place()
            );
            known.push(name.to_owned());
        }
    }
}
