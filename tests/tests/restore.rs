//! What `seawall restore` promises: exactly the chosen moment, and nothing overwritten that
//! is anybody's.

use std::path::Path;
use std::time::Duration;

use seawall_tests::judge;
use seawall_tests::ledger::Target;
use seawall_tests::postgres::Stop;
use seawall_tests::scratch::make_directory;
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Cluster, ConfigFile, Ledger, Moment, PostgresVersion, Repository, Site, restore, wait_until,
};

/// A running site with a backup, then three rows: the moment and position after each is noted,
/// and each is archived.
struct Rows {
    site: Site,
    moments: Vec<Moment>,
    positions: Vec<String>,
}

fn rows(major: u32) -> Rows {
    let site = Site::of(major).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    site.backup();
    let (mut moments, mut positions) = (Vec::new(), Vec::new());
    for n in 1..=3 {
        site.cluster.sql(&format!("INSERT INTO t VALUES ({n})"));
        positions.push(site.cluster.sql("SELECT pg_current_wal_insert_lsn()"));
        moments.push(Moment::now());
        std::thread::sleep(Duration::from_millis(20));
        // Only a later commit proves to PostgreSQL that a moment has passed.
        site.cluster.sql(&format!("CREATE TABLE after_{n} ()"));
        site.cluster.archive_all(PATIENCE);
    }
    Rows {
        site,
        moments,
        positions,
    }
}

fn content(cluster: &Cluster) -> String {
    cluster.sql("SELECT coalesce(string_agg(n::text, ',' ORDER BY n), '') FROM t")
}

#[test]
fn latest_time_and_lsn_end_exactly_where_they_say_on_15() {
    targets(15);
}

#[test]
fn latest_time_and_lsn_end_exactly_where_they_say_on_18() {
    targets(18);
}

fn targets(major: u32) {
    let Rows {
        site,
        moments,
        positions,
    } = rows(major);
    assert_eq!(content(&site.restore_and_start("latest", &[])), "1,2,3");
    for (number, expected) in ["1", "1,2"].into_iter().enumerate() {
        let time = moments[number].to_string();
        let restored = site.restore_and_start(&format!("time{number}"), &["--time", &time]);
        assert_eq!(content(&restored), expected);
        assert!(restored.in_recovery(), "it waits at the target");
        let restored = site.restore_and_start(
            &format!("lsn{number}"),
            &["--lsn", &positions[number], "--action", "promote"],
        );
        assert_eq!(content(&restored), expected);
        assert!(!restored.in_recovery());
    }
}

#[test]
fn recovery_to_a_moment_under_load_misses_no_commit_before_it_and_has_none_after_it() {
    let site = Site::of(15).start();
    let mut ledger = Ledger::create(&site.cluster, &site.scratch);
    ledger.start(&site.cluster, 3, Duration::from_millis(1));
    ledger.wait_for_more(100, PATIENCE);
    site.backup();
    ledger.wait_for_more(200, PATIENCE);
    let moment = Moment::now();
    ledger.wait_for_more(200, PATIENCE);
    site.cluster.archive_all(PATIENCE);
    let mut site = site;
    site.cluster.destroy();
    ledger.stop();
    let restored = site.restore_and_start("again", &["--time", &moment.to_string()]);
    let verdict = ledger.compare(&Ledger::rows(&restored), Target::Time(moment));
    verdict.must_hold();
    assert!(verdict.required >= 300 && verdict.forbidden >= 100);
}

#[test]
fn a_target_that_nothing_reaches_is_refused_with_5_and_says_what_can_be_reached() {
    let before = Moment::now();
    let Rows { site, moments, .. } = rows(15);
    let to = site.scratch.join("restored");
    let refused = |args: &[&str]| {
        let output = site.restoring(&to).args(args).run().exits_with(5);
        assert!(!to.exists(), "nothing was touched");
        output
    };
    // Before the earliest backup: the latest is not what was asked for.
    let marker = site.seawall("list").arg("--json").run().json();
    let stop_time = marker["repositories"][0]["systems"][0]["backups"][0]["stop_time"].clone();
    let earliest = stop_time.as_str().unwrap().trim_end_matches('Z');
    refused(&["--time", &before.to_string()])
        .says("earliest moment")
        .says(earliest);
    refused(&["--lsn", "0/28"]).says("earliest moment");
    // Beyond the archive.
    refused(&["--lsn", "7/0"])
        .says("archived WAL ends at")
        .says("one can reach");
    refused(&["--timeline", "7"]).says("timeline 7 is not in the archive");
    refused(&["--backup", "20200101T000000Z-full-00000000"]);
    refused(&["--name", "never-made"]);
    let unknown = restore(&site.config.for_cluster("unknown"))
        .arg("--to")
        .arg(&to)
        .run();
    unknown.exits_with(2);
    // A later moment than the last commit: PostgreSQL would refuse it after all the work.
    let later = Moment(moments[2].0 + 3_600_000_000).to_string();
    refused(&["--time", &later]).says("no transaction ended after");
}

#[test]
fn an_empty_archive_and_one_that_is_gone_are_told_apart() {
    let site = Site::of(15);
    let to = site.scratch.join("restored");
    site.restoring(&to)
        .run()
        .exits_with(5)
        .says("no finished backup");
    site.near.unmount(true);
    site.restoring(&to)
        .run()
        .exits_with(1)
        .says("no repository here");
    site.near.mount();
    site.near.unmount(false);
    site.restoring(&to).run().exits_with(1);
    site.near.mount();
    assert!(!to.exists());
}

#[test]
fn a_gap_is_refused_with_5_and_end_at_gap_recovers_up_to_it() {
    let Rows {
        site,
        moments,
        positions,
    } = rows(15);
    let lost = site.cluster.sql(&format!(
        "SELECT pg_walfile_name('{}'::pg_lsn)",
        positions[1]
    ));
    let bytes = site.near.remove(&site.near.one_wal(&lost));
    assert!(!bytes.is_empty());
    site.archive_far_behind(&lost);
    let to = site.scratch.join("restored");
    let latest = site.restoring(&to).run().exits_with(5);
    latest.says(&lost).says("--end-at-gap").says("gap");
    site.restoring(&to)
        .args(["--lsn", &positions[2]])
        .run()
        .exits_with(5)
        .says(&lost);
    assert!(!to.exists());
    // What lies before it needs nothing of it.
    let restored = site.restore_and_start("lsn", &["--lsn", &positions[0]]);
    assert_eq!(content(&restored), "1");
    let restored = site.restore_and_start("time", &["--time", &moments[0].to_string()]);
    assert_eq!(content(&restored), "1");
    let restored = site.restore_and_start("gap", &["--end-at-gap", "--action", "promote"]);
    assert_eq!(content(&restored), "1");
    // `list` shows it.
    let listed = site.seawall("list").arg("--json").run().success().json();
    let gaps = &listed["repositories"][0]["systems"][0]["timelines"][0]["gaps"];
    assert_eq!(gaps[0][0], lost.as_str());
    assert_eq!(gaps[0][1], lost.as_str());
}

#[test]
fn nothing_of_anybodys_is_overwritten() {
    let Rows { mut site, .. } = rows(15);
    let refused = |site: &Site, to: &Path, args: &[&str]| {
        let before = site.near.files();
        let output = site.restoring(to).args(args).run().exits_with(4);
        assert_eq!(site.near.files(), before);
        output.says("hint:")
    };
    let holiday = site.scratch.directory("holiday");
    std::fs::write(holiday.join("holiday.jpg"), "me").unwrap();
    refused(&site, &holiday, &[]).says("not empty");
    refused(&site, &holiday, &["--force"]).says("this is none");
    assert_eq!(std::fs::read(holiday.join("holiday.jpg")).unwrap(), b"me");
    // The live cluster, by its path, through a link, and its parent.
    let data = site.cluster.data().to_owned();
    let link = site.scratch.join("link");
    std::os::unix::fs::symlink(&data, &link).unwrap();
    for to in [data.as_path(), &link, &data.join("base/../")] {
        for args in [&[][..], &["--force"][..]] {
            refused(&site, to, args).says("running");
        }
    }
    refused(&site, &data.join("pg_wal"), &[]);
    refused(&site, &data.join("base"), &["--force"]);
    // The repository, what lies in it, and what holds it.
    let near = site.near.root().to_owned();
    let near_link = site.scratch.join("near-link");
    std::os::unix::fs::symlink(&near, &near_link).unwrap();
    for to in [
        near.as_path(),
        &near.join("new"),
        &near_link.join("main/new"),
        site.scratch.path(),
    ] {
        refused(&site, to, &[]).says("repository");
        refused(&site, to, &["--force"]).says("repository");
    }
    // Directories that lie in each other.
    let to = site.scratch.join("new");
    let inside = to.join("wal").display().to_string();
    refused(&site, &to, &["--waldir", &inside]).says("overlap");
    let live_wal = data.join("pg_wal").display().to_string();
    refused(&site, &to, &["--waldir", &live_wal]).says("not empty");
    assert!(!to.exists());
    assert_eq!(content(&site.cluster), "1,2,3", "the live cluster lives");
    // Stopped, it is replaced only with --force.
    site.cluster.stop(Stop::Fast);
    refused(&site, &data, &[]).says("--force");
    site.restoring(&data)
        .args(["--force", "--action", "promote", "--archive", "off"])
        .run()
        .success();
    site.cluster.start();
    site.cluster.wait_until_recovered(PATIENCE);
    assert_eq!(content(&site.cluster), "1,2,3");
}

#[test]
fn stale_wal_of_a_replaced_cluster_is_never_replayed() {
    let Rows {
        mut site, moments, ..
    } = rows(15);
    site.cluster.sql("INSERT INTO t VALUES (4)"); // in pg_wal alone
    site.cluster.kill();
    let data = site.cluster.data().to_owned();
    // The dead server's postmaster.pid names nobody.
    site.restoring(&data)
        .args(["--force", "--archive", "off", "--action", "promote"])
        .run()
        .success();
    site.cluster.start();
    site.cluster.wait_until_recovered(PATIENCE);
    assert_eq!(content(&site.cluster), "1,2,3");
    assert!(moments.len() == 3);
}

#[test]
fn a_killed_restore_does_not_start_and_the_same_command_completes_it() {
    let builder = Cluster::builder(PostgresVersion::find(15)).tablespace("other");
    let site = Site::with(builder).start();
    seawall_tests::pgbench::init(&site.cluster, 3);
    site.cluster
        .sql("CREATE TABLE t TABLESPACE other AS SELECT 7 AS n");
    site.backup();
    site.cluster.archive_all(PATIENCE);
    let dump = judge::dump(&site.cluster);
    let to = site.scratch.join("restored");
    let new = site.scratch.join("restored-other");
    let (waldir, wal) = (site.scratch.join("restored-wal"), "--waldir");
    let old = &site.cluster.tablespaces()[0].1;
    let mapping = format!("{}={}", old.display(), new.display());
    let call = || {
        let call = site
            .restoring(&to)
            .args(["--tablespace", &mapping, wal])
            .arg(&waldir);
        call.args(["--archive", "off", "--action", "promote"])
    };
    let mut killed = 0;
    for step in 0..8 {
        let running = call().start();
        wait_until("it writes", PATIENCE, || {
            to.join("seawall-restore.json").exists() || to.join("global/pg_control").exists()
        });
        std::thread::sleep(Duration::from_millis(40 * step));
        if running.kill().code == 0 {
            break;
        }
        killed += 1;
        if to.join("global/pg_control").exists() {
            site.is_whole_but_for_the_mark(&to);
        } else {
            let mut partial = site.adopt(&format!("partial{step}"), &to);
            assert!(
                partial.try_start(PATIENCE).is_err(),
                "a partial restore started"
            );
        }
    }
    assert!(killed >= 2, "{killed}");
    if to.join("global/pg_control").exists() {
        std::fs::remove_dir_all(&to).unwrap();
        for outside in [&new, &waldir] {
            std::fs::remove_dir_all(outside).unwrap();
        }
    }
    call().run().success();
    assert!(!to.join("seawall-restore.json").exists());
    judge::verifybackup(site.cluster.version(), &to).must_pass();
    assert!(to.join("pg_wal").is_symlink());
    let mut restored = site.adopt("again", &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    dump.must_equal(&judge::dump(&restored));
}

#[test]
fn an_interrupted_restore_of_another_cluster_is_not_completed_but_refused() {
    let Rows { site, .. } = rows(15);
    let to = site.scratch.directory("restored");
    let mark = "{\"format\":1,\"system_id\":\"7300000000000000001\",\"outside\":[\"/etc\"]}";
    site.scratch.file("restored/seawall-restore.json", mark);
    site.restoring(&to)
        .run()
        .exits_with(4)
        .says("another cluster");
    site.scratch.file("restored/seawall-restore.json", "{}");
    site.restoring(&to).run().exits_with(4);
}

#[test]
fn json_tells_programs_what_was_done_and_standard_output_holds_nothing_else() {
    let Rows { site, .. } = rows(15);
    let to = site.scratch.join("restored");
    let output = site.restoring(&to).arg("--json").run().success();
    let done = output.json();
    assert_eq!(done["data_directory"], to.display().to_string());
    assert_eq!(done["timeline"], 1);
    for key in ["files", "bytes", "fetched_bytes"] {
        assert!(done[key].as_u64().is_some_and(|n| n > 0), "{key}: {done}");
    }
    assert!(
        done["seconds"]
            .as_f64()
            .is_some_and(|seconds| seconds > 0.0)
    );
    assert!(
        done["backup"]
            .as_str()
            .is_some_and(|id| id.contains("-full-"))
    );
    assert!(
        done["phases"]
            .as_array()
            .is_some_and(|phases| phases.len() >= 3)
    );
    assert!(done["warnings"].is_array());
    let text = site
        .seawall("restore")
        .arg("--to")
        .arg(site.scratch.join("two"))
        .run()
        .success();
    assert!(
        text.stdout.contains("archiving is on hold"),
        "{}",
        text.stdout
    );
}

#[test]
fn bad_arguments_are_2_and_touch_nothing() {
    let Rows { site, .. } = rows(15);
    let to = site.scratch.join("restored");
    for args in [
        &["--time", "yesterday"][..],
        &["--time", "2026-01-01 00:00:00"],
        &["--lsn", "x"],
        &["--lsn", "0/1", "--time", "2026-01-01 00:00:00+00"],
        &["--exclusive"],
        &["--tablespace", "/x"],
        &["--tablespace", "/no/such=/y"],
        &["--repository", "unknown"],
        &["--backup", "../.."],
        &["--no-such-option"],
    ] {
        let output = site.restoring(&to).args(args).run();
        assert_eq!(output.code, 2, "{args:?}: {}", output.stderr);
        assert!(!to.exists(), "{args:?}");
    }
}

#[test]
fn a_restore_from_the_second_repository_fetches_its_wal_there_too() {
    let Rows { mut site, .. } = rows(15);
    let root = site.scratch.join("second");
    // A copy of the whole repository elsewhere; the first one is then lost.
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(site.near.root())
        .arg(&root)
        .status();
    assert!(copied.unwrap().success());
    site.config = ConfigFile::new()
        .cluster(&site.cluster)
        .repository(Repository::local("near", site.near.root()))
        .repository(Repository::local("second", &root))
        .write(&site.scratch);
    site.near.unmount(false);
    site.cluster.stop(Stop::Immediate);
    let restored = site.restore_and_start("again", &["--repository", "second"]);
    assert_eq!(content(&restored), "1,2,3");
    make_directory(&site.scratch.join("unused"));
}
