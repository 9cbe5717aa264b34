//! What a drill can play through: a random moment, a total loss, a migration; and what it
//! measures of the loss.

use std::time::Duration;

use seawall_tests::cli::{drill, seawall};
use seawall_tests::drilled::DrillSite;
use seawall_tests::postgres::Cluster;
use seawall_tests::process::Output;
use seawall_tests::proxy::Fault;
use seawall_tests::site::{PATIENCE, Site};
use seawall_tests::version::PostgresVersion;
use serde_json::Value;

/// A cluster with a table of the times of its own commits, a backup, and WAL behind it.
fn site(extra: &str) -> Site {
    site_of(Cluster::builder(PostgresVersion::find(15)), extra)
}

fn site_of(builder: seawall_tests::postgres::Builder, extra: &str) -> Site {
    let site = Site::configured(builder, |file| file.extra(extra)).start();
    site.cluster
        .sql("CREATE TABLE t (x bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz DEFAULT clock_timestamp(), v text DEFAULT 'some text')");
    seawall(&site.config).arg("backup").run().success();
    for _ in 0..20 {
        site.cluster.sql("INSERT INTO t DEFAULT VALUES");
    }
    site.cluster.archive_all(PATIENCE);
    site
}

fn run(site: &Site, arguments: &[&str]) -> Output {
    drill(&site.config)
        .args(["--json", "--scratch"])
        .arg(site.scratch.directory("drills"))
        .args(arguments)
        .run()
}

fn wall<'a>(report: &'a Value, claim: &str) -> &'a Value {
    let walls = report["environment"]["isolation"].as_array().unwrap();
    walls
        .iter()
        .find(|wall| wall["claim"] == claim)
        .unwrap_or_else(|| panic!("no wall {claim} in {walls:#?}"))
}

#[test]
fn a_random_moment_is_drawn_from_what_is_promised_and_restored() {
    let site = site(
        "[[drill.check]]\nname = 'nothing newer'\nsql = \"SELECT count(*) FROM t\"\nat_least = 0\n",
    );
    let mut moments = Vec::new();
    for seed in ["1", "2", "1"] {
        let report = run(&site, &["--random-time", "--seed", seed])
            .success()
            .json();
        let target = &report["target"];
        let time = |value: &Value| -> jiff::Timestamp { value.as_str().unwrap().parse().unwrap() };
        let moment = time(&target["value"]);
        let drawn = &target["drawn"];
        assert_eq!(drawn["seed"].to_string(), seed);
        assert!(
            time(&drawn["from"]) <= moment && moment < time(&drawn["until"]),
            "{target}"
        );
        if let Some(reached) = target["reached_time"].as_str() {
            let reached: jiff::Timestamp = reached.parse().unwrap();
            assert!(reached <= moment, "{target}");
        }
        moments.push(moment);
    }
    assert_eq!(
        moments[0], moments[2],
        "the same seed draws the same moment"
    );
    assert_ne!(moments[0], moments[1]);
    let clash = run(&site, &["--random-time", "--immediate"]);
    clash.exits_with(2);
}

#[test]
fn a_total_loss_is_drilled_without_the_primary_although_it_runs() {
    let builder = Cluster::builder(PostgresVersion::find(15))
        .tablespace("fast")
        .config("log_connections", "on");
    let site = site_of(builder, "");
    let before = site.cluster.log().matches("connection received").count();
    let report = run(&site, &["--scenario", "total-loss"]).success().json();
    assert_eq!(report["scope"]["scenario"], "total-loss");
    assert_eq!(report["source"]["primary_touched"], false);
    for claim in [
        "the primary's disks are unreadable",
        "the primary cannot be reached",
    ] {
        assert_eq!(wall(&report, claim)["held"], true, "{report:#}");
    }
    let hidden = wall(&report, "the primary's disks are unreadable")["proof"].to_string();
    let (_, tablespace) = &site.cluster.tablespaces()[0];
    assert!(
        hidden.contains(&tablespace.display().to_string()),
        "{hidden}"
    );
    let after = site.cluster.log().matches("connection received").count();
    assert_eq!(before, after, "the drill connected to the primary");
    assert_eq!(site.cluster.sql("SELECT count(*) FROM t"), "20");

    // What needs the primary's disks is no recovery from a total loss.
    let inside = site.cluster.data().join("scratch");
    std::fs::create_dir(&inside).unwrap();
    seawall_tests::scratch::give_to_owner(&inside);
    let refused = drill(&site.config)
        .args(["--scenario", "total-loss", "--scratch"])
        .arg(&inside)
        .run();
    let refused = refused.exits_with(4);
    assert!(
        refused.stderr.contains("data directory"),
        "{}",
        refused.stderr
    );
    let asked = run(&site, &["--scenario", "total-loss", "--measure-loss"]);
    asked.exits_with(2);
}

#[test]
fn a_total_loss_is_drilled_from_an_object_store_over_the_one_port_that_is_left() {
    let site = DrillSite::in_garage(18, "");
    let report = site.drill(&["--scenario", "total-loss"]).success().json();
    assert_eq!(wall(&report, "the primary cannot be reached")["held"], true);
    let outgoing = wall(&report, "no connection but to the repository");
    assert_eq!(outgoing["held"], true);
    let port = site.garage.as_ref().unwrap().1.address().port();
    let proof = outgoing["proof"].to_string();
    assert!(
        proof.contains("the kernel allows TCP") && proof.contains(&port.to_string()),
        "{proof}"
    );
}

#[test]
fn the_copy_is_drilled_when_the_repository_that_it_was_filled_from_is_gone() {
    let site = Site::configured(Cluster::builder(PostgresVersion::find(15)), |file| file);
    let far = site.scratch.directory("far");
    let text = std::fs::read_to_string(site.config.path()).unwrap();
    let more = format!(
        "{text}\n[[repository]]\nname = 'far'\nurl = 'file://{}'\ncopy_from = 'near'\n",
        far.display()
    );
    std::fs::write(site.config.path(), more).unwrap();
    let site = site.start();
    seawall(&site.config).arg("init").run().success();
    site.cluster.sql("CREATE TABLE t AS SELECT 1 AS x");
    seawall(&site.config).arg("backup").run().success();
    site.cluster.sql("INSERT INTO t VALUES (2)");
    site.cluster.archive_all(PATIENCE);
    seawall(&site.config).arg("copy").run().success();
    std::fs::remove_dir_all(site.scratch.join("near")).unwrap();

    let report = run(&site, &["--repository", "far", "--scenario", "total-loss"]);
    let report = report.success().json();
    assert_eq!(report["source"]["repository"], "far");
    assert_eq!(report["source"]["copy_of"], "near");
    let end = "recovery reached the end of the archived WAL";
    let checks = report["checks"].as_array().unwrap();
    let end = checks.iter().find(|check| check["name"] == end).unwrap();
    assert_eq!(end["outcome"], "passed");
    run(&site, &[]).exits_with(1);
}

#[test]
fn a_rehearsal_tells_of_each_statement_how_long_what_it_locked_and_what_it_wrote_anew() {
    let site = site("");
    site.cluster
        .sql("INSERT INTO t (v) SELECT md5(n::text) FROM generate_series(1, 20000) n");
    site.cluster.archive_all(PATIENCE);
    let migration = "-- a migration\n\
        ALTER TABLE t ADD COLUMN note text DEFAULT 'none';\n\
        ALTER TABLE t ALTER COLUMN at TYPE text USING at::text;\n\
        CREATE INDEX CONCURRENTLY t_v ON t (v);\n\
        BEGIN;\n\
        UPDATE t SET note = 'semi;colon' WHERE x < 10;\n\
        SELECT pg_sleep(0.3);\n\
        COMMIT;\n";
    let file = site.scratch.file("migration.sql", migration);
    let arguments = [
        "--scenario",
        "rehearsal",
        "--sql",
        &file.display().to_string(),
    ];
    let report = run(&site, &arguments).success().json();
    let rehearsal = &report["rehearsal"];
    assert_eq!(rehearsal["database"], "postgres");
    let statements = rehearsal["statements"].as_array().unwrap();
    let lines: Vec<u64> = statements
        .iter()
        .map(|s| s["line"].as_u64().unwrap())
        .collect();
    assert_eq!(lines, [2, 3, 4, 5, 6, 7, 8]);
    let locks = |at: usize| statements[at]["locks"].to_string();
    let rewritten = |at: usize| statements[at]["rewritten"].to_string();
    // A default that is constant rewrites nothing.
    assert!(locks(0).contains("AccessExclusiveLock") && locks(0).contains("reads and writes"));
    assert_eq!(rewritten(0), "[]");
    assert!(
        rewritten(1).contains("\"public.t\"") && rewritten(1).contains("\"new\":false"),
        "{}",
        rewritten(1)
    );
    assert!(
        statements[1]["wal_bytes"].as_u64().unwrap() > 100_000,
        "{report:#}"
    );
    assert!(
        rewritten(2).contains("\"public.t_v\"") && rewritten(2).contains("\"new\":true"),
        "{}",
        rewritten(2)
    );
    assert!(
        locks(2).contains("ShareUpdateExclusiveLock"),
        "{}",
        locks(2)
    );
    assert!(!locks(2).contains("writes"), "{}", locks(2));
    assert!(locks(4).contains("RowExclusiveLock"), "{}", locks(4));
    let slept = statements[5]["seconds"].as_f64().unwrap();
    assert!((0.3..5.0).contains(&slept), "{slept}");
    assert!(
        locks(5).contains("RowExclusiveLock"),
        "held until the commit: {}",
        locks(5)
    );
    // Production is as it was.
    assert_eq!(
        site.cluster
            .sql("SELECT count(*) FROM pg_class WHERE relname = 't_v'"),
        "0"
    );

    let file = site.scratch.file(
        "wrong.sql",
        "CREATE TABLE a ();\nALTER TABLE nowhere ADD x int;\nCREATE TABLE b ();",
    );
    let arguments = [
        "--scenario",
        "rehearsal",
        "--sql",
        &file.display().to_string(),
    ];
    let report = run(&site, &arguments).exits_with(3).json();
    let reasons = report["reasons"].to_string();
    assert!(
        reasons.contains("the migration failed: line 2") && reasons.contains("nowhere"),
        "{reasons}"
    );
    assert_eq!(report["rehearsal"]["not_run"], 1);

    let file = site.scratch.file("psql.sql", "\\i other.sql");
    let arguments = [
        "--scenario",
        "rehearsal",
        "--sql",
        &file.display().to_string(),
    ];
    let refused = run(&site, &arguments).exits_with(2);
    assert!(refused.stderr.contains("line 1"), "{}", refused.stderr);

    let file = site
        .scratch
        .file("publisher.sql", "CREATE TABLE a ();\nDROP SUBSCRIPTION s;");
    let refused = rehearse(&site, &file).exits_with(2);
    assert!(
        refused.stderr.contains("line 2: DROP SUBSCRIPTION"),
        "{}",
        refused.stderr
    );
}

fn rehearse(site: &Site, file: &std::path::Path) -> Output {
    let file = file.display().to_string();
    run(site, &["--scenario", "rehearsal", "--sql", &file])
}

#[test]
fn a_rehearsal_judges_as_psql_does_and_keeps_what_must_not_be_shown() {
    let builder =
        Cluster::builder(PostgresVersion::find(15)).config("max_prepared_transactions", "5");
    let site = site_of(builder, "[drill]\nrehearsal_budget = '15s'\n");
    for sql in [
        "CREATE TABLE gone (x int)",
        "CREATE TABLE held (x int)",
        // The source wants all statements in its log.
        "ALTER DATABASE postgres SET log_statement = 'all'",
        "ALTER DATABASE postgres SET log_min_error_statement = 'error'",
        "CREATE SUBSCRIPTION s CONNECTION 'host=/nowhere dbname=x' PUBLICATION p WITH (connect = false)",
        "BEGIN; INSERT INTO held VALUES (1); PREPARE TRANSACTION 'left behind'",
    ] {
        site.cluster.sql(sql);
    }
    site.cluster.archive_all(PATIENCE);

    let migration = "BEGIN;\n\
        SET TRANSACTION ISOLATION LEVEL SERIALIZABLE;\n\
        ALTER TABLE t ALTER COLUMN at TYPE text USING at::text;\n\
        COMMIT AND CHAIN;\n\
        LOCK TABLE t IN SHARE MODE;\n\
        COMMIT;\n\
        CREATE ROLE app PASSWORD 'geheim';\n\
        DROP TABLE gone;\n\
        DO $$ BEGIN PERFORM pg_sleep(1); COMMIT; END $$;\n\
        BEGIN; REINDEX TABLE pg_class; SELECT 1; COMMIT;\n";
    let output = rehearse(&site, &site.scratch.file("well.sql", migration)).success();
    assert!(!output.stdout.contains("geheim"), "{}", output.stdout);
    let report = output.json();
    let statements = report["rehearsal"]["statements"].as_array().unwrap();
    assert_eq!(statements.len(), 13, "{report:#}");
    let rewritten: Vec<usize> = statements[..9]
        .iter()
        .map(|statement| statement["rewritten"].as_array().unwrap())
        .map(|all| {
            all.iter()
                .filter(|one| one["relation"] == "public.t")
                .count()
        })
        .collect();
    assert_eq!(rewritten, [0, 0, 1, 0, 0, 0, 0, 0, 0], "{statements:#?}");
    assert!(
        statements[4]["locks"].to_string().contains("\"ShareLock\""),
        "{statements:#?}"
    );
    assert_eq!(statements[6]["sql"], "CREATE ROLE app PASSWORD '…'");
    let dropped = statements[7]["locks"].to_string();
    assert!(
        dropped.contains("public.gone") && dropped.contains("reads and writes"),
        "{dropped}"
    );
    let slept = statements[8]["seconds"].as_f64().unwrap();
    assert!((1.0..1.9).contains(&slept), "slept twice: {slept}");
    let warnings = report["warnings"].to_string();
    assert!(
        warnings.contains("the subscription s of database postgres was disabled")
            && warnings.contains("left behind"),
        "{warnings}"
    );

    for (sql, wanted) in [
        ("LOCK TABLE t;", "25P01"),
        ("SAVEPOINT a;", "25P01"),
        ("ALTER TABLE held ADD y int;", "prepared transaction"),
        ("SELECT pg_sleep(600);", "drill.rehearsal_budget, 15s"),
        ("ALTER ROLE nobody PASSWORD 'geheim';", "nobody"),
        (
            "DO $$ BEGIN EXECUTE 'ALTER ROLE nobody PASSWORD ''geheim'' oops'; END $$;",
            "line 1",
        ),
    ] {
        let failed = rehearse(&site, &site.scratch.file("fails.sql", sql)).exits_with(3);
        assert!(!failed.stdout.contains("geheim"), "{}", failed.stdout);
        let reasons = failed.json()["reasons"].to_string();
        assert!(reasons.contains(wanted), "{sql}: {reasons}");
    }
}

#[test]
fn a_script_is_cut_as_psql_cuts_it() {
    let site = Site::of(15).start();
    let text = "SELECT 1; SELECT ';' AS \"a;b\";\n\
        /* ; /* ; */ */ DO $x$ BEGIN PERFORM 1; END; $x$;\n\
        SELECT E'\\';' ; SELECT '\\' ; -- ;\n\
        CREATE FUNCTION f(int DEFAULT 1) RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE WHEN $1 > 0 THEN 1 END; SELECT 2; END;\n\
        CREATE TABLE r (x int); CREATE RULE ru AS ON INSERT TO r DO ALSO (SELECT 1; SELECT 2);\n\
        BEGIN; SELECT 1 AS a$b; COMMIT;\n\
        SELECT U&'d\\0061t;' ; SELECT 1\n";
    let ours = seawall_drill::rehearsal::statements(text).unwrap();
    let file = site.scratch.file("script.sql", text);
    // It echoes each statement as it sends it, with its semicolon.
    let output = site
        .cluster
        .client("psql")
        .args(["-X", "-q", "-t", "-A", "-e", "-d", "postgres", "-f"])
        .arg(&file)
        .run();
    let echoed = &output.success().stdout;
    let mut rest = echoed.as_str();
    for statement in &ours {
        let at = rest
            .find(&statement.sql)
            .unwrap_or_else(|| panic!("psql did not send {:?} next:\n{rest}", statement.sql));
        rest = &rest[at + statement.sql.len()..];
        assert!(
            rest.trim_start_matches(' ').starts_with([';', '\n']),
            "psql sent more than {:?}",
            statement.sql
        );
    }
    assert_eq!(ours.len(), 13, "{ours:#?}");
}

#[test]
fn with_a_heartbeat_the_age_of_what_was_recovered_is_known_and_the_loss_counted() {
    let site = site("[objectives]\nrpo = '1h'\n");
    let silent = run(&site, &[]).success().json();
    assert_eq!(silent["rpo"]["upper_bound"], true);
    // What was archived after a failure would not have been there.
    let before = jiff::Timestamp::now() - Duration::from_secs(3600);
    let report = run(&site, &["--failed-at", &before.to_string()]).exits_with(3);
    let report = report.json();
    assert_eq!(report["rpo"]["measured_seconds"], Value::Null);
    let method = report["rpo"]["method"].to_string();
    assert!(method.contains("after the moment of failure"), "{method}");

    for _ in 0..2 {
        seawall(&site.config).arg("heartbeat").run().success();
        std::thread::sleep(Duration::from_millis(1100));
    }
    site.cluster.archive_all(PATIENCE);
    let lost = 37;
    for _ in 0..lost {
        site.cluster.sql("INSERT INTO t DEFAULT VALUES");
    }
    let report = run(&site, &["--measure-loss"]).success().json();
    let rpo = &report["rpo"];
    assert_eq!(rpo["upper_bound"], false, "{rpo:#}");
    assert!(
        rpo["method"].to_string().contains("a heartbeat every 1 s"),
        "{rpo:#}"
    );
    assert_eq!(rpo["wal_bytes"]["exact"], true);
    assert_eq!(rpo["transactions"]["exact"], false);
    let transactions = rpo["transactions"]["count"].as_u64().unwrap();
    assert!((lost..lost + 3).contains(&transactions), "{rpo:#}");
    let bytes = rpo["wal_bytes"]["count"].as_u64().unwrap();
    assert!((lost * 100..1 << 20).contains(&bytes), "{rpo:#}");
    assert_eq!(report["source"]["primary_touched"], true);
    assert!(rpo["primary_clock_skew_seconds"].as_f64().unwrap().abs() < 1.0);
    assert!(rpo["store_clock_skew_seconds"].as_f64().unwrap().abs() < 2.0);

    // Without the primary the same is estimated, and says so.
    let report = run(&site, &[]).success().json();
    assert_eq!(report["rpo"]["transactions"]["exact"], false);
    assert_eq!(report["source"]["primary_touched"], false);
}

#[test]
fn a_primary_that_goes_on_archiving_during_a_drill_leaves_the_rpo_known() {
    let site = DrillSite::in_garage(15, "[objectives]\nrpo = '1h'\n");
    let (_, proxy) = site.garage.as_ref().expect("it lies in Garage");
    // The backup is about 4 MB: the restore takes longer than clocks may differ.
    proxy.set(Fault::Slow(400 << 10));
    let began = jiff::Timestamp::now();
    let mut running = site.drilling(&[]).start();
    while running.is_running() {
        site.cluster.sql("INSERT INTO t VALUES (0, 'meanwhile')");
        site.cluster.switch_wal();
        std::thread::sleep(Duration::from_millis(500));
    }
    let report = running.wait().success().json();
    let reached: jiff::Timestamp = report["target"]["reached_time"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let later = reached.duration_since(began).as_secs_f64();
    assert!(later > 6.0, "nothing was archived meanwhile: {later} s");
    let rpo = &report["rpo"];
    let lost = rpo["measured_seconds"].as_f64();
    assert!(lost.is_some_and(|lost| lost < 60.0), "{rpo:#}");
    let method = rpo["method"].to_string();
    assert!(method.contains("that was archived then"), "{method}");
}
