//! What a person needs to believe the drill, and to repeat it.

use maud::{Markup, html};

use super::super::words::{duration, moment, one_line};
use super::{badge, lines, section};
use crate::report::Report;

pub(super) fn evidence(report: &Report) -> Markup {
    let identity = &report.identity;
    let command = identity.command.iter();
    let command: Vec<String> = command.map(|word| crate::evidence::quoted(word)).collect();
    section(
        "evidence",
        "Evidence",
        html! {
            dl.facts {
                div { dt { "drill" } dd { (one_line(&report.id)) } }
                div { dt { "format" } dd { (report.format) } }
                div { dt { "configuration" } dd { "SHA-256 " span.digest { (one_line(&identity.configuration_sha256)) } } }
                div { dt { "teardown" } dd { (one_line(&report.teardown)) } }
            }
            p.note { "The drill itself was called as" }
            pre.command { code { (one_line(&command.join(" "))) } }
            @if report.server_log.is_empty() {
                p { "The scratch server wrote no log." }
            } @else {
                details {
                    summary { "The end of the scratch server's log" }
                    pre.log tabindex="0" { code { (lines(&report.server_log.join("\n"))) } }
                }
            }
        },
    )
}

/// Every command, in order: whoever types them has repeated the recovery.
pub(super) fn runbook(report: &Report) -> Markup {
    section(
        "runbook",
        "Runbook: every command, in order",
        html! {
            @if report.evidence.is_empty() { p { "No command was run." } }
            ol.found.steps { @for step in &report.evidence { li {
                p.head {
                    time datetime=(step.started) { (moment(step.started)) }
                    span.aside { (duration(step.seconds)) }
                    " "
                    @match step.exit {
                        Some(0) => (badge("good", "exit status 0")),
                        Some(status) => (badge("bad", &format!("exit status {status}"))),
                        None => (badge("bad", "ended by a signal")),
                    }
                }
                pre.command { code { (lines(&step.command)) } }
            } } }
        },
    )
}
