//! What a migration did to the restored copy.

use seawall::postgres::Lsn;
use serde::Serialize;

/// A rehearsed migration.
#[derive(Debug, Clone, Serialize)]
pub struct Rehearsal {
    /// The file.
    pub file: String,
    /// Its SHA-256.
    pub sha256: String,
    /// The database that it ran in.
    pub database: String,
    /// What was run, in order; it ends at the first statement that failed.
    pub statements: Vec<Statement>,
    /// Statements that were not run, since one before had failed.
    pub not_run: usize,
    /// From the first to the last, in seconds.
    pub seconds: f64,
}

/// One statement.
#[derive(Debug, Clone, Serialize)]
pub struct Statement {
    /// Its line in the file.
    pub line: usize,
    /// Its text; its beginning, where it is long. Without texts where it may hold a password.
    pub sql: String,
    /// How long it ran, in seconds.
    pub seconds: f64,
    /// Why it failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The locks on relations that it held at its end, or was seen to hold while it ran.
    pub locks: Vec<Lock>,
    /// Relations whose files it wrote anew, or made.
    pub rewritten: Vec<Rewritten>,
    /// Where the WAL stood when it began.
    pub from: Lsn,
    /// WAL that was written meanwhile, in bytes.
    pub wal_bytes: u64,
}

/// A lock on a relation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Lock {
    /// `schema.relation`.
    pub relation: String,
    /// PostgreSQL's name of the mode, such as `AccessExclusiveLock`.
    pub mode: String,
    /// What others can't do meanwhile: `reads and writes`, `writes`, or nothing of the two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<String>,
}

/// A relation with new files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rewritten {
    /// `schema.relation`.
    pub relation: String,
    /// Whether it was not there before.
    pub new: bool,
    /// Its size afterwards in bytes, all its forks.
    pub bytes: u64,
}
