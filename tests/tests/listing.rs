//! What `seawall list` says of time, and of records that it cannot read; and that such a record
//! takes nothing else with it.

use seawall_tests::postgres::Stop;
use seawall_tests::site::PATIENCE;
use seawall_tests::{ConfigFile, Moment, Repository, Site, sealed, segment, stored, wait_until};
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

/// A JSON object with another format, as a newer version would write it.
fn newer(bytes: &[u8]) -> Vec<u8> {
    let mut object: Value = serde_json::from_slice(bytes).unwrap();
    object["format"] = 7.into();
    sealed(object)
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

/// The key of a second object, with other content, beside that of a WAL file.
fn second_content(key: &str) -> String {
    let (name, _) = key.rsplit_once('-').unwrap();
    format!("{name}-{}.zst", stored::digest(b"other"))
}

#[test]
fn what_lies_behind_a_conflict_is_neither_listed_as_reached_nor_restored_to() {
    let site = Site::of(15).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    let backup = site.backup();
    commit(&site);
    let reached = commit(&site);
    site.cluster.archive_all(PATIENCE);
    commit(&site);
    let twice = site.cluster.archive_all(PATIENCE);
    let behind = commit(&site);
    commit(&site);
    site.cluster.archive_all(PATIENCE);
    let whole = window(&site, &backup);
    assert!(moment(&whole["to"]) > behind.0, "{whole}");

    let key = site.near.one_wal(&twice);
    site.near
        .put_back(&second_content(&key), &site.near.bytes(&key));
    let listed = listed(&site);
    let start = segment::number(&twice) << 24;
    let start = format!("{:X}/{:X}", start >> 32, start & 0xffff_ffff);
    assert_eq!(listed["backups"][0]["reach"]["end"], start.as_str());
    assert_eq!(listed["timelines"][0]["conflicts"][0], twice.as_str());
    let cut = window(&site, &backup);
    assert_eq!(moment(&cut["to"]), reached.0, "{cut}");

    let to = site.scratch.join("restored");
    for time in [reached.0, behind.0] {
        let time = Moment(time).to_string();
        let output = site.restoring(&to).args(["--time", &time]).run();
        output
            .exits_with(4)
            .says(&twice)
            .says("different contents")
            .says("seawall wal resolve");
        assert!(!to.exists());
    }
    for target in [
        vec!["--immediate".to_owned()],
        vec!["--time".to_owned(), Moment(reached.0 - 1).to_string()],
    ] {
        site.restoring(&to).args(target).run().success();
        std::fs::remove_dir_all(&to).unwrap();
    }
}

#[test]
fn a_history_that_cannot_be_used_hides_nothing_and_stops_only_who_goes_there() {
    let site = Site::of(15).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    let backup = site.backup();
    site.cluster.archive_all(PATIENCE);
    let mut second = site.restore_and_start("second", &["--archive", "on"]);
    second.sql("INSERT INTO t VALUES (0)");
    second.archive_all(PATIENCE);
    second.wait_until_archived("00000002.history", PATIENCE);
    second.stop(Stop::Fast);

    let id = backup["id"].as_str().unwrap();
    let key = site.near.one_wal("00000002.history");
    let whole = site.near.bytes(&key);
    let other = second_content(&key);
    let first = ["--timeline", "1", "--backup", id, "--immediate"];
    for (name, code) in [("conflict", 4), ("damage", 1)] {
        match code {
            4 => site.near.put_back(&other, &whole),
            _ => drop(site.near.flip(&key, whole.len() / 2)),
        }
        let listed = listed(&site);
        assert_eq!(listed["backups"].as_array().unwrap().len(), 1, "{name}");
        assert_eq!(listed["backups"][0]["reach"]["timeline"], 1, "{name}");
        assert_eq!(listed["timelines"].as_array().unwrap().len(), 2, "{name}");
        assert_eq!(listed["unreadable"][0]["timeline"], 2, "{name}");
        let text = site.seawall("list").run().success().stdout;
        let line = "UNREADABLE: the history of timeline 2: 00000002.history";
        assert!(text.contains(line), "{text}");
        let check = site.seawall("check").run().exits_with(3).stdout;
        assert!(check.contains("00000002.history"), "{check}");
        assert!(
            check.contains(&format!("the newest backup is {id}")),
            "{check}"
        );

        let to = site.scratch.join(format!("{name}-data"));
        for args in [&[][..], &["--timeline", "2"]] {
            let output = site.restoring(&to).args(args).run().exits_with(code);
            output.says("00000002.history");
            assert!(!to.exists());
        }
        let output = site.restoring(&to).args(first).run().success();
        output.says("PostgreSQL will ask for 00000002.history when it opens");
        let mut restored = site.adopt(name, &to);
        restored.start();
        restored.wait_until_recovered(PATIENCE);
        assert_eq!(restored.sql("SELECT count(*) FROM t"), "0");
        // It stops where the warning says, and goes on once that is settled.
        let _ = restored.try_sql("SELECT pg_promote(true, 5)");
        wait_until("PostgreSQL stops", PATIENCE, || !restored.is_running());
        let log = restored.log();
        let stopped = "could not restore file \"00000002.history\" from archive";
        assert!(log.contains(stopped), "{log}");
        match code {
            4 => drop(site.near.remove(&other)),
            _ => drop(site.near.replace(&key, &whole)),
        }
        restored.start();
        restored.wait_until_recovered(PATIENCE);
        restored.promote();
        assert_eq!(restored.sql("SELECT count(*) FROM t"), "0");
        restored.stop(Stop::Immediate);
    }

    // On its way to a later timeline PostgreSQL asks for the history in between, too.
    let third = site.scratch.file("00000003.history", site.near.plain(&key));
    seawall_tests::archive(&site.config)
        .arg(third)
        .run()
        .success();
    site.near.put_back(&other, &whole);
    let to = site.scratch.join("third-data");
    let output = site.restoring(&to).run().exits_with(4);
    output.says("00000002.history is archived with different contents");
    assert!(!to.exists());
    site.near.remove(&other);
    site.restoring(&to).run().success();
}

#[test]
fn a_damaged_drill_record_hides_no_other_and_fails_neither_list_nor_check() {
    let site = Site::of(15).start();
    let backup = site.backup();
    let id = backup["id"].as_str().unwrap();
    let stored = "main/drills";
    std::fs::create_dir_all(site.near.root().join(stored)).unwrap();
    let started = jiff::Timestamp::now();
    let good = sealed(serde_json::json!({
        "format": 1, "id": "good", "backup": id, "started": started, "passed": true,
    }));
    site.near.put_back(&format!("{stored}/good.json"), &good);
    let bad = format!("{stored}/bad.json");
    for damaged in [&b"{}"[..], &good[1..], b""] {
        site.near.put_back(&bad, damaged);
        let output = site.seawall("list").arg("--json").run().success();
        let output = output.says(&bad).says("is damaged");
        let listed = &output.json()["repositories"][0]["systems"][0];
        assert_eq!(listed["backups"][0]["last_drill"]["passed"], true);
        let check = site.seawall("check").run();
        assert!(
            check.stdout.contains("the last drill passed"),
            "{}",
            check.stdout
        );
    }
}

#[test]
fn a_repository_that_cannot_be_listed_hides_no_other_and_the_exit_code_tells() {
    let site = Site::of(15).start();
    let backup = site.backup();
    let gone = site.scratch.join("gone");
    let config = ConfigFile::new()
        .cluster_as("main", &site.cluster, "postgres")
        .repository(Repository::local("gone", &gone))
        .repository(Repository::local("near", site.near.root()))
        .write_to(&site.scratch.join("two.toml"));
    let list = || seawall_tests::seawall(&config).arg("list");
    let output = list().arg("--json").run().exits_with(1);
    let listed = output.json();
    let error = listed["repositories"][0]["error"].as_str().unwrap();
    assert!(error.contains("gone"), "{error}");
    let near = &listed["repositories"][1];
    assert_eq!(near["error"], Value::Null);
    assert_eq!(near["systems"][0]["backups"][0]["id"], backup["id"]);
    let text = list().run().exits_with(1).says("gone").stdout;
    assert!(text.contains("NOT LISTED"), "{text}");
    assert!(text.contains(backup["id"].as_str().unwrap()), "{text}");
}

#[test]
fn a_stray_object_fails_nothing_and_a_misplaced_segment_is_not_there() {
    let site = Site::of(15).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    site.backup();
    commit(&site);
    let name = site.cluster.archive_all(PATIENCE);
    commit(&site);
    site.cluster.archive_all(PATIENCE);
    let key = site.near.one_wal(&name);
    let (directory, file) = key.rsplit_once('/').unwrap();
    // No segment of 16 MiB has such a number.
    let stray = file.replace(&name, &format!("{}FFFFFFFF", &name[..16]));
    site.near
        .put_back(&format!("{directory}/{stray}"), b"stray");
    let before = listed(&site);
    assert_eq!(before["timelines"][0]["gaps"], serde_json::json!([]));
    let check = site.seawall("check").run().stdout;
    assert!(check.contains("has no gaps and no conflicts"), "{check}");
    site.backup();

    site.archive_far_behind(&name);
    let (timeline, _) = directory.rsplit_once('/').unwrap();
    let elsewhere = format!("{timeline}/00000007");
    std::fs::create_dir_all(site.near.root().join(&elsewhere)).unwrap();
    let bytes = site.near.remove(&key);
    site.near.put_back(&format!("{elsewhere}/{file}"), &bytes);
    let gap = [name.as_str(), name.as_str()];
    let gaps = listed(&site)["timelines"][0]["gaps"].clone();
    assert_eq!(gaps[0], serde_json::json!(gap), "{gaps}");
    let check = site.seawall("check").run().exits_with(3).stdout;
    assert!(check.contains("WAL is missing") && check.contains(&name));
    site.fetch(&name).exits_with(200);
}
