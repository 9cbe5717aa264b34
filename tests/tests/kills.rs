//! `kill -9` of a program at a random moment, then the same command again. Nothing that was
//! half written counts, leftovers are swept, and no server is left running.
//!
//! Field failures 2 and 9. `seawall-archive` and `seawall-fetch` over local files are killed
//! in `archive_faults.rs` and `fetch.rs`; here over a real object store.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use seawall_tests::cli::Call;
use seawall_tests::postgres::Stop;
use seawall_tests::scratch::give_to_owner;
use seawall_tests::segment::name;
use seawall_tests::{
    Cluster, ConfigFile, Garage, PostgresVersion, Programs, Run, Scratch, Seed, Segment, Site,
    Tmpfs, archive, drill, fetch, judge, seawall, wait_until,
};

const FIRST: &str = "000000010000000000000001";

/// Starts the call and kills that one process, not its children, after `moment`. Says whether
/// it was still running.
fn kill_after(call: Call, moment: Duration) -> bool {
    let mut running = call.start();
    std::thread::sleep(moment);
    let in_time = running.is_running();
    running.signal(Signal::SIGKILL);
    running.wait();
    in_time
}

/// How long the call takes when nobody kills it.
fn duration_of(call: Call) -> Duration {
    let started = Instant::now();
    call.run().success();
    started.elapsed()
}

/// The finished backups: those with a marker, which must be those that are listed as such.
fn finished_backups(site: &Site) -> Vec<String> {
    let list = site.seawall("list").arg("--json").run().success().json();
    let system = &list["repositories"][0]["systems"][0];
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let listed = system["backups"].as_array().unwrap().iter();
    let mut listed: Vec<String> = listed.map(|backup| text(&backup["id"])).collect();
    // By name, as keys are: two of one second are listed by where they start.
    listed.sort();
    let markers = site.near.keys_with("/backup.json");
    let marked: Vec<&str> = markers
        .iter()
        .filter_map(|key| key.rsplit('/').nth(1))
        .collect();
    assert_eq!(listed, marked, "{list:#}");
    listed
}

#[test]
fn a_backup_that_is_killed_at_any_moment_is_none_and_the_next_one_is_whole() {
    let mut seed = Seed::new();
    let site = Site::of(15).start();
    site.cluster
        .sql("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 300000) n");
    let whole = duration_of(site.seawall("backup"));
    let mut killed = 0;
    for _ in 0..10 {
        let before = finished_backups(&site).len();
        let in_time = kill_after(site.seawall("backup"), seed.part_of(whole));
        killed += usize::from(in_time);
        // A marker that was put just before the kill is a whole backup; none is none.
        let after = finished_backups(&site).len();
        assert!(after == before || after == before + 1);
    }
    assert!(killed >= 5, "only {killed} were killed in time");
    assert_eq!(
        site.cluster
            .sql("SELECT count(*) FROM pg_stat_activity WHERE query ~ 'pg_backup'"),
        "1",
        "no backup session is left but this one"
    );
    // What a killed writer left is swept once it is old, and only then.
    let planted = site.near.root().join("main/young.zst#1");
    std::fs::write(&planted, b"half").unwrap();
    give_to_owner(&planted);
    let old = SystemTime::now() - Duration::from_secs(2 * 86_400);
    for key in site.near.files().iter().filter(|key| key.contains('#')) {
        let path = site.near.path(key);
        if path != planted {
            std::fs::File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_modified(old)
                .unwrap();
        }
    }
    let dead = site.near.root().join("main/dead.zst#1");
    std::fs::write(&dead, b"half").unwrap();
    give_to_owner(&dead);
    std::fs::File::options()
        .write(true)
        .open(&dead)
        .unwrap()
        .set_modified(old)
        .unwrap();
    site.backup();
    // What is being archived at this moment has such a name, too.
    site.cluster.archive_all(seawall_tests::site::PATIENCE);
    let left: Vec<String> = site
        .near
        .files()
        .into_iter()
        .filter(|key| key.contains('#'))
        .collect();
    assert_eq!(left, ["main/young.zst#1"]);
    // Every backup that counts is whole.
    site.cluster.archive_all(seawall_tests::site::PATIENCE);
    for id in finished_backups(&site) {
        let to = site.scratch.join(format!("to-{id}"));
        site.restoring(&to).args(["--backup", &id]).run().success();
        judge::verifybackup(site.cluster.version(), &to).must_pass();
        std::fs::remove_dir_all(&to).unwrap();
    }
}

#[test]
fn a_restore_that_is_killed_at_any_moment_does_not_start_and_the_same_command_completes_it() {
    let mut seed = Seed::new();
    let mut site = Site::of(15).start();
    site.cluster
        .sql("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 200000) n");
    site.backup();
    site.cluster.archive_all(seawall_tests::site::PATIENCE);
    let dump = judge::dump(&site.cluster);
    site.cluster.stop(Stop::Fast);
    let to = site.scratch.join("to");
    let whole = duration_of(site.restoring(&to));
    std::fs::remove_dir_all(&to).unwrap();
    let mut killed = 0;
    for _ in 0..8 {
        let in_time = kill_after(site.restoring(&to), seed.part_of(whole));
        if !in_time {
            let _ = std::fs::remove_dir_all(&to);
            continue;
        }
        killed += 1;
        if to.join("global/pg_control").exists() {
            // It comes last: PostgreSQL knows nothing of our mark, and would start.
            site.is_whole_but_for_the_mark(&to);
        } else if to.join("seawall-restore.json").exists() {
            let mut half = site.adopt("half", &to);
            assert!(half.try_start(Duration::from_secs(20)).is_err());
        }
    }
    assert!(killed >= 3, "only {killed} were killed in time");
    // The last one may have ended just before the kill: then the target is a cluster.
    if to.exists() && !to.join("seawall-restore.json").exists() {
        std::fs::remove_dir_all(&to).unwrap();
    }
    site.restoring(&to).run().success();
    judge::verifybackup(site.cluster.version(), &to).must_pass();
    let mut restored = site.adopt("restored", &to);
    restored.start();
    restored.wait_until_recovered(seawall_tests::site::PATIENCE);
    dump.must_equal(&judge::dump(&restored));
    judge::amcheck(&restored).must_pass();
}

/// Processes that work below `directory`.
fn processes_in(directory: &Path) -> usize {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path().join("cwd")).ok())
        .filter(|cwd| cwd.starts_with(directory))
        .count()
}

#[test]
fn a_drill_that_is_killed_at_any_moment_leaves_nothing_that_outlives_the_next_drill() {
    let mut seed = Seed::new();
    let site = Site::of(15).start();
    site.cluster.sql("CREATE TABLE t AS SELECT 1");
    site.backup();
    site.cluster.archive_all(seawall_tests::site::PATIENCE);
    let place = site.scratch.directory("drills");
    let call = || drill(&site.config).arg("--scratch").arg(&place);
    let whole = duration_of(call());
    // A kill just before the lock has its name, or just after it is removed, leaves an empty
    // directory for a minute.
    let entries = || {
        let directories = std::fs::read_dir(&place).unwrap().flatten();
        directories
            .filter(|directory| {
                let mut inside = std::fs::read_dir(directory.path()).unwrap().flatten();
                inside.any(|entry| entry.file_name() != "drill.lock.new")
            })
            .count()
    };
    assert_eq!((entries(), processes_in(&place)), (0, 0));
    let mut servers = 0;
    for _ in 0..6 {
        kill_after(call(), seed.part_of(whole));
        servers += usize::from(processes_in(&place) > 0);
        // Its own, and the one before it where it was killed before it could sweep.
        eprintln!("{} left", entries());
    }
    // Once for certain while its server runs.
    let mut running = call().start();
    wait_until("the scratch server runs", Duration::from_secs(60), || {
        processes_in(&place) > 0 || !running.is_running()
    });
    running.signal(Signal::SIGKILL);
    running.wait();
    servers += usize::from(processes_in(&place) > 0);
    assert!(servers > 0, "no kill left a server running");
    let report = call().arg("--json").run().success().json();
    assert_eq!(report["passed"], true);
    assert_eq!((entries(), processes_in(&place)), (0, 0));

    // One that is to be kept is kept, whatever drills come after it.
    call().arg("--keep").run().success();
    assert!(processes_in(&place) > 0);
    call().run().success();
    assert_eq!(entries(), 1);
    assert!(processes_in(&place) > 0);
    let mut directories = std::fs::read_dir(&place).unwrap().flatten();
    let kept = directories.find(|directory| directory.path().join("data").exists());
    let kept = kept.unwrap().path();
    let pid = std::fs::read_to_string(kept.join("data/postmaster.pid")).unwrap();
    let pid: i32 = pid.lines().next().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGQUIT).unwrap();
    wait_until("the kept server has ended", Duration::from_secs(20), || {
        processes_in(&place) == 0
    });
}

#[test]
fn pushes_and_fetches_over_s3_that_are_killed_are_completed_by_the_same_call() {
    let mut seed = Seed::new();
    let scratch = Scratch::new();
    let garage = Garage::start(&scratch);
    let cluster = Cluster::builder(PostgresVersion::find(15))
        .segment_size(64)
        .create_in(&scratch, "main");
    let config = ConfigFile::new()
        .cluster(&cluster)
        .repository(garage.repository("near", "near", "pg"))
        .write(&scratch);
    seawall(&config).arg("init").run().success();
    let whole = Segment::read(cluster.data().join("pg_wal").join(FIRST));
    let in_data = |call: Call| call.with(|run| run.directory(cluster.data()));
    let push = |file: &str| in_data(archive(&config).arg(format!("pg_wal/{file}")));
    let get = |file: &str| in_data(fetch(&config).args([file, "pg_wal/RECOVERYXLOG"]));
    let destination = cluster.data().join("pg_wal/RECOVERYXLOG");
    let time = duration_of(push(FIRST));
    let mut killed = 0;
    for round in 2..=8 {
        // 64 segments of 64 MiB make a log.
        let (file, segment) = (name(round), whole.clone().numbered(round));
        let path = cluster.data().join("pg_wal").join(&file);
        std::fs::write(&path, &segment.0).unwrap();
        give_to_owner(&path);
        killed += usize::from(kill_after(push(&file), seed.part_of(time)));
        // Acknowledged or not: a reader gets all of it or hears that it is not there.
        let output = get(&file).run();
        match output.code {
            0 => assert!(std::fs::read(&destination).unwrap() == segment.0),
            1 => assert!(!destination.exists()),
            _ => panic!("{}", output.stderr),
        }
        let _ = std::fs::remove_file(&destination);
        push(&file).run().success();
        killed += usize::from(kill_after(get(&file), seed.part_of(time)));
        if let Ok(there) = std::fs::read(&destination) {
            assert!(there == segment.0, "a part of a file has the final name");
        }
        get(&file).run().success();
        assert!(std::fs::read(&destination).unwrap() == segment.0);
        std::fs::remove_file(&destination).unwrap();
    }
    assert!(killed >= 4, "only {killed} were killed in time");
    let left: Vec<_> = std::fs::read_dir(cluster.data().join("pg_wal"))
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("tmp"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn all_that_was_restored_is_durable_before_pg_control_makes_it_a_cluster() {
    let builder = Cluster::builder(PostgresVersion::find(15)).tablespace("other");
    let site = Site::with(builder).start();
    site.cluster
        .sql("CREATE TABLE t TABLESPACE other AS SELECT n FROM generate_series(1, 10000) n");
    site.backup();
    site.cluster.archive_all(seawall_tests::site::PATIENCE);
    let to = site.scratch.join("to");
    // A file system of its own, where one can be had.
    let tmpfs = Tmpfs::mount(&site.scratch, "space", 64);
    let space = match &tmpfs {
        Some(tmpfs) => tmpfs.path().join("other"),
        None => site.scratch.join("other"),
    };
    let (_, old) = &site.cluster.tablespaces()[0];
    let log = site.scratch.join("strace");
    let trace =
        "trace=write,pwrite64,writev,pwritev,syncfs,rename,renameat,renameat2,unlink,unlinkat";
    Run::new("/usr/bin/strace")
        .args(["-f", "-q", "-y", "-e", trace, "-o"])
        .arg(&log)
        .arg(Programs::get().path("seawall-restore"))
        .arg("--config")
        .arg(site.config.path())
        .arg("--to")
        .arg(&to)
        .arg("--tablespace")
        .arg(format!("{}={}", old.display(), space.display()))
        .run()
        .success();
    let text = std::fs::read_to_string(&log).unwrap();
    let calls = seawall_tests::strace::calls(&text);
    let all = |what: &str, find: &dyn Fn(&str) -> bool| {
        let found: Vec<usize> = (0..calls.len()).filter(|at| find(&calls[*at])).collect();
        assert!(!found.is_empty(), "no {what} in\n{text}");
        found
    };
    let root = to.display().to_string();
    let below = |call: &str| {
        let places = [root.clone(), space.display().to_string()];
        places
            .iter()
            .any(|place| call.contains(&format!("<{place}/")))
    };
    let written = all("write", &|call| {
        call.contains("write") && below(call) && !call.contains("pg_control")
    });
    let synced = all("syncfs", &|call| {
        call.contains(" syncfs(") && call.contains("= 0")
    });
    let control = all("pg_control", &|call| {
        call.contains(" rename") && call.contains("global/pg_control")
    });
    let mark = all("end of the mark", &|call| {
        call.contains(" unlink") && call.contains("seawall-restore.json\"")
    });
    assert_eq!(synced.len(), 1 + usize::from(tmpfs.is_some()), "{text}");
    assert!(written.last() < synced.first(), "{text}");
    assert!(synced.last() < control.first(), "{text}");
    assert!(control.last() < mark.first(), "{text}");
}
