//! Which backup an incremental one is taken on top of, and why another one is not.
//!
//! What a parent must be: finished, whole with its chain, in order, of the same pages, and
//! wholly in the past of this timeline. Its damaged pages are no hindrance: they are copied
//! anew, and marked anew.

use std::path::Path;

use crate::backup::Settings;
use crate::error::{Error, IoContext, Result};
use crate::postgres::control::ControlFile;
use crate::postgres::history::TimelineHistory;
use crate::postgres::sql::Client;
use crate::postgres::{TimelineId, WalFileName};
use crate::repository::System;
use crate::repository::catalogue::Catalogue;
use crate::repository::chain;
use crate::repository::keys::BackupId;
use crate::repository::marker::Marker;
use crate::repository::tombstones::Tombstones;

/// What an incremental backup is taken on top of.
pub struct Base {
    /// The parent, with its list of objects.
    pub parent: Marker,
    /// The names of the parent and of all that it was taken on top of.
    pub chain: Vec<BackupId>,
    /// The history of the server's timeline.
    pub history: TimelineHistory,
}

/// What is to be taken.
pub enum Choice {
    /// An incremental backup.
    On(Box<Base>),
    /// A full one, and why it is no incremental one.
    Full {
        /// Absent where a full one was asked for.
        because: Option<String>,
    },
}

/// The newest backup of `system` that a backup of this server can be taken on top of, or the
/// one that is named.
///
/// # Errors
/// The repository does not answer; the one that is named is not there (exit code 5), or cannot
/// be a parent (4).
pub async fn choose(
    client: &Client,
    system: &System,
    control: &ControlFile,
    settings: &Settings,
) -> Result<Choice> {
    let timeline = client.current_timeline().await?;
    let found = match history(system, &settings.data_directory, timeline).await? {
        Some(history) => find(system, control, history, settings.parent.as_ref()).await?,
        None => Err(format!(
            "the history of timeline {timeline} is neither in pg_wal nor in the archive"
        )),
    };
    match (found, &settings.parent) {
        (Ok(base), _) => {
            tracing::info!("an incremental backup on top of {}", base.parent.id);
            Ok(Choice::On(Box::new(base)))
        }
        (Err(why), None) => {
            tracing::warn!("a full backup is taken instead of an incremental one: {why}");
            Ok(Choice::Full { because: Some(why) })
        }
        (Err(why), Some(_)) => Err(Error::refused(format!(
            "no incremental backup can be taken on top of {why}"
        ))
        .at(system.place())
        .hint(
            "without --parent, Seawall looks for another, and takes a full one if there is none",
        )),
    }
}

/// The history of the server's own timeline: from its pg_wal, else from the archive.
async fn history(
    system: &System,
    data_directory: &Path,
    timeline: TimelineId,
) -> Result<Option<TimelineHistory>> {
    if timeline == TimelineId::FIRST {
        return Ok(Some(TimelineHistory::first()));
    }
    let name = WalFileName::History(timeline).to_string();
    let path = data_directory.join("pg_wal").join(name);
    match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(system.history_files().await?.read.remove(&timeline))
        }
        content => {
            let content = content.on("read", &path)?;
            Ok(Some(TimelineHistory::parse(timeline, &content)?))
        }
    }
}

async fn find(
    system: &System,
    control: &ControlFile,
    history: TimelineHistory,
    named: Option<&BackupId>,
) -> Result<Result<Base, String>> {
    let catalogue = Catalogue::load(system).await?;
    let tombstones = system.repository().tombstones(system.cluster()).await?;
    let mut candidates: Vec<&Marker> = match named {
        None => catalogue.backups.iter().collect(),
        Some(named) => {
            let found = catalogue.backups.iter().find(|backup| backup.id == *named);
            vec![found.ok_or_else(|| {
                Error::unreachable(format!("there is no finished backup {named}"))
                    .at(system.place())
                    .hint("`seawall list` shows those that there are")
            })?]
        }
    };
    candidates.sort_by(|a, b| (b.start_lsn, &b.id).cmp(&(a.start_lsn, &a.id)));
    // The newest says what is in the way; that of older ones is no news.
    let mut newest = None;
    for candidate in candidates {
        let why = match why_not(
            &catalogue.backups,
            candidate,
            control,
            &history,
            &tombstones,
        ) {
            Some(why) => why,
            None => match load(system, &catalogue.backups, candidate).await? {
                Ok((parent, chain)) => {
                    return Ok(Ok(Base {
                        parent,
                        chain,
                        history,
                    }));
                }
                Err(why) => why,
            },
        };
        tracing::info!("{} is no parent: {why}", candidate.id);
        newest.get_or_insert_with(|| format!("{}: {why}", candidate.id));
    }
    Ok(Err(newest.unwrap_or_else(|| {
        "there is no finished backup of this system yet".to_owned()
    })))
}

/// What shows without asking the store that `candidate` cannot be a parent.
fn why_not(
    backups: &[Marker],
    candidate: &Marker,
    control: &ControlFile,
    history: &TimelineHistory,
    tombstones: &Tombstones,
) -> Option<String> {
    let same_pages = (candidate.block_size, candidate.catalog_version)
        == (control.block_size, control.catalog_version);
    let holds = |lsn| history.contains(candidate.timeline, lsn);
    if !candidate.in_order {
        Some("it came over the replication protocol, and its files are in no order".to_owned())
    } else if !same_pages {
        Some("it is of another version or block size".to_owned())
    } else if candidate.data_checksums != control.data_checksums {
        Some("page checksums were switched since".to_owned())
    } else if !holds(candidate.start_lsn) || !holds(candidate.stop_lsn) {
        Some(format!(
            "it lies on timeline {} from {} to {}, which is not wholly in the past of timeline {}",
            candidate.timeline, candidate.start_lsn, candidate.stop_lsn, history.timeline
        ))
    } else {
        match chain::of(backups, candidate) {
            Err(broken) => Some(broken.to_string()),
            Ok(chain) => chain.iter().find_map(|link| doomed(tombstones, link)),
        }
    }
}

fn doomed(tombstones: &Tombstones, backup: &Marker) -> Option<String> {
    let named = tombstones.read.iter().find_map(|(_, t)| t.names(backup))?;
    Some(format!("{named} is about to be deleted"))
}

/// The candidate with its list of objects, if those of its whole chain are there.
async fn load(
    system: &System,
    backups: &[Marker],
    candidate: &Marker,
) -> Result<Result<(Marker, Vec<BackupId>), String>> {
    let chain = match chain::of(backups, candidate) {
        Ok(chain) => chain,
        Err(broken) => return Ok(Err(broken.to_string())),
    };
    let mut parent = None;
    for link in &chain {
        let Some(marker) = system.marker(&link.id).await? else {
            return Ok(Err(format!("{} was deleted a moment ago", link.id)));
        };
        if let Some(missing) = system.missing_object(&marker).await? {
            return Ok(Err(missing));
        }
        parent.get_or_insert(marker);
    }
    Ok(match parent {
        Some(parent) => Ok((parent, chain.iter().map(|link| link.id.clone()).collect())),
        None => Err(format!("{} has no chain", candidate.id)),
    })
}

impl Base {
    /// Looks once more, now that a lease names it.
    ///
    /// # Errors
    /// Part of it is gone, or about to be deleted.
    pub async fn still_there(&self, system: &System) -> Result<()> {
        match system.lost_link(&self.chain).await? {
            None => Ok(()),
            Some(lost) => Err(Error::failed("the parent was deleted a moment ago")
                .at(system.place())
                .because(lost.to_string())
                .hint("take the backup again")),
        }
    }
}
