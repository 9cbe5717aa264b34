//! One random history: what happens, who is stopped where, and the look after every event.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use seawall::config::{HumanDuration, RetentionConfig};
use seawall::postgres::{Lsn, SegmentName, WalFileName};
use seawall::repository::keys::BackupId;
use seawall::repository::leases::{LEASE_TIME, Lease, Work};
use seawall::repository::pins::Pin;
use seawall::repository::{FORMAT, Repository, System};
use seawall::retention::inventory::Inventory;
use seawall::retention::{self, Other, Relation};
use seawall::storage::simulated::Gate;

use super::actor::Actor;
use super::promises::{self, Promises};
use super::world::{Backup, CLUSTER, CONTENT, DATA, Place, SIZE, World, timeline_id};

/// What waits between being named and being deleted.
const WAIT: Duration = Duration::from_secs(24 * 3600);

/// A history that is under way.
struct History {
    world: World,
    promises: Vec<Promises>,
    chance: StdRng,
    /// Those whose machine is paused.
    paused: Vec<Actor>,
    told: Told,
    /// What the last expire came to.
    expired: Rc<RefCell<String>>,
}

/// Runs the history of a seed to its end.
///
/// # Panics
/// A promise is broken, or something unneeded is left; it prints what had happened.
pub async fn run(seed: u64, events: usize) {
    let mut chance = StdRng::seed_from_u64(seed);
    let mut rules = vec![some_rules(&mut chance)];
    if chance.random_bool(0.4) {
        rules.push(some_rules(&mut chance));
    }
    let mut history = History {
        promises: rules.iter().map(|_| Promises::default()).collect(),
        told: Told {
            seed,
            log: vec![format!("rules {rules:?}")],
        },
        world: World::new(rules).await,
        chance,
        paused: Vec::new(),
        expired: Rc::default(),
    };
    for _ in 0..events {
        history.event().await;
        history.check().await;
    }
    history.come_to_rest().await;
}

/// What happened; on a panic it says so, and how to see it again.
struct Told {
    seed: u64,
    log: Vec<String>,
}

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log.join("\n"));
            eprintln!("SEED={} replays this history alone", self.seed);
        }
    }
}

fn some_rules(chance: &mut StdRng) -> RetentionConfig {
    let mut rules = RetentionConfig::default();
    if chance.random_bool(0.6) {
        let hours = chance.random_range(1..=48);
        rules.recovery_window = Some(HumanDuration::from_secs(hours * 3600));
    }
    if chance.random_bool(0.5) || rules.recovery_window.is_none() {
        rules.full = Some(chance.random_range(1..=3));
    }
    if chance.random_bool(0.4) {
        let periods = [
            &mut rules.hourly,
            &mut rules.daily,
            &mut rules.weekly,
            &mut rules.monthly,
        ];
        for period in periods {
            if chance.random_bool(0.4) {
                *period = Some(chance.random_range(1..=3));
            }
        }
    }
    rules
}

impl History {
    async fn event(&mut self) {
        let hours = [1, 1, 2, 5, 13, 30][self.chance.random_range(0..6)];
        let minutes = self.chance.random_range(1..=hours * 60);
        self.world.clock.advance(Duration::from_secs(minutes * 60));
        match self.chance.random_range(0..100) {
            0..25 => {
                let timeline = self.world.current;
                for _ in 0..self.chance.random_range(1..=4) {
                    self.world.archive(timeline).await;
                }
                self.log("archives".to_owned());
            }
            25..50 => self.backup().await,
            50..57 => self.promote().await,
            57..59 => {
                self.world.upgrade().await;
                self.log("upgrade".to_owned());
            }
            59..66 => self.pin().await,
            66..70 => {
                // Whoever has slept longest.
                if !self.paused.is_empty() {
                    let mut actor = self.paused.remove(0);
                    actor.finish();
                    self.log(format!("{} wakes up", actor.name));
                }
            }
            70..80 if self.world.repositories.len() > 1 => {
                let copy = self.copy();
                self.act(copy, 120);
            }
            _ => {
                let at = self.chance.random_range(0..self.world.repositories.len());
                let expire = self.expire(at);
                self.act(expire, 80);
            }
        }
    }

    fn log(&mut self, what: String) {
        let now = self.world.now();
        self.told.log.push(format!("{now} {what}"));
    }

    async fn check(&mut self) {
        for (at, promises) in self.promises.iter_mut().enumerate() {
            promises.check(&self.world, at).await;
        }
    }

    /// Somebody works: to the end, to a crash, or until the machine pauses.
    /// `calls` is about how many calls to the store it makes.
    fn act(&mut self, mut actor: Actor, calls: u64) {
        let fate = self.chance.random_range(0..10);
        let name = actor.name.clone();
        if fate < 5 {
            actor.finish();
            return self.log(format!("{name} ends"));
        }
        let steps = self.chance.random_range(0..calls);
        if actor.step(steps) {
            return self.log(format!("{name} ends"));
        }
        if fate < 7 {
            self.log(format!("{name} is killed after {steps} steps"));
        } else {
            self.log(format!("{name} pauses after {steps} steps"));
            self.paused.push(actor);
        }
    }

    async fn backup(&mut self) {
        let (system, timeline) = self.world.current;
        let start = self.world.archive((system, timeline)).await;
        let mut last = start;
        if self.chance.random_bool(0.5) {
            last = self.world.archive((system, timeline)).await;
        }
        let now = self.world.now();
        let digits: u32 = self.chance.random();
        let parent = match self.chance.random_bool(0.4) {
            true => self.parent(start).await,
            false => None,
        };
        let kind = parent.map_or("full", |_| "incr");
        let id = format!("{}-{kind}-{digits:08x}", now.strftime("%Y%m%dT%H%M%SZ"));
        let backup = Backup {
            id: id.parse().expect("an id"),
            start: Place {
                system,
                timeline,
                segment: start,
            },
            stop: Lsn(last * SIZE.bytes() + 4096),
            ended: now,
            damaged: self.chance.random_bool(0.1),
            parent,
            acknowledged: Rc::default(),
        };
        let marker = self.world.marker(&backup);
        let gate = Gate::default();
        let target = self.world.system(0, system, &gate);
        let acknowledged = Rc::clone(&backup.acknowledged);
        self.world.backups.push(backup);
        let with_lease = self.chance.random_bool(0.7);
        let links = parent.map_or(Vec::new(), |parent| self.world.chain(parent));
        let links = links.iter().map(|at| self.world.backups[*at].id.clone());
        let links: Vec<BackupId> = links.collect();
        let work = async move {
            let lease = match with_lease {
                true => {
                    let used = [&links[..], std::slice::from_ref(&marker.id)].concat();
                    Some(take_lease(&target, Work::Backup, now, &used).await)
                }
                false => None,
            };
            if !matches!(target.lost_link(&links).await, Ok(None)) {
                return;
            }
            for key in DATA {
                let key = format!("{}/{key}", target.keys().backup(&marker.id));
                let put = target.store().put(&key, CONTENT.to_vec().into()).await;
                put.expect("it is put");
            }
            if target.commit(&marker).await.is_ok() {
                acknowledged.borrow_mut().push(0);
            }
            if let Some(lease) = lease {
                target.store().delete(&lease).await.expect("it is deleted");
            }
        };
        let actor = Actor::new(format!("backup {id}"), gate, work);
        self.act(actor, 14);
    }

    /// The newest backup that one of the current timeline can be taken on top of.
    async fn parent(&self, start: u64) -> Option<usize> {
        let seen = promises::look(&self.world, 0).await;
        let fits = |at: &usize| {
            let backup = &self.world.backups[*at];
            let (system, stop) = (backup.start.system, backup.stop);
            backup.start.segment < start
                && system == self.world.current.0
                && self
                    .world
                    .is_on_line(backup.start.timeline, stop, self.world.current)
                && self.world.chain(*at).iter().all(|l| seen.whole.contains(l))
        };
        let fitting = seen.whole.iter().copied().filter(fits);
        fitting.max_by_key(|at| self.world.backups[*at].start.segment)
    }

    async fn promote(&mut self) {
        let (system, timeline) = self.world.current;
        let old = self.world.current;
        let next = self.world.systems[system][timeline].next;
        let seen = promises::look(&self.world, 0).await;
        // To the end, or back to a moment that a backup leads to.
        let stops = seen.whole.iter().map(|at| &self.world.backups[*at]);
        let stops = stops.filter(|b| {
            b.start.system == system
                && !b.damaged
                && self
                    .world
                    .is_on_line(b.start.timeline, b.stop, (system, timeline))
        });
        let oldest = stops.map(|b| b.stop.segment(SIZE) + 1).min();
        let begin = self.world.systems[system][timeline].parent;
        let begin = begin.map_or(0, |(_, at)| at.segment(SIZE) + 1);
        let first = oldest.unwrap_or(next).max(begin).min(next);
        let back = self.chance.random_bool(0.3);
        let segment = match back {
            true => self.chance.random_range(first..=next),
            false => next,
        };
        let at = Lsn(segment * SIZE.bytes() + 777);
        if !back && self.chance.random_bool(0.5) {
            let name = SegmentName::new(timeline_id(timeline), segment, SIZE);
            let name = WalFileName::Partial(name);
            self.world.put_wal(system, name, b"partial").await;
        }
        self.world.branch(old, at).await;
        self.log(format!("promotion at {at} of {old:?}"));
        if self.chance.random_bool(0.3) {
            // The old primary has not noticed.
            for _ in 0..self.chance.random_range(1..=3) {
                self.world.archive(old).await;
            }
            self.log("the old primary archives".to_owned());
        }
    }

    async fn pin(&mut self) {
        if self.world.backups.is_empty() {
            return;
        }
        let at = self.chance.random_range(0..self.promises.len());
        let number = self.chance.random_range(0..self.world.backups.len());
        let backup = self.world.backups[number].clone();
        let now = self.world.now();
        let system = self.world.system(at, backup.start.system, &Gate::open());
        if self.promises[at].pins.remove(&number).is_some() {
            system.unpin(&backup.id).await.expect("it is unpinned");
            return self.log(format!("unpins {}", backup.id));
        }
        // One that is not acknowledged may be withdrawn yet.
        if !backup.acknowledged.borrow().contains(&at) {
            return;
        }
        let until = self.chance.random_bool(0.5).then(|| {
            let hours = self.chance.random_range(1..72);
            now + SignedDuration::from_hours(hours)
        });
        let pin = Pin::new(backup.id.clone(), "audit", until, now);
        if system.pin(&pin).await.is_ok() {
            self.promises[at].pins.insert(number, until);
            self.log(format!("pins {} in {at} until {until:?}", backup.id));
        }
    }

    fn expire(&self, at: usize) -> Actor {
        let gate = Gate::default();
        let repository = self.world.repository(at, &gate);
        let rules = self.world.repositories[at].rules.clone();
        let clock = self.world.clock.clone();
        let others: Vec<_> = (0..self.world.repositories.len())
            .filter(|other| *other != at)
            .map(|other| {
                let relation = if at == 0 {
                    Relation::Copy
                } else {
                    Relation::Source
                };
                let repository = self.world.repository(other, &gate);
                (
                    relation,
                    repository,
                    self.world.repositories[other].rules.clone(),
                )
            })
            .collect();
        let name = format!("expire in {}", repository.name());
        let what = Rc::clone(&self.expired);
        Actor::new(name, gate, async move {
            let mut asked = Vec::new();
            for (relation, other, rules) in others {
                let inventory = Inventory::load(&other, CLUSTER, clock.now()).await;
                asked.push(Other {
                    name: other.name().to_owned(),
                    relation,
                    rules,
                    inventory: inventory.map_err(|error| error.one_line()),
                });
            }
            let settings = retention::Settings {
                cluster: CLUSTER,
                rules: &rules,
                wait: WAIT,
                others: &asked,
                clock: &|| clock.now(),
            };
            // A pause makes it refuse, and so it should.
            let done = retention::expire(&repository, &settings).await;
            *what.borrow_mut() = match done {
                Ok(done) => format!("{done:?}"),
                Err(error) => error.one_line(),
            };
        })
    }

    /// WAL first, then data, and the marker last: as every copy works.
    fn copy(&self) -> Actor {
        let gate = Gate::default();
        let [near, far] = [0, 1].map(|at| self.world.repository(at, &gate));
        let rules = self.world.repositories[1].rules.clone();
        let now = self.world.now();
        let backups = self.world.backups.clone();
        Actor::new("copy".to_owned(), gate, async move {
            let _ = copy(&near, &far, &rules, now, &backups).await;
        })
    }

    /// Everybody ends, and nothing happens any more but copying and expiring.
    async fn come_to_rest(&mut self) {
        while let Some(mut actor) = self.paused.pop() {
            actor.finish();
            self.log(format!("{} wakes up at last", actor.name));
            self.check().await;
        }
        for _ in 0..7 {
            self.world.clock.advance(WAIT + WAIT / 4);
            if self.world.repositories.len() > 1 {
                self.copy().finish();
                self.log("copy".to_owned());
                self.check().await;
            }
            for at in 0..self.world.repositories.len() {
                self.expire(at).finish();
                let what = self.expired.take();
                self.log(format!("expires {at}: {what}"));
                self.check().await;
            }
        }
        for at in 0..self.world.repositories.len() {
            // What a copy still lacks stays, and it has had the time to get it.
            promises::nothing_unneeded(&self.world, at, &self.promises[at]).await;
        }
    }
}

async fn copy(
    near: &Repository,
    far: &Repository,
    rules: &RetentionConfig,
    now: Timestamp,
    backups: &[Backup],
) -> seawall::error::Result<()> {
    let inventory = Inventory::load(near, CLUSTER, now).await?;
    let held = Inventory::load(far, CLUSTER, now).await?;
    let wanted = retention::wanted(&inventory, Some(&held), rules, now);
    for state in &inventory.systems {
        let [source, target] = [near, far].map(|r| r.system(CLUSTER, state.id));
        target.register(15, SIZE).await?;
        let there = target.store().list(&target.keys().wal(), None).await?;
        for info in source.store().list(&source.keys().wal(), None).await? {
            let known = there.iter().any(|other| other.key == info.key);
            let object = seawall::repository::keys::WalObject::of_key(&info.key);
            let kept = object.is_some_and(|object| {
                object.name.segment().is_none_or(|segment| {
                    let number = segment.number(SIZE).unwrap_or(0);
                    let wal = wanted.wal.get(&state.id);
                    wal.is_some_and(|wal| wal.contains(segment.timeline, number))
                })
            });
            if kept
                && !known
                && let Some(bytes) = source.store().get_limited(&info.key, 1 << 20).await?
            {
                target.store().put(&info.key, bytes).await?;
            }
        }
        let mut in_order: Vec<_> = state.backups.iter().collect();
        // Parents come before their children.
        in_order.sort_by_key(|backup| backup.marker.start_lsn);
        for backup in in_order {
            let marker = &backup.marker;
            if !wanted.backups.contains(&marker.id) || target.marker(&marker.id).await?.is_some() {
                continue;
            }
            // An inventory's markers name no objects.
            let Some(marker) = source.marker(&marker.id).await? else {
                continue;
            };
            if target.lost_chain(&marker).await?.is_some() {
                continue;
            }
            let own = std::slice::from_ref(&marker.id);
            let lease = take_lease(&target, Work::Copy, now, own).await;
            for key in DATA {
                let key = format!("{}/{key}", target.keys().backup(&marker.id));
                if let Some(bytes) = source.store().get_limited(&key, 1 << 20).await? {
                    target.store().put(&key, bytes).await?;
                }
            }
            // A promise from the moment on that the commit returns: whoever pauses behind it has
            // made it all the same.
            if target.commit(&marker).await.is_ok()
                && let Some(known) = backups.iter().find(|known| known.id == marker.id)
            {
                known.acknowledged.borrow_mut().push(1);
            }
            target.store().delete(&lease).await?;
        }
    }
    Ok(())
}

/// A lease that nobody renews. Returns its key.
async fn take_lease(system: &System, work: Work, now: Timestamp, used: &[BackupId]) -> String {
    let lease = Lease {
        format: FORMAT,
        work,
        system_id: Some(system.id()),
        backups: used.iter().cloned().collect(),
        holder: format!("model-{}", used.last().map_or("", BackupId::as_str)),
        since: now,
        until: now + LEASE_TIME,
        other: serde_json::Map::new(),
    };
    let put = system.repository().put_lease(CLUSTER, &lease).await;
    put.expect("it is put")
}
