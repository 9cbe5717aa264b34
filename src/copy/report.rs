//! What a copy did, for people and programs.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::repository::keys::BackupId;

/// What was brought to one repository.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Copied {
    /// WAL objects.
    pub wal_objects: u64,
    /// Their bytes as stored.
    pub wal_bytes: u64,
    /// Backups that are complete there now, in the order in which they were committed.
    pub backups: Vec<BackupId>,
    /// Objects of backups that were copied.
    pub backup_objects: u64,
    /// Their bytes as stored.
    pub backup_bytes: u64,
    /// How many of these objects the store copied by itself.
    pub server_side_objects: u64,
    /// Objects of backups that were there already, whole.
    pub found_objects: u64,
    /// Restore points.
    pub restore_points: u64,
    /// What could not be copied: the key, and why.
    pub not_copied: BTreeMap<String, String>,
}

impl Copied {
    /// Notes that the object called `key` cannot be copied, and says so the first time.
    pub(super) fn refuse(&mut self, key: &str, place: &str, why: &str) {
        if self.not_copied.get(key).is_none_or(|known| known != why) {
            tracing::error!("not copied: {key} of {place}: {why}");
            self.not_copied.insert(key.to_owned(), why.to_owned());
        }
    }

    /// Notes that an object that could not be copied was copied after all.
    pub(super) fn accept(&mut self, key: &str) {
        self.not_copied.remove(key);
    }
}
