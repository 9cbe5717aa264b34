//! What the daemon shows of itself: written by its loop, read by whoever looks at the metrics or
//! at the page. Nobody who looks can hold up the loop.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::agenda::{Record, RunResult, Waiting};
use super::operation::{Continuous, Job, Task};
use super::state::State;
use crate::status::ClusterStatus;

/// A loop that has not come round for so long hangs.
const ALIVE: Duration = Duration::from_secs(30);

/// What is shown, shared.
#[derive(Clone, Default)]
pub struct Board(Arc<Mutex<Shown>>);

/// What is shown.
#[derive(Clone, Default)]
pub struct Shown {
    /// When the daemon began.
    pub started: Timestamp,
    /// The clusters of the configuration.
    pub clusters: Vec<String>,
    /// What is on the schedule.
    pub jobs: Vec<JobShown>,
    /// What never ends, and what is wrong with it.
    pub continuous: Vec<(String, Continuous, Option<Waiting>)>,
    /// How many runs of each job came to which end since the daemon began.
    pub runs: BTreeMap<(Job, RunResult), u64>,
    /// The last look at each cluster.
    pub statuses: BTreeMap<String, Arc<ClusterStatus>>,
    pub(super) came_round: Option<Instant>,
}

/// A job on the schedule.
#[derive(Clone)]
pub struct JobShown {
    /// What is done for whom.
    pub job: Job,
    /// What is remembered of it.
    pub record: Record,
    /// When it begins next.
    pub next: Option<Timestamp>,
    /// Its first time on the schedule since it was last done, or since the daemon began.
    pub due: Option<Timestamp>,
    /// Its line, and the zone that this is meant in.
    pub line: String,
    /// Whether it runs.
    pub runs: bool,
}

impl Board {
    /// An empty one, of a daemon that begins now.
    pub fn new() -> Self {
        let board = Self::default();
        board.lock().started = Timestamp::now();
        board
    }

    /// A copy of what is shown.
    pub fn shown(&self) -> Shown {
        self.lock().clone()
    }

    /// What the daemon does, in a few words.
    pub(super) fn in_words(&self) -> String {
        self.lock().in_words()
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows what the loop knows; that it came round as well.
    pub(super) fn show(
        &self,
        clusters: impl Iterator<Item = String>,
        tasks: &[Task],
        state: &State,
        running: &BTreeSet<Job>,
        continuous: impl Iterator<Item = (String, Continuous)>,
    ) {
        let now = Timestamp::now();
        let started = self.lock().started;
        let jobs = tasks.iter().map(|task| {
            let record = state.jobs.get(&task.job.key()).cloned().unwrap_or_default();
            JobShown {
                next: record.next(task, now, 1).first().copied(),
                due: {
                    let since = record.done.unwrap_or(started);
                    let due = task.schedule.next_after(since - task.delay);
                    due.map(|due| due + task.delay)
                },
                line: format!("{} ({})", task.schedule.line(), task.schedule.zone_name()),
                runs: running.contains(&task.job),
                job: task.job.clone(),
                record,
            }
        });
        let continuous = continuous.map(|(cluster, kind)| {
            let trouble = state.continuous.get(&format!("{cluster}/{kind}")).cloned();
            (cluster, kind, trouble)
        });
        let (jobs, continuous) = (jobs.collect(), continuous.collect());
        let mut shown = self.lock();
        shown.clusters = clusters.collect();
        shown.jobs = jobs;
        shown.continuous = continuous;
        let Shown {
            statuses, clusters, ..
        } = &mut *shown;
        statuses.retain(|name, _| clusters.contains(name));
        shown.came_round = Some(Instant::now());
    }

    /// Counts a run.
    pub(super) fn count(&self, job: &Job, result: RunResult) {
        *self.lock().runs.entry((job.clone(), result)).or_default() += 1;
    }

    /// Shows a look at a cluster, as `seawall status --follow` prints it.
    pub(super) fn show_status(&self, line: &str) {
        match serde_json::from_str::<ClusterStatus>(line) {
            Ok(status) => {
                let name = status.cluster.clone();
                self.lock().statuses.insert(name, Arc::new(status));
            }
            Err(error) => tracing::warn!("a look at a cluster cannot be read: {error}"),
        }
    }
}

impl Shown {
    /// Why the daemon does not work, if it does not.
    pub fn ill(&self) -> Option<String> {
        match self.came_round {
            Some(at) if at.elapsed() < ALIVE => None,
            Some(at) => Some(format!(
                "its loop has not come round for {} s",
                at.elapsed().as_secs()
            )),
            None => Some("it begins".into()),
        }
    }

    /// The clusters that were not looked at yet.
    pub fn unseen(&self) -> Vec<&str> {
        let clusters = self.clusters.iter().map(String::as_str);
        clusters
            .filter(|name| !self.statuses.contains_key(*name))
            .collect()
    }

    /// What it does, in a few words.
    pub fn in_words(&self) -> String {
        let running: Vec<&Job> = self
            .jobs
            .iter()
            .filter(|j| j.runs)
            .map(|j| &j.job)
            .collect();
        let mut text = match running.as_slice() {
            [job] => format!("running: {job}"),
            [] => {
                let next = self
                    .jobs
                    .iter()
                    .filter_map(|job| Some((job.next?, &job.job)));
                match next.min() {
                    Some((time, job)) => format!("next: {job} at {time:.0}"),
                    None => "nothing on the schedule".into(),
                }
            }
            jobs => format!("running: {} jobs", jobs.len()),
        };
        let failing = self.jobs.iter().filter(|job| job.record.failing.is_some());
        let down = self
            .continuous
            .iter()
            .filter(|(.., trouble)| trouble.is_some());
        let waiting = self.jobs.iter().filter(|job| job.record.waiting.is_some());
        for (count, what) in [
            (failing.count() + down.count(), "failing"),
            (waiting.count(), "waiting"),
        ] {
            if count > 0 {
                text += &format!("; {count} {what}");
            }
        }
        text
    }
}
