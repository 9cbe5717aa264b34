//! Local files as a store: everything that object_store's own leaves open.
//!
//! - Writes and deletions are durable, with every directory up to the root, before they are
//!   acknowledged.
//! - A root that is missing (a disk that is not mounted) is an error: nothing in it is
//!   "absent", and nothing is created in its place.
//! - Parts of a large object go to a staging file `name#N` beside it, each at its offset, so
//!   that one part can be written again; completion flushes, renames and flushes the
//!   directory. Such files are never listed.
//! - Directories without objects are not listed, as in other stores.

mod parts;

use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path as FsPath, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

pub(super) use parts::PartSize;

use super::error::{RootMissing, SyncFailed};
use crate::durable;

/// A directory as a store.
#[derive(Debug, Clone)]
pub(super) struct LocalFiles {
    files: LocalFileSystem,
    root: Arc<Root>,
    /// Directories whose names are known to be durable up to the root, by device and inode,
    /// since another process may have removed and made them again.
    durable: Arc<Mutex<HashMap<PathBuf, (u64, u64)>>>,
}

impl LocalFiles {
    pub(super) fn open(root: &FsPath) -> Result<Self> {
        let root = Root::open(root)?;
        // Automatic cleanup: empty directories would outlive the backups they held.
        let files = LocalFileSystem::new_with_prefix(&root.path)?
            .with_fsync(true)
            .with_automatic_cleanup(true);
        Ok(Self {
            files,
            root: Arc::new(root),
            durable: Arc::default(),
        })
    }

    /// Makes an object durable that this process did not write: the one who did may have died
    /// between its rename and its fsync.
    pub(super) async fn confirm_durable(&self, location: &Path) -> Result<()> {
        let path = self.files.path_to_filesystem(location)?;
        let root = Arc::clone(&self.root);
        blocking(move || {
            root.check()?;
            let open = |path: &FsPath| File::open(path).map_err(|e| missing_or_generic(e, path));
            sync(&open(&path)?, &path)?;
            for directory in directories_up_to(&root.path, &path) {
                sync(&open(directory)?, directory)?;
            }
            Ok(())
        })
        .await
    }

    /// Removes staging files below `prefix` that nobody has written to for `older_than`.
    pub(super) async fn sweep(&self, prefix: &Path, older_than: Duration) -> Result<usize> {
        let mut directory = self.root.path.clone();
        directory.extend(prefix.parts().map(|part| part.as_ref().to_owned()));
        let root = Arc::clone(&self.root);
        blocking(move || {
            root.check()?;
            let Some(before) = SystemTime::now().checked_sub(older_than) else {
                return Ok(0);
            };
            let mut removed = 0;
            sweep_directory(&root.path, &directory, before, &mut removed)
                .map_err(|error| generic(error, &directory))?;
            Ok(removed)
        })
        .await
    }

    /// Replaces "not found" by an error when it is the root that is not there.
    async fn unless_root_is_missing<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Err(Error::NotFound { path, source }) => {
                self.require_root().await?;
                Err(Error::NotFound { path, source })
            }
            other => other,
        }
    }

    async fn require_root(&self) -> Result<()> {
        let root = Arc::clone(&self.root);
        blocking(move || root.check()).await
    }

    /// Makes the directories above an object durable, unless they are known to be.
    ///
    /// object_store fsyncs the ones that *it* made; one that another process made a moment
    /// ago may not be durable yet, and an object in it neither.
    async fn make_directories_durable(&self, location: &Path) -> Result<()> {
        let path = self.files.path_to_filesystem(location)?;
        let (root, known) = (Arc::clone(&self.root), Arc::clone(&self.durable));
        blocking(move || {
            // What was written may lie in a directory that took the place of the repository's.
            root.check()?;
            let Some(parent) = path.parent() else {
                return Ok(());
            };
            let identity = identity(parent).map_err(|error| generic(error, parent))?;
            let is_known = |known: &Mutex<HashMap<PathBuf, (u64, u64)>>| {
                lock(known).get(parent) == Some(&identity)
            };
            if parent == root.path || is_known(&known) {
                return Ok(());
            }
            for directory in directories_up_to(&root.path, parent) {
                let opened = File::open(directory).map_err(|error| generic(error, directory))?;
                sync(&opened, directory)?;
            }
            let mut known = lock(&known);
            if known.len() >= 4096 {
                known.clear();
            }
            known.insert(parent.to_path_buf(), identity);
            Ok(())
        })
        .await
    }
}

const STORE: &str = "local files";

/// Makes the root directory of a new repository, with its parents, mode 0750 (less the
/// umask), and makes their names durable. An existing one is left alone.
pub(super) fn create_root(root: &FsPath) -> io::Result<()> {
    if root.is_dir() {
        return Ok(());
    }
    let mut first_existing = root;
    while let Some(parent) = first_existing.parent() {
        first_existing = parent;
        if first_existing.exists() {
            break;
        }
    }
    DirBuilder::new().recursive(true).mode(0o750).create(root)?;
    for directory in root.ancestors().skip(1) {
        durable::sync_directory(directory)?;
        if directory == first_existing {
            break;
        }
    }
    Ok(())
}

/// `name#123`: how object_store and we name a file that is being written.
pub(super) fn is_staging_name(name: &str) -> bool {
    name.split_once('#')
        .is_some_and(|(_, digits)| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// The directory that holds everything, as it was when it was opened.
#[derive(Debug)]
struct Root {
    path: PathBuf,
    /// Device and inode. When its disk is unmounted another directory lies at its path.
    identity: (u64, u64),
}

impl Root {
    fn open(path: &FsPath) -> Result<Self> {
        let identity = identity_of_root(path)?;
        // As LocalFileSystem does, so that both name the same files.
        let path = path.canonicalize().map_err(|error| generic(error, path))?;
        Ok(Self { path, identity })
    }

    /// Whether it is there, and is still the same.
    fn check(&self) -> Result<()> {
        match identity_of_root(&self.path)? {
            identity if identity == self.identity => Ok(()),
            _ => Err(missing_root(&self.path)),
        }
    }
}

fn identity_of_root(root: &FsPath) -> Result<(u64, u64)> {
    match root.metadata() {
        Ok(metadata) if metadata.is_dir() => Ok((metadata.dev(), metadata.ino())),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(generic(error, root)),
        _ => Err(missing_root(root)),
    }
}

fn missing_root(root: &FsPath) -> Error {
    Error::Generic {
        store: STORE,
        source: Box::new(RootMissing(root.display().to_string())),
    }
}

fn directories_up_to<'a>(root: &'a FsPath, path: &'a FsPath) -> impl Iterator<Item = &'a FsPath> {
    path.ancestors()
        .skip(1)
        .take_while(move |directory| directory.starts_with(root))
}

fn identity(path: &FsPath) -> io::Result<(u64, u64)> {
    path.metadata()
        .map(|metadata| (metadata.dev(), metadata.ino()))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn generic(error: io::Error, path: &FsPath) -> Error {
    let text = format!("{}: {error}", path.display());
    Error::Generic {
        store: STORE,
        source: Box::new(io::Error::new(error.kind(), text)),
    }
}

/// Flushes a file or directory; a failure is final.
fn sync(file: &File, path: &FsPath) -> Result<()> {
    file.sync_all().map_err(|error| Error::Generic {
        store: STORE,
        source: Box::new(SyncFailed(path.display().to_string(), error)),
    })
}

fn missing_or_generic(error: io::Error, path: &FsPath) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::NotFound {
            path: path.display().to_string(),
            source: Box::new(error),
        },
        _ => generic(error, path),
    }
}

/// Runs file work off the runtime's own threads, for a disk may hang.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|source| Error::JoinError { source })?
}

fn sweep_directory(
    root: &FsPath,
    directory: &FsPath,
    before: SystemTime,
    removed: &mut usize,
) -> io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            sweep_directory(root, &path, before, removed)?;
        } else if kind.is_file() && entry.file_name().to_str().is_some_and(is_staging_name) {
            // It may be renamed or removed under our hands: then it is no leftover.
            let old = entry
                .metadata()
                .and_then(|m| m.modified())
                .is_ok_and(|at| at < before);
            if old && std::fs::remove_file(&path).is_ok() {
                tracing::info!("removed {}, left behind by a dead writer", path.display());
                *removed += 1;
                remove_empty_directories(root, &path);
            }
        }
    }
    Ok(())
}

/// Directories without objects are of no use; one in use can't be removed.
fn remove_empty_directories(root: &FsPath, path: &FsPath) {
    for directory in directories_up_to(root, path) {
        if directory == root || std::fs::remove_dir(directory).is_err() {
            break;
        }
    }
}

fn holds_an_object(directory: &FsPath) -> io::Result<bool> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let found = if path.is_dir() {
            holds_an_object(&path)?
        } else {
            !entry.file_name().to_str().is_some_and(is_staging_name)
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

impl std::fmt::Display for LocalFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "files below {}", self.root.path.display())
    }
}

#[async_trait]
impl ObjectStore for LocalFiles {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        // Or object_store would make the directory anew, on the wrong disk.
        self.require_root().await?;
        let result = self.files.put_opts(location, payload, opts).await?;
        self.make_directories_durable(location).await?;
        Ok(result)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.require_root().await?;
        self.files.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let result = self.files.get_opts(location, options).await;
        self.unless_root_is_missing(result).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        self.files
            .delete_stream(locations)
            .then(move |deleted| {
                let store = store.clone();
                async move {
                    let location = store.unless_root_is_missing(deleted).await?;
                    let path = store.files.path_to_filesystem(&location)?;
                    blocking(move || {
                        // Emptied directories went with it.
                        let left = path
                            .ancestors()
                            .skip(1)
                            .find(|directory| directory.is_dir());
                        match left.map(durable::sync_directory) {
                            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                                Err(generic(error, &path))
                            }
                            _ => Ok(location),
                        }
                    })
                    .await
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.then_require_root(self.files.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.then_require_root(self.files.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let mut listing = self.files.list_with_delimiter(prefix).await?;
        let root = Arc::clone(&self.root);
        blocking(move || {
            root.check()?;
            let mut kept = Vec::with_capacity(listing.common_prefixes.len());
            for location in listing.common_prefixes {
                let mut directory = root.path.clone();
                directory.extend(location.parts().map(|part| part.as_ref().to_owned()));
                if holds_an_object(&directory).map_err(|error| generic(error, &directory))? {
                    kept.push(location);
                }
            }
            listing.common_prefixes = kept;
            Ok(listing)
        })
        .await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.require_root().await?;
        let source = self.files.path_to_filesystem(from)?;
        let target = self.files.path_to_filesystem(to)?;
        // A copy is a link, and renaming a link over another of the same file does nothing: the
        // staging file of a second attempt would stay.
        let is_there = blocking(move || {
            Ok(identity(&source).is_ok_and(|source| identity(&target).ok() == Some(source)))
        });
        if !is_there.await? {
            self.files.copy_opts(from, to, options).await?;
        }
        self.make_directories_durable(to).await
    }
}

impl LocalFiles {
    /// A listing that ends with a look at the root: without one, a disk that went away would
    /// look like an empty repository.
    fn then_require_root(
        &self,
        listing: BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let store = self.clone();
        let last_look = futures::stream::once(async move { store.require_root().await })
            .try_filter_map(|()| async { Ok(None) });
        listing.chain(last_look).boxed()
    }
}
