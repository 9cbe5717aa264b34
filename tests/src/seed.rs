//! Chance that can be had again: a failing test prints `SEED=…` and the command that replays
//! it.

use std::hash::{DefaultHasher, Hash, Hasher};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A source of chance that says how to repeat it if the test fails.
#[derive(Debug)]
pub struct Seed {
    seed: u64,
    chance: StdRng,
}

impl Seed {
    /// The seed of the environment variable `SEED`, or a new one. A second try of the same run
    /// gets that of the first: what chance found once, it finds again.
    #[track_caller]
    pub fn new() -> Self {
        let given = std::env::var("SEED").ok();
        let seed = match given {
            Some(text) => text.parse().expect("SEED is a number"),
            None => of_this_run().unwrap_or_else(|| rand::random::<u32>().into()),
        };
        Self {
            seed,
            chance: StdRng::seed_from_u64(seed),
        }
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.chance.random_range(0..limit.max(1))
    }

    /// A part of a duration: zero to all of it.
    pub fn part_of(&mut self, whole: std::time::Duration) -> std::time::Duration {
        whole.mul_f64(self.chance.random_range(0.0..1.0))
    }

    /// The number itself.
    pub fn number(&self) -> u64 {
        self.seed
    }
}

/// A number of the run that nextest makes, and of the test.
fn of_this_run() -> Option<u64> {
    let run = std::env::var("NEXTEST_RUN_ID").ok()?;
    let mut hasher = DefaultHasher::new();
    run.hash(&mut hasher);
    std::thread::current().name().hash(&mut hasher);
    Some(hasher.finish() >> 32)
}

impl Default for Seed {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let program = std::env::current_exe().unwrap_or_default();
            let binary = program.file_name().unwrap_or_default().to_string_lossy();
            let binary = binary.rsplit_once('-').map_or(&*binary, |(name, _)| name);
            let thread = std::thread::current();
            eprintln!(
                "SEED={seed}\nreplay: SEED={seed} cargo nextest run -p seawall-tests --test {binary} {test}",
                seed = self.seed,
                test = thread.name().unwrap_or_default(),
            );
        }
    }
}
