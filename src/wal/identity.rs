//! What tells a file from every other, and from itself after a change, without reading it.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A file whose times lie closer to the moment of reading may change without its times showing
/// it: clocks of file systems tick slowly, some only every other second.
const TICK: Duration = Duration::from_millis(50);
const SLOW_TICK: Duration = Duration::from_millis(2_500);

/// What tells a file from every other and from itself after a change: PostgreSQL makes the next
/// segments out of old files by renaming them, which changes the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds of the last change of the content.
    modified: (i64, i64),
    /// Seconds and nanoseconds of the last change of anything.
    changed: (i64, i64),
}

impl Identity {
    /// Of the file at `path`.
    pub fn of(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|metadata| Self::told_by(&metadata))
    }

    /// Of an open file.
    pub fn of_file(file: &File) -> io::Result<Self> {
        file.metadata().map(|metadata| Self::told_by(&metadata))
    }

    fn told_by(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// How long to wait until a change would surely show in the file's times.
    pub fn unsettled_for(&self, now: Timestamp) -> Duration {
        let tick = match self.changed.1 {
            0 => SLOW_TICK,
            _ => TICK,
        };
        let changed = Timestamp::new(self.changed.0, self.changed.1 as i32).unwrap_or(now);
        let age = Duration::try_from(now.duration_since(changed)).unwrap_or_default();
        tick.saturating_sub(age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_may_still_change_unseen_is_not_settled() {
        let file = |nanoseconds| Identity {
            device: 1,
            inode: 1,
            size: 1,
            modified: (100, nanoseconds),
            changed: (100, nanoseconds),
        };
        let at =
            |second, millisecond: i32| Timestamp::new(second, millisecond * 1_000_000).unwrap();
        assert!(file(1).unsettled_for(at(100, 20)) > Duration::ZERO);
        assert_eq!(file(1).unsettled_for(at(100, 60)), Duration::ZERO);
        assert!(file(0).unsettled_for(at(102, 0)) > Duration::ZERO);
        assert_eq!(file(0).unsettled_for(at(103, 0)), Duration::ZERO);
    }
}
