//! What `seawall restore --delta` promises: what is right stays as it is, what differs is
//! rewritten, what does not belong there goes, and nothing outside is touched.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use seawall_tests::judge;
use seawall_tests::postgres::Stop;
use seawall_tests::scratch::{give_to_owner, give_tree_to_owner};
use seawall_tests::site::PATIENCE;
use seawall_tests::{Cluster, PostgresVersion, Site, pgbench, wait_until};

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

/// Where it is restored to, and how.
struct Copy {
    to: PathBuf,
    other: PathBuf,
    mapping: String,
}

impl Copy {
    fn of(site: &Site, name: &str) -> Self {
        let other = site.scratch.join(format!("{name}-other"));
        let old = &site.cluster.tablespaces()[0].1;
        Self {
            to: site.scratch.join(format!("{name}-data")),
            mapping: format!("{}={}", old.display(), other.display()),
            other,
        }
    }

    fn restore(&self, site: &Site, args: &[&str]) -> seawall_tests::cli::Call {
        let call = site
            .restoring(&self.to)
            .args(["--tablespace", &self.mapping]);
        call.args(["--archive", "off", "--action", "promote", "--json"])
            .args(args)
    }
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
    let site = site();
    let dump = judge::dump(&site.cluster);
    let copy = Copy::of(&site, "copy");
    copy.restore(&site, &[]).run().success();
    let before = inodes(&copy.to.join("base"));
    let in_other = inodes(&copy.other);

    // Nothing differs: nothing is fetched but what is written anew in any case.
    let output = copy.restore(&site, &["--delta"]).run().success().json();
    assert_eq!(inodes(&copy.to.join("base")), before);
    assert_eq!(inodes(&copy.other), in_other);
    assert!(output["kept_files"].as_u64().unwrap() > 900, "{output:#}");
    assert!(
        output["fetched_bytes"].as_u64().unwrap() < 2_000_000,
        "{output:#}"
    );
    judge::verifybackup(site.cluster.version(), &copy.to).must_pass();

    // Damaged, cut, grown, lost, with another mode; foreign files, directories and links.
    let large = largest(&copy.to.join("base"));
    let mut bytes = std::fs::read(&large).unwrap();
    bytes[70_000] ^= 1;
    write(&large, &bytes);
    let second = largest(&copy.other);
    write(&second, &bytes[..8192]);
    let lost = copy.to.join("base/1/PG_VERSION");
    std::fs::remove_file(&lost).unwrap();
    let mode = copy.to.join("base/5/PG_VERSION");
    std::fs::set_permissions(&mode, std::fs::Permissions::from_mode(0o444)).unwrap();
    let outside = site.scratch.directory("outside");
    write(&outside.join("precious"), b"mine");
    let linked = copy.to.join("base/1/pg_filenode.map");
    std::fs::remove_file(&linked).unwrap();
    symlink(outside.join("precious"), &linked).unwrap();
    symlink(&outside, copy.to.join("base/999")).unwrap();
    let hard = copy.to.join("base/4/PG_VERSION");
    std::fs::remove_file(&hard).unwrap();
    std::fs::hard_link(outside.join("precious"), &hard).unwrap();
    std::fs::create_dir_all(copy.to.join("base/77777/deep")).unwrap();
    for foreign in [
        "holiday.jpg",
        "base/5/99999",
        "base/77777/deep/1",
        "pg_wal/000000010000000000000099",
        "pg_wal/archive_status/000000010000000000000099.ready",
        "pg_replslot/x",
        "standby.signal",
    ] {
        write(&copy.to.join(foreign), b"foreign");
    }
    give_tree_to_owner(&copy.to);
    let foreign_version = copy.other.join("PG_99_1");
    std::fs::create_dir(&foreign_version).unwrap();
    give_to_owner(&foreign_version);

    copy.restore(&site, &["--delta"]).run().success();
    let after = inodes(&copy.to.join("base"));
    for (path, inode) in &before {
        let touched = [&large, &lost, &linked, &hard].contains(&path);
        assert_eq!(after[path] == *inode, !touched, "{}", path.display());
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
        assert!(copy.to.join(gone).symlink_metadata().is_err(), "{gone}");
    }
    assert!(inodes(&copy.to.join("pg_wal")).is_empty());
    judge::verifybackup(site.cluster.version(), &copy.to).must_pass();

    let mut restored = site.adopt("copy", &copy.to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    judge::dump(&restored).must_equal(&dump);
    // It lived on, and goes back to where it was.
    restored.sql("DELETE FROM pgbench_accounts WHERE aid % 3 = 0; DROP TABLE t; CREATE TABLE u ()");
    restored.stop(Stop::Fast);
    copy.restore(&site, &["--delta"]).run().success();
    judge::verifybackup(site.cluster.version(), &copy.to).must_pass();
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    judge::dump(&restored).must_equal(&dump);
}

#[test]
fn only_a_cluster_of_the_same_system_that_does_not_run_is_touched() {
    let site = site();
    let copy = Copy::of(&site, "copy");
    // What is no cluster.
    std::fs::create_dir(&copy.to).unwrap();
    write(&copy.to.join("holiday.jpg"), b"me");
    give_tree_to_owner(&copy.to);
    let refused = copy.restore(&site, &["--delta"]).run().exits_with(4);
    refused.says("this is none");
    assert_eq!(std::fs::read(copy.to.join("holiday.jpg")).unwrap(), b"me");
    // Another system.
    let other = Cluster::builder(PostgresVersion::find(15)).create_in(&site.scratch, "stranger");
    let before = inodes(other.data());
    let refused = site
        .restoring(other.data())
        .args(["--tablespace", &copy.mapping, "--delta"]);
    refused.run().exits_with(4).says("another cluster");
    assert_eq!(inodes(other.data()), before);
    // One that runs.
    let refused = site.restoring(site.cluster.data()).args(["--delta"]);
    refused.run().exits_with(4).says("running");
    assert_eq!(site.cluster.sql("SELECT count(*) FROM t"), "50000");
    // A directory that is not there is simply made.
    let new = Copy::of(&site, "new");
    new.restore(&site, &["--delta"]).run().success();
    judge::verifybackup(site.cluster.version(), &new.to).must_pass();
}

#[test]
fn a_killed_delta_does_not_start_and_the_same_command_completes_it() {
    let site = site();
    let dump = judge::dump(&site.cluster);
    let copy = Copy::of(&site, "copy");
    copy.restore(&site, &[]).run().success();
    let control = copy.to.join("global/pg_control");
    let mut killed = 0;
    for step in 0..6 {
        // So that there is something to write.
        for directory in ["base/5", "base/1", "global"] {
            let file = largest(&copy.to.join(directory));
            write(&file, b"other");
        }
        let running = copy.restore(&site, &["--delta"]).start();
        wait_until("it has begun", PATIENCE, || {
            copy.to.join("seawall-restore.json").exists() || !control.exists()
        });
        std::thread::sleep(Duration::from_millis(15 * step));
        if running.kill().code != 0 {
            killed += 1;
            assert!(!control.exists() || !copy.to.join("seawall-restore.json").exists());
        }
    }
    assert!(killed > 0, "none was killed in time");
    copy.restore(&site, &["--delta"]).run().success();
    judge::verifybackup(site.cluster.version(), &copy.to).must_pass();
    let mut restored = site.adopt("copy", &copy.to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    judge::dump(&restored).must_equal(&dump);
}
