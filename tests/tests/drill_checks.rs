//! What drills check in a restored database: each check passes where all is well, fails for what
//! is planted, and says so where it could not be made.

use seawall_tests::drilled::{DrillSite, check, outcome};

const COMPARED: &str = "rows_may_shrink = 5.0\n\
    [[drill.check]]\nname = 'sum'\nsql = 'SELECT sum(value) FROM measure'\nwithin_percent_of_last = 10\n\
    [[drill.check]]\nname = 'rows'\nsql = 'SELECT count(*) FROM t'\nequals = '6000'\n";

/// What the checks look at: names that need quotes, keys of every kind, sequences of every kind.
const SCHEMA: &str = r#"
    CREATE SCHEMA "Odd ""Schema.";
    CREATE TABLE "Odd ""Schema."."p.arent" (id serial PRIMARY KEY, b int, UNIQUE (id, b));
    CREATE TABLE child (
        id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        "Parent" int CONSTRAINT "to ""parent""" REFERENCES "Odd ""Schema."."p.arent",
        b int,
        FOREIGN KEY ("Parent", b) REFERENCES "Odd ""Schema."."p.arent" (id, b) MATCH FULL
            DEFERRABLE);
    CREATE TABLE parts (id bigint PRIMARY KEY) PARTITION BY RANGE (id);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
    CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (200);
    CREATE TABLE of_parts (id smallint REFERENCES parts) PARTITION BY RANGE (id);
    CREATE TABLE of_parts_1 PARTITION OF of_parts FOR VALUES FROM (0) TO (1000);
    INSERT INTO "Odd ""Schema."."p.arent" (b) SELECT x FROM generate_series(1, 20) x;
    INSERT INTO child ("Parent", b) SELECT x, x FROM generate_series(1, 20) x;
    INSERT INTO child DEFAULT VALUES;
    INSERT INTO parts SELECT generate_series(0, 199);
    INSERT INTO of_parts SELECT generate_series(50, 150);
    CREATE SEQUENCE down INCREMENT -1;
    CREATE TABLE downwards (id int DEFAULT nextval('down'));
    ALTER SEQUENCE down OWNED BY downwards.id;
    INSERT INTO downwards SELECT FROM generate_series(1, 9);
    CREATE UNLOGGED TABLE passing (id serial);
    INSERT INTO passing SELECT FROM generate_series(1, 9);
    CREATE TABLE measure (value int);
    INSERT INTO measure VALUES (60), (40);
    CREATE INDEX stale ON measure (value);
    UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'stale'::regclass;
    CREATE TABLE loose (a int);
    INSERT INTO loose VALUES (1);
    ALTER TABLE loose ADD CONSTRAINT small CHECK (a < 1) NOT VALID;
    CREATE TABLE fed (id serial);
    CREATE SUBSCRIPTION feeding CONNECTION 'host=127.0.0.1' PUBLICATION p
        WITH (connect = false, slot_name = NONE, enabled = false);
    INSERT INTO pg_subscription_rel SELECT oid, 'fed'::regclass, 'r', NULL FROM pg_subscription;
    CREATE TABLE indexed (a int);
    INSERT INTO indexed SELECT generate_series(1, 100);
    CREATE INDEX indexed_a ON indexed (a);
"#;

/// Rows that the index of `indexed` never hears of.
const LAMENT: &str = "
    UPDATE pg_index SET indisready = false WHERE indexrelid = 'indexed_a'::regclass;
    INSERT INTO indexed SELECT generate_series(101, 110);
    UPDATE pg_index SET indisready = true WHERE indexrelid = 'indexed_a'::regclass;";

fn has_amcheck(site: &DrillSite) -> bool {
    site.cluster.version().has_extension("amcheck")
}

fn checks_pass_and_fail_for_what_is_planted(version: u32) {
    let site = DrillSite::new(version, COMPARED);
    site.cluster.sql("CREATE DATABASE \"Other 'one'\"");
    site.cluster.sql("ALTER DATABASE template1 ALLOW_CONNECTIONS true; CREATE DATABASE shut; ALTER DATABASE shut ALLOW_CONNECTIONS false");
    site.cluster.sql(SCHEMA);
    site.cluster.sql_in(
        "Other 'one'",
        "CREATE TABLE here AS SELECT generate_series(1, 7)",
    );
    site.archive_all();

    // The first drill has nothing to compare with, and says so.
    let first = site.passes(&[]);
    for (name, expected, words) in [
        ("WAL without a hole", "passed", "one after the other"),
        ("clocks", "passed", "not yet"),
        ("recovery reached the end of the archived WAL", "passed", ""),
        ("rows", "passed", "6000"),
        ("sum", "not_tested", "no drill before this one passed"),
        (
            "row counts",
            "not_tested",
            "no drill before this one passed",
        ),
        ("foreign keys", "passed", "3 of 3"),
        ("sequences", "passed", "4 of 4"),
        ("page checksums", "passed", "none bad"),
    ] {
        let (found, detail) = outcome(&first, name);
        assert_eq!(found, expected, "{name}: {detail}");
        assert!(detail.contains(words), "{name}: {detail}");
    }
    let (amcheck, detail) = outcome(&first, "pg_amcheck");
    match has_amcheck(&site) {
        true => assert!(
            amcheck == "passed" && detail.contains("not shut, template0"),
            "{detail}"
        ),
        false => assert!(
            amcheck == "not_tested" && detail.contains("amcheck is not installed"),
            "{detail}"
        ),
    }
    assert_eq!(check(&first, "sum")["answer"], "100");
    assert!(check(&first, "foreign keys").get("answer").is_none());
    assert_eq!(first["rows"]["postgres"]["public.t"], 6000);
    assert_eq!(
        first["rows"]["postgres"]["\"Odd \"\"Schema.\".\"p.arent\""],
        20
    );
    assert_eq!(first["rows"]["Other 'one'"]["public.here"], 7);
    assert_eq!(first["rows"]["postgres"].get("public.passing"), None);
    let warnings = first["warnings"].to_string();
    for words in ["small of public.loose", "index public.stale"] {
        assert!(warnings.contains(words), "{words}: {warnings}");
    }

    // The second one compares.
    let second = site.passes(&[]);
    let (compared, detail) = outcome(&second, "row counts");
    assert_eq!(compared, "passed", "{detail}");
    assert!(detail.contains(first["id"].as_str().unwrap()), "{detail}");
    assert_eq!(outcome(&second, "sum").0, "passed");

    // All at once, and each is named. The drill took no more than what was wrong: the table of
    // the owner's other question is as it was.
    site.cluster.sql(
        r#"INSERT INTO "Odd ""Schema."."p.arent" VALUES (1000, 1);
        INSERT INTO downwards VALUES (-100);
        SET session_replication_role = replica;
        INSERT INTO child ("Parent") VALUES (21), (22);
        INSERT INTO of_parts VALUES (500);
        RESET session_replication_role;
        DELETE FROM parts WHERE id < 20;
        UPDATE measure SET value = value / 2;
        DROP TABLE loose;
        INSERT INTO fed VALUES (7);"#,
    );
    site.cluster.sql(LAMENT);
    site.archive_all();
    let report = site.fails(
        &[],
        &[
            "of public.child in postgres (2 rows without the rows that they refer to)",
            "of public.of_parts in postgres (1 row without the row that it refers to)",
            "public.parts in postgres lost 10.0 % of its rows, 200 before, 180 now",
            "public.loose in postgres is gone",
            "sum failed: 50, expected within 10 % of 100",
        ],
    );
    for name in ["row counts", "foreign keys", "sum"] {
        assert_eq!(outcome(&report, name).0, "failed", "{name}");
    }
    // It may be so on the source.
    assert_eq!(outcome(&report, "sequences").0, "not_tested");
    let warnings = report["warnings"].to_string().replace('\\', "");
    for words in [
        // WAL is up to 32 values ahead of what was taken from a sequence.
        r#""Odd ""Schema."."p.arent_id_seq" in postgres is at 33, and "Odd ""Schema."."p.arent".id has 1000"#,
        "public.down in postgres is at -33, and public.downwards.id has -100",
    ] {
        assert!(warnings.contains(words), "{words}: {warnings}");
    }
    assert!(!warnings.contains("public.fed"), "{warnings}");
    assert_eq!(outcome(&report, "rows").0, "passed");
    if has_amcheck(&site) {
        let (amcheck, detail) = outcome(&report, "pg_amcheck");
        assert_eq!(amcheck, "failed");
        let words = "indexed_a\": ERROR:  heap tuple";
        assert!(detail.contains(words), "{detail}");
    }
    // A drill that failed is nothing to compare with: the next one fails for the same.
    site.fails(&[], &["row counts failed", "sum failed"]);
    // It was meant, and the owner says so; that is what the next one compares with.
    site.cluster.sql(
        "SET session_replication_role = replica;
        DELETE FROM child WHERE \"Parent\" > 20; DELETE FROM of_parts WHERE id > 200 OR id < 20;
        UPDATE measure SET value = value * 2; REINDEX TABLE indexed",
    );
    site.archive_all();
    site.configure("rows_may_shrink = 5.0", "rows_may_shrink = 100");
    let accepted = site.passes(&[]);
    assert_eq!(accepted["rows"]["postgres"]["public.parts"], 180);
    assert_eq!(accepted["rows"]["postgres"].get("public.parts_1"), None);
    site.configure("rows_may_shrink = 100", "rows_may_shrink = 0");
    assert_eq!(outcome(&site.passes(&[]), "row counts").0, "passed");
}

#[test]
fn checks_pass_where_all_is_well_and_fail_for_what_is_planted_on_15() {
    checks_pass_and_fail_for_what_is_planted(15);
}

#[test]
fn checks_pass_where_all_is_well_and_fail_for_what_is_planted_on_18() {
    checks_pass_and_fail_for_what_is_planted(18);
}

#[test]
fn a_sample_of_pg_amcheck_finds_what_is_wrong_in_it_and_says_how_much_it_is() {
    let site = DrillSite::new(15, "amcheck = 'sample'\n");
    site.cluster.sql(SCHEMA);
    site.cluster.sql("CREATE DATABASE \"Other.One\"");
    site.cluster.sql_in(
        "Other.One",
        "CREATE TABLE \"a.b*\" AS SELECT generate_series(1, 7)",
    );
    site.archive_all();
    let report = site.passes(&[]);
    let (sampled, detail) = outcome(&report, "pg_amcheck");
    assert_eq!(sampled, "passed");
    assert!(
        detail.contains(" of ") && detail.contains("at random, seed "),
        "{detail}"
    );
    let commands = report["evidence"].to_string();
    assert!(commands.contains("Other.One") && !commands.contains("--all"));

    site.cluster.sql(LAMENT);
    // The largest are in every sample.
    site.cluster
        .sql("INSERT INTO indexed SELECT generate_series(111, 200000)");
    site.archive_all();
    site.fails(&[], &["pg_amcheck failed"]);

    site.configure("'sample'", "'none'");
    let report = site.passes(&[]);
    let (none, detail) = outcome(&report, "pg_amcheck");
    assert_eq!(none, "not_tested");
    assert!(detail.contains("drill.amcheck"), "{detail}");
}

#[test]
fn what_there_was_no_time_for_was_not_tested_and_is_counted() {
    let site = DrillSite::new(15, "check_budget = '0s'\namcheck = 'sample'\n");
    site.cluster.sql(SCHEMA);
    site.archive_all();
    let report = site.passes(&[]);
    for (name, words) in [
        ("row counts", "tables not counted, for lack of time (0s)"),
        ("foreign keys", "none of 3 was checked within 0s"),
        (
            "sequences",
            "none of 4 was compared; 4 not, for lack of time",
        ),
        ("pg_amcheck", "were not done within 0s"),
    ] {
        let (found, detail) = outcome(&report, name);
        assert_eq!(found, "not_tested", "{name}: {detail}");
        assert!(detail.contains(words), "{name}: {detail}");
    }
    assert_eq!(report.get("rows"), None);
}

#[test]
fn a_drill_to_a_moment_is_not_compared_with_one_of_all_there_is() {
    let site = DrillSite::new(15, COMPARED);
    site.cluster.sql(SCHEMA);
    site.archive_all();
    site.passes(&[]);
    site.cluster.sql("DELETE FROM parts WHERE id < 50");
    let lsn = site.cluster.sql("SELECT pg_current_wal_lsn()");
    site.archive_all();
    let report = site.passes(&["--lsn", &lsn]);
    for name in ["row counts", "sum"] {
        let (found, detail) = outcome(&report, name);
        assert_eq!(found, "not_tested");
        assert!(detail.contains("a target was chosen"), "{detail}");
    }
    assert_eq!(report["rows"]["postgres"]["public.parts"], 150);
    // Nor one that may have ended at a gap; and nothing is compared with it.
    let early = site.passes(&["--end-at-gap"]);
    assert_eq!(outcome(&early, "row counts").0, "not_tested");
    assert_eq!(early["target"]["end_at_gap"], true);
    site.fails(
        &[],
        &["row counts failed: public.parts in postgres lost 25.0 %"],
    );
}

/// Settings of the owner's for applications, and what they left in the environment.
#[test]
fn nothing_of_the_owners_leads_pg_amcheck_astray_or_stands_in_its_way() {
    let site = DrillSite::new(
        15,
        "amcheck = 'sample'\n[[drill.check]]\nname = 'found'\nsql = 'SELECT count(*) FROM mine'\nequals = '3'\n",
    );
    site.cluster.sql(
        "CREATE FUNCTION no_ddl() RETURNS event_trigger LANGUAGE plpgsql AS
            'BEGIN RAISE EXCEPTION ''not here''; END';
        CREATE SCHEMA app; CREATE TABLE app.mine AS SELECT generate_series(1, 3);
        CREATE EVENT TRIGGER guard ON ddl_command_start EXECUTE FUNCTION no_ddl();",
    );
    site.cluster.sql(
        "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'",
    );
    site.cluster
        .sql_in("latin", "CREATE TABLE \"gr\u{f6}\u{df}e\" AS SELECT 1 AS x");
    site.cluster.sql_in(
        "latin",
        "CREATE TABLE long AS SELECT x FROM generate_series(1, 100000) x; CREATE INDEX ON long (x)",
    );
    site.cluster
        .sql("ALTER DATABASE postgres SET search_path = app");
    site.cluster.sql(
        "ALTER DATABASE latin SET default_transaction_read_only = on;
        ALTER DATABASE latin SET statement_timeout = '5ms'",
    );
    site.archive_all();
    let elsewhere = [
        ("PGHOSTADDR", "127.0.0.1"),
        ("PGREQUIREAUTH", "scram-sha-256"),
        ("PGCHANNELBINDING", "require"),
        ("PGCLIENTENCODING", "SQL_ASCII"),
        ("PGSERVICE", "production"),
        ("PGOPTIONS", "-c no.such=1 -c no_such=1"),
    ];
    let report = site
        .drilling(&[])
        .with(|run| {
            elsewhere
                .iter()
                .fold(run, |run, (name, value)| run.env(name, value))
        })
        .run()
        .success()
        .json();
    let (found, detail) = outcome(&report, "pg_amcheck");
    assert_eq!(found, "passed", "{detail}");
    let steps = report["evidence"].to_string();
    assert!(
        steps.contains("latin.public.") && !steps.contains("such"),
        "{steps}"
    );
    assert_eq!(outcome(&report, "found").0, "passed");
}

#[test]
fn a_question_that_takes_longer_than_its_budget_fails_with_words() {
    let site = DrillSite::new(
        15,
        "check_budget = '1s'\namcheck = 'none'\n[[drill.check]]\nname = 'slow'\nsql = 'SELECT 1 FROM pg_sleep(60)'\nequals = '1'\n",
    );
    site.fails(
        &[],
        &["slow failed: no answer within 1s (drill.check_budget)"],
    );
}

#[test]
fn a_damaged_record_is_no_drill_to_compare_with_and_hides_none_before_it() {
    let site = DrillSite::new(15, COMPARED);
    site.cluster.sql(SCHEMA);
    site.archive_all();
    let first = site.passes(&[]);
    let key = format!("main/drills/{}.json", first["id"].as_str().unwrap());
    let whole = site.near.flip(&key, 100);
    let report = site.passes(&[]);
    assert_eq!(outcome(&report, "row counts").0, "not_tested");
    let damaged = report["id"].as_str().unwrap().to_owned();
    site.near.put_back(&key, &whole);
    site.near.remove(&format!("main/drills/{damaged}.json"));
    let report = site.passes(&[]);
    assert_eq!(outcome(&report, "row counts").0, "passed");
}

#[test]
fn a_past_that_cannot_be_read_is_a_warning_and_nothing_is_compared() {
    let site = DrillSite::new(15, "rows_may_shrink = 5.0\n");
    site.passes(&[]);
    let call = site.drilling(&[]);
    let refused = call.with(|run| run.env("SEAWALL_TEST_FAULTS", "get[/drills/]=403"));
    let report = refused.run().success().json();
    let (found, detail) = outcome(&report, "row counts");
    assert_eq!(found, "not_tested");
    assert!(detail.contains("cannot be read"), "{detail}");
    let warnings = report["warnings"].to_string();
    assert!(
        warnings.contains("the drills before cannot be read"),
        "{warnings}"
    );
    assert_eq!(outcome(&site.passes(&[]), "row counts").0, "passed");
}
