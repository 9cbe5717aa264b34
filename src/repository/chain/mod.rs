//! Chains: an incremental backup with those that it was taken on top of, down to a full one.

pub mod files;
pub mod frames;
pub mod join;
pub mod members;
pub mod read;
pub mod walk;

#[cfg(test)]
mod files_of_chains;

use std::fmt;

use crate::repository::keys::{BackupId, BackupKind};
use crate::repository::marker::Marker;

/// A chain that does not reach a full backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenChain {
    /// The incremental backup whose parent is not there.
    pub orphan: BackupId,
    /// The parent that it names.
    pub parent: Option<BackupId>,
}

impl fmt::Display for BrokenChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.parent {
            Some(parent) => write!(
                f,
                "incremental backup {} was taken on top of {parent}, which is gone, and nothing stands in its place",
                self.orphan
            ),
            None => write!(f, "incremental backup {} names no parent", self.orphan),
        }
    }
}

/// `backup` and all that restoring it needs of `backups`, newest first; a full backup is alone.
///
/// A parent is the backup that is named, or one that was merged from it, which is the same and
/// shorter, and lets the chain go. That another starts at the same place is not enough: two
/// backups of a standby can, and hold different pages.
pub fn of<'a>(backups: &'a [Marker], backup: &'a Marker) -> Result<Vec<&'a Marker>, BrokenChain> {
    let mut chain = vec![backup];
    let mut last = backup;
    while last.kind == BackupKind::Incremental {
        let named = last.parent.as_ref().map(|parent| &parent.id);
        let parent = backups
            .iter()
            // Starts go down along a chain: it has an end, whatever markers say.
            .filter(|other| other.is_parent_of(last) && other.start_lsn < last.start_lsn)
            .max_by_key(|other| named.is_some_and(|named| other.is_merged_from(named)));
        last = parent.ok_or_else(|| BrokenChain {
            orphan: last.id.clone(),
            parent: named.cloned(),
        })?;
        chain.push(last);
    }
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::{Lsn, SystemId, TimelineId};
    use crate::repository::Repository;
    use crate::repository::commit::tests::uncommitted;
    use crate::repository::marker::{MERGED_FROM, Parent};
    use crate::storage::Store;

    /// Backups by where they start: (start, the place of the parent among them).
    async fn backups(starts: &[(u64, Option<usize>)]) -> Vec<Marker> {
        let store = Store::memory().unwrap();
        let system = Repository::over("near", store).system("main", SystemId(7));
        let template = uncommitted(&system).await;
        let ids: Vec<BackupId> = starts
            .iter()
            .map(|(_, parent)| {
                let kind = parent.map_or(BackupKind::Full, |_| BackupKind::Incremental);
                BackupId::new(kind, jiff::Timestamp::UNIX_EPOCH)
            })
            .collect();
        let made = starts.iter().zip(&ids).map(|((start, parent), id)| Marker {
            id: id.clone(),
            kind: id.kind(),
            start_lsn: Lsn(*start),
            parent: parent.map(|parent| Parent {
                id: ids[parent].clone(),
                timeline: TimelineId::FIRST,
                start_lsn: Lsn(starts[parent].0),
            }),
            ..template.clone()
        });
        made.collect()
    }

    fn starts(chain: Result<Vec<&Marker>, BrokenChain>) -> Vec<u64> {
        let chain = chain.unwrap();
        chain.iter().map(|marker| marker.start_lsn.0).collect()
    }

    #[tokio::test]
    async fn a_chain_goes_down_to_its_full_backup_and_a_merged_one_shortens_it() {
        let mut all = backups(&[(10, None), (20, Some(0)), (30, Some(1)), (20, None)]).await;
        assert_eq!(starts(of(&all, &all[0])), [10]);
        assert_eq!(starts(of(&all, &all[2])), [30, 20, 10]);
        let merged = serde_json::json!([all[1].id, all[0].id]);
        all[3].other.insert(MERGED_FROM.into(), merged);
        assert_eq!(starts(of(&all, &all[2])), [30, 20]);
        // Also without the chain that it was made of.
        assert_eq!(starts(of(&all[2..], &all[2])), [30, 20]);
    }

    #[tokio::test]
    async fn another_backup_that_starts_at_the_same_place_is_no_parent() {
        // As two of a standby can, between two restartpoints.
        let mut all = backups(&[(10, None), (10, None), (20, Some(1))]).await;
        let chain = of(&all, &all[2]).unwrap();
        assert_eq!(chain[1].id, all[1].id);
        all.remove(1);
        assert!(of(&all, &all[1]).is_err());
    }

    #[tokio::test]
    async fn a_chain_without_its_full_backup_is_broken_and_one_in_a_circle_too() {
        let all = backups(&[(10, None), (20, Some(0)), (30, Some(1))]).await;
        assert_eq!(of(&all[1..], &all[2]).unwrap_err().orphan, all[1].id);
        let circle = backups(&[(20, Some(1)), (30, Some(0))]).await;
        assert!(of(&circle, &circle[1]).is_err());
    }
}
