//! Backups from a standby, by its files and over the replication protocol, while its primary
//! works. The primary is asked for one thing: to end the segment that holds the stop.

use std::time::Duration;

use nix::sys::signal::Signal;
use seawall_tests::config::quoted;
use seawall_tests::ledger::Target;
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Cluster, Config, ConfigFile, Ledger, Repository, Site, judge, pgbench, seawall, wait_until,
};

/// A primary that archives and a standby that streams from it, both running.
fn pair(major: u32) -> (Site, Cluster) {
    let site = Site::of(major).start();
    site.cluster.create_seawall_role(true);
    let mut standby = site.cluster.standby(&site.scratch, "standby");
    standby.start();
    (site, standby)
}

#[derive(Clone, Copy, PartialEq)]
enum From {
    Files,
    Protocol,
}

fn config(site: &Site, standby: &Cluster, from: From, primary: bool, more: &str) -> Config {
    let connection = standby.connection("seawall");
    let file = ConfigFile::new();
    let file = match from {
        From::Files => file.cluster_at("main", standby.data(), &connection),
        From::Protocol => file.distant("main", &connection),
    };
    let file = match primary {
        true => file.cluster_key("primary", &quoted(&site.cluster.connection("seawall"))),
        false => file,
    };
    file.repository(Repository::local("near", site.near.root()))
        .extra(more)
        .write_to(&site.scratch.join("standby.toml"))
}

fn a_backup_from_the_standby_restores(major: u32, from: From) {
    let (mut site, standby) = pair(major);
    let config = config(&site, &standby, from, true, "");
    pgbench::init(&site.cluster, 3);
    let mut ledger = Ledger::create(&site.cluster, &site.scratch);
    ledger.start(&site.cluster, 2, Duration::from_millis(1));
    let load = pgbench::start(&site.cluster, 2, Duration::from_secs(60));
    ledger.wait_for_more(50, PATIENCE);
    let marker = seawall(&config)
        .args(["backup", "--json"])
        .run()
        .success()
        .json();
    ledger.wait_for_more(50, PATIENCE);
    drop(load);
    ledger.stop();
    site.cluster.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgbench'",
    );
    assert_eq!(marker["from_standby"], true);
    site.cluster.archive_all(PATIENCE);
    let dump = judge::dump(&site.cluster);
    drop(standby);
    site.cluster.destroy();

    // At its stop, everything acknowledged before is there.
    let stop = marker["stop_lsn"].as_str().unwrap();
    let at_stop = site.restore_and_start("stop", &["--lsn", stop]);
    let verdict = ledger.compare(&Ledger::rows(&at_stop), Target::Lsn(stop.parse().unwrap()));
    verdict.must_hold();
    drop(at_stop);

    let to = site.scratch.join("untouched");
    site.restoring(&to).run().success();
    judge::verifybackup(site.cluster.version(), &to).must_pass();
    assert!(!to.join("standby.signal").exists());

    let mut restored = site.restore_and_start("again", &["--action", "promote"]);
    dump.must_equal(&judge::dump(&restored));
    judge::is_sound(&mut restored);
}

#[test]
fn the_primary_is_asked_who_it_is_and_to_end_a_segment_and_nothing_else() {
    for from in [From::Files, From::Protocol] {
        let (site, standby) = pair(15);
        site.cluster
            .sql("ALTER ROLE seawall SET log_statement = 'all'");
        standby.wait_until_caught_up(&site.cluster, PATIENCE);
        let config = config(&site, &standby, from, true, "");
        let before = site.cluster.log().len();
        seawall(&config).arg("backup").run().success();
        let log = site.cluster.log();
        let asked: Vec<&str> = log[before..]
            .lines()
            .filter_map(|line| line.split_once("LOG:  "))
            .map(|(_, words)| words)
            .filter(|words| words.starts_with("statement: ") || words.starts_with("execute "))
            .collect();
        let count = |name: &str| asked.iter().filter(|words| words.contains(name)).count();
        assert_eq!(count("pg_switch_wal("), 1, "{asked:#?}");
        assert!(count("pg_control_system(") >= 1, "{asked:#?}");
        let few = [
            "pg_switch_wal(",
            "pg_control_system(",
            "pg_is_in_recovery(",
            "statement: SHOW server_version_num",
            "statement: SET search_path TO",
        ];
        let others = asked
            .iter()
            .filter(|words| !few.iter().any(|name| words.contains(name)));
        assert_eq!(others.collect::<Vec<_>>(), Vec::<&&str>::new());
    }
}

#[test]
fn the_files_of_a_standby_of_version_15_restore() {
    a_backup_from_the_standby_restores(15, From::Files);
}

#[test]
fn a_standby_of_version_15_sends_what_restores() {
    a_backup_from_the_standby_restores(15, From::Protocol);
}

#[test]
fn the_files_of_a_standby_of_version_18_restore() {
    a_backup_from_the_standby_restores(18, From::Files);
}

#[test]
#[ignore = "long: 15 stands for it in every run"]
fn standbys_of_every_version_send_what_restores() {
    for major in [14, 16, 17, 18] {
        a_backup_from_the_standby_restores(major, From::Protocol);
    }
}

#[test]
#[ignore = "long: 15 and 18 stand for them in every run"]
fn the_files_of_standbys_of_every_other_version_restore() {
    for major in [14, 16, 17] {
        a_backup_from_the_standby_restores(major, From::Files);
    }
}

#[test]
fn an_incremental_backup_from_a_standby_restores_once_the_standby_is_past_its_parent() {
    let (mut site, standby) = pair(15);
    let config = config(&site, &standby, From::Files, true, "");
    pgbench::init(&site.cluster, 3);
    standby.wait_until_caught_up(&site.cluster, PATIENCE);
    let full = seawall(&config)
        .args(["backup", "--json"])
        .run()
        .success()
        .json();
    let incremental = || seawall(&config).args(["backup", "--kind", "incremental", "--json"]);
    // No checkpoint since, so no later restartpoint either.
    incremental()
        .run()
        .exits_with(1)
        .says("and its parent")
        .says("restartpoint");
    pgbench::run(&site.cluster, 2, Duration::from_secs(1));
    site.cluster.sql("CHECKPOINT");
    standby.wait_until_caught_up(&site.cluster, PATIENCE);
    let taken = incremental().run().success().json();
    assert_eq!(taken["parent"]["id"], full["id"]);
    assert_eq!(taken["from_standby"], true);
    site.cluster.archive_all(PATIENCE);
    let dump = judge::dump(&site.cluster);
    drop(standby);
    site.cluster.destroy();
    let mut restored = site.restore_and_start("again", &["--action", "promote"]);
    dump.must_equal(&judge::dump(&restored));
    judge::is_sound(&mut restored);
}

#[test]
fn without_a_primary_to_ask_the_backup_waits_until_the_segment_is_full() {
    let (site, standby) = pair(15);
    site.cluster
        .sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    standby.wait_until_caught_up(&site.cluster, PATIENCE);
    let impatient = config(
        &site,
        &standby,
        From::Files,
        false,
        "[backup]\nwal_timeout = \"2s\"",
    );
    seawall(&impatient)
        .arg("backup")
        .run()
        .exits_with(1)
        .says("waiting for 0000000100000000000000")
        .says("hint: set `primary`");
    assert!(site.near.keys_with("backup.json").is_empty());

    let config = config(&site, &standby, From::Files, false, "");
    let running = seawall(&config).arg("backup").start();
    wait_until("it waits for WAL", PATIENCE, || {
        running.stderr().contains("waiting for 0000")
    });
    site.cluster.archive_all(PATIENCE);
    running.wait().success();
}

#[test]
fn a_promotion_during_the_backup_fails_it() {
    for from in [From::Files, From::Protocol] {
        let (site, standby) = pair(15);
        pgbench::init(&site.cluster, 15);
        standby.wait_until_caught_up(&site.cluster, PATIENCE);
        let config = config(&site, &standby, from, true, "");
        let mut running = seawall(&config).arg("backup").start();
        wait_until("the backup has begun", PATIENCE, || standby.is_backed_up());
        running.signal(Signal::SIGSTOP);
        standby.promote();
        running.signal(Signal::SIGCONT);
        let output = running.wait().exits_with(1);
        output
            .says("promoted during online backup")
            .says("taking another online backup");
        assert!(site.near.keys_with("backup.json").is_empty());
    }
}

#[test]
fn a_primary_that_is_another_cluster_or_no_primary_is_refused_before_anything_is_copied() {
    let (site, standby) = pair(15);
    let of = |primary: &str| {
        ConfigFile::new()
            .cluster_at("main", standby.data(), &standby.connection("seawall"))
            .cluster_key("primary", &quoted(primary))
            .repository(Repository::local("near", site.near.root()))
            .write_to(&site.scratch.join("standby.toml"))
    };
    let itself = of(&standby.connection("seawall"));
    seawall(&itself)
        .arg("backup")
        .run()
        .exits_with(4)
        .says("is a standby itself");
    let nowhere = of("host=/nowhere user=seawall dbname=postgres");
    seawall(&nowhere)
        .arg("backup")
        .run()
        .exits_with(1)
        .says("`primary` of the configuration");
    let mut other =
        Cluster::builder(site.cluster.version().clone()).create_in(&site.scratch, "other");
    other.start();
    let other = of(&other.connection("postgres"));
    seawall(&other)
        .arg("backup")
        .run()
        .exits_with(4)
        .says("two different clusters");
    assert!(site.near.keys_with("/backups/").is_empty());
}
