//! A server that pauses at its target is open for reading, and PostgreSQL opens only with
//! settings that are no smaller than the source's were.

use seawall_tests::site::PATIENCE;
use seawall_tests::{Cluster, PostgresVersion, Site};

use seawall_tests::postgres::Stop;

fn rows(cluster: &Cluster) -> String {
    cluster.sql("SELECT string_agg(n::text, ',' ORDER BY n) FROM t")
}

#[test]
fn settings_in_force_that_the_files_do_not_say_are_written_down_by_the_restore() {
    let builder = Cluster::builder(PostgresVersion::find(15))
        .config("max_connections", "77")
        .config("max_prepared_transactions", "7");
    let mut site = Site::with(builder).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    // Not in force yet: it waits for a restart that never comes.
    site.cluster.configure("max_connections", "30");
    site.cluster.configure("max_prepared_transactions", "0");
    site.backup();
    site.cluster.sql("INSERT INTO t VALUES (1), (2)");
    site.seawall("restore-point").arg("here").run().success();
    site.cluster.sql("INSERT INTO t VALUES (3)");
    site.cluster.archive_all(PATIENCE);
    let to = site.scratch.join("restored-data");
    let restore = site.restoring(&to).args(["--name", "here"]).run().success();
    restore
        .says("max_connections is 30 in the configuration and was 77")
        .says("max_prepared_transactions is 0");
    let mut restored = site.adopt("restored", &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    assert_eq!(rows(&restored), "1,2");
    assert!(restored.in_recovery(), "it is open for reading, and waits");
}

#[test]
fn a_setting_that_was_raised_after_the_backup_pauses_recovery_until_it_is_raised_here_too() {
    let builder = Cluster::builder(PostgresVersion::find(15));
    let mut site = Site::with(builder).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    site.backup();
    site.cluster.sql("INSERT INTO t VALUES (1)");
    site.cluster.configure("max_connections", "77");
    site.cluster.restart();
    site.cluster.sql("INSERT INTO t VALUES (2)");
    site.seawall("restore-point").arg("here").run().success();
    site.cluster.sql("INSERT INTO t VALUES (3)");
    site.cluster.archive_all(PATIENCE);
    let mut restored = site.restore_and_start("restored", &["--name", "here"]);
    assert_eq!(rows(&restored), "1");
    let log = restored.log();
    assert!(
        log.contains("max_connections = 40 is a lower setting"),
        "{log}"
    );
    restored.stop(Stop::Fast);
    restored.configure("max_connections", "77");
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    assert_eq!(rows(&restored), "1,2");
}
