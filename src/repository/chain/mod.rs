//! Chains: an incremental backup with those that it was taken on top of, down to a full one.

pub mod files;
pub mod frames;
pub mod join;
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
/// A parent is known by where it starts, so that a merged backup takes its place. Where several
/// start there, the one that was merged from the one that is named is taken: it is the same and
/// shorter, and lets the chain go. Then the named one itself, then a full one.
pub fn of<'a>(backups: &'a [Marker], backup: &'a Marker) -> Result<Vec<&'a Marker>, BrokenChain> {
    let mut chain = vec![backup];
    let mut last = backup;
    while last.kind == BackupKind::Incremental {
        let named = last.parent.as_ref().map(|parent| &parent.id);
        let parent = backups
            .iter()
            // Starts go down along a chain: it has an end, whatever markers say.
            .filter(|other| other.is_parent_of(last) && other.start_lsn < last.start_lsn)
            .max_by_key(|other| {
                let merged = named.is_some_and(|named| other.is_merged_from(named));
                let is_full = other.kind == BackupKind::Full;
                (merged, Some(&other.id) == named, is_full)
            });
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
    use crate::repository::marker::Parent;
    use crate::storage::Store;

    /// Backups by where they start: (start, start of the parent).
    async fn backups(starts: &[(u64, Option<u64>)]) -> Vec<Marker> {
        let store = Store::memory().unwrap();
        let system = Repository::over("near", store).system("main", SystemId(7));
        let template = uncommitted(&system).await;
        let kind = |parent: Option<u64>| match parent {
            Some(_) => BackupKind::Incremental,
            None => BackupKind::Full,
        };
        let id = |kind| BackupId::new(kind, jiff::Timestamp::UNIX_EPOCH);
        let made = starts.iter().map(|(start, parent)| Marker {
            id: id(kind(*parent)),
            kind: kind(*parent),
            start_lsn: Lsn(*start),
            parent: parent.map(|start| Parent {
                id: id(BackupKind::Full),
                timeline: TimelineId::FIRST,
                start_lsn: Lsn(start),
            }),
            ..template.clone()
        });
        made.collect()
    }

    fn starts(chain: Result<Vec<&Marker>, BrokenChain>) -> Vec<u64> {
        chain
            .unwrap()
            .iter()
            .map(|marker| marker.start_lsn.0)
            .collect()
    }

    #[tokio::test]
    async fn a_chain_goes_down_to_its_full_backup_and_a_merged_one_shortens_it() {
        let all = backups(&[(10, None), (20, Some(10)), (30, Some(20)), (40, Some(20))]).await;
        assert_eq!(starts(of(&all, &all[0])), [10]);
        assert_eq!(starts(of(&all, &all[3])), [40, 20, 10]);
        let merged = backups(&[(20, None), (20, Some(10)), (30, Some(20))]).await;
        assert_eq!(starts(of(&merged, &merged[2])), [30, 20]);
        // As long as the one that it was merged from is there as well.
        let mut both = backups(&[(10, None), (20, Some(10)), (30, Some(20)), (20, None)]).await;
        both[2].parent.as_mut().unwrap().id = both[1].id.clone();
        assert_eq!(starts(of(&both, &both[2])), [30, 20, 10]);
        let from = [both[1].id.clone(), both[0].id.clone()];
        both[3].merged_from(&from);
        assert_eq!(starts(of(&both, &both[2])), [30, 20]);
    }

    #[tokio::test]
    async fn a_chain_without_its_full_backup_is_broken_and_one_in_a_circle_too() {
        let all = backups(&[(20, Some(10)), (30, Some(20))]).await;
        assert_eq!(of(&all, &all[1]).unwrap_err().orphan, all[0].id);
        let circle = backups(&[(20, Some(30)), (30, Some(20))]).await;
        assert!(of(&circle, &circle[1]).is_err());
    }
}
