//! Lines: the timelines that somebody may still want to recover along, each with its backups
//! in the order of the WAL. A timeline that another one wholly continues is no line of its own;
//! one that was left while it went on (the loser of two promotions, the old system after
//! pg_upgrade) is.
//!
//! One line is the current one: the newest timeline of the newest system. The others count as
//! alive until the current line has a good backup that ended after they were last written to;
//! so the line of production stays whole also where a test server that archived into the same
//! place took a higher number.

use jiff::Timestamp;

use super::inventory::{BackupState, Inventory, SystemInventory};
use crate::postgres::TimelineId;
use crate::postgres::history::TimelineHistory;
use crate::repository::segments::SegmentSet;

/// A backup: the numbers of its system and of itself in the inventory.
pub type Which = (usize, usize);

/// A timeline that one may recover along.
pub struct Line {
    /// The number of its system in the inventory.
    pub system: usize,
    /// From the oldest timeline to this one.
    pub history: TimelineHistory,
    /// Its backups, by position: the numbers in the system's list.
    pub backups: Vec<usize>,
    /// When it was last written to, as far as the repository knows.
    pub active: Timestamp,
    /// Whether it is the newest timeline of its system.
    pub newest: bool,
    /// Whether that is the newest system.
    pub current: bool,
    /// Whether it may still be somebody's production.
    pub alive: bool,
}

/// All lines, the current one first, then from the newest system and timeline on.
pub fn lines(inventory: &Inventory, now: Timestamp) -> Vec<Line> {
    let mut lines = Vec::new();
    let newest_system = inventory.systems.len().saturating_sub(1);
    for (at, system) in inventory.systems.iter().enumerate().rev() {
        let newest = system.newest_timeline();
        for history in system.histories.values().rev() {
            let timeline = history.timeline;
            if timeline != newest && is_continued(system, timeline) {
                continue;
            }
            let current = at == newest_system && timeline == newest;
            lines.push(Line {
                system: at,
                backups: backups_on(system, history),
                active: match current {
                    true => now,
                    false => last_active(system, timeline),
                },
                newest: timeline == newest,
                current,
                alive: current,
                history: history.clone(),
            });
        }
    }
    let covered = lines.first().and_then(|current| {
        let good = current.good(inventory).next_back()?;
        Some(current.state(inventory, good).ended)
    });
    for line in &mut lines {
        line.alive |= covered.is_none_or(|covered| line.active >= covered);
    }
    lines
}

impl Line {
    /// Its good backups, by position.
    pub fn good<'a>(
        &'a self,
        inventory: &'a Inventory,
    ) -> impl DoubleEndedIterator<Item = usize> + 'a {
        let system = &inventory.systems[self.system];
        let backups = self.backups.iter().copied();
        backups.filter(|backup| system.backups[*backup].good)
    }

    /// Those that can be restored and hold no damage, by position: also incremental ones.
    pub fn sound<'a>(&'a self, inventory: &'a Inventory) -> impl Iterator<Item = usize> + 'a {
        let system = &inventory.systems[self.system];
        let backups = self.backups.iter().copied();
        backups.filter(|backup| system.backups[*backup].sound)
    }

    /// A backup of it.
    pub fn state<'a>(&self, inventory: &'a Inventory, backup: usize) -> &'a BackupState {
        &inventory.systems[self.system].backups[backup]
    }

    /// Those of its backups that are newer than one of them.
    pub fn newer_than(&self, backup: usize) -> &[usize] {
        let at = self.backups.iter().position(|other| *other == backup);
        self.backups.get(at.map_or(0, |at| at + 1)..).unwrap_or(&[])
    }

    /// All WAL along it, from the start of one of its backups on.
    pub fn wal_from(&self, inventory: &Inventory, backup: usize) -> SegmentSet {
        let size = inventory.systems[self.system].segment_size;
        let start = self.state(inventory, backup).marker.start_lsn;
        let mut wal = SegmentSet::default();
        wal.add_line(&self.history, start, size);
        wal
    }

    /// What people call it.
    pub fn name(&self, inventory: &Inventory) -> String {
        match inventory.systems.len() {
            1 => format!("timeline {}", self.history.timeline),
            _ => format!(
                "timeline {} of system {}",
                self.history.timeline, inventory.systems[self.system].id
            ),
        }
    }
}

/// Whether a newer timeline continues this one, and nothing went on behind that switch point.
/// The segment that holds it may be whole on both.
fn is_continued(system: &SystemInventory, timeline: TimelineId) -> bool {
    let last = system.archived.get(&timeline).and_then(|wal| wal.last());
    let mut newer = system.histories.values();
    newer.any(|history| {
        let Some(switch) = history.end_of(timeline) else {
            return false;
        };
        let mut backups = system.backups.iter().map(|backup| &backup.marker);
        last.is_none_or(|last| last <= switch.segment(system.segment_size))
            && backups.all(|b| b.timeline != timeline || history.contains(b.timeline, b.stop_lsn))
    })
}

fn backups_on(system: &SystemInventory, history: &TimelineHistory) -> Vec<usize> {
    let on_line = |at: &usize| {
        let marker = &system.backups[*at].marker;
        history.contains(marker.timeline, marker.stop_lsn)
    };
    let mut backups: Vec<usize> = (0..system.backups.len()).filter(on_line).collect();
    backups.sort_by_key(|at| {
        let marker = &system.backups[*at].marker;
        (marker.stop_lsn, marker.start_lsn, marker.id.clone())
    });
    backups
}

fn last_active(system: &SystemInventory, timeline: TimelineId) -> Timestamp {
    let runs = system.archived.get(&timeline).map(|wal| wal.runs.iter());
    let stored = runs.into_iter().flatten().map(|run| run.last_stored);
    let backups = system.backups.iter();
    let taken = backups
        .filter(|backup| backup.marker.timeline == timeline)
        .map(|backup| backup.ended);
    stored.chain(taken).max().unwrap_or(Timestamp::MIN)
}
