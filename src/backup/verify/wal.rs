//! The WAL that a backup needs itself, from its start to the end: there, what it says it is,
//! and each segment going on where the one before it ends.

use futures::StreamExt;

use crate::postgres::wal_chain::{Chain, Fit, follows};
use crate::postgres::{SegmentName, WalFileName};
use crate::progress::Progress;
use crate::repository::System;
use crate::repository::marker::Marker;
use crate::wal::object::{self, Content, Trouble};

use super::finding::{Finding, Kind};

/// Reads it, `jobs` segments at a time. Memory: a few MiB for each.
pub(super) async fn check(
    system: &System,
    marker: &Marker,
    jobs: usize,
    quick: bool,
    progress: &Progress,
) -> Vec<Finding> {
    let (first, last) = marker.own_wal();
    let mut segments = futures::stream::iter(first..=last)
        .map(|number| async move {
            let name = SegmentName::new(marker.timeline, number, marker.segment_size);
            let key = system.keys().before_wal_objects(WalFileName::Segment(name));
            (key, segment(system, marker, name, quick, progress).await)
        })
        .buffered(jobs.max(1));
    let mut findings = Vec::new();
    let mut before: Option<Chain> = None;
    while let Some((key, read)) = segments.next().await {
        let chain = match read {
            Ok(chain) => chain,
            Err(finding) => {
                findings.push(Finding {
                    key: key.clone(),
                    ..finding
                });
                None
            }
        };
        if let (Some(before), Some(chain)) = (&before, &chain)
            && let Fit::Breaks(why) = follows(before, chain)
        {
            findings.push(Finding::new(Kind::Wal, key, why));
        }
        before = chain;
    }
    findings
}

/// Reads one segment. A finding of its own has no key yet.
async fn segment(
    system: &System,
    marker: &Marker,
    name: SegmentName,
    quick: bool,
    progress: &Progress,
) -> Result<Option<Chain>, Finding> {
    let file = WalFileName::Segment(name);
    let wrong = |what: String| Err(Finding::new(Kind::Wal, "", what));
    let objects = match system.objects_of(file).await {
        Ok(objects) => objects,
        Err(error) => return Err(Finding::new(Kind::Unread, "", error.one_line())),
    };
    let Some((object, info)) = objects.first() else {
        return wrong(format!(
            "WAL segment {name} is not archived: backup {} cannot become consistent without it",
            marker.id
        ));
    };
    if objects
        .iter()
        .any(|(other, _)| other.digest != object.digest)
    {
        return wrong(format!(
            "WAL segment {name} is archived with different contents: `seawall wal resolve` settles it"
        ));
    }
    if quick {
        return Ok(None);
    }
    let read = object::read(system, *object, marker.segment_size).await;
    progress.add(info.size);
    match read {
        Ok(Content::Segment(chain)) => Ok(Some(*chain)),
        Ok(_) => wrong(format!("WAL segment {name} holds no WAL")),
        Err(Trouble::Damaged(why)) => wrong(format!("WAL segment {name} is damaged: {why}")),
        Err(trouble @ Trouble::Unread(_)) => Err(Finding::of_trouble("", &trouble)),
    }
}
