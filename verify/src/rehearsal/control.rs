//! What a statement does to the transaction block that it stands in, known by its first words.

/// A statement that opens or ends a transaction block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Control {
    /// There is a new block afterwards.
    Opens,
    /// There is none.
    Ends,
}

impl Control {
    pub(super) fn of(words: &[String]) -> Option<Self> {
        match *as_strs(words) {
            ["BEGIN", ..] | ["START", "TRANSACTION", ..] => Some(Self::Opens),
            ["ROLLBACK", "TO", ..]
            | ["ROLLBACK", "WORK" | "TRANSACTION", "TO", ..]
            | ["COMMIT" | "ROLLBACK", "PREPARED", ..] => None,
            ["COMMIT" | "END" | "ROLLBACK" | "ABORT", "AND", "CHAIN", ..]
            | [
                "COMMIT" | "END" | "ROLLBACK" | "ABORT",
                "WORK" | "TRANSACTION",
                "AND",
                "CHAIN",
                ..,
            ] => Some(Self::Opens),
            ["COMMIT" | "END" | "ROLLBACK" | "ABORT", ..] => Some(Self::Ends),
            ["PREPARE", "TRANSACTION", ..] => Some(Self::Ends),
            _ => None,
        }
    }
}

/// Whether a statement means something else in a block than without one, so that it gets none
/// of its own: there it works or lasts, and psql would see an error or a warning.
pub(super) fn depends_on_block(words: &[String]) -> bool {
    matches!(
        *as_strs(words),
        ["LOCK" | "SAVEPOINT" | "RELEASE" | "DECLARE", ..]
            | ["ROLLBACK", "TO", ..]
            | ["ROLLBACK", "WORK" | "TRANSACTION", "TO", ..]
            | ["SET", "LOCAL" | "TRANSACTION" | "CONSTRAINTS", ..]
    )
}

/// Whether a statement leaves its transaction without a snapshot if it had none: SET
/// TRANSACTION may follow it, but follows no question of ours (PostgreSQL 18, pquery.c,
/// `PlannedStmtRequiresSnapshot`).
pub(super) fn needs_no_snapshot(words: &[String]) -> bool {
    matches!(
        *as_strs(words),
        [
            "SAVEPOINT"
                | "RELEASE"
                | "ROLLBACK"
                | "LOCK"
                | "SET"
                | "RESET"
                | "SHOW"
                | "FETCH"
                | "MOVE"
                | "LISTEN"
                | "NOTIFY"
                | "UNLISTEN"
                | "CHECKPOINT"
                | "DISCARD"
                | "DEALLOCATE"
                | "CLOSE"
                | "PREPARE",
            ..
        ]
    )
}

/// Whether relations have, for others or for all, the files again that they had before.
pub(super) fn takes_back(words: &[String]) -> bool {
    match *as_strs(words) {
        ["ROLLBACK", "PREPARED", ..] => false,
        ["ROLLBACK" | "ABORT", ..] | ["PREPARE", "TRANSACTION", ..] => true,
        _ => false,
    }
}

fn as_strs(words: &[String]) -> Box<[&str]> {
    words.iter().map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::super::scanner::first_words;
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
            ("COMMIT WORK AND NO CHAIN", Some(Control::Ends)),
            ("commit and chain", Some(Control::Opens)),
            ("ROLLBACK TRANSACTION AND CHAIN", Some(Control::Opens)),
            ("END", Some(Control::Ends)),
            ("ROLLBACK", Some(Control::Ends)),
            ("ROLLBACK TO SAVEPOINT a", None),
            ("ROLLBACK WORK TO a", None),
            ("COMMIT PREPARED 'x'", None),
            ("PREPARE TRANSACTION 'x'", Some(Control::Ends)),
            ("ALTER TABLE t ADD x int", None),
        ] {
            assert_eq!(Control::of(&first_words(sql)), wanted, "{sql}");
        }
    }

    #[test]
    fn what_psql_refuses_outside_a_block_gets_none() {
        for (sql, wanted) in [
            ("lock table t", true),
            ("SAVEPOINT a", true),
            ("ROLLBACK TO a", true),
            ("SET LOCAL lock_timeout = '1s'", true),
            ("SET lock_timeout = '1s'", false),
            ("ALTER TABLE t ADD x int", false),
        ] {
            assert_eq!(depends_on_block(&first_words(sql)), wanted, "{sql}");
        }
    }
}
