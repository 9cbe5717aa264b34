//! A copy that dies at any call of its store, and every kind of failure of it: what is there is
//! a sound repository, only older than its source, and the next run completes it.

use seawall::config::RetentionConfig;
use seawall::copy::{Copier, Settings, lag};
use seawall::postgres::{SegmentName, SegmentSize, TimelineId, WalFileName};
use seawall::repository::catalogue::Catalogue;
use seawall::repository::health::{Needed, examine};
use seawall::repository::{Repository, System};
use seawall::storage::simulated::{Gate, SimulatedClock, SimulatedObjects};
use seawall::storage::{Created, RetryPolicy, Store, StoreSettings};
use seawall_tests::faulty::{Case, cases_at, impatient, new_memory, runtime, with_plan};
use seawall_tests::site::PATIENCE;
use seawall_tests::{Cluster, Site};

/// A site that archived on two timelines, with two backups on the first of them.
struct Source {
    repository: Repository,
    site: Site,
}

impl Source {
    fn make() -> Self {
        let site = Site::of(15).start();
        let write = |cluster: &Cluster, times| {
            for _ in 0..times {
                cluster.sql("CREATE TABLE IF NOT EXISTS t (n int); INSERT INTO t VALUES (1)");
                cluster.archive_all(PATIENCE);
            }
        };
        write(&site.cluster, 1);
        site.backup();
        write(&site.cluster, 3);
        site.backup();
        write(&site.cluster, 2);
        let second = site.restore_and_start("second", &["--archive", "on"]);
        write(&second, 2);
        drop(second);
        let url = format!("file://{}", site.near.root().display());
        let store = Store::open(&StoreSettings::new(url)).expect("it opens");
        let repository = Repository::over("near", store);
        Self { repository, site }
    }

    fn copier(&self, aim: &Repository) -> Copier {
        let mut settings = Settings::of("main");
        settings.jobs = 3;
        Copier::over(self.repository.clone(), Vec::new(), aim.clone(), settings)
    }
}

/// The repository is sound: no gap, no conflict, and each backup is whole with its WAL.
/// Returns how many backups and segments it holds.
async fn soundness(repository: &Repository) -> (usize, u64) {
    let (mut backups, mut segments) = (0, 0);
    for (system, record) in repository.systems("main").await.expect("it lists") {
        let catalogue = Catalogue::load(&system).await.expect("it loads");
        assert!(
            catalogue.unreadable.is_empty(),
            "{:?}",
            catalogue.unreadable
        );
        let needed: Vec<Needed> = catalogue.backups.iter().map(Needed::of).collect();
        let survey = system.survey(record.segment_size).await.expect("it lists");
        let illnesses = examine(&survey, &needed);
        assert!(illnesses.is_empty(), "{illnesses:?}");
        for backup in &catalogue.backups {
            assert!(
                catalogue.reach(backup, &survey.archived).is_some(),
                "{} has no WAL",
                backup.id
            );
            let marker = system.marker(&backup.id).await.expect("it reads");
            let objects = marker.expect("it is committed").objects;
            assert!(!objects.is_empty());
            for object in &objects {
                let key = format!("{}/{}", system.keys().backup(&backup.id), object.key);
                let bytes = repository.store().get(&key).await.expect("it reads");
                let bytes = bytes.expect("a committed backup is whole");
                assert_eq!(
                    seawall::digest::StoredDigest::of(&bytes),
                    object.sha256,
                    "{key}"
                );
            }
        }
        backups += catalogue.backups.len();
        let runs = survey.archived.values().flat_map(|wal| &wal.runs);
        segments += runs.map(|run| run.last - run.first + 1).sum::<u64>();
    }
    (backups, segments)
}

async fn one_case(source: &Source, case: &Case) -> bool {
    let url = new_memory();
    let (sound, faulty) = with_plan(&url, impatient(), &case.plan());
    assert_eq!(sound.init().await.expect("it is made"), Created::Created);
    let first = source.copier(&faulty);
    let done = first.once().await;
    let copied = first.report();
    // What the faulty store garbled may have been taken for damage of the source, and then it
    // was not copied.
    let whole = done.is_ok() && copied.not_copied.is_empty();
    let (backups, _) = soundness(&sound).await;
    if whole {
        assert_eq!(backups, 2, "{case}: it said that it was done");
    }
    drop(first);
    let again = source.copier(&sound);
    again
        .once()
        .await
        .unwrap_or_else(|error| panic!("{case}: {error}"));
    assert!(
        again.report().not_copied.is_empty(),
        "{case}: {:?}",
        again.report()
    );
    let (backups, segments) = soundness(&sound).await;
    assert_eq!(backups, 2, "{case}");
    assert!(segments >= 7, "{case}: {segments}");
    for (system, _) in source.repository.systems("main").await.expect("it lists") {
        let aim = sound.system("main", system.id());
        let lag = lag(&system, &aim, &RetentionConfig::default())
            .await
            .expect("it lists");
        assert!(lag.is_none(), "{case}: {lag:?}");
    }
    whole
}

#[test]
fn a_copy_that_dies_at_any_call_leaves_an_older_repository_and_is_completed_by_the_next() {
    let source = Source::make();
    let runtime = runtime();
    let mut number = 1;
    loop {
        // "refused" for good from this call on: for the copy's store the process is dead.
        let case = Case {
            number,
            fault: "refused",
            for_good: true,
        };
        if runtime.block_on(one_case(&source, &case)) {
            break;
        }
        number += 1;
        assert!(number < 1000, "it never ends");
    }
    assert!(number > 40, "only {number} calls were made");
}

#[test]
fn no_failure_of_the_copys_store_makes_it_unsound() {
    let source = Source::make();
    let runtime = runtime();
    for number in [3, 12, 25, 40, 55] {
        for case in cases_at(number) {
            // A store that hangs for good takes as long as the policy says; one is enough.
            if case.for_good && matches!(case.fault, "hang" | "late") && number != 12 {
                continue;
            }
            runtime.block_on(one_case(&source, &case));
        }
    }
}

#[test]
fn a_copy_killed_at_any_moment_is_sound_and_copies_nothing_twice() {
    let source = Source::make();
    let site = &source.site;
    let scratch = seawall_tests::Scratch::new();
    let root = scratch.directory("far");
    let config = seawall_tests::ConfigFile::new()
        .cluster(&site.cluster)
        .repository(seawall_tests::Repository::local("near", site.near.root()))
        .repository(seawall_tests::Repository::local("far", &root).copy_from("near"))
        .write(&scratch);
    seawall_tests::seawall(&config).arg("init").run().success();
    let far = seawall_tests::Stored::at(&root);
    let runtime = runtime();
    let written = |key: &String| {
        let metadata = std::fs::metadata(far.path(key)).expect("it is there");
        metadata.modified().expect("it has a time")
    };
    let mut kills = 0;
    let mut known: std::collections::BTreeMap<String, std::time::SystemTime> = Default::default();
    for delay in (1..).map(|n| n * 15) {
        let call = seawall_tests::seawall(&config).args(["copy", "--jobs", "2"]);
        let mut running = call.start();
        let until = std::time::Instant::now() + std::time::Duration::from_millis(delay);
        while running.is_running() && std::time::Instant::now() < until {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let ended = !running.is_running();
        if ended {
            running.wait().success();
        } else {
            running.kill();
            kills += 1;
        }
        let store = StoreSettings {
            retry: RetryPolicy::default(),
            ..StoreSettings::new(format!("file://{}", root.display()))
        };
        let repository = Repository::over("far", Store::open(&store).expect("it opens"));
        runtime.block_on(soundness(&repository));
        let keys = far.files().into_iter().filter(|key| !key.contains('#'));
        for key in keys.filter(|key| !key.contains("/leases/")) {
            let time = written(&key);
            let before = known.insert(key.clone(), time);
            assert!(
                before.is_none_or(|before| before == time),
                "{key} was written twice"
            );
        }
        if ended {
            break;
        }
    }
    assert!(kills > 2, "only {kills} times it was killed");
    assert_eq!(far.keys_with("backup.json").len(), 2);
}

/// One stops at a call of its store, another copies everything, and the first goes on.
async fn two_at_once(source: &Source, calls: u64) -> bool {
    let objects = SimulatedObjects::new(&SimulatedClock::new(jiff::Timestamp::now()))
        .expect("a store in memory");
    let far = |gate: &Gate| Repository::over("far", objects.store(gate));
    let slow = Gate::default();
    let sound = far(&Gate::open());
    sound.init().await.expect("it is made");
    let (first, second) = (source.copier(&far(&slow)), source.copier(&sound));
    slow.allow(calls);
    let mut copying = Box::pin(first.once());
    let stopped = async {
        while slow.allowed() > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        done = &mut copying => {
            done.expect("it copies");
            return true;
        }
        () = stopped => {}
    }
    second.once().await.expect("it copies");
    slow.allow(u64::MAX);
    copying.await.expect("it copies");
    for copier in [&first, &second] {
        let report = copier.report();
        assert!(report.not_copied.is_empty(), "after {calls}: {report:?}");
    }
    assert_eq!(soundness(&sound).await.0, 2, "after {calls}");
    false
}

#[test]
fn two_that_copy_the_same_at_once_both_succeed_and_leave_a_sound_copy() {
    let source = Source::make();
    let runtime = runtime();
    let mut calls = 1;
    while !runtime.block_on(two_at_once(&source, calls)) {
        calls += 1;
        assert!(calls < 1000, "it never ends");
    }
    assert!(calls > 40, "only {calls} calls were made");
}

#[test]
fn the_newest_backup_comes_first() {
    let source = Source::make();
    let (sound, _) = with_plan(
        &new_memory(),
        impatient(),
        &"any@999999=refused".parse().unwrap(),
    );
    runtime().block_on(async {
        sound.init().await.unwrap();
        let copier = source.copier(&sound);
        copier.once().await.unwrap();
        let copied = copier.report().backups;
        let (near, _) = source.repository.systems("main").await.unwrap().remove(0);
        // Two backups of one second are told apart by where they start, not by their names.
        let mut starts = Vec::new();
        for id in &copied {
            starts.push(near.marker(id).await.unwrap().unwrap().start_lsn);
        }
        assert!(starts.len() == 2 && starts[0] > starts[1], "{starts:?}");
    });
}

/// Removes segments as retention does: on record first.
async fn expire(system: &System, timeline: TimelineId, range: (u64, u64)) {
    let size = SegmentSize::DEFAULT;
    system.note_expired(timeline, size, range).await.unwrap();
    for number in range.0..=range.1 {
        let name = WalFileName::Segment(SegmentName::new(timeline, number, size));
        for (object, _) in system.objects_of(name).await.unwrap() {
            let key = system.keys().wal_object(object);
            system.store().delete(&key).await.unwrap();
        }
    }
}

#[test]
fn what_retention_removed_on_either_side_is_no_gap_and_comes_to_the_copy_again_only_by_its_rules() {
    let source = Source::make();
    let plan = || "any@999999=refused".parse().unwrap();
    let (far, _) = with_plan(&new_memory(), impatient(), &plan());
    let (other, _) = with_plan(&new_memory(), impatient(), &plan());
    runtime().block_on(async {
        for aim in [&far, &other] {
            aim.init().await.unwrap();
        }
        let (near, _) = source.repository.systems("main").await.unwrap().remove(0);
        let size = SegmentSize::DEFAULT;
        let mut catalogue = Catalogue::load(&near).await.unwrap();
        catalogue.backups.sort_by_key(|backup| backup.start_lsn);
        let number = |at: usize, end: usize| catalogue.backups[at].wal[end].number(size).unwrap();
        let between = (number(0, 1) + 1, number(1, 0) - 1);
        assert!(between.0 <= between.1, "{between:?}");
        let first = TimelineId::FIRST;

        // At the copy: what it let go is neither lacking nor brought again, as long as its rules
        // would let it go again.
        let full = |number| RetentionConfig {
            full: Some(number),
            ..RetentionConfig::default()
        };
        source.copier(&far).once().await.unwrap();
        let aim = far.system("main", near.id());
        let id = catalogue.backups[0].id.clone();
        let again = async |rules: RetentionConfig| {
            let lacks = lag(&near, &aim, &rules).await.unwrap();
            let copier = source.copier(&far).with_rules(rules.clone());
            copier.once().await.unwrap();
            assert!(lag(&near, &aim, &rules).await.unwrap().is_none());
            let done = copier.report();
            assert_eq!(
                lacks.segments > 0,
                done.wal_objects > 0,
                "{lacks:?} {done:?}"
            );
            assert_eq!(lacks.backups, done.backups, "{done:?}");
            (done, soundness(&far).await.0)
        };
        expire(&aim, first, between).await;
        let (done, backups) = again(full(1)).await;
        assert_eq!((done.wal_objects, backups), (0, 2), "{done:?}");
        // With its WAL a backup is let go, too. Its objects are left, as they are where its WAL
        // was removed while they were still arriving.
        let let_go = async || {
            aim.store().delete(&aim.keys().marker(&id)).await.unwrap();
            expire(&aim, first, (1, between.1)).await;
        };
        let_go().await;
        let (done, backups) = again(full(1)).await;
        assert_eq!((done.wal_objects, backups), (0, 1), "{done:?}");
        // What the rules keep comes again, its WAL and all behind it: there is no gap.
        let whole = soundness(&source.repository).await.1;
        for rules in [full(2), RetentionConfig::default()] {
            let (done, backups) = again(rules).await;
            assert!(done.wal_objects > 0 && done.found_objects > 0, "{done:?}");
            assert_eq!((&done.backups, backups), (&vec![id.clone()], 2));
            let wal = aim.timeline_wal(first, size, number(0, 0)).await.unwrap();
            assert_eq!(wal.runs.len(), 1, "{wal:?}");
            let_go().await;
        }
        assert!(soundness(&far).await.1 < whole);

        // At the source: a new copy puts the same on record, and misses nothing.
        expire(&near, first, between).await;
        source.copier(&other).once().await.unwrap();
        assert_eq!(soundness(&other).await.0, 2);
        let aim = other.system("main", near.id());
        let expired = aim.expired(first, size).await.unwrap();
        assert!(expired.outside(between.0, between.1).is_empty());
        assert!(!aim.acknowledged_without_it().await.unwrap());
        assert!(
            lag(&near, &aim, &RetentionConfig::default())
                .await
                .unwrap()
                .is_none()
        );
    });
}
