//! Threads that may block, and wait for the store. They can be told to end: what they wait for
//! is given up at once, also where a store hangs.

use std::future::Future;

use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::error::{Error, Result};

/// Tells threads to end. So does dropping it.
#[derive(Debug)]
pub struct StopSwitch(watch::Sender<bool>);

impl StopSwitch {
    /// All that wait, and all that look, end with an error.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

/// What a thread needs to wait for the store; cheap to clone.
#[derive(Debug, Clone)]
pub struct Waiter {
    runtime: Handle,
    stop: watch::Receiver<bool>,
}

impl Waiter {
    /// A waiter and what stops it. Must be called inside the runtime.
    pub fn new() -> (StopSwitch, Self) {
        let (sender, stop) = watch::channel(false);
        let runtime = Handle::current();
        (StopSwitch(sender), Self { runtime, stop })
    }

    /// The runtime, to start tasks on.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// An error once the switch was used or is gone.
    pub fn check(&self) -> Result<()> {
        if *self.stop.borrow() || self.stop.has_changed().is_err() {
            return Err(stopped());
        }
        Ok(())
    }

    /// Waits on this thread, which must be one that may block.
    pub fn wait<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut stop = self.stop.clone();
        self.runtime.block_on(async {
            tokio::select! {
                done = work => done,
                // An error says that the switch is gone.
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
            let (switch, waiter) = Waiter::new();
            waiter.check().unwrap();
            let hanging = tokio::task::spawn_blocking({
                let waiter = waiter.clone();
                move || waiter.wait(std::future::pending::<Result<()>>())
            });
            if drop_it {
                drop(switch);
            } else {
                switch.stop();
            }
            assert!(hanging.await.unwrap().is_err());
            assert!(waiter.check().is_err());
        }
    }
}
