//! The worker that fills the [`Spool`]: it fetches the segments behind the one that PostgreSQL
//! asked for, stays a bounded number of them ahead, and ends by itself.
//!
//! It answers nobody. On any doubt (an error, a gap, a conflict, the end of the archive) it
//! fetches no further, and the call that PostgreSQL makes then asks for itself and says what is
//! wrong. It follows the timeline of the segment that was delivered last; at a switch PostgreSQL
//! asks for the child's segment, that call tells the worker, and the worker goes on from there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::delivery::{self, Content};
use super::{Left, NewTablespaces, Place, Request, Spool};
use crate::config::FetchConfig;
use crate::durable;
use crate::error::{IoContext, Result};
use crate::postgres::data_directory::DataDirectory;
use crate::postgres::{SegmentName, SegmentSize, TimelineId, WalFileName};
use crate::repository::System;
use crate::repository::keys::WalObject;
use crate::repository::wal_objects::Held;

/// How often the worker looks what PostgreSQL has taken. Rare enough to cost nothing, and much
/// shorter than replaying what waits takes.
const TICK: Duration = Duration::from_millis(20);
/// How often it looks whether anybody still recovers.
const LOOK_AROUND: Duration = Duration::from_millis(500);
/// Without progress for so long it looks for PostgreSQL only as rarely.
const AWHILE: Duration = Duration::from_secs(5);
/// Without progress for so long it ends where no server recovers any more. One that does may
/// take hours for a segment (recovery_min_apply_delay, a pause): then all waits for it, since
/// whoever ends would fetch all of it once more for the next one.
const IDLE: Duration = Duration::from_secs(3);
/// The same while one recovers, but something could not be fetched. PostgreSQL may have turned
/// to streaming there.
const IDLE_IN_DOUBT: Duration = Duration::from_secs(60);

/// How far ahead a worker goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    segments: u64,
    jobs: usize,
    /// Bytes of the disk that are left to others.
    reserve: u64,
}

impl Ahead {
    /// As configured, for segments of that size. `None` where prefetch is off, also because
    /// not even one segment may be kept.
    pub fn of(config: &FetchConfig, size: SegmentSize) -> Option<Self> {
        let segments = config.ahead.min(config.spool.as_u64() / size.bytes());
        (segments > 0).then_some(Self {
            segments,
            jobs: config.jobs,
            // As much as we may take ourselves: PostgreSQL needs the disk more than we do.
            reserve: segments.saturating_mul(size.bytes()),
        })
    }

    /// How many bytes of the disk must be free before a worker begins.
    pub fn reserve(&self) -> u64 {
        self.reserve
    }
}

/// Fetches what follows the segment of `request`, which has been delivered, until nobody needs
/// it any more. `lock` is what [`Spool::begin`] returned; then it is time to [`Spool::end`] it.
pub async fn prefetch(
    systems: Vec<System>,
    spool: &Spool,
    lock: &File,
    request: &Request<'_>,
    ahead: Ahead,
) -> Result<()> {
    let WalFileName::Segment(delivered) = request.name else {
        return Ok(());
    };
    let data_directory = request.destination.ancestors().nth(2);
    let data_directory = data_directory.map(DataDirectory::at);
    let recovering = || {
        let server = data_directory.as_ref();
        server.is_some_and(DataDirectory::is_recovering)
    };
    let mut worker = Worker::new(systems, spool, request, ahead, delivered)?;
    let mut work = JoinSet::new();
    let mut looked_around = Instant::now();
    let mut patience = IDLE_IN_DOUBT;
    loop {
        if !worker.look()? {
            break;
        }
        worker.go_on(&mut work);
        let finished = worker.stopped && worker.waiting.is_empty() && work.is_empty();
        let idle = worker.progress.elapsed();
        if finished || idle > patience {
            break;
        }
        if looked_around.elapsed() >= LOOK_AROUND {
            looked_around = Instant::now();
            patience = match recovering() {
                // What lies behind a segment that cannot be fetched may never be asked for.
                true if worker.failed => IDLE_IN_DOUBT,
                true => Duration::MAX,
                false => IDLE,
            };
            if !spool.is_locked_by(lock) || !spool.has_room(ahead.reserve / 2) {
                break;
            }
        }
        let pause = if idle < AWHILE { TICK } else { LOOK_AROUND };
        tokio::select! {
            Some(Ok(done)) = work.join_next() => worker.take_in(done),
            () = tokio::time::sleep(pause) => {}
        }
    }
    Ok(())
}

/// A segment as it is held, and by which of the systems.
type Known = BTreeMap<u64, (usize, Held)>;

/// What a task of the worker brought.
struct Done {
    round: u64,
    what: What,
}

enum What {
    Listed(u64, Known),
    Fetched(SegmentName, Result<()>),
}

struct Worker<'a> {
    systems: Vec<System>,
    spool: &'a Spool,
    size: SegmentSize,
    left: &'a [Left],
    rule: NewTablespaces,
    ahead: Ahead,
    timeline: TimelineId,
    /// The segment that is to be fetched next.
    next: u64,
    /// What waits in the spool for PostgreSQL.
    waiting: BTreeSet<u64>,
    /// What is being fetched.
    running: BTreeSet<u64>,
    /// What the repositories hold, and from which segment on that was asked.
    known: Option<(u64, Known)>,
    listing: bool,
    /// Nothing is to be fetched any more, until PostgreSQL has gone on without us.
    stopped: bool,
    /// Something could not be fetched.
    failed: bool,
    /// Counts how often PostgreSQL went elsewhere; what was begun before is nobody's.
    round: u64,
    told: String,
    progress: Instant,
}

impl<'a> Worker<'a> {
    fn new(
        systems: Vec<System>,
        spool: &'a Spool,
        request: &Request<'a>,
        ahead: Ahead,
        delivered: SegmentName,
    ) -> Result<Self> {
        Ok(Self {
            systems,
            spool,
            size: request.segment_size,
            left: request.left,
            rule: request.new_tablespaces,
            ahead,
            timeline: delivered.timeline,
            next: delivered.number(request.segment_size)? + 1,
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            known: None,
            listing: false,
            stopped: false,
            failed: false,
            round: 0,
            told: String::new(),
            progress: Instant::now(),
        })
    }

    /// Looks what PostgreSQL has taken and what it was given without us. False where the spool
    /// is of no more use.
    fn look(&mut self) -> Result<bool> {
        let Ok(there) = self.spool.waiting() else {
            return Ok(false);
        };
        let mut numbers = BTreeSet::new();
        for segment in there.iter().filter(|s| s.timeline == self.timeline) {
            numbers.insert(segment.number(self.size)?);
        }
        let last_taken = self.waiting.difference(&numbers).max().copied();
        if let Some(taken) = last_taken {
            self.pass_by(taken);
        }
        match self.spool.told() {
            Some((text, _)) if text == self.told => {}
            Some((_, None)) => return Ok(false),
            Some((text, Some(segment))) => {
                self.told = text;
                self.follow(segment)?;
            }
            None => {}
        }
        Ok(true)
    }

    /// PostgreSQL has got `segment` without us.
    fn follow(&mut self, segment: SegmentName) -> Result<()> {
        let number = segment.number(self.size)?;
        // Several are fetched at once: what waits may lie behind what still runs.
        let first = self.waiting.first().into_iter().chain(self.running.first());
        let ours = first.min().copied().unwrap_or(self.next)..=self.next;
        self.stopped = false;
        self.failed = false;
        if segment.timeline == self.timeline && ours.contains(&(number + 1)) {
            self.pass_by(number);
            return Ok(());
        }
        // A switch of timelines, or recovery began anew.
        self.pass_by(u64::MAX);
        self.round += 1;
        self.running.clear();
        self.known = None;
        self.listing = false;
        self.timeline = segment.timeline;
        self.next = number + 1;
        Ok(())
    }

    /// PostgreSQL needs nothing any more up to segment `number`.
    fn pass_by(&mut self, number: u64) {
        self.progress = Instant::now();
        while let Some(first) = self.waiting.first().copied().filter(|f| *f <= number) {
            self.waiting.remove(&first);
            let _ = std::fs::remove_file(self.spool.path_of(self.name(first)));
        }
        self.running = self.running.split_off(&number.saturating_add(1));
    }

    /// Begins what may be begun.
    fn go_on(&mut self, work: &mut JoinSet<Done>) {
        while !self.stopped
            && !self.listing
            && self.running.len() < self.ahead.jobs
            && ((self.waiting.len() + self.running.len()) as u64) < self.ahead.segments
            && self.spool.has_room(self.ahead.reserve)
        {
            let segment = self.name(self.next);
            if Place::of(segment, self.size, self.left) == Place::Behind {
                self.stopped = true;
                return;
            }
            let held = self
                .known
                .as_ref()
                .map(|(from, k)| (*from, k.get(&self.next)));
            match held {
                Some((_, Some((system, Held::One(object, _))))) => {
                    let (system, object) = (self.systems[*system].clone(), *object);
                    self.fetch(system, object, segment, work);
                    self.running.insert(self.next);
                    self.next += 1;
                }
                Some((_, Some(_))) => self.stopped = true,
                // It was asked for just now, and is not there.
                Some((from, None)) if from == self.next => self.stopped = true,
                _ => self.list(segment, work),
            }
        }
    }

    fn list(&mut self, segment: SegmentName, work: &mut JoinSet<Done>) {
        self.listing = true;
        let (systems, size) = (self.systems.clone(), self.size);
        let (round, from) = (self.round, self.next);
        work.spawn(async move {
            let listings = join_all(systems.iter().map(|system| system.held_from(segment))).await;
            let mut known = Known::new();
            // One that does not answer is left out: what another has is as good.
            for (at, listing) in listings.into_iter().enumerate() {
                for (segment, held) in listing.unwrap_or_default() {
                    if let Ok(number) = segment.number(size) {
                        known.entry(number).or_insert((at, held));
                    }
                }
            }
            let what = What::Listed(from, known);
            Done { round, what }
        });
    }

    fn fetch(
        &self,
        system: System,
        object: WalObject,
        segment: SegmentName,
        work: &mut JoinSet<Done>,
    ) {
        let (spool, rule, size) = (self.spool.clone(), self.rule, self.size);
        let round = self.round;
        work.spawn(async move {
            let stored = delivery::with_content(&system, object, size, move |content| {
                store(content, &spool, segment, rule)
            });
            let what = What::Fetched(segment, stored.await);
            Done { round, what }
        });
    }

    fn take_in(&mut self, done: Done) {
        let current = done.round == self.round;
        match done.what {
            What::Listed(from, known) if current => {
                self.listing = false;
                self.known = Some((from, known));
            }
            What::Listed(..) => {}
            What::Fetched(segment, stored) => {
                let number = segment.number(self.size).unwrap_or_default();
                let wanted = current && self.running.remove(&number);
                match stored {
                    Ok(()) if wanted => {
                        self.progress = Instant::now();
                        self.waiting.insert(number);
                    }
                    Ok(()) => {
                        let _ = std::fs::remove_file(self.spool.path_of(segment));
                    }
                    Err(error) if wanted => {
                        tracing::debug!("{}", error.one_line());
                        self.stopped = true;
                        self.failed = true;
                    }
                    Err(_) => {}
                }
            }
        }
    }

    fn name(&self, number: u64) -> SegmentName {
        SegmentName::new(self.timeline, number, self.size)
    }
}

/// Writes a segment into the spool, under its name only when it is whole and verified. Who
/// needs it before waits for the lock of the part.
fn store(
    content: Content,
    spool: &Spool,
    segment: SegmentName,
    rule: NewTablespaces,
) -> Result<()> {
    let (part, path) = (spool.part_of(segment), spool.path_of(segment));
    // Never two that write to one name.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)
        .on("create", &part)?;
    let stored = file
        .lock()
        .on("lock", &part)
        .and_then(|()| content.write_to(&mut file, &part))
        .and_then(|()| judge(&part, segment, rule))
        .and_then(|()| durable::rename_without_sync(&part, &path).on("rename to", &path));
    if stored.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    stored
}

/// What creates tablespaces is judged by the call that delivers it.
fn judge(part: &Path, segment: SegmentName, rule: NewTablespaces) -> Result<()> {
    if rule == NewTablespaces::Allow || delivery::created_tablespaces(part)?.is_empty() {
        return Ok(());
    }
    let what = format!("{segment} creates a tablespace");
    Err(crate::error::Error::failed(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::PlainDigest;

    #[test]
    fn who_takes_the_first_while_a_later_one_waits_already_has_not_gone_elsewhere() {
        let size = SegmentSize::DEFAULT;
        let segment = |number| SegmentName::new(TimelineId::FIRST, number, size);
        let request = Request {
            name: WalFileName::Segment(segment(1)),
            segment_size: size,
            destination: Path::new("/data/pg_wal/RECOVERYXLOG"),
            end_at_gap: false,
            left: &[],
            new_tablespaces: NewTablespaces::Allow,
            follows: None,
        };
        let spool = Spool::of(&request, PlainDigest::of(b"")).unwrap();
        let ahead = Ahead::of(&FetchConfig::default(), size).unwrap();
        let started = |running: &[u64], waiting: &[u64], next| {
            let mut worker = Worker::new(Vec::new(), &spool, &request, ahead, segment(1)).unwrap();
            worker.running.extend(running);
            worker.waiting.extend(waiting);
            worker.next = next;
            worker
        };
        // 2 was taken from the store, 3 is still fetched, 4 came before it.
        for running in [&[3][..], &[2, 3]] {
            let mut worker = started(running, &[4], 5);
            worker.follow(segment(2)).unwrap();
            assert_eq!((worker.round, worker.next), (0, 5));
            assert!(worker.running.iter().eq(&[3]) && worker.waiting.iter().eq(&[4]));
        }
        // Here recovery began anew, or jumped, or went to another timeline.
        let child = SegmentName {
            timeline: TimelineId::new(2).unwrap(),
            ..segment(2)
        };
        for elsewhere in [segment(1), segment(5), child] {
            let mut worker = started(&[3], &[4], 5);
            worker.follow(elsewhere).unwrap();
            assert_eq!(worker.round, 1);
            assert_eq!(worker.next, elsewhere.number(size).unwrap() + 1);
            assert!(worker.running.is_empty() && worker.waiting.is_empty());
        }
    }
}
