//! All of what one repository holds of a cluster, by one listing of everything.

use std::collections::BTreeSet;
use std::time::Instant;

use jiff::Timestamp;

use super::{BackupStatus, RepositoryStatus, Sizes, Span};
use crate::error::Result;
use crate::postgres::{SegmentName, TimelineId};
use crate::repository::catalogue::{Catalogue, Reach};
use crate::repository::chain;
use crate::repository::health::{self, Illness, Needed};
use crate::repository::keys::{BackupId, BackupKind};
use crate::repository::line::Archived;
use crate::repository::marker::Marker;
use crate::repository::windows::{NOTHING_ENDED, Window};
use crate::repository::{System, SystemRecord};

/// More missing ranges than this are not named.
const GAPS: usize = 100;

/// What a whole listing said, and stays true until a backup or a timeline comes or goes.
pub(super) struct Listing {
    /// When it began.
    pub(super) time: Timestamp,
    /// The same by a clock that nobody sets.
    pub(super) listed: Instant,
    /// The backup whose line goes on: of those that lead to the newest timeline, the newest.
    newest: Option<Marker>,
    /// Where that line ended.
    pub(super) reach: Option<Reach>,
    /// The backups that led there, too.
    pub(super) with_newest: BTreeSet<BackupId>,
    /// Whether something is wrong that may soon be mended.
    pub(super) is_ill: bool,
    catalogue: Catalogue,
    ids: Vec<BackupId>,
    /// Those of them that are not finished.
    unfinished: Vec<BackupId>,
    timelines: BTreeSet<TimelineId>,
    backups: Vec<BackupStatus>,
    gaps: Vec<[SegmentName; 2]>,
    conflicts: u64,
    sizes: Sizes,
}

impl Listing {
    /// Lists `system`, the newest of `systems`, and of the others the sizes.
    pub(super) async fn of(system: &System, systems: &[(System, SystemRecord)]) -> Result<Self> {
        let (time, listed) = (Timestamp::now(), Instant::now());
        // Before the markers are read: what is finished meanwhile is news at the next look.
        let ids = system.backup_ids().await?;
        let timelines = system.history_timelines().await?;
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
        let reaches = catalogue.backups.iter();
        let reaches: Vec<Option<Reach>> = reaches
            .map(|backup| catalogue.reach(backup, &survey.archived))
            .collect();
        let newest = (0..reaches.len())
            .filter(|at| windows[*at].is_some())
            .max_by_key(|at| {
                let timeline = reaches[*at].as_ref().map(|reach| reach.timeline);
                (timeline, catalogue.backups[*at].stop_lsn)
            });
        let reach = newest.and_then(|at| reaches[at].clone());
        let with_newest = catalogue.backups.iter().zip(&reaches);
        let with_newest = with_newest.filter(|(_, own)| own.is_some() && **own == reach);
        let with_newest = with_newest.map(|(backup, _)| backup.id.clone()).collect();
        let doubtful = windows.iter().flatten().any(is_unreadable);
        let backups = backups(system, &catalogue, windows).await?;
        let mut unfinished = ids.clone();
        let unreadable = catalogue.unreadable.iter();
        let unreadable: Vec<&BackupId> = unreadable.filter_map(|u| u.backup.as_ref()).collect();
        unfinished.retain(|id| {
            !unreadable.contains(&id) && !backups.iter().any(|backup| backup.id == *id)
        });
        let unusable = backups.iter().any(|backup| backup.window.is_none());
        let is_ill = doubtful
            || unusable
            || !gaps.is_empty()
            || conflicts > 0
            || !catalogue.unreadable.is_empty();
        Ok(Self {
            time,
            listed,
            newest: newest.map(|at| catalogue.backups[at].clone()),
            reach,
            with_newest,
            is_ill,
            ids,
            unfinished,
            timelines,
            backups,
            gaps,
            conflicts,
            sizes: sizes(systems, &catalogue, &survey.archived).await?,
            catalogue,
        })
    }

    /// Whether `system` still has these backups and timelines, and has finished none since.
    pub(super) async fn is_of(&self, system: &System) -> Result<bool> {
        if system.backup_ids().await? != self.ids
            || system.history_timelines().await? != self.timelines
        {
            return Ok(false);
        }
        for id in &self.unfinished {
            if system.marker_if_finished(id).await?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn show(&self, status: &mut RepositoryStatus) {
        status.backups = self.backups.clone();
        status.gaps = self.gaps.clone();
        status.conflicts = self.conflicts;
        let unreadable = self.catalogue.unreadable.iter();
        status.unreadable = unreadable.map(|object| object.why.clone()).collect();
        status.unfinished_backups = self.unfinished.len() as u64;
        status.sizes = self.sizes;
    }

    /// Where the newest line ends now, and the window behind it, if that is not where it ended.
    pub(super) async fn look_further(&mut self) -> Result<Option<(Reach, Window)>> {
        let Some(newest) = &self.newest else {
            return Ok(None);
        };
        let histories = self.catalogue.histories.values().rev();
        let mut leading = histories.filter(|h| h.contains(newest.timeline, newest.stop_lsn));
        let Some(history) = leading.next() else {
            return Ok(None);
        };
        let start = newest.start_lsn.segment(self.catalogue.record.segment_size);
        let archived: Archived = self.catalogue.archived(history, start).await?;
        let reach = self.catalogue.reach(newest, &archived);
        if reach == self.reach {
            return Ok(None);
        }
        let Some(reach) = reach else {
            // It leads nowhere any more: all is to be listed anew.
            self.ids.clear();
            return Ok(None);
        };
        let windows = self.catalogue.windows(&archived).await;
        let mut windows = self.catalogue.backups.iter().zip(windows);
        let window = windows.find(|(backup, _)| backup.id == newest.id);
        Ok(window.and_then(|(_, window)| Some((reach, window?))))
    }
}

async fn backups(
    system: &System,
    catalogue: &Catalogue,
    windows: Vec<Option<Window>>,
) -> Result<Vec<BackupStatus>> {
    let pins = system.pins().await?;
    let now = Timestamp::now();
    let holds = pins
        .iter()
        .filter(|pin| pin.pin.as_ref().map_or(true, |pin| pin.holds(now)));
    let pinned: BTreeSet<&BackupId> = holds.map(|pin| &pin.backup).collect();
    let with_windows = catalogue.backups.iter().zip(windows);
    Ok(with_windows
        .map(|(backup, window)| {
            let broken = chain::of(&catalogue.backups, backup).err();
            let took = backup.stop_time.duration_since(backup.start_time);
            BackupStatus {
                id: backup.id.clone(),
                kind: backup.kind,
                stop_time: backup.stop_time,
                seconds: took.as_secs_f64(),
                bytes: backup.restored_bytes(),
                stored_bytes: backup.stored_bytes,
                damaged_pages: backup.damaged_page_count,
                window: window.filter(|_| broken.is_none()),
                broken_chain: broken.map(|broken| broken.to_string()),
                pinned: pinned.contains(&backup.id),
                proven: None,
            }
        })
        .collect())
}

/// Of all systems: those before the newest take their place as well.
async fn sizes(
    systems: &[(System, SystemRecord)],
    newest: &Catalogue,
    archived: &Archived,
) -> Result<Sizes> {
    let mut sizes = Sizes::default();
    let mut add = |backups: &[Marker], archived: &Archived| {
        let runs = archived.values().flat_map(|wal| &wal.runs);
        sizes.wal += runs.map(|run| run.stored_bytes).sum::<u64>();
        for backup in backups {
            match backup.kind {
                BackupKind::Full => sizes.full += backup.stored_bytes,
                BackupKind::Incremental => sizes.incremental += backup.stored_bytes,
            }
        }
    };
    add(&newest.backups, archived);
    let older = systems.iter().map(|(system, _)| system);
    for system in older.filter(|system| system.id() != newest.system().id()) {
        let catalogue = Catalogue::load(system).await?;
        add(&catalogue.backups, &catalogue.everything_archived().await?);
    }
    Ok(sizes)
}

/// Whether the end of a window is not known since something could not be read.
pub(super) fn is_unreadable(window: &Window) -> bool {
    let why = window.unknown.as_ref();
    window.to.is_none() && why.is_some_and(|why| !why.starts_with(NOTHING_ENDED))
}

/// What several windows cover together.
pub(super) fn spans<'a>(windows: impl Iterator<Item = &'a Window>) -> Vec<Span> {
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
