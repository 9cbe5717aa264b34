//! What is fetched ahead of PostgreSQL, call by call: delivered whole and right or not at all,
//! whatever happens to the spool, to its worker and to the calls; and nothing of it stays.
//! `prefetch_recovery.rs` does the same with real recoveries.

use std::path::Path;
use std::time::Duration;

use seawall_tests::prefetch::Archive;
use seawall_tests::scratch::give_to_owner;
use seawall_tests::segment::name;
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    ConfigFile, Prefetched, Repository, Run, Seed, Segment, Tmpfs, fetch, wait_until,
};

/// Longer than a worker stays where no server recovers.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn what_waits_is_delivered_even_while_the_store_is_away_and_what_does_not_is_a_doubt() {
    let archive = Archive::of(40);
    archive.fill_spool();
    archive.site.near.unmount(true);
    // The worker tries to go on, in vain.
    for number in 2..=17 {
        archive.deliver(number);
    }
    let _ = std::fs::remove_file(archive.site.fetched());
    archive.site.fetch(&name(18)).exits_with(200);
    assert!(!archive.site.fetched().exists());
    archive.site.near.mount();
    for number in 18..=40 {
        archive.deliver(number);
    }
    archive.site.fetch(&name(41)).exits_with(1);
    archive.prefetched.wait_until_gone(SOON);
}

#[test]
fn a_worker_stays_no_more_ahead_than_configured_and_leaves_when_nobody_comes() {
    let archive = Archive::configured(30, "ahead = 3\njobs = 2\n");
    let most = |limit: usize| {
        for _ in 0..20 {
            assert!(archive.prefetched.files().len() <= limit);
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    archive.deliver(1);
    archive.prefetched.wait_for(&name(4));
    most(3);
    archive.deliver(2);
    archive.prefetched.wait_for(&name(5));
    most(3);
    archive.prefetched.wait_until_gone(SOON);

    for off in ["ahead = 0", "spool = \"1000KB\""] {
        let archive = Archive::configured(3, off);
        for number in 1..=3 {
            archive.deliver(number);
            assert!(archive.prefetched.workers().is_empty(), "{off}");
            assert!(!archive.prefetched.directory().exists(), "{off}");
        }
    }
}

#[test]
#[ignore = "long: a minute without a request"]
fn a_worker_waits_for_a_server_that_recovers_slowly_and_for_nobody_else() {
    let archive = Archive::of(40);
    let data = archive.site.cluster.data();
    let put = |file: &str, content: &str| {
        std::fs::write(data.join(file), content).unwrap();
        give_to_owner(&data.join(file));
    };
    // A server that lives, and applies WAL hours after it was written.
    put("standby.signal", "");
    put("postmaster.pid", &format!("{}\n", std::process::id()));
    archive.fill_spool();
    let worker = archive.prefetched.workers();
    std::thread::sleep(Duration::from_secs(70));
    assert_eq!(archive.prefetched.workers(), worker);
    assert_eq!(archive.prefetched.files().len(), 16);
    archive.deliver(2);
    archive.prefetched.wait_for(&name(18));
    std::fs::remove_file(data.join("standby.signal")).unwrap();
    archive.prefetched.wait_until_gone(SOON);
}

#[test]
fn a_call_whose_worker_goes_on_does_not_keep_postgresqls_pipes() {
    let archive = Archive::of(20);
    let output = archive.site.fetch(&name(1)).success();
    assert!(!archive.prefetched.workers().is_empty());
    // Whoever reads until the end of the pipe is not held up by the worker.
    let script = "\"$@\" 2>&1 | cat";
    let program = seawall_tests::Programs::get().path("seawall-fetch");
    let output = Run::new("/bin/bash")
        .args(["-c", script, "bash"])
        .arg(program)
        .arg("--config")
        .arg(archive.site.config.path())
        .args([&name(19), "pg_wal/RECOVERYXLOG"])
        .directory(archive.site.cluster.data())
        .run()
        .success()
        .elapsed
        .min(output.elapsed);
    assert!(output < Duration::from_secs(2), "{output:?}");
}

#[test]
fn a_worker_keeps_no_file_open_that_postgresql_had_open() {
    let archive = Archive::of(20);
    let file = archive.site.scratch.file("dropped-table", "x");
    // As PostgreSQL up to version 15 starts its commands.
    let script = "exec 7<\"$0\" 8>&2; exec \"$@\"";
    Run::new("/bin/bash")
        .args(["-c", script])
        .arg(&file)
        .arg(seawall_tests::Programs::get().path("seawall-fetch"))
        .arg("--config")
        .arg(archive.site.config.path())
        .args([&name(1), "pg_wal/RECOVERYXLOG"])
        .directory(archive.site.cluster.data())
        .run()
        .success();
    archive.prefetched.wait_for(&name(17));
    let worker = archive.prefetched.workers()[0];
    let open = std::fs::read_dir(format!("/proc/{worker}/fd")).unwrap();
    let open: Vec<_> = open
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .collect();
    assert!(!open.contains(&file), "{open:?}");
    assert!(open.iter().any(|path| path.ends_with("seawall/fetch/lock")));
    let is_pipe = |path: &&std::path::PathBuf| path.to_string_lossy().starts_with("pipe:");
    assert_eq!(open.iter().find(is_pipe), None);
}

#[test]
fn a_worker_that_is_asked_to_end_takes_its_spool_with_it() {
    let archive = Archive::of(40);
    archive.fill_spool();
    let worker = nix::unistd::Pid::from_raw(archive.prefetched.workers()[0] as i32);
    nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGTERM).unwrap();
    archive.prefetched.wait_until_gone(Duration::from_secs(2));
    archive.deliver(2);
}

#[test]
fn what_was_tampered_with_in_the_spool_is_never_delivered() {
    let archive = Archive::of(20);
    archive.fill_spool();
    let tamper = |number: u64, bytes: &[u8]| {
        let file = archive.prefetched.wait_for(&name(number));
        std::fs::write(file, bytes).unwrap();
    };
    let plain = |number| Segment(archive.plain(number));
    tamper(2, &[]);
    tamper(3, &plain(3).0[..1000]);
    tamper(4, &plain(4).0[..(1 << 20) - 1]);
    tamper(5, &[&plain(5).0[..], b"x"].concat());
    tamper(6, &vec![0; 1 << 20]);
    tamper(7, &plain(7).system(12345).0);
    tamper(8, &plain(8).numbered(9).0);
    tamper(9, &plain(9).magic(0xD000).0);
    tamper(10, &plain(10).segment_size(16 << 20).0);
    for number in 2..=11 {
        archive.deliver(number);
    }
    // Nor does it count where nobody can be asked.
    archive.prefetched.wait_for(&name(13));
    tamper(12, &[]);
    tamper(13, &plain(13).system(12345).0);
    archive.site.near.unmount(true);
    for number in [12, 13] {
        let _ = std::fs::remove_file(archive.site.fetched());
        archive.site.fetch(&name(number)).exits_with(200);
        assert!(!archive.site.fetched().exists());
    }
    archive.site.near.mount();
}

#[test]
fn what_a_dead_worker_has_left_is_not_believed_and_goes() {
    let archive = Archive::of(40);
    archive.fill_spool();
    assert_eq!(archive.prefetched.kill_workers(), 1);
    wait_until("it is dead", PATIENCE, || {
        archive.prefetched.workers().is_empty()
    });
    // As a crash of the machine may leave a file: its end is zeros, where replay would take
    // WAL to end.
    let torn = archive.prefetched.wait_for(&name(2));
    let mut bytes = archive.plain(2);
    bytes[100_000..].fill(0);
    std::fs::write(&torn, bytes).unwrap();
    archive.deliver(2);
    // And a new worker fills a new spool.
    archive.prefetched.wait_for(&name(3));
    archive.deliver(3);
    // One that died last is cleared away by whatever is asked next.
    archive.prefetched.wait_for(&name(4));
    archive.prefetched.kill_workers();
    wait_until("it is dead", PATIENCE, || {
        archive.prefetched.workers().is_empty()
    });
    assert!(!archive.prefetched.files().is_empty());
    archive.site.fetch("00000002.history").exits_with(1);
    assert!(!archive.site.wal("seawall").exists());
}

#[test]
fn absence_is_asked_anew_each_time() {
    let archive = Archive::of(5);
    for number in 1..=5 {
        archive.deliver(number);
    }
    for next in 6..=9 {
        for _ in 0..2 {
            let answer = archive.site.fetch(&name(next)).exits_with(1);
            assert!(answer.elapsed < Duration::from_secs(5));
        }
        archive.push([next]);
        archive.deliver(next);
    }
    archive.prefetched.wait_until_gone(SOON);
}

#[test]
fn a_gap_and_a_conflict_end_what_is_fetched_ahead_and_the_call_says_so() {
    let archive = Archive::of(40);
    let gap = archive.site.near.one_wal(&name(7));
    let bytes = archive.site.near.remove(&gap);
    for number in 1..=6 {
        archive.deliver(number);
    }
    let said = archive.site.fetch(&name(7)).exits_with(200).stderr;
    assert!(said.contains("later segment"), "{said}");
    archive.site.near.put_back(&gap, &bytes);
    let twin = archive.site.near.one_wal(&name(12));
    let other = format!("{}-{:032x}.zst", &twin[..twin.len() - 37], 7);
    archive
        .site
        .near
        .put_back(&other, &archive.site.near.bytes(&twin));
    for number in 7..=11 {
        archive.deliver(number);
    }
    let said = archive.site.fetch(&name(12)).exits_with(200).stderr;
    assert!(said.contains("different contents"), "{said}");
    archive.site.near.remove(&other);
    for number in 12..=40 {
        archive.deliver(number);
    }
}

#[test]
fn a_timeline_that_recovery_leaves_is_cut_and_refused_also_where_it_was_fetched_ahead() {
    let archive = Archive::of(10);
    // Everything waits, by a call that knows of no fork.
    archive.deliver(1);
    archive.prefetched.wait_for(&name(10));
    let asking = |number: u64| {
        let _ = std::fs::remove_file(archive.site.fetched());
        let call = archive.site.fetching(&name(number));
        call.args(["--left", "1@0/380000"]).run()
    };
    asking(2).success();
    archive.holds(2);
    asking(3).success();
    let cut = std::fs::read(archive.site.fetched()).unwrap();
    assert_eq!(cut.len(), 1 << 20);
    assert!(cut[..0x80000] == archive.plain(3)[..0x80000]);
    assert!(cut[0x80000..].iter().all(|byte| *byte == 0));
    asking(4).exits_with(1);
    assert!(!archive.site.fetched().exists());
    assert!(archive.prefetched.file(&name(4)).is_some());
}

#[test]
fn an_edited_configuration_makes_what_was_fetched_before_somebody_elses() {
    let archive = Archive::of(40);
    archive.fill_spool();
    let file = archive.prefetched.wait_for(&name(2));
    let swapped = Segment(archive.plain(2)).content(255);
    std::fs::write(file, swapped.0).unwrap();
    let text = std::fs::read_to_string(archive.site.config.path()).unwrap();
    std::fs::write(archive.site.config.path(), format!("# edited\n{text}")).unwrap();
    archive.deliver(2);
    // The old worker goes; the next call begins anew.
    wait_until("the old worker is gone", PATIENCE, || {
        archive.prefetched.workers().is_empty()
    });
    archive.deliver(3);
    archive.prefetched.wait_for(&name(4));
    archive.deliver(4);
}

#[test]
fn whoever_goes_backwards_or_jumps_gets_what_he_asks_for() {
    let archive = Archive::of(40);
    // As pg_rewind: under the segment's own name, which starts no worker.
    for number in (1..=10).rev() {
        let absolute = archive.site.wal(&name(number));
        std::fs::remove_file(&absolute).unwrap();
        let call = fetch(&archive.site.config).arg(name(number)).arg(&absolute);
        call.run().success();
        assert!(std::fs::read(&absolute).unwrap() == archive.plain(number));
        assert!(!archive.site.wal("seawall").exists());
    }
    // As a recovery that was started anew, again and again.
    let mut seed = Seed::new();
    for _ in 0..40 {
        archive.deliver(1 + seed.below(40));
    }
    for number in (20..=30).rev() {
        archive.deliver(number);
    }
    archive.prefetched.wait_until_gone(SOON);
}

#[test]
fn the_option_of_the_worker_is_no_answer_for_postgresql() {
    let archive = Archive::of(3);
    let output = archive.site.fetching(&name(1)).arg("--prefetch").run();
    output.exits_with(200);
    let output = archive.site.fetching(&name(9)).arg("--prefetch").run();
    output.exits_with(200);
    assert!(!archive.site.fetched().exists());
    // Nor while there is a worker.
    archive.deliver(1);
    let output = archive.site.fetching(&name(2)).arg("--prefetch").run();
    output.exits_with(200);
}

#[test]
fn killed_at_any_moment_neither_worker_nor_call_leaves_anything_wrong() {
    let mut seed = Seed::new();
    let archive = Archive::of(60);
    let mut killed = 0;
    for number in 1..=60 {
        let _ = std::fs::remove_file(archive.site.fetched());
        match seed.below(4) {
            0 => {
                let running = archive.site.fetching(&name(number)).start();
                std::thread::sleep(seed.part_of(Duration::from_millis(25)));
                drop(running.kill());
                if archive.site.fetched().exists() {
                    archive.holds(number);
                }
            }
            1 => {
                std::thread::sleep(seed.part_of(Duration::from_millis(60)));
                killed += archive.prefetched.kill_workers();
            }
            _ => {}
        }
        archive.deliver(number);
    }
    eprintln!("{killed} workers killed");
    archive.site.fetch(&name(61)).exits_with(1);
    archive.prefetched.wait_until_gone(SOON);
    for entry in std::fs::read_dir(archive.site.wal("")).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(!name.contains("seawall"), "left behind: {name}");
    }
}

#[test]
fn a_worker_whose_data_directory_is_taken_away_ends() {
    let archive = Archive::of(40);
    archive.fill_spool();
    let data = archive.site.cluster.data();
    let away = data.with_file_name("away");
    std::fs::rename(data, &away).unwrap();
    let moved = Prefetched::of(&away);
    wait_until("the worker has ended", SOON, || moved.workers().is_empty());
    std::fs::rename(&away, data).unwrap();
    // What it could not remove goes with the next call.
    archive.deliver(2);
    archive.prefetched.wait_for(&name(3));
}

#[test]
fn a_second_repository_is_fetched_ahead_from_where_the_first_is_dead_or_lacks_something() {
    let mut archive = Archive::of(20);
    let root = archive.site.scratch.directory("second");
    archive.site.config = ConfigFile::new()
        .cluster(&archive.site.cluster)
        .repository(Repository::local("near", archive.site.near.root()).key("attempts", "1"))
        .repository(Repository::local("second", &root))
        .write(&archive.site.scratch);
    let site = &archive.site;
    seawall_tests::seawall(&site.config)
        .arg("init")
        .run()
        .success();
    archive.push(1..=20);
    // Only the second has this one, and soon it is the only one.
    site.near.remove(&site.near.one_wal(&name(5)));
    for number in 1..=8 {
        archive.deliver(number);
    }
    site.near.unmount(true);
    for number in 9..=20 {
        archive.deliver(number);
    }
    site.near.mount();
}

/// The least of a data directory that a call needs, on a disk of its own.
fn small_disk(archive: &Archive, disk: &Path) -> Prefetched {
    let data = disk.join("data");
    for directory in ["", "global", "pg_wal"] {
        seawall_tests::scratch::make_directory(&data.join(directory));
    }
    let control = "global/pg_control";
    std::fs::copy(
        archive.site.cluster.data().join(control),
        data.join(control),
    )
    .unwrap();
    give_to_owner(&data.join(control));
    Prefetched::of(&data)
}

#[test]
fn a_disk_that_fills_up_is_given_back_and_the_calls_go_on() {
    let archive = Archive::configured(40, "ahead = 8\n");
    let Some(disk) = Tmpfs::mount(&archive.site.scratch, "disk", 32) else {
        return;
    };
    let prefetched = small_disk(&archive, disk.path());
    let data = disk.path().join("data");
    let fetched = data.join("pg_wal/RECOVERYXLOG");
    let deliver = |number: u64| {
        let call = fetch(&archive.site.config).args([&name(number), "pg_wal/RECOVERYXLOG"]);
        call.with(|run| run.directory(&data)).run().success();
        assert!(std::fs::read(&fetched).unwrap() == archive.plain(number));
        std::fs::remove_file(&fetched).unwrap();
    };
    deliver(1);
    prefetched.wait_for(&name(9));
    // Somebody else takes the rest: the worker gives back what it has.
    disk.fill(2 << 20);
    prefetched.wait_until_gone(SOON);
    let ballast = disk.fill(4 << 20);
    // What is free is enough for one at a time, and nobody takes it.
    for number in 2..=6 {
        deliver(number);
        assert!(prefetched.workers().is_empty());
    }
    std::fs::remove_file(ballast).unwrap();
    deliver(7);
    prefetched.wait_for(&name(15));
    for number in 8..=40 {
        deliver(number);
    }
    prefetched.wait_until_gone(SOON);
}
