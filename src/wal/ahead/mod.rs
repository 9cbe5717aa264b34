//! Working ahead: archiving the segments that PostgreSQL will ask for next, so that its calls
//! only confirm. No daemon is needed: a call of the archive_command that finds more waiting
//! starts a process for it, which ends by itself.
//!
//! Acknowledgement stays per file. What was archived ahead is remembered in the [`spool`], and
//! no segment is stored more than `[archive] ahead` behind the oldest that PostgreSQL has not
//! been told is archived, which is how a reader tells such leavings from a gap
//! ([`SEGMENTS_AHEAD`](crate::config::SEGMENTS_AHEAD)).

pub mod spool;

use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::missing::Missing;
use super::push::{Engine, WalFile};
use crate::config::{Config, RepositoryConfig};
use crate::error::{Error, IoContext, Result};
use crate::postgres::control::ControlFile;
use crate::postgres::data_directory::DataDirectory;
use crate::postgres::{SegmentName, WalFileName};
use spool::{Identity, Record, Spool, Whose};

/// How often new segments are looked for.
const LOOK: Duration = Duration::from_millis(10);

/// How long nothing must happen before the work is over.
const IDLE: Duration = Duration::from_secs(2);

/// Archives ahead of one server.
pub struct Ahead {
    engine: Arc<Engine>,
    data: DataDirectory,
    spool: Spool,
    missing: Missing,
    whose: Whose,
    control: ControlFile,
    /// Name and URL of every repository.
    places: Vec<(String, String)>,
    /// How many segments behind the oldest that PostgreSQL waits for.
    window: u64,
}

impl Ahead {
    /// For the server of this data directory.
    pub fn new(
        engine: Arc<Engine>,
        config: &Config,
        data: DataDirectory,
        whose: Whose,
        control: ControlFile,
    ) -> Arc<Self> {
        let place = |r: &RepositoryConfig| (r.name.clone(), r.url.clone());
        Arc::new(Self {
            engine,
            spool: Spool::beside(&data.pg_wal()),
            missing: Missing::beside(&data.pg_wal()),
            data,
            whose,
            control,
            places: config.repository.iter().map(place).collect(),
            window: config.archive.ahead,
        })
    }

    /// Archives what is ready behind `asked`, the segment that PostgreSQL asks for now, and
    /// brings repositories what they lack. Comes back when nothing was left to do for a while,
    /// on the first failure (the next call of the archive_command meets it and says it), when
    /// the server has stopped, or, with the work at hand done, once `enough` is true.
    pub async fn work(self: Arc<Self>, asked: SegmentName, enough: watch::Receiver<bool>) {
        let size = self.control.segment_size;
        let Ok(number) = asked.number(size) else {
            return;
        };
        let name = |number| SegmentName::new(asked.timeline, number, size);
        self.spool.clean(|segment| self.data.is_ready(segment));
        let postmaster = self.data.postmaster();
        let mut oldest = number;
        let mut next = number + 1;
        let mut running: JoinSet<Result<()>> = JoinSet::new();
        let mut failed = false;
        let mut repair = None;
        let mut last_change = Instant::now();
        loop {
            while oldest < next && !self.data.is_ready(name(oldest)) {
                oldest += 1;
                last_change = Instant::now();
            }
            let more = !failed && !*enough.borrow();
            while more && next <= oldest + self.window && self.data.is_ready(name(next)) {
                running.spawn(Arc::clone(&self).archive(name(next)));
                next += 1;
            }
            if repair.is_none() && more && !self.missing.due().is_empty() {
                repair = Some(tokio::spawn(Arc::clone(&self).repair()));
            }
            if repair
                .as_ref()
                .is_some_and(tokio::task::JoinHandle::is_finished)
            {
                repair = None;
                last_change = Instant::now();
            }
            let busy = !running.is_empty() || (repair.is_some() && !*enough.borrow());
            let stopped = postmaster.is_some() && self.data.postmaster() != postmaster;
            if stopped || (!busy && (!more || last_change.elapsed() > IDLE)) {
                break;
            }
            tokio::select! {
                Some(done) = running.join_next() => {
                    last_change = Instant::now();
                    match done {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => {
                            failed = true;
                            tracing::warn!("working ahead: {}", error.one_line());
                        }
                        Err(error) => {
                            failed = true;
                            tracing::warn!("working ahead: {error}");
                        }
                    }
                }
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        self.spool.clean(|segment| self.data.is_ready(segment));
    }

    /// Archives one segment and records it, unless somebody else is at it.
    async fn archive(self: Arc<Self>, segment: SegmentName) -> Result<()> {
        let path = self.data.pg_wal().join(segment.to_string());
        let directory = self.spool.directory();
        let Some(mut claim) = self.spool.try_claim(segment).on("write into", directory)? else {
            return Ok(());
        };
        let before = Identity::of(&path).on("look at", &path)?;
        if claim.record(&self.whose, &before).is_some() {
            return Ok(());
        }
        tokio::time::sleep(before.unsettled_for(Timestamp::now())).await;
        let file = WalFile::open(&path, &self.control)?;
        let pushed = self.engine.push(file).await?;
        if Identity::of(&path).on("look at", &path)? != before {
            return Err(Error::failed(format!(
                "{segment} changed while it was read"
            )));
        }
        let held = |name: &String| pushed.held_by.iter().any(|(held, _)| held == name);
        let places = self.places.iter().filter(|(name, _)| held(name));
        let record = Record {
            whose: self.whose.clone(),
            file: before,
            held_by: places.cloned().collect(),
            confirmed: Timestamp::now(),
        };
        claim.write(&record).on("write into", directory)
    }

    /// Brings every repository that lacks files and may be tried all of them.
    async fn repair(self: Arc<Self>) {
        for repository in self.missing.due() {
            match self.repair_one(&repository).await {
                Ok(()) => self.engine.caught_up(&repository),
                Err(error) => {
                    tracing::warn!("repository {repository}: {}", error.one_line());
                    self.missing.failed(&repository);
                }
            }
        }
    }

    async fn repair_one(&self, repository: &str) -> Result<()> {
        let mut names: Vec<WalFileName> = self.missing.of(repository).into_iter().collect();
        // As PostgreSQL does it: history first.
        names.sort_by_key(|name| !matches!(name, WalFileName::History(_)));
        for name in names {
            let path = self.data.pg_wal().join(name.to_string());
            match WalFile::open(&path, &self.control) {
                Ok(file) => self.engine.push_to(file, repository).await?,
                // PostgreSQL has recycled it.
                Err(_) => self.engine.copy_to(name, repository).await?,
            }
            self.missing.repaired(repository, name);
        }
        Ok(())
    }
}

/// Starts this program once more, in a session of its own, to work ahead of `asked`. It holds
/// none of our files, so that nobody waits for it. A failure is no harm.
pub fn start(arguments: &[&std::ffi::OsStr], data: &DataDirectory) {
    let started = Command::new("/proc/self/exe")
        .args(arguments)
        .current_dir(data.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    if let Err(error) = started {
        tracing::debug!("cannot start to work ahead: {error}");
    }
}

/// Takes the lock of the one process that works ahead, and its place behind the server's own
/// work. `None` where another has the lock.
pub fn begin(data: &DataDirectory, nice: i32) -> Result<Option<File>> {
    let _ = rustix::process::nice(nice);
    let spool = Spool::beside(&data.pg_wal());
    spool.worker_lock().on("lock", spool.directory())
}
