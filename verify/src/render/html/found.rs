//! What the drill looked at, and what it found.

use maud::{Markup, html};

use super::super::words::{bytes, count, counted, duration, held, one_line, outcome};
use super::{badge, held_class, lines, section};
use crate::checks::{Check, Outcome};
use crate::report::{Report, Statement};

pub(super) fn checks(report: &Report) -> Markup {
    let mut checks: Vec<&Check> = report.checks.iter().collect();
    // What failed is what somebody has come to read.
    checks.sort_by_key(|check| match check.outcome {
        Outcome::Failed => 0,
        Outcome::Passed => 1,
        Outcome::NotTested => 2,
    });
    let class = |check: &Check| match check.outcome {
        Outcome::Passed => "good",
        Outcome::Failed => "bad",
        Outcome::NotTested => "open",
    };
    section(
        "checks",
        "Checks",
        html! {
            @if checks.is_empty() { p { "Nothing was checked." } }
            ul.found { @for check in checks { li {
                p.head {
                    (badge(class(check), outcome(check.outcome))) " "
                    strong { (one_line(&check.name)) }
                    @if check.seconds > 0.0 { span.aside { (duration(check.seconds)) } }
                }
                p.detail { (lines(&check.detail)) }
            } } }
        },
    )
}

pub(super) fn isolation(report: &Report) -> Markup {
    let walls = &report.environment.isolation;
    section(
        "isolation",
        "Isolation, as it was looked at",
        html! {
            @if walls.is_empty() { p { "Not tested: nothing was looked at." } }
            ul.found { @for wall in walls { li {
                p.head {
                    (badge(held_class(wall.held), held(wall.held, "held", "BROKEN"))) " "
                    strong { (wall.claim) }
                }
                p.detail { (lines(&wall.proof)) }
            } } }
        },
    )
}

pub(super) fn copies(report: &Report) -> Markup {
    let digits = &report.copies.0;
    section(
        "copies",
        "3-2-1-1-0",
        html! {
            @if digits.is_empty() { p { "Not tested: nothing was looked at." } }
            ul.found { @for digit in digits { li {
                p.head {
                    (badge(held_class(digit.met), held(digit.met, "met", "NOT MET"))) " "
                    strong { (digit.rule) }
                }
                p.detail { (lines(&digit.why)) }
            } } }
        },
    )
}

/// What a migration did, statement by statement. Nothing where none was rehearsed.
pub(super) fn rehearsal(report: &Report) -> Markup {
    let Some(rehearsal) = &report.rehearsal else {
        return html! {};
    };
    section(
        "rehearsal",
        "Rehearsal of a migration",
        html! {
            p {
                (one_line(&rehearsal.file)) " in database " (one_line(&rehearsal.database)) ": "
                (counted(rehearsal.statements.len(), "statement")) " in " (duration(rehearsal.seconds))
                ", " (rehearsal.not_run) " not run."
            }
            ol.found.statements { @for statement in &rehearsal.statements { li { (self::statement(statement)) } } }
            p.note { "SHA-256 of the file: " span.digest { (rehearsal.sha256) } }
        },
    )
}

fn statement(statement: &Statement) -> Markup {
    html! {
        p.head {
            @match statement.error {
                Some(_) => (badge("bad", "FAILED")),
                None => (badge("good", "ran")),
            }
            " " strong { (duration(statement.seconds)) }
            span.aside { "line " (statement.line) ", " (bytes(statement.wal_bytes)) " of WAL from " (statement.from) }
        }
        pre.command { code { (lines(&statement.sql)) } }
        @if let Some(error) = &statement.error { p.detail.bad { (lines(error)) } }
        ul {
            @if statement.locks.is_empty() { li { "It held no lock on a relation." } }
            @for lock in &statement.locks { li {
                strong { (one_line(&lock.mode)) } " on " (one_line(&lock.relation)) ": "
                @match &lock.blocks {
                    Some(blocks) => { "blocks " strong { (one_line(blocks)) } },
                    None => "blocks neither reads nor writes",
                }
            } }
            @for file in &statement.rewritten { li {
                @if file.new { "new: " } @else { strong { "rewritten" } ": " }
                (one_line(&file.relation)) ", " (bytes(file.bytes))
            } }
        }
    }
}

/// How many rows there were: the next drill compares with them.
pub(super) fn rows(report: &Report) -> Markup {
    if report.rows.is_empty() {
        return html! {};
    }
    section(
        "rows",
        "Rows",
        html! {
            @for (database, tables) in &report.rows {
                details {
                    summary {
                        "database " (one_line(database)) ": "
                        (count(tables.values().sum())) " rows in " (counted(tables.len(), "table"))
                    }
                    div.scroll tabindex="0" role="region" aria-label={ "Rows of " (one_line(database)) } {
                        table {
                            thead { tr { th scope="col" { "table" } th.number scope="col" { "rows" } } }
                            tbody { @for (table, rows) in tables { tr {
                                th scope="row" { (one_line(table)) }
                                td.number { (count(*rows)) }
                            } } }
                        }
                    }
                }
            }
        },
    )
}

pub(super) fn not_tested(report: &Report) -> Markup {
    section(
        "not-tested",
        "What no drill tests",
        html! {
            dl.facts { @for gap in &report.not_tested {
                div { dt { (gap.field) } dd { (gap.why) } }
            } }
        },
    )
}

pub(super) fn warnings(report: &Report) -> Markup {
    section(
        "warnings",
        "Warnings",
        html! {
            @if report.warnings.is_empty() { p { "None." } }
            ul { @for warning in &report.warnings { li { (one_line(warning)) } } }
        },
    )
}
