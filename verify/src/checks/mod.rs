//! Questions to what was restored: PostgreSQL's own programs, and the owner's SQL.

use std::path::Path;
use std::time::Instant;

use jiff::Timestamp;
use seawall::config::SqlCheck;
use seawall::error::Result;
use serde::Serialize;

use crate::evidence::{Evidence, Ran, round, tail};
use crate::instance::Instance;
use crate::programs::Programs;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was made, and all was well.
    Passed,
    /// It was made, and something is wrong.
    Failed,
    /// It was not made; the detail says why.
    NotTested,
}

/// One check with its result.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found, or why it was not tested.
    pub detail: String,
    /// How long it took.
    pub seconds: f64,
    /// Whether it looked into the restored database: a drill that checked nothing cannot pass.
    #[serde(skip)]
    pub proves: bool,
}

impl Check {
    /// A result.
    pub fn new(name: impl Into<String>, outcome: Outcome, detail: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            outcome,
            detail: detail.into(),
            seconds: 0.0,
            proves: false,
        }
    }

    /// A check that was not made.
    pub fn not_tested(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(name, Outcome::NotTested, why)
    }

    fn of_run(name: &str, ran: &Ran, well: &str, started: Instant) -> Self {
        let (outcome, detail) = if ran.success {
            (Outcome::Passed, well.to_owned())
        } else {
            (Outcome::Failed, tail(&ran.text, 10))
        };
        Self {
            seconds: round(started.elapsed().as_secs_f64()),
            proves: true,
            ..Self::new(name, outcome, detail)
        }
    }
}

/// `pg_verifybackup -n` of the restored directory, before the server starts.
pub async fn verify_backup(programs: &Programs, data: &Path, evidence: &Evidence) -> Result<Check> {
    const NAME: &str = "pg_verifybackup -n";
    let Some(program) = programs.get("pg_verifybackup") else {
        return Ok(Check::not_tested(NAME, programs.missing("pg_verifybackup")));
    };
    let started = Instant::now();
    let data = data.to_string_lossy();
    let ran = evidence.run(&program, &["-n", "-q", &data]).await?;
    let well = "every file is there, with its size and CRC-32C";
    Ok(Check {
        // It compares the files with what the backup says of itself, as the restore did.
        proves: false,
        ..Check::of_run(NAME, &ran, well, started)
    })
}

/// `pg_checksums --check` of the stopped instance.
pub async fn page_checksums(
    programs: &Programs,
    data: &Path,
    enabled: bool,
    evidence: &Evidence,
) -> Result<Check> {
    const NAME: &str = "page checksums";
    if !enabled {
        return Ok(Check::not_tested(
            NAME,
            "the cluster has data checksums off",
        ));
    }
    let Some(program) = programs.get("pg_checksums") else {
        return Ok(Check::not_tested(NAME, programs.missing("pg_checksums")));
    };
    let started = Instant::now();
    let data = data.to_string_lossy();
    let ran = evidence.run(&program, &["--check", "-D", &data]).await?;
    let blocks = ran
        .text
        .lines()
        .find_map(|line| line.strip_prefix("Blocks scanned:"));
    let well = format!("{} blocks, none bad", blocks.map_or("all", str::trim));
    Ok(Check::of_run(NAME, &ran, &well, started))
}

/// `pg_amcheck` of every database, where the extension is there.
pub async fn amcheck(
    programs: &Programs,
    instance: &Instance,
    jobs: usize,
    evidence: &Evidence,
) -> Result<Check> {
    const NAME: &str = "pg_amcheck";
    let Some(program) = programs.get("pg_amcheck") else {
        return Ok(Check::not_tested(NAME, programs.missing("pg_amcheck")));
    };
    let client = instance.connect("template1").await?;
    let available = "SELECT 1 FROM pg_available_extensions WHERE name = 'amcheck'";
    if client.query_text(available).await?.is_none() {
        return Ok(Check::not_tested(NAME, programs.missing("amcheck")));
    }
    drop(client);
    let jobs = format!("--jobs={jobs}");
    let at = instance.client_arguments();
    let mut arguments: Vec<&str> = at.iter().map(String::as_str).collect();
    arguments.extend([
        "--all",
        "--install-missing",
        "--heapallindexed",
        "--no-strict-names",
        &jobs,
    ]);
    let started = Instant::now();
    let ran = evidence.run(&program, &arguments).await?;
    Ok(Check::of_run(
        NAME,
        &ran,
        "every heap and every btree of every database",
        started,
    ))
}

/// One question of the owner's.
pub async fn sql(instance: &Instance, check: &SqlCheck, failed_at: Timestamp) -> Check {
    let name = check.name.clone().unwrap_or_else(|| check.sql.clone());
    let started = Instant::now();
    let answer = async {
        let client = instance.connect(&check.database).await?;
        // A question must not change what it asks about; tables are found as in psql.
        let session = "SET default_transaction_read_only = on; SET search_path = \"$user\", public";
        client.execute(session).await?;
        client.query_text(&check.sql).await
    };
    let (outcome, detail) = match answer.await {
        Err(error) => (Outcome::Failed, error.one_line()),
        Ok(answer) => judge(check, answer.as_deref(), failed_at),
    };
    Check {
        seconds: round(started.elapsed().as_secs_f64()),
        proves: true,
        ..Check::new(name, outcome, detail)
    }
}

/// Holds an answer against the one expectation that the configuration made sure of.
fn judge(check: &SqlCheck, answer: Option<&str>, failed_at: Timestamp) -> (Outcome, String) {
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
                judge(&check(expectation), answer, now).0,
                outcome,
                "{expectation} {answer:?}"
            );
        }
    }
}
