//! One database out of many: it is restored whole, and PostgreSQL recovers over the zeros that
//! stand for the others and drops them.

use seawall_tests::postgres::Builder;
use seawall_tests::site::PATIENCE;
use seawall_tests::{Cluster, PostgresVersion, Site, judge};

/// Everything of one database, as SQL.
fn dump(cluster: &Cluster, database: &str) -> String {
    let output = cluster.client("pg_dump").args(["-d", database]).run();
    let text = output.success().stdout;
    // Random on each call since the fixes of 2025.
    let lines = text
        .lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    lines.collect::<Vec<_>>().join("\n")
}

fn fill(cluster: &Cluster, database: &str) {
    cluster.sql_in(
        database,
        "CREATE TABLE a AS SELECT n, md5(n::text) t FROM generate_series(1, 20000) n;
         CREATE INDEX ON a (t); CREATE TABLE b (n int PRIMARY KEY, j jsonb);
         INSERT INTO b SELECT n, to_jsonb(n) FROM generate_series(1, 2000) n;
         CREATE TABLE f TABLESPACE fast AS TABLE a; VACUUM",
    );
}

/// Touches, in every database, what was there before the backup.
fn change(cluster: &Cluster, database: &str) {
    cluster.sql_in(
        database,
        "UPDATE a SET t = t || 'x' WHERE n % 7 = 0; DELETE FROM b WHERE n % 3 = 0;
         INSERT INTO f SELECT * FROM a; CREATE INDEX ON f (n)",
    );
    cluster.sql_in(database, "VACUUM (FREEZE) a");
    cluster.sql_in(database, "VACUUM b");
    cluster.sql_in(database, "TRUNCATE f");
    cluster.sql_in(database, "INSERT INTO f SELECT * FROM a WHERE n < 100");
    cluster.sql_in(database, "REINDEX TABLE a");
}

/// With `with_wal` from a chain, and with WAL behind it.
fn one_of_three(builder: Builder, with_wal: bool) {
    let site = Site::with(builder.tablespace("fast")).start();
    for database in ["shop", "books", "big one"] {
        site.cluster.sql(&format!("CREATE DATABASE \"{database}\""));
        fill(&site.cluster, database);
    }
    let mut marker = site.backup();
    let change_all = || {
        for database in ["shop", "books", "big one"] {
            change(&site.cluster, database);
        }
    };
    if with_wal {
        change_all();
        let call = site.seawall("backup").args(["--kind", "incremental"]);
        marker = call.arg("--json").run().success().json();
        assert_eq!(marker["kind"], "incremental");
        change_all();
        site.cluster.sql("CREATE DATABASE young");
    }
    site.cluster.archive_all(PATIENCE);
    let expected = dump(&site.cluster, "books");
    let oid = |name: &str| {
        let sql = format!("SELECT oid FROM pg_database WHERE datname = '{name}'");
        site.cluster.sql(&sql)
    };
    let (shop, books) = (oid("shop"), oid("books"));

    let to = site.scratch.join("restored-data");
    let under = site.scratch.join("spaces");
    let unknown = site.restoring(&to).args(["--only-database", "bocks"]).run();
    unknown.exits_with(2).says("shop, books, big one");
    assert!(!to.exists());
    let call = site
        .restoring(&to)
        .args(["--only-database", "books", "--archive", "off", "--json"])
        .arg("--tablespaces-under")
        .arg(&under);
    let output = call.run().success();
    let report = output.json();
    let left_out = report["left_out"]["databases"].as_array().unwrap();
    let names: Vec<&str> = left_out
        .iter()
        .map(|database| database["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["shop", "big one"]);
    let bytes = report["left_out"]["bytes"].as_u64().unwrap();
    assert!(bytes > 10_000_000, "{bytes}");
    let whole = marker["whole_bytes"].as_u64();
    let whole = whole.or_else(|| marker["plain_bytes"].as_u64()).unwrap();
    assert!(report["bytes"].as_u64().unwrap() + bytes <= whole);
    output.says("DROP DATABASE");
    judge::verifybackup(site.cluster.version(), &to).must_pass();
    // What stands for the others takes no space, and what is needed to drop them is there.
    let used = |oid: &str| {
        let directory = to.join("base").join(oid);
        assert!(directory.join("PG_VERSION").metadata().unwrap().len() > 0);
        assert!(directory.join("pg_filenode.map").metadata().unwrap().len() > 0);
        let files = std::fs::read_dir(directory).unwrap().flatten();
        let blocks = files.map(|file| {
            use std::os::unix::fs::MetadataExt;
            file.metadata().unwrap().blocks() * 512
        });
        blocks.sum::<u64>()
    };
    assert!(used(&shop) < 200_000, "{}", used(&shop));
    assert!(used(&books) > 5_000_000, "{}", used(&books));

    let mut restored = site.adopt("restored", &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    assert_eq!(dump(&restored, "books"), expected);
    for name in ["shop", "big one"] {
        restored.sql(&format!("DROP DATABASE \"{name}\""));
    }
    if with_wal {
        assert_eq!(restored.sql_in("young", "SELECT 1"), "1");
    }
    let left =
        restored.sql("SELECT count(*) FROM pg_database WHERE datname IN ('shop', 'big one')");
    assert_eq!(left, "0");
    assert!(!to.join("base").join(&shop).exists());
    judge::is_sound(&mut restored);
}

#[test]
fn one_database_of_three_is_right_and_the_others_can_be_dropped() {
    one_of_three(Cluster::builder(PostgresVersion::find(15)), false);
}

#[test]
fn wal_behind_a_chain_is_replayed_over_the_databases_that_were_left_out() {
    for major in [15, 18] {
        one_of_three(Cluster::builder(PostgresVersion::find(major)), true);
    }
}

#[test]
fn a_restore_that_was_killed_is_completed_with_the_same_databases_left_out() {
    let builder = Cluster::builder(PostgresVersion::find(15)).tablespace("fast");
    let site = Site::with(builder).start();
    site.cluster.sql("CREATE DATABASE shop");
    site.cluster.sql("CREATE DATABASE books");
    for database in ["shop", "books"] {
        site.cluster.sql_in(
            database,
            "CREATE TABLE a AS SELECT n, md5(n::text) t FROM generate_series(1, 100000) n;
             CREATE TABLE f TABLESPACE fast AS TABLE a",
        );
    }
    site.backup();
    site.cluster.archive_all(PATIENCE);
    let expected = dump(&site.cluster, "shop");
    let to = site.scratch.join("restored-data");
    let call = || {
        let call = site.restoring(&to);
        call.args(["--only-database", "shop", "--archive", "off"])
            .arg("--tablespaces-under")
            .arg(site.scratch.join("spaces"))
    };
    for after in [1, 5, 20, 60, 150] {
        let running = call().start();
        std::thread::sleep(std::time::Duration::from_millis(after));
        let killed = running.kill();
        if killed.code == 0 {
            break;
        }
        assert!(!to.join("global/pg_control").exists());
    }
    if !to.join("global/pg_control").exists() {
        call().run().success();
    }
    let mut restored = site.adopt("restored", &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    assert_eq!(dump(&restored, "shop"), expected);
    restored.sql("DROP DATABASE books");
}
