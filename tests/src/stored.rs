//! A local repository seen from outside, as a person with `ls`, `zstd` and a hex editor sees
//! it: nothing here asks Seawall.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::scratch::give_to_owner;

/// The directory of a repository.
#[derive(Debug, Clone)]
pub struct Stored {
    root: PathBuf,
}

impl Stored {
    /// The repository at `root`.
    pub fn at(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file of a key.
    pub fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// Every file, relative to the root, sorted. Leftovers of killed writers, too.
    #[track_caller]
    pub fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        let mut pending = vec![self.root.clone()];
        while let Some(directory) = pending.pop() {
            for entry in std::fs::read_dir(&directory).into_iter().flatten() {
                let entry = entry.expect("the directory can be read");
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    pending.push(entry.path());
                } else if let Ok(key) = entry.path().strip_prefix(&self.root) {
                    files.push(key.display().to_string());
                }
            }
        }
        files.sort();
        files
    }

    /// Keys of finished objects that hold `part`: `.tar.zst`, `backup.json`.
    pub fn keys_with(&self, part: &str) -> Vec<String> {
        let mut keys = self.files();
        keys.retain(|key| key.contains(part) && !key.contains('#'));
        keys
    }

    /// Keys of the objects that hold the WAL file `name`.
    pub fn wal(&self, name: &str) -> Vec<String> {
        self.keys_with(&format!("/{name}-"))
    }

    /// Keys of the segments behind the last that `backup` (its marker) needs itself.
    pub fn wal_after(&self, backup: &serde_json::Value) -> Vec<String> {
        let last = backup["wal"][1].as_str().expect("a segment");
        let name = |key: &String| key.rsplit('/').next()?.get(..24).map(str::to_owned);
        let mut keys = self.keys_with("/wal/");
        keys.retain(|key| name(key).is_some_and(|name| !name.contains('.') && *name > *last));
        keys
    }

    /// The one key of the WAL file `name`.
    #[track_caller]
    pub fn one_wal(&self, name: &str) -> String {
        let mut keys = self.wal(name);
        assert_eq!(keys.len(), 1, "objects of {name}: {keys:?}");
        keys.remove(0)
    }

    /// The stored bytes.
    #[track_caller]
    pub fn bytes(&self, key: &str) -> Vec<u8> {
        let path = self.path(key);
        std::fs::read(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
    }

    /// The plain bytes, by `zstd -d`.
    #[track_caller]
    pub fn plain(&self, key: &str) -> Vec<u8> {
        let output = Command::new("zstd")
            .args(["-d", "-c", "-q"])
            .arg(self.path(key))
            .output()
            .expect("zstd is installed");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "zstd -d {key}: {said}");
        output.stdout
    }

    /// Replaces the stored bytes, keeping the file's owner. Returns what was there.
    #[track_caller]
    pub fn replace(&self, key: &str, bytes: &[u8]) -> Vec<u8> {
        let old = self.bytes(key);
        let path = self.path(key);
        std::fs::write(&path, bytes).expect("the object can be written");
        give_to_owner(&path);
        old
    }

    /// Flips one bit of the byte at `at`, one that zstd means something by in every byte of its
    /// headers. Returns what was there.
    #[track_caller]
    pub fn flip(&self, key: &str, at: usize) -> Vec<u8> {
        let mut bytes = self.bytes(key);
        bytes[at] ^= 0x40;
        self.replace(key, &bytes)
    }

    /// Removes an object. Returns what was there.
    #[track_caller]
    pub fn remove(&self, key: &str) -> Vec<u8> {
        let old = self.bytes(key);
        std::fs::remove_file(self.path(key)).expect("the object can be removed");
        old
    }

    /// Puts back what [`remove`](Self::remove), [`flip`](Self::flip) or
    /// [`replace`](Self::replace) took.
    #[track_caller]
    pub fn put_back(&self, key: &str, bytes: &[u8]) {
        let path = self.path(key);
        std::fs::write(&path, bytes).expect("the object can be written");
        give_to_owner(&path);
    }

    /// Takes the whole repository away, as a disk that is not mounted is: its directory is
    /// gone, or there and empty.
    #[track_caller]
    pub fn unmount(&self, leave_empty_directory: bool) {
        std::fs::rename(&self.root, self.elsewhere()).expect("it moves");
        if leave_empty_directory {
            std::fs::create_dir(&self.root).expect("mkdir");
            give_to_owner(&self.root);
        }
    }

    /// Brings it back.
    #[track_caller]
    pub fn mount(&self) {
        // Fails if something was put into the empty directory meanwhile.
        let _ = std::fs::remove_dir(&self.root);
        std::fs::rename(self.elsewhere(), &self.root).expect("it moves back");
    }

    fn elsewhere(&self) -> PathBuf {
        self.root.with_extension("unmounted")
    }
}

/// BLAKE3 as `b3sum` prints it, the first 32 digits: what a key calls its content.
pub fn digest(plain: &[u8]) -> String {
    blake3::hash(plain).to_hex()[..32].to_owned()
}

/// What kind of object a key names: how its file is called, without numbers, for parts of
/// backups; those of incremental ones by themselves.
pub fn class(key: &str) -> String {
    let last = key.rsplit('/').next().unwrap_or(key);
    if key.contains("/wal/") {
        let class = match last {
            last if last.contains(".history-") => "history",
            // Written by pg_backup_stop, for people; nothing reads it.
            last if last.contains(".backup-") => "label",
            _ => "segment",
        };
        return class.to_owned();
    }
    if key.contains("/leases/") {
        return "lease".to_owned();
    }
    let part = last.trim_start_matches(|c: char| c.is_ascii_digit());
    match key.contains("-incr-") {
        true => format!("incremental {part}"),
        false => part.to_owned(),
    }
}
