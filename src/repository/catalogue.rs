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
use crate::error::{Error, Exit, Result};
use crate::postgres::history::TimelineHistory;
use crate::postgres::{Lsn, TimelineId, WalFileName};

pub use super::plan::{Plan, Request};

/// All that is known of one system without reading WAL or packs.
pub struct Catalogue {
    system: System,
    /// `system.json`.
    pub record: SystemRecord,
    /// Finished backups, oldest first by the time in their names, then by LSN. Without their
    /// lists of objects: each may name tens of thousands, and memory grows with the number of
    /// backups only. A [`Plan`]'s backup has its own.
    pub backups: Vec<Marker>,
    /// The history of every timeline that has one which can be read, and of timeline 1.
    pub histories: BTreeMap<TimelineId, TimelineHistory>,
    /// Recorded restore points, by position.
    pub points: Vec<RestorePoint>,
    /// Markers, records of restore points and histories that are there and cannot be used. The
    /// rest is usable without them.
    pub unreadable: Vec<Unreadable>,
}

/// An object that is there and damaged, or newer than this version knows, or of which there
/// are two with different contents.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Unreadable {
    /// Its key; of a history the key without the digest.
    pub key: String,
    /// The backup, if it is the marker of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupId>,
    /// The timeline, if it is the history of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeline: Option<TimelineId>,
    /// What is wrong with it.
    pub why: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What it means for one who cannot do without it.
    #[serde(skip)]
    exit: Exit,
}

impl Unreadable {
    fn new(key: String, error: &Error) -> Self {
        tracing::warn!("{}", error.one_line());
        Self {
            key,
            backup: None,
            timeline: None,
            why: error.what().to_owned(),
            hint: error.advice().map(str::to_owned),
            exit: error.exit(),
        }
    }

    /// The error for one who cannot do without it.
    pub(super) fn error(&self) -> Error {
        let error = Error::new(self.exit, &self.why);
        match &self.hint {
            Some(hint) => error.hint(hint),
            None => error,
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
    /// Reads markers, histories and points. Those that cannot be used are logged, and listed as
    /// [`unreadable`](Self::unreadable).
    pub async fn load(system: &System) -> Result<Self> {
        let (catalogue, _) = Self::load_and(system, |_| ()).await?;
        Ok(catalogue)
    }

    /// The same, with what `look` says of each of the [`backups`](Self::backups), in their
    /// order: it sees their objects. Eight lists of objects are in memory at once.
    pub async fn load_and<T>(
        system: &System,
        look: impl Fn(&Marker) -> T,
    ) -> Result<(Self, Vec<T>)> {
        let record = system.known_record().await?;
        let ids = system.backup_ids().await?;
        let mut markers = futures::stream::iter(ids)
            .map(|id| async move {
                let marker = system.marker_if_finished(&id).await?;
                Ok::<_, Error>((id, marker))
            })
            .buffered(8);
        let mut finished = Vec::new();
        let mut unreadable = Vec::new();
        while let Some((id, marker)) = markers.try_next().await? {
            match marker {
                Some(Ok(mut marker)) => {
                    let looked = look(&marker);
                    marker.objects = Vec::new();
                    finished.push((marker, looked));
                }
                Some(Err(error)) => {
                    let object = Unreadable::new(system.keys().marker(&id), &error);
                    let backup = Some(id);
                    unreadable.push(Unreadable { backup, ..object });
                }
                None => {}
            }
        }
        // Within one second the random part of the name says nothing.
        finished.sort_by(|(a, _), (b, _)| {
            (a.id.start_second(), a.start_lsn).cmp(&(b.id.start_second(), b.start_lsn))
        });
        let (backups, looks) = finished.into_iter().unzip();
        let (points, others) = system.points().await?;
        let others = others.into_iter();
        unreadable.extend(others.map(|(key, error)| Unreadable::new(key, &error)));
        let files = system.history_files().await?;
        for timeline in files.conflicts {
            let name = WalFileName::History(timeline);
            let objects = system.objects_of(name).await?;
            let digests: Vec<_> = objects.iter().map(|(object, _)| object.digest).collect();
            let error = system.conflict(name, &digests);
            unreadable.push(unusable_history(system, timeline, &error));
        }
        for (timeline, error) in files.unreadable {
            unreadable.push(unusable_history(system, timeline, &error));
        }
        let catalogue = Self {
            system: system.clone(),
            record,
            backups,
            histories: files.read,
            points,
            unreadable,
        };
        Ok((catalogue, looks))
    }

    /// The system that this describes.
    pub fn system(&self) -> &System {
        &self.system
    }

    /// The newest timeline: the one with the highest number that has a history, as
    /// PostgreSQL's `latest` finds it; also where that history cannot be used.
    pub fn newest_timeline(&self) -> TimelineId {
        let unusable = self.unusable_histories().map(|(timeline, _)| timeline);
        let known = self.histories.keys().copied().chain(unusable);
        known.max().unwrap_or(TimelineId::FIRST)
    }

    /// The history of `timeline`.
    ///
    /// # Errors
    /// Exit code 5 where there is none, 4 where there are several with different contents, 1
    /// where it is damaged.
    pub fn history(&self, timeline: TimelineId) -> Result<&TimelineHistory> {
        if let Some((_, object)) = self.unusable_histories().find(|(t, _)| *t == timeline) {
            return Err(object.error().at(self.system.place()));
        }
        self.histories.get(&timeline).ok_or_else(|| {
            let known: Vec<_> = self.histories.keys().map(TimelineId::to_string).collect();
            Error::unreachable(format!("timeline {timeline} is not in the archive"))
                .at(self.system.place())
                .hint(format!("known timelines: {}", known.join(", ")))
        })
    }

    /// The histories that are there and cannot be used.
    pub(super) fn unusable_histories(&self) -> impl Iterator<Item = (TimelineId, &Unreadable)> {
        let unreadable = self.unreadable.iter();
        unreadable.filter_map(|object| Some((object.timeline?, object)))
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

fn unusable_history(system: &System, timeline: TimelineId, error: &Error) -> Unreadable {
    let directory = system.keys().wal();
    let key = format!("{directory}/{}", WalFileName::History(timeline));
    let mut object = Unreadable::new(key, error);
    object.timeline = Some(timeline);
    if object.hint.is_none() {
        // An error of reading names the object and the cause, and not what to do.
        object.why = error.one_line();
        object.hint = Some(
            "move the object away and archive the file again from a server that still has it in pg_wal"
                .to_owned(),
        );
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::StoredDigest;
    use crate::postgres::recovery::RecoveryTarget;
    use crate::postgres::{SegmentSize, SystemId};
    use crate::repository::Repository;
    use crate::repository::commit::tests::uncommitted;
    use crate::repository::marker::StoredObject;
    use crate::storage::Store;

    #[tokio::test]
    async fn only_the_backup_of_a_plan_has_its_list_of_objects_in_memory() {
        let repository = Repository::over("near", Store::memory().unwrap());
        repository.init().await.unwrap();
        let system = repository.system("main", SystemId(7));
        system.register(18, SegmentSize::DEFAULT).await.unwrap();
        let mut marker = uncommitted(&system).await;
        let key = format!("{}/data/1", system.keys().backup(&marker.id));
        system.store().put(&key, "one".into()).await.unwrap();
        marker.objects.push(StoredObject {
            key: "data/1".to_owned(),
            size: 3,
            sha256: StoredDigest::of(b"one"),
        });
        system.commit(&marker).await.unwrap();

        let (catalogue, objects) = Catalogue::load_and(&system, |marker| marker.objects.len())
            .await
            .unwrap();
        assert_eq!((catalogue.backups.len(), objects), (1, vec![1]));
        assert!(catalogue.backups[0].objects.is_empty());
        let request = Request {
            target: RecoveryTarget::Immediate,
            inclusive: true,
            timeline: None,
            backup: None,
            end_at_gap: false,
        };
        let plan = catalogue.plan(&request).await.unwrap();
        assert_eq!(plan.backup.objects, marker.objects);

        // Who expires may take it away in between.
        let marker = system.keys().marker(&marker.id);
        system.store().delete(&marker).await.unwrap();
        let error = catalogue.plan(&request).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
    }
}
