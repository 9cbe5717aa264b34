//! One repository's part of a look, and what is remembered so that the next one is cheap.
//!
//! Each look lists the backups' names, the timelines, the drills, and the WAL behind one backup.
//! What takes long, listing all of it and comparing a copy with its source, goes on beside the
//! looks, and what is shown is what is known until it ends.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::background::Background;
use super::listing::{Listing, is_unreadable, spans};
use super::{ArchivedUntil, DrillStatus, RepositoryStatus};
use crate::config::{Config, RepositoryConfig};
use crate::copy::{Lag, lag};
use crate::error::{Error, Result};
use crate::repository::catalogue::Reach;
use crate::repository::keys::BackupId;
use crate::repository::{Repository, System};

/// How often all of a repository is listed, though no backup and no timeline came or went; and
/// how often while something is wrong with it.
const LISTED_EVERY: [Duration; 2] = [Duration::from_secs(3600), Duration::from_secs(300)];

/// A copy is compared with its source (two listings for each 4 GiB of WAL) at each look, but for
/// a hundredth of the time at most, and so often at least.
const COMPARED_AT_LEAST: Duration = Duration::from_secs(300);

/// After a failure it is not tried again before.
const AFTER_FAILURE: Duration = Duration::from_secs(60);

/// So many drills are shown.
const DRILLS: usize = 30;

/// Looks at one repository again and again.
pub(super) struct RepositoryWatch {
    config: RepositoryConfig,
    source: Option<RepositoryConfig>,
    cluster: String,
    /// Kept open, with its connections, until something fails.
    opened: Option<Repository>,
    known: Option<Listing>,
    listing: Background<Result<Listing>>,
    listing_failed: bool,
    comparing: Background<Result<Lag>>,
    status: RepositoryStatus,
}

/// What a drill's report says that is shown here.
#[derive(Deserialize)]
struct Report {
    id: String,
    backup: BackupId,
    started: Timestamp,
    passed: bool,
    #[serde(default)]
    reasons: Vec<String>,
    rto: Option<Measured>,
    rpo: Option<Measured>,
}

#[derive(Deserialize)]
struct Measured {
    measured_seconds: Option<f64>,
}

impl RepositoryWatch {
    pub(super) fn new(config: &Config, repository: &RepositoryConfig, cluster: &str) -> Self {
        let source = repository.copy_from.as_ref();
        let source = source.and_then(|name| config.repository.iter().find(|r| r.name == *name));
        let mut watch = Self {
            config: repository.clone(),
            source: source.cloned(),
            cluster: cluster.to_owned(),
            opened: None,
            known: None,
            listing: Background::default(),
            listing_failed: false,
            comparing: Background::default(),
            status: RepositoryStatus::default(),
        };
        watch.forget();
        watch
    }

    /// Nothing is known of what it holds.
    fn forget(&mut self) {
        self.known = None;
        self.listing = Background::default();
        self.comparing = Background::default();
        self.status = RepositoryStatus {
            name: self.config.name.clone(),
            copy_from: self.config.copy_from.clone(),
            ..RepositoryStatus::default()
        };
    }

    /// Looks for `patience` at most; a listing that takes longer goes on, for the next look.
    pub(super) async fn look(&mut self, patience: Duration) -> RepositoryStatus {
        let now = Timestamp::now();
        let until = tokio::time::Instant::now() + patience;
        let looked = match tokio::time::timeout_at(until, self.try_look(until)).await {
            Ok(looked) => looked,
            Err(_) => Err(Error::failed(format!(
                "no answer within {} s",
                patience.as_secs()
            ))),
        };
        match looked {
            Ok(()) => {
                self.status.looked = Some(now);
                self.status.error = None;
            }
            Err(error) => {
                self.opened = None;
                self.status.error = Some(error.one_line());
            }
        }
        self.status.clone()
    }

    async fn try_look(&mut self, until: tokio::time::Instant) -> Result<()> {
        let repository = match &self.opened {
            Some(opened) => opened.clone(),
            None => self.opened.insert(Repository::open(&self.config)?).clone(),
        };
        repository.record().await?;
        let systems = repository.systems(&self.cluster).await?;
        let Some((system, record)) = systems.last() else {
            // All of it was listed: there is nothing.
            self.forget();
            self.status.listed = Some(Timestamp::now());
            return Ok(());
        };
        if self.status.system_id != Some(system.id()) {
            self.forget();
        }
        self.status.system_id = Some(system.id());
        self.status.postgresql_major = Some(record.postgresql_major);
        self.look_at_drills(&repository).await?;
        self.compare(system);
        if self.wants_a_listing(system).await? {
            let work = (system.clone(), systems.clone());
            self.listing
                .begin(async move { Listing::of(&work.0, &work.1).await });
        }
        // Where nothing is known yet, it is worth waiting for.
        let wait = self.known.is_none();
        if let Some(listed) = self.listing.ended(wait.then_some(until)).await {
            self.listing_failed = listed.is_err();
            match listed {
                Ok(listed) => self.take(listed),
                Err(error) if wait => return Err(error),
                Err(error) => {
                    tracing::warn!(
                        "{}: it cannot be listed: {}",
                        self.config.name,
                        error.one_line()
                    );
                }
            }
        }
        let wait = self.source.is_some() && self.status.compared.is_none();
        let wait = wait && self.status.lag_error.is_none();
        if let Some(compared) = self.comparing.ended(wait.then_some(until)).await {
            self.note_lag(compared);
        }
        self.look_behind_the_newest().await
    }

    async fn wants_a_listing(&self, system: &System) -> Result<bool> {
        let Some(known) = &self.known else {
            return Ok(self.listing.may_begin(Duration::ZERO));
        };
        let every = LISTED_EVERY[usize::from(known.is_ill)];
        let old = known.listed.elapsed() > every;
        // For a tenth of the time at most.
        let rest = (self.listing.took() * 10).min(COMPARED_AT_LEAST);
        let begin = self.listing.may_begin(match self.listing_failed {
            true => rest.max(AFTER_FAILURE),
            false => rest,
        });
        Ok(begin && (old || !known.is_of(system).await?))
    }

    fn take(&mut self, listing: Listing) {
        self.status.listed = Some(listing.time);
        listing.show(&mut self.status);
        let reach = listing.reach.clone();
        self.known = Some(listing);
        self.note_proofs();
        self.note_end(reach.as_ref());
    }

    /// Lists the WAL behind one backup of the newest line, and reads the last commit in it if
    /// there is more than there was.
    async fn look_behind_the_newest(&mut self) -> Result<()> {
        let Some(known) = &mut self.known else {
            return Ok(());
        };
        let Some((reach, window)) = known.look_further().await? else {
            return Ok(());
        };
        for backup in &mut self.status.backups {
            if let Some(own) = &mut backup.window
                && window.to.is_some()
                && known.with_newest.contains(&backup.id)
            {
                own.to = window.to;
                own.unknown = None;
            }
        }
        // An end that could not be read is asked for again.
        if !is_unreadable(&window) {
            known.reach = Some(reach.clone());
        }
        self.note_end(Some(&reach));
        Ok(())
    }

    fn note_end(&mut self, reach: Option<&Reach>) {
        let status = &mut self.status;
        status.archived_until = reach.map(|reach| ArchivedUntil {
            timeline: reach.timeline,
            lsn: reach.end,
            stored: reach.end_stored,
        });
        let windows = status.backups.iter().filter_map(|b| b.window.as_ref());
        status.windows = spans(windows);
        status.newest_recoverable = status.windows.iter().map(|span| span.to).max();
    }

    async fn look_at_drills(&mut self, repository: &Repository) -> Result<()> {
        let newest = repository.drill_ids(&self.cluster).await?.pop();
        let known = self.status.drills.last().map(|drill| drill.id.clone());
        if newest != known {
            let reports = repository.newest_drills::<Report>(&self.cluster, DRILLS);
            let reports = reports.await?.into_iter();
            self.status.drills = reports.map(DrillStatus::from).collect();
            self.note_proofs();
        }
        Ok(())
    }

    /// Which backups were proven when.
    fn note_proofs(&mut self) {
        let passed = self.status.drills.iter().filter(|drill| drill.passed);
        let proven: BTreeMap<&BackupId, Timestamp> =
            passed.map(|drill| (&drill.backup, drill.started)).collect();
        for backup in &mut self.status.backups {
            backup.proven = proven.get(&backup.id).copied().or(backup.proven);
        }
    }

    /// Begins to compare a copy with its source, if it is time.
    fn compare(&mut self, system: &System) {
        let Some(source) = self.source.clone() else {
            return;
        };
        let pause = (self.comparing.took() * 100).min(COMPARED_AT_LEAST);
        if self.comparing.may_begin(pause) {
            let (cluster, rules) = (self.cluster.clone(), self.config.retention.clone());
            let system = system.clone();
            self.comparing.begin(async move {
                let source = Repository::open(&source)?;
                lag(&source.system(&cluster, system.id()), &system, &rules).await
            });
        }
    }

    fn note_lag(&mut self, compared: Result<Lag>) {
        match compared {
            Ok(lag) => {
                self.status.lag = Some(lag);
                self.status.lag_error = None;
                self.status.compared = Some(Timestamp::now());
            }
            // What was known is not so any more.
            Err(error) => {
                self.status.lag = None;
                self.status.lag_error = Some(error.one_line());
            }
        }
    }
}

impl From<Report> for DrillStatus {
    fn from(report: Report) -> Self {
        let seconds = |measured: Option<Measured>| measured.and_then(|m| m.measured_seconds);
        Self {
            id: report.id,
            backup: report.backup,
            started: report.started,
            passed: report.passed,
            reasons: report.reasons,
            rto_seconds: seconds(report.rto),
            rpo_seconds: seconds(report.rpo),
        }
    }
}
