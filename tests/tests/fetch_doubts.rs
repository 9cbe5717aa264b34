//! What `seawall-fetch` answers where one repository does not tell all: several of them, stores
//! that refuse, standbys, and what other timelines say of a segment that is missing.

use seawall_tests::fetching::{FIRST, NOTHING_AHEAD, archive_numbers, expect, site, write};
use seawall_tests::segment::name;
use seawall_tests::{
    Cluster, ConfigFile, Garage, PostgresVersion, Repository, Scratch, Segment, Site, Stored,
    fetch, seawall,
};

/// Two repositories; the second holds segment 1 and 2, the first only segment 1.
fn two_repositories() -> (Site, Stored) {
    let mut site = site();
    let root = site.scratch.directory("second");
    archive_numbers(&site, &[1]);
    site.config = ConfigFile::new()
        .cluster(&site.cluster)
        .repository(Repository::local("near", site.near.root()))
        .repository(Repository::local("second", &root))
        .extra(NOTHING_AHEAD)
        .write(&site.scratch);
    seawall(&site.config).arg("init").run().success();
    site.push(FIRST).success();
    (site, Stored::at(&root))
}

#[test]
fn what_a_second_repository_has_is_delivered_whatever_is_wrong_with_the_first() {
    let (site, second) = two_repositories();
    for leave_empty_directory in [true, false] {
        site.near.unmount(leave_empty_directory);
        expect(&site, FIRST, 0);
        site.near.mount();
    }
    let key = site.near.one_wal(FIRST);
    let whole = site.near.flip(&key, 5000);
    expect(&site, FIRST, 0);
    site.near.remove(&key);
    expect(&site, FIRST, 0);
    // Damaged in both: nothing is delivered.
    site.near.put_back(&key, &whole[..1000]);
    second.flip(&key, 5000);
    expect(&site, FIRST, 200);
}

#[test]
fn absent_needs_the_word_of_every_repository_that_is_asked() {
    let (site, second) = two_repositories();
    expect(&site, &name(2), 1);
    for (gone, leave_empty_directory) in [
        (&site.near, true),
        (&site.near, false),
        (&second, true),
        (&second, false),
    ] {
        gone.unmount(leave_empty_directory);
        expect(&site, &name(2), 200);
        expect(&site, "00000002.history", 200);
        // Who asks one of them alone waits for no other.
        let healthy = if gone.root() == second.root() {
            "near"
        } else {
            "second"
        };
        site.fetching(&name(2))
            .args(["--repository", healthy])
            .run()
            .exits_with(1);
        gone.mount();
    }
}

#[test]
fn a_store_that_refuses_connections_or_permission_is_a_doubt_and_never_absence() {
    let scratch = Scratch::new();
    let mut garage = Garage::start(&scratch);
    let mut cluster = Cluster::builder(PostgresVersion::find(15)).create_in(&scratch, "main");
    let repository = |name: &str| garage.repository(name, name, "pg").key("attempts", "2");
    let config = ConfigFile::new()
        .cluster(&cluster)
        .repository(repository("near"))
        .repository(repository("far"))
        .extra(NOTHING_AHEAD)
        .write(&scratch);
    cluster.archive_with(&config);
    seawall(&config).arg("init").run().success();
    let call = |file: &str| {
        let call = fetch(&config).args([file, "pg_wal/RECOVERYXLOG"]);
        call.with(|run| run.directory(cluster.data())).run().code
    };
    assert_eq!(call(&name(2)), 1);
    let key = garage.key().0.to_owned();
    // One of two is forbidden: the other lacks the file, and that proves nothing.
    garage.run(["bucket", "deny", "--read", "near", "--key", &key]);
    assert_eq!(call(&name(2)), 200);
    assert_eq!(call("00000002.history"), 200);
    garage.run(["bucket", "allow", "--read", "near", "--key", &key]);
    assert_eq!(call(&name(2)), 1);
    garage.stop();
    assert_eq!(call(&name(2)), 200);
    assert_eq!(call("00000002.history"), 200);
}

#[test]
fn on_a_standby_a_doubt_is_1_unless_strict_and_what_is_delivered_is_0() {
    let site = site();
    archive_numbers(&site, &[1, 2, 4, 20]);
    write(&site.cluster.data().join("standby.signal"), b"");
    expect(&site, FIRST, 0);
    expect(&site, &name(3), 1);
    let strict = |file: &str| site.fetching(file).arg("--strict").run().code;
    assert_eq!(strict(&name(3)), 200);
    assert_eq!(strict(&name(21)), 1);
    let key = site.near.one_wal(FIRST);
    site.near.flip(&key, 4000);
    let _ = std::fs::remove_file(site.fetched());
    expect(&site, FIRST, 1);
    assert_eq!(strict(FIRST), 200);
    site.near.unmount(true);
    expect(&site, &name(2), 1);
    assert_eq!(strict(&name(2)), 200);
    // Without the signal file it is a recovery again.
    std::fs::remove_file(site.cluster.data().join("standby.signal")).unwrap();
    expect(&site, &name(2), 200);
    site.near.mount();
}

#[test]
fn a_hole_in_the_histories_is_a_doubt_and_their_end_is_an_end() {
    let site = site();
    archive_numbers(&site, &[1]);
    write(
        &site.wal("00000002.history"),
        b"1\t0/2000000\tno recovery target specified\n\n",
    );
    write(
        &site.wal("00000003.history"),
        b"1\t0/2000000\tno recovery target specified\n\n2\t0/3000000\tno recovery target specified\n\n",
    );
    site.push("00000003.history").success();
    // Timeline 3 exists, so timeline 2 did: PostgreSQL would end its search for the newest.
    let said = expect(&site, "00000002.history", 200);
    assert!(said.contains("history of timeline 3"), "{said}");
    site.push("00000002.history").success();
    expect(&site, "00000002.history", 0);
    let delivered = std::fs::read(site.fetched()).unwrap();
    assert_eq!(
        delivered,
        std::fs::read(site.wal("00000002.history")).unwrap()
    );
    expect(&site, "00000004.history", 1);
    // WAL of a timeline whose history never came.
    let segment = "000000040000000000000003";
    let mut content = Segment::read(site.wal(FIRST)).numbered(3);
    content.0[4..8].copy_from_slice(&4u32.to_le_bytes());
    write(&site.wal(segment), &content.0);
    site.push(segment).success();
    let said = expect(&site, "00000004.history", 200);
    assert!(said.contains("WAL of timeline 4"), "{said}");
    expect(&site, "00000005.history", 1);
}

#[test]
fn what_is_missing_before_a_fork_is_a_gap_although_its_own_timeline_ends_there() {
    let site = site();
    archive_numbers(&site, &[1, 2]);
    expect(&site, &name(3), 1);
    // The primary died before it archived 3 and 4, whose standby had them: it was promoted in
    // the middle of 5, and archives from there.
    let history = "00000002.history";
    write(
        &site.wal(history),
        b"1\t0/5800028\tno recovery target specified\n",
    );
    site.push(history).success();
    for missing in [3, 4] {
        let said = expect(&site, &name(missing), 200);
        let behind = "timeline 2, which begins behind it, is there";
        assert!(said.contains(behind), "{said}");
        let accepted = site.fetching(&name(missing)).arg("--end-at-gap").run();
        accepted.exits_with(1);
    }
    // The child begins with a copy of the segment that holds the switch point.
    expect(&site, &name(5), 1);
    expect(&site, &name(6), 1);
    expect(&site, "000000020000000000000005", 1);
    // Nor does a segment that was stored ahead explain them.
    archive_numbers(&site, &[5]);
    expect(&site, &name(3), 200);
    expect(&site, &name(6), 1);
    // At a segment's very end a fork proves all of that segment, through another timeline too.
    let later = "00000003.history";
    let forks = "1\t0/5800028\tx\n2\t0/8000000\tx\n";
    write(&site.wal(later), forks.as_bytes());
    site.push(later).success();
    let said = expect(&site, "000000020000000000000007", 200);
    assert!(said.contains("timeline 3, which begins"), "{said}");
    expect(&site, "000000020000000000000008", 1);
    expect(&site, "000000030000000000000008", 1);
    expect(&site, &name(6), 1);
    // What a fork says that cannot be read nobody knows; what has none higher needs it not.
    let key = site.near.keys_with(later)[0].clone();
    site.near.flip(&key, 10);
    expect(&site, &name(6), 200);
    expect(&site, "000000020000000000000008", 200);
    expect(&site, "000000030000000000000008", 1);
}
