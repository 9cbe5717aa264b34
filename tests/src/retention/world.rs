//! The model's world: what PostgreSQL wrote, what was backed up, and the stores.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use jiff::{SignedDuration, Timestamp};
use seawall::config::{Compression, RetentionConfig};
use seawall::digest::PlainDigest;
use seawall::postgres::{Lsn, SegmentName, SegmentSize, SystemId, TimelineId, WalFileName};
use seawall::repository::codec::FrameCompressor;
use seawall::repository::keys::{BackupId, WalObject};
use seawall::repository::marker::Marker;
use seawall::repository::{Repository, System};
use seawall::storage::simulated::{Gate, SimulatedClock, SimulatedObjects};

/// The cluster's name.
pub const CLUSTER: &str = "main";
/// Its segment size.
pub const SIZE: SegmentSize = SegmentSize::DEFAULT;

/// Somewhere in the WAL: the numbers of system and timeline in the model, and a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The system.
    pub system: usize,
    /// The timeline: its number less one.
    pub timeline: usize,
    /// The segment.
    pub segment: u64,
}

/// A timeline as the model knows it.
#[derive(Debug, Clone)]
pub struct Timeline {
    /// The timeline before, and where this one begins.
    pub parent: Option<(usize, Lsn)>,
    /// The segment that is being written.
    pub next: u64,
}

/// A backup as the model knows it.
#[derive(Debug, Clone)]
pub struct Backup {
    /// Its name.
    pub id: BackupId,
    /// Where it starts.
    pub start: Place,
    /// Where it stops.
    pub stop: Lsn,
    /// When it stopped.
    pub ended: Timestamp,
    /// Whether pages of it are damaged.
    pub damaged: bool,
    /// Of an incremental one: what it was taken on top of.
    pub parent: Option<usize>,
    /// The repositories that acknowledged it, by their numbers.
    pub acknowledged: Rc<RefCell<Vec<usize>>>,
}

impl Backup {
    /// Where it starts.
    pub fn start_lsn(&self) -> Lsn {
        Lsn(self.start.segment * SIZE.bytes() + 40)
    }

    /// Whether it counts by itself: a full one without damage.
    pub fn is_good(&self) -> bool {
        !self.damaged && self.parent.is_none()
    }
}

/// One repository of the world.
pub struct ModelRepository {
    objects: SimulatedObjects,
    /// Its name.
    pub name: &'static str,
    /// Its rules.
    pub rules: RetentionConfig,
}

/// Everything.
pub struct World {
    /// The one clock.
    pub clock: SimulatedClock,
    /// `near`, and perhaps `far`, which is filled from it.
    pub repositories: Vec<ModelRepository>,
    /// The timelines of each system.
    pub systems: Vec<Vec<Timeline>>,
    /// All backups that were ever begun.
    pub backups: Vec<Backup>,
    /// The system and timeline that production is on.
    pub current: (usize, usize),
    /// When each segment was archived: what it holds was committed then.
    pub moments: BTreeMap<Place, Timestamp>,
}

impl World {
    /// A world with one system, registered in every repository.
    pub async fn new(rules: Vec<RetentionConfig>) -> Self {
        let start: Timestamp = "2026-02-27T22:13:20Z".parse().expect("a time");
        let clock = SimulatedClock::new(start);
        let repositories = rules
            .into_iter()
            .enumerate()
            .map(|(at, rules)| ModelRepository {
                objects: SimulatedObjects::new(&clock).expect("memory opens"),
                name: ["near", "far"][at],
                rules,
            });
        let mut world = Self {
            repositories: repositories.collect(),
            clock,
            systems: Vec::new(),
            backups: Vec::new(),
            current: (0, 0),
            moments: BTreeMap::new(),
        };
        for at in 0..world.repositories.len() {
            let repository = world.repository(at, &Gate::open());
            repository.init().await.expect("it is made");
        }
        world.upgrade().await;
        world
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// A repository for one who passes `gate`.
    pub fn repository(&self, at: usize, gate: &Gate) -> Repository {
        let place = &self.repositories[at];
        Repository::over(place.name, place.objects.store(gate))
    }

    /// A new system, as after pg_upgrade: timelines and positions begin again.
    pub async fn upgrade(&mut self) {
        let at = self.systems.len();
        self.systems.push(vec![Timeline {
            parent: None,
            next: 1,
        }]);
        self.current = (at, 0);
        // system.json has the real clock's time: of two, the later one is the newer system.
        let system = self.system(0, at, &Gate::open());
        system.register(15, SIZE).await.expect("it is registered");
    }

    /// A system of a repository.
    pub fn system(&self, repository: usize, system: usize, gate: &Gate) -> System {
        let repository = self.repository(repository, gate);
        // The newer one has the smaller identifier: nothing may go by it.
        repository.system(CLUSTER, SystemId(9_000 - system as u64))
    }

    /// Archives the segment that a timeline is writing.
    pub async fn archive(&mut self, (system, timeline): (usize, usize)) -> u64 {
        let number = self.systems[system][timeline].next;
        self.systems[system][timeline].next += 1;
        let segment = SegmentName::new(timeline_id(timeline), number, SIZE);
        self.put_wal(system, WalFileName::Segment(segment), b"wal")
            .await;
        let place = Place {
            system,
            timeline,
            segment: number,
        };
        self.moments.insert(place, self.now());
        number
    }

    /// Puts a file into the first repository, as seawall-archive does.
    pub async fn put_wal(&self, system: usize, name: WalFileName, plain: &[u8]) {
        let system = self.system(0, system, &Gate::open());
        let object = WalObject {
            name,
            digest: PlainDigest::of(plain),
            encrypted: false,
        };
        let stored = match name {
            WalFileName::History(_) => {
                let compressor = FrameCompressor::new(Compression::default());
                let mut compressor = compressor.expect("zstd starts");
                compressor.compress(plain).expect("it compresses")
            }
            // Nobody opens the others here.
            _ => plain.to_vec(),
        };
        let key = system.keys().wal_object(object);
        system.store().put(&key, stored.into()).await.expect("put");
    }

    /// Begins a timeline at a position of the one that production is on, or was.
    pub async fn branch(&mut self, (system, parent): (usize, usize), at: Lsn) {
        let timelines = &mut self.systems[system];
        timelines.push(Timeline {
            parent: Some((parent, at)),
            next: at.segment(SIZE),
        });
        let new = timelines.len() - 1;
        self.current = (system, new);
        let mut lines: Vec<String> = self
            .ancestors((system, new))
            .into_iter()
            .filter_map(|(timeline, end)| Some(format!("{}\t{}\tno reason\n", timeline + 1, end?)))
            .collect();
        lines.reverse();
        let name = WalFileName::History(timeline_id(new));
        self.put_wal(system, name, lines.concat().as_bytes()).await;
    }

    /// A timeline and those before it, newest first, each with the position where its
    /// successor branched off.
    pub fn ancestors(&self, (system, timeline): (usize, usize)) -> Vec<(usize, Option<Lsn>)> {
        let mut line = vec![(timeline, None)];
        let mut at = timeline;
        while let Some((parent, switch)) = self.systems[system][at].parent {
            line.push((parent, Some(switch)));
            at = parent;
        }
        line
    }

    /// Whether a position on a timeline lies on the line of another one.
    pub fn is_on_line(&self, timeline: usize, lsn: Lsn, of: (usize, usize)) -> bool {
        // What an ancestor held behind an earlier branch is not of the line either.
        let mut least = Lsn(u64::MAX);
        for (ancestor, end) in self.ancestors(of) {
            least = least.min(end.unwrap_or(Lsn(u64::MAX)));
            if ancestor == timeline {
                let begin = self.systems[of.0][ancestor].parent.map(|(_, at)| at);
                return lsn <= least && begin.is_none_or(|begin| begin <= lsn);
            }
        }
        false
    }

    /// A backup and all that it was taken on top of, the newest first.
    pub fn chain(&self, backup: usize) -> Vec<usize> {
        let links = std::iter::successors(Some(backup), |at| self.backups[*at].parent);
        links.collect()
    }

    /// The marker of a backup.
    pub fn marker(&self, backup: &Backup) -> Marker {
        let timeline = timeline_id(backup.start.timeline);
        let start = backup.start_lsn();
        let last = backup.stop.previous_segment(SIZE);
        let object =
            |key: &str| serde_json::json!({"key": key, "size": 4, "sha256": "0".repeat(64)});
        let marker = serde_json::json!({
            "format": 1,
            "id": backup.id,
            "kind": match backup.parent {
                Some(_) => "incremental",
                None => "full",
            },
            "parent": backup.parent.map(|at| {
                let parent = &self.backups[at];
                serde_json::json!({
                    "id": parent.id,
                    "timeline": timeline_id(parent.start.timeline),
                    "start_lsn": parent.start_lsn(),
                })
            }),
            "cluster": CLUSTER,
            "system_id": SystemId(9_000 - backup.start.system as u64),
            "server_version_num": 150_018,
            "catalog_version": 202_209_061,
            "seawall_version": "0",
            "segment_size": SIZE,
            "block_size": 8192,
            "data_checksums": true,
            "timeline": timeline,
            "start_lsn": start,
            "stop_lsn": backup.stop,
            "start_time": backup.ended - SignedDuration::from_secs(60),
            "stop_time": backup.ended,
            "next_xid": 1000,
            "from_standby": false,
            "wal": [
                SegmentName::new(timeline, backup.start.segment, SIZE),
                SegmentName::new(timeline, last, SIZE),
            ],
            "data_directory": "/data",
            "data_directory_mode": 0o700,
            "tablespaces": [],
            "configuration_files": [],
            "superuser": "postgres",
            "files": 1,
            "plain_bytes": 4,
            "stored_bytes": 8,
            "damaged_pages": [],
            "damaged_page_count": u64::from(backup.damaged),
            "objects": DATA.map(object),
        });
        serde_json::from_value(marker).expect("it is a marker")
    }
}

/// The objects of every backup in the model.
pub const DATA: [&str; 2] = ["backup_manifest.zst", "data/000001.tar.zst"];

/// What each of them holds.
pub const CONTENT: [u8; 4] = *b"data";

/// The number in the model as PostgreSQL's.
pub fn timeline_id(timeline: usize) -> TimelineId {
    TimelineId::new(timeline as u32 + 1).expect("not 0")
}
