//! Who works on a store: a future that is polled by hand, as far as its gate lets it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};

use seawall::storage::simulated::Gate;

/// Somebody who works on a store, step by step.
pub struct Actor {
    /// What it does, for messages.
    pub name: String,
    gate: Gate,
    work: Pin<Box<dyn Future<Output = ()>>>,
}

impl Actor {
    /// Somebody who passes `gate` before each call to a store. Nothing is done yet.
    pub fn new(name: String, gate: Gate, work: impl Future<Output = ()> + 'static) -> Self {
        Self {
            name,
            gate,
            // Or the runtime's budget for one poll would stop it.
            work: Box::pin(tokio::task::unconstrained(work)),
        }
    }

    /// Lets it make so many calls. `true`: it is done.
    pub fn step(&mut self, calls: u64) -> bool {
        self.gate.allow(calls);
        let mut context = Context::from_waker(Waker::noop());
        // It may ask to be polled again without having met the gate.
        for _ in 0..10_000 {
            let before = self.gate.passed();
            if self.work.as_mut().poll(&mut context).is_ready() {
                return true;
            }
            if self.gate.allowed() == 0 && self.gate.passed() == before {
                return false;
            }
        }
        panic!("{} waits for something else than its gate", self.name);
    }

    /// Lets it finish.
    pub fn finish(&mut self) {
        assert!(self.step(u64::MAX), "{} ends", self.name);
    }
}
