//! The rules of retention case by case, over stores in memory: what only an unproven backup
//! would replace, what a copy still lacks, clocks that disagree, what cannot be read.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use seawall::config::RetentionConfig;
use seawall::error::Exit;
use seawall::postgres::{Lsn, SegmentName};
use seawall::repository::pins::Pin;
use seawall::repository::tombstones::{DoomedBackup, Tombstone};
use seawall::retention::{self, Inventory, Other, Relation};
use seawall::storage::simulated::Gate;
use seawall_tests::retention::case::{
    WAIT, backup, full, going, plan, put, settings, wal, with_world,
};
use seawall_tests::retention::world::{CLUSTER, SIZE, World, timeline_id};

#[test]
fn without_a_rule_nothing_goes_ever() {
    with_world(vec![RetentionConfig::default()], async |mut world| {
        for _ in 0..3 {
            backup(&mut world).await;
        }
        world.clock.advance(WAIT * 10_000);
        assert!(plan(&world, &[]).await.is_empty());
    });
}

#[test]
fn wal_goes_up_to_the_segment_before_the_oldest_backup_that_stays() {
    with_world(vec![full(2)], async |mut world| {
        for _ in 0..4 {
            backup(&mut world).await;
        }
        let plan = plan(&world, &[]).await;
        assert_eq!(going(&world, &plan), [0, 1]);
        let start = world.backups[2].start.segment;
        assert_eq!(wal(&plan), [(1, start - 1)]);
    });
}

#[test]
fn the_window_keeps_the_newest_backup_from_before_it_and_everything_since() {
    let rules = RetentionConfig {
        recovery_window: Some("36h".parse().unwrap()),
        ..RetentionConfig::default()
    };
    with_world(vec![rules], async |mut world| {
        for _ in 0..5 {
            backup(&mut world).await;
        }
        // Taken 0, 24, 48, 72 and 96 hours ago; 36 hours ago lies behind the third.
        let plan = plan(&world, &[]).await;
        assert_eq!(going(&world, &plan), [0, 1]);
    });
}

#[test]
fn periods_keep_their_newest_backup_with_its_own_wal_alone() {
    let rules = RetentionConfig {
        weekly: Some(2),
        ..RetentionConfig::default()
    };
    with_world(vec![rules], async |mut world| {
        // From Saturday, 28 February 2026, on, one a day: Sunday, 1 March ends a week.
        for _ in 0..5 {
            backup(&mut world).await;
        }
        let plan = plan(&world, &[]).await;
        assert_eq!(going(&world, &plan), [0, 2, 3]);
        let sunday = world.backups[1].start.segment;
        let last = world.backups[4].start.segment;
        assert_eq!(wal(&plan), [(1, sunday - 1), (sunday + 1, last - 1)]);
    });
}

/// A drill of a backup of the first repository.
async fn drill(world: &World, number: usize, passed: bool) {
    let id = format!("d{number}{passed}");
    let report = serde_json::json!({
        "format": 1,
        "id": id,
        "backup": world.backups[number].id,
        "started": world.now(),
        "passed": passed,
    });
    let repository = world.repository(0, &Gate::open());
    repository.put_drill(CLUSTER, &id, &report).await.unwrap();
}

#[test]
fn a_proven_backup_that_stays_keeps_the_wal_behind_it_until_a_newer_one_is_proven() {
    let rules = RetentionConfig {
        daily: Some(2),
        prove_before_expire: true,
        ..full(1)
    };
    with_world(vec![rules], async |mut world| {
        for _ in 0..2 {
            backup(&mut world).await;
        }
        drill(&world, 0, true).await;
        assert!(plan(&world, &[]).await.is_empty());
        drill(&world, 1, true).await;
        let [old, new] = [0, 1].map(|at| world.backups[at].start.segment);
        assert_eq!(wal(&plan(&world, &[]).await), [(old + 1, new - 1)]);
    });
}

#[test]
fn a_tombstone_goes_when_nothing_of_it_is_left_also_where_something_goes_every_day() {
    with_world(vec![full(1)], async |mut world| {
        let (rules, stores) = (full(1), world.clock.clone());
        let clock = || stores.now();
        let repository = world.repository(0, &Gate::open());
        for day in 0..8 {
            backup(&mut world).await;
            let done = retention::expire(&repository, &settings(&rules, &[], &clock)).await;
            let deleted = done.unwrap().deleted_objects;
            assert!(day < 2 || deleted > 0, "day {day}");
            let there = repository.tombstones(CLUSTER).await.unwrap().read.len();
            assert!(there <= 2, "{there} tombstones on day {day}");
        }
    });
}

#[test]
fn a_pin_is_refused_where_a_tombstone_may_be_due_by_the_clock_of_the_store() {
    with_world(vec![full(1)], async |mut world| {
        backup(&mut world).await;
        let system = world.system(0, 0, &Gate::open());
        let id = world.backups[0].id.clone();
        // This host's own clock says nothing.
        let pin = Pin::new(id.clone(), "audit", None, Timestamp::UNIX_EPOCH);
        for (seconds, refused) in [(120, false), (30, true), (-1, true)] {
            let doomed = DoomedBackup {
                system_id: system.id(),
                id: id.clone(),
            };
            let created = world.now() + SignedDuration::from_secs(seconds) - WAIT;
            let tombstone = Tombstone::new(vec![doomed], Vec::new(), created, WAIT);
            let repository = system.repository();
            repository.put_tombstone(CLUSTER, &tombstone).await.unwrap();
            let pinned = system.pin(&pin).await;
            assert_eq!(pinned.is_err(), refused, "{seconds}");
            assert_eq!(system.pins().await.unwrap().len(), 1, "{seconds}");
        }
    });
}

#[test]
fn what_only_an_unproven_backup_would_replace_stays() {
    let rules = RetentionConfig {
        prove_before_expire: true,
        ..full(1)
    };
    with_world(vec![rules], async |mut world| {
        for _ in 0..3 {
            backup(&mut world).await;
        }
        assert!(plan(&world, &[]).await.is_empty());
        drill(&world, 0, true).await;
        drill(&world, 2, false).await;
        assert!(
            plan(&world, &[]).await.is_empty(),
            "none that is newer passed"
        );
        drill(&world, 2, true).await;
        assert_eq!(going(&world, &plan(&world, &[]).await), [0, 1]);
    });
}

async fn other(world: &World, rules: RetentionConfig, away: bool) -> Vec<Other> {
    let mut others = other_away();
    others[0].rules = rules;
    if !away {
        let far = world.repository(1, &Gate::open());
        let inventory = Inventory::load(&far, CLUSTER, world.now()).await;
        others[0].inventory = Ok(inventory.unwrap());
    }
    others
}

fn other_away() -> Vec<Other> {
    vec![Other {
        name: "far".to_owned(),
        relation: Relation::Copy,
        rules: full(1),
        inventory: Err("it is away".to_owned()),
    }]
}

#[test]
fn what_a_copy_lacks_and_would_keep_stays_until_it_has_it() {
    with_world(vec![full(1), full(2)], async |mut world| {
        for _ in 0..3 {
            backup(&mut world).await;
        }
        for away in [false, true] {
            let others = other(&world, full(2), away).await;
            let plan = plan(&world, &others).await;
            assert_eq!(going(&world, &plan), [0], "far would not keep the first");
            let because = &plan.systems[0].backups[1].because;
            assert!(because.iter().any(|why| why.contains("far")), "{because:?}");
            assert_eq!(wal(&plan), [(1, world.backups[1].start.segment - 1)]);
        }
        // Everything is copied: WAL first.
        let [near, far] = [0, 1].map(|at| world.repository(at, &Gate::open()));
        for info in near.store().list("", None).await.unwrap() {
            if info.key.contains("/wal/") {
                let bytes = near.store().get_limited(&info.key, 1 << 20).await.unwrap();
                far.store().put(&info.key, bytes.unwrap()).await.unwrap();
            }
        }
        for number in 1..3 {
            put(&world, 1, number).await;
        }
        let others = other(&world, full(2), false).await;
        assert_eq!(going(&world, &plan(&world, &others).await), [0, 1]);
        // One that has no rules keeps everything.
        let others = other(&world, RetentionConfig::default(), false).await;
        assert_eq!(going(&world, &plan(&world, &others).await), [1]);
        world.repositories[0].rules.minimum_copies = Some(1);
        let others = other(&world, RetentionConfig::default(), true).await;
        assert_eq!(going(&world, &plan(&world, &others).await), [0, 1]);
    });
}

#[test]
fn a_copy_holds_what_can_be_restored_from_it_alone() {
    with_world(vec![full(1), full(3)], async |mut world| {
        for _ in 0..3 {
            backup(&mut world).await;
        }
        let [near, far] = [0, 1].map(|at| world.repository(at, &Gate::open()));
        for info in near.store().list("", None).await.unwrap() {
            if info.key.contains("/wal/") {
                let bytes = near.store().get_limited(&info.key, 1 << 20).await.unwrap();
                far.store().put(&info.key, bytes.unwrap()).await.unwrap();
            }
        }
        for number in 0..3 {
            put(&world, 1, number).await;
        }
        let others = other(&world, full(3), false).await;
        assert_eq!(going(&world, &plan(&world, &others).await), [0, 1]);
        // The copy loses a segment; a file beside it is not the segment.
        let segment = world.backups[1].start.segment;
        let name = SegmentName::new(timeline_id(0), segment, SIZE);
        for info in far.store().list("", None).await.unwrap() {
            if info.key.contains(&format!("/{name}-")) {
                let beside = info.key.replace("-", ".00000028.backup-");
                far.store().delete(&info.key).await.unwrap();
                far.store().put(&beside, "beside".into()).await.unwrap();
            }
        }
        let others = other(&world, full(3), false).await;
        let plan = plan(&world, &others).await;
        assert_eq!(going(&world, &plan), [0]);
        let gone = wal(&plan);
        assert!(
            gone.iter()
                .all(|(first, last)| !(*first..=*last).contains(&segment))
        );
    });
}

#[test]
fn while_its_source_is_away_a_copy_keeps_all_wal_for_what_may_be_arriving() {
    with_world(vec![full(1)], async |mut world| {
        for _ in 0..3 {
            backup(&mut world).await;
        }
        let mut others = other_away();
        others[0].relation = Relation::Source;
        let plan = plan(&world, &others).await;
        assert_eq!(going(&world, &plan), [0, 1]);
        assert_eq!(wal(&plan), []);
    });
}

#[test]
fn nothing_is_deleted_while_the_clocks_disagree() {
    with_world(vec![full(1)], async |mut world| {
        for _ in 0..3 {
            backup(&mut world).await;
        }
        let repository = world.repository(0, &Gate::open());
        let rules = full(1);
        for minutes in [-2, 2, 60 * 24 * 365] {
            let ours = world.now() + SignedDuration::from_mins(minutes);
            let clock = move || ours;
            for _ in 0..2 {
                let done = retention::expire(&repository, &settings(&rules, &[], &clock)).await;
                let error = done.unwrap_err();
                assert_eq!(error.exit(), Exit::Refused, "{error}");
            }
        }
        let left = repository.store().list(CLUSTER, None).await.unwrap();
        assert_eq!(
            left.iter()
                .filter(|o| o.key.ends_with("backup.json"))
                .count(),
            3
        );
        assert!(!left.iter().any(|o| o.key.contains("/tombstones/")));
        let stores = world.clock.clone();
        let clock = || stores.now();
        // The same clock on both sides, and what was stored in its future: it was set back.
        let now = world.now() - SignedDuration::from_hours(1);
        let error = Inventory::load(&repository, CLUSTER, now)
            .await
            .err()
            .unwrap();
        assert_eq!(error.exit(), Exit::Refused, "{error}");
        let done = retention::expire(&repository, &settings(&rules, &[], &clock)).await;
        assert_eq!(done.unwrap().named_backups, 2);
    });
}

#[test]
fn where_something_cannot_be_read_nothing_of_that_system_goes() {
    with_world(vec![full(1)], async |mut world| {
        for _ in 0..3 {
            backup(&mut world).await;
        }
        let system = world.system(0, 0, &Gate::open());
        let key = system.keys().marker(&world.backups[0].id);
        let marker = system
            .store()
            .get_limited(&key, 1 << 20)
            .await
            .unwrap()
            .unwrap();
        let damaged = marker.slice(1..);
        system.store().put(&key, damaged).await.unwrap();
        let frozen = plan(&world, &[]).await;
        assert!(frozen.is_empty());
        assert!(frozen.systems[0].nothing_goes[0].contains("backup.json"));
        system.store().put(&key, marker).await.unwrap();
        assert_eq!(going(&world, &plan(&world, &[]).await), [0, 1]);
        // WAL of a timeline whose history is not here: what it descends from is unknown.
        world.branch((0, 0), Lsn(4 * SIZE.bytes())).await;
        world.archive((0, 1)).await;
        let directory = system
            .store()
            .list_directory(&system.keys().wal())
            .await
            .unwrap();
        let history = &directory.objects[0].key;
        system.store().delete(history).await.unwrap();
        assert!(plan(&world, &[]).await.is_empty());
    });
}

#[test]
fn a_backup_with_damaged_pages_never_pushes_out_a_good_one() {
    with_world(vec![full(1)], async |mut world| {
        let good = backup(&mut world).await;
        world.clock.advance(WAIT);
        let mut damaged = world.backups[good].clone();
        let segment = world.archive((0, 0)).await;
        damaged.id = "20991231T235959Z-full-00000009".parse().unwrap();
        damaged.start.segment = segment;
        damaged.stop = Lsn(segment * SIZE.bytes() + 4096);
        damaged.damaged = true;
        world.backups.push(damaged);
        put(&world, 0, 1).await;
        assert!(plan(&world, &[]).await.is_empty());
        backup(&mut world).await;
        assert_eq!(going(&world, &plan(&world, &[]).await), [0, 1]);
    });
}

#[test]
fn the_losing_branch_stays_as_long_as_somebody_writes_to_it() {
    with_world(vec![full(1)], async |mut world| {
        let shared = backup(&mut world).await;
        let switch = Lsn((world.backups[shared].start.segment + 2) * SIZE.bytes() + 9);
        world.branch((0, 0), switch).await;
        world.current = (0, 0);
        let left = backup(&mut world).await;
        world.current = (0, 1);
        let right = backup(&mut world).await;
        // Timeline 1 went on a minute ago: it may be production, and 2 somebody's test.
        world.clock.advance(Duration::from_secs(60));
        world.archive((0, 0)).await;
        assert_eq!(going(&world, &plan(&world, &[]).await), [shared]);
        let newest = backup(&mut world).await;
        let plan = plan(&world, &[]).await;
        assert_eq!(going(&world, &plan), [shared, left, right]);
        assert!(!going(&world, &plan).contains(&newest));
    });
}
