//! The words that every form of the report shares: figures with their units, verdicts, and the
//! two sentences at the top.

use bytesize::ByteSize;
use jiff::Timestamp;

use crate::checks::Outcome;
use crate::report::{Lost, Phase, Report, Rpo, Rto};

/// A figure held against its objective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Met {
    /// It is within the objective.
    Yes,
    /// It is beyond it.
    No,
    /// There is a figure, and no objective.
    NoObjective,
    /// There is no figure.
    NotMeasured,
}

impl Met {
    pub(super) fn of(objective: Option<f64>, measured: Option<f64>) -> Self {
        match (objective, measured) {
            (_, None) => Self::NotMeasured,
            (None, Some(_)) => Self::NoObjective,
            (Some(objective), Some(measured)) if measured > objective => Self::No,
            (Some(_), Some(_)) => Self::Yes,
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Yes => "met",
            Self::No => "MISSED",
            Self::NoObjective => "no objective",
            Self::NotMeasured => "not measured",
        }
    }
}

/// `PASSED` or `FAILED`.
pub(super) fn verdict(passed: bool) -> &'static str {
    if passed { "PASSED" } else { "FAILED" }
}

pub(super) fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "FAILED",
        Outcome::NotTested => "not tested",
    }
}

/// What was claimed and looked at: isolation, copies.
pub(super) fn held(held: Option<bool>, yes: &'static str, no: &'static str) -> &'static str {
    match held {
        Some(true) => yes,
        Some(false) => no,
        None => "not tested",
    }
}

/// What a reader wants to know first, in two sentences.
pub(super) fn headline(report: &Report) -> String {
    let objective = |seconds: Option<f64>| {
        seconds.map_or(String::new(), |seconds| {
            format!(" (objective {})", duration(seconds))
        })
    };
    let time = match report.rto.measured_seconds {
        Some(seconds) => format!(
            "The database answered {} after the decision to recover{}.",
            duration(seconds),
            objective(report.rto.objective_seconds)
        ),
        None => "The database never answered.".to_owned(),
    };
    let (rpo, loss) = (&report.rpo, &report.rpo.measured_seconds);
    let loss = match loss {
        Some(seconds) => format!(
            "{} {} of work would have been lost{}.",
            if rpo.upper_bound { "At most" } else { "Just" },
            duration(*seconds),
            objective(rpo.objective_seconds)
        ),
        None => "The loss was not measured.".to_owned(),
    };
    format!("{time} {loss}")
}

/// The measured RTO, or that there is none.
pub(super) fn rto(rto: &Rto) -> String {
    let never = || "never open".to_owned();
    rto.measured_seconds.map_or_else(never, duration)
}

/// The measured RPO, or that there is none.
pub(super) fn rpo(rpo: &Rpo) -> String {
    match rpo.measured_seconds {
        Some(seconds) if rpo.upper_bound => format!("at most {}", duration(seconds)),
        Some(seconds) => duration(seconds),
        None => "not tested".to_owned(),
    }
}

/// An objective, or that there is none.
pub(super) fn objective(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "none".to_owned(), duration)
}

/// `1 234 (exact)`, or that it is not known.
pub(super) fn lost(lost: Option<Lost>, unit: fn(u64) -> String) -> String {
    let Some(lost) = lost else {
        return "not tested".to_owned();
    };
    let how = if lost.exact { "exact" } else { "estimated" };
    format!("{} ({how})", unit(lost.count))
}

/// A clock against this host's.
pub(super) fn skew(seconds: Option<f64>) -> String {
    match seconds {
        None => "not tested".to_owned(),
        Some(seconds) if seconds.abs() < 0.0005 => "none".to_owned(),
        Some(seconds) => {
            let side = if seconds > 0.0 { "ahead" } else { "behind" };
            format!("{} {side} of this host", duration(seconds.abs()))
        }
    }
}

/// Seconds as people read them: `85 ms`, `4.21 s`, `12 min 05 s`, `3 h 20 min`.
pub(super) fn duration(seconds: f64) -> String {
    let sign = if seconds < 0.0 { "-" } else { "" };
    let seconds = seconds.abs();
    let whole = seconds.round() as u64;
    if seconds < 0.9995 {
        format!("{sign}{:.0} ms", seconds * 1000.0)
    } else if seconds < 9.995 {
        format!("{sign}{}", trimmed(seconds, 2))
    } else if seconds < 59.95 {
        format!("{sign}{}", trimmed(seconds, 1))
    } else if whole < 3600 {
        format!("{sign}{}", two(whole / 60, "min", whole % 60, "s"))
    } else if whole < 48 * 3600 {
        format!("{sign}{}", two(whole / 3600, "h", whole / 60 % 60, "min"))
    } else {
        format!("{sign}{}", two(whole / 86_400, "d", whole / 3600 % 24, "h"))
    }
}

/// Seconds without zeros that say nothing.
fn trimmed(seconds: f64, digits: usize) -> String {
    let text = format!("{seconds:.digits$}");
    format!("{} s", text.trim_end_matches('0').trim_end_matches('.'))
}

fn two(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    match small {
        0 => format!("{large} {large_unit}"),
        _ => format!("{large} {large_unit} {small:02} {small_unit}"),
    }
}

pub(super) fn bytes(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// A count in groups of three digits.
pub(super) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1 table`, `2 tables`.
pub(super) fn counted(many: usize, what: &str) -> String {
    let end = if many == 1 { "" } else { "s" };
    format!("{} {what}{end}", count(many as u64))
}

/// What a phase moved in a second; empty where it moved nothing.
pub(super) fn rate(phase: &Phase) -> String {
    let rate = phase.rate().map(|rate| bytes(rate.round() as u64));
    rate.map_or(String::new(), |rate| format!("{rate}/s"))
}

/// The seconds that a time line's width stands for. Checks may take far longer than the
/// recovery, and must not press it to nothing: then their bar is cut off.
pub(super) fn time_scale(phases: &[Phase]) -> f64 {
    let end = |phase: &Phase| phase.began + phase.seconds;
    let counted = phases.iter().filter(|phase| phase.counts);
    let counted = counted.map(end).fold(0.0, f64::max);
    let all = phases.iter().map(end).fold(0.0, f64::max);
    let whole = if counted > 0.0 && all > counted * 1.6 {
        counted * 1.25
    } else {
        all
    };
    whole.max(0.001)
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// A time without fractions of a second.
pub(super) fn moment(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Text from outside on one line: what would move the cursor, or begin a line, is shown instead.
pub(super) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.trim_end().chars() {
        match character {
            '\n' | '\t' => line.push(' '),
            character if character.is_control() || is_bidirectional(character) => {
                line.extend(character.escape_unicode());
            }
            character => line.push(character),
        }
    }
    line
}

/// Characters that make a line read in another order than it is written.
fn is_bidirectional(character: char) -> bool {
    matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_at_a_glance() {
        for (seconds, words) in [
            (0.0, "0 ms"),
            (0.0853, "85 ms"),
            (0.9996, "1 s"),
            (4.213, "4.21 s"),
            (30.0, "30 s"),
            (59.96, "1 min"),
            (725.0, "12 min 05 s"),
            (12_000.0, "3 h 20 min"),
            (259_200.0, "3 d"),
            (-1.5, "-1.5 s"),
        ] {
            assert_eq!(duration(seconds), words, "{seconds}");
        }
    }

    #[test]
    fn long_checks_do_not_press_the_recovery_to_nothing() {
        let phase = |began, seconds, counts| Phase {
            name: "phase".to_owned(),
            began,
            seconds,
            bytes: None,
            counts,
        };
        let near = [phase(0.0, 10.0, true), phase(10.0, 5.0, false)];
        assert!((time_scale(&near) - 15.0).abs() < 1e-9);
        let far = [phase(0.0, 10.0, true), phase(10.0, 500.0, false)];
        assert!((time_scale(&far) - 12.5).abs() < 1e-9);
        assert!(time_scale(&[phase(0.0, 0.0, true)]) > 0.0);
    }

    #[test]
    fn text_from_outside_moves_no_cursor() {
        let text = one_line("a\x1b[2Jb\r\nc\u{202e}d");
        assert_eq!(text, "a\\u{1b}[2Jb\\u{d} c\\u{202e}d");
    }
}
