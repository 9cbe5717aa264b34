//! However a drill ends, it leaves nothing running and nothing that the next one does not clean
//! up; and drills side by side do not meet.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seawall_tests::guest::{LIMIT, SLOW, server_in, working_in};
use seawall_tests::process::{Run, Running, wait_until};
use seawall_tests::programs::Programs;
use seawall_tests::{Guest, Seed};
use serde_json::Value;

fn a_drill_that_is_killed_at_any_moment_is_cleaned_up_by_the_next(version: u32) {
    let mut seed = Seed::new();
    let site = Guest::new(version, "");
    let deep = site.scratch.directory(&"deep".repeat(40));
    let place = deep.display().to_string();
    let started = Instant::now();
    site.drill(&["--scratch", &place]).success();
    let whole = started.elapsed();
    let mut killed = 0;
    for _ in 0..8 {
        let mut running = site.start(&["--scratch", &place]);
        std::thread::sleep(seed.part_of(whole));
        killed += usize::from(running.is_running());
        // The drill alone: what it has started goes on.
        running.signal(Signal::SIGKILL);
        running.wait();
    }
    assert!(killed >= 4, "only {killed} were killed in time");
    site.drill(&["--scratch", &place]).success();
    site.must_be_clean_in(&deep);
    // And in the midst of its checks, with a server that nobody ends.
    site.configure(SLOW);
    let mut running = site.start(&["--scratch", &place]);
    let server = server_in(&deep, &mut running);
    running.signal(Signal::SIGKILL);
    running.wait();
    assert!(
        kill(Pid::from_raw(server), None).is_ok(),
        "the server goes on"
    );
    assert_eq!(site.sockets().len(), 1);
    site.drill(&["--scratch", &place]).success();
    assert!(!working_in(&deep).iter().any(|(pid, _)| *pid == server));
    site.must_be_clean_in(&deep);
}

#[test]
fn a_drill_that_is_killed_at_any_moment_is_cleaned_up_by_the_next_on_15() {
    a_drill_that_is_killed_at_any_moment_is_cleaned_up_by_the_next(15);
}

#[test]
fn a_drill_that_is_killed_at_any_moment_is_cleaned_up_by_the_next_on_18() {
    a_drill_that_is_killed_at_any_moment_is_cleaned_up_by_the_next(18);
}

fn an_interrupted_drill_leaves_nothing(version: u32) {
    let mut seed = Seed::new();
    let site = Guest::new(version, SLOW);
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut running = site.start(&[]);
        std::thread::sleep(seed.part_of(Duration::from_secs(3)));
        running.signal(signal);
        running.wait();
        site.must_be_clean();
    }
    // While it checks, the server runs in order.
    let mut running = site.start(&[]);
    server_in(&site.drills(), &mut running);
    running.signal(Signal::SIGTERM);
    running.wait().exits_with(1).says("interrupted");
    site.must_be_clean();
}

#[test]
fn an_interrupted_drill_leaves_nothing_on_15() {
    an_interrupted_drill_leaves_nothing(15);
}

#[test]
fn an_interrupted_drill_leaves_nothing_on_18() {
    an_interrupted_drill_leaves_nothing(18);
}

#[test]
fn a_drill_whose_terminal_is_closed_leaves_nothing() {
    let site = Guest::new(15, SLOW);
    let words = format!(
        "{} --config {} --cluster main",
        Programs::get().path("seawall-drill").display(),
        site.config.path().display()
    );
    // script(1) holds the terminal; with it the terminal goes.
    let mut terminal = Run::new("/usr/bin/script")
        .args(["-q", "-c", &words, "/dev/null"])
        .start();
    server_in(&site.drills(), &mut terminal);
    terminal.signal(Signal::SIGKILL);
    terminal.wait();
    // Nobody waits for the drill itself.
    wait_until("the scratch directory is gone", LIMIT, || {
        let mut left = std::fs::read_dir(site.drills()).unwrap();
        left.next().is_none()
    });
    site.must_be_clean();
}

fn drills_side_by_side_do_not_meet(version: u32) {
    let site = Guest::new(version, "");
    let other = Guest::build(
        version,
        "",
        |builder| builder,
        |cluster| {
            cluster.sql("CREATE TABLE other AS SELECT 1 AS x");
        },
    );
    let place = site.drills().display().to_string();
    let running: Vec<Running> = [&site, &site, &other]
        .map(|site| site.start(&["--scratch", &place]))
        .into();
    let reports: Vec<Value> = running
        .into_iter()
        .map(|one| one.wait().success().json())
        .collect();
    let mut places: Vec<String> = reports
        .iter()
        .map(|report| report["environment"]["scratch"].to_string())
        .collect();
    places.sort();
    places.dedup();
    assert_eq!(places.len(), 3);
    let systems = |at: usize| reports[at]["identity"]["system_id"].to_string();
    assert_eq!(systems(0), systems(1));
    assert_ne!(systems(0), systems(2));
    site.must_be_clean();
    other.must_be_clean();
}

#[test]
fn drills_side_by_side_do_not_meet_on_15() {
    drills_side_by_side_do_not_meet(15);
}

#[test]
fn drills_side_by_side_do_not_meet_on_18() {
    drills_side_by_side_do_not_meet(18);
}

#[test]
fn a_kept_instance_outlives_later_drills_wherever_its_socket_lies() {
    let checked =
        "[[drill.check]]\nname = 'rows'\nsql = 'SELECT count(*) FROM t'\nequals = '6000'\n";
    let site = Guest::new(15, checked);
    let deep = site.scratch.directory(&"deep".repeat(40));
    let place = deep.display().to_string();
    let report = site
        .drill(&["--scratch", &place, "--keep"])
        .success()
        .json();
    let teardown = report["teardown"].as_str().unwrap().to_owned();
    site.drill(&["--scratch", &place]).success();
    let (server, _) = working_in(&deep)
        .into_iter()
        .find(|(_, words)| words.contains("/postgres -D "))
        .expect("it runs on");
    assert!(
        teardown.contains(&format!("kill -INT {server}")),
        "{teardown}"
    );
    kill(Pid::from_raw(server), Signal::SIGINT).unwrap();
    wait_until("it has ended", LIMIT, || working_in(&deep).is_empty());
    // What is kept is the owner's to remove.
    assert_eq!(site.sockets().len(), 1);
}
