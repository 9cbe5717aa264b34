//! One repository over the life of a cluster: hosts that take turns as primary, archive_mode
//! `always`, and a major upgrade that gives the cluster a new system identifier.

use std::time::Duration;

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

/// `pg_upgrade` of the stopped `old` into the new, empty `new`, with both configured to archive.
fn pg_upgrade(old: &Cluster, new: &Cluster) {
    Run::new(new.version().bin.join("pg_upgrade"))
        .arg("-b")
        .arg(&old.version().bin)
        .arg("-B")
        .arg(&new.version().bin)
        .arg("-d")
        .arg(old.data())
        .arg("-D")
        .arg(new.data())
        .args(["-U", "postgres"])
        .arg("-s")
        .arg(new.socket_directory())
        .directory(new.home())
        .timeout(Duration::from_secs(300))
        .run()
        .success();
}

/// A moment by the server's clock, with commits on either side of it.
fn moment(cluster: &Cluster, before: &str, after: &str) -> String {
    insert(cluster, before);
    let moment = cluster.sql("SELECT clock_timestamp()");
    insert(cluster, after);
    moment
}

#[test]
fn after_pg_upgrade_both_systems_keep_their_wal_in_one_repository_and_both_are_restored() {
    let mut site = Site::of(15).start();
    let old = &mut site.cluster;
    old.sql("CREATE TABLE t (what text)");
    seawall(&site.config).arg("backup").run().success();
    // The old one is on timeline 2 when it is upgraded, and the new one on timeline 1.
    old.stop(Stop::Fast);
    site.scratch.file("main/data/standby.signal", "");
    old.start();
    old.promote();
    let before = moment(old, "15 a", "15 b");
    let point = ["restore-point", "before the upgrade"];
    seawall(&site.config).args(point).run().success();
    insert(old, "15 c");
    old.archive_all(PATIENCE);
    let old_system = old.system_id();
    old.stop(Stop::Fast);
    let old_keys = site.near.files();

    let mut new = Cluster::builder(PostgresVersion::find(18))
        .fsync()
        .create_in(&site.scratch, "upgraded");
    let config = ConfigFile::new()
        .cluster_as("main", &new, "postgres")
        .repository(Repository::local("near", site.near.root()))
        .write_to(&site.scratch.join("upgraded.toml"));
    seawall(&config).arg("init").run().success();
    // Already while it is upgraded.
    new.archive_with(&config);
    pg_upgrade(old, &new);
    new.start();
    seawall(&config).arg("backup").run().success();
    let after = moment(&new, "18 a", "18 b");
    let segment = new.archive_all(PATIENCE);
    assert!(segment.starts_with("00000001"), "{segment}");
    let new_system = new.system_id();
    assert_ne!(old_system, new_system);

    // Nothing of the old one was touched, and each has its own keys.
    let keys = site.near.files();
    assert!(old_keys.iter().all(|key| keys.contains(key)));
    let wal = |system: &str| site.near.keys_with(&format!("main/{system}/wal/00000001/"));
    assert!(!wal(&old_system).is_empty() && !wal(&new_system).is_empty());
    let listed = seawall(&config).args(["list", "--json"]).run();
    let listed = listed.success().json();
    let systems = listed["repositories"][0]["systems"].as_array().unwrap();
    let order: Vec<_> = systems
        .iter()
        .map(|system| {
            let id = system["system_id"].as_str().unwrap();
            (id, system["postgresql_major"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(order, [(old_system.as_str(), 15), (&new_system, 18)]);
    for system in systems {
        assert_eq!(system["backups"].as_array().unwrap().len(), 1);
        assert!(system["backups"][0]["window"]["to"].is_string(), "{system}");
    }
    let checked = seawall(&config).arg("check").run().success();
    let whole = "archived WAL has no gaps and no conflicts";
    assert!(checked.stdout.contains(whole), "{}", checked.stdout);
    let verified = seawall(&config).args(["wal", "verify", "--json"]).run();
    let verified = verified.success().json();
    assert_eq!(verified["systems"].as_array().unwrap().len(), 2);
    let resolved = seawall(&config).args(["wal", "resolve"]).run().success();
    assert_eq!(resolved.stdout.matches("no conflicts").count(), 2);

    // Each target leads to the system that it was on; without one the newest is meant.
    let old_version = old.version();
    for (name, target, version, system, expected) in [
        (
            "b",
            vec!["--time", &before],
            old_version,
            &old_system,
            "15 a",
        ),
        (
            "p",
            vec!["--name", point[1]],
            old_version,
            &old_system,
            "15 a,15 b",
        ),
        (
            "a",
            vec!["--time", &after],
            new.version(),
            &new_system,
            "15 a,15 b,15 c,18 a",
        ),
        (
            "n",
            vec![],
            new.version(),
            &new_system,
            "15 a,15 b,15 c,18 a,18 b",
        ),
    ] {
        let to = site.scratch.join(format!("{name}-data"));
        let restored = restore(&config).arg("--to").arg(&to).args(target).run();
        restored.success().says("2 systems").says(system);
        let mut restored = Cluster::adopt(version.clone(), &site.scratch, name, &to);
        restored.start();
        restored.wait_until_recovered(PATIENCE);
        assert_eq!(rows(&restored), expected);
        assert_eq!(&restored.system_id(), system);
        restored.stop(Stop::Immediate);
    }
}
