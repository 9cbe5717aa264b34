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
use std::time::{Duration, Instant, SystemTime};

use seawall::durable;
use seawall::error::{Error, IoContext, Result};

use crate::{host, processes};

/// What the names of all scratch directories begin with.
const PREFIX: &str = "seawall-drill-";

/// Locked as long as the drill lives.
const LOCK: &str = "drill.lock";

/// The name of the lock until it is locked.
const MAKING: &str = "drill.lock.new";

/// The directory of the server's own files.
const SERVER: &str = "server";

/// In the place of the lock where the owner wants to keep the instance.
const KEPT: &str = "drill.kept";

/// A directory with content, without a lock and older than this is of a drill that died.
const YOUNG: Duration = Duration::from_secs(60);

/// The longest path that a Unix socket may have, in bytes.
const LONGEST_SOCKET: usize = 107;

/// The name of PostgreSQL's socket. The port is a part of it only.
const SOCKET: &str = ".s.PGSQL.5432";

/// Everything that a drill writes lies here. Removed when it is dropped. Drop it after
/// everything that writes there has ended.
pub struct Scratch {
    own: Owned,
    /// A directory for the socket, where a path in the scratch directory would be too long.
    sockets: Option<Owned>,
}

impl Scratch {
    /// A new directory below `parent`.
    pub fn new(parent: &Path) -> Result<Self> {
        let parent = std::path::absolute(parent).on("find", parent)?;
        if parent
            .to_str()
            .is_none_or(|path| path.contains(['\n', '\r']))
        {
            return Err(Error::usage("PostgreSQL's settings cannot name this place")
                .at(parent.display())
                .hint("choose one in UTF-8 without line breaks, with --scratch or drill.scratch"));
        }
        let own = Owned::new(&parent)?;
        let sockets = match takes_socket(&own.path.join(SERVER)) {
            true => None,
            false => Some(short_directory()?),
        };
        Ok(Self { own, sockets })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.own.path
    }

    /// Where the server's own files go: its configuration and its log.
    pub fn server(&self) -> PathBuf {
        self.path().join(SERVER)
    }

    /// Where the server's socket goes.
    pub fn socket_directory(&self) -> PathBuf {
        self.sockets
            .as_ref()
            .map_or_else(|| self.server(), |sockets| sockets.path.clone())
    }

    /// Whether `path`, with its links followed, lies in what belongs to this drill.
    pub fn holds(&self, path: &Path) -> bool {
        let Ok(real) = path.canonicalize() else {
            return false;
        };
        let all = std::iter::once(&self.own).chain(&self.sockets);
        let mut all = all.filter_map(|owned| owned.path.canonicalize().ok());
        all.any(|own| real.starts_with(own))
    }

    /// Leave it when this is dropped, and for all drills to come.
    pub fn keep(&mut self) {
        for owned in std::iter::once(&mut self.own).chain(&mut self.sockets) {
            owned.keep();
        }
    }

    /// Removes it now, and says whether nothing is left.
    pub fn remove(&self) -> bool {
        let sockets = self.sockets.as_ref().is_none_or(Owned::remove);
        self.own.remove() && sockets
    }

    /// Refuses where less than `bytes` are free, or allowed. Returns the free bytes.
    pub fn require_space(&self, bytes: u64, limit: Option<u64>) -> Result<u64> {
        let free = host::free_bytes(self.path())?;
        let (room, why, hint) = match limit {
            Some(limit) if limit < free => (limit, "allowed", "raise --disk or drill.disk"),
            _ => (
                free,
                "free",
                "choose another place with --scratch or drill.scratch",
            ),
        };
        if room < bytes {
            return Err(Error::refused(format!(
                "the drill needs {} MiB of disk and {} MiB are {why}",
                bytes.div_ceil(1 << 20),
                room >> 20
            ))
            .at(self.path().display())
            .hint(hint));
        }
        Ok(free)
    }
}

/// Whether a socket in that directory is one that PostgreSQL and libpq can name: not too long,
/// and no list of hosts.
fn takes_socket(directory: &Path) -> bool {
    let bytes = directory.as_os_str().as_encoded_bytes();
    bytes.len() + 1 + SOCKET.len() <= LONGEST_SOCKET && !bytes.contains(&b',')
}

/// Where directories for sockets are made: the first whose path is short enough.
fn short_places() -> Vec<PathBuf> {
    let mut places = vec![std::env::temp_dir(), PathBuf::from("/tmp")];
    places.dedup();
    // As long as the name of what is made there.
    places.retain(|place| takes_socket(&place.join(format!("{PREFIX}123456"))));
    places
}

fn short_directory() -> Result<Owned> {
    let mut last = None;
    for place in short_places() {
        match Owned::new(&place) {
            Ok(owned) => return Ok(owned),
            Err(error) => last = Some(error),
        }
    }
    let error =
        Error::refused("there is no place for PostgreSQL's socket, whose path must be short")
            .hint("choose a shorter path with --scratch or drill.scratch, or set TMPDIR to one");
    Err(match last {
        Some(cause) => error.because(cause.one_line()),
        None => error,
    })
}

/// A directory of this drill's alone, with the lock that says that the drill lives.
struct Owned {
    path: PathBuf,
    keep: bool,
    _lock: File,
}

impl Owned {
    fn new(parent: &Path) -> Result<Self> {
        let mut attempts = 10;
        loop {
            let path = tempfile::Builder::new()
                .prefix(PREFIX)
                .permissions(std::fs::Permissions::from_mode(0o700))
                .tempdir_in(parent)
                .on("make a scratch directory in", parent)?
                .keep();
            match locked_file(&path) {
                Ok(lock) => {
                    return Ok(Self {
                        _lock: lock,
                        path,
                        keep: false,
                    });
                }
                // Another drill took it for one of a drill that died before it had a lock.
                Err(_) if attempts > 0 && !path.join(LOCK).exists() => {
                    let _ = std::fs::remove_file(path.join(MAKING));
                    let _ = std::fs::remove_dir(&path);
                    attempts -= 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn keep(&mut self) {
        self.keep = true;
        let (lock, kept) = (self.path.join(LOCK), self.path.join(KEPT));
        if let Err(error) = durable::rename_without_sync(&lock, &kept) {
            say(&format!(
                "warning: the next drill will end this instance: cannot rename {}: {error}",
                lock.display()
            ));
        }
    }

    fn remove(&self) -> bool {
        if self.keep {
            return true;
        }
        // What was given up in the middle may still be writing its last file.
        let deadline = Instant::now() + Duration::from_secs(5);
        while remove(&self.path).is_err() && self.path.exists() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        true
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if !self.remove() {
            say(&format!("warning: cannot remove {}", self.path.display()));
        }
    }
}

/// `eprintln!` would panic where the terminal is gone, and leave everything behind.
fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
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
    let making = directory.join(MAKING);
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
/// below `parent`, and those of their sockets. What cannot be removed is a warning: it must
/// not keep this drill from running. Call it as the user who runs the servers, since it ends
/// processes.
pub fn sweep_dead(parent: &Path) {
    let mut places = vec![parent.to_owned()];
    places.extend(short_places());
    places.dedup();
    for place in places {
        for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
            let ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
                // Not followed: anybody may make a link in a directory for everybody.
                && entry.path().symlink_metadata().is_ok_and(|metadata| {
                    metadata.is_dir() && metadata.uid() == nix::unistd::geteuid().as_raw()
                });
            if ours {
                sweep(&entry.path());
            }
        }
    }
}

fn sweep(path: &Path) {
    let Some(_lock) = take_over(path) else {
        return;
    };
    let removed = processes::end_in(path).and_then(|()| remove(path).on("remove", path));
    match removed {
        Ok(()) => tracing::info!("removed {}, left by a drill that died", path.display()),
        // Another drill did.
        Err(_) if !path.exists() => {}
        Err(error) => tracing::warn!(
            "a drill that died left {}, which cannot be removed: {}",
            path.display(),
            error.one_line()
        ),
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
            if remove_unborn(directory) {
                return None;
            }
            let made = directory.metadata().and_then(|m| m.modified()).ok()?;
            let age = SystemTime::now().duration_since(made).ok()?;
            (age > YOUNG).then_some(None)
        }
        Err(_) => None,
    }
}

/// Removes a directory that has nothing in it but a lock that nobody holds: its drill died
/// before it was locked. One that is just being made is made once more by its drill.
fn remove_unborn(directory: &Path) -> bool {
    let making = directory.join(MAKING);
    if let Ok(lock) = File::open(&making) {
        if lock.try_lock().is_err() {
            return false;
        }
        let _ = std::fs::remove_file(&making);
    }
    // Fails where anything else is in it.
    std::fs::remove_dir(directory).is_ok()
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
        let program = scratch.path().join("postgres");
        std::fs::copy("/bin/sleep", &program).unwrap();
        let server = Command::new(program).arg("600").current_dir(&data).spawn();
        (scratch, server.unwrap())
    }

    /// What a kill leaves: nothing is dropped but the lock.
    fn die(scratch: Scratch) -> PathBuf {
        let mut scratch = std::mem::ManuallyDrop::new(scratch);
        scratch.own._lock = File::open("/dev/null").unwrap();
        if let Some(sockets) = &mut scratch.sockets {
            sockets._lock = File::open("/dev/null").unwrap();
        }
        scratch.path().to_owned()
    }

    #[test]
    fn a_dead_drills_server_is_ended_and_its_directory_removed_and_no_others() {
        let parent = tempfile::tempdir().unwrap();
        let (dead, mut its_server) = with_process(parent.path());
        let (alive, mut other_server) = with_process(parent.path());
        let (mut kept, mut kept_server) = with_process(parent.path());
        kept.keep();
        let (dead, kept) = (die(dead), die(kept));
        let unborn = parent.path().join("seawall-drill-new");
        let being_made = parent.path().join("seawall-drill-newer");
        let somebody_elses = parent.path().join("other");
        for directory in [&unborn, &being_made, &somebody_elses] {
            std::fs::create_dir(directory).unwrap();
        }
        File::create(unborn.join(MAKING)).unwrap();
        let making = File::create(being_made.join(MAKING)).unwrap();
        making.lock().unwrap();

        sweep_dead(parent.path());

        assert!(!dead.exists() && !unborn.exists());
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

    #[test]
    fn a_long_path_or_one_with_a_comma_gets_a_short_directory_for_its_socket() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["x".repeat(120), "a, b".to_owned()] {
            let place = parent.path().join(name);
            std::fs::create_dir(&place).unwrap();
            let scratch = Scratch::new(&place).unwrap();
            let sockets = scratch.socket_directory();
            assert!(takes_socket(&sockets) && !sockets.starts_with(&place));
            assert_eq!(sockets.metadata().unwrap().mode() & 0o777, 0o700);
            assert!(scratch.holds(&sockets) && !scratch.holds(parent.path()));
            let dead = die(scratch);
            sweep_dead(&place);
            assert!(!dead.exists() && !sockets.exists());
            // And who lives takes it along.
            let scratch = Scratch::new(&place).unwrap();
            let sockets = scratch.socket_directory();
            assert!(sockets.exists());
            drop(scratch);
            assert!(!sockets.exists());
        }
        let scratch = Scratch::new(parent.path()).unwrap();
        assert!(scratch.socket_directory().starts_with(scratch.path()));
    }
}
