//! What `seawall backup --kind incremental` promises: with what it was taken on top of it makes
//! the same data, whatever became of files in between; PostgreSQL's own `pg_combinebackup` merges
//! it; and where nothing tells what changed, all of it is copied.

use seawall_tests::judge::{self, Dump};
use seawall_tests::postgres::{Builder, Stop};
use seawall_tests::site::PATIENCE;
use seawall_tests::{Cluster, Combined, PostgresVersion, Site};
use serde_json::Value;

/// How the blocks that changed are told from others.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    PageLsn,
    WalSummaries,
}

fn builder(major: u32, rule: Rule) -> Builder {
    let builder = Cluster::builder(PostgresVersion::find(major)).tablespace("elsewhere");
    match rule {
        Rule::PageLsn => builder,
        Rule::WalSummaries => builder.config("summarize_wal", "on"),
    }
}

fn incremental(site: &Site) -> Value {
    let call = site.seawall("backup").args(["--kind", "incremental"]);
    call.arg("--json").run().success().json()
}

/// Tables of every kind, and databases that copies are made of.
fn furnish(site: &Site) {
    let cluster = &site.cluster;
    cluster.sql(
        "CREATE TABLE stays AS SELECT n, md5(n::text) AS t FROM generate_series(1, 20000) n;
         CREATE INDEX ON stays (t);
         CREATE TABLE grows (n int PRIMARY KEY, t text);
         INSERT INTO grows SELECT n, repeat('x', 200) FROM generate_series(1, 5000) n;
         CREATE TABLE shrinks AS SELECT n, repeat('y', 500) AS t FROM generate_series(1, 5000) n;
         CREATE TABLE mixed (n int PRIMARY KEY, t text, p point, a int[]);
         INSERT INTO mixed SELECT n, md5(n::text), point(n, n), ARRAY[n, n + 1]
             FROM generate_series(1, 8000) n;
         CREATE INDEX ON mixed USING gist (p);
         CREATE INDEX ON mixed USING gin (a);
         CREATE INDEX ON mixed USING brin (n);
         CREATE INDEX ON mixed USING hash (t);
         CREATE TABLE emptied AS TABLE stays;
         CREATE TABLE rewritten AS TABLE stays;
         CREATE TABLE moved AS TABLE stays;
         CREATE TABLE gone AS TABLE stays;
         CREATE UNLOGGED TABLE fleeting AS TABLE stays;
         CREATE SEQUENCE counter;
         SELECT lo_from_bytea(0, decode(repeat('ab', 100000), 'hex'));
         CREATE DATABASE one",
    );
    cluster.sql_in(
        "one",
        "CREATE TABLE same AS SELECT n FROM generate_series(1, 3000) n",
    );
    cluster.sql("CREATE DATABASE two TEMPLATE one");
    cluster.sql_in("two", "UPDATE same SET n = -n; VACUUM same; CHECKPOINT");
    if cluster.version().major >= 15 {
        cluster.sql("CREATE DATABASE copied TEMPLATE one STRATEGY file_copy OID 90000");
    } else {
        cluster.sql("CREATE DATABASE copied TEMPLATE one");
    }
    cluster.sql("VACUUM FREEZE; CHECKPOINT");
}

/// What happens between two links of a chain.
fn live(site: &Site, link: u32) {
    let cluster = &site.cluster;
    cluster.sql(&format!(
        "INSERT INTO grows SELECT n, repeat('z', 200)
             FROM generate_series({link} * 10000, {link} * 10000 + 300) n;
         UPDATE mixed SET t = t || '{link}', p = point(n, {link}) WHERE n % 997 = {link};
         DELETE FROM mixed WHERE n % 1009 = {link};
         DELETE FROM shrinks WHERE n > 5000 - {link} * 1000;
         TRUNCATE emptied;
         INSERT INTO emptied SELECT n, 'link {link}' FROM generate_series(1, 100 * {link}) n;
         ALTER TABLE moved SET TABLESPACE {space};
         DROP TABLE gone;
         CREATE TABLE gone AS SELECT n, 'made again {link}' AS t FROM generate_series(1, 999) n;
         INSERT INTO fleeting SELECT n, 'x' FROM generate_series(1, 99) n;
         SELECT nextval('counter') FROM generate_series(1, 100);
         SELECT lo_from_bytea(0, decode(repeat('0{link}', 5000), 'hex'));
         REINDEX TABLE rewritten",
        space = ["pg_default", "elsewhere"][link as usize % 2],
    ));
    // Truncates the end of the file; the next link grows it again.
    cluster.sql("VACUUM shrinks");
    if link == 2 {
        cluster.sql("INSERT INTO shrinks SELECT n, 'again' FROM generate_series(1, 4000) n");
        // Sets hints and bits without a change of any row.
        cluster.sql("VACUUM grows; VACUUM mixed");
    }
    cluster.sql("VACUUM FULL rewritten");
    // The same numbers of database and files, and pages that are older than the parent.
    cluster.sql("DROP DATABASE copied");
    let template = ["one", "two"][link as usize % 2];
    if cluster.version().major >= 15 {
        cluster.sql(&format!(
            "CREATE DATABASE copied TEMPLATE {template} STRATEGY file_copy OID 90000"
        ));
    } else {
        cluster.sql(&format!("CREATE DATABASE copied TEMPLATE {template}"));
    }
    cluster.sql(&format!("CREATE DATABASE made_{link} TEMPLATE two"));
}

fn judge_fully(dump: &Dump, mut restored: Cluster) {
    dump.must_equal(&judge::dump(&restored));
    judge::amcheck(&restored).must_pass();
    restored.stop(Stop::Fast);
    judge::checksums(&mut restored).must_pass();
}

fn a_chain_makes_the_same_data(builder: Builder, rule: Rule) {
    let site = Site::with(builder).start();
    furnish(&site);
    let mut chain = vec![site.backup()];
    for link in 1..=2 {
        live(&site, link);
        let taken = incremental(&site);
        assert_eq!(taken["kind"], "incremental", "{taken}");
        assert_eq!(taken["parent"]["id"], chain[link as usize - 1]["id"]);
        let name = match rule {
            Rule::PageLsn => "page-lsn",
            Rule::WalSummaries => "wal-summaries",
        };
        assert_eq!(taken["change_rule"], name);
        let size = |name: &str| taken[name].as_u64().unwrap();
        assert!(size("plain_bytes") < size("whole_bytes") * 3 / 4, "{taken}");
        chain.push(taken);
    }
    site.cluster.archive_all(PATIENCE);
    let dump = judge::dump(&site.cluster);
    let links: Vec<&Value> = chain.iter().collect();
    for length in 2..=3 {
        let name = format!("c{length}");
        let combined = Combined::unpack(&site, &name, &links[..length]);
        for directory in combined.directories() {
            judge::verifybackup(site.cluster.version(), directory).must_pass();
        }
        combined.each(&name, |restored| judge_fully(&dump, restored));
    }
}

#[test]
fn a_chain_by_page_positions_makes_the_same_data_on_15() {
    a_chain_makes_the_same_data(builder(15, Rule::PageLsn), Rule::PageLsn);
}

#[test]
fn a_chain_by_page_positions_makes_the_same_data_on_18_by_pg_combinebackup() {
    a_chain_makes_the_same_data(builder(18, Rule::PageLsn), Rule::PageLsn);
}

#[test]
fn a_chain_by_wal_summaries_makes_the_same_data_on_18_by_pg_combinebackup() {
    a_chain_makes_the_same_data(builder(18, Rule::WalSummaries), Rule::WalSummaries);
}

#[test]
fn a_chain_without_page_checksums_makes_the_same_data() {
    let builder = builder(15, Rule::PageLsn).without_checksums();
    a_chain_makes_the_same_data(builder, Rule::PageLsn);
}

#[test]
#[ignore = "long: the other PostgreSQL versions"]
fn a_chain_makes_the_same_data_on_every_other_version() {
    for major in [14, 16, 17] {
        a_chain_makes_the_same_data(builder(major, Rule::PageLsn), Rule::PageLsn);
    }
    a_chain_makes_the_same_data(builder(17, Rule::WalSummaries), Rule::WalSummaries);
}
