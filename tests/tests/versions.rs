//! The whole job on every supported major version of PostgreSQL: 15 and 18 each time, the
//! others in `make test-long`.

use std::time::Duration;

use seawall_tests::ledger::Target;
use seawall_tests::postgres::Stop;
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Cluster, ConfigFile, Ledger, Moment, PostgresVersion, Repository, Site, judge,
};

/// Archive, back up, work, lose everything, restore to a moment, compare; then promote,
/// archive, and restore across the promotion. All of it by the role with the least privileges.
fn the_whole_job(major: u32) {
    let builder = Cluster::builder(PostgresVersion::find(major)).tablespace("other");
    let mut site = Site::with(builder);
    site.cluster.start();
    site.cluster.create_seawall_role(false);
    site.config = ConfigFile::new()
        .cluster_as("main", &site.cluster, "seawall")
        .repository(Repository::local("near", site.near.root()))
        .write(&site.scratch);
    let mut ledger = Ledger::create(&site.cluster, &site.scratch);
    site.cluster.sql(
        "CREATE TABLE t TABLESPACE other AS SELECT n, repeat(n::text, 100) AS text
             FROM generate_series(1, 5000) n;
         CREATE INDEX ON t (n);
         CREATE UNLOGGED TABLE u AS SELECT 1;",
    );
    ledger.start(&site.cluster, 2, Duration::from_millis(1));
    ledger.wait_for_more(50, PATIENCE);
    let backup = site.backup();
    assert_eq!(
        backup["server_version_num"].as_u64().unwrap() / 10_000,
        u64::from(major)
    );
    ledger.wait_for_more(100, PATIENCE);
    site.cluster
        .sql("UPDATE t SET n = -n WHERE n % 2 = 0; VACUUM t; TRUNCATE u;");
    site.seawall("restore-point").arg("here").run().success();
    let moment = Moment::now();
    ledger.wait_for_more(100, PATIENCE);
    ledger.stop();
    site.cluster.archive_all(PATIENCE);
    site.cluster.destroy();

    let (old, new) = (
        site.cluster.tablespaces()[0].1.clone(),
        site.scratch.directory("new"),
    );
    let map = format!("{}={}", old.display(), new.display());
    let to = site.scratch.join("restored-data");
    let time = moment.to_string();
    let args = ["--time", &time, "--tablespace", &map, "--json"];
    let said = site.restoring(&to).args(args).run().success().json();
    assert_eq!(said["backup"], backup["id"]);
    judge::verifybackup(site.cluster.version(), &to).must_pass();
    let mut restored = site.adopt("restored", &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    let verdict = ledger.compare(&Ledger::rows(&restored), Target::Time(moment));
    verdict.must_hold();
    assert!(verdict.forbidden > 50);
    assert_eq!(restored.sql("SELECT count(*), sum(n) FROM t"), "5000|-2500");

    restored.promote();
    restored.sql("ALTER SYSTEM RESET archive_command");
    restored.reload();
    judge::amcheck(&restored).must_pass();
    restored.sql("DROP EXTENSION IF EXISTS amcheck; CREATE TABLE later AS SELECT 1;");
    restored.archive_all(PATIENCE);
    let dump = judge::dump(&restored);
    restored.stop(Stop::Fast);
    judge::checksums(&mut restored).must_pass();
    restored.destroy();
    std::fs::remove_dir_all(&new).unwrap();

    let mut again = site.restore_and_start("again", &["--tablespace", &map]);
    assert_eq!(again.sql("SELECT count(*) FROM later"), "1");
    judge::dump(&again).must_equal(&dump);
    again.stop(Stop::Fast);
}

/// What `seawall-fetch` answers, and what this server makes of it: on a doubt it does not
/// open, on certain absence it does.
fn a_doubt_never_opens_the_server_and_absence_ends_recovery(major: u32) {
    let site = Site::of(major).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    site.backup();
    site.cluster.sql("INSERT INTO t VALUES (1)");
    site.cluster.archive_all(PATIENCE);
    site.cluster.sql("INSERT INTO t VALUES (2)");
    site.cluster.archive_all(PATIENCE);
    let to = site.scratch.join("restored-data");
    site.restoring(&to).run().success();
    let mut restored = site.adopt("restored", &to);
    for leave_empty_directory in [true, false] {
        site.near.unmount(leave_empty_directory);
        let failure = restored.try_start(PATIENCE).expect_err("the store is away");
        assert!(failure.code.is_some_and(|code| code != 0), "{failure:?}");
        assert!(failure.log.contains("exit code 200"), "{}", failure.log);
        assert!(
            !failure.log.contains("archive recovery complete"),
            "{}",
            failure.log
        );
        assert!(to.join("recovery.signal").exists());
        site.near.mount();
    }
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    assert_eq!(
        restored.sql("SELECT sum(n), pg_is_in_recovery() FROM t"),
        "3|f"
    );
}

#[test]
fn version_15_does_the_whole_job() {
    the_whole_job(15);
}

#[test]
fn version_18_does_the_whole_job() {
    the_whole_job(18);
}

#[test]
#[ignore = "long: PostgreSQL 14 comes with scripts/setup test-long"]
fn version_14_does_the_whole_job() {
    the_whole_job(14);
}

#[test]
#[ignore = "long: 15 and 18 stand for it in every run"]
fn version_16_does_the_whole_job() {
    the_whole_job(16);
}

#[test]
#[ignore = "long: 15 and 18 stand for it in every run"]
fn version_17_does_the_whole_job() {
    the_whole_job(17);
}

#[test]
fn a_doubt_never_opens_version_15_and_absence_ends_its_recovery() {
    a_doubt_never_opens_the_server_and_absence_ends_recovery(15);
}

#[test]
fn a_doubt_never_opens_version_18_and_absence_ends_its_recovery() {
    a_doubt_never_opens_the_server_and_absence_ends_recovery(18);
}

#[test]
#[ignore = "long: PostgreSQL 14 comes with scripts/setup test-long"]
fn a_doubt_never_opens_version_14_and_absence_ends_its_recovery() {
    a_doubt_never_opens_the_server_and_absence_ends_recovery(14);
}

#[test]
#[ignore = "long: 15 and 18 stand for it in every run"]
fn a_doubt_never_opens_version_16_and_absence_ends_its_recovery() {
    a_doubt_never_opens_the_server_and_absence_ends_recovery(16);
}

#[test]
#[ignore = "long: 15 and 18 stand for it in every run"]
fn a_doubt_never_opens_version_17_and_absence_ends_its_recovery() {
    a_doubt_never_opens_the_server_and_absence_ends_recovery(17);
}
