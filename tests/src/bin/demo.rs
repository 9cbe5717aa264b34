//! `make demo`: a database is backed up while it works, lost entirely, and restored to a
//! chosen moment; then the commits that were acknowledged are counted, one by one.
//!
//! Everything happens in one new directory with a PostgreSQL server of its own, and is gone
//! at the end: `KEEP=1 make demo` keeps it to look at.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use seawall::postgres::{Lsn, SegmentName, SegmentSize};
use seawall_tests::cli::who;
use seawall_tests::judge::{self, Judgement};
use seawall_tests::ledger::{Entry, Target};
use seawall_tests::scratch::make_directory;
use seawall_tests::{
    Cluster, Config, ConfigFile, Ledger, Moment, Output, PostgresVersion, Repository, Scratch,
    pgbench, seawall, wait_until,
};

const PATIENCE: Duration = Duration::from_secs(90);

fn main() -> ExitCode {
    let Some(version) = PostgresVersion::any() else {
        eprintln!(
            "PostgreSQL is not installed. On Debian and Ubuntu: apt-get install postgresql\n\
             (as root, scripts/setup demo does it)"
        );
        return ExitCode::FAILURE;
    };
    // A failed expectation says what was seen; where in this program is of no interest.
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let message = payload.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| payload.downcast_ref::<&str>().copied());
        let message = message.unwrap_or("it failed");
        eprintln!("\nTHE DEMO FAILED: {message}");
    }));
    let shown = std::panic::catch_unwind(|| {
        let mut scratch = Scratch::new();
        if std::env::var_os("KEEP").is_some_and(|keep| keep == "1") {
            scratch.keep();
        }
        show(version, &scratch);
    });
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn show(version: PostgresVersion, scratch: &Scratch) {
    let mut steps = Steps::new();

    steps.begin(&format!("a throwaway {version} server, run by {}", who()));
    let mut cluster = Cluster::builder(version)
        .fsync()
        .tablespace("archive")
        .config("max_wal_size", "256MB")
        .config("archive_timeout", "60s")
        .create_in(scratch, "main");
    let config = ConfigFile::new()
        .cluster(&cluster)
        .repository(Repository::local("near", &scratch.directory("repository")))
        .extra("[objectives]\nrpo = \"5m\"\nrto = \"30m\"")
        .write(scratch);
    cluster.archive_with(&config);
    cluster.start();
    steps.note(&format!("everything lies in {}", scratch.path().display()));

    steps.begin("seawall init");
    steps.show(&seawall(&config).arg("init").run().success());

    steps.begin("150 MB of pgbench data, and a ledger that writes down every acknowledged commit");
    pgbench::init(&cluster, 10);
    cluster
        .sql("CREATE TABLE old_events TABLESPACE archive AS SELECT generate_series(1, 50000) AS n");
    let mut ledger = Ledger::create(&cluster, scratch);
    ledger.start(&cluster, 4, Duration::from_millis(1));
    let load = pgbench::start(&cluster, 2, Duration::from_secs(300));
    ledger.wait_for_more(500, PATIENCE);

    steps.begin("seawall backup, while both go on writing");
    let backup = seawall(&config)
        .arg("backup")
        .with(|run| run.timeout(PATIENCE));
    steps.show(&backup.run().success());

    steps.begin("more work, a moment T, and more work after it");
    ledger.wait_for_more(1000, PATIENCE);
    let target = Moment::now();
    steps.note(&format!("T = {target}"));
    ledger.wait_for_more(1000, PATIENCE);
    let segment = cluster.archive_all(PATIENCE);
    steps.note(&format!(
        "the WAL that holds T is archived, up to {segment}"
    ));
    ledger.wait_for_more(500, PATIENCE);

    steps.begin("total loss: kill -9, and every file of the server is deleted");
    let archived = cluster.sql("SELECT last_archived_wal FROM pg_stat_archiver");
    let failed = Moment::now();
    cluster.destroy();
    drop(load);
    ledger.stop();
    let acknowledged = ledger.acknowledged();
    steps.note(&format!("{acknowledged} commits had been acknowledged"));
    steps.note(&loss_at_the_end(&ledger, &archived));

    let restored = restore(&mut steps, &config, scratch, &cluster, target);
    prove(&mut steps, restored, &ledger, target);

    steps.begin("seawall drill --scenario total-loss: the same as a report, to the end of the WAL");
    ask_for_every_commit(&config, &ledger, &archived);
    let report = scratch.directory("report");
    let drill = seawall(&config)
        .args([
            "drill",
            "--scenario",
            "total-loss",
            "--trigger",
            "make demo",
        ])
        .args(["--failed-at", &failed.to_string()])
        .arg("--report")
        .arg(&report)
        .with(|run| run.timeout(PATIENCE));
    steps.show(&drill.run().success());
    steps.note(&format!(
        "as a page: {} (KEEP=1 make demo keeps it)",
        report.join("report.html").display()
    ));
    steps.finish();
}

fn restore(
    steps: &mut Steps,
    config: &Config,
    scratch: &Scratch,
    lost: &Cluster,
    target: Moment,
) -> Cluster {
    let data: PathBuf = scratch.join("restored");
    let (name, old) = &lost.tablespaces()[0];
    let new = scratch.join(format!("restored-{name}"));
    make_directory(&new);
    steps.begin(&format!("seawall restore --to {} --time T", data.display()));
    let restore = seawall(config)
        .args(["restore", "--to"])
        .arg(&data)
        .args(["--time", &target.to_string()])
        .arg("--tablespace")
        .arg(format!("{}={}", old.display(), new.display()))
        .with(|run| run.timeout(PATIENCE));
    steps.show(&restore.run().success());

    steps.begin("PostgreSQL starts on it and replays the WAL up to T");
    let mut restored = Cluster::adopt(lost.version().clone(), scratch, "again", &data);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    let end = restored.sql("SELECT pg_last_wal_replay_lsn(), pg_last_xact_replay_timestamp()");
    steps.note(&format!(
        "stopped at {}",
        end.replace('|', ", last commit ")
    ));
    restored
}

fn prove(steps: &mut Steps, mut restored: Cluster, ledger: &Ledger, target: Moment) {
    steps.begin("every acknowledged commit is looked up");
    let rows = Ledger::rows(&restored);
    let verdict = ledger.compare(&rows, Target::Time(target));
    steps.note(&format!(
        "acknowledged before T: {}, of these missing: {}",
        verdict.required,
        verdict.missing.len()
    ));
    steps.note(&format!(
        "begun after T: {}, of these or otherwise unexpected there: {}",
        verdict.forbidden,
        verdict.unexpected.len()
    ));
    verdict.must_hold();
    assert!(verdict.forbidden > 0, "nothing was written after T");
    let old_events = restored.sql("SELECT count(*) FROM old_events");
    assert_eq!(old_events, "50000", "rows of the tablespace");

    steps.begin("promoted, then judged by PostgreSQL's own tools");
    if restored.in_recovery() {
        restored.promote();
    }
    let amcheck = judge::amcheck(&restored);
    steps.note(&told("pg_amcheck", &amcheck));
    amcheck.must_pass();
    restored.stop(seawall_tests::postgres::Stop::Fast);
    let checksums = judge::checksums(&mut restored);
    steps.note(&told("pg_checksums", &checksums));
    checksums.must_pass();
    wait_until("it has stopped", PATIENCE, || !restored.is_running());
}

fn told(judge: &str, judgement: &Judgement) -> String {
    match judgement {
        Judgement::Passed => format!("{judge}: no damage"),
        Judgement::Failed(_) => format!("{judge}: DAMAGED"),
        Judgement::NotTested(why) => format!("{judge}: not tested: {why}"),
    }
}

/// A check for the drill: every commit that was acknowledged and archived, one by one.
fn ask_for_every_commit(config: &Config, ledger: &Ledger, last_archived: &str) {
    let end = end_of(last_archived).expect("a segment was archived");
    // The position noted with a row lies before its commit, which may be in the next segment.
    // What was acknowledged before another row was begun lies before that one's position.
    let entries = ledger.entries();
    let archived = entries
        .values()
        .filter(|entry| entry.acknowledged.as_ref().is_some_and(|a| a.after < end));
    let newest = archived.map(|entry| entry.begun).max();
    let ids: Vec<String> = entries
        .values()
        .filter(|entry| entry.acknowledged.as_ref().map(|a| a.at) < newest)
        .filter(|entry| entry.acknowledged.is_some())
        .map(|entry| format!("({})", entry.id))
        .collect();
    assert!(!ids.is_empty(), "no acknowledged commit is archived");
    let check = format!(
        "\n[[drill.check]]\nname = \"{} acknowledged commits, one by one: missing\"\n\
         sql = \"SELECT count(*) FROM (VALUES {}) a (id) WHERE NOT EXISTS \
         (SELECT FROM ledger l WHERE l.id = a.id)\"\nequals = \"0\"\n",
        ids.len(),
        ids.join(",")
    );
    let text = std::fs::read_to_string(config.path()).expect("the configuration");
    std::fs::write(config.path(), text + &check).expect("the configuration is written");
}

/// Where a segment ends.
fn end_of(segment: &str) -> Option<Lsn> {
    let size = SegmentSize::DEFAULT;
    let start = segment.parse::<SegmentName>().ok()?.start(size).ok()?;
    Some(Lsn(start.0 + size.bytes()))
}

/// What recovery to the very end of the archive would have lost: the measured RPO.
fn loss_at_the_end(ledger: &Ledger, last_archived: &str) -> String {
    let Some(end) = end_of(last_archived) else {
        return format!("RPO not measured: {last_archived} was archived last");
    };
    let entries = ledger.entries();
    let acknowledged = || {
        entries
            .values()
            .filter(|entry| entry.acknowledged.is_some())
    };
    let position = |entry: &Entry| entry.acknowledged.as_ref().map(|a| a.after);
    let last = |before_end: bool| {
        acknowledged()
            .filter(|entry| !before_end || position(entry) < Some(end))
            .filter_map(|entry| entry.acknowledged.as_ref().map(|a| a.at))
            .max()
    };
    match (last(false), last(true)) {
        (Some(all), Some(kept)) => format!(
            "measured RPO: recovery to the end of the archive would lose {} commits of the last {:.1} s",
            acknowledged().filter(|e| position(e) >= Some(end)).count(),
            all.since(kept).as_secs_f64()
        ),
        _ => "RPO not measured: no commit is in the archive".into(),
    }
}

/// Prints one step after the other, with times.
struct Steps {
    began: Instant,
    number: u32,
}

impl Steps {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            number: 0,
        }
    }

    fn begin(&mut self, what: &str) {
        self.number += 1;
        let at = self.began.elapsed().as_secs_f64();
        println!("\n[{at:6.1} s] {}. {what}", self.number);
    }

    fn note(&self, what: &str) {
        println!("             {what}");
    }

    /// What a program said, indented.
    fn show(&self, output: &Output) {
        for line in output.stderr.lines().chain(output.stdout.lines()) {
            self.note(line);
        }
        self.note(&format!("({:.1} s)", output.elapsed.as_secs_f64()));
    }

    fn finish(&self) {
        let at = self.began.elapsed().as_secs_f64();
        println!("\n[{at:6.1} s] nothing acknowledged before T was lost, nothing after T is there");
    }
}
