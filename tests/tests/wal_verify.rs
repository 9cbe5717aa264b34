//! `seawall wal verify`: reads what is stored and finds every kind of damage, also WAL of
//! another branch that is whole in itself; goes on where it was interrupted.

use std::process::Command;

use nix::sys::signal::Signal;
use seawall_tests::process::peak_memory;
use seawall_tests::site::PATIENCE;
use seawall_tests::stored::digest;
use seawall_tests::{Cluster, Output, PostgresVersion, Segment, Site, wait_until};

/// A site with segments of 1 MiB on two timelines, and a file of each kind.
fn archived() -> (Site, Cluster) {
    archived_by(15)
}

fn archived_by(major: u32) -> (Site, Cluster) {
    let builder = Cluster::builder(PostgresVersion::find(major)).segment_size(1);
    let mut site = Site::with(builder).start();
    site.cluster.sql("CREATE TABLE t (what text)");
    site.backup();
    let mut standby = site.cluster.standby(&site.scratch, "standby");
    standby.start();
    write_segments(&site.cluster, 4);
    // The last segment of the first timeline is left in its middle.
    site.cluster.sql("INSERT INTO t VALUES ('x')");
    standby.wait_until_caught_up(&site.cluster, PATIENCE);
    site.cluster.kill();
    standby.promote();
    write_segments(&standby, 4);
    standby.wait_until_archived("00000002.history", PATIENCE);
    wait_until("the partial segment is archived", PATIENCE, || {
        !site.near.keys_with(".partial-").is_empty()
    });
    (site, standby)
}

fn write_segments(cluster: &Cluster, count: usize) {
    for _ in 0..count {
        // More than one segment each: records cross their borders.
        cluster.sql("INSERT INTO t SELECT repeat('x', 200) FROM generate_series(1, 6000)");
        cluster.archive_all(PATIENCE);
    }
}

fn verify(site: &Site, args: &[&str]) -> Output {
    let call = site.seawall("wal").arg("verify");
    call.args(args).run()
}

/// Kind and key of each finding.
fn findings(site: &Site, args: &[&str]) -> Vec<(String, String)> {
    let output = verify(site, &[args, &["--json"]].concat());
    let report = output.json();
    let found = report["systems"][0]["findings"].as_array().unwrap();
    assert_eq!(output.code, if found.is_empty() { 0 } else { 3 });
    assert_eq!(report["passed"], found.is_empty());
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    found
        .iter()
        .map(|finding| (text(&finding["kind"]), text(&finding["key"])))
        .collect()
}

fn segments(site: &Site, timeline: &str) -> Vec<String> {
    let keys = site
        .near
        .keys_with(&format!("/wal/{timeline}/"))
        .into_iter();
    keys.filter(|key| {
        let name = key.rsplit('/').next().unwrap();
        name.find(['-', '.']) == Some(24) && name.as_bytes()[24] == b'-'
    })
    .collect()
}

/// `plain` as an object of the file `name`, under the key that its content deserves.
fn store(site: &Site, like: &str, name: &str, plain: &[u8]) -> String {
    let directory = &like[..like.rfind('/').unwrap()];
    let key = format!("{directory}/{name}-{}.zst", digest(plain));
    let raw = site.scratch.file("plain", plain);
    let output = Command::new("zstd")
        .args(["-q", "-c"])
        .arg(raw)
        .output()
        .unwrap();
    assert!(output.status.success());
    site.near.put_back(&key, &output.stdout);
    key
}

fn name_in(key: &str) -> &str {
    &key.rsplit('/').next().unwrap()[..24]
}

#[test]
fn what_two_timelines_archived_is_whole_and_a_flipped_byte_in_each_class_is_caught() {
    let (site, _standby) = archived();
    let report = verify(&site, &["--json"]).success().json();
    let stored = site.near.keys_with("/wal/");
    let progress = &report["systems"][0];
    assert_eq!(progress["objects"], stored.len(), "{progress}");
    assert_eq!(progress["complete"], true);
    let bytes: usize = stored.iter().map(|key| site.near.bytes(key).len()).sum();
    assert_eq!(progress["stored_bytes"], bytes);
    let (first, second) = (segments(&site, "00000001"), segments(&site, "00000002"));
    assert!(first.len() > 6 && second.len() > 6, "{first:?} {second:?}");

    let class = |part: &str| site.near.keys_with(part)[0].clone();
    for key in [
        first[2].clone(),
        second[0].clone(),
        class(".partial-"),
        class(".backup-"),
        class(".history-"),
    ] {
        let length = site.near.bytes(&key).len();
        for at in [0, 4, length / 2, length - 1] {
            let old = site.near.flip(&key, at);
            let found = findings(&site, &["--jobs", "4"]);
            let damaged = ("damaged".to_owned(), key.clone());
            assert_eq!(found, [damaged], "byte {at} of {length}");
            site.near.put_back(&key, &old);
        }
        let old = site.near.bytes(&key);
        site.near.replace(&key, &old[..length - 3]);
        assert_eq!(findings(&site, &[])[0].0, "damaged", "{key} cut short");
        site.near.put_back(&key, &old);
    }
    let text = verify(&site, &[]).success();
    assert!(text.stdout.contains("0 findings"), "{}", text.stdout);
    // A part only.
    let only = verify(&site, &["--timeline", "2", "--json"])
        .success()
        .json();
    let of_second = site.near.keys_with("/wal/00000002");
    assert_eq!(only["systems"][0]["objects"], of_second.len());
    let from = verify(&site, &["--from", name_in(&second[3]), "--json"]).success();
    let count = of_second.len() - 1 - 3 + site.near.keys_with(".history-").len();
    assert_eq!(from.json()["systems"][0]["objects"], count);
}

#[test]
fn wal_that_is_whole_in_itself_and_does_not_belong_there_is_caught() {
    let (site, _standby) = archived();
    let segments = segments(&site, "00000002");
    let (before, key) = (&segments[3], &segments[4]);
    let plain = site.near.plain(key);
    let name = name_in(key);
    let old = site.near.remove(key);

    // Another server's: the same place, other records.
    let number = u64::from_str_radix(&name[16..], 16).unwrap();
    let other = Segment(site.near.plain(before)).numbered(number);
    let planted = store(&site, key, name, &other.0);
    let broken = findings(&site, &[]);
    assert!(
        broken.contains(&("broken".to_owned(), planted.clone())),
        "{broken:?}"
    );
    let said = verify(&site, &[]).exits_with(3).stdout;
    assert!(said.contains(&planted), "{said}");
    // Both: a conflict. One of them fits.
    site.near.put_back(key, &old);
    let conflict = findings(&site, &[]);
    assert!(
        conflict.iter().any(|(kind, _)| kind == "conflict"),
        "{conflict:?}"
    );
    assert!(
        !conflict.contains(&("broken".to_owned(), key.clone())),
        "{conflict:?}"
    );
    site.near.remove(&planted);

    // The first segment of a part that is verified alone is compared with the one before it.
    let planted = {
        site.near.remove(key);
        store(&site, key, name, &other.0)
    };
    let first = findings(&site, &["--from", name]);
    assert!(
        first.contains(&("broken".to_owned(), planted.clone())),
        "{first:?}"
    );
    site.near.remove(&planted);

    // Content of another name, another length, another system, none of PostgreSQL's.
    let whole = Segment(plain);
    for wrong in [
        whole.clone().numbered(number + 1),
        whole.clone().length(1 << 19),
        whole.clone().length(1 << 21),
        whole.clone().system(7),
        whole.clone().magic(0x1234),
    ] {
        let planted = store(&site, key, name, &wrong.0);
        let found = findings(&site, &[]);
        assert!(
            found.contains(&("damaged".to_owned(), planted.clone())),
            "{found:?}"
        );
        site.near.remove(&planted);
    }
    // A history that is none, and an object that no reader would find.
    let history = site.near.keys_with(".history-")[0].clone();
    let planted = store(&site, &history, "00000007.history", b"nonsense\n");
    let stray = key.replace("/00000002/", "/00000009/");
    site.near.put_back(key, &old);
    std::fs::create_dir_all(site.near.path(&stray).parent().unwrap()).unwrap();
    std::fs::copy(site.near.path(key), site.near.path(&stray)).unwrap();
    seawall_tests::scratch::give_tree_to_owner(site.near.root());
    let found: Vec<String> = findings(&site, &[]).into_iter().map(|f| f.1).collect();
    assert_eq!(found, [planted, stray]);
}

#[test]
fn what_could_not_be_read_is_read_again_by_the_same_command_and_nothing_before_it() {
    let (site, _standby) = archived();
    let segments = segments(&site, "00000001");
    let flip = |key: &str| site.near.flip(key, site.near.bytes(key).len() / 2);
    flip(&segments[1]);
    // No server with segments of this size writes it.
    let number = format!("{}FFFFFFFF", &name_in(&segments[0])[..16]);
    let stray = store(&site, &segments[0], &number, &site.near.plain(&segments[0]));
    let stray = ("stray".to_owned(), stray);
    let state = site.scratch.directory("state").join("verify.json");
    let resume = ["--resume", state.to_str().unwrap(), "--json"];
    let faults = format!("get[{}]=403", segments[3].rsplit('-').next().unwrap());
    let call = site.seawall("wal").arg("verify").args(resume);
    let unread = call.with(|run| run.env("SEAWALL_TEST_FAULTS", &faults));
    let unread = unread.run().exits_with(3);
    let unread = unread.says("run the same command again");
    assert!(unread.stdout.contains("\"unread\""), "{}", unread.stdout);
    // What is before it is not read again, what is behind it is.
    flip(&segments[2]);
    flip(&segments[4]);
    let damaged = |key: &String| ("damaged".to_owned(), key.clone());
    let found = findings(&site, &resume[..2]);
    assert_eq!(found, [damaged(&segments[1]), damaged(&segments[4]), stray]);
    assert!(!state.exists());
}

#[test]
fn an_interrupted_run_says_how_to_go_on_and_goes_on_there() {
    let (site, _standby) = archived();
    let segments = segments(&site, "00000001");
    let middle = |key: &String| site.near.bytes(key).len() / 2;
    site.near.flip(&segments[1], middle(&segments[1]));
    let all = site.near.keys_with("/wal/").len();
    // The store stops to answer in the middle, so that there is time to interrupt it.
    let state = site.scratch.directory("state").join("verify.json");
    let slow = |args: &[&str]| {
        let call = site
            .seawall("wal")
            .args(["verify", "--jobs", "1"])
            .args(args);
        call.with(|run| run.env("SEAWALL_TEST_FAULTS", "get[/00000002/]@5+=hang"))
    };
    let stopped = |running: &mut seawall_tests::Running, signal| {
        std::thread::sleep(std::time::Duration::from_secs(5));
        assert!(running.is_running());
        running.signal(signal);
    };
    let resume = ["--resume", state.to_str().unwrap()];
    let mut running = slow(&resume).start();
    stopped(&mut running, Signal::SIGINT);
    running
        .wait()
        .exits_with(1)
        .says("run the same command again");
    let saved: serde_json::Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
    let next = saved["systems"][0]["next"].as_str().unwrap().to_owned();
    // Another question is not answered from there.
    let other = [&resume[..], &["--timeline", "2"]].concat();
    verify(&site, &other).exits_with(2);
    // What was verified already is not read again, and what was found is kept.
    let passed = segments
        .iter()
        .rfind(|key| *name_in(key) < *next && **key != segments[1]);
    let passed = passed.expect("some were passed");
    site.near.flip(passed, middle(passed));
    let done = verify(&site, &[&resume[..], &["--json"]].concat())
        .exits_with(3)
        .json();
    let progress = &done["systems"][0];
    assert_eq!(progress["objects"], all);
    assert_eq!(
        progress["findings"].as_array().unwrap().len(),
        1,
        "{progress}"
    );
    assert_eq!(progress["findings"][0]["key"], segments[1]);
    assert!(!state.exists());
    assert_eq!(findings(&site, &[]).len(), 2);

    // Without a file it says from where.
    let mut running = slow(&[]).start();
    stopped(&mut running, Signal::SIGTERM);
    running.wait().says("to go on, add --from 0000000");
}

#[test]
fn the_wal_of_other_versions_goes_on_from_segment_to_segment_across_a_promotion() {
    for major in [16, 18] {
        whole(major);
    }
}

#[test]
#[ignore = "long: two more versions"]
fn the_wal_of_still_other_versions_goes_on_from_segment_to_segment_across_a_promotion() {
    for major in [14, 17] {
        whole(major);
    }
}

fn whole(major: u32) {
    let (site, _standby) = archived_by(major);
    assert_eq!(findings(&site, &[]), [], "PostgreSQL {major}");
    assert!(segments(&site, "00000002").len() > 6);
}

#[test]
fn segments_of_128_mib_are_verified_in_a_fraction_of_their_size() {
    const FIRST: &str = "000000010000000000000001";
    let site = Site::with(Cluster::builder(PostgresVersion::find(15)).segment_size(128));
    let mut segment = Segment::read(site.wal(FIRST));
    // Content that does not compress to nothing.
    let mut state = 88_172_645_463_325_252u64;
    for word in segment.0[8192..].as_chunks_mut::<8>().0 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *word = state.to_le_bytes();
    }
    for number in 0..3 {
        let name = format!("0000000100000000{number:08X}");
        let path = site.scratch.file(&name, segment.clone().numbered(number).0);
        let call = seawall_tests::archive(&site.config).arg(path);
        call.with(|run| run.directory(site.cluster.data()))
            .run()
            .success();
    }
    let call = site.seawall("wal").args(["verify", "--jobs", "2"]);
    let mut running = call.start();
    let peak = peak_memory(&mut running);
    let verified = running.wait();
    // Their records end at once: each is whole, and none goes on from the one before.
    assert!(verified.exits_with(3).stdout.contains("3 objects"));
    assert!(peak > 0 && peak < 80 << 10, "{peak} KiB");
}
