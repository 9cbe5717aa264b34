//! All that is known of one system: its finished backups, timelines and restore points, and
//! what is archived. [`plan`](super::plan) says which of it leads to a target.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;

use super::System;
use super::keys::BackupId;
use super::line::{self, Archived, Line};
use super::marker::Marker;
use super::points::RestorePoint;
use super::system::SystemRecord;
use crate::error::{Error, Result};
use crate::postgres::history::TimelineHistory;
use crate::postgres::{Lsn, TimelineId};

pub use super::plan::{Plan, Request};

/// All that is known of one system without reading WAL or packs.
pub struct Catalogue {
    system: System,
    /// `system.json`.
    pub record: SystemRecord,
    /// Finished backups, oldest first by (start) name.
    pub backups: Vec<Marker>,
    /// The history of every timeline that has one, and of timeline 1.
    pub histories: BTreeMap<TimelineId, TimelineHistory>,
    /// Recorded restore points, by position.
    pub points: Vec<RestorePoint>,
    /// Markers and records of restore points that are there and cannot be used. The rest is
    /// usable without them.
    pub unreadable: Vec<Unreadable>,
}

/// An object that is there and damaged, or newer than this version knows.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Unreadable {
    /// Its key.
    pub key: String,
    /// The backup, if it is the marker of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupId>,
    /// What is wrong with it.
    pub why: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Unreadable {
    fn new(key: String, backup: Option<BackupId>, error: &Error) -> Self {
        tracing::warn!("{}", error.one_line());
        Self {
            key,
            backup,
            why: error.what().to_owned(),
            hint: error.advice().map(str::to_owned),
        }
    }
}

/// What one can recover to from a backup, as far as listings can tell.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Reach {
    /// The newest timeline that the backup leads to.
    pub timeline: TimelineId,
    /// The end of the archived WAL on that line, without a break.
    pub end: Lsn,
    /// When that WAL was stored, by the store's clock.
    pub end_stored: Timestamp,
}

impl Catalogue {
    /// Reads markers, histories and points. Those markers and points that cannot be used are
    /// logged, and listed as [`unreadable`](Self::unreadable).
    pub async fn load(system: &System) -> Result<Self> {
        let record = system.known_record().await?;
        let ids = system.backup_ids().await?;
        let markers: Vec<(BackupId, Option<Result<Marker>>)> = futures::stream::iter(ids)
            .map(|id| async move {
                let marker = system.marker_if_finished(&id).await?;
                Ok::<_, Error>((id, marker))
            })
            .buffered(8)
            .try_collect()
            .await?;
        let mut backups = Vec::new();
        let mut unreadable = Vec::new();
        for (id, marker) in markers {
            match marker {
                Some(Ok(marker)) => backups.push(marker),
                Some(Err(error)) => {
                    let key = system.keys().marker(&id);
                    unreadable.push(Unreadable::new(key, Some(id), &error));
                }
                None => {}
            }
        }
        let (points, others) = system.points().await?;
        let others = others.into_iter();
        unreadable.extend(others.map(|(key, error)| Unreadable::new(key, None, &error)));
        Ok(Self {
            system: system.clone(),
            record,
            backups,
            histories: system.histories().await?,
            points,
            unreadable,
        })
    }

    /// The system that this describes.
    pub fn system(&self) -> &System {
        &self.system
    }

    /// The newest timeline: the one with the highest number that has a history, as
    /// PostgreSQL's `latest` finds it.
    pub fn newest_timeline(&self) -> TimelineId {
        self.histories
            .keys()
            .next_back()
            .copied()
            .unwrap_or(TimelineId::FIRST)
    }

    /// The history of `timeline`.
    pub fn history(&self, timeline: TimelineId) -> Result<&TimelineHistory> {
        self.histories.get(&timeline).ok_or_else(|| {
            let known: Vec<_> = self.histories.keys().map(TimelineId::to_string).collect();
            Error::unreachable(format!("timeline {timeline} is not in the archive"))
                .at(self.system.place())
                .hint(format!("known timelines: {}", known.join(", ")))
        })
    }

    /// What is archived of the timelines that `history` passes, from segment `start` on.
    pub async fn archived(&self, history: &TimelineHistory, start: u64) -> Result<Archived> {
        let size = self.record.segment_size;
        let mut archived = Archived::new();
        // With the segment of the switch point, which may have to be read from the parent.
        let passed = history
            .spans()
            .filter(|span| span.end.is_none_or(|end| end.segment(size) >= start));
        for span in passed {
            let first = span.start.segment(size).max(start);
            let wal = self.system.timeline_wal(span.timeline, size, first);
            archived.insert(span.timeline, wal.await?);
        }
        Ok(archived)
    }

    /// What is archived of all timelines.
    pub async fn everything_archived(&self) -> Result<Archived> {
        let mut archived = Archived::new();
        for timeline in self.system.timelines_with_wal().await? {
            let wal = self
                .system
                .timeline_wal(timeline, self.record.segment_size, 0)
                .await?;
            archived.insert(timeline, wal);
        }
        Ok(archived)
    }

    /// What one can recover to from `backup`. `None`: not even to its own end.
    pub fn reach(&self, backup: &Marker, archived: &Archived) -> Option<Reach> {
        Some(self.line_of(backup, archived)?.0)
    }

    /// The same, with the line of WAL behind the backup's start.
    pub(super) fn line_of(&self, backup: &Marker, archived: &Archived) -> Option<(Reach, Line)> {
        let size = self.record.segment_size;
        let history = self
            .histories
            .values()
            .rev()
            .find(|history| history.contains(backup.timeline, backup.stop_lsn))?;
        let start = backup.start_lsn.segment(size);
        let line = line::follow(history, start, size, archived);
        let (last, end_stored) = line.end?;
        let end = size.start_of(last + 1);
        let reach = Reach {
            timeline: history.timeline,
            end,
            end_stored,
        };
        (end >= backup.stop_lsn).then_some((reach, line))
    }
}
