//! Bringing one system's WAL to a copy, in an order in which the copy is at every moment simply
//! an older repository.
//!
//! - A timeline's `.history` comes before its segments, and after all that lower timelines hold.
//! - Segments come oldest first, never more than the format's window behind one that is not
//!   there yet: who dies in the middle leaves nothing that looks like a gap.
//! - What is older than all that the copy holds comes newest first, one at a time: it grows
//!   backwards, without a hole.
//! - A segment that is lost at the source, or damaged in every repository, is a gap at the copy,
//!   too. Before anything behind it comes, `acknowledged-without-it.json` says that a missing
//!   segment is missing; from then on segments come one at a time, for then no order but the
//!   right one would do.
//! - What retention removed at the source is put on record at the copy, too, where it lacks it;
//!   what retention removed at the copy comes again only as far as the copy would keep it.

use std::collections::BTreeMap;
use std::sync::Mutex;

use futures::StreamExt;

use super::difference::{Lacked, lacked_in_log, logs_from};
use super::lock;
use super::report::Copied;
use super::shape::{Hole, Shape, left_at, shape};
use super::wanted::Withheld;
use crate::config::SEGMENTS_AHEAD;
use crate::error::{Error, Result};
use crate::postgres::history::TimelineHistory;
use crate::postgres::{SegmentName, SegmentSize, TimelineId, WalFileName};
use crate::repository::System;
use crate::repository::keys::WalObject;
use crate::repository::wal_objects::Held;
use crate::wal::object::Trouble;
use crate::wal::transfer::{Failure, transfer};

/// The WAL of one system on its way to one copy.
pub(super) struct WalCopy {
    pub(super) source: System,
    /// Who may have what the source holds damaged.
    pub(super) others: Vec<System>,
    pub(super) aim: System,
    size: SegmentSize,
    /// Objects that are copied at once.
    jobs: usize,
    /// Histories that were read already: objects never change.
    histories: BTreeMap<WalObject, TimelineHistory>,
    /// For each timeline the segment before which nothing is left to copy.
    positions: BTreeMap<TimelineId, u64>,
    /// Every segment that is missing at the copy counts as a gap there.
    strict: bool,
    /// What retention removed at the copy and does not come again.
    withheld: Withheld,
}

/// Whether all was done, or what was listed has changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// Everything.
    All,
    /// Look again.
    NotYet,
}

impl WalCopy {
    pub(super) fn new(
        source: System,
        others: Vec<System>,
        aim: System,
        size: SegmentSize,
        jobs: usize,
    ) -> Self {
        Self {
            source,
            others,
            aim,
            size,
            jobs: jobs.clamp(1, SEGMENTS_AHEAD as usize),
            histories: BTreeMap::new(),
            positions: BTreeMap::new(),
            strict: false,
            withheld: Withheld::default(),
        }
    }

    /// Which of what retention removed at the copy does not come again. What comes now may lie
    /// before where the last look ended.
    pub(super) fn withhold(&mut self, withheld: &Withheld) {
        if self.withheld != *withheld {
            self.withheld = withheld.clone();
            self.look_at_everything();
        }
    }

    /// Forgets what it knows: the next pass looks at everything.
    pub(super) fn look_at_everything(&mut self) {
        self.positions.clear();
    }

    /// The oldest segment from number `from` on that the copy holds.
    pub(super) async fn oldest_held(&self, from: u64) -> Result<Option<u64>> {
        let mut oldest = None;
        for timeline in self.aim.timelines_with_wal().await? {
            let wal = self.aim.timeline_wal(timeline, self.size, from).await?;
            let first = wal.runs.first().map(|run| run.first);
            oldest = [oldest, first].into_iter().flatten().min();
        }
        Ok(oldest)
    }

    /// Copies every history, and every segment from number `from` on, upwards.
    pub(super) async fn upwards(&mut self, from: u64, report: &Mutex<Copied>) -> Result<Done> {
        if self.source.acknowledged_without_it().await? {
            self.aim.note_acknowledged_without_it().await?;
        }
        self.strict = self.aim.acknowledged_without_it().await?;
        // First, so that of what a timeline grew from all is listed behind it.
        let histories = self.source.history_objects().await?;
        let held = self.aim.history_objects().await?;
        self.read_histories(histories.values().flatten()).await?;
        let mut timelines = self.source.timelines_with_wal().await?;
        timelines.extend(histories.keys());
        timelines.sort();
        timelines.dedup();
        for timeline in timelines {
            let ours = histories.get(&timeline).map_or(&[][..], |ours| ours);
            let theirs = held.get(&timeline).map_or(&[][..], |theirs| theirs);
            let rival = theirs.iter().any(|object| !ours.contains(object));
            for object in ours.iter().filter(|object| !theirs.contains(object)) {
                match rival {
                    true => self.refuse_rival(*object, report),
                    false => drop(self.one(*object, report).await?),
                }
            }
            match self.timeline_upwards(timeline, from, report).await? {
                (Done::All, Some(next)) => drop(self.positions.insert(timeline, next)),
                (Done::All, None) => {}
                // Later timelines follow this one.
                (Done::NotYet, _) => return Ok(Done::NotYet),
            }
        }
        Ok(Done::All)
    }

    /// Copies what is older than all that the copy holds of each timeline, down to number `to`:
    /// at most `most` objects, so that others get their turn.
    pub(super) async fn downwards(
        &mut self,
        to: u64,
        most: usize,
        report: &Mutex<Copied>,
    ) -> Result<Done> {
        let mut left = most;
        let timelines = self.source.timelines_with_wal().await?;
        for timeline in timelines.into_iter().rev() {
            let Some(shape) = self.shape(timeline, to, None).await? else {
                continue;
            };
            let theirs = self.aim.timeline_wal(timeline, self.size, to).await?;
            let below = theirs.runs.first().map_or(u64::MAX, |run| run.first);
            let holes = shape.holes.iter().rev().filter(|hole| hole.first < below);
            let mut holes = holes.peekable();
            let logs = logs_from(&self.source, timeline, to, self.size).await?;
            for first in logs.into_iter().rev() {
                if first.number(self.size)? > below {
                    continue;
                }
                let lacked = lacked_in_log(&self.source, &self.aim, first, self.size).await?;
                for one in lacked.into_iter().rev() {
                    if one.number > below
                        || !shape.takes(one.object.name, one.number)
                        || self.withheld.has(timeline, one.number, &theirs.expired)
                    {
                        continue;
                    }
                    if left == 0 {
                        return Ok(Done::NotYet);
                    }
                    while let Some(hole) = holes.next_if(|hole| hole.first > one.number) {
                        if self.pass(timeline, *hole).await? == Done::NotYet {
                            return Ok(Done::NotYet);
                        }
                    }
                    left -= 1;
                    self.one_lacked(&one, report).await?;
                }
            }
        }
        Ok(Done::All)
    }

    /// Returns the segment from which the next look goes on. It need not be there yet, or ever:
    /// that look must not take what lies behind it for the beginning.
    async fn timeline_upwards(
        &mut self,
        timeline: TimelineId,
        from: u64,
        report: &Mutex<Copied>,
    ) -> Result<(Done, Option<u64>)> {
        let position = self.positions.get(&timeline).copied();
        let from = position.unwrap_or(from);
        let reached = match position {
            Some(position) => Some(position),
            None => self.reached_before(timeline, from).await?,
        };
        let Some(shape) = self.shape(timeline, from, reached).await? else {
            return Ok((Done::All, None));
        };
        let expired = self.aim.expired(timeline, self.size).await?;
        let mut holes = shape.holes.iter().peekable();
        for first in logs_from(&self.source, timeline, from, self.size).await? {
            let mut lacked = lacked_in_log(&self.source, &self.aim, first, self.size).await?;
            lacked.retain(|one| {
                shape.takes(one.object.name, one.number)
                    && !self.withheld.has(timeline, one.number, &expired)
            });
            let mut rest = &lacked[..];
            while let Some(next) = rest.first() {
                while let Some(hole) = holes.next_if(|hole| hole.first < next.number) {
                    if self.pass(timeline, *hole).await? == Done::NotYet {
                        return Ok((Done::NotYet, None));
                    }
                }
                let window = match self.strict {
                    true => 1,
                    false => {
                        let border = holes.peek().map_or(u64::MAX, |hole| hole.first);
                        let end = border.min(next.number.saturating_add(SEGMENTS_AHEAD + 1));
                        rest.iter().take_while(|one| one.number < end).count()
                    }
                };
                let (together, behind) = rest.split_at(window.max(1));
                self.together(together, report).await?;
                rest = behind;
            }
        }
        Ok((Done::All, Some(shape.last + 1)))
    }

    /// Behind what the copy holds of `timeline` from an earlier run: the first segment that it
    /// lacks. The source may have removed those before since.
    async fn reached_before(&self, timeline: TimelineId, from: u64) -> Result<Option<u64>> {
        let held = self.aim.timeline_wal(timeline, self.size, from).await?;
        let first = held.runs.first().map(|run| run.first);
        Ok(first.and_then(|first| Some(held.missing(first, u64::MAX).first()?.0)))
    }

    async fn shape(
        &self,
        timeline: TimelineId,
        from: u64,
        reached: Option<u64>,
    ) -> Result<Option<Shape>> {
        let wal = self.source.timeline_wal(timeline, self.size, from).await?;
        let left_at = left_at(timeline, self.histories.values(), self.size);
        Ok(shape(&wal, left_at, reached))
    }

    async fn read_histories(&mut self, objects: impl Iterator<Item = &WalObject>) -> Result<()> {
        for object in objects {
            if self.histories.contains_key(object) {
                continue;
            }
            match self.source.history_of(*object).await {
                Ok(history) => drop(self.histories.insert(*object, history)),
                Err(error) if error.is_retryable() => return Err(error),
                // It is not copied either, and named then.
                Err(error) => tracing::debug!("{}", error.one_line()),
            }
        }
        Ok(())
    }

    /// Copies objects that lie within one window, several at once.
    async fn together(&mut self, lacked: &[Lacked], report: &Mutex<Copied>) -> Result<()> {
        let mut lost = false;
        {
            let copying = lacked.iter().map(|one| self.bring(one, report));
            let mut copying = futures::stream::iter(copying).buffered(self.jobs);
            while let Some(brought) = copying.next().await {
                lost |= !brought?;
            }
        }
        match lost {
            true => self.note_gap().await,
            false => Ok(()),
        }
    }

    async fn one_lacked(&mut self, one: &Lacked, report: &Mutex<Copied>) -> Result<()> {
        self.together(std::slice::from_ref(one), report).await
    }

    /// Copies one object; false where its segment stays missing at the copy.
    async fn bring(&self, one: &Lacked, report: &Mutex<Copied>) -> Result<bool> {
        if one.rival {
            self.refuse_rival(one.object, report);
            return Ok(true);
        }
        let whole = matches!(one.object.name, WalFileName::Segment(_));
        Ok(self.one(one.object, report).await? || !whole)
    }

    /// Copies one object from the first repository that has it whole. False: none has.
    ///
    /// # Errors
    /// The copy's store, or the source's, does not do its work now.
    async fn one(&self, object: WalObject, report: &Mutex<Copied>) -> Result<bool> {
        let key = self.source.keys().wal_object(object);
        let mut why: Option<String> = None;
        for source in std::iter::once(&self.source).chain(&self.others) {
            match transfer(source, &self.aim, object, self.size).await {
                Ok(bytes) => {
                    if let Some(why) = why {
                        tracing::warn!(
                            "{key} was copied from {}, for that of {} is unusable: {why}",
                            source.repository().place(),
                            self.source.repository().place()
                        );
                    }
                    let mut report = lock(report);
                    report.wal_objects += 1;
                    report.wal_bytes += bytes;
                    report.accept(&key);
                    return Ok(true);
                }
                Err(Failure::Destination(error)) => return Err(error),
                Err(Failure::Source(Trouble::Unread(error)))
                    if why.is_none() && error.is_retryable() =>
                {
                    return Err(error);
                }
                Err(Failure::Source(trouble)) => {
                    why.get_or_insert(trouble.to_string());
                }
            }
        }
        if matches!(self.source.held(object.name).await?, Held::Absent) {
            let gone = format!("{} was deleted while it was being copied", object.name);
            return Err(Error::failed(gone).at(self.source.place()).retryable(true));
        }
        let why = why.unwrap_or_default();
        lock(report).refuse(&key, &self.source.repository().place(), &why);
        Ok(false)
    }

    fn refuse_rival(&self, object: WalObject, report: &Mutex<Copied>) {
        let why = format!(
            "{} holds it with a content that is not here: settle it there with `seawall wal resolve`",
            self.aim.repository().place()
        );
        let key = self.source.keys().wal_object(object);
        lock(report).refuse(&key, &self.source.repository().place(), &why);
    }

    /// Puts on record at the copy what a hole is, before anything comes from beyond it.
    async fn pass(&mut self, timeline: TimelineId, hole: Hole) -> Result<Done> {
        let name = |number| SegmentName::new(timeline, number, self.size);
        if hole.expired {
            let aim = &self.aim;
            let wal = aim.timeline_wal(timeline, self.size, hole.first).await?;
            for range in wal.missing(hole.first, hole.last) {
                aim.note_expired(timeline, self.size, range).await?;
            }
            return Ok(Done::All);
        }
        // Its log may have been listed before it came, and the ones behind after.
        let found = self.source.segment_from(name(hole.first)).await?;
        if found.is_some_and(|found| found <= name(hole.last)) {
            return Ok(Done::NotYet);
        }
        self.note_gap().await?;
        Ok(Done::All)
    }

    /// From now on each segment that the copy lacks is a gap there.
    async fn note_gap(&mut self) -> Result<()> {
        if !self.strict {
            self.aim.note_acknowledged_without_it().await?;
            self.strict = true;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "wal_tests.rs"]
mod tests;
