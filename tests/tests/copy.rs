//! `seawall copy` between directories: what it brings, what it refuses to bring, what others say
//! of a copy. See `copy_every_call.rs` for interruptions, `copy_regions.rs` for object stores.

use std::time::Duration;

use seawall_tests::job::problems_of;
use seawall_tests::judge;
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Cluster, PostgresVersion, Repository, Scratch, Site, Stored, seawall, wait_until,
};
use serde_json::Value;

/// A running site whose repository `near` has a copy `far`, and what lies there. Nothing was
/// copied yet.
fn with_copy(more: &[(&str, &str)]) -> (Site, Stored, Scratch) {
    let scratch = Scratch::new();
    let root = scratch.directory("far");
    let more: Vec<Repository> = more
        .iter()
        .map(|(name, source)| {
            let repository = Repository::local(name, &scratch.directory(name));
            match *source {
                "" => repository,
                source => repository.copy_from(source),
            }
        })
        .collect();
    let builder = Cluster::builder(PostgresVersion::find(15)).fsync();
    let site = Site::configured(builder, |file| {
        let far = Repository::local("far", &root).copy_from("near");
        more.into_iter()
            .fold(file.repository(far), |file, one| file.repository(one))
    });
    (site.start(), Stored::at(&root), scratch)
}

/// Archives `count` segments, each with a little in it, and returns the last one's name.
fn write(site: &Site, count: usize) -> String {
    let mut last = String::new();
    for _ in 0..count {
        site.cluster.sql(
            "CREATE TABLE IF NOT EXISTS t (n int); INSERT INTO t SELECT generate_series(1, 100)",
        );
        last = site.cluster.archive_all(PATIENCE);
    }
    last
}

fn copy(site: &Site) -> Value {
    let call = site.seawall("copy").arg("--json");
    call.run().success().json()["repositories"][0].clone()
}

/// What a copy must hold: all but what each repository has of its own. `seawall init` registers
/// the cluster in each.
fn contents(stored: &Stored) -> Vec<(String, Vec<u8>)> {
    let own = |key: &String| {
        key == "seawall.json" || key.ends_with("/system.json") || key.contains("/leases/")
    };
    let keys = stored.files().into_iter().filter(|key| !own(key));
    let keys = keys.filter(|key| !key.contains("/drills/"));
    keys.map(|key| (key.clone(), stored.bytes(&key))).collect()
}

fn segment_before(name: &str, back: u64) -> String {
    seawall_tests::segment::name(seawall_tests::segment::number(name) - back)
}

#[test]
fn a_copy_holds_all_that_its_source_holds_byte_for_byte_and_a_second_one_brings_nothing() {
    let (site, far, _scratch) = with_copy(&[]);
    write(&site, 2);
    let backup = site.backup();
    site.seawall("restore-point")
        .arg("before-release")
        .run()
        .success();
    write(&site, 3);

    let lacks = site.seawall("copy").args(["--dry-run", "--json"]).run();
    let lacks = lacks.success().json()["repositories"][0]["systems"][0].clone();
    assert_eq!(lacks["backups"], serde_json::json!([backup["id"]]));
    assert!(lacks["segments"].as_u64().unwrap() >= 4, "{lacks}");
    assert!(lacks["wal_bytes"].as_u64().unwrap() > 1000, "{lacks}");
    assert!(far.keys_with("/wal/").is_empty(), "a dry run copied");

    let done = copy(&site);
    assert_eq!(done["copied"]["backups"], serde_json::json!([backup["id"]]));
    assert_eq!(done["systems"][0]["segments"], 0, "{done}");
    assert_eq!(done["systems"][0]["backups"], serde_json::json!([]));
    let near = contents(&site.near);
    // What is older than the oldest backup is of no use.
    let first = backup["wal"][0].as_str().unwrap();
    let is_older = |key: &str| {
        let name = key.rsplit('/').next().unwrap_or_default();
        key.contains("/wal/") && name.len() > 24 && name < first
    };
    let wanted: Vec<_> = near.into_iter().filter(|(key, _)| !is_older(key)).collect();
    assert!(wanted.len() > 8);
    for (key, bytes) in &wanted {
        assert!(far.bytes(key) == *bytes, "{key} differs");
    }
    assert_ne!(far.bytes("seawall.json"), site.near.bytes("seawall.json"));
    assert!(far.keys_with("/leases/").is_empty(), "a lease is left");
    assert!(
        site.near.keys_with("/leases/").is_empty(),
        "a lease is left"
    );

    let again = copy(&site);
    for count in [
        "wal_objects",
        "backup_objects",
        "found_objects",
        "restore_points",
    ] {
        assert_eq!(again["copied"][count], 0, "{again}");
    }
    let restored = site.restore_and_start("from-far", &["--repository", "far"]);
    judge::dump(&site.cluster).must_equal(&judge::dump(&restored));
    judge::amcheck(&restored).must_pass();
}

#[test]
fn of_two_that_follow_one_watches_until_the_other_is_gone() {
    let (site, far, _scratch) = with_copy(&[]);
    site.backup();
    let follow = || {
        let call = site.seawall("copy");
        let call = call.args(["--follow", "--interval", "200ms"]);
        call.with(|run| run.timeout(Duration::from_secs(300)))
            .start()
    };
    let first = follow();
    wait_until("the backup is there", PATIENCE, || {
        !far.keys_with("backup.json").is_empty()
    });
    let mut second = follow();
    wait_until("the second watches", PATIENCE, || {
        second.stderr().contains("only watches until that ends")
    });
    let last = write(&site, 2);
    wait_until("the first copies", PATIENCE, || !far.wal(&last).is_empty());
    first.kill();
    let last = write(&site, 2);
    wait_until("the second copies", PATIENCE, || !far.wal(&last).is_empty());
    assert_eq!(second.stderr().matches("watches").count(), 1);
    second.signal(nix::sys::signal::Signal::SIGTERM);
    second.wait().success();
    assert_eq!(far.keys_with("/leases/").len(), 1, "but of the killed one");
}

#[test]
fn one_copy_that_cannot_be_opened_is_named_at_once_tried_again_and_holds_up_no_other() {
    let (site, far, _scratch) = with_copy(&[("absent", "near")]);
    site.backup();
    let place = far.root().with_file_name("absent");
    let away = far.root().with_file_name("away");
    std::fs::rename(&place, &away).unwrap();
    let call = site.seawall("copy");
    let call = call.args(["--follow", "--interval", "200ms"]);
    let mut follow = call
        .with(|run| run.timeout(Duration::from_secs(300)))
        .start();
    wait_until("the other one is filled", PATIENCE, || {
        !far.keys_with("backup.json").is_empty()
    });
    assert_eq!(follow.stderr().matches("error: ").count(), 1);
    std::fs::rename(&away, &place).unwrap();
    let absent = Stored::at(&place);
    wait_until("it is filled, too", PATIENCE, || {
        !absent.keys_with("backup.json").is_empty()
    });
    follow.signal(nix::sys::signal::Signal::SIGTERM);
    follow.wait().success();
}

#[test]
fn a_damaged_segment_is_never_copied_and_named_and_the_rest_goes_on() {
    let (site, far, _scratch) = with_copy(&[]);
    site.backup();
    let last = write(&site, 6);
    let damaged = segment_before(&last, 3);
    let key = site.near.one_wal(&damaged);
    let whole = site.near.flip(&key, 40);

    let output = site.seawall("copy").arg("--json").run().exits_with(1);
    let report = output.json()["repositories"][0].clone();
    let named: Vec<_> = report["copied"]["not_copied"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    assert_eq!(named, std::slice::from_ref(&key));
    assert_eq!(report["copied"]["backups"].as_array().unwrap().len(), 1);
    assert!(far.wal(&damaged).is_empty());
    far.one_wal(&last);
    assert_eq!(report["systems"][0]["segments"], 1, "{report}");

    // It is lost, and did not just not arrive: nobody may take it for the end of the WAL.
    let list = site
        .seawall("list")
        .args(["--repository", "far", "--json"])
        .run();
    let gaps =
        list.success().json()["repositories"][0]["systems"][0]["timelines"][0]["gaps"].clone();
    assert_eq!(gaps, serde_json::json!([[damaged, damaged]]));
    let fetched = site.fetching(&damaged).args(["--repository", "far"]).run();
    fetched.exits_with(200);

    site.near.put_back(&key, &whole);
    copy(&site);
    far.one_wal(&damaged);
    let check = site.seawall("check").arg("--json").run().success().json();
    assert_eq!(problems_of(&check), []);
}

#[test]
fn a_damaged_object_of_a_backup_keeps_that_backup_away_and_no_other() {
    let (site, far, _scratch) = with_copy(&[]);
    let old = site.backup();
    write(&site, 1);
    let new = site.backup();
    let id = new["id"].as_str().unwrap();
    let pack = site.near.keys_with(".tar.zst");
    let pack = pack.iter().find(|key| key.contains(id)).unwrap().clone();
    let size = site.near.bytes(&pack).len();
    let whole = site.near.flip(&pack, size / 2);
    let output = site.seawall("copy").arg("--json").run().exits_with(1);
    let copied = output.json()["repositories"][0]["copied"].clone();
    assert_eq!(copied["backups"], serde_json::json!([old["id"]]));
    assert!(copied["not_copied"].get(&pack).is_some(), "{copied}");
    assert!(!far.path(&pack).exists());
    assert!(far.keys_with(&format!("{id}/backup.json")).is_empty());

    site.near.put_back(&pack, &whole);
    let done = copy(&site);
    assert_eq!(done["copied"]["backups"], serde_json::json!([id]));
    assert!(done["copied"]["found_objects"].as_u64().unwrap() > 0);
    assert_eq!(done["copied"]["backup_objects"], 1, "{done}");
}

#[test]
fn a_copy_never_holds_an_incremental_backup_without_all_that_it_stands_on() {
    let (site, far, _scratch) = with_copy(&[]);
    let full = site.backup();
    let incremental = || {
        write(&site, 1);
        let call = site.seawall("backup").args(["--kind", "incremental"]);
        call.arg("--json").run().success().json()
    };
    let links = [incremental(), incremental()];
    let pack = site.near.keys_with(".tar.zst");
    let id = full["id"].as_str().unwrap();
    let pack = pack.iter().find(|key| key.contains(id)).unwrap().clone();
    let whole = site.near.flip(&pack, site.near.bytes(&pack).len() / 2);
    let output = site.seawall("copy").arg("--json").run().exits_with(1);
    let copied = output.json()["repositories"][0]["copied"].clone();
    assert_eq!(copied["backups"], serde_json::json!([]), "{copied}");
    assert!(far.keys_with("/backup.json").is_empty());
    assert!(
        far.keys_with("-incr-").is_empty(),
        "nothing of them is brought in vain"
    );

    site.near.put_back(&pack, &whole);
    let done = copy(&site);
    let order = [&full["id"], &links[0]["id"], &links[1]["id"]];
    assert_eq!(done["copied"]["backups"], serde_json::json!(order));
    assert_eq!(far.keys_with("/backups/"), site.near.keys_with("/backups/"));
}

#[test]
fn another_repository_serves_what_the_source_holds_damaged() {
    let (site, far, _scratch) = with_copy(&[("other", "near")]);
    site.backup();
    let last = write(&site, 2);
    let other = site.seawall("copy").args(["--repository", "other"]);
    other.run().success();
    let segment = site.near.one_wal(&last);
    let packs = site.near.keys_with(".tar.zst");
    site.near.flip(&segment, 30);
    site.near.flip(&packs[0], 1000);
    let far_only = site.seawall("copy").args(["--repository", "far"]).run();
    far_only.success().says("was copied from");
    assert_ne!(far.bytes(&packs[0]), site.near.bytes(&packs[0]));
    assert_eq!(
        seawall_tests::stored::digest(&far.plain(&segment)),
        segment.rsplit('-').next().unwrap()[..32]
    );
    let restored = site.restore_and_start("from-far", &["--repository", "far"]);
    judge::dump(&site.cluster).must_equal(&judge::dump(&restored));
}

#[test]
fn a_copy_takes_no_backups_and_no_wal_of_its_own_and_serves_recovery_when_it_is_asked() {
    let (site, far, _scratch) = with_copy(&[]);
    let refused = site.seawall("backup").args(["--repository", "far"]).run();
    refused.exits_with(2).says("is a copy of \"near\"");
    let no_copy = site.seawall("copy").args(["--repository", "near"]).run();
    no_copy.exits_with(2).says("is no copy");
    let none = Site::of(15);
    none.seawall("copy").run().exits_with(2).says("copy_from");

    site.backup();
    let last = write(&site, 1);
    assert!(
        far.keys_with("/wal/").is_empty(),
        "WAL was pushed to a copy"
    );
    // Nobody waits for a copy: the archiver is well, and the check says how far it is behind.
    let check = site
        .seawall("check")
        .arg("--json")
        .run()
        .exits_with(3)
        .json();
    let findings = check["findings"].as_array().unwrap();
    let about: Vec<_> = findings
        .iter()
        .filter(|f| f["subject"] == "copy far of near")
        .collect();
    assert!(
        about[0]["finding"]
            .as_str()
            .unwrap()
            .contains("lacks 1 backups"),
        "{about:?}"
    );
    let none = problems_of(&check);
    assert!(none[0].1.contains("seawall copy"), "{none:?}");
    let list = site.seawall("list").run().success().stdout;
    assert!(list.contains("copy of near: lacks"), "{list}");
    site.fetching(&last)
        .args(["--repository", "far"])
        .run()
        .exits_with(1);
    copy(&site);
    site.fetching(&last)
        .args(["--repository", "far"])
        .run()
        .exits_with(0);
    let list = site.seawall("list").run().success().stdout;
    assert!(
        list.contains("copy of near: holds all that near holds"),
        "{list}"
    );

    // Its source may be lost: it is listed all the same.
    site.near.unmount(false);
    let list = site.seawall("list").run().exits_with(1);
    assert!(
        list.stdout.contains("how far it is behind is unknown"),
        "{}",
        list.stdout
    );
    site.near.mount();
}

#[test]
fn a_copy_of_a_copy_and_a_copy_that_is_its_source_by_mistake() {
    let (site, far, scratch) = with_copy(&[("third", "far")]);
    site.backup();
    write(&site, 1);
    for name in ["far", "third"] {
        site.seawall("copy")
            .args(["--repository", name])
            .run()
            .success();
    }
    let third = Stored::at(&scratch.join("third"));
    assert!(contents(&third) == contents(&far), "they differ");

    let record = site.near.bytes("seawall.json");
    far.replace("seawall.json", &record);
    let refused = seawall(&site.config)
        .args(["copy", "--repository", "far"])
        .run();
    refused.exits_with(4).says("are one repository");
}

#[test]
fn a_conflict_is_copied_as_one_and_a_content_that_only_the_copy_has_is_never_given_a_rival() {
    let (site, far, _scratch) = with_copy(&[]);
    site.backup();
    let last = write(&site, 2);
    copy(&site);
    // The copy's content of a segment is exchanged for another one.
    let key = far.one_wal(&last);
    let other = segment_before(&last, 1);
    let stranger = far.bytes(&far.one_wal(&other));
    let digest = seawall_tests::stored::digest(&far.plain(&far.one_wal(&other)));
    let (directory, _) = key.rsplit_once('/').unwrap();
    let rival = format!("{directory}/{last}-{digest}.zst");
    far.remove(&key);
    far.put_back(&rival, &stranger);
    let output = site.seawall("copy").run().exits_with(1);
    output.says("seawall wal resolve");
    assert_eq!(far.wal(&last), std::slice::from_ref(&rival));

    // Where the source has both, so has the copy: nobody chooses but a person.
    site.near.put_back(&rival, &stranger);
    copy_of_conflict(&site);
    assert_eq!(far.wal(&last).len(), 2);
}

#[track_caller]
fn copy_of_conflict(site: &Site) {
    // The stranger's bytes are whole by their digest; only `wal verify` looks at their header.
    let output = site.seawall("copy").run();
    output.success();
}
