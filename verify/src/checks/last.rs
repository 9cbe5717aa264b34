//! The last drill that passed, as far as this one's numbers are compared with it.
//!
//! Only one that passed and took all the WAL that there was: with a drill that failed, the next
//! one would take what is wrong for what is usual, and a moment long ago has fewer rows.

use jiff::{SignedDuration, Timestamp};
use seawall::postgres::recovery::RecoveryTarget;
use seawall::repository::Repository;
use seawall::repository::catalogue::Request;
use serde_json::Value;

use super::Rows;

/// A report from further ahead than this is one of a clock that was wrong.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_hours(1);

/// The last drill that passed, or why there is nothing to compare with.
#[derive(Debug)]
pub struct Last {
    report: Result<Value, String>,
    warning: Option<String>,
}

impl Last {
    /// Reads it. A failure is no error: comparisons are not tested then.
    async fn read(repository: &Repository, cluster: &str) -> Self {
        let now = Timestamp::now();
        let is_like_this = |report: &Value| {
            let started = report["started"].as_str().and_then(|t| t.parse().ok());
            took_all(&report["target"])
                && started
                    .is_some_and(|started: Timestamp| started.duration_since(now) < CLOCKS_DIFFER)
        };
        match repository.last_passed_report(cluster, is_like_this).await {
            Ok(Some(report)) => Self::of(report),
            Ok(None) => Self::none("no drill before this one passed"),
            Err(error) => Self {
                warning: Some(format!(
                    "the drills before cannot be read, and nothing was compared with them: {}",
                    error.one_line()
                )),
                ..Self::none("the drills before cannot be read")
            },
        }
    }

    /// The same for a drill that asked for this: one that was to stop earlier, or may have,
    /// compares nothing.
    pub async fn read_for(request: &Request, repository: &Repository, cluster: &str) -> Self {
        match asks_for_all(request) {
            true => Self::read(repository, cluster).await,
            false => Self::none("a target was chosen, which may lie before the last drill's"),
        }
    }

    /// Nothing to compare with, and why.
    pub fn none(why: &str) -> Self {
        Self {
            report: Err(why.to_owned()),
            warning: None,
        }
    }

    /// That report.
    pub fn of(report: Value) -> Self {
        Self {
            report: Ok(report),
            warning: None,
        }
    }

    /// Why the past cannot be read, if it cannot.
    pub(super) fn warning(&self) -> Option<String> {
        self.warning.clone()
    }

    /// That drill's name.
    pub(super) fn id(&self) -> &str {
        let report = self.report.as_ref().ok();
        report
            .and_then(|report| report["id"].as_str())
            .unwrap_or_default()
    }

    /// What it was answered to the question of that name.
    pub(super) fn answer(&self, question: &str) -> Result<&str, String> {
        let report = self.report.as_ref().map_err(Clone::clone)?;
        let checks = report["checks"].as_array().into_iter().flatten();
        let mut same = checks.filter(|check| check["name"] == question);
        same.find_map(|check| check["answer"].as_str())
            .ok_or_else(|| format!("drill {} has no answer to it", self.id()))
    }

    /// The rows that it counted.
    pub(super) fn rows(&self) -> Result<Rows, String> {
        let report = self.report.as_ref().map_err(Clone::clone)?;
        match report.get("rows") {
            None => Err(format!("drill {} counted no rows", self.id())),
            Some(rows) => serde_json::from_value(rows.clone()).map_err(|error| {
                format!("the rows of drill {} cannot be read: {error}", self.id())
            }),
        }
    }
}

/// Whether a drill with that request takes all the WAL that there is.
fn asks_for_all(request: &Request) -> bool {
    request.target == RecoveryTarget::Latest
        && !request.end_at_gap
        && request.timeline.is_none()
        && request.backup.is_none()
}

/// The same of a report's target. What was not asked for is absent, also in an older report.
fn took_all(target: &Value) -> bool {
    target["kind"] == "latest"
        && target["end_at_gap"] != true
        && target["asked_timeline"].is_null()
        && target["asked_backup"].is_null()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_drill_that_may_have_stopped_early_is_nothing_to_compare_with() {
        for (target, all) in [
            (json!({"kind": "latest", "end_at_gap": false}), true),
            (json!({"kind": "latest"}), true),
            (json!({"kind": "time"}), false),
            (json!({"kind": "latest", "end_at_gap": true}), false),
            (json!({"kind": "latest", "asked_timeline": 1}), false),
            (json!({"kind": "latest", "asked_backup": "b"}), false),
        ] {
            assert_eq!(took_all(&target), all, "{target}");
        }
    }

    #[test]
    fn a_drill_that_may_stop_early_is_not_compared() {
        let to = |target| Request {
            target,
            inclusive: true,
            timeline: None,
            backup: None,
            end_at_gap: false,
        };
        let latest = || to(RecoveryTarget::Latest);
        assert!(asks_for_all(&latest()));
        for less in [
            to(RecoveryTarget::Immediate),
            Request {
                end_at_gap: true,
                ..latest()
            },
            Request {
                timeline: Some(seawall::postgres::TimelineId::FIRST),
                ..latest()
            },
        ] {
            assert!(!asks_for_all(&less));
        }
    }
}
