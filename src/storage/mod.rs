//! All knowledge of object stores: opening them, retrying, create-only writes, large uploads,
//! listings. Nothing here knows PostgreSQL or what a key means.
//!
//! What every store promises through [`Store`], whatever lies behind it:
//!
//! - `Ok` of a write means durable and complete; no reader ever sees a part of an object.
//! - *Absent* is the value `None`, given only when the store said so itself and for certain;
//!   every doubt is an error.
//! - Every operation ends in bounded time and bounded memory, after bounded retries that are
//!   counted and logged.
//!
//! A file operation that hangs is given up, but its thread can't be: a program that ends
//! after one must leave by `std::process::exit`, or the runtime waits for the thread.

mod bandwidth;
#[cfg(any(test, feature = "fault-injection"))]
pub mod conformance;
mod delete;
mod error;
pub mod fault;
#[cfg(test)]
pub(crate) mod generated;
mod judge;
mod list;
mod local;
mod open;
mod options;
mod read;
mod retry;
mod s3;
#[cfg(any(test, feature = "fault-injection"))]
pub mod simulated;
#[cfg(any(test, feature = "fault-injection"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod upload;
mod write;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use object_store::ObjectStore;
use object_store::multipart::MultipartStore;
use object_store::path::Path;

pub use bandwidth::Bandwidth;
pub use error::{ErrorKind, StorageError};
pub use list::{Listing, ObjectInfo};
pub use options::Options;
pub use read::ObjectStream;
pub use retry::RetryPolicy;
pub use s3::{CopyLimits, ServerSide};
pub use upload::Upload;
pub use write::{CreateOnly, Created};

use error::Failure;
use judge::certainly_absent;
use local::LocalFiles;

/// What it takes to open a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreSettings {
    /// `file:///path`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`,
    /// or `memory:///name` (shared by all who open that name in this process; without a
    /// name, a new one each time).
    pub url: String,
    /// The options that this kind of store knows.
    pub options: Options,
    /// How often and how long operations are tried.
    pub retry: RetryPolicy,
}

impl StoreSettings {
    /// A store at this URL, without options and with the usual retries.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            ..Self::default()
        }
    }
}

/// An open store. Cloning is cheap; clones share counters and connections.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// What a store must be able to do. Parts of large objects go through [`MultipartStore`],
/// where each has its number and can be sent again.
pub(crate) trait Backend: ObjectStore + MultipartStore {}
impl<T: ObjectStore + MultipartStore> Backend for T {}

/// Where the bytes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Provider {
    Local,
    Memory,
    S3,
    Google,
    Azure,
}

struct Inner {
    url: String,
    provider: Provider,
    backend: Arc<dyn Backend>,
    /// The same files as `backend`, for what object_store has no words for.
    local: Option<LocalFiles>,
    /// The same bucket by S3's own interface, or why it is not used.
    s3: Result<Arc<s3::Access>, String>,
    prefix: Path,
    retry: RetryPolicy,
    bandwidth: Option<Arc<Bandwidth>>,
    retries: AtomicU64,
    requests: AtomicU64,
}

impl Store {
    /// Opens a store. The network is not touched; a local directory must exist.
    ///
    /// Unknown options are refused with the nearest known one. Credentials come from the
    /// options; only where these hold none at all they come from the provider's usual
    /// environment variables or its metadata service, so that two stores never mix theirs.
    pub fn open(settings: &StoreSettings) -> Result<Self, StorageError> {
        let opened = open::open(settings, &|name| std::env::var(name).ok())?;
        let store = Self {
            inner: Arc::new(Inner {
                url: opened.url,
                provider: opened.provider,
                backend: opened.backend,
                local: opened.local,
                s3: opened.s3,
                prefix: opened.prefix,
                retry: settings.retry,
                bandwidth: None,
                retries: AtomicU64::new(0),
                requests: AtomicU64::new(0),
            }),
        };
        fault::from_environment(store)
    }

    /// Makes the directory of a new `file://` repository, with its parents, durably and with
    /// mode 0750 (less the umask). Other stores need nothing: their buckets are made by hand.
    pub fn create_root(url: &str) -> Result<(), StorageError> {
        open::create_root(url)
    }

    /// A new store in memory, for tests.
    pub fn memory() -> Result<Self, StorageError> {
        Self::open(&StoreSettings::new("memory:///"))
    }

    /// The URL, for messages. It never holds credentials.
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// How many attempts failed and were repeated.
    pub fn retries(&self) -> u64 {
        self.inner.retries.load(Ordering::Relaxed)
    }

    /// How many attempts were made, repeated ones included. A listing counts once.
    pub fn requests(&self) -> u64 {
        self.inner.requests.load(Ordering::Relaxed)
    }

    /// The retry policy that this store was opened with.
    pub fn retry_policy(&self) -> RetryPolicy {
        self.inner.retry
    }

    /// Makes an object durable that another process may have written and not yet flushed: on
    /// local files it fsyncs the file and every directory up to the root. An absent object is
    /// an error. Other stores acknowledge only what is durable: nothing to do.
    pub async fn confirm_durable(&self, key: &str) -> Result<(), StorageError> {
        const ACTION: &str = "make durable";
        let location = self.inner.location(ACTION, key)?;
        let Some(local) = &self.inner.local else {
            return Ok(());
        };
        let inner = &self.inner;
        inner
            .run(ACTION, key, 0, |_| async {
                match local.confirm_durable(&location).await {
                    Err(error) if certainly_absent(&error) => {
                        let (kind, url) = (ErrorKind::Other, &inner.url);
                        let error = StorageError::new(ACTION, key, url, kind, "it is not there");
                        Err(Failure::Final(error))
                    }
                    other => Ok(other?),
                }
            })
            .await
    }

    /// Removes what writers that died left behind below `prefix`, if nobody has touched it for
    /// `older_than`, and says how much it was.
    ///
    /// On local files these are staging files `name#N`, on S3 unfinished multipart uploads. Other
    /// stores remove theirs by themselves (Azure), or by a lifecycle rule of the bucket (Google).
    pub async fn sweep_leftovers(
        &self,
        prefix: &str,
        older_than: Duration,
    ) -> Result<usize, StorageError> {
        const ACTION: &str = "sweep leftovers below";
        let location = self.inner.directory(ACTION, prefix)?.unwrap_or_default();
        if let Ok(access) = &self.inner.s3 {
            return self.abort_dead_uploads(access, prefix, older_than).await;
        }
        let Some(local) = &self.inner.local else {
            return Ok(0);
        };
        self.inner
            .run(ACTION, prefix, 0, |_| async {
                Ok(local.sweep(&location, older_than).await?)
            })
            .await
    }

    /// This store, to which no more than that is written; what is read is not counted.
    pub fn limited(&self, bandwidth: Bandwidth) -> Self {
        let s3 = self.inner.s3.clone();
        self.but(
            Arc::clone(&self.inner.backend),
            s3,
            Some(Arc::new(bandwidth)),
        )
    }

    /// This store, with another backend in the place of its own (the fault store).
    pub(crate) fn with_backend(
        &self,
        wrap: impl FnOnce(Arc<dyn Backend>) -> Arc<dyn Backend>,
    ) -> Self {
        let backend = wrap(Arc::clone(&self.inner.backend));
        // What goes past the backend would go past its faults.
        let s3 = Err("the store is wrapped".to_owned());
        self.but(backend, s3, self.inner.bandwidth.clone())
    }

    fn but(
        &self,
        backend: Arc<dyn Backend>,
        s3: Result<Arc<s3::Access>, String>,
        bandwidth: Option<Arc<Bandwidth>>,
    ) -> Self {
        let inner = &self.inner;
        Self {
            inner: Arc::new(Inner {
                url: inner.url.clone(),
                provider: inner.provider,
                backend,
                local: inner.local.clone(),
                s3,
                prefix: inner.prefix.clone(),
                retry: inner.retry,
                bandwidth,
                retries: AtomicU64::new(0),
                requests: AtomicU64::new(0),
            }),
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.inner.url).finish()
    }
}

impl Inner {
    /// Waits until so much more may be written.
    async fn allow(&self, bytes: u64) {
        if let Some(bandwidth) = &self.bandwidth {
            bandwidth.take(bytes).await;
        }
    }

    /// The backend's name for a key. Keys that some store can't hold are refused by all.
    fn location(&self, action: &'static str, key: &str) -> Result<Path, StorageError> {
        let wrong =
            |why: &str| StorageError::new(action, key, &self.url, ErrorKind::Misconfigured, why);
        if key.is_empty() || key.ends_with('/') || key.starts_with('/') {
            return Err(wrong("this is no key of an object"));
        }
        let name = key.rsplit('/').next().unwrap_or(key);
        if local::is_staging_name(name) {
            return Err(wrong("names like name#1 are taken for files being written"));
        }
        let parsed = Path::parse(key).map_err(|error| wrong(&error.to_string()))?;
        Ok(self.prefix.parts().chain(parsed.parts()).collect())
    }

    /// The backend's name for a directory; `None` for the backend's own root.
    fn directory(&self, action: &'static str, prefix: &str) -> Result<Option<Path>, StorageError> {
        let prefix = prefix.trim_end_matches('/');
        let location = match prefix {
            "" => self.prefix.clone(),
            _ => self.location(action, prefix)?,
        };
        Ok((!location.as_ref().is_empty()).then_some(location))
    }

    /// The key of what the backend calls by this name; `None` if it lies elsewhere.
    fn key_of(&self, location: &Path) -> Option<String> {
        let prefix = self.prefix.as_ref();
        if prefix.is_empty() {
            return Some(location.as_ref().to_owned());
        }
        let key = location.as_ref().strip_prefix(prefix)?.strip_prefix('/')?;
        Some(key.to_owned())
    }

    fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn count_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }
}
