//! Reports for tests: one that has everything that a report can hold, and one whose texts from
//! outside try to be more than text.

use std::collections::BTreeMap;

use seawall::postgres::{Lsn, SystemId, TimelineId};

use crate::checks::{Check, Outcome};
use crate::evidence::Step;
use crate::report::{
    Digit, Digits, Dominant, Drawn, Environment, Forecast, Identity, Isolation, Limits, Lock, Lost,
    NotTested, Past, Phase, Rehearsal, Report, Rewritten, Rpo, Rto, Scope, Source, Statement,
    Target,
};

const BACKUP: &str = "20261120T110925Z-full-3fa9c1d2";

/// A drill that failed, with every field filled: no `Option` is absent and no list is empty.
pub(crate) fn full() -> Report {
    Report {
        format: 1,
        id: "20261121T050000Z-0a1b2c3d".to_owned(),
        started: time("2026-11-21T05:00:00Z"),
        ended: time("2026-11-21T05:03:00Z"),
        passed: false,
        reasons: vec![
            "rows failed: 6000, expected 7000".to_owned(),
            "the RPO objective is 300 s, measured 412.5 s".to_owned(),
        ],
        backup: BACKUP.parse().unwrap(),
        identity: identity(),
        scope: Scope {
            scenario: "rehearsal",
            words: "a migration is tried on the restored copy".to_owned(),
        },
        source: source(),
        target: target(),
        rpo: rpo(),
        rto: rto(),
        environment: environment(),
        checks: checks(),
        rows: BTreeMap::from([(
            "shop".to_owned(),
            BTreeMap::from([("public.orders".to_owned(), 1_234_567)]),
        )]),
        rehearsal: Some(rehearsal()),
        copies: Digits(vec![
            Digit {
                rule: "three copies",
                met: Some(true),
                why: "the primary, near and far".to_owned(),
            },
            Digit {
                rule: "one that nobody can change",
                met: None,
                why: "the store does not tell".to_owned(),
            },
        ]),
        trend: trend(),
        not_tested: vec![NotTested {
            field: "signatures",
            why: "objects carry digests, which tell damage; they are not signed",
        }],
        warnings: vec!["2 pages had wrong checksums when the backup was taken".to_owned()],
        evidence: vec![
            step(
                "seawall restore --config /etc/seawall.toml --to /scratch/data",
                Some(0),
            ),
            step("postgres -D /scratch/data", Some(1)),
            step("pg_amcheck --all", None),
        ],
        server_log: vec!["2026-11-21 05:01:02.000 UTC LOG:  redo done".to_owned()],
        teardown: "the scratch instance is stopped and removed".to_owned(),
    }
}

/// The same, with texts from outside that are markup, control characters and line ends.
pub(crate) fn hostile() -> Report {
    const TEXT: &str = "</code></style><script>alert(1)</script>\" onload=\"x\x1b[2J]]>|`*_\nDRILL PASSED\r\n| a |\n# title\u{202e}";
    let text = || TEXT.to_owned();
    let mut report = full();
    report.reasons = vec![text()];
    report.identity.cluster = text();
    report.identity.trigger = text();
    report.identity.command = vec![text()];
    report.scope.words = text();
    report.source.url = text();
    report.target.value = Some(text());
    report.target.why = text();
    report.rpo.method = text();
    report.environment.system = text();
    report.environment.adapted = vec![text()];
    report.environment.isolation[0].proof = text();
    for check in &mut report.checks {
        (check.name, check.detail) = (text(), text());
    }
    report.rows = BTreeMap::from([(text(), BTreeMap::from([(text(), 1)]))]);
    let rehearsal = report.rehearsal.as_mut().unwrap();
    let statement = &mut rehearsal.statements[0];
    (statement.sql, statement.error) = (text(), Some(text()));
    statement.locks[0].relation = text();
    statement.rewritten[0].relation = text();
    rehearsal.file = text();
    report.copies.0[0].why = text();
    report.trend[0].scenario = Some(text());
    report.warnings = vec![text()];
    report.evidence[0].command = text();
    report.server_log = vec![text()];
    report.teardown = text();
    report.rto.phases[0].name = text();
    report
}

/// A drill that ended before its first phase: all that can be absent is.
pub(crate) fn broken() -> Report {
    let mut report = full();
    report.reasons = vec!["the repository does not answer".to_owned()];
    report.identity.postgresql = None;
    (report.source.copy_of, report.source.region) = (None, None);
    (
        report.source.files,
        report.source.bytes,
        report.source.fetched_bytes,
    ) = (0, 0, 0);
    let target = &mut report.target;
    (target.value, target.drawn, target.next_xid) = (None, None, None);
    (target.reached_lsn, target.reached_time) = (None, None);
    (target.asked_timeline, target.asked_backup) = (None, None);
    let loss = &mut report.rpo;
    (loss.objective_seconds, loss.measured_seconds) = (None, None);
    (loss.wal_bytes, loss.transactions, loss.last_commit) = (None, None, None);
    (
        loss.store_clock_skew_seconds,
        loss.primary_clock_skew_seconds,
    ) = (None, None);
    let time = &mut report.rto;
    (time.measured_seconds, time.dominated_by) = (None, None);
    (time.phases, time.forecast) = (Vec::new(), Vec::new());
    let place = &mut report.environment;
    (place.memory_bytes, place.memory_used_bytes) = (None, None);
    place.scratch_used_bytes = None;
    (place.isolation, place.adapted) = (Vec::new(), Vec::new());
    place.limits = Limits::default();
    place.system = String::new();
    report.checks = Vec::new();
    report.rows = BTreeMap::new();
    report.rehearsal = None;
    report.copies = Digits(Vec::new());
    report.trend = Vec::new();
    report.warnings = Vec::new();
    report.evidence = Vec::new();
    report.server_log = Vec::new();
    report
}

fn time(text: &str) -> jiff::Timestamp {
    text.parse().unwrap()
}

fn identity() -> Identity {
    Identity {
        cluster: "main".to_owned(),
        system_id: SystemId(7_412_345_678_901_234_567),
        seawall_version: "0.1.0".to_owned(),
        source_version_num: 150_008,
        postgresql: Some("PostgreSQL 15.8".to_owned()),
        configuration_sha256: "ab".repeat(32),
        trigger: "the schedule".to_owned(),
        user: "postgres".to_owned(),
        host: "restore-1".to_owned(),
        command: vec!["seawall-drill".to_owned(), "--json".to_owned()],
    }
}

fn source() -> Source {
    Source {
        repository: "far".to_owned(),
        url: "s3://far/main".to_owned(),
        copy_of: Some("near".to_owned()),
        region: Some("eu-north-1".to_owned()),
        backup_age_seconds: 64_235,
        backup_timeline: TimelineId::FIRST,
        start_lsn: Lsn(0x0A00_0028),
        stop_lsn: Lsn(0x0A61_31D0),
        files: 1_304,
        bytes: 20 << 30,
        fetched_bytes: 6 << 30,
        wal_segments: 48,
        primary_touched: false,
    }
}

fn target() -> Target {
    Target {
        kind: "time",
        value: Some("2026-11-21T04:00:00Z".to_owned()),
        drawn: Some(Drawn {
            seed: 42,
            from: time("2026-11-14T05:00:00Z"),
            until: time("2026-11-21T05:00:00Z"),
        }),
        end_at_gap: false,
        asked_timeline: Some(TimelineId::FIRST),
        asked_backup: Some("20261114T050000F".to_owned()),
        inclusive: true,
        timeline: TimelineId::FIRST,
        reached_lsn: Some(Lsn(0x0B9D_B7E8)),
        reached_time: Some(time("2026-11-21T03:59:59.9Z")),
        next_xid: Some(4_412),
        why: "stopped before commit of transaction 4411".to_owned(),
    }
}

fn rpo() -> Rpo {
    Rpo {
        objective_seconds: Some(300.0),
        measured_seconds: Some(412.5),
        wanted: true,
        upper_bound: true,
        wal_bytes: Some(Lost {
            count: 3 << 20,
            exact: true,
        }),
        transactions: Some(Lost {
            count: 1_204,
            exact: false,
        }),
        last_commit: Some(time("2026-11-21T04:53:07.5Z")),
        failed_at: time("2026-11-21T05:00:00Z"),
        store_clock_skew_seconds: Some(-0.2),
        primary_clock_skew_seconds: Some(0.0),
        method: "the moment of failure minus the last recovered commit".to_owned(),
    }
}

fn rto() -> Rto {
    let phase = |name: &str, began, seconds, bytes| Phase {
        name: name.to_owned(),
        began,
        seconds,
        bytes,
        counts: name != "checks",
    };
    Rto {
        objective_seconds: Some(14_400.0),
        measured_seconds: Some(62.0),
        phases: vec![
            phase("plan", 0.0, 0.4, None),
            phase("fetch", 0.4, 38.0, Some(6 << 30)),
            phase("write", 0.6, 41.0, Some(20 << 30)),
            phase("replay to target", 44.0, 17.5, Some(768 << 20)),
            phase("first query", 61.5, 0.5, None),
            phase("checks", 62.0, 90.0, None),
        ],
        dominated_by: Some(Dominant {
            phase: "write".to_owned(),
            share: 0.66,
            advice: "the disk of the scratch directory: a faster one".to_owned(),
        }),
        forecast: vec![Forecast {
            bytes: 1 << 40,
            seconds: 2_120.0,
            basis: "not measured: 492 MiB/s of files as in this drill".to_owned(),
        }],
    }
}

fn environment() -> Environment {
    Environment {
        processors: 8,
        memory_bytes: Some(32 << 30),
        memory_used_bytes: Some(700 << 20),
        system: "Linux 6.1.0".to_owned(),
        scratch: "/scratch/seawall-drill-1234".into(),
        scratch_free_bytes: 200 << 30,
        scratch_used_bytes: Some(21 << 30),
        limits: Limits {
            processors: Some(4),
            memory_bytes: Some(8 << 30),
            disk_bytes: Some(100 << 30),
            nice: 5,
        },
        isolation: vec![Isolation {
            claim: "no TCP port",
            held: Some(true),
            proof: "none of the sockets of 7 processes listens".to_owned(),
        }],
        adapted: vec!["shared_preload_libraries: left out timescaledb".to_owned()],
    }
}

fn checks() -> Vec<Check> {
    let mut rows = Check::new("rows", Outcome::Failed, "6000, expected 7000");
    rows.seconds = 0.012;
    rows.answer = Some("6000".to_owned());
    let blocks = Check::new(
        "page checksums",
        Outcome::Passed,
        "2621440 blocks, none bad",
    );
    let missing = Check::not_tested("pg_amcheck", "the program is not installed");
    vec![rows, blocks, missing]
}

fn rehearsal() -> Rehearsal {
    Rehearsal {
        file: "migration.sql".to_owned(),
        sha256: "cd".repeat(32),
        database: "shop".to_owned(),
        statements: vec![Statement {
            line: 3,
            sql: "ALTER TABLE orders ALTER COLUMN id TYPE bigint".to_owned(),
            seconds: 12.4,
            error: Some("out of space".to_owned()),
            locks: vec![Lock {
                relation: "public.orders".to_owned(),
                mode: "AccessExclusiveLock".to_owned(),
                blocks: Some("reads and writes".to_owned()),
            }],
            rewritten: vec![Rewritten {
                relation: "public.orders".to_owned(),
                new: false,
                bytes: 3 << 30,
            }],
            from: Lsn(0x0B9D_B7E8),
            wal_bytes: 3 << 30,
        }],
        not_run: 2,
        seconds: 12.4,
    }
}

fn trend() -> Vec<Past> {
    let past = |day, passed, rto| Past {
        id: format!("202611{day}T050000Z-00000000"),
        started: time(&format!("2026-11-{day}T05:00:00Z")),
        passed,
        backup: BACKUP.parse().unwrap(),
        scenario: Some("restore".to_owned()),
        repository: Some("near".to_owned()),
        rpo_seconds: Some(30.0),
        rto_seconds: rto,
        bytes: Some(20 << 30),
    };
    vec![
        past(17, true, Some(55.0)),
        past(18, false, Some(80.0)),
        past(19, true, Some(58.0)),
        past(20, true, Some(61.0)),
    ]
}

fn step(command: &str, exit: Option<i32>) -> Step {
    Step {
        command: command.to_owned(),
        started: time("2026-11-21T05:00:00Z"),
        seconds: 41.2,
        exit,
    }
}
