//! Unfinished multipart uploads: their parts are paid for, and no listing of objects shows them.

use std::time::Duration;

use jiff::Timestamp;

use super::super::error::{Failure, StorageError};
use super::super::{Inner, Store};
use super::{Access, Answer, answer_of};

const SWEEP: &str = "sweep leftovers below";

impl Store {
    /// Aborts the multipart uploads below `prefix` that began more than `older_than` ago, and
    /// says how many. Where these credentials may not list or abort them, that is said in the
    /// log: a lifecycle rule of the bucket is the other way.
    pub(in crate::storage) async fn abort_dead_uploads(
        &self,
        access: &Access,
        prefix: &str,
        older_than: Duration,
    ) -> Result<usize, StorageError> {
        let inner = &self.inner;
        let directory = inner.directory(SWEEP, prefix)?;
        let below = directory.map(|path| format!("{path}/")).unwrap_or_default();
        let mut aborted = 0;
        let mut behind: Option<(String, String)> = None;
        loop {
            let listed = ask(inner, prefix, || {
                let request = access.list(&below, behind.as_ref());
                async move {
                    request
                        .await
                        .send()
                        .await
                        .map_err(|error| answer_of(&error))
                }
            });
            let page = match listed.await? {
                Ok(page) => page,
                Err(why) => {
                    tracing::info!("unfinished uploads in {} are left: {why}", self.url());
                    return Ok(aborted);
                }
            };
            let now = Timestamp::now().as_second();
            for upload in page.uploads() {
                let (Some(key), Some(id), Some(begun)) =
                    (upload.key(), upload.upload_id(), upload.initiated())
                else {
                    continue;
                };
                if now.saturating_sub(begun.secs()) < older_than.as_secs() as i64 {
                    continue;
                }
                let request = || async {
                    let abort = access.client().await.abort_multipart_upload();
                    let abort = abort.bucket(&access.bucket).key(key).upload_id(id);
                    abort.send().await.map_err(|error| answer_of(&error))
                };
                match ask(inner, prefix, request).await? {
                    Ok(_) => aborted += 1,
                    // Somebody else was faster.
                    Err(why) if why.contains("NoSuchUpload") => {}
                    Err(why) => {
                        tracing::info!("an unfinished upload of {key} is left: {why}");
                    }
                }
            }
            behind = match (page.next_key_marker(), page.next_upload_id_marker()) {
                (Some(key), Some(id)) if page.is_truncated() == Some(true) => {
                    Some((key.to_owned(), id.to_owned()))
                }
                _ => return Ok(aborted),
            };
        }
    }
}

impl Access {
    async fn list(
        &self,
        below: &str,
        behind: Option<&(String, String)>,
    ) -> aws_sdk_s3::operation::list_multipart_uploads::builders::ListMultipartUploadsFluentBuilder
    {
        let request = self.client().await.list_multipart_uploads();
        let request = request.bucket(&self.bucket).prefix(below);
        match behind {
            Some((key, id)) => request.key_marker(key).upload_id_marker(id),
            None => request,
        }
    }
}

async fn ask<T, F>(
    inner: &Inner,
    prefix: &str,
    request: impl Fn() -> F,
) -> Result<Result<T, String>, StorageError>
where
    F: Future<Output = Result<T, Answer>>,
{
    let request = &request;
    inner
        .run(SWEEP, prefix, 0, |_| async move {
            match request().await {
                Ok(done) => Ok(Ok(done)),
                Err(Answer::Refused(why)) => Ok(Err(why)),
                Err(Answer::Failed(failure)) => Err::<_, Failure>(failure),
            }
        })
        .await
}
