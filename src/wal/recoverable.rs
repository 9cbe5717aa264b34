//! Waiting until a restore point can be recovered to from each of several repositories: a
//! finished backup leads there, and WAL without a break, exactly as a restore by its name would
//! find them. By listings and markers; nothing of the WAL is read.

use std::time::Duration;

use futures::future::try_join_all;
use serde::Serialize;
use tokio::time::Instant;

use crate::error::{Error, Exit, Result};
use crate::postgres::recovery::RecoveryTarget;
use crate::postgres::{Lsn, TimelineId};
use crate::repository::System;
use crate::repository::catalogue::{Catalogue, Request};
use crate::repository::keys::BackupId;
use crate::repository::points::{self, RestorePoint};

/// How long is waited before the first look is repeated, and how long at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A repository that is waited for.
pub struct Awaited {
    /// The cluster in it.
    pub system: System,
    /// Whether it is filled from another one: a backup that leads to the point may still come.
    pub is_copy: bool,
}

/// A repository from which the restore point can be recovered to.
#[derive(Debug, Serialize)]
pub struct Recoverable {
    /// Its name.
    pub repository: String,
    /// The backup that a restore starts from.
    pub backup: BackupId,
    /// The timeline that a restore must be told to follow: the newest one, which it follows
    /// otherwise, does not pass the point. None where it need not be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeline: Option<TimelineId>,
    /// How long it was waited for.
    #[serde(serialize_with = "as_seconds", rename = "seconds")]
    pub after: Duration,
}

fn as_seconds<S: serde::Serializer>(duration: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_f64((duration.as_secs_f64() * 1000.0).round() / 1000.0)
}

/// What a repository still lacks.
struct Lack {
    what: String,
    /// Nothing is missing but a backup that leads there.
    only_backup: bool,
}

/// Whether a point at `lsn` on `timeline` that is called `name` could be recovered to once its
/// WAL is archived: to be asked before it is made.
///
/// # Errors
/// Exit code 4 where a point of that name is recorded already, for a restore would stop there;
/// 5 where no backup leads to it, unless one may come by copying; 1 where the repository does
/// not answer.
pub async fn may_become(
    awaited: &Awaited,
    name: &str,
    timeline: TimelineId,
    lsn: Lsn,
) -> Result<()> {
    let catalogue = Catalogue::load(&awaited.system).await?;
    refuse_used_name(&catalogue, name, lsn)?;
    // The history of a timeline that has just begun may not be archived yet.
    match leads_to(&catalogue, timeline, lsn) {
        Ok(false) if !awaited.is_copy => Err(no_backup(&awaited.system)),
        _ => Ok(()),
    }
}

/// Waits until each of the repositories can bring the point back, all at once, and says on the
/// log what they lack meanwhile.
///
/// # Errors
/// `timeout` has passed: each repository that lacks something is named, with what it lacks; exit
/// code 5 if that is nothing but a backup that leads there, otherwise 1. At once, with exit code
/// 4, where WAL is in conflict or a point of the same name lies before this one; with 5, where
/// no backup leads there and none can come.
pub async fn until_recoverable(
    repositories: &[Awaited],
    point: &RestorePoint,
    timeout: Duration,
) -> Result<Vec<Recoverable>> {
    let started = Instant::now();
    let waiting = repositories
        .iter()
        .map(|awaited| wait_for(awaited, point, started, started + timeout));
    let mut reached = Vec::new();
    let mut lacks = Vec::new();
    for (awaited, outcome) in repositories.iter().zip(try_join_all(waiting).await?) {
        match outcome {
            Ok(recoverable) => reached.push(recoverable),
            Err(lack) => lacks.push((awaited.system.repository().name(), lack)),
        }
    }
    if lacks.is_empty() {
        return Ok(reached);
    }
    let exit = match lacks.iter().all(|(_, lack)| lack.only_backup) {
        true => Exit::Unreachable,
        false => Exit::Failed,
    };
    let lacks: Vec<String> = lacks
        .iter()
        .map(|(repository, lack)| format!("{repository}: {}", lack.what))
        .collect();
    Err(Error::new(
        exit,
        format!(
            "the restore point {:?} is made, and after {} s not recoverable from {} of {} repositories",
            point.name,
            timeout.as_secs_f64(),
            lacks.len(),
            repositories.len()
        ),
    )
    .because(lacks.join("; "))
    .hint("`seawall check` says why WAL or copies do not come; what is recoverable without them is waited for with --repository NAME"))
}

async fn wait_for(
    awaited: &Awaited,
    point: &RestorePoint,
    started: Instant,
    deadline: Instant,
) -> Result<Result<Recoverable, Lack>> {
    let repository = awaited.system.repository().name();
    let (mut pause, longest) = PAUSES;
    let mut lack = Lack {
        what: "it does not answer".to_owned(),
        only_backup: false,
    };
    loop {
        // A store that hangs must not keep us longer.
        let looked = tokio::time::timeout_at(deadline, look(awaited, point)).await;
        match looked {
            Ok(Ok((backup, timeline))) => {
                let after = started.elapsed();
                tracing::info!("{repository}: recoverable from backup {backup}");
                return Ok(Ok(Recoverable {
                    repository: repository.to_owned(),
                    backup,
                    timeline,
                    after,
                }));
            }
            Ok(Err(Look::GiveUp(error))) => return Err(error),
            Ok(Err(Look::Lacks(now))) => {
                if now.what != lack.what {
                    tracing::info!("{repository}: not yet: {}", now.what);
                }
                lack = now;
            }
            Err(_) => return Ok(Err(lack)),
        }
        if Instant::now() + pause >= deadline {
            tokio::time::sleep_until(deadline).await;
        } else {
            tokio::time::sleep(pause).await;
        }
        pause = (pause * 3 / 2).min(longest);
    }
}

/// Why a repository cannot bring the point back.
enum Look {
    Lacks(Lack),
    GiveUp(Error),
}

/// One look at a repository: the backup that a restore by the point's name starts from, and the
/// timeline that it must be told.
async fn look(
    awaited: &Awaited,
    point: &RestorePoint,
) -> Result<(BackupId, Option<TimelineId>), Look> {
    let lacks = |error: Error, only_backup| {
        let what = match error.exit() {
            Exit::Unreachable => error.what().to_owned(),
            _ => error.one_line(),
        };
        Look::Lacks(Lack { what, only_backup })
    };
    let loaded = Catalogue::load(&awaited.system).await;
    let mut catalogue = loaded.map_err(|error| lacks(error, false))?;
    refuse_used_name(&catalogue, &point.name, point.lsn).map_err(Look::GiveUp)?;
    let leads = leads_to(&catalogue, point.timeline, point.lsn);
    match (leads.map_err(|error| lacks(error, false))?, awaited.is_copy) {
        (true, _) => {}
        (false, true) => return Err(lacks(no_backup(&awaited.system), true)),
        (false, false) => return Err(Look::GiveUp(no_backup(&awaited.system))),
    }
    // Known to us, whether it is recorded there or not: the WAL need not be searched for it.
    catalogue.points.push(point.clone());
    points::sort(&mut catalogue.points);
    // Planned as the restore will be. The newest timeline may be of a server that was restored
    // and promoted beside this one, and not pass the point; while its history cannot be used,
    // nothing can be said of it.
    let newest = catalogue.history(catalogue.newest_timeline());
    let passed = newest.is_ok_and(|newest| newest.contains(point.timeline, point.lsn));
    let timeline = (!passed).then_some(point.timeline);
    let request = Request {
        target: RecoveryTarget::Name(point.name.clone()),
        inclusive: true,
        timeline,
        backup: None,
        end_at_gap: false,
    };
    match catalogue.plan(&request).await {
        Ok(plan) => Ok((plan.backup.id, timeline)),
        Err(error) if error.exit() == Exit::Refused => Err(Look::GiveUp(error)),
        Err(error) => Err(lacks(error, false)),
    }
}

/// Recovery stops at the first point of a name.
fn refuse_used_name(catalogue: &Catalogue, name: &str, lsn: Lsn) -> Result<()> {
    let mut points = catalogue.points.iter();
    match points.find(|other| other.name == name && other.lsn != lsn) {
        None => Ok(()),
        Some(other) => Err(Error::refused(format!(
            "a restore point {name:?} was made before, at {}",
            other.time
        ))
        .at(catalogue.system().place())
        .hint("a restore by that name would stop there: choose another, with the release's number or the time in it")),
    }
}

/// Whether a finished backup leads to that position, if its timeline is known there.
fn leads_to(catalogue: &Catalogue, timeline: TimelineId, lsn: Lsn) -> Result<bool> {
    let history = catalogue.history(timeline)?;
    let mut backups = catalogue.backups.iter();
    Ok(backups.any(|b| b.stop_lsn <= lsn && history.contains(b.timeline, b.stop_lsn)))
}

fn no_backup(system: &System) -> Error {
    let repository = system.repository().name();
    Error::unreachable(format!(
        "no finished backup in repository {repository} leads there"
    ))
    .at(system.place())
    .hint(format!(
        "take one with `seawall backup --repository {repository}`, or name the repositories to wait for with --repository"
    ))
}
