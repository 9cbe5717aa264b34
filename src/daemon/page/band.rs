//! The moments that one can recover to, drawn as a band from the oldest to now, with its gaps,
//! and the base backups above it.

use jiff::Timestamp;
use maud::{Markup, html};

use super::{moment, percent};
use crate::repository::keys::BackupKind;
use crate::status::RepositoryStatus;

const TOP: f64 = 16.0;
const HEIGHT: f64 = 22.0;
const SCALE: f64 = 18.0;

/// More backups than this are not drawn one by one: the newest are.
const MARKS: usize = 200;

pub(super) fn figure(id: &str, repository: &RepositoryStatus, now: Timestamp) -> Markup {
    let (Some(first), Some(last)) = (repository.windows.first(), repository.windows.last()) else {
        return html! { p.note { "There is nothing to recover to." } };
    };
    let (begin, end) = (first.from, last.to);
    let whole = now.duration_since(begin).as_secs_f64().max(1.0);
    let at = |time: Timestamp| (time.duration_since(begin).as_secs_f64() / whole).clamp(0.0, 1.0);
    let (title, about) = (format!("{id}-title"), format!("{id}-desc"));
    let skipped = repository.backups.len().saturating_sub(MARKS);
    html! {
        svg.band role="img" aria-labelledby={ (title) " " (about) } width="100%" height=(TOP + HEIGHT + SCALE) {
            title id=(title) { "What one can recover to from " (repository.name) }
            desc id=(about) { (in_words(repository)) }
            rect.late x="0" width="100%" y=(TOP) height=(HEIGHT) {}
            rect.gone x="0" width=(percent(at(end))) y=(TOP) height=(HEIGHT) {}
            @for window in &repository.windows {
                @let (from, to) = (at(window.from), at(window.to));
                rect.window x=(percent(from)) width=(percent((to - from).max(0.002))) y=(TOP) height=(HEIGHT) {
                    title { (moment(window.from)) " to " (moment(window.to)) }
                }
            }
            @for backup in repository.backups.iter().skip(skipped) {
                @let class = match backup.kind { BackupKind::Full => "full", BackupKind::Incremental => "incremental" };
                @let radius = match backup.kind { BackupKind::Full => 5.0, BackupKind::Incremental => 3.0 };
                circle class={ (class) @if backup.proven.is_some() { " proven" } }
                    cx=(percent(at(backup.stop_time))) cy=(TOP - 8.0) r=(radius) {
                    title { (backup.id) @if backup.proven.is_some() { ", proven" } }
                }
            }
            text.scale x="0" y=(TOP + HEIGHT + 14.0) { (day(begin)) }
            text.scale x="100%" y=(TOP + HEIGHT + 14.0) text-anchor="end" { "now" }
        }
    }
}

/// What the marks mean.
pub(super) fn legend() -> Markup {
    let circle = |class: &str, radius: f64| {
        html! { svg.band width="12" height="12" aria-hidden="true" { circle class=(class) cx="6" cy="6" r=(radius) {} } }
    };
    let field = |class: &str| {
        html! { svg.band width="12" height="12" aria-hidden="true" { rect class=(class) width="12" height="12" {} } }
    };
    html! {
        p.legend {
            span { (field("window")) "can be recovered to" }
            span { (field("gone")) "cannot: a gap" }
            span { (field("late")) "not archived yet" }
            span { (circle("full", 5.0)) "full backup" }
            span { (circle("incremental", 3.0)) "incremental" }
            span { (circle("full proven", 5.0)) "proven by a drill" }
        }
    }
}

fn in_words(repository: &RepositoryStatus) -> String {
    let spans = repository.windows.iter();
    let spans = spans.map(|span| format!("from {} to {}", moment(span.from), moment(span.to)));
    let proven = repository
        .backups
        .iter()
        .filter(|b| b.proven.is_some())
        .count();
    format!(
        "One can recover to every moment {}. There are {} backups, of which {proven} were proven.",
        spans.collect::<Vec<_>>().join(", and "),
        repository.backups.len()
    )
}

fn day(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M").to_string()
}
