//! Disks that are full: nothing is acknowledged, nothing half-written counts, what can be done
//! is said, and once there is space the same command succeeds. Field failure 2.

use std::time::Duration;

use seawall_tests::postgres::Stop;
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Cluster, ConfigFile, PostgresVersion, Repository, Scratch, Site, Tmpfs, archive, judge,
    restore, seawall, wait_until,
};

const FIRST: &str = "000000010000000000000001";

#[test]
fn a_full_repository_acknowledges_nothing_and_postgresql_catches_up_once_there_is_space() {
    let scratch = Scratch::new();
    let Some(disk) = Tmpfs::mount(&scratch, "disk", 96) else {
        return;
    };
    let root = disk.path().join("near");
    let mut cluster = Cluster::builder(PostgresVersion::find(15)).create_in(&scratch, "main");
    let config = ConfigFile::new()
        .cluster(&cluster)
        .repository(Repository::local("near", &root).key("attempts", "2"))
        .write(&scratch);
    seawall(&config).arg("init").run().success();
    cluster.archive_with(&config);
    let ballast = disk.fill(8 << 10);

    // By hand first: the code, the words, and nothing that could be taken for the file.
    let push = || {
        archive(&config)
            .arg(format!("pg_wal/{FIRST}"))
            .with(|run| run.directory(cluster.data()))
    };
    let output = push().run().exits_with(1);
    output.says("No space left").says("hint:");
    let stored = seawall_tests::Stored::at(&root);
    assert!(stored.wal(FIRST).is_empty());

    // The archiver meets the same, keeps the WAL, and counts its failures.
    cluster.start();
    cluster.sql("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 100000) n");
    cluster.switch_wal();
    wait_until("archiving fails", PATIENCE, || cluster.archiver().0 > 0);
    assert_eq!(cluster.archiver().1, 0);
    let output = seawall(&config).args(["check", "--timeout", "1s"]).run();
    let check = output.exits_with(3).stdout;
    assert!(check.contains("archiving fails"), "{check}");

    // A backup ends cleanly, soon, and without a marker.
    let output = seawall(&config).arg("backup").run().exits_with(1);
    output.says("No space left").says("hint:");
    assert!(stored.keys_with("/backup.json").is_empty());

    std::fs::remove_file(&ballast).unwrap();
    cluster.archive_all(PATIENCE);
    seawall(&config).arg("backup").run().success();
    let to = scratch.join("to");
    restore(&config).arg("--to").arg(&to).run().success();
    judge::verifybackup(cluster.version(), &to).must_pass();
    // What the failed attempts left is none of the objects that count.
    let staging = stored.files().into_iter().find(|key| key.contains('#'));
    assert_eq!(staging, None);
    cluster.stop(Stop::Fast);
}

#[test]
fn a_disk_that_fills_up_in_the_middle_of_a_backup_leaves_no_backup() {
    let scratch = Scratch::new();
    let Some(disk) = Tmpfs::mount(&scratch, "disk", 128) else {
        return;
    };
    let root = disk.path().join("near");
    let mut cluster = Cluster::builder(PostgresVersion::find(15)).create_in(&scratch, "main");
    let config = ConfigFile::new()
        .cluster(&cluster)
        .repository(Repository::local("near", &root).key("attempts", "2"))
        .write(&scratch);
    seawall(&config).arg("init").run().success();
    cluster.archive_with(&config);
    cluster.start();
    cluster.sql(
        "CREATE TABLE t AS SELECT sha512(n::text::bytea) FROM generate_series(1, 300000) n;
         CHECKPOINT",
    );
    cluster.archive_all(PATIENCE);
    // Room for the beginning of a pack, and for no more.
    for room in [1 << 20, 4 << 20, 12 << 20] {
        let ballast = disk.fill(room);
        let output = seawall(&config).arg("backup").run().exits_with(1);
        output.says("No space left");
        std::fs::remove_file(&ballast).unwrap();
        let stored = seawall_tests::Stored::at(&root);
        assert!(stored.keys_with("/backup.json").is_empty());
        let staging: Vec<_> = stored
            .files()
            .into_iter()
            .filter(|key| key.contains('#'))
            .collect();
        assert!(staging.is_empty(), "{staging:?}");
    }
    seawall(&config).arg("backup").run().success();
}

#[test]
fn a_restore_onto_a_full_disk_fails_cleanly_and_completes_once_there_is_space() {
    let site = Site::of(15).start();
    let Some(disk) = Tmpfs::mount(&site.scratch, "disk", 256) else {
        return;
    };
    site.cluster.sql("CREATE TABLE t AS SELECT 1");
    site.backup();
    site.cluster.archive_all(PATIENCE);
    let to = disk.path().join("data");
    for room in [0, 64 << 10, 12 << 20] {
        let ballast = disk.fill(room);
        let output = site.restoring(&to).run().exits_with(1);
        output.says("No space left");
        assert!(!to.join("global/pg_control").exists(), "it would start");
        std::fs::remove_file(&ballast).unwrap();
    }
    site.restoring(&to).run().success();
    judge::verifybackup(site.cluster.version(), &to).must_pass();
    let mut restored = site.adopt("restored", &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    restored.stop(Stop::Immediate);
}

#[test]
fn a_full_pg_wal_stops_recovery_and_never_ends_it() {
    let mut site = Site::of(15).start();
    let Some(disk) = Tmpfs::mount(&site.scratch, "disk", 200) else {
        return;
    };
    site.cluster.sql("CREATE TABLE t (n int)");
    site.backup();
    for n in 1..=3 {
        site.cluster.sql(&format!("INSERT INTO t VALUES ({n})"));
        site.cluster.archive_all(PATIENCE);
    }
    site.cluster.stop(Stop::Fast);
    let (to, wal) = (site.scratch.join("to"), disk.path().join("wal"));
    let restore = site.restoring(&to).arg("--waldir").arg(&wal);
    restore.run().success();
    // Less than one segment.
    let ballast = disk.fill(6 << 20);
    let mut restored = site.adopt("restored", &to);
    let failure = restored.try_start(Duration::from_secs(60)).unwrap_err();
    assert!(failure.log.contains("exit code 200"), "{}", failure.log);
    assert!(!failure.log.contains("archive recovery complete"));
    assert!(
        std::fs::read_dir(&wal)
            .unwrap()
            .flatten()
            .all(|entry| { !entry.file_name().to_string_lossy().contains("tmp") })
    );
    std::fs::remove_file(&ballast).unwrap();
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    assert_eq!(restored.sql("SELECT count(*) FROM t"), "3");
    restored.stop(Stop::Immediate);
}
