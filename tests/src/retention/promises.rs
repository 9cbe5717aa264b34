//! What was promised, in the model's own words, and whether the stores keep it.
//!
//! A promise is what could be recovered once and has been within the rules ever since: what
//! left them may be gone for good, also where the rules would want it again.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use seawall::postgres::{Lsn, WalFileName};
use seawall::repository::keys::WalObject;
use seawall::storage::simulated::Gate;

use super::world::{DATA, Place, SIZE, World};

/// What is seen in one repository by listing it, and nothing else.
#[derive(Debug, Default)]
pub struct Seen {
    /// Segments.
    pub wal: BTreeSet<Place>,
    /// Backups with a marker and all their objects, by their numbers in the world.
    pub whole: BTreeSet<usize>,
    /// Everything else below `backups`.
    pub without_marker: Vec<String>,
    /// All keys.
    pub keys: Vec<String>,
}

/// The promises of one repository.
#[derive(Debug, Default)]
pub struct Promises {
    /// Moments that could be recovered once and were within the window, or behind a full
    /// backup that must stay, ever since.
    moments: BTreeSet<Place>,
    released_moments: BTreeSet<Place>,
    /// For each rule the backups that left it.
    released: BTreeMap<String, BTreeSet<usize>>,
    /// Pins that were acknowledged, and until when they hold.
    pub pins: BTreeMap<usize, Option<Timestamp>>,
}

/// Lists a repository.
pub async fn look(world: &World, repository: usize) -> Seen {
    let store = world.repository(repository, &Gate::open());
    let store = store.store().clone();
    let mut seen = Seen::default();
    let listed = store.list("", None).await.expect("it lists");
    seen.keys = listed.into_iter().map(|info| info.key).collect();
    for key in &seen.keys {
        if let (Some(object), Some(id)) = (WalObject::of_key(key), key.split('/').nth(1))
            && let (WalFileName::Segment(name), Ok(id)) = (object.name, id.parse::<u64>())
        {
            seen.wal.insert(Place {
                system: (9_000 - id) as usize,
                timeline: name.timeline.get() as usize - 1,
                segment: name.number(SIZE).expect("a number"),
            });
        }
    }
    for (at, backup) in world.backups.iter().enumerate() {
        let directory = format!("/backups/{}/", backup.id);
        let own = seen.keys.iter().filter(|key| key.contains(&directory));
        let own: BTreeSet<&str> = own.filter_map(|key| key.split(&directory).nth(1)).collect();
        let marked = own.contains("backup.json");
        if marked && DATA.iter().all(|data| own.contains(data)) {
            seen.whole.insert(at);
        } else if !marked && !own.is_empty() {
            seen.without_marker.push(backup.id.to_string());
        }
    }
    seen
}

impl Seen {
    /// Whether a backup has its own WAL.
    pub fn has_own_wal(&self, world: &World, backup: usize) -> bool {
        let backup = &world.backups[backup];
        let last = backup.stop.previous_segment(SIZE);
        (backup.start.segment..=last).all(|segment| {
            self.wal.contains(&Place {
                segment,
                ..backup.start
            })
        })
    }

    /// A backup from which recovery comes to a place.
    fn recovers(&self, world: &World, to: Place, from: impl Iterator<Item = usize>) -> bool {
        let mut from = from;
        from.any(|at| {
            let backup = &world.backups[at];
            let end = Lsn((to.segment + 1) * SIZE.bytes());
            !backup.damaged
                && world.chain(at).iter().all(|link| self.whole.contains(link))
                && backup.start.system == to.system
                && backup.stop <= end
                && world.is_on_line(backup.start.timeline, backup.stop, (to.system, to.timeline))
                && (backup.start.segment..=to.segment).all(|n| self.has_on_line(world, to, n))
        })
    }

    /// Whether a segment is there for a recovery that goes to a place: of the newest timeline
    /// that had begun by then. The same segment of the timeline before holds nothing of what
    /// was written behind the branch.
    fn has_on_line(&self, world: &World, to: Place, segment: u64) -> bool {
        let timelines = &world.systems[to.system];
        let line = world.ancestors((to.system, to.timeline));
        let newest = line.iter().map(|(timeline, _)| *timeline).find(|at| {
            let begin = timelines[*at].parent;
            begin.is_none_or(|(_, begin)| begin.segment(SIZE) <= segment)
        });
        newest.is_some_and(|timeline| {
            self.wal.contains(&Place {
                system: to.system,
                timeline,
                segment,
            })
        })
    }
}

impl Promises {
    /// Looks at a repository after an event.
    ///
    /// # Panics
    /// A promise is broken.
    pub async fn check(&mut self, world: &World, repository: usize) {
        let seen = look(world, repository).await;
        let rules = &world.repositories[repository].rules;
        let name = world.repositories[repository].name;
        let acknowledged = |at: &usize| {
            let backup = &world.backups[*at];
            !backup.damaged && backup.acknowledged.borrow().contains(&repository)
        };
        let must = |backup: usize, why: &str| {
            let chain = world.chain(backup);
            assert!(
                chain.iter().all(|link| seen.whole.contains(link))
                    && seen.has_own_wal(world, backup),
                "{name}: backup {} must be there with its chain, {why}",
                world.backups[backup].id
            );
        };
        for (backup, until) in &self.pins {
            if until.is_none_or(|until| until > world.now()) {
                must(*backup, "since it is pinned");
            }
        }
        // All that ever counted, in order, on the line of production and of systems before it.
        let sound = |at: &usize| {
            !world.backups[*at].damaged && (acknowledged(at) || seen.whole.contains(at))
        };
        let mut sound: Vec<usize> = (0..world.backups.len()).filter(sound).collect();
        sound.retain(|at| on_path(world, *at));
        sound.sort_by_key(|at| (world.backups[*at].start.system, world.backups[*at].stop));
        let mut path = sound.clone();
        path.retain(|at| world.backups[*at].is_good());
        let mut oldest_full: Option<usize> = None;
        if rules.has_rules() {
            let full = rules.full.unwrap_or(1) as usize;
            let newest: BTreeSet<usize> = path.iter().rev().take(full).copied().collect();
            for at in self.still("full", &path, &newest) {
                if acknowledged(&at) {
                    must(at, "since it is one of the newest");
                    oldest_full = oldest_full.or(Some(at));
                }
            }
            for (number, period) in ["hourly", "daily", "weekly", "monthly", "yearly"]
                .into_iter()
                .enumerate()
            {
                let Some(count) = rules.periods()[number] else {
                    continue;
                };
                let mut newest: BTreeMap<String, usize> = BTreeMap::new();
                for at in &sound {
                    newest.insert(bucket(number, world.backups[*at].ended), *at);
                }
                let newest = newest.into_values().rev().take(count as usize).collect();
                for at in self.still(period, &sound, &newest) {
                    if acknowledged(&at) {
                        must(at, period);
                    }
                }
            }
        }
        let window = rules
            .recovery_window
            .map(|window| world.now() - SignedDuration::try_from(window.0).expect("it fits"));
        for (place, time) in &world.moments {
            let behind = oldest_full.is_some_and(|at| is_behind(world, *place, at));
            let promised = window.is_some_and(|begin| *time >= begin) || behind;
            if !promised {
                self.moments.remove(place);
                self.released_moments.insert(*place);
                continue;
            }
            let whole = seen.whole.iter().copied();
            if seen.recovers(world, *place, whole.clone().filter(acknowledged)) {
                if !self.released_moments.contains(place) {
                    self.moments.insert(*place);
                }
            } else {
                assert!(
                    !self.moments.contains(place) || seen.recovers(world, *place, whole),
                    "{name}: {place:?} could be recovered to, was written at {time}, it is {}, and no backup leads there",
                    world.now()
                );
            }
        }
    }

    /// Of what a rule wants now, what it has always wanted.
    fn still(&mut self, rule: &str, all: &[usize], wanted: &BTreeSet<usize>) -> Vec<usize> {
        let released = self.released.entry(rule.to_owned()).or_default();
        released.extend(all.iter().filter(|at| !wanted.contains(at)));
        let still = all
            .iter()
            .filter(|at| wanted.contains(at) && !released.contains(at));
        still.copied().collect()
    }
}

/// Whether a backup lies on the line of production, or on the last one of a system before.
fn on_path(world: &World, at: usize) -> bool {
    let backup = &world.backups[at];
    let newest = world.systems[backup.start.system].len() - 1;
    let line = (backup.start.system, newest);
    world.is_on_line(backup.start.timeline, backup.stop, line)
}

/// Whether a place lies on the line of production, no earlier than the end of a backup.
fn is_behind(world: &World, place: Place, backup: usize) -> bool {
    let backup = &world.backups[backup];
    let current = world.current;
    let end = Lsn((place.segment + 1) * SIZE.bytes());
    place.system == current.0
        && backup.start.system == current.0
        && backup.stop <= end
        && world.is_on_line(place.timeline, end, current)
}

fn bucket(period: usize, moment: Timestamp) -> String {
    let civil = TimeZone::UTC.to_datetime(moment);
    let format = ["%Y-%m-%d %H", "%Y-%m-%d", "%G-%V", "%Y-%m", "%Y"][period];
    civil.strftime(format).to_string()
}

/// Once nothing happens any more and expire has run often enough: nothing is there that no rule
/// wants.
///
/// # Panics
/// Something unneeded is left.
pub async fn nothing_unneeded(world: &World, repository: usize, promises: &Promises) {
    let seen = look(world, repository).await;
    let name = world.repositories[repository].name;
    let left = |part: &str| -> Vec<&String> {
        seen.keys.iter().filter(|key| key.contains(part)).collect()
    };
    assert!(
        seen.without_marker.is_empty(),
        "{name}: {:?}",
        seen.without_marker
    );
    for part in ["/tombstones/", "/leases/"] {
        assert!(left(part).is_empty(), "{name}: {:?}", left(part));
    }
    let rules = &world.repositories[repository].rules;
    let begin = rules
        .recovery_window
        .map(|window| world.now() - SignedDuration::try_from(window.0).expect("it fits"));
    let lines: Vec<(usize, usize)> = (0..world.systems.len())
        .flat_map(|s| (0..world.systems[s].len()).map(move |t| (s, t)))
        .collect();
    let mut wanted: BTreeSet<usize> = BTreeSet::new();
    for line in &lines {
        let mut on_line: Vec<usize> = seen.whole.iter().copied().collect();
        on_line.retain(|at| {
            let backup = &world.backups[*at];
            backup.start.system == line.0
                && world.is_on_line(backup.start.timeline, backup.stop, *line)
        });
        on_line.sort_by_key(|at| world.backups[*at].stop);
        let sound = on_line
            .iter()
            .copied()
            .filter(|at| !world.backups[*at].damaged);
        let sound: Vec<usize> = sound.collect();
        let mut good = sound.clone();
        good.retain(|at| world.backups[*at].is_good());
        let full = rules.full.unwrap_or(1).max(1) as usize;
        let mut kept: BTreeSet<usize> = good.iter().rev().take(full).copied().collect();
        if let Some(begin) = begin {
            let before = good
                .iter()
                .rev()
                .find(|at| world.backups[**at].ended <= begin);
            kept.extend(before);
            kept.extend(good.iter().filter(|at| world.backups[**at].ended >= begin));
        }
        // What is damaged stays with what is good around it.
        let oldest = kept.iter().map(|at| world.backups[*at].stop).min();
        let newer = on_line.iter().filter(|at| {
            good.is_empty() || oldest.is_some_and(|oldest| world.backups[**at].stop >= oldest)
        });
        // So does what is incremental.
        wanted.extend(newer.filter(|at| !world.backups[**at].is_good() || kept.contains(at)));
        for (number, count) in rules.periods().into_iter().enumerate() {
            let mut newest: BTreeMap<String, usize> = BTreeMap::new();
            for at in &sound {
                newest.insert(bucket(number, world.backups[*at].ended), *at);
            }
            let count = count.unwrap_or(0) as usize;
            wanted.extend(newest.into_values().rev().take(count));
        }
        wanted.extend(kept);
    }
    wanted.extend(promises.pins.keys());
    let chains = wanted.iter().flat_map(|at| world.chain(*at));
    let chains: Vec<usize> = chains.collect();
    wanted.extend(chains);
    for at in &seen.whole {
        let id = &world.backups[*at].id;
        assert!(
            wanted.contains(at),
            "{name}: nothing wants backup {id} any more"
        );
    }
    for place in &seen.wal {
        let used = lines
            .iter()
            .filter(|line| line.0 == place.system)
            .any(|line| {
                let start = Lsn(place.segment * SIZE.bytes());
                // The segment of a switch point stays on both timelines.
                let passed = world.is_on_line(place.timeline, start, *line)
                    || world
                        .ancestors(*line)
                        .iter()
                        .any(|(_, end)| end.is_some_and(|end| end.segment(SIZE) == place.segment))
                    || world.systems[line.0][place.timeline]
                        .parent
                        .is_some_and(|(_, at)| at.segment(SIZE) == place.segment);
                let mut backups = seen.whole.iter().map(|at| &world.backups[*at]).filter(|b| {
                    b.start.system == line.0 && world.is_on_line(b.start.timeline, b.stop, *line)
                });
                let none = backups.clone().all(|b| !b.is_good());
                passed && (none || backups.any(|b| b.start.segment <= place.segment))
            });
        assert!(used, "{name}: nothing wants {place:?} any more");
    }
}
