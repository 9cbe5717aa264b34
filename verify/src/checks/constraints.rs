//! What the catalogs promise about rows: foreign keys, each held against the rows once more; and
//! what they say themselves that they do not promise.

use std::time::Instant;

use seawall::error::Result;

use super::session;
use super::{Check, Findings, Outcome, names};
use crate::budget::Budget;
use crate::instance::Instance;

const NAME: &str = "foreign keys";

/// Rows that are counted before it is just "many".
const COUNTED: u64 = 1000;

#[derive(Debug, Default)]
struct Seen {
    keys: usize,
    checked: usize,
    broken: Vec<String>,
    unread: Vec<String>,
    not_promised: Vec<String>,
}

/// Every foreign key that PostgreSQL takes for valid, the smallest tables first, until the budget
/// ends. Indexes and constraints that it does not take for valid are named in a warning: they are
/// so on the source, and no recovery makes them better.
pub(super) async fn validate(instance: &Instance, budget: Budget, findings: &mut Findings) {
    let started = Instant::now();
    let mut seen = Seen::default();
    if let Err(error) = look(instance, &budget, &mut seen).await {
        findings
            .checks
            .push(Check::failed(NAME, session::said(&error)).took(started));
        return;
    }
    if !seen.not_promised.is_empty() {
        findings.warnings.push(format!(
            "not valid, as on the source: {}",
            names(&seen.not_promised)
        ));
    }
    findings.checks.push(seen.judge(&budget).took(started));
}

async fn look(instance: &Instance, budget: &Budget, seen: &mut Seen) -> Result<()> {
    for database in session::databases(instance).await?.open {
        let client = match session::open(instance, &database).await {
            Ok(client) => client,
            Err(error) => {
                seen.unread.push(session::not_open(&database, &error));
                continue;
            }
        };
        for row in client.query_rows(NOT_VALID).await? {
            let what = row.into_iter().flatten().collect::<Vec<_>>().join(" ");
            seen.not_promised.push(format!("{what} in {database}"));
        }
        for row in client.query_rows(&foreign_keys(client.major())).await? {
            let [Some(name), Some(question)] = &row[..] else {
                continue;
            };
            seen.keys += 1;
            let name = format!("{name} in {database}");
            match session::ask(&client, budget, question).await {
                Ok(None) => {}
                Ok(Some(rows)) => {
                    seen.checked += 1;
                    let rows = rows.first().and_then(|row| row.first()?.as_deref());
                    match rows {
                        Some("0") => {}
                        rows => seen
                            .broken
                            .push(format!("{name} ({})", how_many(rows.unwrap_or_default()))),
                    }
                }
                Err(error) => seen
                    .unread
                    .push(format!("{name}: {}", session::said(&error))),
            }
        }
    }
    Ok(())
}

fn how_many(rows: &str) -> String {
    match rows.parse() {
        Ok(1) => "1 row without the row that it refers to".to_owned(),
        Ok(COUNTED..) => {
            format!("{COUNTED} rows or more without the rows that they refer to")
        }
        _ => format!("{rows} rows without the rows that they refer to"),
    }
}

impl Seen {
    fn judge(&self, budget: &Budget) -> Check {
        let Self { keys, checked, .. } = self;
        if !self.broken.is_empty() || !self.unread.is_empty() {
            let mut why = self.broken.clone();
            why.extend(self.unread.iter().cloned());
            return Check::failed(
                NAME,
                format!(
                    "{} of {checked} that were checked do not hold: {}",
                    why.len(),
                    names(&why)
                ),
            )
            .proving();
        }
        if *keys == 0 {
            return Check::not_tested(NAME, "there are none");
        }
        if *checked == 0 {
            return Check::not_tested(NAME, format!("none of {keys} was checked within {budget}"));
        }
        let left = match keys - checked {
            0 => String::new(),
            left => format!("; {left} not, for lack of time ({budget})"),
        };
        let detail = format!("{checked} of {keys} checked anew against every row{left}");
        Check::new(NAME, Outcome::Passed, detail).proving()
    }
}

/// Indexes that are not used for queries, and constraints that old rows may break.
const NOT_VALID: &str = "
    SELECT 'index', format('%I.%I', n.nspname, c.relname)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE NOT i.indisvalid
    UNION ALL
    SELECT 'constraint', format('%I of %I.%I', con.conname, n.nspname, c.relname)
    FROM pg_constraint con JOIN pg_class c ON c.oid = con.conrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE NOT con.convalidated AND con.conparentid = 0
    ORDER BY 1, 2";

/// Each foreign key's name, and the statement that counts the rows which break it.
///
/// The statement is what PostgreSQL runs itself where a key is added (PostgreSQL 18,
/// ri_triggers.c, `RI_Initial_Check`): by the key's own operators, over the partitioned table as a
/// whole and otherwise without the tables that inherit.
fn foreign_keys(major: u32) -> String {
    // 18 has keys over periods, which want more than a row that is equal, and keys that nobody
    // enforces.
    let plain = match major {
        ..18 => "",
        _ => "AND con.conenforced AND NOT con.conperiod",
    };
    format!(
        "
    SELECT format('%I of %I.%I', con.conname, n.nspname, c.relname),
        format('SELECT count(*) FROM (SELECT FROM %s%I.%I fk WHERE (%s)'
            ' AND NOT EXISTS (SELECT FROM %s%I.%I pk WHERE %s) LIMIT {COUNTED}) broken',
            CASE c.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END, n.nspname, c.relname, k.present,
            CASE p.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END, pn.nspname, p.relname, k.joined)
    FROM pg_constraint con
    JOIN pg_class c ON c.oid = con.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_class p ON p.oid = con.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace
    CROSS JOIN LATERAL (
        SELECT
            string_agg(format('pk.%I OPERATOR(%I.%s) fk.%I%s', pa.attname, opn.nspname, op.oprname,
                fa.attname, CASE WHEN pa.attcollation <> fa.attcollation AND pa.attcollation <> 0
                    THEN format(' COLLATE %I.%I', cn.nspname, co.collname) ELSE '' END), ' AND ')
                AS joined,
            string_agg(format('fk.%I IS NOT NULL', fa.attname),
                CASE con.confmatchtype WHEN 'f' THEN ' OR ' ELSE ' AND ' END) AS present
        FROM unnest(con.conkey, con.confkey, con.conpfeqop) AS part (fk, pk, operator)
        JOIN pg_attribute fa ON fa.attrelid = con.conrelid AND fa.attnum = part.fk
        JOIN pg_attribute pa ON pa.attrelid = con.confrelid AND pa.attnum = part.pk
        JOIN pg_operator op ON op.oid = part.operator
        JOIN pg_namespace opn ON opn.oid = op.oprnamespace
        LEFT JOIN pg_collation co ON co.oid = pa.attcollation
        LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
    ) k
    WHERE con.contype = 'f' AND con.convalidated AND con.conparentid = 0 {plain}
    ORDER BY c.relpages::bigint + p.relpages, 1"
    )
}
