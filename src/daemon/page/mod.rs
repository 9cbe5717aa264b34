//! The status page: one page without scripts that loads nothing, for a desk, a phone, light and
//! dark. It comes anew every minute by itself.

mod band;
mod cluster;
mod trend;

use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::agenda::{Run, RunResult};
use super::board::{JobShown, Shown};
use crate::look::LOOK;

const STYLE: &str = include_str!("style.css");

/// The page as of `now`.
pub(super) fn of(shown: &Shown, now: Timestamp) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="refresh" content="60";
                title { "Seawall: " (shown.clusters.join(", ")) }
                style { (PreEscaped(LOOK)) (PreEscaped(STYLE)) }
            }
            body {
                header.top {
                    h1 { "Seawall" }
                    p.note { (moment(now)) " · " (shown.in_words()) }
                    @if let Some(why) = shown.ill() { (badge("bad", &why)) }
                }
                main {
                    @for name in &shown.clusters {
                        @match shown.statuses.get(name) {
                            Some(status) => (cluster::section(status, now)),
                            None => section.card { h2 { (name) (badge("open", "not looked at yet")) } },
                        }
                    }
                    (schedule(shown, now))
                }
                footer.note {
                    "Seawall " (env!("CARGO_PKG_VERSION")) ", running since " (moment(shown.started))
                    ". This page changes nothing and comes anew every minute."
                }
            }
        }
    }
}

fn schedule(shown: &Shown, now: Timestamp) -> Markup {
    html! {
        section.card aria-labelledby="schedule" {
            h2 id="schedule" { "Schedule" }
            @if shown.jobs.is_empty() {
                p.note { "Nothing is on the schedule." }
            } @else {
                div.scroll tabindex="0" role="region" aria-label="Schedule" {
                    table {
                        thead { tr {
                            th scope="col" { "cluster" }
                            th scope="col" { "job" }
                            th scope="col" { "next" }
                            th scope="col" { "last" }
                            th scope="col" { "result" }
                            th.number scope="col" { "took" }
                            th scope="col" { "line" }
                        } }
                        tbody { @for job in &shown.jobs { (row(job, now)) } }
                    }
                }
            }
            @let troubles = troubles(shown, now);
            @if !troubles.is_empty() {
                ul.trouble { @for trouble in &troubles { li { (trouble) } } }
            }
        }
    }
}

fn row(job: &JobShown, now: Timestamp) -> Markup {
    let last = job.record.last.as_ref();
    html! {
        tr {
            th scope="row" { (job.job.cluster) }
            td { (job.job.operation) }
            td { (job.next.map_or("never".to_owned(), |time| from_now(time, now))) }
            td { (last.map_or("–".to_owned(), |run| ago(run.started, now))) }
            td {
                @if job.runs { (badge("open", "running")) }
                @else if let Some(run) = last { (result(run)) }
                @else { "–" }
            }
            td.number { (last.map_or("–".to_owned(), took)) }
            td { (job.line) }
        }
    }
}

fn result(run: &Run) -> Markup {
    match run.result {
        RunResult::Done => badge("good", "done"),
        RunResult::Elsewhere => badge("good", "done elsewhere"),
        RunResult::Finding => badge("bad", "finding"),
        RunResult::Failed => badge("bad", "failed"),
    }
}

fn took(run: &Run) -> String {
    span(run.ended.duration_since(run.started).as_secs_f64())
}

/// What a person must know of beside the table.
fn troubles(shown: &Shown, now: Timestamp) -> Vec<String> {
    let mut troubles = Vec::new();
    for job in &shown.jobs {
        let name = &job.job;
        let said = job.record.last.as_ref().map_or("", |run| &run.said);
        if let Some(failing) = &job.record.failing {
            troubles.push(format!(
                "{name} fails since {}, {} times: {said}",
                ago(failing.since, now),
                failing.count
            ));
        } else if job
            .record
            .last
            .as_ref()
            .is_some_and(|r| r.result == RunResult::Finding)
        {
            troubles.push(format!("{name} ended with a finding: {said}"));
        }
        if let Some(waiting) = &job.record.waiting {
            troubles.push(format!(
                "{name} waits since {}: {}",
                ago(waiting.since, now),
                waiting.why
            ));
        }
    }
    for (cluster, kind, trouble) in &shown.continuous {
        if let Some(trouble) = trouble {
            let since = ago(trouble.since, now);
            troubles.push(format!(
                "{cluster} {kind} does not stay up since {since}: {}",
                trouble.why
            ));
        }
    }
    troubles
}

/// A word in a coloured field: `good`, `bad` or `open`.
fn badge(class: &str, word: &str) -> Markup {
    html! { span class={ "badge " (class) } { (word) } }
}

fn moment(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

fn ago(time: Timestamp, now: Timestamp) -> String {
    format!("{} ago", span(now.duration_since(time).as_secs_f64()))
}

fn from_now(time: Timestamp, now: Timestamp) -> String {
    match time <= now {
        true => "now".to_owned(),
        false => format!("in {}", span(time.duration_since(now).as_secs_f64())),
    }
}

/// A span of time in its two largest units, the second of them only if there is something of it.
fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    if whole < 10 {
        return format!("{:.1} s", seconds.max(0.0));
    }
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let mut first = units
        .iter()
        .position(|(size, _)| whole >= *size)
        .unwrap_or(3);
    let mut words = Vec::new();
    let mut rest = whole;
    while let Some((size, name)) = units.get(first).filter(|_| words.len() < 2) {
        words.push((rest / size, name));
        rest %= size;
        first += 1;
    }
    let words = words.into_iter().filter(|(count, _)| *count > 0);
    let words: Vec<String> = words
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    words.join(" ")
}

fn bytes(bytes: u64) -> String {
    bytesize::ByteSize(bytes).to_string()
}

fn percent(part: f64) -> String {
    format!("{:.3}%", part * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units_at_most() {
        assert_eq!(span(3.12), "3.1 s");
        assert_eq!(span(59.4), "59 s");
        assert_eq!(span(59.6), "1 min");
        assert_eq!(span(3605.0), "1 h");
        assert_eq!(span(7260.0), "2 h 1 min");
        assert_eq!(span(200_000.0), "2 d 7 h");
    }
}
