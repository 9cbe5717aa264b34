//! Drills: what they measure, and that their verdict cannot lie.

use std::path::Path;
use std::time::Duration;

use seawall_tests::cli::{drill, seawall};
use seawall_tests::config::{Config, ConfigFile, Repository};
use seawall_tests::postgres::{Cluster, Stop};
use seawall_tests::process::{Output, wait_until};
use seawall_tests::scratch::Scratch;
use seawall_tests::version::PostgresVersion;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

/// A cluster that archives, with a backup and some work after it, all of it archived.
struct Site {
    scratch: Scratch,
    cluster: Cluster,
    config: Config,
}

impl Site {
    fn new(version: u32, extra: &str) -> Self {
        Self::build(version, extra, |builder| builder)
    }

    fn build(
        version: u32,
        extra: &str,
        change: impl FnOnce(seawall_tests::postgres::Builder) -> seawall_tests::postgres::Builder,
    ) -> Self {
        let scratch = Scratch::new();
        let builder = Cluster::builder(PostgresVersion::find(version));
        let mut cluster = change(builder).create_in(&scratch, "main");
        let near = Repository::local("near", &scratch.join("repository"));
        let drills = scratch.directory("drills");
        let config = ConfigFile::new()
            .cluster(&cluster)
            .repository(near)
            .extra(&format!(
                "[drill]\nscratch = '{}'\n{extra}",
                drills.display()
            ))
            .write(&scratch);
        let programs = scratch.directory("programs");
        for program in std::fs::read_dir(&cluster.version().bin).unwrap().flatten() {
            // The wheel with PostgreSQL 18 holds a pg_verifybackup that crashes.
            if version == 15 || program.file_name() != "pg_verifybackup" {
                let link = programs.join(program.file_name());
                std::os::unix::fs::symlink(program.path(), link).unwrap();
            }
        }
        set_bin_directory(&config, &programs);
        cluster.archive_with(&config);
        cluster.start();
        seawall(&config).arg("init").run().success();
        cluster.sql("CREATE TABLE t AS SELECT x, md5(x::text) FROM generate_series(1, 5000) x");
        seawall(&config).arg("backup").run().success();
        cluster.sql("INSERT INTO t SELECT x, 'later' FROM generate_series(5001, 6000) x");
        cluster.archive_all(LIMIT);
        Self {
            scratch,
            cluster,
            config,
        }
    }

    fn drill(&self, arguments: &[&str]) -> Output {
        drill(&self.config).args(arguments).arg("--json").run()
    }

    /// Nothing of a drill may be left.
    fn is_clean(&self) -> bool {
        std::fs::read_dir(self.scratch.join("drills"))
            .unwrap()
            .next()
            .is_none()
    }
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    checks
        .iter()
        .find(|check| check["name"] == name)
        .unwrap_or_else(|| panic!("no check {name} in {checks:#?}"))
}

fn a_good_drill_passes(version: u32) {
    let site = Site::new(
        version,
        "[[drill.check]]\nname = 'rows'\nsql = 'SELECT count(*) FROM t'\nequals = '6000'\n",
    );
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
    a_good_drill_passes(15);
}

#[test]
fn a_good_drill_passes_on_18() {
    a_good_drill_passes(18);
}

#[test]
fn a_drill_needs_nothing_of_the_primary() {
    let mut site = Site::new(15, "");
    site.cluster.destroy();
    let output = site.drill(&[]);
    let output = output.success();
    assert_eq!(output.json()["source"]["primary_touched"], false);
}

#[test]
fn a_wrong_row_a_missed_objective_and_an_unreached_target_fail_the_drill() {
    let site = Site::new(
        15,
        "[objectives]\nrpo = '1h'\nrto = '1ms'\n[[drill.check]]\nname = 'rows'\nsql = 'SELECT count(*) FROM t'\nequals = '7000'\n[[drill.check]]\nname = 'nonsense'\nsql = 'SELECT * FROM nowhere'\nat_least = 1\n",
    );
    let output = site.drill(&["--failed-at", "2126-01-01T00:00:00Z"]);
    let output = output.exits_with(3);
    let report = output.json();
    let reasons = report["reasons"].to_string();
    for words in [
        "rows failed: 6000, expected 7000",
        "nonsense failed",
        "RTO objective",
        "RPO objective",
    ] {
        assert!(reasons.contains(words), "{words}: {reasons}");
    }

    // A moment that no commit has reached: PostgreSQL itself refuses, and the report says so.
    let tomorrow = jiff::Timestamp::now() + Duration::from_secs(86_400);
    let output = site.drill(&["--time", &tomorrow.to_string()]);
    assert!(matches!(output.code, 3 | 5), "{output:?}");
    assert!(site.is_clean());
    let list = seawall(&site.config).arg("list").run();
    assert!(list.stdout.contains("FAILED"), "{}", list.stdout);
}

#[test]
fn a_drill_that_could_check_nothing_cannot_pass() {
    // No checksums, and no pg_amcheck. What pg_verifybackup says of the files proves nothing
    // about the database.
    let site = Site::build(15, "", |builder| builder.without_checksums());
    let version = PostgresVersion::find(15);
    let bare = site.scratch.directory("bare");
    for program in ["postgres", "pg_verifybackup"] {
        std::os::unix::fs::symlink(version.bin.join(program), bare.join(program)).unwrap();
    }
    set_bin_directory(&site.config, &bare);
    let output = site.drill(&[]);
    let output = output.exits_with(3);
    assert!(
        output.json()["reasons"]
            .to_string()
            .contains("nothing was checked"),
        "{output:?}"
    );
}

#[test]
fn a_page_that_was_damaged_on_the_source_fails_the_drill() {
    let mut site = Site::new(15, "");
    let file = site.cluster.sql("SELECT pg_relation_filepath('t')");
    site.cluster.sql("CHECKPOINT");
    site.cluster.stop(Stop::Fast);
    flip(&site.cluster.data().join(file.trim()), 8192 + 4000);
    site.cluster.start();
    seawall(&site.config).arg("backup").run().exits_with(3);
    site.cluster.sql("CREATE TABLE later ()");
    site.cluster.archive_all(LIMIT);
    let output = site.drill(&[]);
    let output = output.exits_with(3);
    let report = output.json();
    assert_eq!(check(&report, "page checksums")["outcome"], "failed");
    assert!(
        report["warnings"]
            .to_string()
            .contains("checksums were wrong")
    );
    assert!(site.is_clean());
}

#[test]
fn a_damaged_repository_never_lets_a_drill_pass() {
    let site = Site::new(15, "");
    let mut objects = Vec::new();
    files_below(&site.scratch.join("repository"), &mut objects);
    let classes = [
        ".tar.zst",
        ".index.zst",
        "backup_manifest.zst",
        "backup.json",
        "system.json",
        "seawall.json",
    ];
    for class in classes {
        let object = objects
            .iter()
            .filter(|path| path.to_string_lossy().ends_with(class))
            .max_by_key(|path| path.metadata().unwrap().len())
            .unwrap_or_else(|| panic!("no object {class} in {objects:?}"));
        let whole = std::fs::read(object).unwrap();
        flip(object, whole.len() as u64 / 3);
        let output = site.drill(&[]);
        assert_ne!(output.code, 0, "{class} was damaged:\n{}", output.stdout);
        if matches!(class, ".tar.zst" | ".index.zst") {
            // There was a plan: this is a result, and the repository remembers it.
            let report = output.exits_with(3).json();
            assert_eq!(report["passed"], false);
            assert_ne!(report["reasons"].as_array().unwrap().len(), 0);
            let list = seawall(&site.config).arg("list").run();
            assert!(list.stdout.contains("FAILED"), "{class}: {}", list.stdout);
        }
        assert!(site.is_clean(), "{class}");
        std::fs::write(object, whole).unwrap();
    }
    // A WAL segment that recovery needs: with a doubt PostgreSQL stops, and the report says so.
    let newest = objects
        .iter()
        .filter(|path| path.to_string_lossy().contains("/wal/"))
        .filter(|path| !path.to_string_lossy().contains("backup-"))
        .max()
        .unwrap();
    let whole = std::fs::read(newest).unwrap();
    flip(newest, whole.len() as u64 / 2);
    let output = site.drill(&[]);
    let output = output.exits_with(3);
    assert!(
        output.json()["reasons"]
            .to_string()
            .contains("recovery failed"),
        "{}",
        output.stdout
    );
    std::fs::remove_file(newest).unwrap();
    // Without the newest segment nobody can tell that it ever was; but the row count can.
    site.drill(&[]);
    std::fs::write(newest, whole).unwrap();
    site.drill(&[]).success();
}

#[test]
fn an_interrupted_drill_leaves_nothing_running_and_nothing_behind() {
    let site = Site::new(15, "");
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
    let site = Site::build(15, "", |builder| builder.tablespace("fast"));
    site.cluster
        .sql("CREATE TABLE f TABLESPACE fast AS SELECT 1");
    seawall(&site.config).arg("backup").run().success();
    site.cluster.sql("INSERT INTO f VALUES (2)");
    site.cluster.archive_all(LIMIT);
    site.drill(&[]).success();
    assert_eq!(site.cluster.sql("SELECT count(*) FROM f").trim(), "2");
    assert!(site.is_clean());
}

/// The cluster's `bin_directory`, whatever it was before.
fn set_bin_directory(config: &Config, directory: &Path) {
    let text = std::fs::read_to_string(config.path()).unwrap();
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| !line.starts_with("bin_directory"))
        .map(str::to_owned)
        .collect();
    let cluster = lines
        .iter()
        .position(|line| line.starts_with("[cluster."))
        .unwrap();
    lines.insert(
        cluster + 1,
        format!("bin_directory = '{}'", directory.display()),
    );
    std::fs::write(config.path(), lines.join("\n")).unwrap();
}

fn flip(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}

fn files_below(directory: &Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, files);
        } else {
            files.push(path);
        }
    }
}
