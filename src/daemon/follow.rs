//! Commands that never end (`copy --follow`, `heartbeat --follow`), each started again when it
//! does, ever later as long as it does not stay up.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::accepted::Recipe;
use super::child;
use super::operation::Continuous;
use crate::error::Exit;

/// The first wait before such a command is started again, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Who runs so long has begun well: its end is a new trouble.
const STEADY: Duration = Duration::from_secs(60);

/// What became of one, by its name in the state file: none if it stays up, otherwise what it
/// said.
pub type News = (String, Option<String>);

/// All of them.
#[derive(Debug)]
pub struct Followers {
    running: BTreeMap<(String, Continuous), Follower>,
    news: mpsc::UnboundedSender<News>,
}

#[derive(Debug)]
struct Follower {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Followers {
    /// None yet. What becomes of them is told to `news`.
    pub fn new(news: mpsc::UnboundedSender<News>) -> Self {
        Self {
            running: BTreeMap::new(),
            news,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.running.len()
    }

    /// Which.
    pub fn names(&self) -> impl Iterator<Item = (String, Continuous)> {
        self.running.keys().cloned()
    }

    /// Ends those that run, and starts `wanted` instead: each has read a configuration, and
    /// secrets, that may not be valid any more.
    pub fn replace(&mut self, wanted: Vec<((String, Continuous), Recipe)>) {
        let mut old = std::mem::take(&mut self.running);
        for follower in old.values() {
            let _ = follower.stop.send(true);
        }
        for (key, recipe) in wanted {
            let before = old.remove(&key).map(|follower| follower.task);
            let (stop, told) = watch::channel(false);
            let (news, name) = (self.news.clone(), format!("{}/{}", key.0, key.1));
            let task = tokio::spawn(async move {
                // Never two of one kind.
                if let Some(before) = before {
                    let _ = before.await;
                }
                follow(recipe, told, |said| drop(news.send((name.clone(), said)))).await;
            });
            self.running.insert(key, Follower { stop, task });
        }
    }

    /// Ends all of them and waits for that.
    pub async fn end(&mut self) {
        let all: Vec<_> = std::mem::take(&mut self.running).into_values().collect();
        for follower in &all {
            let _ = follower.stop.send(true);
        }
        for follower in all {
            let _ = follower.task.await;
        }
    }
}

async fn follow(recipe: Recipe, mut stop: watch::Receiver<bool>, tell: impl Fn(Option<String>)) {
    let mut wait = WAITS.0;
    let mut trouble: Option<String> = None;
    while !*stop.borrow() {
        let started = Instant::now();
        // It looks at the configuration's file, whose disk may hang.
        let order = tokio::select! {
            order = recipe.order() => order,
            () = child::told(&mut stop) => return,
        };
        let running = child::run(&order, stop.clone());
        tokio::pin!(running);
        // It counts as being well once it stays up.
        let ended = tokio::select! {
            ended = &mut running => ended,
            () = tokio::time::sleep(STEADY) => {
                if trouble.take().is_some() {
                    tracing::info!("{}: works again", order.name);
                    tell(None);
                }
                running.await
            }
        };
        let (said, exit) = match ended {
            Ok(ended) if ended.given_up => return,
            Ok(ended) => (ended.said, ended.exit),
            Err(error) => (format!("it cannot be started: {error}"), None),
        };
        if started.elapsed() >= STEADY {
            wait = WAITS.0;
        }
        if trouble.as_ref() != Some(&said) {
            tracing::warn!("{}: ended ({said}), and is started again", order.name);
            tell(Some(said.clone()));
            trouble = Some(said);
        }
        tokio::select! {
            () = tokio::time::sleep(pause_after(exit, wait)) => {}
            () = child::told(&mut stop) => return,
        }
        wait = (wait * 2).min(WAITS.1);
    }
}

/// How long to wait after this exit code. A wrong configuration is seldom mended by waiting; a
/// secret whose file was missing for a moment is.
fn pause_after(exit: Option<i32>, wait: Duration) -> Duration {
    match exit {
        Some(code) if code == Exit::Usage as i32 => WAITS.1,
        _ => wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_is_started_again_in_five_minutes_at_the_latest() {
        for exit in [None, Some(0), Some(1), Some(2), Some(5)] {
            assert!(pause_after(exit, WAITS.0) <= Duration::from_secs(300));
        }
        assert_eq!(pause_after(Some(1), WAITS.0), WAITS.0);
    }
}
