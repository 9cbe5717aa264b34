//! How far a copy is behind its source, by listing alone.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::difference::{lacked_in_log, logs_from};
use super::shape::{left_at, shape};
use super::wanted::{Finished, judge};
use crate::config::{Config, RepositoryConfig, RetentionConfig};
use crate::error::{Error, Result};
use crate::postgres::{SystemId, TimelineId, WalFileName};
use crate::repository::keys::{BackupId, WalObject};
use crate::repository::{Repository, System};
use crate::storage::ObjectInfo;

/// What a copy lacks of what it wants.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// WAL segments that the source holds and the copy lacks.
    pub segments: u64,
    /// Bytes as stored: of these segments, and of all else of the WAL that is lacking.
    pub wal_bytes: u64,
    /// Seconds since the oldest WAL object that is lacking was stored at the source, by that
    /// store's clock; 0 where none is lacking.
    pub seconds: f64,
    /// Timelines whose `.history` is lacking.
    pub histories: Vec<TimelineId>,
    /// Backups that are finished at the source and not here, oldest first.
    pub backups: Vec<BackupId>,
}

impl Lag {
    /// Whether nothing is lacking.
    pub fn is_none(&self) -> bool {
        self.segments == 0
            && self.wal_bytes == 0
            && self.histories.is_empty()
            && self.backups.is_empty()
    }
}

/// How far the repository `copy`, which has `copy_from`, is behind its source with one system of
/// `cluster`.
///
/// # Errors
/// It is no copy, or as [`lag`].
pub async fn lag_of(
    config: &Config,
    copy: &RepositoryConfig,
    cluster: &str,
    system: SystemId,
) -> Result<Lag> {
    let source = copy.copy_from.iter().cloned().collect::<Vec<_>>();
    let source = config.repositories(&source)?;
    let [source] = source.as_slice() else {
        return Err(Error::usage(format!(
            "repository {:?} is no copy",
            copy.name
        )));
    };
    let (source, aim) = (Repository::open(source)?, Repository::open(copy)?);
    source.record().await?;
    aim.record().await?;
    lag(
        &source.system(cluster, system),
        &aim.system(cluster, system),
        &copy.retention,
    )
    .await
}

/// How far `aim` is behind `source`, the same system in two repositories. Segments that the
/// source holds behind one that is still on its way there are not counted, since they are of no
/// use without it, and neither is what the copy's own `rules` would not keep: a backup, or WAL
/// that retention removed there.
///
/// Two listings for each 4 GiB of WAL; memory is that of one of them. Where the copy has rules,
/// both are listed once more for these, and their markers read.
///
/// # Errors
/// One of the two cannot be listed, or the source does not know the system.
pub async fn lag(source: &System, aim: &System, rules: &RetentionConfig) -> Result<Lag> {
    let size = source.known_record().await?.segment_size;
    let (mut here, mut there) = (Finished::default(), Finished::default());
    here.refresh(source, |_, _| {}).await?;
    there.refresh(aim, |_, _| {}).await?;
    let (lacking, removed) = (
        here.lacking_in(&there),
        here.removed_at(source, aim, size).await?,
    );
    let judged = judge(source, aim, rules, lacking, removed).await?;
    let wanted = judged.wanted(here.backups().cloned(), size);
    let from = wanted.wal_from.segment(size);
    let backups = wanted.backups.iter().map(|backup| backup.id.clone());
    let mut lag = Lag {
        backups: backups.filter(|id| !there.has(id)).collect(),
        ..Lag::default()
    };
    let mut oldest: Option<Timestamp> = None;
    let mut count = |lag: &mut Lag, info: &ObjectInfo| {
        lag.wal_bytes += info.size;
        oldest = Some(oldest.map_or(info.modified, |oldest| oldest.min(info.modified)));
    };
    let files = source.history_files().await?;
    let theirs = aim.history_objects().await?;
    for (timeline, ours) in source.history_objects().await? {
        let held = theirs.get(&timeline);
        let is_held = |object: &WalObject| held.is_some_and(|held| held.contains(object));
        if ours.iter().all(&is_held) {
            continue;
        }
        lag.histories.push(timeline);
        let name = WalFileName::History(timeline);
        let ours = source.objects_of(name).await?.into_iter();
        for (_, info) in ours.filter(|(object, _)| !is_held(object)) {
            count(&mut lag, &info);
        }
    }
    for timeline in source.timelines_with_wal().await? {
        let wal = source.timeline_wal(timeline, size, from).await?;
        let Some(shape) = shape(&wal, left_at(timeline, files.read.values(), size), None) else {
            continue;
        };
        let expired = aim.expired(timeline, size).await?;
        for first in logs_from(source, timeline, from, size).await? {
            for one in lacked_in_log(source, aim, first, size).await? {
                if !shape.takes(one.object.name, one.number)
                    || wanted.withheld.has(timeline, one.number, &expired)
                {
                    continue;
                }
                lag.segments += u64::from(matches!(one.object.name, WalFileName::Segment(_)));
                count(&mut lag, &one.info);
            }
        }
    }
    if let Some(oldest) = oldest {
        lag.seconds = Timestamp::now()
            .duration_since(oldest)
            .as_secs_f64()
            .max(0.0);
    }
    Ok(lag)
}
