//! What is said where nothing reaches a target: what can be reached instead, on this timeline
//! and on others.

use jiff::Timestamp;

use super::Planner;
use super::aim::Bound;
use crate::error::{Error, Result};
use crate::postgres::recovery::RecoveryTarget;
use crate::postgres::{Lsn, TimelineId};
use crate::repository::catalogue::Unreadable;
use crate::repository::commits::{self, LastEnd};
use crate::repository::keys::BackupId;

/// Archived WAL that a line does not pass: of a timeline that it left, or never was on.
struct Branch {
    timeline: TimelineId,
    /// The segment with the switch point.
    from: u64,
    end: Lsn,
    end_stored: Timestamp,
}

impl Planner<'_> {
    /// There is no such backup, or it is there and cannot be used.
    pub(super) fn not_usable(&self, id: &BackupId) -> Error {
        let mut unreadable = self.catalogue.unreadable.iter();
        match unreadable.find(|object| object.backup.as_ref() == Some(id)) {
            Some(object) => object.error().at(self.catalogue.system().place()),
            None => self
                .unreachable(format!("there is no finished backup {id}"))
                .hint("`seawall list` shows them"),
        }
    }

    /// The backup that leads to the target may be one that cannot be used.
    pub(super) fn with_unreadable(&self, error: Error) -> Error {
        let unreadable = self.catalogue.unreadable.iter();
        let markers: Vec<&Unreadable> = unreadable.filter(|o| o.backup.is_some()).collect();
        let Some(first) = markers.first() else {
            return error;
        };
        let why: Vec<&str> = markers.iter().map(|object| object.why.as_str()).collect();
        let hints = [first.hint.as_deref(), error.advice()];
        let hints: Vec<&str> = hints.into_iter().flatten().collect();
        Error::failed(format!(
            "{}; no other backup leads to the target: {}",
            why.join("; "),
            error.what()
        ))
        .at(self.catalogue.system().place())
        .hint(hints.join("; "))
    }

    /// No restore point of that name is on the line, recorded or not.
    pub(super) fn no_such_point(&self, name: &str) -> Error {
        let all = &self.catalogue.points;
        let elsewhere: Vec<String> = all
            .iter()
            .filter(|point| point.name == name)
            .map(|point| format!("--timeline {}", point.timeline))
            .collect();
        let hint = if elsewhere.is_empty() {
            let mut known: Vec<String> = all
                .iter()
                .map(|point| format!("{:?}", point.name))
                .collect();
            known.sort();
            known.dedup();
            match known.is_empty() {
                true => "none is recorded; `seawall list --scan` looks for all that there are"
                    .to_owned(),
                false => format!(
                    "recorded are {}; `seawall list --scan` looks for all that there are",
                    known.join(", ")
                ),
            }
        } else {
            format!("it was made on another branch: {}", elsewhere.join(" or "))
        };
        self.unreachable(format!(
            "there is no restore point {name:?} in the archived WAL of timeline {}",
            self.history.timeline
        ))
        .hint(hint)
    }

    pub(super) fn nothing_reaches(&self, bound: Bound) -> Error {
        self.unreachable(match bound {
            Bound::None => format!(
                "no finished backup lies on timeline {}",
                self.history.timeline
            ),
            Bound::Lsn(lsn) | Bound::Point(lsn) => format!("no backup ends before {lsn}"),
            Bound::Transaction { start, .. } => {
                format!("no backup ends before {start}, where the transaction ends")
            }
            Bound::Time(time) => format!("no backup ends before {time}"),
            Bound::Xid(xid) => format!("no backup ends before transaction {xid}"),
        })
        .hint(self.earliest())
    }

    pub(super) fn earliest(&self) -> String {
        match self.on_line().min_by_key(|backup| backup.stop_lsn) {
            Some(first) => format!(
                "the earliest moment that can be reached on timeline {} is {} (LSN {}), the end of backup {}",
                self.history.timeline, first.stop_time, first.stop_lsn, first.id
            ),
            None => {
                let others: Vec<_> = self
                    .catalogue
                    .backups
                    .iter()
                    .map(|b| format!("{} on timeline {}", b.id, b.timeline))
                    .collect();
                if others.is_empty() {
                    "there is no finished backup at all; take one with `seawall backup`".to_owned()
                } else {
                    format!("finished backups: {}", others.join(", "))
                }
            }
        }
    }

    /// A moment may be meant that lies on a branch which this line does not pass.
    pub(super) async fn mention_branches(&mut self, time: Timestamp) -> Result<()> {
        for branch in self.branches().await? {
            // Clocks of the store only inform: the branch was written to then, or later.
            if branch.end_stored < time || !self.may_be_behind_fork(&branch, time).await {
                continue;
            }
            self.warnings.push(format!(
                "timeline {} was written to at {time}, too, or later, up to LSN {} (stored at {}), and timeline {} does not pass there; if that is meant, add --timeline {}",
                branch.timeline, branch.end, branch.end_stored, self.history.timeline, branch.timeline
            ));
        }
        Ok(())
    }

    /// Whether the last transaction before the fork ended before `time`. In doubt it did.
    async fn may_be_behind_fork(&self, branch: &Branch, time: Timestamp) -> bool {
        let Some(before) = branch.from.checked_sub(1) else {
            return true;
        };
        let name = self.history.segment_name(before, self.size());
        let trunk = [(name.timeline, before, before)];
        match commits::last_end(self.catalogue.system(), &trunk, self.size()).await {
            Ok(LastEnd::At(last)) => last.time <= time,
            _ => true,
        }
    }

    /// Adds to a refusal which other timelines may lead to the target.
    pub(super) async fn with_other_timelines(&self, error: Error) -> Error {
        let Ok(branches) = self.branches().await else {
            return error;
        };
        let others: Vec<String> = branches
            .iter()
            .filter(|branch| match &self.request.target {
                RecoveryTarget::Lsn(lsn) => *lsn < branch.end,
                RecoveryTarget::Time(time) => *time <= branch.end_stored,
                RecoveryTarget::Xid(_) => true,
                _ => false,
            })
            .map(|branch| {
                format!(
                    "timeline {} reaches LSN {}, stored at {}: --timeline {}",
                    branch.timeline, branch.end, branch.end_stored, branch.timeline
                )
            })
            .collect();
        if others.is_empty() {
            return error;
        }
        let hint = error.advice().unwrap_or_default().to_owned();
        error.hint(format!("{hint}; {}", others.join("; ")))
    }

    /// The archived WAL of all timelines that this line does not pass.
    async fn branches(&self) -> Result<Vec<Branch>> {
        let size = self.size();
        let mut branches = Vec::new();
        for (timeline, own) in &self.catalogue.histories {
            let from = match self.history.has(*timeline) {
                // What its successor begins with lies in that segment, too.
                true => self.history.end_of(*timeline),
                false => own.begin_of(*timeline),
            };
            let Some(from) = from else { continue };
            let from = from.segment(size);
            let system = self.catalogue.system();
            let wal = system.timeline_wal(*timeline, size, from).await?;
            if let Some(run) = wal.runs.last() {
                branches.push(Branch {
                    timeline: *timeline,
                    from,
                    end: size.start_of(run.last + 1),
                    end_stored: run.last_stored,
                });
            }
        }
        Ok(branches)
    }

    pub(super) fn reachable(&self, end: Lsn, stored: Option<Timestamp>) -> String {
        let until = stored.map_or(String::new(), |at| format!(", stored at {at}"));
        let within = self.on_line().filter(|b| b.stop_lsn <= end);
        match within.min_by_key(|b| b.stop_lsn) {
            Some(first) => format!(
                "on timeline {} one can reach LSN {} ({}) to {end}{until}",
                self.history.timeline, first.stop_lsn, first.stop_time
            ),
            None => self.earliest(),
        }
    }
}
