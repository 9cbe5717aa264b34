//! Retrying: one loop for every store, local files and the fault store included, so that all
//! of them behave alike and every retry is counted and logged.
//!
//! object_store's own retries are switched off. Each attempt has a time limit of its own,
//! all attempts together have one as well, and nothing here waits for ever.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use super::Inner;
use super::error::{Failure, StorageError};
use super::judge::{judge, seconds};

/// How often and how long an operation is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all, the first one included; at least one is made.
    pub attempts: u32,
    /// The wait before the second attempt; it doubles from then on, with jitter.
    pub first_wait: Duration,
    /// No wait is longer than this.
    pub longest_wait: Duration,
    /// The limit of one attempt, and of the silence within a body that is being read. Bodies
    /// get the time that the slowest link takes in addition.
    pub attempt_timeout: Duration,
    /// Bytes in a second of the slowest link that still passes.
    pub slowest_link: u64,
    /// The limit of all attempts and waits of one operation together, with the same addition
    /// for bodies.
    pub total_deadline: Duration,
}

impl Default for RetryPolicy {
    /// Six attempts within three minutes: a connection that is refused at once is given up
    /// after about six seconds.
    fn default() -> Self {
        Self {
            attempts: 6,
            first_wait: Duration::from_millis(200),
            longest_wait: Duration::from_secs(10),
            attempt_timeout: Duration::from_secs(60),
            slowest_link: 256 << 10,
            total_deadline: Duration::from_secs(180),
        }
    }
}

/// "Without a limit" in a configuration must not overflow the clock.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

impl RetryPolicy {
    /// The limit of one attempt that moves so many bytes.
    pub(super) fn attempt_limit(&self, bytes: u64) -> Duration {
        self.attempt_timeout.min(LONGEST) + self.allowance(bytes)
    }

    /// The limit of all attempts together.
    pub(super) fn total_limit(&self, bytes: u64) -> Duration {
        self.total_deadline.min(LONGEST) + self.allowance(bytes)
    }

    fn allowance(&self, bytes: u64) -> Duration {
        Duration::from_secs(bytes / self.slowest_link.max(1)).min(LONGEST)
    }

    /// The wait after the `failed`-th failed attempt: between half of the doubled wait and all
    /// of it, so that many hosts that failed together do not come back together.
    pub(super) fn wait(&self, failed: u32) -> Duration {
        let doubled = self
            .first_wait
            .saturating_mul(1 << failed.saturating_sub(1).min(20))
            .min(self.longest_wait);
        doubled.mul_f64(rand::random_range(0.5..=1.0))
    }
}

impl Inner {
    /// Runs `attempt` until it succeeds, fails for good, or the policy is used up.
    ///
    /// `attempt` gets its number, from 1: what follows an earlier attempt must reckon with
    /// that one having done its work all the same.
    pub(super) async fn run<T, F, Fut>(
        &self,
        action: &'static str,
        key: &str,
        bytes: u64,
        mut attempt: F,
    ) -> Result<T, StorageError>
    where
        F: FnMut(u32) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        let start = Instant::now();
        let deadline = start + self.retry.total_limit(bytes);
        let limit = self.retry.attempt_limit(bytes);
        let attempts = self.retry.attempts.max(1);
        let mut number = 1;
        loop {
            self.count_request();
            let limit = limit.min(deadline.saturating_duration_since(Instant::now()));
            let failure = match tokio::time::timeout(limit, attempt(number)).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::Timeout(limit),
            };
            let verdict = judge(failure)?;
            let wait = self.retry.wait(number);
            let out_of_time = Instant::now() + wait >= deadline;
            if !verdict.retryable || number >= attempts || out_of_time {
                let tried = match number {
                    1 => String::new(),
                    _ => format!(" ({number} attempts within {})", seconds(start.elapsed())),
                };
                return Err(StorageError::from_verdict(
                    action, key, &self.url, verdict, &tried,
                ));
            }
            self.note_retry(action, key, number, wait, &verdict.cause);
            tokio::time::sleep(wait).await;
            number += 1;
        }
    }

    /// Counts and logs a retry that is about to be made.
    pub(super) fn note_retry(
        &self,
        action: &str,
        key: &str,
        attempt: u32,
        wait: Duration,
        cause: &str,
    ) {
        self.count_retry();
        tracing::warn!(
            "cannot {action} {key} in {} (attempt {attempt} of {}), again in {}: {cause}",
            self.url,
            self.retry.attempts.max(1),
            seconds(wait),
        );
    }
}
