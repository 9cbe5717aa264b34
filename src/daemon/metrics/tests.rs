use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::daemon::agenda::{Record, Run, Waiting};
use crate::daemon::board::JobShown;
use crate::daemon::operation::{Continuous, Job, Operation};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A daemon of which everything is known.
fn sample() -> Shown {
    let backup = |id: &str, kind: &str, stored: u64| {
        serde_json::json!({
            "id": id, "kind": kind, "stop_time": at(5000), "seconds": 60.0, "bytes": 4000,
            "stored_bytes": stored, "damaged_pages": 0,
            "window": {"from": at(5000), "to": at(9000)}, "pinned": false, "proven": at(8000),
        })
    };
    let near = serde_json::json!({
        "name": "near", "looked": at(9990), "listed": at(9000),
        "system_id": "7", "postgresql_major": 18, "newest_recoverable": at(9000),
        "archived_until": {"timeline": 1, "lsn": "0/5000000", "stored": at(9001)},
        "windows": [{"from": at(5000), "to": at(9000)}],
        "backups": [
            backup("20261101T000000Z-full-00000001", "full", 900),
            backup("20261108T000000Z-full-00000002", "full", 1000),
            backup("20261115T000000Z-full-00000003", "full", 3000),
            backup("20261116T000000Z-incr-00000004", "incremental", 10),
        ],
        "unfinished_backups": 1,
        "gaps": [["000000010000000000000002", "000000010000000000000003"]],
        "conflicts": 0, "unreadable": [],
        "sizes": {"wal": 70, "full": 4900, "incremental": 10},
        "copy_from": "nearer", "compared": at(9990),
        "lag": {"segments": 2, "wal_bytes": 32, "seconds": 7.5, "histories": [], "backups": []},
        "drills": [{
            "id": "20261115T050000Z-00000001", "backup": "20261115T000000Z-full-00000003",
            "started": at(8000), "passed": true, "rto_seconds": 12.0, "rpo_seconds": 3.0,
        }],
    });
    let status: ClusterStatus = serde_json::from_value(serde_json::json!({
        "format": 1, "cluster": "main", "time": at(9990), "seconds": 0.25,
        "objectives": {"rpo_seconds": 300.0, "rto_seconds": 3600.0},
        "server": {
            "postgresql_major": 18, "system_id": "7", "in_recovery": false, "position": "0/5000100",
            "archiver": {
                "archived": 40, "failed": 2, "last_archived": "000000010000000000000004",
                "last_archived_time": at(9001), "last_failed_time": at(4000), "failing": false,
                "unarchived_bytes": 256,
            },
            "backlog": {
                "files": 3, "bytes": 48, "oldest_seconds": 9.0, "written_per_second": 5.0,
                "archived_per_second": 4.0, "free_bytes": 1000,
            },
            "seconds_until_full": 1000.0,
        },
        "repositories": [near],
    }))
    .unwrap();
    let job = Job {
        cluster: "main".into(),
        operation: Operation::Full,
    };
    let last = Run {
        due: at(4000),
        started: at(4000),
        ended: at(4060),
        result: RunResult::Done,
        exit: Some(0),
        said: String::new(),
    };
    let record = Record {
        last: Some(last),
        done: Some(at(4060)),
        ..Record::default()
    };
    Shown {
        started: at(1000),
        clusters: vec!["main".into()],
        jobs: vec![JobShown {
            job: job.clone(),
            record,
            next: Some(at(20_000)),
            due: Some(at(20_000)),
            line: "@weekly (UTC)".into(),
            runs: false,
        }],
        continuous: vec![
            ("main".into(), Continuous::Heartbeat, None),
            (
                "main".into(),
                Continuous::Copy,
                Some(Waiting {
                    since: at(2000),
                    why: "it ended".into(),
                }),
            ),
        ],
        runs: BTreeMap::from([((job, RunResult::Done), 4)]),
        statuses: BTreeMap::from([("main".into(), Arc::new(status))]),
        ..Shown::default()
    }
}

#[test]
fn each_figure_is_there_with_its_labels() {
    let text = text(&sample(), at(10_000));
    let near = "cluster=\"main\",repository=\"near\"";
    for line in [
        "seawall_job_runs_total{cluster=\"main\",operation=\"full\",result=\"done\"} 4".to_owned(),
        "seawall_job_last_duration_seconds{cluster=\"main\",operation=\"full\"} 60.0".into(),
        "seawall_command_up{cluster=\"main\",command=\"copy\"} 0.0".into(),
        "seawall_command_up{cluster=\"main\",command=\"heartbeat\"} 1.0".into(),
        "seawall_archived_files_total{cluster=\"main\"} 40".into(),
        "seawall_archive_lag_segments{cluster=\"main\"} 3.0".into(),
        format!("seawall_live_rpo_seconds{{{near}}} 1000.0"),
        format!("seawall_wal_gaps{{{near}}} 1.0"),
        format!("seawall_stored_bytes{{{near},class=\"full\"}} 4900.0"),
        format!("seawall_backups{{{near},kind=\"full\"}} 3.0"),
        format!("seawall_backup_newest_stored_bytes{{{near},kind=\"full\"}} 3000.0"),
        // The median of the two before it.
        format!("seawall_backup_usual_stored_bytes{{{near},kind=\"full\"}} 1000.0"),
        format!("seawall_drill_last_passed{{{near}}} 1.0"),
        format!("seawall_copy_lag_seconds{{{near}}} 7.5"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(!text.contains("seawall_backup_usual_stored_bytes{cluster=\"main\",repository=\"near\",kind=\"incremental\"}"));
    assert!(text.ends_with("# EOF\n"));
}

/// The table of docs/metrics.md, from what a scraper reads.
fn table(text: &str) -> String {
    let mut rows = Vec::new();
    let mut help = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, said)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) {
            help.insert(name.to_owned(), said.to_owned());
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' '))
        {
            rows.push((name.to_owned(), kind.to_owned()));
        }
    }
    let mut table = "| metric | type | labels | what it is |\n|---|---|---|---|\n".to_owned();
    for (name, kind) in rows {
        let shown = match kind.as_str() {
            "counter" => format!("{name}_total"),
            _ => name.clone(),
        };
        let sample = text.lines().find(|line| {
            let rest = line.strip_prefix(shown.as_str());
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        let sample = sample.unwrap_or_else(|| panic!("no sample of {shown}"));
        let labels = sample
            .split_once('{')
            .and_then(|(_, rest)| rest.split_once('}'));
        let labels = labels.map_or("", |(labels, _)| labels).split(',');
        let labels: Vec<&str> = labels.filter_map(|l| Some(l.split_once('=')?.0)).collect();
        table += &format!(
            "| `{shown}` | {kind} | {} | {} |\n",
            labels.join(", "),
            help[&name]
        );
    }
    table
}

/// `SEAWALL_WRITE_DOCS=1` writes it instead.
#[test]
fn the_document_lists_every_metric_and_no_other() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    let document = std::fs::read_to_string(path).unwrap();
    let (begin, end) = ("<!-- metrics:begin -->\n", "<!-- metrics:end -->");
    let (before, rest) = document.split_once(begin).unwrap();
    let (listed, after) = rest.split_once(end).unwrap();
    let table = table(&text(&sample(), at(10_000)));
    assert!(!table.contains(".. |"), "{table}");
    if std::env::var_os("SEAWALL_WRITE_DOCS").is_some() {
        let text = format!("{before}{begin}{table}{end}{after}");
        crate::durable::write_file(path.as_ref(), text.as_bytes(), 0o644).unwrap();
        return;
    }
    assert!(
        listed == table,
        "docs/metrics.md is stale: SEAWALL_WRITE_DOCS=1 cargo test --lib the_document_lists writes it anew"
    );
}
