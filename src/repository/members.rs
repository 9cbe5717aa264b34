//! The files of a backup one after the other, in the repository's [order](mod@super::order), read from its indexes
//! alone: what a chain is joined by. One index is in memory at a time, and a few more on their
//! way, compressed.
//!
//! The last pack stands outside of that order (`pg_control`, `backup_label`, `tablespace_map`),
//! and is not read here.

use std::cmp::Ordering;
use std::io::{BufReader, Read};

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;

use super::index::{self, Member, MemberKind};
use super::marker::{Marker, StoredObject};
use super::{System, codec, order};
use crate::digest::StoredDigest;
use crate::error::{Error, Result};

/// Indexes that are fetched at once.
const AHEAD: usize = 4;

/// A plain index is never larger; it holds 16,384 members.
const LARGEST_INDEX: u64 = 512 << 20;

/// A file of a backup, and where it lies.
#[derive(Debug, Clone)]
pub struct Located {
    /// The position of its pack among [`Marker::packs`].
    pub pack: usize,
    /// The index's line.
    pub member: Member,
}

/// The files of one backup, in order. An iterator that blocks: use it on a thread that may.
pub struct Members {
    indexes: mpsc::Receiver<(usize, Result<Bytes>)>,
    packs: Vec<String>,
    current: Option<(usize, Lines)>,
    next: Option<Located>,
    last_path: Option<String>,
    place: String,
    failed: bool,
}

type Lines = Box<dyn Iterator<Item = Result<Member>> + Send>;

impl Members {
    /// Begins with the first pack. Must be called inside the runtime; `marker` must have its
    /// list of objects.
    ///
    /// # Errors
    /// The backup's files are in no order, or the marker names a pack without an index.
    pub fn new(system: &System, marker: &Marker) -> Result<Self> {
        let place = format!("backup {} of {}", marker.id, system.place());
        if !marker.in_order {
            return Err(Error::failed("the files of this backup are in no order").at(place));
        }
        let mut packs = marker.packs()?;
        packs.pop();
        let directory = system.keys().backup(&marker.id);
        let wanted: Vec<(usize, StoredObject)> = packs
            .iter()
            .enumerate()
            .map(|(at, (_, index))| (at, (*index).clone()))
            .collect();
        let packs = packs.iter().map(|(pack, _)| pack.key.clone()).collect();
        let (sender, indexes) = mpsc::channel(1);
        let system = system.clone();
        tokio::spawn(async move {
            let mut fetched = futures::stream::iter(wanted)
                .map(|(at, index)| {
                    let (system, directory) = (&system, &directory);
                    async move { (at, fetch(system, directory, &index).await) }
                })
                .buffered(AHEAD);
            // Ends as soon as nobody reads any more.
            while let Some(index) = fetched.next().await {
                if sender.send(index).await.is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            indexes,
            packs,
            current: None,
            next: None,
            last_path: None,
            place,
            failed: false,
        })
    }

    /// The file that a restore makes at `path`, if the backup has it. Ask for paths in
    /// ascending order only: what comes before is passed over.
    ///
    /// # Errors
    /// As of the iterator.
    pub fn find(&mut self, path: &str) -> Result<Option<Member>> {
        loop {
            let located = match self.next.take() {
                Some(located) => located,
                None => match self.next() {
                    Some(located) => located?,
                    None => return Ok(None),
                },
            };
            match order::compare(&located.member.target_path(), path) {
                Ordering::Less => {}
                Ordering::Equal => return Ok(Some(located.member)),
                Ordering::Greater => {
                    self.next = Some(located);
                    return Ok(None);
                }
            }
        }
    }

    fn read(&mut self) -> Result<Option<Located>> {
        loop {
            if let Some((pack, lines)) = &mut self.current {
                for member in lines {
                    let member = member?;
                    if member.kind == MemberKind::File {
                        let pack = *pack;
                        return Ok(Some(Located { pack, member }));
                    }
                }
                self.current = None;
            }
            let Some((pack, index)) = self.indexes.blocking_recv() else {
                return Ok(None);
            };
            let key = &self.packs[pack];
            let text = codec::stream_decoder(std::io::Cursor::new(index?)).map_err(|error| {
                Error::failed(format!("the index of {key} is damaged")).because(error)
            })?;
            let lines = index::read(BufReader::new(text.take(LARGEST_INDEX)), key)?;
            self.current = Some((pack, Box::new(lines)));
        }
    }

    /// The same, and whether it comes behind the one before.
    fn read_in_order(&mut self) -> Result<Option<Located>> {
        let Some(located) = self.read()? else {
            return Ok(None);
        };
        let path = located.member.target_path().into_owned();
        if let Some(last) = &self.last_path
            && order::compare(last, &path).is_ge()
        {
            return Err(Error::failed(format!(
                "the index of {} names {path} behind {last}: it is damaged",
                self.packs[located.pack]
            )));
        }
        self.last_path = Some(path);
        Ok(Some(located))
    }
}

impl Iterator for Members {
    type Item = Result<Located>;

    /// # Errors
    /// An index is missing, damaged, or not in order; nothing comes after that.
    fn next(&mut self) -> Option<Self::Item> {
        if let Some(located) = self.next.take() {
            return Some(Ok(located));
        }
        if self.failed {
            return None;
        }
        match self.read_in_order() {
            Ok(located) => located.map(Ok),
            Err(error) => {
                self.failed = true;
                Some(Err(error.at(&self.place)))
            }
        }
    }
}

/// An index as it is stored, whose digest is the marker's.
async fn fetch(system: &System, directory: &str, index: &StoredObject) -> Result<Bytes> {
    let key = format!("{directory}/{}", index.key);
    let stored = system
        .store()
        .get(&key)
        .await?
        .ok_or_else(|| Error::failed(format!("{key} is missing")))?;
    if stored.len() as u64 != index.size || StoredDigest::of(&stored) != index.sha256 {
        return Err(Error::failed(format!(
            "{key} is damaged: its bytes are not those that were written"
        )));
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::config::Compression;
    use crate::digest::PlainDigest;
    use crate::postgres::SystemId;
    use crate::repository::codec::FrameCompressor;
    use crate::repository::commit::tests::uncommitted;
    use crate::repository::index::Increment;
    use crate::repository::{Repository, keys};
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
        let members = Members::new(system, marker).unwrap();
        tokio::task::spawn_blocking(move || {
            let path = |located: Located| located.member.path;
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
        let mut members = Members::new(&system, &marker).unwrap();
        let found = tokio::task::spawn_blocking(move || {
            [
                "base/1/1258",
                "base/1/1260",
                "base/1/1260.1",
                "base/5/1",
                "x",
            ]
            .map(|path| members.find(path).unwrap().map(|member| member.path))
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
        assert!(Members::new(&system, &marker).is_err());
    }
}
