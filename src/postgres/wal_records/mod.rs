//! Reading the few WAL records that say something about a recovery's targets: ends of
//! transactions, prepared ones included, which of them were under way, restore points; and which tablespaces are created
//! (where replay would write outside the data directory). PostgreSQL 14 to 18.
//!
//! [`WalReader`] walks over the pages of consecutive segments in bounded memory and hands out
//! a [`WalRecord`] for each of these; all others it passes over. Like replay and pg_waldump it
//! ends where no valid record follows. It does not know where segments are kept.

mod content;
mod reader;

use std::io::Read;
use std::path::PathBuf;

use jiff::Timestamp;

use super::{FormatError, Lsn};

pub use reader::{WalReadError, WalReader};

/// A record that says something about targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalRecord {
    /// Where it begins, as pg_waldump's `lsn` and `recovery_target_lsn` count.
    pub start: Lsn,
    /// Just past it, aligned to eight bytes: what `pg_create_restore_point` returns.
    pub end: Lsn,
    /// What it says.
    pub content: Content,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// About a transaction.
    Transaction(Transaction),
    /// A named moment. A name that is not UTF-8 has replacement characters in it.
    RestorePoint {
        /// The name.
        name: String,
        /// The server's clock.
        time: Timestamp,
    },
    /// What was under way: written by every checkpoint, and every 15 seconds of work.
    Running {
        /// The oldest transaction that had not ended, prepared ones included, or the next one.
        /// Records that end an older one lie before this.
        oldest: u32,
    },
    /// A tablespace outside the data directory.
    Tablespace(CreatedTablespace),
    /// What `pg_logical_emit_message` wrote, with a prefix and text of UTF-8.
    Message {
        /// The prefix.
        prefix: String,
        /// The text.
        text: String,
    },
}

/// The end of a transaction, or its preparation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transaction {
    /// What happened to it.
    pub action: Action,
    /// The id by which `recovery_target_xid` knows it: of the top transaction, and of the
    /// prepared one where that is ended. None only for a prepared transaction with so many
    /// subtransactions or files that its record exceeds 4 MiB.
    pub xid: Option<u32>,
    /// The server's clock.
    pub time: Timestamp,
}

/// What happens to a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is committed.
    Commit,
    /// It is rolled back.
    Abort,
    /// It is prepared, and not ended by this.
    Prepare,
    /// It was prepared, and is committed.
    CommitPrepared,
    /// It was prepared, and is rolled back.
    AbortPrepared,
}

/// The end of a transaction, committed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionEnd {
    /// The server's clock.
    pub time: Timestamp,
    /// Where its record begins.
    pub lsn: Lsn,
}

/// A tablespace that a record creates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedTablespace {
    /// Its oid.
    pub oid: u32,
    /// Where replay would create it. Unknown where the record goes on in the next segment.
    pub path: Option<PathBuf>,
}

impl WalRecord {
    /// The transaction that this record ends; a recovery to a time or to a transaction can
    /// stop here.
    pub fn transaction_end(&self) -> Option<Transaction> {
        match self.content {
            Content::Transaction(transaction) if transaction.action != Action::Prepare => {
                Some(transaction)
            }
            _ => None,
        }
    }
}

/// The tablespaces that records which begin in this segment create outside the data directory.
pub fn created_tablespaces(
    segment: impl Read,
) -> std::io::Result<Result<Vec<CreatedTablespace>, FormatError>> {
    let mut tablespaces = Vec::new();
    let mut reader = WalReader::new();
    let read = reader.read(segment, |record| {
        if let Content::Tablespace(tablespace) = record.content {
            tablespaces.push(tablespace);
        }
    });
    match read {
        Ok(_) => {}
        Err(WalReadError::Io(error)) => return Err(error),
        Err(WalReadError::Format(error)) => return Ok(Err(error)),
    }
    // A record that is not complete here is not looked at again with its rest.
    tablespaces.extend(reader.unfinished_tablespace());
    Ok(Ok(tablespaces))
}

/// The latest end of a transaction, by the server's clock, among what was read.
#[derive(Debug, Clone, Copy, Default)]
pub struct LatestEnd(pub Option<TransactionEnd>);

impl LatestEnd {
    /// Looks at the next record.
    pub fn see(&mut self, record: &WalRecord) {
        let Some(Transaction { time, .. }) = record.transaction_end() else {
            return;
        };
        if self.0.is_none_or(|latest| latest.time <= time) {
            let lsn = record.start;
            self.0 = Some(TransactionEnd { time, lsn });
        }
    }
}

#[cfg(test)]
mod tests;
