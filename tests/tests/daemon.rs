//! `seawall daemon` on its schedule, by a clock that the tests drive: what is due is done
//! once, failures are tried again and stay visible, and nothing takes anything else down.

use std::time::Duration;

use nix::sys::signal::Signal;
use seawall_tests::daemon::{
    Daemon, is_alive, job, minutes, scheduled, tables, wait_for_backups, wait_until_gone,
    write_schedule,
};
use seawall_tests::process::{Run, process_tree};
use seawall_tests::{
    Cluster, Config, ConfigFile, PostgresVersion, Programs, Repository, Site, Tmpfs, wait_until,
};

const EVERY_TEN: &str = "full = \"*/10 * * * *\"";

/// A backup of this site waits for its WAL until it is told otherwise.
fn archive_nothing(site: &mut Site) {
    site.cluster.configure("archive_command", "false");
    site.cluster.reload();
}

fn archive_again(site: &mut Site) {
    let command = Programs::get().archive_command(&site.config);
    site.cluster.configure("archive_command", &command);
    site.cluster.reload();
}

/// Waits until a backup has been taken up to its WAL, and returns the processes at work.
fn wait_for_backup_at_work(daemon: &Daemon, site: &Site) -> Vec<u32> {
    wait_until("a backup is at work", Duration::from_secs(60), || {
        !site.near.keys_with("backup_manifest.zst").is_empty()
    });
    let children = daemon.children();
    assert!(!children.is_empty(), "the backup is a process of its own");
    children
}

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
fn after_a_kill_nothing_is_left_behind_and_the_next_start_goes_on() {
    let (site, clock) = scheduled("full = \"0 0 1 1 *\"", "");
    let mut site = site.start();
    archive_nothing(&mut site);
    let daemon = Daemon::start(&site.config, &clock);
    let children = wait_for_backup_at_work(&daemon, &site);
    daemon.crash();
    wait_until_gone(&children);
    assert!(site.near.keys_with("/backup.json").is_empty());

    archive_again(&mut site);
    let started = std::time::Instant::now();
    let daemon = Daemon::start(&site.config, &clock);
    wait_for_backups(&daemon, &site.near, 1);
    // The lease of the dead holds for minutes, and holds up nobody.
    assert!(
        started.elapsed() < Duration::from_secs(60),
        "{}",
        daemon.log()
    );
    daemon.stop();
}

#[test]
fn sigterm_gives_up_a_backup_cleanly_and_the_next_start_takes_it_again() {
    let (site, clock) = scheduled("full = \"0 0 1 1 *\"", "");
    let mut site = site.start();
    archive_nothing(&mut site);
    let daemon = Daemon::start(&site.config, &clock);
    let children = wait_for_backup_at_work(&daemon, &site);
    let stopped = daemon.stop();
    assert!(
        stopped.stderr.contains("main full: told to give up"),
        "{}",
        stopped.stderr
    );
    assert!(
        children.iter().all(|pid| !is_alive(*pid)),
        "nothing runs on"
    );
    assert!(site.near.keys_with("/backup.json").is_empty());
    let listed = job(&site, &clock, "full");
    assert!(
        listed["failing"].is_null(),
        "giving up is no failure: {listed:#}"
    );

    archive_again(&mut site);
    let daemon = Daemon::start(&site.config, &clock);
    wait_for_backups(&daemon, &site.near, 1);
    daemon.stop();
}

#[test]
fn a_wrong_configuration_is_not_taken_and_the_old_one_works_on_until_a_right_one_comes() {
    let (site, clock) = scheduled(EVERY_TEN, "");
    let site = site.start();
    let mut daemon = Daemon::start(&site.config, &clock);
    daemon.wait_for("main full: done");

    write_schedule(&site, "full = \"0 25 * * *\"", "");
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for("the configuration stays as it was");
    daemon.wait_for("schedule.full: \"0 25 * * *\" is not a crontab line");
    // The commands have the old one as well.
    clock.advance_to_next(minutes(10));
    daemon.wait_for_times("main full: done", 2);

    write_schedule(&site, "full = \"*/30 * * * *\"", "");
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for("the configuration was read again");
    let listed = job(&site, &clock, "full");
    assert_eq!(listed["line"], "*/30 * * * *");
    clock.advance_to_next(minutes(30));
    daemon.wait_for_times("main full: done", 3);
    daemon.stop();
    assert_eq!(site.near.keys_with("/backup.json").len(), 3);

    // At its start there is no old one.
    write_schedule(&site, "incremental = \"@daily\"", "");
    let refused = Daemon::calling(&site.config).run().exits_with(2);
    refused.says("schedule.incremental").says("this version");
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
fn two_daemons_on_one_state_directory_are_refused() {
    let (site, clock) = scheduled(EVERY_TEN, "");
    let daemon = Daemon::start(&site.config, &clock);
    daemon.wait_for("serving 1 cluster");
    let refused = Daemon::calling(&site.config).run().exits_with(4);
    refused.says("another daemon").says("hint: ");
    daemon.stop();
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
            "[backup]\nwal_timeout = \"1s\"\n",
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

#[test]
fn the_service_manager_is_told_what_goes_on() {
    let (site, clock) = scheduled(EVERY_TEN, "");
    let site = site.start();
    let path = site.scratch.join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    seawall_tests::scratch::set_mode(&path, 0o777);
    socket
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let hear_until = |what: &str| {
        let mut all = String::new();
        let mut buffer = [0; 4096];
        while !all.contains(what) {
            let read = socket
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("{what} does not come ({error}):\n{all}"));
            all += &String::from_utf8_lossy(&buffer[..read]);
        }
        all
    };
    let run = clock
        .run(Daemon::calling(&site.config))
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "3000000");
    let mut daemon = Daemon::run(run);
    hear_until("READY=1\n");
    hear_until("WATCHDOG=1\n");
    hear_until("STATUS=running: main full\n");
    // The children tell nobody: what is heard next is the daemon's.
    hear_until("STATUS=next: main full at ");
    daemon.signal(Signal::SIGHUP);
    let reload = hear_until("READY=1\n");
    let word = |text: &str| {
        reload
            .find(text)
            .unwrap_or_else(|| panic!("{text}: {reload}"))
    };
    assert!(word("RELOADING=1\nMONOTONIC_USEC=") < word("READY=1"));
    daemon.signal(Signal::SIGTERM);
    hear_until("STOPPING=1\n");
    daemon.wait().success();
}

/// Resident memory of a process in KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    number.expect("it runs")
}

#[test]
#[ignore = "long: ten minutes of backups and drills one after the other"]
fn soak_the_daemon_takes_no_more_memory_after_hundreds_of_runs() {
    let seconds = std::env::var("SEAWALL_SOAK_SECONDS").ok();
    let seconds = seconds.map_or(600, |text| text.parse().expect("seconds"));
    let schedule = "full = \"* * * * *\"\ndrill = \"*/5 * * * *\"";
    let (site, clock) = scheduled(schedule, "[heartbeat]\ninterval = \"1s\"\n");
    let site = site.start();
    let daemon = Daemon::start(&site.config, &clock);
    daemon.wait_for("main full: done");
    let time = Duration::from_secs(seconds);
    let (began, mut samples) = (std::time::Instant::now(), Vec::new());
    while began.elapsed() < time {
        // Whatever runs is let run: then it is due again at once.
        if process_tree(daemon.pid()).len() <= 2 {
            clock.advance(minutes(1));
        }
        std::thread::sleep(Duration::from_secs(1));
        samples.push(resident(daemon.pid()));
    }
    let runs = daemon.times(": begins, due");
    let third = samples.len() / 3;
    let most = |part: &[u64]| part.iter().copied().max().unwrap_or_default();
    let (middle, end) = (
        most(&samples[third..2 * third]),
        most(&samples[2 * third..]),
    );
    eprintln!("{runs} runs; at most {middle} KiB in the second third, {end} KiB in the last");
    assert!(runs as u64 > seconds / 15, "{runs} runs:\n{}", daemon.log());
    assert!(end < 64 << 10, "{end} KiB");
    assert!(
        end <= middle + middle / 10,
        "{middle} KiB grew to {end} KiB"
    );
    daemon.stop();
}
