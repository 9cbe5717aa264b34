//! What the daemon does: the operations of a schedule, and how each is a command of its own.
//!
//! **What must not overlap.** Of one cluster, never two runs of the same operation. `expire`
//! waits for a base backup or a scheduled copy of its cluster: not for safety, for that
//! leases and tombstones are there, but since it decides by what is finished. An incremental
//! backup waits for a full one of its cluster, and is then taken care of. Nothing waits for
//! `expire`. Drills take a host's memory and disk, so there is one at a time on a host; they
//! may run beside everything else, and so may continuous copies and heartbeats.

use std::collections::BTreeSet;
use std::fmt;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::config::{Config, Listen};
use crate::error::Result;
use crate::schedule::Schedule;

/// What a schedule can ask for, by its key in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// A full base backup into the first repository that is no copy.
    Full,
    /// An incremental one, there.
    Incremental,
    /// What the copies lack.
    Copy,
    /// The deletion of what no rule keeps.
    Expire,
    /// A drill from the first repository that is no copy.
    Drill,
}

/// An operation of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Job {
    /// The cluster's name.
    pub cluster: String,
    /// What is done.
    pub operation: Operation,
}

/// A job with its times.
#[derive(Debug, Clone)]
pub struct Task {
    /// What is done for whom.
    pub job: Job,
    /// When.
    pub schedule: Schedule,
    /// How much later than the schedule says: this host's part of the jitter.
    pub delay: SignedDuration,
}

/// What never ends: a command that the daemon starts again when it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Continuous {
    /// Copies as things arrive.
    Copy,
    /// Messages in the WAL, and switches of segments.
    Heartbeat,
    /// Looks at the server and the repositories, for the metrics and the status page.
    Status,
}

impl Operation {
    /// Whether it takes a base backup.
    pub fn is_backup(self) -> bool {
        matches!(self, Self::Full | Self::Incremental)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Incremental => "incremental",
            Self::Copy => "copy",
            Self::Expire => "expire",
            Self::Drill => "drill",
        })
    }
}

impl fmt::Display for Continuous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Copy => "copy",
            Self::Heartbeat => "heartbeat",
            Self::Status => "status",
        })
    }
}

/// `main full`, as it stands before each line of its log.
impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.cluster, self.operation)
    }
}

impl Job {
    /// Its name in the state file.
    pub fn key(&self) -> String {
        format!("{}/{}", self.cluster, self.operation)
    }

    /// The repository that it is about, where it is about one: the first that is no copy.
    pub fn repository(&self, config: &Config) -> Option<String> {
        let one = self.operation.is_backup() || self.operation == Operation::Drill;
        let near = config.push_targets().next().filter(|_| one);
        near.map(|repository| repository.name.clone())
    }

    /// The words of its command, but for the configuration.
    pub fn words(&self, config: &Config) -> Vec<String> {
        let verb = match self.operation {
            Operation::Full | Operation::Incremental => "backup",
            Operation::Copy => "copy",
            Operation::Expire => "expire",
            Operation::Drill => "drill",
        };
        let mut words = vec![verb.to_owned(), "--cluster".into(), self.cluster.clone()];
        if let Some(repository) = self.repository(config) {
            words.extend(["--repository".to_owned(), repository]);
        }
        if self.operation == Operation::Incremental {
            words.extend(["--kind".to_owned(), "incremental".to_owned()]);
        }
        if self.operation == Operation::Drill {
            // For the report.
            words.extend(["--trigger".to_owned(), "the schedule".to_owned()]);
        }
        words
    }

    /// Whether it may begin while `running` run; see the head of this file.
    pub fn may_begin(&self, running: &BTreeSet<Job>) -> bool {
        !running.contains(self)
            && running.iter().all(|other| match self.operation {
                Operation::Drill => other.operation != Operation::Drill,
                Operation::Expire => {
                    other.cluster != self.cluster
                        || !(other.operation.is_backup() || other.operation == Operation::Copy)
                }
                // What is due at once with a full one is done with that.
                Operation::Incremental => {
                    other.cluster != self.cluster || other.operation != Operation::Full
                }
                Operation::Full | Operation::Copy => true,
            })
    }
}

impl Continuous {
    /// The words of its command, but for the configuration.
    pub fn words(self, cluster: &str) -> Vec<String> {
        [&self.to_string(), "--follow", "--cluster", cluster]
            .map(String::from)
            .to_vec()
    }
}

/// All that has times, for all clusters. `host` and the names decide how long each is put off.
pub fn tasks(config: &Config, host: &str) -> Result<Vec<Task>> {
    let mut tasks = Vec::new();
    for (name, cluster) in &config.cluster {
        let lines = config.schedule_of(cluster)?;
        let copies = config.repository.iter().any(|r| r.copy_from.is_some());
        let scheduled = [
            (Operation::Full, lines.full),
            (Operation::Incremental, lines.incremental),
            (Operation::Copy, lines.copy.filter(|_| copies)),
            (Operation::Expire, lines.expire),
            (Operation::Drill, lines.drill),
        ];
        for (operation, schedule) in scheduled {
            let Some(schedule) = schedule else { continue };
            let job = Job {
                cluster: name.clone(),
                operation,
            };
            let digest = blake3::hash(format!("{host}/{}", job.key()).as_bytes());
            let number = digest.as_bytes()[..7].iter();
            let number = number.fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte));
            let delay = number % (lines.jitter.as_secs() + 1);
            tasks.push(Task {
                job,
                schedule,
                delay: SignedDuration::from_secs(delay as i64),
            });
        }
    }
    Ok(tasks)
}

/// All that never ends, for all clusters.
pub fn continuous(config: &Config) -> Result<Vec<(String, Continuous)>> {
    let mut found = Vec::new();
    for (name, cluster) in &config.cluster {
        let copies = config.repository.iter().any(|r| r.copy_from.is_some());
        if copies && config.schedule_of(cluster)?.copy.is_none() {
            found.push((name.clone(), Continuous::Copy));
        }
        if config.heartbeat.interval.is_some() {
            found.push((name.clone(), Continuous::Heartbeat));
        }
        if config.http.listen != Listen::Off {
            found.push((name.clone(), Continuous::Status));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        [cluster.main]
        data_directory = "/main"
        [cluster.other]
        data_directory = "/other"
        [cluster.other.schedule]
        full = "@daily"
        copy = "@hourly"
        [[repository]]
        name = "far"
        url = "file:///far"
        copy_from = "near"
        [[repository]]
        name = "near"
        url = "file:///near"
        [schedule]
        full = "@weekly"
        drill = "@daily"
        expire = "@daily"
        incremental = "@hourly"
        jitter = "1h"
        [heartbeat]
        interval = "1m"
    "#;

    fn job(cluster: &str, operation: Operation) -> Job {
        Job {
            cluster: cluster.into(),
            operation,
        }
    }

    #[test]
    fn each_cluster_has_the_jobs_of_its_schedule_and_backups_go_where_wal_is_pushed() {
        let config = Config::parse(TEXT, "/x.toml".into()).unwrap();
        let jobs: Vec<_> = tasks(&config, "host").unwrap();
        let names: Vec<_> = jobs.iter().map(|task| task.job.to_string()).collect();
        assert_eq!(
            names,
            [
                "main full",
                "main incremental",
                "main expire",
                "main drill",
                "other full",
                "other copy"
            ]
        );
        let words = job("main", Operation::Full).words(&config);
        assert_eq!(
            words,
            ["backup", "--cluster", "main", "--repository", "near"]
        );
        let words = job("main", Operation::Incremental).words(&config);
        assert_eq!(
            words[3..],
            ["--repository", "near", "--kind", "incremental"]
        );
        let never_ends = continuous(&config).unwrap();
        assert_eq!(
            never_ends,
            [
                ("main".to_owned(), Continuous::Copy),
                ("main".to_owned(), Continuous::Heartbeat),
                ("main".to_owned(), Continuous::Status),
                ("other".to_owned(), Continuous::Heartbeat),
                ("other".to_owned(), Continuous::Status)
            ]
        );
    }

    #[test]
    fn jitter_puts_each_host_and_job_off_by_its_own_amount_and_always_the_same() {
        let config = Config::parse(TEXT, "/x.toml".into()).unwrap();
        let delays = |host: &str| -> Vec<_> {
            let tasks = tasks(&config, host).unwrap();
            tasks.into_iter().map(|task| task.delay.as_secs()).collect()
        };
        assert_eq!(delays("a"), delays("a"));
        assert_ne!(delays("a"), delays("b"));
        assert!(
            delays("a")[..4]
                .iter()
                .all(|delay| (0..=3600).contains(delay))
        );
        assert_ne!(delays("a")[0], delays("a")[1]);
        // The schedule of `other` has no jitter.
        assert_eq!(delays("a")[4..], [0, 0]);
    }

    #[test]
    fn what_must_not_overlap_waits_and_the_rest_does_not() {
        use Operation::{Copy, Drill, Expire, Full, Incremental};
        let may = |one, other| {
            let running = BTreeSet::from([other]);
            Job::may_begin(&one, &running)
        };
        for operation in [Full, Incremental, Copy, Expire, Drill] {
            assert!(!may(job("main", operation), job("main", operation)));
            assert!(may(job("main", Full), job("other", operation)));
        }
        assert!(!may(job("main", Expire), job("main", Full)));
        assert!(!may(job("main", Expire), job("main", Copy)));
        assert!(!may(job("main", Expire), job("main", Incremental)));
        assert!(!may(job("main", Incremental), job("main", Full)));
        assert!(may(job("main", Incremental), job("other", Full)));
        assert!(may(job("main", Expire), job("other", Full)));
        assert!(may(job("main", Full), job("main", Expire)));
        assert!(!may(job("main", Drill), job("other", Drill)));
        assert!(may(job("main", Drill), job("main", Full)));
    }
}
