//! The turn of a call at its destination: one call at a time writes there and gives the file
//! its name.
//!
//! PostgreSQL makes one call after the other, but one of a server that was killed may still
//! run when the next server makes its first. Both would write the same temporary file, and the
//! older one could replace what the younger has delivered while PostgreSQL reads it. So a call
//! has its turn from before it looks for anything until it has delivered or given up, and
//! whoever comes meanwhile waits.
//!
//! The turn is the lock (flock(2), which ends with its process) of the temporary file beside
//! the destination. That an older call's parents are alive would prove nothing: there may be a
//! shell between it and the server.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::durable;
use crate::error::{Error, IoContext, Result};

/// So long is waited for another call. Its server is gone; who hangs longer is an operator's.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 30_000 });
/// How often it is tried meanwhile.
const PAUSE: Duration = Duration::from_millis(10);

/// The right to deliver to one destination, as long as it lives.
#[derive(Debug)]
pub struct Turn {
    destination: PathBuf,
    temporary: PathBuf,
    file: File,
}

impl Turn {
    /// Waits for the turn at `destination`, 30 seconds at most.
    ///
    /// # Errors
    /// Another call still has it; or the directory cannot be written.
    pub fn at(destination: &Path) -> Result<Self> {
        let temporary = durable::temporary_beside(destination);
        let started = Instant::now();
        loop {
            // A leftover of a killed call is taken over as it is.
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&temporary)
                .on("create", &temporary)?;
            match file.try_lock() {
                Ok(()) if is_at(&file, &temporary) => {
                    return Ok(Self {
                        destination: destination.to_owned(),
                        temporary,
                        file,
                    });
                }
                // Whoever had it has just published or removed the file.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if started.elapsed() < PATIENCE => {
                    std::thread::sleep(PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::failed("another seawall-fetch is delivering here")
                        .at(destination.display())
                        .hint("it may be left over from a server that was killed: end it"));
                }
                Err(TryLockError::Error(error)) => return Err(error).on("lock", &temporary),
            }
        }
    }

    /// The temporary file, emptied.
    pub(super) fn begin(&self) -> Result<File> {
        let begin = || {
            let mut file = self.file.try_clone()?;
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            Ok::<_, std::io::Error>(file)
        };
        begin().on("write", &self.temporary)
    }

    /// Where [`begin`](Self::begin)'s file lies.
    pub(super) fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Gives `file`, which is whole, the name of the destination.
    pub(super) fn publish(&self, file: &Path) -> Result<()> {
        let to = &self.destination;
        durable::rename_without_sync(file, to).on("rename to", to)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Once it is published the name may be that of the next one's.
        if is_at(&self.file, &self.temporary) {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Whether `path` is a name of this open file.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_second_call_waits_for_the_first_and_not_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let destination = directory.path().join("RECOVERYXLOG");
        let first = Turn::at(&destination).unwrap();
        let started = Instant::now();
        let error = Turn::at(&destination).unwrap_err();
        assert!(started.elapsed() >= PATIENCE);
        assert!(error.to_string().contains("another seawall-fetch"));
        // Another destination is nobody's business.
        drop(Turn::at(&directory.path().join("RECOVERYHISTORY")).unwrap());
        let second = std::thread::spawn({
            let destination = destination.clone();
            move || {
                let turn = Turn::at(&destination).unwrap();
                assert_eq!(std::fs::read(&destination).unwrap(), b"first");
                turn.begin().unwrap().write_all(b"2nd").unwrap();
                turn.publish(turn.temporary()).unwrap();
            }
        });
        std::thread::sleep(PATIENCE / 3);
        first.begin().unwrap().write_all(b"first").unwrap();
        first.publish(first.temporary()).unwrap();
        drop(first);
        second.join().unwrap();
        assert_eq!(std::fs::read(&destination).unwrap(), b"2nd");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn many_at_once_never_mix_what_they_write() {
        let directory = tempfile::tempdir().unwrap();
        let destination = directory.path().join("RECOVERYXLOG");
        std::thread::scope(|scope| {
            for number in 0..4u8 {
                let destination = &destination;
                scope.spawn(move || {
                    for _ in 0..25 {
                        let turn = std::iter::repeat_with(|| Turn::at(destination).ok());
                        let turn = turn.flatten().next().unwrap();
                        let mut file = turn.begin().unwrap();
                        for _ in 0..16 {
                            file.write_all(&[number; 512]).unwrap();
                        }
                        turn.publish(turn.temporary()).unwrap();
                        drop(turn);
                        let content = std::fs::read(destination).unwrap();
                        assert_eq!(content.len(), 16 * 512);
                        assert!(content.iter().all(|byte| *byte == content[0]));
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_call_has_left_is_taken_over_and_a_call_that_delivers_nothing_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let destination = directory.path().join("RECOVERYXLOG");
        let left = durable::temporary_beside(&destination);
        File::create(&left)
            .unwrap()
            .write_all(b"half a fi")
            .unwrap();
        let turn = Turn::at(&destination).unwrap();
        let file = turn.begin().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        drop((file, turn));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
