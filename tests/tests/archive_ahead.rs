//! Working ahead: calls that only confirm, bounds that hold, and nothing believed that is not
//! so. The archiver is ours here, so that each moment can be looked at.

use std::time::{Duration, Instant};

use seawall_tests::postgres::Stop;
use seawall_tests::segment::name;
use seawall_tests::site::PATIENCE;
use seawall_tests::{Archiver, Cluster, PostgresVersion, Site, Stored, pgbench, wait_until};

/// No store answers: whatever needs one fails.
const NOBODY: &str = "any=403";

/// Small segments keep it quick.
fn site() -> Site {
    Site::with(Cluster::builder(PostgresVersion::find(15)).segment_size(1))
}

fn stored(near: &Stored, numbers: impl IntoIterator<Item = u64>) -> usize {
    let mut numbers = numbers.into_iter();
    numbers
        .by_ref()
        .filter(|n| !near.wal(&name(*n)).is_empty())
        .count()
}

#[test]
fn a_backlog_is_archived_ahead_and_the_calls_that_follow_need_no_store() {
    let site = site();
    let archiver = Archiver::of(&site);
    archiver.make(1..=8);
    archiver.ask(1).success();
    wait_until("the others are archived", PATIENCE, || {
        stored(&site.near, 2..=8) == 7
    });
    site.wait_until_idle();
    for number in 2..=8 {
        let call = site.pushing(&name(number));
        let output = call
            .with(|run| run.env("SEAWALL_TEST_FAULTS", NOBODY))
            .run();
        archiver.take(number, &output.success());
        archiver.assert_stored(number);
    }
    // Nothing is left of it but the lock, once it was at work again.
    archiver.make(9..=10);
    archiver.ask(9).success();
    site.wait_until_idle();
    archiver.ask(10).success();
    let left = std::fs::read_dir(site.wal("seawall/archive"))
        .unwrap()
        .count();
    assert!(left <= 3, "{left} files are left");
}

#[test]
fn no_segment_is_stored_more_than_sixteen_behind_the_oldest_that_waits() {
    let site = site();
    let archiver = Archiver::of(&site);
    archiver.make(1..=40);
    archiver.ask(1).success();
    site.wait_until_idle();
    // While it worked, segment 1 was acknowledged; 2 is the oldest that waits.
    assert_eq!(stored(&site.near, 1..=40), 18);
    assert!(site.near.wal(&name(19)).is_empty());
    // What is missing behind them is no gap, and nothing that a recovery may pass over.
    site.near.remove(&site.near.one_wal(&name(2)));
    site.fetch(&name(2)).exits_with(1);
    std::fs::remove_file(archiver.remembered(2)).unwrap();
    for number in 2..=40 {
        archiver.ask(number).success();
        archiver.assert_stored(number);
    }
    site.wait_until_idle();
}

#[test]
fn what_was_archived_ahead_is_not_believed_of_a_file_that_changed() {
    let site = site();
    let archiver = Archiver::of(&site);
    archiver.make(1..=3);
    archiver.ask(1).success();
    wait_until("the others are archived", PATIENCE, || {
        stored(&site.near, 2..=3) == 2
    });
    site.wait_until_idle();
    // The same bytes once more: it is looked at again, and found there.
    archiver.write(2, &archiver.content(2));
    let call = site.pushing(&name(2));
    let alone = call
        .with(|run| run.env("SEAWALL_TEST_FAULTS", NOBODY))
        .run();
    assert!((1..=125).contains(&alone.code));
    archiver.ask(2).success();
    archiver.write(3, &archiver.other_content(3));
    let refused = archiver.ask(3);
    assert!((1..=125).contains(&refused.code), "{}", refused.code);
    refused.says("already archived with other content");
    archiver.assert_stored(3);
}

#[test]
fn a_record_that_was_forged_or_torn_is_not_believed() {
    let site = site();
    let archiver = Archiver::of(&site);
    archiver.make(1..=3);
    archiver.ask(1).success();
    site.wait_until_idle();
    let record = std::fs::read_to_string(archiver.remembered(2)).unwrap();
    for forged in [
        record.replace("\"near\"", "\"gone\""),
        record[..record.len() - 1].to_owned(),
        String::new(),
        std::fs::read_to_string(archiver.remembered(3)).unwrap(),
    ] {
        std::fs::write(archiver.remembered(2), forged).unwrap();
        let call = site.pushing(&name(2));
        let alone = call
            .with(|run| run.env("SEAWALL_TEST_FAULTS", NOBODY))
            .run();
        assert!((1..=125).contains(&alone.code));
    }
    archiver.ask(2).success();
}

#[test]
fn a_spool_that_cannot_be_written_is_no_reason_not_to_archive() {
    let site = site();
    let archiver = Archiver::of(&site);
    archiver.make(1..=3);
    std::fs::write(site.wal("seawall"), "a file is in the way").unwrap();
    for number in 1..=3 {
        archiver.ask(number).success();
        archiver.assert_stored(number);
    }
}

#[test]
fn where_the_server_is_the_first_process_nothing_is_left_running() {
    // As in a container: an orphan would become the postmaster's child.
    let site = site();
    let archiver = Archiver::of(&site);
    let pid = site.cluster.data().join("postmaster.pid");
    std::fs::write(&pid, "1\n").unwrap();
    archiver.make(1..=6);
    archiver.ask(1).success();
    let lock = site.wal("seawall/archive/worker.lock");
    assert!(!lock.exists(), "a process was started");
    let ahead = stored(&site.near, 2..=6);
    assert!(ahead > 0, "nothing was archived ahead");
    for number in 2..=6 {
        archiver.ask(number).success();
        archiver.assert_stored(number);
    }
    std::fs::remove_file(pid).unwrap();
}

#[test]
fn one_dead_repository_holds_up_nobody_where_any_is_enough_and_is_brought_what_it_lacks() {
    let (site, second) = site().with_second("archive_ack = \"any\"");
    let archiver = Archiver::of(&site);
    archiver.make(1..=5);
    second.unmount(false);
    for number in 1..=5 {
        archiver.ask(number).success();
        archiver.assert_stored(number);
    }
    site.wait_until_idle();
    let noted = std::fs::read_dir(site.wal("seawall/missing/second")).unwrap();
    assert!(noted.count() >= 5);
    // PostgreSQL has recycled one meanwhile: it comes from the other repository.
    std::fs::remove_file(site.wal(&name(1))).unwrap();
    second.mount();
    let failed = site.wal("seawall/missing/second/failed");
    let _ = std::fs::remove_file(failed); // It would be left in peace for a while.
    archiver.make([6]);
    archiver.ask(6).success();
    wait_until("all of it is there", PATIENCE, || {
        stored(&second, 1..=6) == 6
    });
    for number in 1..=6 {
        let key = second.one_wal(&name(number));
        assert!(second.plain(&key) == archiver.content(number));
        assert_eq!(key, site.near.one_wal(&name(number)));
    }
    site.wait_until_idle();
    assert!(!site.wal("seawall/missing").exists());
}

#[test]
fn a_hanging_repository_costs_one_wait_and_not_one_for_each_file() {
    let (site, _second) = site().with_second("archive_ack = 1");
    let archiver = Archiver::of(&site);
    archiver.make(1..=4);
    let started = Instant::now();
    for number in 1..=4 {
        let call = site.pushing(&name(number));
        let hanging = "store=second;any=hang";
        let output = call
            .with(|run| run.env("SEAWALL_TEST_FAULTS", hanging))
            .run();
        archiver.take(number, &output.success());
    }
    assert!(
        started.elapsed() < Duration::from_secs(30),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(stored(&site.near, 1..=4), 4);
}

#[test]
fn with_all_a_dead_repository_fails_the_call_and_the_others_get_the_file() {
    let (site, second) = site().with_second("archive_ack = \"all\"");
    let archiver = Archiver::of(&site);
    archiver.make(1..=2);
    second.unmount(false);
    let failed = archiver.ask(1);
    assert!((1..=125).contains(&failed.code));
    archiver.assert_stored(1);
    second.mount();
    archiver.ask(1).success();
    assert_eq!(stored(&second, 1..=1), 1);
}

#[test]
fn other_content_in_one_repository_fails_the_call_whatever_is_enough() {
    let (site, second) = site().with_second("archive_ack = \"any\"");
    let archiver = Archiver::of(&site);
    archiver.make([1]);
    archiver.ask(1).success();
    site.near.remove(&site.near.one_wal(&name(1)));
    archiver.write(1, &archiver.other_content(1));
    let refused = site.push(&name(1));
    assert!((1..=125).contains(&refused.code));
    refused.says("already archived with other content");
    assert_eq!(stored(&second, [1]), 1);
}

#[test]
fn what_a_repository_lacks_that_was_not_needed_is_a_gap_there() {
    let (site, second) = site().with_second("archive_ack = \"any\"");
    let archiver = Archiver::of(&site);
    archiver.make(1..=3);
    archiver.ask(1).success();
    site.wait_until_idle();
    // As if it had failed at 2 alone.
    second.remove(&second.one_wal(&name(2)));
    // 3 is there: nobody may take 2 for the end of WAL, though only one lies behind it.
    let call = site.fetching(&name(2)).args(["--repository", "second"]);
    call.run().exits_with(200).says("missing");
    site.fetch(&name(2)).success();
}

#[test]
fn what_was_archived_ahead_is_not_believed_with_another_configuration() {
    let site = site();
    let archiver = Archiver::of(&site);
    archiver.make(1..=2);
    archiver.ask(1).success();
    site.wait_until_idle();
    let mut text = std::fs::read_to_string(site.config.path()).unwrap();
    text.push_str("# the repository may be another one by now\n");
    std::fs::write(site.config.path(), text).unwrap();
    let call = site.pushing(&name(2));
    let alone = call
        .with(|run| run.env("SEAWALL_TEST_FAULTS", NOBODY))
        .run();
    assert!((1..=125).contains(&alone.code));
    archiver.ask(2).success();
}

#[test]
fn a_repository_is_brought_what_it_lacks_also_where_nothing_is_archived_ahead() {
    let (site, second) = site().with_second("archive_ack = 1");
    let mut text = std::fs::read_to_string(site.config.path()).unwrap();
    text.push_str("[archive]\nahead = 0\nmemory = \"5MB\"\n");
    std::fs::write(site.config.path(), text).unwrap();
    let archiver = Archiver::of(&site);
    archiver.make(1..=3);
    second.unmount(false);
    archiver.ask(1).success();
    second.mount();
    let _ = std::fs::remove_file(site.wal("seawall/missing/second/failed"));
    archiver.ask(2).success();
    wait_until("it has both", PATIENCE, || stored(&second, 1..=2) == 2);
    site.wait_until_idle();
    archiver.ask(3).success();
    assert_eq!(stored(&second, 3..=3), 1, "it is waited for again");
}

#[test]
fn a_repository_that_was_away_when_the_process_began_gets_all_while_the_server_is_busy() {
    let (site, second) = site().with_second("archive_ack = 1");
    let archiver = Archiver::of(&site);
    archiver.make(1..=24);
    second.unmount(false);
    archiver.ask(1).success();
    second.mount();
    // No call is so far from the one before that the process would end for want of work.
    for number in 2..=24 {
        let _ = std::fs::remove_file(site.wal("seawall/missing/second/failed"));
        archiver.ask(number).success();
        if stored(&second, 1..=1) == 1 {
            return;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    panic!("nobody opens the second repository anew");
}

#[test]
fn a_segment_larger_than_the_memory_is_archived_all_the_same() {
    let memory = "[archive]\nmemory = \"10MB\"";
    let builder = Cluster::builder(PostgresVersion::find(15));
    let site = Site::configured(builder, |file| file.extra(memory));
    let archiver = Archiver::of(&site);
    archiver.make(1..=3);
    for number in 1..=3 {
        archiver.ask(number).success();
        archiver.assert_stored(number);
    }
}

#[test]
fn a_server_under_load_is_kept_up_with_and_its_shutdown_is_not_held_up() {
    // What was archived stays in pg_wal, to be compared.
    let builder = Cluster::builder(PostgresVersion::find(15)).segment_size(1);
    let mut site = Site::with(builder.config("wal_keep_size", "4GB"));
    site.cluster.start();
    pgbench::init(&site.cluster, 2);
    pgbench::run(&site.cluster, 2, Duration::from_secs(5));
    let took = site.cluster.stop(Stop::Fast);
    assert!(took < Duration::from_secs(60), "{took:?}");
    site.wait_until_idle();
    let status = std::fs::read_dir(site.wal("archive_status")).unwrap();
    let mut done = 0;
    for entry in status.flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        if let Some(segment) = file.strip_suffix(".done").filter(|name| name.len() == 24) {
            done += 1;
            let plain = site.near.plain(&site.near.one_wal(segment));
            assert!(
                plain == std::fs::read(site.wal(segment)).unwrap(),
                "{segment}"
            );
        }
    }
    assert!(done > 0);
}
