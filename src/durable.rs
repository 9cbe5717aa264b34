//! Files that must survive a crash: every rename and every whole-file write of the programs
//! goes through here, and clippy forbids the raw calls elsewhere.
//!
//! Objects of a repository are not written here: that is `storage`'s work.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Makes the names in `directory` durable.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Makes a file's content and then its name durable.
pub fn sync_file_and_name(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    sync_directory(parent(path))
}

/// Creates or replaces `path` with `content`, with exactly `mode`.
///
/// After `Ok` content and name are durable. A reader sees the old file or the new one, never
/// a part; a crash leaves at worst a `….seawall-tmp` file beside it, which the next call
/// replaces.
pub fn write_file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = temporary_beside(path);
    let written = (|| {
        // A leftover of a killed run may have another owner or mode: start anew.
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        // The umask took its part of the mode given to open.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        publish(&temporary, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Renames `from` to `to` and makes the new name durable. The content must already be.
#[allow(clippy::disallowed_methods)] // The one place that may.
pub fn publish(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)?;
    sync_directory(parent(to))
}

/// Renames without any fsync, for files whose reader makes them durable itself: PostgreSQL
/// does so with each segment a restore_command delivered (`durable_rename` in
/// PostgreSQL 18, xlogarchive.c, KeepFileRestoredFromArchive).
#[allow(clippy::disallowed_methods)]
pub fn rename_without_sync(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)
}

/// The name under which [`write_file`] prepares `path`.
pub fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".seawall-tmp");
    path.with_file_name(name)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_written_file_has_its_content_and_exactly_its_mode_and_no_leftover() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("postgresql.auto.conf");
        write_file(&path, b"one", 0o640).unwrap();
        write_file(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        std::fs::create_dir(&path).unwrap();
        assert!(write_file(&path, b"one", 0o600).is_err());
        assert!(path.is_dir());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
