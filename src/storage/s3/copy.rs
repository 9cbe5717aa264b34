//! Copies that S3 makes itself: no byte passes through this machine.
//!
//! What was copied is exactly what the store holds of the source, which says nothing of whether
//! that is whole: who copies reads the result and holds it against the digest that it knows.

use aws_sdk_s3::Client;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use futures::{StreamExt, TryStreamExt};

use super::super::error::{ErrorKind, Failure, StorageError};
use super::super::{Inner, Store};
use super::{Access, Answer, answer_of};

const COPY: &str = "copy";

/// S3 takes no more parts of one object.
const MOST_PARTS: u64 = 10_000;

/// What became of a copy within S3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerSide {
    /// The store made it. It is durable, complete, and of the right size.
    Copied,
    /// This store, or these two together, cannot do it, and why: nothing was written.
    Impossible(String),
}

/// From which size on a copy is made in parts, and how large these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyLimits {
    /// Objects up to this size are copied by one request. S3 takes up to 5 GB.
    pub single: u64,
    /// Bytes of a part; more where an object would have more than 10,000. S3 takes 5 MiB to
    /// 5 GiB, the last one may be smaller.
    pub part: u64,
    /// Parts that are copied at once.
    pub at_once: usize,
}

impl Default for CopyLimits {
    fn default() -> Self {
        Self {
            single: 1 << 30,
            part: 256 << 20,
            at_once: 4,
        }
    }
}

impl Store {
    /// Copies the object `key` of `source` to the same key here, within S3: across buckets and
    /// regions of one endpoint, with the credentials of this store, which must be allowed to
    /// read there. One that is here already is replaced.
    ///
    /// # Errors
    /// The store failed, and this call may succeed later. What is impossible is no error.
    pub async fn copy_within_store(
        &self,
        source: &Store,
        key: &str,
        size: u64,
        limits: CopyLimits,
    ) -> Result<ServerSide, StorageError> {
        let (here, there) = match (&self.inner.s3, &source.inner.s3) {
            (Ok(here), Ok(there)) => (here, there),
            (Err(why), _) | (_, Err(why)) => return Ok(ServerSide::Impossible(why.clone())),
        };
        if here.endpoint != there.endpoint {
            let why = "they are stores at different endpoints".to_owned();
            return Ok(ServerSide::Impossible(why));
        }
        let from = source.inner.location(COPY, key)?;
        let to = self.inner.location(COPY, key)?;
        let copy = Copy {
            inner: &self.inner,
            access: here,
            client: here.client().await,
            source: format!("{}/{}", there.bucket, encoded(from.as_ref())),
            to: to.as_ref(),
            key,
            size,
        };
        let done = match size <= limits.single {
            true => copy.at_once().await?,
            false => copy.in_parts(limits).await?,
        };
        if done == ServerSide::Copied {
            match self.head(key).await? {
                Some(info) if info.size == size => {}
                found => {
                    let found = found.map_or(0, |info| info.size);
                    let text = format!("it was copied, and has {found} bytes instead of {size}");
                    let url = &self.inner.url;
                    return Err(StorageError::new(COPY, key, url, ErrorKind::Corrupt, text));
                }
            }
        }
        Ok(done)
    }
}

struct Copy<'a> {
    inner: &'a Inner,
    access: &'a Access,
    client: &'a Client,
    /// Bucket and key, as the header wants them.
    source: String,
    to: &'a str,
    key: &'a str,
    size: u64,
}

/// What one request of a copy brought, or why there is none to be had.
type Asked<T> = Result<T, String>;

impl Copy<'_> {
    async fn at_once(&self) -> Result<ServerSide, StorageError> {
        let copied = self
            .ask(COPY, self.size, || async {
                self.client
                    .copy_object()
                    .bucket(&self.access.bucket)
                    .key(self.to)
                    .copy_source(&self.source)
                    .send()
                    .await
                    .map_err(|error| answer_of(&error))
            })
            .await?;
        Ok(match copied {
            Ok(_) => ServerSide::Copied,
            Err(why) => ServerSide::Impossible(why),
        })
    }

    async fn in_parts(&self, limits: CopyLimits) -> Result<ServerSide, StorageError> {
        let begun = self
            .ask("begin", 0, || async {
                self.client
                    .create_multipart_upload()
                    .bucket(&self.access.bucket)
                    .key(self.to)
                    .send()
                    .await
                    .map_err(|error| answer_of(&error))
            })
            .await?;
        let id = match begun.map(|begun| begun.upload_id) {
            Ok(Some(id)) => id,
            Ok(None) => return Ok(ServerSide::Impossible("an upload without a name".into())),
            Err(why) => return Ok(ServerSide::Impossible(why)),
        };
        let done = self.parts_of(&id, limits).await;
        if !matches!(done, Ok(ServerSide::Copied)) {
            // What stays behind all the same is swept some day.
            let abort = self.client.abort_multipart_upload();
            let abort = abort
                .bucket(&self.access.bucket)
                .key(self.to)
                .upload_id(&id);
            let limit = self.inner.retry.attempt_limit(0);
            let _ = tokio::time::timeout(limit, abort.send()).await;
        }
        done
    }

    async fn parts_of(&self, id: &str, limits: CopyLimits) -> Result<ServerSide, StorageError> {
        let part = limits.part.max(self.size.div_ceil(MOST_PARTS)).max(1);
        let ranges = (0..self.size.div_ceil(part))
            .map(|number| (number, number * part, ((number + 1) * part).min(self.size)));
        let mut parts: Vec<Asked<CompletedPart>> = futures::stream::iter(ranges)
            .map(|(number, start, end)| self.part(id, number as i32 + 1, start, end))
            .buffered(limits.at_once.max(1))
            .try_collect()
            .await?;
        if let Some(refused) = parts.iter().position(Result::is_err) {
            let why = parts.swap_remove(refused).err().unwrap_or_default();
            return Ok(ServerSide::Impossible(why));
        }
        let parts = parts.into_iter().flatten().collect();
        let parts = CompletedMultipartUpload::builder()
            .set_parts(Some(parts))
            .build();
        let completed = self
            .ask("complete", self.size, || async {
                self.client
                    .complete_multipart_upload()
                    .bucket(&self.access.bucket)
                    .key(self.to)
                    .upload_id(id)
                    .multipart_upload(parts.clone())
                    .send()
                    .await
                    .map_err(|error| answer_of(&error))
            })
            .await?;
        Ok(match completed {
            Ok(_) => ServerSide::Copied,
            // An earlier attempt may have completed it: the size is looked at behind this.
            Err(why) if why.contains("NoSuchUpload") => ServerSide::Copied,
            Err(why) => ServerSide::Impossible(why),
        })
    }

    async fn part(
        &self,
        id: &str,
        number: i32,
        start: u64,
        end: u64,
    ) -> Result<Asked<CompletedPart>, StorageError> {
        let copied = self
            .ask("copy a part of", end - start, || async {
                self.client
                    .upload_part_copy()
                    .bucket(&self.access.bucket)
                    .key(self.to)
                    .upload_id(id)
                    .part_number(number)
                    .copy_source(&self.source)
                    .copy_source_range(format!("bytes={start}-{}", end - 1))
                    .send()
                    .await
                    .map_err(|error| answer_of(&error))
            })
            .await?;
        Ok(copied.and_then(|copied| {
            let tag = copied.copy_part_result.and_then(|result| result.e_tag);
            let tag = tag.ok_or_else(|| "the copy of a part has no ETag".to_owned())?;
            let part = CompletedPart::builder().e_tag(tag).part_number(number);
            Ok(part.build())
        }))
    }

    /// One request, tried as often as the store's policy says.
    async fn ask<T, F>(
        &self,
        action: &'static str,
        bytes: u64,
        request: impl Fn() -> F,
    ) -> Result<Asked<T>, StorageError>
    where
        F: Future<Output = Result<T, Answer>>,
    {
        let request = &request;
        self.inner
            // The store moves them, not the link to it.
            .run(action, self.key, bytes / 16, |_| async move {
                match request().await {
                    Ok(done) => Ok(Ok(done)),
                    Err(Answer::Refused(why)) => Ok(Err(why)),
                    Err(Answer::Failed(failure)) => Err::<_, Failure>(failure),
                }
            })
            .await
    }
}

/// Percent-encodes what a header with a URL's path must not hold.
fn encoded(key: &str) -> String {
    let mut text = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                text.push(byte as char);
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_encoded_for_the_header() {
        assert_eq!(encoded("a/b-1_2.3~/ü +"), "a/b-1_2.3~/%C3%BC%20%2B");
    }
}
