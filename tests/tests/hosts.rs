//! One repository over the life of a cluster: hosts that take turns as primary, archive_mode
//! `always`, and a major upgrade that gives the cluster a new system identifier.

use seawall_tests::postgres::Stop;
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Cluster, ConfigFile, PostgresVersion, Repository, Run, Site, restore, seawall, wait_until,
};

fn insert(cluster: &Cluster, what: &str) {
    cluster.sql(&format!("INSERT INTO t VALUES ('{what}')"));
}

fn rows(cluster: &Cluster) -> String {
    cluster.sql("SELECT string_agg(what, ',' ORDER BY what) FROM t")
}

/// Makes the stopped server a standby of `primary`.
fn follow(server: &Cluster, primary: &Cluster) {
    let connection = primary.connection("postgres").replace('\'', "''");
    std::fs::write(
        server.data().join("postgresql.auto.conf"),
        format!("primary_conninfo = '{connection}'\n"),
    )
    .unwrap();
    std::fs::write(server.data().join("standby.signal"), "").unwrap();
    seawall_tests::scratch::give_tree_to_owner(server.data());
}

#[test]
fn hosts_that_take_turns_archive_into_one_repository_and_a_restore_crosses_all_turns() {
    // Both at once on the standby, too: identical pushes are normal.
    let builder = Cluster::builder(PostgresVersion::find(15)).fsync();
    let Site {
        cluster: mut one,
        config,
        near,
        scratch,
    } = Site::with(builder.segment_size(1));
    one.configure("archive_mode", "always");
    one.configure("wal_keep_size", "64MB");
    one.start();
    one.sql("CREATE TABLE t (what text)");
    seawall(&config).arg("backup").run().success();
    let mut two = one.standby(&scratch, "two");
    two.start();
    insert(&one, "1 on one");
    let mut on = &mut one;
    let mut next = &mut two;
    for turn in 2..=4 {
        next.wait_until_caught_up(on, PATIENCE);
        // A switchover: the old primary is stopped in order, and streams all that it wrote.
        on.stop(Stop::Fast);
        next.promote();
        follow(on, next);
        on.start();
        std::mem::swap(&mut on, &mut next);
        insert(on, &format!("{turn} on {}", on.name()));
        let segment = on.archive_all(PATIENCE);
        assert!(segment.starts_with(&format!("{turn:08X}")), "{segment}");
        let log = on.log();
        assert!(!log.contains("other content"), "{log}");
    }
    // What both archive is the same: no conflict, nothing missing, all whole.
    next.wait_until_caught_up(on, PATIENCE);
    wait_until("the standby has archived all as well", PATIENCE, || {
        let status = next.data().join("pg_wal/archive_status");
        let mut left = std::fs::read_dir(status).unwrap().flatten();
        !left.any(|entry| entry.file_name().to_string_lossy().ends_with(".ready"))
    });
    let log = next.log();
    assert!(!log.contains("other content"), "{log}");
    for timeline in 2..=4 {
        near.one_wal(&format!("{timeline:08X}.history"));
    }
    let on_the_primary = ConfigFile::new()
        .cluster_as("main", on, "postgres")
        .repository(Repository::local("near", near.root()))
        .write_to(&scratch.join("primary.toml"));
    let checked = seawall(&on_the_primary).arg("check").run().success();
    let whole = "archived WAL has no gaps and no conflicts";
    assert!(checked.stdout.contains(whole), "{}", checked.stdout);
    let verify = seawall(&config).args(["wal", "verify"]).run().success();
    assert!(verify.stdout.contains("0 findings"), "{}", verify.stdout);

    let to = scratch.join("restored-data");
    restore(&config).arg("--to").arg(&to).run().success();
    let mut restored = Cluster::adopt(on.version().clone(), &scratch, "restored", &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    assert_eq!(rows(&restored), "1 on one,2 on two,3 on main,4 on two");
    restored.stop(Stop::Immediate);
}

#[test]
fn after_an_upgrade_both_systems_keep_their_wal_in_one_repository_and_the_new_one_is_restored() {
    let mut site = Site::of(15).start();
    site.cluster.sql("CREATE TABLE t (what text)");
    site.backup();
    insert(&site.cluster, "on 15");
    site.cluster.archive_all(PATIENCE);
    let old_system = site.cluster.system_id();
    let old_keys = site.near.files();

    // What pg_upgrade leaves: another major version, another system identifier, timeline 1 and
    // early segments again, under the same cluster name.
    let dump = Run::new(site.cluster.version().client("pg_dump"))
        .args(["-d", &site.cluster.connection("postgres")])
        .run()
        .success();
    site.cluster.stop(Stop::Fast);
    let mut upgraded = Cluster::builder(PostgresVersion::find(16))
        .fsync()
        .create_in(&site.scratch, "upgraded");
    let config = ConfigFile::new()
        .cluster_as("main", &upgraded, "postgres")
        .repository(Repository::local("near", site.near.root()))
        .write_to(&site.scratch.join("upgraded.toml"));
    seawall(&config).arg("init").run().success();
    upgraded.archive_with(&config);
    upgraded.start();
    upgraded.psql("postgres", &dump.stdout).success();
    seawall(&config).arg("backup").run().success();
    insert(&upgraded, "on 16");
    upgraded.archive_all(PATIENCE);
    let new_system = upgraded.system_id();
    assert_ne!(old_system, new_system);

    // Nothing of the old one was touched, and each has its own keys.
    let keys = site.near.files();
    assert!(old_keys.iter().all(|key| keys.contains(key)));
    let wal = |system: &str| site.near.keys_with(&format!("main/{system}/wal/00000001/"));
    assert!(!wal(&old_system).is_empty() && !wal(&new_system).is_empty());
    let listed = seawall(&config)
        .args(["list", "--json"])
        .run()
        .success()
        .json();
    let systems = listed["repositories"][0]["systems"].as_array().unwrap();
    let order: Vec<_> = systems
        .iter()
        .map(|system| {
            (
                system["system_id"].as_str().unwrap(),
                &system["postgresql_major"],
            )
        })
        .collect();
    assert_eq!(order[0], (old_system.as_str(), &15.into()));
    assert_eq!(order[1], (new_system.as_str(), &16.into()));
    seawall(&config).arg("check").run().success();
    let verified = seawall(&config).args(["wal", "verify", "--json"]).run();
    let verified = verified.success().json();
    assert_eq!(verified["systems"].as_array().unwrap().len(), 2);
    let resolved = seawall(&config).args(["wal", "resolve"]).run().success();
    assert_eq!(resolved.stdout.matches("no conflicts").count(), 2);

    // The newest system is what a restore brings back.
    let to = site.scratch.join("restored-data");
    restore(&config).arg("--to").arg(&to).run().success();
    let mut restored = Cluster::adopt(upgraded.version().clone(), &site.scratch, "restored", &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    assert_eq!(rows(&restored), "on 15,on 16");
    restored.stop(Stop::Immediate);
}
