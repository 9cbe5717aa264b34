//! One self-contained page for people: no script, nothing from elsewhere. It is read on a phone,
//! on a desk, on paper, by light and by dark. Escaping is maud's; what it leaves alone (control
//! characters) is made visible first. It ends with the runbook.

mod evidence;
mod found;
mod time_line;
mod trend;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use seawall::look::LOOK;

use super::facts::{self, Facts};
use super::words::{self, Met, bytes, headline, moment, one_line};
use crate::checks::Outcome;
use crate::report::Report;

const STYLE: &str = include_str!("style.css");

/// Nothing is loaded, whatever a text from outside may hold.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// The report as an HTML page.
pub fn html(report: &Report) -> String {
    let word = if report.passed { "passed" } else { "failed" };
    let cluster = one_line(&report.identity.cluster);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { "Drill " (word) ": " (cluster) ", " (moment(report.started)) }
                style { (PreEscaped(LOOK)) (PreEscaped(STYLE)) }
            }
            body {
                (top(report, word, &cluster))
                main {
                    (tiles(report))
                    (time_line::section(report))
                    (trend::section(report))
                    (found::checks(report))
                    (section("target", "Target", table_of(&facts::target(report))))
                    (section("loss", "Loss", table_of(&facts::loss(report))))
                    (section("source", "Scope and source", html! {
                        (table_of(&facts::scope(report)))
                        (table_of(&facts::source(report)))
                    }))
                    (section("environment", "Environment and limits", table_of(&facts::environment(report))))
                    (found::isolation(report))
                    (found::copies(report))
                    (found::rehearsal(report))
                    (found::rows(report))
                    (found::not_tested(report))
                    (found::warnings(report))
                    (evidence::evidence(report))
                    (evidence::runbook(report))
                }
            }
        }
    };
    page.into_string()
}

fn top(report: &Report, word: &str, cluster: &str) -> Markup {
    html! {
        header class={ "verdict " (word) } {
            p.eyebrow {
                "Seawall drill of cluster " strong { (cluster) } ", "
                (moment(report.started))
            }
            h1 {
                span.mark aria-hidden="true" { @if report.passed { "✓" } @else { "✕" } }
                " Drill " (word)
            }
            p.headline { (unbroken(&headline(report))) }
            @if !report.reasons.is_empty() {
                ul.reasons { @for reason in &report.reasons { li { (one_line(reason)) } } }
            }
        }
    }
}

/// The figures that a reader looks for.
fn tiles(report: &Report) -> Markup {
    let (time, loss) = (&report.rto, &report.rpo);
    let checks = |outcome| {
        let checks = report.checks.iter();
        checks.filter(|check| check.outcome == outcome).count()
    };
    let (passed, failed) = (checks(Outcome::Passed), checks(Outcome::Failed));
    let skipped = checks(Outcome::NotTested);
    let lost = words::rpo(loss);
    let (bound, figure) = match lost.strip_prefix("at most ") {
        Some(figure) => ("Loss (RPO), at most", figure),
        None => ("Loss (RPO)", lost.as_str()),
    };
    html! {
        div.tiles {
            (objective("rto", "Recovery time (RTO)", words::rto(time), time.objective_seconds, time.measured_seconds))
            (objective("rpo", bound, figure.to_owned(), loss.objective_seconds, loss.measured_seconds))
            section.tile #throughput {
                h2 { "Throughput of the restore" }
                @match throughput(report) {
                    Some(rate) => p.figure { (bytes(rate.round() as u64)) "/s" },
                    None => p.figure.none { "not measured" },
                }
                p.note { (bytes(report.source.bytes)) " of files, from the first byte fetched to the last one written" }
            }
            section.tile #checked {
                h2 { "Checks" }
                p.figure { (passed) " passed" }
                p.note {
                    @if failed > 0 { span.badge.bad { (failed) " FAILED" } " " }
                    span.whole { (skipped) " not tested" }
                }
            }
        }
    }
}

fn objective(
    id: &str,
    title: &str,
    words: String,
    wanted: Option<f64>,
    measured: Option<f64>,
) -> Markup {
    let met = Met::of(wanted, measured);
    html! {
        section.tile id=(id) {
            h2 { (title) }
            p.figure.none[measured.is_none()] { (words) }
            @if let (Some(wanted), Some(measured)) = (wanted, measured) {
                (meter(wanted, measured))
            }
            p.note {
                (badge(met_class(met), met.word())) " "
                @if let Some(wanted) = wanted {
                    span.whole { "objective: " (words::duration(wanted)) }
                }
            }
        }
    }
}

/// How much of the objective was used up, or how far beyond it the figure is.
fn meter(wanted: f64, measured: f64) -> Markup {
    let whole = wanted.max(measured).max(f64::MIN_POSITIVE);
    let (used, limit) = (measured / whole * 100.0, wanted / whole * 100.0);
    let class = if measured > wanted {
        "fill bad"
    } else {
        "fill"
    };
    // Both stand beside it in words.
    html! {
        svg.meter aria-hidden="true" width="100%" height="10" {
            rect.track x="0" y="2" width="100%" height="6" rx="3" {}
            rect class=(class) x="0" y="2" width=(percent(used.max(0.8))) height="6" rx="3" {}
            @if limit < 99.9 {
                line.limit x1=(percent(limit)) x2=(percent(limit)) y1="0" y2="10" {}
            }
        }
    }
}

/// Bytes of files in a second, while they were fetched and written.
fn throughput(report: &Report) -> Option<f64> {
    let phases = report.rto.phases.iter();
    let moving = phases.filter(|phase| matches!(phase.name.as_str(), "fetch" | "write"));
    let mut range = None;
    for phase in moving {
        let (from, until) = range.unwrap_or((f64::INFINITY, 0.0_f64));
        range = Some((
            phase.began.min(from),
            until.max(phase.began + phase.seconds),
        ));
    }
    let (from, until) = range?;
    let known = until > from && report.source.bytes > 0;
    known.then(|| report.source.bytes as f64 / (until - from))
}

/// A section with its heading. An empty one says so: a silent gap is worse than a failure.
fn section(id: &str, title: &str, content: Markup) -> Markup {
    html! {
        section.card id=(id) aria-labelledby={ (id) "-title" } {
            h2 id={ (id) "-title" } { (title) }
            (content)
        }
    }
}

fn table_of(facts: &Facts) -> Markup {
    html! {
        dl.facts {
            @for (name, value) in &facts.rows {
                div { dt { (name) } dd { (one_line(value)) } }
            }
        }
    }
}

/// A word with a mark: colour alone says nothing.
fn badge(class: &str, word: &str) -> Markup {
    let mark = match class {
        "good" => "✓",
        "bad" => "✕",
        _ => "–",
    };
    html! { span class={ "badge " (class) } { span aria-hidden="true" { (mark) " " } (word) } }
}

fn met_class(met: Met) -> &'static str {
    match met {
        Met::Yes => "good",
        Met::No => "bad",
        Met::NoObjective | Met::NotMeasured => "open",
    }
}

fn held_class(held: Option<bool>) -> &'static str {
    match held {
        Some(true) => "good",
        Some(false) => "bad",
        None => "open",
    }
}

fn percent(percent: f64) -> String {
    format!("{percent:.2}%")
}

/// No line ends between a number and its unit.
fn unbroken(text: &str) -> String {
    let mut words = text.split(' ').peekable();
    let mut line = String::with_capacity(text.len());
    while let Some(word) = words.next() {
        line.push_str(word);
        let number = word.ends_with(|end: char| end.is_ascii_digit());
        match words.peek() {
            Some(next) if number && next.starts_with(char::is_alphabetic) => line.push('\u{a0}'),
            Some(_) => line.push(' '),
            None => {}
        }
    }
    line
}

/// Text from outside with its lines, and nothing that moves a cursor.
fn lines(text: &str) -> String {
    text.lines().map(one_line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn it_is_one_page_that_loads_nothing_and_ends_with_the_runbook() {
        let report = sample::full();
        let page = html(&report);
        for foreign in [
            "<script", "<link", "<img", "<iframe", "@import", "url(http", "src=",
        ] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        let last = page.rfind("<section").unwrap();
        assert!(page[last..].contains("id=\"runbook\""));
        for step in &report.evidence {
            assert!(page[last..].contains(&step.command), "{}", step.command);
        }
        let verdict = page.find("Drill failed</h1>").unwrap();
        assert!(verdict < page.find("<main>").unwrap());
    }

    #[test]
    fn the_time_line_has_a_bar_for_each_phase_and_the_trend_one_for_each_drill() {
        let report = sample::full();
        let page = html(&report);
        let bars = page.matches("class=\"phase").count();
        assert_eq!(bars, report.rto.phases.len());
        let drills = report.trend.len() + 1;
        assert_eq!(page.matches("class=\"drill").count(), 2 * drills);
        let failed = report.trend.iter().filter(|past| !past.passed).count() + 1;
        assert_eq!(page.matches("class=\"failure\"").count(), 2 * failed);
    }

    #[test]
    fn text_from_outside_is_no_markup() {
        let page = html(&sample::hostile());
        assert!(!page.contains("<script"), "{page}");
        assert!(!page.contains('\x1b'));
        // Attributes, too, hold texts from outside.
        assert!(!page.contains("\" onload="), "{page}");
    }

    #[test]
    fn throughput_counts_overlapping_phases_once() {
        let mut report = sample::full();
        report.source.bytes = 100;
        report
            .rto
            .phases
            .retain(|phase| matches!(phase.name.as_str(), "fetch" | "write"));
        (report.rto.phases[0].began, report.rto.phases[0].seconds) = (1.0, 8.0);
        (report.rto.phases[1].began, report.rto.phases[1].seconds) = (2.0, 9.0);
        assert_eq!(throughput(&report), Some(10.0));
        report.rto.phases.clear();
        assert_eq!(throughput(&report), None);
    }
}
