//! For a ticket, a wiki, an auditor's folder: Markdown as GitHub and GitLab read it. It ends
//! with the runbook, each command in a block of its own, so that it can be copied.

use std::fmt::Write;

use super::facts::{self, Facts};
use super::words::{
    self, Met, bytes, counted, duration, headline, held, moment, one_line, rate, verdict,
};
use crate::evidence::Step;
use crate::report::{Rehearsal, Report};

/// The report as Markdown.
pub fn markdown(report: &Report) -> String {
    let mut page = Page::default();
    let word = verdict(report.passed).to_lowercase();
    page.line(&format!(
        "# Drill {word}: {}, {}\n",
        escape(&report.identity.cluster),
        moment(report.started)
    ));
    page.line(&format!(
        "**{}.** {}\n",
        verdict(report.passed),
        headline(report)
    ));
    page.list(&report.reasons);
    objectives(&mut page, report);
    phases(&mut page, report);
    page.section("Trend");
    trend(&mut page, report);
    page.section("Checks");
    page.table(&["check", "result", "seconds", "what was found"]);
    for check in &report.checks {
        let seconds = format!("{:.3}", check.seconds);
        page.row(&[
            &check.name,
            words::outcome(check.outcome),
            &seconds,
            &check.detail,
        ]);
    }
    for facts in [
        facts::scope(report),
        facts::source(report),
        facts::target(report),
        facts::loss(report),
        facts::environment(report),
    ] {
        page.facts(&facts);
    }
    page.section("Isolation");
    page.table(&["claim", "result", "proof"]);
    for wall in &report.environment.isolation {
        page.row(&[wall.claim, held(wall.held, "held", "BROKEN"), &wall.proof]);
    }
    page.section("3-2-1-1-0");
    page.table(&["rule", "result", "why"]);
    for digit in &report.copies.0 {
        page.row(&[digit.rule, held(digit.met, "met", "NOT MET"), &digit.why]);
    }
    if let Some(rehearsal) = &report.rehearsal {
        rehearsed(&mut page, rehearsal);
    }
    page.section("What no drill tests");
    page.table(&["what", "why"]);
    for gap in &report.not_tested {
        page.row(&[gap.field, gap.why]);
    }
    if !report.warnings.is_empty() {
        page.section("Warnings");
        page.list(&report.warnings);
    }
    page.section("Evidence");
    page.line(&format!("- drill {}", escape(&report.id)));
    page.line(&format!(
        "- SHA-256 of the configuration: {}",
        escape(&report.identity.configuration_sha256)
    ));
    page.line(&format!("- {}", escape(&report.teardown)));
    if !report.server_log.is_empty() {
        page.line("\nThe end of the scratch server's log:\n");
        page.fenced("", &report.server_log.join("\n"));
    }
    page.section("Runbook: every command, in order");
    for (at, step) in report.evidence.iter().enumerate() {
        runbook(&mut page, at + 1, step);
    }
    page.0
}

fn objectives(page: &mut Page, report: &Report) {
    let (time, loss) = (&report.rto, &report.rpo);
    page.line("");
    page.table(&["", "measured", "objective", "verdict"]);
    page.row(&[
        "RTO",
        &words::rto(time),
        &words::objective(time.objective_seconds),
        Met::of(time.objective_seconds, time.measured_seconds).word(),
    ]);
    page.row(&[
        "RPO",
        &words::rpo(loss),
        &words::objective(loss.objective_seconds),
        Met::of(loss.objective_seconds, loss.measured_seconds).word(),
    ]);
}

fn phases(page: &mut Page, report: &Report) {
    page.section("Recovery time, by phases");
    page.table(&[
        "phase",
        "began at (s)",
        "seconds",
        "moved",
        "rate",
        "part of the RTO",
    ]);
    for phase in &report.rto.phases {
        page.row(&[
            &phase.name,
            &format!("{:.3}", phase.began),
            &format!("{:.3}", phase.seconds),
            &phase.bytes.map_or(String::new(), bytes),
            &rate(phase),
            if phase.counts { "yes" } else { "no" },
        ]);
    }
    let facts = facts::time(report);
    page.line("");
    for (name, value) in facts.rows.iter().filter(|(name, _)| *name != "RTO") {
        page.line(&format!("- {name}: {}", escape(value)));
    }
}

fn trend(page: &mut Page, report: &Report) {
    if report.trend.is_empty() {
        page.line("No drill before this one is on record.");
        return;
    }
    page.table(&["began", "verdict", "scenario", "RPO", "RTO", "restored"]);
    let unknown = || "not measured".to_owned();
    for past in &report.trend {
        page.row(&[
            &moment(past.started),
            verdict(past.passed),
            past.scenario.as_deref().unwrap_or_default(),
            &past.rpo_seconds.map_or_else(unknown, duration),
            &past.rto_seconds.map_or_else(unknown, duration),
            &past.bytes.map_or(String::new(), bytes),
        ]);
    }
}

fn rehearsed(page: &mut Page, rehearsal: &Rehearsal) {
    page.section("Rehearsal");
    page.line(&format!(
        "{} (SHA-256 {}) in database {}: {}; not run: {}.\n",
        escape(&rehearsal.file),
        escape(&rehearsal.sha256),
        escape(&rehearsal.database),
        duration(rehearsal.seconds),
        counted(rehearsal.not_run, "statement")
    ));
    page.table(&[
        "line",
        "seconds",
        "WAL",
        "statement",
        "locks",
        "rewritten",
        "error",
    ]);
    for statement in &rehearsal.statements {
        let locks = statement.locks.iter().map(|lock| {
            let blocks = lock.blocks.as_deref().unwrap_or("neither reads nor writes");
            format!("{} on {}, blocks {blocks}", lock.mode, lock.relation)
        });
        let files = statement.rewritten.iter().map(|file| {
            let how = if file.new { "new" } else { "rewritten" };
            format!("{} ({how}, {})", file.relation, bytes(file.bytes))
        });
        page.row(&[
            &statement.line.to_string(),
            &format!("{:.3}", statement.seconds),
            &bytes(statement.wal_bytes),
            &statement.sql,
            &locks.collect::<Vec<_>>().join("; "),
            &files.collect::<Vec<_>>().join("; "),
            statement.error.as_deref().unwrap_or_default(),
        ]);
    }
}

fn runbook(page: &mut Page, number: usize, step: &Step) {
    let exit = step.exit.map_or_else(
        || "ended by a signal".to_owned(),
        |exit| format!("exit status {exit}"),
    );
    let number = format!("{number}. ");
    page.line(&format!(
        "{number}{}, {}, {exit}\n",
        moment(step.started),
        duration(step.seconds)
    ));
    page.fenced(&" ".repeat(number.len()), &step.command);
    page.line("");
}

/// Lines of Markdown.
#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, line: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{line}");
    }

    fn section(&mut self, title: &str) {
        self.line(&format!("\n## {title}\n"));
    }

    fn list(&mut self, items: &[String]) {
        for item in items {
            self.line(&format!("- {}", escape(item)));
        }
    }

    fn facts(&mut self, facts: &Facts) {
        self.section(facts.title);
        self.table(&["", ""]);
        for (name, value) in &facts.rows {
            self.row(&[name, value]);
        }
    }

    fn table(&mut self, header: &[&str]) {
        self.row(header);
        self.line(&format!("|{}", "---|".repeat(header.len())));
    }

    fn row(&mut self, cells: &[&str]) {
        let cells = cells.iter().map(|cell| escape(cell));
        self.line(&format!("| {} |", cells.collect::<Vec<_>>().join(" | ")));
    }

    /// A block of code between fences that are longer than any row of backquotes in it.
    fn fenced(&mut self, indent: &str, text: &str) {
        let longest = text
            .split(|character| character != '`')
            .map(str::len)
            .max()
            .unwrap_or_default();
        let fence = "`".repeat(3.max(longest + 1));
        self.line(&format!("{indent}{fence}"));
        for line in text.lines() {
            self.line(&format!("{indent}{}", one_line(line)));
        }
        self.line(&format!("{indent}{fence}"));
    }
}

/// Text from outside on one line, none of which is markup.
fn escape(text: &str) -> String {
    let line = one_line(text);
    let mut escaped = String::with_capacity(line.len());
    let characters: Vec<char> = line.chars().collect();
    for (at, character) in characters.iter().enumerate() {
        let beside = |at: Option<usize>| {
            at.and_then(|at| characters.get(at))
                .is_some_and(|character| character.is_alphanumeric())
        };
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            // Within a word it is read as it stands, and names are full of it.
            '_' if beside(at.checked_sub(1)) && beside(Some(at + 1)) => escaped.push('_'),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '$' => {
                escaped.push('\\');
                escaped.push(*character);
            }
            character => escaped.push(*character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn it_says_all_and_ends_with_the_runbook() {
        let report = sample::full();
        let text = markdown(&report);
        assert!(text.starts_with("# Drill failed: main"), "{text}");
        let (_, runbook) = text.split_once("## Runbook").unwrap();
        assert!(!runbook.contains("\n## "), "{runbook}");
        for step in &report.evidence {
            assert!(runbook.contains(&step.command), "{runbook}");
        }
        for title in [
            "Recovery time, by phases",
            "Trend",
            "Checks",
            "Scope",
            "Source",
            "Target",
            "Loss",
            "Environment",
            "Isolation",
            "3-2-1-1-0",
            "Rehearsal",
            "What no drill tests",
            "Warnings",
            "Evidence",
        ] {
            assert!(text.contains(&format!("\n## {title}\n")), "{title}\n{text}");
        }
    }

    #[test]
    fn text_from_outside_is_no_markup() {
        let escaped = escape("a|b\n# c <script> `d` *e* [f](g) pg_amcheck _h_");
        assert_eq!(
            escaped,
            "a\\|b # c &lt;script&gt; \\`d\\` \\*e\\* \\[f\\](g) pg_amcheck \\_h\\_"
        );
        let text = markdown(&sample::hostile());
        // Between fences it is shown as it is.
        let mut code = false;
        for line in text.lines() {
            code ^= line.trim_start().starts_with("```");
            assert!(code || !line.contains("<script"), "{line}");
        }
        assert!(!code && !text.contains('\x1b'), "{text}");
        // Every table keeps its columns.
        let columns = |line: &str| line.replace("\\|", "").matches('|').count();
        let mut header = None;
        for line in text.lines() {
            match (line.starts_with('|'), header) {
                (true, Some(expected)) => assert_eq!(columns(line), expected, "{line}"),
                (true, None) => header = Some(columns(line)),
                (false, _) => header = None,
            }
        }
    }

    #[test]
    fn a_fence_is_longer_than_what_it_holds() {
        let mut page = Page::default();
        page.fenced("", "echo ````\n```");
        assert!(page.0.starts_with("`````\n") && page.0.ends_with("\n`````\n"));
    }
}
