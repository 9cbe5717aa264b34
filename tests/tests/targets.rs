//! Every target that a recovery can be asked for, and what the server does once it is there.

use std::time::Duration;

use seawall_tests::ledger::Target;
use seawall_tests::postgres::Stop;
use seawall_tests::site::PATIENCE;
use seawall_tests::{Cluster, Ledger, Moment, PostgresVersion, Site};

/// A running site with a backup and a table `t` of numbered rows.
fn backed_up(major: u32) -> Site {
    let site = Site::of(major).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    site.backup();
    site
}

/// Commits row `n` and returns its transaction id.
fn insert(cluster: &Cluster, n: u32) -> u64 {
    let sql =
        format!("BEGIN; INSERT INTO t VALUES ({n}); SELECT pg_current_xact_id()::text; COMMIT;");
    cluster.sql(&sql).parse().unwrap()
}

/// The rows of `t`, such as "1,2".
fn rows(cluster: &Cluster) -> String {
    cluster.sql("SELECT string_agg(n::text, ',' ORDER BY n) FROM t")
}

/// Restores with these arguments, starts, waits for the target, returns the rows.
fn reached(site: &Site, name: &str, args: &[&str]) -> String {
    let mut restored = site.restore_and_start(name, args);
    let found = rows(&restored);
    restored.stop(Stop::Immediate);
    found
}

#[test]
fn time_lsn_and_xid_stop_just_after_the_target_and_exclusive_just_before_it() {
    let site = backed_up(15);
    insert(&site.cluster, 1);
    let xid = insert(&site.cluster, 2).to_string();
    // A commit is stamped before its record is written: this is its very stamp.
    let stamp = site.cluster.sql(
        "SELECT (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint FROM t WHERE n = 2",
    );
    let stamp = Moment(stamp.parse().unwrap()).to_string();
    // The position of the record that commits row 3 is that of the insertion's end.
    let lsn = site
        .cluster
        .sql("BEGIN; INSERT INTO t VALUES (3); SELECT pg_current_wal_insert_lsn(); COMMIT;");
    insert(&site.cluster, 4);
    site.cluster.archive_all(PATIENCE);
    for (name, option, value, inclusive, exclusive) in [
        ("xid", "--xid", &xid, "1,2", "1"),
        ("time", "--time", &stamp, "1,2", "1"),
        ("lsn", "--lsn", &lsn, "1,2,3", "1,2"),
    ] {
        assert_eq!(reached(&site, name, &[option, value]), inclusive, "{name}");
        let other = format!("{name}-x");
        let args = [option, value, "--exclusive"];
        assert_eq!(reached(&site, &other, &args), exclusive, "{other}");
    }
}

#[test]
fn a_transaction_that_ends_behind_a_backup_is_reached_from_it_even_if_it_began_before() {
    let builder =
        Cluster::builder(PostgresVersion::find(15)).config("max_prepared_transactions", "5");
    let site = Site::with(builder).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    let before = site.backup();
    let xid = site.cluster.sql(
        "BEGIN; INSERT INTO t VALUES (1); SELECT pg_current_xact_id()::text; PREPARE TRANSACTION 'p';",
    );
    insert(&site.cluster, 2);
    let during = site.backup();
    site.cluster.sql("COMMIT PREPARED 'p'");
    insert(&site.cluster, 3);
    let behind = site.backup();
    insert(&site.cluster, 4);
    site.cluster.archive_all(PATIENCE);
    let json = |name: &str, args: &[&str]| {
        let to = site.scratch.join(format!("{name}-data"));
        let output = site
            .restoring(&to)
            .args(["--xid", &xid, "--json"])
            .args(args)
            .run();
        let json = output.success().json();
        let mut restored = site.adopt(name, &to);
        restored.start();
        restored.wait_until_recovered(PATIENCE);
        assert_eq!(rows(&restored), "1,2", "{name}");
        assert_eq!(json["warnings"].as_array().map(Vec::len), Some(0), "{json}");
        json
    };
    assert_eq!(json("newest", &[])["backup"], during["id"]);
    let id = before["id"].as_str().unwrap();
    assert_eq!(json("older", &["--backup", id])["backup"], before["id"]);
    // It had ended when this one began: PostgreSQL would not find it any more.
    let to = site.scratch.join("behind-data");
    let id = behind["id"].as_str().unwrap();
    let refused = site
        .restoring(&to)
        .args(["--xid", &xid, "--backup", id])
        .run();
    refused
        .exits_with(5)
        .says("neither commits nor aborts")
        .says(id);
    assert!(!to.exists(), "nothing was touched");
}

#[test]
fn a_restore_point_is_reached_by_its_name_and_the_first_of_two_from_each_backup() {
    let site = backed_up(15);
    let point = |name: &str| site.seawall("restore-point").arg(name).run().success();
    insert(&site.cluster, 1);
    point("before release");
    insert(&site.cluster, 2);
    site.backup();
    insert(&site.cluster, 3);
    let later = site.backup();
    insert(&site.cluster, 4);
    point("before release");
    site.cluster
        .sql("SELECT pg_create_restore_point('by hand')");
    insert(&site.cluster, 5);
    site.cluster.archive_all(PATIENCE);

    assert_eq!(reached(&site, "first", &["--name", "before release"]), "1");
    // Started behind the first of that name, it reaches the second.
    let id = later["id"].as_str().unwrap();
    let args = ["--name", "before release", "--backup", id];
    assert_eq!(reached(&site, "second", &args), "1,2,3,4");

    let args = ["--name", "by hand", "--backup", id];
    assert_eq!(reached(&site, "hand", &args), "1,2,3,4");
}

#[test]
fn immediate_ends_where_the_backup_is_consistent() {
    let site = backed_up(18);
    insert(&site.cluster, 1);
    let backup = site.backup();
    insert(&site.cluster, 2);
    site.cluster.archive_all(PATIENCE);
    assert_eq!(reached(&site, "new", &["--immediate"]), "1");
    // Even if all later WAL is lost.
    for key in site.near.wal_after(&backup) {
        site.near.remove(&key);
    }
    assert_eq!(reached(&site, "lost", &["--immediate"]), "1");
}

#[test]
fn at_the_target_the_server_pauses_promotes_or_shuts_down_as_asked() {
    let site = backed_up(15);
    insert(&site.cluster, 1);
    let target = Moment::now().to_string();
    insert(&site.cluster, 2);
    site.cluster.archive_all(PATIENCE);

    let paused = site.restore_and_start("pause", &["--time", &target]);
    assert!(paused.in_recovery());
    assert!(paused.try_sql("INSERT INTO t VALUES (9)").is_err());
    paused.promote();
    insert(&paused, 9);
    assert_eq!(rows(&paused), "1,9");

    let promoted = site.restore_and_start("promote", &["--time", &target, "--action", "promote"]);
    let open = || !promoted.in_recovery();
    seawall_tests::wait_until("it is open", PATIENCE, open);
    assert_eq!(rows(&promoted), "1");

    let to = site.scratch.join("shutdown-data");
    let args = ["--time", &target, "--action", "shutdown"];
    site.restoring(&to).args(args).run().success();
    let mut shut = site.adopt("shutdown", &to);
    shut.launch();
    shut.wait_for_end(PATIENCE);
    assert!(shut.log().contains("shutdown at recovery target"));
    assert!(to.join("recovery.signal").exists(), "it stays in recovery");
}

#[test]
fn options_that_contradict_each_other_are_bad_arguments_and_nothing_is_touched() {
    let site = backed_up(15);
    let time = Moment::now().to_string();
    let to = site.scratch.join("x-data");
    for args in [
        &["--time", &time, "--lsn", "0/3000000"][..],
        &["--xid", "700", "--name", "x"],
        &["--immediate", "--time", &time],
        // Neither has an edge to stop before.
        &["--exclusive"],
        &["--immediate", "--exclusive"],
        &["--name", "x", "--exclusive"],
        // PostgreSQL would ignore these: at the end of the WAL it always opens.
        &["--action", "pause"],
        &["--action", "shutdown"],
        // A standby follows, and stops nowhere.
        &["--standby", "--time", &time],
        &["--standby", "--immediate"],
        &["--standby", "--name", "x"],
        &["--standby", "--action", "promote"],
        &["--standby", "--end-at-gap"],
        &["--tablespace", "/old"],
        &["--tablespace", "/no/such=/new"],
        &["--timeline", "0"],
        &["--time", "2026-11-20 11:09:25"],
        &["--backup", "yesterday"],
        &["--archive", "maybe"],
        &["--repository", "elsewhere"],
    ] {
        site.restoring(&to).args(args).run().exits_with(2);
        assert!(!to.exists(), "{args:?} touched something");
    }
}

#[test]
fn a_standby_follows_the_archive_and_the_primary_and_survives_an_outage_of_both() {
    let builder = Cluster::builder(PostgresVersion::find(15));
    let mut site = Site::with(builder.config("wal_retrieve_retry_interval", "500ms")).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    site.backup();
    insert(&site.cluster, 1);
    site.cluster.archive_all(PATIENCE);
    let to = site.scratch.join("replica-data");
    site.restoring(&to).arg("--standby").run().success();
    assert!(to.join("standby.signal").exists() && !to.join("recovery.signal").exists());
    let mut standby = site.adopt("replica", &to);
    standby.start();
    let has = |standby: &Cluster, wanted: &str| {
        let what = format!("the standby has {wanted}");
        seawall_tests::wait_until(&what, PATIENCE, || rows(standby) == wanted);
    };
    has(&standby, "1");

    // From the archive alone.
    insert(&site.cluster, 2);
    site.cluster.archive_all(PATIENCE);
    has(&standby, "1,2");

    // The archive is away: it stays up, and goes on when the archive is back.
    site.near.unmount(false);
    std::thread::sleep(Duration::from_secs(2));
    assert!(standby.is_running());
    assert_eq!(rows(&standby), "1,2");
    site.near.mount();
    insert(&site.cluster, 3);
    site.cluster.archive_all(PATIENCE);
    has(&standby, "1,2,3");

    // Streaming, while the archive is away; then the primary is away, too.
    standby.sql(&format!(
        "ALTER SYSTEM SET primary_conninfo = '{}'",
        site.cluster.connection("postgres")
    ));
    standby.reload();
    site.near.unmount(true);
    insert(&site.cluster, 4);
    has(&standby, "1,2,3,4");
    site.cluster.stop(Stop::Immediate);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(rows(&standby), "1,2,3,4");
    assert!(standby.in_recovery(), "nobody promoted it");
    site.near.mount();
    site.cluster.start();
    insert(&site.cluster, 5);
    has(&standby, "1,2,3,4,5");
}

#[test]
fn acknowledged_commits_are_on_the_right_side_of_a_position_and_of_a_moment() {
    let site = Site::of(18).start();
    let mut ledger = Ledger::create(&site.cluster, &site.scratch);
    ledger.start(&site.cluster, 4, Duration::ZERO);
    ledger.wait_for_more(100, PATIENCE);
    site.backup();
    ledger.wait_for_more(300, PATIENCE);
    let lsn = site.cluster.sql("SELECT pg_current_wal_insert_lsn()");
    ledger.wait_for_more(300, PATIENCE);
    let moment = Moment::now();
    ledger.wait_for_more(300, PATIENCE);
    ledger.stop();
    site.cluster.archive_all(PATIENCE);
    let restored = site.restore_and_start("lsn", &["--lsn", &lsn]);
    let target = Target::Lsn(lsn.parse().unwrap());
    let verdict = ledger.compare(&Ledger::rows(&restored), target);
    verdict.must_hold();
    assert!(verdict.forbidden > 500);
    drop(restored);
    let restored = site.restore_and_start("time", &["--time", &moment.to_string()]);
    let verdict = ledger.compare(&Ledger::rows(&restored), Target::Time(moment));
    verdict.must_hold();
    assert!(verdict.forbidden > 200);
}
