//! A clock that a test drives, for servers, stores and programs alike: Debian's libfaketime,
//! preloaded into each of them. None of ours knows anything about it.
//!
//! Only the time of day is driven; monotonic clocks, and with them time-outs, go on as ever,
//! and so do the times of files: where those matter, the repository has to be a bucket.

use std::path::PathBuf;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::scratch::{Scratch, set_mode};

/// The time of day for every process that has [`environment`](Self::environment).
#[derive(Debug)]
pub struct Clock {
    file: PathBuf,
    ahead: Duration,
}

impl Clock {
    /// A clock that shows the next time that it is midnight UTC on a Sunday, so that a week of
    /// schedule always is the same week. It goes on from there as any clock.
    #[track_caller]
    pub fn at_sunday_midnight(scratch: &Scratch) -> Self {
        let file = scratch.directory("clock").join("offset");
        let now = Timestamp::now();
        let today = now.to_zoned(jiff::tz::TimeZone::UTC);
        let days = 7 - i64::from(today.weekday().to_sunday_zero_offset());
        let sunday = today
            .start_of_day()
            .and_then(|day| day.checked_add(jiff::Span::new().days(days)))
            .expect("there is a next Sunday");
        let ahead = sunday.timestamp().duration_since(now);
        let mut clock = Self {
            file,
            ahead: Duration::ZERO,
        };
        clock.advance(ahead.unsigned_abs());
        clock
    }

    /// What processes need in their environment to follow this clock.
    #[track_caller]
    pub fn environment(&self) -> Vec<(String, String)> {
        let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
        assert!(
            std::path::Path::new(library).exists(),
            "libfaketime is not installed: run scripts/setup test"
        );
        let file = self.file.display().to_string();
        [
            ("LD_PRELOAD", library),
            ("FAKETIME_TIMESTAMP_FILE", &file),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            // A file keeps the time that it was written at, by the real clock: its offset would
            // be that of the moment when somebody looks.
            ("NO_FAKE_STAT", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// What it shows.
    pub fn now(&self) -> Timestamp {
        Timestamp::now() + SignedDuration::try_from(self.ahead).expect("some days")
    }

    /// Puts it forward.
    #[track_caller]
    pub fn advance(&mut self, by: Duration) {
        // The file has whole seconds.
        self.ahead += Duration::from_secs(by.as_secs());
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("+{}\n", self.ahead.as_secs())).expect("the clock is set");
        set_mode(&new, 0o644);
        std::fs::rename(&new, &self.file).expect("the clock is set");
    }

    /// Puts it forward to a moment; never back.
    #[track_caller]
    pub fn advance_to(&mut self, moment: Timestamp) {
        let left = moment.duration_since(self.now());
        if left.is_positive() {
            self.advance(left.unsigned_abs() + Duration::from_secs(1));
        }
    }
}
