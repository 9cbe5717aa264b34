//! The sections of a drill's report, each from what the drill has found.

use std::path::Path;

use seawall::postgres::recovery::RecoveryTarget;
use seawall::repository::catalogue::Plan;
use sha2::Digest;

use super::{Course, Drill};
use crate::evidence::round;
use crate::report::{Environment, Identity, Phase, Rpo, Rto, Source, Target};

impl Drill<'_> {
    pub(super) fn rpo(&self, course: &Course) -> Rpo {
        let wanted = self.request.target == RecoveryTarget::Latest;
        let mut rpo = Rpo {
            objective_seconds: self.config.objectives.rpo.map(|rpo| rpo.0.as_secs_f64()),
            measured_seconds: None,
            wanted,
            upper_bound: true,
            method: String::new(),
            failed_at: self.failed_at,
        };
        if !wanted {
            "not tested: a target was chosen, so the newest recoverable moment was not sought"
                .clone_into(&mut rpo.method);
            return rpo;
        }
        if course.replay.ready.is_none() {
            "not tested: recovery did not come to its end".clone_into(&mut rpo.method);
            return rpo;
        }
        // Whoever is consistent has everything up to the end of the backup.
        let stop = course.plan.backup.stop_time;
        let (until, what) = match course.replay.last_transaction {
            Some(last) if last > stop => (last, "the last recovered commit"),
            _ => (
                stop,
                "the end of the backup, after which no commit was recovered",
            ),
        };
        let lost = self.failed_at.duration_since(until).as_secs_f64();
        rpo.measured_seconds = Some(round(lost.max(0.0)));
        rpo.method = format!(
            "the moment of failure minus {what}, by the server's clock against this host's; an upper bound, since a server that was idle lost nothing after its last commit"
        );
        rpo
    }

    pub(super) fn rto(&self, phases: Vec<Phase>, open: bool) -> Rto {
        let longest = phases.iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds));
        Rto {
            objective_seconds: self.config.objectives.rto.map(|rto| rto.0.as_secs_f64()),
            measured_seconds: open.then(|| round(phases.iter().map(|p| p.seconds).sum())),
            dominated_by: longest.map(|phase| phase.name.clone()),
            phases,
        }
    }

    pub(super) fn identity(&self, plan: &Plan, version: Option<String>) -> Identity {
        let configuration = std::fs::read(&self.config.path).unwrap_or_default();
        Identity {
            cluster: self.cluster_name.to_owned(),
            system_id: plan.backup.system_id,
            seawall_version: env!("CARGO_PKG_VERSION").to_owned(),
            source_version_num: plan.backup.server_version_num,
            postgresql: version,
            configuration_sha256: hex::encode(sha2::Sha256::digest(configuration)),
            user: nix::unistd::User::from_uid(nix::unistd::geteuid())
                .ok()
                .flatten()
                .map_or_else(|| nix::unistd::geteuid().to_string(), |user| user.name),
            host: seawall::host::name(),
            command: std::env::args().collect(),
        }
    }

    pub(super) fn source(&self, course: &Course) -> Source {
        let backup = &course.plan.backup;
        let restored = course.restored.as_ref();
        Source {
            repository: self.repository.name().to_owned(),
            url: self.repository.store().url().to_owned(),
            backup_age_seconds: self.failed_at.duration_since(backup.stop_time).as_secs(),
            backup_timeline: backup.timeline,
            start_lsn: backup.start_lsn,
            stop_lsn: backup.stop_lsn,
            files: restored.map_or(0, |restored| restored.files),
            bytes: restored.map_or(0, |restored| restored.plain_bytes),
            fetched_bytes: restored.map_or(0, |restored| restored.fetched_bytes),
            wal_segments: course.replay.segments,
            primary_touched: false,
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
            inclusive: self.request.inclusive,
            timeline: course.plan.history.timeline,
            reached_lsn: replay.redo_done.map(|(_, lsn)| lsn),
            reached_time: replay.last_transaction,
            why,
        }
    }
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

pub(super) fn environment(scratch: &Path) -> Environment {
    Environment {
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        scratch: scratch.to_owned(),
        isolation: vec![
            "archive_mode = off",
            "max_logical_replication_workers = 0: no subscription connects anywhere",
            "no TCP port; a Unix socket in the scratch directory only",
            "data directory and tablespaces in the scratch directory",
            "settings of its own, none of production's",
        ],
    }
}
