//! Running programs: as PostgreSQL's user, in a known environment, never longer than a time
//! limit, and ending only what was started here, by its id.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use seawall_drill::processes::libraries_of;

use crate::guard;
use crate::scratch::{is_root, owner};

/// What a program answered.
#[derive(Debug, Clone)]
pub struct Output {
    /// The exit code; 128 + the signal's number if a signal ended it, as a shell counts.
    pub code: i32,
    /// Standard output: data.
    pub stdout: String,
    /// Standard error: talk.
    pub stderr: String,
    /// How long it ran.
    pub elapsed: Duration,
    command: String,
}

/// A program to run.
#[derive(Debug, Clone)]
pub struct Run {
    program: PathBuf,
    args: Vec<OsString>,
    env: BTreeMap<OsString, OsString>,
    directory: PathBuf,
    as_owner: bool,
    input: Vec<u8>,
    timeout: Duration,
}

/// A program that runs in the background; ended when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    command: String,
    started: Instant,
    timeout: Duration,
    stdout: Arc<Mutex<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    readers: Vec<std::thread::JoinHandle<()>>,
    ended: bool,
}

impl Run {
    /// Runs `program` as [`owner`], from `/`, with an environment of its own, for two minutes
    /// at most.
    pub fn new(program: impl AsRef<Path>) -> Self {
        // What the person who runs the tests has set for Seawall, PostgreSQL or S3 is nothing
        // to the tests.
        let env = ["PATH", "TMPDIR", "RUST_LOG", "RUST_BACKTRACE"]
            .into_iter()
            .filter_map(|name| Some((name.into(), std::env::var_os(name)?)))
            .chain([("LC_ALL".into(), "C.UTF-8".into())])
            .collect();
        Self {
            program: program.as_ref().to_path_buf(),
            args: Vec::new(),
            env,
            directory: "/".into(),
            as_owner: true,
            input: Vec::new(),
            timeout: Duration::from_secs(120),
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, args: I) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env
            .insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    /// Sets its working directory.
    pub fn directory(mut self, directory: impl AsRef<Path>) -> Self {
        self.directory = directory.as_ref().to_path_buf();
        self
    }

    /// Runs it as whoever runs the test, which may be root.
    pub fn as_self(mut self) -> Self {
        self.as_owner = false;
        self
    }

    /// What it reads from standard input.
    pub fn input(mut self, input: impl AsRef<[u8]>) -> Self {
        self.input = input.as_ref().to_vec();
        self
    }

    /// How long it may take before the test fails.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs it to its end. Panics if it cannot be started or exceeds its time.
    #[track_caller]
    pub fn run(self) -> Output {
        self.start().wait()
    }

    /// Starts it in the background.
    #[track_caller]
    pub fn start(mut self) -> Running {
        let input = std::mem::take(&mut self.input);
        let mut command = self.command();
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let text = self.to_string();
        let started = Instant::now();
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {text}: {error}"));
        guard::started(child.id());
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // From a thread: a program may talk a lot before it reads.
        let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let stdout = Arc::new(Mutex::new(Vec::new()));
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let readers = vec![
            collect(child.stdout.take().expect("stdout is piped"), &stdout),
            collect(child.stderr.take().expect("stderr is piped"), &stderr),
            feeder,
        ];
        Running {
            child,
            command: text,
            started,
            timeout: self.timeout,
            stdout,
            stderr,
            readers,
            ended: false,
        }
    }

    /// The same as a [`Command`], for who wants to spawn it otherwise.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .env_clear()
            .envs(&self.env)
            .current_dir(&self.directory);
        if self.as_owner && is_root() {
            // Setting the user as root also drops root's supplementary groups.
            command.uid(owner().uid).gid(owner().gid);
        }
        command
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.program.display())?;
        for arg in &self.args {
            write!(f, " {}", arg.to_string_lossy())?;
        }
        Ok(())
    }
}

fn collect(
    mut from: impl Read + Send + 'static,
    into: &Arc<Mutex<Vec<u8>>>,
) -> std::thread::JoinHandle<()> {
    let into = Arc::clone(into);
    std::thread::spawn(move || {
        let mut buffer = [0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            into.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend_from_slice(&buffer[..n]);
        }
    })
}

fn text(bytes: &Mutex<Vec<u8>>) -> String {
    String::from_utf8_lossy(&bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        text(&self.stdout)
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        text(&self.stderr)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        !self.ended && matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it a signal: `SIGKILL` for a crash, `SIGSTOP` and `SIGCONT` for a machine that
    /// pauses.
    pub fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
        }
    }

    /// Kills it with all its children, and returns what it said.
    #[track_caller]
    pub fn kill(self) -> Output {
        kill_tree(self.child.id());
        self.wait()
    }

    /// Waits for its end. Panics if that exceeds the time limit.
    #[track_caller]
    pub fn wait(mut self) -> Output {
        while self.is_running() {
            if self.started.elapsed() > self.timeout {
                kill_tree(self.child.id());
                panic!(
                    "{} was still running after {:?}\n-- stdout --\n{}\n-- stderr --\n{}",
                    self.command,
                    self.timeout,
                    self.stdout(),
                    self.stderr()
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let elapsed = self.started.elapsed();
        let status = self.child.wait().expect("the program was started here");
        self.forget();
        // A server that it left in the background may hold the pipes: do not wait for that.
        let patience = Instant::now();
        while !self.readers.iter().all(|reader| reader.is_finished())
            && patience.elapsed() < Duration::from_secs(5)
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        Output {
            code: exit_code(status),
            stdout: self.stdout(),
            stderr: self.stderr(),
            elapsed,
            command: self.command.clone(),
        }
    }

    fn forget(&mut self) {
        self.ended = true;
        guard::ended(self.child.id());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            kill_tree(self.child.id());
            let _ = self.child.wait();
            self.forget();
        }
    }
}

impl Output {
    /// Panics unless it exited with 0.
    #[track_caller]
    pub fn success(self) -> Self {
        self.exits_with(0)
    }

    /// Panics unless it exited with `code`.
    #[track_caller]
    pub fn exits_with(self, code: i32) -> Self {
        assert!(
            self.code == code,
            "{} exited with {}, not with {code}\n-- stdout --\n{}\n-- stderr --\n{}",
            self.command,
            self.code,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Panics unless its standard error holds `text`.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(
            self.stderr.contains(text),
            "{} does not say {text:?}\n-- stdout --\n{}\n-- stderr --\n{}",
            self.command,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Panics unless its standard output holds each of `texts`.
    #[track_caller]
    pub fn shows(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(
                self.stdout.contains(text),
                "{} does not show {text:?}\n-- stdout --\n{}\n-- stderr --\n{}",
                self.command,
                self.stdout,
                self.stderr
            );
        }
        self
    }

    /// Its standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| {
            panic!(
                "{} did not print JSON: {error}\n{}",
                self.command, self.stdout
            )
        })
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}

/// The process and all that descend from it, parents first.
pub fn process_tree(root: u32) -> Vec<u32> {
    let tree = seawall_drill::processes::tree(root as i32);
    tree.into_iter().map(|pid| pid as u32).collect()
}

/// `kill -9` for a process that was started here and all that it started: what pulling the
/// plug does. The caller waits for the process itself.
pub fn kill_tree(root: u32) {
    let tree = process_tree(root);
    let mapped = tree.iter().flat_map(|pid| libraries_of(*pid as i32));
    let shared: Vec<PathBuf> = mapped.filter(|file| file.starts_with("/dev/shm")).collect();
    for pid in &tree {
        let _ = kill(Pid::from_raw(*pid as i32), Signal::SIGKILL);
    }
    for file in shared {
        let _ = std::fs::remove_file(file);
    }
    remove_shared_memory_of(&tree);
}

/// A server that is killed leaves a segment of System V shared memory behind as well, of which a
/// machine has 4,096. It goes when the last process that uses it has ended.
fn remove_shared_memory_of(creators: &[u32]) {
    let Ok(listing) = Command::new("ipcs").args(["-m", "-p"]).output() else {
        return;
    };
    for line in String::from_utf8_lossy(&listing.stdout).lines() {
        // Its number, its owner, who made it, who used it last.
        let mut words = line.split_whitespace();
        let (id, creator) = (words.next(), words.nth(1).and_then(|pid| pid.parse().ok()));
        if let (Some(id), Some(creator)) = (id, creator)
            && creators.contains(&creator)
        {
            let _ = Command::new("ipcrm").args(["-m", id]).output();
        }
    }
}

/// Waits until the process ends, and returns the most memory that it ever had, in KiB. What it
/// took in its last moments may be missed.
pub fn peak_memory(running: &mut Running) -> u64 {
    let mut peak = 0;
    while running.is_running() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid()));
        let line = status.ok().and_then(|status| {
            let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        });
        peak = line.unwrap_or(0).max(peak);
        std::thread::sleep(Duration::from_millis(5));
    }
    peak
}

/// Waits until `condition` holds. Panics after `limit`, naming what was waited for.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(
            started.elapsed() < limit,
            "waited {limit:?} in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
