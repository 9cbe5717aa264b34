//! What `seawall wal resolve` has set aside stays aside while the server that lost goes on
//! archiving, until somebody moves it back.

use std::path::{Path, PathBuf};

use seawall_tests::scratch::{give_tree_to_owner, make_directory};
use seawall_tests::segment::name;
use seawall_tests::{
    Archiver, Cluster, ConfigFile, Output, PostgresVersion, Repository, Site, archive, seawall,
};

/// Another host of the same system, whose segments of these numbers wait with other content.
fn other_host(site: &Site, archiver: &Archiver, numbers: &[u64]) -> PathBuf {
    let data = site.scratch.directory("other");
    let status = data.join("pg_wal/archive_status");
    make_directory(&status);
    make_directory(&data.join("global"));
    let control = "global/pg_control";
    std::fs::copy(site.cluster.data().join(control), data.join(control)).unwrap();
    for number in numbers {
        let file = name(*number);
        let content = archiver.other_content(*number);
        std::fs::write(data.join("pg_wal").join(&file), content).unwrap();
        std::fs::write(status.join(format!("{file}.ready")), "").unwrap();
    }
    give_tree_to_owner(&data);
    data
}

/// A call on the other host, which never works ahead.
fn push_from(site: &Site, data: &Path, number: u64) -> Output {
    let config = ConfigFile::new()
        .cluster(&site.cluster)
        .repository(Repository::local("near", site.near.root()))
        .extra("[archive]\nahead = 0")
        .write_to(&site.scratch.join("other.toml"));
    let call = archive(&config).arg(format!("pg_wal/{}", name(number)));
    call.with(|run| run.directory(data)).run()
}

#[test]
fn a_losing_host_that_goes_on_archiving_cannot_bring_back_what_was_set_aside() {
    let site = Site::with(Cluster::builder(PostgresVersion::find(15)).segment_size(1));
    let loser = Archiver::of(&site);
    loser.make(1..=4);
    for number in 1..=4 {
        loser.ask(number).success();
    }
    let winner = other_host(&site, &loser, &[1, 2, 3]);
    push_from(&site, &winner, 1).says("other content");
    let keys: Vec<String> = (1..=4).map(|n| site.near.one_wal(&name(n))).collect();
    let settle = ["wal", "resolve", "--keep-from", winner.to_str().unwrap()];
    seawall(&site.config).args(settle).run().success();
    let stored = || site.near.keys_with("/wal/00000001/");
    assert_eq!(
        stored(),
        keys[3..],
        "the last is no business of the winner's"
    );

    // The loser asks again, a while later: in a call, and working ahead.
    site.wait_until_idle();
    std::fs::remove_dir_all(site.wal("seawall/archive")).unwrap();
    for number in 1..=4 {
        let (done, ready) = (loser.status(number, "done"), loser.status(number, "ready"));
        std::fs::rename(done, ready).unwrap();
    }
    let refused = loser.ask(1);
    assert!((1..=125).contains(&refused.code), "{}", refused.code);
    refused
        .says("was set aside")
        .says("seawall wal resolve")
        .says("set-aside/");
    site.wait_until_idle();
    let ahead = site.pushing(&name(1)).arg("--work-ahead");
    ahead.run().success();
    assert_eq!(stored(), keys[3..]);

    // So the winner's own come in, and nothing is in conflict.
    for number in 1..=2 {
        push_from(&site, &winner, number).success();
        loser.ask(number).says("other content");
    }
    let resolved = seawall(&site.config).args(["wal", "resolve"]).run();
    assert!(resolved.success().stdout.contains("no conflicts"));

    // Moved back by hand it counts again.
    let aside = site.near.path(&keys[2].replace("/wal/", "/set-aside/"));
    std::fs::rename(aside, site.near.path(&keys[2])).unwrap();
    loser.ask(3).success();
    push_from(&site, &winner, 3).says("other content");
}
