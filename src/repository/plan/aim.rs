//! What a target says about the backup to start from: where it must have ended so that
//! recovery from it can still stop at the target.

use std::cmp::Reverse;

use jiff::Timestamp;

use super::Planner;
use super::search::Search;
use crate::error::{Error, Result};
use crate::postgres::recovery::RecoveryTarget;
use crate::postgres::{Lsn, SegmentSize};
use crate::repository::marker::Marker;
use crate::repository::points::RestorePoint;

/// Where a backup must have ended so that recovery from it can still stop at the target.
#[derive(Debug, Clone, Copy)]
pub(super) enum Bound {
    None,
    /// PostgreSQL stops at the first record that begins there or later.
    Lsn(Lsn),
    /// The end of a restore point's record.
    Point(Lsn),
    /// The record that ends the transaction.
    Transaction {
        start: Lsn,
        end: Lsn,
    },
    Time(Timestamp),
    /// A transaction whose end could not be looked for.
    Xid(u64),
}

/// What is known before any WAL is followed.
pub(super) struct Aim<'a> {
    pub(super) bound: Bound,
    /// The backup, where finding the target decided it already.
    pub(super) backup: Option<&'a Marker>,
}

impl From<Bound> for Aim<'_> {
    fn from(bound: Bound) -> Self {
        let backup = None;
        Self { bound, backup }
    }
}

impl Bound {
    pub(super) fn allows(self, backup: &Marker) -> bool {
        match self {
            Self::None => true,
            Self::Lsn(lsn) | Self::Point(lsn) => backup.stop_lsn <= lsn,
            Self::Transaction { start, .. } => backup.stop_lsn <= start,
            Self::Time(time) => backup.stop_time <= time,
            // What was still to end at the stop ends behind it.
            Self::Xid(xid) => backup.next_xid <= xid,
        }
    }

    /// The last segment that recovery to here is known to need.
    pub(super) fn needs(self, backup: &Marker, size: SegmentSize) -> u64 {
        let own = backup.stop_lsn.previous_segment(size);
        match self {
            Self::Lsn(lsn) => own.max(lsn.segment(size)),
            Self::Point(end) | Self::Transaction { end, .. } => own.max(end.previous_segment(size)),
            _ => own,
        }
    }
}

impl<'a> Planner<'a> {
    /// What the target says, with the backup to start from if one is `chosen`.
    pub(super) async fn aim(&mut self, chosen: Option<&'a Marker>) -> Result<Aim<'a>> {
        let bound = match &self.request.target {
            RecoveryTarget::Latest | RecoveryTarget::Immediate => Bound::None,
            RecoveryTarget::Lsn(lsn) => Bound::Lsn(*lsn),
            RecoveryTarget::Time(time) => Bound::Time(*time),
            RecoveryTarget::Xid(xid) => self.transaction(*xid, chosen).await?,
            RecoveryTarget::Name(name) => return self.point(name, chosen).await,
        };
        Ok(bound.into())
    }

    /// The restore point that PostgreSQL will stop at: the first of that name behind the start
    /// of the backup. That is the first of those recorded which a backup leads to; if there is
    /// none, the one that reading the WAL finds.
    async fn point(&mut self, name: &str, chosen: Option<&'a Marker>) -> Result<Aim<'a>> {
        let starts: Vec<&Marker> = match chosen {
            Some(chosen) => vec![chosen],
            None => self.on_line().collect(),
        };
        if starts.is_empty() {
            return Err(self.nothing_reaches(Bound::None));
        }
        let recorded: Vec<&RestorePoint> = self
            .catalogue
            .points
            .iter()
            .filter(|point| point.name == name && self.history.contains(point.timeline, point.lsn))
            .collect();
        let leads = starts.iter().filter_map(|backup| {
            // Before its end there is no consistent state to stop in.
            let mut behind = recorded.iter().filter(|p| p.lsn > backup.start_lsn);
            let first = behind.next().filter(|p| p.lsn >= backup.stop_lsn)?;
            Some((*first, *backup))
        });
        let first = leads.min_by_key(|(point, backup)| (point.lsn, Reverse(backup.stop_lsn)));
        if let Some((point, backup)) = first {
            if let [first, .., last] = recorded[..] {
                self.warnings.push(format!(
                    "the restore point {name:?} was made {} times, from {} to {}; recovery stops at {} of {}, the first after the backup",
                    recorded.len(), first.lsn, last.lsn, point.lsn, point.time
                ));
            }
            return Ok(Aim {
                bound: Bound::Point(point.lsn),
                backup: Some(backup),
            });
        }
        match self.find_point(name, &starts).await {
            Search::Found((point, backup)) => {
                if starts.iter().any(|other| other.start_lsn < backup.start_lsn) {
                    self.warnings.push(format!(
                        "the restore point {name:?} was found in the archived WAL, at {} of {}; whether there is another before backup {} was not looked for",
                        point.lsn, point.time, backup.id
                    ));
                }
                let bound = Bound::Point(point.lsn);
                self.found.push(point);
                Ok(Aim {
                    bound,
                    backup: Some(backup),
                })
            }
            // One is there, and no backup ends before it.
            Search::Absent(Some(lsn)) => Ok(Bound::Point(lsn).into()),
            Search::Absent(None) => match recorded.first() {
                Some(first) => Ok(Bound::Point(first.lsn).into()),
                None => Err(self.no_such_point(name)),
            },
            Search::Unknown(error) if chosen.is_some() => {
                self.warnings.push(format!(
                    "whether the restore point {name:?} is archived is not known: {}",
                    error.one_line()
                ));
                Ok(Bound::None.into())
            }
            Search::Unknown(error) => Err(Error::failed(format!(
                "no restore point {name:?} is recorded, and the archived WAL cannot be searched for it"
            ))
            .at(self.catalogue.system().place())
            .because(error)
            .hint("to go without knowing, choose the backup to start from with --backup")),
        }
    }

    /// Where the transaction ends.
    async fn transaction(&mut self, xid: u64, chosen: Option<&'a Marker>) -> Result<Bound> {
        let known = self.catalogue.backups.iter();
        let known = known.map(|backup| backup.next_xid).max().unwrap_or(0);
        // PostgreSQL, too, is given 64 bits and compares the lower half.
        let xid = nearest_epoch(xid, known);
        let starts = match chosen {
            Some(chosen) => vec![chosen],
            None => self.newest_before_and_later(xid),
        };
        let Some(first) = starts.first() else {
            return Err(self.nothing_reaches(Bound::None));
        };
        match self.find_end(xid as u32, &starts).await {
            Search::Found((start, end)) => Ok(Bound::Transaction { start, end }),
            Search::Absent(_) => {
                let mut error = format!(
                    "transaction {xid} neither commits nor aborts in the archived WAL of timeline {} behind {}",
                    self.history.timeline, first.start_lsn
                );
                if chosen.is_some() {
                    error += &format!(", where backup {} begins", first.id);
                }
                let reached = self.reached_by(&starts).await;
                Err(self.unreachable(error).hint(format!(
                    "{}; a subtransaction has no end of its own: take the id of its top transaction",
                    self.reachable(reached, None)
                )))
            }
            Search::Unknown(error) => {
                self.warnings.push(format!(
                    "whether transaction {xid} ends in the archived WAL is not known: {}",
                    error.one_line()
                ));
                Ok(Bound::Xid(xid))
            }
        }
    }

    /// The backups from the newest on that ended before the transaction began: its end lies
    /// behind that one's. All of them where there is none.
    fn newest_before_and_later(&self, xid: u64) -> Vec<&'a Marker> {
        let mut backups: Vec<&Marker> = self.on_line().collect();
        backups.sort_by_key(|backup| (backup.start_lsn, backup.stop_lsn));
        let last = backups.iter().rposition(|backup| backup.next_xid <= xid);
        backups.split_off(last.unwrap_or(0))
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
