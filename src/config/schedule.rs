//! When the daemon does what.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::HumanDuration;
use crate::schedule::{self, Schedule};

/// The word in place of a line for what never pauses.
const CONTINUOUS: &str = "continuous";

/// The longest wait between two attempts at what fails.
pub(crate) const LONGEST_RETRY: Duration = Duration::from_secs(3600);

/// When the daemon does what, as crontab(5) lines. What has no line is not done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// Full base backups.
    pub full: Option<String>,
    /// Incremental base backups.
    pub incremental: Option<String>,
    /// Copies to the repositories that have `copy_from`: a crontab line, or `continuous`.
    /// Default: `continuous`.
    pub copy: Option<String>,
    /// The deletion of what no rule keeps.
    pub expire: Option<String>,
    /// Drills.
    pub drill: Option<String>,
    /// The zone in which the lines are meant, such as `Europe/Berlin`. Default: UTC.
    pub timezone: Option<String>,
    /// Each run begins up to so much later, by an amount that depends on host and cluster: a
    /// fleet does not begin at once.
    pub jitter: Option<HumanDuration>,
}

/// The lines of a [`ScheduleConfig`], read.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduleLines {
    /// Full base backups.
    pub full: Option<Schedule>,
    /// Incremental base backups.
    pub incremental: Option<Schedule>,
    /// Copies; none: continuously.
    pub copy: Option<Schedule>,
    /// The deletion of what no rule keeps.
    pub expire: Option<Schedule>,
    /// Drills.
    pub drill: Option<Schedule>,
    /// The longest that a run is put off.
    pub jitter: Duration,
}

impl ScheduleConfig {
    /// Reads the lines.
    ///
    /// # Errors
    /// The first field that is wrong, and why.
    pub fn lines(&self) -> Result<ScheduleLines, String> {
        let zone = match &self.timezone {
            None => jiff::tz::TimeZone::UTC,
            Some(name) => schedule::zone(name).map_err(|why| format!("timezone: {why}"))?,
        };
        let read = |field: &str, line: &Option<String>| {
            line.as_ref()
                .map(|line| Schedule::parse(line, &zone).map_err(|why| format!("{field}: {why}")))
                .transpose()
        };
        let copy = self.copy.clone().filter(|line| line.trim() != CONTINUOUS);
        let jitter = self.jitter.map_or(Duration::ZERO, |jitter| jitter.0);
        if jitter > Duration::from_secs(86_400) {
            return Err("jitter: it may be a day at most".into());
        }
        Ok(ScheduleLines {
            full: read("full", &self.full)?,
            incremental: read("incremental", &self.incremental)?,
            copy: read("copy", &copy)?,
            expire: read("expire", &self.expire)?,
            drill: read("drill", &self.drill)?,
            jitter,
        })
    }
}

/// Settings of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DaemonConfig {
    /// Where it remembers what it did when. One daemon at a time uses it.
    pub state_directory: PathBuf,
    /// How long what runs may take to give up when the daemon is stopped.
    pub stop_timeout: HumanDuration,
    /// How long after a failure the same is tried again; twice as long after each further
    /// one, up to an hour, until its next time on the schedule.
    pub retry_after: HumanDuration,
    /// How often each cluster is looked at, for the metrics and the status page.
    pub look_every: HumanDuration,
}

impl Default for DaemonConfig {
    fn default() -> Self {
        Self {
            state_directory: "/var/lib/seawall".into(),
            stop_timeout: HumanDuration::from_secs(60),
            retry_after: HumanDuration::from_secs(60),
            look_every: HumanDuration::from_secs(60),
        }
    }
}

impl DaemonConfig {
    pub(super) fn validate(&self) -> Result<(), String> {
        if !self.state_directory.is_absolute() {
            return Err("daemon.state_directory must be an absolute path".into());
        }
        if self.retry_after.0 < Duration::from_secs(1) {
            return Err("daemon.retry_after must be one second at least".into());
        }
        if self.retry_after.0 > LONGEST_RETRY {
            return Err("daemon.retry_after must be one hour at most".into());
        }
        if self.look_every.0 < Duration::from_secs(1) {
            return Err("daemon.look_every must be one second at least".into());
        }
        // Alarms take what is older for stale.
        if self.look_every.0 > Duration::from_secs(300) {
            return Err("daemon.look_every must be five minutes at most".into());
        }
        Ok(())
    }
}

/// A tiny message in the WAL, so that the age of the newest recoverable moment is known also
/// on an idle server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeartbeatConfig {
    /// How often. Default: not at all, and no segment is switched either.
    pub interval: Option<HumanDuration>,
    /// Segments are switched for `objectives.rpo` at most so often: each switch costs a whole
    /// segment. Default: one minute.
    pub switch_floor: Option<HumanDuration>,
}

impl HeartbeatConfig {
    /// The least time between two switches of segments.
    pub fn floor(&self) -> Duration {
        self.switch_floor
            .map_or(Duration::from_secs(60), |floor| floor.0)
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        let second = Duration::from_secs(1);
        for (name, value) in [
            ("interval", self.interval),
            ("switch_floor", self.switch_floor),
        ] {
            if value.is_some_and(|value| value.0 < second) {
                return Err(format!("heartbeat.{name} must be one second at least"));
            }
        }
        Ok(())
    }
}
