//! The owner's questions, and whether the answers are those that are expected.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use seawall::config::SqlCheck;
use seawall::error::Result;

use super::session;
use super::{Check, Last, Outcome};
use crate::budget::Budget;
use crate::instance::Instance;

/// What of an answer a report keeps, in characters.
const ANSWER: usize = 1000;

/// How much longer than its budget a question may take where the server does not end it.
const PATIENCE: Duration = Duration::from_secs(10);

/// One question of the owner's.
pub(super) async fn ask(
    instance: &Instance,
    check: &SqlCheck,
    failed_at: Timestamp,
    last: &Last,
    budget: Budget,
) -> Check {
    let name = name_of(check);
    let started = Instant::now();
    let answer = async {
        let client = instance.connect(&check.database).await?;
        // A question must not change what it asks about; tables are found as in psql.
        let session = "SET default_transaction_read_only = on; SET search_path TO DEFAULT";
        client.execute(session).await?;
        let answer = session::ask(&client, &budget, &check.sql).await?;
        Ok(answer.map(|rows| {
            rows.into_iter()
                .next()
                .and_then(|row| row.into_iter().next()?)
        }))
    };
    // What the server does not end itself, as a statement that lifts the limit, is ended here.
    let answer: Result<_> = tokio::time::timeout(budget.left() + PATIENCE, answer)
        .await
        .unwrap_or(Ok(None));
    let (outcome, detail, answer) = match answer {
        Err(error) => (Outcome::Failed, error.one_line(), None),
        Ok(None) => {
            let late = format!("no answer within {budget} (drill.check_budget)");
            (Outcome::Failed, late, None)
        }
        Ok(Some(answer)) => {
            let (outcome, detail) = judge(check, answer.as_deref(), failed_at, last);
            (outcome, detail, answer)
        }
    };
    Check {
        answer: answer.map(|answer| answer.chars().take(ANSWER).collect()),
        ..Check::new(name, outcome, detail).took(started).proving()
    }
}

/// What the report calls it.
fn name_of(check: &SqlCheck) -> &str {
    check.name.as_deref().unwrap_or(&check.sql)
}

/// Holds an answer against the one expectation that the configuration made sure of.
fn judge(
    check: &SqlCheck,
    answer: Option<&str>,
    failed_at: Timestamp,
    last: &Last,
) -> (Outcome, String) {
    let Some(answer) = answer else {
        return (Outcome::Failed, "the answer is NULL, or no row".to_owned());
    };
    let held = |right: bool, expectation: String| {
        let outcome = if right {
            Outcome::Passed
        } else {
            Outcome::Failed
        };
        (outcome, format!("{answer}, expected {expectation}"))
    };
    let number = || answer.trim().parse::<f64>().ok();
    if let Some(expected) = &check.equals {
        return held(answer == expected, expected.clone());
    }
    if let Some(least) = check.at_least {
        return held(
            number().is_some_and(|n| n >= least),
            format!("at least {least}"),
        );
    }
    if let Some(most) = check.at_most {
        return held(
            number().is_some_and(|n| n <= most),
            format!("at most {most}"),
        );
    }
    if let Some(percent) = check.within_percent_of_last {
        let Some(number) = number() else {
            return (Outcome::Failed, format!("{answer} is no number"));
        };
        // Without anything to compare with it has not passed.
        return match last.answer(name_of(check)).and_then(as_number) {
            Err(why) => (
                Outcome::NotTested,
                format!("{answer}, and nothing to compare it with: {why}"),
            ),
            Ok(before) => held(
                (number - before).abs() <= before.abs() * percent / 100.0,
                format!(
                    "within {percent} % of {before}, the answer in drill {}",
                    last.id()
                ),
            ),
        };
    }
    if let Some(age) = check.not_older_than {
        let Some(time) = parse_time(answer) else {
            return (
                Outcome::Failed,
                format!("{answer} is no time with its offset"),
            );
        };
        let old = failed_at.duration_since(time);
        let right = jiff::SignedDuration::try_from(age.0).is_ok_and(|age| old <= age);
        return held(right, format!("not older than {age} at {failed_at}"));
    }
    (Outcome::Failed, "the check has no expectation".to_owned())
}

fn as_number(answer: &str) -> Result<f64, String> {
    match answer.trim().parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err(format!("the last answer, {answer}, is no number")),
    }
}

/// A time as PostgreSQL prints it in UTC, with or without its offset.
fn parse_time(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    text.parse()
        .ok()
        .or_else(|| format!("{text}Z").parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expectation: &str) -> SqlCheck {
        let text = format!(
            "[cluster.a]\ndata_directory='/a'\n[[repository]]\nname='r'\nurl='memory:///'\n[[drill.check]]\nsql='select 1'\n{expectation}"
        );
        let config = seawall::config::Config::parse(&text, "/x".into()).unwrap();
        config.drill.check.into_iter().next().unwrap()
    }

    #[test]
    fn an_answer_is_held_against_its_expectation() {
        let now: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        for (expectation, answer, outcome) in [
            ("equals = '7'", Some("7"), Outcome::Passed),
            ("equals = '7'", Some("8"), Outcome::Failed),
            ("equals = '7'", None, Outcome::Failed),
            ("at_least = 7", Some("7"), Outcome::Passed),
            ("at_least = 7", Some("6.9"), Outcome::Failed),
            ("at_least = 7", Some("many"), Outcome::Failed),
            ("at_most = 7", Some("8"), Outcome::Failed),
            (
                "not_older_than = '1h'",
                Some("2026-11-20 11:30:00+00"),
                Outcome::Passed,
            ),
            (
                "not_older_than = '1h'",
                Some("2026-11-20 11:30:00"),
                Outcome::Passed,
            ),
            (
                "not_older_than = '1h'",
                Some("2026-11-20 10:30:00+00"),
                Outcome::Failed,
            ),
            ("not_older_than = '1h'", Some("soon"), Outcome::Failed),
        ] {
            assert_eq!(
                judge(&check(expectation), answer, now, &Last::none("first")).0,
                outcome,
                "{expectation} {answer:?}"
            );
        }
    }

    #[test]
    fn an_answer_is_compared_with_the_last_one_and_never_passes_without_it() {
        let last = |answer: &str| {
            let question = serde_json::json!({"name": "select 1", "answer": answer});
            Last::of(serde_json::json!({"id": "d", "checks": [question]}))
        };
        let nothing = Last::of(serde_json::json!({"id": "d", "checks": []}));
        let first = Last::none("no drill before");
        for (answer, last, outcome) in [
            ("110", &last("100"), Outcome::Passed),
            ("90", &last("100"), Outcome::Passed),
            ("111", &last("100"), Outcome::Failed),
            ("89", &last("100"), Outcome::Failed),
            ("-105", &last("-100"), Outcome::Passed),
            ("0", &last("0"), Outcome::Passed),
            ("1", &last("0"), Outcome::Failed),
            ("many", &last("100"), Outcome::Failed),
            ("NaN", &last("100"), Outcome::Failed),
            ("100", &last("many"), Outcome::NotTested),
            ("100", &last("NaN"), Outcome::NotTested),
            ("100", &nothing, Outcome::NotTested),
            ("100", &first, Outcome::NotTested),
        ] {
            let check = check("within_percent_of_last = 10");
            let judged = judge(&check, Some(answer), Timestamp::UNIX_EPOCH, last);
            assert_eq!(judged.0, outcome, "{answer} {last:?}: {}", judged.1);
        }
    }
}
