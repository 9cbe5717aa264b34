//! A restored standby that streams from its primary, tablespaces below one directory, and what a
//! restored cluster lacks on this host.

use seawall_tests::site::PATIENCE;
use seawall_tests::{Cluster, PostgresVersion, Site, judge, sealed, wait_until};

#[test]
fn a_standby_streams_from_its_primary_through_the_slot_that_was_given() {
    let site = Site::of(15).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    site.backup();
    site.cluster.sql("INSERT INTO t VALUES (1)");
    site.cluster.archive_all(PATIENCE);
    site.cluster
        .sql("SELECT pg_create_physical_replication_slot('the_standby', true)");
    let to = site.scratch.join("standby-data");
    // A quote and a backslash go through every layer.
    let conninfo = format!(
        r"{} application_name='it\'s \\ here'",
        site.cluster.connection("postgres")
    );
    site.restoring(&to)
        .args(["--standby", "--archive", "on", "--slot", "the_standby"])
        .args(["--primary-conninfo", &conninfo])
        .run()
        .success();
    let mut standby = site.adopt("standby", &to);
    standby.start();
    let sql = "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'";
    wait_until("it streams", PATIENCE, || {
        site.cluster.sql(sql) == "it's \\ here"
    });
    assert_eq!(
        site.cluster
            .sql("SELECT active FROM pg_replication_slots WHERE slot_name = 'the_standby'"),
        "t"
    );
    site.cluster.sql("INSERT INTO t VALUES (2)");
    wait_until("the row arrives", PATIENCE, || {
        standby.sql("SELECT count(*) FROM t") == "2"
    });
    assert!(standby.in_recovery());
}

#[test]
fn a_password_on_the_command_line_is_refused_before_anything_is_touched() {
    let site = Site::of(15);
    let to = site.scratch.join("to");
    for secret in ["host=a password=geheim", "postgresql://u:geheim@host/db"] {
        let output = site
            .restoring(&to)
            .args(["--standby", "--primary-conninfo", secret])
            .run()
            .exits_with(2);
        assert!(!output.stderr.contains("geheim"), "{}", output.stderr);
        output.says("passfile");
    }
    let slot = ["--standby", "--slot", "Not-A-Name"];
    site.restoring(&to).args(slot).run().exits_with(2);
    site.restoring(&to)
        .args(["--slot", "a"])
        .run()
        .exits_with(2);
    assert!(!to.exists());
}

#[test]
fn all_tablespaces_go_below_one_directory_and_nothing_is_written_where_they_were() {
    let builder = Cluster::builder(PostgresVersion::find(15))
        .tablespace("fast")
        .tablespace("slow");
    let site = Site::with(builder).start();
    for name in ["fast", "slow"] {
        site.cluster.sql(&format!(
            "CREATE TABLE {name} TABLESPACE {name} AS SELECT generate_series(1, 1000) n"
        ));
    }
    site.backup();
    site.cluster.archive_all(PATIENCE);
    let dump = judge::dump(&site.cluster);
    let to = site.scratch.join("restored-data");
    let under = site.scratch.join("spaces");
    let call = || site.restoring(&to).arg("--tablespaces-under").arg(&under);
    // What is there already is somebody's.
    let oid = site
        .cluster
        .sql("SELECT oid FROM pg_tablespace WHERE spcname = 'slow'");
    let occupied = under.join(&oid);
    std::fs::create_dir_all(occupied.join("PG_15_202209061")).unwrap();
    call().run().exits_with(4).says("not empty");
    std::fs::remove_dir_all(&under).unwrap();
    call().run().success();
    let mut restored = site.adopt("restored", &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    judge::dump(&restored).must_equal(&dump);
    let places = restored.sql(
        "SELECT count(*) FROM pg_tablespace \
         WHERE pg_tablespace_location(oid) LIKE '%/spaces/' || oid",
    );
    assert_eq!(places, "2");
    // Recovery makes no tablespace of its own elsewhere.
    let settings = std::fs::read_to_string(to.join("postgresql.auto.conf")).unwrap();
    assert!(settings.contains("--new-tablespaces refuse"), "{settings}");
    let both = ["--tablespace", "/a=/b"];
    call().args(both).run().exits_with(2);
}

#[test]
fn what_this_host_lacks_is_named_by_the_restore_with_what_to_install() {
    let mut site = Site::of(15).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    site.cluster.configure("wal_level", "logical");
    site.cluster.restart();
    site.cluster
        .sql("SELECT pg_create_logical_replication_slot('changes', 'pgoutput')");
    // For sessions after a reload, which never comes.
    site.cluster.sql(
        "ALTER SYSTEM SET session_preload_libraries = 'auto_explain', 'seawall_no_such_library'",
    );
    site.backup();
    site.cluster.archive_all(PATIENCE);
    let to = site.scratch.join("to");
    let output = site.restoring(&to).arg("--json").run().success();
    let report = output.json();
    assert_eq!(report["lost_logical_slots"][0], "changes");
    let missing = &report["host"]["missing_libraries"];
    assert_eq!(missing.as_array().unwrap().len(), 1, "{missing}");
    assert_eq!(missing[0]["setting"], "session_preload_libraries");
    assert_eq!(missing[0]["library"], "seawall_no_such_library");
    output
        .says("install the package with seawall_no_such_library.so")
        .says("the logical replication slot changes is not restored");
}

#[test]
fn a_restore_names_databases_that_another_glibc_sorted() {
    let site = Site::of(15).start();
    site.backup();
    site.cluster.archive_all(PATIENCE);
    // As a source with another glibc and a locale that this host need not have would say.
    let key = site.near.keys_with("/backup.json").remove(0);
    let mut marker: serde_json::Value = serde_json::from_slice(&site.near.bytes(&key)).unwrap();
    marker["collations"] = serde_json::json!([
        {"name": "shop de_DE.UTF-8", "version": "2.19"},
        {"name": "books en-x-icu", "version": "153.112"},
    ]);
    std::fs::write(site.near.path(&key), sealed(marker)).unwrap();
    let to = site.scratch.join("to");
    let output = site.restoring(&to).arg("--json").run().success();
    let named = &output.json()["host"]["collations"];
    assert_eq!(named["databases"], serde_json::json!(["shop: 2.19"]));
    output
        .says("text was sorted by another glibc on the source (shop: 2.19)")
        .says("REINDEX DATABASE");
}
