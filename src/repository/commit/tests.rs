//! Commits that fail, sleep, or get no answer.

use std::time::Duration;

use jiff::SignedDuration;

use super::*;
use crate::postgres::{Lsn, SegmentName, SegmentSize, SystemId, WalFileName};
use crate::repository::Repository;
use crate::repository::keys::WalObject;
use crate::repository::marker::Parent;
use crate::repository::tombstones::{DoomedBackup, Tombstone};
use crate::storage::Store;
use crate::storage::simulated::{Gate, SimulatedClock, SimulatedObjects};

/// A backup without objects, with its WAL of one segment.
pub(in crate::repository) async fn uncommitted(system: &System) -> Marker {
    let id = BackupId::new(BackupKind::Full, Timestamp::now());
    let name: SegmentName = "000000010000000000000002".parse().unwrap();
    let key = system.keys().wal_object(WalObject {
        name: WalFileName::Segment(name),
        digest: crate::digest::PlainDigest::of(b"wal"),
        encrypted: false,
    });
    system
        .store()
        .put(&key, Bytes::from_static(b"wal"))
        .await
        .unwrap();
    let now = Timestamp::now();
    serde_json::from_value(serde_json::json!({
        "format": 1, "id": id, "kind": "full", "cluster": "main",
        "system_id": system.id(), "server_version_num": 180_000,
        "catalog_version": 1, "seawall_version": "0",
        "segment_size": SegmentSize::DEFAULT, "block_size": 8192,
        "data_checksums": true, "timeline": 1,
        "start_lsn": "0/2000028", "stop_lsn": "0/2000100",
        "start_time": now, "stop_time": now, "next_xid": 1, "from_standby": false,
        "wal": [name, name], "data_directory": "/data", "data_directory_mode": 0o700,
        "tablespaces": [], "configuration_files": [], "superuser": "postgres",
        "files": 0, "plain_bytes": 0, "stored_bytes": 0,
        "damaged_pages": [], "damaged_page_count": 0, "objects": [],
    }))
    .unwrap()
}

fn over(store: &Store, faults: &str) -> System {
    let store = store.clone().with_faults(faults.parse().unwrap());
    Repository::over("near", store).system("main", SystemId(7))
}

#[tokio::test]
async fn a_backup_that_a_tombstone_names_is_not_committed_whatever_fails_afterwards() {
    let store = Store::memory().unwrap();
    let sound = over(&store, "");
    let marker = uncommitted(&sound).await;
    let doomed = DoomedBackup {
        system_id: marker.system_id,
        id: marker.id.clone(),
    };
    let day = Duration::from_secs(86_400);
    let yesterday = Timestamp::now() - SignedDuration::from_hours(25);
    let tombstone = Tombstone::new(vec![doomed], Vec::new(), yesterday, day);
    let key = sound.repository().put_tombstone("main", &tombstone).await;
    // The first look at tombstones works, or none does.
    for faults in [
        "list[tombstones]@2+=403",
        "list[tombstones]=403",
        "get[tombstones]=403",
    ] {
        let error = over(&store, faults).commit(&marker).await.unwrap_err();
        assert!(!error.one_line().contains("withdrawn"), "{faults}: {error}");
        assert!(
            sound.marker(&marker.id).await.unwrap().is_none(),
            "{faults}"
        );
    }
    store.delete(&key.unwrap()).await.unwrap();
    // Nobody can see whether one is there: no marker either.
    over(&store, "list[tombstones]=403")
        .commit(&marker)
        .await
        .unwrap_err();
    assert!(sound.marker(&marker.id).await.unwrap().is_none());
    // Nothing was named a moment ago, and what is named since waits longer than that.
    over(&store, "list[tombstones]@2+=403")
        .commit(&marker)
        .await
        .unwrap();
    assert!(sound.marker(&marker.id).await.unwrap().is_some());
}

#[tokio::test]
async fn an_answer_that_was_lost_leaves_no_marker_that_nobody_looked_after() {
    for (faults, committed) in [
        ("put[backup.json]=403", false),
        ("get[backup.json]=403", true),
        ("get[backup.json]=garble", false),
    ] {
        let store = Store::memory().unwrap();
        let sound = over(&store, "");
        let marker = uncommitted(&sound).await;
        let done = over(&store, faults).commit(&marker).await;
        assert_eq!(done.is_ok(), committed, "{faults}: {done:?}");
        let there = sound.marker(&marker.id).await.unwrap().is_some();
        assert_eq!(there, committed, "{faults}");
    }
}

#[tokio::test]
async fn what_another_backup_was_taken_on_top_of_meanwhile_is_not_withdrawn() {
    let doomed = |marker: &Marker| {
        let doomed = DoomedBackup {
            system_id: marker.system_id,
            id: marker.id.clone(),
        };
        let day = Duration::from_secs(86_400);
        Tombstone::new(vec![doomed], Vec::new(), Timestamp::now(), day)
    };
    for with_child in [true, false] {
        let store = SimulatedObjects::new(&SimulatedClock::new(Timestamp::now())).unwrap();
        let open = Repository::over("near", store.store(&Gate::open()));
        let system = open.system("main", SystemId(7));
        let marker = uncommitted(&system).await;
        let gate = Gate::default();
        let sleeper = Repository::over("near", store.store(&gate)).system("main", SystemId(7));
        let mut commit = Box::pin(sleeper.commit(&marker));
        // It sleeps behind its marker.
        while system.marker(&marker.id).await.unwrap().is_none() {
            gate.allow(1);
            assert!(futures::poll!(&mut commit).is_pending());
        }
        if with_child {
            let mut child = marker.clone();
            child.id = BackupId::new(BackupKind::Incremental, Timestamp::now());
            child.kind = BackupKind::Incremental;
            child.start_lsn = Lsn(marker.start_lsn.0 + 8);
            child.parent = Some(Parent {
                id: marker.id.clone(),
                timeline: marker.timeline,
                start_lsn: marker.start_lsn,
            });
            system.commit(&child).await.unwrap();
        }
        open.put_tombstone("main", &doomed(&marker)).await.unwrap();
        gate.allow(u64::MAX);
        let error = commit.await.unwrap_err().one_line();
        assert_eq!(error.contains("was withdrawn"), !with_child, "{error}");
        assert_eq!(error.contains("stays for"), with_child, "{error}");
        let there = system.marker(&marker.id).await.unwrap().is_some();
        assert_eq!(there, with_child);
    }
}
