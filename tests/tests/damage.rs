//! What lies in a repository is damaged, incomplete, or vanishes while a backup is taken: it is
//! noticed before anybody relies on it. Field failures 9, 23 and 24.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use seawall_tests::job::files_below;
use seawall_tests::site::PATIENCE;
use seawall_tests::{Seed, Site, judge, stored, wait_until};

/// Every file with its digest, but for the manifest, which says when it was written.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    files_below(root)
        .into_iter()
        .filter(|path| !path.ends_with("backup_manifest"))
        .map(|path| {
            let digest = stored::digest(&std::fs::read(&path).unwrap());
            (path.strip_prefix(root).unwrap().to_owned(), digest)
        })
        .collect()
}

#[test]
fn one_wrong_bit_in_any_object_is_caught_or_changes_nothing_that_is_restored() {
    let mut seed = Seed::new();
    let (site, marker) = Site::of_every_class();
    // At the same place as all that follow: its settings name that place.
    let to = site.scratch.join("to");
    let reference = |args: &[&str]| {
        site.restoring(&to).args(args).run().success();
        judge::verifybackup(site.cluster.version(), &to).must_pass();
        let reference = tree(&to);
        std::fs::remove_dir_all(&to).unwrap();
        reference
    };
    // Where the newest backup cannot be told, the one before leads to the same end.
    let before = ["--backup", marker["id"].as_str().unwrap()];
    let references = [reference(&[]), reference(&before)];

    let segments = [&marker["wal"][0], &marker["wal"][1]].map(|name| name.as_str().unwrap());
    let mut classes: BTreeMap<String, String> = BTreeMap::new();
    for key in site.near.files() {
        let class = stored::class(&key);
        if class == "label" {
            continue;
        }
        if class != "segment" || segments.iter().any(|name| key.contains(name)) {
            classes.insert(class, key);
        }
    }
    let known = [
        ".index.zst",
        ".tar.zst",
        "backup.json",
        "backup_manifest.zst",
        "config.tar.zst",
        "history",
        "incremental .index.zst",
        "incremental .tar.zst",
        "incremental backup.json",
        "incremental backup_manifest.zst",
        "incremental config.tar.zst",
        "lease",
        "seawall.json",
        "segment",
        "system.json",
    ];
    let found: Vec<&str> = classes.keys().map(String::as_str).collect();
    assert_eq!(
        found, known,
        "a class of objects that this test does not know"
    );

    let (mut caught, mut harmless) = (0, 0);
    for (class, key) in &classes {
        let whole = site.near.bytes(key);
        let plain = match class.as_str() {
            "segment" => site.near.plain(key),
            _ => Vec::new(),
        };
        for _ in 0..4 {
            let at = seed.below(whole.len() as u64) as usize;
            let bit = seed.below(8);
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            eprintln!("{key}: byte {at}, bit {bit}");
            site.near.replace(key, &bytes);
            if class == "segment" {
                let name = segments.iter().find(|name| key.contains(**name)).unwrap();
                let fetched = site.fetch(name);
                if fetched.code == 0 {
                    // A header may say the same in other words: a larger window.
                    let delivered = std::fs::read(site.fetched()).unwrap();
                    assert!(delivered == plain, "{key}: unnoticed");
                    std::fs::remove_file(site.fetched()).unwrap();
                    harmless += 1;
                } else {
                    fetched.exits_with(200);
                    assert!(!site.fetched().exists());
                    caught += 1;
                }
                continue;
            }
            let output = site.restoring(&to).run();
            match output.code {
                0 => {
                    let restored = tree(&to);
                    let [reference, other] = &references;
                    let reference = match class == "incremental backup.json" {
                        true if restored != *reference => other,
                        _ => reference,
                    };
                    let differ = |path: &&PathBuf| restored.get(*path) != reference.get(*path);
                    let other: Vec<_> = reference.keys().filter(differ).collect();
                    assert!(other.is_empty(), "{class}: unnoticed: {other:?}");
                    assert_eq!(restored.len(), reference.len());
                    judge::verifybackup(site.cluster.version(), &to).must_pass();
                    harmless += 1;
                }
                _ => {
                    assert!(output.stderr.contains("error: "), "{}", output.stderr);
                    assert!(!to.join("global/pg_control").exists());
                    caught += 1;
                }
            }
            let _ = std::fs::remove_dir_all(&to);
            let list = site.seawall("list").run();
            assert!(list.code <= 5, "{}", list.stderr);
        }
        site.near.put_back(key, &whole);
    }
    eprintln!("{caught} caught, {harmless} harmless");
    assert!(caught >= 20, "{caught} caught, {harmless} harmless");
}

#[test]
fn a_drill_of_a_damaged_backup_never_passes() {
    let site = Site::of(15).start();
    site.backup();
    site.cluster.archive_all(PATIENCE);
    site.seawall("drill").run().success();
    for part in ["000001.tar.zst", "/wal/"] {
        let key = site.near.keys_with(part).pop().unwrap();
        let middle = site.near.bytes(&key).len() / 2;
        let whole = site.near.flip(&key, middle);
        let output = site.seawall("drill").run();
        assert!(output.code == 1 || output.code == 3, "{}", output.stdout);
        site.near.put_back(&key, &whole);
    }
}

#[test]
fn a_backup_that_lost_an_object_is_told_from_one_that_is_whole() {
    let site = Site::of(15).start();
    site.backup();
    site.cluster.archive_all(PATIENCE);
    for part in ["000001.tar.zst", "000001.index.zst", "backup_manifest.zst"] {
        let key = site.near.keys_with(part).remove(0);
        let taken = site.near.remove(&key);
        let to = site.scratch.join("to");
        let output = site.restoring(&to).run().exits_with(1);
        output.says("is not in the store").says("hint:");
        assert!(!to.join("global/pg_control").exists());
        // Shorter than it was written: as bad.
        site.near.put_back(&key, &taken[..taken.len() - 1]);
        site.restoring(&to).run().exits_with(1);
        site.near.put_back(&key, &taken);
        site.restoring(&to).run().success();
        std::fs::remove_dir_all(&to).unwrap();
    }
}

#[test]
fn a_backup_whose_object_vanishes_before_it_commits_is_none() {
    let site = Site::of(15).start();
    site.cluster.archive_all(PATIENCE);
    site.cluster
        .sql("ALTER SYSTEM SET archive_command = 'false'");
    site.cluster.reload();
    let running = site.seawall("backup").start();
    wait_until("the data is stored", PATIENCE, || {
        running.stderr().contains("waiting for WAL")
    });
    let key = site.near.keys_with(".tar.zst").remove(0);
    site.near.remove(&key);
    site.cluster.sql("ALTER SYSTEM RESET archive_command");
    site.cluster.reload();
    running.wait().exits_with(1).says("is not in the store");
    assert!(site.near.keys_with("/backup.json").is_empty());
    site.backup();
}

#[test]
fn a_backup_whose_wal_does_not_arrive_is_none_and_says_where_to_look() {
    let site = Site::of(15).start();
    site.cluster.archive_all(PATIENCE);
    site.cluster
        .sql("ALTER SYSTEM SET archive_command = 'false'");
    site.cluster.reload();
    let output = site.seawall("backup").args(["--wal-timeout", "1s"]).run();
    assert!(output.elapsed < Duration::from_secs(30));
    let output = output.exits_with(1).says("did not arrive in the archive");
    output.says("pg_stat_archiver");
    assert!(site.near.keys_with("/backup.json").is_empty());
    // As if it had been acknowledged and lost: pretended success is noticed as well.
    site.cluster
        .sql("ALTER SYSTEM SET archive_command = 'true'");
    site.cluster.reload();
    let output = site.seawall("backup").args(["--wal-timeout", "1s"]).run();
    output.exits_with(1).says("did not arrive in the archive");
    assert!(site.near.keys_with("/backup.json").is_empty());
}
