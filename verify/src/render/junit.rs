//! For CI: JUnit XML, as GitLab, Jenkins and GitHub's reporters read it. One case for the
//! verdict, one for each objective and one for each check; what was not tested is skipped,
//! with the reason.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Report as Junit, TestCase, TestCaseStatus, TestSuite};
use seawall::error::{Error, Result};

use super::words::{Met, duration, headline, objective, one_line};
use crate::checks::Outcome;
use crate::report::Report;

/// The report as JUnit XML.
///
/// # Errors
/// None that a report could cause: all its texts can be written as XML.
pub fn junit(report: &Report) -> Result<String> {
    let cluster = one_line(&report.identity.cluster);
    let mut suite = TestSuite::new(format!("seawall drill of {cluster}"));
    suite.set_time(seconds(
        report.ended.duration_since(report.started).as_secs_f64(),
    ));
    for (name, value) in [
        ("drill", report.id.clone()),
        ("backup", report.backup.to_string()),
        ("repository", report.source.repository.clone()),
        ("scenario", report.scope.scenario.to_owned()),
    ] {
        suite.add_property((name, one_line(&value).as_str()));
    }
    let verdict = match report.passed {
        true => TestCaseStatus::success(),
        false => failure(&report.reasons.join("\n")),
    };
    let mut case = case("drill", "verdict", verdict);
    case.set_system_out(headline(report));
    suite.add_test_case(case);
    let (time, loss) = (&report.rto, &report.rpo);
    suite.add_test_case(of_objective(
        "RTO",
        time.objective_seconds,
        time.measured_seconds,
        "the database never answered",
    ));
    suite.add_test_case(of_objective(
        "RPO",
        loss.objective_seconds,
        loss.measured_seconds,
        &loss.method,
    ));
    for check in &report.checks {
        let status = match check.outcome {
            Outcome::Passed => TestCaseStatus::success(),
            Outcome::Failed => failure(&check.detail),
            Outcome::NotTested => skipped(&check.detail),
        };
        let mut case = self::case("check", &check.name, status);
        case.set_time(seconds(check.seconds));
        if check.outcome == Outcome::Passed {
            case.set_system_out(&check.detail);
        }
        suite.add_test_case(case);
    }
    let mut junit = Junit::new("seawall drill");
    junit.add_test_suite(suite);
    junit
        .to_string()
        .map_err(|error| Error::failed("cannot write JUnit XML").because(error))
}

fn of_objective(name: &str, wanted: Option<f64>, measured: Option<f64>, why: &str) -> TestCase {
    let words = || {
        format!(
            "measured {}, the objective is {}",
            measured.map_or_else(|| "nothing".to_owned(), duration),
            objective(wanted)
        )
    };
    let status = match Met::of(wanted, measured) {
        Met::Yes => TestCaseStatus::success(),
        Met::No => failure(&words()),
        Met::NoObjective => skipped(&format!("{}; there is no objective", words())),
        Met::NotMeasured => skipped(why),
    };
    case("objective", name, status)
}

fn case(class: &str, name: &str, status: TestCaseStatus) -> TestCase {
    let mut case = TestCase::new(one_line(name), status);
    case.set_classname(format!("seawall.{class}"));
    case
}

fn failure(words: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
    let first = words.lines().next().unwrap_or_default();
    status.set_message(one_line(first)).set_type("failed");
    status.set_description(words);
    status
}

fn skipped(why: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::skipped();
    status.set_message(one_line(why));
    status
}

/// A clock that was set back must not make a report impossible.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn read(report: &Report) -> TestSuite {
        let text = junit(report).unwrap();
        let mut read = Junit::deserialize_from_str(&text).unwrap();
        assert_eq!(read.test_suites.len(), 1);
        read.test_suites.remove(0)
    }

    #[test]
    fn every_objective_and_check_is_one_case_with_its_words() {
        let report = sample::full();
        let suite = read(&report);
        assert_eq!(suite.test_cases.len(), 3 + report.checks.len());
        let case = |name: &str| {
            let mut cases = suite.test_cases.iter();
            let found = cases.find(|case| case.name.as_str() == name);
            found.unwrap_or_else(|| panic!("no case {name}"))
        };
        let words = |name: &str| match &case(name).status {
            TestCaseStatus::Success { .. } => "passed".to_owned(),
            TestCaseStatus::NonSuccess { message, .. } => {
                format!("failed: {}", message.as_ref().unwrap().as_str())
            }
            TestCaseStatus::Skipped { message, .. } => {
                format!("skipped: {}", message.as_ref().unwrap().as_str())
            }
        };
        assert!(words("verdict").starts_with("failed: "));
        assert_eq!(words("RTO"), "passed");
        assert!(words("RPO").contains("the objective is 5 min"));
        for check in &report.checks {
            let expected = match check.outcome {
                Outcome::Passed => "passed".to_owned(),
                Outcome::Failed => "failed: 6000, expected 7000".to_owned(),
                Outcome::NotTested => format!("skipped: {}", check.detail),
            };
            assert_eq!(words(&check.name), expected);
        }
    }

    #[test]
    fn text_from_outside_is_no_markup_and_no_control_character_breaks_the_file() {
        let text = junit(&sample::hostile()).unwrap();
        assert!(
            !text.contains("<script") && !text.contains('\x1b'),
            "{text}"
        );
        read(&sample::hostile());
    }
}
