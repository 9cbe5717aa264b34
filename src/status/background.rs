//! Work that takes longer than a look: it goes on beside the looks, one at a time.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

/// One kind of work; dropped, it is given up.
pub(super) struct Background<T> {
    running: Option<(JoinHandle<T>, Instant)>,
    /// When the last one ended, and how long it took.
    last: Option<(Instant, Duration)>,
}

impl<T> Default for Background<T> {
    fn default() -> Self {
        Self {
            running: None,
            last: None,
        }
    }
}

impl<T: Send + 'static> Background<T> {
    /// Whether none runs, and the last one ended so long ago.
    pub(super) fn may_begin(&self, pause: Duration) -> bool {
        let rested = self.last.is_none_or(|(ended, _)| ended.elapsed() >= pause);
        self.running.is_none() && rested
    }

    /// How long the last one took.
    pub(super) fn took(&self) -> Duration {
        self.last.map_or(Duration::ZERO, |(_, took)| took)
    }

    pub(super) fn begin(&mut self, work: impl Future<Output = T> + Send + 'static) {
        self.running = Some((tokio::spawn(work), Instant::now()));
    }

    /// What it came to, if it has ended, or ends by `until`.
    pub(super) async fn ended(&mut self, until: Option<tokio::time::Instant>) -> Option<T> {
        let (running, begun) = self.running.as_mut()?;
        if !running.is_finished() {
            // A little before the caller gives up himself: the work is not to be lost with it.
            let until = until?.checked_sub(Duration::from_millis(200))?;
            let waited = tokio::time::timeout_at(until, &mut *running).await;
            let Ok(joined) = waited else { return None };
            self.last = Some((Instant::now(), begun.elapsed()));
            self.running = None;
            return joined.ok();
        }
        let joined = running.await;
        self.last = Some((Instant::now(), begun.elapsed()));
        self.running = None;
        joined.ok()
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        if let Some((running, _)) = &self.running {
            running.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_outlasts_who_does_not_wait_and_ends_with_its_owner() {
        let mut work = Background::default();
        assert!(work.may_begin(Duration::from_secs(60)));
        let (tell, told) = tokio::sync::oneshot::channel();
        work.begin(told);
        assert!(!work.may_begin(Duration::ZERO));
        assert!(work.ended(None).await.is_none());
        let soon = tokio::time::Instant::now() + Duration::from_millis(300);
        assert!(work.ended(Some(soon)).await.is_none());
        tell.send(7).unwrap();
        let later = tokio::time::Instant::now() + Duration::from_secs(60);
        assert_eq!(work.ended(Some(later)).await, Some(Ok(7)));
        assert!(!work.may_begin(Duration::from_secs(60)));
        let (tell, told) = tokio::sync::oneshot::channel::<u8>();
        work.begin(told);
        drop(work);
        let mut tell = tell;
        tell.closed().await;
    }
}
