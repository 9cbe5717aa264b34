//! Clusters that are laid out otherwise than the tutorial's: archived, backed up by the role
//! with the least privileges, lost, restored to a moment, and judged by PostgreSQL.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use seawall_tests::ledger::Target;
use seawall_tests::postgres::{Builder, Stop};
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Cluster, ConfigFile, Ledger, Moment, PostgresVersion, Repository, Scratch, Site, judge,
    seawall, wait_until,
};

fn builder(major: u32) -> Builder {
    Cluster::builder(PostgresVersion::find(major))
}

/// Works, backs up, works, loses everything, restores to a moment, compares. `args` are the
/// restore's. Returns what was restored, promoted and running.
fn round_trip(site: &mut Site, args: &[&str]) -> Cluster {
    let mut ledger = Ledger::create(&site.cluster, &site.scratch);
    ledger.start(&site.cluster, 2, Duration::from_millis(1));
    ledger.wait_for_more(50, PATIENCE);
    site.backup();
    ledger.wait_for_more(100, PATIENCE);
    let moment = Moment::now();
    ledger.wait_for_more(100, PATIENCE);
    ledger.stop();
    site.cluster.archive_all(PATIENCE);
    site.cluster.destroy();
    let time = moment.to_string();
    let to = site.scratch.join("restored-data");
    let restore = site.restoring(&to).args(["--time", &time]).args(args);
    restore.run().success();
    judge::verifybackup(site.cluster.version(), &to).must_pass();
    let mut restored = site.adopt("restored", &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    let verdict = ledger.compare(&Ledger::rows(&restored), Target::Time(moment));
    verdict.must_hold();
    assert!(verdict.forbidden > 50);
    restored.promote();
    judge::amcheck(&restored).must_pass();
    restored
}

#[test]
fn segments_of_1_mib_are_archived_restored_and_counted() {
    let mut site = Site::with(builder(15).segment_size(1)).start();
    // Over many segments, and recycled ones among them.
    site.cluster
        .sql("CREATE TABLE bulk AS SELECT repeat('x', 500) FROM generate_series(1, 8000)");
    let restored = round_trip(&mut site, &[]);
    assert_eq!(restored.sql("SHOW wal_segment_size"), "1MB");
    assert!(site.near.keys_with("/wal/00000001/").len() > 5);
}

#[test]
fn segments_of_64_mib_are_archived_restored_and_counted() {
    let mut site = Site::with(builder(18).segment_size(64).config("min_wal_size", "128MB")).start();
    let restored = round_trip(&mut site, &[]);
    assert_eq!(restored.sql("SHOW wal_segment_size"), "64MB");
}

#[test]
fn recovery_crosses_the_boundary_between_two_logs() {
    // One log is 4 GiB of positions: of 64 MiB segments, 64.
    let mut site = Site::with(builder(15).segment_size(64).config("min_wal_size", "128MB"));
    let reset = seawall_tests::Run::new(site.cluster.version().bin.join("pg_resetwal"))
        .args(["-l", "00000001000000000000003E", "-D"])
        .arg(site.cluster.data());
    reset.run().success();
    site.cluster.start();
    site.cluster.sql("CREATE TABLE t (n int)");
    let backup = site.backup();
    for n in 1..=4 {
        site.cluster.sql(&format!("INSERT INTO t VALUES ({n})"));
        site.cluster.archive_all(PATIENCE);
    }
    let last = site.near.wal_after(&backup).pop().unwrap();
    assert!(last.contains("0000000100000001000000"), "{last}");
    let listed = site.seawall("list").arg("--json").run().success().json();
    let timelines = &listed["repositories"][0]["systems"][0]["timelines"];
    assert_eq!(
        timelines[0]["gaps"].as_array().unwrap().len(),
        0,
        "{timelines}"
    );
    let restored = site.restore_and_start("restored", &[]);
    assert_eq!(restored.sql("SELECT sum(n) FROM t"), "10");
}

#[test]
fn wal_behind_a_link_and_tablespaces_of_both_kinds_come_back_through_the_least_privileges() {
    let making = builder(15)
        .separate_wal()
        .tablespace("fast")
        .config("allow_in_place_tablespaces", "on");
    let mut site = Site::with(making);
    site.cluster.start();
    site.cluster.create_seawall_role(false);
    site.config = ConfigFile::new()
        .cluster_as("main", &site.cluster, "seawall")
        .repository(Repository::local("near", site.near.root()))
        .write(&site.scratch);
    site.cluster.sql(
        "CREATE TABLESPACE inside LOCATION '';
         CREATE TABLE a TABLESPACE fast AS SELECT generate_series(1, 1000) AS n;
         CREATE TABLE b TABLESPACE inside AS SELECT generate_series(1, 1000) AS n;
         CREATE INDEX ON a (n) TABLESPACE inside;",
    );
    site.seawall("restore-point")
        .arg("by the role")
        .run()
        .success();
    let (old, new) = (
        site.cluster.tablespaces()[0].1.clone(),
        site.scratch.join("new"),
    );
    let map = format!("{}={}", old.display(), new.display());
    let restored = round_trip(&mut site, &["--tablespace", &map]);
    assert_eq!(
        restored.sql("SELECT count(*) FROM a, b WHERE a.n = b.n"),
        "1000"
    );
    assert!(!restored.data().join("pg_wal").is_symlink());
    assert!(new.join("PG_15_202209061").is_dir());
    let links = std::fs::read_dir(restored.data().join("pg_tblspc"))
        .unwrap()
        .flatten();
    let mut kinds: Vec<bool> = links.map(|l| l.file_type().unwrap().is_symlink()).collect();
    kinds.sort();
    assert_eq!(kinds, [false, true], "one inside, one behind a link");
}

/// Modes of all files and directories, relative to the root.
fn modes(root: &Path) -> BTreeMap<PathBuf, u32> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(path) = pending.pop() {
        let metadata = path.symlink_metadata().unwrap();
        found.insert(
            path.strip_prefix(root).unwrap().to_owned(),
            metadata.mode() & 0o7777,
        );
        if metadata.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    found
}

#[test]
fn a_directory_that_the_group_may_read_comes_back_with_these_very_modes() {
    let site = Site::with(builder(18).group_access().separate_wal().tablespace("fast")).start();
    site.cluster
        .sql("CREATE TABLE t TABLESPACE fast AS SELECT 1 AS n");
    site.backup();
    let source = modes(site.cluster.data());
    let (to, wal) = (site.scratch.join("restored-data"), site.scratch.join("wal"));
    let (old, new) = (
        site.cluster.tablespaces()[0].1.clone(),
        site.scratch.join("new"),
    );
    let map = format!("{}={}", old.display(), new.display());
    let call = site.restoring(&to).args(["--tablespace", &map, "--waldir"]);
    call.arg(&wal).run().success();
    for (path, mode) in modes(&to) {
        let link = to.join(&path).is_symlink();
        let expected = match (to.join(&path).is_dir(), link) {
            (_, true) => 0o777,
            (true, _) => 0o750,
            (false, _) => 0o640,
        };
        assert_eq!(mode, expected, "{path:?}: {mode:o}");
        if let Some(before) = source.get(&path)
            && !link
        {
            assert_eq!(mode, *before, "{path:?}: {mode:o}");
        }
    }
    for root in [&wal, &new] {
        for (path, mode) in modes(root) {
            let expected = if root.join(&path).is_dir() {
                0o750
            } else {
                0o640
            };
            assert_eq!(mode, expected, "{root:?} {path:?}: {mode:o}");
        }
    }
    let mut restored = site.adopt("restored", &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    assert_eq!(restored.sql("SHOW data_directory_mode"), "0750");
    assert_eq!(restored.sql("SELECT n FROM t"), "1");
}

#[test]
fn odd_paths_are_quoted_wherever_a_shell_or_postgresql_reads_them() {
    let scratch = Scratch::new();
    let made = builder(15).create_in(&scratch, "main");
    // Another path for what exists, since libpq's words would have to be quoted as well.
    let odd = scratch.directory("it's a \"dir\" & 100%");
    let data = odd.join("data $HOME; `x`");
    std::fs::rename(made.data(), &data).unwrap();
    drop(made);
    let mut cluster = Cluster::adopt(PostgresVersion::find(15), &scratch, "odd", &data);
    let near = scratch.directory("near");
    let config = ConfigFile::new()
        .cluster_as("main", &cluster, "postgres")
        .repository(Repository::local("near", &near))
        .write_to(&odd.join("sea wall's %p.toml"));
    let init = seawall(&config).arg("init").run().success();
    // The very lines that init prints.
    for line in init.stdout.lines().filter(|line| line.contains(" = '")) {
        cluster.append("postgresql.conf", line);
    }
    cluster.start();
    for name in ["select", "a\"b'c d", "über", "x/../y", "-D", "%f %p"] {
        cluster.sql(&format!(
            "CREATE DATABASE \"{}\"",
            name.replace('"', "\"\"")
        ));
        cluster.sql_in(
            &format!("dbname='{}'", name.replace('\'', "\\'")),
            "CREATE TABLE t AS SELECT 1",
        );
    }
    let backup = seawall(&config)
        .args(["backup", "--json"])
        .run()
        .success()
        .json();
    assert_eq!(backup["data_directory"], data.to_str().unwrap());
    cluster.sql("CREATE TABLE last AS SELECT 1");
    cluster.archive_all(PATIENCE);
    let to = odd.join("restored 'here' %f");
    let wal = odd.join("wal \"there\" $x");
    let restore = seawall_tests::restore(&config)
        .arg("--to")
        .arg(&to)
        .arg("--waldir")
        .arg(&wal);
    restore.run().success();
    let mut restored = Cluster::adopt(PostgresVersion::find(15), &scratch, "restored", &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    judge::dump(&cluster).must_equal(&judge::dump(&restored));
    judge::amcheck(&restored).must_pass();
}

#[test]
fn configuration_outside_the_data_directory_comes_back_and_starts() {
    let mut site = Site::with(builder(15).config_outside().config("work_mem", "5MB")).start();
    let etc = site.cluster.config_directory().to_owned();
    site.cluster.sql("CREATE TABLE t AS SELECT 1 AS n");
    site.backup();
    site.cluster.sql("INSERT INTO t VALUES (2)");
    site.cluster.archive_all(PATIENCE);
    site.cluster.destroy();
    std::fs::remove_dir_all(&etc).unwrap();
    let to = site.scratch.join("restored-data");
    let restore = site.restoring(&to).run().success();
    restore.says("was put into the data directory");
    judge::verifybackup(site.cluster.version(), &to).must_pass();
    let mut restored = site.adopt("restored", &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    assert_eq!(restored.sql("SELECT sum(n) FROM t"), "3");
    assert_eq!(restored.sql("SHOW work_mem"), "5MB");
}

#[test]
fn prepared_transactions_and_large_objects_survive_and_logical_slots_are_reported_lost() {
    let making = builder(15)
        .config("wal_level", "logical")
        .config("max_prepared_transactions", "5");
    let mut site = Site::with(making).start();
    site.cluster.sql(
        "CREATE TABLE t (n int);
         SELECT lo_from_bytea(4711, convert_to('large', 'UTF8'));
         SELECT pg_create_logical_replication_slot('orders_feed', 'test_decoding');",
    );
    let prepare = |n: u32| {
        let sql = format!("BEGIN; INSERT INTO t VALUES ({n}); PREPARE TRANSACTION 'p{n}';");
        site.cluster.sql(&sql)
    };
    prepare(1);
    site.backup();
    prepare(2);
    site.cluster
        .sql("SELECT lo_put(4711, 5, convert_to(' object', 'UTF8')); INSERT INTO t VALUES (3);");
    let moment = Moment::now().to_string();
    site.cluster
        .sql("COMMIT PREPARED 'p1'; COMMIT PREPARED 'p2';");
    site.cluster.archive_all(PATIENCE);
    site.cluster.destroy();
    let to = site.scratch.join("restored-data");
    let restore = site
        .restoring(&to)
        .args(["--time", &moment])
        .run()
        .success();
    restore.says("logical replication slot orders_feed is not restored");
    let mut restored = site.adopt("restored", &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    restored.promote();
    let prepared = "SELECT string_agg(gid, ',' ORDER BY gid) FROM pg_prepared_xacts";
    assert_eq!(restored.sql(prepared), "p1,p2");
    assert_eq!(restored.sql("SELECT string_agg(n::text, ',') FROM t"), "3");
    restored.sql("COMMIT PREPARED 'p1'; ROLLBACK PREPARED 'p2';");
    assert_eq!(restored.sql("SELECT sum(n) FROM t"), "4");
    let object = "SELECT convert_from(lo_get(4711), 'UTF8')";
    assert_eq!(restored.sql(object), "large object");
    assert_eq!(
        restored.sql("SELECT count(*) FROM pg_replication_slots"),
        "0"
    );
}

#[test]
fn on_hold_nothing_is_archived_and_released_everything_is() {
    let site = Site::with(builder(18)).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    site.backup();
    site.cluster.archive_all(PATIENCE);
    let before = site.near.files();
    let mut restored = site.restore_and_start("held", &["--immediate", "--action", "promote"]);
    restored.sql("INSERT INTO t VALUES (1)");
    let segment = restored.switch_wal();
    wait_until("the archiver is held", PATIENCE, || {
        restored.archiver().0 > 0
    });
    assert!(
        restored
            .log()
            .contains("release it with ALTER SYSTEM RESET archive_command")
    );
    let mut files = site.near.files();
    // What the restore uses is on record for as long as recovery may take.
    files.retain(|key| !key.contains("/leases/"));
    assert_eq!(files, before);
    restored.sql("ALTER SYSTEM RESET archive_command");
    restored.reload();
    restored.wait_until_archived(&segment, PATIENCE);
    restored.wait_until_archived("00000002.history", PATIENCE);
    assert_eq!(site.near.wal("00000002.history").len(), 1);
    restored.stop(Stop::Immediate);

    let off = site.restore_and_start("off", &["--archive", "off", "--timeline", "1"]);
    assert_eq!(off.sql("SHOW archive_mode"), "off");
    let on = site.restore_and_start("on", &["--archive", "on", "--timeline", "1", "--immediate"]);
    assert_eq!(on.sql("SHOW archive_mode"), "on");
    assert!(on.sql("SHOW archive_command").contains("seawall-archive"));
    let auto = std::fs::metadata(on.data().join("postgresql.auto.conf")).unwrap();
    assert_eq!(auto.permissions().mode() & 0o7777, 0o600);
}
