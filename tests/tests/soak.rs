//! A server that writes as fast as two processors let it, for minutes, while its WAL is
//! archived on the same two processors: the archive keeps up, and nothing is missing, cut or
//! wrong afterwards. `SEAWALL_SOAK_SECONDS` shortens it (600).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use seawall_tests::judge;
use seawall_tests::postgres::{Cluster, Stop};
use seawall_tests::site::PATIENCE;
use seawall_tests::stored::digest;
use seawall_tests::{PostgresVersion, Site, pgbench, wait_until};

/// PostgreSQL's own default of max_wal_size, set here so that it is stated.
const MAX_WAL_SIZE: &str = "1GB";

/// The most segments that may wait: `max_wal_size` in segments. So much pg_wal takes without
/// any archiving, so an archive that stays below has cost the server no disk at all. (A
/// checkpoint makes bursts: every page's first change is logged whole after it.)
const MOST_WAITING: usize = 64;

/// How much longer the queue may be, on the average, in the last third of the time than in the
/// second: as much as one call works ahead. What falls behind steadily gains more than that
/// long before it reaches [`MOST_WAITING`].
const MOST_GROWTH: f64 = 16.0;

/// pgbench's; about 750 MB.
const SCALE: u32 = 50;

const SAMPLE: Duration = Duration::from_millis(250);

#[test]
#[ignore = "long: ten minutes of pgbench at full speed"]
fn soak_the_archive_keeps_up_with_pgbench_at_full_speed_and_loses_nothing() {
    let builder = Cluster::builder(PostgresVersion::find(15))
        .config("shared_buffers", "256MB")
        .config("max_wal_size", MAX_WAL_SIZE)
        // The most WAL that pgbench can write: nearly every change is the first to its page
        // since a checkpoint, and so logs the whole page.
        .config("checkpoint_timeout", "30s")
        // Whatever is archived stays long enough for the witness to have read it.
        .config("wal_keep_size", "1GB")
        .config("log_checkpoints", "on");
    let site = Site::with(builder).start();
    pgbench::init(&site.cluster, SCALE);
    site.cluster.archive_all(PATIENCE);

    let time = soak_time();
    let mut load = pgbench::start(&site.cluster, 4, time);
    let mut witness = Witness::default();
    let mut samples = Vec::new();
    let mut backup = None;
    let began = Instant::now();
    while load.is_running() {
        samples.push(witness.look(&site, began.elapsed()));
        // In the last quarter, so that a restore need not replay ten minutes of full speed;
        // while it is taken, samples wait.
        if backup.is_none() && began.elapsed() > time.mul_f64(0.75) {
            let call = site.seawall("backup").arg("--json");
            backup = Some(
                call.with(|run| run.timeout(Duration::from_secs(300)))
                    .start(),
            );
        }
        std::thread::sleep(SAMPLE);
    }
    let load = load.wait().success();
    let backup = backup.expect("the load lasted").wait().success();
    let drained = drain(&site, &mut witness);
    let report = report(&samples, drained, &load);
    eprintln!("{report}");

    let most = samples.iter().map(|sample| sample.waiting).max();
    assert!(
        most.is_some_and(|most| most <= MOST_WAITING),
        "more than {MOST_WAITING} segments waited:\n{report}"
    );
    let growth = mean_waiting(&samples, 2) - mean_waiting(&samples, 1);
    assert!(
        growth <= MOST_GROWTH,
        "the queue grew by {growth:.1} segments from the second third to the last:\n{report}"
    );
    let (failed, archived) = site.cluster.archiver();
    assert_eq!(failed, 0, "calls that failed:\n{}", site.cluster.log());
    witness.judge(&site, archived);

    let id = backup.json()["id"].as_str().expect("an id").to_owned();
    a_restore_is_what_the_source_was(site, &id);
}

fn soak_time() -> Duration {
    let seconds = std::env::var("SEAWALL_SOAK_SECONDS").map_or(600, |seconds| {
        let said = "SEAWALL_SOAK_SECONDS is a number of seconds, at least 30";
        seconds.parse().expect(said)
    });
    Duration::from_secs(seconds)
}

/// What the archive was at one moment.
struct Sample {
    at: Duration,
    /// Files that PostgreSQL waits for.
    waiting: usize,
    /// Segments that were completed up to now, and those of them that were archived.
    completed: usize,
    archived: usize,
    /// Of the machine, in clock ticks since it started.
    idle: u64,
    ticks: u64,
}

/// Remembers what every segment was when PostgreSQL completed it, by its own files alone.
#[derive(Default)]
struct Witness {
    digests: BTreeMap<String, String>,
    acknowledged: BTreeSet<String>,
}

impl Witness {
    /// Looks at archive_status, and reads the segments that are new there.
    fn look(&mut self, site: &Site, at: Duration) -> Sample {
        let mut waiting = 0;
        let status = site.cluster.data().join("pg_wal/archive_status");
        for entry in std::fs::read_dir(status).expect("the status can be read") {
            let name = entry.expect("an entry").file_name();
            let name = name.to_string_lossy().into_owned();
            let (name, done) = match name.rsplit_once('.') {
                Some((name, "ready")) => (name, false),
                Some((name, "done")) => (name, true),
                _ => continue,
            };
            waiting += usize::from(!done);
            if done {
                self.acknowledged.insert(name.to_owned());
            }
            if !self.digests.contains_key(name) {
                // A mark may outlive its file by a moment, and `.ready` turns into `.done`.
                if let Ok(content) = std::fs::read(site.wal(name)) {
                    self.digests.insert(name.to_owned(), digest(&content));
                }
            }
        }
        let (idle, ticks) = processor_ticks();
        Sample {
            at,
            waiting,
            completed: self.digests.len(),
            archived: self.acknowledged.len(),
            idle,
            ticks,
        }
    }

    /// Panics unless every file that PostgreSQL was told is archived lies in the repository
    /// once, opens by `zstd -d`, and is what PostgreSQL wrote.
    #[track_caller]
    fn judge(&self, site: &Site, archived: u64) {
        let names: BTreeSet<_> = self.digests.keys().cloned().collect();
        assert_eq!(names, self.acknowledged, "all was archived, and seen");
        assert!(
            self.acknowledged.len() as u64 >= archived,
            "PostgreSQL counts {archived} archived files, {} were seen",
            self.acknowledged.len()
        );
        let mut missing = Vec::new();
        let keys = site.near.keys_with("/wal/");
        for (name, digest_then) in &self.digests {
            let key = keys
                .iter()
                .find(|key| key.contains(&format!("/{name}-{digest_then}.")));
            match key {
                Some(key) if digest(&site.near.plain(key)) == *digest_then => {}
                _ => missing.push(name),
            }
        }
        assert!(
            missing.is_empty(),
            "acknowledged, but not there, not whole or not right: {missing:?}"
        );
    }
}

/// Switches to a new segment and waits until nothing waits any more. Returns how long it took.
fn drain(site: &Site, witness: &mut Witness) -> Duration {
    let began = Instant::now();
    site.cluster.switch_wal();
    let limit = Duration::from_secs(120);
    wait_until("the archive has everything", limit, || {
        witness.look(site, Duration::ZERO).waiting == 0
    });
    began.elapsed()
}

/// What the restored server has to agree on with its source: the transactions, and the sums
/// that pgbench keeps equal in each of them.
const STATE: &str = "SELECT count(*), sum(delta), max(mtime) FROM pgbench_history;
    SELECT sum(abalance) FROM pgbench_accounts; SELECT sum(tbalance) FROM pgbench_tellers;
    SELECT sum(bbalance) FROM pgbench_branches";

fn a_restore_is_what_the_source_was(mut site: Site, backup: &str) {
    let source = site.cluster.sql(STATE);
    site.cluster.archive_all(PATIENCE);
    site.cluster.stop(Stop::Fast);
    let to = site.scratch.join("restored-data");
    let restore = site.restoring(&to).args(["--backup", backup]);
    restore
        .with(|run| run.timeout(Duration::from_secs(300)))
        .run()
        .success();
    let mut restored = site.adopt("restored", &to);
    restored.start();
    restored.wait_until_recovered(Duration::from_secs(600));
    assert_eq!(restored.sql(STATE), source, "what was committed is there");
    judge::amcheck(&restored).must_pass();
}

fn mean_waiting(samples: &[Sample], third: usize) -> f64 {
    let third = &samples[samples.len() * third / 3..samples.len() * (third + 1) / 3];
    third
        .iter()
        .map(|sample| sample.waiting as f64)
        .sum::<f64>()
        / third.len().max(1) as f64
}

/// The run in ten lines: what was written, what was archived, what waited, and what was left of
/// the machine. Where the archive fell behind, they say whether there was any processor left.
fn report(samples: &[Sample], drained: Duration, load: &seawall_tests::Output) -> String {
    let mut text = String::from("seconds  segments/s written  archived  waiting (most)  idle\n");
    let part = (samples.len() / 10).max(1);
    for part in samples.windows(part + 1).step_by(part) {
        let (first, last) = (&part[0], &part[part.len() - 1]);
        let seconds = (last.at - first.at).as_secs_f64();
        let idle = (last.idle - first.idle) as f64 / (last.ticks - first.ticks).max(1) as f64;
        let _ = writeln!(
            text,
            "{:7.0}  {:18.1}  {:8.1}  {:14}  {:3.0} %",
            last.at.as_secs_f64(),
            (last.completed - first.completed) as f64 / seconds,
            (last.archived - first.archived) as f64 / seconds,
            part.iter().map(|sample| sample.waiting).max().unwrap_or(0),
            idle * 100.0
        );
    }
    let all = samples.last().map_or(0, |sample| sample.completed);
    let most = samples.iter().map(|sample| sample.waiting).max();
    let _ = writeln!(
        text,
        "{all} segments, {:.0} transactions/s; at most {} waited ({} MiB); the rest took {:.1} s",
        pgbench::rate(load).unwrap_or_default(),
        most.unwrap_or(0),
        most.unwrap_or(0) * 16,
        drained.as_secs_f64()
    );
    text
}

/// Idle and all clock ticks of the machine since it started: proc(5), /proc/stat.
fn processor_ticks() -> (u64, u64) {
    let stat = std::fs::read_to_string(Path::new("/proc/stat")).expect("Linux has it");
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|word| word.parse().ok())
        .collect();
    (
        ticks.get(3..5).unwrap_or_default().iter().sum(),
        ticks.iter().sum(),
    )
}
