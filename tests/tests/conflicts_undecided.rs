//! Conflicts in which records do not tell whose a segment is, or a file cannot be moved: what
//! `seawall wal resolve` then says, and that it touches nothing that nobody decided.

use std::process::Command;

use seawall_tests::cli::Call;
use seawall_tests::scratch::give_to_owner;
use seawall_tests::site::PATIENCE;
use seawall_tests::stored::digest;
use seawall_tests::{Cluster, Output, PostgresVersion, Site, Stored, seawall};

/// A server that does next to nothing, and its archived segments: each ends with a switch, the
/// next begins with a record.
fn idle() -> (Site, Vec<String>) {
    let builder = Cluster::builder(PostgresVersion::find(15))
        .segment_size(1)
        .fsync();
    let site = Site::with(builder).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    for _ in 0..6 {
        site.cluster.sql("INSERT INTO t VALUES (1)");
        site.cluster.archive_all(PATIENCE);
    }
    let keys = site.near.keys_with("/wal/00000001");
    let keys: Vec<String> = keys.into_iter().rev().take(5).collect();
    (site, keys.into_iter().rev().collect())
}

fn resolve(site: &Site, args: &[&str]) -> Call {
    seawall(&site.config).args(["wal", "resolve"]).args(args)
}

fn file_in(key: &str) -> &str {
    key.rsplit('/').next().unwrap().rsplit_once('-').unwrap().0
}

fn digest_in(key: &str) -> &str {
    let (_, digest) = key.rsplit_once('-').unwrap();
    digest.strip_suffix(".zst").unwrap()
}

fn compressed(site: &Site, plain: &[u8], level: &str) -> Vec<u8> {
    let file = site.scratch.join("plain");
    std::fs::write(&file, plain).unwrap();
    let output = Command::new("zstd")
        .args(["-q", "-c", level])
        .arg(&file)
        .output();
    output.unwrap().stdout
}

/// Stores what another server has archived under the same name that did the same work: behind
/// its last record the segment is another. Returns its key.
fn store_rival(site: &Site, key: &str) -> String {
    let mut plain = site.near.plain(key);
    *plain.last_mut().unwrap() ^= 1;
    let rival = key.replace(digest_in(key), &digest(&plain));
    site.near.put_back(&rival, &compressed(site, &plain, "-3"));
    rival
}

fn aside(key: &str) -> String {
    key.replace("/wal/", "/set-aside/")
}

fn is_there(stored: &Stored, key: &str) -> bool {
    stored.path(key).exists()
}

#[track_caller]
fn undecided(output: &Output, about: &str) {
    let mut lines = output.stdout.lines();
    assert!(
        lines.any(|line| line.contains("UNDECIDED") && line.contains(about)),
        "{about}: {}",
        output.stdout
    );
}

#[test]
fn a_lone_segment_that_fits_both_branches_is_left_and_named() {
    let (site, keys) = idle();
    let rival = store_rival(&site, &keys[2]);
    // At the next, only the other server's is there.
    let of_rival = store_rival(&site, &keys[3]);
    site.near.remove(&keys[3]);
    let keep = ["--branch", "--keep", digest_in(&keys[2])];
    let said = resolve(&site, &keep).run().exits_with(3);
    undecided(&said, file_in(&of_rival));
    undecided(&said, file_in(&keys[1]));
    assert!(is_there(&site.near, &aside(&rival)) && !is_there(&site.near, &rival));
    for left in [&keys[0], &keys[1], &keys[2], &of_rival, &keys[4]] {
        assert!(is_there(&site.near, left), "{left}");
    }
}

#[test]
fn a_history_does_not_choose_segments_where_its_rival_names_the_same_switch_point() {
    let (mut site, _) = idle();
    let mut standby = site.cluster.standby(&site.scratch, "standby");
    standby.start();
    standby.wait_until_caught_up(&site.cluster, PATIENCE);
    site.cluster.kill();
    standby.promote();
    standby.sql("INSERT INTO t VALUES (1)");
    standby.archive_all(PATIENCE);
    standby.wait_until_archived("00000002.history", PATIENCE);
    let history = site.near.one_wal("00000002.history");
    let mut plain = site.near.plain(&history);
    plain.extend(b"# of the other server\n");
    let rival = history.replace(digest_in(&history), &digest(&plain));
    let segments = site.near.keys_with("/wal/00000002/");
    let keep = ["--branch", "--keep", digest_in(&history)];
    site.near.put_back(&rival, &compressed(&site, &plain, "-3"));
    let said = resolve(&site, &keep).run().exits_with(3);
    undecided(&said, "names the same switch point");
    assert!(!is_there(&site.near, &rival) && is_there(&site.near, &history));
    assert_eq!(site.near.keys_with("/wal/00000002/"), segments);
}

#[test]
fn what_lies_behind_a_gap_is_left_and_named() {
    let (site, keys) = idle();
    let rival = store_rival(&site, &keys[2]);
    site.near.remove(&keys[3]);
    let keep = ["--branch", "--keep", digest_in(&keys[2])];
    let said = resolve(&site, &keep).run().exits_with(3);
    undecided(&said, file_in(&keys[4]));
    assert!(is_there(&site.near, &keys[4]) && !is_there(&site.near, &rival));
}

#[test]
fn a_segment_that_is_set_aside_before_later_ones_counts_as_missing_from_then_on() {
    let (site, keys) = idle();
    let noted = || !site.near.keys_with("acknowledged-without-it").is_empty();
    let set_aside = |key: &str| {
        let choice = ["--set-aside", digest_in(key), "--file", file_in(key)];
        resolve(&site, &choice).run().success();
        assert!(!is_there(&site.near, key));
    };
    set_aside(&keys[4]);
    assert!(!noted(), "nothing is behind it");
    set_aside(&keys[2]);
    assert!(noted());
}

#[test]
fn choices_that_contradict_each_other_are_refused_and_nothing_is_moved() {
    let (site, keys) = idle();
    let rival = store_rival(&site, &keys[2]);
    let files = site.near.files();
    let (ours, theirs) = (digest_in(&keys[2]), digest_in(&rival));
    let file = file_in(&keys[2]);
    for choices in [
        &["--keep", ours, "--keep", theirs][..],
        &["--keep", ours, "--set-aside", ours, "--file", file],
    ] {
        let refused = resolve(&site, choices).run().exits_with(2);
        refused.says("contradict each other");
        assert_eq!(site.near.files(), files);
    }
    let agreeing = ["--keep", ours, "--set-aside", theirs, "--file", file];
    resolve(&site, &agreeing).run().success();
    assert!(is_there(&site.near, &keys[2]) && !is_there(&site.near, &rival));
}

#[test]
fn a_whole_copy_of_other_compression_is_taken_and_a_damaged_one_holds_up_no_other_choice() {
    let (site, keys) = idle();
    let put_aside = |key: &str, bytes: &[u8]| {
        let path = site.near.path(&aside(key));
        let mut made = path.parent().unwrap();
        std::fs::create_dir_all(made).unwrap();
        while made != site.near.root() {
            give_to_owner(made);
            made = made.parent().unwrap();
        }
        site.near.put_back(&aside(key), bytes);
    };
    let recompressed = |key: &str| compressed(&site, &site.near.plain(key), "-19");
    let [whole, damaged, free] = [&keys[0], &keys[1], &keys[2]].map(|key| store_rival(&site, key));
    let copy = recompressed(&whole);
    assert!(copy != site.near.bytes(&whole));
    put_aside(&whole, &copy);
    let mut wrong = recompressed(&damaged);
    let middle = wrong.len() / 2;
    wrong[middle] ^= 0x40;
    put_aside(&damaged, &wrong);
    let keep = [&keys[0], &keys[1], &keys[2]].map(|key| ["--keep", digest_in(key)]);
    let refused = resolve(&site, &keep.concat()).run().exits_with(4);
    refused.says("is there already and is damaged");
    assert!(!is_there(&site.near, &whole) && !is_there(&site.near, &free));
    assert!(site.near.bytes(&aside(&whole)) == copy);
    assert!(is_there(&site.near, &damaged) && is_there(&site.near, &keys[1]));
    // As the hint says.
    site.near.remove(&aside(&damaged));
    resolve(&site, &keep.concat()).run().success();
    assert!(is_there(&site.near, &aside(&damaged)) && !is_there(&site.near, &damaged));
}
