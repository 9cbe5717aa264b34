//! Copies between object stores: two buckets of one server stand in for two regions.

use std::time::Duration;

use seawall::copy::{Copier, Settings};
use seawall::repository::Repository as Opened;
use seawall::storage::testing::GarageServer;
use seawall::storage::{CopyLimits, ServerSide, Store};
use seawall_tests::faulty::runtime;
use seawall_tests::judge;
use seawall_tests::ledger::Target;
use seawall_tests::process::peak_memory;
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Cluster, ConfigFile, Fault, FaultProxy, Garage, Ledger, Moment, PostgresVersion, Repository,
    Scratch, seawall, wait_until,
};

/// A running cluster called `main` that archives into the first of these repositories.
fn cluster(scratch: &Scratch, repositories: &[Repository]) -> (Cluster, seawall_tests::Config) {
    let mut cluster = Cluster::builder(PostgresVersion::find(15)).create_in(scratch, "main");
    let file = ConfigFile::new().cluster(&cluster);
    let add = |file: ConfigFile, repository: &Repository| file.repository(repository.clone());
    let config = repositories.iter().fold(file, add).write(scratch);
    seawall(&config).arg("init").run().success();
    cluster.archive_with(&config);
    cluster.start();
    (cluster, config)
}

/// Bytes that no store compresses.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    let mut noise = vec![0; bytes];
    for word in noise.as_chunks_mut::<8>().0 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *word = state.to_le_bytes();
    }
    noise
}

#[test]
fn the_far_repository_alone_is_enough_after_a_promotion_and_the_loss_of_the_near_one() {
    let scratch = Scratch::new();
    let garage = Garage::start(&scratch);
    let near = garage.repository("near", "near", "pg");
    let far = garage.repository("far", "far", "dr/pg").copy_from("near");
    let (cluster, config) = cluster(&scratch, &[near, far]);
    let mut ledger = Ledger::create(&cluster, &scratch);
    ledger.start(&cluster, 2, Duration::from_millis(2));
    seawall(&config).arg("backup").run().success();
    let follow = seawall(&config).args(["copy", "--follow", "--interval", "1s"]);
    let follow = follow
        .with(|run| run.timeout(Duration::from_secs(600)))
        .start();
    ledger.wait_for_more(200, PATIENCE);
    cluster.archive_all(PATIENCE);
    ledger.stop();
    cluster.archive_all(PATIENCE);

    // The host is lost; another one takes over, on timeline 2.
    let mut lost = cluster;
    lost.destroy();
    let to = scratch.join("second-data");
    let restore = seawall(&config).args(["restore", "--archive", "on", "--to"]);
    restore.arg(&to).run().success();
    let mut second = Cluster::adopt(lost.version().clone(), &scratch, "second", &to);
    second.start();
    second.wait_until_recovered(PATIENCE);
    ledger.start(&second, 2, Duration::from_millis(2));
    ledger.wait_for_more(200, PATIENCE);
    second.archive_all(PATIENCE);
    ledger.stop();
    let copied_until = Moment::now();
    second.archive_all(PATIENCE);
    let dump = judge::dump(&second);

    wait_until("the copy is complete", PATIENCE, || {
        let lag = seawall(&config).args(["copy", "--dry-run", "--json"]).run();
        let lag = lag.success().json()["repositories"][0]["systems"][0].clone();
        lag["segments"] == 0 && lag["backups"] == serde_json::json!([])
    });
    let mut follow = follow;
    follow.signal(nix::sys::signal::Signal::SIGTERM);
    follow.wait().success();
    second.destroy();

    // The near region is gone.
    let settings = |bucket: &str, prefix: &str| {
        let options = [
            ("aws_endpoint", format!("http://{}", garage.address())),
            ("aws_region", "garage".into()),
            ("aws_access_key_id", garage.key().0.to_owned()),
            ("aws_secret_access_key", garage.key().1.to_owned()),
            ("aws_allow_http", "true".into()),
        ];
        seawall::storage::StoreSettings {
            options: options.into_iter().collect(),
            ..seawall::storage::StoreSettings::new(format!("s3://{bucket}/{prefix}"))
        }
    };
    runtime().block_on(async {
        let near = Store::open(&settings("near", "pg")).unwrap();
        for info in near.list("", None).await.unwrap() {
            near.delete(&info.key).await.unwrap();
        }
        let far = Store::open(&settings("far", "dr/pg")).unwrap();
        let leases = far.list("main/leases", None).await.unwrap();
        assert!(leases.is_empty(), "leases are left: {leases:?}");
    });
    let to = scratch.join("third-data");
    let restore = seawall(&config).args(["restore", "--repository", "far", "--to"]);
    restore.arg(&to).run().success();
    judge::verifybackup(lost.version(), &to).must_pass();
    let mut third = Cluster::adopt(lost.version().clone(), &scratch, "third", &to);
    third.start();
    third.wait_until_recovered(PATIENCE);
    dump.must_equal(&judge::dump(&third));
    judge::amcheck(&third).must_pass();
    let rows = Ledger::rows(&third);
    ledger
        .compare(&rows, Target::AllUntil(copied_until))
        .must_hold();
}

#[test]
fn the_store_copies_packs_itself_and_its_bytes_do_not_pass_here() {
    let scratch = Scratch::new();
    let garage = Garage::start(&scratch);
    let proxy = FaultProxy::start(garage.address());
    let near = garage.repository_through(&proxy, "near", "near", "pg");
    let far = garage.repository_through(&proxy, "far", "far", "pg");
    let (cluster, config) = cluster(&scratch, &[near, far.copy_from("near")]);
    cluster.sql(
        "CREATE TABLE noise AS SELECT gen_random_uuid()::text FROM generate_series(1, 200000)",
    );
    seawall(&config).arg("backup").run().success();
    cluster.archive_all(PATIENCE);

    let before = proxy.uploaded();
    let copied = seawall(&config).args(["copy", "--json"]).run().success();
    let copied = copied.json()["repositories"][0]["copied"].clone();
    let sent = proxy.uploaded() - before;
    let number = |key: &str| copied[key].as_u64().unwrap();
    assert!(number("server_side_objects") > 0, "{copied}");
    let packs = number("backup_bytes");
    assert!(packs > 6 << 20, "{copied}");
    let limit = number("wal_bytes") + packs / 2;
    assert!(
        sent < limit,
        "{sent} bytes were sent, the backup has {packs}: {copied}"
    );
    // What the store copied is what the marker says.
    let to = scratch.join("restored");
    let restore = seawall(&config).args(["restore", "--repository", "far", "--to"]);
    restore.arg(&to).run().success();
    judge::verifybackup(cluster.version(), &to).must_pass();
}

#[test]
fn where_the_store_may_not_copy_itself_bytes_are_sent() {
    let scratch = Scratch::new();
    let garage = Garage::start(&scratch);
    // The far key may not read near.
    let (key, secret) = garage.key_for("far");
    let near = garage.repository("near", "near", "pg");
    let far = garage
        .repository("far", "far", "pg")
        .through("aws_access_key_id", &key)
        .through("aws_secret_access_key", &secret)
        .copy_from("near");
    let directory = scratch.directory("local");
    let local = Repository::local("local", &directory).copy_from("far");
    let back = garage.repository("back", "near", "back").copy_from("local");
    let (cluster, config) = cluster(&scratch, &[near, far, local, back]);
    cluster.sql(
        "CREATE TABLE noise AS SELECT gen_random_uuid()::text FROM generate_series(1, 100000)",
    );
    seawall(&config).arg("backup").run().success();
    cluster.archive_all(PATIENCE);
    // S3 to S3 by another key, S3 to local files, local files to S3.
    for name in ["far", "local", "back"] {
        let copy = seawall(&config).args(["copy", "--json", "--repository", name]);
        let copy = copy.run().success();
        let copied = copy.json()["repositories"][0]["copied"].clone();
        assert_eq!(copied["server_side_objects"], 0, "{copied}");
        assert_eq!(copied["backups"].as_array().unwrap().len(), 1, "{copied}");
        if name == "far" {
            copy.says("go through this machine");
        }
    }
    let to = scratch.join("restored");
    let restore = seawall(&config).args(["restore", "--repository", "back", "--to"]);
    restore.arg(&to).run().success();
    judge::verifybackup(cluster.version(), &to).must_pass();
}

#[test]
fn large_objects_are_copied_by_the_store_in_parts_and_dead_uploads_are_swept() {
    let garage = GarageServer::start();
    let near = Store::open(&garage.settings(&garage.near, "a")).unwrap();
    let far = Store::open(&garage.settings(&garage.far, "b/c")).unwrap();
    let limits = CopyLimits {
        single: 5 << 20,
        part: 5 << 20,
        at_once: 3,
    };
    runtime().block_on(async {
        for (key, size) in [("small", 3 << 20), ("large", (12 << 20) + 7)] {
            let body = noise(size);
            near.put(key, body.clone().into()).await.unwrap();
            let size = body.len() as u64;
            let copied = far.copy_within_store(&near, key, size, limits).await;
            assert_eq!(copied.unwrap(), ServerSide::Copied, "{key}");
            let there = far.get(key).await.unwrap().unwrap();
            assert!(there == body, "{key} differs");
        }
        // An object that is not there is no copy, and nothing is left of it.
        let absent = far
            .copy_within_store(&near, "absent", 20 << 20, limits)
            .await;
        assert!(matches!(absent.unwrap(), ServerSide::Impossible(_)));
        assert_eq!(far.head("absent").await.unwrap(), None);
        assert_eq!(far.sweep_leftovers("", Duration::ZERO).await.unwrap(), 0);

        // A writer dies in the middle of a large object.
        for key in ["main/x", "other/y"] {
            let mut upload = far.upload(key, 5 << 20, 1).await.unwrap();
            upload.write(noise(6 << 20).into()).await.unwrap();
            std::mem::forget(upload);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let hour = Duration::from_secs(3600);
        assert_eq!(far.sweep_leftovers("main", hour).await.unwrap(), 0);
        assert_eq!(
            far.sweep_leftovers("main", Duration::ZERO).await.unwrap(),
            1
        );
        assert_eq!(
            far.sweep_leftovers("main", Duration::ZERO).await.unwrap(),
            0
        );
        assert_eq!(far.sweep_leftovers("", Duration::ZERO).await.unwrap(), 1);
        assert!(far.get("large").await.unwrap().is_some());
    });
}

#[test]
fn a_pack_that_is_damaged_at_the_source_does_not_stay_where_the_store_copied_it() {
    let scratch = Scratch::new();
    let garage = Garage::start(&scratch);
    let near = garage.repository("near", "near", "pg");
    let far = garage.repository("far", "far", "pg").copy_from("near");
    let (cluster, config) = cluster(&scratch, &[near, far]);
    let loaded = seawall::config::Config::load(Some(config.path())).unwrap();
    let marker = seawall(&config)
        .args(["backup", "--json"])
        .run()
        .success()
        .json();
    cluster.archive_all(PATIENCE);
    let id = marker["id"].as_str().unwrap();
    let open = |at: usize| Opened::open(&loaded.repository[at]).unwrap();
    let (near, far) = (open(0), open(1));
    runtime().block_on(async {
        let objects = near.store().list("main", None).await.unwrap();
        let packs = objects.iter().filter(|info| info.key.ends_with(".tar.zst"));
        let pack = packs.max_by_key(|info| info.size).unwrap();
        assert!(
            pack.size > 1 << 20,
            "it is too small to be copied by the store"
        );
        let whole = near.store().get(&pack.key).await.unwrap().unwrap();
        let mut damaged = whole.to_vec();
        damaged[1000] ^= 1;
        near.store().put(&pack.key, damaged.into()).await.unwrap();
        let copier = || Copier::over(near.clone(), Vec::new(), far.clone(), Settings::of("main"));
        let first = copier();
        first.once().await.unwrap();
        assert!(first.report().not_copied.contains_key(&pack.key));
        assert_eq!(far.store().head(&pack.key).await.unwrap(), None);
        let markers = far.store().list("main", None).await.unwrap();
        assert!(
            markers
                .iter()
                .all(|info| !info.key.ends_with("backup.json"))
        );

        near.store().put(&pack.key, whole).await.unwrap();
        let second = copier();
        second.once().await.unwrap();
        let report = second.report();
        assert!(
            report.not_copied.is_empty() && report.server_side_objects == 1,
            "{report:?}"
        );
        assert_eq!(report.backups[0].to_string(), id);
    });
}

#[test]
fn a_far_store_that_hangs_or_lies_leaves_archiving_alone_and_is_waited_out() {
    let scratch = Scratch::new();
    let garage = Garage::start(&scratch);
    let proxy = FaultProxy::start(garage.address());
    let far = garage
        .repository_through(&proxy, "far", "far", "pg")
        .key("timeout", "\"1s\"")
        .key("attempts", "2")
        .copy_from("near");
    let near = Repository::local("near", &scratch.directory("near"));
    let (cluster, config) = cluster(&scratch, &[near, far]);
    let write = || {
        cluster.sql("CREATE TABLE IF NOT EXISTS t (n int); INSERT INTO t VALUES (1)");
        cluster.archive_all(PATIENCE);
    };
    seawall(&config).arg("backup").run().success();
    let follow = seawall(&config).args(["copy", "--follow", "--interval", "200ms"]);
    let mut follow = follow
        .with(|run| run.timeout(Duration::from_secs(600)))
        .start();
    let lacks = || {
        let lag = seawall(&config).args(["copy", "--dry-run", "--json"]).run();
        let lag = lag.success().json()["repositories"][0]["systems"][0].clone();
        lag["segments"].as_u64().unwrap() + lag["backups"].as_array().unwrap().len() as u64
    };
    wait_until("the copy is there", PATIENCE, || lacks() == 0);
    for fault in [
        Fault::Hang,
        Fault::Refuse,
        Fault::Status(500),
        Fault::Status(403),
    ] {
        let text = format!("{fault:?}");
        proxy.set(fault);
        let waits = || follow.stderr().matches("waits: ").count();
        let before = waits();
        write();
        wait_until(&format!("it waits: {text}"), PATIENCE, || waits() > before);
        write();
        assert_eq!(cluster.archiver().0, 0, "{text}: archiving failed");
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(
            waits(),
            before + 1,
            "{text}: it is said once: {}",
            follow.stderr()
        );
        proxy.set(Fault::None);
        wait_until(&format!("it goes on: {text}"), PATIENCE, || lacks() == 0);
    }
    assert!(follow.is_running());
    follow.signal(nix::sys::signal::Signal::SIGTERM);
    follow.wait().success();
}

#[test]
fn a_large_object_is_sent_in_bounded_memory() {
    let scratch = Scratch::new();
    let garage = Garage::start(&scratch);
    let near = Repository::local("near", &scratch.directory("near"));
    let far = garage.repository("far", "far", "pg").copy_from("near");
    let (cluster, config) = cluster(&scratch, &[near, far]);
    // A file that no server wrote, and that does not compress.
    let path = cluster.data().join("base/large");
    std::fs::write(&path, noise(300 << 20)).unwrap();
    seawall_tests::scratch::give_to_owner(&path);
    seawall(&config).arg("backup").run().success();
    cluster.archive_all(PATIENCE);
    let copy = seawall(&config).args(["copy", "--json", "--jobs", "2"]);
    let mut running = copy
        .with(|run| run.timeout(Duration::from_secs(300)))
        .start();
    let peak = peak_memory(&mut running);
    let copied = running.wait().success().json()["repositories"][0]["copied"].clone();
    assert!(
        copied["backup_bytes"].as_u64().unwrap() > 300 << 20,
        "{copied}"
    );
    assert!(peak > 0 && peak < 120 << 10, "{peak} KiB");
}
