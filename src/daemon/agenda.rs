//! Whether a job is due: a pure function of its schedule, of what is remembered of it, and of
//! the wall clock. A clock that jumps is met here, too.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::operation::Task;
use crate::config::LONGEST_RETRY;
use crate::error::Exit;
use crate::time::signed;

/// Setting the clock back by more than this is no correction: what was done lies in a future
/// that was none.
pub(super) const CORRECTION: SignedDuration = SignedDuration::from_hours(1);

/// What is remembered of a job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The line and its zone; what was due by another line is not made up.
    pub line: String,
    /// The newest time on the schedule that was dealt with, whatever came of it. None: it is
    /// not known what was done before.
    #[serde(default)]
    pub handled: Option<Timestamp>,
    /// The last run that ended by itself.
    #[serde(default)]
    pub last: Option<Run>,
    /// When it was last done, by this daemon or by somebody else.
    #[serde(default)]
    pub done: Option<Timestamp>,
    /// Since when it fails.
    #[serde(default)]
    pub failing: Option<Failing>,
    /// What it waits for.
    #[serde(default)]
    pub waiting: Option<Waiting>,
    /// Since when it runs. Of a daemon that has ended it means nothing.
    #[serde(default)]
    pub running: Option<Timestamp>,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The time on the schedule that it was for.
    pub due: Timestamp,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// What came of it.
    pub result: RunResult,
    /// Its exit code; none where a signal ended it or it could not be started.
    pub exit: Option<i32>,
    /// What it said at its end, in one line.
    pub said: String,
}

/// What came of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunResult {
    /// Done (exit code 0).
    Done,
    /// Done, and an objective was missed or something was found (exit code 3). It is not
    /// repeated before its next time.
    Finding,
    /// Failed.
    Failed,
    /// Somebody else had done it.
    Elsewhere,
}

/// A row of failures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failing {
    /// The time on the schedule that is made up for.
    pub due: Timestamp,
    /// When the first failed.
    pub since: Timestamp,
    /// How many failed.
    pub count: u32,
    /// How many of them for the same time on the schedule.
    #[serde(default)]
    pub row: u32,
    /// When it is tried again; none: not before the configuration is read again, or its next
    /// time.
    pub retry_at: Option<Timestamp>,
}

/// What a job waits for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    /// Since when.
    pub since: Timestamp,
    /// For what.
    pub why: String,
}

impl Record {
    /// Brings what is remembered in line with the task, before anything is decided.
    pub fn prepare(&mut self, task: &Task, now: Timestamp) {
        let line = format!("{} {}", task.schedule.line(), task.schedule.zone_name());
        if self.line != line {
            // Whether there is a base backup since it was last due by this line, the repository
            // can tell: one that was due, waited or failed must not be lost with the old line.
            // Of the others nobody knows: they begin with their next time, and what fails is
            // tried again.
            self.handled = (!task.job.operation.is_backup()).then_some(now);
            self.waiting = None;
            self.line = line;
        }
        if self
            .handled
            .is_some_and(|handled| handled > now + CORRECTION)
        {
            tracing::warn!("{}: the clock was set back; its times count anew", task.job);
            self.handled = Some(now);
        }
        if let Some(failing) = &mut self.failing {
            let latest = now + signed(LONGEST_RETRY);
            if failing.due > now + CORRECTION {
                failing.due = now;
            }
            failing.retry_at = failing.retry_at.map(|retry| retry.min(latest));
        }
    }

    /// The time on the schedule that the job is to be run for now. However many were missed,
    /// it is the newest.
    pub fn due(&self, task: &Task, now: Timestamp) -> Option<Timestamp> {
        let newest = task.schedule.last_until(now - task.delay);
        let missed = newest.filter(|newest| self.handled.is_none_or(|handled| *newest > handled));
        missed.or_else(|| {
            let failing = self.failing.as_ref()?;
            (failing.retry_at? <= now).then_some(failing.due)
        })
    }

    /// The next `count` times at which it begins.
    pub fn next(&self, task: &Task, now: Timestamp, count: usize) -> Vec<Timestamp> {
        let mut times = Vec::new();
        let retry = self.failing.as_ref().and_then(|failing| failing.retry_at);
        if self.due(task, now).is_some() {
            times.push(now);
        } else {
            times.extend(retry);
        }
        let mut at = now - task.delay;
        while times.len() < count {
            let Some(next) = task.schedule.next_after(at) else {
                break;
            };
            times.push(next + task.delay);
            at = next;
        }
        times.sort();
        times.truncate(count);
        times
    }

    /// Notes a run that has ended by itself.
    pub fn ended(&mut self, run: Run, retry_after: Duration) {
        self.handled = self.handled.max(Some(run.due));
        self.waiting = None;
        self.running = None;
        self.failing = match run.result {
            RunResult::Failed => {
                let before = self.failing.take();
                let count = before.as_ref().map_or(0, |failing| failing.count) + 1;
                // Its next time on the schedule is a new beginning.
                let row = match &before {
                    Some(failing) if failing.due == run.due => failing.row.saturating_add(1),
                    _ => 1,
                };
                let wait = retry_after.saturating_mul(1 << row.saturating_sub(1).min(20));
                let permanent = run.exit == Some(Exit::Usage as i32);
                Some(Failing {
                    due: run.due,
                    since: before.map_or(run.ended, |failing| failing.since),
                    count,
                    row,
                    retry_at: (!permanent).then(|| run.ended + signed(wait.min(LONGEST_RETRY))),
                })
            }
            _ => None,
        };
        if matches!(run.result, RunResult::Done | RunResult::Elsewhere) {
            self.done = Some(run.ended);
        }
        self.last = Some(run);
    }

    /// Another configuration may mend what the old one broke.
    pub fn reloaded(&mut self, now: Timestamp) {
        if let Some(failing) = &mut self.failing {
            failing.retry_at.get_or_insert(now);
        }
    }
}

/// What is due now, the longest waiting first: what would otherwise always come behind
/// something else, as `expire` behind a copy that takes longer than its interval, has its turn.
pub fn due_now<'a>(
    tasks: &'a [Task],
    records: &mut BTreeMap<String, Record>,
    now: Timestamp,
) -> Vec<(Timestamp, &'a Task)> {
    let mut found = Vec::new();
    for task in tasks {
        let record = records.entry(task.job.key()).or_default();
        record.prepare(task, now);
        found.extend(record.due(task, now).map(|due| (due, task)));
    }
    found.sort_by_key(|(due, _)| *due);
    found
}

#[cfg(test)]
#[path = "agenda_tests.rs"]
mod tests;
