//! The rules of retention for incremental backups, over stores in memory.

use seawall::config::RetentionConfig;
use seawall::repository::pins::Pin;
use seawall::retention::Inventory;
use seawall::storage::simulated::Gate;
use seawall_tests::retention::case::{
    backup, backup_on, full, going, plan, put_objects, with_world,
};
use seawall_tests::retention::world::CLUSTER;

#[test]
fn an_incremental_backup_stays_with_its_whole_chain_and_counts_as_no_full_one() {
    let rules = RetentionConfig {
        daily: Some(2),
        ..full(1)
    };
    with_world(vec![rules], async |mut world| {
        let first = backup(&mut world).await;
        let second = backup(&mut world).await;
        // Two chains, side by side; each day has one link.
        let one = backup_on(&mut world, Some(first)).await;
        let two = backup_on(&mut world, Some(second)).await;
        let three = backup_on(&mut world, Some(one)).await;
        assert_eq!(going(&world, &plan(&world, &[]).await), [0; 0]);
        // Until there is another full one: then the newest two days.
        let third = backup(&mut world).await;
        assert_eq!(going(&world, &plan(&world, &[]).await), [second, two]);
        let pin = Pin::new(world.backups[two].id.clone(), "audit", None, world.now());
        let system = world.system(0, 0, &Gate::open());
        system.pin(&pin).await.unwrap();
        assert_eq!(going(&world, &plan(&world, &[]).await), [0; 0]);
        let fourth = backup(&mut world).await;
        let gone = going(&world, &plan(&world, &[]).await);
        assert_eq!(gone, [first, one, three], "{third} and {fourth} stay");
    });
}

#[test]
fn an_incremental_backup_without_its_chain_is_not_committed_and_is_worth_nothing() {
    with_world(vec![full(1)], async |mut world| {
        let first = backup(&mut world).await;
        let one = backup_on(&mut world, Some(first)).await;
        let system = world.system(0, 0, &Gate::open());
        let key = system.keys().marker(&world.backups[first].id);
        system.store().delete(&key).await.unwrap();
        let inventory = Inventory::load(system.repository(), CLUSTER, world.now());
        let inventory = inventory.await.unwrap();
        let [orphan] = &inventory.systems[0].backups[..] else {
            panic!("one backup")
        };
        assert!(!orphan.restorable && !orphan.sound && !orphan.good);
        let mut another = world.backups[one].clone();
        another.id = "20991231T235959Z-incr-00000000".parse().unwrap();
        let error = system.commit(&world.marker(&another)).await.unwrap_err();
        assert!(error.to_string().contains("not committed"), "{error}");
    });
}

#[test]
fn a_merge_further_down_stands_in_for_what_is_gone() {
    with_world(vec![full(1)], async |mut world| {
        let first = backup(&mut world).await;
        let one = backup_on(&mut world, Some(first)).await;
        let two = backup_on(&mut world, Some(one)).await;
        let system = world.system(0, 0, &Gate::open());
        let mut another = world.backups[two].clone();
        another.id = "20991231T235958Z-incr-00000000".parse().unwrap();
        put_objects(&world, 0, &another).await;
        let mut merged = world.backups[one].clone();
        merged.id = "20991231T235959Z-full-00000000".parse().unwrap();
        merged.parent = None;
        put_objects(&world, 0, &merged).await;
        let mut marker = world.marker(&merged);
        marker.merged_from(&[one, first].map(|at| world.backups[at].id.clone()));
        system.commit(&marker).await.unwrap();
        // The parent that it names is there, and what that one stands on is not.
        let key = system.keys().marker(&world.backups[first].id);
        system.store().delete(&key).await.unwrap();
        system.commit(&world.marker(&another)).await.unwrap();
    });
}

#[test]
fn a_chain_that_was_merged_twice_at_the_same_moment_counts_as_one_full_backup() {
    with_world(vec![full(2)], async |mut world| {
        let first = backup(&mut world).await;
        let second = backup(&mut world).await;
        let link = backup_on(&mut world, Some(second)).await;
        let chain = [link, second].map(|at| world.backups[at].id.clone());
        let system = world.system(0, 0, &Gate::open());
        for digits in ["00000001", "00000002"] {
            let mut merged = world.backups[link].clone();
            let now = world.now().strftime("%Y%m%dT%H%M%SZ").to_string();
            merged.id = format!("{now}-full-{digits}").parse().unwrap();
            merged.parent = None;
            put_objects(&world, 0, &merged).await;
            let mut marker = world.marker(&merged);
            marker.merged_from(&chain);
            system.commit(&marker).await.unwrap();
            world.backups.push(merged);
        }
        // One of the two, and the full backup that the chain began with.
        assert_eq!(going(&world, &plan(&world, &[]).await), [first]);
    });
}
