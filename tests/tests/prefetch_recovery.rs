//! Real recoveries with segments fetched ahead: identical data, on the right timelines, never
//! open too early, and nothing left behind.

use std::path::Path;
use std::time::Duration;

use seawall_tests::postgres::Stop;
use seawall_tests::scratch::{give_tree_to_owner, make_directory};
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Cluster, ConfigFile, PostgresVersion, Prefetched, Repository, Seed, Site, wait_until,
};

const TO_THE_END: &[&str] = &["--action", "promote"];
/// Longer than a worker stays once recovery has ended.
const SOON: Duration = Duration::from_secs(20);

/// A running site with segments of 1 MiB, a table and a backup.
fn site(major: u32) -> Site {
    let builder = Cluster::builder(PostgresVersion::find(major)).segment_size(1);
    let site = Site::with(builder).start();
    site.cluster.sql("CREATE TABLE t (n int, text text)");
    site.backup();
    site
}

/// Writes so many segments and a little more.
fn write(cluster: &Cluster, segments: u64) {
    let one = "INSERT INTO t SELECT n, repeat(md5(n::text), 18) FROM generate_series(1, 1500) n;";
    cluster.sql(&one.repeat(segments as usize));
}

fn content(cluster: &Cluster) -> String {
    cluster.sql("SELECT count(*), sum(hashtext(text)::bigint * n) FROM t")
}

fn restored(site: &Site, name: &str, args: &[&str]) -> Cluster {
    let to = site.scratch.join(format!("{name}-data"));
    site.restoring(&to).args(args).run().success();
    site.adopt(name, &to)
}

/// How many segments it got from the archive.
fn segments_restored(cluster: &Cluster) -> usize {
    let log = cluster.log();
    let restored = log
        .lines()
        .filter(|line| line.contains("restored log file"));
    restored.filter(|line| !line.contains(".history")).count()
}

/// Starts it and sees what is fetched ahead.
#[track_caller]
fn start_and_watch(cluster: &mut Cluster) -> Prefetched {
    let prefetched = Prefetched::of(cluster.data());
    cluster.launch();
    wait_until("something is fetched ahead", PATIENCE, || {
        !prefetched.files().is_empty()
    });
    prefetched
}

#[test]
fn forty_segments_recover_identically_and_nothing_of_the_spool_stays() {
    forty_segments_on(&[15, 18]);
}

#[test]
#[ignore = "long: the other PostgreSQL versions"]
fn forty_segments_recover_identically_on_every_other_version() {
    forty_segments_on(&[14, 16, 17]);
}

fn forty_segments_on(majors: &[u32]) {
    for &major in majors {
        let mut site = site(major);
        write(&site.cluster, 45);
        site.cluster.archive_all(PATIENCE);
        let before = content(&site.cluster);
        site.cluster.stop(Stop::Fast);
        let mut again = restored(&site, "again", TO_THE_END);
        let prefetched = start_and_watch(&mut again);
        again.wait_until_recovered(PATIENCE);
        assert_eq!(content(&again), before);
        assert!(segments_restored(&again) >= 40);
        prefetched.wait_until_gone(SOON);
        again.sql("INSERT INTO t VALUES (0, 'it goes on'); CHECKPOINT");
    }
}

#[test]
fn recovery_to_a_point_crosses_two_promotions_whose_old_timelines_went_on() {
    let mut site = site(15);
    write(&site.cluster, 8);
    let follow = |from: &Cluster, name: &str| {
        let mut standby = from.standby(&site.scratch, name);
        standby.start();
        standby.wait_until_caught_up(from, PATIENCE);
        standby.promote();
        standby
    };
    let second = follow(&site.cluster, "second");
    // Whoever follows the wrong timeline finds plenty of its segments.
    write(&site.cluster, 20);
    site.cluster.archive_all(PATIENCE);
    write(&second, 8);
    let mut third = follow(&second, "third");
    write(&second, 20);
    second.archive_all(PATIENCE);
    write(&third, 8);
    let (target, expected) = (third.sql("SELECT pg_current_wal_lsn()"), content(&third));
    third.sql("INSERT INTO t VALUES (0, 'behind the target')");
    write(&third, 3);
    let end = content(&third);
    third.wait_until_archived("00000003.history", PATIENCE);
    third.archive_all(PATIENCE);
    third.stop(Stop::Fast);
    site.cluster.stop(Stop::Fast);

    for (name, args, expected) in [
        (
            "point",
            &["--lsn", &target, "--action", "promote"][..],
            &expected,
        ),
        ("end", TO_THE_END, &end),
    ] {
        let mut again = restored(&site, name, args);
        let prefetched = start_and_watch(&mut again);
        again.wait_until_recovered(PATIENCE);
        assert_eq!(content(&again), *expected, "{name}");
        let timeline = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
        assert_eq!(again.sql(timeline), "00000004", "{name}");
        prefetched.wait_until_gone(SOON);
    }
}

#[test]
fn two_recoveries_beside_each_other_have_a_spool_each() {
    let mut site = site(15);
    write(&site.cluster, 30);
    site.cluster.archive_all(PATIENCE);
    let before = content(&site.cluster);
    site.cluster.stop(Stop::Fast);
    let mut one = restored(&site, "one", TO_THE_END);
    let mut other = restored(&site, "other", TO_THE_END);
    one.launch();
    let spool = start_and_watch(&mut other);
    for cluster in [&one, &other] {
        cluster.wait_until_recovered(PATIENCE);
        assert_eq!(content(cluster), before);
    }
    spool.wait_until_gone(SOON);
    Prefetched::of(one.data()).wait_until_gone(SOON);
}

#[test]
fn workers_and_servers_that_are_killed_at_any_moment_change_nothing() {
    let mut seed = Seed::new();
    let mut site = site(15);
    write(&site.cluster, 50);
    site.cluster.archive_all(PATIENCE);
    let before = content(&site.cluster);
    site.cluster.stop(Stop::Fast);
    let mut again = restored(&site, "again", TO_THE_END);
    let prefetched = Prefetched::of(again.data());
    let mut workers = 0;
    for _ in 0..4 {
        again.launch();
        for _ in 0..seed.below(12) {
            std::thread::sleep(seed.part_of(Duration::from_millis(150)));
            workers += prefetched.kill_workers();
        }
        // The server with its restore_command, in the middle of whatever they do.
        again.kill();
    }
    eprintln!("{workers} workers killed");
    again.start();
    again.wait_until_recovered(PATIENCE);
    assert_eq!(content(&again), before);
    prefetched.wait_until_gone(SOON);
    let left: Vec<_> = std::fs::read_dir(again.data().join("pg_wal"))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("seawall"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_store_that_fails_in_the_middle_in_any_way_never_opens_the_database_early() {
    a_failing_store_on(&[15]);
}

#[test]
#[ignore = "long: the other PostgreSQL versions"]
fn a_store_that_fails_in_the_middle_never_opens_the_database_of_any_other_version_early() {
    a_failing_store_on(&[14, 16, 17, 18]);
}

fn a_failing_store_on(majors: &[u32]) {
    for &major in majors {
        let mut site = site(major);
        write(&site.cluster, 12);
        let middle = site.cluster.archive_all(PATIENCE);
        write(&site.cluster, 25);
        site.cluster.archive_all(PATIENCE);
        let before = content(&site.cluster);
        site.cluster.stop(Stop::Fast);
        // Soon given up.
        let near = Repository::local("near", site.near.root());
        site.config = ConfigFile::new()
            .cluster(&site.cluster)
            .repository(near.key("attempts", "2").key("timeout", "\"1s\""))
            .write(&site.scratch);
        let mut again = restored(&site, "again", TO_THE_END);
        for fault in [
            "refused", "403", "404", "absent", "500", "hang", "truncate", "break", "garble",
            "longer",
        ] {
            again.env("SEAWALL_TEST_FAULTS", &format!("get[{middle}]={fault}"));
            must_not_open(&mut again, fault);
        }
        for plan in [
            "list=403",
            "list=hang",
            "list=500",
            "list=nobucket",
            "any=refused",
        ] {
            again.env("SEAWALL_TEST_FAULTS", plan);
            must_not_open(&mut again, plan);
        }
        // A listing that lies once in each process, early or late.
        for number in 1..=3 {
            let plan = format!("list@{number}=empty");
            again.env("SEAWALL_TEST_FAULTS", &format!("{plan}; get[{middle}]=403"));
            must_not_open(&mut again, &plan);
        }
        again.env("SEAWALL_TEST_FAULTS", "seed=1");
        again.start();
        again.wait_until_recovered(PATIENCE);
        assert_eq!(content(&again), before);
    }
}

/// Starts it and expects that it ends with a FATAL error, perhaps after it was open for
/// reading, and founds no timeline.
#[track_caller]
fn must_not_open(cluster: &mut Cluster, why: &str) {
    let before = cluster.log().len();
    cluster.launch();
    let code = cluster.wait_for_end(PATIENCE);
    let log = cluster.log().split_off(before);
    assert_ne!(code, 0, "{why}: {log}");
    assert!(log.contains("exit code 200"), "{why}: {log}");
    assert!(!log.contains("selected new timeline"), "{why}: {log}");
    assert!(!log.contains("archive recovery complete"), "{why}: {log}");
}

#[test]
fn a_standby_that_follows_the_archive_survives_an_outage_of_the_store_and_goes_on() {
    let site = site(15);
    write(&site.cluster, 10);
    site.cluster.archive_all(PATIENCE);
    let mut standby = restored(&site, "standby", &["--standby"]);
    standby.start();
    let caught_up = |standby: &Cluster| {
        let expected = content(&site.cluster);
        wait_until("the archive is replayed", PATIENCE, || {
            let asked = standby.try_sql("SELECT count(*), sum(hashtext(text)::bigint * n) FROM t");
            asked.as_deref() == Ok(&*expected)
        });
    };
    caught_up(&standby);
    for _ in 0..2 {
        site.near.unmount(true);
        write(&site.cluster, 20);
        wait_until("it has asked in vain", PATIENCE, || {
            standby.log().contains("this is a standby")
        });
        assert!(standby.is_running() && standby.in_recovery());
        site.near.mount();
        site.cluster.archive_all(PATIENCE);
        caught_up(&standby);
        assert!(standby.is_running() && standby.in_recovery());
    }
    standby.promote();
    Prefetched::of(standby.data()).wait_until_gone(SOON);
}

#[test]
fn a_backup_never_holds_what_lies_in_a_spool() {
    let site = site(15);
    let spool = site.wal("seawall/fetch");
    make_directory(&site.wal("seawall"));
    make_directory(&spool);
    std::fs::write(spool.join("left-over"), b"x").unwrap();
    give_tree_to_owner(&spool);
    site.backup();
    let to = site.scratch.join("to");
    site.restoring(&to).run().success();
    let has_spool = |data: &Path| data.join("pg_wal/seawall").exists();
    assert!(has_spool(site.cluster.data()));
    assert!(!has_spool(&to));
}
