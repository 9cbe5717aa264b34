//! Small things that every part of a restore does: making files and directories, and working on a thread that may block.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use seawall::error::{Error, IoContext, Result};
use seawall::repository::System;

/// A new file; what is there already is not ours, since the target was empty.
pub(crate) fn create(path: &Path, mode: u32) -> Result<File> {
    let open = || {
        OpenOptions::new()
            // A delta reads back what it compares.
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)
    };
    match open() {
        // Its directory may be a member of another pack that comes later.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                make_directory(parent)?;
            }
            open()
        }
        opened => opened,
    }
    .on("create", path)
}

pub(crate) fn make_directory(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .on("make", path)
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .on("set the mode of", path)
}

/// Removes what is there, if anything is. A link is removed, never what it points at.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.on("remove", path),
    }
}

pub(crate) fn missing(key: &str, system: &System) -> Error {
    Error::failed(format!(
        "{key} is named by the backup and is not in the store"
    ))
    .at(system.place())
    .hint("the backup is incomplete; choose another with --backup, or another --repository")
}

pub(crate) fn damaged(object: &str, error: &std::io::Error) -> Error {
    Error::failed(format!(
        "{object} is damaged or did not arrive whole: {error}"
    ))
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::failed("a thread of the restore died").because(error))?
}
