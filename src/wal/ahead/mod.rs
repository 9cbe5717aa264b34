//! Working ahead: archiving the segments that PostgreSQL will ask for next, so that its calls
//! only confirm, and bringing repositories what they lack. No daemon is needed: a call of the
//! archive_command that finds work starts a process for it, which ends by itself.
//!
//! Acknowledgement stays per file. What was archived ahead is remembered in the [`spool`], and
//! no segment is stored more than `[archive] ahead` behind the oldest that PostgreSQL has not
//! been told is archived, which is how a reader tells such leavings from a gap
//! ([`SEGMENTS_AHEAD`](crate::config::SEGMENTS_AHEAD)).

mod repair;
pub mod spool;

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::identity::Identity;
use super::missing::Missing;
use super::push::{Engine, WalFile};
use crate::config::Config;
use crate::digest::PlainDigest;
use crate::error::{Error, IoContext, Result};
use crate::postgres::SegmentName;
use crate::postgres::control::ControlFile;
use crate::postgres::data_directory::DataDirectory;
use spool::{Record, Spool, Whose};

/// How often new segments are looked for.
const LOOK: Duration = Duration::from_millis(10);

/// How often it is looked whether the server still runs with the same configuration, and
/// whether a repository lacks anything.
const LOOK_AROUND: Duration = Duration::from_millis(500);

/// How long nothing must happen before the work is over.
const IDLE: Duration = Duration::from_secs(2);

/// How long a repair may go on in a call that has done its part.
const GRACE: Duration = Duration::from_secs(5);

/// Archives ahead of one server.
pub struct Ahead {
    engine: Arc<Engine>,
    data: DataDirectory,
    spool: Spool,
    missing: Missing,
    whose: Whose,
    control: ControlFile,
    /// The configuration file, and the names of the repositories in it.
    configuration: std::path::PathBuf,
    repositories: Vec<String>,
    jobs: usize,
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
        let names = config.push_targets().map(|r| r.name.clone());
        Arc::new(Self {
            engine,
            spool: Spool::beside(&data.pg_wal()),
            missing: Missing::beside(&data.pg_wal()),
            data,
            whose,
            control,
            configuration: config.path.clone(),
            repositories: names.collect(),
            jobs: config.archive.jobs,
            window: config.archive.ahead,
        })
    }

    /// Archives what is ready behind `asked`, the segment that PostgreSQL asks for now, and
    /// brings repositories what they lack. Comes back when nothing was left to do for a while,
    /// on the first failure (the next call of the archive_command meets it and says it; the next
    /// process opens the repositories anew), when
    /// the server has stopped or the configuration has changed, or, with the work at hand done,
    /// once `enough` is true.
    pub async fn work(self: Arc<Self>, asked: SegmentName, enough: watch::Receiver<bool>) {
        let clean = || self.spool.clean(|segment| self.data.is_ready(segment));
        clean();
        let postmaster = self.data.postmaster();
        let Some(mut run) = Run::behind(asked, &self.control) else {
            return;
        };
        let mut running: JoinSet<Result<()>> = JoinSet::new();
        let mut repair: Option<JoinHandle<bool>> = None;
        let (mut looked_around, mut told_enough) = (None::<Instant>, None::<Instant>);
        let mut told = None;
        let mut failed = false;
        loop {
            if *enough.borrow() {
                told_enough.get_or_insert_with(Instant::now);
            }
            if let Some(ended) = repair.take_if(|repair| repair.is_finished())
                && !ended.await.unwrap_or(false)
            {
                // Perhaps its disk was not mounted when we opened it, and is now: whoever is
                // started next opens it anew.
                told_enough.get_or_insert_with(Instant::now);
            }
            if looked_around.is_none_or(|at| at.elapsed() > LOOK_AROUND) {
                looked_around = Some(Instant::now());
                let stopped = postmaster.is_some() && self.data.postmaster() != postmaster;
                if stopped || !self.is_configured_so() {
                    break;
                }
                // PostgreSQL asks for what we would never come to: another timeline, most likely.
                let now_told = self.spool.told();
                if now_told != told
                    && let Some(other) = now_told.filter(|segment| !run.holds(*segment))
                {
                    run = Run::behind(other, &self.control).unwrap_or(run);
                }
                told = now_told;
                if repair.is_none() && told_enough.is_none() && self.due().next().is_some() {
                    repair = Some(tokio::spawn(Arc::clone(&self).repair()));
                    run.changed = Instant::now();
                }
            }
            run.advance(|segment| self.data.is_ready(segment));
            while !failed
                && told_enough.is_none()
                && let Some(next) = run.next(self.window)
                && self.data.is_ready(next)
            {
                running.spawn(Arc::clone(&self).archive(next));
                run.begun();
            }
            let repairing = repair.is_some();
            let may_end = match told_enough {
                Some(at) => !repairing || at.elapsed() > GRACE,
                None => failed || (!repairing && run.changed.elapsed() > IDLE),
            };
            if running.is_empty() && may_end {
                break;
            }
            tokio::select! {
                Some(done) = running.join_next() => {
                    run.changed = Instant::now();
                    if let Err(error) = done.unwrap_or_else(|died| Err(Error::failed(died.to_string()))) {
                        failed = true;
                        tracing::warn!("working ahead: {}", error.one_line());
                    }
                }
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        clean();
    }

    /// Whether the configuration is the one that we work by.
    fn is_configured_so(&self) -> bool {
        std::fs::read(&self.configuration)
            .is_ok_and(|text| PlainDigest::of(&text) == self.whose.configuration)
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
        let record = Record {
            whose: self.whose.clone(),
            file: before,
            held_by: pushed.held_by.into_iter().map(|(name, _)| name).collect(),
            confirmed: Timestamp::now(),
        };
        claim.write(&record).on("write into", directory)
    }
}

/// The segments of one timeline that are archived ahead.
struct Run {
    asked: SegmentName,
    control: ControlFile,
    /// The oldest that PostgreSQL may still wait for.
    oldest: u64,
    /// The next to be archived.
    next: u64,
    /// When anything happened last.
    changed: Instant,
}

impl Run {
    fn behind(asked: SegmentName, control: &ControlFile) -> Option<Self> {
        let number = asked.number(control.segment_size).ok()?;
        Some(Self {
            asked,
            control: control.clone(),
            oldest: number,
            next: number + 1,
            changed: Instant::now(),
        })
    }

    fn name(&self, number: u64) -> SegmentName {
        SegmentName::new(self.asked.timeline, number, self.control.segment_size)
    }

    /// Passes what PostgreSQL waits for no more.
    fn advance(&mut self, is_ready: impl Fn(SegmentName) -> bool) {
        while self.oldest < self.next && !is_ready(self.name(self.oldest)) {
            self.oldest += 1;
            self.changed = Instant::now();
        }
    }

    /// The next one, if it lies within the window.
    fn next(&self, window: u64) -> Option<SegmentName> {
        (self.next <= self.oldest + window).then(|| self.name(self.next))
    }

    fn begun(&mut self) {
        self.next += 1;
        self.changed = Instant::now();
    }

    /// Whether a segment is one that this run comes to or has passed just now.
    fn holds(&self, segment: SegmentName) -> bool {
        let number = segment.number(self.control.segment_size);
        segment.timeline == self.asked.timeline
            && number.is_ok_and(|number| (self.oldest..=self.next).contains(&number))
    }
}

/// Takes the lock of the one process that works ahead, and its place behind the server's own
/// work. `None` where another has the lock.
pub fn begin(data: &DataDirectory, nice: i32) -> Result<Option<File>> {
    let _ = rustix::process::nice(nice);
    let spool = Spool::beside(&data.pg_wal());
    let lock = spool.worker_lock().on("lock", spool.directory())?;
    if lock.is_some() {
        // It was meant for the one before.
        spool.forget_told();
    }
    Ok(lock)
}
