//! The sections of a drill's report, each from what the drill has found.

use seawall::config::RepositoryConfig;
use seawall::postgres::recovery::RecoveryTarget;
use seawall::repository::catalogue::Plan;
use sha2::Digest;

use super::course::Course;
use super::{Drill, Scenario};
use crate::report::{Identity, Scope, Source, Target};

impl Drill<'_> {
    pub(super) fn identity(&self, plan: &Plan, version: Option<String>) -> Identity {
        let configuration = std::fs::read(&self.config.path).unwrap_or_default();
        Identity {
            cluster: self.cluster_name.to_owned(),
            system_id: plan.backup.system_id,
            seawall_version: env!("CARGO_PKG_VERSION").to_owned(),
            source_version_num: plan.backup.server_version_num,
            postgresql: version,
            configuration_sha256: hex::encode(sha2::Sha256::digest(configuration)),
            trigger: self.trigger.clone(),
            user: nix::unistd::User::from_uid(nix::unistd::geteuid())
                .ok()
                .flatten()
                .map_or_else(|| nix::unistd::geteuid().to_string(), |user| user.name),
            host: seawall::host::name(),
            command: std::env::args().collect(),
        }
    }

    pub(super) fn scope(&self) -> Scope {
        let (scenario, words) = match self.scenario {
            Scenario::Restore => ("restore", "the database is restored, as on any day"),
            Scenario::TotalLoss => (
                "total-loss",
                "the primary, its disks and its network are gone: the drill had the repository and its own configuration, and nothing else",
            ),
            Scenario::Rehearsal => (
                "rehearsal",
                "a migration is tried on the restored copy, and each statement measured",
            ),
        };
        Scope {
            scenario,
            words: words.to_owned(),
        }
    }

    pub(super) fn source(&self, course: &Course) -> Source {
        let backup = &course.plan.backup;
        let restored = course.restored.as_ref();
        let mut repositories = self.config.repository.iter();
        let configured = repositories.find(|known| known.name == self.repository.name());
        Source {
            repository: self.repository.name().to_owned(),
            url: self.repository.store().url().to_owned(),
            copy_of: configured.and_then(|repository| repository.copy_from.clone()),
            region: configured.and_then(region_of),
            backup_age_seconds: self.failed_at.duration_since(backup.stop_time).as_secs(),
            backup_timeline: backup.timeline,
            start_lsn: backup.start_lsn,
            stop_lsn: backup.stop_lsn,
            files: restored.map_or(0, |restored| restored.files),
            bytes: restored.map_or(0, |restored| restored.plain_bytes),
            fetched_bytes: restored.map_or(0, |restored| restored.fetched_bytes),
            wal_segments: course.replay.segments,
            primary_touched: self.primary.is_some(),
        }
    }

    pub(super) fn target(&self, course: &Course, broken: Option<&str>) -> Target {
        let (kind, value) = target_words(&self.request.target);
        let replay = &course.replay;
        let why = match (&replay.failure, &replay.stopped, replay.ready) {
            (Some(failure), ..) => format!("it failed: {failure}"),
            (None, _, None) => format!(
                "it did not come to its end: {}",
                broken.unwrap_or("the server did not open")
            ),
            (None, Some(stopped), _) => stopped.clone(),
            (None, None, _) => "the archived WAL ended".to_owned(),
        };
        Target {
            kind,
            value,
            drawn: self.drawn,
            end_at_gap: course.request.end_at_gap,
            asked_timeline: self.request.timeline,
            asked_backup: self.request.backup.as_ref().map(ToString::to_string),
            inclusive: self.request.inclusive,
            timeline: course.plan.history.timeline,
            reached_lsn: replay.redo_done.map(|(_, lsn)| lsn),
            reached_time: replay.last_transaction,
            next_xid: course.loss.next_xid,
            why,
        }
    }
}

/// The region that a repository's options name.
pub(super) fn region_of(repository: &RepositoryConfig) -> Option<String> {
    let mut options = repository.options.iter();
    let (_, region) = options.find(|(name, _)| name.ends_with("region"))?;
    region.resolve().ok()
}

pub(super) fn target_words(target: &RecoveryTarget) -> (&'static str, Option<String>) {
    match target {
        RecoveryTarget::Latest => ("latest", None),
        RecoveryTarget::Time(time) => ("time", Some(time.to_string())),
        RecoveryTarget::Lsn(lsn) => ("lsn", Some(lsn.to_string())),
        RecoveryTarget::Xid(xid) => ("xid", Some(xid.to_string())),
        RecoveryTarget::Name(name) => ("name", Some(name.clone())),
        RecoveryTarget::Immediate => ("immediate", None),
    }
}
