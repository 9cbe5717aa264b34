//! What `seawall restore --delta` promises: what is right stays as it is, what differs is
//! rewritten, what does not belong there goes, and nothing outside is touched.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use seawall_tests::cli::seawall;
use seawall_tests::judge;
use seawall_tests::postgres::Stop;
use seawall_tests::scratch::{give_to_owner, give_tree_to_owner};
use seawall_tests::site::PATIENCE;
use seawall_tests::{Cluster, ConfigFile, PostgresVersion, Repository, Site, pgbench, wait_until};

/// A running site with a tablespace and a backup.
fn site() -> Site {
    let builder = Cluster::builder(PostgresVersion::find(15)).tablespace("other");
    let site = Site::with(builder).start();
    pgbench::init(&site.cluster, 1);
    site.cluster
        .sql("CREATE TABLE t TABLESPACE other AS SELECT generate_series(1, 50000) AS n");
    site.backup();
    site.cluster.archive_all(PATIENCE);
    site
}

/// Restores to the end of the backup.
fn restoring(site: &Site, to: &Path, args: &[&str]) -> seawall_tests::cli::Call {
    let call = site
        .restoring(to)
        .args(["--archive", "off", "--immediate", "--json"]);
    call.args(["--action", "promote"]).args(args)
}

/// Every file below, with its inode.
fn inodes(directory: &Path) -> BTreeMap<PathBuf, u64> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_dir() {
            all.extend(inodes(&path));
        } else {
            all.insert(path, metadata.ino());
        }
    }
    all
}

/// The largest relation file of a database directory.
fn largest(directory: &Path) -> PathBuf {
    let files = inodes(directory).into_keys();
    files
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap()
}

fn write(path: &Path, content: &[u8]) {
    std::fs::write(path, content).unwrap();
    give_to_owner(path);
}

#[test]
fn what_is_right_keeps_its_inode_and_the_rest_becomes_the_backups() {
    let mut site = site();
    let dump = judge::dump(&site.cluster);
    site.cluster.stop(Stop::Fast);
    let (to, other) = (
        site.cluster.data().to_owned(),
        site.cluster.tablespaces()[0].1.clone(),
    );
    let delta = |site: &Site| {
        let output = restoring(site, &to, &["--delta"]).run().success().json();
        judge::verifybackup(site.cluster.version(), &to).must_pass();
        output
    };
    delta(&site);
    let (before, in_other) = (inodes(&to.join("base")), inodes(&other));

    // Nothing differs: nothing is fetched but what is written anew in any case.
    let output = delta(&site);
    assert_eq!(inodes(&to.join("base")), before);
    assert_eq!(inodes(&other), in_other);
    assert!(output["kept_files"].as_u64().unwrap() > 900, "{output:#}");
    assert!(
        output["fetched_bytes"].as_u64().unwrap() < 2_000_000,
        "{output:#}"
    );

    // Damaged, cut, grown, lost, with another mode; foreign files, directories and links.
    let large = largest(&to.join("base"));
    let mut bytes = std::fs::read(&large).unwrap();
    bytes[70_000] ^= 1;
    write(&large, &bytes);
    let second = largest(&other);
    write(&second, &bytes[..8192]);
    let lost = to.join("base/1/PG_VERSION");
    std::fs::remove_file(&lost).unwrap();
    let mode = to.join("base/5/PG_VERSION");
    std::fs::set_permissions(&mode, std::fs::Permissions::from_mode(0o444)).unwrap();
    let outside = site.scratch.directory("outside");
    write(&outside.join("precious"), b"mine");
    let linked = to.join("base/1/pg_filenode.map");
    std::fs::remove_file(&linked).unwrap();
    symlink(outside.join("precious"), &linked).unwrap();
    symlink(&outside, to.join("base/999")).unwrap();
    let hard = to.join("base/4/PG_VERSION");
    std::fs::remove_file(&hard).unwrap();
    std::fs::hard_link(outside.join("precious"), &hard).unwrap();
    for directory in ["base/77777/deep", "pg_wal/archive_status"] {
        std::fs::create_dir_all(to.join(directory)).unwrap();
    }
    for foreign in [
        "holiday.jpg",
        "base/5/99999",
        "base/77777/deep/1",
        "pg_wal/000000010000000000000099",
        "pg_wal/archive_status/000000010000000000000099.ready",
        "pg_replslot/x",
        "standby.signal",
    ] {
        write(&to.join(foreign), b"foreign");
    }
    give_tree_to_owner(&to);
    let foreign_version = other.join("PG_99_1");
    std::fs::create_dir(&foreign_version).unwrap();
    give_to_owner(&foreign_version);

    delta(&site);
    let after = inodes(&to.join("base"));
    for (path, inode) in &before {
        let touched = [&large, &lost, &linked, &hard].contains(&path);
        // Numbers of files that are gone are given again: only what stays is known by them.
        assert!(touched || after[path] == *inode, "{}", path.display());
    }
    assert_eq!(after.len(), before.len());
    assert_eq!(std::fs::read(outside.join("precious")).unwrap(), b"mine");
    assert_eq!(mode.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(
        foreign_version.exists(),
        "another version's files are not ours"
    );
    for gone in [
        "holiday.jpg",
        "base/999",
        "base/77777",
        "pg_replslot/x",
        "standby.signal",
    ] {
        assert!(to.join(gone).symlink_metadata().is_err(), "{gone}");
    }
    assert!(inodes(&to.join("pg_wal")).is_empty());

    site.cluster.start();
    site.cluster.wait_until_recovered(PATIENCE);
    judge::dump(&site.cluster).must_equal(&dump);
    // It lived on, and goes back to where it was.
    site.cluster
        .sql("DELETE FROM pgbench_accounts WHERE aid % 3 = 0; DROP TABLE t; CREATE TABLE u ()");
    site.cluster.stop(Stop::Fast);
    delta(&site);
    site.cluster.start();
    site.cluster.wait_until_recovered(PATIENCE);
    judge::dump(&site.cluster).must_equal(&dump);
}

#[test]
fn only_a_cluster_of_the_same_system_that_does_not_run_is_touched() {
    let site = site();
    let delta = |to: &Path| restoring(&site, to, &["--delta"]).run();
    // What is no cluster.
    let holiday = site.scratch.directory("holiday");
    write(&holiday.join("holiday.jpg"), b"me");
    delta(&holiday).exits_with(4).says("this is none");
    assert_eq!(std::fs::read(holiday.join("holiday.jpg")).unwrap(), b"me");
    // Another system.
    let other = Cluster::builder(PostgresVersion::find(15)).create_in(&site.scratch, "stranger");
    let before = inodes(other.data());
    delta(other.data()).exits_with(4).says("another cluster");
    assert_eq!(inodes(other.data()), before);
    // One that runs.
    delta(site.cluster.data()).exits_with(4).says("running");
    // A copy of a cluster, whose links lead to the tablespaces of the one that lives.
    let copy = site.scratch.directory("copy");
    std::os::unix::fs::symlink(&site.cluster.tablespaces()[0].1, copy.join("link")).unwrap();
    for part in ["PG_VERSION", "global/pg_control"] {
        std::fs::create_dir_all(copy.join("global")).unwrap();
        std::fs::copy(site.cluster.data().join(part), copy.join(part)).unwrap();
    }
    give_tree_to_owner(&copy);
    delta(&copy)
        .exits_with(4)
        .says("it may belong to a live cluster");
    assert_eq!(site.cluster.sql("SELECT count(*) FROM t"), "50000");
    // A directory that is not there is simply made.
    let (new, elsewhere) = (site.scratch.join("new"), site.scratch.join("elsewhere"));
    let old = &site.cluster.tablespaces()[0].1;
    let mapping = format!("{}={}", old.display(), elsewhere.display());
    let call = restoring(&site, &new, &["--delta", "--tablespace", &mapping]);
    call.run().success();
    judge::verifybackup(site.cluster.version(), &new).must_pass();
}

#[test]
fn a_killed_delta_does_not_start_and_the_same_command_completes_it() {
    let site = Site::of(15).start();
    pgbench::init(&site.cluster, 1);
    site.backup();
    site.cluster.archive_all(PATIENCE);
    let dump = judge::dump(&site.cluster);
    let to = site.scratch.join("copy-data");
    restoring(&site, &to, &[]).run().success();
    let control = to.join("global/pg_control");
    let mark = to.join("seawall-restore.json");
    let mut killed = 0;
    for step in 0..6 {
        // So that there is something to write.
        let spoilt = ["base/5", "base/1", "global"].map(|name| largest(&to.join(name)));
        spoilt.iter().for_each(|path| write(path, b"other"));
        let mut running = restoring(&site, &to, &["--delta"]).start();
        wait_until("it has begun", PATIENCE, || {
            mark.exists() || !control.exists() || !running.is_running()
        });
        std::thread::sleep(Duration::from_millis(15 * step));
        if running.kill().code != 0 {
            killed += 1;
            let untouched = spoilt
                .iter()
                .all(|path| std::fs::read(path).is_ok_and(|content| content == b"other"));
            if !control.exists() {
                let mut half = site.adopt(&format!("half{step}"), &to);
                assert!(half.try_start(PATIENCE).is_err(), "it started");
            } else if !untouched {
                site.is_whole_but_for_the_mark(&to);
            }
        }
    }
    assert!(killed > 0, "none was killed in time");
    restoring(&site, &to, &["--delta"]).run().success();
    judge::verifybackup(site.cluster.version(), &to).must_pass();
    let mut restored = site.adopt("copy", &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    judge::dump(&restored).must_equal(&dump);
}

#[test]
fn a_delta_to_a_backup_that_came_over_the_protocol_is_refused_before_anything_is_touched() {
    let site = Site::of(15).start();
    let distant = ConfigFile::new()
        .distant("main", &site.cluster.connection("postgres"))
        .repository(Repository::local("near", site.near.root()))
        .write_to(&site.scratch.join("distant.toml"));
    seawall(&distant).arg("backup").run().success();
    site.cluster.archive_all(PATIENCE);
    let to = site.scratch.join("copy-data");
    restoring(&site, &to, &[]).run().success();
    let before = inodes(&to);
    let refused = restoring(&site, &to, &["--delta"]).run();
    refused.exits_with(4).says("--delta needs one");
    assert_eq!(inodes(&to), before);
    let mut copy = site.adopt("copy", &to);
    copy.start();
    copy.wait_until_recovered(PATIENCE);
}
