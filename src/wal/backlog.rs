//! How much WAL waits to be archived, how fast that changes, and how long pg_wal's file system
//! lasts: the early alarm. From the disk alone, so that it also works while the server is down;
//! one who is connected adds how fast WAL is written at this moment.

use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};

use crate::error::{IoContext, Result};
use crate::postgres::{SegmentSize, archive_status};

/// Rates are those of the last five minutes.
pub const WINDOW: Duration = Duration::from_secs(300);

/// WAL that PostgreSQL has finished and that is not archived yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Backlog {
    /// Files that wait, of all kinds.
    pub files: u64,
    /// Bytes of the segments among them.
    pub bytes: u64,
    /// Seconds that the oldest of them has waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_seconds: Option<f64>,
    /// Bytes of WAL that are written in a second.
    pub written_per_second: f64,
    /// Bytes of WAL that are archived in a second.
    pub archived_per_second: f64,
    /// Bytes that PostgreSQL can still write to pg_wal's file system.
    pub free_bytes: u64,
}

impl Backlog {
    /// Looks at the data directory.
    ///
    /// # Errors
    /// pg_wal cannot be read.
    pub fn look(data_directory: &Path, size: SegmentSize) -> Result<Self> {
        let now = SystemTime::now();
        let status = archive_status::look(data_directory, now, WINDOW)?;
        let pg_wal = data_directory.join("pg_wal");
        let file_system = statvfs(&pg_wal)
            .map_err(std::io::Error::from)
            .on("ask for the free space of", &pg_wal)?;
        let rate = |segments: u64| (segments * size.bytes()) as f64 / WINDOW.as_secs_f64();
        let oldest = status.oldest.map(|oldest| {
            // A clock that was set back makes nothing old.
            now.duration_since(oldest).unwrap_or_default().as_secs_f64()
        });
        Ok(Self {
            files: status.waiting,
            bytes: status.waiting_segments * size.bytes(),
            oldest_seconds: oldest,
            written_per_second: rate(status.finished),
            archived_per_second: rate(status.archived),
            // u32 on some platforms.
            #[allow(clippy::useless_conversion)]
            free_bytes: u64::from(file_system.blocks_available())
                * u64::from(file_system.fragment_size()),
        })
    }

    /// The same, where a connected server was seen to write so much just now: what is written
    /// faster than in the last minutes counts.
    pub fn seen_writing(mut self, bytes_per_second: f64) -> Self {
        self.written_per_second = self.written_per_second.max(bytes_per_second);
        self
    }

    /// The time until pg_wal's file system is full at these rates. None while archiving keeps
    /// up. PostgreSQL stops (PANIC) when it is full.
    pub fn time_left(&self) -> Option<Duration> {
        let growth = self.written_per_second - self.archived_per_second;
        let waits = self.files > 0 && growth > 0.0;
        waits
            .then(|| Duration::try_from_secs_f64(self.free_bytes as f64 / growth).ok())
            .flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_running_out_only_while_more_is_written_than_archived() {
        let backlog = |files, written, archived| Backlog {
            files,
            bytes: 0,
            oldest_seconds: None,
            written_per_second: written,
            archived_per_second: archived,
            free_bytes: 3600,
        };
        let left = |b: Backlog| b.time_left().map(|left| left.as_secs());
        assert_eq!(left(backlog(9, 3.0, 1.0)), Some(1800));
        assert_eq!(left(backlog(9, 1.0, 1.0)), None);
        assert_eq!(left(backlog(9, 1.0, 2.0)), None);
        // A server that is quiet grows nothing, however much waits.
        assert_eq!(left(backlog(9, 0.0, 0.0)), None);
        assert_eq!(left(backlog(0, 3.0, 0.0)), None);
        assert_eq!(left(backlog(9, 0.5, 0.0).seen_writing(36.0)), Some(100));
    }

    #[test]
    fn a_data_directory_is_looked_at_without_a_server() {
        let data = tempfile::tempdir().unwrap();
        let status = archive_status::directory(data.path());
        std::fs::create_dir_all(&status).unwrap();
        for number in 1..=3 {
            let name = format!("00000001000000000000000{number}.ready");
            std::fs::File::create(status.join(name)).unwrap();
        }
        let backlog = Backlog::look(data.path(), SegmentSize::DEFAULT).unwrap();
        assert_eq!((backlog.files, backlog.bytes), (3, 48 << 20));
        assert_eq!(backlog.written_per_second, (48 << 20) as f64 / 300.0);
        assert_eq!(backlog.archived_per_second, 0.0);
        let oldest = backlog.oldest_seconds.unwrap();
        assert!((0.0..60.0).contains(&oldest), "{oldest}");
        let left = backlog.time_left().unwrap().as_secs_f64();
        let expected = backlog.free_bytes as f64 / backlog.written_per_second;
        assert!((left / expected - 1.0).abs() < 0.01, "{left} {expected}");
        assert!(Backlog::look(&data.path().join("x"), SegmentSize::DEFAULT).is_err());
    }
}
