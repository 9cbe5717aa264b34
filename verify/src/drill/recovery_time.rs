//! The clock of the recovery: it runs from the decision to recover to the first answer, and
//! stands still while a drill checks what an emergency would not.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use seawall::config::HumanDuration;
use seawall::postgres::SegmentSize;

use super::course::Course;
use crate::evidence::round;
use crate::replay::Replay;
use crate::report::{Dominant, Forecast, Phase, Rto};

/// The sizes that a forecast is made for.
const FORECAST_SIZES: [u64; 3] = [100 << 30, 1 << 40, 10 << 40];

/// Parts of a second within which two points in time are the same.
const LEAST: f64 = 0.0005;

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct RecoveryClock {
    started: Option<Instant>,
    paused: Option<Instant>,
    /// How long it has stood still.
    stood: Duration,
    phases: Vec<Phase>,
    /// The threads' time of phases that overlap.
    busy: Vec<(&'static str, Duration)>,
    /// When the database answered.
    answered: Option<f64>,
}

impl RecoveryClock {
    pub(super) fn start(&mut self) {
        self.started = Some(Instant::now());
    }

    pub(super) fn pause(&mut self) {
        self.paused = Some(Instant::now());
    }

    pub(super) fn resume(&mut self) {
        if let Some(paused) = self.paused.take() {
            self.stood += paused.elapsed();
        }
    }

    /// Seconds since the decision to recover.
    pub(super) fn now(&self) -> f64 {
        let elapsed = self.started.map_or(Duration::ZERO, |s| s.elapsed());
        elapsed.saturating_sub(self.stood).as_secs_f64()
    }

    pub(super) fn add_restore(&mut self, phases: &[seawall_restore::Phase]) {
        for phase in phases {
            self.add(
                phase.name,
                phase.began.as_secs_f64(),
                phase.duration.as_secs_f64(),
                phase.bytes,
            );
            self.busy.extend(phase.busy.map(|busy| (phase.name, busy)));
        }
    }

    /// From the server's own log: it knows best when it was consistent. `began` on this clock is
    /// `at` on the server's.
    pub(super) fn add_replay(
        &mut self,
        began: f64,
        at: Timestamp,
        replay: &Replay,
        segment: SegmentSize,
    ) {
        let marks = [
            ("start", replay.redo_starts),
            ("replay to consistency", replay.consistent),
            ("replay to target", replay.redo_done.map(|(time, _)| time)),
            ("promote", replay.ready),
        ];
        let mut last = began;
        for (name, time) in marks {
            let Some(time) = time else { continue };
            let end = (began + time.duration_since(at).as_secs_f64()).max(last);
            // Which segment was replayed when is not in the log: all are told with the end.
            let bytes = (name == "replay to target").then(|| replay.segments * segment.bytes());
            self.add(name, last, end - last, bytes.filter(|bytes| *bytes > 0));
            last = end;
        }
    }

    /// The database has answered.
    pub(super) fn end_recovery(&mut self, name: &str, began: f64) {
        let now = self.now();
        self.add(name, began, now - began, None);
        self.answered = Some(now);
    }

    pub(super) fn add_checks(&mut self, began: f64) {
        let seconds = self.now() - began;
        self.add("checks", began, seconds, None);
        if let Some(phase) = self.phases.last_mut() {
            phase.counts = false;
        }
    }

    fn add(&mut self, name: &str, began: f64, seconds: f64, bytes: Option<u64>) {
        self.phases.push(Phase {
            name: name.to_owned(),
            began: round(began),
            seconds: round(seconds.max(0.0)),
            bytes,
            counts: true,
        });
    }

    /// What came of it.
    pub(super) fn recovery_time(
        &self,
        objective: Option<HumanDuration>,
        open: bool,
        course: &Course,
    ) -> Rto {
        let measured = self.answered.filter(|_| open).map(round);
        let size = course.plan.backup.plain_bytes;
        Rto {
            objective_seconds: objective.map(|rto| rto.0.as_secs_f64()),
            measured_seconds: measured,
            dominated_by: measured.and_then(|whole| self.dominant(whole)),
            forecast: measured.map_or_else(Vec::new, |_| self.forecast(size)),
            phases: self.phases.clone(),
        }
    }

    /// The longest phase. Of two that overlap it is the one that threads spent more time on.
    fn dominant(&self, whole: f64) -> Option<Dominant> {
        let busy = |name: &str| {
            let found = self.busy.iter().find(|(phase, _)| *phase == name);
            found.map_or(Duration::ZERO, |(_, busy)| *busy)
        };
        let counts = self.phases.iter().filter(|phase| phase.counts);
        let longest = counts.max_by(|a, b| {
            let order = a.seconds.total_cmp(&b.seconds);
            order.then_with(|| busy(&a.name).cmp(&busy(&b.name)))
        })?;
        (whole > LEAST).then(|| Dominant {
            phase: longest.name.clone(),
            share: round(longest.seconds / whole),
            advice: advice(&longest.name).to_owned(),
        })
    }

    /// For other sizes: what moves bytes takes longer in proportion, the rest does not, and
    /// replay depends on the WAL since the last backup, not on the size.
    fn forecast(&self, size: u64) -> Vec<Forecast> {
        let mut grows = 0.0;
        let mut stays = 0.0;
        let mut end = 0.0_f64;
        for phase in self.phases.iter().filter(|phase| phase.counts) {
            // What overlaps what came before counts once.
            let until = phase.began + phase.seconds;
            let alone = (until - end.max(phase.began)).max(0.0);
            end = end.max(until);
            match phase.name.as_str() {
                "fetch" | "write" | "sync" => grows += alone,
                _ => stays += alone,
            }
        }
        if size == 0 || grows <= LEAST {
            return Vec::new();
        }
        let rate = size as f64 / grows;
        FORECAST_SIZES
            .map(|bytes| Forecast {
                bytes,
                seconds: (bytes as f64 / rate + stays).round(),
                basis: format!(
                    "not measured: {:.0} MiB/s of files as in this drill ({} MiB), and the same {stays:.1} s for all that does not grow with the database, replay of as much WAL included",
                    rate / f64::from(1 << 20),
                    size >> 20
                ),
            })
            .into()
    }
}

/// What would shorten a phase.
fn advice(phase: &str) -> &'static str {
    match phase {
        "plan" => "the repository answers slowly: look at its distance and its listings",
        "fetch" => {
            "bytes arrived more slowly than they could be written: a repository nearer by, a faster link, or more of `restore.jobs`"
        }
        "write" => {
            "the disk of the scratch directory, or the processors that decompress: faster ones, or more of `restore.jobs` where processors are idle"
        }
        "sync" => "the disk has to write down what was restored: a faster one",
        "start" | "replay to consistency" => {
            "WAL that was written during the backup: take backups in quieter hours"
        }
        "replay to target" => {
            "WAL since the backup: take backups more often, or raise `fetch.jobs` where the server waits for segments"
        }
        "promote" => "the checkpoint at the end of recovery: a faster disk",
        _ => "nothing in the repository would",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(phases: &[(&'static str, f64, f64)]) -> RecoveryClock {
        let mut clock = RecoveryClock::default();
        for (name, began, seconds) in phases {
            clock.add(name, *began, *seconds, None);
        }
        clock
    }

    #[test]
    fn of_phases_that_overlap_the_busier_one_is_named() {
        let mut clock = clock(&[("plan", 0.0, 1.0), ("fetch", 1.0, 8.0), ("write", 1.0, 8.0)]);
        clock.busy = vec![
            ("fetch", Duration::from_secs(12)),
            ("write", Duration::from_secs(3)),
        ];
        let dominant = clock.dominant(10.0).unwrap();
        assert_eq!((dominant.phase.as_str(), dominant.share), ("fetch", 0.8));
        clock.busy.swap(0, 1);
        clock.busy[0].1 = Duration::from_secs(13);
        assert_eq!(clock.dominant(10.0).unwrap().phase, "write");
    }

    #[test]
    fn a_forecast_counts_what_overlaps_once_and_lets_replay_stay() {
        let clock = clock(&[
            ("plan", 0.0, 1.0),
            ("fetch", 1.0, 8.0),
            ("write", 1.0, 9.0),
            ("replay to target", 10.0, 5.0),
        ]);
        let forecast = clock.forecast(1 << 30);
        assert_eq!(forecast[0].bytes, 100 << 30);
        assert!(
            (forecast[0].seconds - (900.0 + 6.0)).abs() < 1.0,
            "{forecast:?}"
        );
        assert!(forecast[0].basis.contains("not measured"));
    }
}
