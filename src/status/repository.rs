//! One repository's part of a look, and what is remembered so that the next one is cheap.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Deserialize;

use super::{ArchivedUntil, BackupStatus, DrillStatus, RepositoryStatus, Sizes, Span};
use crate::config::{Config, RepositoryConfig};
use crate::copy::lag;
use crate::error::{Error, Result};
use crate::postgres::TimelineId;
use crate::repository::catalogue::{Catalogue, Reach};
use crate::repository::chain;
use crate::repository::health::{self, Illness, Needed};
use crate::repository::keys::{BackupId, BackupKind};
use crate::repository::line::Archived;
use crate::repository::marker::Marker;
use crate::repository::windows::Window;
use crate::repository::{Repository, System, SystemRecord};

/// How often all of a repository is listed, though no backup and no timeline came or went.
const LISTED_EVERY: Duration = Duration::from_secs(3600);

/// A copy is compared with its source (two listings for each 4 GiB of WAL) at each look, but for
/// a hundredth of the time at most, and so often at least.
const COMPARED_AT_LEAST: Duration = Duration::from_secs(300);

/// So many drills are shown.
const DRILLS: usize = 30;

/// More missing ranges than this are not named.
const GAPS: usize = 100;

/// Looks at one repository again and again.
pub(super) struct RepositoryWatch {
    config: RepositoryConfig,
    source: Option<RepositoryConfig>,
    cluster: String,
    /// Kept open, with its connections, until something fails.
    opened: Option<Opened>,
    known: Option<Known>,
    /// When it was last compared, and how long that took.
    compared: Option<(Instant, Duration)>,
    status: RepositoryStatus,
}

struct Opened {
    repository: Repository,
    source: Option<Repository>,
}

/// What a whole listing said, and stays true until a backup or a timeline comes or goes.
struct Known {
    listed: Instant,
    ids: Vec<BackupId>,
    timelines: BTreeSet<TimelineId>,
    catalogue: Catalogue,
    /// Bytes of all its WAL, as stored.
    wal_bytes: u64,
    /// Where the line of the newest backup ended.
    reach: Option<Reach>,
    /// The backups that led there, too.
    with_newest: BTreeSet<BackupId>,
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
        Self {
            config: repository.clone(),
            source: source.cloned(),
            cluster: cluster.to_owned(),
            opened: None,
            known: None,
            compared: None,
            status: RepositoryStatus {
                name: repository.name.clone(),
                copy_from: repository.copy_from.clone(),
                ..RepositoryStatus::default()
            },
        }
    }

    pub(super) async fn look(&mut self, patience: Duration) -> RepositoryStatus {
        let now = Timestamp::now();
        let looked = match tokio::time::timeout(patience, self.try_look(now)).await {
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

    async fn try_look(&mut self, now: Timestamp) -> Result<()> {
        if self.opened.is_none() {
            self.opened = Some(Opened {
                repository: Repository::open(&self.config)?,
                source: self.source.as_ref().map(Repository::open).transpose()?,
            });
        }
        let Some(Opened { repository, source }) = &self.opened else {
            return Ok(());
        };
        let (repository, source) = (repository.clone(), source.clone());
        repository.record().await?;
        let systems = repository.systems(&self.cluster).await?;
        let Some((system, record)) = systems.last() else {
            return Ok(());
        };
        if self.status.system_id != Some(system.id()) {
            self.known = None;
        }
        self.status.system_id = Some(system.id());
        self.status.postgresql_major = Some(record.postgresql_major);
        self.look_at_drills(&repository).await?;
        let ids = system.backup_ids().await?;
        let timelines = system.history_timelines().await?;
        let is_news = |known: &Known| {
            known.ids != ids
                || known.timelines != timelines
                || known.listed.elapsed() > LISTED_EVERY
        };
        let olds = self.known.take_if(|known| !is_news(known));
        self.known = Some(match olds {
            Some(mut known) => {
                self.look_behind_the_newest(&mut known).await?;
                known
            }
            None => {
                let known = self.look_at_all(system, ids, timelines).await?;
                self.status.sizes = self.sizes(&systems, &known).await?;
                self.status.listed = Some(now);
                known
            }
        });
        if let Some(source) = &source
            && self
                .compared
                .is_none_or(|(at, took)| at.elapsed() > (took * 100).min(COMPARED_AT_LEAST))
        {
            let begun = Instant::now();
            self.compare(source, system).await;
            self.compared = Some((Instant::now(), begun.elapsed()));
        }
        Ok(())
    }

    /// Lists everything.
    async fn look_at_all(
        &mut self,
        system: &System,
        ids: Vec<BackupId>,
        timelines: BTreeSet<TimelineId>,
    ) -> Result<Known> {
        let catalogue = Catalogue::load(system).await?;
        let survey = system.survey(catalogue.record.segment_size).await?;
        let windows = catalogue.windows(&survey.archived).await;
        let needed: Vec<Needed> = catalogue.backups.iter().map(Needed::of).collect();
        let (mut gaps, mut conflicts) = (Vec::new(), 0);
        for illness in health::examine(&survey, &needed) {
            match illness {
                Illness::Missing { first, last, .. } if gaps.len() < GAPS => {
                    gaps.push([first, last]);
                }
                Illness::Conflict(_) => conflicts += 1,
                // Histories that cannot be used are among what is unreadable.
                _ => {}
            }
        }
        let pins = system.pins().await?;
        let now = Timestamp::now();
        let pinned: BTreeSet<&BackupId> = pins
            .iter()
            .filter(|pin| pin.pin.as_ref().map_or(true, |pin| pin.holds(now)))
            .map(|pin| &pin.backup)
            .collect();
        let finished = catalogue.backups.len() + unreadable_backups(&catalogue);
        let status = &mut self.status;
        status.gaps = gaps;
        status.conflicts = conflicts;
        status.unreadable = catalogue.unreadable.iter().map(|u| u.why.clone()).collect();
        status.unfinished_backups = ids.len().saturating_sub(finished) as u64;
        status.backups = catalogue
            .backups
            .iter()
            .zip(windows)
            .map(|(backup, window)| {
                let broken = chain::of(&catalogue.backups, backup).err();
                BackupStatus {
                    id: backup.id.clone(),
                    kind: backup.kind,
                    stop_time: backup.stop_time,
                    seconds: backup
                        .stop_time
                        .duration_since(backup.start_time)
                        .as_secs_f64(),
                    bytes: backup.restored_bytes(),
                    stored_bytes: backup.stored_bytes,
                    damaged_pages: backup.damaged_page_count,
                    window: window.filter(|_| broken.is_none()),
                    broken_chain: broken.map(|broken| broken.to_string()),
                    pinned: pinned.contains(&backup.id),
                    proven: None,
                }
            })
            .collect();
        self.note_proofs();
        let newest = newest_with_window(&catalogue.backups, &self.status.backups);
        let reach = newest.and_then(|newest| catalogue.reach(newest, &survey.archived));
        let as_far = |backup: &&Marker| {
            reach.is_some() && catalogue.reach(backup, &survey.archived) == reach
        };
        let with_newest = catalogue.backups.iter().filter(as_far);
        let with_newest = with_newest.map(|backup| backup.id.clone()).collect();
        self.note_end(reach.as_ref());
        Ok(Known {
            listed: Instant::now(),
            ids,
            timelines,
            catalogue,
            wal_bytes: bytes_of(&survey.archived),
            reach,
            with_newest,
        })
    }

    /// Lists the WAL behind the start of the newest backup, and reads the last commit in it if
    /// there is more than there was.
    async fn look_behind_the_newest(&mut self, known: &mut Known) -> Result<()> {
        let catalogue = &known.catalogue;
        let Some(newest) = newest_with_window(&catalogue.backups, &self.status.backups) else {
            // WAL of a backup may still arrive.
            return known.look_at_all_next_time();
        };
        let history = catalogue.histories.values().rev();
        let mut history = history.filter(|h| h.contains(newest.timeline, newest.stop_lsn));
        let Some(history) = history.next() else {
            return Ok(());
        };
        let start = newest.start_lsn.segment(catalogue.record.segment_size);
        let archived: Archived = catalogue.archived(history, start).await?;
        let reach = catalogue.reach(newest, &archived);
        if reach == known.reach {
            return Ok(());
        }
        if reach.is_none() {
            // It leads nowhere any more.
            return known.look_at_all_next_time();
        }
        let windows = catalogue.windows(&archived).await;
        let of_newest = catalogue.backups.iter().zip(windows);
        let of_newest = of_newest.filter(|(backup, _)| backup.id == newest.id);
        let to = of_newest.filter_map(|(_, window)| window?.to).next();
        for backup in &mut self.status.backups {
            if let Some(window) = &mut backup.window
                && to.is_some()
                && known.with_newest.contains(&backup.id)
            {
                window.to = to;
                window.unknown = None;
            }
        }
        known.reach = reach;
        let reach = known.reach.clone();
        self.note_end(reach.as_ref());
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

    /// Of all systems: those before the newest take their place as well.
    async fn sizes(&self, systems: &[(System, SystemRecord)], newest: &Known) -> Result<Sizes> {
        let mut sizes = Sizes::default();
        let mut add = |backups: &[Marker], wal_bytes: u64| {
            sizes.wal += wal_bytes;
            for backup in backups {
                match backup.kind {
                    BackupKind::Full => sizes.full += backup.stored_bytes,
                    BackupKind::Incremental => sizes.incremental += backup.stored_bytes,
                }
            }
        };
        add(&newest.catalogue.backups, newest.wal_bytes);
        let older = systems.iter().map(|(system, _)| system);
        for system in older.filter(|system| system.id() != newest.catalogue.system().id()) {
            let catalogue = Catalogue::load(system).await?;
            let archived = catalogue.everything_archived().await?;
            add(&catalogue.backups, bytes_of(&archived));
        }
        Ok(sizes)
    }

    async fn compare(&mut self, source: &Repository, system: &System) {
        let there = source.system(&self.cluster, system.id());
        match lag(&there, system, &self.config.retention).await {
            Ok(lag) => {
                self.status.lag = Some(lag);
                self.status.lag_error = None;
            }
            Err(error) => self.status.lag_error = Some(error.one_line()),
        }
    }
}

impl Known {
    fn look_at_all_next_time(&mut self) -> Result<()> {
        self.ids.clear();
        Ok(())
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

fn bytes_of(archived: &Archived) -> u64 {
    let runs = archived.values().flat_map(|wal| &wal.runs);
    runs.map(|run| run.stored_bytes).sum()
}

fn unreadable_backups(catalogue: &Catalogue) -> usize {
    let unreadable = catalogue.unreadable.iter();
    unreadable.filter(|object| object.backup.is_some()).count()
}

/// The newest backup that one can recover from.
fn newest_with_window<'a>(markers: &'a [Marker], backups: &[BackupStatus]) -> Option<&'a Marker> {
    let newest = backups
        .iter()
        .rev()
        .find(|backup| backup.window.is_some())?;
    markers.iter().find(|marker| marker.id == newest.id)
}

/// What several windows cover together.
fn spans<'a>(windows: impl Iterator<Item = &'a Window>) -> Vec<Span> {
    let mut spans: Vec<Span> = windows
        .map(|window| Span {
            from: window.from,
            to: window.to.unwrap_or(window.from),
        })
        .collect();
    spans.sort_by_key(|span| span.from);
    let mut joined: Vec<Span> = Vec::new();
    for span in spans {
        match joined.last_mut() {
            Some(last) if span.from <= last.to => last.to = last.to.max(span.to),
            _ => joined.push(span),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_that_meet_are_one_span_and_a_gap_is_between_two() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let window = |from, to: Option<i64>| Window {
            from: at(from),
            to: to.map(at),
            unknown: None,
        };
        let windows = [
            window(50, Some(90)),
            window(10, Some(40)),
            window(30, Some(40)),
            window(60, Some(90)),
            window(95, None),
        ];
        let found = spans(windows.iter()).into_iter();
        let found: Vec<_> = found
            .map(|s| (s.from.as_second(), s.to.as_second()))
            .collect();
        assert_eq!(found, [(10, 40), (50, 90), (95, 95)]);
    }
}
