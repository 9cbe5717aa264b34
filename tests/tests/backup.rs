//! What `seawall backup` promises: what it took restores to the same data, whatever went on
//! meanwhile and whatever the layout is. PostgreSQL's own tools judge.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use seawall_tests::judge;
use seawall_tests::scratch::make_directory;
use seawall_tests::site::PATIENCE;
use seawall_tests::{Cluster, ConfigFile, PostgresVersion, Repository, Site, pgbench, seawall};

/// Paths of all packs of the only backup, by `zstd -d | tar t`.
fn members(site: &Site) -> Vec<String> {
    let mut members = Vec::new();
    for key in site.near.keys_with(".tar.zst") {
        let script = "zstd -dcq \"$0\" | tar -t";
        let output = Command::new("bash")
            .args(["-o", "pipefail", "-c", script])
            .arg(site.near.path(&key))
            .output()
            .unwrap();
        assert!(output.status.success(), "{key}: {output:?}");
        let listed = String::from_utf8(output.stdout).unwrap();
        members.extend(
            listed
                .lines()
                .map(|line| line.trim_end_matches('/').to_owned()),
        );
    }
    members.sort();
    members
}

fn directories(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).unwrap().flatten() {
            if entry.path().is_dir() {
                let relative = entry
                    .path()
                    .strip_prefix(root)
                    .unwrap()
                    .display()
                    .to_string();
                found.insert(relative);
                pending.push(entry.path());
            }
        }
    }
    found
}

/// Promotes, then asks all judges.
fn judge_fully(mut restored: Cluster) {
    if restored.in_recovery() {
        restored.promote();
    }
    judge::is_sound(&mut restored);
}

#[test]
fn a_backup_under_load_restores_to_the_same_data_on_15() {
    backup_under_load(15);
}

#[test]
fn a_backup_under_load_restores_to_the_same_data_on_18() {
    backup_under_load(18);
}

#[test]
#[ignore = "long: the other PostgreSQL versions"]
fn a_backup_under_load_restores_to_the_same_data_on_every_other_version() {
    for major in [14, 16, 17] {
        backup_under_load(major);
    }
}

fn backup_under_load(major: u32) {
    let site = Site::of(major).start();
    pgbench::init(&site.cluster, 3);
    let load = pgbench::start(&site.cluster, 3, Duration::from_secs(60));
    std::thread::sleep(Duration::from_millis(500));
    site.backup();
    std::thread::sleep(Duration::from_millis(500));
    drop(load);
    // Quiescent: no session is left.
    site.cluster.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgbench'",
    );
    site.cluster.archive_all(PATIENCE);
    let dump = judge::dump(&site.cluster);

    let untouched = site.scratch.join("untouched");
    site.restoring(&untouched).run().success();
    judge::verifybackup(site.cluster.version(), &untouched).must_pass();
    assert!(!untouched.join("tablespace_map").exists());

    let restored = site.restore_and_start("again", &["--action", "promote"]);
    dump.must_equal(&judge::dump(&restored));
    judge_fully(restored);
}

#[test]
fn what_a_restored_cluster_does_not_need_is_left_out_and_what_it_needs_is_kept() {
    let builder = Cluster::builder(PostgresVersion::find(15)).separate_wal();
    let mut site = Site::with(builder);
    site.cluster.configure("wal_level", "logical");
    let site = site.start();
    let cluster = &site.cluster;
    cluster.sql(
        "CREATE UNLOGGED TABLE fleeting AS SELECT generate_series(1, 10000) AS n;
         CREATE INDEX ON fleeting (n);
         CREATE DATABASE another;
         SELECT pg_create_physical_replication_slot('physical', true);
         SELECT pg_create_logical_replication_slot('logical', 'test_decoding');
         CHECKPOINT",
    );
    let file = cluster.sql("SELECT pg_relation_filepath('fleeting')");
    // A session with a temporary table that stays open during the backup.
    let session = cluster
        .client("psql")
        .args([
            "-Xq",
            "-c",
            "CREATE TEMP TABLE passing AS SELECT generate_series(1, 10000)",
            "-c",
            "SELECT pg_sleep(60)",
        ])
        .start();
    let temporary = || cluster.sql("SELECT count(*) FROM pg_class WHERE relname = 'passing'");
    seawall_tests::wait_until("the temporary table is there", PATIENCE, || {
        temporary() == "1"
    });
    std::fs::create_dir_all(cluster.data().join("base/pgsql_tmp")).unwrap();
    for stale in [
        "backup_label.old",
        "base/pgsql_tmp/pgsql_tmp1.0",
        "postgresql.auto.conf.tmp",
    ] {
        std::fs::write(cluster.data().join(stale), "stale").unwrap();
        seawall_tests::scratch::give_to_owner(&cluster.data().join(stale));
    }
    seawall_tests::scratch::give_to_owner(&cluster.data().join("base/pgsql_tmp"));

    let marker = site.backup();
    drop(session);
    assert_eq!(marker["logical_slots"][0], "logical");
    let members = members(&site);
    let has = |path: &str| members.iter().any(|member| member == path);
    for absent in [
        file.as_str(),
        "postmaster.pid",
        "postmaster.opts",
        "postgresql.auto.conf.tmp",
        "backup_manifest",
        "pg_wal/archive_status",
    ] {
        assert!(!has(absent), "{absent} is in the backup");
    }
    assert!(has(&format!("{file}_init")));
    for present in [
        "backup_label",
        "global/pg_control",
        "PG_VERSION",
        "postgresql.conf",
        "pg_wal",
        "pg_replslot",
        "pg_notify",
        "pg_subtrans",
        "pg_dynshmem",
        "pg_stat_tmp",
        "pg_serial",
        "pg_snapshots",
        "pg_twophase",
        "pg_logical",
        "pg_xact",
    ] {
        assert!(has(present), "{present} is missing");
    }
    for forbidden in [
        "pg_wal/0",
        "pg_replslot/",
        "pgsql_tmp",
        "pg_internal.init",
        "/t",
        "pg_dynshmem/",
        "pg_notify/",
        "pg_subtrans/",
        "pg_stat_tmp/",
    ] {
        let found = members
            .iter()
            .find(|member| member.contains(forbidden) && !member.ends_with("pg_tblspc"));
        assert_eq!(found, None, "{forbidden}");
    }
    assert_eq!(
        members.len(),
        members.iter().collect::<BTreeSet<_>>().len(),
        "each once"
    );

    cluster.archive_all(PATIENCE);
    let expected = directories(cluster.data());
    let to = site.scratch.join("untouched");
    let output = site.restoring(&to).run().success();
    output.says("the logical replication slot logical is not restored");
    judge::verifybackup(cluster.version(), &to).must_pass();
    let left_out = |path: &String| {
        ![
            "pg_replslot/",
            "pg_wal/",
            "pgsql_tmp",
            "pg_logical/snapshots/",
        ]
        .iter()
        .any(|part| path.contains(part))
    };
    let missing: Vec<_> = expected
        .iter()
        .filter(|path| left_out(path))
        .filter(|path| !to.join(path).is_dir())
        .collect();
    assert!(missing.is_empty(), "{missing:?}");

    let restored = site.restore_and_start("again", &["--action", "promote"]);
    assert_eq!(restored.sql("SELECT count(*) FROM fleeting"), "0");
    restored.sql("INSERT INTO fleeting VALUES (1)");
    assert_eq!(
        restored.sql("SELECT count(*) FROM pg_replication_slots"),
        "0"
    );
    judge_fully(restored);
}

#[test]
fn tablespaces_are_restored_where_they_are_sent_and_nowhere_else() {
    for major in [15, 18] {
        let builder = Cluster::builder(PostgresVersion::find(major));
        let site = Site::with(builder.tablespace("one").tablespace("two")).start();
        site.cluster.sql(
            "CREATE TABLE a TABLESPACE one AS SELECT generate_series(1, 5000) AS n;
             CREATE TABLE b TABLESPACE two AS SELECT generate_series(1, 5000) AS n",
        );
        site.backup();
        site.cluster.sql("INSERT INTO a VALUES (0)");
        site.cluster.archive_all(PATIENCE);
        let dump = judge::dump(&site.cluster);
        // Unmapped, they would land in the live directories.
        let to = site.scratch.join("refused");
        site.restoring(&to).run().exits_with(4).says("--tablespace");
        assert!(!to.exists());
        let mut mapped = Vec::new();
        for (name, old) in site.cluster.tablespaces() {
            let new = site.scratch.join(format!("new-{name}"));
            make_directory(&new);
            mapped.push("--tablespace".to_owned());
            mapped.push(format!("{}={}", old.display(), new.display()));
        }
        // One of two mapped is refused just so.
        site.restoring(&to).args(&mapped[..2]).run().exits_with(4);
        let before = judge::dump(&site.cluster);
        let to = site.scratch.join("untouched");
        site.restoring(&to).args(&mapped).run().success();
        judge::verifybackup(site.cluster.version(), &to).must_pass();
        let mut restored = site.adopt("again", &to);
        restored.start();
        restored.wait_until_recovered(PATIENCE);
        dump.must_equal(&judge::dump(&restored));
        let places = restored.sql("SELECT string_agg(pg_tablespace_location(oid), ' ' ORDER BY spcname) FROM pg_tablespace WHERE spcname IN ('one', 'two')");
        for place in places.split(' ') {
            assert!(place.contains("/new-"), "{places}");
        }
        judge_fully(restored);
        before.must_equal(&judge::dump(&site.cluster));
    }
}

#[test]
fn configuration_outside_the_data_directory_is_restored_and_the_server_starts_with_it() {
    for major in [15, 18] {
        let builder = Cluster::builder(PostgresVersion::find(major)).config_outside();
        let mut site = Site::with(builder);
        let etc = site.cluster.config_directory().to_owned();
        make_directory(&etc.join("conf.d"));
        std::fs::write(etc.join("conf.d/own.conf"), "work_mem = '7MB'\n").unwrap();
        seawall_tests::scratch::give_to_owner(&etc.join("conf.d/own.conf"));
        site.cluster
            .append("postgresql.conf", "include_dir = 'conf.d'");
        let site = site.start();
        site.cluster.sql("CREATE TABLE t AS SELECT 42 AS answer");
        let marker = site.backup();
        assert_eq!(marker["configuration_files"].as_array().unwrap().len(), 4);
        site.cluster.archive_all(PATIENCE);
        // The host is lost, its /etc included.
        let mut site = site;
        site.cluster.destroy();
        std::fs::remove_dir_all(&etc).unwrap();
        let restored = site.restore_and_start("again", &["--action", "promote"]);
        assert_eq!(restored.sql("SELECT answer FROM t"), "42");
        assert_eq!(restored.sql("SHOW work_mem"), "7MB");
        let data = restored.data().display().to_string();
        for setting in ["data_directory", "config_file", "hba_file", "ident_file"] {
            let value = restored.sql(&format!("SHOW {setting}"));
            assert!(value.starts_with(&data), "{setting} = {value}");
        }
        let to = site.scratch.join("untouched");
        site.restoring(&to).run().success();
        judge::verifybackup(restored.version(), &to).must_pass();
    }
}

#[test]
fn files_that_come_go_grow_and_shrink_during_the_backup_do_no_harm() {
    let site = Site::of(15).start();
    pgbench::init(&site.cluster, 3);
    let churn = "DO $$ BEGIN FOR i IN 1..100000 LOOP
        EXECUTE 'DROP TABLE IF EXISTS c' || i % 20;
        EXECUTE 'CREATE TABLE c' || i % 20 || ' AS SELECT g AS n, repeat(''x'', 200) AS t FROM generate_series(1, 400) g';
        EXECUTE 'CREATE INDEX ON c' || i % 20 || ' (n)';
        IF i % 5 = 0 THEN EXECUTE 'TRUNCATE c' || i % 20; END IF;
        COMMIT;
    END LOOP; END $$";
    let writing = site.cluster.client("psql").args(["-Xqc", churn]).start();
    let vacuum = "DO $$ BEGIN FOR i IN 1..100000 LOOP
        INSERT INTO grow SELECT generate_series(1, 3000); COMMIT;
        DELETE FROM grow; COMMIT;
    END LOOP; END $$";
    site.cluster.sql("CREATE TABLE grow (n int)");
    let growing = site.cluster.client("psql").args(["-Xqc", vacuum]).start();
    let databases = std::thread::scope(|scope| {
        let backups = scope.spawn(|| (site.backup(), site.backup()));
        let mut count = 0;
        while !backups.is_finished() {
            site.cluster.sql("CREATE DATABASE passing");
            site.cluster.sql("DROP DATABASE passing");
            site.cluster.sql("VACUUM grow");
            count += 1;
        }
        backups.join().unwrap();
        count
    });
    assert!(databases > 0);
    drop((writing, growing));
    site.cluster.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'psql' AND pid <> pg_backend_pid()");
    site.cluster.archive_all(PATIENCE);
    let dump = judge::dump(&site.cluster);
    let restored = site.restore_and_start("again", &["--action", "promote"]);
    dump.must_equal(&judge::dump(&restored));
    judge_fully(restored);
}

#[test]
fn a_damaged_page_is_named_and_the_backup_is_kept_marked_and_answers_3() {
    let mut site = Site::of(15).start();
    site.cluster
        .sql("CREATE TABLE t AS SELECT generate_series(1, 10000) AS n; CHECKPOINT");
    let file = site.cluster.sql("SELECT pg_relation_filepath('t')");
    let flipped = [3 * 8192 + 5000, 7 * 8192 + 100];
    site.cluster.flip_bits("t", &flipped);
    let output = site.seawall("backup").arg("--json").run().exits_with(3);
    let marker = output.json();
    assert_eq!(marker["damaged_page_count"], 2);
    assert_eq!(marker["damaged_pages"][0], format!("{file}: block 3"));
    assert_eq!(marker["damaged_pages"][1], format!("{file}: block 7"));
    output
        .says(&format!("{file} block 3"))
        .says(&format!("{file} block 7"))
        .says("hint:");
    // It is a backup all the same: perhaps the last that there will be.
    let listed = site.seawall("list").arg("--json").run().success().json();
    let backup = &listed["repositories"][0]["systems"][0]["backups"][0];
    assert_eq!(backup["id"], marker["id"]);
    assert_eq!(backup["damaged_pages"], 2);
    let to = site.scratch.join("restored");
    site.restoring(&to)
        .run()
        .success()
        .says("2 pages whose checksums were wrong");
}

#[test]
fn the_role_with_the_least_privileges_suffices() {
    for major in [15, 18] {
        let mut site = Site::of(major);
        site.config = ConfigFile::new()
            .cluster_as("main", &site.cluster, "seawall")
            .repository(Repository::local("near", site.near.root()))
            .write(&site.scratch);
        let site = site.start();
        site.cluster.create_seawall_role(false);
        site.cluster.sql("CREATE TABLE t AS SELECT 42 AS answer");
        seawall(&site.config).arg("init").run().success();
        site.backup();
        seawall(&site.config)
            .args(["restore-point", "here"])
            .run()
            .success();
        site.cluster.archive_all(PATIENCE);
        let restored = site.restore_and_start("again", &[]);
        assert_eq!(restored.sql("SELECT answer FROM t"), "42");
    }
}
