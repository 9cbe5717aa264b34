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

    /// Ends those that run, and starts `wanted` instead: each has read a configuration that is
    /// not valid any more.
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
        let order = recipe.order().await;
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
        // A wrong configuration is only mended by another one: then this one is replaced.
        let pause = match exit {
            Some(code) if code == Exit::Usage as i32 => Duration::MAX,
            _ => wait,
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = child::told(&mut stop) => return,
        }
        wait = (wait * 2).min(WAITS.1);
    }
}
