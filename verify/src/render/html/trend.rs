//! RPO and RTO of the drills before this one, and of this one, against the objectives. Drills
//! that failed are hatched and bear a cross.

use maud::{Markup, html};

use super::super::words::{bytes, duration, moment, one_line, verdict};
use super::time_line::hatch;
use super::{badge, percent};
use crate::history::Summary;
use crate::report::{Past, Report};

/// The height of the columns, and what is above and below them.
const HEIGHT: f64 = 120.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 22.0;

/// So many drills have room at least: one alone must not fill the page.
const ROOM: usize = 12;

/// An objective is drawn unless it is so many times beyond all figures, which it would press
/// to nothing.
const FAR: f64 = 4.0;

pub(super) fn section(report: &Report) -> Markup {
    let mut drills = report.trend.clone();
    drills.push(report.past());
    let (time, loss) = (&report.rto, &report.rpo);
    super::section(
        "trend",
        "Trend",
        html! {
            p.note {
                @if report.trend.is_empty() {
                    "This is the first drill on record: the trend begins with the next one."
                } @else {
                    (summary(&drills)) " The last column is this drill."
                }
            }
            div.charts {
                (chart("rto", "RTO", time.objective_seconds, &drills, |past| past.rto_seconds))
                (chart("rpo", "RPO", loss.objective_seconds, &drills, |past| past.rpo_seconds))
            }
            (table(&drills))
        },
    )
}

fn summary(drills: &[Past]) -> String {
    let Summary { drills, passed } = Summary::of(drills);
    format!("{passed} of the last {drills} drills passed.")
}

fn chart(
    id: &str,
    name: &str,
    objective: Option<f64>,
    drills: &[Past],
    value: fn(&Past) -> Option<f64>,
) -> Markup {
    let most = drills.iter().filter_map(value).fold(0.0, f64::max);
    let drawn = objective.filter(|objective| most <= 0.0 || *objective <= most * FAR);
    let whole = most.max(drawn.unwrap_or(0.0)).max(0.001) * 1.08;
    let up = |seconds: f64| TOP + HEIGHT * (1.0 - (seconds / whole).clamp(0.0, 1.0));
    let step = 100.0 / drills.len().max(ROOM) as f64;
    let base = TOP + HEIGHT;
    let pattern = format!("failed-{id}");
    html! {
        figure.chart {
            figcaption {
                strong { (name) } ", "
                @match (objective, drawn) {
                    (None, _) => "no objective",
                    (Some(objective), Some(_)) => { "objective " (duration(objective)) " (dashed)" },
                    (Some(objective), None) => { "objective " (duration(objective)) ", far above this chart" },
                }
                @if most > 0.0 { ", highest " (duration(most)) }
            }
            svg role="img" aria-labelledby={ "trend-" (id) "-title trend-" (id) "-desc" } width="100%" height=(base + BOTTOM) {
                title id={ "trend-" (id) "-title" } { (name) " of the last drills" }
                desc id={ "trend-" (id) "-desc" } { (description(drills, value)) }
                defs { (hatch(&pattern)) }
                line.grid x1="0" x2="100%" y1=(up(most)) y2=(up(most)) {}
                line.base x1="0" x2="100%" y1=(base) y2=(base) {}
                @for (at, past) in drills.iter().enumerate() {
                    @let x = at as f64 * step;
                    @let tall = value(past).map_or(0.0, |seconds| (base - up(seconds)).max(1.5));
                    rect class={ "drill" @if at + 1 == drills.len() { " this" } }
                        x=(percent(x + step * 0.14)) width=(percent(step * 0.72))
                        y=(base - tall) height=(tall)
                        fill=[(!past.passed).then(|| format!("url(#{pattern})"))] {
                        title { (words(past, value(past))) }
                    }
                    @if !past.passed {
                        text.failure x=(percent(x + step / 2.0)) y=(base - tall - 5.0) text-anchor="middle" { "✕" }
                    }
                }
                @if let Some(objective) = drawn {
                    line.objective x1="0" x2="100%" y1=(up(objective)) y2=(up(objective)) {}
                }
                (dates(drills, drills.len() as f64 * step, base + 16.0))
            }
        }
    }
}

/// The first and the last day, each below its column where there is room between them.
fn dates(drills: &[Past], end: f64, y: f64) -> Markup {
    let (Some(first), Some(last)) = (drills.first(), drills.last()) else {
        return html! {};
    };
    let (first, last) = (day(first), day(last));
    html! {
        @if first == last {
            text.scale x="0" y=(y) { (first) }
        } @else if end < 70.0 {
            text.scale x="0" y=(y) { (first) " to " (last) }
        } @else {
            text.scale x="0" y=(y) { (first) }
            text.scale x=(percent(end)) y=(y) text-anchor="end" { (last) }
        }
    }
}

fn day(past: &Past) -> String {
    past.started.strftime("%Y-%m-%d").to_string()
}

fn words(past: &Past, value: Option<f64>) -> String {
    format!(
        "{}: {}, {}",
        moment(past.started),
        verdict(past.passed),
        value.map_or_else(|| "not measured".to_owned(), duration)
    )
}

fn description(drills: &[Past], value: fn(&Past) -> Option<f64>) -> String {
    let words = drills.iter().map(|past| words(past, value(past)));
    words.collect::<Vec<_>>().join("; ")
}

fn table(drills: &[Past]) -> Markup {
    let unknown = || "not measured".to_owned();
    html! {
        details {
            summary { "The drills in figures" }
            div.scroll tabindex="0" role="region" aria-label="Drills in figures" {
                table {
                    thead { tr {
                        th scope="col" { "began" }
                        th scope="col" { "verdict" }
                        th scope="col" { "scenario" }
                        th scope="col" { "from" }
                        th.number scope="col" { "RTO" }
                        th.number scope="col" { "RPO" }
                        th.number scope="col" { "restored" }
                    } }
                    tbody { @for past in drills.iter().rev() { tr {
                        th scope="row" { (moment(past.started)) }
                        td { (badge(if past.passed { "good" } else { "bad" }, verdict(past.passed))) }
                        td { (one_line(past.scenario.as_deref().unwrap_or("–"))) }
                        td { (one_line(past.repository.as_deref().unwrap_or("–"))) }
                        td.number { (past.rto_seconds.map_or_else(unknown, duration)) }
                        td.number { (past.rpo_seconds.map_or_else(unknown, duration)) }
                        td.number { (past.bytes.map_or_else(|| "–".to_owned(), bytes)) }
                    } } }
                }
            }
        }
    }
}
