//! `pg_amcheck`: whether heaps and btrees are what they must be, and agree with each other.

use std::path::Path;
use std::time::Instant;

use jiff::Timestamp;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use seawall::config::AmcheckScope;
use seawall::error::Result;

use super::session;
use super::{Check, Examination, Outcome, names};
use crate::budget::Budget;
use crate::evidence::{Ran, round, tail};
use crate::instance::Instance;
use crate::libraries::NONE_IN_SESSIONS;

const NAME: &str = "pg_amcheck";

/// The sample of a database: its largest tables, and others drawn at random.
const LARGEST: usize = 10;
const DRAWN: usize = 10;

/// As much of the instance as the configuration says.
pub(super) async fn run(about: &Examination<'_>, instance: &Instance) -> Check {
    let started = Instant::now();
    let check = match about.config.amcheck {
        AmcheckScope::None => Ok(Check::not_tested(NAME, "drill.amcheck is \"none\"")),
        scope => find_and_run(about, instance, scope).await,
    };
    check.unwrap_or_else(|error| Check::failed(NAME, error.one_line()).took(started))
}

async fn find_and_run(
    about: &Examination<'_>,
    instance: &Instance,
    scope: AmcheckScope,
) -> Result<Check> {
    let Some(program) = about.programs.get("pg_amcheck") else {
        return Ok(Check::not_tested(
            NAME,
            about.programs.missing("pg_amcheck"),
        ));
    };
    let client = session::open(instance, "template1").await?;
    let available = "SELECT 1 FROM pg_available_extensions WHERE name = 'amcheck'";
    if client.query_text(available).await?.is_none() {
        return Ok(Check::not_tested(NAME, about.programs.missing("amcheck")));
    }
    let options = session_options(client.major());
    drop(client);
    let call = Call {
        program: &program,
        about,
        options,
        arguments: instance
            .client_arguments()
            .into_iter()
            .chain([
                // Into the copy, which is ours.
                "--install-missing".to_owned(),
                "--heapallindexed".to_owned(),
                "--no-strict-names".to_owned(),
                format!("--jobs={}", about.jobs),
            ])
            .collect(),
    };
    match scope {
        AmcheckScope::Sample => call.sample(instance).await,
        _ => call.everything(instance).await,
    }
}

/// What its sessions say at their beginning, so that nothing of the owner's stands in its way:
/// event triggers when it installs amcheck, whose libraries a drill does not load; databases that
/// are read-only unless one says otherwise; limits of time for applications, which would look
/// like damage.
fn session_options(major: u32) -> String {
    let mut options = format!(
        "{NONE_IN_SESSIONS} -c session_replication_role=replica -c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0 -c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0"
    );
    if major >= 17 {
        options += " -c event_triggers=off -c transaction_timeout=0";
    }
    options
}

struct Call<'a> {
    program: &'a Path,
    about: &'a Examination<'a>,
    options: String,
    arguments: Vec<String>,
}

impl Call<'_> {
    async fn everything(&self, instance: &Instance) -> Result<Check> {
        let databases = session::databases(instance).await?;
        let started = Instant::now();
        let mut arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        arguments.push("--all");
        let ran = self.run(&arguments).await?;
        let well = format!(
            "every heap and every btree of every database{}",
            closed(&databases.closed)
        );
        Ok(match ran.success {
            true => Check::of_run(NAME, &ran, &well, started),
            false => Check::failed(NAME, complaint(&ran)).took(started).proving(),
        })
    }

    /// One call for each database, so that it is known what was checked when time is up.
    async fn sample(&self, instance: &Instance) -> Result<Check> {
        let started = Instant::now();
        let (budget, seed) = (self.about.budget(), rand::random());
        let mut random = StdRng::seed_from_u64(seed);
        let databases = session::databases(instance).await?;
        let (mut checked, mut all, mut late) = (0, 0, 0);
        for database in &databases.open {
            let tables = tables(instance, database).await?;
            let sample = sample_of(&tables, &mut random);
            all += tables.len();
            if sample.is_empty() {
                continue;
            }
            let mut arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
            arguments.extend(sample.iter().flat_map(|table| ["--table", table.as_str()]));
            match self.within(&arguments, &budget).await? {
                None => late += sample.len(),
                Some(ran) if ran.success => checked += sample.len(),
                Some(ran) => {
                    let detail = format!("{}\nseed {seed}", complaint(&ran));
                    return Ok(Check::failed(NAME, detail).took(started).proving());
                }
            }
        }
        let mut detail = format!(
            "{checked} of {all} tables with their TOAST and their indexes: in each database the {LARGEST} largest and {DRAWN} at random, seed {seed}"
        );
        if late > 0 {
            detail += &format!("; {late} more were not done within {budget}");
        }
        detail += &closed(&databases.closed);
        let outcome = match checked {
            0 => Outcome::NotTested,
            _ => Outcome::Passed,
        };
        Ok(Check::new(NAME, outcome, detail).took(started).proving())
    }

    async fn run(&self, arguments: &[&str]) -> Result<Ran> {
        let evidence = self.about.evidence;
        evidence
            .run_client(self.program, arguments, &self.options)
            .await
    }

    /// Runs it within the budget; nothing where that ends before. It is killed then.
    async fn within(&self, arguments: &[&str], budget: &Budget) -> Result<Option<Ran>> {
        let left = budget.left();
        if left.is_zero() {
            return Ok(None);
        }
        let step = (Timestamp::now(), Instant::now());
        match tokio::time::timeout(left, self.run(arguments)).await {
            Ok(ran) => ran.map(Some),
            Err(_) => {
                tracing::info!(
                    "pg_amcheck was ended after {} s, for lack of time",
                    round(step.1.elapsed().as_secs_f64())
                );
                self.about.evidence.add_ended(self.program, arguments, step);
                Ok(None)
            }
        }
    }
}

/// What it found; the relation's name and what is wrong with it, which are two lines of its, are
/// one.
fn complaint(ran: &Ran) -> String {
    tail(&ran.text, 10).replace(":\n    ", ": ")
}

/// The tables of a database as patterns that mean just them, the largest first.
async fn tables(instance: &Instance, database: &str) -> Result<Vec<String>> {
    let client = session::open(instance, database).await?;
    // The server quotes whatever has a meaning in a pattern: what it leaves is plain letters,
    // digits and underscores. (PostgreSQL 18, ruleutils.c, quote_identifier.)
    let sql = "SELECT format('%I.%I.%I', current_database(), n.nspname, c.relname)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p'
        ORDER BY pg_total_relation_size(c.oid) DESC, c.oid";
    let rows = client.query_rows(sql).await?.into_iter();
    Ok(rows.filter_map(|row| row.into_iter().next()?).collect())
}

/// The first few, and as many as that of the others.
fn sample_of(tables: &[String], random: &mut StdRng) -> Vec<String> {
    let (largest, others) = tables.split_at(tables.len().min(LARGEST));
    let mut others = others.to_vec();
    others.shuffle(random);
    others.truncate(DRAWN);
    largest.iter().cloned().chain(others).collect()
}

fn closed(databases: &[String]) -> String {
    match databases.is_empty() {
        true => String::new(),
        false => format!("; not {}, which no one can connect to", names(databases)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_names_the_relation_and_what_is_wrong() {
        let text = "btree index \"postgres.public.i\":\n    ERROR:  heap tuple lacks its index tuple\nmore";
        let ran = Ran {
            success: false,
            text: text.to_owned(),
        };
        let first = complaint(&ran);
        assert_eq!(
            first.lines().next(),
            Some("btree index \"postgres.public.i\": ERROR:  heap tuple lacks its index tuple")
        );
    }

    #[test]
    fn a_sample_holds_the_largest_and_as_many_others_and_no_table_twice() {
        let tables: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        let draw = |seed| sample_of(&tables, &mut StdRng::seed_from_u64(seed));
        let sample = draw(7);
        assert_eq!(sample[..LARGEST], tables[..LARGEST]);
        let different: std::collections::BTreeSet<_> = sample.iter().collect();
        assert_eq!(different.len(), LARGEST + DRAWN);
        assert_eq!(sample, draw(7));
        assert_ne!(sample, draw(8));
        assert_eq!(
            sample_of(&tables[..3], &mut StdRng::seed_from_u64(7)),
            tables[..3]
        );
    }
}
