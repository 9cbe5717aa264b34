//! `seawall schedule`.

use std::path::PathBuf;

use clap::Parser;
use jiff::Timestamp;
use serde::Serialize;

use super::output::{moment, print, print_json, table};
use crate::config::Config;
use crate::daemon::agenda::{Failing, Record, Run, RunResult, Waiting};
use crate::daemon::operation::{self, Task};
use crate::daemon::state::State;
use crate::error::{Exit, Result};

/// Show the next runs of everything, and what came of the last ones
///
/// Works without a daemon; what ran before it knows from the daemon's state directory.
#[derive(Debug, Parser)]
pub struct ScheduleArgs {
    /// The configuration file [default: $SEAWALL_CONFIG, then /etc/seawall/seawall.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// One cluster only [default: all]
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// How many of the next runs to show
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub count: u16,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// What to log: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: tracing::Level,
}

#[derive(Serialize)]
struct Listing {
    format: u32,
    now: Timestamp,
    daemon_running: bool,
    /// Why nothing is known of what ran before.
    #[serde(skip_serializing_if = "Option::is_none")]
    state_unknown: Option<String>,
    jobs: Vec<JobListing>,
    continuous: Vec<ContinuousListing>,
}

#[derive(Serialize)]
struct JobListing {
    cluster: String,
    operation: operation::Operation,
    #[serde(skip_serializing_if = "Option::is_none")]
    repository: Option<String>,
    line: String,
    timezone: String,
    delay_seconds: i64,
    next: Vec<Timestamp>,
    running_since: Option<Timestamp>,
    last: Option<Run>,
    seconds: Option<f64>,
    error: Option<String>,
    failing: Option<Failing>,
    waiting: Option<Waiting>,
}

#[derive(Serialize)]
struct ContinuousListing {
    cluster: String,
    command: String,
    failing: Option<Waiting>,
}

/// Prints the schedule.
pub fn run(args: &ScheduleArgs) -> Result<Exit> {
    let config = Config::load(args.config.as_deref())?;
    config.check_schedules()?;
    if let Some(name) = &args.cluster {
        config.cluster(Some(name))?;
    }
    let wanted = |cluster: &str| args.cluster.as_deref().is_none_or(|name| name == cluster);
    let tasks = operation::tasks(&config, &crate::host::name())?;
    let (state, state_unknown) = match State::read(&config.daemon.state_directory) {
        Ok(Ok(state)) => (state, None),
        Ok(Err(why)) => (
            State::default(),
            Some(format!("the state is damaged: {why}")),
        ),
        Err(error) => (State::default(), Some(error.one_line())),
    };
    let now = Timestamp::now();
    let tasks = tasks.iter().filter(|task| wanted(&task.job.cluster));
    let daemon_running = State::is_in_use(&config.daemon.state_directory);
    let jobs = tasks.map(|task| JobListing {
        repository: task.job.repository(&config),
        ..job(task, &state, now, args.count.into())
    });
    let never_end = operation::continuous(&config)?.into_iter();
    let never_end = never_end.filter(|(cluster, _)| wanted(cluster));
    let listing = Listing {
        format: 1,
        now,
        daemon_running,
        state_unknown,
        jobs: jobs
            .map(|mut job| {
                job.running_since = job.running_since.filter(|_| daemon_running);
                job
            })
            .collect(),
        continuous: never_end
            .map(|(cluster, kind)| ContinuousListing {
                failing: state.continuous.get(&format!("{cluster}/{kind}")).cloned(),
                cluster,
                command: kind.to_string(),
            })
            .collect(),
    };
    if args.json {
        print_json(&listing)?;
    } else {
        print(text(&listing).trim_end());
    }
    if let Some(why) = &listing.state_unknown {
        super::say(&format!("warning: what ran before is not known: {why}"));
    }
    Ok(Exit::Done)
}

fn job(task: &Task, state: &State, now: Timestamp, count: usize) -> JobListing {
    let known = state.jobs.get(&task.job.key());
    let mut record = known.cloned().unwrap_or_default();
    if known.is_none() {
        // Without a daemon nothing is made up.
        record.handled = Some(now);
        record.line = format!("{} {}", task.schedule.line(), task.schedule.zone_name());
    }
    record.prepare(task, now);
    let Record {
        last,
        failing,
        waiting,
        running,
        ..
    } = record.clone();
    let failed = last.as_ref().filter(|run| run.result == RunResult::Failed);
    JobListing {
        repository: None,
        running_since: running,
        error: failed.map(|run| run.said.clone()),
        cluster: task.job.cluster.clone(),
        operation: task.job.operation,
        line: task.schedule.line().to_owned(),
        timezone: task.schedule.zone_name().to_owned(),
        delay_seconds: task.delay.as_secs(),
        next: record.next(task, now, count),
        seconds: last
            .as_ref()
            .map(|run| run.ended.duration_since(run.started).as_secs_f64()),
        last,
        failing,
        waiting,
    }
}

fn text(listing: &Listing) -> String {
    if listing.jobs.is_empty() && listing.continuous.is_empty() {
        return "nothing is on the schedule; [schedule] in the configuration says what is done when"
            .into();
    }
    let mut rows = Vec::new();
    for job in &listing.jobs {
        let (cluster, operation) = (job.cluster.clone(), job.operation.to_string());
        let next = job
            .next
            .first()
            .map_or("never".into(), |time| moment(*time));
        let last = job.last.as_ref();
        rows.push(vec![
            cluster,
            operation,
            format!("{} ({})", job.line, job.timezone),
            next,
            last.map_or("-".into(), |run| moment(run.started)),
            match job.running_since {
                Some(_) => "running".into(),
                None => last.map_or("-".into(), |run| result(run).into()),
            },
            job.seconds
                .map_or("-".into(), |seconds| format!("{seconds:.0} s")),
        ]);
        for time in job.next.iter().skip(1) {
            let blank = String::new;
            rows.push(vec![
                blank(),
                blank(),
                blank(),
                moment(*time),
                blank(),
                blank(),
                blank(),
            ]);
        }
    }
    for one in &listing.continuous {
        rows.push(vec![
            one.cluster.clone(),
            one.command.clone(),
            "continuous".into(),
            "-".into(),
            "-".into(),
            if one.failing.is_some() {
                "failing"
            } else {
                "-"
            }
            .into(),
            "-".into(),
        ]);
    }
    let header = [
        "CLUSTER", "JOB", "SCHEDULE", "NEXT", "LAST", "RESULT", "TOOK",
    ];
    table(&header, rows) + &notes(listing)
}

/// What a person must know of beside the table.
fn notes(listing: &Listing) -> String {
    let mut text = String::new();
    for job in &listing.jobs {
        let name = format!("{} {}", job.cluster, job.operation);
        let said = job.last.as_ref().map_or("", |run| run.said.as_str());
        if let Some(failing) = &job.failing {
            let retry = match failing.retry_at {
                Some(time) => format!("next attempt {}", moment(time)),
                None => "not tried again before its next time or a reload".into(),
            };
            text += &format!(
                "\n{name} FAILS since {}, {} times; {retry}\n  {said}\n",
                moment(failing.since),
                failing.count
            );
        } else if job
            .last
            .as_ref()
            .is_some_and(|run| run.result == RunResult::Finding)
        {
            text += &format!("\n{name} ended with a finding\n  {said}\n");
        }
        if let Some(waiting) = &job.waiting {
            text += &format!(
                "\n{name} waits since {}\n  {}\n",
                moment(waiting.since),
                waiting.why
            );
        }
    }
    for one in &listing.continuous {
        if let Some(failing) = &one.failing {
            text += &format!(
                "\n{} {} does not stay up since {}\n  {}\n",
                one.cluster,
                one.command,
                moment(failing.since),
                failing.why
            );
        }
    }
    text
}

fn result(run: &Run) -> &'static str {
    match run.result {
        RunResult::Done => "done",
        RunResult::Finding => "finding",
        RunResult::Failed => "FAILED",
        RunResult::Elsewhere => "done elsewhere",
    }
}
