//! The whole job on real stores: archive by a real archiver, back up, restore, drill, list,
//! check. Judged by PostgreSQL's own programs.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use seawall::storage::testing::{AzuriteServer, GoogleServer};
use seawall::storage::{Store, StoreSettings};
use seawall_tests::job::{Job, command_lines};
use seawall_tests::site::PATIENCE;
use seawall_tests::{Garage, Repository, Scratch};

/// A repository that is opened with exactly these settings.
fn repository(name: &str, settings: &StoreSettings) -> Repository {
    let repository = Repository::new(name, &settings.url);
    let options = settings.options.0.iter();
    options.fold(repository, |repository, (key, value)| {
        repository.option(key, value)
    })
}

#[test]
fn the_whole_job_on_two_buckets_with_credentials_of_their_own_and_no_secret_comes_to_light() {
    let scratch = Scratch::new();
    let garage = Garage::start(&scratch);
    let (near_key, near_secret) = garage.key_for("near");
    let (far_key, far_secret) = garage.key_for("far");
    let secret_file = scratch.file("far.secret", format!("{far_secret}\n"));
    let near = garage
        .repository("near", "near", "pg")
        .through("aws_access_key_id", &near_key)
        .without("aws_secret_access_key")
        .option_toml("aws_secret_access_key", "{ env = \"NEAR_SECRET\" }");
    let far = garage
        .repository("far", "far", "deep/prefix")
        .through("aws_access_key_id", &far_key)
        .without("aws_secret_access_key")
        .option_toml(
            "aws_secret_access_key",
            &format!("{{ file = {secret_file:?} }}"),
        );
    let mut job = Job::over(&scratch, [near, far], &[("NEAR_SECRET", &near_secret)]);

    let done = AtomicBool::new(false);
    let secrets = [near_secret.as_str(), far_secret.as_str()];
    let seen = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let (mut looks, mut programs) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                let lines = command_lines();
                // Garage's own administration took them; it has ended.
                for secret in secrets {
                    assert!(!lines.contains(secret), "a command line holds a secret");
                }
                looks += 1;
                programs += usize::from(lines.contains("seawall-archive"));
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            (looks, programs)
        });
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            job.whole(&scratch, &["near", "far"]);
        }));
        done.store(true, Ordering::Relaxed);
        let seen = watch.join().expect("no command line holds a secret");
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        seen
    });
    assert!(seen.0 > 50 && seen.1 > 0, "{seen:?}");

    // Garage ignores create-only writes, and the check says so.
    let check = job.seawall(&["check"]).success().stdout;
    assert_eq!(
        check.matches("ignores create-only writes").count(),
        2,
        "{check}"
    );
    // Debug logging tells no more.
    job.seawall(&["check", "--log-level", "trace"]).success();
    let restored = ["near", "far"].map(|name| scratch.join(format!("from-{name}-data")));
    job.must_not_tell(&secrets, &restored.each_ref().map(|path| path.as_path()));
    let settings = std::fs::read_to_string(restored[1].join("postgresql.auto.conf")).unwrap();
    assert!(settings.contains("--repository far"), "{settings}");

    // One repository's credentials are of no use for the other: `near` with the far key.
    let wrong = seawall_tests::ConfigFile::new()
        .cluster(&job.cluster)
        .repository(
            garage
                .repository("near", "near", "pg")
                .through("aws_access_key_id", &far_key)
                .through("aws_secret_access_key", &far_secret),
        )
        .write_to(&scratch.join("wrong.toml"));
    let output = seawall_tests::seawall(&wrong).arg("list").run();
    output.exits_with(1).says("hint:").says("credentials");
}

#[test]
fn the_whole_job_on_azure() {
    let scratch = Scratch::new();
    let azurite = AzuriteServer::start();
    let settings = azurite.settings(&azurite.container, "pg");
    let mut job = Job::over(&scratch, [repository("blob", &settings)], &[]);
    job.whole(&scratch, &["blob"]);
    let check = job.seawall(&["check"]).success().stdout;
    assert!(check.contains("create-only writes are enforced"), "{check}");
    let restored = scratch.join("from-blob-data");
    job.must_not_tell(&[AzuriteServer::KEY], &[Path::new(&restored)]);
}

#[test]
fn the_whole_job_on_googles_client() {
    let scratch = Scratch::new();
    let google = GoogleServer::start();
    let mut job = Job::over(&scratch, [repository("gcs", &google.settings("pg"))], &[]);
    job.whole(&scratch, &["gcs"]);
    let check = job.seawall(&["check"]).success().stdout;
    assert!(check.contains("create-only writes are enforced"), "{check}");
}

/// A backup that is killed and goes on, an incremental one on top of it, a merge of both, and what
/// they restore to.
fn a_chain(job: &mut Job, scratch: &Scratch, repository: &str) {
    job.begin();
    job.cluster
        .sql("CREATE TABLE more AS SELECT n, md5(n::text) FROM generate_series(1, 60000) n");
    job.cluster.sql("VACUUM (FREEZE, ANALYZE); CHECKPOINT");
    job.cluster.archive_all(PATIENCE);
    job.cluster.stop_archiving();
    let backup = |job: &Job| {
        let call = seawall_tests::seawall(&job.config).arg("backup");
        job.complete(call.with(|run| run.env("SEAWALL_TEST_PACK_BYTES", "1000000")))
    };
    drop(backup(job).start_without_wal().kill());
    job.cluster.archive_again(&job.config);
    let resumed = backup(job).run().success();
    resumed.says("were taken over");
    job.cluster
        .sql("UPDATE more SET md5 = 'new' WHERE n % 5000 = 0; INSERT INTO t VALUES (0, '')");
    let words = ["backup", "--kind", "incremental", "--json"];
    let taken = job.seawall(&words).success().json();
    assert_eq!(taken["kind"], "incremental", "{taken}");
    job.cluster.archive_all(PATIENCE);
    job.seawall(&["verify"]).success();
    let restored = job.restore_and_compare(scratch, repository);
    std::fs::remove_dir_all(restored).unwrap();
    job.seawall(&["merge", taken["id"].as_str().unwrap()])
        .success();
    job.seawall(&["verify"]).success();
    job.restore_and_compare(scratch, repository);
}

#[test]
fn a_chain_is_resumed_taken_merged_and_restored_on_garage() {
    let scratch = Scratch::new();
    let garage = Garage::start(&scratch);
    let near = garage.repository("near", "near", "pg");
    let mut job = Job::over(&scratch, [near], &[]);
    a_chain(&mut job, &scratch, "near");
}

#[test]
fn a_chain_is_resumed_taken_merged_and_restored_on_azure() {
    let scratch = Scratch::new();
    let azurite = AzuriteServer::start();
    let settings = azurite.settings(&azurite.container, "pg");
    let mut job = Job::over(&scratch, [repository("blob", &settings)], &[]);
    a_chain(&mut job, &scratch, "blob");
}

#[test]
fn what_is_made_once_is_made_once_however_many_make_it_at_the_same_moment() {
    // Field failure 26: two writers minted two keys. On a store that enforces create-only
    // writes all callers agree, whoever was first.
    let azurite = AzuriteServer::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ids = runtime.block_on(async {
        let store = Store::open(&azurite.settings(&azurite.container, "once")).unwrap();
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let repository = seawall::repository::Repository::over("once", store.clone());
            callers.spawn(async move {
                repository.init().await.unwrap();
                repository.record().await.unwrap().repository_id
            });
        }
        callers.join_all().await
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}
