//! What a session has locked: relations of users, with what others cannot do meanwhile
//! (PostgreSQL 18, "Explicit Locking", table 13.2).

use std::collections::BTreeSet;
use std::time::Duration;

use seawall::error::Result;
use seawall::postgres::sql::{Client, StatementError};

use crate::report::Lock;

/// How often a second session looks.
const INTERVAL: Duration = Duration::from_millis(10);

/// Locks of the session with process `backend` that it has been granted, but for those of
/// readers, which disturb nobody else's reading and writing.
pub(super) async fn held(asked: &Client, backend: &str) -> Result<Vec<Lock>> {
    let sql = format!(
        "SELECT n.nspname || '.' || c.relname, l.mode \
         FROM pg_catalog.pg_locks l \
         JOIN pg_catalog.pg_class c ON c.oid = l.relation \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE l.locktype = 'relation' AND l.granted AND l.pid = {backend} \
         AND l.database = (SELECT oid FROM pg_catalog.pg_database \
                           WHERE datname = pg_catalog.current_database()) \
         AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
         AND l.mode <> 'AccessShareLock'"
    );
    let rows = asked.query_rows(&sql).await?;
    let locks: BTreeSet<Lock> = rows
        .into_iter()
        .filter_map(|row| match <[Option<String>; 2]>::try_from(row) {
            Ok([Some(relation), Some(mode)]) => Some(Lock {
                blocks: blocks(&mode).map(str::to_owned),
                relation,
                mode,
            }),
            _ => None,
        })
        .collect();
    Ok(locks.into_iter().collect())
}

/// Lets a statement run, and looks again and again at what its session holds.
pub(super) async fn watched(
    run: impl Future<Output = Result<(), StatementError>>,
    watcher: &Client,
    backend: &str,
) -> (Result<(), StatementError>, Vec<Lock>) {
    let mut run = std::pin::pin!(run);
    let mut seen = BTreeSet::new();
    loop {
        tokio::select! {
            biased;
            outcome = &mut run => return (outcome, seen.into_iter().collect()),
            () = tokio::time::sleep(INTERVAL) => {}
        }
        tokio::select! {
            biased;
            outcome = &mut run => return (outcome, seen.into_iter().collect()),
            // What cannot be seen this time may be the next.
            held = held(watcher, backend) => seen.extend(held.unwrap_or_default()),
        }
    }
}

/// What a lock of that mode keeps others from.
fn blocks(mode: &str) -> Option<&'static str> {
    match mode {
        "AccessExclusiveLock" => Some("reads and writes"),
        "ExclusiveLock" | "ShareRowExclusiveLock" | "ShareLock" => Some("writes"),
        _ => None,
    }
}
