//! When to switch segments: from what a server says of its WAL, look by look.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::postgres::SegmentSize;
use crate::postgres::sql::WalPosition;
use crate::time::signed;

/// What archiving the switched segment may take, at most: a fifth of the objective, and no
/// more than a minute.
const MARGIN: Duration = Duration::from_secs(60);

/// Watches the open segment. All times are the server's.
#[derive(Debug, Clone)]
pub struct Watch {
    segment_size: SegmentSize,
    limit: SignedDuration,
    floor: SignedDuration,
    last: Option<WalPosition>,
    /// The oldest commit that may be in the open segment is not older than this.
    waiting_since: Option<Timestamp>,
    last_switch: Option<Timestamp>,
    looked: Option<Timestamp>,
}

impl Watch {
    /// Switches in time for `rpo`, never more often than every `floor`, also counted from
    /// `last_switch`: one that was asked for before, in another session.
    pub fn new(
        segment_size: SegmentSize,
        rpo: Duration,
        floor: Duration,
        last_switch: Option<Timestamp>,
    ) -> Self {
        Self {
            segment_size,
            limit: signed(rpo - (rpo / 5).min(MARGIN)),
            floor: signed(floor),
            last: None,
            waiting_since: None,
            last_switch,
            looked: None,
        }
    }

    /// Whether it is time for a look, by our own clock: ten in the time that there is, since
    /// whatever came between two looks counts as old as the first of them.
    pub fn wants_a_look(&mut self, now: Timestamp) -> bool {
        let wanted = self
            .looked
            .is_none_or(|looked| now < looked || now.duration_since(looked) >= self.limit / 10);
        if wanted {
            self.looked = Some(now);
        }
        wanted
    }

    /// Takes a look, and says whether the segment is to be switched now.
    pub fn see(&mut self, now: WalPosition) -> bool {
        match &self.last {
            // The open segment may hold commits of before. It was begun before the last that
            // was archived, or just then.
            None => {
                self.waiting_since = Some(now.last_archived.unwrap_or(now.time).min(now.time));
                self.last_switch = self.last_switch.max(now.last_archived);
            }
            Some(last) => {
                let committed = last.snapshot != now.snapshot;
                let segment = |position: &WalPosition| position.lsn.segment(self.segment_size);
                if segment(last) != segment(&now) || self.waiting_since.is_none() {
                    self.waiting_since = committed.then_some(last.time);
                }
            }
        }
        // A clock that was ahead for a while must not stop all switches until then.
        for time in [&mut self.last_switch, &mut self.waiting_since] {
            *time = time.map(|time| time.min(now.time));
        }
        let due = |since: Option<Timestamp>, limit: SignedDuration| {
            since.is_some_and(|since| now.time.duration_since(since) >= limit)
        };
        // A switch that is not archived helps nobody, and fills pg_wal.
        let switch = due(self.waiting_since, self.limit)
            && (self.last_switch.is_none() || due(self.last_switch, self.floor))
            && !now.archiver_fails;
        self.last = Some(now);
        switch
    }

    /// A switch was made; what is seen after it.
    pub fn switched(&mut self, now: WalPosition) {
        self.last_switch = Some(now.time);
        let before = self.last.as_ref();
        let committed = before.filter(|before| before.snapshot != now.snapshot);
        self.waiting_since = committed.map(|before| before.time);
        self.last = Some(now);
    }

    /// What was seen is of another server's WAL.
    pub fn forget(&mut self) {
        self.last = None;
        self.waiting_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::Lsn;

    const MIB: u64 = 1 << 20;

    /// A watch for an objective of five minutes, and a server whose positions it sees.
    struct Scene {
        watch: Watch,
        lsn: u64,
        commits: u32,
        time: Timestamp,
        archived: Option<Timestamp>,
        fails: bool,
        switches: Vec<i64>,
    }

    impl Scene {
        fn new(floor_seconds: u64) -> Self {
            let time: Timestamp = "2026-11-20T00:00:00Z".parse().unwrap();
            Self {
                watch: Watch::new(
                    SegmentSize::DEFAULT,
                    Duration::from_secs(300),
                    Duration::from_secs(floor_seconds),
                    None,
                ),
                lsn: 16 * MIB,
                commits: 0,
                time,
                archived: Some(time),
                fails: false,
                switches: Vec::new(),
            }
        }

        fn position(&self) -> WalPosition {
            WalPosition {
                lsn: Lsn(self.lsn),
                snapshot: self.commits.to_string(),
                time: self.time,
                last_archived: self.archived,
                archiver_fails: self.fails,
            }
        }

        fn finish_segment(&mut self) {
            self.lsn = (self.lsn / (16 * MIB) + 1) * 16 * MIB;
            self.archived = Some(self.time);
        }

        /// A look every ten seconds for so long; each time something happens before.
        fn pass(&mut self, seconds: i64, mut before: impl FnMut(&mut Self, i64)) {
            let start = self.time;
            while self.time.duration_since(start).as_secs() < seconds {
                self.time += SignedDuration::from_secs(10);
                let passed = self.time.duration_since(start).as_secs();
                before(self, passed);
                if self.watch.see(self.position()) {
                    self.switches.push(passed);
                    self.finish_segment();
                    self.watch.switched(self.position());
                }
            }
        }

        fn commit(&mut self) {
            self.commits += 1;
            self.lsn += 100;
        }
    }

    #[test]
    fn one_commit_on_an_idle_server_is_switched_once_and_in_time() {
        let mut scene = Scene::new(60);
        scene.pass(100, |_, _| {});
        scene.switches.clear();
        scene.watch.switched(scene.position());
        scene.pass(3600, |scene, passed| {
            if passed == 600 {
                scene.commit();
            }
            // What the server writes for itself is no commit.
            scene.lsn += 50;
        });
        // Five minutes less one, and a look before the commit it may have been just after.
        assert_eq!(scene.switches, [830]);
    }

    #[test]
    fn heartbeats_on_an_idle_server_are_switched_once_in_the_limit() {
        let mut scene = Scene::new(60);
        scene.pass(3600, |scene, passed| {
            if passed % 60 == 0 {
                scene.commit();
            }
        });
        let gaps = scene.switches.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(
            gaps.clone().all(|gap| (240..=300).contains(&gap)),
            "{:?}",
            scene.switches
        );
        assert!(gaps.count() >= 11);
    }

    #[test]
    fn a_busy_server_that_fills_its_segments_is_never_switched() {
        let mut scene = Scene::new(60);
        scene.pass(3600, |scene, _| {
            scene.commit();
            scene.lsn += 2 * MIB;
            scene.archived = Some(scene.time);
        });
        assert!(scene.switches.is_empty(), "{:?}", scene.switches);
    }

    #[test]
    fn the_floor_holds_and_a_failing_archiver_is_given_no_more_segments() {
        let mut scene = Scene::new(600);
        scene.pass(3600, |scene, _| scene.commit());
        let mut gaps = scene.switches.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(gaps.all(|gap| gap >= 600), "{:?}", scene.switches);
        assert!(scene.switches.len() >= 5);

        let mut scene = Scene::new(60);
        scene.fails = true;
        scene.pass(3600, |scene, _| scene.commit());
        assert!(scene.switches.is_empty(), "{:?}", scene.switches);
        scene.fails = false;
        scene.pass(60, |_, _| {});
        assert_eq!(scene.switches, [10]);
    }

    #[test]
    fn who_begins_late_counts_from_what_was_last_archived() {
        let mut scene = Scene::new(60);
        scene.archived = Some(scene.time - SignedDuration::from_hours(1));
        scene.pass(600, |_, _| {});
        assert_eq!(scene.switches, [10]);
    }

    #[test]
    fn a_new_session_keeps_the_floor_although_nothing_is_archived() {
        let mut scene = Scene::new(1800);
        scene.archived = Some(scene.time - SignedDuration::from_hours(1));
        let (size, rpo) = (SegmentSize::DEFAULT, Duration::from_secs(300));
        let floor = Duration::from_secs(1800);
        // The answer to a switch did not come, and the archiver hangs.
        scene.watch = Watch::new(size, rpo, floor, Some(scene.time));
        scene.pass(1700, |scene, _| scene.commit());
        assert!(scene.switches.is_empty(), "{:?}", scene.switches);
        scene.pass(200, |scene, _| scene.commit());
        assert_eq!(scene.switches, [100]);

        // By a clock that was years ahead.
        let mut scene = Scene::new(60);
        let future = scene.time + SignedDuration::from_hours(24 * 365);
        scene.watch = Watch::new(size, rpo, Duration::from_secs(60), Some(future));
        scene.archived = Some(future);
        scene.pass(600, |scene, _| scene.commit());
        assert!(!scene.switches.is_empty());
    }
}
