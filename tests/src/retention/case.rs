//! Single cases of retention: a world with backups a day apart, and the plan for it.

use std::time::Duration;

use jiff::Timestamp;
use seawall::config::RetentionConfig;
use seawall::postgres::Lsn;
use seawall::repository::keys::BackupId;
use seawall::retention::expire::look;
use seawall::retention::{Other, Plan, Settings};
use seawall::storage::simulated::Gate;

use super::world::{Backup, CLUSTER, CONTENT, DATA, Place, SIZE, World};

/// How long what is named waits.
pub const WAIT: Duration = Duration::from_secs(24 * 3600);

/// Rules that keep so many full backups.
pub fn full(number: u32) -> RetentionConfig {
    RetentionConfig {
        full: Some(number),
        ..RetentionConfig::default()
    }
}

/// Runs a test on a world with these rules in each repository.
pub fn with_world(rules: Vec<RetentionConfig>, test: impl AsyncFnOnce(World)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async { test(World::new(rules).await).await });
}

/// A backup of the first repository, a day after what was before; its number.
pub async fn backup(world: &mut World) -> usize {
    backup_on(world, None).await
}

/// The same, on top of another one.
pub async fn backup_on(world: &mut World, parent: Option<usize>) -> usize {
    world.clock.advance(WAIT);
    let (system, timeline) = world.current;
    let segment = world.archive((system, timeline)).await;
    let number = world.backups.len();
    let id = format!(
        "{}-{}-{number:08x}",
        world.now().strftime("%Y%m%dT%H%M%SZ"),
        parent.map_or("full", |_| "incr"),
    );
    world.backups.push(Backup {
        id: id.parse().unwrap(),
        start: Place {
            system,
            timeline,
            segment,
        },
        stop: Lsn(segment * SIZE.bytes() + 4096),
        ended: world.now(),
        damaged: false,
        parent,
        acknowledged: Default::default(),
    });
    put(world, 0, number).await;
    world.archive((system, timeline)).await;
    number
}

/// Puts what a backup consists of, without its marker.
pub async fn put_objects(world: &World, repository: usize, backup: &Backup) {
    let system = world.system(repository, backup.start.system, &Gate::open());
    system.register(15, SIZE).await.unwrap();
    for key in DATA {
        let key = format!("{}/{key}", system.keys().backup(&backup.id));
        let content = CONTENT.to_vec().into();
        system.store().put(&key, content).await.unwrap();
    }
}

/// Puts a backup into a repository.
pub async fn put(world: &World, repository: usize, number: usize) {
    let backup = &world.backups[number];
    put_objects(world, repository, backup).await;
    let system = world.system(repository, backup.start.system, &Gate::open());
    system.commit(&world.marker(backup)).await.unwrap();
}

/// What expire is told.
pub fn settings<'a>(
    rules: &'a RetentionConfig,
    others: &'a [Other],
    clock: &'a (dyn Fn() -> Timestamp + Sync),
) -> Settings<'a> {
    Settings {
        cluster: CLUSTER,
        rules,
        wait: WAIT,
        others,
        clock,
    }
}

/// The plan for the first repository.
pub async fn plan(world: &World, others: &[Other]) -> Plan {
    let rules = &world.repositories[0].rules;
    let clock = world.clock.clone();
    let clock = || clock.now();
    let repository = world.repository(0, &Gate::open());
    look(&repository, &settings(rules, others, &clock))
        .await
        .unwrap()
}

/// Which backups of the world go.
pub fn going(world: &World, plan: &Plan) -> Vec<usize> {
    let backups = plan.systems.iter().flat_map(|system| &system.backups);
    let gone = backups.filter(|backup| backup.goes);
    let number = |id: &BackupId| world.backups.iter().position(|backup| backup.id == *id);
    gone.filter_map(|backup| number(&backup.id)).collect()
}

/// The numbers of the segments that go on the first timeline.
pub fn wal(plan: &Plan) -> Vec<(u64, u64)> {
    let ranges = plan.systems.iter().flat_map(|system| &system.wal);
    ranges
        .map(|range| (range.first_number, range.last_number))
        .collect()
}
