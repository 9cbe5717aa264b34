//! The files of a backup one after the other, in the repository's
//! [order](mod@crate::repository::order), read from its indexes alone: what a chain is joined by.
//!
//! The last pack stands outside of that order (`pg_control`, `backup_label`, `tablespace_map`),
//! and is not read here.

use std::cmp::Ordering;
use std::sync::Arc;

use super::walk::{Pack, Walk};
use crate::error::{Error, Result};
use crate::repository::index::{Member, MemberKind};
use crate::repository::marker::Marker;
use crate::repository::waiter::Waiter;
use crate::repository::{System, order};

/// A file of a backup, and the pack that holds it.
pub type Located = (Arc<Pack>, Member);

/// The files of one backup, in order. An iterator that blocks: use it on a thread that may.
pub struct Members {
    walk: Walk,
    next: Option<Located>,
    last_path: Option<String>,
    place: String,
}

impl Members {
    /// Begins with the first pack. `marker` must have its list of objects.
    ///
    /// # Errors
    /// The backup's files are in no order, or the marker names a pack without an index.
    pub fn new(system: &System, marker: &Marker, waiter: &Waiter) -> Result<Self> {
        check_order(system, marker)?;
        Ok(Self {
            walk: Walk::new(system, marker, waiter)?,
            next: None,
            last_path: None,
            place: format!("backup {} of {}", marker.id, system.place()),
        })
    }

    /// The file that a restore makes at `path`, if the backup has it. Ask for paths in
    /// ascending order only: what comes before is passed over.
    ///
    /// # Errors
    /// As of the iterator.
    pub fn find(&mut self, path: &str) -> Result<Option<Located>> {
        while let Some(located) = self.next().transpose()? {
            match order::compare(&located.1.target_path(), path) {
                Ordering::Less => {}
                Ordering::Equal => return Ok(Some(located)),
                Ordering::Greater => {
                    self.next = Some(located);
                    break;
                }
            }
        }
        Ok(None)
    }

    fn read(&mut self) -> Result<Option<Located>> {
        for read in &mut self.walk {
            let (pack, member) = read.map_err(|error| error.at(&self.place))?;
            if pack.is_last || member.kind == MemberKind::Directory {
                continue;
            }
            let path = member.target_path();
            if let Some(last) = &self.last_path
                && order::compare(last, &path).is_ge()
            {
                self.walk.end();
                return Err(Error::failed(format!(
                    "the index of {} is damaged: {path} comes behind {last}",
                    pack.key
                ))
                .at(&self.place));
            }
            self.last_path = Some(path.into_owned());
            return Ok(Some((pack, member)));
        }
        Ok(None)
    }
}

impl Iterator for Members {
    type Item = Result<Located>;

    /// # Errors
    /// An index is missing, damaged, or not in order; nothing comes after that.
    fn next(&mut self) -> Option<Self::Item> {
        match self.next.take() {
            Some(located) => Some(Ok(located)),
            None => self.read().transpose(),
        }
    }
}

/// An error where the files of a backup are in no order: one that came over the replication
/// protocol.
pub(super) fn check_order(system: &System, marker: &Marker) -> Result<()> {
    match marker.in_order {
        true => Ok(()),
        false => Err(Error::failed(format!(
            "the files of backup {} are in no order: no backup can be on top of it",
            marker.id
        ))
        .at(system.place())),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::config::Compression;
    use crate::digest::{PlainDigest, StoredDigest};
    use crate::postgres::SystemId;
    use crate::repository::codec::FrameCompressor;
    use crate::repository::commit::tests::uncommitted;
    use crate::repository::index::Increment;
    use crate::repository::marker::StoredObject;
    use crate::repository::{Repository, index, keys};
    use crate::storage::Store;

    fn file(path: &str) -> Member {
        let mut member = Member::directory(path.into(), 0o600, Timestamp::UNIX_EPOCH);
        member.kind = MemberKind::File;
        member.digest = Some(PlainDigest::of(b"x"));
        member.increment = path.contains("INCREMENTAL.").then(|| Increment {
            truncation_block_length: 0,
            blocks: Vec::new(),
        });
        member
    }

    /// A backup with an index for each list of paths, and a last pack.
    async fn backup(packs: &[&[&str]]) -> (System, Marker) {
        let store = Store::memory().unwrap();
        let system = Repository::over("near", store).system("main", SystemId(7));
        let mut marker = uncommitted(&system).await;
        marker.in_order = true;
        let last: &[&str] = &["global/pg_control"];
        for (number, paths) in (1..).zip(packs.iter().chain([&last])) {
            let (pack, index) = (keys::backup::pack(number), keys::backup::index(number));
            let mut members: Vec<Member> = paths.iter().map(|path| file(path)).collect();
            members.insert(
                0,
                Member::directory("base".into(), 0o700, Timestamp::UNIX_EPOCH),
            );
            let mut text = Vec::new();
            index::write(&mut text, &pack, None, &members).unwrap();
            let stored = FrameCompressor::new(Compression::default())
                .unwrap()
                .compress(&text)
                .unwrap();
            let object = |key: String, bytes: &[u8]| StoredObject {
                key,
                size: bytes.len() as u64,
                sha256: StoredDigest::of(bytes),
            };
            let key = format!("{}/{index}", system.keys().backup(&marker.id));
            marker.objects.push(object(pack, b""));
            marker.objects.push(object(index, &stored));
            system.store().put(&key, stored.into()).await.unwrap();
        }
        (system, marker)
    }

    async fn paths(system: &System, marker: &Marker) -> Vec<Result<String>> {
        let (_guard, waiter) = Waiter::new();
        let members = Members::new(system, marker, &waiter).unwrap();
        tokio::task::spawn_blocking(move || {
            let path = |(_, member): Located| member.path;
            members.map(|located| located.map(path)).collect()
        })
        .await
        .unwrap()
    }

    const FILES: [&[&str]; 3] = [
        &["PG_VERSION", "base/1/1259", "base/1/INCREMENTAL.1260"],
        &[],
        &["base/1/1261", "base/5/1"],
    ];

    #[tokio::test]
    async fn files_come_in_order_across_packs_and_the_last_pack_does_not() {
        let (system, marker) = backup(&FILES).await;
        let read: Vec<String> = paths(&system, &marker)
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert_eq!(read, FILES.concat());
    }

    #[tokio::test]
    async fn a_file_is_found_by_the_path_that_a_restore_makes() {
        let (system, marker) = backup(&FILES).await;
        let (_guard, waiter) = Waiter::new();
        let mut members = Members::new(&system, &marker, &waiter).unwrap();
        let found = tokio::task::spawn_blocking(move || {
            [
                "base/1/1258",
                "base/1/1260",
                "base/1/1260.1",
                "base/5/1",
                "x",
            ]
            .map(|path| members.find(path).unwrap().map(|(_, member)| member.path))
        });
        let found = found.await.unwrap();
        let found: Vec<Option<&str>> = found.iter().map(Option::as_deref).collect();
        assert_eq!(
            found,
            [
                None,
                Some("base/1/INCREMENTAL.1260"),
                None,
                Some("base/5/1"),
                None
            ]
        );
    }

    #[tokio::test]
    async fn an_index_that_is_out_of_order_missing_or_changed_is_an_error() {
        let (system, marker) = backup(&[&["base/5/1", "base/1/1"]]).await;
        let read = paths(&system, &marker).await;
        assert!(read.len() == 2 && read[1].is_err(), "{read:?}");

        let (system, mut marker) = backup(&FILES).await;
        marker.objects[3].sha256 = StoredDigest::of(b"another");
        let read = paths(&system, &marker).await;
        assert!(read.len() == 4 && read[3].is_err(), "{read:?}");
        let key = format!("{}/data/000001.index.zst", system.keys().backup(&marker.id));
        system.store().delete(&key).await.unwrap();
        let read = paths(&system, &marker).await;
        assert!(read.len() == 1 && read[0].is_err(), "{read:?}");

        marker.in_order = false;
        let (_guard, waiter) = Waiter::new();
        assert!(Members::new(&system, &marker, &waiter).is_err());
    }
}
