//! `seawall backup` when it must refuse, when its WAL does not come, and when it ends in the
//! middle: what is no complete backup never counts as one.

use std::time::Duration;

use nix::sys::signal::Signal;
use seawall_tests::judge;
use seawall_tests::postgres::Stop;
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Cluster, ConfigFile, PostgresVersion, Repository, Site, pgbench, seawall, wait_until,
};

fn listed(site: &Site) -> serde_json::Value {
    let listed = site.seawall("list").arg("--json").run().success().json();
    listed["repositories"][0]["systems"][0].clone()
}

fn count(value: &serde_json::Value) -> usize {
    value.as_array().map_or(0, Vec::len)
}

/// Sessions of a backup that the server still has.
fn sessions(site: &Site) -> String {
    site.cluster.sql(
        "SELECT count(*) FROM pg_stat_activity
         WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
    )
}

#[test]
fn a_data_directory_of_another_server_is_refused() {
    let mut site = Site::of(15).start();
    let other = Cluster::builder(PostgresVersion::find(15)).create_in(&site.scratch, "other");
    site.config = ConfigFile::new()
        .cluster_at("main", other.data(), &site.cluster.connection("postgres"))
        .repository(Repository::local("near", site.near.root()))
        .write(&site.scratch);
    let before = site.near.files();
    let refused = site.seawall("backup").run().exits_with(4);
    refused.says("system identifier").says("hint:");
    assert_eq!(site.near.files(), before);
    assert_eq!(sessions(&site), "0");
}

#[test]
fn a_server_that_does_not_archive_is_refused() {
    let mut site = Site::of(15);
    site.cluster.configure("archive_mode", "off");
    let site = site.start();
    site.seawall("backup")
        .run()
        .exits_with(4)
        .says("archive_mode is off");
    assert!(site.near.keys_with("/backups/").is_empty());
}

#[test]
fn a_server_that_is_down_and_a_repository_that_is_gone_are_failures_that_touch_nothing() {
    let site = Site::of(15);
    let failed = site.seawall("backup").run().exits_with(1);
    assert!(
        failed
            .stderr
            .contains(&site.cluster.socket_directory().display().to_string())
    );
    let site = site.start();
    for leave_empty_directory in [true, false] {
        site.near.unmount(leave_empty_directory);
        site.seawall("backup").run().exits_with(1);
        site.near.mount();
    }
    assert!(site.near.keys_with("/backups/").is_empty());
    assert_eq!(sessions(&site), "0");
}

#[test]
fn a_backup_whose_wal_does_not_arrive_fails_names_the_segment_and_does_not_count() {
    let mut site = Site::of(15);
    site.cluster.configure("archive_command", "exit 1");
    let mut site = site.start();
    let output = site
        .seawall("backup")
        .args(["--wal-timeout", "2s"])
        .run()
        .exits_with(1);
    let missing = site
        .cluster
        .sql("SELECT pg_walfile_name(pg_current_wal_lsn() - 16777216)");
    let named = output
        .stderr
        .contains("did not arrive in the archive within 2 s");
    assert!(
        named && output.stderr.contains("0000000100000000000000"),
        "{}",
        output.stderr
    );
    assert!(
        output.stderr.contains("pg_stat_archiver"),
        "{}",
        output.stderr
    );
    assert!(!missing.is_empty());
    assert!(site.near.keys_with("backup.json").is_empty());
    let list = listed(&site);
    // Those that were killed earlier may have stored something, too.
    assert_eq!(count(&list["backups"]), 0);
    assert!(count(&list["unfinished_backups"]) >= 1);
    let to = site.scratch.join("restored");
    site.restoring(&to)
        .run()
        .exits_with(5)
        .says("no finished backup");
    assert!(!to.exists());
    assert_eq!(sessions(&site), "0");
    // Repaired, the next one is complete, and the server's list of failures ends.
    site.cluster.archive_again(&site.config);
    site.backup();
    let list = listed(&site);
    assert_eq!(
        (count(&list["backups"]), count(&list["unfinished_backups"])),
        (1, 1)
    );
}

#[test]
fn wal_that_arrives_elsewhere_does_not_complete_a_backup() {
    // Archiving works, and into another repository than the one the backup is in.
    let mut site = Site::of(15);
    let root = site.scratch.directory("second");
    let both = ConfigFile::new()
        .cluster(&site.cluster)
        .repository(Repository::local("near", site.near.root()))
        .repository(Repository::local("second", &root));
    site.config = both.write_to(&site.scratch.join("both.toml"));
    seawall(&site.config).arg("init").run().success();
    let site = site.start();
    let call = site
        .seawall("backup")
        .args(["--repository", "second", "--wal-timeout", "2s"]);
    call.run().exits_with(1).says("did not arrive");
    assert!(site.near.keys_with("backup.json").is_empty());
}

/// A site whose backup takes a while: 45 MB through one job of an unoptimised build.
fn slow_site() -> Site {
    let site = Site::of(15).start();
    pgbench::init(&site.cluster, 3);
    site
}

fn wait_until_data_is_written(site: &Site) {
    wait_until("data is being written", PATIENCE, || {
        site.near.files().iter().any(|file| file.contains("/data/"))
    });
}

#[test]
fn a_killed_backup_does_not_count_and_the_next_one_is_complete() {
    let mut site = slow_site();
    for step in 0..4 {
        let running = site.seawall("backup").args(["--jobs", "1"]).start();
        wait_until_data_is_written(&site);
        std::thread::sleep(Duration::from_millis(60 * step));
        let ended = running.kill();
        assert_ne!(ended.code, 0, "it was not killed in time");
        let list = listed(&site);
        assert_eq!(count(&list["backups"]), 0);
        let to = site.scratch.join("restored");
        site.restoring(&to).run().exits_with(5);
        wait_until("the server has noticed", PATIENCE, || {
            sessions(&site) == "0"
        });
    }
    // Killed when all its data is stored, and only its WAL is not.
    site.cluster.stop_archiving();
    drop(site.seawall("backup").start_without_wal().kill());
    site.cluster.archive_again(&site.config);
    let list = listed(&site);
    assert_eq!(count(&list["backups"]), 0);
    // Of those before, one may have stored a whole pack, too.
    assert!(count(&list["unfinished_backups"]) >= 1);

    let marker = site.backup();
    let list = listed(&site);
    assert_eq!(list["backups"][0]["id"], marker["id"]);
    assert_eq!(count(&list["backups"]), 1);
    let text = site.seawall("list").run().success().stdout;
    assert!(text.contains("unfinished"), "{text}");
    site.cluster.archive_all(PATIENCE);
    let dump = judge::dump(&site.cluster);
    let restored = site.restore_and_start("again", &["--action", "promote"]);
    dump.must_equal(&judge::dump(&restored));
}

#[test]
fn sigterm_and_ctrl_c_end_a_backup_soon_and_release_the_server() {
    let site = slow_site();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut running = site.seawall("backup").args(["--jobs", "1"]).start();
        wait_until("the backup runs", PATIENCE, || {
            running.stderr().contains("begins")
        });
        std::thread::sleep(Duration::from_millis(100));
        running.signal(signal);
        let ended = running.wait().exits_with(1);
        assert!(
            ended.elapsed < Duration::from_secs(20),
            "{:?}",
            ended.elapsed
        );
        ended.says("interrupted");
        wait_until("no session is left", Duration::from_secs(10), || {
            sessions(&site) == "0"
        });
        assert_eq!(count(&listed(&site)["backups"]), 0);
        assert!(
            !site.near.files().iter().any(|file| file.contains('#')),
            "staging files are left"
        );
    }
    let log = site.cluster.log();
    assert!(
        log.contains("aborting backup due to backend exiting before"),
        "{log}"
    );
    site.backup();
}

#[test]
fn a_server_that_stops_in_the_middle_is_a_failure_and_no_backup() {
    let mut site = slow_site();
    // On a busy machine it may have read everything before the server stops: then it waits for
    // WAL that nobody archives any more.
    let words = ["--jobs", "1", "--wal-timeout", "20s"];
    let running = site.seawall("backup").args(words).start();
    wait_until_data_is_written(&site);
    site.cluster.stop(Stop::Immediate);
    let ended = running.wait().exits_with(1);
    assert!(ended.stderr.contains("error:"), "{}", ended.stderr);
    assert!(site.near.keys_with("backup.json").is_empty());
    site.cluster.start();
    site.backup();
}

#[test]
fn a_repository_that_loses_its_data_meanwhile_gets_no_marker() {
    // An expiry on another host takes the running backup for a dead one.
    let mut site = Site::of(15);
    site.cluster.configure("archive_command", "exit 1");
    let mut site = site.start();
    let running = site
        .seawall("backup")
        .args(["--wal-timeout", "60s"])
        .start_without_wal();
    let index = site.near.keys_with("000001.index.zst");
    site.near.remove(&index[0]);
    let command = seawall_tests::Programs::get().archive_command(&site.config);
    site.cluster.configure("archive_command", &command);
    site.cluster.reload();
    running
        .wait()
        .exits_with(1)
        .says("not in the store any more");
    assert!(site.near.keys_with("backup.json").is_empty());
}

#[test]
fn two_backups_at_once_are_both_complete() {
    let site = slow_site();
    let (one, two) = (
        site.seawall("backup").start(),
        site.seawall("backup").start(),
    );
    one.wait().success();
    two.wait().success();
    let list = listed(&site);
    assert_eq!(
        (count(&list["backups"]), count(&list["unfinished_backups"])),
        (2, 0)
    );
    for backup in list["backups"].as_array().unwrap() {
        let id = backup["id"].as_str().unwrap();
        let to = site.scratch.join(id);
        site.restoring(&to).args(["--backup", id]).run().success();
        judge::verifybackup(site.cluster.version(), &to).must_pass();
    }
}

/// By files and over the protocol: what the server removes while it is read would be missing,
/// and recovery begins with a copy of it.
#[test]
fn a_backup_during_which_a_database_moves_is_none_and_the_next_one_is_whole() {
    let builder = Cluster::builder(PostgresVersion::find(15)).tablespace("other");
    let site = Site::with(builder).start();
    site.cluster.sql("CREATE DATABASE mobile");
    site.cluster.sql_in(
        "mobile",
        "CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 1000) n",
    );
    site.cluster.create_seawall_role(true);
    let distant = ConfigFile::new()
        .distant("main", &site.cluster.connection("seawall"))
        .repository(Repository::local("near", site.near.root()))
        .write_to(&site.scratch.join("distant.toml"));
    let went = ["other"];
    let came_back = ["pg_default", "other"];
    // A server that sends waits for its client before it lets a database move: that client must
    // not stand still.
    for (config, stopped, rate, spaces) in [
        (&site.config, true, "2MB", &went[..]),
        (&site.config, true, "2MB", &came_back[..]),
        (&distant, false, "400kB", &came_back[..]),
        (&distant, false, "400kB", &["pg_default"][..]),
    ] {
        let call = seawall(config).args(["backup", "--bandwidth", rate]);
        let mut backup = call.start();
        wait_until("the backup has begun", PATIENCE, || {
            site.cluster.is_backed_up()
        });
        if stopped {
            backup.signal(Signal::SIGSTOP);
        }
        for space in spaces {
            site.cluster
                .sql(&format!("ALTER DATABASE mobile SET TABLESPACE {space}"));
        }
        if stopped {
            backup.signal(Signal::SIGCONT);
        }
        let output = backup.wait().exits_with(1);
        output.says("\"mobile\"").says("to another tablespace");
        assert_eq!(count(&listed(&site)["backups"]), 0);
    }

    // Other changes of a database do no harm.
    let backup = seawall(&site.config).args(["backup", "--bandwidth", "2MB"]);
    let backup = backup.start();
    site.cluster
        .sql("GRANT CREATE ON DATABASE mobile TO seawall; VACUUM FREEZE pg_database");
    backup.wait().success();
    site.cluster.archive_all(PATIENCE);
    let dump = judge::dump(&site.cluster);
    let spaces = site.scratch.join("spaces");
    let args = [
        "--tablespaces-under",
        spaces.to_str().unwrap(),
        "--action",
        "promote",
    ];
    let mut restored = site.restore_and_start("again", &args);
    judge::dump(&restored).must_equal(&dump);
    judge::is_sound(&mut restored);
}
