//! What some repositories lack because an archived file was acknowledged without them
//! (`archive_ack`): one empty file for each in `pg_wal/seawall/missing/REPOSITORY/`.
//!
//! It makes repairing cheap, and proves nothing: whoever wants to know compares the listings
//! of the repositories, as `seawall check` does.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::postgres::WalFileName;

/// A repository whose repair has failed is left in peace for so long.
const PAUSE: Duration = Duration::from_secs(20);

/// Marks when a repair was last tried.
const TRIED: &str = "tried";

/// What the repositories of one data directory lack.
#[derive(Debug, Clone)]
pub struct Missing {
    directory: PathBuf,
}

impl Missing {
    /// Of the data directory that this `pg_wal` belongs to. Touches nothing.
    pub fn beside(pg_wal: &Path) -> Self {
        Self {
            directory: pg_wal.join("seawall").join("missing"),
        }
    }

    /// Notes that `repository` lacks `name`.
    pub fn note(&self, repository: &str, name: WalFileName) -> io::Result<()> {
        let directory = self.directory.join(repository);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&directory)?;
        touch(&directory.join(name.to_string()))
    }

    /// The repositories that lack anything.
    pub fn repositories(&self) -> BTreeSet<String> {
        let names = |directory: &Path| {
            let entries = std::fs::read_dir(directory).into_iter().flatten();
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        };
        names(&self.directory)
            .filter(|name| !self.of(name).is_empty())
            .collect()
    }

    /// What `repository` lacks, oldest first, `.history` files before all.
    pub fn of(&self, repository: &str) -> BTreeSet<WalFileName> {
        let entries = std::fs::read_dir(self.directory.join(repository));
        entries
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect()
    }

    /// Notes that `repository` holds `name` now.
    pub fn repaired(&self, repository: &str, name: WalFileName) {
        let directory = self.directory.join(repository);
        let _ = std::fs::remove_file(directory.join(name.to_string()));
        // Goes only if it is empty but for the mark.
        if self.of(repository).is_empty() {
            let _ = std::fs::remove_file(directory.join(TRIED));
            let _ = std::fs::remove_dir(&directory);
            let _ = std::fs::remove_dir(&self.directory);
        }
    }

    /// Notes that a repair of `repository` has failed just now.
    pub fn failed(&self, repository: &str) {
        let _ = touch(&self.directory.join(repository).join(TRIED));
    }

    /// The repositories whose repair may be tried now.
    pub fn due(&self) -> Vec<String> {
        let rested = |name: &String| {
            let tried = std::fs::metadata(self.directory.join(name).join(TRIED));
            let tried = tried.and_then(|metadata| metadata.modified());
            tried.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < PAUSE))
        };
        let repositories = self.repositories().into_iter();
        repositories.filter(|name| !rested(name)).collect()
    }
}

/// Creates the file, or gives it the present time.
fn touch(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    options
        .open(path)?
        .set_modified(std::time::SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_found_until_it_is_repaired_and_nothing_is_left() {
        let pg_wal = tempfile::tempdir().unwrap();
        let missing = Missing::beside(pg_wal.path());
        assert!(missing.repositories().is_empty());
        let names: Vec<WalFileName> = ["000000010000000000000009", "00000002.history"]
            .map(|name| name.parse().unwrap())
            .into();
        for name in &names {
            missing.note("far", *name).unwrap();
        }
        assert_eq!(missing.due(), ["far"]);
        missing.failed("far");
        assert!(missing.due().is_empty());
        assert_eq!(missing.of("far").len(), 2);
        assert_eq!(missing.repositories(), BTreeSet::from(["far".to_owned()]));
        names.iter().for_each(|name| missing.repaired("far", *name));
        assert!(missing.repositories().is_empty());
        assert!(!pg_wal.path().join("seawall/missing").exists());
    }
}
