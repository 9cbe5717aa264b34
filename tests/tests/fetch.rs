//! What `seawall-fetch` answers PostgreSQL: 0 delivered, 1 certainly absent, 200 anything
//! else, and nothing else ever. PostgreSQL opens the database on any other code up to 125.
//!
//! Each call asks the repositories itself here; `prefetch.rs` tests what is fetched ahead.

use std::path::Path;
use std::time::Duration;

use seawall_tests::fetching::{
    FIRST, NOTHING_AHEAD, archive_numbers, expect, nothing_is_left_beside, site, write,
};
use seawall_tests::segment::name;
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Cluster, ConfigFile, PostgresVersion, Programs, Repository, Run, Segment, fetch, wait_until,
};

#[test]
fn each_state_of_the_archive_has_its_exit_code() {
    let site = site();
    archive_numbers(&site, &[1, 2, 4, 20]);
    expect(&site, FIRST, 0);
    let plain = std::fs::read(site.fetched()).unwrap();
    assert!(plain == std::fs::read(site.wal(FIRST)).unwrap());

    expect(&site, &name(21), 1);
    let gap = expect(&site, &name(3), 200);
    assert!(
        gap.contains(&name(4)) && gap.contains("--end-at-gap"),
        "{gap}"
    );
    let accepted = site.fetching(&name(3)).arg("--end-at-gap").run();
    accepted.exits_with(1);

    // Another timeline of which nothing is known, and histories of timelines never born.
    expect(&site, "000000020000000000000003", 1);
    for history in ["00000001.history", "00000002.history", "0000000A.history"] {
        expect(&site, history, 1);
    }
    // What recovery never asks for.
    expect(&site, &format!("{}.partial", name(5)), 1);
    expect(&site, &format!("{}.00000028.backup", name(5)), 1);
    // What is no name at all.
    for wrong in [
        "",
        "x",
        "../../etc/passwd",
        "00000001",
        "RECOVERYXLOG",
        &name(5)[1..],
    ] {
        expect(&site, wrong, 200);
    }
}

#[test]
fn what_is_missing_with_no_more_behind_it_than_is_stored_ahead_is_absent_and_with_more_a_gap() {
    let site = site();
    archive_numbers(&site, &[1, 2, 5, 18]);
    let said = expect(&site, &name(3), 1);
    assert!(said.contains("stored ahead"), "{said}");
    expect(&site, &name(4), 1);
    archive_numbers(&site, &[19]);
    let said = expect(&site, &name(3), 1);
    assert!(said.contains("stored ahead"), "{said}");
    archive_numbers(&site, &[20]);
    expect(&site, &name(3), 200);
    expect(&site, &name(4), 1);
    archive_numbers(&site, &[3, 4]);
    expect(&site, &name(3), 0);
    expect(&site, &name(6), 1);
}

#[test]
fn a_gap_is_seen_across_logs() {
    let site = site();
    archive_numbers(&site, &[1, 0xff, 0x203]);
    expect(&site, &name(0x100), 200);
    expect(&site, &name(0xfe), 200);
    expect(&site, &name(0x1f2), 200);
    expect(&site, &name(0x1f3), 1);
    expect(&site, &name(0x202), 1);
    expect(&site, &name(0x204), 1);
    expect(&site, &name(0x300), 1);
}

#[test]
fn a_damaged_object_is_never_delivered_and_never_absent() {
    let site = site();
    archive_numbers(&site, &[1, 2]);
    let key = site.near.one_wal(FIRST);
    let whole = site.near.bytes(&key);
    let end = whole.len();
    let other = site.near.bytes(&site.near.one_wal(&name(2)));
    // A flipped byte in the header, the first block, the middle, the checksum.
    for at in [0, 4, 10, end / 2, end - 6, end - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        site.near.replace(&key, &bytes);
        let said = expect(&site, FIRST, 200);
        assert!(said.contains("damaged"), "byte {at}: {said}");
    }
    for (what, bytes) in [
        ("cut in the middle", whole[..end / 2].to_vec()),
        ("cut by one byte", whole[..end - 1].to_vec()),
        ("empty", Vec::new()),
        ("twice", [&whole[..], &whole[..]].concat()),
        ("with more behind it", [&whole[..], b"x"].concat()),
        ("not zstd", vec![b'x'; 4096]),
        ("another segment's content", other),
    ] {
        site.near.replace(&key, &bytes);
        let said = expect(&site, FIRST, 200);
        assert!(said.contains("damaged"), "{what}: {said}");
    }
    site.near.replace(&key, &whole);
    expect(&site, FIRST, 0);
}

#[test]
fn an_object_of_the_wrong_length_is_refused_even_if_its_digest_is_right() {
    let site = site();
    archive_numbers(&site, &[1]);
    // Somebody stored half a segment, honestly named.
    let half = Segment::read(site.wal(FIRST)).length(8 << 20);
    let file = site.scratch.file("half", &half.0);
    let key = site.near.one_wal(FIRST);
    let directory = Path::new(&key).parent().unwrap();
    let digest = seawall_tests::stored::digest(&half.0);
    let honest = directory.join(format!("{}-{digest}.zst", name(2)));
    let to = site.near.path(honest.to_str().unwrap());
    Run::new("/usr/bin/zstd")
        .arg("-q")
        .arg(&file)
        .arg("-o")
        .arg(&to)
        .run()
        .success();
    let said = expect(&site, &name(2), 200);
    assert!(said.contains("8388608 bytes"), "{said}");
}

#[test]
fn two_contents_of_one_segment_are_a_conflict_and_a_healthy_copy_elsewhere_does_not_settle_it() {
    let site = site();
    archive_numbers(&site, &[1]);
    let key = site.near.one_wal(FIRST);
    let twin = key.replace(FIRST, "X").replace("X-", &format!("{FIRST}-0"));
    let twin = format!("{}.zst", &twin[..twin.len() - 5]);
    site.near.put_back(&twin, &site.near.bytes(&key));
    assert_eq!(site.near.wal(FIRST).len(), 2);
    let said = expect(&site, FIRST, 200);
    assert!(said.contains("different contents"), "{said}");
    // An encrypted object of the same digest is no conflict.
    site.near.remove(&twin);
    site.near.put_back(&format!("{key}.age"), b"age");
    expect(&site, FIRST, 0);
}

#[test]
fn a_repository_that_is_gone_or_empty_or_unreadable_leaves_a_doubt() {
    let site = site();
    archive_numbers(&site, &[1]);
    for leave_empty_directory in [false, true] {
        site.near.unmount(leave_empty_directory);
        for file in [FIRST, &name(2), "00000002.history"] {
            expect(&site, file, 200);
        }
        site.near.mount();
    }
    // The proof that it is this repository, and that it knows this cluster.
    for key in [
        "seawall.json",
        &site.near.keys_with("system.json")[0].clone(),
    ] {
        let bytes = site.near.remove(key);
        expect(&site, &name(2), 200);
        expect(&site, "00000002.history", 200);
        for damaged in [&b"{"[..], b"", b"{\"format\": 99}"] {
            site.near.put_back(key, damaged);
            expect(&site, &name(2), 200);
        }
        site.near.put_back(key, &bytes);
        expect(&site, &name(2), 1);
    }
    // A directory that may not be read.
    let key = site.near.one_wal(FIRST);
    let segment = site.near.path(&key);
    let timeline = segment.ancestors().nth(2).unwrap().to_owned();
    for path in [
        timeline.parent().unwrap(),
        &timeline,
        segment.parent().unwrap(),
    ] {
        seawall_tests::scratch::set_mode(path, 0o000);
        expect(&site, FIRST, 200);
        expect(&site, &name(2), 200);
        if path != segment.parent().unwrap() {
            expect(&site, "00000001.history", 200);
        }
        seawall_tests::scratch::set_mode(path, 0o750);
    }
    seawall_tests::scratch::set_mode(&segment, 0o000);
    expect(&site, FIRST, 200);
}

#[test]
fn another_cluster_gets_nothing_from_an_archive_that_is_not_its_own() {
    let site = site();
    archive_numbers(&site, &[1]);
    let other = Cluster::builder(PostgresVersion::find(15)).create_in(&site.scratch, "other");
    for file in [FIRST, &name(2), "00000002.history"] {
        let call = fetch(&site.config).args([file, "pg_wal/RECOVERYXLOG"]);
        let output = call
            .with(|run| run.directory(other.data()))
            .run()
            .exits_with(200);
        output.says("knows nothing of this cluster");
        assert!(!other.data().join("pg_wal/RECOVERYXLOG").exists());
    }
}

#[test]
fn whatever_is_wrong_with_a_call_its_code_is_200() {
    let site = site();
    archive_numbers(&site, &[1]);
    let program = Programs::get().path("seawall-fetch");
    let config = site.config.path().display().to_string();
    let run = |args: &[&str]| {
        let run = Run::new(&program).args(args).directory(site.cluster.data());
        let output = run.run();
        assert_eq!(output.code, 200, "{args:?}: {}", output.stderr);
        assert!(!site.fetched().exists(), "{args:?}");
    };
    let to = "pg_wal/RECOVERYXLOG";
    run(&[]);
    run(&["--help"]);
    run(&["--version"]);
    run(&["-h"]);
    run(&[FIRST]);
    run(&["--config", &config]);
    run(&["--config", &config, FIRST]);
    run(&["--config", &config, FIRST, to, to]);
    run(&["--config", &config, "--no-such-option", FIRST, to]);
    run(&["--config", &config, "--repository", "unknown", FIRST, to]);
    run(&["--config", &config, "--cluster", "unknown", FIRST, to]);
    run(&["--config", &config, "--log-level", "loud", FIRST, to]);
    run(&["--config", "/nowhere", FIRST, to]);
    run(&[FIRST, to]);
    // No data directory around %p, and a destination that cannot be written.
    run(&["--config", &config, FIRST, "/RECOVERYXLOG"]);
    run(&["--config", &config, FIRST, "RECOVERYXLOG"]);
    run(&["--config", &config, &name(2), "/tmp/RECOVERYXLOG"]);
    run(&["--config", &config, FIRST, "pg_wal/missing/RECOVERYXLOG"]);
    let good = std::fs::read_to_string(&config).unwrap();
    for broken in [
        "",
        "x = 1",
        &good.replace("[[repository]]", "[[repositori]]"),
    ] {
        std::fs::write(&config, broken).unwrap();
        run(&["--config", &config, FIRST, to]);
        run(&["--config", &config, &name(2), to]);
    }
    std::fs::write(&config, good).unwrap();
    let control = site.cluster.data().join("global/pg_control");
    let whole = std::fs::read(&control).unwrap();
    for damaged in [&whole[..100], &[0; 8192][..], &[0xA5; 8192][..]] {
        std::fs::write(&control, damaged).unwrap();
        run(&["--config", &config, FIRST, to]);
        run(&["--config", &config, &name(2), to]);
    }
    std::fs::write(&control, whole).unwrap();
    expect(&site, FIRST, 0);
}

#[test]
fn a_full_disk_and_a_closed_standard_error_are_200_and_leave_nothing_behind() {
    let site = site();
    archive_numbers(&site, &[1]);
    let run = |script: &str| {
        let run = Run::new("/bin/bash").args(["-c", script]);
        let output = run
            .arg(Programs::get().path("seawall-fetch"))
            .arg("--config")
            .arg(site.config.path())
            .args([FIRST, "pg_wal/RECOVERYXLOG"])
            .directory(site.cluster.data())
            .run();
        assert_eq!(output.code, 200, "{script}: {}", output.stderr);
        assert!(!site.fetched().exists());
        nothing_is_left_beside(&site);
    };
    // A file may not grow beyond 4 MiB.
    run("trap '' XFSZ; ulimit -f 4096; exec \"$0\" \"$@\"");
    site.near.unmount(true);
    run("exec 2> >(exit); sleep 0.2; exec \"$0\" \"$@\"");
    site.near.mount();
}

#[test]
fn killed_in_the_middle_it_leaves_no_part_of_a_file_at_the_destination() {
    let site = site();
    archive_numbers(&site, &[1]);
    let whole = std::fs::read(site.wal(FIRST)).unwrap();
    let started = std::time::Instant::now();
    site.fetch(FIRST).success();
    let usual = started.elapsed();
    for step in 0..12 {
        let _ = std::fs::remove_file(site.fetched());
        let running = site.fetching(FIRST).start();
        std::thread::sleep(usual.mul_f64(f64::from(step) / 12.0));
        drop(running.kill());
        if site.fetched().exists() {
            assert!(std::fs::read(site.fetched()).unwrap() == whole);
        }
    }
    // And the next call cleans up after it.
    expect(&site, FIRST, 0);
}

#[test]
fn a_call_that_a_dead_server_has_left_and_the_next_servers_call_do_not_meet() {
    let mut site = site();
    archive_numbers(&site, &[1, 2]);
    site.config = ConfigFile::new()
        .cluster(&site.cluster)
        .repository(Repository::local("near", site.near.root()).key("timeout", "\"2s\""))
        .extra(NOTHING_AHEAD)
        .write(&site.scratch);
    let whole = std::fs::read(site.wal(&name(2))).unwrap();
    let temporary = site.wal("RECOVERYXLOG.seawall-tmp");
    for killed in [true, false] {
        // The object does not come at once, and the call waits with its file open.
        let faults = "get[000000010000000000000001-]@1=hang";
        let call = site.fetching(FIRST);
        let left = call.with(|run| run.env("SEAWALL_TEST_FAULTS", faults));
        let left = left.start();
        wait_until("it has its turn", PATIENCE, || temporary.exists());
        let mut next = site.fetching(&name(2)).start();
        std::thread::sleep(Duration::from_millis(700));
        assert!(next.is_running(), "it has not waited");
        assert!(!site.fetched().exists());
        match killed {
            true => drop(left.kill()),
            // What it is late with does not replace what comes after it.
            false => drop(left.wait().success()),
        }
        next.wait().success();
        assert!(std::fs::read(site.fetched()).unwrap() == whole);
        nothing_is_left_beside(&site);
        std::fs::remove_file(site.fetched()).unwrap();
    }
}

#[test]
fn calls_at_once_for_one_destination_deliver_whole_files_one_after_the_other() {
    let site = site();
    archive_numbers(&site, &[1, 2, 3]);
    let whole = [1, 2, 3].map(|number| std::fs::read(site.wal(&name(number))).unwrap());
    for _ in 0..4 {
        let calls = [1, 2, 3].map(|number| site.fetching(&name(number)).start());
        for call in calls {
            call.wait().success();
        }
        let delivered = std::fs::read(site.fetched()).unwrap();
        assert!(whole.contains(&delivered), "it is a mixture");
        nothing_is_left_beside(&site);
    }
}

#[test]
fn pg_rewind_and_others_may_name_the_destination_by_any_path() {
    let site = site();
    archive_numbers(&site, &[1, 2]);
    let absolute = site.wal(&name(2));
    let whole = std::fs::read(&absolute).unwrap();
    std::fs::remove_file(&absolute).unwrap();
    // As pg_rewind: from another directory, into pg_wal of the target, under its own name.
    fetch(&site.config)
        .arg(name(2))
        .arg(&absolute)
        .run()
        .success();
    assert!(std::fs::read(&absolute).unwrap() == whole);
    // Over a file that is there.
    write(&absolute, b"stale");
    fetch(&site.config)
        .arg(name(2))
        .arg(&absolute)
        .run()
        .success();
    assert!(std::fs::read(&absolute).unwrap() == whole);
}
