//! What a destination wants of its source: the one place that decides it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::config::RetentionConfig;
use crate::error::Result;
use crate::postgres::{Lsn, SegmentSize, TimelineId};
use crate::repository::System;
use crate::repository::expired::Ranges;
use crate::repository::keys::BackupId;
use crate::repository::marker::Marker;
use crate::retention::{self, Inventory};

/// A finished backup, as far as a copy must know it. Its marker may hold a list of tens of
/// thousands of objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Its name.
    pub id: BackupId,
    /// The timeline that it was taken on.
    pub timeline: TimelineId,
    /// Where recovery from it starts.
    pub start_lsn: Lsn,
}

/// What a destination wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Backups of the source, in the order of timelines and LSNs: the newest comes last.
    pub backups: Vec<Backup>,
    /// From where on WAL is wanted, of every timeline. Position 0 where there is no backup.
    pub wal_from: Lsn,
}

/// What a destination wants of a source that holds these `finished` backups, given the WAL of
/// each timeline that retention removed at the destination: all backups but those whose WAL it
/// let go, and all WAL from the start of the oldest of them on.
pub fn wanted(
    finished: impl IntoIterator<Item = Backup>,
    expired: &BTreeMap<TimelineId, Ranges>,
    size: SegmentSize,
) -> Wanted {
    let let_go = |backup: &Backup| {
        let start = backup.start_lsn.segment(size);
        let expired = expired.get(&backup.timeline);
        expired.is_some_and(|expired| expired.contains(start))
    };
    let finished = finished.into_iter();
    let mut backups: Vec<Backup> = finished.filter(|backup| !let_go(backup)).collect();
    backups.sort_by(|a, b| (a.timeline, a.start_lsn, &a.id).cmp(&(b.timeline, b.start_lsn, &b.id)));
    let wal_from = backups.iter().map(|backup| backup.start_lsn).min();
    Wanted {
        backups,
        wal_from: wal_from.unwrap_or(Lsn(0)),
    }
}

/// Which of these backups of `source`, which `aim` lacks, its own `rules` would not keep: what
/// is copied today must not expire tomorrow. Where it cannot be told, none.
///
/// # Errors
/// One of the two did not answer.
pub async fn unwanted(
    source: &System,
    aim: &System,
    rules: &RetentionConfig,
    missing: impl IntoIterator<Item = BackupId>,
) -> Result<BTreeSet<BackupId>> {
    let mut missing: BTreeSet<BackupId> = missing.into_iter().collect();
    if missing.is_empty() || !rules.has_rules() {
        return Ok(BTreeSet::new());
    }
    let now = Timestamp::now();
    let load = |system: &System| {
        let (repository, cluster) = (system.repository().clone(), system.cluster().to_owned());
        async move { Inventory::load(&repository, &cluster, now).await }
    };
    let (here, there) = match tokio::try_join!(load(source), load(aim)) {
        Ok(both) => both,
        Err(error) if error.is_retryable() => return Err(error),
        Err(error) => {
            tracing::warn!(
                "what {} would keep cannot be told, and all is copied there: {}",
                aim.repository().place(),
                error.one_line()
            );
            return Ok(BTreeSet::new());
        }
    };
    let mut systems = here.systems.iter().chain(&there.systems);
    if systems.any(|system| !system.problems.is_empty()) {
        return Ok(BTreeSet::new());
    }
    let wanted = retention::wanted(&here, Some(&there), rules, now);
    missing.retain(|id| !wanted.backups.contains(id));
    Ok(missing)
}

impl Wanted {
    /// Without what the destination would not keep, and without the WAL before the rest.
    pub fn without(mut self, unwanted: &BTreeSet<BackupId>) -> Self {
        if unwanted.is_empty() {
            return self;
        }
        self.backups.retain(|backup| !unwanted.contains(&backup.id));
        let from = self.backups.iter().map(|backup| backup.start_lsn).min();
        self.wal_from = from.unwrap_or(self.wal_from);
        self
    }
}

/// The finished backups of a system. A marker never changes: each is read once.
#[derive(Debug, Default)]
pub struct Finished(BTreeMap<BackupId, Option<Backup>>);

impl Finished {
    /// Looks at what is new, and forgets what is gone. A marker that cannot be used is told to
    /// `unusable`: that backup counts as finished, and nothing is known of it.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn refresh(
        &mut self,
        system: &System,
        mut unusable: impl FnMut(String, &str),
    ) -> Result<()> {
        let ids = system.backup_ids().await?;
        self.0.retain(|id, _| ids.binary_search(id).is_ok());
        for id in ids {
            if self.0.contains_key(&id) {
                continue;
            }
            match system.marker_if_finished(&id).await? {
                Some(Ok(marker)) => drop(self.0.insert(id, Some(Backup::of(&marker)))),
                Some(Err(error)) => {
                    unusable(system.keys().marker(&id), error.what());
                    self.0.insert(id, None);
                }
                None => {}
            }
        }
        Ok(())
    }

    /// What `aim` wants of these, which the source holds.
    ///
    /// # Errors
    /// The destination did not answer.
    pub async fn wanted_by(&self, aim: &System, size: SegmentSize) -> Result<Wanted> {
        let mut expired = BTreeMap::new();
        for backup in self.backups() {
            if let Entry::Vacant(unknown) = expired.entry(backup.timeline) {
                unknown.insert(aim.expired(backup.timeline, size).await?);
            }
        }
        Ok(wanted(self.backups().cloned(), &expired, size))
    }

    /// Those whose markers can be used.
    fn backups(&self) -> impl Iterator<Item = &Backup> {
        self.0.values().flatten()
    }

    /// Whether this one is finished here.
    pub fn has(&self, id: &BackupId) -> bool {
        self.0.contains_key(id)
    }
}

impl Backup {
    fn of(marker: &Marker) -> Self {
        Self {
            id: marker.id.clone(),
            timeline: marker.timeline,
            start_lsn: marker.start_lsn,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::keys::BackupKind;

    #[test]
    fn a_backup_whose_wal_the_destination_let_go_does_not_come_again() {
        let size = SegmentSize::DEFAULT;
        let backup = |segment: u64| Backup {
            id: BackupId::new(BackupKind::Full, jiff::Timestamp::UNIX_EPOCH),
            timeline: TimelineId::FIRST,
            start_lsn: size.start_of(segment),
        };
        let all = [backup(30), backup(4), backup(9)];
        let expired = [(1, 8)].into_iter().collect();
        let expired = BTreeMap::from([(TimelineId::FIRST, expired)]);
        let starts = |expired: &BTreeMap<TimelineId, Ranges>| {
            let wanted = wanted(all.clone(), expired, size);
            let starts = wanted.backups.iter().map(|b| b.start_lsn.segment(size));
            (starts.collect::<Vec<_>>(), wanted.wal_from.segment(size))
        };
        assert_eq!(starts(&BTreeMap::new()), (vec![4, 9, 30], 4));
        assert_eq!(starts(&expired), (vec![9, 30], 9));
        assert_eq!(wanted([], &expired, size).wal_from, Lsn(0));
    }
}
