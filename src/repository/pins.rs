//! Pins: backups that stay whatever the rules of retention say, with a reason and perhaps an
//! end. Each pin is an object of its own, so that no key is ever rewritten.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::keys::BackupId;
use super::tombstones::CLOCK_TOLERANCE;
use super::{FORMAT, System, leases, to_json};
use crate::error::{Error, Result};

/// Why a backup stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The format of this object.
    pub format: u32,
    /// The backup that stays.
    pub backup: BackupId,
    /// Why, in the words of who pinned it.
    pub reason: String,
    /// Until when; for ever where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// When it was pinned, by the clock of that host.
    pub since: Timestamp,
    /// On which host: name, process number and random digits.
    pub by: String,
    /// What newer versions added.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

impl Pin {
    /// A pin that is made now.
    pub fn new(backup: BackupId, reason: &str, until: Option<Timestamp>, now: Timestamp) -> Self {
        Self {
            format: FORMAT,
            backup,
            reason: reason.to_owned(),
            until,
            since: now,
            by: leases::holder(),
            other: serde_json::Map::new(),
        }
    }

    /// Whether it still holds at `now`.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| until > now)
    }
}

/// A pin as it lies in the repository.
#[derive(Debug)]
pub struct StoredPin {
    /// Its key.
    pub key: String,
    /// The backup that its key names.
    pub backup: BackupId,
    /// What it says. A pin that cannot be read holds, until it is taken away by `unpin`.
    pub pin: Result<Pin>,
}

impl System {
    /// All pins, in the order of their backups.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn pins(&self) -> Result<Vec<StoredPin>> {
        let mut pins = Vec::new();
        for info in self.store().list(&self.keys().pins(), None).await? {
            let Some(backup) = backup_of(&info.key) else {
                continue;
            };
            let read = self.repository().try_read_json::<Pin>(&info.key).await?;
            let Some(read) = read else { continue };
            let pin = read.and_then(|pin| match pin.format > FORMAT || pin.backup != backup {
                true => Err(Error::failed(format!(
                    "{} cannot be used: format {}, backup {}",
                    info.key, pin.format, pin.backup
                ))),
                false => Ok(pin),
            });
            pins.push(StoredPin {
                key: info.key,
                backup,
                pin,
            });
        }
        Ok(pins)
    }

    /// Pins a finished backup.
    ///
    /// After `Ok` it stays until the pin ends or is taken away.
    ///
    /// # Errors
    /// There is no such backup; or its deletion has begun (exit code 4), and then nothing is
    /// pinned.
    pub async fn pin(&self, pin: &Pin) -> Result<()> {
        let id = &pin.backup;
        if self.marker(id).await?.is_none() {
            return Err(Error::failed(format!("there is no finished backup {id}"))
                .at(self.place())
                .hint("`seawall list` shows what is there"));
        }
        let key = self.keys().new_pin(id);
        self.store().put(&key, to_json(pin)?).await?;
        // Who deletes names it in a tombstone first, waits, and then looks at the pins. So
        // either the pin is seen, or the tombstone's time was up before the pin was there.
        let tombstones = self.repository().tombstones(self.cluster()).await?;
        // When that was, the store's clock says: who deletes has held its own against that one,
        // and nobody has held ours against anything.
        let pinned = self.store().head(&key).await?.map(|info| info.modified);
        let mut due = tombstones.read.iter().filter(|(_, tombstone)| {
            pinned.is_none_or(|pinned| tombstone.is_due(pinned + CLOCK_TOLERANCE))
        });
        let deleting = due.any(|(_, tombstone)| tombstone.names_backup(self.id(), id));
        if deleting || self.marker(id).await?.is_none() {
            self.store().delete(&key).await?;
            return Err(Error::refused(format!(
                "backup {id} is being deleted, or may be, at any moment"
            ))
            .at(self.place())
            .hint("pin another one; `seawall expire --dry-run` shows what stays, and why"));
        }
        Ok(())
    }

    /// Takes away all pins of a backup, those that cannot be read among them, and says how many
    /// there were.
    pub async fn unpin(&self, id: &BackupId) -> Result<usize> {
        let mut removed = 0;
        for info in self.store().list(&self.keys().pins(), None).await? {
            if backup_of(&info.key).as_ref() == Some(id) {
                self.store().delete(&info.key).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// `…/ID-RANDOM.json`.
fn backup_of(key: &str) -> Option<BackupId> {
    let name = key.rsplit('/').next()?.strip_suffix(".json")?;
    name.rsplit_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::SystemId;
    use crate::repository::Repository;
    use crate::repository::keys::BackupKind;
    use crate::storage::Store;
    use bytes::Bytes;

    #[tokio::test]
    async fn a_pin_is_read_back_and_one_that_is_damaged_still_names_its_backup() {
        let repository = Repository::over("near", Store::memory().unwrap());
        let system = repository.system("main", SystemId(7));
        let now = Timestamp::now();
        let [one, two] = [0, 1].map(|_| BackupId::new(BackupKind::Full, now));
        let pin = Pin::new(one.clone(), "audit", None, now);
        let error = system.pin(&pin).await.unwrap_err();
        assert!(error.what().contains("no finished backup"), "{error}");
        for id in [&one, &two] {
            let key = system.keys().new_pin(id);
            let pin = Pin::new(id.clone(), "audit", None, now);
            system
                .store()
                .put(&key, to_json(&pin).unwrap())
                .await
                .unwrap();
        }
        let damaged = system.keys().new_pin(&two);
        let junk = Bytes::from_static(b"{}");
        system.store().put(&damaged, junk).await.unwrap();
        let pins = system.pins().await.unwrap();
        let of = |id: &BackupId| pins.iter().filter(|pin| pin.backup == *id).count();
        assert_eq!((of(&one), of(&two)), (1, 2));
        assert_eq!(pins.iter().filter(|pin| pin.pin.is_err()).count(), 1);
        assert_eq!(system.unpin(&two).await.unwrap(), 2);
        assert_eq!(system.pins().await.unwrap().len(), 1);
    }
}
