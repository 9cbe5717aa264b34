//! `seawall daemon` as a process: signals, its children, the service manager, its memory.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seawall_tests::daemon::{
    Daemon, archive_again, archive_nothing, is_alive, job, minutes, scheduled, tables,
    wait_for_backup_at_work, wait_for_backups, wait_until_gone, write_schedule,
};
use seawall_tests::process::process_tree;
use seawall_tests::site::PATIENCE;
use seawall_tests::{ConfigFile, Repository, Stored, wait_until};

const EVERY_TEN: &str = "full = \"*/10 * * * *\"";

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
    write_schedule(&site, "incremental = \"0 25 * * *\"", "");
    let refused = Daemon::calling(&site.config).run().exits_with(2);
    refused
        .says("schedule.incremental")
        .says("is not a crontab line");
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

/// The command of the daemon whose verb is this.
fn child(daemon: &Daemon, verb: &str) -> Option<u32> {
    let verb = format!("\0{verb}\0");
    daemon.children().into_iter().find(|pid| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(&verb)
    })
}

#[test]
fn a_continuous_copy_and_a_heartbeat_are_started_again_when_they_die_and_end_with_the_daemon() {
    let (site, clock) = scheduled("", "");
    let root = site.scratch.directory("far");
    let config = ConfigFile::new()
        .cluster(&site.cluster)
        .repository(Repository::local("near", site.near.root()))
        .repository(Repository::local("far", &root).copy_from("near"))
        .extra(&tables(
            &site.scratch,
            "full = \"0 0 1 1 *\"",
            "[heartbeat]\ninterval = \"1s\"\n",
        ))
        .write(&site.scratch);
    let (site, far) = (site.start(), Stored::at(&root));
    seawall_tests::seawall(&config).arg("init").run().success();
    let mut daemon = Daemon::start(&config, &clock);
    daemon.wait_for("serving 1 cluster with 1 jobs on a schedule and 2 that never end");
    wait_until("the backup is copied", PATIENCE, || {
        far.keys_with("/backup.json").len() == 1
    });
    for verb in ["copy", "heartbeat"] {
        let pid = child(&daemon, verb).expect("it runs");
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
        daemon.wait_for(&format!(
            "main {verb}: ended (ended by signal 9), and is started again"
        ));
        wait_until("it runs again", PATIENCE, || {
            child(&daemon, verb).is_some_and(|now| now != pid)
        });
    }
    let segment = site.cluster.archive_all(PATIENCE);
    wait_until("new WAL is copied", PATIENCE, || {
        !far.wal(&segment).is_empty()
    });
    // The configuration is the same, and the secrets that it names need not be.
    let before = ["copy", "heartbeat"].map(|verb| child(&daemon, verb).expect("it runs"));
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for("the configuration was read again");
    for (verb, before) in ["copy", "heartbeat"].into_iter().zip(before) {
        wait_until("it is started anew", PATIENCE, || {
            child(&daemon, verb).is_some_and(|now| now != before)
        });
    }
    let children = daemon.children();
    assert!(children.len() >= 2);
    daemon.stop();
    assert!(
        children.iter().all(|pid| !is_alive(*pid)),
        "nothing runs on"
    );
}

#[test]
fn a_configuration_whose_disk_hangs_holds_up_neither_the_loop_nor_the_end() {
    let (site, clock) = scheduled(EVERY_TEN, "[heartbeat]\ninterval = \"1s\"\n");
    let site = site.start();
    let mut daemon = Daemon::start(&site.config, &clock);
    daemon.wait_for("main full: done");
    // Whoever opens it waits for a writer that never comes.
    let path = site.config.path();
    std::fs::remove_file(path).unwrap();
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    seawall_tests::scratch::give_to_owner(path);
    daemon.signal(Signal::SIGHUP);
    // Both commands want to look at it, too.
    clock.advance_to_next(minutes(10));
    let heartbeat = child(&daemon, "heartbeat").expect("it runs on");
    kill(Pid::from_raw(heartbeat as i32), Signal::SIGKILL).unwrap();
    daemon.wait_for("main heartbeat: ended (ended by signal 9)");
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(daemon.times("main full: begins"), 1, "{}", daemon.log());
    let started = std::time::Instant::now();
    daemon.stop();
    assert!(started.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_state_directory_of_roots_is_given_to_the_account_and_no_other_is() {
    if !seawall_tests::scratch::is_root() {
        return;
    }
    let (site, clock) = scheduled(EVERY_TEN, "");
    let state = site.scratch.join("state");
    let file = state.join("state.json");
    std::fs::write(&file, "{\"format\": 1}").unwrap();
    seawall_tests::scratch::set_mode(&file, 0o600);
    let secret = site.scratch.join("secret");
    std::fs::write(&secret, "root's").unwrap();
    let link = state.join("accepted.toml");
    std::os::unix::fs::symlink(&secret, &link).unwrap();
    std::os::unix::fs::chown(&state, Some(0), Some(0)).unwrap();
    let start = || Daemon::run(clock.run(Daemon::calling(&site.config)).as_self());
    let owner = |path: &std::path::Path| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).unwrap().uid()
    };
    let account = seawall_tests::scratch::owner().uid;
    let daemon = start();
    daemon.wait_for("serving 1 cluster");
    assert_eq!(owner(&state), account);
    assert_eq!(owner(&file), account);
    assert_eq!(owner(&secret), 0, "what a link leads to stays root's");
    daemon.stop();

    // One that others use as well is nobody's to give.
    std::fs::remove_file(&link).unwrap();
    std::fs::write(state.join("of others"), "").unwrap();
    std::os::unix::fs::chown(&state, Some(0), Some(0)).unwrap();
    seawall_tests::scratch::set_mode(&state, 0o755);
    let refused = clock.run(Daemon::calling(&site.config)).as_self().run();
    let refused = refused.exits_with(1);
    let refused = refused.says("the state directory cannot be used");
    refused.says("daemon.state_directory");
    assert_eq!(owner(&state), 0);
}
