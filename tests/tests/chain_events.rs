//! What happens to servers between the links of a chain: a failover, a rewind, checksums that are
//! off for a while, a clock that goes back. What is restored is what was there. Field failure 6.

use jiff::SignedDuration;
use seawall_tests::cli::seawall;
use seawall_tests::judge;
use seawall_tests::postgres::Stop;
use seawall_tests::scratch::give_to_owner;
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Clock, Cluster, Config, ConfigFile, PostgresVersion, Repository, Run, Site, wait_until,
};
use serde_json::Value;

/// A running site with tables of which some pages change later, and a full backup.
fn site(major: u32, settings: &[(&str, &str)]) -> (Site, Value) {
    let mut builder = Cluster::builder(PostgresVersion::find(major))
        .config("autovacuum", "off")
        .config("wal_keep_size", "512MB")
        .config("wal_log_hints", "on");
    for (name, value) in settings {
        builder = builder.config(name, value);
    }
    let site = Site::with(builder).start();
    site.cluster.sql(
        "CREATE TABLE t (n int PRIMARY KEY, text text) WITH (fillfactor = 80);
         INSERT INTO t SELECT n, md5(n::text) FROM generate_series(1, 60000) n;
         CREATE TABLE still AS SELECT n, md5(n::text) FROM generate_series(1, 60000) n",
    );
    let full = site.backup();
    (site, full)
}

/// Changes some pages of the table, makes it longer, and replaces a small one.
fn live(cluster: &Cluster, round: u32) {
    cluster.sql(&format!(
        "UPDATE t SET text = 'round {round}' WHERE n % 2000 = {round};
         INSERT INTO t SELECT n, 'new' FROM generate_series({round}00000, {round}00500) n;
         DROP TABLE IF EXISTS small;
         CREATE TABLE small AS SELECT {round} AS n"
    ));
    cluster.sql("CHECKPOINT");
}

#[track_caller]
fn incremental(config: &Config, more: &[&str]) -> Value {
    let call = seawall(config).args(["backup", "--kind", "incremental", "--json"]);
    let taken = call.args(more).run().success().json();
    assert_eq!(taken["kind"], "incremental", "{taken}");
    taken
}

/// A restore of that backup and of what came after it on its timeline is `dump`.
#[track_caller]
fn restores_to(site: &Site, backup: &Value, dump: &judge::Dump) {
    let id = backup["id"].as_str().unwrap();
    let timeline = backup["timeline"].to_string();
    let args = [
        "--backup",
        id,
        "--timeline",
        &timeline,
        "--action",
        "promote",
    ];
    let mut restored = site.restore_and_start(&format!("r-{id}"), &args);
    judge::dump(&restored).must_equal(dump);
    judge::is_sound(&mut restored);
}

fn a_chain_across_a_failover_and_a_rewind(major: u32, settings: &[(&str, &str)]) {
    let (mut site, full) = site(major, settings);
    let mut standby = site.cluster.standby(&site.scratch, "standby");
    standby.start();
    standby.wait_until_caught_up(&site.cluster, PATIENCE);
    standby.promote();
    // The old primary goes its own way for a while, and its changes are in a backup.
    live(&site.cluster, 1);
    let lost = incremental(&site.config, &[]);
    site.cluster.archive_all(PATIENCE);
    let dump_lost = judge::dump(&site.cluster);
    site.cluster.stop(Stop::Fast);

    let config = ConfigFile::new()
        .cluster_as("main", &standby, "postgres")
        .repository(Repository::local("near", site.near.root()))
        .write_to(&site.scratch.join("standby.toml"));
    standby.archive_with(&config);
    standby.restart();
    live(&standby, 2);
    let new = incremental(&config, &[]);
    assert_eq!(
        (&new["timeline"], &new["parent"]["id"]),
        (&2.into(), &full["id"])
    );
    standby.archive_all(PATIENCE);
    let dump_new = judge::dump(&standby);
    restores_to(&site, &new, &dump_new);

    // The old one becomes a standby, blocks of it are written over in place, and takes over again.
    let data = site.cluster.data().to_owned();
    let rewind = Run::new(standby.version().own("pg_rewind").expect("pg_rewind"))
        .args(["--no-sync", "-D"])
        .arg(&data)
        .arg("--source-server")
        .arg(standby.connection("postgres"));
    rewind.run().success();
    // With the blocks came the settings of the other, which name whom it followed.
    for name in ["standby.signal", "postgresql.auto.conf"] {
        std::fs::write(data.join(name), b"").unwrap();
        give_to_owner(&data.join(name));
    }
    let conninfo = standby.connection("postgres");
    site.cluster.configure("primary_conninfo", &conninfo);
    site.cluster.archive_with(&site.config);
    site.cluster.start();
    site.cluster.wait_until_caught_up(&standby, PATIENCE);
    standby.stop(Stop::Fast);
    site.cluster.promote();
    live(&site.cluster, 3);
    // On top of what was taken of this very directory before the rewind, and of the other's.
    let parent = full["id"].as_str().unwrap();
    let rewound = incremental(&site.config, &["--parent", parent]);
    assert_eq!(rewound["timeline"], 3);
    let newest = incremental(&site.config, &["--parent", new["id"].as_str().unwrap()]);
    site.cluster.archive_all(PATIENCE);
    let dump = judge::dump(&site.cluster);
    restores_to(&site, &rewound, &dump);
    restores_to(&site, &newest, &dump);
    restores_to(&site, &lost, &dump_lost);
}

#[test]
fn a_chain_across_a_failover_and_a_rewind_restores_on_15() {
    a_chain_across_a_failover_and_a_rewind(15, &[]);
}

#[test]
fn a_chain_across_a_failover_and_a_rewind_restores_on_18_by_wal_summaries() {
    a_chain_across_a_failover_and_a_rewind(18, &[("summarize_wal", "on")]);
}

#[test]
fn what_happened_while_checksums_were_off_between_two_links_is_in_the_second() {
    let (mut site, _) = site(15, &[]);
    site.cluster.configure("wal_log_hints", "off");
    let program = site.cluster.version().own("pg_checksums").unwrap();
    let switch = |site: &Site, how: &str| {
        let call = Run::new(&program).args([how, "-D"]);
        call.arg(site.cluster.data()).run().success();
    };
    site.cluster.stop(Stop::Fast);
    switch(&site, "--disable");
    site.cluster.start();
    // Marks pages as all-visible without a new LSN.
    site.cluster.sql("VACUUM t");
    site.cluster.stop(Stop::Fast);
    switch(&site, "--enable");
    site.cluster.start();
    site.cluster.sql("CREATE EXTENSION pageinspect");
    let taken = incremental(&site.config, &[]);
    assert_eq!(taken["change_rule"], "page-lsn");
    site.cluster.archive_all(PATIENCE);
    let marked = "SELECT count(*) FROM generate_series(0, pg_relation_size('t') / 8192 - 1) n
         WHERE (page_header(get_raw_page('t', n::int))).flags & 4 <> 0";
    let expected = site.cluster.sql(marked);
    assert_ne!(expected, "0");
    let restored = site.restore_and_start("restored", &["--action", "promote"]);
    assert_eq!(restored.sql(marked), expected);
}

#[test]
fn a_clock_that_goes_back_between_links_changes_nothing_of_what_is_restored() {
    let (mut site, _) = site(15, &[]);
    let clock = Clock::new(&site.scratch);
    for (name, value) in clock.environment() {
        site.cluster.env(name, &value);
    }
    site.cluster.restart();
    let mut links = Vec::new();
    for round in 1..=3 {
        clock.advance(SignedDuration::from_mins(-50));
        wait_until("the server has the time", PATIENCE, || {
            let now = site.cluster.sql("SELECT extract(epoch FROM now())::bigint");
            let now: i64 = now.parse().unwrap();
            (now - clock.now().as_second()).abs() < 60
        });
        live(&site.cluster, round);
        if round == 2 {
            // A restart since the parent looks older than it.
            site.cluster.restart();
        }
        let call = seawall(&site.config).args(["backup", "--kind", "incremental", "--json"]);
        let taken = clock.call(call).run().success().json();
        assert_eq!(taken["kind"], "incremental", "{taken}");
        let name = format!("link{round}");
        let dump = judge::dump(&site.cluster);
        seawall(&site.config)
            .args(["restore-point", &name])
            .run()
            .success();
        links.push((taken, name, dump));
    }
    site.cluster.archive_all(PATIENCE);
    for (taken, name, dump) in &links {
        let id = taken["id"].as_str().unwrap();
        let args = ["--backup", id, "--name", name, "--action", "promote"];
        let mut restored = site.restore_and_start(&format!("r-{name}"), &args);
        judge::dump(&restored).must_equal(dump);
        judge::is_sound(&mut restored);
    }
}
