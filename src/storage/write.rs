//! Writing and deleting single objects: plain, create-only, and on stores that only pretend to
//! know create-only.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use object_store::{Error, GetOptions, GetRange, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use super::error::{ErrorKind, Failure, StorageError};
use super::judge::{certainly_absent, unclear_not_found};
use super::list::ObjectInfo;
use super::{Provider, Store};

const CREATE: &str = "create";

/// What became of a create-only write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object holds what was given, by this call.
    Created,
    /// The object was already there, and stays as it was.
    Exists,
}

/// Whether a store keeps its word on create-only writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateOnly {
    /// A second create-only write was refused.
    Enforced,
    /// A second create-only write replaced the first, or the store can't do them.
    Ignored,
}

/// What one attempt at a create-only write found out.
enum Answer {
    Written,
    Ours,
    Taken,
}

impl Store {
    /// Writes an object, replacing one of that key. Meant for keys that carry a digest or
    /// random digits, where the replaced content is the same.
    ///
    /// After `Ok` the object is durable and complete. On `Err` it may be there or not.
    pub async fn put(&self, key: &str, body: Bytes) -> Result<(), StorageError> {
        self.put_payload(key, body.into()).await
    }

    async fn put_payload(&self, key: &str, body: PutPayload) -> Result<(), StorageError> {
        self.inner.allow(body.content_length() as u64).await;
        self.put_allowed(key, body).await
    }

    /// Writes what has waited for its turn already.
    pub(super) async fn put_allowed(
        &self,
        key: &str,
        body: PutPayload,
    ) -> Result<(), StorageError> {
        const ACTION: &str = "write";
        let inner = &self.inner;
        let location = inner.location(ACTION, key)?;
        let bytes = body.content_length() as u64;
        inner
            .run(ACTION, key, bytes, |_| async {
                let body = body.clone();
                inner
                    .backend
                    .put_opts(&location, body, PutOptions::default())
                    .await?;
                Ok(())
            })
            .await
    }

    /// Writes an object that must not be there yet.
    ///
    /// `Created` also when an answer was lost and the object turned out to hold exactly this
    /// content. On stores that may ignore create-only writes (S3 and its likes; Garage does)
    /// it looks first and reads back afterwards, so that only two writers at the very same
    /// moment may both be told `Created`, and then only if they wrote the same.
    pub async fn put_new(&self, key: &str, body: Bytes) -> Result<Created, StorageError> {
        let inner = &self.inner;
        let location = inner.location(CREATE, key)?;
        let trusted = inner.provider != Provider::S3;
        // A read rather than HEAD: one request says for certain that there is nothing.
        if !trusted && self.get_stream(key).await?.is_some() {
            return Ok(Created::Exists);
        }
        let (store, body, location) = (self, &body, &location);
        let answer = inner
            .run(CREATE, key, body.len() as u64, |attempt| async move {
                if attempt > 1 && !trusted {
                    // The attempt before may have written, and then someone else may have.
                    match store.holds(key, body).await {
                        Ok(None) => {}
                        Ok(Some(true)) => return Ok(Answer::Ours),
                        Ok(Some(false)) => return Ok(Answer::Taken),
                        Err(error) => return Err(Failure::Final(error)),
                    }
                }
                let payload = PutPayload::from(body.clone());
                let backend = &store.inner.backend;
                match backend
                    .put_opts(location, payload.clone(), PutMode::Create.into())
                    .await
                {
                    Ok(_) => Ok(Answer::Written),
                    Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => {
                        backend
                            .put_opts(location, payload, PutOptions::default())
                            .await?;
                        Ok(Answer::Written)
                    }
                    Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                        match store.holds(key, body).await {
                            // Only an earlier attempt of ours can have left our own content.
                            Ok(Some(true)) if attempt > 1 => Ok(Answer::Ours),
                            Ok(Some(_)) => Ok(Answer::Taken),
                            // Two writers at once: S3 answers 409 to one, and it is to retry.
                            Ok(None) => Err(Failure::Corrupt(
                                true,
                                "the store answered that it exists, and then that it does not"
                                    .into(),
                            )),
                            Err(error) => Err(Failure::Final(error)),
                        }
                    }
                    Err(error) => Err(error.into()),
                }
            })
            .await?;
        match answer {
            Answer::Ours if inner.provider == Provider::Local => {
                // The attempt that wrote it failed, perhaps in its fsync, and an fsync that is
                // tried again proves nothing: write the same once more.
                self.put(key, body.clone()).await?;
                Ok(Created::Created)
            }
            Answer::Ours => Ok(Created::Created),
            Answer::Taken => Ok(Created::Exists),
            Answer::Written if trusted => Ok(Created::Created),
            Answer::Written => match self.holds(key, body).await? {
                Some(true) => Ok(Created::Created),
                Some(false) => Ok(Created::Exists),
                None => Err(StorageError::new(
                    CREATE,
                    key,
                    self.url(),
                    ErrorKind::Corrupt,
                    "it was written, and then it was not there",
                )),
            },
        }
    }

    /// Whether the object has exactly this content; `None` if it is absent.
    async fn holds(&self, key: &str, body: &Bytes) -> Result<Option<bool>, StorageError> {
        let Some(mut stream) = self.get_stream(key).await? else {
            return Ok(None);
        };
        let mut rest = body.clone();
        if stream.size != rest.len() as u64 {
            return Ok(Some(false));
        }
        while let Some(piece) = stream.next().await.transpose()? {
            if rest.split_to(piece.len()) != piece {
                return Ok(Some(false));
            }
        }
        Ok(Some(rest.is_empty()))
    }

    /// What the store knows of an object without reading it, or `None` if it is certainly
    /// absent.
    pub async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StorageError> {
        const ACTION: &str = "look up";
        let inner = &self.inner;
        let location = inner.location(ACTION, key)?;
        let found = inner
            .run(ACTION, key, 0, |_| async {
                let options = GetOptions {
                    head: true,
                    ..GetOptions::default()
                };
                let result = match inner.backend.get_opts(&location, options).await {
                    // The answer to HEAD has no body: it can't say whether the object is
                    // missing or the whole bucket. A read can.
                    Err(error) if unclear_not_found(&error) => {
                        let options = GetOptions {
                            range: Some(GetRange::Bounded(0..1)),
                            ..GetOptions::default()
                        };
                        inner.backend.get_opts(&location, options).await
                    }
                    other => other,
                };
                match result {
                    Ok(result) => Ok(Some(result.meta)),
                    Err(error) if certainly_absent(&error) => Ok(None),
                    Err(error) => Err(error.into()),
                }
            })
            .await?;
        Ok(found.and_then(|meta| ObjectInfo::new(inner, &meta)))
    }

    /// Copies an object within the store, which does it by itself: no byte passes through this
    /// machine, and on local files both names are of one file from then on. `bytes` is its size.
    ///
    /// After `Ok(true)` the copy is complete and durable. `Ok(false)`: there is no `from`. What
    /// a store cannot copy at once (S3: above 5 GB) is an error.
    pub async fn copy(&self, from: &str, to: &str, bytes: u64) -> Result<bool, StorageError> {
        const ACTION: &str = "copy";
        let inner = &self.inner;
        let (source, target) = (&inner.location(ACTION, from)?, inner.location(ACTION, to)?);
        let target = &target;
        let copied = inner
            .run(ACTION, to, bytes, |_| async move {
                match inner.backend.copy(source, target).await {
                    Ok(()) => Ok(true),
                    Err(error) if certainly_absent(&error) => Ok(false),
                    Err(error) => Err(error.into()),
                }
            })
            .await?;
        if copied {
            self.confirm_durable(to).await?;
        }
        Ok(copied)
    }

    /// Deletes an object; one that is absent is fine.
    pub async fn delete(&self, key: &str) -> Result<(), StorageError> {
        const ACTION: &str = "delete";
        let inner = &self.inner;
        let location = inner.location(ACTION, key)?;
        let location = &location;
        inner
            .run(ACTION, key, 0, |_| async move {
                let one = futures::stream::iter([Ok(location.clone())]).boxed();
                match inner.backend.delete_stream(one).next().await {
                    Some(Err(error)) if certainly_absent(&error) => Ok(()),
                    Some(Err(error)) if unclear_not_found(&error) => match self.head(key).await {
                        Ok(None) => Ok(()),
                        Ok(Some(_)) => Err(error.into()),
                        Err(error) => Err(Failure::Final(error)),
                    },
                    Some(Err(error)) => Err(error.into()),
                    Some(Ok(_)) => Ok(()),
                    None => Err(Failure::Corrupt(true, "the store did not answer".into())),
                }
            })
            .await
    }

    /// Finds out whether the store keeps its word on create-only writes, by writing a small
    /// object below `key_prefix` twice. It is deleted again.
    pub async fn probe_create_only(&self, key_prefix: &str) -> Result<CreateOnly, StorageError> {
        const ACTION: &str = "probe create-only writes with";
        let inner = Arc::clone(&self.inner);
        let name = format!("create-only-probe-{:016x}", rand::random::<u64>());
        let key = match key_prefix.trim_end_matches('/') {
            "" => name,
            prefix => format!("{prefix}/{name}"),
        };
        let location = inner.location(ACTION, &key)?;
        let mut answers = Vec::new();
        for body in ["first", "second"] {
            let answer = inner
                .run(ACTION, &key, 0, |_| async {
                    let body = PutPayload::from_static(body.as_bytes());
                    match inner
                        .backend
                        .put_opts(&location, body, PutMode::Create.into())
                        .await
                    {
                        Ok(_) => Ok(CreateOnly::Ignored),
                        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                            Ok(CreateOnly::Enforced)
                        }
                        Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => {
                            Ok(CreateOnly::Ignored)
                        }
                        Err(error) => Err(error.into()),
                    }
                })
                .await;
            answers.push(answer);
        }
        self.delete(&key).await?;
        // The first one's answer does not matter, as long as there is one.
        let second = answers.pop();
        answers.into_iter().collect::<Result<Vec<_>, _>>()?;
        second.unwrap_or(Ok(CreateOnly::Ignored))
    }
}
