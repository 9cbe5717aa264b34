//! Backups whose every object is what was written, and that are wrong all the same: no storage
//! does this, a writer with a fault does.

use bytes::Bytes;
use jiff::Timestamp;

use super::*;
use crate::config::Compression;
use crate::digest::{PlainDigest, StoredDigest};
use crate::postgres::checksum::page_checksum;
use crate::postgres::incremental::IncrementalHeader;
use crate::postgres::manifest::{ManifestVersion, ManifestWriter, WalRange};
use crate::postgres::{SegmentName, SegmentSize, SystemId, WalFileName};
use crate::repository::Repository;
use crate::repository::codec::FrameCompressor;
use crate::repository::index::{Increment, Member, MemberKind};
use crate::repository::keys::{self, WalObject};
use crate::repository::marker::Parent;
use crate::repository::pack::{FRAME_SIZE, PackWriter};
use crate::storage::Store;

/// A backup that is being made.
struct Draft {
    system: System,
    marker: Marker,
    manifest: Vec<(String, u64, u32)>,
}

/// A page that is right as `block`.
fn page(block: u32) -> Vec<u8> {
    let mut page = vec![5; 8192];
    let sum = page_checksum(&page, block).to_le_bytes();
    page[8..10].copy_from_slice(&sum);
    page[..8].fill(0);
    let sum = page_checksum(&page, block).to_le_bytes();
    page[8..10].copy_from_slice(&sum);
    page
}

fn relation(path: &str, pages: u32) -> (Member, Vec<u8>) {
    file(path, (0..pages).flat_map(page).collect())
}

fn file(path: &str, content: Vec<u8>) -> (Member, Vec<u8>) {
    let mut member = Member::directory(path.into(), 0o600, Timestamp::UNIX_EPOCH);
    member.kind = MemberKind::File;
    member.size = content.len() as u64;
    (member, content)
}

fn increment(path: &str) -> (Member, Vec<u8>) {
    let header = IncrementalHeader {
        truncation_block_length: 3,
        blocks: vec![1],
    };
    let mut content = header.encode(8192);
    content.extend(page(1));
    let (mut member, content) = file(path, content);
    member.increment = Some(Increment {
        truncation_block_length: 3,
        blocks: vec![[1, 1]],
    });
    (member, content)
}

impl Draft {
    fn new(store: &Store, kind: BackupKind, start: &str) -> Self {
        let system = Repository::over("near", store.clone()).system("main", SystemId(7));
        let now = Timestamp::now();
        let name: SegmentName = "000000010000000000000002".parse().unwrap();
        let marker = serde_json::from_value(serde_json::json!({
            "format": 1, "id": BackupId::new(kind, now), "kind": kind, "cluster": "main",
            "in_order": true,
            "system_id": system.id(), "server_version_num": 180_000,
            "catalog_version": 1, "seawall_version": "0",
            "segment_size": SegmentSize::DEFAULT, "block_size": 8192,
            "data_checksums": true, "timeline": 1,
            "start_lsn": start, "stop_lsn": "0/2000100",
            "start_time": now, "stop_time": now, "next_xid": 1, "from_standby": false,
            "wal": [name, name], "data_directory": "/data", "data_directory_mode": 0o700,
            "tablespaces": [], "configuration_files": [], "superuser": "postgres",
            "files": 0, "plain_bytes": 0, "stored_bytes": 0,
            "damaged_pages": [], "damaged_page_count": 0, "objects": [],
        }));
        Self {
            system,
            marker: marker.unwrap(),
            manifest: Vec::new(),
        }
    }

    async fn put(&mut self, key: String, bytes: Vec<u8>) {
        let full = format!("{}/{key}", self.system.keys().backup(&self.marker.id));
        self.marker.objects.push(StoredObject {
            key,
            size: bytes.len() as u64,
            sha256: StoredDigest::of(&bytes),
        });
        self.system.store().put(&full, bytes.into()).await.unwrap();
    }

    /// Adds a pack, whose index says what `lie` makes of it.
    async fn pack(&mut self, files: Vec<(Member, Vec<u8>)>, lie: impl FnOnce(&mut Vec<Member>)) {
        let number = self.marker.objects.len() as u32 / 2 + 1;
        let mut stored = Vec::new();
        let sink = |bytes: Bytes| {
            stored.extend_from_slice(&bytes);
            Ok(())
        };
        let mut writer = PackWriter::new(Compression::default(), sink).unwrap();
        let directory = Member::directory("base".into(), 0o700, Timestamp::UNIX_EPOCH);
        writer.directory(directory).unwrap();
        for (member, content) in files {
            let (path, size) = (member.path.clone(), content.len() as u64);
            let damaged = member.damaged_blocks.clone();
            self.manifest.push((path, size, crc32c::crc32c(&content)));
            self.marker.files += 1;
            self.marker.plain_bytes += size;
            writer.begin_file(member).unwrap();
            writer.write(&content).unwrap();
            writer.end_file(damaged).unwrap();
        }
        let mut members = writer.finish().unwrap().members;
        lie(&mut members);
        let mut text = Vec::new();
        index::write(&mut text, &keys::backup::pack(number), None, &members).unwrap();
        let mut compressor = FrameCompressor::new(Compression::default()).unwrap();
        let index = compressor.compress(&text).unwrap();
        self.put(keys::backup::pack(number), stored).await;
        self.put(keys::backup::index(number), index).await;
    }

    /// Ends it; what is found, without its WAL and pg_control, which it has not.
    async fn verify(&mut self) -> Verified {
        self.finish().await;
        let scope = Scope {
            jobs: 2,
            ..Scope::default()
        };
        let progress = Progress::hidden();
        let markers = [self.marker.clone()];
        self.judge(&markers, &scope, &progress).await
    }

    async fn judge(&self, markers: &[Marker], scope: &Scope, progress: &Progress) -> Verified {
        let verified = verify_backup(&self.system, markers, &self.marker, scope, progress).await;
        let mut verified = verified.unwrap();
        verified
            .findings
            .retain(|found| found.kind != Kind::Wal && !found.what.contains("pg_control"));
        verified
    }

    async fn finish(&mut self) {
        self.pack(vec![file("backup_label", b"x".to_vec())], |_| {})
            .await;
        let version = ManifestVersion::V2;
        let mut writer = ManifestWriter::new(Vec::new(), version, SystemId(7)).unwrap();
        for (path, size, crc32c) in &self.manifest {
            let time = Timestamp::UNIX_EPOCH;
            writer.file(path.as_bytes(), *size, time, *crc32c).unwrap();
        }
        let range = WalRange {
            timeline: self.marker.timeline,
            start: self.marker.start_lsn,
            end: self.marker.stop_lsn,
        };
        let text = writer.finish(&[range]).unwrap();
        let mut compressor = FrameCompressor::new(Compression::default()).unwrap();
        let stored = compressor.compress(&text).unwrap();
        self.put(keys::backup::MANIFEST.into(), stored).await;
        let object = WalObject {
            name: WalFileName::Segment(self.marker.wal[0]),
            digest: PlainDigest::of(b"wal"),
            encrypted: false,
        };
        let key = self.system.keys().wal_object(object);
        let store = self.system.store();
        store.put(&key, Bytes::from_static(b"wal")).await.unwrap();
        let size = self.marker.segment_size;
        self.system.repository().init().await.unwrap();
        self.system.register(18, size).await.unwrap();
        self.system.commit(&self.marker).await.unwrap();
    }
}

fn draft() -> Draft {
    Draft::new(&Store::memory().unwrap(), BackupKind::Full, "0/2000028")
}

fn some_files() -> Vec<(Member, Vec<u8>)> {
    vec![
        file("PG_VERSION", b"18\n".to_vec()),
        relation("base/5/1259", 300),
        file("base/5/empty", Vec::new()),
        relation("base/5/x", 3),
    ]
}

#[tokio::test]
async fn a_sound_backup_passes_across_frames_and_packs() {
    let mut draft = draft();
    draft.pack(some_files(), |_| {}).await;
    draft.pack(vec![relation("base/6/1259", 700)], |_| {}).await;
    let verified = draft.verify().await;
    assert_eq!(verified.findings, []);
    assert_eq!((verified.files, verified.pages), (6, 1000));
}

#[tokio::test]
async fn an_index_that_tells_something_else_than_its_pack_is_found() {
    let check = async |lie: fn(&mut Vec<Member>), says: &str| {
        let mut draft = draft();
        draft.pack(some_files(), lie).await;
        let found = draft.verify().await.findings;
        let said = found.iter().any(|f| f.what.contains(says));
        assert!(said, "{says}: {found:?}");
        let kinds = found.iter().all(|f| f.kind == Kind::Inconsistent);
        assert!(kinds, "{found:?}");
    };
    check(|m| m[2].digest = m[1].digest, "base/5/1259 cannot be").await;
    check(|m| m[2].crc32c = Some(1), "base/5/1259 cannot be").await;
    check(|m| m[2].frames = [0, 1], "frames 0 to 1").await;
    check(|m| m[2].stored[1] += 1, "is stored at").await;
    check(
        |m| m[2].path = "base/5/1260".into(),
        "tar finds base/5/1259",
    )
    .await;
    check(|m| drop(m.remove(0)), "tar finds base").await;
    check(|m| drop(m.remove(4)), "tar finds base/5/x").await;
    check(|m| m.swap(1, 2), "out of order").await;
    check(|m| m[4].size += FRAME_SIZE as u64 * 9, "before the end").await;
    check(|m| drop(m.remove(3)), "where tar finds base/5/empty").await;
    let mut draft = draft();
    let files = some_files().into_iter().rev().collect();
    draft.pack(files, |_| {}).await;
    let found = draft.verify().await.findings;
    assert!(
        found.len() == 1 && found[0].what.contains("behind"),
        "{found:?}"
    );
}

#[tokio::test]
async fn a_wrong_page_is_found_with_its_file_and_block_and_a_known_one_is_not() {
    let mut draft = draft();
    let (mut member, mut content) = relation("base/5/1259.1", 200);
    // Of the second file of a relation: every checksum is of another block.
    content.truncate(2 * 8192);
    member.size = content.len() as u64;
    let (mut known, mut rotten) = relation("base/5/1260", 9);
    rotten[4 * 8192 + 99] ^= 1;
    known.damaged_blocks = vec![4];
    draft
        .pack(vec![(member, content), (known, rotten)], |_| {})
        .await;
    let found = draft.verify().await.findings;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].kind, Kind::Page);
    assert_eq!(found[0].files, ["base/5/1259.1"]);
    assert_eq!(found[0].blocks, [131_072, 131_073]);
    assert!(found[0].what.contains("block 131072-131073"), "{found:?}");
}

#[tokio::test]
async fn a_manifest_of_other_files_is_found() {
    let check = async |lie: fn(&mut Draft), says: &str| {
        let mut draft = draft();
        draft.pack(some_files(), |_| {}).await;
        lie(&mut draft);
        let found = draft.verify().await.findings;
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].what.contains(says), "{found:?}");
    };
    check(|d| drop(d.manifest.pop()), "names 4 files").await;
    check(|d| d.manifest[1].0 = "base/5/1260".into(), "other files").await;
    check(|d| d.manifest[1].1 = 5, "other sizes").await;
    check(|d| d.manifest[1].2 = 5, "other checksums").await;
    check(|d| d.marker.files += 1, "it counts").await;
}

#[tokio::test]
async fn an_incremental_file_without_its_base_is_found_and_a_chain_without_its_full_backup() {
    let store = Store::memory().unwrap();
    let mut full = Draft::new(&store, BackupKind::Full, "0/2000028");
    full.pack(some_files(), |_| {}).await;
    assert_eq!(full.verify().await.findings, []);
    let below = Parent {
        id: full.marker.id.clone(),
        timeline: full.marker.timeline,
        start_lsn: full.marker.start_lsn,
    };
    let make = async |path: &str| {
        let mut draft = Draft::new(&store, BackupKind::Incremental, "0/2000050");
        draft.marker.parent = Some(below.clone());
        draft.pack(vec![increment(path)], |_| {}).await;
        draft.finish().await;
        draft
    };
    let scope = Scope {
        jobs: 1,
        ..Scope::default()
    };
    let progress = Progress::hidden();
    let good = make("base/5/INCREMENTAL.1259").await;
    let both = [full.marker.clone(), good.marker.clone()];
    let verified = good.judge(&both, &scope, &progress).await;
    assert_eq!(verified.findings, []);
    assert_eq!(verified.pages, 1);

    let found = good.judge(&both[1..], &scope, &progress).await.findings;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].kind, Kind::Chain);

    let bad = make("base/5/INCREMENTAL.1260").await;
    let both = [full.marker.clone(), bad.marker.clone()];
    let found = bad.judge(&both, &scope, &progress).await.findings;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].files, ["base/5/INCREMENTAL.1260"]);
}
