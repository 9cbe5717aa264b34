//! The alert rules: tried one by one by promtool, each with its words in docs/alerts.md, over
//! metrics that there are; and a real Prometheus asks the daemon for them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use seawall_tests::daemon::Daemon;
use seawall_tests::postgres::free_port;
use seawall_tests::process::Run;
use seawall_tests::site::PATIENCE;
use seawall_tests::version::cache;
use seawall_tests::{Cluster, ConfigFile, PostgresVersion, Repository, Site, wait_until};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

fn program(name: &str) -> PathBuf {
    let program = cache().join("prometheus/bin").join(name);
    assert!(
        program.exists(),
        "{name} is missing: run scripts/setup test"
    );
    program
}

fn promtool(args: &[&str]) {
    let rules = root().join("deploy/prometheus");
    Run::new(program("promtool"))
        .args(args)
        .directory(&rules)
        .as_self()
        .run()
        .success();
}

/// What stands behind `- alert:`.
fn alerts() -> Vec<String> {
    let rules = text("deploy/prometheus/alerts.yml");
    let names = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    names.map(str::to_owned).collect()
}

/// The words of a text that name metrics of ours.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("seawall_"));
    ours.map(str::to_owned).collect()
}

#[test]
fn every_rule_fires_on_what_it_is_for_and_none_while_all_is_well() {
    promtool(&["check", "rules", "alerts.yml"]);
    promtool(&["test", "rules", "tests.yml"]);
    let (tests, runbook) = (text("deploy/prometheus/tests.yml"), text("docs/alerts.md"));
    let alerts = alerts();
    assert!(alerts.len() > 20);
    for name in &alerts {
        assert!(
            tests.contains(&format!("  - name: {name}\n")),
            "{name} is not tried"
        );
        let quiet = format!("{{ eval_time: 50h, alertname: {name} }}");
        assert!(tests.contains(&quiet), "{name} may fire while all is well");
        let (_, section) = runbook.split_once(&format!("\n## {name}\n")).expect(name);
        let section = section.split("\n## ").next().unwrap();
        for part in ["\nLook at:\n", "\nDo:\n"] {
            assert!(section.contains(part), "{name} has no {part:?}");
        }
    }
    let sections = runbook
        .lines()
        .filter(|line| line.starts_with("## "))
        .count();
    assert_eq!(
        sections,
        alerts.len(),
        "docs/alerts.md speaks of alerts that there are not"
    );
    let known = metrics_in(&text("docs/metrics.md"));
    let asked = metrics_in(&text("deploy/prometheus/alerts.yml"));
    let unknown: Vec<_> = asked.difference(&known).collect();
    assert!(unknown.is_empty(), "there are no such metrics: {unknown:?}");
}

/// No Grafana can be had where this runs: what it would load is checked by the rules of its
/// schema that matter (identifiers, places, kinds), and each question by promtool.
#[test]
fn the_dashboard_asks_for_what_there_is() {
    let dashboard: Value = serde_json::from_str(&text("deploy/grafana/seawall.json")).unwrap();
    assert_eq!(dashboard["uid"], "seawall");
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 36);
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let variables: Vec<_> = variables
        .iter()
        .map(|v| v["name"].as_str().unwrap())
        .collect();
    assert_eq!(variables, ["datasource", "cluster", "repository"]);
    let known = metrics_in(&text("docs/metrics.md"));
    let (mut identifiers, mut covered) = (BTreeSet::new(), BTreeSet::new());
    let mut questions = "groups: [{ name: dashboard, rules: [\n".to_owned();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(identifiers.insert(panel["id"].as_u64().unwrap()), "{title}");
        let place = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        assert!(
            place("x") + place("w") <= 24,
            "{title} is wider than the page"
        );
        for y in place("y")..place("y") + place("h") {
            for x in place("x")..place("x") + place("w") {
                assert!(covered.insert((x, y)), "{title} lies on another panel");
            }
        }
        let kind = panel["type"].as_str().unwrap();
        assert!(
            ["row", "stat", "timeseries"].contains(&kind),
            "{title}: {kind}"
        );
        if kind == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        for target in panel["targets"].as_array().unwrap() {
            let question = target["expr"].as_str().unwrap();
            let asked = metrics_in(question);
            let unknown: Vec<_> = asked.difference(&known).collect();
            assert!(
                !asked.is_empty() && unknown.is_empty(),
                "{title}: {unknown:?}"
            );
            let at = questions.lines().count();
            questions += &format!("{{ record: 'q:{at}', expr: '{question}' }},\n");
        }
    }
    questions += "] }]\n";
    let scratch = seawall_tests::Scratch::new();
    let file = scratch.file("questions.yml", questions);
    promtool(&["check", "rules", file.to_str().unwrap()]);
}

#[test]
fn a_real_prometheus_reads_the_metrics_and_raises_an_alarm() {
    let site = Site::with(Cluster::builder(PostgresVersion::find(15)));
    let (ours, theirs) = (free_port(), free_port());
    let directory = site.scratch.directory("prometheus");
    let state = site.scratch.directory("state");
    ConfigFile::new()
        .cluster(&site.cluster)
        .repository(Repository::local("near", site.near.root()))
        .extra(&format!(
            "[daemon]\nstate_directory = \"{}\"\nlook_every = \"1s\"\n[http]\nlisten = \"127.0.0.1:{ours}\"\ntoken = \"let-me-look\"\n",
            state.display()
        ))
        .write(&site.scratch);
    // The server is not started: it does not answer.
    let daemon = Daemon::run(Daemon::calling(&site.config));
    // The alarm is raised at once: five minutes are too long for a test.
    let rules = text("deploy/prometheus/alerts.yml").replace("        for: 5m\n", "");
    std::fs::write(directory.join("alerts.yml"), rules).unwrap();
    let config = format!(
        "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}
rule_files: [alerts.yml]
scrape_configs:
  - job_name: seawall
    authorization: {{ credentials: let-me-look }}
    static_configs: [{{ targets: ['127.0.0.1:{ours}'] }}]
"
    );
    std::fs::write(directory.join("prometheus.yml"), config).unwrap();
    seawall_tests::scratch::give_tree_to_owner(&directory);
    let prometheus = Run::new(program("prometheus"))
        .arg("--config.file=prometheus.yml")
        .arg(format!(
            "--storage.tsdb.path={}",
            directory.join("data").display()
        ))
        .arg(format!("--web.listen-address=127.0.0.1:{theirs}"))
        .directory(&directory)
        .timeout(std::time::Duration::from_secs(600))
        .start();
    let ask = |path: &str| -> Option<Value> {
        let url = format!("http://127.0.0.1:{theirs}/api/v1/{path}");
        let answer = Run::new("curl").args(["--silent", "--globoff", &url]).run();
        serde_json::from_str(&answer.stdout).ok()
    };
    wait_until("it is scraped, as OpenMetrics", PATIENCE, || {
        let found = ask("query?query=seawall_server_up");
        found.is_some_and(|found| found["data"]["result"][0]["value"][1] == "0")
    });
    // Nothing is dropped on the way: as many series as there are lines.
    wait_until("all of it is read", PATIENCE, || {
        let page = Run::new("curl")
            .args(["--silent", "--oauth2-bearer", "let-me-look"])
            .arg(format!("http://127.0.0.1:{ours}/metrics"))
            .run()
            .success()
            .stdout;
        let lines = page.lines().filter(|line| !line.starts_with('#'));
        let lines: BTreeSet<&str> = lines.collect();
        let found = ask("query?query=count({__name__=~%22seawall_.*%22})");
        let count = lines.len().to_string();
        lines.len() > 10 && found.is_some_and(|f| f["data"]["result"][0]["value"][1] == count)
    });
    wait_until("the alarm", PATIENCE, || {
        let alarms = ask("alerts").map(|found| found["data"]["alerts"].to_string());
        alarms.is_some_and(|alarms| {
            alarms.contains("SeawallServerDown") && alarms.contains("\"state\":\"firing\"")
        })
    });
    prometheus.kill();
    daemon.stop();
}
