//! What `seawall list` says of time, and of records that it cannot read; and that such a record
//! takes nothing else with it.

use seawall::digest::StoredDigest;
use seawall_tests::site::PATIENCE;
use seawall_tests::{Moment, Site};
use serde_json::Value;

fn listed(site: &Site) -> Value {
    let call = site.seawall("list").arg("--json");
    call.run().success().json()["repositories"][0]["systems"][0].clone()
}

/// The window of a backup, by its marker.
fn window(site: &Site, backup: &Value) -> Value {
    let listed = listed(site);
    let mut backups = listed["backups"].as_array().unwrap().iter();
    let backup = backups.find(|other| other["id"] == backup["id"]);
    backup.expect("the backup is listed")["window"].clone()
}

/// Commits a row and returns the very stamp of its commit.
fn commit(site: &Site) -> Moment {
    let stamp = site.cluster.sql(
        "WITH x AS (INSERT INTO t VALUES (1) RETURNING 1) SELECT count(*) FROM x;
         SELECT (extract(epoch FROM (pg_last_committed_xact()).timestamp) * 1000000)::bigint",
    );
    Moment(stamp.lines().last().unwrap().parse().unwrap())
}

fn moment(value: &Value) -> i64 {
    let time: jiff::Timestamp = value
        .as_str()
        .unwrap_or_else(|| panic!("{value}"))
        .parse()
        .unwrap();
    time.as_microsecond()
}

/// A JSON object with another format, sealed as a newer version would seal it.
fn newer(bytes: &[u8]) -> Vec<u8> {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let text = text.replace("\"format\": 1,", "\"format\": 7,");
    let (before, _) = text.rsplit_once("  \"sha256\": ").unwrap();
    let seal = StoredDigest::of(before.as_bytes());
    format!("{before}  \"sha256\": \"{seal}\"\n}}\n").into_bytes()
}

#[test]
fn the_window_ends_with_the_last_archived_commit_and_is_unknown_where_that_cannot_be_read() {
    let site = Site::of(15).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    let first = site.backup();
    let idle = window(&site, &first);
    assert_eq!(idle["from"], first["stop_time"]);
    assert_eq!(idle["to"], Value::Null);
    assert!(
        idle["unknown"]
            .as_str()
            .unwrap()
            .contains("no transaction ended"),
        "{idle}"
    );

    commit(&site);
    let second = site.backup();
    let last = commit(&site);
    site.cluster.archive_all(PATIENCE);
    // Nothing ends here: the commit lies in the segment before.
    site.cluster.archive_all(PATIENCE);
    for backup in [&first, &second] {
        let window = window(&site, backup);
        assert_eq!(window["from"], backup["stop_time"]);
        assert_eq!(moment(&window["to"]), last.0, "{window}");
    }
    // Both ends are what they say: just before the last one can go, and no later.
    let to = site.scratch.join("restored");
    let before = Moment(last.0 - 1).to_string();
    site.restoring(&to)
        .args(["--time", &before])
        .run()
        .success();
    std::fs::remove_dir_all(&to).unwrap();
    let refused = site
        .restoring(&to)
        .args(["--time", &last.to_string()])
        .run();
    refused.exits_with(5);
    let text = site.seawall("list").run().success().stdout;
    assert!(text.contains("recovers from"), "{text}");
    assert!(text.contains(&last.to_string()[..19]), "{text}");

    // A commit that is not archived yet is not in it.
    commit(&site);
    assert_eq!(moment(&window(&site, &second)["to"]), last.0);

    let segment = site.near.wal_after(&second).pop().unwrap();
    let whole = site.near.replace(&segment, b"no zstd");
    let unknown = window(&site, &second);
    assert_eq!(unknown["to"], Value::Null);
    let name = &segment.rsplit('/').next().unwrap()[..24];
    assert!(
        unknown["unknown"].as_str().unwrap().contains(name),
        "{unknown}"
    );
    let text = site.seawall("list").run().success().stdout;
    assert!(text.contains("unknown") && text.contains(name), "{text}");
    // Cut short behind its last record: the checksum at its end is gone.
    site.near.replace(&segment, &whole[..whole.len() - 1]);
    assert_eq!(window(&site, &second)["to"], Value::Null);
    site.near.replace(&segment, &whole);
    assert_eq!(moment(&window(&site, &second)["to"]), last.0);
}

#[test]
fn a_damaged_or_newer_marker_is_reported_and_hides_no_other_backup() {
    let site = Site::of(15).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    let (first, second) = (site.backup(), site.backup());
    site.cluster.archive_all(PATIENCE);
    let id = |backup: &Value| backup["id"].as_str().unwrap().to_owned();
    let marker = |backup: &Value| {
        site.near
            .keys_with(&format!("{}/backup.json", id(backup)))
            .remove(0)
    };
    let key = marker(&second);
    let whole = site.near.bytes(&key);
    let to = site.scratch.join("restored");
    for (broken, why) in [
        (whole[..whole.len() / 2].to_vec(), "is damaged"),
        (newer(&whole), "has format 7"),
        (b"{}".to_vec(), "is damaged"),
    ] {
        site.near.replace(&key, &broken);
        let listed = listed(&site);
        assert_eq!(listed["backups"].as_array().unwrap().len(), 1);
        assert_eq!(listed["backups"][0]["id"], first["id"]);
        assert_eq!(listed["unfinished_backups"], serde_json::json!([]));
        assert_eq!(listed["unreadable"][0]["backup"], second["id"]);
        let said = listed["unreadable"][0]["why"].as_str().unwrap();
        assert!(said.contains(why) && said.contains(&key), "{said}");
        let output = site.seawall("list").run().success();
        assert!(
            output
                .stdout
                .contains(&format!("UNREADABLE: backup {}", id(&second)))
        );
        output.says(why);
        let output = site.seawall("check").run().exits_with(3);
        assert!(output.stdout.contains(why), "{}", output.stdout);

        let output = site.restoring(&to).arg("--json").run().success();
        assert_eq!(output.json()["backup"], first["id"]);
        output.says(&key);
        std::fs::remove_dir_all(&to).unwrap();
        // Asked for, it is an error that names it.
        let output = site.restoring(&to).args(["--backup", &id(&second)]).run();
        output.exits_with(1).says(why).says(&key);
        assert!(!to.exists());
        // So it is where it may be what leads to the target.
        let early = first["start_lsn"].as_str().unwrap();
        let output = site.restoring(&to).args(["--lsn", early]).run();
        output
            .exits_with(1)
            .says(why)
            .says("no backup ends before")
            .says("earliest moment");
        // A backup that is whole is no worse for it.
        let output = site.restoring(&to).args(["--backup", &id(&first)]).run();
        output.success();
        std::fs::remove_dir_all(&to).unwrap();
    }
    let first_key = marker(&first);
    let first_whole = site.near.flip(&first_key, 100);
    let output = site.restoring(&to).run().exits_with(1);
    output.says(&key).says(&first_key);
    site.near.replace(&first_key, &first_whole);
    site.near.replace(&key, &whole);
    let output = site.restoring(&to).arg("--json").run().success();
    assert_eq!(output.json()["backup"], second["id"]);
}

#[test]
fn a_damaged_or_newer_restore_point_is_reported_and_hides_no_other() {
    let site = Site::of(15).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    site.backup();
    for name in ["one", "two"] {
        site.seawall("restore-point").arg(name).run().success();
    }
    site.cluster.archive_all(PATIENCE);
    let key = site.near.keys_with("/points/two-").remove(0);
    let whole = site.near.bytes(&key);
    let to = site.scratch.join("restored");
    for broken in [newer(&whole), whole[..whole.len() - 9].to_vec()] {
        site.near.replace(&key, &broken);
        let listed = listed(&site);
        assert_eq!(listed["restore_points"].as_array().unwrap().len(), 1);
        assert_eq!(listed["restore_points"][0]["name"], "one");
        assert_eq!(listed["unreadable"][0]["key"].as_str(), Some(key.as_str()));
        site.restoring(&to).args(["--name", "one"]).run().success();
        std::fs::remove_dir_all(&to).unwrap();
    }
    // The WAL holds it all the same, and from there it is recorded anew.
    site.restoring(&to).args(["--name", "two"]).run().success();
    assert_eq!(listed(&site)["restore_points"].as_array().unwrap().len(), 2);
}
