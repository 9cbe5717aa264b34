//! Reading objects: whole, in part, and as a stream that survives a connection that breaks in
//! the middle.
//!
//! A reader gets exactly the bytes that were promised, from one version of the object, or an
//! error; never fewer and never more.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::stream::{BoxStream, Stream, StreamExt};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, GetResultPayload};

use super::error::{ErrorKind, Failure, StorageError};
use super::judge::{certainly_absent, judge};
use super::{Inner, Store};
use crate::digest::{StoredDigest, StoredHasher};

const READ: &str = "read";

/// Local files are read in pieces of this size.
const PIECE: u64 = 1024 * 1024;

/// But a part of up to so many bytes at once: whoever asks for it wants it as a whole.
const AT_ONCE: u64 = 4 * PIECE;

/// An object, or a part of one, as it arrives.
///
/// Broken connections are resumed where they broke, within the retry policy; the stream ends
/// after exactly [`size`](Self::size) bytes, or with an error.
pub struct ObjectStream {
    /// How many bytes will arrive.
    pub size: u64,
    stream: BoxStream<'static, Result<Bytes, StorageError>>,
}

impl ObjectStream {
    /// SHA-256 of all that is still to arrive.
    pub async fn digest(mut self) -> Result<StoredDigest, StorageError> {
        let mut hasher = StoredHasher::default();
        while let Some(piece) = self.next().await {
            hasher.update(&piece?);
        }
        Ok(hasher.finish())
    }
}

impl Stream for ObjectStream {
    type Item = Result<Bytes, StorageError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.poll_next_unpin(context)
    }
}

impl std::fmt::Debug for ObjectStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectStream")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// An object's content, or `None` if it is certainly absent. Memory holds all of it: for
    /// what a stranger could have made large, see [`get_limited`](Self::get_limited).
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, StorageError> {
        self.get_limited(key, u64::MAX).await
    }

    /// As [`get`](Self::get), but an error for an object of more than `max_bytes`, before any
    /// of it is read.
    pub async fn get_limited(
        &self,
        key: &str,
        max_bytes: u64,
    ) -> Result<Option<Bytes>, StorageError> {
        let Some(stream) = self.get_stream(key).await? else {
            return Ok(None);
        };
        if stream.size > max_bytes {
            let text = format!(
                "it has {} bytes, more than the {max_bytes} expected",
                stream.size
            );
            return Err(StorageError::new(
                READ,
                key,
                self.url(),
                ErrorKind::Corrupt,
                text,
            ));
        }
        self.collect(key, stream).await.map(Some)
    }

    /// Exactly these bytes of an object, or `None` if it is certainly absent. An object that
    /// ends earlier is an error.
    pub async fn get_range(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<Option<Bytes>, StorageError> {
        match self.get_range_stream(key, range).await? {
            Some(stream) => self.collect(key, stream).await.map(Some),
            None => Ok(None),
        }
    }

    /// An object's content as a stream, or `None` if it is certainly absent.
    pub async fn get_stream(&self, key: &str) -> Result<Option<ObjectStream>, StorageError> {
        self.open_stream(key, None).await
    }

    /// Exactly these bytes of an object as a stream, or `None` if it is certainly absent.
    pub async fn get_range_stream(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<Option<ObjectStream>, StorageError> {
        if range.is_empty() {
            // HTTP has no empty range.
            return Ok(self.head(key).await?.map(|_| ObjectStream {
                size: 0,
                stream: futures::stream::empty().boxed(),
            }));
        }
        self.open_stream(key, Some(range)).await
    }

    async fn open_stream(
        &self,
        key: &str,
        range: Option<Range<u64>>,
    ) -> Result<Option<ObjectStream>, StorageError> {
        let inner = Arc::clone(&self.inner);
        let location = inner.location(READ, key)?;
        let options = GetOptions {
            range: range.clone().map(GetRange::Bounded),
            ..GetOptions::default()
        };
        let opened = inner
            .run(READ, key, 0, |_| async {
                match inner.backend.get_opts(&location, options.clone()).await {
                    Ok(result) => Ok(Some(result)),
                    Err(error) if certainly_absent(&error) => Ok(None),
                    Err(error) => Err(error.into()),
                }
            })
            .await?;
        let Some(result) = opened else {
            return Ok(None);
        };
        let promised = result.range.clone();
        if range.as_ref().is_some_and(|range| *range != promised) {
            let text = format!(
                "it ends after {} bytes, within the part asked for",
                result.meta.size
            );
            return Err(StorageError::new(
                READ,
                key,
                self.url(),
                ErrorKind::Corrupt,
                text,
            ));
        }
        let mut body = Body {
            location,
            key: key.to_owned(),
            next: promised.start,
            end: promised.end,
            e_tag: result.meta.e_tag.clone(),
            current: None,
            failed: 0,
            since_failure: 0,
            inner,
        };
        body.current = Some(pieces(result));
        let stream = futures::stream::try_unfold(body, |mut body| async move {
            Ok(body.next_piece().await?.map(|piece| (piece, body)))
        });
        Ok(Some(ObjectStream {
            size: promised.end - promised.start,
            stream: stream.boxed(),
        }))
    }

    /// Gathers a stream, within the time that its size warrants.
    async fn collect(&self, key: &str, mut stream: ObjectStream) -> Result<Bytes, StorageError> {
        let size = stream.size;
        let limit = self.inner.retry.total_limit(size);
        let gather = async {
            let Some(first) = stream.next().await.transpose()? else {
                return Ok(Bytes::new());
            };
            if first.len() as u64 == size {
                // The rest is the check that nothing follows.
                while stream.next().await.transpose()?.is_some() {}
                return Ok(first);
            }
            // The size is the store's word only: do not reserve all of a lie.
            let mut all = BytesMut::with_capacity(size.min(64 * PIECE) as usize);
            all.extend_from_slice(&first);
            while let Some(piece) = stream.next().await.transpose()? {
                all.extend_from_slice(&piece);
            }
            Ok(all.freeze())
        };
        match tokio::time::timeout(limit, gather).await {
            Ok(result) => result,
            Err(_) => {
                let verdict = judge(Failure::Timeout(limit))?;
                Err(StorageError::from_verdict(
                    READ,
                    key,
                    self.url(),
                    verdict,
                    "",
                ))
            }
        }
    }
}

/// The state of a stream: where it is, and how often it broke.
struct Body {
    inner: Arc<Inner>,
    location: Path,
    key: String,
    next: u64,
    end: u64,
    e_tag: Option<String>,
    current: Option<BoxStream<'static, object_store::Result<Bytes>>>,
    failed: u32,
    since_failure: u64,
}

impl Body {
    async fn next_piece(&mut self) -> Result<Option<Bytes>, StorageError> {
        loop {
            let limit = self.inner.retry.attempt_limit(0);
            let Some(current) = self.current.as_mut() else {
                if self.next == self.end {
                    return Ok(None);
                }
                self.reopen().await?;
                continue;
            };
            let missing = self.end - self.next;
            let failure = match tokio::time::timeout(limit, current.next()).await {
                Ok(Some(Ok(piece))) if piece.is_empty() => continue,
                Ok(Some(Ok(piece))) if piece.len() as u64 <= missing => {
                    self.next += piece.len() as u64;
                    self.since_failure += piece.len() as u64;
                    if self.since_failure >= PIECE {
                        self.failed = 0;
                    }
                    return Ok(Some(piece));
                }
                Ok(Some(Ok(_))) => Failure::Corrupt(false, "more bytes than promised".into()),
                // Everything has arrived; how the connection ends does not matter.
                _ if missing == 0 => {
                    self.current = None;
                    continue;
                }
                Ok(None) => Failure::Corrupt(true, format!("the last {missing} bytes are missing")),
                Ok(Some(Err(error))) => error.into(),
                Err(_) => Failure::Timeout(limit),
            };
            self.current = None;
            self.failed += 1;
            self.since_failure = 0;
            let verdict = judge(failure)?;
            // Whatever breaks a body in the middle says nothing about the next request, except
            // that the object itself is wrong.
            let hopeless = verdict.kind == ErrorKind::Corrupt && !verdict.retryable;
            if hopeless || self.failed >= self.inner.retry.attempts.max(1) {
                let tried = format!(" ({} attempts at byte {})", self.failed, self.next);
                return Err(StorageError::from_verdict(
                    READ,
                    &self.key,
                    &self.inner.url,
                    verdict,
                    &tried,
                ));
            }
            let wait = self.inner.retry.wait(self.failed);
            self.inner.note_retry(
                "go on reading",
                &self.key,
                self.failed,
                wait,
                &verdict.cause,
            );
            tokio::time::sleep(wait).await;
        }
    }

    /// Asks for the rest, of the same version of the object.
    async fn reopen(&mut self) -> Result<(), StorageError> {
        let range = self.next..self.end;
        let options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            if_match: self.e_tag.clone(),
            ..GetOptions::default()
        };
        let (inner, location) = (&self.inner, &self.location);
        let result = inner
            .run("go on reading", &self.key, 0, |_| async {
                Ok(inner.backend.get_opts(location, options.clone()).await?)
            })
            .await?;
        if result.range != range {
            let text = format!(
                "it has {} bytes now: it changed while it was read",
                result.meta.size
            );
            let url = &self.inner.url;
            return Err(StorageError::new(
                READ,
                &self.key,
                url,
                ErrorKind::Corrupt,
                text,
            ));
        }
        self.current = Some(pieces(result));
        Ok(())
    }
}

/// The body of an answer, piece by piece; a file in large ones, since each costs a thread.
pub(super) fn pieces(result: GetResult) -> BoxStream<'static, object_store::Result<Bytes>> {
    let range = result.range.clone();
    match result.payload {
        GetResultPayload::Stream(stream) => stream,
        GetResultPayload::File(file, path) => {
            let start = (Arc::new(file), range.start);
            let is_short = range.end - range.start <= AT_ONCE;
            let most = if is_short { AT_ONCE } else { PIECE };
            let path = Arc::new(path);
            futures::stream::try_unfold(start, move |(file, at)| {
                let (end, path) = (range.end, Arc::clone(&path));
                async move {
                    if at >= end {
                        return Ok(None);
                    }
                    let length = (end - at).min(most) as usize;
                    let reader = Arc::clone(&file);
                    let read = tokio::task::spawn_blocking(move || read_at(&reader, at, length));
                    let piece = read
                        .await
                        .map_err(|source| object_store::Error::JoinError { source })?;
                    let piece = piece.map_err(|error| object_store::Error::Generic {
                        store: "local files",
                        source: Box::new(std::io::Error::new(
                            error.kind(),
                            format!("{}: {error}", path.display()),
                        )),
                    })?;
                    let next = at + piece.len() as u64;
                    Ok((!piece.is_empty()).then_some((piece, (file, next))))
                }
            })
            .boxed()
        }
    }
}

/// Up to `length` bytes; fewer only at the end of the file.
fn read_at(file: &File, at: u64, length: usize) -> std::io::Result<Bytes> {
    let mut piece = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut piece[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    piece.truncate(filled);
    Ok(piece.into())
}
