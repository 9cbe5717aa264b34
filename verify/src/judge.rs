//! The verdict: passed only if recovery came to its end, something was checked, nothing
//! failed, and the objectives were met.

use crate::checks::{Check, Outcome};
use crate::report::{Rpo, Rto};

/// Why a drill did not pass; nothing if it did. `failure` says why it did not come to its end.
pub fn reasons(failure: Option<&str>, rpo: &Rpo, rto: &Rto, checks: &[Check]) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Some(failure) = failure {
        reasons.push(failure.to_owned());
    }
    for check in checks
        .iter()
        .filter(|check| check.outcome == Outcome::Failed)
    {
        let first = check.detail.lines().next().unwrap_or_default();
        reasons.push(format!("{} failed: {first}", check.name));
    }
    let proven = checks
        .iter()
        .any(|check| check.proves && check.outcome == Outcome::Passed);
    if failure.is_none() && !proven {
        reasons.push(
            "nothing was checked in the restored database: install amcheck, turn data checksums on, or add a [[drill.check]]".to_owned(),
        );
    }
    match (rpo.objective_seconds, rpo.measured_seconds) {
        (Some(objective), Some(measured)) if measured > objective => {
            reasons.push(format!(
                "the RPO objective is {objective} s, measured {measured} s"
            ));
        }
        (Some(objective), None) if rpo.wanted => {
            reasons.push(format!(
                "the RPO objective is {objective} s, and nothing was measured"
            ));
        }
        _ => {}
    }
    match (rto.objective_seconds, rto.measured_seconds) {
        (Some(objective), Some(measured)) if measured > objective => {
            reasons.push(format!(
                "the RTO objective is {objective} s, measured {measured} s"
            ));
        }
        _ => {}
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rpo(measured: Option<f64>) -> Rpo {
        Rpo {
            objective_seconds: Some(300.0),
            measured_seconds: measured,
            wanted: true,
            upper_bound: true,
            wal_bytes: None,
            transactions: None,
            last_commit: None,
            failed_at: jiff::Timestamp::UNIX_EPOCH,
            store_clock_skew_seconds: None,
            primary_clock_skew_seconds: None,
            method: String::new(),
        }
    }

    fn rto(measured: Option<f64>) -> Rto {
        Rto {
            objective_seconds: Some(60.0),
            measured_seconds: measured,
            phases: Vec::new(),
            dominated_by: None,
            forecast: Vec::new(),
        }
    }

    fn check(outcome: Outcome, proves: bool) -> Check {
        Check {
            proves,
            ..Check::new("pg_amcheck", outcome, "detail")
        }
    }

    #[test]
    fn a_drill_passes_only_when_all_is_well() {
        let well = [check(Outcome::Passed, true)];
        assert!(reasons(None, &rpo(Some(10.0)), &rto(Some(10.0)), &well).is_empty());
        for (failure, rpo, rto, checks) in [
            (Some("no WAL"), rpo(None), rto(None), &well[..]),
            (None, rpo(Some(301.0)), rto(Some(10.0)), &well),
            (None, rpo(Some(1.0)), rto(Some(61.0)), &well),
            (None, rpo(None), rto(Some(1.0)), &well),
            (
                None,
                rpo(Some(1.0)),
                rto(Some(1.0)),
                &[check(Outcome::Failed, true)],
            ),
        ] {
            assert_eq!(reasons(failure, &rpo, &rto, checks).len().min(1), 1);
        }
    }

    #[test]
    fn a_drill_that_checked_nothing_cannot_pass() {
        for checks in [
            vec![],
            vec![check(Outcome::NotTested, true)],
            vec![check(Outcome::Passed, false)],
        ] {
            assert!(!reasons(None, &rpo(Some(1.0)), &rto(Some(1.0)), &checks).is_empty());
        }
    }
}
