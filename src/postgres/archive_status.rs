//! `pg_wal/archive_status`: which WAL files wait for the archive_command, and whether the
//! server still runs.
//!
//! PostgreSQL makes `NAME.ready` when a file may be archived and renames it to `NAME.done` once
//! archive_command has returned 0 (PostgreSQL 18, xlogarchive.c, pgarch.c).

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// What waits to be archived in one data directory.
#[derive(Debug, Clone)]
pub struct ArchiveStatus {
    data_directory: PathBuf,
}

impl ArchiveStatus {
    /// Of the server with this data directory.
    pub fn of(data_directory: &Path) -> Self {
        Self {
            data_directory: data_directory.to_owned(),
        }
    }

    /// The data directory.
    pub fn data_directory(&self) -> &Path {
        &self.data_directory
    }

    /// `pg_wal`.
    pub fn pg_wal(&self) -> PathBuf {
        self.data_directory.join("pg_wal")
    }

    /// Whether PostgreSQL waits for this file to be archived.
    pub fn is_ready(&self, name: impl Display) -> bool {
        let status = format!("pg_wal/archive_status/{name}.ready");
        self.data_directory.join(status).exists()
    }

    /// The process id of the postmaster, from the first line of postmaster.pid. None where no
    /// server runs.
    pub fn postmaster(&self) -> Option<u32> {
        let text = std::fs::read_to_string(self.data_directory.join("postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ready_and_who_serves_is_read_from_the_data_directory() {
        let data = tempfile::tempdir().unwrap();
        let status = ArchiveStatus::of(data.path());
        assert_eq!(status.postmaster(), None);
        assert!(!status.is_ready("000000010000000000000001"));
        let directory = data.path().join("pg_wal/archive_status");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::File::create(directory.join("000000010000000000000001.ready")).unwrap();
        crate::durable::write_file(
            &data.path().join("postmaster.pid"),
            b"4711\n/data\n1790000000\n",
            0o600,
        )
        .unwrap();
        assert!(status.is_ready("000000010000000000000001"));
        assert!(!status.is_ready("000000010000000000000002"));
        assert_eq!(status.postmaster(), Some(4711));
    }
}
