//! Keeping the state on disk without ever waiting for the disk: one write at a time, off the
//! loop, and only when something has changed. A disk that is full or away is said once.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::state::State;

/// After a failure the next attempt is not made before this.
const TRY_AGAIN: Duration = Duration::from_secs(30);

pub(super) struct Saver {
    directory: PathBuf,
    saved: State,
    writing: Option<JoinHandle<(State, io::Result<()>)>>,
    failed: Option<Instant>,
}

impl Saver {
    pub(super) fn new(directory: PathBuf, saved: &State) -> Self {
        Self {
            directory,
            saved: saved.clone(),
            writing: None,
            failed: None,
        }
    }

    /// Begins to write `state` if it has changed and nothing is being written. To be called
    /// again and again: what changes meanwhile is written by a later call.
    pub(super) fn save(&mut self, state: &State) {
        use futures::FutureExt;
        if let Some(writing) = &mut self.writing {
            match writing.now_or_never() {
                None => return,
                Some(done) => self.written(done),
            }
        }
        let recent = self
            .failed
            .is_some_and(|failed| failed.elapsed() < TRY_AGAIN);
        if *state != self.saved && !recent {
            let (state, directory) = (state.clone(), self.directory.clone());
            self.writing = Some(tokio::task::spawn_blocking(move || {
                let result = state.write(&directory);
                (state, result)
            }));
        }
    }

    /// Writes it now, if the disk lets us within some seconds.
    pub(super) async fn save_now(&mut self, state: &State) {
        let limit = Duration::from_secs(5);
        for _ in 0..2 {
            if let Some(writing) = self.writing.as_mut() {
                match tokio::time::timeout(limit, writing).await {
                    Ok(done) => self.written(done),
                    Err(_) => return,
                }
            }
            self.failed = None;
            self.save(state);
        }
        if let Some(writing) = self.writing.as_mut()
            && let Ok(done) = tokio::time::timeout(limit, writing).await
        {
            self.written(done);
        }
    }

    fn written(&mut self, done: Result<(State, io::Result<()>), tokio::task::JoinError>) {
        self.writing = None;
        let result = match done {
            Ok((state, Ok(()))) => {
                self.saved = state;
                Ok(())
            }
            Ok((_, Err(error))) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let directory = self.directory.display();
        match result {
            Ok(()) => {
                if self.failed.take().is_some() {
                    tracing::info!("{directory} can be written again");
                }
            }
            Err(error) => {
                if self.failed.is_none() {
                    tracing::error!(
                        "what was done cannot be noted in {directory} ({error}); work goes on, and after a restart some of it is done again"
                    );
                }
                self.failed = Some(Instant::now());
            }
        }
    }
}
