//! Sessions with the restored instance that change nothing.

use seawall::error::{Error, Result};
use seawall::postgres::sql::Client;

use crate::budget::Budget;
use crate::instance::Instance;

/// Nothing is changed, nothing is found by a name of the owner's, no policy hides rows, and
/// nobody is waited for.
const SESSION: &str = "SET default_transaction_read_only = on; SET search_path = pg_catalog; \
                       SET row_security = off; SET lock_timeout = '10s'";

/// The databases of the instance.
#[derive(Debug, Default)]
pub(super) struct Databases {
    /// Those that can be opened.
    pub(super) open: Vec<String>,
    /// Those that refuse connections: `datallowconn = false`, as template0 has it, or left
    /// behind by a `DROP DATABASE` that was interrupted.
    pub(super) closed: Vec<String>,
}

pub(super) async fn databases(instance: &Instance) -> Result<Databases> {
    let client = open(instance, "template1").await?;
    // -2: PostgreSQL 18, pg_database.h, DATCONNLIMIT_INVALID_DB; in all minor releases since 2023.
    let sql = "SELECT datname, datallowconn AND datconnlimit <> -2 FROM pg_database ORDER BY 1";
    let mut databases = Databases::default();
    for row in client.query_rows(sql).await? {
        if let [Some(name), Some(open)] = &row[..] {
            match open.as_str() {
                "t" => databases.open.push(name.clone()),
                _ => databases.closed.push(name.clone()),
            }
        }
    }
    Ok(databases)
}

/// A session that reads only.
pub(super) async fn open(instance: &Instance, database: &str) -> Result<Client> {
    let client = instance.connect(database).await?;
    client.execute(SESSION).await?;
    if client.major() >= 17 {
        // The other limits of time are lifted in every session of ours.
        client.execute("SET transaction_timeout = 0").await?;
    }
    Ok(client)
}

/// Says which database cannot be opened: one that nobody can open is not restored.
pub(super) fn not_open(database: &str, error: &Error) -> String {
    format!("the database {database} cannot be opened: {}", said(error))
}

/// All rows as text; nothing where the budget ends before.
pub(super) async fn ask(
    client: &Client,
    budget: &Budget,
    sql: &str,
) -> Result<Option<Vec<Vec<Option<String>>>>> {
    let left = budget.left().as_millis();
    // 0 would be no limit at all.
    if left == 0 {
        return Ok(None);
    }
    client
        .execute(&format!("SET statement_timeout = {left}"))
        .await?;
    match client.query_rows(sql).await {
        Ok(rows) => Ok(Some(rows)),
        // The instance speaks English whatever the source did: lc_messages is ours.
        Err(error) if said(&error).contains("due to statement timeout") => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the server said, without our words around it, which quote the whole statement.
pub(super) fn said(error: &Error) -> String {
    let mut deepest = std::error::Error::source(error);
    while let Some(next) = deepest.and_then(std::error::Error::source) {
        deepest = Some(next);
    }
    deepest.map_or_else(|| error.one_line(), ToString::to_string)
}
