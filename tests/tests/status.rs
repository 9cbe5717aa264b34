//! `seawall status`: what it says is so, and what cannot be looked at hides nothing else.

use seawall_tests::daemon::Daemon;
use seawall_tests::site::PATIENCE;
use seawall_tests::{ConfigFile, Repository, Site, Stored, seawall};

#[test]
fn it_says_what_can_be_recovered_what_is_missing_and_what_was_proven() {
    let site = Site::of(15).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    let output = site.seawall("status").run().success();
    output.shows(&[
        "main: PostgreSQL 15, primary",
        "NOTHING: there is no backup with its WAL",
        "never: nothing is proven",
    ]);
    let first = site.backup();
    let mut segments = Vec::new();
    for n in 1..=3 {
        site.cluster.sql(&format!("INSERT INTO t VALUES ({n})"));
        segments.push(site.cluster.archive_all(PATIENCE));
    }
    let whole = status(&site);
    let near = &whole["repositories"][0];
    assert_eq!(near["windows"].as_array().unwrap().len(), 1, "{near:#}");
    assert_eq!(near["windows"][0]["from"], first["stop_time"]);
    assert_eq!(near["newest_recoverable"], near["windows"][0]["to"]);
    assert_eq!(near["gaps"], serde_json::json!([]));
    assert_eq!(near["sizes"]["full"], first["stored_bytes"]);
    assert_eq!(near["backups"][0]["id"], first["id"]);
    assert_eq!(whole["server"]["in_recovery"], false);
    assert_eq!(whole["server"]["backlog"]["files"], 0);
    // The second of three segments is lost: what lies behind it is not recoverable from here.
    let (lost, last) = (&segments[1], &segments[2]);
    site.near.remove(&site.near.one_wal(lost));
    site.archive_far_behind(lost);
    let gap = status(&site);
    let near = &gap["repositories"][0];
    assert_eq!(near["gaps"][0], serde_json::json!([lost, lost]), "{near:#}");
    let newest = |near: &serde_json::Value| near["newest_recoverable"].as_str().unwrap().to_owned();
    assert!(
        newest(near) < newest(&whole["repositories"][0]),
        "not behind {last}"
    );
    let output = site.seawall("status").run().success();
    output.shows(&["GAP", &format!("{lost} to {lost} are missing")]);
    // Another backup begins another span; between them lies the gap.
    site.backup();
    let after = status(&site);
    let windows = &after["repositories"][0]["windows"];
    assert_eq!(windows.as_array().unwrap().len(), 2, "{windows:#}");
    // A backup whose own WAL is lost leads nowhere.
    let segment = after["repositories"][0]["backups"][1]["id"]
        .as_str()
        .unwrap();
    let marker: serde_json::Value = serde_json::from_slice(
        &site.near.bytes(
            site.near
                .keys_with(segment)
                .iter()
                .find(|key| key.ends_with("backup.json"))
                .unwrap(),
        ),
    )
    .unwrap();
    site.near
        .remove(&site.near.one_wal(marker["wal"][0].as_str().unwrap()));
    let broken = status(&site);
    assert!(
        broken["repositories"][0]["backups"][1]["window"].is_null(),
        "{broken:#}"
    );
    let output = site.seawall("status").run().success();
    output.shows(&["BROKEN", "its own WAL is missing"]);
}

#[test]
fn a_repository_and_a_server_that_are_away_are_named_and_the_rest_is_shown() {
    let mut site = Site::of(15).start();
    let away = site.scratch.directory("away");
    let config = ConfigFile::new()
        .cluster(&site.cluster)
        .repository(Repository::local("near", site.near.root()))
        .repository(Repository::local("other", &away))
        .write_to(&site.scratch.join("two.toml"));
    seawall(&config).arg("init").run().success();
    site.backup();
    let other = Stored::at(&away);
    std::fs::rename(other.root(), site.scratch.join("gone")).unwrap();
    let output = seawall(&config).arg("status").run().exits_with(1);
    output.shows(&["ERROR", "live RPO", "PostgreSQL 15, primary"]);
    site.cluster.stop(seawall_tests::postgres::Stop::Fast);
    let output = seawall(&config).arg("status").run().exits_with(1);
    output.shows(&["the server CANNOT BE ASKED", "live RPO"]);
    // Each look of `--follow` is one line, and goes on after what failed.
    let following = seawall(&config).args(["status", "--follow"]).start();
    seawall_tests::wait_until("a look", PATIENCE, || following.stdout().ends_with('\n'));
    let said = following.kill().stdout;
    let look: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert_eq!(look["cluster"], "main");
    assert!(look["server"]["error"].is_string(), "{look:#}");
    assert!(look["repositories"][1]["error"].is_string(), "{look:#}");
    assert!(look["repositories"][0]["error"].is_null(), "{look:#}");
}

fn status(site: &Site) -> serde_json::Value {
    let output = site.seawall("status").arg("--json").run().success();
    output.json()["clusters"][0].clone()
}

#[test]
fn logs_are_json_where_that_is_asked_for() {
    let site = Site::of(15).start();
    let state = site.scratch.directory("state");
    let tables = format!(
        "[daemon]\nstate_directory = \"{}\"\n[http]\nlisten = \"off\"\n[schedule]\nfull = \"@daily\"\n",
        state.display()
    );
    let config = ConfigFile::new()
        .cluster(&site.cluster)
        .repository(Repository::local("near", site.near.root()))
        .extra(&tables)
        .write_to(&site.scratch.join("daemon.toml"));
    let json = ("SEAWALL_LOG_FORMAT", "json");
    let lines = |log: &str| -> Vec<serde_json::Value> {
        let lines = log.lines().filter(|line| !line.is_empty());
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        lines.map(parse).collect()
    };
    // What its commands say is read by the daemon, and comes out of it as JSON, too.
    let daemon = Daemon::run(Daemon::calling(&config).env(json.0, json.1));
    daemon.wait_for("main full: done");
    let log = daemon.stop().stderr;
    let said = lines(&log);
    assert!(said.iter().any(|line| line["level"] == "INFO"), "{log}");
    let of_its_backup = |line: &serde_json::Value| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.starts_with("main full: "))
    };
    assert!(
        said.iter().filter(|line| of_its_backup(line)).count() > 1,
        "{log}"
    );
    // An error has its exit code.
    let call = seawall(&config).args(["backup", "--repository", "nowhere"]);
    let output = call.with(|run| run.env(json.0, json.1)).run().exits_with(2);
    let said = lines(&output.stderr);
    let error = said.last().expect("an error");
    assert_eq!(error["level"], "ERROR");
    assert_eq!(error["exit"], 2);
    assert!(
        error["message"].as_str().unwrap().contains("nowhere"),
        "{error}"
    );
}
