//! Where a restore writes: WAL and tablespaces elsewhere, what is there already, and everything
//! that it must leave alone.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use seawall_tests::postgres::Stop;
use seawall_tests::scratch::{give_to_owner, is_root, make_directory, owner};
use seawall_tests::site::PATIENCE;
use seawall_tests::{Cluster, PostgresVersion, Site, judge};

/// A running site with a tablespace, something in it, and a backup.
fn with_tablespace(major: u32) -> Site {
    let builder = Cluster::builder(PostgresVersion::find(major)).tablespace("fast");
    let site = Site::with(builder).start();
    site.cluster.sql(
        "CREATE TABLE inside AS SELECT generate_series(1, 1000) AS n;
         CREATE TABLE outside TABLESPACE fast AS SELECT generate_series(1, 1000) AS n;
         CREATE INDEX ON inside (n) TABLESPACE fast;",
    );
    site.backup();
    site.cluster.sql("INSERT INTO outside VALUES (1001)");
    site.cluster.archive_all(PATIENCE);
    site
}

fn mapping(old: &Path, new: &Path) -> String {
    format!("{}={}", old.display(), new.display())
}

/// Every file below, with its content's digest and its mode.
fn everything(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).unwrap().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_file() {
                let mode = entry.metadata().unwrap().permissions().mode();
                let digest = seawall_tests::stored::digest(&std::fs::read(&path).unwrap());
                found.insert(path, format!("{digest} {mode:o}"));
            }
        }
    }
    found
}

fn count(cluster: &Cluster) -> String {
    cluster.sql("SELECT (SELECT count(*) FROM inside), (SELECT count(*) FROM outside)")
}

#[test]
fn wal_and_tablespaces_go_where_they_are_told_and_the_live_ones_are_not_touched() {
    let site = with_tablespace(15);
    let old = site.cluster.tablespaces()[0].1.clone();
    let to = site.scratch.join("new-data");
    // Nowhere else to put it: the live one is there, and the restore says so.
    let refused = site.restoring(&to).run().exits_with(4);
    refused
        .says("--tablespace OLD=NEW")
        .says(&old.display().to_string());
    assert!(!to.exists(), "nothing was touched");

    let (space, wal) = (site.scratch.join("new-space"), site.scratch.join("new-wal"));
    let before = everything(&old);
    let restore = || {
        site.restoring(&to)
            .args(["--tablespace", &mapping(&old, &space), "--waldir"])
            .arg(&wal)
    };
    restore().run().success();
    assert_eq!(everything(&old), before);
    assert_eq!(std::fs::read_link(to.join("pg_wal")).unwrap(), wal);
    let link = std::fs::read_dir(to.join("pg_tblspc"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    assert_eq!(std::fs::read_link(link.path()).unwrap(), space);
    judge::verifybackup(site.cluster.version(), &to).must_pass();
    for directory in [&to, &space, &wal] {
        assert_eq!(
            directory.metadata().unwrap().mode() & 0o7777,
            0o700,
            "{directory:?}"
        );
    }
    let mut restored = site.adopt("new", &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    assert_eq!(count(&restored), "1000|1001");
    assert!(
        std::fs::read_dir(&wal).unwrap().count() > 1,
        "its WAL lies there"
    );
    judge::dump(&site.cluster).must_equal(&judge::dump(&restored));
    judge::amcheck(&restored).must_pass();

    // What is there already is refused, each directory for itself.
    restored.stop(Stop::Fast);
    restore().run().exits_with(4).says("not empty");
    let (to2, space2) = (site.scratch.join("to2"), site.scratch.join("space2"));
    let call = site
        .restoring(&to2)
        .args(["--tablespace", &mapping(&old, &space2), "--waldir"]);
    call.arg(&wal).run().exits_with(4).says("--waldir");
    let call = site
        .restoring(&to2)
        .args(["--tablespace", &mapping(&old, &space)]);
    call.run().exits_with(4).says("--tablespace");
    assert!(!to2.exists() && !space2.exists());
}

#[test]
fn directories_that_overlap_are_refused_however_they_are_written() {
    let site = with_tablespace(15);
    let old = site.cluster.tablespaces()[0].1.clone();
    let to = site.scratch.join("to");
    let link = site.scratch.join("link");
    std::os::unix::fs::symlink(site.near.root(), &link).unwrap();
    let space = site.scratch.join("space");
    for (to, space, wal) in [
        (&to, &to.join("space"), None),
        (&to, &space, Some(&space)),
        (&to, &space, Some(&to)),
        (&space.join("below"), &space, None),
        (&to, &to.join("../to"), None),
        (&link.join("below"), &space, None),
        (&to, &link.join("main"), None),
        (&site.scratch.path().to_path_buf(), &space, None),
    ] {
        let mut call = site
            .restoring(to)
            .args(["--tablespace", &mapping(&old, space)]);
        if let Some(wal) = wal {
            call = call.arg("--waldir").arg(wal);
        }
        let before = site.near.files();
        call.arg("--force").run().exits_with(4);
        assert_eq!(site.near.files(), before);
        assert!(!site.scratch.join("space").exists());
    }
}

#[test]
fn force_replaces_a_stopped_cluster_with_its_tablespaces_and_nothing_beside_them() {
    let mut site = with_tablespace(15);
    let (data, space) = (
        site.cluster.data().to_owned(),
        site.cluster.tablespaces()[0].1.clone(),
    );
    site.restoring(&data)
        .arg("--force")
        .run()
        .exits_with(4)
        .says("running");
    assert_eq!(count(&site.cluster), "1000|1001");

    site.cluster
        .sql("CREATE TABLE unwanted TABLESPACE fast AS SELECT 1");
    site.cluster.stop(Stop::Fast);
    site.restoring(&data).run().exits_with(4).says("--force");
    // Somebody else's, in the tablespace's directory and beside the cluster; and what only a
    // link in the data directory leads to.
    let beside = site.scratch.directory("beside");
    let others = [
        space.join("PG_14_202107181/5/16400"),
        space.join("notes.txt"),
        beside.join("precious"),
    ];
    for path in &others {
        make_directory(path.parent().unwrap());
        std::fs::write(path, "precious").unwrap();
        give_to_owner(path);
    }
    std::os::unix::fs::symlink(&beside, data.join("link")).unwrap();
    let archived = everything(site.near.root());
    let args = ["--force", "--immediate", "--action", "promote"];
    site.restoring(&data).args(args).run().success();
    for path in &others {
        assert_eq!(std::fs::read(path).unwrap(), b"precious", "{path:?}");
    }
    assert!(!data.join("link").exists());
    let mut left = everything(site.near.root());
    // All that a restore leaves there says that recovery needs the backup and its WAL.
    left.retain(|path, _| !path.to_string_lossy().contains("/leases/"));
    assert_eq!(left, archived);
    let mut restored = site.adopt("again", &data);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    assert_eq!(count(&restored), "1000|1000");
    assert!(restored.try_sql("SELECT * FROM unwanted").is_err());
    judge::amcheck(&restored).must_pass();
}

#[test]
fn force_never_empties_what_is_no_cluster() {
    let site = with_tablespace(15);
    let home = site.scratch.directory("home");
    let file = home.join("holiday.jpg");
    std::fs::write(&file, "x").unwrap();
    give_to_owner(&file);
    let map = mapping(
        &site.cluster.tablespaces()[0].1,
        &site.scratch.join("space"),
    );
    let restoring = |to: &Path| site.restoring(to).args(["--force", "--tablespace", &map]);
    restoring(&home).run().exits_with(4).says("this is none");
    // A WAL directory that holds more than WAL is not emptied, even if a cluster names it.
    let mut wrong = Cluster::builder(PostgresVersion::find(15))
        .separate_wal()
        .create_in(&site.scratch, "wrong");
    wrong.stop(Stop::Fast);
    let wal = std::fs::read_link(wrong.data().join("pg_wal")).unwrap();
    std::fs::write(wal.join("diary.txt"), "x").unwrap();
    give_to_owner(&wal.join("diary.txt"));
    let call = restoring(wrong.data()).arg("--waldir").arg(&wal);
    call.run().exits_with(4).says("diary.txt");
    assert!(wal.join("diary.txt").exists() && wrong.data().join("PG_VERSION").exists());
    assert!(file.exists());
}

#[test]
fn started_by_root_everything_belongs_to_postgresqls_user_with_its_modes() {
    if !is_root() {
        eprintln!("not tested: this does not run as root");
        return;
    }
    let mut site = with_tablespace(15);
    let as_root = |call: seawall_tests::cli::Call| call.with(|run| run.as_self());
    as_root(site.seawall("backup")).run().success();
    as_root(site.seawall("restore-point").arg("as root"))
        .run()
        .success();
    site.cluster.archive_all(PATIENCE);
    let old = site.cluster.tablespaces()[0].1.clone();
    site.cluster.destroy();
    // Places that only root can make, several levels deep.
    let base = site.scratch.join("srv");
    let (to, wal, space) = (
        base.join("pg/15/main"),
        base.join("wal/15/main"),
        base.join("spaces/fast"),
    );
    let call = site
        .restoring(&to)
        .args(["--tablespace", &mapping(&old, &space), "--waldir"]);
    as_root(call.arg(&wal).args(["--name", "as root"]))
        .run()
        .success();
    let mut restored = site.adopt("restored", &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    assert_eq!(count(&restored), "1000|1001");
    restored.promote();
    restored.stop(Stop::Fast);
    for root in [&to, &wal, &space, &site.near.root().to_path_buf()] {
        let mut pending = vec![root.clone()];
        while let Some(path) = pending.pop() {
            let metadata = path.symlink_metadata().unwrap();
            assert_eq!(metadata.uid(), owner().uid, "{path:?}");
            if metadata.is_dir() {
                pending.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            }
        }
    }
    assert_eq!(to.metadata().unwrap().mode() & 0o7777, 0o700);
}
