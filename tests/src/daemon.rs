//! `seawall daemon` as a service manager would run it.

use std::time::Duration;

use jiff::SignedDuration;
use nix::sys::signal::Signal;

use crate::clock::Clock;
use crate::process::{Run, Running, wait_until};
use crate::programs::Programs;
use crate::{Config, Output, Scratch, Site, Stored};

/// Longer than any of its answers takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running daemon; killed with all its children when dropped.
#[derive(Debug)]
pub struct Daemon {
    running: Running,
}

impl Daemon {
    /// `seawall daemon`, to be completed.
    #[track_caller]
    pub fn calling(config: &Config) -> Run {
        Run::new(Programs::get().path("seawall"))
            .args(["daemon", "--config"])
            .arg(config.path())
            .timeout(Duration::from_secs(3600))
    }

    /// Starts it with a clock of the test's.
    #[track_caller]
    pub fn start(config: &Config, clock: &Clock) -> Self {
        Self::run(clock.run(Self::calling(config)))
    }

    /// Starts it as it was completed.
    #[track_caller]
    pub fn run(run: Run) -> Self {
        Self {
            running: run.start(),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.running.stderr()
    }

    /// How often it has said this.
    pub fn times(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    /// Waits until it has said this.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        self.wait_for_times(text, 1);
    }

    /// Waits until it has said this so often.
    #[track_caller]
    pub fn wait_for_times(&self, text: &str, count: usize) {
        let started = std::time::Instant::now();
        while self.times(text) < count {
            assert!(
                started.elapsed() < PATIENCE,
                "the daemon does not say {text:?} {count} times:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends it a signal, and it alone.
    pub fn signal(&mut self, signal: Signal) {
        self.running.signal(signal);
    }

    /// `kill -9`, for it alone. Returns the children that it had.
    #[track_caller]
    pub fn crash(mut self) -> Vec<u32> {
        let children = self.children();
        self.running.signal(Signal::SIGKILL);
        self.running.wait();
        children
    }

    /// All that descends from it.
    pub fn children(&self) -> Vec<u32> {
        crate::process::process_tree(self.pid()).split_off(1)
    }

    /// SIGTERM: it must end with 0.
    #[track_caller]
    pub fn stop(mut self) -> Output {
        self.running.signal(Signal::SIGTERM);
        self.running.wait().success()
    }

    /// Waits for its end by itself.
    #[track_caller]
    pub fn wait(self) -> Output {
        self.running.wait()
    }
}

/// A site whose configuration has a schedule, with a clock of the test's; made, not started.
///
/// `schedule` are lines of `[schedule]`, `more` stands after the tables of the daemon.
#[track_caller]
pub fn scheduled(schedule: &str, more: &str) -> (Site, Clock) {
    let builder = crate::Cluster::builder(crate::PostgresVersion::find(15));
    let site = Site::configured(builder, |file| file);
    let mut site = site;
    let clock = Clock::new(&site.scratch);
    for (name, value) in clock.environment() {
        site.cluster.env(name, &value);
    }
    write_schedule(&site, schedule, more);
    (site, clock)
}

/// Writes the configuration of [`scheduled`] anew.
#[track_caller]
pub fn write_schedule(site: &Site, schedule: &str, more: &str) {
    crate::ConfigFile::new()
        .cluster(&site.cluster)
        .repository(crate::Repository::local("near", site.near.root()))
        .extra(&tables(&site.scratch, schedule, more))
        .write(&site.scratch);
}

/// The tables of the daemon: an impatient one with a state directory in `scratch`.
pub fn tables(scratch: &Scratch, schedule: &str, more: &str) -> String {
    let state = scratch.join("state");
    if !state.exists() {
        scratch.directory("state");
    }
    format!(
        "[schedule]\n{schedule}\n[http]\nlisten = \"off\"\n[daemon]\nstate_directory = \"{}\"\nretry_after = \"1s\"\nstop_timeout = \"20s\"\n{more}",
        state.display()
    )
}

/// What `seawall schedule --json` says of one job, by this clock.
#[track_caller]
pub fn job(site: &Site, clock: &Clock, operation: &str) -> serde_json::Value {
    let call = Run::new(Programs::get().path("seawall"))
        .args(["schedule", "--json", "--count", "3", "--config"])
        .arg(site.config.path());
    let listing = clock.run(call).run().success().json();
    let jobs = listing["jobs"].as_array().expect("jobs").clone();
    let found = jobs.into_iter().find(|job| job["operation"] == operation);
    found.unwrap_or_else(|| panic!("there is no job {operation}: {listing:#}"))
}

/// Waits until `near` holds so many finished base backups.
#[track_caller]
pub fn wait_for_backups(daemon: &Daemon, near: &Stored, count: usize) {
    let started = std::time::Instant::now();
    loop {
        let found = near.keys_with("/backup.json").len();
        if found == count {
            return;
        }
        assert!(
            found < count,
            "{found} backups, not {count}:\n{}",
            daemon.log()
        );
        assert!(
            started.elapsed() < PATIENCE,
            "{found} backups, not {count}:\n{}",
            daemon.log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until none of these processes is left.
#[track_caller]
pub fn wait_until_gone(processes: &[u32]) {
    wait_until("the children are gone", Duration::from_secs(30), || {
        processes.iter().all(|pid| !is_alive(*pid))
    });
}

/// Whether a process is there and no zombie.
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.trim_start().to_owned());
    state.is_some_and(|state| !state.starts_with('Z'))
}

/// A backup of this site waits for its WAL until it is told otherwise.
#[track_caller]
pub fn archive_nothing(site: &mut Site) {
    site.cluster.configure("archive_command", "false");
    site.cluster.reload();
}

/// Its WAL is archived again.
#[track_caller]
pub fn archive_again(site: &mut Site) {
    let command = Programs::get().archive_command(&site.config);
    site.cluster.configure("archive_command", &command);
    site.cluster.reload();
}

/// Waits until a backup has been taken up to its WAL, and returns the processes at work.
#[track_caller]
pub fn wait_for_backup_at_work(daemon: &Daemon, site: &Site) -> Vec<u32> {
    wait_until("a backup is at work", Duration::from_secs(60), || {
        !site.near.keys_with("backup_manifest.zst").is_empty()
    });
    let children = daemon.children();
    assert!(!children.is_empty(), "the backup is a process of its own");
    children
}

/// So many minutes.
pub fn minutes(count: i64) -> SignedDuration {
    SignedDuration::from_mins(count)
}
