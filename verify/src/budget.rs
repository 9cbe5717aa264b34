//! A time that something may take, all its parts together.

use std::fmt;
use std::time::{Duration, Instant};

use seawall::config::HumanDuration;

/// A time that something may take, from when it was made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    ends: Instant,
    whole: Duration,
}

impl Budget {
    pub(crate) fn new(whole: Duration) -> Self {
        Self {
            ends: Instant::now() + whole,
            whole,
        }
    }

    pub(crate) fn left(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }

    pub(crate) fn is_over(&self) -> bool {
        self.left().is_zero()
    }
}

/// `5m`, as the configuration has it.
impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        HumanDuration(self.whole).fmt(f)
    }
}
