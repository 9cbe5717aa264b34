//! Finding a target in archived WAL whose place nobody recorded.
//!
//! The WAL of a line is read in parts, each from one backup's start to the next one's: so
//! whatever is found, the backup that leads there is known, and no segment is read twice.

use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;

use super::Planner;
use crate::error::{Error, Result};
use crate::postgres::Lsn;
use crate::postgres::wal_records::{Content, WalRecord};
use crate::progress::Progress;
use crate::repository::line;
use crate::repository::marker::Marker;
use crate::repository::points::RestorePoint;
use crate::repository::scan::Segments;

/// What a search came to.
pub(super) enum Search<T> {
    Found(T),
    /// All of the WAL was read. Where there is one after all, it lies at a place that no backup
    /// leads to.
    Absent(Option<Lsn>),
    /// Not all of it could be read.
    Unknown(Error),
}

/// The WAL from a backup's start to that of the next.
struct Part<'a> {
    backup: &'a Marker,
    segments: Segments,
    end: Option<Lsn>,
}

impl<'a> Planner<'a> {
    /// The first restore point of that name behind the newest of `backups` that has one behind
    /// it, with that backup. Reads from the newest backup's WAL backwards.
    pub(super) async fn find_point(
        &self,
        name: &str,
        backups: &[&'a Marker],
    ) -> Search<(RestorePoint, &'a Marker)> {
        let parts = match self.parts(backups).await {
            Ok(parts) => parts,
            Err(error) => return Search::Unknown(error),
        };
        let progress = announce(&format!("the restore point {name:?}"), &parts);
        let mut unknown = None;
        // The first of that name behind what was read so far.
        let mut behind = None;
        for part in parts.iter().rev() {
            let wanted = name.to_owned();
            let first = self.first_in(part, &progress, move |record| match &record.content {
                Content::RestorePoint { name: other, time } if *other == wanted => {
                    Some((record.start, record.end, *time))
                }
                _ => None,
            });
            match first.await {
                Ok(first) => behind = first.or(behind),
                Err(error) => {
                    // Recovery would not get past what cannot be read.
                    behind = None;
                    unknown = Some(error);
                }
            }
            // PostgreSQL stops at the first, also where the backup is not consistent yet.
            if let Some((start, end, time)) = behind
                && part.backup.stop_lsn <= end
            {
                progress.clear();
                let timeline = self.history.ancestry_at(start);
                let point = RestorePoint::new(name, timeline, end, time);
                return Search::Found((point, part.backup));
            }
        }
        progress.clear();
        match unknown {
            Some(error) => Search::Unknown(error),
            None => Search::Absent(behind.map(|(_, end, _)| end)),
        }
    }

    /// Where the record that ends transaction `xid` begins and ends: the first behind the
    /// oldest of `backups`.
    pub(super) async fn find_end(&self, xid: u32, backups: &[&'a Marker]) -> Search<(Lsn, Lsn)> {
        let parts = match self.parts(backups).await {
            Ok(parts) => parts,
            Err(error) => return Search::Unknown(error),
        };
        let progress = announce(&format!("the end of transaction {xid}"), &parts);
        for part in &parts {
            let found = self.first_in(part, &progress, move |record| {
                let ended = record.transaction_end()?;
                (ended.xid == Some(xid)).then_some((record.start, record.end))
            });
            match found.await {
                Ok(Some(found)) => {
                    progress.clear();
                    return Search::Found(found);
                }
                Ok(None) => {}
                Err(error) => {
                    progress.clear();
                    return Search::Unknown(error);
                }
            }
        }
        progress.clear();
        Search::Absent(None)
    }

    /// How far archived WAL reaches from any of `backups`.
    pub(super) async fn reached_by(&self, backups: &[&'a Marker]) -> Lsn {
        let parts = self.parts(backups).await.unwrap_or_default();
        let last = parts
            .iter()
            .filter_map(|part| part.segments.backwards().next());
        let ends = last.filter_map(|name| name.start(self.size()).ok());
        let ends = ends.map(|start| Lsn(start.0 + self.size().bytes()));
        ends.max().unwrap_or_default()
    }

    /// The archived WAL of this line behind the start of each backup, oldest first.
    async fn parts(&self, backups: &[&'a Marker]) -> Result<Vec<Part<'a>>> {
        let size = self.size();
        let mut backups = backups.to_vec();
        backups.sort_by_key(|backup| (backup.start_lsn, backup.stop_lsn));
        let Some(oldest) = backups.first() else {
            return Ok(Vec::new());
        };
        let oldest = oldest.start_lsn.segment(size);
        let archived = self.catalogue.archived(self.history, oldest).await?;
        let parts = backups.iter().enumerate().map(|(at, backup)| {
            let end = backups.get(at + 1).map(|next| next.start_lsn);
            let start = backup.start_lsn.segment(size);
            let line = line::follow(self.history, start, size, &archived);
            let last = end.map_or(u64::MAX, |end| end.previous_segment(size));
            let stretches = line
                .segments
                .into_iter()
                .filter(|(_, first, _)| *first <= last);
            let stretches =
                stretches.map(|(timeline, first, end)| (timeline, first, end.min(last)));
            Part {
                backup,
                segments: Segments::new(stretches.collect(), size),
                end,
            }
        });
        Ok(parts.collect())
    }

    /// The first record of a part that is `wanted`.
    async fn first_in<T: Send + 'static>(
        &self,
        part: &Part<'_>,
        progress: &Progress,
        wanted: impl Fn(&WalRecord) -> Option<T> + Clone + Send + 'static,
    ) -> Result<Option<T>> {
        let history = Arc::new(self.history.clone());
        let (begin, end) = (part.backup.start_lsn, part.end);
        let system = self.catalogue.system();
        let scan = system.scan(part.segments.clone(), move |segment, record| {
            let left = history.end_of(segment.timeline);
            let passed = left.is_none_or(|left| record.start < left);
            let within = begin <= record.start && end.is_none_or(|end| record.start < end);
            (passed && within).then(|| wanted(record))?
        });
        let mut scan = pin!(scan);
        while let Some((_, found)) = scan.next().await {
            progress.add(self.size().bytes());
            if let Some(first) = found?.into_iter().next() {
                return Ok(Some(first));
            }
        }
        Ok(None)
    }
}

fn announce(what: &str, parts: &[Part<'_>]) -> Progress {
    let bytes: u64 = parts.iter().map(|part| part.segments.bytes()).sum();
    tracing::info!(
        "looking for {what} in up to {} of archived WAL",
        indicatif::HumanBytes(bytes)
    );
    Progress::new("reading WAL", Some(bytes))
}
