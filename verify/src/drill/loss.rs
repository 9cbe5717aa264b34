//! The recovery point: what a disaster at that moment would have cost.
//!
//! The loss in seconds is the moment of failure minus the last recovered commit. On a server
//! that was idle that is too much, and nobody can tell from the WAL: unless a heartbeat stands
//! at its end. Then the server was committing, and the figure is the age of what was recovered.

use jiff::Timestamp;
use seawall::config::ClusterConfig;
use seawall::error::{Error, IoContext, Result};
use seawall::heartbeat::Tail;
use seawall::postgres::history::TimelineHistory;
use seawall::postgres::recovery::RecoveryTarget;
use seawall::postgres::sql::Client;
use seawall::postgres::{Lsn, SystemId, TimelineId, WalFileName};
use seawall::repository::System;
use seawall::repository::catalogue::Plan;
use seawall::repository::scan::Stretch;

use super::Drill;
use super::course::Course;
use crate::checks::{self, Check, Outcome};
use crate::evidence::round;
use crate::report::{Lost, Rpo};

/// Clocks that differ by more make an RPO in seconds a guess.
const CLOCK_TOLERANCE_SECONDS: f64 = 60.0;

/// What is later than the moment of failure by more came after it: clocks that are synchronised
/// differ by less.
const AHEAD_SECONDS: f64 = 5.0;

/// What the primary said of itself at the moment of failure.
#[derive(Debug, Clone, Copy)]
pub struct Primary {
    /// Its system identifier.
    pub system_id: SystemId,
    /// The timeline that it writes.
    pub timeline: TimelineId,
    /// Where its WAL stood.
    pub lsn: Lsn,
    /// Its next transaction id.
    pub next_xid: u64,
    /// Its clock ahead of this host's, in seconds.
    pub clock_skew: f64,
    /// When that was, by this host's clock.
    pub asked: Timestamp,
}

impl Primary {
    /// Asks the server of `cluster`.
    ///
    /// # Errors
    /// It cannot be reached, or it is a standby, which does not know how far the primary is.
    pub async fn ask(cluster: &ClusterConfig) -> Result<Self> {
        let client = Client::of_cluster(cluster).await?;
        if client.is_in_recovery().await? {
            return Err(
                Error::refused("the server is a standby: it does not know what is lost")
                    .at(client.place())
                    .hint(
                        "name the primary in the cluster's connection, or leave out --measure-loss",
                    ),
            );
        }
        let (system_id, timeline) = (
            client.system_identifier().await?,
            client.current_timeline().await?,
        );
        let before = Timestamp::now();
        let position = client.wal_position().await?;
        let asked = Timestamp::now();
        let next_xid = next_xid(&position.snapshot)
            .ok_or_else(|| Error::failed("the server did not tell its next transaction"))?;
        Ok(Self {
            system_id,
            timeline,
            lsn: position.lsn,
            next_xid,
            clock_skew: skew(position.time, before, asked),
            asked,
        })
    }

    /// Refuses where the plan is for another server: another system, or one that went on
    /// elsewhere.
    ///
    /// # Errors
    /// Exit code 4.
    pub(super) fn must_be_of(&self, plan: &Plan) -> Result<()> {
        let refused = |what: String| {
            Err(Error::refused(what).hint(
                "what this server has written is no measure of the loss: leave out --measure-loss, or name the primary in the cluster's connection",
            ))
        };
        if self.system_id != plan.backup.system_id {
            return refused(format!(
                "the server is system {}, the backup is of system {}",
                self.system_id, plan.backup.system_id
            ));
        }
        if self.timeline != plan.history.timeline {
            return refused(format!(
                "the server writes timeline {}, recovery goes to timeline {}",
                self.timeline, plan.history.timeline
            ));
        }
        Ok(())
    }
}

/// `xmin:xmax:…` of `pg_current_snapshot()`: xmax is the next transaction id.
pub(super) fn next_xid(snapshot: &str) -> Option<u64> {
    snapshot.split(':').nth(1)?.parse().ok()
}

/// How far `theirs`, read between the two, is ahead, in seconds.
fn skew(theirs: Timestamp, before: Timestamp, after: Timestamp) -> f64 {
    if theirs < before {
        theirs.duration_since(before).as_secs_f64()
    } else {
        theirs.duration_since(after).as_secs_f64().max(0.0)
    }
}

/// The WAL that was archived when the drill began: a restore plans anew, and may find more.
#[derive(Debug)]
pub(super) struct Archived {
    segments: Vec<Stretch>,
    end: Lsn,
    /// When the last segment was stored, by the store's clock.
    stored: Timestamp,
}

/// What a drill finds out of the loss, besides what the server's log says.
#[derive(Debug)]
pub(super) struct Findings {
    /// What was archived when it began.
    archived: Archived,
    /// The store's clock ahead of this host's, in seconds, or why it is not known.
    pub(super) store_clock: Option<Result<f64, String>>,
    /// Where the recovered WAL ends.
    pub(super) end: Option<Lsn>,
    /// The next transaction id of the recovered cluster.
    pub(super) next_xid: Option<u64>,
    /// The end of the archived WAL, or why it cannot be read.
    pub(super) tail: Option<Result<Tail, String>>,
}

impl Findings {
    /// Nothing yet but what `plan`, the first one, says.
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            archived: Archived {
                segments: plan.segments.clone(),
                end: plan.wal_end,
                stored: plan.wal_end_stored,
            },
            store_clock: None,
            end: None,
            next_xid: None,
            tail: None,
        }
    }
}

impl Drill<'_> {
    /// Holds the store's clock against ours.
    pub(super) async fn look_at_the_clock(&self, course: &mut Course) {
        let skew = self
            .repository
            .clock_skew(self.cluster_name, Timestamp::now)
            .await;
        course.loss.store_clock = Some(
            skew.map(|skew| skew.as_secs_f64())
                .map_err(|error| error.one_line()),
        );
    }

    /// Looks at where recovery ended, and at the end of the WAL that it read.
    pub(super) async fn look_at_the_end(
        &self,
        course: &mut Course,
        system: &System,
        client: &Client,
    ) -> Result<()> {
        let snapshot = client
            .query_text("SELECT pg_current_snapshot()::text")
            .await?;
        course.loss.next_xid = snapshot.as_deref().and_then(next_xid);
        if let Some(timeline) = course.replay.timeline {
            let name = WalFileName::History(timeline).to_string();
            let path = course.data.join("pg_wal").join(name);
            let content = std::fs::read(&path).on("read", &path)?;
            let history = TimelineHistory::parse(timeline, &content)
                .map_err(|error| Error::failed(error.to_string()).at(path.display()))?;
            course.loss.end = history.parents.last().map(|parent| parent.switch);
        }
        if self.request.target == RecoveryTarget::Latest {
            let size = course.plan.backup.segment_size;
            let tail = Tail::read(system, &course.loss.archived.segments, size).await;
            course.loss.tail = Some(tail.map_err(|error| error.one_line()));
        }
        Ok(())
    }

    pub(super) fn rpo(&self, course: &Course) -> Rpo {
        let wanted = self.request.target == RecoveryTarget::Latest;
        let clock = course.loss.store_clock.as_ref();
        let mut rpo = Rpo {
            objective_seconds: self.config.objectives.rpo.map(|rpo| rpo.0.as_secs_f64()),
            measured_seconds: None,
            wanted,
            upper_bound: true,
            wal_bytes: None,
            transactions: None,
            last_commit: course.replay.last_transaction,
            failed_at: self.failed_at,
            store_clock_skew_seconds: clock
                .and_then(|skew| skew.as_ref().ok())
                .map(|skew| round(*skew)),
            primary_clock_skew_seconds: self.primary.map(|primary| round(primary.clock_skew)),
            method: String::new(),
        };
        if !wanted {
            "not tested: a target was chosen, so the newest recoverable moment was not sought"
                .clone_into(&mut rpo.method);
            return rpo;
        }
        if course.replay.ready.is_none() {
            "not tested: recovery did not come to its end".clone_into(&mut rpo.method);
            return rpo;
        }
        if checks::contradicts(&course.checks) {
            "not tested: the clocks contradict each other".clone_into(&mut rpo.method);
            return rpo;
        }
        let (until, what) = match self.recovered_until(course) {
            Ok(until) => until,
            Err(why) => {
                rpo.method = format!("not tested: {why}");
                return rpo;
            }
        };
        let lost = self.failed_at.duration_since(until).as_secs_f64().max(0.0);
        rpo.measured_seconds = Some(round(lost));
        let tail = course.loss.tail.as_ref();
        let unread = tail.and_then(|tail| tail.as_ref().err());
        let tail = tail.and_then(|tail| tail.as_ref().ok());
        let beating = tail.and_then(|tail| self.beating(tail, until));
        rpo.upper_bound = beating.is_none();
        self.count(&mut rpo, course, tail, lost);
        rpo.method = format!(
            "the moment of failure minus {what}, by the server's clock against this host's; {}; {}",
            match unread {
                Some(why) => format!("an upper bound: the end of the WAL could not be read: {why}"),
                None => known_by(beating),
            },
            self.counted_by(&rpo)
        );
        rpo
    }

    /// Until when everything was recovered that was archived at the moment of failure. What was
    /// archived while the drill was restoring would not have been there.
    fn recovered_until(&self, course: &Course) -> Result<(Timestamp, &'static str), &'static str> {
        // Whoever is consistent has everything up to the end of the backup.
        let stop = course.plan.backup.stop_time;
        let end_of_backup = (
            stop,
            "the end of the backup, after which no commit was recovered",
        );
        let after = |time: Timestamp| time.duration_since(self.failed_at).as_secs_f64();
        if after(stop) > AHEAD_SECONDS {
            return Err("the backup ended after the moment of failure");
        }
        let archived = &course.loss.archived;
        // Its clock dates the segments, and was held against ours.
        let store_ahead = match &course.loss.store_clock {
            Some(Ok(ahead)) => *ahead,
            _ => 0.0,
        };
        match course.replay.last_transaction {
            Some(last) if last <= stop => Ok(end_of_backup),
            None => Ok(end_of_backup),
            Some(last) if last <= self.failed_at => Ok((last, "the last recovered commit")),
            Some(_) if after(archived.stored) - store_ahead > AHEAD_SECONDS => {
                Err("WAL was archived after the moment of failure, and recovered")
            }
            Some(_) => match &course.loss.tail {
                Some(Ok(tail)) => Ok((
                    tail.last_end
                        .unwrap_or(stop)
                        .clamp(stop, self.failed_at.max(stop)),
                    "the last commit of the WAL that was archived then (more was while the drill restored)",
                )),
                _ => Err(
                    "WAL was archived meanwhile, and the end of what there was before cannot be read",
                ),
            },
        }
    }

    /// The last heartbeat and the interval, if the server was beating to the end of what was
    /// recovered: one that stopped days before tells nothing of the silence after it.
    fn beating(&self, tail: &Tail, until: Timestamp) -> Option<(Timestamp, f64)> {
        let last = tail.last_beat?.time;
        let configured = self.config.heartbeat.interval;
        let configured = configured.map(|interval| interval.0.as_secs_f64());
        let interval = match (tail.interval, configured) {
            (Some(seen), Some(configured)) => seen.min(configured),
            (seen, configured) => seen.or(configured)?,
        };
        let silent = until.duration_since(last).as_secs_f64();
        (silent <= 2.0 * interval.max(1.0)).then_some((last, interval))
    }

    /// WAL and transactions that are lost.
    fn count(&self, rpo: &mut Rpo, course: &Course, tail: Option<&Tail>, lost: f64) {
        if let Some(primary) = self.primary {
            // Without what was archived, and recovered, since.
            let end = course.loss.end.map(|end| end.min(course.loss.archived.end));
            rpo.wal_bytes = end.map(|end| Lost {
                count: primary.lsn.0.saturating_sub(end.0),
                exact: true,
            });
            let later = course.loss.end.is_none_or(|end| end > primary.lsn);
            let ours = course.loss.next_xid.filter(|_| !later);
            rpo.transactions = ours.map(|ours| Lost {
                count: primary.next_xid.saturating_sub(ours),
                // Those under way count as recovered, as far as their ids go.
                exact: false,
            });
            return;
        }
        let estimated = |rate: Option<f64>| {
            let count = (rate? * lost).round() as u64;
            let exact = false;
            Some(Lost { count, exact })
        };
        rpo.wal_bytes = estimated(tail.and_then(|tail| tail.bytes_per_second));
        rpo.transactions = estimated(tail.and_then(|tail| tail.transactions_per_second));
    }

    fn counted_by(&self, rpo: &Rpo) -> &'static str {
        match (self.primary, rpo.wal_bytes) {
            (Some(_), _) => {
                "bytes are exact: the primary was asked at the moment of failure; transactions are the ids that it had given out since the last one that was recovered, of which some were rolled back, and some under way before"
            }
            (None, Some(_)) => {
                "bytes and transactions are estimated from the rate at the end of the recovered WAL"
            }
            (None, None) => {
                "bytes and transactions are not known: the recovered WAL is too short for a rate, and the primary was not asked (--measure-loss does)"
            }
        }
    }

    /// The clocks that the RPO hangs on, as far as they could be asked.
    pub(super) fn clock_skew(&self, course: &Course) -> Check {
        const NAME: &str = "clock skew";
        let failed = |why: String| Check::new(NAME, Outcome::Failed, why);
        let primary = self.primary.map(|primary| primary.clock_skew);
        if let Some(skew) = primary.filter(|skew| skew.abs() > CLOCK_TOLERANCE_SECONDS) {
            return failed(format!(
                "the primary's clock is {skew:+.0} s from this host's"
            ));
        }
        match &course.loss.store_clock {
            Some(Ok(skew)) if skew.abs() > CLOCK_TOLERANCE_SECONDS => failed(format!(
                "the store's clock is {skew:+.0} s from this host's"
            )),
            Some(Ok(skew)) => {
                let primary = primary.map_or_else(
                    || "the primary was not asked".to_owned(),
                    |skew| format!("the primary's is {skew:+.1} s from it"),
                );
                let detail =
                    format!("the store's clock is {skew:+.1} s from this host's; {primary}");
                Check::new(NAME, Outcome::Passed, detail)
            }
            Some(Err(why)) => Check::not_tested(NAME, why),
            None => Check::not_tested(NAME, "the drill ended before"),
        }
    }
}

fn known_by(beating: Option<(Timestamp, f64)>) -> String {
    match beating {
        Some((last, interval)) => format!(
            "the server wrote a heartbeat every {interval:.0} s, the last recovered one at {last:.0}, so this is the age of what was recovered and not the silence of an idle server"
        ),
        None => "an upper bound, since a server that was idle lost nothing after its last commit (`[heartbeat] interval` makes it exact)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_tells_the_next_transaction() {
        assert_eq!(next_xid("731:735:731,733"), Some(735));
        assert_eq!(next_xid("4294967300:4294967301:"), Some(4_294_967_301));
        assert_eq!(next_xid(""), None);
    }

    #[test]
    fn a_clock_between_two_looks_has_no_skew() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(skew(at(15), at(10), at(20)), 0.0);
        assert_eq!(skew(at(5), at(10), at(20)), -5.0);
        assert_eq!(skew(at(50), at(10), at(20)), 30.0);
    }
}
