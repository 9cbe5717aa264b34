//! The push engine by itself: how much a run of segments costs a store far away, and how much
//! memory it takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use seawall::config::{ArchiveConfig, Compression};
use seawall::postgres::control::ControlFile;
use seawall::repository::Repository;
use seawall::wal::push::{Engine, WalFile};
use seawall_tests::faulty::{new_memory, with_plan};
use seawall_tests::segment::name;
use seawall_tests::{Cluster, PostgresVersion, Scratch, Segment};

/// Segments of a cluster that never started.
struct Files {
    control: ControlFile,
    scratch: Scratch,
}

impl Files {
    fn new(count: u64) -> Self {
        let scratch = Scratch::new();
        let cluster = Cluster::builder(PostgresVersion::find(15))
            .segment_size(1)
            .create_in(&scratch, "main");
        let entries = std::fs::read_dir(cluster.data().join("pg_wal")).unwrap();
        let mut paths = entries.flatten().map(|entry| entry.path());
        let first = Segment::read(paths.find(|path| path.is_file()).unwrap());
        for number in 1..=count {
            let segment = first.clone().numbered(number).content(number as u8);
            std::fs::write(scratch.join(name(number)), segment.0).unwrap();
        }
        Self {
            control: ControlFile::read(cluster.data()).unwrap(),
            scratch,
        }
    }

    fn engine(&self, repositories: &[Repository]) -> Arc<Engine> {
        let (compression, archive) = (Compression::default(), ArchiveConfig::default());
        let engine = Engine::over(repositories, "main", &self.control, compression, &archive);
        Arc::new(engine)
    }

    async fn push(&self, engine: &Arc<Engine>, numbers: impl IntoIterator<Item = u64>) {
        let mut pushes = tokio::task::JoinSet::new();
        for number in numbers {
            let file = WalFile::open(&self.scratch.join(name(number)), &self.control).unwrap();
            let engine = Arc::clone(engine);
            pushes.spawn(async move { engine.push(file).await.map(|_| ()) });
        }
        for done in pushes.join_all().await {
            done.unwrap();
        }
    }
}

#[test]
fn a_run_of_segments_costs_a_store_far_away_one_write_each_and_few_listings() {
    const RUN: u64 = 16;
    let files = Files::new(RUN);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        // Each answer takes 50 ms.
        let plan = "any=far".parse().unwrap();
        let (near, far) = with_plan(&new_memory(), Default::default(), &plan);
        near.init().await.unwrap();
        let system = near.system("main", files.control.system_id);
        let control = &files.control;
        let registered = system.register(control.major, control.segment_size);
        registered.await.unwrap();
        let engine = files.engine(&[far]);
        let started = Instant::now();
        files.push(&engine, 1..=RUN).await;
        let took = started.elapsed();
        // system.json and the first look; the others are listings for many at once.
        let others = plan.calls() - RUN;
        assert!(others <= RUN / 2, "{others} calls besides the writes");
        // One after the other would take three answers each.
        assert!(
            took < Duration::from_millis(50) * 3 * RUN as u32,
            "{took:?}"
        );
        for number in 1..=RUN {
            let held = system.held(name(number).parse().unwrap()).await.unwrap();
            assert!(matches!(
                held,
                seawall::repository::wal_objects::Held::One(..)
            ));
        }
    });
}
