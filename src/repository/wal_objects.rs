//! Archived WAL as it lies in a repository: which objects are there for a file, which
//! timelines, which runs of segments without a gap, which conflicts. By listing alone.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::keys::WalObject;
use super::timeline_wal::TimelineWal;
use super::{System, codec};
use crate::config::SEGMENTS_AHEAD;
use crate::digest::PlainDigest;
use crate::error::{Error, Result};
use crate::postgres::history::TimelineHistory;
use crate::postgres::wal_file::LARGEST_TEXT;
use crate::postgres::{SegmentName, SegmentSize, TimelineId, WalFileName};
use crate::storage::ObjectInfo;

/// How many directories of a timeline are listed at once. Each is one log: 256 segments of
/// 16 MiB, 4,096 of 1 MiB.
const LISTINGS_AT_ONCE: usize = 8;

/// What a repository holds for one WAL file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Certainly nothing.
    Absent,
    /// One content; plain and encrypted objects of one digest are the same thing.
    One(WalObject, ObjectInfo),
    /// Different contents under one name: nobody may choose but `seawall wal resolve`.
    Conflict(Vec<PlainDigest>),
}

impl Held {
    /// What the objects of one file come to; in the order of their keys.
    pub(crate) fn of(objects: Vec<(WalObject, ObjectInfo)>) -> Self {
        let mut digests: Vec<PlainDigest> = objects.iter().map(|(o, _)| o.digest).collect();
        digests.dedup();
        match (digests.len(), objects.into_iter().next()) {
            (1, Some((object, info))) => Self::One(object, info),
            (0, _) | (_, None) => Self::Absent,
            _ => Self::Conflict(digests),
        }
    }
}

/// The `.history` files of a system.
#[derive(Debug, Default)]
pub struct HistoryFiles {
    /// Those that could be read, with timeline 1, which has none.
    pub read: BTreeMap<TimelineId, TimelineHistory>,
    /// Timelines with more than one content.
    pub conflicts: Vec<TimelineId>,
    /// Those that could not be read, and why.
    pub unreadable: Vec<(TimelineId, Error)>,
}

impl System {
    /// What is held for `name`.
    pub async fn held(&self, name: WalFileName) -> Result<Held> {
        Ok(Held::of(self.objects_of(name).await?))
    }

    /// The objects of `segment` and of all that follow in the same log, by one listing.
    pub async fn objects_from(&self, segment: SegmentName) -> Result<Vec<(WalObject, ObjectInfo)>> {
        let after = self
            .keys()
            .before_wal_objects(WalFileName::Segment(segment));
        let directory = self.keys().log(segment);
        let found = self.store().list(&directory, Some(&after)).await?;
        Ok(found
            .into_iter()
            .filter_map(|info| Some((self.own_object(&info)?, info)))
            .collect())
    }

    /// What is held for each segment from `first` to `last`, which lie in one log of one
    /// timeline, in their order: one listing.
    pub async fn held_in_log(
        &self,
        first: SegmentName,
        last: SegmentName,
    ) -> Result<Vec<(SegmentName, Held)>> {
        let mut held = self.held_from(first).await?;
        Ok((first.low..=last.low)
            .map(|low| SegmentName { low, ..first })
            .map(|name| (name, held.remove(&name).unwrap_or(Held::Absent)))
            .collect())
    }

    /// All objects of `name`, in the order of their keys: one listing.
    pub async fn objects_of(&self, name: WalFileName) -> Result<Vec<(WalObject, ObjectInfo)>> {
        let directory = self.keys().wal_directory(name);
        let found = match name {
            // The timelines' directories lie beside the .history files: one level only.
            WalFileName::History(_) => self.store().list_directory(&directory).await?.objects,
            _ => {
                let after = self.keys().before_wal_objects(name);
                self.store().list(&directory, Some(&after)).await?
            }
        };
        Ok(found
            .into_iter()
            .filter_map(|info| Some((self.own_object(&info)?, info)))
            .filter(|(object, _)| object.name == name)
            .collect())
    }

    /// The contents that were set aside, of all files: one listing.
    pub async fn contents_set_aside(&self) -> Result<BTreeSet<(WalFileName, PlainDigest)>> {
        let listing = self.store().list_stream(&self.keys().all_set_aside(), None);
        let objects = listing.try_filter_map(async |info| Ok(WalObject::of_key(&info.key)));
        let contents = objects.map_ok(|object| (object.name, object.digest));
        Ok(contents.try_collect().await?)
    }

    /// What is held of the segments of the same log from `segment` on: one listing.
    pub async fn held_from(&self, segment: SegmentName) -> Result<BTreeMap<SegmentName, Held>> {
        let mut objects: BTreeMap<SegmentName, Vec<(WalObject, ObjectInfo)>> = BTreeMap::new();
        for (object, info) in self.objects_from(segment).await? {
            if let WalFileName::Segment(name) = object.name {
                objects.entry(name).or_default().push((object, info));
            }
        }
        let held = objects.into_iter();
        Ok(held.map(|(name, ours)| (name, Held::of(ours))).collect())
    }

    /// The first segment of the same timeline that is there and no earlier than `segment`:
    /// `segment` itself, where a listing before was wrong, or a later one. One listing where
    /// it lies in the same log.
    pub async fn segment_from(&self, segment: SegmentName) -> Result<Option<SegmentName>> {
        let later = |objects: Vec<ObjectInfo>| {
            objects
                .iter()
                .filter_map(|info| match self.own_object(info)?.name {
                    WalFileName::Segment(other) if other >= segment => Some(other),
                    _ => None,
                })
                .min()
        };
        let after = self
            .keys()
            .before_wal_objects(WalFileName::Segment(segment));
        let same_log = self
            .store()
            .list(&self.keys().log(segment), Some(&after))
            .await?;
        if let Some(found) = later(same_log) {
            return Ok(Some(found));
        }
        let directory = self.keys().timeline(segment.timeline);
        let listing = self.store().list_directory(&directory).await?;
        let mut logs: Vec<(u32, String)> = listing
            .directories
            .into_iter()
            .filter_map(|key| Some((last_hex(&key)?, key)))
            .filter(|(log, _)| *log > segment.log)
            .collect();
        logs.sort();
        for (_, key) in logs {
            if let Some(found) = later(self.store().list(&key, None).await?) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The timelines that have segments here, ascending.
    pub async fn timelines_with_wal(&self) -> Result<Vec<TimelineId>> {
        let listing = self.store().list_directory(&self.keys().wal()).await?;
        let mut timelines: Vec<TimelineId> = listing
            .directories
            .iter()
            .filter_map(|key| last_hex(key))
            .filter_map(|number| TimelineId::new(number).ok())
            .collect();
        timelines.sort();
        Ok(timelines)
    }

    /// The logs of `timeline` that hold anything, ascending: one listing.
    pub async fn logs(&self, timeline: TimelineId) -> Result<Vec<u32>> {
        let directory = self.keys().timeline(timeline);
        let listing = self.store().list_directory(&directory).await?;
        let mut logs: Vec<u32> = listing
            .directories
            .iter()
            .filter_map(|key| last_hex(key))
            .collect();
        logs.sort_unstable();
        Ok(logs)
    }

    /// The timelines whose `.history` files are here, ascending, by listing alone.
    pub async fn history_timelines(&self) -> Result<BTreeSet<TimelineId>> {
        Ok(self.history_objects().await?.into_keys().collect())
    }

    /// Reads every `.history` file, and says which cannot be told or read.
    ///
    /// # Errors
    /// The listing failed.
    pub async fn history_files(&self) -> Result<HistoryFiles> {
        let found = self.history_objects().await?;
        let mut files = HistoryFiles {
            read: BTreeMap::from([(TimelineId::FIRST, TimelineHistory::first())]),
            ..HistoryFiles::default()
        };
        for (timeline, objects) in found {
            let [object] = objects.as_slice() else {
                files.conflicts.push(timeline);
                continue;
            };
            match self.history_of(*object).await {
                Ok(history) => drop(files.read.insert(timeline, history)),
                Err(error) => files.unreadable.push((timeline, error)),
            }
        }
        Ok(files)
    }

    /// Reads the `.history` files of the timelines behind `timeline`; all contents, where one
    /// has several.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub async fn histories_behind(&self, timeline: TimelineId) -> Result<Vec<TimelineHistory>> {
        let mut objects = self.history_objects().await?;
        objects.retain(|behind, _| *behind > timeline);
        futures::stream::iter(objects.into_values().flatten())
            .map(|object| self.history_of(object))
            .buffered(LISTINGS_AT_ONCE)
            .try_collect()
            .await
    }

    /// The `.history` files that are here, one object for each content: one listing.
    pub async fn history_objects(&self) -> Result<BTreeMap<TimelineId, Vec<WalObject>>> {
        let mut listing = self.store().list_directory(&self.keys().wal()).await?;
        if listing.objects.is_empty() && listing.directories.is_empty() {
            // No WAL at all: either nothing is archived yet, or a store lists nothing where
            // there is something. One that does so once is caught.
            listing = self.store().list_directory(&self.keys().wal()).await?;
        }
        let mut found: BTreeMap<TimelineId, Vec<WalObject>> = BTreeMap::new();
        for object in listing
            .objects
            .iter()
            .filter_map(|info| WalObject::of_key(&info.key))
        {
            if let WalFileName::History(timeline) = object.name {
                let others = found.entry(timeline).or_default();
                if others.iter().all(|other| other.digest != object.digest) {
                    others.push(object);
                }
            }
        }
        Ok(found)
    }

    /// Reads a `.history` file.
    pub async fn history_of(&self, object: WalObject) -> Result<TimelineHistory> {
        let text = self.small_wal_file(object).await?;
        Ok(TimelineHistory::parse(object.name.timeline(), &text)?)
    }

    /// The files with more than one content, and all their objects.
    pub async fn conflicts(
        &self,
        size: SegmentSize,
    ) -> Result<BTreeMap<WalFileName, Vec<(WalObject, ObjectInfo)>>> {
        let histories = self.history_files().await?.conflicts;
        let mut names: Vec<_> = histories.into_iter().map(WalFileName::History).collect();
        for timeline in self.timelines_with_wal().await? {
            let wal = self.timeline_wal(timeline, size, 0).await?;
            names.extend(wal.conflicts.into_iter().map(WalFileName::Segment));
            names.extend(wal.conflicts_beside);
        }
        let mut conflicts = BTreeMap::new();
        for name in names {
            conflicts.insert(name, self.objects_of(name).await?);
        }
        Ok(conflicts)
    }

    /// Reads a `.history` or `.backup` file and verifies its digest.
    pub async fn small_wal_file(&self, object: WalObject) -> Result<Bytes> {
        let key = self.keys().wal_object(object);
        let wrong = |why: String| {
            Error::failed(format!(
                "{} cannot be read from the repository",
                object.name
            ))
            .at(format!("{key} of {}", self.place()))
            .because(why)
        };
        if object.encrypted {
            return Err(wrong(
                "it is encrypted, which this version cannot open".to_owned(),
            ));
        }
        let stored = self
            .store()
            .get_limited(&key, LARGEST_TEXT)
            .await?
            .ok_or_else(|| wrong("it was listed and is gone".to_owned()))?;
        let plain =
            codec::decode(&stored, LARGEST_TEXT).map_err(|error| wrong(error.to_string()))?;
        let found = PlainDigest::of(&plain);
        if found != object.digest {
            return Err(wrong(format!("its content has the digest {found}")));
        }
        Ok(plain.into())
    }

    /// The segments of `timeline` from number `from` on.
    pub async fn timeline_wal(
        &self,
        timeline: TimelineId,
        size: SegmentSize,
        from: u64,
    ) -> Result<TimelineWal> {
        let first = SegmentName::new(timeline, from, size);
        let directory = self.keys().timeline(timeline);
        let mut logs: Vec<(u32, String)> = self
            .store()
            .list_directory(&directory)
            .await?
            .directories
            .into_iter()
            .filter_map(|key| Some((last_hex(&key)?, key)))
            .filter(|(log, _)| *log >= first.log)
            .collect();
        logs.sort();
        let stored_ahead = match self.acknowledged_without_it().await? {
            true => 0,
            false => SEGMENTS_AHEAD,
        };
        let mut wal = TimelineWal {
            stored_ahead,
            expired: self.expired(timeline, size).await?,
            ..TimelineWal::default()
        };
        let mut previous: Option<WalObject> = None;
        let mut listings = futures::stream::iter(logs)
            .map(|(_, key)| async move { self.store().list(&key, None).await })
            .buffered(LISTINGS_AT_ONCE);
        while let Some(listing) = listings.try_next().await? {
            for info in listing {
                // What somebody put here under another name or in another directory is not
                // ours to judge, and readers do not find it.
                let Some(object) = self.own_object(&info) else {
                    continue;
                };
                let here = object.name.segment();
                let Some(segment) = here.filter(|s| s.timeline == timeline && *s >= first) else {
                    continue;
                };
                let Ok(number) = segment.number(size) else {
                    continue;
                };
                let same_name = previous
                    .replace(object)
                    .filter(|previous| previous.name == object.name);
                let twice = same_name.is_some_and(|previous| previous.digest != object.digest);
                wal.note(object.name, twice);
                if let WalFileName::Segment(_) = object.name {
                    wal.add(number, &info);
                    // The plain and the encrypted object of one digest are the same thing.
                    if same_name.is_none() || twice {
                        *wal.fingerprints.entry(segment.log).or_default() ^=
                            object.digest.as_number();
                    }
                } else {
                    wal.beside.insert(number);
                }
            }
        }
        Ok(wal)
    }

    /// Every object of the segments from number `first` to `last` of a timeline, those that lie
    /// beside them included, with the segment's number: one listing for each log.
    pub async fn wal_objects_in(
        &self,
        timeline: TimelineId,
        (first, last): (u64, u64),
        size: SegmentSize,
    ) -> Result<Vec<(u64, ObjectInfo)>> {
        let directory = self.keys().timeline(timeline);
        let logs = self.store().list_directory(&directory).await?.directories;
        let per_log = size.segments_per_log();
        let mut found = Vec::new();
        for key in logs {
            let log = last_hex(&key).map(u64::from);
            if !log.is_some_and(|log| (first / per_log..=last / per_log).contains(&log)) {
                continue;
            }
            for info in self.store().list(&key, None).await? {
                let segment = self.own_object(&info).and_then(|o| o.name.segment());
                let number = segment.and_then(|segment| segment.number(size).ok());
                if let Some(number) = number.filter(|n| (first..=last).contains(n)) {
                    found.push((number, info));
                }
            }
        }
        found.sort_by_key(|(number, _)| *number);
        Ok(found)
    }

    /// The digests of each segment of a log: 4 GiB of WAL.
    pub async fn log_digests(
        &self,
        timeline: TimelineId,
        log: u32,
    ) -> Result<BTreeMap<SegmentName, BTreeSet<PlainDigest>>> {
        let low = 0;
        let directory = self.keys().log(SegmentName { timeline, log, low });
        let mut digests: BTreeMap<SegmentName, BTreeSet<PlainDigest>> = BTreeMap::new();
        for info in self.store().list(&directory, None).await? {
            if let Some(object) = self.own_object(&info)
                && let WalFileName::Segment(segment) = object.name
            {
                digests.entry(segment).or_default().insert(object.digest);
            }
        }
        Ok(digests)
    }

    /// The WAL object that was listed, if it lies where its name belongs.
    fn own_object(&self, info: &ObjectInfo) -> Option<WalObject> {
        let object = WalObject::of_key(&info.key)?;
        (self.keys().wal_object(object) == info.key).then_some(object)
    }

    /// The error about different contents under one name.
    pub fn conflict(&self, name: WalFileName, digests: &[PlainDigest]) -> Error {
        let digests: Vec<_> = digests.iter().map(PlainDigest::to_string).collect();
        Error::refused(format!("{name} is archived with different contents: {}", digests.join(" and ")))
            .at(self.place())
            .hint("two servers archived under one name and system identifier; `seawall wal resolve` shows what each wrote and settles it")
    }
}

fn last_hex(key: &str) -> Option<u32> {
    let last = key.rsplit('/').next()?;
    (last.len() == 8).then(|| u32::from_str_radix(last, 16).ok())?
}
