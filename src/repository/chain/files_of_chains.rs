//! Random histories of files, backed up as chains and read back.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use proptest::prelude::*;

use super::join::{Entry, Join};
use super::read::{Part, Reader};
use crate::config::Compression;
use crate::digest::PlainDigest;
use crate::postgres::incremental::{IncrementalHeader, incremental_path};
use crate::postgres::{Lsn, SystemId};
use crate::repository::codec::FrameCompressor;
use crate::repository::commit::tests::uncommitted;
use crate::repository::index::{self, Increment, Member, MemberKind};
use crate::repository::keys::{self, BackupId, BackupKind};
use crate::repository::marker::{Marker, Parent, StoredObject};
use crate::repository::pack::PackWriter;
use crate::repository::waiter::Waiter;
use crate::repository::{Repository, System, order};
use crate::storage::Store;

/// Small, so that files of many blocks stay small. Frames hold many of them.
const BLOCK: u32 = 1024;

/// A relation file: one number for each block.
type Blocks = Vec<u8>;

/// The files of a cluster at one moment, in no order.
type Files = BTreeMap<String, Blocks>;

/// Noise that does not compress, so that a pack has several stored ranges.
fn block(path: &str, number: usize, version: u8) -> Vec<u8> {
    let mut seed = PlainDigest::of(format!("{path} {number} {version}").as_bytes()).as_number();
    (0..BLOCK)
        .map(|_| {
            seed = seed
                .wrapping_mul(0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645)
                .wrapping_add(1);
            (seed >> 99) as u8
        })
        .collect()
}

fn plain(path: &str, blocks: &[u8]) -> Vec<u8> {
    let blocks = blocks.iter().enumerate();
    blocks
        .flat_map(|(at, version)| block(path, at, *version))
        .collect()
}

/// What an incremental backup stores of a file, as `pg_basebackup --incremental` would.
fn increment(path: &str, old: &[u8], new: &[u8], shortest: usize) -> (Increment, Vec<u8>) {
    let changed = |at: &usize| *at >= shortest || old.get(*at) != new.get(*at);
    let changed: Vec<u32> = (0..new.len()).filter(changed).map(|at| at as u32).collect();
    let header = IncrementalHeader {
        truncation_block_length: shortest as u32,
        blocks: changed.clone(),
    };
    let mut content = header.encode(BLOCK);
    let mut runs: Vec<[u32; 2]> = Vec::new();
    for at in changed {
        content.extend(block(path, at as usize, new[at as usize]));
        match runs.last_mut() {
            Some([first, count]) if *first + *count == at => *count += 1,
            _ => runs.push([at, 1]),
        }
    }
    let increment = Increment {
        truncation_block_length: shortest as u32,
        blocks: runs,
    };
    (increment, content)
}

/// Stores a backup of `files`, on top of `parent` and what it held.
async fn back_up(system: &System, files: &Files, parent: Option<(&Marker, &Files)>) -> Marker {
    let kind = match parent {
        Some(_) => BackupKind::Incremental,
        None => BackupKind::Full,
    };
    let mut marker = uncommitted(system).await;
    marker.id = BackupId::new(kind, Timestamp::now());
    marker.kind = kind;
    marker.in_order = true;
    marker.block_size = BLOCK;
    marker.start_lsn = Lsn(parent.map_or(1, |(parent, _)| parent.start_lsn.0 + 1));
    marker.parent = parent.map(|(parent, _)| Parent {
        id: parent.id.clone(),
        timeline: parent.timeline,
        start_lsn: parent.start_lsn,
    });
    let mut paths: Vec<&String> = files.keys().collect();
    paths.sort_by(|a, b| order::compare(a, b));
    let mut packs: Vec<Vec<(Member, Vec<u8>)>> = vec![Vec::new()];
    for (at, path) in paths.into_iter().enumerate() {
        let new = &files[path];
        let old = parent.and_then(|(_, files)| files.get(path));
        let mut member = Member::directory(path.clone(), 0o600, Timestamp::UNIX_EPOCH);
        member.kind = MemberKind::File;
        let content = match old {
            Some(old) => {
                // Blocks that were cut off and came back are new, whatever they hold.
                let shortest = old.len().min(new.len());
                let (increment, content) = increment(path, old, new, shortest);
                member.path = incremental_path(path);
                member.increment = Some(increment);
                content
            }
            None => plain(path, new),
        };
        member.size = content.len() as u64;
        if at % 5 == 4 {
            packs.push(Vec::new());
        }
        packs.last_mut().unwrap().push((member, content));
    }
    let mut control = Member::directory("global/pg_control".into(), 0o600, Timestamp::UNIX_EPOCH);
    control.size = 3;
    packs.push(vec![(control, b"ctl".to_vec())]);
    let directory = system.keys().backup(&marker.id);
    for (number, members) in packs.into_iter().enumerate() {
        let (pack, index) = (
            keys::backup::pack(number as u32),
            keys::backup::index(number as u32),
        );
        let mut stored = Vec::new();
        let sink = |bytes: Bytes| {
            stored.extend_from_slice(&bytes);
            Ok(())
        };
        let mut writer = PackWriter::new(Compression::default(), sink).unwrap();
        for (member, content) in members {
            writer.begin_file(member).unwrap();
            writer.write(&content).unwrap();
            writer.end_file(Vec::new()).unwrap();
        }
        let summary = writer.finish().unwrap();
        let mut text = Vec::new();
        index::write(&mut text, &pack, None, &summary.members).unwrap();
        let text = FrameCompressor::new(Compression::default())
            .unwrap()
            .compress(&text)
            .unwrap();
        for (key, bytes) in [(pack, stored), (index, text)] {
            marker.objects.push(StoredObject {
                size: bytes.len() as u64,
                sha256: crate::digest::StoredDigest::of(&bytes),
                key: key.clone(),
            });
            let key = format!("{directory}/{key}");
            system.store().put(&key, bytes.into()).await.unwrap();
        }
    }
    marker.objects.sort_by(|a, b| a.key.cmp(&b.key));
    marker
}

/// All files that the chain makes, read in parts of `part` blocks.
async fn read_back(system: &System, chain: &[&Marker], part: u64) -> BTreeMap<String, Vec<u8>> {
    let (_stop, waiter) = Waiter::new();
    let join = Join::new(system, chain, &waiter).unwrap();
    let store = system.store().clone();
    let read = tokio::task::spawn_blocking(move || {
        let mut parts = Vec::new();
        let mut files = BTreeMap::new();
        for entry in join {
            let Entry::File(file) = entry.unwrap() else {
                continue;
            };
            files.insert(file.path.clone(), Vec::new());
            let file = std::sync::Arc::new(file);
            let step = part * u64::from(BLOCK);
            let mut at = 0;
            while at < file.size {
                let end = (at + step).min(file.size);
                parts.push(Part::new(std::sync::Arc::clone(&file), at..end));
                at = end;
            }
        }
        let mut reader = Reader::new(&store, &waiter, &parts).unwrap();
        for part in &parts {
            let content: &mut Vec<u8> = files.get_mut(&part.file.path).unwrap();
            reader
                .read(part, &mut |bytes| {
                    content.extend_from_slice(bytes);
                    Ok(())
                })
                .unwrap();
        }
        files
    });
    read.await.unwrap()
}

const PATHS: [&str; 9] = [
    "base/1/1259",
    "base/16384/2619",
    "base/16384/2619.1",
    "base/16384/3",
    "base/5/1259",
    "base/5/16400",
    "global/1262",
    "pg_tblspc/1/PG_15_202209061/5/7",
    "pg_xact",
];

fn files() -> impl Strategy<Value = Files> {
    let blocks = prop_oneof![
        8 => prop::collection::vec(0u8..3, 0..60),
        1 => prop::collection::vec(0u8..2, 1000..2500),
    ];
    let one = prop::option::weighted(0.8, blocks);
    prop::collection::vec(one, PATHS.len()).prop_map(|all| {
        let named = PATHS.iter().zip(all);
        named
            .filter_map(|(path, blocks)| Some(((*path).to_owned(), blocks?)))
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_backup_of_a_chain_gives_back_the_files_of_its_moment(
        history in prop::collection::vec(files(), 1..5),
        part in prop_oneof![Just(u64::MAX / 4096), 1u64..300],
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let system = Repository::over("near", Store::memory().unwrap()).system("main", SystemId(7));
            let mut markers: Vec<Marker> = Vec::new();
            for (at, files) in history.iter().enumerate() {
                let parent = at.checked_sub(1).map(|parent| (&markers[parent], &history[parent]));
                let marker = back_up(&system, files, parent).await;
                markers.push(marker);
                let chain = super::of(&markers, &markers[at]).unwrap();
                let read = read_back(&system, &chain, part).await;
                assert_eq!(read.len(), files.len() + 1, "and pg_control");
                for (path, blocks) in files {
                    assert!(read[path] == plain(path, blocks), "{path} of backup {at}");
                }
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_frames_of_blocks_that_are_needed_are_fetched() {
    let system = Repository::over("near", Store::memory().unwrap()).system("main", SystemId(7));
    let mut files = Files::new();
    files.insert("base/5/1".to_owned(), vec![0; 9000]);
    let full = back_up(&system, &files, None).await;
    // All but the first block and the last have changed: of nine frames two are needed.
    let mut changed = vec![1; 9000];
    (changed[0], changed[8999]) = (0, 0);
    let later = Files::from([("base/5/1".to_owned(), changed)]);
    let child = back_up(&system, &later, Some((&full, &files))).await;
    let (_stop, waiter) = Waiter::new();
    let join = Join::new(&system, &[&child, &full], &waiter).unwrap();
    let store = system.store().clone();
    let fetched = tokio::task::spawn_blocking(move || {
        let parts: Vec<Part> = join
            .filter_map(|entry| match entry.unwrap() {
                Entry::File(file) => Some(Part::whole(file)),
                Entry::Directory(_) => None,
            })
            .collect();
        let mut reader = Reader::new(&store, &waiter, &parts).unwrap();
        for part in &parts {
            reader.read(part, &mut |_| Ok(())).unwrap();
        }
        reader.fetched()
    });
    let fetched = fetched.await.unwrap();
    let size = |marker: &Marker| marker.objects.iter().map(|o| o.size).sum::<u64>();
    assert!(fetched > size(&child) * 9 / 10, "{fetched}");
    assert!(
        fetched < size(&child) + (2 << 20) + (200 << 10),
        "{fetched} of {}",
        size(&full)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_no_older_backup_holds_whole_is_an_error_that_names_it() {
    let system = Repository::over("near", Store::memory().unwrap()).system("main", SystemId(7));
    let files = Files::from([("base/5/1".to_owned(), vec![0; 3])]);
    let other = Files::from([("base/5/2".to_owned(), vec![0; 3])]);
    let full = back_up(&system, &other, None).await;
    let child = back_up(&system, &files, Some((&full, &files))).await;
    let (_stop, waiter) = Waiter::new();
    for chain in [vec![&child], vec![&child, &full]] {
        let join = Join::new(&system, &chain, &waiter).unwrap();
        let failed = tokio::task::spawn_blocking(move || {
            let mut failed = join.filter_map(std::result::Result::err);
            failed.next()
        });
        let error = failed.await.unwrap().unwrap();
        assert!(error.to_string().contains("base/5/1"), "{error}");
    }
}
