//! The daemon: backups, copies, expiry and drills of many clusters on their schedule, each as
//! a command of its own (`seawall backup`, …). So one that fails, hangs or panics never takes
//! another down, and clusters may belong to different users.
//!
//! One loop looks at the wall clock every second and decides ([`agenda`]); what it starts it
//! never waits for. Nothing that may block, a store, a server or a disk, is touched by the
//! loop itself, so its sign of life to the service manager means something.

mod accepted;
pub mod agenda;
mod attempt;
pub mod board;
pub mod child;
mod follow;
mod http;
mod look;
mod metrics;
mod notify;
pub mod operation;
mod page;
mod saver;
pub mod state;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

pub use accepted::Accepted;

use crate::error::{Error, Exit, Result};
use accepted::Recipe;
use agenda::{Run, RunResult, Waiting};
use attempt::{Attempt, Outcome};
use board::Board;
use follow::{Followers, News};
use notify::Notify;
use operation::{Continuous, Job, Task};
use saver::Saver;
use state::State;

/// How often the wall clock is looked at: it may jump, and machines sleep.
const TICK: Duration = Duration::from_secs(1);

/// The first wait before what is away or busy is looked at again, and the longest.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// How the daemon is to be run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Our own program, for the commands.
    pub program: PathBuf,
    /// The `--log-level` of the commands.
    pub log_level: String,
    /// This host's name, for the jitter.
    pub host: String,
}

/// When something that waits is looked at again.
struct Pause {
    until: Instant,
    next: Duration,
}

struct Daemon {
    options: Arc<Options>,
    accepted: Arc<Accepted>,
    tasks: Vec<Task>,
    state: State,
    saver: Saver,
    pauses: BTreeMap<Job, Pause>,
    running: BTreeSet<Job>,
    attempts: JoinSet<Outcome>,
    attempted: HashMap<tokio::task::Id, (Job, Timestamp)>,
    /// Commands that have begun are told here.
    begun: mpsc::UnboundedSender<Job>,
    followers: Followers,
    /// The configuration, being read again, and whether that was asked for once more since.
    reading: Option<JoinHandle<Result<Accepted>>>,
    read_again: bool,
    stop: watch::Sender<bool>,
    notify: Notify,
    board: Board,
    server: http::Server,
    /// Looks at clusters are told here, each as a line of JSON.
    looks: mpsc::UnboundedSender<String>,
}

/// Runs everything on its schedule until SIGTERM or SIGINT; then what runs is told to give up,
/// and has `daemon.stop_timeout` for it. SIGHUP reads the configuration again, and keeps the
/// old one where the new one is wrong.
///
/// The caller holds the lock on the state directory.
///
/// # Errors
/// It cannot begin: the state cannot be read, or the system gives no signals.
pub async fn run(accepted: Accepted, options: Options) -> Result<()> {
    let no_signals = |error| Error::failed("cannot listen to signals").because(error);
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(no_signals)?;
    let directory = &accepted.config.daemon.state_directory;
    let mut state = State::take(directory)?;
    for record in state.jobs.values_mut() {
        record.running = None;
    }
    let saver = Saver::new(directory.clone(), &state);
    let (news, mut heard) = mpsc::unbounded_channel();
    let (begun, mut began) = mpsc::unbounded_channel();
    let (looks, mut looked) = mpsc::unbounded_channel();
    let board = Board::new();
    let mut daemon = Daemon {
        tasks: operation::tasks(&accepted.config, &options.host)?,
        options: Arc::new(options),
        accepted: Arc::new(accepted),
        state,
        saver,
        pauses: BTreeMap::new(),
        running: BTreeSet::new(),
        attempts: JoinSet::new(),
        attempted: HashMap::new(),
        begun,
        followers: Followers::new(news),
        reading: None,
        read_again: false,
        stop: watch::Sender::new(false),
        notify: Notify::new(),
        server: http::Server::new(board.clone()),
        board,
        looks,
    };
    daemon.follow()?;
    daemon.begin();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => daemon.tick(),
            Some(done) = daemon.attempts.join_next_with_id() => daemon.attempt_ended(done),
            Some(news) = heard.recv() => daemon.heard(news),
            Some(job) = began.recv() => daemon.began(&job),
            Some(line) = looked.recv() => daemon.board.show_status(&line),
            _ = hangup.recv() => daemon.reload(),
            read = finished(&mut daemon.reading) => daemon.reloaded(read),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    daemon.end().await;
    Ok(())
}

impl Daemon {
    fn begin(&mut self) {
        tracing::info!(
            "serving {} with {} jobs on a schedule and {} that never end",
            counted(self.accepted.config.cluster.len(), "cluster"),
            self.tasks.len(),
            self.followers.count()
        );
        self.notify.ready();
    }

    fn tick(&mut self) {
        let now = Timestamp::now();
        for (due, task) in agenda::due_now(&self.tasks, &mut self.state.jobs, now) {
            let job = &task.job;
            let paused = self
                .pauses
                .get(job)
                .is_some_and(|p| p.until > Instant::now());
            if paused || !job.may_begin(&self.running) {
                continue;
            }
            let attempt = Attempt {
                job: job.clone(),
                due,
                recipe: self.recipe(job.words(&self.accepted.config), job.to_string()),
                stop: self.stop.subscribe(),
                begun: self.begun.clone(),
            };
            let id = self.attempts.spawn(attempt.run()).id();
            self.attempted.insert(id, (job.clone(), due));
            self.running.insert(job.clone());
        }
        self.saver.save(&self.state);
        self.notify.alive();
        self.board.show(
            self.accepted.config.cluster.keys().cloned(),
            &self.tasks,
            &self.state,
            &self.running,
            self.followers.names(),
        );
        self.notify.status(self.board.in_words());
    }

    fn attempt_ended(&mut self, done: Result<(tokio::task::Id, Outcome), tokio::task::JoinError>) {
        let (id, outcome) = match done {
            Ok((id, outcome)) => (id, outcome),
            Err(error) => (error.id(), Outcome::Broken(format!("it broke: {error}"))),
        };
        let Some((job, due)) = self.attempted.remove(&id) else {
            return;
        };
        self.running.remove(&job);
        let now = Timestamp::now();
        if let Some(record) = self.state.jobs.get_mut(&job.key()) {
            record.running = None;
        }
        let run = match outcome {
            Outcome::GivenUp => return,
            // To be done again after the next start.
            Outcome::Ran(_, ended) if ended.given_up => return,
            Outcome::Waits(why, away) => return self.waits(&job, now, why, away),
            Outcome::Elsewhere(what) => {
                tracing::info!("{job}: nothing to do for {due}: {what}");
                run_of(due, now, now, RunResult::Elsewhere, None, what)
            }
            Outcome::Broken(why) => run_of(due, now, now, RunResult::Failed, None, why),
            Outcome::Ran(started, ended) => {
                let result = match ended.exit {
                    Some(0) => RunResult::Done,
                    Some(code) if code == Exit::Missed as i32 => RunResult::Finding,
                    _ => RunResult::Failed,
                };
                run_of(due, started, now, result, ended.exit, ended.said)
            }
        };
        self.note(&job, run);
    }

    /// Notes a run, and says of failures what is new.
    fn note(&mut self, job: &Job, run: Run) {
        let record = self.state.jobs.entry(job.key()).or_default();
        let before = record.failing.clone();
        let repeated = record
            .last
            .as_ref()
            .is_some_and(|last| attempt::is_the_same(&last.said, &run.said));
        let (result, said) = (run.result, run.said.clone());
        self.pauses.remove(job);
        self.board.count(job, run.result);
        record.ended(run, self.accepted.config.daemon.retry_after.0);
        match (result, before, &record.failing) {
            (RunResult::Failed, before, Some(failing)) => {
                let again = match failing.retry_at {
                    Some(time) => format!("next attempt at {time:.0}"),
                    None => "not tried again before its next time or a reload".into(),
                };
                match before.is_some() && repeated {
                    true => tracing::info!(
                        "{job}: still fails, {} since {:.0}; {again}",
                        counted(failing.count as usize, "time"),
                        failing.since
                    ),
                    false => tracing::error!("{job}: failed: {said}; {again}"),
                }
            }
            (_, Some(before), _) => tracing::info!(
                "{job}: works again, after {}: {said}",
                counted(before.count as usize, "failure")
            ),
            (RunResult::Finding, ..) => tracing::warn!("{job}: ended with a finding: {said}"),
            (RunResult::Elsewhere, ..) => {}
            _ => tracing::info!("{job}: done: {said}"),
        }
    }

    /// Something is away or somebody else is at it: said once, and looked at again.
    fn waits(&mut self, job: &Job, now: Timestamp, why: String, away: bool) {
        let record = self.state.jobs.entry(job.key()).or_default();
        if record.waiting.is_none() {
            match away {
                true => tracing::warn!("{job}: waits until this is over: {why}"),
                false => tracing::info!("{job}: waits: {why}"),
            }
        }
        let since = record.waiting.as_ref().map_or(now, |waiting| waiting.since);
        record.waiting = Some(Waiting { since, why });
        let wait = self
            .pauses
            .get(job)
            .map_or(LOOK_AGAIN.0, |pause| pause.next);
        let pause = Pause {
            until: Instant::now() + wait,
            next: (wait * 2).min(LOOK_AGAIN.1),
        };
        self.pauses.insert(job.clone(), pause);
    }

    fn began(&mut self, job: &Job) {
        // The message may come after the end of a short run.
        if self.running.contains(job) {
            let record = self.state.jobs.entry(job.key()).or_default();
            record.running = Some(Timestamp::now());
            if let Some(waiting) = record.waiting.take() {
                tracing::info!("{job}: went on; it had waited since {:.0}", waiting.since);
            }
        }
    }

    fn heard(&mut self, (name, trouble): News) {
        match trouble {
            None => drop(self.state.continuous.remove(&name)),
            Some(why) => {
                let since = Timestamp::now();
                let entry = self.state.continuous.entry(name);
                entry
                    .or_insert(Waiting {
                        since,
                        why: String::new(),
                    })
                    .why = why;
            }
        }
    }

    /// Begins to read the configuration again.
    fn reload(&mut self) {
        self.notify.reloading();
        if self.reading.is_some() {
            // What was read of it may be of before.
            self.read_again = true;
            return;
        }
        let path = self.accepted.config.path.clone();
        // A disk may hang, and then nothing else must.
        self.reading = Some(tokio::task::spawn_blocking(move || {
            Accepted::load(Some(&path))
        }));
    }

    /// Takes the configuration that was read. What runs goes on; what never ends is started
    /// anew, for the secrets that it holds may have changed though the configuration has not.
    fn reloaded(&mut self, read: Result<Accepted>) {
        self.reading = None;
        if std::mem::take(&mut self.read_again) {
            return self.reload();
        }
        match read.and_then(|new| Ok((operation::tasks(&new.config, &self.options.host)?, new))) {
            Err(error) => tracing::error!(
                "the configuration stays as it was, for the new one is wrong: {}",
                error.one_line()
            ),
            Ok((tasks, new)) => {
                let directory = &new.config.daemon.state_directory;
                if *directory != self.accepted.config.daemon.state_directory {
                    tracing::warn!(
                        "daemon.state_directory {} counts from the next start on",
                        directory.display()
                    );
                }
                self.tasks = tasks;
                self.accepted = Arc::new(new);
                self.pauses.clear();
                let now = Timestamp::now();
                for task in &self.tasks {
                    // Another line counts from this moment on.
                    let record = self.state.jobs.entry(task.job.key()).or_default();
                    record.prepare(task, now);
                    record.reloaded(now);
                }
                if let Err(error) = self.follow() {
                    tracing::error!("{}", error.one_line());
                }
                tracing::info!("the configuration was read again");
            }
        }
        self.notify.ready();
    }

    /// Starts what never ends, by the configuration as it is.
    fn follow(&mut self) -> Result<()> {
        self.state.continuous.clear();
        let wanted = operation::continuous(&self.accepted.config)?.into_iter();
        let wanted = wanted.map(|(cluster, kind)| {
            let mut recipe = self.recipe(kind.words(&cluster), format!("{cluster} {kind}"));
            if kind == Continuous::Status {
                recipe.lines = Some(self.looks.clone());
            }
            ((cluster, kind), recipe)
        });
        let wanted = wanted.collect();
        self.followers.replace(wanted);
        self.server.serve(&self.accepted.config.http);
        Ok(())
    }

    fn recipe(&self, words: Vec<String>, name: String) -> Recipe {
        Recipe {
            accepted: Arc::clone(&self.accepted),
            options: Arc::clone(&self.options),
            words,
            name,
            lines: None,
        }
    }

    async fn end(&mut self) {
        // Its children's time, and a little for their last words and to release claims.
        let limit = self.accepted.config.daemon.stop_timeout.0 + Duration::from_secs(10);
        self.notify.stopping(limit + Duration::from_secs(20));
        tracing::info!(
            "stopping: {} told to give up",
            counted(self.running.len(), "job")
        );
        let _ = self.stop.send(true);
        let followers = self.followers.end();
        let mut ended = Vec::new();
        let attempts = async {
            while let Some(done) = self.attempts.join_next_with_id().await {
                ended.push(done);
            }
        };
        // What hangs in the kernel outlives SIGKILL, and must not keep us.
        let all = async { tokio::join!(followers, attempts) };
        let late = tokio::time::timeout(limit, all).await.is_err();
        for done in ended {
            self.attempt_ended(done);
        }
        if late {
            let left: Vec<_> = self.running.iter().map(Job::to_string).collect();
            tracing::warn!(
                "something does not end, though it was killed, and is left: {}",
                match left.is_empty() {
                    true => "what never ends by itself".to_owned(),
                    false => left.join(", "),
                }
            );
        }
        self.saver.save_now(&self.state).await;
        tracing::info!("stopped");
    }
}

/// Waits for what is being read; for ever where nothing is.
async fn finished(reading: &mut Option<JoinHandle<Result<Accepted>>>) -> Result<Accepted> {
    match reading {
        Some(reading) => reading
            .await
            .unwrap_or_else(|error| Err(Error::failed(error.to_string()))),
        None => std::future::pending().await,
    }
}

fn run_of(
    due: Timestamp,
    started: Timestamp,
    ended: Timestamp,
    result: RunResult,
    exit: Option<i32>,
    said: String,
) -> Run {
    Run {
        due,
        started,
        ended,
        result,
        exit,
        said,
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
