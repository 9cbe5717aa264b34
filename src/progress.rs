//! A progress line on terminals, and nothing elsewhere: standard output is data, and logs are
//! not for redrawing.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const WITH_TOTAL: &str = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
const WITHOUT_TOTAL: &str = "{msg} {spinner} {bytes} {bytes_per_sec}";

/// Counts bytes; cheap to clone and to call from many threads.
#[derive(Clone)]
pub struct Progress(ProgressBar);

impl Progress {
    /// A line that starts with `what`; `total` bytes, if that is known.
    pub fn new(what: &'static str, total: Option<u64>) -> Self {
        let bar = ProgressBar::no_length();
        // Draws only where standard error is a terminal.
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.set_message(what);
        let progress = Self(bar);
        match total {
            Some(total) => progress.set_total(total),
            None => progress.draw_as(WITHOUT_TOTAL),
        }
        progress.0.enable_steady_tick(Duration::from_millis(200));
        progress
    }

    /// So many bytes it will be; from now on the line says how long that takes.
    pub fn set_total(&self, total: u64) {
        self.0.set_length(total);
        self.draw_as(WITH_TOTAL);
    }

    /// Whether anybody sees it.
    pub fn is_shown(&self) -> bool {
        !self.0.is_hidden()
    }

    fn draw_as(&self, template: &str) {
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style);
        }
    }

    /// A progress that nobody sees.
    pub fn hidden() -> Self {
        Self(ProgressBar::hidden())
    }

    /// So many bytes more.
    pub fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.0.position()
    }

    /// Removes the line.
    pub fn clear(&self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_total_that_becomes_known_later_gives_the_line_its_end() {
        let progress = Progress::hidden();
        assert!(!progress.is_shown());
        progress.add(10);
        progress.set_total(40);
        assert_eq!((progress.bytes(), progress.0.length()), (10, Some(40)));
        // Both are templates that the crate takes.
        for template in [WITH_TOTAL, WITHOUT_TOTAL] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
