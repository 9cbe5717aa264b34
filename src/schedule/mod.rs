//! When something is due: crontab(5)'s lines in a time zone, on the `cron` crate.
//!
//! That crate's own dialect is Quartz's: seconds come first, 1 is Sunday, both day fields must
//! match, a time in a repeated hour fires twice and one in a skipped hour never. None of that
//! is left here: `fields` reads a line by crontab(5)'s rules into plain sets of numbers, the
//! crate walks through them in plain civil time, and this file maps what it finds into the
//! zone. A time that the clock skips comes at once after the gap; one that it shows twice comes
//! the first time only.

mod fields;

use std::fmt;

use chrono::{DateTime, Utc};
use jiff::civil;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use fields::Fields;

/// Lines that nobody can satisfy are found out by looking this far ahead: leap days come every
/// eight years at most, and on a given weekday every forty.
const HORIZON_YEARS: i16 = 41;

/// A crontab(5) line in a time zone.
#[derive(Clone)]
pub struct Schedule {
    line: String,
    zone: TimeZone,
    // crontab(5): where both day fields are restricted, either will do. In civil time, as if
    // it were UTC.
    either: Vec<cron::Schedule>,
}

impl Schedule {
    /// Reads five fields (minute, hour, day of the month, month, day of the week) or one of
    /// `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly`, `@annually`.
    ///
    /// # Errors
    /// What is wrong with it, in one line. A line that can never fire is wrong, too.
    pub fn parse(line: &str, zone: &TimeZone) -> Result<Self, String> {
        let fields = Fields::parse(line)?;
        let either = fields
            .quartz()
            .iter()
            .map(|text| {
                text.parse::<cron::Schedule>()
                    .map_err(|error| format!("{line:?} is not understood: {error}"))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let schedule = Self {
            line: line.to_owned(),
            zone: zone.clone(),
            either,
        };
        // Civil time from a day on that has every kind of month and weekday ahead.
        let start = civil::date(2000, 1, 1).at(0, 0, 0, 0);
        match schedule.civil_after(start) {
            Some(first) if first.year() < 2000 + HORIZON_YEARS => Ok(schedule),
            _ => Err(format!(
                "{line:?} can never come: no such day is in any year"
            )),
        }
    }

    /// The line as it was written.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// The name of its time zone.
    pub fn zone_name(&self) -> &str {
        self.zone.iana_name().unwrap_or("UTC")
    }

    /// The time zone.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The first firing time after `time`; none within the next decades.
    pub fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        let mut at = time.to_zoned(self.zone.clone()).datetime();
        // In the second pass of a repeated hour, what comes next there was due in the first.
        loop {
            at = self.civil_after(at)?;
            let fires = self.instant(at)?;
            if fires > time {
                return Some(fires);
            }
        }
    }

    /// The last firing time that is not after `time`.
    pub fn last_until(&self, time: Timestamp) -> Option<Timestamp> {
        // In the second pass of a repeated hour the clock shows less than it did before.
        let shown = time.to_zoned(self.zone.clone()).datetime();
        let before = self
            .zone
            .preceding(time)
            .next()
            .map(|transition| transition.timestamp() - SignedDuration::from_nanos(1))
            .map(|before| self.zone.to_offset(before).to_datetime(time));
        let mut at = before.map_or(shown, |before| before.max(shown));
        at = at.saturating_add(SignedDuration::from_secs(1));
        loop {
            at = self.civil_before(at)?;
            let fires = self.instant(at)?;
            if fires <= time {
                return Some(fires);
            }
        }
    }

    /// When the zone's clock shows `civil` for the first time; where it skips that, when it
    /// does.
    fn instant(&self, civil: civil::DateTime) -> Option<Timestamp> {
        let ambiguous = self.zone.to_ambiguous_timestamp(civil);
        match ambiguous.offset() {
            AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(civil).ok(),
            AmbiguousOffset::Fold { before, .. } => before.to_timestamp(civil).ok(),
            AmbiguousOffset::Gap { after, .. } => {
                // By the later offset that moment lies before the gap.
                let still_before = after.to_timestamp(civil).ok()?;
                let gap = self.zone.following(still_before).next()?;
                Some(gap.timestamp())
            }
        }
    }

    fn civil_after(&self, civil: civil::DateTime) -> Option<civil::DateTime> {
        let after = as_utc(civil)?;
        let next = self.either.iter().filter_map(|s| s.after(&after).next());
        next.min().and_then(as_civil)
    }

    fn civil_before(&self, civil: civil::DateTime) -> Option<civil::DateTime> {
        let before = as_utc(civil)?;
        let last = self
            .either
            .iter()
            .filter_map(|s| s.after(&before).next_back());
        last.max().and_then(as_civil)
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.line, self.zone_name())
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.line == other.line && self.zone_name() == other.zone_name()
    }
}

/// The zone called `name`, as in `Europe/Berlin`.
///
/// # Errors
/// There is none; the text says so.
pub fn zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name)
        .map_err(|_| format!("{name:?} is not a time zone such as \"UTC\" or \"Europe/Berlin\""))
}

/// Civil time as the crate wants it: as if the clock showed UTC.
fn as_utc(civil: civil::DateTime) -> Option<DateTime<Utc>> {
    let time = TimeZone::UTC.to_timestamp(civil).ok()?;
    DateTime::from_timestamp(time.as_second(), 0)
}

fn as_civil(time: DateTime<Utc>) -> Option<civil::DateTime> {
    let time = Timestamp::from_second(time.timestamp()).ok()?;
    Some(time.to_zoned(TimeZone::UTC).datetime())
}

#[cfg(test)]
mod tests;
