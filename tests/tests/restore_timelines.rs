//! What a restored cluster does afterwards, and what keeps two clusters apart: archiving on
//! hold, timelines that are born one after the other, two systems under one name.

use seawall_tests::postgres::Stop;
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Cluster, Config, ConfigFile, PostgresVersion, Programs, Repository, Site, seawall, wait_until,
};

const LAST: &[&str] = &["--action", "promote"];

/// A running site with a table, a backup and an archived row.
fn site(major: u32) -> Site {
    let site = Site::of(major).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    site.backup();
    site.cluster.sql("INSERT INTO t VALUES (1)");
    site.cluster.archive_all(PATIENCE);
    site
}

fn content(cluster: &Cluster) -> String {
    cluster.sql("SELECT coalesce(string_agg(n::text, ',' ORDER BY n), '') FROM t")
}

fn timeline(cluster: &Cluster) -> String {
    cluster.sql("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)")
}

/// Ends the hold in the words that the restore said.
fn release(cluster: &Cluster, sql: &str) {
    for statement in sql.split_inclusive(';') {
        cluster.sql(statement);
    }
}

#[test]
fn a_restored_cluster_archives_nothing_until_it_is_released_and_loses_nothing_by_it() {
    for major in [15, 18] {
        let mut site = site(major);
        site.cluster.stop(Stop::Fast);
        let before = site.near.keys_with("/wal/");
        let to = site.scratch.join("restored");
        let done = site
            .restoring(&to)
            .args(LAST)
            .arg("--json")
            .run()
            .success()
            .json();
        let mut restored = site.adopt("again", &to);
        restored.start();
        restored.wait_until_recovered(PATIENCE);
        assert_eq!(timeline(&restored), "00000002");
        restored.sql("INSERT INTO t VALUES (2)");
        let kept = restored.switch_wal();
        wait_until("the archiver fails", PATIENCE, || restored.archiver().0 > 0);
        assert!(
            restored
                .log()
                .contains("is on hold; release it with ALTER SYSTEM")
        );
        assert_eq!(restored.archiver().1, 0);
        assert!(restored.data().join("pg_wal").join(&kept).exists());
        assert_eq!(site.near.keys_with("/wal/"), before);

        release(&restored, done["release_archiving"].as_str().unwrap());
        restored.wait_until_archived("00000002.history", PATIENCE);
        restored.wait_until_archived(&kept, PATIENCE);
        site.near.one_wal("00000002.history");
        site.near.one_wal(&kept);
        restored.stop(Stop::Fast);

        // A second recovery goes along the new timeline and founds a third.
        let again = site.restore_and_start("third", LAST);
        assert_eq!(timeline(&again), "00000003");
        assert_eq!(content(&again), "1,2");
    }
}

#[test]
fn the_release_brings_back_an_archive_command_that_was_set_by_alter_system() {
    let mut site = Site::of(15);
    let command = Programs::get().archive_command(&site.config);
    site.cluster.configure("archive_command", "");
    let site = site.start();
    site.cluster
        .sql(&format!("ALTER SYSTEM SET archive_command = '{command}'"));
    site.cluster.reload();
    site.cluster.sql("CREATE TABLE t (n int)");
    site.backup();
    let to = site.scratch.join("restored");
    let done = site
        .restoring(&to)
        .args(LAST)
        .arg("--json")
        .run()
        .success()
        .json();
    let mut restored = site.adopt("again", &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    wait_until("the archiver fails", PATIENCE, || restored.archiver().0 > 0);
    release(&restored, done["release_archiving"].as_str().unwrap());
    assert_eq!(restored.sql("SHOW archive_command"), command);
    restored.wait_until_archived("00000002.history", PATIENCE);
    site.near.one_wal("00000002.history");
}

#[test]
fn archive_off_and_on_do_what_they_say() {
    let mut site = site(15);
    site.cluster.stop(Stop::Fast);
    let off = site.restore_and_start("off", &["--archive", "off", "--action", "promote"]);
    assert_eq!(off.sql("SHOW archive_mode"), "off");
    drop(off);
    assert!(site.near.keys_with("00000002.history").is_empty());
    let on = site.restore_and_start("on", &["--archive", "on", "--action", "promote"]);
    on.wait_until_archived("00000002.history", PATIENCE);
    site.near.one_wal("00000002.history");
}

#[test]
fn archiving_goes_on_after_a_promotion_and_recovery_crosses_it_in_both_ways() {
    let mut site = site(15);
    let mut standby = site.cluster.standby(&site.scratch, "standby");
    standby.start();
    standby.wait_until_caught_up(&site.cluster, PATIENCE);
    // The old primary goes on for a while: its line ends in what nobody follows.
    standby.promote();
    standby.sql("INSERT INTO t VALUES (20)");
    standby.archive_all(PATIENCE);
    site.cluster.sql("INSERT INTO t VALUES (10)");
    site.cluster.archive_all(PATIENCE);
    site.cluster.stop(Stop::Fast);
    standby.wait_until_archived("00000002.history", PATIENCE);
    standby.sql("INSERT INTO t VALUES (21)");
    standby.archive_all(PATIENCE);

    let newest = site.restore_and_start("newest", LAST);
    assert_eq!(content(&newest), "1,20,21");
    assert_eq!(timeline(&newest), "00000003");
    let old = site.restore_and_start("old", &["--timeline", "1", "--action", "promote"]);
    assert_eq!(content(&old), "1,10");
    // With prefetch or without, no segment of the parent stands in for the child's.
    assert!(old.log().contains("archive recovery complete"));
    let listed = site.seawall("list").arg("--json").run().success().json();
    let timelines = &listed["repositories"][0]["systems"][0]["timelines"];
    assert_eq!(timelines.as_array().unwrap().len(), 2);
    assert_eq!(timelines[1]["parent"], 1);
    standby.stop(Stop::Fast);
}

#[test]
fn two_restored_clusters_that_both_archive_are_told_and_what_the_first_archived_stays() {
    let mut site = site(15);
    site.cluster.stop(Stop::Fast);
    let args = ["--archive", "on", "--action", "promote"];
    let first = site.restore_and_start("first", &args);
    first.sql("INSERT INTO t VALUES (100)");
    let segment = first.archive_all(PATIENCE);
    let stored = site.near.bytes(&site.near.one_wal(&segment));
    drop(first);
    // The same timeline once more: recovered to a point before the first was born.
    let to = site.scratch.join("second-data");
    site.restoring(&to)
        .args(["--timeline", "1"])
        .args(args)
        .run()
        .success();
    let auto = to.join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&auto).unwrap();
    // As a hand-made restore would: it cannot see that timeline 2 is taken.
    let blind = format!(
        "{text}restore_command = 'case %f in *.history) exit 1;; esac; {}'\n",
        {
            let command = Programs::get().restore_command(&site.config);
            command.replace('\'', "''")
        }
    );
    std::fs::write(&auto, blind).unwrap();
    let mut second = site.adopt("second", &to);
    second.start();
    second.wait_until_recovered(PATIENCE);
    assert_eq!(timeline(&second), "00000002");
    second.sql("INSERT INTO t VALUES (200)");
    second.switch_wal();
    wait_until("the second is told", PATIENCE, || second.archiver().0 > 0);
    assert!(
        second.log().contains("already archived with other content"),
        "{}",
        second.log()
    );
    assert!(site.near.bytes(&site.near.one_wal(&segment)) == stored);
    site.near.one_wal("00000002.history");
}

/// Another cluster under the same name in the same repository, as after pg_upgrade.
fn upgraded(site: &Site) -> (Cluster, Config) {
    let mut cluster =
        Cluster::builder(PostgresVersion::find(18)).create_in(&site.scratch, "upgraded");
    let config = ConfigFile::new()
        .cluster_as("main", &cluster, "postgres")
        .repository(Repository::local("near", site.near.root()))
        .write_to(&site.scratch.join("upgraded.toml"));
    seawall(&config).arg("init").run().success();
    cluster.archive_with(&config);
    cluster.start();
    cluster.sql("CREATE TABLE t (n int); INSERT INTO t VALUES (18)");
    seawall(&config).arg("backup").run().success();
    cluster.archive_all(PATIENCE);
    (cluster, config)
}

#[test]
fn two_systems_under_one_name_never_mix() {
    let site = site(15);
    let old_backup = site.near.keys_with("backup.json");
    let (upgraded, config) = upgraded(&site);
    // Both are on timeline 1 with the same segment names, and both go on.
    site.cluster.sql("INSERT INTO t VALUES (2)");
    site.cluster.archive_all(PATIENCE);
    let listed = site.seawall("list").arg("--json").run().success().json();
    let systems = listed["repositories"][0]["systems"]
        .as_array()
        .unwrap()
        .clone();
    assert_eq!(systems.len(), 2);
    assert_eq!(systems[0]["postgresql_major"], 15);
    assert_eq!(systems[1]["postgresql_major"], 18);
    for system in &systems {
        assert_eq!(system["backups"].as_array().unwrap().len(), 1);
        assert!(
            system["timelines"][0]["conflicts"]
                .as_array()
                .unwrap()
                .is_empty()
        );
    }
    // Without a word the newest is meant, and it is said that there are two.
    let to = site.scratch.join("new-data");
    let output = seawall_tests::restore(&config)
        .arg("--to")
        .arg(&to)
        .args(LAST)
        .run();
    output
        .success()
        .says("2 systems")
        .says(&upgraded.system_id());
    let mut restored = Cluster::adopt(upgraded.version().clone(), &site.scratch, "new", &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    assert_eq!(content(&restored), "18");
    // The old one is reached by its backup, and gets its own WAL.
    let id = old_backup[0].split('/').nth(3).unwrap();
    let old = site.restore_and_start("old", &["--backup", id, "--action", "promote"]);
    assert_eq!(content(&old), "1,2");
    assert_eq!(old.system_id(), site.cluster.system_id());
}

#[test]
fn a_segment_of_one_system_is_never_served_to_the_other() {
    let site = site(15);
    let (upgraded, config) = upgraded(&site);
    let ours = site.near.keys_with(&site.cluster.system_id());
    let segment = ours
        .iter()
        .find(|key| key.contains("/wal/00000001/0"))
        .unwrap();
    let name = &segment.rsplit('/').next().unwrap()[..24];
    let call = |config: &Config, data: &std::path::Path| {
        let to = data.join("pg_wal/RECOVERYXLOG");
        seawall_tests::fetch(config)
            .arg(name)
            .arg(&to)
            .run()
            .success();
        let bytes = std::fs::read(&to).unwrap();
        std::fs::remove_file(to).unwrap();
        u64::from_le_bytes(bytes[24..32].try_into().unwrap()).to_string()
    };
    assert_eq!(
        call(&site.config, site.cluster.data()),
        site.cluster.system_id()
    );
    assert_eq!(call(&config, upgraded.data()), upgraded.system_id());
    // The configuration's word counts for nothing against the data directory's.
    assert_eq!(call(&config, site.cluster.data()), site.cluster.system_id());
}
