//! Threads that may block, and wait for the store. They can be told to end: what they wait for
//! is given up at once, also where a store hangs.

use std::future::Future;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::error::{Error, Result};

/// Whoever drops it tells the threads of its waiter to end: the future that they work for was
/// given up (Ctrl-C), or has an error of its own.
#[derive(Debug)]
#[must_use = "dropped at once, it ends all threads at once"]
pub struct StopOnDrop(Waiter);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// What a thread needs to wait for the store; cheap to clone.
#[derive(Debug, Clone)]
pub struct Waiter {
    runtime: Handle,
    stop: Arc<watch::Sender<bool>>,
}

impl Waiter {
    /// A waiter and what stops it. Must be called inside the runtime.
    pub fn new() -> (StopOnDrop, Self) {
        let waiter = Self {
            runtime: Handle::current(),
            stop: Arc::new(watch::Sender::new(false)),
        };
        (StopOnDrop(waiter.clone()), waiter)
    }

    /// The runtime, to start tasks on.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// All that wait, and all that look, end with an error.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// An error once it was stopped.
    pub fn check(&self) -> Result<()> {
        match *self.stop.borrow() {
            true => Err(stopped()),
            false => Ok(()),
        }
    }

    /// Waits on this thread, which must be one that may block.
    pub fn wait<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut stop = self.stop.subscribe();
        self.runtime.block_on(async {
            tokio::select! {
                done = work => done,
                _ = stop.wait_for(|stop| *stop) => Err(stopped()),
            }
        })
    }
}

fn stopped() -> Error {
    Error::failed("it was told to stop")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_for_a_store_that_hangs_ends_when_it_is_told_to() {
        for drop_it in [false, true] {
            let (guard, waiter) = Waiter::new();
            waiter.check().unwrap();
            let hanging = tokio::task::spawn_blocking({
                let waiter = waiter.clone();
                move || waiter.wait(std::future::pending::<Result<()>>())
            });
            if drop_it {
                drop(guard);
            } else {
                waiter.stop();
            }
            assert!(hanging.await.unwrap().is_err());
            assert!(waiter.check().is_err());
        }
    }
}
