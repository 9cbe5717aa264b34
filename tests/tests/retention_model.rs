//! Retention against a model: random histories of pushes, backups, promotions, upgrades,
//! copies, pins and expiring, with crashes and pauses at every step, over stores in memory.
//! Every promised moment stays recoverable, what is pinned and the last good backup stay, and
//! in the end nothing unneeded is left.
//!
//! `SEED=n` replays one history.

use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use seawall_tests::retention::history;

static FAILED: AtomicBool = AtomicBool::new(false);

struct Failed;

impl Drop for Failed {
    fn drop(&mut self) {
        FAILED.store(true, Ordering::Relaxed);
    }
}

/// So many, on all processors.
fn histories(number: u64) {
    if let Ok(seed) = std::env::var("SEED") {
        return run(seed.parse().expect("SEED is a number"), 1);
    }
    let first = rand::random_range(0..1 << 40);
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get() as u64);
    let each = number.div_ceil(threads);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || run(first + thread * each, each));
        }
    });
}

fn run(first: u64, number: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    for seed in first..first + number {
        // One failure is enough; the other threads need not run to their end.
        if FAILED.load(Ordering::Relaxed) {
            return;
        }
        let failed = Failed;
        let events = StdRng::seed_from_u64(seed).random_range(10..60);
        runtime.block_on(history::run(seed, events));
        std::mem::forget(failed);
    }
}

#[test]
fn a_thousand_histories_keep_every_promise_and_nothing_else() {
    histories(1000);
}

#[test]
#[ignore = "long: ten thousand histories"]
fn ten_thousand_histories_keep_every_promise_and_nothing_else() {
    histories(10_000);
}
