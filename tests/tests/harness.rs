//! The harness keeps its own promises: what it starts runs, what it destroys is gone, what it
//! judges it can find wanting.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use seawall_tests::azurite::Azurite;
use seawall_tests::judge::{self, Judgement};
use seawall_tests::ledger::Target;
use seawall_tests::postgres::Stop;
use seawall_tests::programs::NAMES;
use seawall_tests::scratch::{is_root, owner};
use seawall_tests::{
    Cluster, Fault, FaultProxy, Garage, Ledger, Moment, PostgresVersion, Programs, Run, Scratch,
    pgbench, wait_until,
};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_cluster_of_every_complete_version_starts_is_destroyed_and_leaves_nothing_behind() {
    for major in [15, 16, 18] {
        let scratch = Scratch::new();
        let home = scratch.path().to_path_buf();
        let mut cluster = Cluster::builder(PostgresVersion::find(major))
            .tablespace("other")
            .separate_wal()
            .create_in(&scratch, "main");
        cluster.start();
        let version = cluster.sql("SHOW server_version");
        assert!(version.starts_with(&major.to_string()), "{version}");
        assert_eq!(cluster.sql("SHOW data_checksums"), "on");
        assert!(cluster.data().join("pg_wal").is_symlink());
        cluster.sql("CREATE TABLE t TABLESPACE other AS SELECT 1");
        let tablespace = cluster.tablespaces()[0].1.clone();
        let pid = cluster.pid().unwrap();
        assert!(has_shared_memory(pid));
        cluster.destroy();
        assert!(!cluster.data().exists() && !tablespace.exists());
        assert!(!has_shared_memory(pid));
        assert!(!PathBuf::from(format!("/proc/{pid}")).exists());
        drop(cluster);
        drop(scratch);
        assert!(!home.exists());
    }
}

#[test]
fn initdb_options_and_layouts_are_as_asked_for() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::builder(PostgresVersion::find(18))
        .segment_size(1)
        .without_checksums()
        .group_access()
        .config_outside()
        .tcp()
        .config("wal_compression", "on")
        .create_in(&scratch, "main");
    cluster.start();
    assert_eq!(cluster.sql("SHOW wal_segment_size"), "1MB");
    assert_eq!(cluster.sql("SHOW data_checksums"), "off");
    assert_eq!(cluster.sql("SHOW data_directory_mode"), "0750");
    assert_eq!(cluster.sql("SHOW wal_compression"), "pglz");
    assert!(!cluster.data().join("postgresql.conf").exists());
    TcpStream::connect(("127.0.0.1", cluster.port())).expect("it listens");
    cluster.create_seawall_role(false);
    let role = cluster
        .client("psql")
        .env("PGUSER", "seawall")
        .args(["-XAtc", "SELECT (pg_backup_start('x', true)) IS NOT NULL"])
        .run()
        .success();
    assert_eq!(role.stdout.trim(), "t");
}

#[test]
fn a_server_only_build_is_asked_through_a_newer_versions_clients() {
    for major in [14, 17] {
        let Some(version) = PostgresVersion::try_find(major) else {
            eprintln!("not tested: PostgreSQL {major} comes with scripts/setup test-long");
            continue;
        };
        let scratch = Scratch::new();
        let mut cluster = Cluster::builder(version).create_in(&scratch, "main");
        cluster.start();
        cluster.sql("CREATE TABLE t AS SELECT 42 AS answer");
        assert!(judge::dump(&cluster).text().contains("42"));
        cluster.create_seawall_role(true);
        judge::amcheck(&cluster).must_pass();
    }
}

#[test]
fn a_standby_streams_is_promoted_and_is_equal() {
    let scratch = Scratch::new();
    let mut primary = Cluster::builder(PostgresVersion::find(15))
        .tablespace("other")
        .create_in(&scratch, "main");
    primary.start();
    primary.sql("CREATE TABLE t TABLESPACE other AS SELECT generate_series(1, 1000) AS n");
    let mut standby = primary.standby(&scratch, "standby");
    standby.start();
    assert!(standby.in_recovery());
    primary.sql("INSERT INTO t VALUES (1001)");
    standby.wait_until_caught_up(&primary, SOON);
    let dump = judge::dump(&primary);
    primary.stop(Stop::Fast);
    standby.promote();
    assert!(!standby.in_recovery());
    dump.must_equal(&judge::dump(&standby));
    judge::is_sound(&mut standby);
}

#[test]
fn damage_is_found_by_the_judges() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::builder(PostgresVersion::find(15)).create_in(&scratch, "main");
    cluster.start();
    pgbench::init(&cluster, 1);
    let before = judge::dump(&cluster);
    let file = cluster.sql("SELECT pg_relation_filepath('pgbench_branches_pkey')");
    cluster.sql("UPDATE pgbench_branches SET bbalance = 1");
    let changed = before.difference(&judge::dump(&cluster));
    assert!(changed.is_some_and(|line| line.contains("line ")));

    let backup = scratch.join("copy");
    cluster
        .client("pg_basebackup")
        .args(["-c", "fast", "-D"])
        .arg(&backup)
        .run()
        .success();
    judge::verifybackup(cluster.version(), &backup).must_pass();
    cluster.stop(Stop::Fast);

    let path = cluster.data().join(&file);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8192 + 8000] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    std::fs::write(backup.join(&file), &bytes).unwrap();
    judge::checksums(&mut cluster).must_fail();
    judge::verifybackup(cluster.version(), &backup).must_fail();
    cluster.start();
    judge::amcheck(&cluster).must_fail();
    assert!(!matches!(
        judge::verifybackup(&PostgresVersion::find(18), &backup),
        Judgement::Passed
    ));
}

#[test]
fn the_ledger_outlives_a_crash_of_the_server_and_misses_nothing() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::builder(PostgresVersion::find(15)).create_in(&scratch, "main");
    cluster.start();
    let mut ledger = Ledger::create(&cluster, &scratch);
    ledger.start(&cluster, 3, Duration::ZERO);
    ledger.wait_for_more(100, SOON);
    let moment = Moment::now();
    ledger.wait_for_more(100, SOON);
    cluster.kill();
    cluster.start();
    ledger.wait_for_more(100, SOON);
    ledger.stop();
    let rows = Ledger::rows(&cluster);
    let verdict = ledger.compare(&rows, Target::AllUntil(Moment::now()));
    verdict.must_hold();
    assert!(verdict.required >= 300);

    // The same rows are no recovery to `moment`.
    let late = ledger.compare(&rows, Target::Time(moment));
    assert!(late.missing.is_empty() && late.unexpected.len() >= 200);
    let before: Vec<_> = rows
        .into_iter()
        .filter(|row| row.committed <= Some(moment))
        .collect();
    ledger.compare(&before, Target::Time(moment)).must_hold();
    assert!(
        !ledger
            .compare(&before[1..], Target::Time(moment))
            .missing
            .is_empty()
    );
}

#[test]
fn archiving_is_waited_for_and_a_failing_command_is_seen() {
    let scratch = Scratch::new();
    let archive = scratch.directory("archive");
    let command = format!("cp %p {}/%f", archive.display());
    let mut cluster = Cluster::builder(PostgresVersion::find(15))
        .config("archive_mode", "on")
        .config("archive_command", &command)
        .create_in(&scratch, "main");
    cluster.start();
    let segment = cluster.archive_all(SOON);
    assert!(archive.join(&segment).exists());
    let next = cluster.archive_all(SOON);
    assert!(next > segment);
    cluster.configure("archive_command", "exit 1");
    cluster.reload();
    let segment = cluster.switch_wal();
    wait_until("the archiver has failed", SOON, || cluster.archiver().0 > 0);
    assert!(!archive.join(segment).exists());
    assert!(cluster.log().contains("archive command failed"));
}

#[test]
fn a_killed_test_process_leaves_no_server_and_no_directory() {
    if let Some(path) = std::env::var_os("SEAWALL_TEST_VICTIM") {
        let scratch = Scratch::new();
        let mut cluster = Cluster::builder(PostgresVersion::find(15)).create_in(&scratch, "main");
        cluster.start();
        let pid = cluster.pid().unwrap();
        std::fs::write(path, format!("{pid} {}\n", scratch.path().display())).unwrap();
        std::thread::sleep(SOON);
        return;
    }
    let scratch = Scratch::new();
    let told = scratch.join("told");
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_killed_test_process_leaves_no_server_and_no_directory",
        ])
        .env("SEAWALL_TEST_VICTIM", &told)
        .spawn()
        .unwrap();
    let said = || std::fs::read_to_string(&told).unwrap_or_default();
    wait_until("the victim's server runs", SOON, || said().ends_with('\n'));
    let said = said();
    let (pid, directory) = said.trim_end().split_once(' ').unwrap();
    let (server, directory) = (
        PathBuf::from(format!("/proc/{pid}")),
        PathBuf::from(directory),
    );
    assert!(server.exists() && directory.exists());
    victim.kill().unwrap();
    victim.wait().unwrap();
    wait_until("the guard has cleaned up", SOON, || {
        !server.exists() && !directory.exists() && !has_shared_memory(pid.parse().unwrap())
    });
}

/// Whether System V shared memory is left that this process made.
fn has_shared_memory(creator: u32) -> bool {
    let listing = Command::new("ipcs").args(["-m", "-p"]).output().unwrap();
    let creator = creator.to_string();
    String::from_utf8_lossy(&listing.stdout)
        .lines()
        .any(|line| line.split_whitespace().nth(2) == Some(&creator))
}

#[test]
fn a_program_that_hangs_is_ended_with_its_children() {
    let started = Instant::now();
    let hangs = || {
        Run::new("/bin/sh")
            .args(["-c", "sleep 98765 & echo $!; wait"])
            .timeout(Duration::from_millis(500))
            .run()
    };
    let panic = std::panic::catch_unwind(hangs).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    assert!(message.contains("still running after 500ms"), "{message}");
    assert!(started.elapsed() < Duration::from_secs(30));
    let child = message
        .lines()
        .find_map(|line| line.parse::<u32>().ok())
        .unwrap();
    wait_until("its child is gone", SOON, || {
        std::fs::read_to_string(format!("/proc/{child}/cmdline")).is_ok_and(|c| c.is_empty())
            || !PathBuf::from(format!("/proc/{child}")).exists()
    });
}

#[test]
fn garage_takes_buckets_and_keys_and_stops() {
    let scratch = Scratch::new();
    let mut garage = Garage::start(&scratch);
    let listed = garage.run(["bucket", "list"]).stdout;
    assert!(
        listed.contains("near") && listed.contains("far"),
        "{listed}"
    );
    garage.stop();
    assert!(TcpStream::connect(garage.address()).is_err());
    garage.launch();
    assert!(garage.run(["bucket", "list"]).stdout.contains("near"));
}

#[test]
fn azurite_answers() {
    let scratch = Scratch::new();
    let azurite = Azurite::start(&scratch);
    let answer = http(azurite.address(), "GET", "/devstoreaccount1?comp=list").unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
}

#[test]
fn the_proxy_passes_and_fails_as_told() {
    let scratch = Scratch::new();
    let garage = Garage::start(&scratch);
    let proxy = FaultProxy::start(garage.address());
    let get = || http(proxy.address(), "GET", "/near/key");
    // Garage itself refuses what is not signed.
    let honest = get().unwrap();
    assert!(honest.starts_with("HTTP/1.1 403") && !honest.contains("fault proxy"));

    proxy.set(Fault::Status(503));
    let answer = get().unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("SlowDown"));

    proxy.set(Fault::StatusFor("PUT ".into(), 500));
    assert!(get().unwrap().starts_with("HTTP/1.1 403"));
    let put = http(proxy.address(), "PUT", "/near/key").unwrap();
    assert!(put.starts_with("HTTP/1.1 500"), "{put}");

    proxy.set(Fault::Refuse);
    assert!(get().is_err());
    proxy.set(Fault::CutDownloadAfter(10));
    assert_eq!(get().unwrap_or_default().len(), 10);
    proxy.set(Fault::Hang);
    assert!(get().is_err());
    assert!(proxy.faults() >= 4);
    proxy.set(Fault::None);
    assert!(get().unwrap().starts_with("HTTP/1.1 403"));
}

/// One plain request; an error if nothing comes within a second.
fn http(to: std::net::SocketAddr, method: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn the_programs_lie_side_by_side_where_postgresqls_user_can_run_them() {
    let programs = Programs::get();
    for name in NAMES {
        let program = programs.path(name);
        Run::new("/usr/bin/test")
            .arg("-x")
            .arg(&program)
            .run()
            .success();
        assert_eq!(program.parent(), Some(programs.directory()));
    }
}

#[test]
fn a_program_runs_as_postgresqls_user_and_with_no_ones_environment() {
    let id = Run::new("/usr/bin/id").arg("-u").run().success();
    assert_eq!(id.stdout.trim(), owner().uid.to_string());
    let groups = Run::new("/usr/bin/id").arg("-G").run().success();
    assert!(!is_root() || groups.stdout.trim() == owner().gid.to_string());
    let environment = Run::new("/usr/bin/env").run().success().stdout;
    assert!(!environment.contains("HOME=") && !environment.contains("CARGO"));
}
