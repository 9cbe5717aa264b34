//! What a session has locked: relations of users, with what others cannot do meanwhile
//! (PostgreSQL 18, "Explicit Locking", table 13.2). Another session looks: it sees relations
//! that the statement has dropped, too, as everybody who waits for them does, and the
//! migration's own transaction is not disturbed by questions.

use std::collections::BTreeSet;

use seawall::error::Result;
use seawall::postgres::sql::Client;

use super::relations::Relations;
use crate::report::Lock;

/// Locks of the session with process `backend` that it has been granted, but for those of
/// readers, which disturb nobody else's reading and writing. `before` names what was there
/// before the statement. Relations that nobody else can see yet are left out.
pub(super) async fn held(
    watcher: &Client,
    backend: &str,
    before: &Relations,
) -> Result<BTreeSet<Lock>> {
    let sql = format!(
        "SELECT l.relation, n.nspname || '.' || c.relname, l.mode \
         FROM pg_catalog.pg_locks l \
         LEFT JOIN pg_catalog.pg_class c ON c.oid = l.relation \
         LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE l.locktype = 'relation' AND l.granted AND l.pid = {backend} \
         AND l.database = (SELECT oid FROM pg_catalog.pg_database \
                           WHERE datname = pg_catalog.current_database()) \
         AND coalesce(n.nspname, '') NOT IN ('pg_catalog', 'information_schema') \
         AND l.mode <> 'AccessShareLock'"
    );
    let rows = watcher.query_rows(&sql).await?;
    let locks = rows.into_iter().filter_map(|row| {
        let [oid, name, mode] = <[Option<String>; 3]>::try_from(row).ok()?;
        let mode = mode?;
        let relation = match name {
            Some(name) => name,
            None => before.name(oid?.parse().ok()?)?.to_owned(),
        };
        Some(Lock {
            blocks: blocks(&mode).map(str::to_owned),
            relation,
            mode,
        })
    });
    Ok(locks.collect())
}

/// What a lock of that mode keeps others from.
fn blocks(mode: &str) -> Option<&'static str> {
    match mode {
        "AccessExclusiveLock" => Some("reads and writes"),
        "ExclusiveLock" | "ShareRowExclusiveLock" | "ShareLock" => Some("writes"),
        _ => None,
    }
}
