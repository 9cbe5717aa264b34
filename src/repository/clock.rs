//! A store's clock against this host's.

use jiff::{SignedDuration, Timestamp};

use super::{Repository, keys};
use crate::error::{Error, Result};

impl Repository {
    /// How far the store's clock is ahead of `clock`; negative where it is behind. Zero where
    /// the store's time lies between two looks at `clock`, before and after. It puts a small
    /// object among the leases of `cluster` and deletes it again.
    ///
    /// # Errors
    /// The store did not answer, or does not have what was put.
    pub async fn clock_skew(
        &self,
        cluster: &str,
        clock: impl Fn() -> Timestamp,
    ) -> Result<SignedDuration> {
        let random: u64 = rand::random();
        let key = format!("{}/clock-{random:016x}", keys::leases(cluster));
        let store = self.store();
        let before = clock();
        store
            .put(&key, bytes::Bytes::from_static(b"clock\n"))
            .await?;
        let found = store.head(&key).await;
        let after = clock();
        store.delete(&key).await?;
        let stored = found?.ok_or_else(|| {
            Error::failed("an object was written and is not there").at(self.place())
        })?;
        Ok(if stored.modified < before {
            stored.modified.duration_since(before)
        } else {
            stored
                .modified
                .duration_since(after)
                .max(SignedDuration::ZERO)
        })
    }
}
