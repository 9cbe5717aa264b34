//! The facts that every form of the report states, in the same groups and words.

use super::words::{bytes, count, duration, lost, moment, objective, percent, rpo, rto, skew};
use crate::report::Report;

/// Facts that belong together.
pub(super) struct Facts {
    pub(super) title: &'static str,
    pub(super) rows: Vec<(&'static str, String)>,
}

const NOT_TESTED: &str = "not tested";

/// What was drilled, by whom, and with what.
pub(super) fn scope(report: &Report) -> Facts {
    let (identity, scope) = (&report.identity, &report.scope);
    let version = identity.source_version_num;
    let rows = vec![
        ("scenario", format!("{}: {}", scope.scenario, scope.words)),
        (
            "cluster",
            format!("{}, system {}", identity.cluster, identity.system_id),
        ),
        (
            "source's PostgreSQL",
            format!("{}.{}", version / 10_000, version % 10_000),
        ),
        (
            "restored with",
            identity
                .postgresql
                .clone()
                .unwrap_or_else(|| "PostgreSQL, which never answered".to_owned()),
        ),
        (
            "began",
            format!("{}, ended {}", moment(report.started), moment(report.ended)),
        ),
        ("ordered by", identity.trigger.clone()),
        (
            "run by",
            format!(
                "{} on {}, Seawall {}",
                identity.user, identity.host, identity.seawall_version
            ),
        ),
    ];
    Facts {
        title: "Scope",
        rows,
    }
}

/// What was restored, and from where.
pub(super) fn source(report: &Report) -> Facts {
    let source = &report.source;
    let mut rows = vec![(
        "repository",
        format!("{} ({})", source.repository, source.url),
    )];
    if let Some(of) = &source.copy_of {
        rows.push(("copy of", of.clone()));
    }
    rows.push((
        "region",
        source
            .region
            .clone()
            .unwrap_or_else(|| "the configuration names none".to_owned()),
    ));
    let touched = match source.primary_touched {
        true => "touched, to measure the loss exactly",
        false => "not touched: no connection, nothing of its disks",
    };
    rows.extend([
        (
            "backup",
            format!(
                "{}, {} old at the moment of failure",
                report.backup,
                duration(source.backup_age_seconds as f64)
            ),
        ),
        (
            "backup's WAL",
            format!(
                "timeline {}, from {} to {}",
                source.backup_timeline, source.start_lsn, source.stop_lsn
            ),
        ),
        (
            "files",
            format!(
                "{}, {}, of which {} were fetched as stored",
                count(source.files),
                bytes(source.bytes),
                bytes(source.fetched_bytes)
            ),
        ),
        ("WAL segments", count(source.wal_segments)),
        ("primary", touched.to_owned()),
    ]);
    Facts {
        title: "Source",
        rows,
    }
}

/// Where recovery was to go, and how far it came.
pub(super) fn target(report: &Report) -> Facts {
    let target = &report.target;
    let asked = match &target.value {
        Some(value) => format!("{} {value}", target.kind),
        None => target.kind.to_owned(),
    };
    let edge = if target.inclusive {
        "inclusive"
    } else {
        "exclusive"
    };
    let unknown = || "unknown".to_owned();
    let mut rows = vec![(
        "asked for",
        format!("{asked}, {edge}, on timeline {}", target.timeline),
    )];
    if let Some(drawn) = &target.drawn {
        rows.push((
            "drawn",
            format!(
                "with seed {} from {} to {}",
                drawn.seed,
                moment(drawn.from),
                moment(drawn.until)
            ),
        ));
    }
    rows.extend([
        (
            "reached LSN",
            target
                .reached_lsn
                .map_or_else(unknown, |lsn| lsn.to_string()),
        ),
        (
            "reached time",
            target.reached_time.map_or_else(
                || "no transaction was replayed".to_owned(),
                |time| time.to_string(),
            ),
        ),
        (
            "next transaction",
            target
                .next_xid
                .map_or_else(|| NOT_TESTED.to_owned(), |xid| xid.to_string()),
        ),
        ("why it stopped", target.why.clone()),
    ]);
    Facts {
        title: "Target",
        rows,
    }
}

/// How much would have been lost.
pub(super) fn loss(report: &Report) -> Facts {
    let loss = &report.rpo;
    let last = loss.last_commit;
    let rows = vec![
        (
            "RPO",
            format!(
                "{} (objective: {})",
                rpo(loss),
                objective(loss.objective_seconds)
            ),
        ),
        ("WAL lost", lost(loss.wal_bytes, bytes)),
        ("transactions lost", lost(loss.transactions, count)),
        (
            "last commit",
            last.map_or_else(|| "none was replayed".to_owned(), |time| time.to_string()),
        ),
        ("moment of failure", loss.failed_at.to_string()),
        ("store's clock", skew(loss.store_clock_skew_seconds)),
        ("primary's clock", skew(loss.primary_clock_skew_seconds)),
        ("method", loss.method.clone()),
    ];
    Facts {
        title: "Loss",
        rows,
    }
}

/// What the recovery time was made of, and what it would be for other sizes.
pub(super) fn time(report: &Report) -> Facts {
    let time = &report.rto;
    let mut rows = vec![(
        "RTO",
        format!(
            "{} (objective: {})",
            rto(time),
            objective(time.objective_seconds)
        ),
    )];
    if let Some(most) = &time.dominated_by {
        rows.push((
            "most of it",
            format!("{}, {} of the whole", most.phase, percent(most.share)),
        ));
        // Names of settings stand between quotes there, which Markdown alone would show as code.
        rows.push(("to shorten it", most.advice.replace('`', "")));
    }
    // Sizes that are worked out in the same way stand together.
    for alike in time.forecast.chunk_by(|a, b| a.basis == b.basis) {
        let sizes = alike.iter().map(|forecast| {
            let (size, seconds) = (bytes(forecast.bytes), duration(forecast.seconds));
            format!("{size} in {seconds}")
        });
        let basis = alike.first().map_or("", |forecast| forecast.basis.as_str());
        let sizes = sizes.collect::<Vec<_>>().join(", ");
        rows.push(("forecast", format!("{sizes}; {basis}")));
    }
    Facts {
        title: "Recovery time",
        rows,
    }
}

/// Where the drill ran, and what it was allowed.
pub(super) fn environment(report: &Report) -> Facts {
    let place = &report.environment;
    let limits = &place.limits;
    let all = || "no limit".to_owned();
    let mut rows = vec![
        ("processors", place.processors.to_string()),
        (
            "memory",
            format!(
                "{}; the drill took {} at most",
                place
                    .memory_bytes
                    .map_or_else(|| "unknown".to_owned(), bytes),
                place
                    .memory_used_bytes
                    .map_or_else(|| "an unknown part".to_owned(), bytes)
            ),
        ),
        (
            "system",
            match place.system.as_str() {
                "" => NOT_TESTED.to_owned(),
                system => system.to_owned(),
            },
        ),
        (
            "scratch",
            format!(
                "{}, {} free before, {} used at most",
                place.scratch.display(),
                bytes(place.scratch_free_bytes),
                place
                    .scratch_used_bytes
                    .map_or_else(|| "an unknown part".to_owned(), bytes)
            ),
        ),
        (
            "limits",
            format!(
                "processors: {}; memory: {}; disk: {}; nice {}",
                limits
                    .processors
                    .map_or_else(all, |processors| processors.to_string()),
                limits.memory_bytes.map_or_else(all, bytes),
                limits.disk_bytes.map_or_else(all, bytes),
                limits.nice
            ),
        ),
    ];
    let adapted = place.adapted.iter();
    rows.extend(adapted.map(|what| ("adapted", what.clone())));
    Facts {
        title: "Environment",
        rows,
    }
}
