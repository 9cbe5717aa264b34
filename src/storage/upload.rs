//! Objects too large for memory: equal parts, several at a time, each of which can be sent
//! again on its own.
//!
//! The object appears whole, by its completion, or not at all. What is too small for one part
//! becomes a plain write.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::{MultipartId, PutMultipartOptions, PutPayload};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};

use super::error::{ErrorKind, StorageError};
use super::judge::upload_is_gone;
use super::local::PartSize;
use super::{Provider, Store};

const UPLOAD: &str = "upload";

/// Object stores refuse smaller parts (but the last), and more of them.
const SMALLEST_PART: usize = 5 * 1024 * 1024;
const MOST_PARTS: usize = 10_000;

/// Pieces below this size are copied together, so that a part is never a list of thousands.
const SMALL_PIECE: usize = 64 * 1024;

/// The number of a part, and what became of it.
type Landed = (usize, Result<PartId, StorageError>);

/// An object that is being written. See [`Store::upload`].
pub struct Upload {
    store: Store,
    key: String,
    location: Path,
    part_size: usize,
    /// A part under way takes one.
    slots: Arc<Semaphore>,
    pieces: Vec<Bytes>,
    tail: BytesMut,
    buffered: usize,
    total: u64,
    id: Option<MultipartId>,
    parts: Vec<Option<PartId>>,
    flying: JoinSet<Landed>,
    failed: bool,
}

impl Store {
    /// Begins a large object. Nothing is sent before the first part is full.
    ///
    /// At most `concurrency` parts of `part_size` bytes (object stores: 5 MiB at least) are
    /// under way; with the one being filled they bound the memory, as long as the pieces
    /// given are not small slices of large buffers.
    pub async fn upload(
        &self,
        key: &str,
        part_size: usize,
        concurrency: usize,
    ) -> Result<Upload, StorageError> {
        let smallest = match self.inner.provider {
            Provider::Local | Provider::Memory => 1,
            Provider::S3 | Provider::Google | Provider::Azure => SMALLEST_PART,
        };
        Ok(Upload {
            location: self.inner.location(UPLOAD, key)?,
            store: self.clone(),
            key: key.to_owned(),
            part_size: part_size.max(smallest),
            slots: Arc::new(Semaphore::new(concurrency.max(1))),
            pieces: Vec::new(),
            tail: BytesMut::new(),
            buffered: 0,
            total: 0,
            id: None,
            parts: Vec::new(),
            flying: JoinSet::new(),
            failed: false,
        })
    }
}

impl Upload {
    /// Shares the parts that may be under way with other uploads: it has as many as those leave
    /// to it.
    pub fn sharing(mut self, slots: Arc<Semaphore>) -> Self {
        self.slots = slots;
        self
    }

    /// Adds bytes. Waits while the parts under way are as many as allowed.
    ///
    /// After an error the upload is lost: abort or drop it.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), StorageError> {
        if self.failed {
            return Err(self.error(ErrorKind::Other, "an earlier part failed"));
        }
        self.total += bytes.len() as u64;
        self.store.inner.allow(bytes.len() as u64).await;
        while !bytes.is_empty() {
            let room = self.part_size - self.buffered;
            let piece = bytes.split_to(bytes.len().min(room));
            self.buffered += piece.len();
            if piece.len() < SMALL_PIECE {
                self.tail.extend_from_slice(&piece);
            } else {
                self.close_tail();
                self.pieces.push(piece);
            }
            if self.tail.len() >= 4 * SMALL_PIECE {
                self.close_tail();
            }
            if self.buffered == self.part_size {
                self.send_part().await?;
            }
        }
        Ok(())
    }

    /// Sends what is left and completes the object. Returns its size.
    ///
    /// After `Ok` the object is durable, complete and of that size. When the answer to the
    /// completion is lost, the object itself is asked.
    pub async fn finish(mut self) -> Result<u64, StorageError> {
        if self.failed {
            return Err(self.error(ErrorKind::Other, "an earlier part failed"));
        }
        if self.id.is_none() {
            let body = self.take_buffer();
            self.store.put_allowed(&self.key, body).await?;
            return Ok(self.total);
        }
        let result = self.complete().await;
        match result {
            Ok(()) => {
                self.id = None;
                Ok(self.total)
            }
            Err(error) => {
                self.discard().await;
                Err(error)
            }
        }
    }

    /// Gives the object up and removes what was sent, as far as the store lets us.
    pub async fn abort(mut self) {
        self.discard().await;
    }

    async fn complete(&mut self) -> Result<(), StorageError> {
        if self.buffered > 0 {
            self.send_part().await?;
        }
        while !self.flying.is_empty() {
            self.land_part().await?;
        }
        let parts: Vec<PartId> = self.parts.iter().flatten().cloned().collect();
        let Some(id) = self.id.clone().filter(|_| parts.len() == self.parts.len()) else {
            return Err(self.error(ErrorKind::Other, "a part is missing"));
        };
        let (inner, location, id, parts) = (&self.store.inner, &self.location, &id, &parts);
        // No bytes move, but local files are flushed and object stores put the parts together:
        // the usual allowance for a link of 256 KiB/s would wait hours for a dead store.
        let completed = inner
            .run("complete", &self.key, self.total / 16, |_| async move {
                match inner
                    .backend
                    .complete_multipart(location, id, parts.clone())
                    .await
                {
                    Ok(_) => Ok(true),
                    // The upload is not there (any more): an earlier attempt completed it?
                    Err(error) if upload_is_gone(&error) => Ok(false),
                    Err(error) => Err(error.into()),
                }
            })
            .await;
        let stored = match &completed {
            Ok(by_this_attempt) => {
                if !by_this_attempt {
                    self.store.confirm_durable(&self.key).await?;
                }
                self.store.head(&self.key).await?
            }
            // Nothing but the file system stands between us and local files: there an error
            // means what it says, also that of the last fsync.
            Err(_) if inner.provider == Provider::Local => None,
            Err(error) => match self.store.head(&self.key).await {
                Ok(Some(stored)) if stored.size == self.total => {
                    tracing::warn!("{error}, but the object is there, whole");
                    return Ok(());
                }
                _ => None,
            },
        };
        completed?;
        match stored {
            Some(stored) if stored.size == self.total => Ok(()),
            Some(stored) => {
                let text = format!(
                    "{} bytes were written, {} are there",
                    self.total, stored.size
                );
                Err(self.error(ErrorKind::Corrupt, &text))
            }
            None => Err(self.error(ErrorKind::Other, "the store lost the upload")),
        }
    }

    /// Sends the buffer as the next part, once there is room for it.
    async fn send_part(&mut self) -> Result<(), StorageError> {
        if self.parts.len() == MOST_PARTS && self.store.inner.provider != Provider::Local {
            self.failed = true;
            return Err(self.error(
                ErrorKind::Misconfigured,
                "object stores take 10,000 parts at most: larger parts are needed",
            ));
        }
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        while let Some(landed) = self.flying.try_join_next() {
            self.landed(landed)?;
        }
        let id = match &self.id {
            Some(id) => id.clone(),
            None => self.begin().await?,
        };
        let body = self.take_buffer();
        let index = self.parts.len();
        self.parts.push(None);
        let (store, key, location) = (self.store.clone(), self.key.clone(), self.location.clone());
        self.flying.spawn(async move {
            let _slot = slot;
            let (inner, location, id, body) = (&store.inner, &location, &id, &body);
            let sent = inner
                .run(
                    "write a part of",
                    &key,
                    body.content_length() as u64,
                    |_| async move {
                        Ok(inner
                            .backend
                            .put_part(location, id, index, body.clone())
                            .await?)
                    },
                )
                .await;
            (index, sent)
        });
        Ok(())
    }

    async fn begin(&mut self) -> Result<MultipartId, StorageError> {
        let inner = &self.store.inner;
        let mut options = PutMultipartOptions::default();
        if inner.provider == Provider::Local {
            options.extensions.insert(PartSize(self.part_size as u64));
        }
        let begun = inner
            .run("begin", &self.key, 0, |_| async {
                let options = options.clone();
                Ok(inner
                    .backend
                    .create_multipart_opts(&self.location, options)
                    .await?)
            })
            .await;
        self.failed = begun.is_err();
        let id = begun?;
        self.id = Some(id.clone());
        Ok(id)
    }

    /// Waits for one part to arrive.
    async fn land_part(&mut self) -> Result<(), StorageError> {
        match self.flying.join_next().await {
            None => Ok(()),
            Some(landed) => self.landed(landed),
        }
    }

    fn landed(&mut self, landed: Result<Landed, JoinError>) -> Result<(), StorageError> {
        let error = match landed {
            Ok((index, Ok(part))) => {
                self.parts[index] = Some(part);
                return Ok(());
            }
            Ok((_, Err(error))) => error,
            Err(error) => self.error(ErrorKind::Other, &error.to_string()),
        };
        self.failed = true;
        Err(error)
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push(self.tail.split().freeze());
        }
    }

    fn take_buffer(&mut self) -> PutPayload {
        self.close_tail();
        self.buffered = 0;
        self.pieces.drain(..).collect()
    }

    async fn discard(&mut self) {
        self.flying.shutdown().await;
        if let Some(id) = self.id.take() {
            abort(&self.store, &self.location, &id).await;
        }
    }

    fn error(&self, kind: ErrorKind, cause: &str) -> StorageError {
        StorageError::new(UPLOAD, &self.key, self.store.url(), kind, cause)
    }
}

/// Best effort: what stays behind is swept, or removed by the bucket's lifecycle rule.
async fn abort(store: &Store, location: &Path, id: &MultipartId) {
    let limit = store.inner.retry.attempt_limit(0);
    let abort = store.inner.backend.abort_multipart(location, id);
    if let Ok(Err(error)) = tokio::time::timeout(limit, abort).await {
        tracing::debug!(
            "cannot abort the upload of {location} in {}: {error}",
            store.url()
        );
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let (Some(id), Ok(runtime)) = (self.id.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let (store, location) = (self.store.clone(), self.location.clone());
        let mut flying = std::mem::take(&mut self.flying);
        runtime.spawn(async move {
            flying.shutdown().await;
            abort(&store, &location, &id).await;
        });
    }
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload")
            .field("key", &self.key)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}
