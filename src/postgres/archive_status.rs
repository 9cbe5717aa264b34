//! `pg_wal/archive_status`: which files wait for the archiver, and how fast files came to be
//! and were archived lately.
//!
//! PostgreSQL makes `NAME.ready` when a file is finished and renames it to `NAME.done` once
//! archive_command has returned 0 (PostgreSQL 18, xlogarchive.c, pgarch.c). A rename keeps the
//! time of modification and sets that of change, so one look tells both.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::WalFileName;
use crate::error::{IoContext, Result};

/// What one look found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchiveStatus {
    /// Files that wait, of all kinds.
    pub waiting: u64,
    /// Segments among them, whole or partial.
    pub waiting_segments: u64,
    /// When the one that waits longest was finished.
    pub oldest: Option<SystemTime>,
    /// Segments that were finished within the window. Those that were archived and recycled
    /// since are not known any more.
    pub finished: u64,
    /// Segments that were archived within the window, with the same limit.
    pub archived: u64,
}

/// Where the directory lies.
pub fn directory(data_directory: &Path) -> PathBuf {
    data_directory.join("pg_wal").join("archive_status")
}

/// The files that wait, in the order of their names.
///
/// # Errors
/// The directory cannot be read.
pub fn waiting(data_directory: &Path) -> Result<Vec<WalFileName>> {
    let directory = directory(data_directory);
    let mut waiting = Vec::new();
    for entry in std::fs::read_dir(&directory).on("list", &directory)? {
        let name = entry.on("list", &directory)?.file_name();
        let name = name.to_str().and_then(|name| name.strip_suffix(".ready"));
        waiting.extend(name.and_then(|name| name.parse::<WalFileName>().ok()));
    }
    waiting.sort();
    Ok(waiting)
}

/// Looks into the directory; `window` is how far back "lately" reaches from `now`.
///
/// Works without a running server. Memory does not grow with the number of files.
///
/// # Errors
/// The directory cannot be read.
pub fn look(data_directory: &Path, now: SystemTime, window: Duration) -> Result<ArchiveStatus> {
    let directory = directory(data_directory);
    let since = now.checked_sub(window).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut status = ArchiveStatus::default();
    for entry in std::fs::read_dir(&directory).on("list", &directory)? {
        let entry = entry.on("list", &directory)?;
        let file_name = entry.file_name();
        let Some((name, state)) = file_name.to_str().and_then(|name| name.rsplit_once('.')) else {
            continue;
        };
        let Ok(name) = name.parse::<WalFileName>() else {
            continue;
        };
        let segment = matches!(name, WalFileName::Segment(_) | WalFileName::Partial(_));
        // Renamed or removed since the listing: the archiver is at work.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        let finished = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let lately = |time: SystemTime| u64::from(segment && time >= since);
        match state {
            "ready" => {
                status.waiting += 1;
                status.waiting_segments += u64::from(segment);
                status.oldest = Some(status.oldest.map_or(finished, |o| o.min(finished)));
            }
            "done" => {
                let changed = Duration::from_secs(metadata.ctime().max(0).unsigned_abs());
                status.archived += lately(SystemTime::UNIX_EPOCH + changed);
            }
            _ => continue,
        }
        status.finished += lately(finished);
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, FileTimes};

    #[test]
    fn waiting_files_are_counted_and_what_was_finished_and_archived_lately_is_told() {
        let data = tempfile::tempdir().unwrap();
        let directory = directory(data.path());
        std::fs::create_dir_all(&directory).unwrap();
        let now = SystemTime::now();
        let ago = |seconds| now - Duration::from_secs(seconds);
        let touch = |name: &str, seconds| {
            let file = File::create(directory.join(name)).unwrap();
            let times = FileTimes::new().set_modified(ago(seconds));
            file.set_times(times).unwrap();
        };
        touch("000000010000000000000005.ready", 700);
        touch("000000010000000000000006.ready", 20);
        touch("000000010000000000000006.partial.ready", 10);
        touch("00000002.history.ready", 5);
        // Finished long ago, archived now.
        touch("000000010000000000000004.done", 800);
        touch("000000010000000000000004.00000028.backup.done", 1);
        touch("notes.txt", 1);
        let status = look(data.path(), now, Duration::from_secs(300)).unwrap();
        assert_eq!(
            status,
            ArchiveStatus {
                waiting: 4,
                waiting_segments: 3,
                oldest: Some(ago(700)),
                finished: 2,
                archived: 1,
            }
        );
        let names = waiting(data.path()).unwrap();
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), 4);
        assert_eq!(names[0], "000000010000000000000005");
        assert!(look(&data.path().join("x"), now, Duration::ZERO).is_err());
    }
}
