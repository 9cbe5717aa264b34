//! What a copy lacks of its source's WAL, log by log and by listing alone.

use std::collections::{BTreeMap, BTreeSet};

use crate::digest::PlainDigest;
use crate::error::Result;
use crate::postgres::{SegmentName, SegmentSize, TimelineId, WalFileName};
use crate::repository::System;
use crate::repository::keys::WalObject;
use crate::storage::ObjectInfo;

/// One object that the source holds and the copy lacks.
#[derive(Debug, Clone)]
pub(super) struct Lacked {
    /// The number of its segment, or of the one that it lies beside.
    pub(super) number: u64,
    /// Which object.
    pub(super) object: WalObject,
    /// What the source's store says of it.
    pub(super) info: ObjectInfo,
    /// The copy holds another content of this file that the source does not hold: adding one
    /// would make a conflict there, and nobody may choose.
    pub(super) rival: bool,
}

/// The numbers of the logs of `timeline` from segment `from` on, with the name from which on
/// each is to be listed.
pub(super) async fn logs_from(
    system: &System,
    timeline: TimelineId,
    from: u64,
    size: SegmentSize,
) -> Result<Vec<SegmentName>> {
    let first = SegmentName::new(timeline, from, size);
    let logs = system.logs(timeline).await?.into_iter();
    Ok(logs
        .filter(|log| *log >= first.log)
        .map(|log| match log == first.log {
            true => first,
            false => SegmentName {
                timeline,
                log,
                low: 0,
            },
        })
        .collect())
}

/// What `aim` lacks of the log of `first`, from `first` on, in the order of the WAL: one
/// listing of each. Memory is that of one log's listings.
pub(super) async fn lacked_in_log(
    source: &System,
    aim: &System,
    first: SegmentName,
    size: SegmentSize,
) -> Result<Vec<Lacked>> {
    let ours = source.objects_from(first).await?;
    let theirs = aim.objects_from(first).await?;
    Ok(lacked(ours, theirs, size))
}

/// The same for any objects.
pub(super) fn lacked(
    ours: Vec<(WalObject, ObjectInfo)>,
    theirs: Vec<(WalObject, ObjectInfo)>,
    size: SegmentSize,
) -> Vec<Lacked> {
    let digests = |objects: &[(WalObject, ObjectInfo)]| {
        let mut digests: BTreeMap<WalFileName, BTreeSet<PlainDigest>> = BTreeMap::new();
        for (object, _) in objects {
            digests
                .entry(object.name)
                .or_default()
                .insert(object.digest);
        }
        digests
    };
    let (held_here, held_there) = (digests(&ours), digests(&theirs));
    let mut lacked: Vec<Lacked> = Vec::new();
    let mut seen = BTreeSet::new();
    for (object, info) in ours {
        let there = held_there.get(&object.name);
        // The plain and the encrypted object of one digest are the same thing.
        let held = there.is_some_and(|there| there.contains(&object.digest));
        if held || !seen.insert((object.name, object.digest)) {
            continue;
        }
        let number = object.name.segment().map(|segment| segment.number(size));
        let Ok(number) = number.unwrap_or(Ok(0)) else {
            continue; // of no segment with this size
        };
        let rival = match (there, held_here.get(&object.name)) {
            (Some(there), Some(here)) => !there.is_subset(here),
            _ => false,
        };
        lacked.push(Lacked {
            number,
            object,
            info,
            rival,
        });
    }
    lacked.sort_by_key(|lacked| (lacked.number, lacked.object));
    lacked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(name: &str, content: &[u8]) -> (WalObject, ObjectInfo) {
        let object = WalObject {
            name: name.parse().unwrap(),
            digest: PlainDigest::of(content),
            encrypted: false,
        };
        let info = ObjectInfo {
            key: object.to_string(),
            size: 1,
            modified: jiff::Timestamp::UNIX_EPOCH,
        };
        (object, info)
    }

    #[test]
    fn a_conflict_is_copied_with_all_its_contents_and_never_made() {
        let name = "000000010000000000000009";
        let size = SegmentSize::DEFAULT;
        let rivals = |ours: &[&[u8]], theirs: &[&[u8]]| {
            let all = |contents: &[&[u8]]| contents.iter().map(|c| held(name, c)).collect();
            let lacked = lacked(all(ours), all(theirs), size);
            lacked.iter().map(|one| one.rival).collect::<Vec<_>>()
        };
        assert_eq!(rivals(&[b"a"], &[]), [false]);
        assert!(rivals(&[b"a"], &[b"a"]).is_empty());
        assert_eq!(rivals(&[b"a", b"b"], &[b"a"]), [false]);
        assert_eq!(rivals(&[b"a"], &[b"b"]), [true]);
        assert!(rivals(&[b"a"], &[b"a", b"b"]).is_empty());
    }
}
