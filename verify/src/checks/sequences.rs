//! Sequences against the columns that they fill: a sequence that lies behind hands out values
//! that are in use. That is a warning, and fails no drill: an application may choose the values
//! itself, and then the sequence lies behind on the source as well.

use std::time::Instant;

use seawall::error::Result;

use super::session;
use super::{Check, Findings, Outcome, names};
use crate::budget::Budget;
use crate::instance::Instance;

const NAME: &str = "sequences";

/// A table without a fitting index is read whole up to this size, in bytes.
const READ_WHOLE: u64 = 1 << 30;

#[derive(Debug, Default)]
struct Seen {
    sequences: usize,
    checked: usize,
    too_large: usize,
    behind: Vec<String>,
    unread: Vec<String>,
}

/// Every sequence of a serial or identity column whose values are integers.
pub(super) async fn compare(instance: &Instance, budget: Budget, findings: &mut Findings) {
    let started = Instant::now();
    let mut seen = Seen::default();
    let check = match look(instance, &budget, &mut seen).await {
        Ok(()) => seen.judge(&budget),
        Err(error) => Check::failed(NAME, session::said(&error)),
    };
    if !seen.behind.is_empty() {
        findings.warnings.push(format!(
            "a sequence is about to hand out a value that is in use: {}",
            names(&seen.behind)
        ));
    }
    findings.checks.push(check.took(started));
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
        for row in client.query_rows(OWNED).await? {
            let [Some(name), Some(column), indexed, size, Some(question)] = &row[..] else {
                continue;
            };
            seen.sequences += 1;
            let size = size.as_deref().and_then(|size| size.parse().ok());
            if indexed.as_deref() != Some("t") && size > Some(READ_WHOLE) {
                seen.too_large += 1;
                continue;
            }
            let name = format!("{name} in {database}");
            match session::ask(&client, budget, question).await {
                Ok(None) => {}
                Ok(Some(rows)) => {
                    seen.checked += 1;
                    if let Some([Some(last), Some(edge), Some(behind)]) =
                        rows.first().map(|r| &r[..])
                        && behind == "t"
                    {
                        seen.behind
                            .push(format!("{name} is at {last}, and {column} has {edge}"));
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

impl Seen {
    fn judge(&self, budget: &Budget) -> Check {
        let Self {
            sequences, checked, ..
        } = self;
        if !self.unread.is_empty() {
            return Check::failed(NAME, names(&self.unread));
        }
        let mut left = String::new();
        if self.too_large > 0 {
            left += &format!(
                "; {} not, since a table of more than 1 GiB has no index for it",
                self.too_large
            );
        }
        match sequences - checked - self.too_large {
            0 => {}
            late => left += &format!("; {late} not, for lack of time ({budget})"),
        }
        if !self.behind.is_empty() {
            return Check::not_tested(
                NAME,
                format!(
                    "{} of {checked} are behind their columns, which may be so on the source, where rows come with values of their own: {}{left}",
                    self.behind.len(),
                    names(&self.behind)
                ),
            );
        }
        match (*sequences, *checked) {
            (0, _) => Check::not_tested(NAME, "no column takes its values from one"),
            (all, 0) => Check::not_tested(NAME, format!("none of {all} was compared{left}")),
            (all, some) => Check::new(
                NAME,
                Outcome::Passed,
                format!("{some} of {all} are not behind their columns{left}"),
            ),
        }
    }
}

/// Each sequence, its column, whether an index begins with that, the size of the table, and the
/// question: its last value, the column's extreme in the direction that it counts in, and whether
/// that lies beyond. One that was never used is to hand out its last value next.
///
/// A sequence that begins anew at its end may lie anywhere, and is left out. So is that of a table
/// which a subscription fills: its rows come with the publisher's values.
const OWNED: &str = "
    SELECT format('%I.%I', sn.nspname, s.relname),
        format('%I.%I.%I', tn.nspname, t.relname, a.attname),
        EXISTS (SELECT FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid
            JOIN pg_am am ON am.oid = ic.relam
            WHERE i.indrelid = t.oid AND i.indisvalid AND i.indpred IS NULL
            AND i.indkey[0] = a.attnum AND am.amname = 'btree'),
        pg_relation_size(t.oid),
        format('SELECT s.last_value, v.edge, coalesce(v.edge %s s.last_value'
            ' OR NOT s.is_called AND v.edge = s.last_value, false)'
            ' FROM (SELECT %s(%I) AS edge FROM %I.%I) v, %I.%I s',
            CASE WHEN q.seqincrement > 0 THEN '>' ELSE '<' END,
            CASE WHEN q.seqincrement > 0 THEN 'max' ELSE 'min' END,
            a.attname, tn.nspname, t.relname, sn.nspname, s.relname)
    FROM pg_sequence q
    JOIN pg_class s ON s.oid = q.seqrelid JOIN pg_namespace sn ON sn.oid = s.relnamespace
    JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = s.oid AND d.objsubid = 0
        AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
    JOIN pg_class t ON t.oid = d.refobjid JOIN pg_namespace tn ON tn.oid = t.relnamespace
    JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
    WHERE NOT q.seqcycle
        AND NOT EXISTS (SELECT FROM pg_subscription_rel sr WHERE sr.srrelid = t.oid)
        AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
        AND (d.deptype = 'i' OR EXISTS (SELECT FROM pg_attrdef ad JOIN pg_depend dd
            ON dd.classid = 'pg_attrdef'::regclass AND dd.objid = ad.oid
            WHERE ad.adrelid = t.oid AND ad.adnum = a.attnum
            AND dd.refclassid = 'pg_class'::regclass AND dd.refobjid = s.oid))
    ORDER BY pg_relation_size(t.oid), 1";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_sequence_that_is_behind_is_told_and_fails_nothing() {
        let budget = Budget::new(Duration::ZERO);
        let mut seen = Seen {
            sequences: 2,
            checked: 2,
            ..Seen::default()
        };
        assert_eq!(seen.judge(&budget).outcome, Outcome::Passed);
        seen.behind.push("public.s in db is at 1".to_owned());
        let told = seen.judge(&budget);
        assert_eq!(told.outcome, Outcome::NotTested);
        assert!(told.detail.starts_with("1 of 2 are behind"), "{told:?}");
        seen.unread.push("public.x in db: gone".to_owned());
        assert_eq!(seen.judge(&budget).outcome, Outcome::Failed);
    }
}
