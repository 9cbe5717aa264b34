//! Every call of a backup and of a restore fails, in ways chosen by a seed; the whole matrix in
//! the long tests. After each: a backup has a marker and restores whole, or it has none; a
//! restore is whole, or does not start and can be repeated.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use seawall::backup;
use seawall::config::Compression;
use seawall::postgres::connection::{ConnectionString, Surroundings};
use seawall::postgres::primary::Primary;
use seawall::postgres::recovery::{RecoveryAction, RecoveryTarget};
use seawall::postgres::sql::Client;
use seawall::repository::Repository;
use seawall::repository::catalogue::Request;
use seawall::repository::keys::{self, BackupId, BackupKind};
use seawall::storage::RetryPolicy;
use seawall_restore::target::Tablespaces;
use seawall_restore::{Archive, RestoreCommand, Settings, restore, system_for};
use seawall_tests::faulty::{Case, cases_at, impatient, new_memory, runtime, with_plan};
use seawall_tests::job::files_below;
use seawall_tests::scratch::give_tree_to_owner;
use seawall_tests::site::PATIENCE;
use seawall_tests::{Seed, Site, judge};

/// Longer than a slow disk takes for one part.
fn patient() -> RetryPolicy {
    RetryPolicy {
        attempt_timeout: Duration::from_secs(2),
        // A part that gets no answer would be waited for as long as a slow link takes.
        slowest_link: 16 << 20,
        total_deadline: Duration::from_secs(10),
        ..impatient()
    }
}

/// A running cluster whose backup is more than one part of an upload.
fn site() -> Site {
    let site = Site::with(
        seawall_tests::Cluster::builder(seawall_tests::PostgresVersion::find(15))
            .segment_size(1)
            .config("autovacuum", "off"),
    )
    .start();
    site.cluster.sql(
        "CREATE TABLE t AS SELECT sha512(n::text::bytea) FROM generate_series(1, 130000) n;
         VACUUM t;
         CHECKPOINT",
    );
    site.cluster.archive_all(PATIENCE);
    site
}

fn sound() -> seawall::storage::fault::FaultPlan {
    "seed=1".parse().unwrap()
}

fn restore_settings(to: &Path, backup: Option<BackupId>) -> Settings {
    Settings {
        to: to.to_owned(),
        request: Request {
            target: RecoveryTarget::Latest,
            inclusive: true,
            timeline: None,
            backup,
            end_at_gap: false,
        },
        action: RecoveryAction::Promote,
        standby: false,
        primary: Primary::default(),
        archive: Archive::Off,
        keep_source_settings: true,
        tablespaces: Tablespaces::Mapped(Vec::new()),
        only_databases: Vec::new(),
        waldir: None,
        force: false,
        delta: false,
        jobs: 2,
        restore_command: RestoreCommand::default(),
        bin_directory: None,
    }
}

async fn restore_to(
    repository: &Repository,
    to: &Path,
    backup: Option<BackupId>,
) -> seawall::error::Result<()> {
    let settings = restore_settings(to, backup);
    let system = system_for(repository, "main", &settings.request).await?;
    restore(&system, &settings).await?;
    Ok(())
}

/// Every file with its digest, but for what says when it was written.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    files_below(root)
        .into_iter()
        .filter(|path| !path.ends_with("backup_manifest"))
        .map(|path| {
            let digest = seawall_tests::stored::digest(&std::fs::read(&path).unwrap());
            (path.strip_prefix(root).unwrap().to_owned(), digest)
        })
        .collect()
}

/// PostgreSQL's own word on what this process, perhaps root, has restored.
#[track_caller]
fn verified(site: &Site, to: &Path) {
    give_tree_to_owner(to);
    judge::verifybackup(site.cluster.version(), to).must_pass();
}

/// The cases of the call `number`: all of them, or some by chance.
fn chosen(number: u64, seed: Option<&mut Seed>, count: usize) -> Vec<Case> {
    let mut cases = cases_at(number);
    let Some(seed) = seed else { return cases };
    (0..count)
        .map(|_| cases.swap_remove(seed.below(cases.len() as u64) as usize))
        .collect()
}

fn restores_survive_every_call(mut seed: Option<Seed>) {
    let site = site();
    site.backup();
    site.cluster.archive_all(PATIENCE);
    runtime().block_on(async {
        // A copy in memory, which answers at once.
        let url = new_memory();
        let (memory, _) = with_plan(&url, impatient(), &sound());
        for key in site.near.files() {
            let bytes = site.near.bytes(&key);
            memory.store().put(&key, bytes.into()).await.unwrap();
        }
        let reference = site.scratch.join("reference");
        restore_to(&memory, &reference, None).await.unwrap();
        verified(&site, &reference);
        let reference = tree(&reference);
        let (mut whole, mut failed) = (0, 0);
        for number in 1.. {
            let mut injected = 0;
            for case in chosen(number, seed.as_mut(), 2) {
                eprintln!("{case}");
                let plan = case.plan();
                let (_, faulty) = with_plan(&url, impatient(), &plan);
                let to = site.scratch.join("to");
                match restore_to(&faulty, &to, None).await {
                    Ok(()) => whole += 1,
                    Err(_) => {
                        failed += 1;
                        let control = to.join("global/pg_control");
                        assert!(!control.exists(), "{case}: it would start");
                        restore_to(&memory, &to, None).await.unwrap();
                    }
                }
                assert!(tree(&to) == reference, "{case}: other bytes");
                std::fs::remove_dir_all(&to).unwrap();
                injected += plan.injected();
            }
            if injected == 0 {
                assert!(number > 10, "only {} calls", number - 1);
                break;
            }
        }
        assert!(whole > 5 && failed > 5, "{whole} whole, {failed} failed");
    });
}

fn backups_survive_every_call(kind: BackupKind, mut seed: Option<Seed>) {
    let site = site();
    if kind == BackupKind::Incremental {
        site.backup();
        site.cluster
            .sql("UPDATE t SET sha512 = sha512(sha512) WHERE ctid < '(500,0)'; CHECKPOINT");
    }
    let url = format!("file://{}", site.near.root().display());
    let settings = backup::Settings {
        primary: None,
        server_timeout: Duration::from_secs(60),
        cluster: "main".into(),
        kind,
        parent: None,
        data_directory: site.cluster.data().to_owned(),
        compression: Compression::default(),
        jobs: 2,
        wal_timeout: Duration::from_secs(30),
        fast: true,
        label: "faults".into(),
        resume: true,
    };
    runtime().block_on(async {
        let (near, _) = with_plan(&url, patient(), &sound());
        let base = match near.systems("main").await.unwrap().pop() {
            Some((system, _)) => system.backup_ids().await.unwrap(),
            None => Vec::new(),
        };
        let (mut whole, mut none) = (0, 0);
        for number in 1.. {
            let (mut injected, mut last_kind) = (0, None);
            for case in chosen(number, seed.as_mut(), 1) {
                eprintln!("{case}");
                let plan = case.plan();
                let (near, faulty) = with_plan(&url, patient(), &plan);
                // The session of a failed backup is of no more use.
                let text = site.cluster.connection("postgres");
                let around = Surroundings::of_process();
                let to = ConnectionString::parse(&text, &around).unwrap();
                let client = Client::connect(&to).await.unwrap();
                let taken = backup::take(&settings, &client, &faulty).await;
                let system = near.systems("main").await.unwrap().remove(0).0;
                let ids = system.backup_ids().await.unwrap();
                let ours: Vec<_> = ids.into_iter().filter(|id| !base.contains(id)).collect();
                let mut finished = Vec::new();
                for id in &ours {
                    finished.extend(system.marker(id).await.unwrap());
                }
                if let Ok(taken) = &taken {
                    let id = &taken.marker.id;
                    assert!(finished.iter().any(|one| one.id == *id), "{case}");
                }
                // One whose last answers were lost may be there though it was not said.
                assert!(finished.len() <= 1, "{case}");
                match finished.pop() {
                    None => none += 1,
                    Some(marker) => {
                        whole += 1;
                        // Where no parent can be read, a full backup is taken.
                        last_kind = Some(marker.kind);
                        let to = site.scratch.join("to");
                        let id = Some(marker.id);
                        restore_to(&near, &to, id).await.unwrap();
                        verified(&site, &to);
                        same_relations(site.cluster.data(), &to);
                        std::fs::remove_dir_all(&to).unwrap();
                    }
                }
                // What a failure leaves, a lease among it, the next would look at: its calls
                // would grow as fast as ours.
                let left = ours.iter().map(|id| system.keys().backup(id));
                for left in left.chain([keys::leases("main")]) {
                    let _ = std::fs::remove_dir_all(site.near.root().join(left));
                }
                injected += plan.injected();
            }
            if injected == 0 {
                assert!(number > 15, "only {} calls", number - 1);
                assert_eq!(last_kind, Some(kind));
                break;
            }
            // A slow machine asks for its WAL more often.
            assert!(number < 400, "it does not end");
        }
        assert!(whole > 2 && none > 2, "{whole} whole, {none} none");
    });
}

/// The tables' files, which do not change while nobody writes.
fn same_relations(source: &Path, restored: &Path) {
    let relations = |root: &Path| -> BTreeMap<PathBuf, String> {
        let mut tree = tree(&root.join("base"));
        // Caches that a server makes anew, and that no backup holds.
        tree.retain(|path, _| !path.ends_with("pg_internal.init"));
        tree
    };
    assert!(relations(source) == relations(restored), "other bytes");
}

#[test]
fn a_restore_whose_nth_call_fails_is_whole_or_does_not_start_and_can_be_repeated() {
    restores_survive_every_call(Some(Seed::new()));
}

#[test]
fn a_backup_whose_nth_call_fails_has_a_marker_and_restores_whole_or_has_none() {
    backups_survive_every_call(BackupKind::Full, Some(Seed::new()));
}

#[test]
fn an_incremental_backup_whose_nth_call_fails_restores_whole_on_its_chain_or_is_none() {
    backups_survive_every_call(BackupKind::Incremental, Some(Seed::new()));
}

#[test]
#[ignore = "long: every fault at every call, some hundred restores"]
fn a_restore_survives_every_fault_at_every_call() {
    restores_survive_every_call(None);
}

#[test]
#[ignore = "long: every fault at every call, some thousand backups"]
fn a_backup_survives_every_fault_at_every_call() {
    backups_survive_every_call(BackupKind::Full, None);
}

#[test]
#[ignore = "long: every fault at every call, some thousand backups"]
fn an_incremental_backup_survives_every_fault_at_every_call() {
    backups_survive_every_call(BackupKind::Incremental, None);
}
