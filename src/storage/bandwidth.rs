//! A limit on what goes to a store, for networks that others need, too.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// After a pause so much more may go at once than the rate allows: what it brings in this time.
const BURST: Duration = Duration::from_millis(500);

/// A token bucket that all clones of a [`Store`](super::Store) share.
#[derive(Debug)]
pub struct Bandwidth {
    bytes_per_second: u64,
    /// When all that was asked for so far will have gone, at the rate.
    gone: Mutex<Option<Instant>>,
}

impl Bandwidth {
    /// A limit of so many bytes a second, at least one.
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            gone: Mutex::default(),
        }
    }

    /// Waits until `bytes` more may go. Who asks first goes first.
    pub async fn take(&self, bytes: u64) {
        let time = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let now = Instant::now();
        let gone = {
            let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
            let idle = now.checked_sub(BURST).unwrap_or(now);
            let next = gone.unwrap_or(now).max(idle) + time;
            *gone = Some(next);
            next
        };
        tokio::time::sleep_until(gone).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn however_many_write_at_once_they_share_the_rate() {
        let bandwidth = Arc::new(Bandwidth::new(1_000_000));
        let start = Instant::now();
        let writers: Vec<_> = (0..4)
            .map(|_| {
                let bandwidth = Arc::clone(&bandwidth);
                tokio::spawn(async move {
                    for _ in 0..10 {
                        bandwidth.take(250_000).await;
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
        let took = start.elapsed().as_secs_f64();
        assert!((9.9..10.1).contains(&took), "{took} s for 10 MB");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_made_up_for_by_half_a_second_and_no_more() {
        let bandwidth = Bandwidth::new(1_000_000);
        bandwidth.take(1_000_000).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let start = Instant::now();
        bandwidth.take(2_000_000).await;
        let took = start.elapsed().as_secs_f64();
        assert!((1.4..1.6).contains(&took), "{took} s for 2 MB");
    }
}
