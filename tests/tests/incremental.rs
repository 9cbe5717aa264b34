//! What `seawall backup --kind incremental` promises: with what it was taken on top of it makes
//! the same data, whatever became of files in between; PostgreSQL's own `pg_combinebackup` merges
//! it; and where nothing tells what changed, all of it is copied.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use seawall::postgres::layout::{Fork, RelationFile};
use seawall::postgres::wal_summary::{BlockChanges, SummaryName};
use seawall_tests::judge::{self, Dump};
use seawall_tests::postgres::{Builder, Stop};
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Cluster, Combined, ConfigFile, PostgresVersion, Repository, Run, Site, seawall, wait_until,
};
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
         SELECT setval('counter', 100 * {link});
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
    match restored.sql("SHOW data_checksums") == "on" {
        true => judge::is_sound(&mut restored),
        false => judge::amcheck(&restored).must_pass(),
    }
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
    let combined = Combined::unpack(&site, "chain", &links);
    for directory in combined.directories() {
        judge::verifybackup(site.cluster.version(), directory).must_pass();
    }
    combined.each("chain", |restored| judge_fully(&dump, restored));
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

/// How many files of a backup are incremental, and how many blocks they hold.
fn increments(site: &Site, taken: &Value) -> (usize, u64) {
    let prefix = format!("/{}/", taken["id"].as_str().unwrap());
    let (mut files, mut blocks) = (0, 0);
    let indexes = site.near.keys_with(".index.zst");
    for key in indexes.iter().filter(|key| key.contains(&prefix)) {
        let text = String::from_utf8(site.near.plain(key)).unwrap();
        for line in text.lines().skip(1) {
            let member: Value = serde_json::from_str(line).unwrap();
            if let Some(runs) = member["increment"]["blocks"].as_array() {
                files += 1;
                blocks += runs.iter().map(|run| run[1].as_u64().unwrap()).sum::<u64>();
            }
        }
    }
    (files, blocks)
}

#[test]
fn of_an_idle_server_next_to_nothing_is_stored_by_either_rule() {
    for rule in [Rule::PageLsn, Rule::WalSummaries] {
        let site = Site::with(builder(18, rule)).start();
        site.cluster
            .sql("CREATE TABLE t AS SELECT n FROM generate_series(1, 100000) n; VACUUM");
        let full = site.backup();
        let taken = incremental(&site);
        let (files, blocks) = increments(&site, &taken);
        assert!(files > 100, "{files} files");
        assert!(blocks < 100, "{blocks} blocks");
        let size = |marker: &Value| marker["stored_bytes"].as_u64().unwrap();
        assert!(size(&taken) < size(&full) / 4, "{taken}");
    }
}

#[test]
fn a_damaged_page_is_found_also_where_nothing_changed_it_and_is_never_taken_for_the_parents() {
    let mut site = Site::of(15).start();
    site.cluster
        .sql("CREATE TABLE t AS SELECT n FROM generate_series(1, 100000) n; CHECKPOINT");
    site.backup();
    site.cluster.flip_bits("t", &[5 * 8192 + 4000]);
    let call = site
        .seawall("backup")
        .args(["--kind", "incremental", "--json"]);
    let taken = call.run().exits_with(3).json();
    assert_eq!(taken["kind"], "incremental");
    assert_eq!(taken["damaged_page_count"], 1, "{taken}");
    let named = taken["damaged_pages"][0].as_str().unwrap();
    assert!(
        named.ends_with(": block 5") && !named.contains("INCREMENTAL"),
        "{named}"
    );

    // Healed without a new LSN: what the parent has of that block counts for nothing.
    site.cluster.flip_bits("t", &[5 * 8192 + 4000]);
    let healed = incremental(&site);
    assert_eq!(healed["parent"]["id"], taken["id"]);
    assert_eq!(healed["damaged_page_count"], 0, "{healed}");
}

#[test]
fn without_a_parent_that_fits_a_full_backup_is_taken_and_says_why() {
    let mut site = Site::of(15).start();
    let first = incremental(&site);
    assert_eq!(first["kind"], "full");
    let why = |taken: &Value| taken["full_because"].as_str().unwrap().to_owned();
    assert!(why(&first).contains("no finished backup"), "{first}");
    assert_eq!(incremental(&site)["kind"], "incremental");

    // Page checksums were switched.
    site.cluster.stop(Stop::Fast);
    let program = site.cluster.version().own("pg_checksums").unwrap();
    let call = seawall_tests::Run::new(program).args(["--disable", "-D"]);
    call.arg(site.cluster.data()).run().success();
    site.cluster.start();
    let id = first["id"].as_str().unwrap();
    let call = site
        .seawall("backup")
        .args(["--kind", "incremental", "--parent", id]);
    call.run().exits_with(4).says("checksums");
    let call = site.seawall("backup").args(["--kind", "incremental"]);
    let gone = "20200101T000000Z-full-00000000";
    call.args(["--parent", gone]).run().exits_with(5).says(gone);
    let taken = incremental(&site);
    assert_eq!(taken["kind"], "full");
    assert!(why(&taken).contains("checksums"), "{taken}");
}

#[test]
fn after_a_failover_the_parent_must_lie_in_the_past_of_the_new_timeline() {
    let site = Site::of(15).start();
    furnish(&site);
    let full = site.backup();
    let mut standby = site.cluster.standby(&site.scratch, "standby");
    standby.start();
    standby.wait_until_caught_up(&site.cluster, PATIENCE);
    standby.promote();
    // The old primary goes on, and what is taken there is no parent of anything here.
    site.cluster
        .sql("CREATE TABLE lost AS SELECT 1; CHECKPOINT");
    let lost = incremental(&site);
    assert_eq!(lost["parent"]["id"], full["id"]);
    drop(site.cluster);
    let config = ConfigFile::new()
        .cluster_as("main", &standby, "postgres")
        .repository(Repository::local("near", site.near.root()))
        .write(&site.scratch);
    standby.archive_with(&config);
    standby.restart();
    standby.sql("INSERT INTO grows SELECT n, 'new' FROM generate_series(90000, 90100) n");
    let call = seawall(&config).args(["backup", "--kind", "incremental", "--json"]);
    let taken = call.run().success().json();
    assert_eq!(taken["parent"]["id"], full["id"], "{taken}");
    assert_eq!(taken["timeline"], 2);
}

/// The WAL summaries of a server, finished ones.
fn summaries(site: &Site) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(site.wal("summaries")).unwrap().flatten();
    let paths = entries.map(|entry| entry.path());
    let finished = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.parse::<SummaryName>().is_ok()
    };
    paths.filter(finished).collect()
}

#[test]
fn wal_summaries_are_read_as_pg_walsummary_reads_them() {
    let site = Site::with(builder(18, Rule::WalSummaries)).start();
    furnish(&site);
    live(&site, 1);
    site.cluster.sql("CHECKPOINT");
    let end = site
        .cluster
        .sql("SELECT redo_lsn FROM pg_control_checkpoint()");
    wait_until("the server has summarized its WAL", PATIENCE, || {
        let sql = format!("SELECT summarized_lsn >= '{end}' FROM pg_get_wal_summarizer_state()");
        site.cluster.sql(&sql) == "t"
    });
    let program = site.cluster.version().own("pg_walsummary").unwrap();
    let (mut blocks, mut limits, mut databases) = (0, 0, 0);
    for path in summaries(&site) {
        let mut changes = BlockChanges::default();
        changes.add(&std::fs::read(&path).unwrap()).unwrap();
        let mut theirs: BTreeMap<RelationFile, (Option<u32>, BTreeSet<u32>)> = BTreeMap::new();
        let said = Run::new(&program).arg("-i").arg(&path).run().success();
        for line in said.stdout.lines() {
            // TS 1663, DB 5, REL 16384, FORK main: block 3
            let words: Vec<&str> = line
                .split([' ', ',', ':'])
                .filter(|w| !w.is_empty())
                .collect();
            let number = |at: usize| words[at].parse::<u32>().unwrap();
            if words[7] != "main" {
                continue;
            }
            let relation = RelationFile {
                kind: Fork::Main,
                tablespace: number(1),
                database: number(3),
                relfilenode: number(5),
                segment: 0,
            };
            if relation.relfilenode == 0 {
                assert!(changes.database_was_made(relation.tablespace, relation.database));
                databases += 1;
                continue;
            }
            let known = theirs.entry(relation).or_default();
            match words[8] {
                "limit" => {
                    known.0 = Some(number(9));
                    limits += 1;
                }
                "block" => {
                    known.1.insert(number(9));
                    blocks += 1;
                }
                other => panic!("{other}: {line}"),
            }
        }
        for (relation, (limit, blocks)) in theirs {
            let ours = changes.of(&relation).unwrap();
            assert_eq!(ours.limit_block, limit, "{relation:?}");
            assert!(ours.blocks.iter().eq(blocks), "{relation:?}");
        }
    }
    assert!(blocks > 1000 && limits > 10 && databases > 0);
}

#[test]
fn where_a_wal_summary_is_missing_pages_are_compared_instead() {
    let site = Site::with(builder(18, Rule::WalSummaries)).start();
    let full = site.backup();
    site.cluster
        .sql("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n");
    assert_eq!(incremental(&site)["change_rule"], "wal-summaries");
    site.cluster.sql("UPDATE t SET n = -n");
    for path in summaries(&site) {
        std::fs::remove_file(path).unwrap();
    }
    let call = site
        .seawall("backup")
        .args(["--kind", "incremental", "--json"]);
    let id = full["id"].as_str().unwrap();
    let output = call.args(["--parent", id]).run().success();
    assert!(output.stderr.contains("WAL summar"), "{}", output.stderr);
    let taken = output.json();
    assert_eq!(taken["change_rule"], "page-lsn");
    site.cluster.archive_all(PATIENCE);
    let dump = judge::dump(&site.cluster);
    Combined::unpack(&site, "chain", &[&full, &taken]).each("chain", |restored| {
        judge_fully(&dump, restored);
    });
}
