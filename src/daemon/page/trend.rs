//! RTO and RPO of the last drills, against the objectives.

use jiff::Timestamp;
use maud::{Markup, html};

use super::{ago, percent, span};
use crate::status::DrillStatus;

const HEIGHT: f64 = 60.0;
const TOP: f64 = 14.0;

/// So many drills have room at least.
const ROOM: usize = 12;

/// An objective that is so many times beyond all figures would press them to nothing.
const FAR: f64 = 4.0;

pub(super) fn chart(
    id: &str,
    name: &str,
    drills: &[DrillStatus],
    objective: Option<f64>,
    value: fn(&DrillStatus) -> Option<f64>,
    now: Timestamp,
) -> Markup {
    let most = drills.iter().filter_map(value).fold(0.0, f64::max);
    let drawn = objective.filter(|objective| most <= 0.0 || *objective <= most * FAR);
    let whole = most.max(drawn.unwrap_or(0.0)).max(0.001) * 1.05;
    let tall = |seconds: f64| (HEIGHT * seconds / whole).max(1.5);
    let step = 1.0 / drills.len().max(ROOM) as f64;
    let base = TOP + HEIGHT;
    let in_words = |drill: &DrillStatus| {
        let verdict = if drill.passed { "passed" } else { "failed" };
        let value = value(drill).map_or("not measured".to_owned(), span);
        format!("{}: {verdict}, {value}", ago(drill.started, now))
    };
    html! {
        figure {
            figcaption {
                (name) " of the last drills, "
                @match (objective, drawn) {
                    (None, _) => "no objective",
                    (Some(objective), Some(_)) => { "objective " (span(objective)) " (dashed)" },
                    (Some(objective), None) => { "objective " (span(objective)) ", far above" },
                }
                @if most > 0.0 { ", highest " (span(most)) }
            }
            svg.trend role="img" aria-labelledby={ (id) "-title " (id) "-desc" } width="100%" height=(base + 2.0) {
                title id={ (id) "-title" } { (name) " of the last drills" }
                desc id={ (id) "-desc" } { (drills.iter().map(in_words).collect::<Vec<_>>().join("; ")) }
                line.base x1="0" x2="100%" y1=(base) y2=(base) {}
                @for (at, drill) in drills.iter().enumerate() {
                    @let (x, high) = (at as f64 * step, value(drill).map_or(1.5, tall));
                    rect class=(if drill.passed { "passed" } else { "failed" })
                        x=(percent(x + step * 0.15)) width=(percent(step * 0.7))
                        y=(base - high) height=(high) { title { (in_words(drill)) } }
                    @if !drill.passed {
                        text.cross x=(percent(x + step / 2.0)) y=(base - high - 3.0) text-anchor="middle" { "✕" }
                    }
                }
                @if let Some(objective) = drawn {
                    line.objective x1="0" x2="100%" y1=(base - tall(objective)) y2=(base - tall(objective)) {}
                }
            }
        }
    }
}
