//! Rehearsal: a migration is run on the restored copy, one statement after the other, and for
//! each is found out how long it took, what it locked and what it wrote anew.
//!
//! A statement outside a transaction block gets one of its own, so that its locks can be seen
//! at its end, before they go. What refuses to run in a block (VACUUM, CREATE INDEX
//! CONCURRENTLY, procedures that commit) runs without, and so does what means something else in
//! one (LOCK, SAVEPOINT, SET LOCAL). A second session measures.

mod apart;
mod control;
mod locks;
mod refused;
mod relations;
mod scanner;
mod script;
mod secrets;
mod watch;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use seawall::error::{Error, Result};
use seawall::postgres::Lsn;
use seawall::postgres::sql::{Client, StatementError};

pub use script::{Script, Written, statements};

use crate::budget::Budget;
use crate::evidence::round;
use crate::instance::Instance;
use crate::report::{Lock, Rehearsal, Rewritten, Statement};
use control::Control;
use relations::Relations;
use secrets::Shown;
use watch::Watcher;

/// How long a migration may take where the owner does not say.
pub const BUDGET: Duration = Duration::from_secs(60 * 60);

/// So many characters of a statement are kept in a report.
const LONGEST: usize = 400;

/// `active_sql_transaction`: it cannot run in a transaction block.
const NOT_IN_BLOCK: &str = "25001";

/// `invalid_transaction_termination`: a procedure commits.
const COMMITS: &str = "2D000";

/// Runs `script` on the restored copy, up to the first statement that fails, for `budget` at
/// most. Warnings come with what was found.
///
/// # Errors
/// The database is not known or cannot be asked. A statement that fails is a result.
pub async fn run(
    instance: &Instance,
    script: &Script,
    database: Option<&str>,
    budget: Duration,
) -> Result<(Rehearsal, Vec<String>)> {
    let database = match database {
        Some(database) => database.to_owned(),
        None => only_database(instance).await?,
    };
    let mut warnings = apart::detach_subscriptions(instance).await?;
    warnings.extend(apart::prepared_transactions(instance).await?);
    let session = instance.connect_unlogged(&database).await?;
    let client = instance.connect(&database).await?;
    session.execute("RESET ALL").await?;
    // The migration may lock what the questions need.
    client.execute("SET lock_timeout = '1s'").await?;
    let backend = session.query_text("SELECT pg_backend_pid()").await?;
    let started = Instant::now();
    let mut stage = Stage {
        before: Relations::of(&client).await?,
        wal: wal(&client).await?,
        session,
        watcher: Watcher {
            client,
            backend: backend.unwrap_or_default(),
            budget: Budget::new(budget),
        },
        in_block: false,
        has_snapshot: false,
    };
    let mut done = Vec::new();
    for written in &script.statements {
        let statement = stage.run(written).await?;
        let failed = statement.error.is_some();
        done.push(statement);
        if failed {
            break;
        }
    }
    let rehearsal = Rehearsal {
        file: script.path.clone(),
        sha256: script.sha256.clone(),
        database,
        not_run: script.statements.len() - done.len(),
        statements: done,
        seconds: round(started.elapsed().as_secs_f64()),
    };
    Ok((rehearsal, warnings))
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
    watcher: Watcher,
    /// Whether the migration has opened a transaction block itself.
    in_block: bool,
    /// Whether a statement of that block has taken a snapshot: only then may we ask something
    /// in it, as SET TRANSACTION must come before any question.
    has_snapshot: bool,
    /// The relations as they were before the statement.
    before: Relations,
    /// Where the WAL was last seen to stand.
    wal: Lsn,
}

/// How a statement went.
struct Ran {
    outcome: Result<(), StatementError>,
    locks: BTreeSet<Lock>,
    took: Duration,
    /// Where the WAL stood when it began.
    from: Lsn,
}

impl Stage {
    async fn run(&mut self, written: &Written) -> Result<Statement> {
        let words = scanner::first_words(&written.sql);
        let control = Control::of(&words);
        let ran = if control.is_some() || self.in_block || control::depends_on_block(&words) {
            self.run_here(&written.sql).await?
        } else {
            self.run_alone(&written.sql).await?
        };
        self.wal = self.wal_now().await;
        let mut rewritten = Vec::new();
        if ran.outcome.is_ok() {
            match control {
                Some(control) => {
                    (self.in_block, self.has_snapshot) = (control == Control::Opens, false);
                }
                None if !control::needs_no_snapshot(&words) => self.has_snapshot = self.in_block,
                None => {}
            }
            rewritten = self.changes().await?;
            if control::takes_back(&words) {
                rewritten.clear();
            }
        }
        let shown = Shown::of(&written.sql);
        Ok(Statement {
            line: written.line,
            sql: shortened(&shown.sql),
            seconds: round(ran.took.as_secs_f64()),
            error: ran.outcome.err().map(|error| {
                let said = shown.without_secrets(&error.message);
                match error.sqlstate {
                    Some(code) => format!("{said} (SQLSTATE {code})"),
                    None => said,
                }
            }),
            locks: ran.locks.into_iter().collect(),
            rewritten,
            from: ran.from,
            wal_bytes: self.wal.0.saturating_sub(ran.from.0),
        })
    }

    /// As it stands in the script.
    async fn run_here(&self, sql: &str) -> Result<Ran> {
        // What ends a block gives back the locks with it.
        let mut locks = self.held().await;
        let from = self.wal_now().await;
        let started = Instant::now();
        let run = self.session.run_statement(sql);
        let (outcome, seen) = self.watcher.watch(run, &self.before).await?;
        let took = started.elapsed();
        locks.extend(seen);
        locks.extend(self.held().await);
        Ok(Ran {
            outcome,
            locks,
            took,
            from,
        })
    }

    /// In a transaction block of its own, or without one where it refuses that.
    async fn run_alone(&self, sql: &str) -> Result<Ran> {
        self.session.execute("BEGIN").await?;
        let mut ran = self.run_here(sql).await?;
        match &ran.outcome {
            Ok(()) => {
                let committing = Instant::now();
                // Deferred constraints speak up only here.
                let commit = self.session.run_statement("COMMIT");
                let (outcome, seen) = self.watcher.watch(commit, &self.before).await?;
                ran.outcome = outcome;
                ran.locks.extend(seen);
                ran.took += committing.elapsed();
                Ok(ran)
            }
            Err(error) => {
                let again = matches!(error.sqlstate.as_deref(), Some(NOT_IN_BLOCK | COMMITS));
                self.session.execute("ROLLBACK").await?;
                match again {
                    // What was rolled back is not measured.
                    true => self.run_here(sql).await,
                    false => Ok(ran),
                }
            }
        }
    }

    /// What has other files than before, as far as that can be seen from here: in a block of
    /// the migration's only its own session sees it.
    async fn changes(&mut self) -> Result<Vec<Rewritten>> {
        let asked = match (self.in_block, self.has_snapshot) {
            (true, false) => return Ok(Vec::new()),
            (true, true) => &self.session,
            (false, _) => &self.watcher.client,
        };
        let after = Relations::of(asked).await?;
        let changed = after.changed_since(&self.before, asked).await?;
        self.before = after;
        Ok(changed)
    }

    /// What cannot be asked, since the migration has locked what the question needs, is not
    /// known.
    async fn held(&self) -> BTreeSet<Lock> {
        let watcher = &self.watcher;
        locks::held(&watcher.client, &watcher.backend, &self.before)
            .await
            .unwrap_or_default()
    }

    async fn wal_now(&self) -> Lsn {
        wal(&self.watcher.client).await.unwrap_or(self.wal)
    }
}

async fn wal(client: &Client) -> Result<Lsn> {
    let text = client
        .query_text("SELECT pg_catalog.pg_current_wal_insert_lsn()::text")
        .await?;
    text.and_then(|lsn| lsn.parse().ok())
        .ok_or_else(|| Error::failed("the server did not tell where its WAL stands"))
}

fn shortened(sql: &str) -> String {
    match sql.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &sql[..end]),
        None => sql.to_owned(),
    }
}
