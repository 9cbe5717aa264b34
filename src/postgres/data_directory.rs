//! What a data directory tells of its server without asking it: whether it runs, and whether a
//! WAL file waits for the archive_command.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use super::archive_status;

/// A data directory.
#[derive(Debug, Clone)]
pub struct DataDirectory {
    path: PathBuf,
}

impl DataDirectory {
    /// The one that lies there.
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `pg_wal`.
    pub fn pg_wal(&self) -> PathBuf {
        self.path.join("pg_wal")
    }

    /// Whether PostgreSQL waits for this file to be archived.
    pub fn is_ready(&self, name: impl Display) -> bool {
        let directory = archive_status::directory(&self.path);
        directory.join(format!("{name}.ready")).exists()
    }

    /// The process id of the postmaster, from the first line of postmaster.pid. None where no
    /// server runs.
    pub fn postmaster(&self) -> Option<u32> {
        let text = std::fs::read_to_string(self.path.join("postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    /// Whether a server recovers here from an archive, a standby included: one of the files that
    /// ask for it is there, and so is the server's process.
    pub fn is_recovering(&self) -> bool {
        let asked = ["recovery.signal", "standby.signal"]
            .iter()
            .any(|signal| self.path.join(signal).exists());
        asked
            && self.postmaster().is_some_and(|postmaster| {
                let process = nix::unistd::Pid::from_raw(postmaster as i32);
                nix::sys::signal::kill(process, None) != Err(nix::errno::Errno::ESRCH)
            })
    }

    /// Whether a process that outlives the command that started it would become the
    /// postmaster's own child: in a container whose first process the postmaster is. It takes
    /// the violent death of any child for a crash, and restarts the whole server (PostgreSQL 17,
    /// postmaster.c, `CleanupBackend`).
    pub fn adopts_orphans(&self) -> bool {
        self.postmaster() == Some(1)
    }
}

/// What of a cluster `directory` is, as its own name and content tell. It need not be one that
/// anybody knows of.
pub fn part_of_a_cluster(directory: &Path) -> Option<&'static str> {
    let is_of_a_version = |name: &str| {
        let mut parts = name.split('_');
        let number = |part: Option<&str>| {
            part.is_some_and(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
        };
        parts.next() == Some("PG")
            && number(parts.next())
            && number(parts.next())
            && parts.next().is_none()
    };
    // Each database's directory has this file, too.
    if directory.join("PG_VERSION").is_file() {
        return Some("a data directory of PostgreSQL");
    }
    if directory.join("archive_status").is_dir() {
        return Some("a WAL directory of PostgreSQL");
    }
    let own = directory.file_name().and_then(|name| name.to_str());
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names = entries.map(|entry| entry.file_name());
    let tablespace = own.is_some_and(is_of_a_version)
        || names.any(|name| name.to_str().is_some_and(is_of_a_version));
    tablespace.then_some("a tablespace of PostgreSQL")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ready_and_who_serves_is_read_from_the_data_directory() {
        let data = tempfile::tempdir().unwrap();
        let status = DataDirectory::at(data.path());
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

    #[test]
    fn recovery_is_asked_for_by_a_file_and_done_by_a_process() {
        let data = tempfile::tempdir().unwrap();
        let status = DataDirectory::at(data.path());
        let server = |process: &str| {
            let path = data.path().join("postmaster.pid");
            crate::durable::write_file(&path, process.as_bytes(), 0o600).unwrap();
        };
        server(&std::process::id().to_string());
        assert!(!status.is_recovering());
        std::fs::File::create(data.path().join("standby.signal")).unwrap();
        assert!(status.is_recovering());
        // No process has so great a number.
        server("2147483646");
        assert!(!status.is_recovering());
    }
}
