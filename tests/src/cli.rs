//! Calling the five programs as a user or PostgreSQL would.

use std::ffi::OsStr;

use crate::config::Config;
use crate::process::{Run, Running, wait_until};
use crate::programs::Programs;
use crate::site::PATIENCE;
use crate::{Output, scratch};

/// `seawall …`: `seawall(&config).args(["backup"]).run()`. Runs as PostgreSQL's user.
///
/// `--config` goes last, so that a verb may come first.
#[track_caller]
pub fn seawall(config: &Config) -> Call {
    Call::new("seawall", config)
}

/// `seawall-archive …`, as the archive_command.
#[track_caller]
pub fn archive(config: &Config) -> Call {
    Call::new("seawall-archive", config)
}

/// `seawall-fetch …`, as the restore_command.
#[track_caller]
pub fn fetch(config: &Config) -> Call {
    Call::new("seawall-fetch", config)
}

/// `seawall-restore …`.
#[track_caller]
pub fn restore(config: &Config) -> Call {
    Call::new("seawall-restore", config)
}

/// `seawall-drill …`.
#[track_caller]
pub fn drill(config: &Config) -> Call {
    Call::new("seawall-drill", config)
}

/// One call of a program. All that [`Run`] can be told is set through [`Call::with`].
#[derive(Debug, Clone)]
#[must_use]
pub struct Call {
    run: Run,
    config: Config,
}

impl Call {
    #[track_caller]
    fn new(program: &str, config: &Config) -> Self {
        Self {
            run: Run::new(Programs::get().path(program)),
            config: config.clone(),
        }
    }

    /// Adds one argument.
    pub fn arg(self, arg: impl AsRef<OsStr>) -> Self {
        self.with(|run| run.arg(arg))
    }

    /// Adds arguments.
    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(self, args: I) -> Self {
        self.with(|run| run.args(args))
    }

    /// Changes how it is run: its time limit, user, environment, working directory.
    pub fn with(mut self, change: impl FnOnce(Run) -> Run) -> Self {
        self.run = change(self.run);
        self
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(self) -> Output {
        self.complete().run()
    }

    /// Starts it in the background.
    #[track_caller]
    pub fn start(self) -> Running {
        self.complete().start()
    }

    /// Starts a backup and waits until all of it is stored but its WAL, which does not come.
    #[track_caller]
    pub fn start_without_wal(self) -> Running {
        let running = self.start();
        wait_until("it waits for WAL", PATIENCE, || {
            running.stderr().contains("waiting for WAL")
        });
        running
    }

    fn complete(self) -> Run {
        let cluster = self.config.cluster().to_owned();
        self.run
            .arg("--config")
            .arg(self.config.path())
            .args(["--cluster", &cluster])
    }
}

/// Says for people who watch a test or the demo whom the servers run as.
pub fn who() -> String {
    let owner = scratch::owner();
    match scratch::is_root() {
        true => format!("user {} (PostgreSQL refuses to run as root)", owner.name),
        false => format!("user {}", owner.name),
    }
}
