//! What a repository keeps, and how long.

use serde::Deserialize;

use super::HumanDuration;

/// The rules by which a repository keeps base backups, and the WAL that they need. A backup is
/// kept if any rule keeps it; without any rule everything is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// Every moment of so much time before now stays recoverable.
    pub recovery_window: Option<HumanDuration>,
    /// So many of the newest full backups stay, with what was taken on top of them, and all
    /// WAL from the oldest of them on.
    pub full: Option<u32>,
    /// The newest backup of each of so many hours that have one.
    pub hourly: Option<u32>,
    /// The newest backup of each of so many days that have one.
    pub daily: Option<u32>,
    /// The newest backup of each of so many weeks (from Monday) that have one.
    pub weekly: Option<u32>,
    /// The newest backup of each of so many months that have one.
    pub monthly: Option<u32>,
    /// The newest backup of each of so many years that have one.
    pub yearly: Option<u32>,
    /// A backup goes only when so many repositories hold it, this one included. Default: this
    /// one and every copy that is filled from it.
    pub minimum_copies: Option<u32>,
    /// A backup goes only when a newer one of those that stay was proven by a drill.
    pub prove_before_expire: bool,
}
