//! `seawall check`: every planted illness is found, with what to do about it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use seawall_tests::cli::{archive, drill, seawall};
use seawall_tests::config::{Config, ConfigFile, Repository};
use seawall_tests::postgres::Cluster;
use seawall_tests::scratch::Scratch;
use seawall_tests::version::PostgresVersion;
use seawall_tests::{Segment, Site as ArchivingSite, Stored};

const LIMIT: Duration = Duration::from_secs(60);

struct Site {
    scratch: Scratch,
    cluster: Cluster,
    config: Config,
}

impl Site {
    /// A cluster in good health: archiving, backed up, drilled.
    fn healthy() -> Self {
        let scratch = Scratch::new();
        let mut cluster = Cluster::builder(PostgresVersion::find(15))
            .fsync()
            .create_in(&scratch, "main");
        let near = Repository::local("near", &scratch.join("repository"));
        let config = ConfigFile::new()
            .cluster(&cluster)
            .repository(near)
            .write(&scratch);
        cluster.archive_with(&config);
        cluster.start();
        seawall(&config).arg("init").run().success();
        cluster.sql("CREATE TABLE t AS SELECT 1 AS x");
        seawall(&config).arg("backup").run().success();
        drill(&config).run().success();
        Self {
            scratch,
            cluster,
            config,
        }
    }

    /// What the doctor finds wrong: subject, finding and advice of each problem or warning.
    fn findings(&self, code: i32) -> String {
        let output = seawall(&self.config)
            .args(["check", "--json", "--timeout", "5s"])
            .run();
        let output = output.exits_with(code);
        let checked = output.json();
        assert_eq!(checked["passed"], code == 0);
        let found = checked["findings"].as_array().unwrap();
        let ill: Vec<String> = found
            .iter()
            .filter(|finding| finding["level"] != "ok")
            .inspect(|finding| assert!(finding["advice"].is_string(), "no advice: {finding}"))
            .map(|finding| finding.to_string())
            .collect();
        ill.join("\n")
    }

    /// Archives a segment that lies far behind all others, made from the plain content of the
    /// stored `like`. Returns its object.
    fn archive_far_behind(&self, like: &Path) -> PathBuf {
        const NUMBER: u64 = 200;
        let stored = Stored::at(&self.scratch.join("repository"));
        let key = like.strip_prefix(stored.root()).unwrap();
        let segment = Segment(stored.plain(&key.to_string_lossy())).numbered(NUMBER);
        let name = seawall_tests::segment::name(NUMBER);
        let path = self.scratch.file(&name, segment.0);
        archive(&self.config)
            .arg(path)
            .with(|run| run.directory(self.cluster.data()))
            .run()
            .success();
        stored.path(&stored.one_wal(&name))
    }

    fn segments(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        below(&self.scratch.join("repository"), &mut files);
        files.retain(|path| {
            let name = path.file_name().unwrap().to_string_lossy();
            // 24 digits, a dash, the digest, .zst
            path.to_string_lossy().contains("/wal/") && name.find('-') == Some(24)
        });
        files.sort();
        files
    }
}

fn below(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            below(&path, files)
        } else {
            files.push(path)
        }
    }
}

#[track_caller]
fn says(findings: &str, words: &str) {
    assert!(findings.contains(words), "{words:?} is not in:\n{findings}");
}

#[test]
fn a_healthy_cluster_passes_and_its_segment_arrives() {
    let site = Site::healthy();
    assert_eq!(site.findings(0), "");
    let text = seawall(&site.config).arg("check").run().success();
    assert!(
        text.stdout.contains("was switched and has arrived"),
        "{}",
        text.stdout
    );
}

#[test]
fn settings_that_endanger_the_data_are_named() {
    let mut site = Site::healthy();
    site.cluster.configure("archive_command", "true");
    site.cluster.configure("full_page_writes", "off");
    site.cluster.reload();
    let found = site.findings(3);
    says(&found, "archive_command is \\\"true\\\": it is not ours");
    says(&found, "full_page_writes is off");
    site.cluster.configure("archive_mode", "off");
    site.cluster.restart();
    says(&site.findings(3), "archive_mode is off");
}

#[test]
fn archiving_that_fails_is_found_before_the_disk_is_full() {
    let mut site = Site::healthy();
    let wrong = format!("{} --config /nowhere seawall-archive", "false");
    site.cluster.configure("archive_command", &wrong);
    site.cluster.reload();
    for _ in 0..10 {
        site.cluster.sql("INSERT INTO t VALUES (2)");
        site.cluster.switch_wal();
    }
    let failing = || site.cluster.archiver().0 > 0;
    seawall_tests::process::wait_until("archiving fails", LIMIT, failing);
    let found = site.findings(3);
    says(&found, "archiving fails: ");
    says(&found, "files wait to be archived");
    says(&found, "did not arrive in the archive");
}

#[test]
fn missing_privileges_are_named_with_the_statements_that_grant_them() {
    let site = Site::healthy();
    site.cluster.sql("CREATE ROLE weak LOGIN");
    let near = Repository::local("near", &site.scratch.join("repository"));
    let config = ConfigFile::new()
        .cluster_as("main", &site.cluster, "weak")
        .repository(near);
    let config = config.write_to(&site.scratch.join("weak.toml"));
    let output = seawall(&config)
        .args(["check", "--timeout", "2s"])
        .run()
        .exits_with(3);
    says(&output.stdout, "GRANT pg_monitor TO weak");
    says(
        &output.stdout,
        "GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean) TO weak",
    );
}

#[test]
fn gaps_conflicts_and_damage_in_the_repository_are_found() {
    let site = Site::healthy();
    for _ in 0..4 {
        site.cluster.sql("INSERT INTO t VALUES (3)");
        site.cluster.archive_all(LIMIT);
    }
    let segments = site.segments();
    let middle = &segments[segments.len() - 2];
    let away = site.scratch.join("away");
    std::fs::rename(middle, &away).unwrap();
    // With so little behind it, it may never have been acknowledged.
    assert_eq!(site.findings(0), "");
    let far_behind = site.archive_far_behind(&segments[0]);
    let name = middle.file_name().unwrap().to_string_lossy()[..24].to_owned();
    let found = site.findings(3);
    says(&found, "WAL is missing: ");
    says(&found, &name);
    std::fs::remove_file(far_behind).unwrap();
    std::fs::rename(&away, middle).unwrap();
    assert_eq!(site.findings(0), "");

    // The same segment with another digest in its name: what two servers would leave.
    let name = middle.file_name().unwrap().to_string_lossy().into_owned();
    let other = format!("{}-{}.zst", &name[..24], "0".repeat(32));
    std::fs::copy(middle, middle.with_file_name(&other)).unwrap();
    let found = site.findings(3);
    says(&found, "archived with different contents");
    says(&found, "seawall wal resolve");
    std::fs::remove_file(middle.with_file_name(other)).unwrap();

    // A segment that the only backup needs.
    let listed = seawall(&site.config).args(["list", "--json"]).run().json();
    let needed = listed["repositories"][0]["systems"][0]["backups"][0]["wal"][0].clone();
    let needed = segments
        .iter()
        .find(|path| path.to_string_lossy().contains(needed.as_str().unwrap()))
        .unwrap();
    std::fs::rename(needed, &away).unwrap();
    says(&site.findings(3), "the WAL of the newest backup");
    let listed = seawall(&site.config).arg("list").run().success();
    assert!(listed.stdout.contains("WAL missing"), "{}", listed.stdout);
}

#[test]
fn a_server_that_is_down_and_a_repository_that_is_away_are_two_findings() {
    let mut site = Site::healthy();
    site.cluster.stop(seawall_tests::postgres::Stop::Fast);
    std::fs::rename(
        site.scratch.join("repository"),
        site.scratch.join("unmounted"),
    )
    .unwrap();
    let found = site.findings(3);
    says(&found, "\"subject\":\"server\"");
    says(&found, "\"subject\":\"repository near\"");
}

#[test]
fn a_cluster_without_backup_and_one_whose_drill_failed_are_told_so() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::builder(PostgresVersion::find(15))
        .fsync()
        .create_in(&scratch, "main");
    let near = Repository::local("near", &scratch.join("repository"));
    let config = ConfigFile::new()
        .cluster(&cluster)
        .repository(near)
        .extra("[objectives]\nrto = '1ms'\n")
        .write(&scratch);
    cluster.archive_with(&config);
    cluster.start();
    seawall(&config).arg("init").run().success();
    let output = seawall(&config).arg("check").run().exits_with(3);
    says(&output.stdout, "there is no finished backup");
    seawall(&config).arg("backup").run().success();
    drill(&config).run().exits_with(3);
    let output = seawall(&config).arg("check").run().exits_with(3);
    says(&output.stdout, "the last drill");
    says(&output.stdout, "failed");
}

#[test]
fn broken_timelines_are_found_by_what_is_missing_of_them() {
    let builder = Cluster::builder(PostgresVersion::find(15)).fsync();
    let mut site = ArchivingSite::with(builder.segment_size(1));
    site.cluster.start();
    site.cluster.sql("CREATE TABLE t (x int)");
    site.backup();
    let mut standby = site.cluster.standby(&site.scratch, "standby");
    standby.start();
    let mut last_of_first = String::new();
    for _ in 0..3 {
        site.cluster.sql("INSERT INTO t VALUES (1)");
        last_of_first = site.cluster.archive_all(LIMIT);
    }
    standby.wait_until_caught_up(&site.cluster, LIMIT);
    site.cluster.kill();
    standby.promote();
    standby.wait_until_archived("00000002.history", LIMIT);
    let mut first_of_second = String::new();
    for _ in 0..20 {
        standby.sql("INSERT INTO t VALUES (2)");
        let segment = standby.archive_all(LIMIT);
        if first_of_second.is_empty() {
            first_of_second = segment;
        }
    }
    let config = ConfigFile::new()
        .cluster_as("main", &standby, "postgres")
        .repository(Repository::local("near", site.near.root()))
        .write_to(&site.scratch.join("standby.toml"));
    let check = |code| {
        let output = seawall(&config).args(["check", "--timeout", "30s"]).run();
        output.exits_with(code).stdout
    };
    check(0);
    let without = |file: &str, words: &[&str]| {
        let key = site.near.one_wal(file);
        let object = site.near.remove(&key);
        let found = check(3);
        words.iter().for_each(|word| says(&found, word));
        site.near.put_back(&key, &object);
    };
    without(
        &last_of_first,
        &[&last_of_first, "timeline 2 begins behind"],
    );
    without(
        &first_of_second,
        &[&first_of_second, "where timeline 2 begins"],
    );
    without(
        "00000002.history",
        &["00000002.history is missing, and there is WAL of timeline 2"],
    );
    // A history that leads to a timeline that nothing is known of.
    let history = site.near.plain(&site.near.one_wal("00000002.history"));
    let text = format!("{}3\t0/9000000\tx\n", String::from_utf8_lossy(&history));
    let path = site.scratch.file("00000004.history", text);
    archive(&config)
        .arg(path)
        .with(|run| run.directory(standby.data()))
        .run()
        .success();
    says(
        &check(3),
        "00000003.history is missing, and timeline 4 descends from it",
    );
}

#[test]
fn what_one_repository_lacks_and_another_holds_is_named_in_ranges() {
    let site = ArchivingSite::with(Cluster::builder(PostgresVersion::find(15)).fsync());
    let second = site.scratch.directory("second");
    let config = ConfigFile::new()
        .cluster(&site.cluster)
        .repository(Repository::local("near", site.near.root()))
        .repository(Repository::local("second", &second))
        .write_to(&site.scratch.join("two.toml"));
    let mut cluster = site.cluster;
    seawall(&config).arg("init").run().success();
    cluster.archive_with(&config);
    cluster.start();
    cluster.sql("CREATE TABLE t (x int)");
    for repository in ["near", "second"] {
        let backup = seawall(&config).args(["backup", "--repository", repository]);
        backup.run().success();
    }
    let mut names = Vec::new();
    for _ in 0..4 {
        cluster.sql("INSERT INTO t VALUES (1)");
        names.push(cluster.archive_all(LIMIT));
    }
    seawall(&config).arg("check").run().success();
    let second = Stored::at(&second);
    for name in &names[1..3] {
        second.remove(&second.one_wal(name));
    }
    let found = seawall(&config).arg("check").run();
    says(
        &found.stdout,
        &format!(
            "repository second: lacks 2 WAL segments that another repository holds: {} to {}",
            names[1], names[2]
        ),
    );
    says(&found.stdout, "archive them again while a server has them");

    // Another server's content, where each repository holds one only.
    let key = second.one_wal(&names[3]);
    let bytes = second.remove(&key);
    let other = key.replace(&key[key.len() - 36..key.len() - 4], &"0".repeat(32));
    second.put_back(&other, &bytes);
    let found = seawall(&config).arg("check").run().exits_with(3);
    says(
        &found.stdout,
        &format!("near and second hold different contents of {}", names[3]),
    );
}

#[test]
fn wal_that_waits_is_measured_and_warned_about_with_and_without_the_server() {
    let site = ArchivingSite::configured(Cluster::builder(PostgresVersion::find(15)), |file| {
        file.extra("[objectives]\nrpo = '1s'\n")
    });
    let mut cluster = site.cluster;
    cluster.start();
    cluster.sql("CREATE TABLE t (x int)");
    // The repository refuses: nobody may write there any more.
    site.near.unmount(true);
    for _ in 0..10 {
        cluster.sql("INSERT INTO t VALUES (1)");
        cluster.switch_wal();
    }
    std::thread::sleep(Duration::from_millis(1500));
    let waits = || {
        let call = seawall(&site.config).args(["check", "--json", "--timeout", "1s"]);
        let checked = call.run().exits_with(3).json();
        let findings = checked["findings"].as_array().unwrap().clone();
        let waits = findings.into_iter().find(|finding| {
            let text = finding["finding"].as_str().unwrap();
            finding["subject"] == "archiver" && text.contains("wait to be archived")
        });
        let waits = waits.expect("it says what waits");
        assert_ne!(waits["level"], "ok", "{waits}");
        assert!(
            waits["advice"]
                .as_str()
                .unwrap()
                .contains("the server's log")
        );
        waits["finding"].as_str().unwrap().to_owned()
    };
    let with_server = waits();
    // Ten, and the one that check itself switched.
    says(&with_server, "11 files wait to be archived (176.0 MiB)");
    says(&with_server, "WAL is written at ");
    says(&with_server, "archived at 0 B/s");
    says(&with_server, "left");
    cluster.stop(seawall_tests::postgres::Stop::Immediate);
    let without_server = waits();
    says(&without_server, "11 files wait to be archived (176.0 MiB)");
    says(&without_server, "longer than the RPO objective of 1s");
}
