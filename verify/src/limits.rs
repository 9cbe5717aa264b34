//! What a drill may use of its host, and how each part's share follows from that.
//!
//! Processors are taken away from this process before it starts a thread, so that everything
//! it runs inherits the same ones. Memory is shared out beforehand, and the disk is counted
//! beforehand; [`crate::watch`] looks at both while the drill runs. There is no control group:
//! making one takes rights that a drill does not have.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use rand::seq::SliceRandom;
use seawall::error::{Error, Result};
use seawall::postgres::SegmentSize;

const MIB: u64 = 1 << 20;

/// This program, whatever it does. Measured: see `memory_used_bytes` of the report.
const PROGRAM: u64 = 64 * MIB;
/// One pack that is fetched, decompressed and written.
const RESTORE_JOB: u64 = 32 * MIB;
/// PostgreSQL's processes besides `shared_buffers` and sessions.
const SERVER: u64 = 48 * MIB;
/// `seawall-fetch`: the call that PostgreSQL makes and the worker that fetches ahead.
const FETCH: u64 = 64 * MIB;
/// One segment that is being fetched.
const FETCH_JOB: u64 = 8 * MIB;
/// A session of a check besides `maintenance_work_mem`.
const SESSION: u64 = 24 * MIB;
/// The least `maintenance_work_mem` that a check gets on with.
const LEAST_MAINTENANCE: u64 = 16 * MIB;
/// The least `shared_buffers` that recovery gets on with.
const LEAST_BUFFERS: u64 = 16 * MIB;
/// The most WAL between two restartpoints, where the disk has no limit.
const MOST_WAL: u64 = 4096 * MIB;
/// Room for what nobody can count beforehand: the tables that replay lets grow, the server's
/// own WAL after promotion, sorts of checks. [`crate::watch`] sees what comes of it.
const SPARE: u64 = 256 * MIB;

/// What a drill may use; absent: all that there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Processors.
    pub processors: Option<usize>,
    /// Memory in bytes, of all the drill's processes together.
    pub memory: Option<u64>,
    /// Bytes of the scratch directory.
    pub disk: Option<u64>,
    /// How much less urgent than everything else the drill is: nice(1)'s 0 to 19.
    pub nice: i32,
}

/// What each part takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Packs that are restored at once.
    pub restore_jobs: usize,
    /// Relations that are checked at once.
    pub check_jobs: usize,
    /// Segments that are fetched at once at the most.
    pub fetch_jobs: usize,
    /// `max_parallel_workers`; 0 where there is one processor.
    pub parallel_workers: usize,
    /// `shared_buffers` in bytes.
    pub shared_buffers: u64,
    /// `maintenance_work_mem` in bytes.
    pub maintenance_work_mem: u64,
    /// `work_mem` in bytes.
    pub work_mem: u64,
    /// `max_wal_size` in bytes.
    pub max_wal_size: u64,
}

/// What a drill needs of its disk.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// The backup's files.
    pub backup: u64,
    /// The WAL that recovery replays.
    pub wal: u64,
    /// What may wait for PostgreSQL, fetched ahead.
    pub spool: u64,
    /// The size of a segment.
    pub segment: SegmentSize,
}

impl Limits {
    /// Keeps this process, and what it starts from here on, to some of the processors that it
    /// may use now, and makes it less urgent. Call it before threads are started.
    ///
    /// Which processors is drawn: of two drills with one processor each, both would otherwise
    /// take the first.
    ///
    /// # Errors
    /// The kernel refuses, as in a container whose processors change at that moment.
    pub fn take_hold(&self) -> Result<()> {
        if self.nice > 0 {
            rustix::process::nice(self.nice)
                .map_err(|error| Error::failed("cannot become less urgent").because(error))?;
        }
        let Some(count) = self.processors else {
            return Ok(());
        };
        let failed =
            |error: nix::Error| Error::failed("cannot limit the processors").because(error);
        let own = Pid::from_raw(0);
        let allowed = sched_getaffinity(own).map_err(failed)?;
        let mut usable: Vec<usize> = (0..CpuSet::count())
            .filter(|at| allowed.is_set(*at).unwrap_or(false))
            .collect();
        usable.shuffle(&mut rand::rng());
        let mut chosen = CpuSet::new();
        for processor in usable.into_iter().take(count) {
            chosen.set(processor).map_err(failed)?;
        }
        sched_setaffinity(own, &chosen).map_err(failed)
    }

    /// Shares out what there is. `jobs` and `fetch_jobs` are configured, for a machine that is
    /// its owner's alone.
    ///
    /// # Errors
    /// Too little memory; the error names the least that is enough.
    pub fn share(&self, jobs: usize, fetch_jobs: usize, need: Need) -> Result<Share> {
        let usable = std::thread::available_parallelism().map_or(1, usize::from);
        let processors = self.processors.unwrap_or(usable).min(usable);
        let jobs = self.processors.map_or(jobs, |count| jobs.min(count)).max(1);
        let fetch_jobs = self
            .processors
            .map_or(fetch_jobs, |count| fetch_jobs.min(count))
            .max(1);
        let max_wal_size = self.disk.map_or(MOST_WAL, |disk| {
            let least = (4 * need.segment.bytes()).max(64 * MIB);
            (disk.saturating_sub(need.backup) / 4).clamp(least, MOST_WAL.max(least))
        });
        let mut share = Share {
            restore_jobs: jobs,
            check_jobs: jobs,
            fetch_jobs,
            parallel_workers: if processors > 1 { processors.min(8) } else { 0 },
            // PostgreSQL's own defaults.
            shared_buffers: 128 * MIB,
            maintenance_work_mem: 64 * MIB,
            work_mem: 4 * MIB,
            max_wal_size,
        };
        let Some(memory) = self.memory else {
            return Ok(share);
        };
        let least = PROGRAM + SERVER + LEAST_BUFFERS + FETCH + FETCH_JOB;
        if memory < least {
            return Err(Error::usage(format!(
                "a drill needs {} MiB of memory, and {} MiB are allowed",
                least / MIB,
                memory / MIB
            ))
            .hint("raise --memory or drill.memory"));
        }
        let fit = |room: u64, each: u64, most: usize| {
            usize::try_from(room / each).unwrap_or(most).clamp(1, most)
        };
        // Restoring comes before the server, and fetching ends before the checks begin.
        let serving = memory - PROGRAM - SERVER;
        share.shared_buffers = (serving / 4).clamp(LEAST_BUFFERS, 1024 * MIB);
        let rest = serving - share.shared_buffers;
        share.restore_jobs = fit(memory - PROGRAM, RESTORE_JOB, jobs);
        share.fetch_jobs = fit(rest.saturating_sub(FETCH), FETCH_JOB, fetch_jobs);
        share.check_jobs = fit(rest, SESSION + LEAST_MAINTENANCE, jobs);
        let session = (rest / share.check_jobs as u64).saturating_sub(SESSION);
        share.maintenance_work_mem = session.clamp(MIB, 256 * MIB);
        share.work_mem = (share.maintenance_work_mem / 8).clamp(MIB, 4 * MIB);
        // Each parallel worker may take as much as its leader.
        share.parallel_workers = share.parallel_workers.min(fit(rest, SESSION, 8));
        Ok(share)
    }

    /// What the scratch directory must have room for.
    ///
    /// WAL counts as far as it lies there at once: PostgreSQL removes it at each restartpoint,
    /// which `max_wal_size` makes it do.
    pub fn needed_bytes(need: Need, share: &Share) -> u64 {
        let wal = need.wal.min(share.max_wal_size) + need.spool.min(need.wal);
        need.backup + wal + 2 * need.segment.bytes() + SPARE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need() -> Need {
        Need {
            backup: 1000 * MIB,
            wal: 100 * MIB,
            spool: 512 * MIB,
            segment: SegmentSize::DEFAULT,
        }
    }

    #[test]
    fn too_little_memory_is_refused_with_the_least_that_is_enough() {
        let with = |memory: u64| Limits {
            memory: Some(memory * MIB),
            ..Limits::default()
        };
        let error = with(100).share(8, 4, need()).unwrap_err().to_string();
        let least: u64 = error
            .split_whitespace()
            .find_map(|word| word.parse().ok())
            .unwrap();
        assert!(with(least).share(8, 4, need()).is_ok(), "{error}");
        assert!(with(least - 1).share(8, 4, need()).is_err());
    }

    #[test]
    fn the_shares_fit_the_memory_at_every_size() {
        for memory in [208, 256, 300, 512, 1000, 4096, 65536_u64] {
            let limits = Limits {
                memory: Some(memory * MIB),
                ..Limits::default()
            };
            let share = limits.share(8, 4, need()).unwrap();
            let sessions = share.check_jobs as u64 * (SESSION + share.maintenance_work_mem);
            let checking = PROGRAM + SERVER + share.shared_buffers + sessions;
            let fetching = FETCH + share.fetch_jobs as u64 * FETCH_JOB;
            let recovering = PROGRAM + SERVER + share.shared_buffers + fetching;
            let restoring = PROGRAM + share.restore_jobs as u64 * RESTORE_JOB;
            for part in [checking, recovering, restoring] {
                assert!(part <= memory * MIB, "{memory}: {share:?}");
            }
        }
    }

    #[test]
    fn processors_cap_all_jobs() {
        let limits = Limits {
            processors: Some(1),
            ..Limits::default()
        };
        let share = limits.share(8, 4, need()).unwrap();
        assert_eq!(
            (share.restore_jobs, share.check_jobs, share.fetch_jobs),
            (1, 1, 1)
        );
        assert_eq!(share.parallel_workers, 0);
    }

    #[test]
    fn wal_counts_as_far_as_it_lies_there_at_once() {
        let share = Limits::default().share(2, 2, need()).unwrap();
        let little = Limits::needed_bytes(need(), &share);
        assert_eq!(little, (1000 + 200 + 32 + 256) * MIB);
        let much = Need {
            wal: 10_000_000 * MIB,
            ..need()
        };
        let much = Limits::needed_bytes(much, &share);
        assert_eq!(much, (1000 + 4096 + 512 + 32 + 256) * MIB);
    }
}
