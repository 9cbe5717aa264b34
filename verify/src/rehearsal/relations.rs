//! The files of relations: a statement that gives a relation another file has written it anew.

use std::collections::BTreeMap;

use seawall::error::Result;
use seawall::postgres::sql::Client;

use crate::report::Rewritten;

/// The relations of a database that have files, by their oids: `schema.relation` and file.
#[derive(Debug, Default)]
pub(super) struct Relations(BTreeMap<u32, (String, String)>);

impl Relations {
    /// `schema.relation`, if it was there.
    pub(super) fn name(&self, oid: u32) -> Option<&str> {
        self.0.get(&oid).map(|(name, _)| name.as_str())
    }

    /// As the session sees them, in a transaction of its own that is not committed, too.
    pub(super) async fn of(session: &Client) -> Result<Self> {
        let rows = session
            .query_rows(
                "SELECT c.oid, n.nspname || '.' || c.relname, \
                 pg_catalog.pg_relation_filenode(c.oid) \
                 FROM pg_catalog.pg_class c \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind IN ('r', 'i', 'm', 't', 'S') AND c.oid >= 16384 \
                 AND c.relpersistence <> 't'",
            )
            .await?;
        let relation = |row: Vec<Option<String>>| {
            let [oid, name, file] = <[Option<String>; 3]>::try_from(row).ok()?;
            Some((oid?.parse().ok()?, (name?, file?)))
        };
        Ok(Self(rows.into_iter().filter_map(relation).collect()))
    }

    /// Those with other files than `before`, and the new ones, with their sizes.
    pub(super) async fn changed_since(
        &self,
        before: &Self,
        session: &Client,
    ) -> Result<Vec<Rewritten>> {
        let mut changed = Vec::new();
        for (oid, (name, file)) in &self.0 {
            let old = before.0.get(oid);
            if old.is_some_and(|(_, old)| old == file) {
                continue;
            }
            let sql = format!(
                "SELECT pg_catalog.sum(pg_catalog.pg_relation_size({oid}, fork)) \
                 FROM pg_catalog.unnest(ARRAY['main', 'fsm', 'vm', 'init']) fork"
            );
            let bytes = session.query_text(&sql).await?;
            changed.push(Rewritten {
                relation: name.clone(),
                new: old.is_none(),
                bytes: bytes.and_then(|bytes| bytes.parse().ok()).unwrap_or(0),
            });
        }
        Ok(changed)
    }
}
