//! Moments of this machine's clock, which PostgreSQL's commits are stamped with as well.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Microseconds since 1970, PostgreSQL's own precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub i64);

impl Moment {
    /// Now.
    pub fn now() -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("the clock is past 1970");
        Self(since.as_micros() as i64)
    }

    /// The time from `earlier` to this moment; zero if it is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros((self.0 - earlier.0).max(0) as u64)
    }
}

/// As `recovery_target_time` and `seawall restore --time` take it:
/// `2026-11-20 11:09:25.123456+00`.
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = jiff::Timestamp::from_microsecond(self.0).map_err(|_| fmt::Error)?;
        write!(f, "{}", time.strftime("%Y-%m-%d %H:%M:%S.%6f+00"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_prints_as_postgresql_reads_it() {
        assert_eq!(
            Moment(1_795_172_965_000_042).to_string(),
            "2026-11-20 11:09:25.000042+00"
        );
    }
}
