//! Load on a server: pgbench, in the foreground or the background.

use std::time::Duration;

use crate::postgres::Cluster;
use crate::process::{Output, Run, Running};

/// Makes pgbench's tables; scale 10 is about 150 MB.
#[track_caller]
pub fn init(cluster: &Cluster, scale: u32) {
    pgbench(cluster)
        .args(["-i", "-q", "-s", &scale.to_string()])
        .timeout(Duration::from_secs(600))
        .run()
        .success();
}

/// Runs transactions for some time and waits for the end.
#[track_caller]
pub fn run(cluster: &Cluster, clients: u32, time: Duration) -> Output {
    start(cluster, clients, time).wait().success()
}

/// Runs transactions in the background; they end with the time, or when the handle drops.
#[track_caller]
pub fn start(cluster: &Cluster, clients: u32, time: Duration) -> Running {
    let seconds = time.as_secs().max(1);
    pgbench(cluster)
        .args(["-n", "-c", &clients.to_string(), "-j", "1"])
        .args(["-T", &seconds.to_string()])
        .timeout(time + Duration::from_secs(120))
        .start()
}

/// The transactions a second that a finished run reports.
pub fn rate(output: &Output) -> Option<f64> {
    let line = output
        .stdout
        .lines()
        .find(|line| line.starts_with("tps = "))?;
    line.split_whitespace().nth(2)?.parse().ok()
}

fn pgbench(cluster: &Cluster) -> Run {
    cluster.client("pgbench")
}
