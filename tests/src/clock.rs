//! A wall clock that the test drives, for every program that is started with its environment:
//! libfaketime adds an offset to what the system says. Time that is measured (tokio's sleeps,
//! time limits) goes on as it does. So a week passes in minutes, and no program has a hook for
//! it.
//!
//! Times of files are real ones, whatever the clock says: do not let days pass over a local
//! repository whose objects' age matters.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};

use crate::Scratch;
use crate::cli::Call;
use crate::process::Run;
use crate::scratch::{give_to_owner, set_mode};

const LIBRARIES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// The clock. It begins with the real time, and stands in a file of a scratch directory.
#[derive(Debug)]
pub struct Clock {
    file: PathBuf,
    library: &'static str,
    offset: AtomicI64,
}

impl Clock {
    /// A clock that shows the real time.
    #[track_caller]
    pub fn new(scratch: &Scratch) -> Self {
        let library = LIBRARIES
            .into_iter()
            .find(|path| Path::new(path).exists())
            .expect("libfaketime is not installed: run scripts/setup test");
        let clock = Self {
            file: scratch.join("clock"),
            library,
            offset: AtomicI64::new(0),
        };
        clock.advance(SignedDuration::ZERO);
        clock
    }

    /// A clock that shows the midnight (UTC) at which the next Sunday begins: a week of
    /// schedule is always the same week.
    #[track_caller]
    pub fn at_sunday_midnight(scratch: &Scratch) -> Self {
        let clock = Self::new(scratch);
        const DAY: i64 = 86_400;
        // The epoch was a Thursday.
        let (now, sunday) = (clock.now().as_second(), 3 * DAY);
        let next = (now - sunday).div_euclid(7 * DAY) + 1;
        clock.advance(SignedDuration::from_secs(next * 7 * DAY + sunday - now));
        clock
    }

    /// What a program's environment must hold to live by this clock.
    pub fn environment(&self) -> [(&'static str, String); 5] {
        [
            ("LD_PRELOAD", self.library.to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            // Waits must take as long as they do.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            // It would add today's offset to the time of a file that was written days ago.
            ("NO_FAKE_STAT", "1".to_owned()),
        ]
    }

    /// A program that lives by this clock.
    pub fn run(&self, run: Run) -> Run {
        let environment = self.environment().into_iter();
        environment.fold(run, |run, (name, value)| run.env(name, value))
    }

    /// A call that lives by this clock.
    pub fn call(&self, call: Call) -> Call {
        call.with(|run| self.run(run))
    }

    /// What it shows.
    pub fn now(&self) -> Timestamp {
        Timestamp::now() + SignedDuration::from_secs(self.offset.load(Ordering::SeqCst))
    }

    /// Puts it forward, or back.
    #[track_caller]
    pub fn advance(&self, by: SignedDuration) {
        let offset = self.offset.fetch_add(by.as_secs(), Ordering::SeqCst) + by.as_secs();
        // In one step: a program may look at any moment.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{offset:+}\n")).expect("the clock can be written");
        set_mode(&new, 0o644);
        give_to_owner(&new);
        std::fs::rename(&new, &self.file).expect("the clock can be set");
    }

    /// Puts it forward to just after a moment; never back.
    #[track_caller]
    pub fn advance_to(&self, moment: Timestamp) {
        let left = moment.duration_since(self.now()).as_secs() + 2;
        self.advance(SignedDuration::from_secs(left.max(0)));
    }

    /// Puts it forward until just after the next time that is a whole multiple of `period` of
    /// the day, and returns that time.
    #[track_caller]
    pub fn advance_to_next(&self, period: SignedDuration) -> Timestamp {
        let (now, period) = (self.now().as_second(), period.as_secs());
        let next = (now / period + 1) * period;
        self.advance(SignedDuration::from_secs(next + 1 - now));
        Timestamp::from_second(next).expect("a time")
    }
}
