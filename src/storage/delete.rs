//! Deleting many objects: in requests of a thousand where the store can.

use futures::StreamExt;
use object_store::path::Path;

use super::Store;
use super::error::{Failure, StorageError};
use super::judge::certainly_absent;

/// S3 takes a thousand keys in one request.
pub const DELETED_AT_ONCE: usize = 1000;

impl Store {
    /// Deletes objects, a thousand in a request where the store can; absent ones are fine.
    ///
    /// After `Ok` none of them is there. On `Err` some may be left, in any order: the same call
    /// once more goes on.
    pub async fn delete_all(&self, keys: &[String]) -> Result<(), StorageError> {
        const ACTION: &str = "delete";
        let inner = &self.inner;
        for batch in keys.chunks(DELETED_AT_ONCE) {
            let Some(first) = batch.first() else { continue };
            let locations = batch
                .iter()
                .map(|key| inner.location(ACTION, key))
                .collect::<Result<Vec<Path>, _>>()?;
            let locations = &locations;
            let named = match batch.len() {
                1 => first.clone(),
                more => format!("{first} and {} more objects", more - 1),
            };
            let done = inner.run(ACTION, &named, 0, |_| async move {
                let all = locations.clone().into_iter().map(Ok);
                let all = futures::stream::iter(all).boxed();
                let mut answers = inner.backend.delete_stream(all);
                while let Some(answer) = answers.next().await {
                    match answer {
                        Err(error) if !certainly_absent(&error) => {
                            return Err(Failure::from(error));
                        }
                        _ => {}
                    }
                }
                Ok(())
            });
            if let Err(error) = done.await {
                if error.is_retryable() || batch.len() == 1 {
                    return Err(error);
                }
                // One that cannot be told (a proxy's bare 404, say) must not keep the others:
                // a single delete asks the store what it means.
                for key in batch {
                    self.delete(key).await?;
                }
            }
        }
        Ok(())
    }
}
