//! Listings: sorted and whole, as a stream in bounded memory, and of one directory level.

use std::sync::Arc;

use futures::stream::{BoxStream, Stream, StreamExt, TryStreamExt};
use object_store::ObjectMeta;
use object_store::path::Path;

use super::error::{Failure, StorageError};
use super::judge::judge;
use super::{Inner, Provider, Store};

const LIST: &str = "list";

/// What a store knows of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The whole key.
    pub key: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub modified: jiff::Timestamp,
}

impl ObjectInfo {
    /// `None` for what lies outside the store's prefix.
    pub(super) fn new(inner: &Inner, meta: &ObjectMeta) -> Option<Self> {
        let modified = jiff::Timestamp::new(
            meta.last_modified.timestamp(),
            meta.last_modified.timestamp_subsec_nanos().min(999_999_999) as i32,
        );
        Some(Self {
            key: inner.key_of(&meta.location)?,
            size: meta.size,
            modified: modified.unwrap_or_default(),
        })
    }
}

/// One level of a store, both parts sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The whole keys of the directories that hold at least one object, without a slash at
    /// the end.
    pub directories: Vec<String>,
    /// The objects that lie directly here.
    pub objects: Vec<ObjectInfo>,
}

/// What to do when a listing breaks off.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Resume {
    /// The order is that of the keys: go on behind the last one.
    BehindLast,
    /// Any order: start again, as long as nothing was handed out.
    OnlyAtStart,
    /// The caller starts again.
    Never,
}

impl Store {
    /// All objects below a directory (whole path segments; empty for everything), sorted by
    /// key, those after the key `after` only. An absent directory has none.
    pub async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Vec<ObjectInfo>, StorageError> {
        let attempts = self.inner.retry.attempts.max(1);
        let (resume, mut attempt) = match self.ordered() {
            true => (Resume::BehindLast, attempts),
            false => (Resume::Never, 1),
        };
        loop {
            let listing = self.start_list(prefix, after, resume);
            match listing.try_collect::<Vec<_>>().await {
                Ok(mut objects) => {
                    objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
                    return Ok(objects);
                }
                Err(error) if !error.is_retryable() || attempt >= attempts => return Err(error),
                Err(error) => {
                    let wait = self.inner.retry.wait(attempt);
                    self.inner
                        .note_retry(LIST, prefix, attempt, wait, &error.to_string());
                    tokio::time::sleep(wait).await;
                    attempt += 1;
                }
            }
        }
    }

    /// As [`list`](Self::list), but object by object, in bounded memory and without a promise
    /// about the order. On local files a failure after the first object ends it.
    pub fn list_stream(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> impl Stream<Item = Result<ObjectInfo, StorageError>> + Send + Unpin + 'static {
        let resume = match self.ordered() {
            true => Resume::BehindLast,
            false => Resume::OnlyAtStart,
        };
        self.start_list(prefix, after, resume)
    }

    /// One level of the store: the objects in a directory, and the directories in it.
    pub async fn list_directory(&self, prefix: &str) -> Result<Listing, StorageError> {
        let inner = &self.inner;
        let directory = inner.directory(LIST, prefix)?;
        let listing = inner
            .run(LIST, prefix, 0, |_| async {
                Ok(inner
                    .backend
                    .list_with_delimiter(directory.as_ref())
                    .await?)
            })
            .await?;
        let mut directories: Vec<String> = listing
            .common_prefixes
            .iter()
            .filter_map(|path| inner.key_of(path))
            .collect();
        let mut objects: Vec<ObjectInfo> = listing
            .objects
            .iter()
            .filter_map(|meta| ObjectInfo::new(inner, meta))
            .collect();
        directories.sort_unstable();
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(Listing {
            directories,
            objects,
        })
    }

    fn ordered(&self) -> bool {
        self.inner.provider != Provider::Local
    }

    fn start_list(
        &self,
        prefix: &str,
        after: Option<&str>,
        resume: Resume,
    ) -> BoxStream<'static, Result<ObjectInfo, StorageError>> {
        let inner = Arc::clone(&self.inner);
        let places = inner.directory(LIST, prefix).and_then(|directory| {
            let after = after.map(|key| inner.location(LIST, key)).transpose()?;
            Ok((directory, after))
        });
        let (directory, after) = match places {
            Ok(places) => places,
            Err(error) => return futures::stream::iter([Err(error)]).boxed(),
        };
        let lister = Lister {
            inner,
            prefix: prefix.to_owned(),
            directory,
            after,
            resume,
            current: None,
            failed: 0,
        };
        futures::stream::try_unfold(lister, |mut lister| async move {
            Ok(lister.next().await?.map(|object| (object, lister)))
        })
        .boxed()
    }
}

/// The state of a listing: where it is, and how often it broke.
struct Lister {
    inner: Arc<Inner>,
    prefix: String,
    directory: Option<Path>,
    after: Option<Path>,
    resume: Resume,
    current: Option<BoxStream<'static, object_store::Result<ObjectMeta>>>,
    failed: u32,
}

impl Lister {
    async fn next(&mut self) -> Result<Option<ObjectInfo>, StorageError> {
        loop {
            let inner = &self.inner;
            let current = self.current.get_or_insert_with(|| {
                inner.count_request();
                // Garage lists nothing at all when told to start before the prefix.
                let inside = self.after.as_ref().filter(|after| {
                    let directory = self.directory.as_ref();
                    directory.is_none_or(|directory| after.prefix_matches(directory))
                });
                match inside {
                    Some(after) => inner
                        .backend
                        .list_with_offset(self.directory.as_ref(), after),
                    None => inner.backend.list(self.directory.as_ref()),
                }
            });
            let limit = inner.retry.attempt_limit(0);
            let failure: Failure = match tokio::time::timeout(limit, current.next()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(meta))) => {
                    if self
                        .after
                        .as_ref()
                        .is_some_and(|after| meta.location <= *after)
                    {
                        continue;
                    }
                    self.failed = 0;
                    match self.resume {
                        Resume::BehindLast => self.after = Some(meta.location.clone()),
                        Resume::OnlyAtStart => self.resume = Resume::Never,
                        Resume::Never => {}
                    }
                    match ObjectInfo::new(inner, &meta) {
                        Some(object) => return Ok(Some(object)),
                        None => continue,
                    }
                }
                Ok(Some(Err(error))) => error.into(),
                Err(_) => Failure::Timeout(limit),
            };
            self.current = None;
            self.failed += 1;
            let verdict = judge(failure)?;
            let used_up = self.failed >= inner.retry.attempts.max(1);
            if !verdict.retryable || used_up || self.resume == Resume::Never {
                let tried = match self.failed {
                    1 => String::new(),
                    failed => format!(" ({failed} attempts)"),
                };
                let url = &inner.url;
                return Err(StorageError::from_verdict(
                    LIST,
                    &self.prefix,
                    url,
                    verdict,
                    &tried,
                ));
            }
            let wait = inner.retry.wait(self.failed);
            inner.note_retry(LIST, &self.prefix, self.failed, wait, &verdict.cause);
            tokio::time::sleep(wait).await;
        }
    }
}
