//! `seawall drill history` for people: a line for each drill, with its RPO and RTO as bars
//! against the objectives.

use std::fmt::Write;

use comfy_table::{ContentArrangement, Table, presets};

use super::words::{duration, objective, one_line, verdict};
use crate::history::{History, Summary};
use crate::report::Past;

/// The width of a bar.
const BAR: usize = 12;

/// An objective that is so many times beyond all figures is not drawn: it would press them to
/// nothing.
const FAR: f64 = 4.0;

/// The newest drills, oldest first.
pub fn history(history: &History) -> String {
    let mut text = String::new();
    let Summary { drills, passed } = Summary::of(&history.drills);
    let objectives = &history.objectives;
    line(
        &mut text,
        &format!(
            "cluster {}, repository {}: {passed} of {drills} drills passed; objectives: RTO {}, RPO {}",
            one_line(&history.cluster),
            one_line(&history.repository),
            objective(objectives.rto_seconds),
            objective(objectives.rpo_seconds)
        ),
    );
    if history.drills.is_empty() {
        line(&mut text, "no drill is on record: run seawall drill");
        return text;
    }
    let time = Scale::new(history, objectives.rto_seconds, |past| past.rto_seconds);
    let loss = Scale::new(history, objectives.rpo_seconds, |past| past.rpo_seconds);
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header([
            "began (UTC)",
            "verdict",
            "scenario",
            "from",
            "RTO",
            "",
            "RPO",
            "",
        ]);
    let figure = |seconds: Option<f64>| seconds.map_or_else(|| "-".to_owned(), duration);
    for past in &history.drills {
        let word = |word: &Option<String>| word.as_deref().map_or("-".to_owned(), one_line);
        table.add_row([
            began(past),
            verdict(past.passed).to_owned(),
            word(&past.scenario),
            word(&past.repository),
            figure(past.rto_seconds),
            time.bar(past.rto_seconds),
            figure(past.rpo_seconds),
            loss.bar(past.rpo_seconds),
        ]);
    }
    line(&mut text, "");
    for row in table.lines() {
        line(&mut text, &row);
    }
    if time.objective.or(loss.objective).is_some() {
        line(&mut text, "");
        line(&mut text, "|: the objective; !: beyond it");
    }
    text
}

fn began(past: &Past) -> String {
    past.started.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// What the width of a bar stands for.
struct Scale {
    whole: f64,
    objective: Option<f64>,
}

impl Scale {
    fn new(history: &History, objective: Option<f64>, value: fn(&Past) -> Option<f64>) -> Self {
        let most = history.drills.iter().filter_map(value).fold(0.0, f64::max);
        let drawn = objective.filter(|objective| *objective <= most * FAR);
        Self {
            whole: most.max(drawn.unwrap_or_default()),
            objective: drawn,
        }
    }

    /// `###   |`, or `######|!!` beyond the objective.
    fn bar(&self, seconds: Option<f64>) -> String {
        let column = |seconds: f64| (seconds / self.whole * BAR as f64).round() as usize;
        let (Some(seconds), true) = (seconds, self.whole > 0.0) else {
            return String::new();
        };
        // What is too short to be seen is there all the same.
        let filled = column(seconds).clamp(1, BAR);
        let Some(objective) = self.objective else {
            return "#".repeat(filled);
        };
        let limit = column(objective).min(BAR);
        if seconds > objective {
            let beyond = filled.saturating_sub(limit).max(1);
            return "#".repeat(limit) + "|" + &"!".repeat(beyond);
        }
        let filled = filled.min(limit.max(1));
        "#".repeat(filled) + &" ".repeat(limit.saturating_sub(filled)) + "|"
    }
}

fn line(text: &mut String, line: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{}", line.trim_end());
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::history::Objectives;

    fn of(rto: Option<f64>) -> History {
        History {
            format: 1,
            cluster: "main".to_owned(),
            repository: "near".to_owned(),
            objectives: Objectives {
                rpo_seconds: None,
                rto_seconds: rto,
            },
            drills: sample::full().trend,
        }
    }

    #[test]
    fn every_drill_has_a_line_and_who_missed_the_objective_is_marked() {
        let history = of(Some(60.0));
        let text = super::history(&history);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("3 of 4 drills passed"), "{text}");
        for past in &history.drills {
            let word = verdict(past.passed);
            let found = lines
                .iter()
                .any(|line| line.contains(&began(past)) && line.contains(word));
            assert!(found, "{text}");
        }
        assert_eq!(text.matches("|!").count(), 2, "{text}");
        assert!(
            lines.iter().all(|line| line.chars().count() <= 100),
            "{text}"
        );
    }

    #[test]
    fn a_bar_shows_where_the_objective_is() {
        let scale = |whole, objective| Scale { whole, objective };
        assert_eq!(scale(12.0, None).bar(Some(6.0)), "######");
        assert_eq!(scale(12.0, Some(12.0)).bar(Some(6.0)), "######      |");
        assert_eq!(scale(12.0, Some(6.0)).bar(Some(12.0)), "######|!!!!!!");
        assert_eq!(scale(12.0, Some(6.0)).bar(Some(6.01)), "######|!");
        assert_eq!(scale(12.0, Some(6.0)).bar(None), "");
        assert_eq!(scale(0.0, None).bar(Some(0.0)), "");
    }

    #[test]
    fn an_objective_that_is_far_away_is_named_and_not_drawn() {
        let text = super::history(&of(Some(14_400.0)));
        assert!(text.contains("RTO 4 h") && !text.contains('|'), "{text}");
    }
}
