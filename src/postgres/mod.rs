//! All knowledge of PostgreSQL: its numbers, names, files and wire. Nothing outside this
//! module knows a catalog version, an offset or a file name pattern of PostgreSQL.
//!
//! It does not know object stores or the repository's layout.

pub mod archive_status;
pub mod checksum;
pub mod connection;
pub mod control;
pub mod data_directory;
pub mod history;
pub mod incremental;
pub mod label;
pub mod layout;
pub mod libraries;
pub mod lsn;
pub mod manifest;
pub mod page;
pub mod primary;
pub mod programs;
pub mod recovery;
pub mod replication;
pub mod sql;
#[cfg(test)]
pub(crate) mod testing;
pub mod wal_chain;
pub mod wal_file;
pub mod wal_page;
pub mod wal_records;
pub mod wal_summary;

pub use lsn::{Lsn, SegmentSize, SystemId, TimelineId};
pub use wal_file::{SegmentName, WalFileName};

/// Something that should be in one of PostgreSQL's formats and is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct FormatError {
    /// What was being read: `"LSN"`, `"pg_control"`, `"backup_label"`.
    pub what: &'static str,
    /// What is wrong with it, with the value that was found.
    pub why: String,
}

impl FormatError {
    /// An error about `what`.
    pub fn new(what: &'static str, why: impl Into<String>) -> Self {
        Self {
            what,
            why: why.into(),
        }
    }
}

impl From<FormatError> for crate::error::Error {
    fn from(error: FormatError) -> Self {
        Self::failed(error.to_string())
    }
}
