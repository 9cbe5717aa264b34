//! What the copy brought along from the source that a migration must not meet unprepared:
//! subscriptions, which have slots at their publishers, and prepared transactions, which hold
//! locks.

use seawall::error::Result;

use crate::instance::Instance;

/// Takes from every subscription of the copy what leads to its publisher: it is disabled, and
/// has no slot, so that nothing that the migration does can drop or move the source's.
///
/// # Errors
/// A database that has one cannot be opened, or the server refuses.
pub(super) async fn detach_subscriptions(instance: &Instance) -> Result<Vec<String>> {
    let client = instance.connect("postgres").await?;
    let sql = "SELECT d.datname, pg_catalog.quote_ident(s.subname) \
               FROM pg_catalog.pg_subscription s \
               JOIN pg_catalog.pg_database d ON d.oid = s.subdbid ORDER BY 1, 2";
    let mut warnings = Vec::new();
    for row in client.query_rows(sql).await? {
        let [Some(database), Some(name)] = &row[..] else {
            continue;
        };
        let there = instance.connect(database).await?;
        there
            .execute(&format!(
                "ALTER SUBSCRIPTION {name} DISABLE; \
                 ALTER SUBSCRIPTION {name} SET (slot_name = NONE)"
            ))
            .await?;
        warnings.push(format!(
            "the subscription {name} of database {database} was disabled and detached from its slot on the copy, before the migration"
        ));
    }
    Ok(warnings)
}

/// Names the prepared transactions of the copy.
pub(super) async fn prepared_transactions(instance: &Instance) -> Result<Vec<String>> {
    let client = instance.connect("postgres").await?;
    let sql = "SELECT gid, database, owner, prepared FROM pg_catalog.pg_prepared_xacts ORDER BY 4";
    let rows = client.query_rows(sql).await?;
    let named = rows.into_iter().filter_map(|row| {
        let [gid, database, owner, prepared] = <[Option<String>; 4]>::try_from(row).ok()?;
        Some(format!(
            "the prepared transaction '{}' of {} in database {}, from {}, holds its locks on the copy, too: the migration may have to wait for it",
            gid?, owner?, database?, prepared?
        ))
    });
    Ok(named.collect())
}
