//! The rows of each table, counted exactly, and held against the last drill's.
//!
//! Estimates are never mixed in: a table that was not counted for lack of time has no number.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use seawall::error::Result;

use super::session;
use super::{Check, Examination, Findings, Outcome, Rows, names};
use crate::budget::Budget;
use crate::instance::Instance;

const NAME: &str = "row counts";

/// A report holds so many tables, the largest.
const REPORTED: usize = 1000;

#[derive(Debug, Default)]
struct Counted {
    rows: Rows,
    /// Every table that there is, counted or not.
    tables: BTreeSet<(String, String)>,
    /// Partitions, which have no number of their own: one that had, in an older report or before
    /// it was attached, is not gone.
    parts: BTreeSet<(String, String)>,
    databases: BTreeSet<String>,
    unread: Vec<String>,
}

/// Counts every permanent table, the smallest first, until the budget ends.
pub(super) async fn count(
    about: &Examination<'_>,
    instance: &Instance,
    budget: Budget,
    findings: &mut Findings,
) {
    let started = Instant::now();
    let mut counted = Counted::default();
    let looked = look(instance, &budget, &mut counted).await;
    let check = match looked {
        Err(error) => Check::failed(NAME, session::said(&error)),
        Ok(()) => counted.judge(
            about.last.rows(),
            about.last.id(),
            about.config.rows_may_shrink,
            &budget,
        ),
    };
    findings.rows = largest(counted.rows, REPORTED);
    findings.checks.push(check.took(started));
}

async fn look(instance: &Instance, budget: &Budget, counted: &mut Counted) -> Result<()> {
    let databases = session::databases(instance).await?;
    counted.databases.extend(databases.closed);
    for database in databases.open {
        counted.databases.insert(database.clone());
        let client = match session::open(instance, &database).await {
            Ok(client) => client,
            Err(error) => {
                counted.unread.push(session::not_open(&database, &error));
                continue;
            }
        };
        // A tree of partitions is one sum; with one of them uncounted it has no number.
        let mut sums: BTreeMap<String, Option<u64>> = BTreeMap::new();
        for row in client.query_rows(TABLES).await? {
            let [Some(table), Some(part), question] = &row[..] else {
                continue;
            };
            if part != table {
                counted.parts.insert((database.clone(), part.clone()));
            }
            let rows = match question {
                None => Some(0),
                Some(question) => match session::ask(&client, budget, question).await {
                    Ok(rows) => {
                        rows.and_then(|rows| rows.first()?.first()?.as_deref()?.parse().ok())
                    }
                    Err(error) => {
                        counted.unread.push(format!(
                            "{part} in {database} cannot be read: {}",
                            session::said(&error)
                        ));
                        None
                    }
                },
            };
            let sum = sums.entry(table.clone()).or_insert(Some(0));
            *sum = sum.zip(rows).map(|(sum, rows): (u64, u64)| sum + rows);
        }
        for (table, sum) in sums {
            if let Some(rows) = sum {
                let tables = counted.rows.entry(database.clone()).or_default();
                tables.insert(table.clone(), rows);
            }
            counted.tables.insert((database.clone(), table));
        }
    }
    Ok(())
}

impl Counted {
    fn judge(
        &self,
        last: Result<Rows, String>,
        last_id: &str,
        may_shrink: Option<f64>,
        budget: &Budget,
    ) -> Check {
        let tables: u64 = self.rows.values().map(|tables| tables.len() as u64).sum();
        let rows: u64 = self.rows.values().flat_map(|tables| tables.values()).sum();
        let mut detail = format!("{rows} rows in {tables} tables");
        match (self.tables.len() as u64).saturating_sub(tables + self.unread.len() as u64) {
            0 => {}
            left => detail += &format!("; {left} tables not counted, for lack of time ({budget})"),
        }
        if tables > REPORTED as u64 {
            detail += &format!("; the report holds the {REPORTED} largest");
        }
        if !self.unread.is_empty() {
            // The words of the verdict are the first line: what is wrong comes first.
            return Check::failed(NAME, format!("{}; {detail}", names(&self.unread))).proving();
        }
        let last = match last {
            Err(why) => {
                return Check::not_tested(
                    NAME,
                    format!("{detail}; nothing to compare with: {why}"),
                );
            }
            Ok(last) => last,
        };
        let lost = self.lost(&last, may_shrink.unwrap_or(0.0));
        match (may_shrink, lost.is_empty()) {
            (Some(_), false) => Check::failed(
                NAME,
                format!("{} since drill {last_id}; {detail}", names(&lost)),
            )
            .proving(),
            (Some(percent), true) => {
                let compared = self.compared(&last);
                let detail = format!(
                    "{detail}; none of {compared} that drill {last_id} counted lost more than {percent} %"
                );
                match compared {
                    0 => Check::not_tested(NAME, detail),
                    _ => Check::new(NAME, Outcome::Passed, detail).proving(),
                }
            }
            (None, _) => {
                let what = match lost.is_empty() {
                    true => "no table lost any".to_owned(),
                    false => names(&lost),
                };
                Check::not_tested(
                    NAME,
                    format!(
                        "{detail}; {what} since drill {last_id}, and drill.rows_may_shrink does not say how much is too much"
                    ),
                )
            }
        }
    }

    /// Tables that are gone, and those that lost more than so many per cent. What is gone has
    /// lost 100 %.
    fn lost(&self, last: &Rows, percent: f64) -> Vec<String> {
        let mut lost = Vec::new();
        let may_be_gone = percent >= 100.0;
        for (database, tables) in last {
            if !self.databases.contains(database) {
                if !may_be_gone {
                    lost.push(format!("the database {database} is gone"));
                }
                continue;
            }
            for (table, before) in tables {
                let of = (database.clone(), table.clone());
                if !self.tables.contains(&of) {
                    if !may_be_gone && !self.parts.contains(&of) {
                        lost.push(format!("{table} in {database} is gone"));
                    }
                    continue;
                }
                let now = self.rows.get(database).and_then(|now| now.get(table));
                if let Some(now) = now
                    && now < before
                {
                    let less = (before - now) as f64 / *before as f64 * 100.0;
                    if less > percent {
                        lost.push(format!(
                            "{table} in {database} lost {less:.1} % of its rows, {before} before, {now} now"
                        ));
                    }
                }
            }
        }
        lost
    }

    /// How many tables have a number here and there.
    fn compared(&self, last: &Rows) -> usize {
        let both = last.iter().map(|(database, tables)| {
            let now = self.rows.get(database);
            let in_both = |table: &&String| now.is_some_and(|now| now.contains_key(*table));
            tables.keys().filter(in_both).count()
        });
        both.sum()
    }
}

/// The `count` tables with the most rows.
fn largest(rows: Rows, count: usize) -> Rows {
    let mut all: Vec<(u64, String, String)> = rows
        .into_iter()
        .flat_map(|(database, tables)| {
            let of = move |(table, rows)| (rows, database.clone(), table);
            tables.into_iter().map(of)
        })
        .collect();
    // With equal numbers always the same ones: the next drill looks for them.
    all.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| (&a.1, &a.2).cmp(&(&b.1, &b.2))));
    all.truncate(count);
    let mut largest = Rows::new();
    for (rows, database, table) in all {
        largest.entry(database).or_default().insert(table, rows);
    }
    largest
}

/// The owner's tables: what the rows count for, where they lie, and the question, which a
/// partitioned table has only for its partitions. Those come and go, so they count for the table
/// that they are parts of. Each is asked for itself: a partition may lie on a foreign server. Not
/// those that are not in the WAL: they are empty after every recovery.
const TABLES: &str = "
    SELECT format('%I.%I', rn.nspname, r.relname), format('%I.%I', n.nspname, c.relname),
        CASE c.relkind WHEN 'r' THEN
            format('SELECT count(*) FROM ONLY %I.%I', n.nspname, c.relname) END
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_class r ON r.oid = coalesce(pg_partition_root(c.oid)::oid, c.oid)
    JOIN pg_namespace rn ON rn.oid = r.relnamespace
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
        AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
    ORDER BY sum(pg_relation_size(c.oid)) OVER (PARTITION BY r.oid), 1, 2";

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn rows(tables: &[(&str, u64)]) -> Rows {
        let tables = tables
            .iter()
            .map(|(table, rows)| ((*table).to_owned(), *rows));
        [("db".to_owned(), tables.collect())].into()
    }

    fn counted(tables: &[(&str, u64)]) -> Counted {
        Counted {
            tables: tables
                .iter()
                .map(|(table, _)| ("db".to_owned(), (*table).to_owned()))
                .collect(),
            databases: ["db".to_owned()].into(),
            rows: rows(tables),
            ..Counted::default()
        }
    }

    fn judged(now: &Counted, last: Result<Rows, String>, may_shrink: Option<f64>) -> Check {
        now.judge(last, "d", may_shrink, &Budget::new(Duration::ZERO))
    }

    #[test]
    fn a_table_may_lose_so_much_and_no_more_and_only_where_that_was_said() {
        let last = || Ok(rows(&[("a", 1000), ("b", 10), ("empty", 0)]));
        let now = counted(&[("a", 950), ("b", 12), ("empty", 0), ("new", 3)]);
        assert_eq!(judged(&now, last(), Some(5.0)).outcome, Outcome::Passed);
        assert!(judged(&now, last(), Some(5.0)).proves);
        let less = judged(&now, last(), Some(4.9));
        assert_eq!(less.outcome, Outcome::Failed);
        assert!(
            less.detail.contains("a in db lost 5.0 %"),
            "{}",
            less.detail
        );
        let told = judged(&now, last(), None);
        assert_eq!(told.outcome, Outcome::NotTested);
        assert!(
            told.detail.contains("a in db lost 5.0 %"),
            "{}",
            told.detail
        );
        let first = judged(&now, Err("first".to_owned()), Some(5.0));
        assert_eq!(first.outcome, Outcome::NotTested);
    }

    #[test]
    fn a_table_that_is_gone_fails_and_one_that_was_not_counted_does_not() {
        let mut now = counted(&[("a", 5), ("b", 5)]);
        let last = || Ok(rows(&[("a", 5), ("b", 5)]));
        now.rows.get_mut("db").unwrap().remove("b");
        let check = judged(&now, last(), Some(0.0));
        assert_eq!(check.outcome, Outcome::Passed);
        assert!(
            check.detail.contains("1 tables not counted"),
            "{}",
            check.detail
        );
        now.tables.remove(&("db".to_owned(), "b".to_owned()));
        let check = judged(&now, last(), Some(99.9));
        assert_eq!(check.outcome, Outcome::Failed);
        assert!(check.detail.contains("b in db is gone"), "{}", check.detail);
        let other = || Ok([("other".to_owned(), [("x".to_owned(), 1)].into())].into());
        let check = judged(&now, other(), Some(99.9));
        assert!(check.detail.contains("the database other is gone"));
        // What is gone has lost 100 %, and the owner may say that it was meant.
        let check = judged(&now, last(), Some(100.0));
        assert_eq!(check.outcome, Outcome::Passed);
        assert!(!judged(&now, other(), Some(100.0)).detail.contains("gone"));
    }

    #[test]
    fn a_partition_with_a_number_of_its_own_in_an_older_report_is_not_gone() {
        let mut now = counted(&[("whole", 5)]);
        now.parts.insert(("db".to_owned(), "part".to_owned()));
        let last = rows(&[("whole", 5), ("part", 5)]);
        assert_eq!(judged(&now, Ok(last), Some(0.0)).outcome, Outcome::Passed);
    }

    #[test]
    fn a_report_holds_the_largest_tables() {
        let kept = largest(rows(&[("a", 1), ("b", 3), ("c", 2), ("d", 2)]), 2);
        assert_eq!(kept, rows(&[("b", 3), ("c", 2)]));
    }
}
