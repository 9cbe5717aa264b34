//! A verdict that cannot lie: whatever is planted makes the drill fail, with words that say what
//! it was; with exit code 3 and a report wherever there was something to restore.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use seawall::config::SEGMENTS_AHEAD;
use seawall_tests::Clock;
use seawall_tests::cli::seawall;
use seawall_tests::drilled::{DrillSite, outcome};
use seawall_tests::postgres::Stop;
use seawall_tests::process::Output;
use seawall_tests::proxy::Fault;
use serde_json::Value;

/// A drill without a plan: no report, this code, and these words.
#[track_caller]
fn has_no_plan(site: &DrillSite, arguments: &[&str], code: i32, words: &[&str]) -> Output {
    let output = site.drill(arguments).exits_with(code);
    assert_eq!(output.stdout, "", "there is no report");
    for words in words {
        assert!(
            output.stderr.contains(words),
            "{words:?}: {}",
            output.stderr
        );
    }
    assert!(site.is_clean());
    output
}

/// The key of the one object with that part, the largest if there are several.
#[track_caller]
fn object(site: &DrillSite, part: &str) -> String {
    let keys = site.near.keys_with(part);
    let largest = keys.iter().max_by_key(|key| site.near.bytes(key).len());
    largest
        .unwrap_or_else(|| panic!("no {part} in {:?}", site.near.files()))
        .clone()
}

#[track_caller]
fn backups(site: &DrillSite) -> Vec<Value> {
    let listed = seawall(&site.config).args(["list", "--json"]).run().json();
    let backups = &listed["repositories"][0]["systems"][0]["backups"];
    backups.as_array().expect("backups").clone()
}

/// Makes the cluster go on on timeline 2, its history and first segment archived.
fn promote(site: &mut DrillSite) {
    site.cluster.stop(Stop::Fast);
    site.scratch.file("main/data/standby.signal", "");
    site.cluster.configure("restore_command", "false");
    site.cluster.start();
    site.cluster.promote();
    site.cluster.sql("INSERT INTO t VALUES (6001, 'two')");
    site.archive_all();
}

#[test]
fn a_flipped_byte_in_any_object_that_is_used_fails_the_drill_on_15() {
    a_flipped_byte_fails_the_drill(15);
}

#[test]
fn a_flipped_byte_in_any_object_that_is_used_fails_the_drill_on_18() {
    a_flipped_byte_fails_the_drill(18);
}

fn a_flipped_byte_fails_the_drill(version: u32) {
    let mut site = DrillSite::build(version, "", |builder| builder.config_outside());
    promote(&mut site);
    // Across the switch of timelines all is well.
    let report = site.passes(&[]);
    let (found, detail) = outcome(&report, "WAL without a hole");
    assert_eq!(found, "passed");
    assert!(detail.ends_with(", 00000002.history"), "{detail}");

    let newest = site.near.keys_with("/wal/00000002/");
    let newest = newest.last().expect("WAL of timeline 2").clone();
    for (key, words) in [
        (object(&site, "/data/000001.tar.zst"), "000001.tar.zst"),
        (
            object(&site, "/data/000001.index.zst"),
            "000001.index.zst is damaged",
        ),
        (
            object(&site, "/config.tar.zst"),
            "config.tar.zst is damaged",
        ),
        (object(&site, "/backup_manifest.zst"), "backup_manifest"),
        (newest, "WAL could not be fetched"),
    ] {
        let whole = site.near.bytes(&key);
        site.near.flip(&key, whole.len() / 2);
        let report = site.fails(&[], &[words]);
        assert!(report["rto"]["measured_seconds"].is_null(), "{key}");
        // The repository remembers.
        let record = format!("main/drills/{}.json", report["id"].as_str().unwrap());
        assert!(site.near.path(&record).exists(), "{key}");
        assert_eq!(backups(&site)[0]["last_drill"]["passed"], false, "{key}");
        site.near.put_back(&key, &whole);
    }
    // Without these nobody knows what there is to restore: there is no plan, and no report.
    for (part, words) in [
        ("/backup.json", "backup.json is damaged"),
        ("/system.json", "system.json is damaged"),
        ("seawall.json", "seawall.json is damaged"),
        ("/00000002.history-", "00000002.history"),
    ] {
        let key = object(&site, part);
        let whole = site.near.bytes(&key);
        site.near.flip(&key, whole.len() / 2);
        has_no_plan(&site, &[], 1, &[words]);
        site.near.put_back(&key, &whole);
    }
    site.passes(&[]);
}

#[test]
fn a_restore_point_whose_record_is_damaged_is_found_in_the_wal_and_fails_the_drill() {
    let site = DrillSite::new(15, "");
    seawall(&site.config)
        .args(["restore-point", "before"])
        .run()
        .success();
    site.cluster.sql("INSERT INTO t VALUES (6001, 'after')");
    site.archive_all();
    let reached = site.passes(&["--name", "before"])["target"]["reached_lsn"].clone();
    let key = object(&site, "/points/");
    site.near.flip(&key, 20);
    let words = ["records of the repository failed", "/points/", "is damaged"];
    let report = site.fails(&["--name", "before"], &words);
    // Found all the same, and restored.
    assert_eq!(report["target"]["reached_lsn"], reached);
}

#[test]
fn a_damaged_marker_leaves_the_backup_before_it_and_fails_the_drill() {
    let site = DrillSite::new(15, "");
    site.backup();
    site.archive_all();
    let listed = backups(&site);
    let (old, new) = (listed[0]["id"].clone(), listed[1]["id"].clone());
    assert_eq!(site.passes(&[])["backup"], new);
    let key = object(&site, &format!("{}/backup.json", new.as_str().unwrap()));
    site.near.flip(&key, 100);
    let words = ["records of the repository failed", new.as_str().unwrap()];
    let report = site.fails(&[], &words);
    assert_eq!(report["backup"], old);
}

#[test]
fn a_missing_object_of_the_backup_fails_the_drill() {
    let site = DrillSite::new(15, "");
    for part in [
        "/data/000001.tar.zst",
        "/data/000001.index.zst",
        "/backup_manifest.zst",
    ] {
        let key = object(&site, part);
        let whole = site.near.remove(&key);
        site.fails(&[], &["is named by the backup and is not in the store"]);
        site.near.put_back(&key, &whole);
    }
    site.passes(&[]);
}

#[test]
fn a_missing_segment_in_the_middle_fails_the_drill_and_says_what_is_left() {
    let site = DrillSite::new(15, "");
    let mut archived = vec![site.archive_all()];
    for x in 0..SEGMENTS_AHEAD + 3 {
        site.cluster
            .sql(&format!("INSERT INTO t VALUES ({x}, 'more')"));
        archived.push(site.archive_all());
    }
    let key = site.near.one_wal(&archived[1]);
    site.near.remove(&key);
    let report = site.fails(
        &[],
        &["there is a gap in the archived WAL", archived[1].as_str()],
    );
    // What can still be had was restored and measured.
    assert!(report["rto"]["measured_seconds"].is_number());
    assert_eq!(outcome(&report, "WAL without a hole").0, "passed");
    // A moment behind the gap cannot be planned, and one before it can be reached.
    let end = site.cluster.sql("SELECT pg_current_wal_lsn()");
    has_no_plan(
        &site,
        &["--lsn", &end],
        5,
        &["there is a gap in the archived WAL"],
    );
    site.passes(&["--immediate"]);
    site.passes(&["--end-at-gap"]);
}

#[test]
fn a_missing_segment_shortly_before_the_newest_fails_the_drill() {
    let site = DrillSite::new(15, "");
    let missing = site.archive_all();
    site.cluster.sql("INSERT INTO t VALUES (6001, 'behind')");
    let behind = site.archive_all();
    let key = site.near.one_wal(&missing);
    let whole = site.near.remove(&key);
    let words = format!("{missing} is missing, and WAL up to {behind} is archived behind it");
    site.fails(&[], &[&words]);
    // On its way for a moment: it is there before the drill has judged.
    let mut running = site.drilling(&[]).start();
    std::thread::sleep(Duration::from_secs(8));
    assert!(running.is_running(), "it waits for it");
    site.near.put_back(&key, &whole);
    running.wait().success();
}

#[test]
fn a_backup_whose_own_wal_is_missing_is_no_backup() {
    let site = DrillSite::new(15, "");
    let backup = &backups(&site)[0];
    for end in [0, 1] {
        let name = backup["wal"][end].as_str().expect("a segment");
        let keys = site.near.wal(name);
        let whole = site.near.remove(&keys[0]);
        has_no_plan(
            &site,
            &[],
            5,
            &["the WAL of backup", "is not in the archive"],
        );
        site.near.put_back(&keys[0], &whole);
    }
    site.passes(&[]);
}

#[test]
fn a_target_that_cannot_be_reached_fails_the_drill() {
    let site = DrillSite::new(15, "");
    let tomorrow = (Timestamp::now() + SignedDuration::from_hours(24)).to_string();
    for (target, words) in [
        (["--time", &tomorrow], "no transaction ended after"),
        (["--name", "never"], "never"),
        (["--xid", "4000000"], "neither commits nor aborts"),
        (["--lsn", "7F/0"], "archived WAL ends at"),
    ] {
        has_no_plan(&site, &target, 5, &[words]);
    }
    // In the part of the last segment that holds no records: only PostgreSQL finds out.
    let end = site.cluster.sql("SELECT pg_current_wal_lsn()");
    let last: u64 = u64::from_str_radix(end.split_once('/').unwrap().1, 16).unwrap();
    let empty = format!("0/{:X}", (last / (16 << 20)) * (16 << 20) - 64);
    site.fails(
        &["--lsn", &empty],
        &["the archived WAL ends before the target"],
    );
}

#[test]
fn a_wrong_row_a_missed_objective_and_a_question_without_answer_fail_the_drill() {
    let site = DrillSite::new(
        15,
        "[objectives]\nrpo = '1h'\nrto = '1ms'\n\
         [[drill.check]]\nname = 'rows'\nsql = 'SELECT count(*) FROM t'\nequals = '6000'\n\
         [[drill.check]]\nname = 'content'\nsql = \"SELECT md5 FROM t WHERE x = 5500\"\nequals = 'later'\n\
         [[drill.check]]\nname = 'nonsense'\nsql = 'SELECT * FROM nowhere'\nat_least = 1\n",
    );
    // One row has another content, and one is gone.
    site.cluster
        .sql("UPDATE t SET md5 = 'wrong' WHERE x = 5500; DELETE FROM t WHERE x = 1");
    site.archive_all();
    site.fails(
        &["--failed-at", "2126-01-01T00:00:00Z"],
        &[
            "rows failed: 5999, expected 6000",
            "content failed: wrong, expected later",
            "nonsense failed",
            "RTO objective",
            "RPO objective",
        ],
    );
    let list = seawall(&site.config).arg("list").run();
    assert!(list.stdout.contains("FAILED"), "{}", list.stdout);
}

#[test]
fn a_drill_that_could_check_nothing_cannot_pass() {
    // No checksums, and no pg_amcheck. What pg_verifybackup says of the files proves nothing
    // about the database, nor does a number of rows that is compared with none.
    let site = DrillSite::build(15, "", |builder| builder.without_checksums());
    site.set_bin_directory(&site.only_programs(&["postgres", "pg_verifybackup"]));
    site.fails(&[], &["nothing was checked"]);
}

#[test]
fn a_page_that_was_damaged_on_the_source_fails_the_drill() {
    let mut site = DrillSite::new(15, "");
    let file = site.cluster.sql("SELECT pg_relation_filepath('t')");
    site.cluster.sql("CHECKPOINT");
    site.cluster.stop(Stop::Fast);
    flip(&site.cluster.data().join(file.trim()), 8192 + 4000);
    site.cluster.start();
    seawall(&site.config).arg("backup").run().exits_with(3);
    site.cluster.sql("CREATE TABLE later ()");
    site.archive_all();
    let report = site.fails(
        &[],
        &["page checksums failed", "row counts failed: public.t"],
    );
    assert_eq!(outcome(&report, "page checksums").0, "failed");
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("checksums were wrong"), "{warnings}");
}

#[test]
fn a_database_that_nobody_can_open_fails_the_drill() {
    let site = DrillSite::new(15, "amcheck = 'none'\n");
    site.cluster.sql("CREATE DATABASE abroad");
    site.cluster.sql(
        "UPDATE pg_database SET datcollate = 'nowhere', datctype = 'nowhere' WHERE datname = 'abroad'",
    );
    site.archive_all();
    site.fails(
        &[],
        &[
            "row counts failed: the database abroad cannot be opened: FATAL",
            "foreign keys failed",
            "sequences failed",
        ],
    );
}

#[test]
fn a_store_that_became_slow_misses_the_objective() {
    let site = DrillSite::in_garage(15, "[objectives]\nrto = '25s'\n");
    site.passes(&[]);
    let (_, proxy) = site.garage.as_ref().expect("it lies in Garage");
    // The backup is about 4 MB.
    proxy.set(Fault::Slow(64 << 10));
    let report = site.fails(&[], &["the RTO objective is 25 s, measured "]);
    proxy.set(Fault::None);
    let dominant = &report["rto"]["dominated_by"]["phase"];
    assert_eq!(dominant, "fetch", "{}", report["rto"]);
}

#[test]
fn a_clock_that_is_wrong_fails_the_drill() {
    let mut site = DrillSite::new(15, "");
    // The store's clock: it dates objects.
    let newest = site
        .near
        .path(site.near.keys_with("/wal/00000001/").last().unwrap());
    let stored = std::fs::metadata(&newest).unwrap().modified().unwrap();
    let set = |time| {
        let file = std::fs::File::options().write(true).open(&newest).unwrap();
        file.set_modified(time).unwrap();
    };
    set(stored + Duration::from_secs(7200));
    site.fails(&[], &["clocks failed", "by the store's clock"]);
    set(stored - Duration::from_secs(7200));
    site.fails(&[], &["clocks failed", "s before"]);
    set(stored);
    site.passes(&[]);

    // This host's clock: it says when recovery ended, and when the failure was.
    let behind = Clock::new(&site.scratch);
    behind.advance(SignedDuration::from_hours(-1));
    let report = behind.call(site.drilling(&[])).run().exits_with(3).json();
    let (found, detail) = outcome(&report, "clocks");
    assert_eq!(found, "failed");
    assert!(
        detail.contains("after this host had recovered it"),
        "{detail}"
    );

    // The primary's clock: it dates commits.
    let clock = Clock::new(&site.scratch);
    clock.advance(SignedDuration::from_hours(1));
    site.cluster.stop(Stop::Fast);
    for (name, value) in clock.environment() {
        site.cluster.env(name, &value);
    }
    site.cluster.start();
    site.cluster
        .sql("INSERT INTO t VALUES (6001, 'from the future')");
    site.archive_all();
    site.fails(
        &[],
        &[
            "clocks failed: the last recovered commit",
            "the RPO cannot be trusted",
        ],
    );
}

fn flip(path: &std::path::Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}
