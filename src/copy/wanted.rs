//! What a destination wants of its source: the one place that decides it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::config::RetentionConfig;
use crate::error::Result;
use crate::postgres::{Lsn, SegmentSize, TimelineId};
use crate::repository::System;
use crate::repository::keys::BackupId;
use crate::repository::marker::{Marker, Parent};
use crate::repository::segments::{Ranges, SegmentSet};
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
    /// Of an incremental backup: what it was taken on top of.
    pub parent: Option<Parent>,
}

/// What a destination wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Backups of the source, in the order of timelines and LSNs: the newest comes last.
    pub backups: Vec<Backup>,
    /// From where on WAL is wanted, of every timeline. Position 0 where there is no backup.
    pub wal_from: Lsn,
    /// What of that is not wanted.
    pub withheld: Withheld,
}

/// The WAL of each timeline that retention removed at a destination.
pub type Removed = BTreeMap<TimelineId, Ranges>;

/// Which of the WAL that retention removed at a destination does not come again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Withheld {
    /// None of it: the destination has no rules by which it would go once more.
    Nothing,
    /// All but this, which the rules would keep.
    AllBut(SegmentSet),
}

impl Default for Withheld {
    fn default() -> Self {
        Self::AllBut(SegmentSet::default())
    }
}

impl Withheld {
    /// Whether segment `number` of `timeline`, of which the destination `removed` this much,
    /// does not come again.
    pub fn has(&self, timeline: TimelineId, number: u64, removed: &Ranges) -> bool {
        let comes = match self {
            Self::Nothing => true,
            Self::AllBut(kept) => kept.contains(timeline, number),
        };
        !comes && removed.contains(number)
    }
}

/// What a destination would keep of what its source holds, by its own rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judged {
    /// The backups that this is about: those that the destination lacks.
    lacking: BTreeSet<BackupId>,
    /// What had been removed there.
    removed: Removed,
    /// Those of `lacking` that it would not keep.
    unwanted: BTreeSet<BackupId>,
    withheld: Withheld,
}

impl Judged {
    /// Whether it says nothing of one of the backups that are lacking now, or more was removed
    /// since: by what was judged before, that would come again.
    pub fn is_outdated(&self, lacking: &BTreeSet<BackupId>, removed: &Removed) -> bool {
        !lacking.is_subset(&self.lacking) || *removed != self.removed
    }

    /// What is wanted of these `finished` backups, and WAL from the start of the oldest of them
    /// on. A backup whose WAL does not come again is of no use without it.
    pub fn wanted(&self, finished: impl IntoIterator<Item = Backup>, size: SegmentSize) -> Wanted {
        let nothing = Ranges::default();
        let wanted = |backup: &Backup| {
            let start = backup.start_lsn.segment(size);
            let removed = self.removed.get(&backup.timeline).unwrap_or(&nothing);
            !self.unwanted.contains(&backup.id)
                && !self.withheld.has(backup.timeline, start, removed)
        };
        let mut backups: Vec<Backup> = finished.into_iter().collect();
        let oldest = |backups: &[Backup]| backups.iter().map(|backup| backup.start_lsn).min();
        let begin = oldest(&backups);
        backups.retain(wanted);
        backups.sort_by(|a, b| {
            (a.timeline, a.start_lsn, &a.id).cmp(&(b.timeline, b.start_lsn, &b.id))
        });
        Wanted {
            wal_from: oldest(&backups).or(begin).unwrap_or(Lsn(0)),
            withheld: self.withheld.clone(),
            backups,
        }
    }
}

/// Asks the rules of `aim` what it would keep of `source`, given the backups that it lacks and
/// the WAL that it `removed`: what is copied today must not expire tomorrow, and what it would
/// keep comes again, whatever it did with it before. Without rules everything is wanted. Where
/// it cannot be told, every backup is, and nothing that was removed comes again.
///
/// Reads the markers of both, and lists all of them, where there is anything to ask.
///
/// # Errors
/// One of the two did not answer.
pub async fn judge(
    source: &System,
    aim: &System,
    rules: &RetentionConfig,
    lacking: BTreeSet<BackupId>,
    removed: Removed,
) -> Result<Judged> {
    let mut judged = Judged {
        lacking,
        removed,
        ..Judged::default()
    };
    if !rules.has_rules() {
        judged.withheld = Withheld::Nothing;
        return Ok(judged);
    }
    if judged.lacking.is_empty() && judged.removed.values().all(Ranges::is_empty) {
        return Ok(judged);
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
                "what {} would keep cannot be told, and all is copied there but what was removed: {}",
                aim.repository().place(),
                error.one_line()
            );
            return Ok(judged);
        }
    };
    let mut systems = here.systems.iter().chain(&there.systems);
    if systems.any(|system| !system.problems.is_empty()) {
        return Ok(judged);
    }
    let mut kept = retention::wanted(&here, Some(&there), rules, now);
    let lacking = judged.lacking.iter();
    judged.unwanted = lacking
        .filter(|id| !kept.backups.contains(id))
        .cloned()
        .collect();
    let wal = kept.wal.remove(&source.id());
    judged.withheld = Withheld::AllBut(wal.unwrap_or_default());
    Ok(judged)
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

    /// What retention removed at `aim` of the timelines that these were taken on, and of all that
    /// have WAL at `source`: a timeline may have no backup of its own.
    ///
    /// # Errors
    /// One of the two did not answer.
    pub async fn removed_at(
        &self,
        source: &System,
        aim: &System,
        size: SegmentSize,
    ) -> Result<Removed> {
        let of_backups = self.backups().map(|backup| backup.timeline);
        let mut timelines: BTreeSet<TimelineId> = of_backups.collect();
        timelines.extend(source.timelines_with_wal().await?);
        let mut removed = Removed::new();
        for timeline in timelines {
            removed.insert(timeline, aim.expired(timeline, size).await?);
        }
        Ok(removed)
    }

    /// Those that `other`, the same of another repository, lacks.
    pub fn lacking_in(&self, other: &Self) -> BTreeSet<BackupId> {
        let backups = self.backups().map(|backup| &backup.id);
        backups.filter(|id| !other.has(id)).cloned().collect()
    }

    /// Those whose markers can be used.
    pub fn backups(&self) -> impl Iterator<Item = &Backup> {
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
            parent: marker.parent.clone(),
        }
    }
}

/// The newest first, but each incremental backup behind those that it was taken on top of: a
/// child without its chain is no backup.
pub fn parents_first(backups: &[Backup]) -> Vec<&Backup> {
    let mut ordered: Vec<&Backup> = Vec::new();
    for backup in backups.iter().rev() {
        let mut chain = vec![backup];
        while let Some((last, parent)) = chain.last().and_then(|l| Some((l, l.parent.as_ref()?))) {
            // Starts go down along a chain: it has an end, whatever markers say.
            let is_parent = |other: &&Backup| {
                (other.timeline, other.start_lsn) == (parent.timeline, parent.start_lsn)
                    && other.start_lsn < last.start_lsn
            };
            // Otherwise one that was merged from it.
            let parents = backups.iter().filter(is_parent);
            match parents.max_by_key(|other| other.id == parent.id) {
                Some(parent) => chain.push(parent),
                None => break,
            }
        }
        for link in chain.into_iter().rev() {
            if !ordered.contains(&link) {
                ordered.push(link);
            }
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::keys::BackupKind;

    #[test]
    fn the_newest_comes_first_and_an_incremental_one_behind_all_that_it_stands_on() {
        let backup = |start: u64, parent: Option<u64>| Backup {
            id: BackupId::new(BackupKind::Full, jiff::Timestamp::UNIX_EPOCH),
            timeline: TimelineId::FIRST,
            start_lsn: Lsn(start),
            parent: parent.map(|start| Parent {
                id: BackupId::new(BackupKind::Full, jiff::Timestamp::UNIX_EPOCH),
                timeline: TimelineId::FIRST,
                start_lsn: Lsn(start),
            }),
        };
        let all = [
            backup(10, None),
            backup(20, Some(10)),
            backup(30, None),
            backup(40, Some(20)),
            // Its parent is gone, and one says that it is its own ancestor.
            backup(50, Some(45)),
            backup(60, Some(60)),
        ];
        let starts: Vec<u64> = parents_first(&all).iter().map(|b| b.start_lsn.0).collect();
        assert_eq!(starts, [60, 50, 10, 20, 40, 30]);
    }

    #[test]
    fn what_the_destination_removed_comes_again_only_where_its_rules_would_keep_it() {
        let size = SegmentSize::DEFAULT;
        let backup = |segment: u64| Backup {
            id: BackupId::new(BackupKind::Full, jiff::Timestamp::UNIX_EPOCH),
            timeline: TimelineId::FIRST,
            start_lsn: size.start_of(segment),
            parent: None,
        };
        let all = [backup(30), backup(4), backup(9)];
        let starts = |removed: &[(u64, u64)], withheld: Withheld| {
            let removed = removed.iter().copied().collect();
            let judged = Judged {
                removed: Removed::from([(TimelineId::FIRST, removed)]),
                withheld,
                ..Judged::default()
            };
            let wanted = judged.wanted(all.clone(), size);
            let starts = wanted.backups.iter().map(|b| b.start_lsn.segment(size));
            (starts.collect::<Vec<_>>(), wanted.wal_from.segment(size))
        };
        let nothing = Withheld::default;
        assert_eq!(starts(&[], nothing()), (vec![4, 9, 30], 4));
        assert_eq!(starts(&[(1, 8)], nothing()), (vec![9, 30], 9));
        assert_eq!(starts(&[(1, 8)], Withheld::Nothing), (vec![4, 9, 30], 4));
        let mut kept = SegmentSet::default();
        kept.add(TimelineId::FIRST, 4, 5);
        let kept = Withheld::AllBut(kept);
        assert_eq!(starts(&[(1, 8)], kept.clone()), (vec![4, 9, 30], 4));
        let removed: Ranges = [(1, 8)].into_iter().collect();
        let comes = |number: &u64| !kept.has(TimelineId::FIRST, *number, &removed);
        assert_eq!((1..=10).filter(comes).collect::<Vec<_>>(), [4, 5, 9, 10]);
        assert_eq!(Judged::default().wanted([], size).wal_from, Lsn(0));
    }

    #[test]
    fn more_that_is_lacking_or_was_removed_since_is_judged_anew() {
        let id = BackupId::new(BackupKind::Full, jiff::Timestamp::UNIX_EPOCH);
        let judged = Judged::default();
        assert!(!judged.is_outdated(&BTreeSet::new(), &Removed::new()));
        assert!(judged.is_outdated(&BTreeSet::from([id]), &Removed::new()));
        let removed = Removed::from([(TimelineId::FIRST, [(1, 8)].into_iter().collect())]);
        assert!(judged.is_outdated(&BTreeSet::new(), &removed));
    }
}
