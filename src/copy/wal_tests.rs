use super::*;
use crate::config::Compression;
use crate::digest::PlainDigest;
use crate::postgres::SystemId;
use crate::repository::Repository;
use crate::repository::codec::FrameCompressor;
use crate::storage::Store;

const ONE: TimelineId = TimelineId::FIRST;

struct Sides {
    source: System,
    aim: System,
    size: SegmentSize,
    plain: Vec<u8>,
    stored: bytes::Bytes,
    report: Mutex<Copied>,
}

impl Sides {
    fn new() -> Self {
        let system = |name: &str| {
            let repository = Repository::over(name, Store::memory().unwrap());
            repository.system("main", SystemId(1))
        };
        let size = SegmentSize::new(1 << 20).unwrap();
        let plain = vec![7; 1 << 20];
        let compressor = FrameCompressor::new(Compression::default());
        let stored = compressor.unwrap().compress(&plain).unwrap().into();
        Self {
            source: system("near"),
            aim: system("far"),
            size,
            plain,
            stored,
            report: Mutex::default(),
        }
    }

    fn key(&self, number: u64) -> String {
        self.source.keys().wal_object(WalObject {
            name: WalFileName::Segment(SegmentName::new(ONE, number, self.size)),
            digest: PlainDigest::of(&self.plain),
            encrypted: false,
        })
    }

    async fn archive(&self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            let (key, stored) = (self.key(number), self.stored.clone());
            self.source.store().put(&key, stored).await.unwrap();
        }
    }

    async fn remove(&self, numbers: std::ops::RangeInclusive<u64>) {
        let range = (*numbers.start(), *numbers.end());
        let noted = self.source.note_expired(ONE, self.size, range);
        noted.await.unwrap();
        for number in numbers {
            self.source.store().delete(&self.key(number)).await.unwrap();
        }
    }

    fn copy(&self) -> WalCopy {
        let (source, aim) = (self.source.clone(), self.aim.clone());
        WalCopy::new(source, Vec::new(), aim, self.size, 4)
    }

    async fn pass(&self, copy: &mut WalCopy) -> Vec<(u64, u64)> {
        assert_eq!(copy.upwards(3, &self.report).await.unwrap(), Done::All);
        let wal = self.aim.timeline_wal(ONE, self.size, 0).await.unwrap();
        wal.runs.iter().map(|run| (run.first, run.last)).collect()
    }
}

#[tokio::test]
async fn a_segment_that_is_waited_for_is_waited_for_in_every_look() {
    let sides = Sides::new();
    sides.archive([3, 4, 5].into_iter().chain(7..=22)).await;
    let mut copy = sides.copy();
    for _ in 0..3 {
        assert_eq!(sides.pass(&mut copy).await, [(3, 5)]);
    }
    // Another process goes on in the same way.
    assert_eq!(sides.pass(&mut sides.copy()).await, [(3, 5)]);
    sides.archive([6]).await;
    assert_eq!(sides.pass(&mut copy).await, [(3, 22)]);
    assert!(!sides.aim.acknowledged_without_it().await.unwrap());
}

#[tokio::test]
async fn a_gap_where_the_last_look_ended_is_put_on_record_before_what_lies_behind_it_comes() {
    let sides = Sides::new();
    sides.archive([3, 4, 5]).await;
    let mut copy = sides.copy();
    assert_eq!(sides.pass(&mut copy).await, [(3, 5)]);
    // More than working ahead can explain.
    sides.archive(7..=23).await;
    assert_eq!(sides.pass(&mut copy).await, [(3, 5), (7, 23)]);
    assert!(sides.aim.acknowledged_without_it().await.unwrap());
}

#[tokio::test]
async fn what_the_source_removed_since_the_last_look_is_put_on_record() {
    for restarted in [false, true] {
        let sides = Sides::new();
        sides.archive([3, 4, 5]).await;
        let mut copy = sides.copy();
        assert_eq!(sides.pass(&mut copy).await, [(3, 5)]);
        sides.archive(6..=12).await;
        sides.remove(3..=8).await;
        if restarted {
            copy = sides.copy();
        }
        assert_eq!(sides.pass(&mut copy).await, [(3, 5), (9, 12)]);
        let expired = sides.aim.expired(ONE, sides.size).await.unwrap();
        assert_eq!(expired.outside(3, 12), [(3, 5), (9, 12)]);
        assert!(!sides.aim.acknowledged_without_it().await.unwrap());
    }
}
