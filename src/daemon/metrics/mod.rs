//! `/metrics`: what the daemon knows, in OpenMetrics' text. docs/metrics.md has the list; a test
//! holds it against this file.

mod clusters;

use std::sync::atomic::AtomicU64;

use jiff::Timestamp;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::agenda::RunResult;
use super::board::Shown;
use crate::status::ClusterStatus;

/// What a scraper is told that it gets.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(String, String)>;

/// A sheet of metrics that is written anew for each who asks.
#[derive(Default)]
struct Sheet(Registry);

impl Sheet {
    /// A gauge with a value for each of these labels.
    fn gauge(&mut self, name: &str, help: &str, rows: impl Iterator<Item = (Labels, f64)>) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for (labels, value) in rows {
            family.get_or_create(&labels).set(value);
        }
        // The registry adds the full stop.
        let help = help.trim_end_matches('.');
        self.0.register(format!("seawall_{name}"), help, family);
    }

    /// A counter; `_total` is added to its name.
    fn counter(&mut self, name: &str, help: &str, rows: impl Iterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Counter>::default();
        for (labels, value) in rows {
            family.get_or_create(&labels).inc_by(value);
        }
        // The registry adds the full stop.
        let help = help.trim_end_matches('.');
        self.0.register(format!("seawall_{name}"), help, family);
    }
}

/// All metrics as of `now`.
pub(super) fn text(shown: &Shown, now: Timestamp) -> String {
    let mut sheet = Sheet::default();
    daemon(&mut sheet, shown);
    jobs(&mut sheet, shown);
    let statuses: Vec<&ClusterStatus> = shown.statuses.values().map(AsRef::as_ref).collect();
    looks(&mut sheet, shown);
    clusters::add(&mut sheet, &statuses, now);
    let mut text = String::new();
    // Into memory: nothing can fail.
    let _ = encode(&mut text, &sheet.0);
    text
}

fn daemon(sheet: &mut Sheet, shown: &Shown) {
    let version = vec![label("version", env!("CARGO_PKG_VERSION"))];
    sheet.gauge(
        "build_info",
        "The version of Seawall that runs; the value is always 1.",
        std::iter::once((version, 1.0)),
    );
    sheet.gauge(
        "daemon_start_time_seconds",
        "When the daemon began, in seconds since 1970.",
        std::iter::once((Vec::new(), seconds(shown.started))),
    );
}

/// Also of a cluster that was never looked at: nobody may take that for all being well.
fn looks(sheet: &mut Sheet, shown: &Shown) {
    sheet.gauge(
        "look_timestamp_seconds",
        "When the cluster was last looked at, in seconds since 1970: what follows is of then. Not yet: when the daemon began.",
        shown.clusters.iter().map(|name| {
            let looked = shown.statuses.get(name).map_or(shown.started, |status| status.time);
            (vec![label("cluster", name)], seconds(looked))
        }),
    );
}

fn jobs(sheet: &mut Sheet, shown: &Shown) {
    let all = || {
        shown.jobs.iter().map(|job| {
            let operation = job.job.operation.to_string();
            let labels = vec![
                label("cluster", &job.job.cluster),
                label("operation", &operation),
            ];
            (labels, job)
        })
    };
    sheet.gauge(
        "job_last_success_timestamp_seconds",
        "When the job was last done, by this daemon or by another, in seconds since 1970.",
        all().filter_map(|(labels, job)| Some((labels, seconds(job.record.done?)))),
    );
    sheet.gauge(
        "job_last_run_timestamp_seconds",
        "When the job last ended, whatever came of it, in seconds since 1970.",
        all().filter_map(|(labels, job)| Some((labels, seconds(job.record.last.as_ref()?.ended)))),
    );
    sheet.gauge(
        "job_last_duration_seconds",
        "How long the last run of the job took.",
        all().filter_map(|(labels, job)| {
            let last = job.record.last.as_ref()?;
            Some((
                labels,
                last.ended.duration_since(last.started).as_secs_f64(),
            ))
        }),
    );
    sheet.gauge(
        "job_next_timestamp_seconds",
        "When the job begins next, in seconds since 1970.",
        all().filter_map(|(labels, job)| Some((labels, seconds(job.next?)))),
    );
    sheet.gauge(
        "job_due_timestamp_seconds",
        "The first time of the job on the schedule since it was last done, in seconds since 1970; where it was never done, since the daemon began.",
        all().filter_map(|(labels, job)| Some((labels, seconds(job.due?)))),
    );
    sheet.gauge(
        "job_running",
        "1 while the job runs.",
        all().map(|(labels, job)| (labels, truth(job.runs))),
    );
    sheet.gauge(
        "job_waiting",
        "1 while the job is due and waits, for a server that is away or for somebody else at it.",
        all().map(|(labels, job)| (labels, truth(job.record.waiting.is_some()))),
    );
    sheet.gauge(
        "job_consecutive_failures",
        "How often the job has failed in a row; 0 when its last run did not fail.",
        all().map(|(labels, job)| {
            let failing = job.record.failing.as_ref();
            (
                labels,
                failing.map_or(0.0, |failing| f64::from(failing.count)),
            )
        }),
    );
    sheet.counter(
        "job_runs",
        "Runs of the job since the daemon began, by what came of them; \"finding\": exit code 3.",
        shown.runs.iter().map(|((job, result), count)| {
            let result = match result {
                RunResult::Done => "done",
                RunResult::Finding => "finding",
                RunResult::Failed => "failed",
                RunResult::Elsewhere => "elsewhere",
            };
            let labels = vec![
                label("cluster", &job.cluster),
                label("operation", &job.operation.to_string()),
                label("result", result),
            ];
            (labels, *count)
        }),
    );
    sheet.gauge(
        "command_up",
        "1 while what never ends (continuous copies, heartbeat, status) stays up.",
        shown.continuous.iter().map(|(cluster, kind, trouble)| {
            let labels = vec![
                label("cluster", cluster),
                label("command", &kind.to_string()),
            ];
            (labels, truth(trouble.is_none()))
        }),
    );
}

fn label(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn seconds(time: Timestamp) -> f64 {
    time.as_microsecond() as f64 / 1e6
}

fn truth(is: bool) -> f64 {
    f64::from(u8::from(is))
}

#[cfg(test)]
mod tests;
