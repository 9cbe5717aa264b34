//! The report in every form that people and machines read.

use std::fmt::Write;

use crate::checks::{Check, Outcome};
use crate::report::{Phase, Report};

/// For the terminal.
pub fn terminal(report: &Report) -> String {
    let mut text = String::new();
    let verdict = if report.passed { "PASSED" } else { "FAILED" };
    line(&mut text, &format!("DRILL {verdict}: {}", headline(report)));
    for reason in &report.reasons {
        line(&mut text, &format!("  - {reason}"));
    }
    line(&mut text, "");
    for (name, value) in facts(report) {
        line(&mut text, &format!("{name:<10} {value}"));
    }
    line(&mut text, "");
    let total: f64 = report.rto.phases.iter().map(|phase| phase.seconds).sum();
    for phase in &report.rto.phases {
        let bar = "#".repeat(bar_length(phase, total, 30));
        line(
            &mut text,
            &format!(
                "  {:<22} {:>8.3} s  {:<12} {bar}",
                phase.name,
                phase.seconds,
                rate(phase)
            ),
        );
    }
    line(&mut text, "");
    for check in &report.checks {
        line(
            &mut text,
            &format!(
                "  {:<10} {}: {}",
                word(check),
                check.name,
                first_line(check)
            ),
        );
    }
    for warning in &report.warnings {
        line(&mut text, &format!("  warning    {warning}"));
    }
    let gaps: Vec<&str> = report.not_tested.iter().map(|gap| gap.field).collect();
    line(&mut text, &format!("  no drill tests: {}", gaps.join("; ")));
    line(&mut text, "");
    line(
        &mut text,
        &format!("drill {}; {}", report.id, report.teardown),
    );
    text
}

/// For a wiki, a ticket, an auditor.
pub fn markdown(report: &Report) -> String {
    let mut text = String::new();
    let verdict = if report.passed { "passed" } else { "FAILED" };
    line(&mut text, &format!("# Drill {}: {verdict}\n", report.id));
    line(&mut text, &format!("{}\n", headline(report)));
    for reason in &report.reasons {
        line(&mut text, &format!("- {reason}"));
    }
    line(&mut text, "\n| | |\n|---|---|");
    for (name, value) in facts(report) {
        line(&mut text, &format!("| {name} | {} |", escape(&value)));
    }
    line(
        &mut text,
        "\n## Recovery time, by phases\n\n| phase | seconds | rate |\n|---|---|---|",
    );
    for phase in &report.rto.phases {
        line(
            &mut text,
            &format!(
                "| {} | {:.3} | {} |",
                phase.name,
                phase.seconds,
                rate(phase)
            ),
        );
    }
    line(
        &mut text,
        "\n## Checks\n\n| check | result | what was found |\n|---|---|---|",
    );
    for check in &report.checks {
        let detail = escape(&check.detail);
        line(
            &mut text,
            &format!("| {} | {} | {detail} |", escape(&check.name), word(check)),
        );
    }
    line(
        &mut text,
        "\n## What no drill tests\n\n| field | why |\n|---|---|",
    );
    for gap in &report.not_tested {
        line(&mut text, &format!("| {} | {} |", gap.field, gap.why));
    }
    if !report.warnings.is_empty() {
        line(&mut text, "\n## Warnings\n");
        for warning in &report.warnings {
            line(&mut text, &format!("- {warning}"));
        }
    }
    line(&mut text, "\n## Isolation\n");
    for item in &report.environment.isolation {
        line(&mut text, &format!("- {}: {}", item.claim, item.proof));
    }
    line(
        &mut text,
        "\n## Runbook: every command, in order\n\n| started | seconds | exit | command |\n|---|---|---|---|",
    );
    for step in &report.evidence {
        let exit = step
            .exit
            .map_or("signal".to_owned(), |exit| exit.to_string());
        line(
            &mut text,
            &format!(
                "| {} | {:.3} | {exit} | `{}` |",
                step.started,
                step.seconds,
                escape(&step.command)
            ),
        );
    }
    line(&mut text, &format!("\n{}", report.teardown));
    text
}

fn headline(report: &Report) -> String {
    let rto = report
        .rto
        .measured_seconds
        .map_or("never open".to_owned(), |s| format!("RTO {s:.1} s"));
    let rpo = report
        .rpo
        .measured_seconds
        .map_or("RPO not tested".to_owned(), |s| {
            format!("RPO at most {s:.1} s")
        });
    format!(
        "{rto}, {rpo}, cluster {}, backup {}",
        report.identity.cluster, report.backup
    )
}

/// The facts that every form of the report names.
fn facts(report: &Report) -> Vec<(&'static str, String)> {
    let objective = |seconds: Option<f64>| {
        seconds.map_or("no objective".to_owned(), |seconds| {
            format!("objective {seconds} s")
        })
    };
    let target = match &report.target.value {
        Some(value) => format!("{} {value}", report.target.kind),
        None => report.target.kind.to_owned(),
    };
    let reached = match (report.target.reached_lsn, report.target.reached_time) {
        (Some(lsn), Some(time)) => format!("LSN {lsn}, last commit {time}"),
        (Some(lsn), None) => format!("LSN {lsn}"),
        _ => "nothing".to_owned(),
    };
    let rto = report
        .rto
        .measured_seconds
        .map_or("never open".to_owned(), |s| format!("{s:.3} s"));
    let rpo = report
        .rpo
        .measured_seconds
        .map_or("not tested".to_owned(), |s| format!("at most {s:.3} s"));
    vec![
        (
            "cluster",
            format!(
                "{}, system {}",
                report.identity.cluster, report.identity.system_id
            ),
        ),
        (
            "source",
            format!(
                "repository {} ({}), the primary was not touched",
                report.source.repository, report.source.url
            ),
        ),
        (
            "backup",
            format!(
                "{}, {} s old, {} files, {} bytes, {} WAL segments",
                report.backup,
                report.source.backup_age_seconds,
                report.source.files,
                report.source.bytes,
                report.source.wal_segments
            ),
        ),
        (
            "target",
            format!("{target} on timeline {}", report.target.timeline),
        ),
        ("reached", format!("{reached}; {}", report.target.why)),
        (
            "RTO",
            format!(
                "{rto} ({}){}",
                objective(report.rto.objective_seconds),
                report
                    .rto
                    .dominated_by
                    .as_ref()
                    .map_or(String::new(), |most| format!(
                        ", most of it: {}",
                        most.phase
                    ))
            ),
        ),
        (
            "RPO",
            format!(
                "{rpo} ({}), {}",
                objective(report.rpo.objective_seconds),
                report.rpo.method
            ),
        ),
        (
            "run by",
            format!(
                "{} on {}, Seawall {}, {}",
                report.identity.user,
                report.identity.host,
                report.identity.seawall_version,
                report
                    .identity
                    .postgresql
                    .as_deref()
                    .unwrap_or("PostgreSQL never answered")
            ),
        ),
    ]
}

fn word(check: &Check) -> &'static str {
    match check.outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "FAILED",
        Outcome::NotTested => "not tested",
    }
}

fn first_line(check: &Check) -> &str {
    check.detail.lines().next().unwrap_or_default()
}

fn rate(phase: &Phase) -> String {
    match phase.bytes {
        Some(bytes) if phase.seconds > 0.0 => {
            format!(
                "{:.0} MiB/s",
                bytes as f64 / phase.seconds / f64::from(1 << 20)
            )
        }
        _ => String::new(),
    }
}

fn bar_length(phase: &Phase, total: f64, width: usize) -> usize {
    if total > 0.0 {
        (phase.seconds / total * width as f64).round() as usize
    } else {
        0
    }
}

fn escape(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn line(text: &mut String, line: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{}", line.trim_end());
}
