//! What a repository would keep of what another one holds: what a copy is worth making of, and
//! what must not go before the copy is made. The rules look at both together, for of two full
//! backups that are to stay it may hold newer ones already.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::inventory::{Inventory, SystemInventory};
use super::{lines, rules};
use crate::config::RetentionConfig;
use crate::postgres::SystemId;
use crate::repository::keys::BackupId;
use crate::repository::line::Archived;
use crate::repository::segments::SegmentSet;
use crate::repository::timeline_wal::SegmentRun;

/// Backups and WAL of a cluster.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The backups.
    pub backups: BTreeSet<BackupId>,
    /// The WAL of each system, as far as recovery may ask for it: also what nobody has yet.
    pub wal: BTreeMap<SystemId, SegmentSet>,
}

/// What a repository with these `rules`, which holds `target`, would keep of `source` and of
/// what it holds itself. Where it could not be asked it is taken to hold nothing.
pub fn wanted(
    source: &Inventory,
    target: Option<&Inventory>,
    rules: &RetentionConfig,
    now: Timestamp,
) -> Wanted {
    let both = together(source, target);
    let lines = lines::lines(&both, now);
    let keeps = rules::by_rules(&both, &lines, rules, now);
    let id = |(system, backup): &(usize, usize)| {
        let backup = &both.systems[*system].backups[*backup];
        backup.marker.id.clone()
    };
    Wanted {
        backups: keeps.backups.keys().map(id).collect(),
        wal: keeps
            .wal
            .into_iter()
            .map(|(system, wal)| (both.systems[system].id, wal))
            .collect(),
    }
}

/// Both inventories as if they were one.
fn together(one: &Inventory, two: Option<&Inventory>) -> Inventory {
    let mut systems: BTreeMap<(Timestamp, SystemId), SystemInventory> = BTreeMap::new();
    let all = one
        .systems
        .iter()
        .chain(two.iter().flat_map(|two| &two.systems));
    for system in all {
        let known = systems.values_mut().find(|known| known.id == system.id);
        if let Some(known) = known {
            add(known, system);
        } else {
            systems.insert((system.first_seen, system.id), system.clone());
        }
    }
    Inventory {
        systems: systems.into_values().collect(),
    }
}

fn add(system: &mut SystemInventory, other: &SystemInventory) {
    for backup in &other.backups {
        let known = system.backups.iter_mut();
        match known
            .into_iter()
            .find(|known| known.marker.id == backup.marker.id)
        {
            Some(known) => {
                known.good |= backup.good;
                known.sound |= backup.sound;
                known.restorable |= backup.restorable;
            }
            None => system.backups.push(backup.clone()),
        }
    }
    for (timeline, history) in &other.histories {
        let histories = &mut system.histories;
        histories
            .entry(*timeline)
            .or_insert_with(|| history.clone());
    }
    add_runs(&mut system.archived, &other.archived);
    system.stored.add_all(&other.stored);
}

fn add_runs(archived: &mut Archived, others: &Archived) {
    for (timeline, other) in others {
        let wal = archived.entry(*timeline).or_default();
        let mut runs: Vec<SegmentRun> = wal.runs.drain(..).chain(other.runs.clone()).collect();
        runs.sort_by_key(|run| run.first);
        for run in runs {
            match wal.runs.last_mut() {
                Some(last) if run.first <= last.last + 1 => {
                    last.last = last.last.max(run.last);
                    last.last_stored = last.last_stored.max(run.last_stored);
                }
                _ => wal.runs.push(run),
            }
        }
    }
}
