//! The plan: of each backup whether it stays and why, of each timeline which WAL goes. A pure
//! function of inventories: the rules of this repository, pins, leases, what other repositories
//! still lack, and whether what stays was proven.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::inventory::{CLOCK_TOLERANCE, Inventory, SystemInventory};
use super::lines::{self, Line, Which};
use super::rules::{self, Keeps};
use super::wanted::wanted;
use crate::config::RetentionConfig;
use crate::postgres::{SegmentName, SegmentSize, SystemId, TimelineId};
use crate::repository::chain;
use crate::repository::keys::BackupId;
use crate::repository::leases::{Lease, Work};
use crate::repository::marker::Marker;
use crate::repository::segments::SegmentSet;

/// The segment in which a backup starts is archived after it began; by how much the clocks of
/// two hosts may mislead us there.
const BEFORE_A_BACKUP: SignedDuration = SignedDuration::from_mins(10);

/// Everything that decides what stays.
pub struct Circumstances<'a> {
    /// The repository's own rules.
    pub rules: &'a RetentionConfig,
    /// All leases of the cluster.
    pub leases: &'a [Lease],
    /// The backups that a drill has proven.
    pub proven: &'a BTreeSet<BackupId>,
    /// The other repositories.
    pub others: &'a [Other],
    /// The time, by a clock that agrees with the store's.
    pub now: Timestamp,
    /// How long an unfinished backup must have been untouched.
    pub wait: SignedDuration,
}

/// Another repository of the configuration.
pub struct Other {
    /// Its name.
    pub name: String,
    /// How it stands to this one.
    pub relation: Relation,
    /// Its rules.
    pub rules: RetentionConfig,
    /// What it holds, or why it could not be asked.
    pub inventory: Result<Inventory, String>,
}

/// How another repository stands to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// It is filled from this one.
    Copy,
    /// This one is filled from it.
    Source,
    /// Neither.
    Unrelated,
}

/// What stays, what goes, and why.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Plan {
    /// The systems, in the order in which they were first seen.
    pub systems: Vec<SystemPlan>,
}

/// The plan for one system.
#[derive(Debug, Clone, Serialize)]
pub struct SystemPlan {
    /// The system identifier.
    pub system_id: SystemId,
    /// Its segment size.
    #[serde(skip)]
    pub segment_size: SegmentSize,
    /// Why nothing of it goes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nothing_goes: Vec<String>,
    /// Its finished backups.
    pub backups: Vec<BackupPlan>,
    /// What dead writers left of unfinished backups, which goes.
    pub unfinished: Vec<BackupId>,
    /// The WAL that goes.
    pub wal: Vec<WalPlan>,
    /// WAL that was stored since then stays: a backup is running.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wal_stays_since: Option<Timestamp>,
}

/// The plan for one backup.
#[derive(Debug, Clone, Serialize)]
pub struct BackupPlan {
    /// Its name.
    pub id: BackupId,
    /// Whether it goes.
    pub goes: bool,
    /// Why it stays.
    pub because: Vec<String>,
}

/// Segments that go, and what lies beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WalPlan {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first segment.
    pub first: SegmentName,
    /// The last segment.
    pub last: SegmentName,
    /// The first one's number.
    #[serde(skip)]
    pub first_number: u64,
    /// The last one's number.
    #[serde(skip)]
    pub last_number: u64,
}

impl Plan {
    /// Whether anything goes.
    pub fn is_empty(&self) -> bool {
        self.systems.iter().all(|system| {
            system.wal.is_empty()
                && system.unfinished.is_empty()
                && !system.backups.iter().any(|backup| backup.goes)
        })
    }
}

/// Makes the plan.
pub fn plan(inventory: &Inventory, circumstances: &Circumstances<'_>) -> Plan {
    let Circumstances { rules, now, .. } = *circumstances;
    let lines = lines::lines(inventory, now);
    let mut keeps = rules::by_rules(inventory, &lines, rules, now);
    keep_pinned(&mut keeps, inventory, now);
    keep_used(&mut keeps, inventory, &lines, circumstances);
    keep_for_others(&mut keeps, inventory, circumstances);
    keep_unreplaced(&mut keeps, inventory, &lines, circumstances);
    rules::keep_chains(&mut keeps, inventory);
    let systems = 0..inventory.systems.len();
    Plan {
        systems: systems
            .map(|at| plan_system(inventory, &keeps, at, circumstances))
            .collect(),
    }
}

fn plan_system(
    inventory: &Inventory,
    keeps: &Keeps,
    at: usize,
    circumstances: &Circumstances<'_>,
) -> SystemPlan {
    let system = &inventory.systems[at];
    let nothing_goes = system.problems.clone();
    let frozen = !nothing_goes.is_empty();
    let with_rules = circumstances.rules.has_rules();
    let none = BTreeSet::new();
    let backups = system.backups.iter().enumerate().map(|(number, backup)| {
        let because = keeps.backups.get(&(at, number)).unwrap_or(&none);
        let mut because: Vec<String> = because.iter().cloned().collect();
        if frozen {
            because.push("nothing of this system goes".to_owned());
        }
        BackupPlan {
            id: backup.marker.id.clone(),
            goes: because.is_empty(),
            because,
        }
    });
    let held: Vec<&Lease> = held(circumstances).collect();
    let abandoned = system.unfinished.iter().filter(|unfinished| {
        let used = held.iter().any(|l| l.backups.contains(&unfinished.id));
        !frozen && with_rules && !used && unfinished.newest + circumstances.wait < circumstances.now
    });
    let kept_wal = keeps.wal.get(&at).cloned().unwrap_or_default();
    let going = match frozen || !with_rules {
        true => SegmentSet::default(),
        false => system.stored.without(&kept_wal),
    };
    let name = |timeline, number| SegmentName::new(timeline, number, system.segment_size);
    let running = held.iter().filter(|lease| lease.work == Work::Backup);
    SystemPlan {
        system_id: system.id,
        segment_size: system.segment_size,
        backups: backups.collect(),
        unfinished: abandoned.map(|u| u.id.clone()).collect(),
        wal: going
            .iter()
            .map(|(timeline, (first, last))| WalPlan {
                timeline,
                first: name(timeline, first),
                last: name(timeline, last),
                first_number: first,
                last_number: last,
            })
            .collect(),
        wal_stays_since: running
            .filter(|lease| lease.system_id.is_none_or(|id| id == system.id))
            .map(|lease| lease.since - BEFORE_A_BACKUP)
            .min(),
        nothing_goes,
    }
}

/// The leases that hold, or may hold by their holder's clock.
fn held<'a>(circumstances: &'a Circumstances<'_>) -> impl Iterator<Item = &'a Lease> {
    let now = circumstances.now - CLOCK_TOLERANCE;
    circumstances.leases.iter().filter(move |l| l.holds(now))
}

fn keep_pinned(keeps: &mut Keeps, inventory: &Inventory, now: Timestamp) {
    for (at, system) in inventory.systems.iter().enumerate() {
        for pin in &system.pins {
            let why = match &pin.pin {
                Ok(pin) if !pin.holds(now) => continue,
                Ok(pin) => match pin.until {
                    Some(until) => format!("pinned until {until}: {}", pin.reason),
                    None => format!("pinned: {}", pin.reason),
                },
                Err(error) => format!("pinned, and the pin cannot be read: {error}"),
            };
            if let Some(which) = find(inventory, at, &pin.backup) {
                keeps.with_own_wal(inventory, which, why);
            }
        }
    }
}

fn keep_used(
    keeps: &mut Keeps,
    inventory: &Inventory,
    lines: &[Line],
    circumstances: &Circumstances<'_>,
) {
    for lease in held(circumstances) {
        for id in &lease.backups {
            for at in 0..inventory.systems.len() {
                if let Some(which) = find(inventory, at, id) {
                    let why = format!("in use by {} until {}", lease.holder, lease.until);
                    keeps.with_lines(inventory, lines, which, why);
                }
            }
        }
    }
}

/// What others still lack and would keep, and what this repository is yet to be given.
fn keep_for_others(keeps: &mut Keeps, inventory: &Inventory, circumstances: &Circumstances<'_>) {
    let copies = circumstances.rules.minimum_copies;
    let mut holders: BTreeMap<Which, u32> = BTreeMap::new();
    let mut lacking: BTreeMap<Which, Vec<String>> = BTreeMap::new();
    for other in circumstances.others {
        if other.relation == Relation::Source {
            keep_for_arrivals(keeps, inventory, other, circumstances);
        }
        let there = other.inventory.as_ref().ok();
        let needs = wanted(inventory, there, &other.rules, circumstances.now);
        for (at, system) in inventory.systems.iter().enumerate() {
            for number in 0..system.backups.len() {
                let id = &system.backups[number].marker.id;
                if holds(other, system.id, id) {
                    *holders.entry((at, number)).or_default() += 1;
                } else if needs.backups.contains(id)
                    && (copies.is_some() || other.relation == Relation::Copy)
                {
                    let why = match &other.inventory {
                        Ok(_) => format!("{} lacks it and would keep it", other.name),
                        Err(why) => format!("{} cannot be asked: {why}", other.name),
                    };
                    lacking.entry((at, number)).or_default().push(why);
                }
            }
            if other.relation == Relation::Copy
                && copies != Some(1)
                && let Some(needed) = needs.wal.get(&system.id)
            {
                let lacking = lacking_in(other, system).within(needed);
                keeps.wal.entry(at).or_default().add_all(&lacking);
            }
        }
    }
    for (which, reasons) in lacking {
        let here_too = 1 + holders.get(&which).copied().unwrap_or_default();
        if copies.is_none_or(|copies| here_too < copies) {
            for why in reasons {
                keeps.with_own_wal(inventory, which, why);
            }
        }
    }
}

/// What is copied into this repository comes with its WAL first and its marker last; what it was
/// taken on top of must not have gone by then.
fn keep_for_arrivals(
    keeps: &mut Keeps,
    inventory: &Inventory,
    source: &Other,
    circumstances: &Circumstances<'_>,
) {
    let Ok(there) = &source.inventory else {
        // Any backup may be on its way, and nobody can say which.
        for (at, system) in inventory.systems.iter().enumerate() {
            keeps.wal.entry(at).or_default().add_all(&system.stored);
        }
        return;
    };
    let coming = wanted(
        there,
        Some(inventory),
        circumstances.rules,
        circumstances.now,
    );
    for system in &there.systems {
        let Some(here) = inventory
            .systems
            .iter()
            .position(|here| here.id == system.id)
        else {
            continue;
        };
        let markers: Vec<Marker> = system.backups.iter().map(|b| b.marker.clone()).collect();
        let to_come = markers.iter().filter(|marker| {
            coming.backups.contains(&marker.id) && find(inventory, here, &marker.id).is_none()
        });
        for marker in to_come {
            for link in chain::of(&markers, marker).unwrap_or_default() {
                if let Some(which) = find(inventory, here, &link.id) {
                    let why = format!(
                        "backup {} is to come from {}, and needs it",
                        marker.id, source.name
                    );
                    keeps.with_own_wal(inventory, which, why);
                }
            }
        }
    }
    for (id, wal) in coming.wal {
        if let Some(here) = inventory.systems.iter().position(|system| system.id == id) {
            keeps.wal.entry(here).or_default().add_all(&wal);
        }
    }
}

/// What only an unproven backup would replace.
fn keep_unreplaced(
    keeps: &mut Keeps,
    inventory: &Inventory,
    lines: &[Line],
    circumstances: &Circumstances<'_>,
) {
    if !circumstances.rules.prove_before_expire {
        return;
    }
    let id = |which: &Which| &inventory.systems[which.0].backups[which.1].marker.id;
    // What a drill proved may have lost an object since.
    let is_restorable = |which: &Which| inventory.systems[which.0].backups[which.1].restorable;
    let proven: Vec<Which> = keeps
        .backups
        .keys()
        .filter(|which| circumstances.proven.contains(id(which)) && is_restorable(which))
        .copied()
        .collect();
    // What is kept already as well, for the WAL behind it: by its own WAL alone it replaces no
    // newer one that turns out to be of no use.
    for (at, system) in inventory.systems.iter().enumerate() {
        for number in 0..system.backups.len() {
            let which = (at, number);
            let replaced = proven
                .iter()
                .any(|by| is_newer(inventory, lines, *by, which));
            if !replaced {
                let why = "no newer backup that stays was proven by a drill";
                keeps.with_lines(inventory, lines, which, why);
            }
        }
    }
}

/// Whether `one` is newer than `other`: of a newer system, behind it on a line, or, where no
/// line holds both, later by the clock.
fn is_newer(inventory: &Inventory, lines: &[Line], one: Which, other: Which) -> bool {
    if one.0 != other.0 {
        return one.0 > other.0;
    }
    let together = lines.iter().find(|line| {
        line.system == one.0 && line.backups.contains(&one.1) && line.backups.contains(&other.1)
    });
    match together {
        Some(line) => line.newer_than(other.1).contains(&one.1),
        None => {
            let backups = &inventory.systems[one.0].backups;
            backups[one.1].ended > backups[other.1].ended
        }
    }
}

fn find(inventory: &Inventory, system: usize, id: &BackupId) -> Option<Which> {
    let mut backups = inventory.systems[system].backups.iter();
    let number = backups.position(|backup| backup.marker.id == *id)?;
    Some((system, number))
}

fn holds(other: &Other, system: SystemId, id: &BackupId) -> bool {
    let Ok(there) = &other.inventory else {
        return false;
    };
    let system = there.systems.iter().find(|there| there.id == system);
    let mut backups = system.into_iter().flat_map(|system| &system.backups);
    backups.any(|backup| backup.marker.id == *id && backup.restorable)
}

/// What another repository lacks of the WAL of a system. A `.partial` or `.backup` file there is
/// not the segment.
fn lacking_in(other: &Other, system: &SystemInventory) -> SegmentSet {
    let there = other.inventory.as_ref().ok();
    let mut systems = there.into_iter().flat_map(|there| &there.systems);
    let Some(there) = systems.find(|there| there.id == system.id) else {
        return system.stored.clone();
    };
    let mut lacking = system.segments().without(&there.segments());
    lacking.add_all(&system.stored.without(&there.stored));
    lacking
}
