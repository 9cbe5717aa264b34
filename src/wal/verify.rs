//! Reading and checking every stored WAL object, for `seawall wal verify`: each for itself, and
//! whether each segment goes on where the one before it ends.
//!
//! Objects are read in parallel and judged in the order of their names, so that a run that was
//! interrupted goes on where it was. Memory is a few MiB for each job.

use std::collections::BTreeMap;

use futures::{Stream, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::object::{self, Content, Trouble};
use crate::digest::PlainDigest;
use crate::error::{Error, Result};
use crate::postgres::history::TimelineHistory;
use crate::postgres::wal_chain::{Chain, Fit, follows};
use crate::postgres::{SegmentName, SegmentSize, TimelineId, WalFileName};
use crate::repository::System;
use crate::repository::keys::WalObject;
use crate::storage::ObjectInfo;

/// What is to be verified.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scope {
    /// This timeline only.
    pub timeline: Option<TimelineId>,
    /// From this segment on, in the order of names: older timelines come first.
    pub from: Option<SegmentName>,
    /// How many objects are read at once.
    pub jobs: usize,
}

/// What is wrong with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It is not what its key says.
    Damaged,
    /// It could not be read: nothing is known of it.
    Unread,
    /// It does not go on where the segment before ends: recovery would end there.
    Broken,
    /// There is another content under the same name.
    Conflict,
    /// Its name is none of a WAL object, or of none with this segment size, or it lies in a
    /// wrong place: no reader finds it.
    Stray,
}

/// An object with which something is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its key.
    pub key: String,
    /// What kind of thing.
    pub kind: Kind,
    /// What exactly.
    pub what: String,
}

/// What was verified, and from where a later run goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Objects that were read; those that a later run reads again count again.
    pub objects: u64,
    /// Their bytes as stored.
    pub stored_bytes: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// All before this segment was verified, and the `.history` files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<SegmentName>,
    /// Nothing is left to do.
    pub complete: bool,
}

/// Verifies a system's WAL, going on from where `progress` says. `each` is told after every
/// segment, so that it can be kept.
///
/// # Errors
/// A listing failed. An object that cannot be read is a finding.
pub async fn verify(
    system: &System,
    size: SegmentSize,
    scope: Scope,
    mut progress: Progress,
    mut each: impl FnMut(&Progress) -> Result<()>,
) -> Result<Progress> {
    let histories = system.history_files().await?.read;
    if progress.next.is_none() {
        let wal = system.store().list_directory(&system.keys().wal()).await?;
        let objects = futures::stream::iter(wal.objects).map(Ok);
        let mut read = checked(system, size, scope.jobs, objects);
        let mut names: BTreeMap<WalFileName, PlainDigest> = BTreeMap::new();
        while let Some(one) = read.try_next().await? {
            let wanted = one
                .object
                .is_none_or(|object| scope.timeline.is_none_or(|t| t == object.name.timeline()));
            if wanted {
                progress.note(&one);
            }
            if let Some(object) = one.object {
                let other = names.insert(object.name, object.digest);
                if other.is_some_and(|other| other != object.digest) {
                    progress.find(&one.info.key, Kind::Conflict, CONFLICT);
                }
            }
        }
    }
    for timeline in system.timelines_with_wal().await? {
        let from = progress.next.max(scope.from);
        let passed = from.is_some_and(|from| from.timeline > timeline);
        if passed || scope.timeline.is_some_and(|only| only != timeline) {
            continue;
        }
        let from = from.filter(|from| from.timeline == timeline);
        let mut border = Border {
            system,
            size,
            histories: &histories,
            before: None,
            here: None,
        };
        let objects = objects_from(system, timeline, from);
        let mut read = checked(system, size, scope.jobs, objects);
        while let Some(one) = read.try_next().await? {
            if let Some(segment) = one.object.and_then(|object| object.name.segment())
                && progress.next.is_none_or(|next| segment > next)
            {
                progress.next = Some(segment);
                each(&progress)?;
            }
            progress.note(&one);
            border.cross(&one, &mut progress).await?;
        }
    }
    progress.complete = true;
    each(&progress)?;
    Ok(progress)
}

const CONFLICT: &str = "another content is archived under the same name";

impl Progress {
    fn note(&mut self, one: &Checked) {
        self.objects += 1;
        self.stored_bytes += one.info.size;
        match &one.content {
            None => self.find(
                &one.info.key,
                Kind::Stray,
                "it is no WAL object of this place",
            ),
            Some(Ok(_)) => {}
            Some(Err(trouble @ Trouble::Damaged(_))) => {
                self.find(&one.info.key, Kind::Damaged, &trouble.to_string());
            }
            Some(Err(trouble @ Trouble::Unread(_))) => {
                self.find(&one.info.key, Kind::Unread, &trouble.to_string());
            }
        }
    }

    fn find(&mut self, key: &str, kind: Kind, what: &str) {
        let (key, what) = (key.to_owned(), what.to_owned());
        let finding = Finding { key, kind, what };
        // What lies beside the segments is met again when a later run goes on.
        if kind != Kind::Stray || !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// Becomes like `later`, which [`verify`] made from it. Does not copy again what was found
    /// before: that is told after every segment.
    pub fn catch_up(&mut self, later: &Self) {
        let known = self.findings.len();
        let new = later.findings.get(known..).unwrap_or_default();
        self.findings.extend_from_slice(new);
        self.objects = later.objects;
        self.stored_bytes = later.stored_bytes;
        self.next = later.next;
        self.complete = later.complete;
    }

    /// Where a later run goes on that reads again what could not be read: the progress before
    /// the first of it. None where everything was read.
    pub fn before_unread(&self) -> Option<Self> {
        let unread = self.findings.iter().filter(|f| f.kind == Kind::Unread);
        let segments = unread.map(|f| segment_of(&f.key));
        // A `.history` file has no segment and comes first.
        let first = segments.min()?;
        let mut earlier = self.clone();
        earlier.complete = false;
        earlier.next = first;
        match first {
            Some(_) => earlier.findings.retain(|f| segment_of(&f.key) < first),
            None => earlier = Self::default(),
        }
        Some(earlier)
    }
}

fn segment_of(key: &str) -> Option<SegmentName> {
    WalObject::of_key(key)?.name.segment()
}

/// An object that was read.
struct Checked {
    info: ObjectInfo,
    /// None of a stray.
    object: Option<WalObject>,
    content: Option<Result<Content, Trouble>>,
}

/// Reads `objects` in parallel, in their order.
fn checked<'a>(
    system: &'a System,
    size: SegmentSize,
    jobs: usize,
    objects: impl Stream<Item = Result<ObjectInfo>> + Send + 'a,
) -> futures::stream::BoxStream<'a, Result<Checked>> {
    let read = move |info: ObjectInfo| async move {
        let named = WalObject::of_key(&info.key);
        let possible = |object: &WalObject| {
            let segment = object.name.segment();
            segment.is_none_or(|segment| segment.number(size).is_ok())
        };
        let object = named
            .filter(|object| possible(object) && system.keys().wal_object(*object) == info.key);
        let content = match object {
            Some(object) => Some(object::read(system, object, size).await),
            None => None,
        };
        Ok(Checked {
            info,
            object,
            content,
        })
    };
    objects.map_ok(read).try_buffered(jobs.max(1)).boxed()
}

/// The objects of a timeline from a segment on, in the order of their keys, one log at a time.
fn objects_from(
    system: &System,
    timeline: TimelineId,
    from: Option<SegmentName>,
) -> impl Stream<Item = Result<ObjectInfo>> + Send + '_ {
    let directory = system.keys().timeline(timeline);
    let after = from.map(|from| system.keys().before_wal_objects(WalFileName::Segment(from)));
    let first_log = from.map(|from| system.keys().log(from));
    futures::stream::once(async move {
        let level = system.store().list_directory(&directory).await?;
        let strays = futures::stream::iter(level.objects.into_iter().map(Ok));
        let logs = level.directories.into_iter();
        let logs: Vec<String> = logs
            .filter(|log| first_log.as_ref().is_none_or(|first| log >= first))
            .collect();
        let listed = futures::stream::iter(logs).then(move |log| {
            let after = after.clone().filter(|after| after.starts_with(&log));
            async move {
                let objects = system.store().list(&log, after.as_deref()).await?;
                Ok::<_, Error>(futures::stream::iter(objects.into_iter().map(Ok)))
            }
        });
        Ok::<_, Error>(strays.chain(listed.try_flatten()))
    })
    .try_flatten()
}

/// The border between the segments that came before and the one that is looked at. Where there
/// are several contents, it is enough to follow one of them.
struct Border<'a> {
    system: &'a System,
    size: SegmentSize,
    histories: &'a BTreeMap<TimelineId, TimelineHistory>,
    before: Option<(u64, Vec<Chain>)>,
    here: Option<(u64, SegmentName, PlainDigest, Vec<Chain>)>,
}

impl Border<'_> {
    async fn cross(&mut self, one: &Checked, progress: &mut Progress) -> Result<()> {
        let Some(object) = one.object else {
            return Ok(());
        };
        let WalFileName::Segment(segment) = object.name else {
            return Ok(());
        };
        let number = segment.number(self.size)?;
        match &self.here {
            Some((_, here, digest, _)) if *here == segment => {
                if *digest != object.digest {
                    progress.find(&one.info.key, Kind::Conflict, CONFLICT);
                }
            }
            here => {
                let first = here.is_none();
                if let Some((number, _, _, chains)) = self.here.take() {
                    self.before = Some((number, chains));
                }
                if first {
                    self.before = self.predecessor(segment, number).await?;
                }
                self.here = Some((number, segment, object.digest, Vec::new()));
            }
        }
        let Some(Ok(Content::Segment(chain))) = &one.content else {
            return Ok(());
        };
        if let Some((before, chains)) = &self.before
            && before + 1 == number
            && let Some(why) = breaks(chains, chain)
        {
            progress.find(&one.info.key, Kind::Broken, &why);
        }
        if let Some((.., chains)) = &mut self.here {
            chains.push((**chain).clone());
        }
        Ok(())
    }

    /// What is stored of the segment before the first that is looked at: of the same timeline,
    /// or of its parent where it begins.
    async fn predecessor(
        &self,
        segment: SegmentName,
        number: u64,
    ) -> Result<Option<(u64, Vec<Chain>)>> {
        let Some(before) = number.checked_sub(1) else {
            return Ok(None);
        };
        let parents = self.histories.get(&segment.timeline);
        let parent = parents.map(|history| history.segment_name(before, self.size).timeline);
        for timeline in [Some(segment.timeline), parent].into_iter().flatten() {
            let name = WalFileName::Segment(SegmentName::new(timeline, before, self.size));
            let mut chains = Vec::new();
            for (object, _) in self.system.objects_of(name).await? {
                if let Ok(Content::Segment(chain)) =
                    object::read(self.system, object, self.size).await
                {
                    chains.push(*chain);
                }
            }
            if !chains.is_empty() {
                return Ok(Some((before, chains)));
            }
        }
        Ok(None)
    }
}

/// Why a segment follows none of those before it. None where it follows one, or nothing is
/// known of them.
fn breaks(before: &[Chain], chain: &Chain) -> Option<String> {
    let mut why = None;
    for previous in before {
        match follows(previous, chain) {
            Fit::Follows | Fit::Unknown => return None,
            Fit::Breaks(reason) => why = Some(reason),
        }
    }
    why
}
