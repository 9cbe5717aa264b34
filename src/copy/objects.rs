//! One object of a backup, verified by the SHA-256 that the backup's marker holds: by the store
//! itself where it can, through this machine where it cannot.

use futures::StreamExt;

use super::{Copier, lock};
use crate::digest::StoredHasher;
use crate::error::Result;
use crate::repository::System;
use crate::repository::bridge::part_size;
use crate::repository::keys::BackupId;
use crate::repository::marker::StoredObject;
use crate::storage::{ServerSide, StorageError};

/// How an object came to the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrived {
    /// It was there, whole.
    Found,
    /// The store copied it.
    ServerSide,
    /// Through this machine.
    Streamed,
    /// Somebody else has finished the backup meanwhile: nothing of it is touched any more.
    Committed,
}

impl Copier {
    /// Brings one object of backup `id` to `aim`, from the first of `sources` that has it whole.
    /// `there` is the size of what lies there under its key.
    ///
    /// After `Ok` its bytes were read once, on their way or at the copy, and have the digest.
    /// The inner error says why nobody's object is usable.
    ///
    /// # Errors
    /// The copy's store, or the source's, does not do its work now.
    pub(super) async fn bring(
        &self,
        sources: &[&System],
        aim: &System,
        id: &BackupId,
        object: &StoredObject,
        there: Option<u64>,
    ) -> Result<Result<Arrived, String>> {
        let key = &format!("{}/{}", aim.keys().backup(id), object.key);
        // What an interrupted copy left may not have been verified yet: it is read, and not
        // copied again.
        if there == Some(object.size)
            && (lock(&self.verified).contains(key) || self.is_whole(aim, key, object).await?)
        {
            return Ok(Ok(Arrived::Found));
        }
        let mut why = String::new();
        for (at, source) in sources.iter().enumerate() {
            let tried = self.from(source, aim, id, key, object).await;
            match tried {
                Ok(Ok(arrived)) => {
                    if at > 0 {
                        tracing::warn!(
                            "{key} was copied from {}: {why}",
                            source.repository().place()
                        );
                    }
                    return Ok(Ok(arrived));
                }
                Ok(Err(unusable)) if at == 0 => why = unusable,
                Ok(Err(_)) => {}
                Err(error) if at == 0 => return Err(error),
                Err(error) => tracing::debug!("{}", error.one_line()),
            }
        }
        Ok(Err(why))
    }

    /// What the store copies lies at the copy before anybody has verified it. So it is asked
    /// only where nothing lies yet, and no backup that somebody else has committed meanwhile
    /// loses an object here: neither to damaged bytes nor to a deletion. What is streamed is
    /// verified before it is there, and may replace anything.
    async fn from(
        &self,
        source: &System,
        aim: &System,
        id: &BackupId,
        key: &str,
        object: &StoredObject,
    ) -> Result<Result<Arrived, String>> {
        if object.size >= self.settings.server_side_from
            && self.server_side(source)
            && aim.store().head(key).await?.is_none()
        {
            if self.is_committed(aim, id).await? {
                return Ok(Ok(Arrived::Committed));
            }
            let limits = self.settings.limits;
            let copied = aim
                .store()
                .copy_within_store(source.store(), key, object.size, limits);
            match copied.await {
                Ok(ServerSide::Copied) => {
                    if self.is_whole(aim, key, object).await? {
                        return Ok(Ok(Arrived::ServerSide));
                    }
                    // The source's is damaged: it must not look like a copy of this object.
                    if !self.is_committed(aim, id).await? {
                        aim.store().delete(key).await?;
                    }
                    return Ok(Err("its bytes do not have the digest in backup.json".into()));
                }
                Ok(ServerSide::Impossible(why)) => self.no_server_side(source, &why),
                // The store may do what it is asked for in smaller pieces. What it has copied
                // all the same is replaced, or was brought by somebody else.
                Err(error) => tracing::warn!("{error}; its bytes are sent instead"),
            }
        }
        self.stream(source, aim, key, object).await
    }

    /// Through this machine, in bounded memory. It is there only if its digest is right.
    async fn stream(
        &self,
        source: &System,
        aim: &System,
        key: &str,
        object: &StoredObject,
    ) -> Result<Result<Arrived, String>> {
        let Some(mut stream) = source.store().get_stream(key).await? else {
            return Ok(Err("it is not there".into()));
        };
        if stream.size != object.size {
            let (size, right) = (stream.size, object.size);
            return Ok(Err(format!("it has {size} bytes instead of {right}")));
        }
        let mut upload = aim.store().upload(key, part_size(object.size), 2).await?;
        let mut hasher = StoredHasher::default();
        while let Some(piece) = stream.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => {
                    upload.abort().await;
                    return unreadable(error);
                }
            };
            hasher.update(&piece);
            if let Err(error) = upload.write(piece).await {
                upload.abort().await;
                return Err(error.into());
            }
        }
        if hasher.finish() != object.sha256 {
            upload.abort().await;
            return Ok(Err("its bytes do not have the digest in backup.json".into()));
        }
        upload.finish().await?;
        Ok(Ok(Arrived::Streamed))
    }

    async fn is_committed(&self, aim: &System, id: &BackupId) -> Result<bool> {
        Ok(aim.store().head(&aim.keys().marker(id)).await?.is_some())
    }

    /// Reads what lies at the copy, and holds it against the digest.
    async fn is_whole(&self, aim: &System, key: &str, object: &StoredObject) -> Result<bool> {
        match aim.store().get_stream(key).await? {
            Some(stream) if stream.size == object.size => {
                Ok(stream.digest().await? == object.sha256)
            }
            _ => Ok(false),
        }
    }
}

/// An object that the store does not deliver whole is as good as damaged; a store that is away
/// is not.
fn unreadable<T>(error: StorageError) -> Result<Result<T, String>> {
    match error.is_retryable() {
        true => Err(error.into()),
        false => Ok(Err(error.to_string())),
    }
}
