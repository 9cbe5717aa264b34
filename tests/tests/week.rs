//! A week of schedule in minutes, on a clock that the test drives: two buckets as two regions,
//! a crash and a promotion in the middle, and at the end the near region is gone.

use std::time::Duration;

use jiff::Timestamp;
use nix::sys::signal::Signal;
use seawall_tests::daemon::Daemon;
use seawall_tests::judge;
use seawall_tests::ledger::Target;
use seawall_tests::postgres::Stop;
use seawall_tests::process::Run;
use seawall_tests::site::PATIENCE;
use seawall_tests::{
    Clock, Cluster, Config, ConfigFile, Garage, Ledger, Moment, PostgresVersion, Programs, Scratch,
};
use serde_json::Value;

/// What may take long on a busy machine: a base backup, a drill.
const LONG: Duration = Duration::from_secs(240);

const TABLES: &str = r#"
[schedule]
full = "0 1 * * *"
expire = "0 3 * * *"
drill = "0 5 * * *"
copy = "continuous"
[heartbeat]
interval = "10s"
switch_floor = "1m"
[objectives]
rpo = "1h"
rto = "1h"
"#;

struct Week {
    clock: Clock,
    garage: Garage,
    config: Config,
    ledger: Ledger,
    primary: Cluster,
    // Last: it takes the files of all others away.
    scratch: Scratch,
}

impl Week {
    #[track_caller]
    fn begin() -> Self {
        let scratch = Scratch::new();
        let clock = Clock::at_sunday_midnight(&scratch);
        let garage = Garage::start_with(&scratch, &clock.environment());
        scratch.directory("state");
        let mut primary = Cluster::builder(PostgresVersion::find(15))
            .config("archive_timeout", "10min")
            .fsync()
            .create_in(&scratch, "one");
        live_by(&clock, &mut primary);
        let config = configure(&scratch, &garage, &primary);
        run(&clock, &config, &["init"]);
        primary.archive_with(&config);
        primary.start();
        let mut ledger = Ledger::create(&primary, &scratch);
        ledger.start(&primary, 2, Duration::from_millis(100));
        Self {
            clock,
            garage,
            config,
            ledger,
            primary,
            scratch,
        }
    }

    fn start_daemon(&self) -> Daemon {
        Daemon::start(&self.config, &self.clock)
    }

    #[track_caller]
    fn json(&self, words: &[&str]) -> Value {
        let said = run(&self.clock, &self.config, words);
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
    }

    #[track_caller]
    fn job(&self, operation: &str) -> Value {
        let listing = self.json(&["schedule", "--json"]);
        let jobs = listing["jobs"].as_array().expect("jobs").iter();
        let mut found = jobs.filter(|job| job["operation"] == operation);
        found.next().expect("it is on the schedule").clone()
    }

    /// Puts the clock forward to the next run of an operation. Returns the time that it is
    /// due.
    #[track_caller]
    fn forward_to(&self, operation: &str) -> Timestamp {
        let started = std::time::Instant::now();
        loop {
            let next = self.job(operation)["next"][0].clone();
            let due: Timestamp = serde_json::from_value(next).expect("a time");
            // What is due now has just ended, and is about to be noted.
            if due > self.clock.now() {
                self.clock.advance_to(due);
                return due;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "{operation} stays due at {due}"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    #[track_caller]
    fn wait_for(&self, daemon: &Daemon, operation: &str, due: Timestamp) {
        let started = std::time::Instant::now();
        loop {
            let last = self.job(operation)["last"].clone();
            let ran: Option<Timestamp> = serde_json::from_value(last["due"].clone()).ok();
            let said = format!("{operation} of {due}: {last:#}\n{}", daemon.log());
            if ran.is_some_and(|ran| ran >= due) {
                assert_eq!(last["result"], "done", "{said}");
                return;
            }
            assert!(started.elapsed() < LONG, "{said}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    #[track_caller]
    fn pass(&self, daemon: &Daemon, operation: &str) {
        let due = self.forward_to(operation);
        self.wait_for(daemon, operation, due);
    }

    /// Names of the finished base backups in a repository.
    #[track_caller]
    fn backups(&self, repository: &str) -> Vec<String> {
        let listing = self.json(&["list", "--json"]);
        let repositories = listing["repositories"].as_array().expect("repositories");
        let here = repositories.iter().find(|r| r["name"] == repository);
        let systems = here.expect("it is listed")["systems"].as_array();
        let systems = systems.into_iter().flatten();
        let backups = systems.filter_map(|system| system["backups"].as_array());
        let ids = backups.flatten().map(|backup| backup["id"].as_str());
        ids.map(|id| id.expect("an id").to_owned()).collect()
    }

    /// A standby takes over; the old primary is stopped in an orderly way.
    #[track_caller]
    fn switch_over(&mut self, daemon: &mut Daemon) {
        let mut standby = self.primary.standby(&self.scratch, "two");
        live_by(&self.clock, &mut standby);
        standby.start();
        self.ledger.stop();
        standby.wait_until_caught_up(&self.primary, PATIENCE);
        self.primary.stop(Stop::Fast);
        standby.promote();
        // The same file: the standby's archive_command is a copy of the primary's.
        self.config = configure(&self.scratch, &self.garage, &standby);
        daemon.signal(Signal::SIGHUP);
        self.primary = standby;
        self.ledger
            .start(&self.primary, 2, Duration::from_millis(100));
        self.ledger.wait_for_more(5, PATIENCE);
    }

    /// The server and the daemon die while a base backup is taken, as a machine does.
    #[track_caller]
    fn crash_during_a_backup(&mut self, daemon: Daemon) -> Daemon {
        let due = self.forward_to("full");
        let before = daemon.times("main full: begins");
        daemon.wait_for_times("main full: begins", before.max(1));
        daemon.crash();
        self.primary.kill();
        self.primary.start();
        let daemon = self.start_daemon();
        self.wait_for(&daemon, "full", due);
        daemon
    }

    /// Waits until the far repository lacks nothing of what the near one holds.
    #[track_caller]
    fn wait_for_copies(&self, daemon: &Daemon) {
        let started = std::time::Instant::now();
        loop {
            let lag = self.json(&["copy", "--dry-run", "--json"]);
            let systems = lag["repositories"][0]["systems"].as_array().cloned();
            let lacks = |system: &Value| {
                system["segments"] != 0
                    || system["backups"].as_array().is_none_or(|b| !b.is_empty())
            };
            if systems.is_some_and(|systems| !systems.iter().any(lacks)) {
                return;
            }
            let said = format!("the copy lags: {lag:#}\n{}", daemon.log());
            assert!(started.elapsed() < PATIENCE, "{said}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// The near region burns down, with all that is in it.
    fn destroy_near(&mut self) {
        self.primary.destroy();
        let (id, secret) = self.garage.key();
        // A process of its own: the store's clock is the week's, and refuses who signs today.
        let emptying = Run::new(env!("CARGO_BIN_EXE_empty-store"))
            .as_self()
            .arg("s3://near/pg")
            .env("aws_endpoint", format!("http://{}", self.garage.address()))
            .env("aws_region", "garage")
            .env("aws_access_key_id", id)
            .env("aws_secret_access_key", secret)
            .env("aws_allow_http", "true")
            .env("aws_virtual_hosted_style_request", "false");
        self.clock.run(emptying).run().success();
    }
}

/// Lets a cluster's server and its commands live by the clock, from the next start on.
fn live_by(clock: &Clock, cluster: &mut Cluster) {
    for (name, value) in clock.environment() {
        cluster.env(name, &value);
    }
}

/// The configuration for the server that is `main` now.
#[track_caller]
fn configure(scratch: &Scratch, garage: &Garage, primary: &Cluster) -> Config {
    let near = garage
        .repository("near", "near", "pg")
        .retention("recovery_window", "\"2d\"")
        .retention("full", "2")
        .retention("prove_before_expire", "true")
        .retention("delete_after", "\"1h\"");
    let far = garage
        .repository("far", "far", "pg")
        .copy_from("near")
        .retention("recovery_window", "\"4d\"")
        .retention("delete_after", "\"1h\"");
    let state = scratch.join("state").display().to_string();
    let daemon = format!(
        "[http]\nlisten = \"off\"\n[daemon]\nstate_directory = \"{state}\"\nretry_after = \"1s\"\n"
    );
    ConfigFile::new()
        .cluster_as("main", primary, "postgres")
        .repository(near)
        .repository(far)
        .extra(TABLES)
        .extra(&daemon)
        .write(scratch)
}

/// A command that lives by the week's clock. Returns its standard output.
#[track_caller]
fn run(clock: &Clock, config: &Config, words: &[&str]) -> String {
    let run = Run::new(Programs::get().path("seawall"))
        .args(words)
        .arg("--config")
        .arg(config.path())
        .timeout(LONG);
    clock.run(run).run().success().stdout
}

#[test]
fn a_week_with_a_crash_and_a_promotion_and_the_far_region_alone_brings_everything_back() {
    let mut week = Week::begin();
    let mut daemon = week.start_daemon();
    // There is no base backup: it is made up for at once.
    daemon.wait_for("main full: done");
    let mut taken = week.backups("near");
    for day in 0..7 {
        match day {
            2 => daemon = week.crash_during_a_backup(daemon),
            _ => week.pass(&daemon, "full"),
        }
        taken.extend(week.backups("near").last().cloned());
        week.ledger.wait_for_more(5, PATIENCE);
        week.pass(&daemon, "expire");
        week.pass(&daemon, "drill");
        if day == 4 {
            week.switch_over(&mut daemon);
        }
    }

    // Retention has done its work, and by each repository's own rules.
    let (near, far) = (week.backups("near"), week.backups("far"));
    assert_eq!(taken.len(), 8);
    assert!(
        !near.contains(&taken[0]) && !far.contains(&taken[0]),
        "{far:?}"
    );
    assert!(taken[4..].iter().all(|id| near.contains(id)), "{near:?}");
    assert!(near.len() < far.len(), "{near:?} {far:?}");

    // The last commits arrive in the far region, and then all else is lost.
    week.ledger.stop();
    week.primary.archive_all(PATIENCE);
    week.wait_for_copies(&daemon);
    run(&week.clock, &week.config, &["check"]);
    let (lost, moment) = (judge::dump(&week.primary), Moment::now());
    daemon.stop();
    week.destroy_near();

    let to = week.scratch.join("from-far-data");
    let to_text = to.display().to_string();
    let words = ["restore", "--repository", "far", "--to", &to_text];
    run(&week.clock, &week.config, &words);
    let version = week.primary.version().clone();
    let mut restored = Cluster::adopt(version, &week.scratch, "from-far", &to);
    live_by(&week.clock, &mut restored);
    restored.start();
    restored.wait_until_recovered(PATIENCE);
    lost.must_equal(&judge::dump(&restored));
    judge::amcheck(&restored).must_pass();
    let rows = Ledger::rows(&restored);
    week.ledger
        .compare(&rows, Target::AllUntil(moment))
        .must_hold();
}
