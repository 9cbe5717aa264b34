//! The reader of WAL records against PostgreSQL's own, pg_waldump: over WAL of real servers,
//! every transaction's record and every restore point, with place, id, time and name.

use std::collections::BTreeMap;
use std::path::Path;

use seawall::postgres::wal_records::{Action, Content, WalReader, WalRecord};
use seawall::postgres::{Lsn, SegmentName, SegmentSize};
use seawall_tests::postgres::Stop;
use seawall_tests::process::Run;
use seawall_tests::{Cluster, Moment, PostgresVersion, Scratch};

/// A record in the words of both.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    action: String,
    xid: u32,
    /// In microseconds since 1970; pg_waldump does not show that of a restore point.
    time: Option<i64>,
    name: String,
}

/// What SQL says happened: transaction ids by what became of them, and restore points.
#[derive(Debug, Default)]
struct Lived {
    committed: Vec<u32>,
    aborted: Vec<u32>,
    prepared: Vec<u32>,
    committed_prepared: Vec<u32>,
    aborted_prepared: Vec<u32>,
    points: BTreeMap<String, Lsn>,
    first_segment: String,
}

/// Makes WAL of every kind that the reader knows, and much else between.
fn live(cluster: &Cluster) -> Lived {
    let mut lived = Lived::default();
    let sql = |sql: &str| cluster.sql(sql);
    let xid = |text: &str| {
        let line = text.lines().find(|line| line.parse::<u32>().is_ok());
        line.unwrap_or_else(|| panic!("no id in {text}"))
            .parse()
            .unwrap()
    };
    sql("CREATE TABLE t (n int, x text)");
    lived.first_segment = cluster.switch_wal();
    let within = |body: &str, end: &str| {
        xid(&sql(&format!(
            "BEGIN; INSERT INTO t VALUES (0); SELECT pg_current_xact_id()::text; {body}; {end}"
        )))
    };
    let point = |lived: &mut Lived, name: &str| {
        let lsn = sql(&format!("SELECT pg_create_restore_point('{name}')"));
        lived.points.insert(name.to_owned(), lsn.parse().unwrap());
    };

    lived.committed.push(within("SELECT 1", "COMMIT"));
    point(&mut lived, "first");
    lived
        .aborted
        .push(within("CREATE TABLE gone (n int)", "ROLLBACK"));
    // Subtransactions, of which more than 64 are written before the commit, too.
    let many = "DO $$ BEGIN FOR n IN 1..500 LOOP
            BEGIN INSERT INTO t VALUES (n); EXCEPTION WHEN division_by_zero THEN NULL; END;
        END LOOP; END $$";
    lived.committed.push(within(many, "COMMIT"));
    lived.aborted.push(within(many, "ROLLBACK"));
    // Files to be removed, statistics and invalidations: all the lists of a commit.
    let tables = "CREATE TABLE a AS SELECT generate_series(1, 9) n; CREATE INDEX ON a (n)";
    let ddl = within(tables, "COMMIT");
    lived.committed.push(ddl);
    for (gid, body, commit) in [
        ("small", "SELECT 1", true),
        (
            "everything",
            &format!("{many}; DROP TABLE a; CREATE TABLE b (n int)"),
            true,
        ),
        (
            "rolled back",
            &format!("{many}; CREATE TABLE c (n int)"),
            false,
        ),
    ] {
        let id = within(body, &format!("PREPARE TRANSACTION '{gid}'"));
        lived.prepared.push(id);
        point(&mut lived, &format!("prepared {gid}"));
        if commit {
            sql(&format!("COMMIT PREPARED '{gid}'"));
            lived.committed_prepared.push(id);
        } else {
            sql(&format!("ROLLBACK PREPARED '{gid}'"));
            lived.aborted_prepared.push(id);
        }
    }
    cluster.switch_wal();
    // Whole pages, which cross the ends of pages and segments.
    sql("CHECKPOINT");
    let large =
        "INSERT INTO t SELECT n, repeat(md5(n::text), 200) FROM generate_series(1, 30000) n";
    lived.committed.push(within(large, "COMMIT"));
    sql("CHECKPOINT; SELECT pg_logical_emit_message(true, 'large', repeat('x', 3000000))");
    lived
        .committed
        .push(within("UPDATE t SET n = n + 1", "COMMIT"));
    for n in 0..50 {
        point(&mut lived, &format!("point {n} \u{fc}"));
        sql(&format!(
            "SELECT pg_logical_emit_message(false, 'x', repeat('y', {n} * 7919))"
        ));
    }
    lived.committed.push(within("SELECT 1", "COMMIT"));
    cluster.switch_wal();
    lived.aborted.push(within("SELECT 1", "ROLLBACK"));
    point(&mut lived, "last");
    lived
}

/// All the records that the reader finds in the segments of pg_wal from `first` on.
fn read(data: &Path, first: &str) -> Vec<WalRecord> {
    let mut names: Vec<_> = std::fs::read_dir(data.join("pg_wal"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.len() == 24 && name.as_str() >= first)
        .collect();
    names.sort();
    let mut reader = WalReader::new();
    let mut records: Vec<WalRecord> = Vec::new();
    for name in names {
        let file = std::fs::File::open(data.join("pg_wal").join(name)).unwrap();
        let mut found = Vec::new();
        let header = reader.read(std::io::BufReader::new(file), |record| found.push(record));
        // Behind the end of WAL lie files with another position, or none.
        let Ok(header) = header else { break };
        let before = records.last().map_or(Lsn(0), |last| last.start);
        if header.page_address < before {
            break;
        }
        records.extend(found);
    }
    records
}

fn seen(record: &WalRecord) -> Option<Seen> {
    Some(match &record.content {
        Content::Transaction(transaction) => Seen {
            action: match transaction.action {
                Action::Commit => "COMMIT",
                Action::Abort => "ABORT",
                Action::Prepare => "PREPARE",
                Action::CommitPrepared => "COMMIT_PREPARED",
                Action::AbortPrepared => "ABORT_PREPARED",
            }
            .to_owned(),
            xid: transaction.xid.expect("an id"),
            time: Some(transaction.time.as_microsecond()),
            name: String::new(),
        },
        Content::RestorePoint { name, .. } => Seen {
            action: "RESTORE_POINT".to_owned(),
            xid: 0,
            time: None,
            name: name.clone(),
        },
        Content::Running { oldest } => Seen {
            action: "RUNNING_XACTS".to_owned(),
            xid: *oldest,
            time: None,
            name: String::new(),
        },
        Content::Message { prefix, text } => Seen {
            action: "MESSAGE".to_owned(),
            xid: 0,
            time: None,
            name: format!("{prefix}: {} bytes", text.len()),
        },
        Content::Tablespace(_) => return None,
    })
}

/// What pg_waldump of that version shows of the same WAL, by position.
fn dumped(cluster: &Cluster, first: &str) -> Option<BTreeMap<Lsn, Seen>> {
    let program = cluster.version().own("pg_waldump")?;
    let first: SegmentName = first.parse().unwrap();
    let start = first.start(SegmentSize::new(1 << 20).unwrap()).unwrap();
    let output = Run::new(program)
        .arg("-p")
        .arg(cluster.data().join("pg_wal"))
        .args(["-s", &start.to_string()])
        .env("TZ", "UTC")
        .run();
    // It ends with an error where WAL ends.
    assert!(
        output.stderr.contains("error in WAL record"),
        "{}",
        output.stderr
    );
    let mut all = BTreeMap::new();
    for line in output.stdout.lines() {
        let field = |name: &str| line.split_once(name).map(|(_, rest)| rest.trim_start());
        let (Some(xid), Some(lsn), Some(text)) = (field("tx:"), field("lsn:"), field("desc:"))
        else {
            panic!("{line}");
        };
        let until_comma = |text: &str| text.split(',').next().unwrap().trim().to_owned();
        let (action, rest) = text.split_once(' ').unwrap_or((text, ""));
        let transaction = line.contains("rmgr: Transaction");
        let point = line.contains("rmgr: XLOG") && action == "RESTORE_POINT";
        let ends = [
            "COMMIT",
            "ABORT",
            "PREPARE",
            "COMMIT_PREPARED",
            "ABORT_PREPARED",
        ];
        let running = line.contains("rmgr: Standby") && action == "RUNNING_XACTS";
        let ends = transaction && ends.contains(&action);
        let message = line.contains("rmgr: LogicalMessage");
        if !(point || running || ends || message) {
            continue;
        }
        let mut seen = Seen {
            action: action.to_owned(),
            xid: until_comma(xid).parse().unwrap(),
            time: None,
            name: if point {
                rest.to_owned()
            } else {
                String::new()
            },
        };
        if message {
            // "MESSAGE transactional, prefix \"x\"; payload (7 bytes): 79 79 …"
            let (_, rest) = rest.split_once("prefix \"").unwrap();
            let (prefix, rest) = rest.split_once("\"; payload (").unwrap();
            let length = rest.split(" bytes").next().unwrap();
            seen.name = format!("{prefix}: {length} bytes");
            seen.xid = 0;
        }
        if running {
            let (_, oldest) = rest.split_once("oldestRunningXid ").unwrap();
            let digits: String = oldest.chars().take_while(char::is_ascii_digit).collect();
            seen.xid = digits.parse().unwrap();
        }
        if transaction {
            // "COMMIT_PREPARED 742: 2026-…", "PREPARE gid small: 2026-…", "COMMIT 2026-…".
            let time = match action {
                "COMMIT" | "ABORT" => rest,
                _ => rest.split_once(": ").unwrap().1,
            };
            if action.ends_with("_PREPARED") {
                seen.xid = rest.split(':').next().unwrap().parse().unwrap();
            }
            let time = time.split(" UTC").next().unwrap();
            let time: jiff::Timestamp = format!("{time}Z").parse().unwrap();
            seen.time = Some(time.as_microsecond());
        }
        all.insert(until_comma(lsn).parse().unwrap(), seen);
    }
    Some(all)
}

fn finds_what_pg_waldump_and_sql_say(major: u32, logical: bool) {
    let scratch = Scratch::new();
    let before = Moment::now();
    let builder = Cluster::builder(PostgresVersion::find(major))
        .segment_size(1)
        .config("max_prepared_transactions", "5")
        .config("wal_keep_size", "1GB")
        .config("log_timezone", "UTC")
        // With it, prepared transactions are known by name in their commits, too.
        .config("wal_level", if logical { "logical" } else { "replica" });
    let mut cluster = builder.create_in(&scratch, "main");
    cluster.start();
    let lived = live(&cluster);
    let after = Moment::now();
    cluster.stop(Stop::Fast);
    let records = read(cluster.data(), &lived.first_segment);
    let found: BTreeMap<Lsn, Seen> = records
        .iter()
        .filter_map(|record| Some((record.start, seen(record)?)))
        .collect();

    // What SQL says.
    let with = |action: &str| {
        let found = found.values().filter(|seen| seen.action == action);
        found.map(|seen| seen.xid).collect::<Vec<u32>>()
    };
    let prepared = with("PREPARE");
    assert_eq!(prepared, lived.prepared);
    assert_eq!(with("COMMIT_PREPARED"), lived.committed_prepared);
    assert_eq!(with("ABORT_PREPARED"), lived.aborted_prepared);
    let (committed, aborted) = (with("COMMIT"), with("ABORT"));
    assert!(
        lived.committed.iter().all(|xid| committed.contains(xid)),
        "{committed:?}"
    );
    assert!(
        lived.aborted.iter().all(|xid| aborted.contains(xid)),
        "{aborted:?}"
    );
    let mut points = BTreeMap::new();
    for record in &records {
        let time = match &record.content {
            Content::RestorePoint { name, time } => {
                points.insert(name.clone(), record.end);
                time
            }
            Content::Transaction(transaction) => &transaction.time,
            Content::Running { .. } | Content::Tablespace(_) | Content::Message { .. } => continue,
        };
        let micros = time.as_microsecond();
        assert!(before.0 <= micros && micros <= after.0, "{record:?}");
    }
    assert_eq!(points, lived.points);

    // What pg_waldump says.
    let Some(dumped) = dumped(&cluster, &lived.first_segment) else {
        return;
    };
    assert!(dumped.len() > 60, "{}", dumped.len());
    for (lsn, seen) in &dumped {
        assert_eq!(found.get(lsn), Some(seen), "at {lsn}");
    }
    assert_eq!(found.len(), dumped.len(), "more than pg_waldump shows");
}

#[test]
fn the_reader_finds_what_pg_waldump_shows_of_postgresql_15() {
    finds_what_pg_waldump_and_sql_say(15, false);
    finds_what_pg_waldump_and_sql_say(15, true);
}

#[test]
fn the_reader_finds_what_pg_waldump_shows_of_postgresql_16() {
    finds_what_pg_waldump_and_sql_say(16, false);
}

#[test]
fn the_reader_finds_what_pg_waldump_shows_of_postgresql_18() {
    finds_what_pg_waldump_and_sql_say(18, false);
    finds_what_pg_waldump_and_sql_say(18, true);
}

#[test]
#[ignore = "long: needs PostgreSQL 14 and 17"]
fn the_reader_finds_what_sql_says_of_postgresql_14_and_17() {
    for major in [14, 17] {
        finds_what_pg_waldump_and_sql_say(major, false);
        finds_what_pg_waldump_and_sql_say(major, true);
    }
}
