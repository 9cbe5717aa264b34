//! Bringing a directory that is there to a backup's state: what is right stays, what does not
//! belong there goes.
//!
//! Nothing is followed that could lead out of the directory: links and special files are
//! removed before anything is compared or written, and a file with a second name is replaced,
//! not written to.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use seawall::digest::PlainHasher;
use seawall::error::{Error, IoContext, Result};
use seawall::repository::System;
use seawall::repository::chain::files::ChainFile;
use seawall::repository::chain::walk::Walk;
use seawall::repository::index::MemberKind;
use seawall::repository::marker::Marker;
use seawall::repository::waiter::Waiter;

use crate::engine::is_left_out;
use crate::objects::{blocking, create, remove, set_mode};
use crate::target::is_ours;
use crate::write::{Buffer, read_through};

/// The CRC-32C of `path` if it is a file of exactly the content of `file`. Its mode is then made
/// right.
pub(crate) fn crc32c_if_already(
    path: &Path,
    file: &ChainFile,
    buffer: &mut Buffer,
    waiter: &Waiter,
) -> Result<Option<u32>> {
    let Some(digest) = file.digest else {
        return Ok(None);
    };
    let Some(metadata) = plain_file(path)? else {
        return Ok(None);
    };
    if metadata.len() != file.size {
        return Ok(None);
    }
    let (mut hasher, mut crc) = (PlainHasher::default(), 0);
    let opened = without_following().open(path).on("open", path)?;
    read_through(&opened, path, file.size, buffer, |bytes| {
        hasher.update(bytes);
        crc = crc32c::crc32c_append(crc, bytes);
        waiter.check()
    })?;
    if hasher.finish() != digest {
        return Ok(None);
    }
    if metadata.permissions().mode() & 0o7777 != file.mode {
        set_mode(path, file.mode)?;
    }
    Ok(Some(crc))
}

/// Opens a file to compare and overwrite it, with the size that it is to have; a new one where
/// there is none that may be written to.
pub(crate) fn open_in_place(path: &Path, mode: u32, size: u64) -> Result<File> {
    if plain_file(path)?.is_none() {
        let file = create_anew(path, mode)?;
        file.set_len(size).on("extend", path)?;
        return Ok(file);
    }
    let file = without_following()
        .write(true)
        .open(path)
        .on("open", path)?;
    file.set_len(size).on("set the size of", path)?;
    let mode = std::fs::Permissions::from_mode(mode);
    file.set_permissions(mode).on("set the mode of", path)?;
    Ok(file)
}

/// A new file in place of whatever is there.
pub(crate) fn create_anew(path: &Path, mode: u32) -> Result<File> {
    remove(path)?;
    create(path, mode)
}

/// A regular file with one name.
fn plain_file(path: &Path) -> Result<Option<std::fs::Metadata>> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        metadata => {
            let metadata = metadata.on("look at", path)?;
            Ok((metadata.is_file() && metadata.nlink() == 1).then_some(metadata))
        }
    }
}

fn without_following() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true);
    options.custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits());
    options
}

/// Removes every link and special file below `directory`, which is itself none.
pub(crate) fn remove_links(directory: &Path) -> Result<()> {
    for entry in std::fs::read_dir(directory).on("read the directory", directory)? {
        let entry = entry.on("read the directory", directory)?;
        let path = entry.path();
        let kind = entry.file_type().on("look at", &path)?;
        if entry.file_name() == "lost+found" {
            continue; // the file system's own, and root's
        }
        if kind.is_dir() {
            remove_links(&path)?;
        } else if !kind.is_file() {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Whether a directory can be brought to the state of this backup, before anything is touched.
///
/// # Errors
/// Exit code 4: its files are in no order, as the server sent them over the replication protocol.
pub(crate) fn check_order(marker: &Marker) -> Result<()> {
    match marker.in_order {
        true => Ok(()),
        false => Err(Error::refused(format!(
            "the files of backup {} are in no order, and --delta needs one",
            marker.id
        ))
        .hint("it came over the replication protocol: choose another with --backup, or restore with --force")),
    }
}

/// Removes what the backup does not have, below `root` and below each of `tablespaces`
/// (`pg_tblspc/OID/VERSION`). Memory: the names of one directory, and of all directories.
pub(crate) async fn remove_foreign(
    system: &System,
    marker: &Marker,
    root: &Path,
    tablespaces: Vec<String>,
) -> Result<()> {
    // Whoever gives this future up ends the thread as well.
    let (_stop, waiter) = Waiter::new();
    let walk = Walk::new(system, marker, &waiter)?;
    let root = root.to_owned();
    blocking(move || {
        let mut foreign = Foreign::new(&root);
        for member in walk {
            let (pack, member) = member?;
            match member.kind {
                MemberKind::Directory => {
                    foreign.directories.insert(member.path);
                }
                MemberKind::File => foreign.file(&member.target_path(), pack.is_last)?,
            }
        }
        foreign.end_directory()?;
        let tops = std::iter::once(String::new()).chain(tablespaces);
        for top in tops {
            waiter.check()?;
            foreign.sweep(&top)?;
        }
        Ok(())
    })
    .await
}

struct Foreign<'a> {
    root: &'a Path,
    directories: HashSet<String>,
    /// Directories whose files were compared.
    compared: HashSet<String>,
    /// The directory whose names come now, and its files.
    current: String,
    names: HashSet<String>,
}

impl<'a> Foreign<'a> {
    fn new(root: &'a Path) -> Self {
        Self {
            root,
            directories: HashSet::new(),
            compared: HashSet::new(),
            current: String::new(),
            names: HashSet::new(),
        }
    }

    fn file(&mut self, path: &str, is_last: bool) -> Result<()> {
        // The last pack is written anew in any case; signal files are never those of the source.
        if is_last || is_left_out(path) {
            return Ok(());
        }
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        if directory != self.current {
            self.end_directory()?;
            directory.clone_into(&mut self.current);
        }
        self.names.insert(name.to_owned());
        Ok(())
    }

    /// Removes the files of the current directory that the backup does not have.
    fn end_directory(&mut self) -> Result<()> {
        let directory = self.root.join(&self.current);
        let names = std::mem::take(&mut self.names);
        self.compared.insert(self.current.clone());
        if directory.is_dir() {
            remove_files(&directory, |name| names.contains(name))?;
        }
        Ok(())
    }

    /// Removes directories that the backup does not have, and files of those in which it has
    /// none.
    fn sweep(&self, directory: &str) -> Result<()> {
        let path = self.root.join(directory);
        if !path.is_dir() {
            return Ok(());
        }
        if !self.compared.contains(directory) {
            remove_files(&path, |_| false)?;
        }
        for entry in std::fs::read_dir(&path).on("read the directory", &path)? {
            let entry = entry.on("read the directory", &path)?;
            // A link here is one of those that were just made: it is not followed.
            if !entry.file_type().on("look at", entry.path())?.is_dir() {
                continue;
            }
            let name = entry.file_name();
            let below = name.to_str().map(|name| match directory {
                "" => name.to_owned(),
                _ => format!("{directory}/{name}"),
            });
            match below.filter(|below| self.directories.contains(below)) {
                Some(below) => self.sweep(&below)?,
                None if directory.is_empty() && is_ours(&name) => {}
                None => remove(&entry.path())?,
            }
        }
        Ok(())
    }
}

/// Removes regular files of a directory, but for those that are wanted and our own mark.
fn remove_files(directory: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let mut foreign: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(directory).on("read the directory", directory)? {
        let entry = entry.on("read the directory", directory)?;
        let name = entry.file_name();
        let is_wanted = name.to_str().is_some_and(&wanted) || is_ours(&name);
        if !is_wanted && entry.file_type().on("look at", entry.path())?.is_file() {
            foreign.push(entry.path());
        }
    }
    foreign.iter().try_for_each(|path| remove(path))
}
