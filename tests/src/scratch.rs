//! Directories for tests: reachable for PostgreSQL's user, short enough for socket paths,
//! gone afterwards. And who PostgreSQL's user is.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::unistd::{Uid, User, geteuid};

use crate::guard;

/// A directory of mode 0755 with a short path, removed on drop, also after a panic.
///
/// `SEAWALL_TEST_KEEP=1` keeps it and prints where it is.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    kept: bool,
}

/// The user whom servers and programs run as: `postgres` for root, otherwise oneself, because
/// PostgreSQL refuses to run as root.
#[derive(Debug, Clone)]
pub struct Owner {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// The user whom servers and programs run as.
pub fn owner() -> &'static Owner {
    static OWNER: OnceLock<Owner> = OnceLock::new();
    OWNER.get_or_init(|| {
        let user = if geteuid().is_root() {
            User::from_name("postgres")
        } else {
            User::from_uid(Uid::current())
        };
        let user = user.expect("the user database can be read").expect(
            "there is a user `postgres`: run scripts/setup, which installs Debian's postgresql",
        );
        Owner {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        }
    })
}

/// Whether this process is root, and so runs PostgreSQL as somebody else.
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Gives a file or directory to [`owner`]. Does nothing for anyone but root.
pub fn give_to_owner(path: &Path) {
    if is_root() {
        let Owner { uid, gid, .. } = owner();
        chown(path, Some(*uid), Some(*gid))
            .unwrap_or_else(|error| panic!("chown {}: {error}", path.display()));
    }
}

/// Gives a directory with all that is in it to [`owner`].
pub fn give_tree_to_owner(path: &Path) {
    if !is_root() {
        return;
    }
    give_to_owner(path);
    for entry in std::fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            give_tree_to_owner(&entry.path());
        } else if !entry.file_type().unwrap().is_symlink() {
            give_to_owner(&entry.path());
        }
    }
}

/// Sets a file's mode exactly, whatever the umask is.
pub fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode))
        .unwrap_or_else(|error| panic!("chmod {}: {error}", path.display()));
}

impl Scratch {
    /// A new, empty directory, owned by [`owner`], so that programs can make things in it.
    #[track_caller]
    pub fn new() -> Self {
        // A socket's path must stay under 107 bytes, and lies three levels further down.
        let base = std::env::temp_dir();
        let base = match base.as_os_str().len() {
            0..=40 => base,
            _ => PathBuf::from("/tmp"),
        };
        for _ in 0..100 {
            let path = base.join(format!("sw-{:06x}", rand::random::<u32>() & 0xff_ffff));
            match std::fs::create_dir(&path) {
                Ok(()) => {
                    guard::made(&path);
                    set_mode(&path, 0o755);
                    give_to_owner(&path);
                    return Self { path, kept: false };
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => panic!("mkdir {}: {error}", path.display()),
            }
        }
        panic!("{} is full of scratch directories", base.display());
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in it; nothing is made.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a directory in it, owned by [`owner`], mode 0700.
    #[track_caller]
    pub fn directory(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.join(name);
        make_directory(&path);
        path
    }

    /// Writes a file in it, owned by [`owner`], mode 0600.
    #[track_caller]
    pub fn file(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        std::fs::write(&path, content)
            .unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
        set_mode(&path, 0o600);
        give_to_owner(&path);
        path
    }

    /// Leaves it where it is, for somebody to look at.
    pub fn keep(&mut self) {
        self.kept = true;
        guard::removed(&self.path);
    }
}

/// Makes a directory with its parents; the last one is [`owner`]'s, mode 0700.
#[track_caller]
pub fn make_directory(path: &Path) {
    std::fs::create_dir_all(path)
        .unwrap_or_else(|error| panic!("mkdir {}: {error}", path.display()));
    set_mode(path, 0o700);
    give_to_owner(path);
}

/// Removes a directory tree that somebody may still be writing to.
pub fn remove_tree(path: &Path) {
    for _ in 0..50 {
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            _ => return,
        }
    }
    eprintln!("cannot remove {}", path.display());
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.kept || std::env::var_os("SEAWALL_TEST_KEEP").is_some_and(|v| v != "0") {
            guard::removed(&self.path);
            eprintln!("kept: {}", self.path.display());
            return;
        }
        remove_tree(&self.path);
        guard::removed(&self.path);
    }
}
