//! Which backup leads to which target: the plan of a recovery, or what can be reached instead.
//!
//! Order is timeline ancestry and LSN. Clocks decide only where the target itself is a time,
//! and then it is the server's clock, as each backup and each commit recorded it; the store's
//! clock only informs.

use jiff::Timestamp;

use super::catalogue::Catalogue;
use super::commits::{self, LastEnd};
use super::keys::BackupId;
use super::line::{self, Break, Line};
use super::marker::Marker;
use super::points::RestorePoint;
use crate::error::{Error, Result};
use crate::postgres::history::TimelineHistory;
use crate::postgres::recovery::RecoveryTarget;
use crate::postgres::{Lsn, SegmentSize, TimelineId};

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
    /// The backup to start from.
    pub backup: Marker,
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

/// Where a backup must have ended so that recovery from it can still stop at the target.
#[derive(Debug, Clone, Copy)]
enum Bound {
    None,
    /// PostgreSQL stops at the first record that begins there or later.
    Lsn(Lsn),
    /// The end of a restore point's record.
    Point(Lsn),
    Time(Timestamp),
    Xid(u64),
}

impl Bound {
    fn allows(self, backup: &Marker) -> bool {
        match self {
            Self::None => true,
            Self::Lsn(lsn) | Self::Point(lsn) => backup.stop_lsn <= lsn,
            Self::Time(time) => backup.stop_time <= time,
            // What was still to end at the stop ends behind it.
            Self::Xid(xid) => backup.next_xid <= xid,
        }
    }

    /// The last segment that recovery to here is known to need.
    fn needs(self, backup: &Marker, size: SegmentSize) -> u64 {
        let own = backup.stop_lsn.previous_segment(size);
        match self {
            Self::Lsn(lsn) => own.max(lsn.segment(size)),
            Self::Point(lsn) => own.max(lsn.previous_segment(size)),
            _ => own,
        }
    }
}

/// Archived WAL that a line does not pass: of a timeline that it left, or never was on.
struct Branch {
    timeline: TimelineId,
    /// The segment with the switch point.
    from: u64,
    end: Lsn,
    end_stored: Timestamp,
}

impl Catalogue {
    /// Chooses the backup and checks that its WAL reaches the target: by listing, and for a
    /// time by reading the end of the WAL.
    ///
    /// # Errors
    /// Exit code 5 where no backup or WAL reaches the target; the error names what can be
    /// reached. Exit code 4 where the line passes a conflict.
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
        };
        match planner.plan().await {
            // Where one can go instead is asked only now: it costs more listings.
            Err(error) if error.exit() == crate::error::Exit::Unreachable => {
                Err(planner.with_other_timelines(error).await)
            }
            plan => plan,
        }
    }
}

impl Catalogue {
    /// WAL of a timeline whose history is not here: the newest timeline is not known, and
    /// PostgreSQL would be stopped when it asks for that history, after all its replaying.
    async fn refuse_lost_history(&self) -> Result<()> {
        let with_wal = self.system().timelines_with_wal().await?;
        let lost = with_wal
            .iter()
            .find(|timeline| !self.histories.contains_key(timeline));
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
}

impl<'a> Planner<'a> {
    async fn plan(&mut self) -> Result<Plan> {
        let chosen = self.request.backup.as_ref();
        let chosen = chosen.map(|id| self.chosen(id)).transpose()?;
        let bound = self.bound(chosen)?;
        let backup = match chosen {
            Some(backup) => self.allowed(backup, bound)?,
            None => self.newest_before(bound)?,
        };
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
        Ok(Plan {
            backup: backup.clone(),
            history: self.history.clone(),
            wal_end: self.end_of(&line, last),
            broken_behind: line.broken.is_some(),
            segments: line.segments,
            wal_end_stored: stored,
            warnings: std::mem::take(&mut self.warnings),
        })
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

    /// What the target says about where a backup must have ended.
    fn bound(&mut self, chosen: Option<&Marker>) -> Result<Bound> {
        Ok(match &self.request.target {
            RecoveryTarget::Latest | RecoveryTarget::Immediate => Bound::None,
            RecoveryTarget::Lsn(lsn) => Bound::Lsn(*lsn),
            RecoveryTarget::Time(time) => Bound::Time(*time),
            RecoveryTarget::Xid(xid) => Bound::Xid(self.full_xid(*xid)),
            RecoveryTarget::Name(name) => self.point(name, chosen)?,
        })
    }

    /// Where the restore point lies that PostgreSQL will stop at: the first of that name
    /// behind the backup.
    fn point(&mut self, name: &str, chosen: Option<&Marker>) -> Result<Bound> {
        let all = &self.catalogue.points;
        let named: Vec<&RestorePoint> = all.iter().filter(|point| point.name == name).collect();
        let on_line: Vec<&RestorePoint> = named
            .iter()
            .copied()
            .filter(|point| self.history.contains(point.timeline, point.lsn))
            .collect();
        let (Some(first), Some(last)) = (on_line.first(), on_line.last()) else {
            if chosen.is_some() {
                return Ok(Bound::None);
            }
            let elsewhere: Vec<String> = named
                .iter()
                .map(|point| format!("--timeline {}", point.timeline))
                .collect();
            let hint = if elsewhere.is_empty() {
                let mut known: Vec<String> = all
                    .iter()
                    .map(|point| format!("{:?}", point.name))
                    .collect();
                known.dedup();
                let known = match known.is_empty() {
                    true => "none is".to_owned(),
                    false => format!("recorded are {}", known.join(", ")),
                };
                format!(
                    "{known}; for one made by other means, choose the backup to start from with --backup"
                )
            } else {
                format!("it was made on another branch: {}", elsewhere.join(" or "))
            };
            return Err(self
                .unreachable(format!(
                    "no restore point {name:?} is recorded on timeline {}",
                    self.history.timeline
                ))
                .hint(hint));
        };
        // The first that a backup leads to; if none does, the error is about the first.
        let reached = on_line.iter().find(|point| match chosen {
            Some(backup) => backup.stop_lsn <= point.lsn,
            None => self.on_line().any(|backup| backup.stop_lsn <= point.lsn),
        });
        let taken = reached.unwrap_or(first);
        if on_line.len() > 1 {
            let text = format!(
                "the restore point {name:?} was made {} times, from {} to {}; recovery stops at {} of {}, the first after the backup",
                on_line.len(),
                first.lsn,
                last.lsn,
                taken.lsn,
                taken.time
            );
            self.warnings.push(text);
        }
        Ok(Bound::Point(taken.lsn))
    }

    /// Extends a 32-bit transaction id by the epoch that is nearest to the newest backup.
    fn full_xid(&self, xid: u64) -> u64 {
        let backups = self.catalogue.backups.iter();
        nearest_epoch(
            xid,
            backups.map(|backup| backup.next_xid).max().unwrap_or(0),
        )
    }

    fn on_line(&self) -> impl Iterator<Item = &'a Marker> + use<'a> {
        let (history, backups) = (self.history, self.catalogue.backups.iter());
        backups.filter(|b| history.contains(b.timeline, b.stop_lsn))
    }

    fn newest_before(&self, bound: Bound) -> Result<&'a Marker> {
        self.on_line()
            .filter(|backup| bound.allows(backup))
            .max_by_key(|backup| (backup.stop_lsn, backup.timeline))
            .ok_or_else(|| self.nothing_reaches(bound))
    }

    fn chosen(&self, id: &BackupId) -> Result<&'a Marker> {
        let mut backups = self.catalogue.backups.iter();
        let backup = backups.find(|backup| backup.id == *id).ok_or_else(|| {
            self.unreachable(format!("there is no finished backup {id}"))
                .hint("`seawall list` shows them")
        })?;
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

    fn nothing_reaches(&self, bound: Bound) -> Error {
        self.unreachable(match bound {
            Bound::None => format!(
                "no finished backup lies on timeline {}",
                self.history.timeline
            ),
            Bound::Lsn(lsn) | Bound::Point(lsn) => format!("no backup ends before {lsn}"),
            Bound::Time(time) => format!("no backup ends before {time}"),
            Bound::Xid(xid) => format!("no backup ends before transaction {xid}"),
        })
        .hint(self.earliest())
    }

    fn earliest(&self) -> String {
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

    /// Judges whether the line reaches the target, as far as listings can tell. Returns the
    /// line's last segment.
    fn judge(&mut self, backup: &Marker, bound: Bound, line: &Line) -> Result<(u64, Timestamp)> {
        let size = self.size();
        let needed = bound.needs(backup, size);
        if let Some(broken) = &line.broken {
            let past_target = broken.number() > needed;
            if !past_target || !self.is_harmless(bound, broken) {
                return Err(self.broken(broken));
            }
        }
        if let Some(end) = line.end.filter(|(last, _)| *last >= needed) {
            return Ok(end);
        }
        let reached = line
            .end
            .map_or(backup.start_lsn, |(last, _)| size.start_of(last + 1));
        let what = if reached < backup.stop_lsn {
            format!(
                "the WAL of backup {} is not in the archive: it ends at {reached}, the backup at {}",
                backup.id, backup.stop_lsn
            )
        } else {
            format!("archived WAL ends at {reached}, before the target")
        };
        let stored = line.end.map(|(_, stored)| stored);
        Err(self.unreachable(what).hint(format!(
            "{}; without a target recovery ends at the end of the WAL",
            self.reachable(reached, stored)
        )))
    }

    /// PostgreSQL stops at a time only where it finds a transaction that ended after it, and
    /// refuses the target otherwise, but not before all WAL was replayed.
    async fn judge_time(
        &mut self,
        backup: &Marker,
        time: Timestamp,
        line: &Line,
        stored: Timestamp,
    ) -> Result<()> {
        let size = self.size();
        let own = backup.stop_lsn.previous_segment(size);
        let behind: Vec<_> = line
            .segments
            .iter()
            .filter(|(_, _, last)| *last >= own)
            .map(|(timeline, first, last)| (*timeline, (*first).max(own), *last))
            .collect();
        let last = match commits::last_end(self.catalogue.system(), &behind, size).await {
            Ok(LastEnd::At(last)) if last.time > time => return Ok(()),
            Ok(LastEnd::At(last)) if last.time == time && !self.request.inclusive => return Ok(()),
            Ok(LastEnd::At(last)) => format!("the last ended at {} (LSN {})", last.time, last.lsn),
            Ok(LastEnd::Never) => "none ended since the backup".to_owned(),
            Ok(LastEnd::Unknown) if time > stored => {
                self.warnings.push(format!(
                    "the newest archived WAL was stored at {stored}, before the target {time}: PostgreSQL will refuse the target unless a later commit is in it"
                ));
                return Ok(());
            }
            Ok(LastEnd::Unknown) => return Ok(()),
            Err(error) => {
                self.warnings.push(format!(
                    "whether a commit after the target is archived is not known: {}",
                    error.one_line()
                ));
                return Ok(());
            }
        };
        let before = line.broken.as_ref().map_or(String::new(), |broken| {
            format!(" before the gap ({})", describe(broken))
        });
        let end = line
            .end
            .map_or(backup.stop_lsn, |(last, _)| size.start_of(last + 1));
        let how = match &line.broken {
            Some(Break::Gap { .. }) if !self.request.end_at_gap => {
                "take --end-at-gap instead of --time"
            }
            _ => "leave --time out",
        };
        Err(self
            .unreachable(format!(
                "no transaction ended after {time} in the archived WAL{before}: {last}"
            ))
            .hint(format!(
                "PostgreSQL would refuse that target; {how} to recover all that there is; {}",
                self.reachable(end, Some(stored))
            )))
    }

    /// A moment may be meant that lies on a branch which this line does not pass.
    async fn mention_branches(&mut self, time: Timestamp) -> Result<()> {
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
    async fn with_other_timelines(&self, error: Error) -> Error {
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

    /// A break behind what the target is known to need: harmless, or a warning where only
    /// recovery itself can tell. `seawall-fetch` stops there in any case.
    fn is_harmless(&mut self, bound: Bound, broken: &Break) -> bool {
        let what = describe(broken);
        let maybe = match (&self.request.target, bound, broken) {
            (RecoveryTarget::Immediate, ..) | (_, Bound::Lsn(_) | Bound::Point(_), _) => {
                return true;
            }
            (.., Break::Gap { .. }) if self.request.end_at_gap => {
                self.warnings.push(format!(
                    "{what}; recovery will end there, as --end-at-gap says"
                ));
                return true;
            }
            // The commits before it are read, and tell.
            (_, Bound::Time(_), _) => return true,
            (_, Bound::Xid(_), _) | (RecoveryTarget::Name(_), Bound::None, _) => true,
            _ => false,
        };
        if maybe {
            self.warnings.push(format!(
                "{what}; whether the target lies before it, only recovery can tell"
            ));
        }
        maybe
    }

    fn broken(&self, broken: &Break) -> Error {
        let reachable = self.reachable(self.size().start_of(broken.number()), None);
        match broken {
            Break::Gap { .. } => self
                .unreachable(format!(
                    "there is a gap in the archived WAL: {}",
                    describe(broken)
                ))
                .hint(format!("{reachable}; to stop at the gap, add --end-at-gap")),
            Break::Conflict { .. } => Error::refused(describe(broken))
                .at(self.catalogue.system().place())
                .hint(format!("two servers archived under one name; find out which branch is the right one. Without it, {reachable}")),
        }
    }

    fn reachable(&self, end: Lsn, stored: Option<Timestamp>) -> String {
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

fn describe(broken: &Break) -> String {
    match broken {
        Break::Gap { missing, .. } => format!("{missing} is missing and later WAL is there"),
        Break::Conflict { segment, .. } => {
            format!("{segment} is archived with different contents")
        }
    }
}

/// The 64-bit transaction id nearest to `known` whose lower half is `xid`; a larger one is
/// whole already.
fn nearest_epoch(xid: u64, known: u64) -> u64 {
    const EPOCH: u64 = 1 << 32;
    if xid >= EPOCH {
        return xid;
    }
    let in_same = known / EPOCH * EPOCH + xid;
    [
        in_same.checked_sub(EPOCH),
        Some(in_same),
        in_same.checked_add(EPOCH),
    ]
    .into_iter()
    .flatten()
    .min_by_key(|candidate| candidate.abs_diff(known))
    .unwrap_or(in_same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_id_is_extended_by_the_nearest_epoch() {
        const EPOCH: u64 = 1 << 32;
        for (xid, known, full) in [
            (700, 750, 700),
            (700, 5 * EPOCH + 750, 5 * EPOCH + 700),
            // Around a wraparound, on either side of it.
            (3, EPOCH - 10, EPOCH + 3),
            (EPOCH - 10, EPOCH + 3, EPOCH - 10),
            (EPOCH - 10, 5, EPOCH - 10),
            (7 * EPOCH + 1, 750, 7 * EPOCH + 1),
        ] {
            assert_eq!(nearest_epoch(xid, known), full, "{xid} near {known}");
        }
    }
}
