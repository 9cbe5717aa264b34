//! How far each copy is behind its source, and whether that is further than the objectives
//! allow.

use std::time::Duration;

use bytesize::ByteSize;

use super::Findings;
use crate::config::{Config, HumanDuration};
use crate::copy::{Lag, lag_of};
use crate::postgres::SystemId;

/// Without an RPO objective, a copy that is behind for longer is worth a word.
const BEHIND: Duration = Duration::from_secs(3600);

/// Examines every repository that has `copy_from`.
pub(super) async fn examine(
    config: &Config,
    cluster: &str,
    system: SystemId,
    findings: &mut Findings,
) {
    for copy in &config.repository {
        let Some(source) = &copy.copy_from else {
            continue;
        };
        let subject = format!("copy {} of {source}", copy.name);
        match lag_of(config, copy, cluster, system).await {
            Ok(lag) => judge(&lag, source, config.objectives.rpo, &subject, findings),
            Err(error) => findings.failed(&subject, &error),
        }
    }
}

fn judge(
    lag: &Lag,
    source: &str,
    rpo: Option<HumanDuration>,
    subject: &str,
    findings: &mut Findings,
) {
    const ADVICE: &str = "is `seawall copy --follow`, or the daemon, running, and what does it say? `seawall copy` brings it up to date now";
    if !lag.backups.is_empty() {
        findings.warning(
            subject,
            format!(
                "lacks {} backups that {source} holds, the newest is {}",
                lag.backups.len(),
                lag.backups
                    .last()
                    .map(ToString::to_string)
                    .unwrap_or_default()
            ),
            ADVICE,
        );
    }
    let behind = Duration::from_secs(lag.seconds as u64);
    let lacks = format!(
        "lacks {} WAL segments that {source} holds ({}), the oldest for {}",
        lag.segments,
        ByteSize(lag.wal_bytes),
        HumanDuration(behind)
    );
    match rpo {
        _ if lag.segments == 0 => findings.ok(subject, "holds all WAL of its source"),
        Some(rpo) if behind > rpo.0 => findings.problem(
            subject,
            format!("{lacks}, longer than the RPO objective of {rpo}"),
            ADVICE,
        ),
        None if behind > BEHIND => findings.warning(subject, lacks, ADVICE),
        _ => findings.ok(subject, lacks),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn a_copy_that_is_behind_for_longer_than_the_objective_is_a_problem() {
        let level = |segments, seconds, rpo: Option<u64>| {
            let lag = Lag {
                segments,
                seconds,
                ..Lag::default()
            };
            let mut findings = Findings::default();
            let rpo = rpo.map(HumanDuration::from_secs);
            judge(&lag, "near", rpo, "copy far of near", &mut findings);
            findings.0.remove(0).level
        };
        assert_eq!(level(0, 0.0, Some(60)), Level::Ok);
        assert_eq!(level(3, 59.0, Some(60)), Level::Ok);
        assert_eq!(level(3, 61.0, Some(60)), Level::Problem);
        assert_eq!(level(3, 61.0, None), Level::Ok);
        assert_eq!(level(3, 4000.0, None), Level::Warning);
    }
}
