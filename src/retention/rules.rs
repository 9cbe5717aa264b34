//! The rules of one repository, applied to an inventory: which backups they keep, why, and
//! which WAL. A pure function; order is by timeline and position within a system, and by first
//! sight between systems. Clocks only say what lies inside a window.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::inventory::Inventory;
use super::lines::{Line, Which};
use crate::config::RetentionConfig;
use crate::postgres::Lsn;
use crate::repository::chain;
use crate::repository::marker::Marker;
use crate::repository::segments::SegmentSet;

/// What is kept, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keeps {
    /// The reasons for each backup.
    pub backups: BTreeMap<Which, BTreeSet<String>>,
    /// The WAL of each system.
    pub wal: BTreeMap<usize, SegmentSet>,
}

impl Keeps {
    /// Keeps a backup for a reason, with the WAL from its start to its end alone.
    pub fn with_own_wal(&mut self, inventory: &Inventory, which: Which, why: impl Into<String>) {
        let marker = &inventory.systems[which.0].backups[which.1].marker;
        let (first, last) = marker.own_wal();
        let wal = self.wal.entry(which.0).or_default();
        wal.add(marker.timeline, first, last);
        self.backups.entry(which).or_default().insert(why.into());
    }

    /// Keeps a backup for a reason, with all WAL along `line` from its start on.
    pub fn with_line(
        &mut self,
        inventory: &Inventory,
        line: &Line,
        backup: usize,
        why: impl Into<String>,
    ) {
        self.with_own_wal(inventory, (line.system, backup), why);
        let wal = line.wal_from(inventory, backup);
        self.wal.entry(line.system).or_default().add_all(&wal);
    }

    /// Keeps a backup for a reason, with all WAL from its start on, along every line.
    pub fn with_lines(
        &mut self,
        inventory: &Inventory,
        lines: &[Line],
        which: Which,
        why: impl Into<String>,
    ) {
        let why = why.into();
        self.with_own_wal(inventory, which, why.clone());
        for line in lines {
            if line.system == which.0 && line.backups.contains(&which.1) {
                self.with_line(inventory, line, which.1, why.clone());
            }
        }
    }
}

/// What the rules keep of what is there.
pub fn by_rules(
    inventory: &Inventory,
    lines: &[Line],
    rules: &RetentionConfig,
    now: Timestamp,
) -> Keeps {
    let mut keeps = Keeps::default();
    if !rules.has_rules() {
        keep_everything(&mut keeps, inventory);
        return keeps;
    }
    for line in lines.iter().filter(|line| line.alive) {
        keep_last_good(&mut keeps, inventory, line);
    }
    if let Some(window) = rules.recovery_window {
        let begin = now.checked_sub(window.0).unwrap_or(Timestamp::MIN);
        for line in lines {
            keep_window(
                &mut keeps,
                inventory,
                lines,
                line,
                begin,
                &window.to_string(),
            );
        }
    }
    if let Some(full) = rules.full {
        for line in lines {
            keep_full(&mut keeps, inventory, lines, line, full as usize);
        }
    }
    keep_periods(&mut keeps, inventory, lines, rules);
    keep_chains(&mut keeps, inventory);
    keeps
}

fn keep_everything(keeps: &mut Keeps, inventory: &Inventory) {
    for (at, system) in inventory.systems.iter().enumerate() {
        for backup in 0..system.backups.len() {
            keeps.with_own_wal(inventory, (at, backup), "no rule lets anything go");
        }
        keeps.wal.entry(at).or_default().add_all(&system.stored);
    }
}

/// Whatever the rules say: the last good backup, all that is newer, and all WAL from there on;
/// where there is no good backup yet, one may be on its way, and all of the WAL stays.
fn keep_last_good(keeps: &mut Keeps, inventory: &Inventory, line: &Line) {
    let name = line.name(inventory);
    let Some(last) = line.good(inventory).next_back() else {
        let size = inventory.systems[line.system].segment_size;
        let wal = keeps.wal.entry(line.system).or_default();
        wal.add_line(&line.history, Lsn(0), size);
        for backup in &line.backups {
            let why = format!("{name} has no good backup");
            keeps.with_own_wal(inventory, (line.system, *backup), why);
        }
        return;
    };
    keeps.with_line(inventory, line, last, format!("last good backup of {name}"));
    for newer in line.newer_than(last) {
        let why = format!("newer than the last good backup of {name}");
        keeps.with_own_wal(inventory, (line.system, *newer), why);
    }
}

/// Every moment from `begin` on: the newest good backup that ended before, everything newer,
/// and all WAL from there on.
fn keep_window(
    keeps: &mut Keeps,
    inventory: &Inventory,
    lines: &[Line],
    line: &Line,
    begin: Timestamp,
    window: &str,
) {
    let newest_system = lines.first().map_or(0, |current| current.system);
    let covered = lines
        .first()
        .is_some_and(|current| before(inventory, current, begin).is_some());
    // A branch that was left before the window promises nothing inside it. A system that was
    // left is all that there is from before, until the newer one has come so far.
    let replaces = line.system == newest_system || covered;
    if !line.current && line.active < begin && replaces {
        return;
    }
    let anchor = before(inventory, line, begin);
    let newer = match anchor {
        Some(anchor) => {
            let why = format!("reaches into the recovery window of {window}");
            keeps.with_line(inventory, line, anchor, why);
            line.newer_than(anchor)
        }
        None => &line.backups,
    };
    for backup in newer {
        let why = format!("inside the recovery window of {window}");
        keeps.with_line(inventory, line, *backup, why);
    }
}

/// The newest good backup of a line of which it is certain that it ended before `begin`: no
/// earlier one ended later by its clock.
fn before(inventory: &Inventory, line: &Line, begin: Timestamp) -> Option<usize> {
    let good = line.good(inventory);
    good.take_while(|backup| line.state(inventory, *backup).ended <= begin)
        .last()
}

/// The newest `full` good full backups of a line, and all WAL from there on. A line that is
/// not the current one keeps them until the current one has as many that are newer than all
/// that was written there.
fn keep_full(keeps: &mut Keeps, inventory: &Inventory, lines: &[Line], line: &Line, full: usize) {
    if !line.current {
        let newer = lines.first().map_or(0, |current| {
            let good = current.good(inventory);
            good.filter(|b| current.state(inventory, *b).ended > line.active)
                .count()
        });
        if newer >= full {
            return;
        }
    }
    let kept: Vec<usize> = line.good(inventory).rev().take(full).collect();
    for (number, backup) in kept.iter().enumerate() {
        let why = format!(
            "number {} of the {full} newest full backups of {}",
            number + 1,
            line.name(inventory)
        );
        keeps.with_line(inventory, line, *backup, why);
    }
    if let Some(oldest) = kept.last() {
        for newer in line.newer_than(*oldest) {
            let why = "newer than a full backup that stays";
            keeps.with_own_wal(inventory, (line.system, *newer), why);
        }
    }
}

/// The newest sound backup of each hour, day, week, month and year, with its own WAL alone: an
/// incremental one counts, since it stays with all that it was taken on top of. The
/// newest lines of all systems count together; another line that is alive counts by itself, so
/// that what was left never pushes out what goes on.
fn keep_periods(keeps: &mut Keeps, inventory: &Inventory, lines: &[Line], rules: &RetentionConfig) {
    let main = lines.iter().filter(|line| line.newest);
    keep_periods_of(keeps, inventory, &main.collect::<Vec<_>>(), rules);
    for line in lines.iter().filter(|line| line.alive && !line.newest) {
        keep_periods_of(keeps, inventory, &[line], rules);
    }
}

fn keep_periods_of(
    keeps: &mut Keeps,
    inventory: &Inventory,
    lines: &[&Line],
    rules: &RetentionConfig,
) {
    let names = ["hourly", "daily", "weekly", "monthly", "yearly"];
    for (period, count) in rules.periods().into_iter().enumerate() {
        let Some(count) = count else { continue };
        let mut newest: BTreeMap<Period, Which> = BTreeMap::new();
        // The newest system comes first; within a line the later one replaces the earlier.
        for line in lines {
            let mut own: BTreeMap<Period, Which> = BTreeMap::new();
            for backup in line.sound(inventory) {
                let ended = line.state(inventory, backup).ended;
                own.insert(Period::of(period, ended), (line.system, backup));
            }
            for (of, which) in own {
                newest.entry(of).or_insert(which);
            }
        }
        for (of, which) in newest.into_iter().rev().take(count as usize) {
            let why = format!("{} backup of {of}", names[period]);
            keeps.with_own_wal(inventory, which, why);
        }
    }
}

/// A period of time in UTC, by its number in the calendar: in the order of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Period {
    first: Date,
    hour: Option<i8>,
}

impl Period {
    fn of(period: usize, moment: Timestamp) -> Self {
        let civil = TimeZone::UTC.to_datetime(moment);
        let date = civil.date();
        let first = match period {
            0 | 1 => date,
            2 => {
                let since_monday = i64::from(date.weekday().to_monday_zero_offset());
                date.checked_sub(jiff::Span::new().days(since_monday))
                    .unwrap_or(date)
            }
            3 => date.first_of_month(),
            _ => date.first_of_year(),
        };
        Self {
            first,
            hour: (period == 0).then(|| civil.hour()),
        }
    }
}

impl std::fmt::Display for Period {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.hour {
            Some(hour) => write!(f, "{} {hour:02}:00", self.first),
            None => write!(f, "{}", self.first),
        }
    }
}

/// An incremental backup is worth nothing without what it was taken on top of: with each that is
/// kept its whole chain stays, wherever that lies.
pub fn keep_chains(keeps: &mut Keeps, inventory: &Inventory) {
    for (at, system) in inventory.systems.iter().enumerate() {
        let markers: Vec<Marker> = system.backups.iter().map(|b| b.marker.clone()).collect();
        let mut kept: Vec<usize> = keeps
            .backups
            .keys()
            .filter(|which| which.0 == at)
            .map(|which| which.1)
            .collect();
        // The newest speaks for all between it and the full one.
        kept.sort_by_key(|number| std::cmp::Reverse(markers[*number].start_lsn));
        let mut needed = BTreeSet::new();
        for number in kept {
            let by = &markers[number];
            let Ok(chain) = chain::of(&markers, by) else {
                continue;
            };
            for link in &chain[1..] {
                let of_link = markers.iter().position(|marker| marker.id == link.id);
                if let Some(link) = of_link.filter(|link| needed.insert(*link)) {
                    let why = format!("backup {} needs it", by.id);
                    keeps.with_own_wal(inventory, (at, link), why);
                }
            }
        }
    }
}
