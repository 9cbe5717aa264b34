//! `seawall restore-point --wait`: it returns 0 only when every repository can bring the point
//! back, and otherwise says which cannot, and why.

use std::time::Duration;

use seawall_tests::judge;
use seawall_tests::postgres::Stop;
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Cluster, ConfigFile, PostgresVersion, Repository, Run, Site, Stored, seawall, wait_until,
};

/// A running site with a second push target, a table and no backup.
fn two(archive_ack: &str) -> (Site, Stored) {
    let builder = Cluster::builder(PostgresVersion::find(15)).segment_size(1);
    let (site, second) = Site::with(builder).with_second(&format!("archive_ack = {archive_ack}"));
    let site = site.start();
    site.cluster.sql("CREATE TABLE t (what text)");
    (site, second)
}

fn back_up_into(site: &Site, repositories: &[&str]) {
    for repository in repositories {
        let call = site.seawall("backup").args(["--repository", repository]);
        call.run().success();
    }
}

fn insert(site: &Site, what: &str) {
    site.cluster
        .sql(&format!("INSERT INTO t VALUES ('{what}')"));
}

fn waiting(site: &Site, name: &str, timeout: &str) -> seawall_tests::cli::Call {
    let call = site.seawall("restore-point");
    call.args([name, "--wait", "--timeout", timeout])
}

#[test]
fn a_point_that_was_waited_for_comes_back_from_every_repository_without_what_followed() {
    let (site, second) = two("\"all\"");
    back_up_into(&site, &["near", "second"]);
    insert(&site, "kept");
    let made = waiting(&site, "before 42", "60s").arg("--json").run();
    let made = made.success().json();
    assert_eq!(made["name"], "before 42");
    let recoverable = made["recoverable"].as_array().unwrap();
    let names: Vec<_> = recoverable.iter().map(|r| &r["repository"]).collect();
    assert_eq!(names, ["near", "second"]);
    // The migration; nothing of it is archived when the server dies.
    site.cluster
        .sql("ALTER TABLE t ADD COLUMN more int; TRUNCATE t");
    let Site {
        mut cluster,
        config,
        near,
        scratch,
    } = site;
    let version = cluster.version().clone();
    cluster.destroy();
    for (stored, name, other) in [(&near, "near", &second), (&second, "second", &near)] {
        other.unmount(false);
        let to = scratch.join(format!("{name}-data"));
        let call = seawall_tests::restore(&config).arg("--to").arg(&to);
        let call = call.args(["--repository", name, "--name", "before 42"]);
        call.args(["--action", "promote"]).run().success();
        let mut restored = Cluster::adopt(version.clone(), &scratch, name, &to);
        restored.start();
        restored.wait_until_recovered(PATIENCE);
        assert_eq!(restored.sql("SELECT * FROM t"), "kept", "{stored:?}");
        judge::amcheck(&restored).must_pass();
        restored.stop(Stop::Fast);
        other.mount();
    }
}

#[test]
fn a_repository_that_is_away_when_time_is_up_is_named_and_waited_for_once_it_is_back() {
    let (mut site, second) = two("\"any\"");
    back_up_into(&site, &["near", "second"]);
    let archive_command = site.cluster.sql("SHOW archive_command");
    site.cluster.configure("archive_command", "false");
    site.cluster.reload();
    insert(&site, "kept");
    let point = waiting(&site, "first", "15s").start();
    wait_until("it is made", PATIENCE, || {
        point.stderr().contains("second: not yet")
    });
    second.unmount(true);
    site.cluster.configure("archive_command", &archive_command);
    site.cluster.reload();
    let said = point.wait().exits_with(1);
    let said = said.says("not recoverable from 1 of 2 repositories");
    let said = said.says("second: ");
    assert!(said.stderr.contains("near: recoverable from backup"));
    assert!(
        !said.stdout.contains("can be recovered to"),
        "{}",
        said.stdout
    );
    // Before it is made there is nothing to wait for.
    let points = site.near.keys_with("/points/");
    waiting(&site, "another", "15s").run().exits_with(1);
    assert_eq!(site.near.keys_with("/points/"), points);
    // Unless nobody waits for that one.
    let alone = waiting(&site, "near alone", "60s");
    let made = alone.args(["--repository", "near"]).run();
    made.success().says("second");

    second.mount();
    // What it lacks comes with the WAL that is archived next, once the process that opened the
    // empty place has ended: after two idle seconds.
    let mut point = waiting(&site, "third", "80s").start();
    while point.is_running() {
        site.cluster.switch_wal();
        std::thread::sleep(Duration::from_secs(4));
    }
    point.wait().success();
    let restored = site.restore_and_start(
        "from-second",
        &["--repository", "second", "--name", "third"],
    );
    assert_eq!(restored.sql("SELECT * FROM t"), "kept");
}

#[test]
fn a_point_to_which_no_backup_leads_is_not_made_and_neither_is_one_of_a_used_name() {
    let (site, second) = two("\"all\"");
    back_up_into(&site, &["near"]);
    let points = || site.near.keys_with("/points/").len() + second.keys_with("/points/").len();
    let refused = waiting(&site, "one", "60s").run().exits_with(5);
    let refused = refused.says("no finished backup in repository second");
    refused.says("seawall backup --repository second");
    assert_eq!(points(), 0);
    let near = ["--repository", "near"];
    waiting(&site, "one", "60s").args(near).run().success();
    assert_eq!(points(), 2, "it is recorded in both all the same");
    let again = waiting(&site, "one", "60s").args(near).run();
    again
        .exits_with(4)
        .says("was made before")
        .says("choose another");
    assert_eq!(points(), 2);
    // Without waiting nothing is promised.
    site.seawall("restore-point").arg("one").run().success();
}

#[test]
fn a_copy_is_waited_for_and_its_backup_may_still_come() {
    let builder = Cluster::builder(PostgresVersion::find(15)).segment_size(1);
    let mut site = Site::with(builder);
    let root = site.scratch.directory("far");
    site.config = ConfigFile::new()
        .cluster(&site.cluster)
        .repository(Repository::local("near", site.near.root()))
        .repository(Repository::local("far", &root).copy_from("near"))
        .write(&site.scratch);
    seawall(&site.config).arg("init").run().success();
    let site = site.start();
    site.backup();
    let late = waiting(&site, "late", "2s").run();
    assert!([1, 5].contains(&late.code), "{}", late.code);
    late.says("far: ").says("1 of 2 repositories");
    let point = waiting(&site, "in time", "80s").start();
    wait_until("near has all", PATIENCE, || {
        point.stderr().contains("near: recoverable")
    });
    // What a copy does: the markers last.
    for part in ["wal", "points", "system.json", "backups"] {
        let system = site.cluster.system_id();
        let (from, to) = (site.near.root().join("main"), root.join("main"));
        let script = format!(
            "mkdir -p {to} && cp -an {from}/{part} {to}/",
            from = from.join(&system).display(),
            to = to.join(&system).display()
        );
        Run::new("/bin/sh").args(["-c", &script]).run().success();
    }
    let made = point.wait().success();
    assert!(
        made.stdout.contains("from repository far"),
        "{}",
        made.stdout
    );
}

#[test]
fn where_a_copy_of_the_database_archives_here_too_a_restore_must_be_told_the_timeline() {
    let builder = Cluster::builder(PostgresVersion::find(15)).segment_size(1);
    let site = Site::with(builder).start();
    site.cluster.sql("CREATE TABLE t (what text)");
    site.backup();
    site.cluster.archive_all(PATIENCE);
    let mut other = site.restore_and_start("other", &["--archive", "on"]);
    other.archive_all(PATIENCE);
    other.stop(Stop::Fast);

    insert(&site, "kept");
    let made = waiting(&site, "mine", "60s").run().success();
    let made = made.says("the newest timeline does not pass this point");
    let command = "seawall restore --to DIRECTORY --name mine --timeline 1";
    assert!(made.stdout.contains(command), "{}", made.stdout);
    let json = waiting(&site, "mine too", "60s").arg("--json").run();
    assert_eq!(json.success().json()["recoverable"][0]["timeline"], 1);
    insert(&site, "lost");
    // What is printed works, and what it would be without does not.
    let to = site.scratch.join("untold-data");
    let untold = site.restoring(&to).args(["--name", "mine"]).run();
    assert_ne!(untold.code, 0, "{}", untold.stdout);
    let args = ["--name", "mine", "--timeline", "1", "--action", "promote"];
    let restored = site.restore_and_start("told", &args);
    assert_eq!(restored.sql("SELECT * FROM t"), "kept");
}
