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
use crate::postgres::{Lsn, SegmentName, SegmentSize, WalFileName};
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

    /// What is stored of a segment.
    pub(super) async fn contents(&mut self, segment: SegmentName) -> Result<Contents> {
        let name = WalFileName::Segment(segment);
        let mut contents = Contents::default();
        let mut troubles = Vec::new();
        for (object, _) in self.system.objects_of(name).await? {
            contents.objects.push(object);
            if contents.knows(object.digest) {
                continue;
            }
            match self.content(object).await.as_deref() {
                Ok(Content::Segment(chain)) => contents.chains.push((object, (**chain).clone())),
                Ok(_) => troubles.push((object, "it is no segment".to_owned())),
                Err(trouble) => troubles.push((object, trouble.clone())),
            }
        }
        // The plain and the encrypted object of one digest are the same thing.
        troubles.retain(|(object, _)| !contents.knows(object.digest));
        let mut troubles = troubles.into_iter();
        contents.trouble = troubles
            .next()
            .map(|(object, trouble)| format!("{object}: {trouble}"));
        Ok(contents)
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
            let chains = self.contents(before).await?.chains;
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
        Ok(self.contents(next).await?.chains)
    }
}

/// What is stored of a segment.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// All objects.
    objects: Vec<WalObject>,
    /// One for each content that was read and is whole.
    pub(super) chains: Vec<(WalObject, Chain)>,
    /// The first content that could not be read or is damaged, and why: which branch it belongs
    /// to cannot be told.
    trouble: Option<String>,
}

impl Contents {
    /// What is kept and what is lost where `digest` is chosen.
    fn beside(&self, digest: PlainDigest) -> (Vec<Chain>, Vec<Chain>) {
        let (kept, lost): (Vec<_>, Vec<_>) =
            (self.chains.iter()).partition(|(object, _)| object.digest == digest);
        let chains =
            |of: Vec<&(WalObject, Chain)>| of.into_iter().map(|(_, c)| c.clone()).collect();
        (chains(kept), chains(lost))
    }

    fn knows(&self, digest: PlainDigest) -> bool {
        self.chains.iter().any(|(known, _)| known.digest == digest)
    }

    /// Tells the content of the branch that is kept from the others, by how each fits to what
    /// is known of both branches beside it. `Err` says why that cannot be told.
    fn split(
        &self,
        name: SegmentName,
        to_kept: impl Fn(&Chain) -> Option<bool>,
        to_lost: impl Fn(&Chain) -> Option<bool>,
    ) -> Result<Split, String> {
        if let Some(trouble) = &self.trouble {
            return Err(format!(
                "{trouble}: to which branch that belongs cannot be told, so nothing of {name} is touched"
            ));
        }
        let mut split = Split::default();
        for (object, chain) in &self.chains {
            match to_kept(chain) {
                Some(true) => split.winners.push((*object, chain.clone())),
                Some(false) => split.others.push((*object, chain.clone())),
                None => {
                    return Err(format!(
                        "whether {object} belongs to what is kept, its records do not tell: choose yourself"
                    ));
                }
            }
        }
        let loses = |(_, chain): &(WalObject, Chain)| to_lost(chain) == Some(true);
        match split.winners.as_slice() {
            [] if split.others.iter().all(loses) => Ok(split),
            [] => Err(format!(
                "{name} fits nothing that is kept or set aside: look at it yourself"
            )),
            // Two servers that do the same work end their segments at the same places. What
            // only fits the losing branch shows that the other one is not of it.
            [(object, chain)]
                if to_lost(chain) != Some(false) && !split.others.iter().any(loses) =>
            {
                Err(format!(
                    "{object} is the only one of {name} that fits what is kept, and it fits what is set aside as well: choose yourself"
                ))
            }
            [_] => Ok(split),
            several => Err(format!(
                "{} contents of {name} fit what is kept: choose yourself",
                several.len()
            )),
        }
    }
}

/// The contents of a segment, told apart.
#[derive(Debug, Default)]
struct Split {
    /// Of the branch that is kept: at most one.
    winners: Vec<(WalObject, Chain)>,
    /// Certainly not of it.
    others: Vec<(WalObject, Chain)>,
}

impl Split {
    /// Keeps the winner and sets exactly the others aside.
    fn settle(&self, contents: &Contents, settlement: &mut Settlement) {
        if let (Some((winner, _)), false) = (self.winners.first(), self.others.is_empty()) {
            settlement
                .keep
                .insert(winner.name.to_string(), winner.digest);
        }
        for object in &contents.objects {
            let loses = |(other, _): &(WalObject, Chain)| other.digest == object.digest;
            if self.others.iter().any(loses) {
                settlement.set_aside(*object);
            }
        }
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
    let contents = archive.contents(segment).await?;
    let switches = |chain: &Chain| chain.switch.is_some_and(|s| s.is_at(parent.switch));
    if let Some(rival) = rival_of(archive, history, parent.switch).await? {
        settlement.undecided.push(format!(
            "{rival}: the switch point does not tell whose {segment} is; choose among the contents of the segments yourself"
        ));
        return Ok(None);
    }
    let split = contents.split(segment, |chain| Some(switches(chain)), |_| Some(false));
    let split = match split {
        Ok(split) => split,
        Err(why) => {
            settlement.undecided.push(why);
            return Ok(None);
        }
    };
    let Some((object, _)) = split.winners.first() else {
        settlement.undecided.push(format!(
            "nothing that is stored of {segment} begins timeline {} at {}: choose among its segments yourself",
            parsed.timeline, parent.switch
        ));
        return Ok(None);
    };
    split.settle(&contents, settlement);
    Ok(Some((segment, object.digest)))
}

/// Another content of a history that names the same switch point, or may: then the switch point
/// does not tell whose a segment is.
async fn rival_of(
    archive: &mut Archive<'_>,
    history: WalObject,
    switch: Lsn,
) -> Result<Option<String>> {
    for (other, _) in archive.system.objects_of(history.name).await? {
        if other.digest == history.digest {
            continue;
        }
        match archive.content(other).await.as_deref() {
            Ok(Content::History(rival))
                if rival.parents.last().is_some_and(|p| p.switch != switch) => {}
            Ok(_) => return Ok(Some(format!("{other} names the same switch point"))),
            Err(trouble) => return Ok(Some(format!("{other}: {trouble}"))),
        }
    }
    Ok(None)
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
    let here = archive.contents(segment).await?;
    let (mut kept, mut lost) = here.beside(digest);
    let born = kept
        .first()
        .and_then(|chain| chain.switch)
        .filter(|switch| switch.to == segment.timeline);
    if let Some(trouble) = here.trouble {
        settlement.undecided.push(format!(
            "{trouble}: what belongs to it cannot be told, so the segments before and behind {segment} are left"
        ));
        return Ok(born);
    }
    // Who works ahead may have stored segments of the losing branch so far behind the last
    // conflict that they are alone there.
    let end = last_conflict.max(first) + SEGMENTS_AHEAD + 1;
    let mut number = first + 1;
    while number <= end || !lost.is_empty() {
        let name = SegmentName::new(segment.timeline, number, archive.size);
        let contents = archive.contents(name).await?;
        if contents.objects.is_empty() {
            if let Some(behind) = archive.system.segment_from(name).await? {
                settlement.undecided.push(format!(
                    "{name} is not there, so the branch of {behind} and what follows cannot be told: look at them yourself"
                ));
            }
            break;
        }
        let fit = |before: &[Chain], chain: &Chain| any(before.iter().map(|b| follows(b, chain)));
        let split = contents.split(name, |chain| fit(&kept, chain), |chain| fit(&lost, chain));
        let split = match split {
            Ok(split) => split,
            Err(why) => {
                settlement
                    .undecided
                    .push(format!("{why} (and what follows it)"));
                break;
            }
        };
        split.settle(&contents, settlement);
        kept = split.winners.into_iter().map(|(_, chain)| chain).collect();
        lost = split.others.into_iter().map(|(_, chain)| chain).collect();
        number += 1;
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
    let here = archive.contents(segment).await?;
    if here.trouble.is_some() {
        // Already said.
        return Ok(None);
    }
    let (mut kept, mut lost) = here.beside(digest);
    while let (Some(next), Some(before)) = (kept.pop(), number.checked_sub(1)) {
        number = before;
        let name = SegmentName::new(segment.timeline, number, archive.size);
        let contents = archive.contents(name).await?;
        if contents.objects.is_empty() {
            return Ok(born);
        }
        let to_lost = |chain: &Chain| any(lost.iter().map(|l| follows(chain, l)));
        let split = contents.split(
            name,
            |chain| any([follows(chain, &next)].into_iter()),
            to_lost,
        );
        let split = match split {
            Ok(split) => split,
            Err(why) => {
                settlement
                    .undecided
                    .push(format!("{why} (and what is before it)"));
                return Ok(born);
            }
        };
        let Some((_, chain)) = split.winners.first() else {
            settlement.undecided.push(format!(
                "what is kept goes on from nothing that is stored of {name}: look at it yourself"
            ));
            return Ok(born);
        };
        if split.others.is_empty() {
            return Ok(born);
        }
        split.settle(&contents, settlement);
        born = chain
            .switch
            .filter(|switch| switch.to == segment.timeline)
            .or(born);
        kept = split.winners.into_iter().map(|(_, chain)| chain).collect();
        lost = split.others.into_iter().map(|(_, chain)| chain).collect();
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
        let switch = match archive.content(candidate.object).await.as_deref() {
            Ok(Content::History(history)) => history.parents.last().map(|p| p.switch),
            Ok(_) => None,
            Err(trouble) => {
                settlement.undecided.push(format!(
                    "{}: {trouble}: which content of {} belongs to what is kept cannot be told",
                    candidate.object, conflict.file
                ));
                return Ok(());
            }
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

/// Whether something fits: surely (`Some(true)`), surely not, or it cannot be told.
fn any(mut fits: impl Iterator<Item = Fit>) -> Option<bool> {
    let mut answer = Some(false);
    fits.find_map(|fit| match fit {
        Fit::Follows => Some(Some(true)),
        Fit::Unknown => {
            answer = None;
            None
        }
        Fit::Breaks(_) => None,
    })
    .unwrap_or(answer)
}
