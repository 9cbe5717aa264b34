//! Drills: what they measure, and that they leave nothing. What they check is in drill_checks.rs,
//! and that their verdict cannot lie in drill_verdict.rs.

use std::time::Duration;

use seawall_tests::cli::{drill, seawall};
use seawall_tests::drilled::{DrillSite, check};
use seawall_tests::process::wait_until;
use serde_json::Value;

/// What the owner asks in a good drill.
const QUESTION: &str =
    "[[drill.check]]\nname = 'rows'\nsql = 'SELECT count(*) FROM t'\nequals = '6000'\n";

fn a_good_drill_passes(site: &DrillSite) {
    let reports = site.scratch.directory("reports");
    let output = site.drill(&["--report", &reports.display().to_string()]);
    let output = output.success();
    let report = output.json();
    assert_eq!(report["passed"], true);
    assert_eq!(check(&report, "rows")["outcome"], "passed");
    assert_eq!(check(&report, "page checksums")["outcome"], "passed");
    let phases: Vec<&str> = report["rto"]["phases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|phase| phase["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        phases,
        [
            "plan",
            "provision",
            "fetch",
            "write",
            "configure",
            "sync",
            "start",
            "replay to consistency",
            "replay to target",
            "promote",
            "first query",
            "checks"
        ]
    );
    // The phases follow one another without a hole up to the answer; only fetching and
    // writing overlap.
    let measured = report["rto"]["measured_seconds"].as_f64().unwrap();
    let mut end = 0.0_f64;
    for phase in report["rto"]["phases"].as_array().unwrap() {
        let began = phase["began"].as_f64().unwrap();
        let name = &phase["name"];
        if name == "checks" {
            break;
        }
        assert!(began <= end + 0.2, "{name} began at {began}, after {end}");
        end = end.max(began + phase["seconds"].as_f64().unwrap());
    }
    assert!(
        (end - measured).abs() < 0.01 && measured > 0.0,
        "{end} {measured}"
    );
    let end = check(&report, "recovery reached the end of the archived WAL");
    assert_eq!(end["outcome"], "passed");
    let rpo = report["rpo"]["measured_seconds"].as_f64().unwrap();
    assert!((0.0..60.0).contains(&rpo), "{rpo}");
    assert_eq!(report["rpo"]["upper_bound"], true);
    assert!(report["evidence"].as_array().unwrap().len() >= 3);
    assert!(site.is_clean());

    let written: Value =
        serde_json::from_slice(&std::fs::read(reports.join("report.json")).unwrap()).unwrap();
    assert_eq!(written["id"], report["id"]);
    let markdown = std::fs::read_to_string(reports.join("report.md")).unwrap();
    assert!(markdown.contains("passed") && markdown.contains("## Runbook"));

    // The repository remembers, and the listing says when the backup was last proven.
    let listed = seawall(&site.config).args(["list", "--json"]).run().json();
    let backup = &listed["repositories"][0]["systems"][0]["backups"][0];
    assert_eq!(backup["last_drill"]["passed"], true);
}

#[test]
fn a_good_drill_passes_on_15() {
    a_good_drill_passes(&DrillSite::new(15, QUESTION));
}

#[test]
fn a_good_drill_passes_on_18() {
    a_good_drill_passes(&DrillSite::new(18, QUESTION));
}

#[test]
fn a_good_drill_passes_from_garage_on_15() {
    a_good_drill_passes(&DrillSite::in_garage(15, QUESTION));
}

#[test]
fn a_good_drill_passes_from_garage_on_18() {
    a_good_drill_passes(&DrillSite::in_garage(18, QUESTION));
}

#[test]
fn a_drill_needs_nothing_of_the_primary() {
    let mut site = DrillSite::new(15, "");
    site.cluster.destroy();
    let output = site.drill(&[]);
    let output = output.success();
    assert_eq!(output.json()["source"]["primary_touched"], false);
}

#[test]
fn an_interrupted_drill_leaves_nothing_running_and_nothing_behind() {
    let site = DrillSite::new(15, "");
    for pause in [50, 300, 600, 1000] {
        let mut running = drill(&site.config).start();
        std::thread::sleep(Duration::from_millis(pause));
        if running.is_running() {
            running.signal(nix::sys::signal::Signal::SIGINT);
        }
        running.wait();
        wait_until(
            "the scratch directory is gone",
            Duration::from_secs(20),
            || site.is_clean(),
        );
    }
}

#[test]
fn tablespaces_of_a_drill_never_touch_the_live_ones() {
    let site = DrillSite::build(15, "", |builder| builder.tablespace("fast"));
    site.cluster
        .sql("CREATE TABLE f TABLESPACE fast AS SELECT 1");
    seawall(&site.config).arg("backup").run().success();
    site.cluster.sql("INSERT INTO f VALUES (2)");
    site.archive_all();
    site.drill(&[]).success();
    assert_eq!(site.cluster.sql("SELECT count(*) FROM f").trim(), "2");
    assert!(site.is_clean());
}
