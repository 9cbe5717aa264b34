//! What a real drill hands over: every key of its JSON is in the document, JUnit tells CI the
//! same verdict, and the past is there when it is asked for.

use std::collections::BTreeSet;
use std::path::Path;

use seawall_tests::cli::drill;
use seawall_tests::postgres::Cluster;
use seawall_tests::process::Output;
use seawall_tests::seawall;
use seawall_tests::site::{PATIENCE, Site};
use seawall_tests::version::PostgresVersion;
use serde_json::Value;

const SETTINGS: &str = "\
[objectives]
rpo = '1h'
rto = '1h'
[[drill.check]]
name = 'rows'
sql = 'SELECT count(*) FROM t'
equals = '5000'
";

fn site() -> Site {
    let builder = Cluster::builder(PostgresVersion::find(15));
    let site = Site::configured(builder, |file| file.extra(SETTINGS)).start();
    site.cluster
        .sql("CREATE TABLE t AS SELECT x FROM generate_series(1, 5000) x");
    site.backup();
    site.cluster.sql("CREATE TABLE later ()");
    site.cluster.archive_all(PATIENCE);
    site
}

fn drilled(site: &Site, arguments: &[&str]) -> Output {
    drill(&site.config)
        .arg("--scratch")
        .arg(site.scratch.path())
        .args(arguments)
        .run()
}

/// As seawall-drill takes it: the verb comes first.
fn history(site: &Site, arguments: &[&str]) -> Output {
    seawall(&site.config)
        .args(["drill", "history"])
        .args(arguments)
        .run()
}

fn document() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/drill-report.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, chapter) = text.split_once("## The JSON").unwrap();
    let rows = chapter.lines().filter(|line| line.starts_with("| `"));
    let keys = rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2));
    keys.map(str::to_owned).collect()
}

/// The path of every value that is neither an object nor null, with `[]` for items of lists.
fn paths(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(_) if at == "rows" => {
            found.insert("rows.DATABASE.TABLE".to_owned());
        }
        Value::Object(object) => {
            for (key, value) in object {
                let dot = if at.is_empty() { "" } else { "." };
                paths(value, &format!("{at}{dot}{key}"), found);
            }
        }
        Value::Array(items) => {
            for item in items {
                paths(item, &format!("{at}[]"), found);
            }
        }
        // What is unknown may stand for a whole object.
        Value::Null => {}
        _ => {
            found.insert(at.to_owned());
        }
    }
}

#[test]
fn every_key_of_a_real_report_is_documented() {
    let site = site();
    let documented = document();
    let mut keys = BTreeSet::new();
    // The second has a past, a target, and a check that failed.
    let first = drilled(&site, &["--json"]).success().json();
    site.cluster.sql("INSERT INTO t VALUES (0)");
    site.cluster.archive_all(PATIENCE);
    let now = site.cluster.sql("SELECT pg_switch_wal()").trim().to_owned();
    site.cluster.archive_all(PATIENCE);
    let second = drilled(&site, &["--json", "--lsn", &now])
        .exits_with(3)
        .json();
    for report in [&first, &second] {
        paths(report, "", &mut keys);
    }
    assert!(keys.contains("trend[].rto_seconds"), "{keys:#?}");
    let unnamed: Vec<_> = keys.difference(&documented).collect();
    assert!(
        unnamed.is_empty(),
        "docs/drill-report.md lacks {unnamed:#?}"
    );
    // And each key that is always there is there.
    for key in [
        "format",
        "rto.phases[].seconds",
        "evidence[].exit",
        "checks[].outcome",
    ] {
        assert!(keys.contains(key) && documented.contains(key), "{key}");
    }
    assert_eq!(second["trend"][0]["id"], first["id"]);
    assert_eq!(second["trend"][0]["passed"], true);
}

#[test]
fn all_forms_of_a_report_tell_the_same_verdict() {
    let site = site();
    site.cluster.sql("INSERT INTO t VALUES (0)");
    site.cluster.archive_all(PATIENCE);
    let reports = site.scratch.directory("reports");
    let output = drilled(&site, &["--report", &reports.display().to_string()]).exits_with(3);
    let read = |name: &str| std::fs::read_to_string(reports.join(name)).unwrap();
    let json: Value = serde_json::from_str(&read("report.json")).unwrap();
    assert_eq!(json["passed"], false);
    let words = "rows failed: 5001, expected 5000";
    assert_eq!(json["reasons"][0], words);
    let (html, markdown, junit) = (read("report.html"), read("report.md"), read("report.xml"));
    assert!(
        output.stdout.starts_with("DRILL FAILED"),
        "{}",
        output.stdout
    );
    assert!(output.stdout.contains(words), "{}", output.stdout);
    assert!(html.contains("Drill failed</h1>") && html.contains(words));
    assert!(markdown.starts_with("# Drill failed") && markdown.contains(words));
    assert!(junit.contains("5001, expected 5000"), "{junit}");
    let count = |what: &str| junit.matches(what).count();
    // The verdict, two objectives, and the checks; the verdict and one check failed.
    assert_eq!(
        count("<testcase "),
        3 + json["checks"].as_array().unwrap().len()
    );
    assert_eq!(count("<failure "), 2, "{junit}");
    // What a person repeats is in all of them, last.
    let command = json["evidence"][0]["command"].as_str().unwrap();
    for text in [&html, &markdown] {
        let runbook = text.rfind("Runbook").unwrap();
        assert!(text[runbook..].contains(command), "{command}");
    }
}

#[test]
fn the_history_shows_the_newest_drills_and_passes_over_what_is_damaged() {
    let site = site();
    let none = history(&site, &[]).success().stdout;
    assert!(none.contains("no drill is on record"), "{none}");
    let good = drilled(&site, &["--json"]).success().json();
    let listed = || {
        let listed = seawall(&site.config)
            .args(["list", "--json"])
            .run()
            .success();
        listed.json()["repositories"][0]["systems"][0]["backups"][0].clone()
    };
    assert_eq!(listed()["last_passed_drill"]["id"], good["id"]);
    site.cluster.sql("INSERT INTO t VALUES (0)");
    site.cluster.archive_all(PATIENCE);
    let bad = drilled(&site, &["--json"]).exits_with(3).json();

    let read = |arguments: &[&str]| history(&site, &[&["--json"], arguments].concat()).success();
    let ids = |output: &Output| -> Vec<Value> {
        let history = output.json();
        let drills = history["drills"].as_array().unwrap();
        drills.iter().map(|drill| drill["id"].clone()).collect()
    };
    let both = read(&[]);
    assert_eq!(ids(&both), [good["id"].clone(), bad["id"].clone()]);
    assert_eq!(both.json()["objectives"]["rto_seconds"], 3600.0);
    assert_eq!(ids(&read(&["--last", "1"])), [bad["id"].clone()]);
    let text = history(&site, &[]).success().stdout;
    for words in ["1 of 2 drills passed", "PASSED", "FAILED", "RTO 1 h"] {
        assert!(text.contains(words), "{words}\n{text}");
    }

    // The newest drill failed; when the backup was last proven is not forgotten for that.
    let backup = listed();
    assert_eq!(backup["last_drill"]["id"], bad["id"]);
    assert_eq!(backup["last_drill"]["passed"], false);
    assert_eq!(backup["last_passed_drill"]["time"], good["started"]);
    let text = site.seawall("list").run().success().stdout;
    let proven = good["started"].as_str().unwrap()[..19].replace('T', " ");
    assert!(
        text.contains("last proven") && text.contains(&proven),
        "{text}"
    );
    assert!(text.contains("FAILED"), "{text}");

    // One that is damaged is passed over, and an older one takes its place; a stray object is
    // none, whatever its name sorts behind.
    let key = format!("main/drills/{}.json", bad["id"].as_str().unwrap());
    let whole = site.near.remove(&key);
    site.near.put_back(&key, &whole[..whole.len() / 2]);
    site.near.put_back("main/drills/zebra.json", b"stray");
    let left = read(&["--last", "1"]).says("is damaged");
    assert_eq!(ids(&left), [good["id"].clone()]);
    // It fails no drill either.
    site.cluster.sql("DELETE FROM t WHERE x = 0");
    site.cluster.archive_all(PATIENCE);
    let next = drilled(&site, &["--json"]).success().json();
    assert_eq!(next["trend"].as_array().unwrap().len(), 1);
}
