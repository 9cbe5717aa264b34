//! A drill gets on with what its host has, or says what it lacks, and runs anywhere but in
//! what is production's.

use std::path::Path;

use seawall_tests::guest::{LIMIT, check, texts};
use seawall_tests::{Guest, Tmpfs};

fn what_the_host_lacks_is_left_out_and_named(version: u32) {
    let site = Guest::build(
        version,
        "",
        |builder| {
            builder
                .config("max_connections", "123")
                .config("max_prepared_transactions", "7")
        },
        |cluster| {
            cluster.sql(
                "ALTER SYSTEM SET shared_preload_libraries = 'no_such_library', 'auto_explain'",
            );
            // Every session of the role would load it.
            cluster.sql("ALTER ROLE postgres SET session_preload_libraries = 'plpgsql'");
            cluster.sql("ALTER SYSTEM SET lc_time = 'C'");
            // As after an upgrade of the operating system.
            cluster.sql(
                "UPDATE pg_collation SET collversion = '0.1' WHERE oid = (SELECT min(oid) FROM pg_collation WHERE collprovider = 'c' AND collname LIKE 'C.%')",
            );
            cluster.sql("UPDATE pg_database SET datcollversion = '0.2' WHERE datname = 'postgres'");
        },
    );
    let report = site.drill(&[]).success().json();
    let adapted = texts(&report["environment"]["adapted"]);
    for words in [
        "max_connections is 123, as on the source",
        "max_prepared_transactions is 7, as on the source",
        "no_such_library, auto_explain of the source is not loaded; missing on this host: no_such_library",
    ] {
        assert!(adapted.contains(words), "{words}: {adapted}");
    }
    let warnings = texts(&report["warnings"]);
    for words in [
        "names no_such_library, which is not installed on this host",
        "of the database postgres have other versions on this host",
        "its default collation: 0.2 on the source",
        "0.1 on the source",
        "REINDEX DATABASE",
    ] {
        assert!(warnings.contains(words), "{words}: {warnings}");
    }
    // What has other versions is the database's own, and template1 is without.
    assert!(!warnings.contains("database template1"), "{warnings}");
    let amcheck = check(&report, "pg_amcheck");
    assert_eq!(amcheck["outcome"], "not_tested");
    let package = format!("postgresql-client-{version}");
    assert!(
        amcheck["detail"].as_str().unwrap().contains(&package),
        "{amcheck}"
    );
    site.must_be_clean();
}

#[test]
fn what_the_host_lacks_is_left_out_and_named_on_15() {
    what_the_host_lacks_is_left_out_and_named(15);
}

#[test]
fn what_the_host_lacks_is_left_out_and_named_on_18() {
    what_the_host_lacks_is_left_out_and_named(18);
}

fn a_database_whose_locale_is_missing_fails_the_drill(version: u32) {
    let site = Guest::build(
        version,
        "",
        |builder| builder,
        |cluster| {
            cluster.sql("CREATE DATABASE shop");
            cluster.sql("UPDATE pg_database SET datcollate = 'de_XY.UTF-8', datctype = 'de_XY.UTF-8' WHERE datname = 'shop'");
        },
    );
    let report = site.drill(&[]).exits_with(3).json();
    let opened = check(&report, "every database can be opened");
    assert_eq!(opened["outcome"], "failed");
    let detail = opened["detail"].as_str().unwrap();
    for words in [
        "shop cannot be opened: its locale de_XY.UTF-8 is not on this host",
        "locale-gen de_XY.UTF-8",
    ] {
        assert!(detail.contains(words), "{detail}");
    }
    // The one that every session of the drill begins with: nobody can open anything.
    site.cluster
        .sql("UPDATE pg_database SET datcollate = 'fr_XY.UTF-8' WHERE datname = 'template1'");
    site.cluster.archive_all(LIMIT);
    let report = site.drill(&[]).exits_with(3).json();
    let reasons = texts(&report["reasons"]);
    assert!(
        reasons.contains("its locale fr_XY.UTF-8 is not on this host"),
        "{reasons}"
    );
    assert!(reasons.contains("glibc-langpack-fr"), "{reasons}");
    site.must_be_clean();
}

#[test]
fn a_database_whose_locale_is_missing_fails_the_drill_on_15() {
    a_database_whose_locale_is_missing_fails_the_drill(15);
}

#[test]
fn a_database_whose_locale_is_missing_fails_the_drill_on_18() {
    a_database_whose_locale_is_missing_fails_the_drill(18);
}

#[test]
fn a_missing_postgresql_is_named_with_its_package() {
    let site = Guest::new(15, "");
    let text = std::fs::read_to_string(site.config.path()).unwrap();
    let text: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("bin_directory"))
        .collect();
    std::fs::write(site.config.path(), text.join("\n")).unwrap();
    // Where the usual place is not looked at, only a directory of the owner's is.
    let empty = site.scratch.directory("empty");
    let with = format!("[cluster.main]\nbin_directory = '{}'\n", empty.display());
    let text = std::fs::read_to_string(site.config.path()).unwrap();
    std::fs::write(
        site.config.path(),
        text.replacen("[cluster.main]\n", &with, 1),
    )
    .unwrap();
    site.drill(&[])
        .exits_with(1)
        .says("PostgreSQL 15 is not installed here")
        .says("bin_directory");
    site.must_be_clean();
}

fn a_drill_runs_in_any_place(version: u32) {
    let site = Guest::build(
        version,
        "",
        |builder| builder.tablespace("fast"),
        |cluster| {
            cluster.sql("CREATE TABLE f TABLESPACE fast AS SELECT 1");
        },
    );
    for name in [
        "with blanks, a comma, 'quotes', \"more\" and $HOME",
        "Übung für Bücher",
        &"deep".repeat(40),
    ] {
        let place = site.scratch.directory(name);
        let report = site
            .drill(&["--scratch", &place.display().to_string()])
            .success()
            .json();
        let scratch = report["environment"]["scratch"].as_str().unwrap();
        assert!(Path::new(scratch).starts_with(&place), "{scratch}");
        site.must_be_clean_in(&place);
    }
    if let Some(other) = Tmpfs::mount(&site.scratch, "other", 1200) {
        let place = other.path().display().to_string();
        site.drill(&["--scratch", &place]).success();
        site.must_be_clean_in(other.path());
    }
}

#[test]
fn a_drill_runs_in_any_place_on_15() {
    a_drill_runs_in_any_place(15);
}

#[test]
fn a_drill_runs_in_any_place_on_18() {
    a_drill_runs_in_any_place(18);
}

#[test]
fn a_place_inside_a_cluster_or_the_repository_is_refused_and_beside_it_is_not() {
    let site = Guest::build(15, "", |builder| builder.tablespace("fast"), |_| {});
    let (_, tablespace) = &site.cluster.tablespaces()[0];
    let data = site.cluster.data();
    let linked = site.scratch.join("linked");
    std::os::unix::fs::symlink(data, &linked).unwrap();
    let listing = |place: &Path| {
        let mut names: Vec<_> = std::fs::read_dir(place)
            .unwrap()
            .flatten()
            .map(|e| e.file_name())
            .collect();
        names.sort();
        names
    };
    for place in [
        data.to_path_buf(),
        data.join("base"),
        linked,
        tablespace.clone(),
        site.scratch.join("repository"),
    ] {
        let before = listing(&place);
        let text = place.display().to_string();
        site.drill(&["--scratch", &text])
            .exits_with(4)
            .says("no drill may run there");
        assert_eq!(listing(&place), before, "{text}");
    }
    // A scratch directory is a new one of its own: what lies beside it is safe.
    let home = site.cluster.home().display().to_string();
    site.drill(&["--scratch", &home]).success();
    assert_eq!(site.cluster.sql("SELECT count(*) FROM t"), "6000");
}
