//! The recovery time as a picture: a bar for each phase where it began and as long as it took.
//! Widths are per cent and heights pixels, so that letters keep their size on every screen.

use maud::{Markup, html};

use super::super::facts;
use super::super::words::{bytes, duration, one_line, percent as share, rate, time_scale};
use super::percent;
use crate::report::{Phase, Report};

/// The height of a phase: a line of text, and its bar.
const ROW: usize = 38;

/// Above the first phase: the words of the marks.
const TOP: usize = 22;

/// Below the last one: the scale.
const BOTTOM: usize = 24;

pub(super) fn section(report: &Report) -> Markup {
    let phases = &report.rto.phases;
    super::section(
        "time",
        "Recovery time, by phases",
        html! {
            @if phases.is_empty() {
                p { "The drill ended before its first phase." }
            } @else {
                (picture(report, phases))
                (table(report, phases))
            }
            dl.facts {
                @for (name, value) in facts::time(report).rows.iter().filter(|(name, _)| *name != "RTO") {
                    div { dt { (name) } dd { (one_line(value)) } }
                }
            }
        },
    )
}

fn picture(report: &Report, phases: &[Phase]) -> Markup {
    let whole = time_scale(phases);
    let across = |seconds: f64| (seconds / whole * 100.0).clamp(0.0, 100.0);
    let bottom = TOP + phases.len() * ROW;
    let most = report.rto.dominated_by.as_ref();
    let most = most.map(|most| most.phase.as_str());
    html! {
        svg.timeline role="img" aria-labelledby="timeline-title timeline-desc" width="100%" height=(bottom + BOTTOM) {
            title #timeline-title { "Time line of the recovery" }
            desc #timeline-desc { (description(report, phases)) }
            defs { (hatch("after")) }
            @for tick in ticks(whole) {
                @let x = across(tick);
                line.grid x1=(percent(x)) x2=(percent(x)) y1=(TOP) y2=(bottom) {}
                text.scale x=(percent(x)) y=(bottom + 16) text-anchor=(anchor(x)) { (duration(tick)) }
            }
            @if let Some(measured) = report.rto.measured_seconds {
                (mark("answer", across(measured), bottom, format!("first answer, {}", duration(measured))))
            }
            @if let Some(objective) = report.rto.objective_seconds.filter(|objective| *objective <= whole) {
                (mark("limit", across(objective), bottom, format!("objective, {}", duration(objective))))
            }
            @for (at, phase) in phases.iter().enumerate() {
                @let top = TOP + at * ROW;
                @let from = across(phase.began).min(99.5);
                @let until = across(phase.began + phase.seconds);
                @let longest = most == Some(phase.name.as_str());
                @let cut = phase.began + phase.seconds > whole * 1.0001;
                text.name.most[longest] x="0" y=(top + 15) {
                    (one_line(&phase.name))
                    @if longest { " · the longest" }
                    @if !phase.counts { " · after the RTO" }
                    @if cut { " · bar cut off" }
                }
                text.value x="100%" y=(top + 15) text-anchor="end" {
                    (duration(phase.seconds))
                    // On a phone there is no room beside the name.
                    @if phase.rate().is_some() { tspan.wide { " · " (rate(phase)) } }
                }
                rect class={ "phase" @if longest { " most" } @if !phase.counts { " after" } }
                    x=(percent(from)) y=(top + 21) height="10" rx="2"
                    width=(percent((until - from).max(0.5)))
                    fill=[(!phase.counts).then_some("url(#after)")] {}
            }
        }
    }
}

/// Round moments of the scale: four or five of them.
fn ticks(whole: f64) -> Vec<f64> {
    const STEPS: [f64; 12] = [
        1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
    ];
    let least = whole / 5.0;
    let step = STEPS.into_iter().find(|step| *step >= least);
    let step = step.filter(|_| least > 0.5).unwrap_or_else(|| {
        // Below a second and above some hours: one, two or five of a power of ten.
        let power = 10.0_f64.powf(least.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
        steps
            .into_iter()
            .find(|step| *step >= least)
            .unwrap_or(least)
    });
    (0..=5)
        .map(|at| f64::from(at) * step)
        .filter(|tick| *tick <= whole)
        .collect()
}

fn mark(class: &str, x: f64, bottom: usize, words: String) -> Markup {
    let (anchor, shift) = if x > 50.0 { ("end", -5) } else { ("start", 5) };
    html! {
        line class={ "mark " (class) } x1=(percent(x)) x2=(percent(x)) y1="4" y2=(bottom) {}
        text.scale x=(percent(x)) dx=(shift) y="14" text-anchor=(anchor) { (words) }
    }
}

/// A pattern of lines: what it fills is told apart without its colour.
pub(super) fn hatch(id: &str) -> Markup {
    html! {
        pattern id=(id) width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
            rect.hatch-ground width="6" height="6" {}
            line.hatch-line x1="0" y1="0" x2="0" y2="6" {}
        }
    }
}

fn anchor(x: f64) -> &'static str {
    match x {
        x if x < 4.0 => "start",
        x if x > 90.0 => "end",
        _ => "middle",
    }
}

fn description(report: &Report, phases: &[Phase]) -> String {
    let phases = phases.iter().map(|phase| {
        format!(
            "{} from {} for {}",
            one_line(&phase.name),
            duration(phase.began),
            duration(phase.seconds)
        )
    });
    let phases = phases.collect::<Vec<_>>().join("; ");
    match report.rto.measured_seconds {
        Some(measured) => format!(
            "{phases}. The first answer came after {}.",
            duration(measured)
        ),
        None => format!("{phases}. No answer came."),
    }
}

fn table(report: &Report, phases: &[Phase]) -> Markup {
    let whole = report.rto.measured_seconds.filter(|whole| *whole > 0.0);
    html! {
        details {
            summary { "The phases in figures" }
            div.scroll tabindex="0" role="region" aria-label="Phases in figures" {
                table {
                    thead { tr {
                        th scope="col" { "phase" }
                        th.number scope="col" { "began" }
                        th.number scope="col" { "took" }
                        th.number scope="col" { "of the RTO" }
                        th.number scope="col" { "moved" }
                        th.number scope="col" { "rate" }
                    } }
                    tbody { @for phase in phases { tr {
                        th scope="row" { (one_line(&phase.name)) }
                        td.number { (duration(phase.began)) }
                        td.number { (duration(phase.seconds)) }
                        td.number {
                            @match whole.filter(|_| phase.counts) {
                                Some(whole) => (share(phase.seconds / whole)),
                                None => "–",
                            }
                        }
                        td.number { (phase.bytes.map_or_else(|| "–".to_owned(), bytes)) }
                        td.number { @if phase.rate().is_some() { (rate(phase)) } @else { "–" } }
                    } } }
                }
            }
            p.note { "Phases may overlap, so their parts may add up to more than the whole." }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_has_round_moments() {
        assert_eq!(ticks(12.0), [0.0, 5.0, 10.0]);
        assert_eq!(ticks(70.0), [0.0, 15.0, 30.0, 45.0, 60.0]);
        assert_eq!(ticks(7000.0).len(), 4);
        for whole in [0.001, 0.37, 1.0, 3.3, 59.0, 90_000.0, 1e7] {
            let count = ticks(whole).len();
            assert!((3..=6).contains(&count), "{whole}: {count}");
        }
    }
}
