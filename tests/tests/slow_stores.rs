//! Stores that hang, crawl or die in the middle, between the programs and a real S3 server:
//! every call ends in bounded time, with the code that its reader needs. Field failures 16 and
//! 30.

use std::time::{Duration, Instant};

use seawall_tests::cli::Call;
use seawall_tests::scratch::give_to_owner;
use seawall_tests::segment::name;
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Cluster, Config, ConfigFile, Fault, FaultProxy, Garage, PostgresVersion, Repository, Scratch,
    Segment, archive, fetch, restore, seawall, wait_until,
};

const FIRST: &str = "000000010000000000000001";

/// Two attempts of two seconds each.
struct Far {
    cluster: Cluster,
    config: Config,
    proxy: FaultProxy,
    _garage: Garage,
    scratch: Scratch,
}

impl Far {
    fn new() -> Self {
        Self::with(|repository| repository.key("attempts", "2").key("timeout", "\"2s\""))
    }

    fn with(patience: impl FnOnce(Repository) -> Repository) -> Self {
        let scratch = Scratch::new();
        let garage = Garage::start(&scratch);
        let proxy = FaultProxy::start(garage.address());
        let mut cluster = Cluster::builder(PostgresVersion::find(15)).create_in(&scratch, "main");
        let repository = patience(garage.repository_through(&proxy, "far", "far", "pg"));
        let config = ConfigFile::new()
            .cluster(&cluster)
            .repository(repository)
            .write(&scratch);
        seawall(&config).arg("init").run().success();
        cluster.archive_with(&config);
        Self {
            cluster,
            config,
            proxy,
            _garage: garage,
            scratch,
        }
    }

    fn in_data(&self, call: Call) -> Call {
        call.with(|run| run.directory(self.cluster.data()))
    }

    fn push(&self, file: &str) -> Call {
        self.in_data(archive(&self.config).arg(format!("pg_wal/{file}")))
    }

    fn fetch(&self, file: &str) -> Call {
        self.in_data(fetch(&self.config).args([file, "pg_wal/RECOVERYXLOG"]))
    }
}

#[test]
fn a_store_that_does_not_answer_ends_every_call_in_bounded_time_with_the_right_code() {
    let far = Far::new();
    far.push(FIRST).run().success();
    let second = Segment::read(far.cluster.data().join("pg_wal").join(FIRST)).numbered(2);
    let path = far.cluster.data().join("pg_wal").join(name(2));
    std::fs::write(&path, second.0).unwrap();
    give_to_owner(&path);
    let destination = far.cluster.data().join("pg_wal/RECOVERYXLOG");
    for fault in [
        Fault::Hang,
        Fault::Refuse,
        Fault::Status(503),
        Fault::Status(404),
        Fault::CutDownloadAfter(100),
    ] {
        far.proxy.set(fault.clone());
        let started = Instant::now();
        let output = far.push(&name(2)).run().exits_with(1);
        output.says("hint:");
        for file in [FIRST, &name(2), &name(3)] {
            far.fetch(file).run().exits_with(200);
            assert!(!destination.exists(), "{fault:?}");
        }
        // Two attempts of two seconds and a wait, four times, at most twice in a call.
        let took = started.elapsed();
        assert!(took < Duration::from_secs(60), "{fault:?}: {took:?}");
        far.proxy.set(Fault::None);
    }
    far.push(&name(2)).run().success();
    far.fetch(&name(2)).run().success();
    std::fs::remove_file(&destination).unwrap();
    far.fetch(&name(3)).run().exits_with(1);
}

#[test]
fn the_archiver_tries_again_and_catches_up_when_a_hanging_store_answers_again() {
    let mut far = Far::new();
    far.cluster.start();
    far.cluster.sql("CREATE TABLE t (n int)");
    far.proxy.set(Fault::Hang);
    let segment = far.cluster.switch_wal();
    wait_until("an attempt is given up", PATIENCE, || {
        far.cluster.archiver().0 > 0
    });
    assert_eq!(far.cluster.archiver().1, 0, "something was acknowledged");
    far.proxy.set(Fault::None);
    far.cluster.wait_until_archived(&segment, PATIENCE);
    let destination = far.cluster.data().join("pg_wal/RECOVERYXLOG");
    far.fetch(&segment).run().success();
    assert_eq!(std::fs::metadata(&destination).unwrap().len(), 16 << 20);
}

#[test]
fn a_store_that_dies_in_the_middle_of_a_backup_leaves_no_backup_and_the_next_is_whole() {
    let mut far = Far::new();
    far.cluster.start();
    far.cluster.sql(
        "CREATE TABLE t AS SELECT sha512(n::text::bytea) FROM generate_series(1, 400000) n;
         CHECKPOINT",
    );
    far.cluster.archive_all(PATIENCE);
    let list = || {
        seawall(&far.config)
            .args(["list", "--json"])
            .run()
            .success()
            .json()
    };
    let backups = |list: &serde_json::Value| {
        let system = &list["repositories"][0]["systems"][0];
        system["backups"].as_array().unwrap().len()
    };
    // Large enough to be cut in a part of a multipart upload; then its completion alone.
    for fault in [
        Fault::CutUploadAfter(3 << 20),
        Fault::StatusFor("partNumber=2".into(), 500),
        Fault::StatusFor("POST ".into(), 503),
        Fault::StatusFor("/backup.json".into(), 503),
    ] {
        far.proxy.set(fault.clone());
        let before = far.proxy.faults();
        let output = seawall(&far.config).arg("backup").run();
        assert!(far.proxy.faults() > before, "{fault:?} met nothing");
        output.exits_with(1).says("hint:");
        far.proxy.set(Fault::None);
        assert_eq!(backups(&list()), 0, "{fault:?}");
    }
    seawall(&far.config).arg("backup").run().success();
    assert_eq!(backups(&list()), 1);
    let to = far.scratch.join("to");
    restore(&far.config).arg("--to").arg(&to).run().success();
    seawall_tests::judge::verifybackup(far.cluster.version(), &to).must_pass();
}

#[test]
fn a_restore_over_connections_that_break_is_whole_and_over_a_dead_store_is_none() {
    let mut far = Far::new();
    far.cluster.start();
    far.cluster.sql(
        "CREATE TABLE t AS SELECT sha512(n::text::bytea) FROM generate_series(1, 200000) n;
         CHECKPOINT",
    );
    seawall(&far.config).arg("backup").run().success();
    far.cluster.archive_all(PATIENCE);
    // Every connection breaks after 5 MiB: the reader goes on where it was.
    far.proxy.set(Fault::CutDownloadAfter(5 << 20));
    let to = far.scratch.join("broken");
    restore(&far.config).arg("--to").arg(&to).run().success();
    assert!(far.proxy.faults() > 1, "no connection broke");
    seawall_tests::judge::verifybackup(far.cluster.version(), &to).must_pass();
    for fault in [Fault::Hang, Fault::StatusFor("/data/".into(), 404)] {
        far.proxy.set(fault.clone());
        let to = far.scratch.join("dead");
        let output = restore(&far.config).arg("--to").arg(&to).run();
        output.exits_with(1);
        assert!(!to.join("global/pg_control").exists());
        far.proxy.set(Fault::None);
        restore(&far.config).arg("--to").arg(&to).run().success();
        std::fs::remove_dir_all(&to).unwrap();
    }
}

#[test]
fn what_one_connection_would_carry_slowly_goes_up_over_several_at_once() {
    let mut far = Far::with(|repository| repository);
    far.cluster.start();
    far.cluster.sql(
        "CREATE TABLE t AS SELECT sha512(n::text::bytea) FROM generate_series(1, 1000000) n;
         CHECKPOINT",
    );
    far.cluster.archive_all(PATIENCE);
    const RATE: u64 = 4_000_000;
    far.proxy.set(Fault::Slow(RATE));
    let backup = seawall(&far.config).args(["backup", "--json", "--jobs", "4"]);
    let output = backup.run().success();
    let stored = output.json()["stored_bytes"].as_f64().unwrap();
    let one_stream = stored / RATE as f64;
    assert!(one_stream > 16.0, "{stored} bytes are too few");
    let took = output.elapsed.as_secs_f64();
    assert!(took < one_stream * 0.6, "{took} s, {one_stream} s for one");

    far.proxy.set(Fault::None);
    let to = far.scratch.join("to");
    restore(&far.config).arg("--to").arg(&to).run().success();
    seawall_tests::judge::verifybackup(far.cluster.version(), &to).must_pass();
}
