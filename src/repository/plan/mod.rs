//! Which backup leads to which target: the plan of a recovery, or what can be reached instead.
//!
//! Order is timeline ancestry and LSN. Clocks decide only where the target itself is a time,
//! and then it is the server's clock, as each backup and each commit recorded it; the store's
//! clock only informs. Where listings cannot tell, archived WAL is read: for the last commit
//! before a time's end, and for a transaction or a restore point whose place nobody recorded.

mod aim;
mod judge;
mod refusal;
mod search;

use jiff::Timestamp;

use super::catalogue::Catalogue;
use super::chain;
use super::keys::{BackupId, BackupKind};
use super::line::{self, Line};
use super::marker::Marker;
use super::points::RestorePoint;
use crate::error::{Error, Exit, Result};
use crate::postgres::history::TimelineHistory;
use crate::postgres::recovery::RecoveryTarget;
use crate::postgres::{Lsn, SegmentSize, TimelineId};
use aim::{Aim, Bound};

/// What a person asks a recovery for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where to stop.
    pub target: RecoveryTarget,
    /// Whether the target itself is replayed.
    pub inclusive: bool,
    /// The timeline to follow. `None`: the newest.
    pub timeline: Option<TimelineId>,
    /// The backup to start from. `None`: the newest that leads there.
    pub backup: Option<BackupId>,
    /// Accept that WAL ends at a gap.
    pub end_at_gap: bool,
}

/// How a recovery will go.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The backup to start from, with its list of objects.
    pub backup: Marker,
    /// Where that is incremental, what it is on top of, newest first, down to a full one, with
    /// their lists of objects.
    pub parents: Vec<Marker>,
    /// The timeline to follow.
    pub history: TimelineHistory,
    /// Segments from the backup's start to the last that may be needed, as far as they are
    /// archived, oldest first: timeline, first and last number.
    pub segments: Vec<(TimelineId, u64, u64)>,
    /// The end of the last archived segment on that line.
    pub wal_end: Lsn,
    /// When that segment was stored, by the store's clock.
    pub wal_end_stored: Timestamp,
    /// The line goes on behind `wal_end` after a gap or a conflict: whoever asks for more than
    /// the target needs meets an error.
    pub broken_behind: bool,
    /// What the person should know.
    pub warnings: Vec<String>,
}

impl Plan {
    /// The backup and all that it is on top of, newest first.
    pub fn chain(&self) -> Vec<&Marker> {
        std::iter::once(&self.backup).chain(&self.parents).collect()
    }
}

impl Catalogue {
    /// Chooses the backup and checks that its WAL reaches the target: by listing; for a time
    /// by reading the end of the WAL; for a transaction, and for a restore point that is not
    /// recorded, by reading WAL until it is found. A point that was found is recorded, where
    /// the repository can be written.
    ///
    /// # Errors
    /// Exit code 5 where no backup or WAL reaches the target; the error names what can be
    /// reached. Exit code 4 where the line passes a conflict before the target, or recovery a
    /// history with several contents. Exit code 1 where such a history is damaged, where the
    /// backup that is asked for cannot be used, or none that can leads to the target.
    pub async fn plan(&self, request: &Request) -> Result<Plan> {
        let timeline = match request.timeline {
            Some(timeline) => timeline,
            None => {
                self.refuse_lost_history().await?;
                self.newest_timeline()
            }
        };
        let mut planner = Planner {
            catalogue: self,
            request,
            history: self.history(timeline)?,
            warnings: Vec::new(),
            found: Vec::new(),
        };
        let plan = planner.plan().await;
        self.system()
            .remember_points(&planner.found, &self.points)
            .await;
        match plan {
            // Where one can go instead is asked only now: it costs more listings.
            Err(error) if error.exit() == Exit::Unreachable => {
                Err(planner.with_unreadable(planner.with_other_timelines(error).await))
            }
            plan => plan,
        }
    }

    /// The backup and all that it is on top of, newest first.
    ///
    /// # Errors
    /// Part of that is gone, or cannot be used.
    pub fn chain_of<'a>(&'a self, backup: &'a Marker) -> Result<Vec<&'a Marker>> {
        let broken = |why: String| {
            Error::failed(why)
                .at(self.system().place())
                .hint("choose another backup; `seawall list` shows them")
        };
        let chain = chain::of(&self.backups, backup)
            .map_err(|why| broken(format!("backup {} cannot be restored: {why}", backup.id)))?;
        match chain.iter().skip(1).find(|parent| !parent.in_order) {
            Some(parent) => Err(broken(format!(
                "backup {} cannot be restored: the files of {} are in no order",
                backup.id, parent.id
            ))),
            None => Ok(chain),
        }
    }

    /// Whether the history is here, usable or not.
    fn has_history(&self, timeline: TimelineId) -> bool {
        let mut unusable = self.unusable_histories();
        self.histories.contains_key(&timeline) || unusable.any(|(t, _)| t == timeline)
    }

    /// WAL of a timeline whose history is not here: the newest timeline is not known, and
    /// PostgreSQL would be stopped when it asks for that history, after all its replaying.
    async fn refuse_lost_history(&self) -> Result<()> {
        let with_wal = self.system().timelines_with_wal().await?;
        let lost = with_wal
            .iter()
            .find(|timeline| !self.has_history(**timeline));
        match lost {
            None => Ok(()),
            Some(timeline) => Err(Error::unreachable(format!(
                "there is WAL of timeline {timeline}, and not its history"
            ))
            .at(self.system().place())
            .hint(format!(
                "archive {}.history from a server that still has it in pg_wal, or choose a timeline with --timeline",
                timeline.hex()
            ))),
        }
    }
}

struct Planner<'a> {
    catalogue: &'a Catalogue,
    request: &'a Request,
    history: &'a TimelineHistory,
    warnings: Vec<String>,
    /// Restore points that were found by reading WAL.
    found: Vec<RestorePoint>,
}

impl<'a> Planner<'a> {
    async fn plan(&mut self) -> Result<Plan> {
        let chosen = self.request.backup.as_ref();
        let chosen = chosen.map(|id| self.chosen(id)).transpose()?;
        let Aim { bound, backup } = self.aim(chosen).await?;
        let backup = match (chosen, backup) {
            (Some(chosen), _) => self.allowed(chosen, bound)?,
            (None, Some(backup)) => backup,
            (None, None) => self.newest_before(bound)?,
        };
        self.histories_on_the_way(backup)?;
        let size = self.size();
        let start = backup.start_lsn.segment(size);
        let archived = self.catalogue.archived(self.history, start).await?;
        let line = line::follow(self.history, start, size, &archived);
        let (last, stored) = self.judge(backup, bound, &line)?;
        if let Bound::Time(time) = bound {
            self.judge_time(backup, time, &line, stored).await?;
            self.mention_branches(time).await?;
        }
        if backup.damaged_page_count > 0 {
            self.warnings.push(format!(
                "backup {} holds {} pages whose checksums were wrong already on the source",
                backup.id, backup.damaged_page_count
            ));
        }
        let mut parents = Vec::new();
        for parent in self.catalogue.chain_of(backup)?.into_iter().skip(1) {
            parents.push(self.with_objects(parent).await?);
        }
        Ok(Plan {
            backup: self.with_objects(backup).await?,
            parents,
            history: self.history.clone(),
            wal_end: self.end_of(&line, last),
            broken_behind: line.broken.is_some(),
            segments: line.segments,
            wal_end_stored: stored,
            warnings: std::mem::take(&mut self.warnings),
        })
    }

    /// The backup with the list of its objects, which the catalogue does not hold: its marker
    /// is read once more.
    async fn with_objects(&self, backup: &Marker) -> Result<Marker> {
        let system = self.catalogue.system();
        let marker = system.marker_if_finished(&backup.id).await?.transpose()?;
        marker.ok_or_else(|| {
            let gone = format!("backup {} was deleted a moment ago", backup.id);
            Error::failed(gone).at(system.place()).retryable(true)
        })
    }

    /// PostgreSQL asks for the histories of all numbers from the backup's timeline to the
    /// target's when it starts (PostgreSQL 18, timeline.c, `restoreTimeLineHistoryFiles`), and
    /// for those that follow when it opens (`findNewestTimeLine`): what cannot be told from a
    /// conflict or damage stops it there.
    fn histories_on_the_way(&mut self, backup: &Marker) -> Result<()> {
        let target = self.history.timeline;
        for (timeline, object) in self.catalogue.unusable_histories() {
            if timeline > target {
                self.warnings.push(format!(
                    "PostgreSQL will ask for {}.history when it opens, to number its new timeline, and may stop there: {}",
                    timeline.hex(), object.why
                ));
            } else if timeline >= backup.timeline {
                return Err(object.error().at(self.catalogue.system().place()));
            }
        }
        Ok(())
    }

    /// Where the line ends: with its last segment, or within, at the fork to a timeline that
    /// has archived nothing yet.
    fn end_of(&self, line: &Line, last: u64) -> Lsn {
        let end = self.size().start_of(last + 1);
        let left = line
            .segments
            .last()
            .and_then(|(timeline, ..)| self.history.end_of(*timeline));
        left.map_or(end, |left| left.min(end))
    }

    fn size(&self) -> SegmentSize {
        self.catalogue.record.segment_size
    }

    fn unreachable(&self, what: String) -> Error {
        Error::unreachable(what).at(self.catalogue.system().place())
    }

    fn on_line(&self) -> impl Iterator<Item = &'a Marker> + use<'a> {
        let (history, catalogue) = (self.history, self.catalogue);
        let backups = catalogue.backups.iter();
        backups
            .filter(|b| history.contains(b.timeline, b.stop_lsn))
            .filter(|b| catalogue.chain_of(b).is_ok())
    }

    fn newest_before(&self, bound: Bound) -> Result<&'a Marker> {
        self.on_line()
            .filter(|backup| bound.allows(backup))
            // A merged one before the same that is on top of others: it is read faster.
            .max_by_key(|b| (b.stop_lsn, b.timeline, b.kind == BackupKind::Full))
            .ok_or_else(|| self.nothing_reaches(bound))
    }

    fn chosen(&self, id: &BackupId) -> Result<&'a Marker> {
        let mut backups = self.catalogue.backups.iter();
        let backup = backups
            .find(|backup| backup.id == *id)
            .ok_or_else(|| self.not_usable(id))?;
        if !self.history.contains(backup.timeline, backup.stop_lsn) {
            return Err(self
                .unreachable(format!(
                    "backup {id} ends at {} on timeline {}, which timeline {} does not pass",
                    backup.stop_lsn, backup.timeline, self.history.timeline
                ))
                .hint(format!(
                    "follow its own line with --timeline {}",
                    backup.timeline
                )));
        }
        self.catalogue.chain_of(backup)?;
        Ok(backup)
    }

    fn allowed<'b>(&mut self, backup: &'b Marker, bound: Bound) -> Result<&'b Marker> {
        match bound {
            _ if bound.allows(backup) => Ok(backup),
            Bound::Xid(xid) => {
                self.warnings.push(format!(
                    "transaction {xid} had begun when backup {} ended: recovery from it reaches the target only if it was still under way then",
                    backup.id
                ));
                Ok(backup)
            }
            _ => Err(self
                .unreachable(format!("backup {} ends after the target", backup.id))
                .hint(self.earliest())),
        }
    }
}
