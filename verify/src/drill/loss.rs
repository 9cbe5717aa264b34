//! The recovery point: what a disaster at that moment would have cost.

use seawall::postgres::recovery::RecoveryTarget;

use super::Drill;
use super::course::Course;
use crate::evidence::round;
use crate::report::Rpo;

impl Drill<'_> {
    pub(super) fn rpo(&self, course: &Course) -> Rpo {
        let wanted = self.request.target == RecoveryTarget::Latest;
        let mut rpo = Rpo {
            objective_seconds: self.config.objectives.rpo.map(|rpo| rpo.0.as_secs_f64()),
            measured_seconds: None,
            wanted,
            upper_bound: true,
            wal_bytes: None,
            transactions: None,
            last_commit: course.replay.last_transaction,
            failed_at: self.failed_at,
            store_clock_skew_seconds: None,
            primary_clock_skew_seconds: None,
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
        // Whoever is consistent has everything up to the end of the backup.
        let stop = course.plan.backup.stop_time;
        let (until, what) = match course.replay.last_transaction {
            Some(last) if last > stop => (last, "the last recovered commit"),
            _ => (
                stop,
                "the end of the backup, after which no commit was recovered",
            ),
        };
        let lost = self.failed_at.duration_since(until).as_secs_f64();
        rpo.measured_seconds = Some(round(lost.max(0.0)));
        rpo.method = format!(
            "the moment of failure minus {what}, by the server's clock against this host's; an upper bound, since a server that was idle lost nothing after its last commit"
        );
        rpo
    }
}
