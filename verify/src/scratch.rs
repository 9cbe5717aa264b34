//! The scratch directory of a drill: made as PostgreSQL's user, checked for space, and removed
//! whatever happens.
//!
//! A drill that was killed cannot remove its directory, and its server goes on: the next drill
//! with the same parent directory does both ([`sweep_dead`]). It knows a dead drill by a lock
//! that the kernel releases however a process ends. (Not by a process id in a file: ids are
//! given again. Not `PR_SET_PDEATHSIG`: it acts when a thread ends, and needs unsafe code.)

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use seawall::durable;
use seawall::error::{Error, IoContext, Result};

use crate::instance;

/// What the names of all scratch directories begin with.
const PREFIX: &str = "seawall-drill-";

/// Locked as long as the drill lives.
const LOCK: &str = "drill.lock";

/// In the place of the lock where the owner wants to keep the instance.
const KEPT: &str = "drill.kept";

/// A directory without a lock and older than this belongs to nobody who is just making it.
const YOUNG: Duration = Duration::from_secs(60);

/// Removed when it is dropped. Drop it after everything that writes there has ended.
pub struct Scratch {
    path: PathBuf,
    keep: bool,
    _lock: File,
}

impl Scratch {
    /// A new directory below `parent`.
    ///
    /// Its path is short: a Unix socket's must stay under 107 bytes.
    pub fn new(parent: &Path) -> Result<Self> {
        let parent = std::path::absolute(parent).on("find", parent)?;
        let path = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(&parent)
            .on("make a scratch directory in", &parent)?
            .keep();
        let scratch = Self {
            _lock: locked_file(&path)?,
            path,
            keep: false,
        };
        std::fs::set_permissions(&scratch.path, std::fs::Permissions::from_mode(0o700))
            .on("set the mode of", &scratch.path)?;
        Ok(scratch)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leave it when this is dropped, and for all drills to come.
    pub fn keep(&mut self) {
        self.keep = true;
        let (lock, kept) = (self.path.join(LOCK), self.path.join(KEPT));
        if let Err(error) = durable::rename_without_sync(&lock, &kept) {
            eprintln!(
                "warning: the next drill will end this instance: cannot rename {}: {error}",
                lock.display()
            );
        }
    }

    /// Removes it now, and says whether nothing is left.
    pub fn remove(&self) -> bool {
        self.keep || remove(&self.path).is_ok() || !self.path.exists()
    }

    /// Refuses where less than `bytes` are free.
    pub fn require_space(&self, bytes: u64) -> Result<()> {
        let status = nix::sys::statvfs::statvfs(&self.path)
            .map_err(std::io::Error::from)
            .on("look at", &self.path)?;
        let free = status.blocks_available() as u64 * status.fragment_size() as u64;
        if free < bytes {
            return Err(Error::refused(format!(
                "the drill needs {} MiB and {} MiB are free",
                bytes >> 20,
                free >> 20
            ))
            .at(self.path.display())
            .hint("choose another place with --scratch or drill.scratch"));
        }
        Ok(())
    }
}

/// Refuses where this user cannot make and remove a file in `directory`.
pub fn require_writable(directory: &Path, hint: &str) -> Result<()> {
    tempfile::Builder::new()
        .prefix(".seawall-")
        .tempfile_in(directory)
        .and_then(tempfile::NamedTempFile::close)
        .map_err(|error| {
            Error::refused("this user cannot write there")
                .at(directory.display())
                .because(error)
                .hint(hint)
        })
}

/// Removes a scratch directory, the lock last: who is killed in the middle leaves one that the
/// next drill still recognises.
fn remove(directory: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name() == LOCK {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => std::fs::remove_dir_all(entry.path())?,
            false => std::fs::remove_file(entry.path())?,
        }
    }
    std::fs::remove_dir_all(directory)
}

/// A lock file in `directory`, which appears there only once it is locked.
fn locked_file(directory: &Path) -> Result<File> {
    let path = directory.join(LOCK);
    let making = directory.join("drill.lock.new");
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&making)
        .on("create", &making)?;
    file.try_lock()
        .map_err(std::io::Error::from)
        .on("lock", &making)?;
    durable::rename_without_sync(&making, &path).on("rename to", &path)?;
    Ok(file)
}

/// Ends the servers and removes the directories that killed drills of this user have left
/// below `parent`. What cannot be removed is a warning: it must not keep this drill from
/// running. Call it as the user who runs the servers, since it ends processes.
pub fn sweep_dead(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
            // Not followed: anybody may make a link in a directory for everybody.
            && entry.path().symlink_metadata().is_ok_and(|metadata| {
                metadata.is_dir() && metadata.uid() == nix::unistd::geteuid().as_raw()
            });
        let path = entry.path();
        let Some(_lock) = ours.then(|| take_over(&path)).flatten() else {
            continue;
        };
        let removed =
            instance::end_processes_in(&path).and_then(|()| remove(&path).on("remove", &path));
        match removed {
            Ok(()) => tracing::info!("removed {}, left by a drill that died", path.display()),
            Err(error) => tracing::warn!(
                "a drill that died left {}, which cannot be removed: {}",
                path.display(),
                error.one_line()
            ),
        }
    }
}

/// The lock of a scratch directory whose drill is dead; nothing where it lives, is just being
/// made, or was to be kept.
fn take_over(directory: &Path) -> Option<Option<File>> {
    if directory.join(KEPT).exists() {
        return None;
    }
    match File::open(directory.join(LOCK)) {
        Ok(lock) => match lock.try_lock() {
            Ok(()) => Some(Some(lock)),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => None,
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let made = directory.metadata().and_then(|m| m.modified()).ok()?;
            let age = SystemTime::now().duration_since(made).ok()?;
            (age > YOUNG).then_some(None)
        }
        Err(_) => None,
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.remove() {
            eprintln!("warning: cannot remove {}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    /// A directory with a process that works in it, like a server.
    fn with_process(parent: &Path) -> (Scratch, Child) {
        let scratch = Scratch::new(parent).unwrap();
        let data = scratch.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let server = Command::new("sleep").arg("600").current_dir(&data).spawn();
        (scratch, server.unwrap())
    }

    /// What a kill leaves: nothing is dropped but the lock.
    fn die(scratch: Scratch) -> PathBuf {
        let mut scratch = std::mem::ManuallyDrop::new(scratch);
        scratch._lock = File::open("/dev/null").unwrap();
        scratch.path.clone()
    }

    #[test]
    fn a_dead_drills_server_is_ended_and_its_directory_removed_and_no_others() {
        let parent = tempfile::tempdir().unwrap();
        let (dead, mut its_server) = with_process(parent.path());
        let (alive, mut other_server) = with_process(parent.path());
        let (mut kept, mut kept_server) = with_process(parent.path());
        kept.keep();
        let (dead, kept) = (die(dead), die(kept));
        let being_made = parent.path().join("seawall-drill-new");
        let somebody_elses = parent.path().join("other");
        std::fs::create_dir(&being_made).unwrap();
        std::fs::create_dir(&somebody_elses).unwrap();

        sweep_dead(parent.path());

        assert!(!dead.exists());
        assert!(!its_server.wait().unwrap().success());
        for path in [alive.path(), &kept, &being_made, &somebody_elses] {
            assert!(path.exists(), "{}", path.display());
        }
        for server in [&mut other_server, &mut kept_server] {
            assert!(server.try_wait().unwrap().is_none(), "it was ended");
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }
}
