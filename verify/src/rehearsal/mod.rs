//! Rehearsal: a migration is run on the restored copy, one statement after the other, and for
//! each is found out how long it took, what it locked and what it wrote anew.
//!
//! A statement outside a transaction block gets one of its own, so that its locks can be seen
//! at its end, before they go. What refuses to run in a block (VACUUM, CREATE INDEX
//! CONCURRENTLY, procedures that commit) runs without, and a second session looks at its locks
//! meanwhile.

mod locks;
mod relations;
mod script;

use std::time::Instant;

use seawall::error::{Error, Result};
use seawall::postgres::Lsn;
use seawall::postgres::sql::{Client, StatementError};

pub use script::{Script, Written, statements};

use crate::evidence::round;
use crate::instance::Instance;
use crate::report::{Lock, Rehearsal, Statement};
use relations::Relations;

/// So many characters of a statement are kept in a report.
const LONGEST: usize = 400;

/// `active_sql_transaction`: it cannot run in a transaction block.
const NOT_IN_BLOCK: &str = "25001";

/// `invalid_transaction_termination`: a procedure commits.
const COMMITS: &str = "2D000";

/// Runs `script` on the restored copy, up to the first statement that fails.
///
/// # Errors
/// The database is not known or cannot be asked. A statement that fails is a result.
pub async fn run(
    instance: &Instance,
    script: &Script,
    database: Option<&str>,
) -> Result<Rehearsal> {
    let database = match database {
        Some(database) => database.to_owned(),
        None => only_database(instance).await?,
    };
    let mut stage = Stage {
        session: instance.connect(&database).await?,
        watcher: instance.connect(&database).await?,
        in_block: false,
    };
    stage.session.execute("RESET ALL").await?;
    let backend = stage.session.query_text("SELECT pg_backend_pid()").await?;
    let backend = backend.unwrap_or_default();
    let started = Instant::now();
    let mut done = Vec::new();
    let mut before = Relations::of(&stage.session).await?;
    for written in &script.statements {
        let mut statement = stage.run(written, &backend).await?;
        if statement.error.is_none() {
            let after = Relations::of(&stage.session).await?;
            statement.rewritten = after.changed_since(&before, &stage.session).await?;
            before = after;
        }
        let failed = statement.error.is_some();
        done.push(statement);
        if failed {
            break;
        }
    }
    Ok(Rehearsal {
        file: script.path.clone(),
        sha256: script.sha256.clone(),
        database,
        not_run: script.statements.len() - done.len(),
        statements: done,
        seconds: round(started.elapsed().as_secs_f64()),
    })
}

/// The only database that is no template, or else `postgres`.
async fn only_database(instance: &Instance) -> Result<String> {
    let client = instance.connect("postgres").await?;
    let all = client
        .query_column(
            "SELECT datname FROM pg_catalog.pg_database \
             WHERE datallowconn AND NOT datistemplate AND datname <> 'postgres' ORDER BY 1",
        )
        .await?;
    match all.as_slice() {
        [] => Ok("postgres".to_owned()),
        [only] => Ok(only.clone()),
        several => Err(Error::usage("the migration's database is not known")
            .hint(format!("name one with --database: {}", several.join(", ")))),
    }
}

/// Where the migration plays.
struct Stage {
    session: Client,
    watcher: Client,
    /// Whether the migration has opened a transaction block itself.
    in_block: bool,
}

impl Stage {
    async fn run(&mut self, written: &Written, backend: &str) -> Result<Statement> {
        let from = self.wal().await?;
        let started = Instant::now();
        let words = script::first_words(&written.sql, 2);
        let (outcome, locks) = match Control::of(&words) {
            Some(control) => {
                let held = match self.in_block {
                    true => locks::held(&self.session, backend)
                        .await
                        .unwrap_or_default(),
                    false => Vec::new(),
                };
                let outcome = self.session.run_statement(&written.sql).await;
                if outcome.is_ok() {
                    self.in_block = control == Control::Opens;
                }
                (outcome, held)
            }
            None if self.in_block => {
                let outcome = self.session.run_statement(&written.sql).await;
                let held = match outcome {
                    Ok(()) => locks::held(&self.session, backend).await?,
                    Err(_) => locks::held(&self.watcher, backend).await?,
                };
                (outcome, held)
            }
            None => self.run_alone(&written.sql, backend).await?,
        };
        let seconds = started.elapsed().as_secs_f64();
        let until = match outcome {
            Ok(()) => self.wal().await?,
            // In a block that has failed nothing can be asked.
            Err(_) => from,
        };
        Ok(Statement {
            line: written.line,
            sql: shortened(&written.sql),
            seconds: round(seconds),
            error: outcome.err().map(|error| match error.sqlstate {
                Some(code) => format!("{} (SQLSTATE {code})", error.message),
                None => error.message,
            }),
            locks,
            rewritten: Vec::new(),
            from,
            wal_bytes: until.0.saturating_sub(from.0),
        })
    }

    /// In a transaction block of its own, or without one where it refuses that.
    async fn run_alone(
        &self,
        sql: &str,
        backend: &str,
    ) -> Result<(Result<(), StatementError>, Vec<Lock>)> {
        self.session.execute("BEGIN").await?;
        match self.session.run_statement(sql).await {
            Ok(()) => {
                let held = locks::held(&self.session, backend).await?;
                // Deferred constraints speak up only here.
                Ok((self.session.run_statement("COMMIT").await, held))
            }
            Err(error) => {
                self.session.execute("ROLLBACK").await?;
                match error.sqlstate.as_deref() {
                    Some(NOT_IN_BLOCK | COMMITS) => {
                        let run = self.session.run_statement(sql);
                        Ok(locks::watched(run, &self.watcher, backend).await)
                    }
                    _ => Ok((Err(error), Vec::new())),
                }
            }
        }
    }

    async fn wal(&self) -> Result<Lsn> {
        let text = self
            .session
            .query_text("SELECT pg_current_wal_insert_lsn()::text")
            .await?;
        text.and_then(|lsn| lsn.parse().ok())
            .ok_or_else(|| Error::failed("the server did not tell where its WAL stands"))
    }
}

/// A statement that opens or ends a transaction block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Control {
    Opens,
    Ends,
}

impl Control {
    fn of(words: &[String]) -> Option<Self> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["BEGIN", ..] | ["START", "TRANSACTION", ..] => Some(Self::Opens),
            ["ROLLBACK", "TO", ..] | ["COMMIT" | "ROLLBACK", "PREPARED", ..] => None,
            ["COMMIT" | "END" | "ROLLBACK" | "ABORT", ..] => Some(Self::Ends),
            ["PREPARE", "TRANSACTION", ..] => Some(Self::Ends),
            _ => None,
        }
    }
}

fn shortened(sql: &str) -> String {
    match sql.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &sql[..end]),
        None => sql.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_opens_and_ends_a_block_is_known() {
        for (sql, wanted) in [
            ("begin", Some(Control::Opens)),
            (
                "START TRANSACTION ISOLATION LEVEL SERIALIZABLE",
                Some(Control::Opens),
            ),
            ("commit and no chain", Some(Control::Ends)),
            ("END", Some(Control::Ends)),
            ("ROLLBACK", Some(Control::Ends)),
            ("ROLLBACK TO SAVEPOINT a", None),
            ("COMMIT PREPARED 'x'", None),
            ("ALTER TABLE t ADD x int", None),
        ] {
            assert_eq!(Control::of(&script::first_words(sql, 2)), wanted, "{sql}");
        }
    }
}
