//! What some repositories lack because an archived file was acknowledged without them
//! (`archive_ack`): one empty file for each in `pg_wal/seawall/missing/REPOSITORY/`.
//!
//! It makes repairing cheap, and proves nothing: whoever wants to know compares the listings
//! of the repositories, as `seawall check` does.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::postgres::WalFileName;

/// A repository whose repair has failed is left in peace for so long.
const PAUSE: Duration = Duration::from_secs(20);

/// Says why the last repair failed, and when.
const FAILED: &str = "failed";

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
        let note = || {
            std::fs::DirBuilder::new()
                .mode(0o700)
                .recursive(true)
                .create(&directory)?;
            write(&directory.join(name.to_string()), b"")
        };
        match note() {
            // Whoever repairs has just removed the directory, since it was empty.
            Err(error) if error.kind() == io::ErrorKind::NotFound => note(),
            other => other,
        }
    }

    /// Those of `repositories` that lack anything.
    pub fn lacking<'a>(
        &self,
        repositories: impl IntoIterator<Item = &'a str>,
    ) -> impl Iterator<Item = &'a str> {
        repositories
            .into_iter()
            .filter(|repository| self.of(repository).next().is_some())
    }

    /// Those of `repositories` that lack anything, and whose repair may be tried now.
    pub fn due<'a>(
        &self,
        repositories: impl IntoIterator<Item = &'a str>,
    ) -> impl Iterator<Item = &'a str> {
        let rests = |name: &str| {
            let failed = std::fs::metadata(self.directory.join(name).join(FAILED));
            let failed = failed.and_then(|metadata| metadata.modified());
            failed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < PAUSE))
        };
        self.lacking(repositories.into_iter().filter(move |name| !rests(name)))
    }

    /// What `repository` lacks, in no order.
    pub fn of(&self, repository: &str) -> impl Iterator<Item = WalFileName> {
        let entries = std::fs::read_dir(self.directory.join(repository));
        let entries = entries.into_iter().flatten();
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
    }

    /// Notes that `repository` holds `name` now.
    pub fn repaired(&self, repository: &str, name: WalFileName) {
        let _ = std::fs::remove_file(self.directory.join(repository).join(name.to_string()));
    }

    /// Notes that a repair of `repository` has ended, and why it brought less than everything.
    pub fn ended(&self, repository: &str, trouble: Option<&str>) {
        let directory = self.directory.join(repository);
        match trouble {
            Some(trouble) => {
                let _ = write(&directory.join(FAILED), trouble.as_bytes());
            }
            None => {
                let _ = std::fs::remove_file(directory.join(FAILED));
                // They go only if they are empty.
                let _ = std::fs::remove_dir(&directory);
                let _ = std::fs::remove_dir(&self.directory);
            }
        }
    }

    /// Why the last repair of `repository` brought less than everything.
    pub fn trouble(&self, repository: &str) -> Option<String> {
        std::fs::read_to_string(self.directory.join(repository).join(FAILED)).ok()
    }
}

/// Creates the file with this content, or gives it this content and the present time.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)?.write_all(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_found_until_it_is_repaired_and_nothing_is_left() {
        let pg_wal = tempfile::tempdir().unwrap();
        let missing = Missing::beside(pg_wal.path());
        let due = || missing.due(["near", "far"]).collect::<Vec<_>>();
        assert!(due().is_empty());
        let names: Vec<WalFileName> = ["000000010000000000000009", "00000002.history"]
            .map(|name| name.parse().unwrap())
            .into();
        for name in &names {
            missing.note("far", *name).unwrap();
        }
        assert_eq!(due(), ["far"]);
        missing.ended("far", Some("nobody answers"));
        assert!(due().is_empty());
        assert_eq!(missing.trouble("far").as_deref(), Some("nobody answers"));
        assert_eq!(missing.of("far").count(), 2);
        assert_eq!(
            missing.lacking(["near", "far"]).collect::<Vec<_>>(),
            ["far"]
        );
        // One that is not configured any more concerns nobody.
        assert_eq!(missing.lacking(["near"]).count(), 0);
        names.iter().for_each(|name| missing.repaired("far", *name));
        missing.ended("far", None);
        assert!(!pg_wal.path().join("seawall/missing").exists());
    }
}
