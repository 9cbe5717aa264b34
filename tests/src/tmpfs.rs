//! A small disk: a tmpfs of a given size, mounted in a test's directory. Only root can.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Scratch;
use crate::scratch::{give_to_owner, is_root, set_mode};

/// Unmounted when dropped; drop it before its [`Scratch`].
#[derive(Debug)]
pub struct Tmpfs {
    path: PathBuf,
}

impl Tmpfs {
    /// Mounts one of so many MiB as `scratch`/`name`, owned by PostgreSQL's user. `None`, and
    /// a word on standard error, where this test may not mount anything.
    #[track_caller]
    pub fn mount(scratch: &Scratch, name: &str, mebibytes: u32) -> Option<Self> {
        let path = scratch.directory(name);
        if !is_root() {
            eprintln!("not tested: only root can mount a small disk");
            return None;
        }
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"])
            .arg(&path)
            .output()
            .expect("mount runs");
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            eprintln!("not tested: a small disk cannot be mounted here: {why}");
            return None;
        }
        set_mode(&path, 0o700);
        give_to_owner(&path);
        Some(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills it up but for so many bytes. Removing the file that is returned frees it.
    #[track_caller]
    pub fn fill(&self, leave: u64) -> PathBuf {
        let ballast = self.path.join(".ballast");
        let _ = std::fs::remove_file(&ballast);
        let status = nix::sys::statvfs::statvfs(&self.path).expect("it is mounted");
        let free = status.blocks_available() as u64 * status.fragment_size() as u64;
        let zeros = vec![0; free.saturating_sub(leave) as usize];
        match std::fs::write(&ballast, zeros) {
            // Somebody else wrote meanwhile: it is full, which was the intention.
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {}
            written => written.expect("the ballast is written"),
        }
        ballast
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a server that is just ending may still have a file open.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
