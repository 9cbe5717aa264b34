//! The windows in time: from which moment to which one can recover. Listings tell where WAL
//! ends; the last commit in it is read.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::catalogue::Catalogue;
use super::commits::{self, LastEnd};
use super::line::Archived;
use super::marker::Marker;
use super::scan::Stretch;
use crate::error::Result;
use crate::postgres::{Lsn, TimelineId};

/// How [`Window::unknown`] begins where all was read, and no transaction ended in it.
pub const NOTHING_ENDED: &str = "no transaction ended";

/// The moments that one can recover to from one backup, by the server's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The first: the end of the backup.
    pub from: Timestamp,
    /// When the last transaction in the archived WAL behind it ended. `--time` reaches every
    /// moment before this one; without a target, this one, too.
    pub to: Option<Timestamp>,
    /// Why the last moment is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

/// Where a line of archived WAL ends: its timeline, and the number of its last segment.
type LineEnd = (TimelineId, u64);

impl Catalogue {
    /// The window of each backup, in the order of [`backups`](Self::backups); none of a backup
    /// whose own WAL is not here. For each end of a line it reads the last segment that holds
    /// the end of a transaction: few segments, at most 256 MiB of WAL (or one segment that is
    /// larger), however many backups lead there. What cannot be read is unknown, and no error.
    pub async fn windows(&self, archived: &Archived) -> Vec<Option<Window>> {
        let lines: Vec<_> = self
            .backups
            .iter()
            .map(|backup| self.stretches_behind(backup, archived))
            .collect();
        // From the oldest backup of each line: what lies behind it holds all the others.
        let mut longest: BTreeMap<LineEnd, Vec<Stretch>> = BTreeMap::new();
        for (end, stretches) in lines.iter().flatten() {
            let begin = |stretches: &[Stretch]| stretches.first().map(|(_, first, _)| *first);
            let known = longest.entry(*end).or_insert_with(|| stretches.clone());
            if begin(stretches) < begin(known) {
                known.clone_from(stretches);
            }
        }
        let mut ends: BTreeMap<LineEnd, Result<LastEnd, String>> = BTreeMap::new();
        for (end, stretches) in longest {
            let size = self.record.segment_size;
            let last = commits::last_end(self.system(), &stretches, size).await;
            let last = last.map_err(|error| error.one_line());
            if let Err(why) = &last {
                tracing::warn!("the last moment of timeline {} is not known: {why}", end.0);
            }
            ends.insert(end, last);
        }
        let windows = self.backups.iter().zip(lines);
        windows
            .map(|(backup, line)| Some(window(backup, ends.get(&line?.0)?)))
            .collect()
    }

    /// The archived segments from that in which a backup ends to the end of its line.
    fn stretches_behind(
        &self,
        backup: &Marker,
        archived: &Archived,
    ) -> Option<(LineEnd, Vec<Stretch>)> {
        let (reach, line) = self.line_of(backup, archived)?;
        let own = backup.stop_lsn.previous_segment(self.record.segment_size);
        let stretches: Vec<Stretch> = line
            .segments
            .into_iter()
            .filter(|(_, _, last)| *last >= own)
            .map(|(timeline, first, last)| (timeline, first.max(own), last))
            .collect();
        let (.., last) = *stretches.last()?;
        Some(((reach.timeline, last), stretches))
    }
}

fn window(backup: &Marker, last: &Result<LastEnd, String>) -> Window {
    let behind = |lsn: Lsn| lsn >= backup.stop_lsn;
    let (to, unknown) = match last {
        Ok(LastEnd::At(end)) if behind(end.lsn) => (Some(end.time), None),
        Ok(LastEnd::At(_) | LastEnd::Never) => {
            (None, Some(format!("{NOTHING_ENDED} since the backup")))
        }
        Ok(LastEnd::Unknown) => (
            None,
            Some(format!("{NOTHING_ENDED} in the newest 256 MiB of WAL")),
        ),
        Err(why) => (None, Some(why.clone())),
    };
    Window {
        from: backup.stop_time,
        to,
        unknown,
    }
}
