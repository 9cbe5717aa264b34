//! `seawall expire`, `pin` and `unpin` over real servers and stores: what is promised recovers
//! afterwards, by PostgreSQL's own word, and what nobody needs is gone.

use nix::sys::signal::Signal;
use seawall_tests::postgres::Builder;
use seawall_tests::process::Running;
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Cluster, ConfigFile, Garage, Job, Output, PostgresVersion, Repository, Scratch, Site, judge,
    pgbench, seawall, wait_until,
};
use serde_json::Value;

/// A running site whose repository has these rules.
fn site(rules: &[(&str, &str)]) -> Site {
    let builder: Builder = Cluster::builder(PostgresVersion::find(15));
    let mut site = Site::with(builder);
    let near = Repository::local("near", site.near.root());
    let near = rules
        .iter()
        .fold(near, |near, (key, value)| near.retention(key, value));
    site.config = ConfigFile::new()
        .cluster(&site.cluster)
        .repository(near)
        .write(&site.scratch);
    let site = site.start();
    site.cluster.sql("CREATE TABLE t (n int)");
    site
}

/// `seawall expire` with a wait that is over at once.
fn expire(site: &Site) -> Value {
    let call = site.seawall("expire").arg("--json");
    let call = call.with(|run| run.env("SEAWALL_TEST_DELETE_AFTER", "0s"));
    call.run().success().json()["repositories"][0].clone()
}

fn backups(site: &Site) -> Vec<String> {
    let listed = site.seawall("list").arg("--json").run().success().json();
    let systems = listed["repositories"][0]["systems"].as_array().unwrap();
    let backups = systems
        .iter()
        .flat_map(|s| s["backups"].as_array().unwrap());
    let mut ids: Vec<String> = backups.map(id).collect();
    ids.sort();
    ids
}

fn sorted<const N: usize>(backups: [&Value; N]) -> Vec<String> {
    let mut ids: Vec<String> = backups.into_iter().map(id).collect();
    ids.sort();
    ids
}

fn id(backup: &Value) -> String {
    backup["id"].as_str().expect("an id").to_owned()
}

/// A row, and its segment archived.
fn write(site: &Site, n: u32) {
    site.cluster.sql(&format!("INSERT INTO t VALUES ({n})"));
    site.cluster.archive_all(PATIENCE);
}

fn gaps(output: &Output) -> bool {
    output.stdout.contains("GAP")
}

/// Lets a backup run up to where it waits for its WAL, which does not come.
fn waiting_backup(site: &mut Site) -> Running {
    waiting(site, "full")
}

/// The same with a backup of that kind.
fn waiting(site: &mut Site, kind: &str) -> Running {
    site.cluster.stop_archiving();
    let call = site.seawall("backup").args(["--kind", kind]);
    call.start_without_wal()
}

#[test]
fn what_is_promised_recovers_after_expire_and_nothing_else_is_left() {
    let site = site(&[("full", "2")]);
    let taken: Vec<Value> = (0..4)
        .map(|n| {
            let backup = site.backup();
            write(&site, n);
            backup
        })
        .collect();
    let before = site.near.files();
    let dry = site.seawall("expire").arg("--dry-run").run().success();
    assert_eq!(site.near.files(), before, "a dry run writes nothing");
    for (backup, word) in taken.iter().zip(["goes", "goes", "stays", "stays"]) {
        let line = dry.stdout.lines().find(|line| line.contains(&id(backup)));
        assert!(
            line.is_some_and(|line| line.contains(word)),
            "{}",
            dry.stdout
        );
    }
    assert!(dry.stdout.contains("newest full backups"), "{}", dry.stdout);

    let named = expire(&site);
    assert_eq!(named["named_backups"], 2, "{named:#}");
    assert_eq!(backups(&site).len(), 4, "the first run only names");
    let deleted = expire(&site);
    assert_eq!(deleted["deleted_backups"].as_array().unwrap().len(), 2);
    assert_eq!(backups(&site), sorted([&taken[2], &taken[3]]));
    for gone in &taken[..2] {
        assert!(site.near.keys_with(&id(gone)).is_empty());
    }
    // backup_label says from where WAL is needed: that segment stays, and the one before goes.
    let start = taken[2]["wal"][0].as_str().unwrap();
    assert!(!site.near.wal(start).is_empty());
    let mut segments: Vec<String> = site.near.keys_with("/wal/00000001/");
    segments.retain(|key| key.rsplit('/').next().unwrap() < start);
    assert!(segments.is_empty(), "{segments:?}");

    let source = judge::dump(&site.cluster);
    let restored = site.restore_and_start("latest", &[]);
    source.must_equal(&judge::dump(&restored));
    let oldest = [
        "--backup",
        &id(&taken[2]),
        "--immediate",
        "--action",
        "promote",
    ];
    let restored = site.restore_and_start("oldest", &oldest);
    assert_eq!(restored.sql("SELECT count(*) FROM t"), "2");
    assert!(!gaps(&site.seawall("list").run().success()));
    let check = site.seawall("check").run();
    assert!(!check.stdout.contains("missing"), "{}", check.stdout);
    // Nothing more goes, and the tombstones go in the end.
    expire(&site);
    end_leases(&site);
    let last = expire(&site);
    assert_eq!(last["deleted_objects"], 0);
    assert!(site.near.keys_with("/tombstones/").is_empty());
    assert!(site.near.keys_with("/leases/").is_empty());
}

#[test]
fn expire_while_a_backup_runs_takes_nothing_that_it_needs() {
    let mut site = site(&[("full", "1")]);
    let first = site.backup();
    let running = waiting_backup(&mut site);
    for _ in 0..3 {
        expire(&site);
    }
    assert!(!site.near.keys_with(".tar.zst").is_empty());
    assert_eq!(backups(&site), [id(&first)]);
    site.cluster.archive_again(&site.config);
    running.wait().success();
    expire(&site);
    expire(&site);
    assert_eq!(backups(&site).len(), 1);
    let source = judge::dump(&site.cluster);
    site.cluster.archive_all(PATIENCE);
    source.must_equal(&judge::dump(&site.restore_and_start("again", &[])));
}

/// Ends all leases, as their time does when a machine is asleep.
fn end_leases(site: &Site) {
    for key in site.near.keys_with("/leases/") {
        site.near.remove(&key);
    }
}

#[test]
fn a_backup_that_slept_until_it_was_named_for_deletion_does_not_become_one() {
    let mut site = site(&[("full", "1")]);
    let first = site.backup();
    let mut running = waiting_backup(&mut site);
    running.signal(Signal::SIGSTOP);
    end_leases(&site);
    let named = expire(&site);
    assert_eq!(
        named["plan"]["systems"][0]["unfinished"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    site.cluster.archive_again(&site.config);
    running.signal(Signal::SIGCONT);
    // All of it is there; the tombstone decides, before a marker is written.
    running
        .wait()
        .exits_with(1)
        .says("was not committed")
        .says("tombstones/");
    assert_eq!(backups(&site), [id(&first)]);
    expire(&site);
    let left = site.near.keys_with("/backups/");
    assert!(left.iter().all(|key| key.contains(&id(&first))), "{left:?}");
    site.restore_and_start("first", &[]);
}

#[test]
fn a_backup_that_slept_until_its_data_was_deleted_does_not_become_one() {
    let mut site = site(&[("full", "1")]);
    let first = site.backup();
    let mut running = waiting_backup(&mut site);
    running.signal(Signal::SIGSTOP);
    end_leases(&site);
    expire(&site);
    let gone = expire(&site);
    assert_eq!(
        gone["deleted_backups"].as_array().unwrap().len(),
        1,
        "{gone:#}"
    );
    site.cluster.archive_again(&site.config);
    running.signal(Signal::SIGCONT);
    running.wait().exits_with(1).says("was not committed");
    assert_eq!(backups(&site), [id(&first)]);
    site.restore_and_start("first", &[]);
}

#[test]
fn the_first_backup_in_a_repository_takes_nothing_with_it_that_is_needed() {
    let site = site(&[("full", "1"), ("recovery_window", "\"1s\"")]);
    for n in 0..3 {
        write(&site, n);
    }
    let before = site.near.keys_with("/wal/");
    expire(&site);
    expire(&site);
    assert_eq!(
        site.near.keys_with("/wal/"),
        before,
        "no backup yet: all WAL stays"
    );
    let first = site.backup();
    write(&site, 3);
    expire(&site);
    expire(&site);
    assert_eq!(backups(&site), [id(&first)]);
    assert!(site.near.keys_with("/wal/").len() < before.len() + 2);
    let source = judge::dump(&site.cluster);
    source.must_equal(&judge::dump(&site.restore_and_start("first", &[])));
}

#[test]
fn pins_are_honoured_in_every_store() {
    let scratch = Scratch::new();
    let garage = Garage::start(&scratch);
    let near = Repository::local("near", &scratch.directory("near"));
    let far = garage.repository("remote", "near", "pg");
    let repositories = [near, far].map(|repository| repository.retention("full", "1"));
    let mut job = Job::over(
        &scratch,
        repositories,
        &[("SEAWALL_TEST_DELETE_AFTER", "0s")],
    );
    job.begin();
    for repository in ["near", "remote"] {
        let of = ["--repository", repository];
        let backup = |job: &Job| {
            let words = [&["backup", "--json"], &of[..]].concat();
            id(&job.seawall(&words).success().json())
        };
        let listed = |job: &Job| {
            let words = [&["list"], &of[..]].concat();
            job.seawall(&words).success().stdout
        };
        let expire = |job: &Job| {
            let words = [&["expire"], &of[..]].concat();
            job.seawall(&words).success();
            job.seawall(&words).success();
        };
        let pinned = backup(&job);
        let until = ["--until", "2099-01-01T00:00:00Z"];
        let words = ["pin", &pinned, "--reason", "before the migration"];
        job.seawall(&[&words[..], &until, &of].concat()).success();
        let others = [backup(&job), backup(&job)];
        expire(&job);
        let text = listed(&job);
        assert!(
            text.contains("PINNED") && text.contains("before the migration"),
            "{text}"
        );
        assert!(
            text.contains(&others[1]) && !text.contains(&others[0]),
            "{text}"
        );
        // The WAL between them is gone, and that is no gap; its own is there.
        assert!(!text.contains("GAP"), "{text}");
        let to = scratch.join(format!("pinned-{repository}"));
        let to_text = to.display().to_string();
        let words = [
            "restore",
            "--backup",
            &pinned,
            "--immediate",
            "--to",
            &to_text,
        ];
        job.seawall(&[&words[..], &["--action", "promote"], &of].concat())
            .success();
        let mut restored = job.adopt(&scratch, &format!("p-{repository}"), &to);
        restored.start();
        restored.wait_until_recovered(PATIENCE);
        assert_eq!(restored.sql("SELECT count(*) FROM t"), "1000");

        job.seawall(&[&["unpin", &pinned], &of[..]].concat())
            .success();
        // Left to the rules again; now it is the lease of the restore that keeps it.
        let words = [&["expire", "--dry-run"], &of[..]].concat();
        let dry = job.seawall(&words).success().stdout;
        assert!(
            dry.contains("in use by") && !dry.contains("before the migration"),
            "{dry}"
        );
        job.restore_and_compare(&scratch, repository);
    }
}

#[test]
fn after_an_upgrade_the_newest_backups_stay_and_the_old_system_goes_when_it_is_covered() {
    let mut site = site(&[("full", "2")]);
    let old = [site.backup(), site.backup()];
    site.cluster.stop(seawall_tests::postgres::Stop::Fast);
    let mut upgraded =
        Cluster::builder(PostgresVersion::find(16)).create_in(&site.scratch, "upgraded");
    let near = Repository::local("near", site.near.root()).retention("full", "2");
    site.config = ConfigFile::new()
        .cluster_as("main", &upgraded, "postgres")
        .repository(near)
        .write(&site.scratch);
    seawall(&site.config).arg("init").run().success();
    upgraded.archive_with(&site.config);
    upgraded.start();
    upgraded.sql("CREATE TABLE t (n int)");
    let first = site.backup();
    expire(&site);
    expire(&site);
    let expected = sorted([&old[0], &old[1], &first]);
    assert_eq!(
        backups(&site),
        expected,
        "one full backup does not cover two"
    );
    let second = site.backup();
    expire(&site);
    expire(&site);
    assert_eq!(backups(&site), sorted([&first, &second]));
    site.cluster = upgraded;
    site.cluster.archive_all(PATIENCE);
    let source = judge::dump(&site.cluster);
    let to = site.scratch.join("new-data");
    site.restoring(&to).run().success();
    let version = PostgresVersion::find(16);
    let mut restored = Cluster::adopt(version, &site.scratch, "new", &to);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    source.must_equal(&judge::dump(&restored));
}

#[test]
fn incremental_backups_never_count_as_full_ones_and_stay_as_long_as_their_chain_is_needed() {
    let site = site(&[("full", "1")]);
    let full = site.backup();
    let one = incremental(&site);
    let two = incremental(&site);
    expire(&site);
    expire(&site);
    assert_eq!(backups(&site), sorted([&full, &one, &two]));

    let newer = site.backup();
    site.seawall("pin")
        .args([&id(&one), "--reason", "audit"])
        .run()
        .success();
    expire(&site);
    expire(&site);
    assert_eq!(backups(&site), sorted([&full, &one, &newer]));
    site.seawall("unpin").arg(id(&one)).run().success();
    expire(&site);
    expire(&site);
    assert_eq!(backups(&site), [id(&newer)]);
}

fn incremental(site: &Site) -> Value {
    let call = site.seawall("backup").args(["--kind", "incremental"]);
    let taken = call.arg("--json").run().success().json();
    assert_eq!(taken["kind"], "incremental", "{taken}");
    taken
}

/// An incremental backup that sleeps, with its parent and a newer full backup, of which one
/// alone is kept.
fn asleep_on_a_parent() -> (Site, Value, Running, Value) {
    let mut site = site(&[("full", "1")]);
    let full = site.backup();
    let mut running = waiting(&mut site, "incremental");
    running.signal(Signal::SIGSTOP);
    site.cluster.archive_again(&site.config);
    let newer = site.backup();
    (site, full, running, newer)
}

#[test]
fn while_an_incremental_backup_runs_nothing_that_it_stands_on_goes() {
    let (site, full, mut running, newer) = asleep_on_a_parent();
    expire(&site);
    expire(&site);
    assert_eq!(backups(&site), sorted([&full, &newer]));
    running.signal(Signal::SIGCONT);
    running.wait().success();
    assert_eq!(backups(&site).len(), 3);
}

#[test]
fn an_incremental_backup_that_slept_until_its_parent_was_named_for_deletion_does_not_become_one() {
    let (site, full, mut running, newer) = asleep_on_a_parent();
    end_leases(&site);
    expire(&site);
    assert_eq!(backups(&site), sorted([&full, &newer]), "only named");
    running.signal(Signal::SIGCONT);
    running.wait().exits_with(1).says("was not committed");
    end_leases(&site);
    expire(&site);
    assert_eq!(backups(&site), [id(&newer)]);
}

#[test]
fn a_backup_that_is_being_restored_stays_until_that_is_done() {
    let site = site(&[("full", "1")]);
    pgbench::init(&site.cluster, 3);
    let first = site.backup();
    let to = site.scratch.join("restored");
    let args = ["--backup", &id(&first), "--immediate"];
    let mut running = site.restoring(&to).args(args).start();
    wait_until("it says what it uses", PATIENCE, || {
        !site.near.keys_with("/leases/").is_empty()
    });
    running.signal(Signal::SIGSTOP);
    site.backup();
    expire(&site);
    let done = expire(&site);
    let plans = done["plan"]["systems"][0]["backups"].as_array().unwrap();
    let plan = plans.iter().find(|plan| plan["id"] == first["id"]).unwrap();
    assert!(
        plan["because"].to_string().contains("in use by"),
        "{plan:#}"
    );
    running.signal(Signal::SIGCONT);
    running.wait().success();
    expire(&site);
    expire(&site);
    assert_eq!(backups(&site).len(), 2);
    // Its recovery still needs WAL: the lease outlives the restore.
    let mut restored = site.adopt("restored", &to);
    restored.start();
    end_leases(&site);
    expire(&site);
    expire(&site);
    assert_eq!(backups(&site).len(), 1);
}

#[test]
fn without_rules_nothing_goes_and_a_repository_that_is_away_holds_up_no_other() {
    let mut site = Site::of(15).start();
    site.seawall("expire").run().exits_with(2).says("hint:");
    let near = Repository::local("near", site.near.root()).retention("full", "1");
    let away = site.scratch.directory("away");
    std::fs::remove_dir(&away).unwrap();
    let away = Repository::local("away", &away).retention("full", "1");
    site.config = ConfigFile::new()
        .cluster(&site.cluster)
        .repository(away)
        .repository(near)
        .write_to(&site.scratch.join("both.toml"));
    let of = ["--repository", "near"];
    for _ in 0..2 {
        site.seawall("backup").args(of).run().success();
    }
    for _ in 0..2 {
        let call = site.seawall("expire").arg("--json");
        let call = call.with(|run| run.env("SEAWALL_TEST_DELETE_AFTER", "0s"));
        let json = call.run().exits_with(1).json();
        assert!(json["repositories"][0]["error"].is_string(), "{json:#}");
        assert!(json["repositories"][1]["error"].is_null(), "{json:#}");
    }
    assert_eq!(site.near.keys_with("backup.json").len(), 1);
}
