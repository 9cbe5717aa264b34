//! Carrying a plan out, in two phases. What is to go is named in a tombstone, and nothing of it
//! is touched; a later run, when the tombstone's time is up, makes the plan anew, and deletes
//! what is in both: a backup's marker first, then its data, then WAL from the oldest on. Each
//! step leaves a state that the next run goes on from.
//!
//! No store can delete on a condition, so a look that has grown old is taken again before more
//! is deleted, and a tombstone outlives what it named by the same wait once more: one who
//! commits after a pause finds it, or finds its objects gone.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::inventory::{CLOCK_TOLERANCE, Inventory};
use super::plan::{Circumstances, Other, Plan, SystemPlan, plan};
use crate::config::RetentionConfig;
use crate::error::{Error, Result};
use crate::postgres::SegmentName;
use crate::repository::keys::{BackupId, BackupKind};
use crate::repository::segments::SegmentSet;
use crate::repository::tombstones::{DoomedBackup, DoomedWal, Tombstone};
use crate::repository::{Repository, System};
use crate::storage::ObjectInfo;
use crate::time::signed;

/// No look is older than a quarter of the wait when something is deleted by it, within these
/// bounds.
const LOOK_HOLDS: [SignedDuration; 2] =
    [SignedDuration::from_mins(5), SignedDuration::from_mins(60)];

/// Objects deleted between two looks at the clock.
const BATCH: usize = 1000;

/// What expiring needs to know.
pub struct Settings<'a> {
    /// The cluster's name in the repository.
    pub cluster: &'a str,
    /// The repository's rules.
    pub rules: &'a RetentionConfig,
    /// How long what is to go waits.
    pub wait: Duration,
    /// The other repositories of the configuration.
    pub others: &'a [Other],
    /// The time. A clock of its own in tests.
    pub clock: &'a (dyn Fn() -> Timestamp + Sync),
}

/// What was done.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Expired {
    /// What stays, what goes, and why.
    pub plan: Plan,
    /// Backups that were named by this run, and go when the wait is over.
    pub named_backups: usize,
    /// The same of ranges of WAL.
    pub named_wal_ranges: usize,
    /// When what was named may go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Backups that were deleted, and directories of unfinished ones.
    pub deleted_backups: Vec<BackupId>,
    /// Objects of WAL that were deleted.
    pub deleted_wal_objects: usize,
    /// All objects that were deleted, those of backups and of WAL among them.
    pub deleted_objects: usize,
}

/// What would go, and what stays and why. Writes nothing.
///
/// # Errors
/// The store does not answer, or something there was stored in our future.
pub async fn look(repository: &Repository, settings: &Settings<'_>) -> Result<Plan> {
    let now = (settings.clock)();
    let inventory = Inventory::load(repository, settings.cluster, now).await?;
    let leases = repository.leases(settings.cluster).await?;
    let proven: BTreeSet<BackupId> = match settings.rules.prove_before_expire {
        true => {
            let drills = repository.drills(settings.cluster).await?.into_iter();
            drills
                .filter(|drill| drill.passed)
                .map(|d| d.backup)
                .collect()
        }
        false => BTreeSet::new(),
    };
    Ok(plan(
        &inventory,
        &Circumstances {
            rules: settings.rules,
            leases: &leases,
            proven: &proven,
            others: settings.others,
            now,
            wait: signed(settings.wait),
        },
    ))
}

/// Deletes what was named long enough ago and still is to go, and names what is to go next.
///
/// After an error, and after a kill at any point, the same call goes on. Without rules nothing
/// goes.
///
/// # Errors
/// Exit code 4 where the store's clock and ours disagree: then nothing was deleted.
pub async fn expire(repository: &Repository, settings: &Settings<'_>) -> Result<Expired> {
    repository.record_for_writing().await?;
    compare_clocks(repository, settings).await?;
    let mut done = Expired::default();
    let mut touched = BTreeSet::new();
    loop {
        let before = done.deleted_objects;
        // The tombstones first: whoever commits looks at them after writing the marker.
        let tombstones = repository.tombstones(settings.cluster).await?;
        let looked = (settings.clock)();
        done.plan = look(repository, settings).await?;
        let mut run = Run {
            repository,
            settings,
            done: &mut done,
            looked,
            touched: &mut touched,
        };
        let (due, young): (Vec<_>, Vec<_>) = tombstones
            .read
            .into_iter()
            .partition(|(_, tombstone)| tombstone.is_due(looked));
        if !run.delete(&due).await? {
            // The look has grown old: look again and go on, if that leads anywhere.
            if done.deleted_objects > before {
                continue;
            }
            return Err(Error::failed(
                "looking at what is there took so long that nothing may be deleted by it any more",
            )
            .at(repository.place())
            .hint("run it again; on a machine or a store so slow, raise retention.delete_after")
            .retryable(true));
        }
        run.name(due.iter().chain(&young)).await?;
        // Each for itself: where something goes every day, each would otherwise stay for ever.
        let over = due.iter().filter(|(key, tombstone)| {
            tombstone.not_before + signed(settings.wait) <= looked && !touched.contains(key)
        });
        let mut over: Vec<String> = over.map(|(key, _)| key.clone()).collect();
        over.extend(tombstones.damaged.into_iter().map(|(key, _)| key));
        repository.store().delete_all(&over).await?;
        break;
    }
    sweep(repository, settings).await?;
    Ok(done)
}

/// One look, and what follows from it.
struct Run<'a, 'b> {
    repository: &'a Repository,
    settings: &'a Settings<'b>,
    done: &'a mut Expired,
    looked: Timestamp,
    /// The keys of the due tombstones of whose names something was deleted, also by an earlier
    /// look of this run.
    touched: &'a mut BTreeSet<String>,
}

impl Run<'_, '_> {
    /// Deletes what is in a due tombstone and in the plan. `false`: the look has grown old, and
    /// more is left.
    async fn delete(&mut self, due: &[(String, Tombstone)]) -> Result<bool> {
        for at in 0..self.done.plan.systems.len() {
            let going = self.done.plan.systems[at].clone();
            let id = going.system_id;
            let system = self.repository.system(self.settings.cluster, id);
            let named = |backup: &BackupId| due.iter().any(|(_, t)| t.names_backup(id, backup));
            let mut backups: Vec<&BackupId> = going
                .backups
                .iter()
                .filter(|backup| backup.goes)
                .map(|backup| &backup.id)
                .chain(&going.unfinished)
                .filter(|backup| named(backup))
                .collect();
            // Children before parents: names begin with the time of the start.
            backups.sort_by_key(|id| (id.kind() == BackupKind::Full, std::cmp::Reverse(*id)));
            for backup in backups {
                let objects = system
                    .store()
                    .list(&system.keys().backup(backup), None)
                    .await?;
                if objects.is_empty() {
                    continue;
                }
                if self.is_stale() {
                    return Ok(false);
                }
                self.touch(due, |tombstone| tombstone.names_backup(id, backup));
                self.delete_backup(&system, backup, objects).await?;
            }
            let size = going.segment_size;
            let mut doomed = SegmentSet::default();
            for range in due.iter().flat_map(|(_, tombstone)| &tombstone.wal) {
                if range.system_id == id
                    && let (Ok(first), Ok(last)) =
                        (range.first.number(size), range.last.number(size))
                {
                    doomed.add(range.first.timeline, first, last);
                }
            }
            let mut planned = SegmentSet::default();
            for range in &going.wal {
                planned.add(range.timeline, range.first_number, range.last_number);
            }
            let doomed = planned.within(&doomed);
            if !doomed.is_empty() && !self.delete_wal(&system, due, &doomed, &going).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Notes which tombstones name what is deleted now.
    fn touch(&mut self, due: &[(String, Tombstone)], names: impl Fn(&Tombstone) -> bool) {
        let naming = due.iter().filter(|(_, tombstone)| names(tombstone));
        self.touched.extend(naming.map(|(key, _)| key.clone()));
    }

    /// The marker goes first: from then on there is no such backup, and what is left of it is
    /// unfinished.
    async fn delete_backup(
        &mut self,
        system: &System,
        id: &BackupId,
        objects: Vec<ObjectInfo>,
    ) -> Result<()> {
        let keys = system.keys();
        tracing::info!("deleting backup {id} of {}", system.place());
        system.store().delete(&keys.marker(id)).await?;
        self.done.deleted_objects += objects.len();
        let objects: Vec<String> = objects.into_iter().map(|info| info.key).collect();
        // Nobody reads it any more; what dead writers left never was read.
        system.store().delete_all(&objects).await?;
        system.unpin(id).await?;
        self.done.deleted_backups.push(id.clone());
        Ok(())
    }

    async fn delete_wal(
        &mut self,
        system: &System,
        due: &[(String, Tombstone)],
        doomed: &SegmentSet,
        plan: &SystemPlan,
    ) -> Result<bool> {
        let (size, stays_since) = (plan.segment_size, plan.wal_stays_since);
        let mut keys = Vec::new();
        let mut gone = Vec::new();
        for (timeline, range) in doomed.iter() {
            let objects = system.wal_objects_in(timeline, range, size).await?;
            let going = objects
                .into_iter()
                .filter(|(_, info)| stays_since.is_none_or(|since| info.modified < since));
            let (numbers, going): (Vec<u64>, Vec<_>) = going.unzip();
            if let (Some(first), Some(last)) = (numbers.first(), numbers.last()) {
                gone.push((timeline, (*first, *last)));
            }
            keys.extend(going.into_iter().map(|info| info.key));
        }
        if keys.is_empty() {
            return Ok(true);
        }
        for (timeline, (first, last)) in &gone {
            let range = [*first, *last].map(|number| SegmentName::new(*timeline, number, size));
            self.touch(due, |tombstone| {
                let mut wal = tombstone.wal.iter();
                wal.any(|doomed| doomed.meets(system.id(), range))
            });
        }
        // Before anything of it is gone: no reader takes what is missing for a gap.
        for (timeline, range) in gone {
            system.note_expired(timeline, size, range).await?;
        }
        tracing::info!(
            "deleting {} objects of WAL of {}",
            keys.len(),
            system.place()
        );
        for batch in keys.chunks(BATCH) {
            if self.is_stale() {
                return Ok(false);
            }
            system.store().delete_all(batch).await?;
            self.done.deleted_wal_objects += batch.len();
            self.done.deleted_objects += batch.len();
        }
        Ok(true)
    }

    /// Names what is to go and is not named yet.
    async fn name(
        &mut self,
        known: impl Iterator<Item = &(String, Tombstone)> + Clone,
    ) -> Result<()> {
        let (mut backups, mut wal) = (Vec::new(), Vec::new());
        for system in &self.done.plan.systems {
            let id = system.system_id;
            let going = system.backups.iter().filter(|backup| backup.goes);
            for backup in going.map(|backup| &backup.id).chain(&system.unfinished) {
                let deleted = self.done.deleted_backups.contains(backup);
                if !deleted && !known.clone().any(|(_, t)| t.names_backup(id, backup)) {
                    backups.push(DoomedBackup {
                        system_id: id,
                        id: backup.clone(),
                    });
                }
            }
            for range in unnamed(system, known.clone()) {
                wal.push(range);
            }
        }
        if backups.is_empty() && wal.is_empty() {
            return Ok(());
        }
        self.done.named_backups = backups.len();
        self.done.named_wal_ranges = wal.len();
        let now = (self.settings.clock)();
        let tombstone = Tombstone::new(backups, wal, now, self.settings.wait);
        self.done.not_before = Some(tombstone.not_before);
        self.repository
            .put_tombstone(self.settings.cluster, &tombstone)
            .await?;
        Ok(())
    }

    fn is_stale(&self) -> bool {
        let [least, most] = LOOK_HOLDS;
        let holds = (signed(self.settings.wait) / 4).clamp(least, most);
        (self.settings.clock)() > self.looked + holds
    }
}

/// The WAL of a plan that no tombstone names yet.
fn unnamed<'a>(
    system: &SystemPlan,
    known: impl Iterator<Item = &'a (String, Tombstone)>,
) -> Vec<DoomedWal> {
    let known: Vec<&DoomedWal> = known.flat_map(|(_, tombstone)| &tombstone.wal).collect();
    let mut ranges = Vec::new();
    for range in &system.wal {
        let doomed = DoomedWal {
            system_id: system.system_id,
            first: range.first,
            last: range.last,
        };
        // Ranges that grew are named again as a whole: a name more harms nobody.
        let named = known.iter().any(|known| {
            known.system_id == doomed.system_id
                && known.first.timeline == doomed.first.timeline
                && known.first <= doomed.first
                && known.last >= doomed.last
        });
        if !named {
            ranges.push(doomed);
        }
    }
    ranges
}

/// Puts a small object, and holds the time that the store gives it against ours.
async fn compare_clocks(repository: &Repository, settings: &Settings<'_>) -> Result<()> {
    let skew = repository
        .clock_skew(settings.cluster, settings.clock)
        .await?;
    if skew.abs() <= CLOCK_TOLERANCE {
        return Ok(());
    }
    let apart = skew.unsigned_abs().as_secs();
    Err(Error::refused(format!(
        "the store's clock and this host's are {apart} s apart: nothing is deleted"
    ))
    .at(repository.place())
    .hint("set the wrong clock right (chrony, timesyncd); `seawall check` compares them as well"))
}

/// What nobody needs and nothing depends on: leases that have ended, leftovers of writers that
/// died, pins of backups that are gone.
async fn sweep(repository: &Repository, settings: &Settings<'_>) -> Result<()> {
    let now = (settings.clock)();
    repository.sweep_leases(settings.cluster, now).await?;
    let day = Duration::from_secs(86_400);
    repository
        .store()
        .sweep_leftovers(settings.cluster, day)
        .await?;
    for (system, _) in repository.systems(settings.cluster).await? {
        let ids = system.backup_ids().await?;
        for pin in system.pins().await? {
            let old = match &pin.pin {
                Ok(read) => read.since + signed(settings.wait) < now,
                Err(_) => true,
            };
            if old && !ids.contains(&pin.backup) {
                repository.store().delete(&pin.key).await?;
            }
        }
    }
    Ok(())
}
