//! Whether archived WAL reaches the target: by what listings say, and for a time by the last
//! commits.

use jiff::Timestamp;

use super::Planner;
use super::aim::Bound;
use crate::error::{Error, Result};
use crate::postgres::recovery::RecoveryTarget;
use crate::repository::commits::{self, LastEnd};
use crate::repository::line::{Break, Line};
use crate::repository::marker::Marker;

impl Planner<'_> {
    /// Judges whether the line reaches the target, as far as listings can tell. Returns the
    /// line's last segment.
    pub(super) fn judge(
        &mut self,
        backup: &Marker,
        bound: Bound,
        line: &Line,
    ) -> Result<(u64, Timestamp)> {
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
    pub(super) async fn judge_time(
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
            Ok(LastEnd::Unknown) => {
                if let Some(broken) = &line.broken {
                    self.only_recovery_can_tell(broken);
                }
                return Ok(());
            }
            Err(error) => {
                self.warnings.push(format!(
                    "whether a commit after the target is archived is not known: {}",
                    error.one_line()
                ));
                return Ok(());
            }
        };
        if let Some(conflict @ Break::Conflict { .. }) = &line.broken {
            // What lies behind may well lead there, once someone has chosen.
            return Err(self.broken(conflict));
        }
        let before = line.broken.as_ref().map_or(String::new(), |broken| {
            format!(" before the gap ({})", describe(broken))
        });
        let end = line
            .end
            .map_or(backup.stop_lsn, |(last, _)| size.start_of(last + 1));
        let how = match &line.broken {
            Some(Break::Gap { .. } | Break::Expired { .. }) if !self.request.end_at_gap => {
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

    /// A break behind what the target is known to need: harmless, or a warning where only
    /// recovery itself can tell. `seawall-fetch` stops there in any case.
    fn is_harmless(&mut self, bound: Bound, broken: &Break) -> bool {
        let maybe = match (&self.request.target, bound, broken) {
            (RecoveryTarget::Immediate, ..)
            | (_, Bound::Lsn(_) | Bound::Point(_) | Bound::Transaction { .. }, _) => {
                return true;
            }
            (.., Break::Gap { .. } | Break::Expired { .. }) if self.request.end_at_gap => {
                self.warnings.push(format!(
                    "{}; recovery will end there, as --end-at-gap says",
                    describe(broken)
                ));
                return true;
            }
            // The commits before it are read, and tell.
            (_, Bound::Time(_), _) => return true,
            (_, Bound::Xid(_), _) | (RecoveryTarget::Name(_), Bound::None, _) => true,
            _ => false,
        };
        if maybe {
            self.only_recovery_can_tell(broken);
        }
        maybe
    }

    fn only_recovery_can_tell(&mut self, broken: &Break) {
        self.warnings.push(format!(
            "{}; whether the target lies before it, only recovery can tell",
            describe(broken)
        ));
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
            Break::Expired { .. } => self
                .unreachable(format!(
                    "the WAL behind this backup is no longer kept: {}",
                    describe(broken)
                ))
                .hint(format!("{reachable}; to stop where it ends, add --end-at-gap, or --immediate to stop at the backup's own end")),
            Break::Conflict { .. } => Error::refused(describe(broken))
                .at(self.catalogue.system().place())
                .hint(format!("two servers archived under one name; see what each wrote with `seawall wal resolve`, and settle it there. Without it, {reachable}")),
        }
    }
}

fn describe(broken: &Break) -> String {
    match broken {
        Break::Gap { missing, .. } => format!("{missing} is missing and later WAL is there"),
        Break::Expired { segment, .. } => format!("{segment} was removed by retention"),
        Break::Conflict { segment, .. } => {
            format!("{segment} is archived with different contents")
        }
    }
}
