//! Targets whose place nobody recorded are found by reading archived WAL: restore points of
//! anyone's making, and the ends of transactions.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use seawall::postgres::Lsn;
use seawall_tests::postgres::Stop;
use seawall_tests::site::PATIENCE;
use seawall_tests::{Cluster, Site};
use serde_json::Value;

/// A running site with a table `t`, segments of 1 MiB and a first backup.
fn backed_up() -> (Site, Value) {
    let builder = Cluster::builder(seawall_tests::PostgresVersion::find(15)).segment_size(1);
    let site = Site::with(builder).start();
    site.cluster.sql("CREATE TABLE t (n int)");
    let backup = site.backup();
    (site, backup)
}

fn insert(cluster: &Cluster, n: u32) {
    cluster.sql(&format!("INSERT INTO t VALUES ({n})"));
}

/// Makes a restore point as people do without Seawall; its position.
fn point(cluster: &Cluster, name: &str) -> String {
    cluster.sql(&format!("SELECT pg_create_restore_point('{name}')"))
}

fn rows(cluster: &Cluster) -> String {
    cluster.sql("SELECT string_agg(n::text, ',' ORDER BY n) FROM t")
}

/// Restores with these arguments, starts, and returns what the restore said, as JSON and as
/// text, and the rows.
fn reached(site: &Site, name: &str, args: &[&str]) -> (Value, String, String) {
    let to = site.scratch.join(format!("{name}-data"));
    let output = site.restoring(&to).args(args).arg("--json").run().success();
    let mut restored = site.adopt(name, &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    let rows = rows(&restored);
    restored.stop(Stop::Immediate);
    (output.json(), output.stderr, rows)
}

fn list(site: &Site, args: &[&str]) -> Value {
    let call = site.seawall("list").args(args).arg("--json");
    call.run().success().json()["repositories"][0]["systems"][0].clone()
}

/// Name, timeline and position of each restore point that `list` shows.
fn points(listed: &Value) -> Vec<(String, u64, String)> {
    let points = listed["restore_points"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let each = |p: &Value| {
        (
            text(&p["name"]),
            p["timeline"].as_u64().unwrap(),
            text(&p["lsn"]),
        )
    };
    points.map(each).collect()
}

#[test]
fn a_restore_point_of_anyones_making_is_found_recorded_and_reached() {
    let (site, first) = backed_up();
    insert(&site.cluster, 1);
    let lsn = point(&site.cluster, "by hand");
    insert(&site.cluster, 2);
    let again = point(&site.cluster, "twice");
    // A few segments, so that several are read at a time.
    site.cluster
        .sql("CREATE TABLE u AS SELECT repeat('x', 500) FROM generate_series(1, 10000)");
    let second = site.backup();
    insert(&site.cluster, 3);
    point(&site.cluster, "twice");
    insert(&site.cluster, 4);
    site.cluster.archive_all(PATIENCE);

    // Whoever may not write into the repository finds it all the same.
    let system = site.near.root().join("main").join(site.cluster.system_id());
    let mode = |mode| std::fs::set_permissions(&system, PermissionsExt::from_mode(mode)).unwrap();
    mode(0o550);
    let (json, said, rows) = reached(&site, "unwritable", &["--name", "by hand"]);
    assert_eq!((rows.as_str(), &json["backup"]), ("1", &first["id"]));
    assert!(said.contains("not recorded"), "{said}");
    assert_eq!(points(&list(&site, &[])), []);
    mode(0o750);

    let (json, said, rows) = reached(&site, "hand", &["--name", "by hand"]);
    assert_eq!((rows.as_str(), &json["backup"]), ("1", &first["id"]));
    assert!(said.contains("looking for the restore point"), "{said}");
    let known = ("by hand".to_owned(), 1, lsn);
    assert_eq!(points(&list(&site, &[])), std::slice::from_ref(&known));
    let (_, said, rows) = reached(&site, "known", &["--name", "by hand"]);
    assert_eq!(rows, "1");
    assert!(!said.contains("looking for"), "it was read again: {said}");

    // Of two the newest backup's. From the backup before PostgreSQL stops at the first.
    let (json, _, rows) = reached(&site, "twice", &["--name", "twice"]);
    assert_eq!((rows.as_str(), &json["backup"]), ("1,2,3", &second["id"]));
    let warnings = json["warnings"].to_string();
    assert!(warnings.contains("was not looked for"), "{warnings}");
    let id = first["id"].as_str().unwrap();
    let args = ["--name", "twice", "--backup", id];
    let (_, _, rows) = reached(&site, "twice-first", &args);
    assert_eq!(rows, "1,2");
    let listed = points(&list(&site, &["--scan"]));
    assert_eq!(listed.len(), 3, "{listed:?}");
    assert_eq!(listed[1], ("twice".to_owned(), 1, again));

    let to = site.scratch.join("none-data");
    let refused = site.restoring(&to).args(["--name", "nobody's"]).run();
    refused
        .exits_with(5)
        .says("no restore point")
        .says("by hand")
        .says("--scan");
    assert!(!to.exists(), "nothing was touched");
}

#[test]
fn a_restore_point_made_during_a_backup_is_reached_from_the_backup_before() {
    let (site, first) = backed_up();
    site.cluster
        .sql("CREATE TABLE u AS SELECT repeat('x', 500) FROM generate_series(1, 100000)");
    let done = AtomicBool::new(false);
    let (made, second) = std::thread::scope(|scope| {
        let maker = scope.spawn(|| {
            let mut made = Vec::new();
            while !done.load(Ordering::SeqCst) {
                let n = made.len() as u32;
                insert(&site.cluster, n);
                made.push(
                    point(&site.cluster, &format!("p{n}"))
                        .parse::<Lsn>()
                        .unwrap(),
                );
            }
            made
        });
        let second = site.backup();
        done.store(true, Ordering::SeqCst);
        (maker.join().unwrap(), second)
    });
    site.cluster.archive_all(PATIENCE);
    let lsn = |field: &str| second[field].as_str().unwrap().parse::<Lsn>().unwrap();
    let (start, stop) = (lsn("start_lsn"), lsn("stop_lsn"));
    let inside = made.iter().position(|lsn| start < *lsn && *lsn < stop);
    let inside = inside.expect("a point was made between start and stop");
    let name = format!("p{inside}");
    let wanted: Vec<String> = (0..=inside).map(|n| n.to_string()).collect();
    for (directory, how) in [("searched", "reading WAL"), ("recorded", "its record")] {
        let (json, _, rows) = reached(&site, directory, &["--name", &name]);
        assert_eq!(json["backup"], first["id"], "by {how}");
        assert_eq!(rows, wanted.join(","), "by {how}");
    }
    let id = second["id"].as_str().unwrap();
    let to = site.scratch.join("second-data");
    let refused = site
        .restoring(&to)
        .args(["--name", &name, "--backup", id])
        .run();
    refused.exits_with(5).says("ends after the target");
}

#[test]
fn a_transaction_that_was_rolled_back_is_a_target_and_one_that_never_ends_is_none() {
    let (site, first) = backed_up();
    insert(&site.cluster, 1);
    let rolled_back = site
        .cluster
        .sql("BEGIN; INSERT INTO t VALUES (0); SELECT pg_current_xact_id()::text; ROLLBACK;");
    insert(&site.cluster, 2);
    let second = site.backup();
    insert(&site.cluster, 3);
    site.cluster.archive_all(PATIENCE);
    let (json, _, rows) = reached(&site, "rollback", &["--xid", &rolled_back]);
    assert_eq!((rows.as_str(), &json["backup"]), ("1", &first["id"]));

    let to = site.scratch.join("never-data");
    for xid in ["100000", "4294967296000"] {
        let refused = site.restoring(&to).args(["--xid", xid]).run().exits_with(5);
        refused
            .says("neither commits nor aborts")
            .says("one can reach LSN");
        assert!(!to.exists(), "nothing was touched");
    }

    // What cannot be read leaves the answer to recovery, as before, and says so.
    let last = site.near.wal_after(&second).pop().expect("a segment");
    let whole = site.near.replace(&last, b"no zstd");
    let output = site
        .restoring(&to)
        .args(["--xid", "100000", "--json"])
        .run();
    let warnings = output.success().json()["warnings"].to_string();
    assert!(warnings.contains("is not known"), "{warnings}");
    std::fs::remove_dir_all(&to).unwrap();
    // A name may be anywhere: there it is an error, unless the backup is named.
    let output = site.restoring(&to).args(["--name", "unheard"]).run();
    let segment = &last.rsplit('/').next().unwrap()[..24];
    output.exits_with(1).says(segment).says("--backup");
    let id = second["id"].as_str().unwrap();
    let args = ["--name", "unheard", "--backup", id, "--json"];
    let warnings = site.restoring(&to).args(args).run().success().json()["warnings"].to_string();
    assert!(warnings.contains("is not known"), "{warnings}");
    site.near.replace(&last, &whole);
}

#[test]
fn a_scan_lists_every_restore_point_once_and_on_its_own_timeline() {
    let (mut site, _) = backed_up();
    let one = point(&site.cluster, "one");
    site.seawall("restore-point")
        .arg("recorded")
        .run()
        .success();
    let recorded = points(&list(&site, &[])).remove(0);
    site.cluster.archive_all(PATIENCE);
    // Both timelines have a segment with this one.
    let shared = point(&site.cluster, "shared");
    insert(&site.cluster, 1);
    let target = site.cluster.sql("SELECT pg_current_wal_insert_lsn()");
    insert(&site.cluster, 2);
    let left = point(&site.cluster, "left behind");
    site.cluster.archive_all(PATIENCE);
    site.cluster.stop(Stop::Fast);
    let args = ["--lsn", &target, "--archive", "on", "--action", "promote"];
    let second = site.restore_and_start("second", &args);
    seawall_tests::wait_until("it is open", PATIENCE, || !second.in_recovery());
    let two = point(&second, "two");
    second.archive_all(PATIENCE);
    second.wait_until_archived("00000002.history", PATIENCE);

    let text = site.seawall("list").arg("--scan").run().success().stdout;
    assert!(
        text.contains("left behind") && text.contains("segments for restore points"),
        "{text}"
    );
    let on = |name: &str, timeline, lsn: &str| (name.to_owned(), timeline, lsn.to_owned());
    let wanted = BTreeSet::from([
        on("one", 1, &one),
        recorded,
        on("shared", 1, &shared),
        on("left behind", 1, &left),
        on("two", 2, &two),
    ]);
    // They are recorded, and not twice by a second scan.
    for args in [&[][..], &["--scan"], &[]] {
        let listed = points(&list(&site, args));
        assert_eq!(listed.len(), 5, "{listed:?}");
        assert_eq!(BTreeSet::from_iter(listed), wanted);
        assert_eq!(site.near.keys_with("/points/").len(), 5);
    }

    // A segment that cannot be read is named, and hides nothing else.
    for key in site.near.keys_with("/points/") {
        site.near.remove(&key);
    }
    let segments = site.near.keys_with("/wal/00000002/");
    let broken = segments
        .iter()
        .find(|key| !key.contains(".partial-"))
        .unwrap();
    site.near.replace(broken, b"no zstd");
    let listed = list(&site, &["--scan"]);
    let names: Vec<String> = points(&listed).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["one", "recorded", "shared", "left behind"]);
    let unreadable = &listed["scan"]["unreadable"][0]["segment"];
    assert_eq!(
        unreadable.as_str(),
        broken.rsplit('/').next().unwrap().get(..24)
    );
}
