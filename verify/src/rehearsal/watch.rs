//! A statement runs, and a second session looks at it again and again: at its locks, whether it
//! can end at all, and whether its time is over.

use std::collections::BTreeSet;
use std::time::Duration;

use seawall::error::{Error, Result};
use seawall::postgres::sql::{Client, StatementError};

use super::locks;
use super::relations::Relations;
use crate::budget::Budget;
use crate::report::Lock;

/// How often the second session looks.
const INTERVAL: Duration = Duration::from_millis(10);

/// A statement that was cancelled ends by then.
const END: Duration = Duration::from_secs(30);

/// `query_canceled`.
const CANCELED: &str = "57014";

/// Why a statement was cancelled for lack of time.
fn too_long(budget: &Budget) -> String {
    format!("the migration took longer than drill.rehearsal_budget, {budget}")
}

/// The second session.
pub(super) struct Watcher {
    /// Never in a transaction block, so that it sees what is committed.
    pub(super) client: Client,
    /// The process of the session that it looks at.
    pub(super) backend: String,
    pub(super) budget: Budget,
}

impl Watcher {
    /// Lets a statement run. What the session was seen to hold meanwhile comes with it.
    ///
    /// # Errors
    /// The statement had to be cancelled and did not end. One that was cancelled and ended has
    /// failed, which is a result.
    pub(super) async fn watch(
        &self,
        run: impl Future<Output = Result<(), StatementError>>,
        before: &Relations,
    ) -> Result<(Result<(), StatementError>, BTreeSet<Lock>)> {
        let mut seen = BTreeSet::new();
        if self.budget.is_over() {
            return Ok((Err(cancelled(too_long(&self.budget))), seen));
        }
        let mut run = std::pin::pin!(run);
        let why = loop {
            tokio::select! {
                biased;
                outcome = &mut run => return Ok((outcome, seen)),
                () = tokio::time::sleep(INTERVAL) => {}
            }
            if self.budget.is_over() {
                break too_long(&self.budget);
            }
            tokio::select! {
                biased;
                outcome = &mut run => return Ok((outcome, seen)),
                // What cannot be seen this time may be the next.
                held = locks::held(&self.client, &self.backend, before) => {
                    seen.extend(held.unwrap_or_default());
                }
            }
            tokio::select! {
                biased;
                outcome = &mut run => return Ok((outcome, seen)),
                waits = self.waits_for_ever() => if waits {
                    break "it would wait for ever for what a prepared transaction holds; \
                           end it on the source with COMMIT PREPARED or ROLLBACK PREPARED".to_owned();
                }
            }
        };
        let sql = format!("SELECT pg_catalog.pg_cancel_backend({})", self.backend);
        self.client.execute(&sql).await?;
        match tokio::time::timeout(END, run).await {
            Ok(Err(error)) if error.sqlstate.as_deref() == Some(CANCELED) => {
                Ok((Err(cancelled(why)), seen))
            }
            // It ended by itself at that very moment.
            Ok(outcome) => Ok((outcome, seen)),
            Err(_) => Err(Error::failed(format!(
                "a statement of the migration was cancelled and does not end: {why}"
            ))),
        }
    }

    /// Whether a prepared transaction is in its way: those have no process (they count as
    /// process 0, PostgreSQL 18, `pg_blocking_pids`), and nobody here will end them.
    async fn waits_for_ever(&self) -> bool {
        let sql = format!(
            "SELECT 0 = ANY (pg_catalog.pg_blocking_pids({}))",
            self.backend
        );
        let answer = self.client.query_text(&sql).await;
        answer.is_ok_and(|answer| answer.as_deref() == Some("t"))
    }
}

fn cancelled(message: String) -> StatementError {
    StatementError {
        sqlstate: Some(CANCELED.to_owned()),
        message,
    }
}
