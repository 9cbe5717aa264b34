//! Which contents belong together: from one segment to the next by their records, and between
//! a timeline's history and its first segment by the switch point.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Settlement;
use super::evidence::Conflict;
use crate::config::SEGMENTS_AHEAD;
use crate::digest::PlainDigest;
use crate::error::Result;
use crate::postgres::wal_chain::{Chain, Fit, Switch, follows};
use crate::postgres::{SegmentName, SegmentSize, WalFileName};
use crate::repository::System;
use crate::repository::keys::WalObject;
use crate::wal::object::{self, Content};

/// Stored WAL, each object read once as long as it is needed.
pub(super) struct Archive<'a> {
    pub(super) system: &'a System,
    pub(super) size: SegmentSize,
    read: BTreeMap<WalObject, Result<Arc<Content>, String>>,
}

impl<'a> Archive<'a> {
    pub(super) fn new(system: &'a System, size: SegmentSize) -> Self {
        Self {
            system,
            size,
            read: BTreeMap::new(),
        }
    }

    /// An object's content, or what is wrong with it.
    pub(super) async fn content(&mut self, object: WalObject) -> Result<Arc<Content>, String> {
        if let Some(content) = self.read.get(&object) {
            return content.clone();
        }
        let content = object::read(self.system, object, self.size)
            .await
            .map(Arc::new)
            .map_err(|trouble| trouble.to_string());
        self.read.insert(object, content.clone());
        content
    }

    /// Lets go of what lies well before `file`, which nobody asks for again.
    pub(super) fn forget_before(&mut self, file: WalFileName) {
        if let Some(segment) = file.segment()
            && let Ok(number) = segment.number(self.size)
        {
            let timeline = segment.timeline;
            let earliest = SegmentName::new(timeline, number.saturating_sub(1), self.size);
            self.read.retain(|object, _| {
                object
                    .name
                    .segment()
                    .is_none_or(|s| s.timeline != timeline || s >= earliest)
            });
        }
    }

    /// What is stored of a segment and can be read.
    pub(super) async fn chains(&mut self, segment: SegmentName) -> Result<Vec<(WalObject, Chain)>> {
        let name = WalFileName::Segment(segment);
        let mut chains: Vec<(WalObject, Chain)> = Vec::new();
        for (object, _) in self.system.objects_of(name).await? {
            let known = chains
                .iter()
                .any(|(other, _)| other.digest == object.digest);
            if let (false, Ok(content)) = (known, self.content(object).await)
                && let Content::Segment(chain) = &*content
            {
                chains.push((object, (**chain).clone()));
            }
        }
        Ok(chains)
    }

    /// What is stored of the segment before: of the same timeline, or of an older one where
    /// this timeline begins.
    pub(super) async fn before(&mut self, segment: SegmentName) -> Result<Vec<(WalObject, Chain)>> {
        let Some(number) = segment.number(self.size)?.checked_sub(1) else {
            return Ok(Vec::new());
        };
        // Its histories may be in conflict themselves: any older timeline will do, since the
        // records tell whether it fits.
        let mut timelines = self.system.timelines_with_wal().await?;
        timelines.retain(|timeline| *timeline <= segment.timeline);
        for timeline in timelines.into_iter().rev() {
            let before = SegmentName::new(timeline, number, self.size);
            let chains = self.chains(before).await?;
            if !chains.is_empty() {
                return Ok(chains);
            }
        }
        Ok(Vec::new())
    }

    /// What is stored of the next segment of the timeline.
    pub(super) async fn after(&mut self, segment: SegmentName) -> Result<Vec<(WalObject, Chain)>> {
        let number = segment.number(self.size)? + 1;
        let next = SegmentName::new(segment.timeline, number, self.size);
        self.chains(next).await
    }
}

/// Settles, with `chosen`, all that its branch decides: the segments in conflict before and
/// behind it, single segments of the losing branch behind it, and the timeline's history.
pub(super) async fn follow(
    archive: &mut Archive<'_>,
    conflicts: &[Conflict],
    chosen: WalObject,
    settlement: &mut Settlement,
) -> Result<()> {
    let timeline = chosen.name.timeline();
    let start = match chosen.name {
        WalFileName::Segment(segment) => Some((segment, chosen.digest)),
        WalFileName::History(_) => first_segment(archive, chosen, settlement).await?,
        WalFileName::Partial(_) | WalFileName::BackupHistory(..) => {
            let name = chosen.name;
            let why =
                format!("{name} belongs to no branch that its content tells: only it is settled");
            settlement.undecided.push(why);
            None
        }
    };
    let Some((segment, digest)) = start else {
        return Ok(());
    };
    let last_conflict = conflicts
        .iter()
        .filter_map(|conflict| match conflict.file {
            WalFileName::Segment(segment) if segment.timeline == timeline => Some(segment),
            _ => None,
        })
        .max()
        .map_or(Ok(0), |segment| segment.number(archive.size))?;
    let mut born = forwards(archive, segment, digest, last_conflict, settlement).await?;
    if let Some(earlier) = backwards(archive, segment, digest, settlement).await? {
        born = Some(earlier);
    }
    let of_history = |conflict: &&Conflict| conflict.file == WalFileName::History(timeline);
    if let (Some(history), true) = (
        conflicts.iter().find(of_history),
        chosen.name.segment().is_some(),
    ) {
        settle_history(archive, history, born, settlement).await?;
    }
    Ok(())
}

/// The content of the first segment that belongs to a history, and the settlement of the others.
async fn first_segment(
    archive: &mut Archive<'_>,
    history: WalObject,
    settlement: &mut Settlement,
) -> Result<Option<(SegmentName, PlainDigest)>> {
    let Ok(content) = archive.content(history).await else {
        return Ok(None);
    };
    let Content::History(parsed) = &*content else {
        return Ok(None);
    };
    let Some(parent) = parsed.parents.last() else {
        return Ok(None);
    };
    let segment = SegmentName::holding(parsed.timeline, parent.switch, archive.size);
    let chains = archive.chains(segment).await?;
    let fitting: Vec<WalObject> = chains
        .into_iter()
        .filter(|(_, chain)| {
            chain
                .switch
                .is_some_and(|switch| switch.is_at(parent.switch))
        })
        .map(|(object, _)| object)
        .collect();
    match fitting.as_slice() {
        [object] => {
            settlement.keep_only(archive.system, *object).await?;
            Ok(Some((segment, object.digest)))
        }
        _ => {
            settlement.undecided.push(format!(
                "{} contents of {segment} begin timeline {} at {}: choose among its segments yourself",
                fitting.len(),
                parsed.timeline,
                parent.switch
            ));
            Ok(None)
        }
    }
}

/// Follows the branch to its end, and what lies there of the losing one. Returns where the
/// timeline begins, if that is in what was kept.
async fn forwards(
    archive: &mut Archive<'_>,
    segment: SegmentName,
    digest: PlainDigest,
    last_conflict: u64,
    settlement: &mut Settlement,
) -> Result<Option<Switch>> {
    let first = segment.number(archive.size)?;
    let (mut kept, mut lost): (Vec<Chain>, Vec<Chain>) = (Vec::new(), Vec::new());
    for (object, chain) in archive.chains(segment).await? {
        match object.digest == digest {
            true => kept.push(chain),
            false => lost.push(chain),
        }
    }
    let born = kept
        .first()
        .and_then(|chain| chain.switch)
        .filter(|switch| switch.to == segment.timeline);
    // Who works ahead may have stored segments of the losing branch so far behind the last
    // conflict that they are alone there.
    let end = last_conflict.max(first) + SEGMENTS_AHEAD + 1;
    for number in first + 1..=end {
        let name = SegmentName::new(segment.timeline, number, archive.size);
        let chains = archive.chains(name).await?;
        if chains.is_empty() {
            return Ok(born);
        }
        let (winners, others): (Vec<_>, Vec<_>) = chains
            .into_iter()
            .partition(|(_, chain)| fits(&kept, chain));
        let others_lose = others.iter().all(|(_, chain)| fits(&lost, chain));
        match winners.len() {
            1 => {}
            0 if others_lose => {}
            0 => {
                settlement.undecided.push(format!(
                    "{name} goes on from nothing that is kept or set aside: look at it yourself"
                ));
                return Ok(born);
            }
            _ => {
                settlement.undecided.push(format!(
                    "{} contents of {name} go on from what is kept: choose yourself",
                    winners.len()
                ));
                return Ok(born);
            }
        }
        match winners.first() {
            Some((winner, _)) => settlement.keep_only(archive.system, *winner).await?,
            None => settlement.set_all_aside(archive.system, name).await?,
        }
        kept = winners.into_iter().map(|(_, chain)| chain).collect();
        lost = others.into_iter().map(|(_, chain)| chain).collect();
    }
    Ok(born)
}

/// Follows the branch back as far as there are conflicts. Returns where the timeline begins, if
/// that is in what was kept.
async fn backwards(
    archive: &mut Archive<'_>,
    segment: SegmentName,
    digest: PlainDigest,
    settlement: &mut Settlement,
) -> Result<Option<Switch>> {
    let mut born = None;
    let mut number = segment.number(archive.size)?;
    let here = archive.chains(segment).await?;
    let mut kept: Option<Chain> = here
        .into_iter()
        .find_map(|(object, chain)| (object.digest == digest).then_some(chain));
    while let (Some(next), Some(before)) = (kept.take(), number.checked_sub(1)) {
        number = before;
        let name = SegmentName::new(segment.timeline, number, archive.size);
        let chains = archive.chains(name).await?;
        let conflict = chains.len() > 1;
        let (winners, others): (Vec<_>, Vec<_>) = chains
            .into_iter()
            .partition(|(_, chain)| follows(chain, &next) == Fit::Follows);
        if !conflict {
            if !others.is_empty() {
                settlement.undecided.push(format!(
                    "what is kept does not go on from {name}, the only content before it"
                ));
            }
            return Ok(born);
        }
        let [(winner, chain)] = winners.as_slice() else {
            settlement.undecided.push(format!(
                "what is kept goes on from {} contents of {name}: choose yourself",
                winners.len()
            ));
            return Ok(born);
        };
        settlement.keep_only(archive.system, *winner).await?;
        born = chain
            .switch
            .filter(|switch| switch.to == segment.timeline)
            .or(born);
        kept = Some(chain.clone());
    }
    Ok(born)
}

/// Keeps the history whose switch point is that of the kept segments.
async fn settle_history(
    archive: &mut Archive<'_>,
    conflict: &Conflict,
    born: Option<Switch>,
    settlement: &mut Settlement,
) -> Result<()> {
    let mut fitting = Vec::new();
    for candidate in &conflict.contents {
        let content = archive.content(candidate.object).await;
        let switch = match content.as_deref() {
            Ok(Content::History(history)) => history.parents.last().map(|p| p.switch),
            _ => None,
        };
        let agrees = born.is_some_and(|born| switch.is_some_and(|named| born.is_at(named)));
        if agrees {
            fitting.push(candidate.object);
        }
    }
    match fitting.as_slice() {
        [object] => settlement.keep_only(archive.system, *object).await?,
        _ => settlement.undecided.push(format!(
            "{} contents of {} name the switch point of what is kept: choose yourself",
            fitting.len(),
            conflict.file
        )),
    }
    Ok(())
}

fn fits(before: &[Chain], chain: &Chain) -> bool {
    before
        .iter()
        .any(|previous| follows(previous, chain) == Fit::Follows)
}
