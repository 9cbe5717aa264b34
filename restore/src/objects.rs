//! Small things that every part of a restore does: fetching an object and checking it, making
//! files and directories, and working on a thread that may block.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use seawall::digest::StoredDigest;
use seawall::error::{Error, IoContext, Result};
use seawall::repository::System;
use seawall::repository::marker::StoredObject;

/// A new file; what is there already is not ours, since the target was empty.
pub(crate) fn create(path: &Path, mode: u32) -> Result<File> {
    let open = || {
        OpenOptions::new()
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

/// Fetches a small object whole and checks its SHA-256.
pub(crate) async fn fetch_checked(
    system: &System,
    directory: &str,
    object: &StoredObject,
) -> Result<bytes::Bytes> {
    let key = format!("{directory}/{}", object.key);
    let bytes = system
        .store()
        .get_limited(&key, object.size)
        .await?
        .ok_or_else(|| missing(&object.key, system))?;
    let found = StoredDigest::of(&bytes);
    if found != object.sha256 {
        return Err(Error::failed(format!(
            "{} is damaged: its SHA-256 is {found}, {} was written",
            object.key, object.sha256
        ))
        .at(system.place()));
    }
    Ok(bytes)
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
