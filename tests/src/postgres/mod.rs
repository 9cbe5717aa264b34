//! A PostgreSQL server of a test: made, started, asked, killed and destroyed.
//!
//! Each lies in a directory of its own, listens on a Unix socket there and nowhere else
//! (unless asked), and is a direct child of the test, so that it is ended by its process id
//! whatever happens to the test. Where and on which socket it listens is said on its command
//! line: a restored copy of its data directory never collides with it.

mod builder;
mod client;

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use builder::{Builder, free_port};

use crate::process::{Run, kill_tree, process_tree};
use crate::scratch::{Scratch, make_directory, remove_tree};
use crate::version::PostgresVersion;
use crate::{Config, Programs, guard};

/// A server with its files. Stopped by its id when dropped; the files go with the [`Scratch`].
#[derive(Debug)]
pub struct Cluster {
    version: PostgresVersion,
    name: String,
    home: PathBuf,
    data: PathBuf,
    wal: Option<PathBuf>,
    config_directory: Option<PathBuf>,
    tablespaces: Vec<(String, PathBuf)>,
    tablespaces_made: bool,
    port: u16,
    tcp: bool,
    environment: Vec<(String, String)>,
    server: Option<Child>,
}

/// How a server is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Clients are thrown out, a checkpoint is written, the archiver finishes.
    Fast,
    /// At once; the next start recovers.
    Immediate,
}

/// A server that did not come up.
#[derive(Debug)]
pub struct StartFailure {
    /// Its exit code, or `None` if it was still not ready at the end of the time limit.
    pub code: Option<i32>,
    /// What it wrote to its log meanwhile.
    pub log: String,
}

impl Cluster {
    /// Describes a new cluster.
    pub fn builder(version: PostgresVersion) -> Builder {
        Builder::new(version)
    }

    /// A handle for a data directory that something else has made, a restore say. Nothing in
    /// it is changed. It gets a socket directory of its own below `scratch`/`name`.
    #[track_caller]
    pub fn adopt(version: PostgresVersion, scratch: &Scratch, name: &str, data: &Path) -> Self {
        let home = scratch.join(name);
        make_directory(&home);
        make_directory(&home.join("s"));
        Self {
            version,
            name: name.into(),
            home,
            data: data.to_path_buf(),
            wal: None,
            config_directory: None,
            tablespaces: Vec::new(),
            tablespaces_made: true,
            port: 5432,
            tcp: false,
            environment: Vec::new(),
            server: None,
        }
    }

    /// A variable of the server's environment, which its archive and restore commands inherit,
    /// from the next start on.
    pub fn env(&mut self, name: &str, value: &str) {
        self.environment.push((name.into(), value.into()));
    }

    /// Its version.
    pub fn version(&self) -> &PostgresVersion {
        &self.version
    }

    /// The name under which it was made, which is also its name in [`crate::ConfigFile`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The directory that holds its data directory, sockets, tablespaces and log.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Where postgresql.conf and pg_hba.conf are.
    pub fn config_directory(&self) -> &Path {
        self.config_directory.as_deref().unwrap_or(&self.data)
    }

    /// The directory of its socket: the `host` of a connection string.
    pub fn socket_directory(&self) -> PathBuf {
        self.home.join("s")
    }

    /// The port: part of the socket's name, and a TCP port where that was asked for.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Tablespaces by name, with their directories.
    pub fn tablespaces(&self) -> &[(String, PathBuf)] {
        &self.tablespaces
    }

    /// A connection string in libpq's words.
    pub fn connection(&self, user: &str) -> String {
        format!(
            "host={} port={} user={user} dbname=postgres",
            self.socket_directory().display(),
            self.port
        )
    }

    /// Adds a line to postgresql.conf; [`reload`](Self::reload) or a restart applies it.
    #[track_caller]
    pub fn configure(&mut self, setting: &str, value: &str) {
        self.append(
            "postgresql.conf",
            &format!("{setting} = '{}'", value.replace('\'', "''")),
        );
    }

    /// Archives through `seawall-archive` with this configuration, from the next start on.
    #[track_caller]
    pub fn archive_with(&mut self, config: &Config) {
        self.configure("archive_mode", "on");
        let command = Programs::get().archive_command(config);
        self.configure("archive_command", &command);
    }

    /// Lets a running cluster archive nothing more: its command fails.
    #[track_caller]
    pub fn stop_archiving(&mut self) {
        self.configure("archive_command", "exit 1");
        self.reload();
    }

    /// Lets a running cluster archive through `seawall-archive` again.
    #[track_caller]
    pub fn archive_again(&mut self, config: &Config) {
        let command = Programs::get().archive_command(config);
        self.configure("archive_command", &command);
        self.reload();
    }

    /// Adds a line to a file of the configuration directory.
    #[track_caller]
    pub fn append(&mut self, file: &str, line: &str) {
        let path = self.config_directory().join(file);
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
        writeln!(file, "{line}").unwrap();
    }

    /// Starts it and waits until it accepts connections.
    #[track_caller]
    pub fn start(&mut self) {
        if let Err(failure) = self.try_start(Duration::from_secs(120)) {
            panic!(
                "{} {:?} did not start (exit code {:?})\n-- log --\n{}",
                self.version, self.name, failure.code, failure.log
            );
        }
    }

    /// Starts it and waits until it accepts connections, as a standby or paused in recovery
    /// too. An error if it ends before, or is not ready within `limit`; in the latter case it
    /// is left running.
    pub fn try_start(&mut self, limit: Duration) -> Result<(), StartFailure> {
        let before = self.log().len();
        self.launch();
        let started = Instant::now();
        loop {
            let pid = self.pid().unwrap_or_default();
            // Line 8 of postmaster.pid says it, for a standby as well.
            let status = std::fs::read_to_string(self.data.join("postmaster.pid"));
            let status = status.unwrap_or_default();
            let mut lines = status.lines();
            if lines.next() == Some(&pid.to_string())
                && matches!(lines.nth(6).map(str::trim), Some("ready" | "standby"))
            {
                self.make_tablespaces();
                return Ok(());
            }
            let ended = self.has_ended();
            if ended.is_some() || started.elapsed() > limit {
                let log = self.log();
                return Err(StartFailure {
                    code: ended,
                    log: log.get(before..).unwrap_or(&log).to_owned(),
                });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts the server and returns at once.
    #[track_caller]
    pub fn launch(&mut self) {
        assert!(!self.is_running(), "{:?} is running already", self.name);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("the log opens");
        let mut run = Run::new(self.version.bin.join("postgres"))
            .arg("-D")
            .arg(&self.data)
            .arg("-k")
            .arg(self.socket_directory())
            .args(["-p", &self.port.to_string()])
            .args(["-c", "logging_collector=off"])
            .directory(&self.home);
        let listen = if self.tcp { "127.0.0.1" } else { "" };
        run = run.args(["-c", &format!("listen_addresses={listen}")]);
        if let Some(directory) = &self.config_directory {
            let file = directory.join("postgresql.conf");
            run = run.args(["-c", &format!("config_file={}", file.display())]);
        }
        for (name, value) in &self.environment {
            run = run.env(name, value);
        }
        let child = run
            .command()
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log can be shared"))
            .stderr(log)
            // Ctrl-C is for the test; the server is ended by the test or its guard.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", self.version));
        guard::started(child.id());
        self.server = Some(child);
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Child::id)
    }

    /// Whether the postmaster runs.
    pub fn is_running(&mut self) -> bool {
        self.server.is_some() && self.has_ended().is_none()
    }

    /// The postmaster's exit code, once it has ended.
    fn has_ended(&mut self) -> Option<i32> {
        let child = self.server.as_mut()?;
        let status = child.try_wait().ok()??;
        guard::ended(child.id());
        self.server = None;
        Some(status.code().unwrap_or(-1))
    }

    /// Waits until the server has ended by itself, after `--action shutdown` say, and returns
    /// its exit code.
    #[track_caller]
    pub fn wait_for_end(&mut self, limit: Duration) -> i32 {
        let started = Instant::now();
        assert!(self.server.is_some(), "{:?} does not run", self.name);
        loop {
            if let Some(code) = self.has_ended() {
                return code;
            }
            assert!(
                started.elapsed() < limit,
                "{:?} still runs after {limit:?}",
                self.name
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Turns the lowest bit of these bytes of a relation's file over, behind the server's back:
    /// in place, so that it stays the same file. The server is stopped for that.
    #[track_caller]
    pub fn flip_bits(&mut self, relation: &str, at: &[u64]) {
        use std::os::unix::fs::FileExt;
        let path = self.sql(&format!("SELECT pg_relation_filepath('{relation}')"));
        self.stop(Stop::Fast);
        let path = self.data().join(path);
        let options = std::fs::File::options().read(true).write(true).clone();
        let file = options.open(path).unwrap();
        for at in at {
            let mut byte = [0];
            file.read_exact_at(&mut byte, *at).unwrap();
            byte[0] ^= 1;
            file.write_all_at(&byte, *at).unwrap();
        }
        self.start();
    }

    /// Stops it and waits for its end. Returns how long that took.
    #[track_caller]
    pub fn stop(&mut self, how: Stop) -> Duration {
        let started = Instant::now();
        let Some(pid) = self.pid() else {
            return Duration::ZERO;
        };
        let signal = match how {
            Stop::Fast => Signal::SIGINT,
            Stop::Immediate => Signal::SIGQUIT,
        };
        let _ = kill(Pid::from_raw(pid as i32), signal);
        self.wait_for_end(Duration::from_secs(120));
        started.elapsed()
    }

    /// A fast stop, then a start.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop(Stop::Fast);
        self.start();
    }

    /// `kill -9` of the postmaster and every process that descends from it, archive commands
    /// included: the machine lost power.
    pub fn kill(&mut self) {
        let Some(mut child) = self.server.take() else {
            return;
        };
        // Its children are orphans once it is dead: list them before.
        let tree = process_tree(child.id());
        kill_tree(child.id());
        let _ = child.wait();
        guard::ended(child.id());
        for pid in tree {
            while self.owns_process(pid) {
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Total loss: [`kill`](Self::kill), then the data directory, the WAL directory and the
    /// tablespaces are deleted.
    pub fn destroy(&mut self) {
        self.kill();
        let others = self.wal.iter().chain(self.tablespaces.iter().map(|t| &t.1));
        for directory in others.chain([&self.data]) {
            remove_tree(directory);
        }
    }

    /// Whether a process that was a child of this server still is that process: its id may
    /// have been given to another since.
    fn owns_process(&self, pid: u32) -> bool {
        std::fs::read_link(format!("/proc/{pid}/cwd"))
            .is_ok_and(|cwd| cwd.starts_with(&self.home) || cwd.starts_with(&self.data))
    }

    /// All that the server ever wrote to its log.
    pub fn log(&self) -> String {
        let log = std::fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Where its log is.
    pub fn log_path(&self) -> PathBuf {
        self.home.join("log")
    }

    fn make_tablespaces(&mut self) {
        if !std::mem::replace(&mut self.tablespaces_made, true) {
            for (name, path) in self.tablespaces.clone() {
                self.sql(&format!(
                    "CREATE TABLESPACE {name} LOCATION '{}'",
                    path.display()
                ));
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(30).collect();
            eprintln!("-- the end of the log of {:?} --", self.name);
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
        self.kill();
    }
}
