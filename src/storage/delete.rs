//! Deleting many objects: in requests of a thousand where the store can.

use futures::StreamExt;
use object_store::path::Path;

use super::Store;
use super::error::{Failure, StorageError};
use super::judge::{certainly_absent, unclear_not_found};

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
            let unclear = inner
                .run(ACTION, &named, 0, |_| async move {
                    let all = locations.clone().into_iter().map(Ok);
                    let all = futures::stream::iter(all).boxed();
                    let mut answers = inner.backend.delete_stream(all);
                    let mut unclear = false;
                    while let Some(answer) = answers.next().await {
                        match answer {
                            Err(error) if certainly_absent(&error) => {}
                            Err(error) if unclear_not_found(&error) => unclear = true,
                            Err(error) => return Err(Failure::from(error)),
                            Ok(_) => {}
                        }
                    }
                    Ok(unclear)
                })
                .await?;
            if unclear {
                // "Not found" without a word of what (Azure's batches): asked one by one, the
                // store says whether it is the object that is gone.
                for key in batch {
                    self.delete(key).await?;
                }
            }
        }
        Ok(())
    }
}
