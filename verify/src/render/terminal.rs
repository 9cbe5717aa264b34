//! For the terminal: the verdict first, then what it rests on, within 100 columns. Only words
//! that cannot be broken, such as paths and commands, may stand out.

use std::fmt::Write;

use textwrap::{Options, WordSeparator, WordSplitter};

use super::facts::{self, Facts};
use super::words::{self, Met, bytes, counted, duration, headline, held, one_line, rate, verdict};
use crate::history::Summary;
use crate::report::{Phase, Rehearsal, Report};

/// The width of a page.
const WIDTH: usize = 100;

/// The width of the time line.
const LINE: usize = 36;

/// The report for a person before a terminal.
pub fn terminal(report: &Report) -> String {
    let mut page = Page::default();
    let cluster = one_line(&report.identity.cluster);
    page.wrapped(
        "",
        &format!(
            "DRILL {}: cluster {cluster}, {}",
            verdict(report.passed),
            one_line(&report.scope.words)
        ),
    );
    page.wrapped("", &headline(report));
    for reason in &report.reasons {
        page.item("- ", reason);
    }
    objectives(&mut page, report);
    past(&mut page, report);
    time_line(&mut page, report);
    if !report.checks.is_empty() {
        page.title("Checks");
    }
    for check in &report.checks {
        let first = check.detail.lines().next().unwrap_or_default();
        let text = format!("{}: {first}", check.name);
        page.labelled(words::outcome(check.outcome), &text);
    }
    if let Some(rehearsal) = &report.rehearsal {
        rehearsed(&mut page, rehearsal);
    }
    if !report.environment.isolation.is_empty() {
        page.title("Isolation");
    }
    for wall in &report.environment.isolation {
        let text = format!("{}: {}", wall.claim, wall.proof);
        page.labelled(held(wall.held, "held", "BROKEN"), &text);
    }
    if !report.copies.0.is_empty() {
        page.title("3-2-1-1-0");
    }
    for digit in &report.copies.0 {
        let text = format!("{}: {}", digit.rule, digit.why);
        page.labelled(held(digit.met, "met", "NOT MET"), &text);
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
    if !report.warnings.is_empty() {
        page.title("Warnings");
    }
    for warning in &report.warnings {
        page.item("  - ", warning);
    }
    page.title("Not tested by any drill");
    for gap in &report.not_tested {
        page.item("  - ", &format!("{}: {}", gap.field, gap.why));
    }
    page.line("");
    page.wrapped("", &format!("drill {}; {}", report.id, report.teardown));
    page.0
}

fn objectives(page: &mut Page, report: &Report) {
    page.line("");
    page.line(&format!(
        "     {:<20} {:<14} {}",
        "measured", "objective", "verdict"
    ));
    let (time, loss) = (&report.rto, &report.rpo);
    for (name, measured, objective, met) in [
        (
            "RTO",
            words::rto(time),
            time.objective_seconds,
            Met::of(time.objective_seconds, time.measured_seconds),
        ),
        (
            "RPO",
            words::rpo(loss),
            loss.objective_seconds,
            Met::of(loss.objective_seconds, loss.measured_seconds),
        ),
    ] {
        page.line(&format!(
            "{name}  {measured:<20} {:<14} {}",
            words::objective(objective),
            met.word()
        ));
    }
}

/// In a line, what `seawall drill history` shows.
fn past(page: &mut Page, report: &Report) {
    let Summary { drills, passed } = Summary::of(&report.trend);
    let times = report.trend.iter().filter_map(|past| past.rto_seconds);
    let (least, most) = times.fold((f64::INFINITY, 0.0_f64), |(least, most), seconds| {
        (least.min(seconds), most.max(seconds))
    });
    if drills == 0 {
        return;
    }
    let range = match least <= most {
        true => format!("; RTO from {} to {}", duration(least), duration(most)),
        false => String::new(),
    };
    let before = counted(drills, "drill");
    page.line("");
    page.wrapped("", &format!("{before} before: {passed} passed{range}"));
}

/// Each phase with a bar where it began and as long as it took: those that overlap stand over
/// each other.
fn time_line(page: &mut Page, report: &Report) {
    let phases = &report.rto.phases;
    if phases.is_empty() {
        return;
    }
    page.title("Recovery time");
    let whole = words::time_scale(phases);
    for phase in phases {
        page.line(&format!(
            "  {:<22} |{:<LINE$}| {:>10}  {}",
            one_line(&phase.name),
            bar(phase, whole),
            duration(phase.seconds),
            rate(phase)
        ));
    }
    if phases.iter().any(|phase| !phase.counts) {
        page.wrapped(
            "  ",
            "=: after the first answer, not part of the RTO; >: longer than the line",
        );
    }
    let mut facts = facts::time(report);
    // It stands at the top.
    facts.rows.retain(|(name, _)| *name != "RTO");
    for (name, value) in &facts.rows {
        page.labelled(name, value);
    }
}

fn bar(phase: &Phase, whole: f64) -> String {
    let column = |seconds: f64| (seconds / whole * LINE as f64).round() as usize;
    // What was too short to be seen has its place all the same.
    let from = column(phase.began).min(LINE - 1);
    let end = column(phase.began + phase.seconds);
    let until = end.clamp(from + 1, LINE);
    let sign = if phase.counts { "#" } else { "=" };
    let bar = " ".repeat(from) + &sign.repeat(until - from);
    match end > LINE {
        true => bar[..LINE - 1].to_owned() + ">",
        false => bar,
    }
}

fn rehearsed(page: &mut Page, rehearsal: &Rehearsal) {
    page.title("Rehearsal");
    page.wrapped(
        "  ",
        &format!(
            "{} in database {}: {} in {}; {} not run",
            rehearsal.file,
            rehearsal.database,
            counted(rehearsal.statements.len(), "statement"),
            duration(rehearsal.seconds),
            rehearsal.not_run
        ),
    );
    for statement in &rehearsal.statements {
        let word = match statement.error {
            Some(_) => "FAILED",
            None => "ran",
        };
        page.labelled(
            word,
            &format!(
                "line {}, {}, {} of WAL: {}",
                statement.line,
                duration(statement.seconds),
                bytes(statement.wal_bytes),
                statement.sql
            ),
        );
        if let Some(error) = &statement.error {
            page.item(INDENT, error);
        }
        for lock in &statement.locks {
            let blocks = lock.blocks.as_deref().unwrap_or("neither reads nor writes");
            let text = format!("{} on {}: blocks {blocks}", lock.mode, lock.relation);
            page.item(INDENT, &text);
        }
        for file in &statement.rewritten {
            let how = if file.new { "new" } else { "rewritten" };
            let text = format!("{how}: {}, {}", file.relation, bytes(file.bytes));
            page.item(INDENT, &text);
        }
    }
}

/// Below a labelled text.
const INDENT: &str = "                 ";

/// Lines of at most [`WIDTH`] columns.
#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, line: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{}", line.trim_end());
    }

    fn title(&mut self, title: &str) {
        self.line("");
        self.line(title);
    }

    /// What follows the first line stands in: no text from outside begins a line.
    fn wrapped(&mut self, indent: &str, text: &str) {
        self.hanging(indent, &format!("{indent}  "), text);
    }

    fn item(&mut self, bullet: &str, text: &str) {
        self.hanging(bullet, &" ".repeat(bullet.len()), text);
    }

    fn labelled(&mut self, label: &str, text: &str) {
        self.hanging(&format!("  {label:<15}"), INDENT, text);
    }

    fn facts(&mut self, facts: &Facts) {
        self.title(facts.title);
        for (name, value) in &facts.rows {
            self.hanging(&format!("  {name:<21}"), &" ".repeat(23), value);
        }
    }

    fn hanging(&mut self, first: &str, next: &str, text: &str) {
        let options = Options::new(WIDTH)
            .initial_indent(first)
            .subsequent_indent(next)
            // What somebody copies from here stays whole.
            .break_words(false)
            .word_splitter(WordSplitter::NoHyphenation)
            .word_separator(WordSeparator::AsciiSpace);
        for line in textwrap::wrap(&one_line(text), options) {
            self.line(&line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn the_verdict_stands_first_and_every_line_fits() {
        let report = sample::full();
        let text = terminal(&report);
        assert!(text.starts_with("DRILL FAILED: cluster main"), "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        for words in [
            "RTO  1 min 02 s           4 h            met",
            "MISSED",
            "not tested",
            "no TCP port",
            "three copies",
            "ALTER TABLE",
            "AccessExclusiveLock on public.orders: blocks reads and writes",
            "to shorten it",
            "4 drills before: 3 passed; RTO from 55 s to 1 min 20 s",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
    }

    #[test]
    fn bars_stand_where_phases_began() {
        let mut phase = sample::full().rto.phases.remove(0);
        phase.counts = true;
        for (began, seconds, drawn) in [
            (0.0, 36.0, "#".repeat(36)),
            (18.0, 18.0, " ".repeat(18) + &"#".repeat(18)),
            (36.0, 0.0, " ".repeat(35) + "#"),
            (0.0, 0.001, "#".to_owned()),
            (18.0, 90.0, " ".repeat(18) + &"#".repeat(17) + ">"),
        ] {
            (phase.began, phase.seconds) = (began, seconds);
            assert_eq!(bar(&phase, 36.0), drawn);
        }
    }

    #[test]
    fn text_from_outside_begins_no_line_and_moves_no_cursor() {
        let text = terminal(&sample::hostile());
        assert!(!text.contains('\x1b'), "{text}");
        assert!(!text.lines().any(|line| line.starts_with("DRILL PASSED")));
    }
}
