//! `seawall daemon` on its schedule, by a clock that the tests drive: what is due is done
//! once, failures are tried again and stay visible, and nothing takes anything else down.

use std::time::Duration;

use seawall_tests::daemon::{
    Daemon, archive_again, archive_nothing, job, minutes, scheduled, tables, wait_for_backups,
};
use seawall_tests::process::Run;
use seawall_tests::{
    Cluster, Config, ConfigFile, PostgresVersion, Programs, Repository, Site, Tmpfs, wait_until,
};

const EVERY_TEN: &str = "full = \"*/10 * * * *\"";

#[test]
fn backups_are_taken_when_they_are_due_and_the_listing_shows_them() {
    let (site, clock) = scheduled(EVERY_TEN, "");
    let site = site.start();
    // Without a daemon the next times are known.
    let listed = job(&site, &clock, "full");
    assert_eq!(listed["next"].as_array().unwrap().len(), 3);
    assert!(listed["last"].is_null());

    let daemon = Daemon::start(&site.config, &clock);
    // There is none yet: it is made up for at once.
    wait_for_backups(&daemon, &site.near, 1);
    daemon.wait_for("main full: done: backup");
    let due = clock.advance_to_next(minutes(10));
    wait_for_backups(&daemon, &site.near, 2);
    daemon.wait_for_times("main full: done: backup", 2);
    wait_until("the state is written", Duration::from_secs(10), || {
        let listed = job(&site, &clock, "full");
        listed["last"]["due"] == due.to_string()
    });
    let listed = job(&site, &clock, "full");
    assert_eq!(listed["last"]["result"], "done", "{listed:#}");
    assert!(listed["last"]["said"].as_str().unwrap().contains("-full-"));
    assert!(listed["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(listed["next"][0], (due + minutes(10)).to_string());
    daemon.stop();

    let text = Run::new(Programs::get().path("seawall"))
        .args(["schedule", "--config"])
        .arg(site.config.path());
    let text = clock.run(text).run().success().stdout;
    assert!(
        text.contains("*/10 * * * * (UTC)") && text.contains("done"),
        "{text}"
    );
}

#[test]
fn however_many_were_missed_are_made_up_once() {
    let (site, clock) = scheduled(EVERY_TEN, "");
    let site = site.start();
    let daemon = Daemon::start(&site.config, &clock);
    daemon.wait_for("main full: done");
    daemon.stop();
    clock.advance(minutes(60 * 7));
    let daemon = Daemon::start(&site.config, &clock);
    daemon.wait_for("main full: done");
    clock.advance_to_next(minutes(10));
    daemon.wait_for_times("main full: done", 2);
    assert_eq!(daemon.stop().stderr.matches("main full: begins").count(), 2);
    assert_eq!(site.near.keys_with("/backup.json").len(), 3);
}

#[test]
fn a_failure_is_tried_again_and_stays_visible_until_it_is_over() {
    let (site, clock) = scheduled("full = \"0 0 1 1 *\"", "[backup]\nwal_timeout = \"1s\"\n");
    let mut site = site.start();
    archive_nothing(&mut site);
    let daemon = Daemon::start(&site.config, &clock);
    daemon.wait_for("main full: failed: ");
    // The same again is no news.
    daemon.wait_for("main full: still fails, 2 times");
    assert_eq!(daemon.times("main full: failed: "), 1);
    wait_until("the failures are noted", Duration::from_secs(30), || {
        job(&site, &clock, "full")["failing"]["count"].as_u64() >= Some(2)
    });
    let listed = job(&site, &clock, "full");
    assert_eq!(
        (&listed["last"]["result"], &listed["last"]["exit"]),
        (&"failed".into(), &1.into())
    );
    assert!(
        listed["last"]["said"].as_str().unwrap().len() > 10,
        "{listed:#}"
    );

    archive_again(&mut site);
    daemon.wait_for("main full: works again, after ");
    wait_until("the success is noted", Duration::from_secs(30), || {
        job(&site, &clock, "full")["failing"].is_null()
    });
    daemon.stop();
    assert_eq!(site.near.keys_with("/backup.json").len(), 1);
}

#[test]
fn a_server_and_a_store_that_are_away_are_waited_for_and_named_once() {
    let (mut site, clock) = scheduled(EVERY_TEN, "");
    let daemon = Daemon::start(&site.config, &clock);
    daemon.wait_for("main full: waits until this is over: ");
    wait_until("that is noted", Duration::from_secs(30), || {
        job(&site, &clock, "full")["waiting"]["why"].is_string()
    });
    // It is looked at again meanwhile, and not said again.
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(
        daemon.times("waits until this is over"),
        1,
        "{}",
        daemon.log()
    );
    site.cluster.start();
    wait_for_backups(&daemon, &site.near, 1);
    daemon.wait_for("main full: went on");

    site.near.unmount(true);
    clock.advance_to_next(minutes(10));
    daemon.wait_for_times("main full: waits until this is over: ", 2);
    site.near.mount();
    wait_for_backups(&daemon, &site.near, 2);
    daemon.wait_for_times("main full: went on", 2);
    assert_eq!(daemon.times("main full: failed"), 0, "{}", daemon.log());
    daemon.stop();
}

/// Another daemon of the same cluster: its configuration, with a state directory of its own.
fn another_host(site: &Site, schedule: &str) -> Config {
    let tables = tables(&site.scratch, schedule, "");
    let other = site.scratch.directory("other-state");
    let text = tables.replace(
        &site.scratch.join("state").display().to_string(),
        &other.display().to_string(),
    );
    ConfigFile::new()
        .cluster(&site.cluster)
        .repository(Repository::local("near", site.near.root()))
        .extra(&text)
        .write_to(&site.scratch.join("other.toml"))
}

#[test]
fn two_daemons_on_one_repository_take_one_backup() {
    let (site, clock) = scheduled(EVERY_TEN, "");
    let site = site.start();
    let other = another_host(&site, EVERY_TEN);
    let daemons = [&site.config, &other].map(|config| Daemon::start(config, &clock));
    for round in 1..=2 {
        wait_for_backups(&daemons[0], &site.near, round);
        wait_until("both are done", Duration::from_secs(120), || {
            let done = |text| daemons.iter().map(|d| d.times(text)).sum::<usize>();
            done("main full: done") == round && done("nothing to do for") == round
        });
        clock.advance_to_next(minutes(10));
    }
    // The third round may have begun.
    for daemon in daemons {
        daemon.stop();
    }
}

#[test]
fn one_cluster_that_fails_takes_no_other_down() {
    let (site, clock) = scheduled(EVERY_TEN, "");
    let second = Cluster::builder(PostgresVersion::find(15)).create_in(&site.scratch, "second");
    let third = Cluster::builder(PostgresVersion::find(15)).create_in(&site.scratch, "third");
    let config = ConfigFile::new()
        .cluster(&site.cluster)
        .cluster(&second)
        .cluster(&third)
        .repository(Repository::local("near", site.near.root()))
        .extra(&tables(
            &site.scratch,
            EVERY_TEN,
            "[backup]\nwal_timeout = \"3s\"\n",
        ))
        .write(&site.scratch);
    let mut clusters = [site.cluster, second, third];
    for (at, cluster) in clusters.iter_mut().enumerate() {
        let config = config.for_cluster(cluster.name());
        seawall_tests::seawall(&config).arg("init").run().success();
        cluster.archive_with(&config);
        for (name, value) in clock.environment() {
            cluster.env(name, &value);
        }
        match at {
            // Its backups never get their WAL.
            1 => cluster.configure("archive_command", "false"),
            // This one is down.
            2 => continue,
            _ => {}
        }
        cluster.start();
    }
    let daemon = Daemon::start(&config, &clock);
    daemon.wait_for("serving 3 clusters");
    daemon.wait_for("main full: done");
    daemon.wait_for("second full: failed: ");
    daemon.wait_for("third full: waits until this is over");
    clock.advance_to_next(minutes(10));
    daemon.wait_for_times("main full: done", 2);
    clusters[2].start();
    daemon.wait_for("third full: done");
    daemon.stop();
    assert_eq!(
        site.near
            .keys_with("main/")
            .iter()
            .filter(|key| key.ends_with("backup.json"))
            .count(),
        2
    );
}

#[test]
fn a_drill_with_a_finding_is_not_repeated_and_its_reason_is_shown() {
    let schedule = "full = \"0 0 1 1 *\"\ndrill = \"*/10 * * * *\"";
    let (site, clock) = scheduled(schedule, "[objectives]\nrto = \"1ms\"\n");
    let site = site.start();
    let daemon = Daemon::start(&site.config, &clock);
    daemon.wait_for("main full: done");
    clock.advance_to_next(minutes(10));
    daemon.wait_for("main drill: ended with a finding: DRILL FAILED");
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(daemon.times("main drill: begins"), 1, "{}", daemon.log());
    let listed = job(&site, &clock, "drill");
    assert_eq!(
        (&listed["last"]["result"], &listed["last"]["exit"]),
        (&"finding".into(), &3.into()),
        "{listed:#}"
    );
    clock.advance_to_next(minutes(10));
    daemon.wait_for_times("main drill: ended with a finding", 2);
    daemon.stop();
}

#[test]
fn a_damaged_state_is_set_aside_and_a_full_disk_stops_no_work() {
    let (site, clock) = scheduled(EVERY_TEN, "");
    let site = site.start();
    let Some(disk) = Tmpfs::mount(&site.scratch, "small", 4) else {
        return;
    };
    let text = tables(&site.scratch, EVERY_TEN, "").replace(
        &site.scratch.join("state").display().to_string(),
        &disk.path().display().to_string(),
    );
    let config = ConfigFile::new()
        .cluster(&site.cluster)
        .repository(Repository::local("near", site.near.root()))
        .extra(&text)
        .write(&site.scratch);
    std::fs::write(disk.path().join("state.json"), "{\"format\": 1, \"jo").unwrap();
    let ballast = {
        let daemon = Daemon::start(&config, &clock);
        daemon.wait_for("state.json is damaged");
        daemon.wait_for("main full: done");
        let ballast = disk.fill(0);
        clock.advance_to_next(minutes(10));
        daemon.wait_for_times("main full: done", 2);
        daemon.wait_for("work goes on");
        clock.advance_to_next(minutes(10));
        daemon.wait_for_times("main full: done", 3);
        assert_eq!(daemon.times("work goes on"), 1, "{}", daemon.log());
        std::fs::remove_file(&ballast).unwrap();
        daemon.stop();
        ballast
    };
    assert!(!ballast.exists());
    let kept = std::fs::read_dir(disk.path()).unwrap().flatten();
    let names: Vec<_> = kept
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert!(
        names.iter().any(|name| name.contains("damaged")),
        "{names:?}"
    );
    assert!(names.iter().any(|name| name == "state.json"), "{names:?}");
}
