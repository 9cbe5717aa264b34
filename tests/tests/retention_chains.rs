//! The rules of retention for incremental backups, over stores in memory.

use seawall::config::RetentionConfig;
use seawall::repository::pins::Pin;
use seawall::retention::Inventory;
use seawall::storage::simulated::Gate;
use seawall_tests::retention::case::{backup, backup_on, full, going, plan, with_world};
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
