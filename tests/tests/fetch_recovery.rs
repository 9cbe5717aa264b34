//! `seawall-fetch` against the real server: what PostgreSQL does with its answers.

use std::path::Path;
use std::time::Duration;

use seawall_tests::postgres::Stop;
use seawall_tests::scratch::give_to_owner;
use seawall_tests::site::PATIENCE;
use seawall_tests::{Cluster, Programs, Run, Site, wait_until};

/// A site whose repository holds a backup and three rows, each in a segment of its own.
fn site_with_three_rows(major: u32) -> Site {
    let site = Site::of(major).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    site.backup();
    for n in 1..=3 {
        site.cluster.sql(&format!("INSERT INTO t VALUES ({n})"));
        site.cluster.archive_all(PATIENCE);
    }
    site
}

/// Restores without starting.
fn restored(site: &Site, name: &str, args: &[&str]) -> Cluster {
    let to = site.scratch.join(format!("{name}-data"));
    site.restoring(&to).args(args).run().success();
    site.adopt(name, &to)
}

/// Starts it and expects that it ends with a FATAL error of the restore_command, without
/// having opened for writing and without a new timeline.
#[track_caller]
fn must_not_open(cluster: &mut Cluster, why: &str) {
    let failure = cluster.try_start(PATIENCE).expect_err("the server opened");
    assert!(failure.code.is_some_and(|code| code != 0), "{failure:?}");
    let log = failure.log;
    assert!(log.contains(why), "{log}");
    assert!(!log.contains("archive recovery complete"), "{log}");
    assert!(!log.contains("selected new timeline"), "{log}");
    assert!(!cluster.data().join("pg_wal/00000002.history").exists());
}

#[test]
fn a_store_that_is_gone_never_opens_the_database_and_recovery_goes_on_once_it_is_back() {
    a_store_that_is_gone_on(&[15, 18]);
}

#[test]
#[ignore = "long: the other PostgreSQL versions"]
fn a_store_that_is_gone_never_opens_the_database_of_any_other_version() {
    a_store_that_is_gone_on(&[14, 16, 17]);
}

fn a_store_that_is_gone_on(majors: &[u32]) {
    for &major in majors {
        let mut site = site_with_three_rows(major);
        site.cluster.stop(Stop::Fast);
        let mut again = restored(&site, "again", &[]);
        for leave_empty_directory in [true, false] {
            site.near.unmount(leave_empty_directory);
            must_not_open(&mut again, "exit code 200");
            site.near.mount();
        }
        // Back again: the same directory recovers everything.
        again.start();
        again.wait_until_recovered(PATIENCE);
        assert_eq!(
            again.sql("SELECT array_agg(n ORDER BY n) FROM t"),
            "{1,2,3}"
        );
    }
}

#[test]
fn a_store_that_goes_away_in_the_middle_of_recovery_never_opens_the_database() {
    let mut site = site_with_three_rows(15);
    site.cluster.stop(Stop::Fast);
    let mut again = restored(&site, "again", &[]);
    // The repository is taken away when the second segment has been asked for.
    let wrapper = site.scratch.file(
        "wrapper",
        format!(
            "#!/bin/bash\necho \"$1\" >> {log}\n\
             if [ $(grep -c -v history {log}) = 3 ]; then mv {near} {near}.gone; fi\n\
             exec {fetch} --config {config} --cluster main \"$1\" \"$2\"\n",
            log = site.scratch.join("asked").display(),
            near = site.near.root().display(),
            fetch = Programs::get().path("seawall-fetch").display(),
            config = site.config.path().display(),
        ),
    );
    let command = format!("bash {} %f %p", wrapper.display());
    let auto = again.data().join("postgresql.auto.conf");
    let mut text = std::fs::read_to_string(&auto).unwrap();
    text.push_str(&format!("restore_command = '{command}'\n"));
    std::fs::write(&auto, text).unwrap();
    must_not_open(&mut again, "exit code 200");
    let gone = format!("{}.gone", site.near.root().display());
    assert!(
        Path::new(&gone).exists(),
        "the store went away during recovery"
    );
}

#[test]
fn a_missing_segment_in_the_middle_stops_recovery_and_end_at_gap_ends_it_there() {
    let mut site = site_with_three_rows(15);
    let last = site.cluster.archive_all(PATIENCE);
    site.cluster.stop(Stop::Fast);
    let segments: Vec<String> = site.near.keys_with("/wal/00000001/");
    let mut again = restored(&site, "again", &[]);
    // The segment with the second row goes missing after the restore looked.
    let before_last: Vec<_> = segments
        .iter()
        .filter(|key| !key.contains(".backup"))
        .collect();
    let missing = before_last[before_last.len() - 3].clone();
    assert!(!missing.contains(&last));
    let bytes = site.near.remove(&missing);
    site.archive_far_behind(&missing.rsplit('/').next().unwrap()[..24]);
    must_not_open(&mut again, "exit code 200");
    assert!(
        again
            .log()
            .contains("is missing in the archive, but the later segment")
    );

    let mut ended = {
        site.near.put_back(&missing, &bytes);
        let mut to = restored(&site, "ended", &["--end-at-gap"]);
        site.near.remove(&missing);
        to.start();
        to.wait_until_recovered(PATIENCE);
        to
    };
    let rows = ended.sql("SELECT count(*) FROM t");
    assert!(["1", "2"].contains(&rows.as_str()), "{rows}");
    assert!(ended.log().contains("ending as asked"));
    ended.stop(Stop::Fast);
}

#[test]
fn a_timeline_is_not_lost_when_its_parent_lacks_what_the_dead_primary_never_archived() {
    let mut site = site_with_three_rows(15);
    let mut standby = site.cluster.standby(&site.scratch, "standby");
    standby.start();
    let unarchived = site
        .cluster
        .sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    for n in 4..=6 {
        let row = format!("INSERT INTO t VALUES ({n})");
        site.cluster.sql(&row);
        site.cluster.archive_all(PATIENCE);
    }
    standby.wait_until_caught_up(&site.cluster, PATIENCE);
    site.cluster.stop(Stop::Fast);
    standby.promote();
    standby.sql("INSERT INTO t VALUES (7)");
    standby.wait_until_archived("00000002.history", PATIENCE);
    standby.archive_all(PATIENCE);
    standby.stop(Stop::Fast);
    // All that was not streamed away: segments of the old timeline end here.
    let lost: Vec<(String, Vec<u8>)> = site
        .near
        .keys_with("/wal/00000001/")
        .into_iter()
        .filter(|key| key.rsplit('/').next() >= Some(&unarchived))
        .map(|key| (key.clone(), site.near.remove(&key)))
        .collect();
    assert!(lost.len() >= 3, "{lost:?}");
    let mut again = restored(&site, "again", &["--end-at-gap"]);
    // What a person writes, who knows of no fork.
    let command = Programs::get().restore_command(&site.config);
    let auto = again.data().join("postgresql.auto.conf");
    let mut text = std::fs::read_to_string(&auto).unwrap();
    text.push_str(&format!(
        "restore_command = '{command}'\nrecovery_target_timeline = 'latest'\n"
    ));
    std::fs::write(&auto, text).unwrap();
    // Perhaps open for reading on its way, it ends.
    again.launch();
    assert_ne!(again.wait_for_end(PATIENCE), 0);
    let log = again.log();
    assert!(log.contains("exit code 200"), "{log}");
    assert!(log.contains("timeline 2, which begins behind it"), "{log}");
    assert!(!log.contains("archive recovery complete"), "{log}");
    assert!(!log.contains("selected new timeline"), "{log}");
    for (key, bytes) in &lost {
        site.near.put_back(key, bytes);
    }
    again.start();
    again.wait_until_recovered(PATIENCE);
    let rows = again.sql("SELECT array_agg(n ORDER BY n) FROM t");
    assert_eq!(rows, "{1,2,3,4,5,6,7}");
}

#[test]
fn a_damaged_segment_stops_recovery() {
    let mut site = site_with_three_rows(15);
    let last = site.cluster.archive_all(PATIENCE);
    site.cluster.stop(Stop::Fast);
    let mut again = restored(&site, "again", &[]);
    let key = site.near.one_wal(&last);
    site.near.flip(&key, site.near.bytes(&key).len() / 2);
    must_not_open(&mut again, "exit code 200");
    assert!(again.log().contains("is damaged"));
}

#[test]
fn certain_absence_ends_recovery_at_once() {
    let mut site = site_with_three_rows(15);
    site.cluster.stop(Stop::Fast);
    let mut again = restored(&site, "again", &["--action", "promote"]);
    let started = std::time::Instant::now();
    again.start();
    again.wait_until_recovered(PATIENCE);
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
    assert!(!again.in_recovery());
    assert_eq!(
        again.sql("SELECT array_agg(n ORDER BY n) FROM t"),
        "{1,2,3}"
    );
    assert!(
        again.log().contains("archive recovery complete"),
        "{}",
        again.log()
    );
}

#[test]
fn a_program_that_is_not_there_any_more_never_opens_the_database() {
    let mut site = site_with_three_rows(15);
    site.cluster.stop(Stop::Fast);
    let mut again = restored(&site, "again", &[]);
    let auto = again.data().join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&auto).unwrap();
    let fetch = Programs::get().path("seawall-fetch").display().to_string();
    std::fs::write(&auto, text.replace(&fetch, "/nowhere/seawall-fetch")).unwrap();
    must_not_open(&mut again, "command not found");
}

#[test]
fn a_running_replica_stays_up_while_the_store_is_away() {
    for major in [15, 18] {
        let site = Site::of(major).start();
        site.cluster.sql("CREATE TABLE t (n int)");
        let mut standby = site.cluster.standby(&site.scratch, "standby");
        let command = Programs::get().restore_command(&site.config);
        standby.configure("restore_command", &command);
        // Nothing is being archived while it goes.
        site.cluster.archive_all(PATIENCE);
        site.near.unmount(true);
        standby.start();
        site.cluster.sql("INSERT INTO t VALUES (1)");
        standby.wait_until_caught_up(&site.cluster, PATIENCE);
        assert_eq!(standby.sql("SELECT n FROM t"), "1");
        assert!(
            standby.log().contains("this is a standby"),
            "{}",
            standby.log()
        );
        site.near.mount();
        drop(standby);
    }
}

#[test]
fn a_restored_standby_follows_the_archive_alone_and_waits_for_more() {
    let site = site_with_three_rows(15);
    let mut standby = restored(&site, "standby", &["--standby"]);
    standby.start();
    wait_until("the archive is replayed", PATIENCE, || {
        standby.try_sql("SELECT count(*) FROM t").as_deref() == Ok("3")
    });
    assert!(standby.in_recovery());
    site.cluster.sql("INSERT INTO t VALUES (4)");
    site.cluster.archive_all(PATIENCE);
    wait_until("what came later is replayed", PATIENCE, || {
        standby.try_sql("SELECT count(*) FROM t").as_deref() == Ok("4")
    });
    assert!(standby.in_recovery());
}

#[test]
fn pg_rewind_gets_what_it_needs_from_the_archive() {
    let mut site = Site::with(
        Cluster::builder(seawall_tests::PostgresVersion::find(15)).config("wal_log_hints", "on"),
    )
    .start();
    site.cluster.sql("CREATE TABLE t (n int)");
    let mut standby = site.cluster.standby(&site.scratch, "standby");
    standby.start();
    standby.wait_until_caught_up(&site.cluster, PATIENCE);
    standby.promote();
    standby.sql("INSERT INTO t VALUES (2); CHECKPOINT");
    // The old primary goes its own way for a while.
    site.cluster.sql("INSERT INTO t VALUES (1)");
    let first = site.cluster.archive_all(PATIENCE);
    site.cluster.sql("CHECKPOINT");
    site.cluster.archive_all(PATIENCE);
    site.cluster.sql("INSERT INTO t VALUES (3); CHECKPOINT");
    let command = Programs::get().restore_command(&site.config);
    site.cluster.configure("restore_command", &command);
    site.cluster.stop(Stop::Fast);
    // Its pg_wal has lost what the archive has.
    let _ = std::fs::remove_file(site.wal(&first));
    let archived = site.near.keys_with("/wal/00000001/00000000/00000001");
    for key in archived
        .iter()
        .filter(|key| !key.contains(".backup") && !key.contains(".partial"))
    {
        let name = &key.rsplit('/').next().unwrap()[..24];
        let _ = std::fs::remove_file(site.wal(name));
    }
    let rewind = Run::new(site.cluster.version().bin.join("pg_rewind"))
        .args(["--restore-target-wal", "--no-sync", "-D"])
        .arg(site.cluster.data())
        .arg("--source-server")
        .arg(standby.connection("postgres"));
    rewind.run().success();
    let data = site.cluster.data().to_owned();
    let signal = data.join("standby.signal");
    std::fs::write(&signal, b"").unwrap();
    give_to_owner(&signal);
    site.cluster
        .configure("primary_conninfo", &standby.connection("postgres"));
    site.cluster.start();
    site.cluster.wait_until_caught_up(&standby, PATIENCE);
    assert_eq!(site.cluster.sql("SELECT array_agg(n) FROM t"), "{2}");
}
