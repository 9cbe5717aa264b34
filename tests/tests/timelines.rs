//! Recovery where history branched: across promotions, on either branch of a fork, and what a
//! person is told who asks for a moment that is on neither.

use std::path::Path;

use seawall_tests::postgres::Stop;
use seawall_tests::site::PATIENCE;
use seawall_tests::{Cluster, Moment, Output, PostgresVersion, Segment, Site};

/// A running site with an empty table `t` and a backup.
fn backed_up(major: u32) -> Site {
    let site = Site::of(major).start();
    site.cluster.sql("CREATE TABLE t (what text)");
    site.backup();
    site
}

fn insert(cluster: &Cluster, what: &str) {
    cluster.sql(&format!("INSERT INTO t VALUES ('{what}')"));
}

fn rows(cluster: &Cluster) -> String {
    cluster.sql("SELECT string_agg(what, ',' ORDER BY what) FROM t")
}

/// A moment between two commits.
fn moment() -> String {
    Moment::now().to_string()
}

/// Restores, promotes, and lets the new primary archive, as the restore says.
fn new_primary(site: &Site, name: &str, args: &[&str]) -> Cluster {
    let restored = site.restore_and_start(name, args);
    if restored.in_recovery() {
        restored.promote();
    }
    restored.sql("ALTER SYSTEM RESET archive_command");
    restored.reload();
    restored
}

/// The rows that a recovery with these arguments brings back.
fn recovered(site: &Site, name: &str, args: &[&str]) -> String {
    let mut restored = site.restore_and_start(name, args);
    let found = rows(&restored);
    restored.stop(Stop::Immediate);
    found
}

/// A restore that is refused and touches nothing.
fn refused(site: &Site, code: i32, args: &[&str]) -> Output {
    let to = site.scratch.join("refused-data");
    let output = site.restoring(&to).args(args).run().exits_with(code);
    assert!(!to.exists(), "it touched the target");
    output
}

#[test]
fn recovery_crosses_one_promotion_and_then_two() {
    let mut site = backed_up(15);
    insert(&site.cluster, "one");
    let on_first = moment();
    site.cluster.archive_all(PATIENCE);
    site.cluster.destroy();

    let mut second = new_primary(&site, "second", &[]);
    insert(&second, "two");
    let on_second = moment();
    second.archive_all(PATIENCE);
    assert_eq!(
        recovered(&site, "across-one", &["--archive", "off"]),
        "one,two"
    );
    second.destroy();

    let mut third = new_primary(&site, "third", &[]);
    insert(&third, "three");
    let on_third = moment();
    insert(&third, "zero");
    let lsn = third.sql("SELECT pg_current_wal_lsn()");
    third.archive_all(PATIENCE);
    third.destroy();

    assert_eq!(recovered(&site, "all", &[]), "one,three,two,zero");
    for (name, target, found) in [
        ("t1", ["--time", &on_first], "one"),
        ("t2", ["--time", &on_second], "one,two"),
        ("t3", ["--time", &on_third], "one,three,two"),
        ("lsn", ["--lsn", &lsn], "one,three,two,zero"),
    ] {
        assert_eq!(recovered(&site, name, &target), found, "{name}");
    }
    // An older timeline ends where it was left.
    assert_eq!(recovered(&site, "only-2", &["--timeline", "2"]), "one,two");
    assert_eq!(recovered(&site, "only-1", &["--timeline", "1"]), "one");
    refused(&site, 5, &["--timeline", "7"]).says("known timelines: 1, 2, 3");
}

#[test]
fn of_two_branches_each_is_reached_by_its_timeline_and_backups_of_the_other_are_never_taken() {
    let site = backed_up(15);
    insert(&site.cluster, "common");
    let fork = moment();
    insert(&site.cluster, "a1");
    site.cluster.archive_all(PATIENCE);

    let b = new_primary(&site, "b", &["--time", &fork]);
    insert(&b, "b1");
    let on_b = moment();
    insert(&b, "b2");
    b.archive_all(PATIENCE);

    insert(&site.cluster, "a2");
    let on_a = moment();
    let backup_a = site.backup();
    insert(&site.cluster, "a3");
    site.cluster.archive_all(PATIENCE);

    let on = |name: &str, args: &[&str]| recovered(&site, name, args);
    assert_eq!(on("a", &["--timeline", "1"]), "a1,a2,a3,common");
    assert_eq!(on("b-all", &["--timeline", "2"]), "b1,b2,common");
    assert_eq!(on("newest", &[]), "b1,b2,common");
    let time = |timeline, time| ["--timeline", timeline, "--time", time];
    assert_eq!(on("a-time", &time("1", &on_a)), "a1,a2,common");
    assert_eq!(on("b-time", &time("2", &on_b)), "b1,common");

    // A backup of branch A never leads to branch B, wanted or not.
    let id = backup_a["id"].as_str().unwrap();
    let wrong = refused(&site, 5, &["--backup", id, "--timeline", "2"]);
    wrong.says("--timeline 1");
    // A moment of branch A, asked for on the newest: said, with the way there.
    refused(&site, 5, &["--time", &on_a]).says("--timeline 1");
    // Within the life of both: the newest is taken, and the other is mentioned.
    let to = site.scratch.join("both-data");
    let both = site.restoring(&to).args(["--time", &on_b]).run().success();
    both.says("add --timeline 1");
    // Before the fork both are the same, and nothing is mentioned.
    let to = site.scratch.join("before-data");
    insert(&b, "b3");
    let trunk = site.restoring(&to).args(["--immediate"]).run().success();
    assert!(!trunk.stderr.contains("add --timeline"), "{}", trunk.stderr);

    // A backup taken on branch B is chosen for B, and never for A.
    let config = seawall_tests::ConfigFile::new()
        .cluster_as("main", &b, "postgres")
        .repository(seawall_tests::Repository::local("near", site.near.root()))
        .write_to(&site.scratch.join("b.toml"));
    let backup = seawall_tests::seawall(&config)
        .args(["backup", "--json"])
        .run();
    let backup_b = backup.success().json();
    b.archive_all(PATIENCE);
    let chosen = |name: &str, timeline: &str| {
        let to = site.scratch.join(name);
        let args = ["--json", "--timeline", timeline];
        site.restoring(&to).args(args).run().success().json()["backup"].clone()
    };
    assert_eq!(backup_b["timeline"], 2);
    assert_eq!(chosen("chosen-2", "2"), backup_b["id"]);
    assert_eq!(chosen("chosen-1", "1"), backup_a["id"]);
}

#[test]
fn a_new_timeline_without_wal_is_never_filled_up_with_what_its_parent_wrote_after_the_fork() {
    let site = backed_up(15);
    insert(&site.cluster, "common");
    let fork = moment();
    insert(&site.cluster, "a1");
    site.cluster.archive_all(PATIENCE);
    let mut b = new_primary(&site, "b", &["--time", &fork]);
    b.wait_until_archived("00000002.history", PATIENCE);
    // Its history is archived and no segment is; the parent goes on.
    b.destroy();
    for what in ["a2", "a3", "a4"] {
        insert(&site.cluster, what);
        site.cluster.archive_all(PATIENCE);
    }
    assert!(site.near.keys_with("/wal/00000002/").is_empty());
    assert_eq!(recovered(&site, "newest", &[]), "common");
    assert_eq!(
        recovered(&site, "a", &["--timeline", "1"]),
        "a1,a2,a3,a4,common"
    );
}

#[test]
fn a_target_out_of_reach_is_refused_with_the_nearest_that_can_be_reached() {
    let site = Site::of(15).start();
    refused(&site, 5, &[]).says("take one with `seawall backup`");
    site.cluster.sql("CREATE TABLE t (what text)");
    let before = moment();
    let lsn_before = site.cluster.sql("SELECT pg_current_wal_lsn()");
    let backup = site.backup();
    let id = backup["id"].as_str().unwrap();
    let earliest = format!("the end of backup {id}");
    for target in [["--time", &before], ["--lsn", &lsn_before], ["--xid", "3"]] {
        refused(&site, 5, &target)
            .says("the earliest moment")
            .says(&earliest);
    }

    insert(&site.cluster, "one");
    let last = site.cluster.sql(
        "SELECT to_char(max(pg_xact_commit_timestamp(xmin)) AT TIME ZONE 'UTC', 'HH24:MI:SS.US') FROM t",
    );
    let between = moment();
    site.cluster.archive_all(PATIENCE);
    let end = site.cluster.sql("SELECT pg_current_wal_lsn()");
    // Nothing ended behind it: PostgreSQL would say so, but only after it replayed everything.
    let late = refused(&site, 5, &["--time", &between]);
    late.says(last.trim_end_matches('0'))
        .says("leave --time out");
    refused(&site, 5, &["--lsn", &end])
        .says("archived WAL ends at")
        .says("one can reach LSN");
    refused(&site, 5, &["--lsn", "FF/0"]).says("one can reach LSN");

    // A gap: what lies before it is reached, what lies in it and behind it is not.
    insert(&site.cluster, "lost");
    let inside = moment();
    insert(&site.cluster, "lost, too");
    let missing = site.cluster.archive_all(PATIENCE);
    insert(&site.cluster, "behind");
    let behind = moment();
    insert(&site.cluster, "at the end");
    site.cluster.archive_all(PATIENCE);
    let key = site.near.one_wal(&missing);
    // WAL that lies far behind it: what is missing was archived, and is lost.
    let far_behind = Segment(site.near.plain(&key)).numbered(200);
    let path = site
        .scratch
        .file(seawall_tests::segment::name(200), far_behind.0);
    seawall_tests::archive(&site.config)
        .arg(path)
        .run()
        .success();
    site.near.remove(&key);
    for target in [&inside, &behind] {
        refused(&site, 5, &["--time", target])
            .says(&missing)
            .says("--end-at-gap");
    }
    refused(&site, 5, &[])
        .says(&missing)
        .says("--end-at-gap")
        .says("one can reach LSN");
    assert_eq!(recovered(&site, "gap", &["--end-at-gap"]), "one");
    assert_eq!(
        recovered(
            &site,
            "lsn",
            &["--lsn", backup["stop_lsn"].as_str().unwrap()]
        ),
        ""
    );
}

#[test]
fn segments_of_the_old_directory_are_never_replayed() {
    let builder = Cluster::builder(PostgresVersion::find(15)).separate_wal();
    let mut site = Site::with(builder).start();
    site.cluster.sql("CREATE TABLE t (what text)");
    site.backup();
    insert(&site.cluster, "archived");
    site.cluster.archive_all(PATIENCE);
    // What the archive never got, in segments that would fit.
    site.near.unmount(false);
    insert(&site.cluster, "stale");
    site.cluster.switch_wal();
    insert(&site.cluster, "stale, too");
    site.cluster.kill();
    site.near.mount();
    let wal = std::fs::read_link(site.cluster.data().join("pg_wal")).unwrap();
    let stale = || std::fs::read_dir(&wal).unwrap().count();
    assert!(stale() > 3);
    let over = |waldir: Option<&Path>| {
        let mut call = site.restoring(site.cluster.data()).arg("--force");
        if let Some(waldir) = waldir {
            call = call.arg("--waldir").arg(waldir);
        }
        call.run().success();
        let mut restored = site.adopt("over", site.cluster.data());
        restored.start();
        restored.wait_until_recovered(PATIENCE);
        assert_eq!(rows(&restored), "archived");
        restored.stop(Stop::Immediate);
    };
    over(Some(&wal));
    assert!(site.cluster.data().join("pg_wal").is_symlink());
    over(None);
    assert!(!site.cluster.data().join("pg_wal").is_symlink());
}

#[test]
fn two_hosts_promoted_to_one_timeline_are_told_and_nobody_restores_a_mixture() {
    let mut site = backed_up(15);
    let mut hosts = ["host-a", "host-b"].map(|name| site.cluster.standby(&site.scratch, name));
    for host in &mut hosts {
        host.start();
        host.wait_until_caught_up(&site.cluster, PATIENCE);
    }
    insert(&site.cluster, "common");
    for host in &hosts {
        host.wait_until_caught_up(&site.cluster, PATIENCE);
    }
    site.cluster.kill();
    let [a, b] = hosts;
    a.promote();
    insert(&a, "a");
    a.archive_all(PATIENCE);
    // The other host's timeline has the same number. What it wrote is other content.
    b.promote();
    insert(&b, "b");
    b.switch_wal();
    let failing = || b.archiver().0 > 0;
    seawall_tests::wait_until("the second host is told", PATIENCE, failing);
    let log = b.log();
    assert!(log.contains("other content"), "{log}");
    assert!(log.contains("00000002"), "{log}");
    // Only one branch is in the archive, and whole.
    assert_eq!(recovered(&site, "one", &[]), "a,common");

    // Both arrived at the same moment: both are kept, and each further push and every restore
    // is refused.
    let segment = site.near.keys_with("/wal/00000002/0")[0].clone();
    let name = segment.rsplit('/').next().unwrap()[..24].to_owned();
    let other = segment.replace(".zst", "");
    let digest = seawall_tests::stored::digest(b"other");
    let other = format!("{}-{digest}.zst", &other[..other.len() - 33]);
    site.near.put_back(&other, &site.near.bytes(&segment));
    refused(&site, 4, &[])
        .says(&name)
        .says("different contents");
    let pushing = seawall_tests::archive(&site.config)
        .arg(a.data().join("pg_wal").join(&name))
        .run();
    assert_ne!(pushing.code, 0, "{}", pushing.stderr);
    assert!(pushing.code < 126);
    // The same with the histories.
    site.near.remove(&other);
    let history = site.near.one_wal("00000002.history");
    let twice = format!("{}-{digest}.zst", &history[..history.len() - 37]);
    site.near.put_back(&twice, &site.near.bytes(&history));
    refused(&site, 4, &[]).says("00000002.history is archived with different contents");
}
