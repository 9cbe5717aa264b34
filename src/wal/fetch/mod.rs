//! Fetching one WAL file, for `seawall-fetch`.
//!
//! [`fetch`] never guesses: *absent* means that every repository has answered, knows the
//! cluster, and has neither the file nor anything that should come after it. Every doubt is
//! an error.
//!
//! [`Spool`] and [`prefetch()`] bring the segments that PostgreSQL will ask for next, so that a
//! call need only rename one. What they do is never more than a head start: absence, gaps,
//! conflicts and errors are known to [`fetch`] alone, which asks the repositories anew.

mod delivery;
mod prefetch;
mod spool;
mod turn;

use std::path::Path;

use crate::error::{Error, Exit, Result};
use crate::postgres::{FormatError, Lsn, SegmentName, SegmentSize, TimelineId, WalFileName};
use crate::repository::System;
use crate::repository::wal_objects::Held;

use delivery::deliver;

pub use prefetch::{Ahead, prefetch};
pub use spool::Spool;
pub use turn::Turn;

/// The answer to PostgreSQL's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// The file is at its destination, whole and verified.
    Delivered,
    /// It certainly does not exist in any of the repositories.
    Absent,
}

/// Where a file goes, and what is known of it.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// What PostgreSQL asks for.
    pub name: WalFileName,
    /// Its segment size, from pg_control.
    pub segment_size: SegmentSize,
    /// Where PostgreSQL wants it.
    pub destination: &'a Path,
    /// Accept that WAL ends where a segment is missing and later ones are there.
    pub end_at_gap: bool,
    /// The timelines that the recovery leaves, and where.
    pub left: &'a [Left],
    /// What is done about WAL that creates a tablespace.
    pub new_tablespaces: NewTablespaces,
    /// The timeline that recovery ends on, where it was chosen: what others begin behind it is
    /// none of its concern then.
    pub follows: Option<TimelineId>,
}

/// A timeline that a recovery leaves for its successor, and where.
///
/// PostgreSQL asks for a segment under the names of all timelines that it follows, newest
/// first, and takes what it gets: where the successor has archived nothing yet, it would
/// replay what the old primary wrote *after* the fork (PostgreSQL 18, xlogrecovery.c,
/// `XLogFileReadAnyTLI` looks at no timeline's end).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first position that is its successor's.
    pub at: Lsn,
}

/// `1@0/3002678`
impl std::str::FromStr for Left {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let wrong =
            || FormatError::new("--left", format!("{text:?} is not of the form 1@0/3000028"));
        let (timeline, at) = text.split_once('@').ok_or_else(wrong)?;
        Ok(Self {
            timeline: timeline.parse()?,
            at: at.parse()?,
        })
    }
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.timeline, self.at)
    }
}

/// What is done about a segment whose replay would create a tablespace outside the data
/// directory, at the place where the source created it: on the source's own host that place is
/// live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum NewTablespaces {
    /// Deliver it.
    #[default]
    Allow,
    /// Deliver it where nothing lies at that place yet, or the link to it is there already.
    Unused,
    /// Never deliver it.
    Refuse,
}

/// Where a segment lies on the line that a recovery follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing is known of it.
    Open,
    /// Before the end of a timeline that is left: it must be there.
    Within,
    /// It holds the end; what follows in it is not of the line.
    Holds(Lsn),
    /// Behind the end.
    Behind,
}

impl Request<'_> {
    fn place(&self) -> Place {
        match self.name {
            WalFileName::Segment(segment) => Place::of(segment, self.segment_size, self.left),
            _ => Place::Open,
        }
    }
}

impl Place {
    fn of(segment: SegmentName, size: SegmentSize, left: &[Left]) -> Self {
        let left = left.iter().find(|left| left.timeline == segment.timeline);
        match (left, segment.start(size)) {
            (Some(left), Ok(start)) if start >= left.at => Self::Behind,
            (Some(left), Ok(start)) if left.at.since(start) < size.bytes() => Self::Holds(left.at),
            (Some(_), Ok(_)) => Self::Within,
            _ => Self::Open,
        }
    }
}

/// Brings the file from the first of `systems` that has it to its destination. `turn` is the
/// turn there.
///
/// The file appears there by a rename, so that a partial one is never seen. It is not synced:
/// PostgreSQL does that itself before it relies on it (PostgreSQL 18, xlogarchive.c,
/// `KeepFileRestoredFromArchive`).
///
/// # Errors
/// Anything that leaves a doubt: a repository that does not answer, a gap, a conflict, an
/// object that is damaged in all repositories that have it.
pub async fn fetch(systems: &[System], request: Request<'_>, turn: &Turn) -> Result<Fetched> {
    if request.place() == Place::Behind {
        tracing::info!(
            "{} lies behind the fork that recovery follows",
            request.name
        );
        return Ok(Fetched::Absent);
    }
    let mut doubt: Option<Error> = None;
    for system in systems {
        match from_one(system, request, turn).await {
            Ok(Fetched::Delivered) => return Ok(Fetched::Delivered),
            Ok(Fetched::Absent) => {}
            // A conflict is not settled by asking somebody else.
            Err(error) if error.exit() == Exit::Refused => return Err(error),
            Err(error) => {
                tracing::warn!("{}", error.one_line());
                doubt.get_or_insert(error);
            }
        }
    }
    match doubt {
        Some(error) => Err(error),
        None => Ok(Fetched::Absent),
    }
}

async fn from_one(system: &System, request: Request<'_>, turn: &Turn) -> Result<Fetched> {
    if deliver_if_held(system, request, turn).await? {
        return Ok(Fetched::Delivered);
    }
    // An empty answer counts only from a repository that is there and knows this cluster.
    tokio::try_join!(system.repository().record(), system.known_record())?;
    let Some(evidence) = evidence_against(system, request).await? else {
        return Ok(Fetched::Absent);
    };
    // A live archive may have grown between the two looks.
    if deliver_if_held(system, request, turn).await? {
        return Ok(Fetched::Delivered);
    }
    let later = match evidence {
        Evidence::Later(later) => later,
        Evidence::Expired if request.end_at_gap => {
            tracing::warn!("retention removed {}; ending as asked", request.name);
            return Ok(Fetched::Absent);
        }
        Evidence::Expired => {
            let what = format!("{} was there, and retention removed it", request.name);
            return Err(Error::failed(what).at(system.place()).hint(
                "the WAL behind this backup is no longer kept: restore with --immediate to stop at the backup's own end, or with --end-at-gap to stop where its WAL ends",
            ));
        }
        Evidence::Itself => {
            let what = format!("the store lists {} once and then not", request.name);
            return Err(Error::failed(what).at(system.place()).retryable(true));
        }
    };
    if request.end_at_gap {
        tracing::warn!(
            "{} is missing and {later} is there; ending as asked",
            request.name
        );
        return Ok(Fetched::Absent);
    }
    Err(Error::failed(format!("{} is missing in the archive, but {later} is there", request.name))
        .at(system.place())
        .hint(match request.name {
            WalFileName::History(_) => "archive it from a server that still has it in pg_wal, or recover to a timeline by its number",
            _ => "archive it from a server that still has it; to end recovery at this gap, restore with --end-at-gap",
        }))
}

async fn deliver_if_held(system: &System, request: Request<'_>, turn: &Turn) -> Result<bool> {
    match system.held(request.name).await? {
        Held::Absent => Ok(false),
        Held::Conflict(digests) => Err(system.conflict(request.name, &digests)),
        Held::One(object, _) => {
            deliver(system, object, request, turn).await?;
            Ok(true)
        }
    }
}

/// What speaks against a file's absence.
enum Evidence {
    /// Another answer of the store that holds the file.
    Itself,
    /// Something that could not be there if the file had never existed.
    Later(String),
    /// A record that retention removed it.
    Expired,
}

/// Looks for what speaks against the absence of `name`.
///
/// It is a second look as well: a store that once lists nothing where there is something is
/// caught even at the very end of the archive, where nothing later can betray it. One that
/// does so twice in the same way cannot be told from an archive that ends there.
async fn evidence_against(system: &System, request: Request<'_>) -> Result<Option<Evidence>> {
    match request.name {
        // Recovery never asks for these, and nothing follows from their absence.
        WalFileName::Partial(_) | WalFileName::BackupHistory(..) => Ok(None),
        WalFileName::Segment(_) if request.place() == Place::Within => {
            let later = "a later timeline, which begins behind it,".to_owned();
            Ok(Some(Evidence::Later(later)))
        }
        // What lies behind the fork is no evidence: it is not of the line.
        WalFileName::Segment(segment) if request.place() != Place::Open => {
            removed(system, segment, request.segment_size).await
        }
        WalFileName::Segment(segment) => {
            let Some(found) = system.segment_from(segment).await? else {
                return match child_behind(system, segment, request).await? {
                    None => removed(system, segment, request.segment_size).await,
                    child => Ok(child),
                };
            };
            if found == segment {
                return Ok(Some(Evidence::Itself));
            }
            let (size, number) = (request.segment_size, segment.number(request.segment_size)?);
            let wal = system.timeline_wal(segment.timeline, size, number).await?;
            if wal.ends_ahead_of(number) {
                let child = child_behind(system, segment, request).await?;
                if child.is_none() {
                    tracing::info!(
                        "{segment} was never acknowledged: what follows was stored ahead"
                    );
                }
                return Ok(child);
            }
            let later = format!("the later segment {found}");
            Ok(Some(Evidence::Later(later)))
        }
        // The first timeline has no history, and PostgreSQL asks for it all the same.
        WalFileName::History(TimelineId::FIRST) => Ok(None),
        // PostgreSQL counts timelines up to the first that is absent: a hole would silently
        // end its search at an old one.
        WalFileName::History(timeline) => {
            if system.timelines_with_wal().await?.contains(&timeline) {
                let wal = format!("WAL of timeline {timeline}");
                return Ok(Some(Evidence::Later(wal)));
            }
            // Their names say enough; a damaged one must not stop a recovery that needs none.
            let histories = system.history_timelines().await?;
            let later = histories.into_iter().find(|other| *other >= timeline);
            Ok(later.map(|later| match later == timeline {
                true => Evidence::Itself,
                false => Evidence::Later(format!("the history of timeline {later}")),
            }))
        }
    }
}

/// Whether retention removed `segment`: then WAL went on there, and does not end.
async fn removed(
    system: &System,
    segment: SegmentName,
    size: SegmentSize,
) -> Result<Option<Evidence>> {
    let expired = system.expired(segment.timeline, size).await?;
    let removed = expired.contains(segment.number(size)?);
    Ok(removed.then_some(Evidence::Expired))
}

/// Looks for a timeline that branched off behind `segment`: whoever founded it had replayed all
/// of that segment, so it was written whole, though perhaps archived by nobody (a primary that
/// died before it did, whose standby had received it already). The segment that holds the
/// switch point is none of these: the child begins with a copy of it.
async fn child_behind(
    system: &System,
    segment: SegmentName,
    request: Request<'_>,
) -> Result<Option<Evidence>> {
    if request.follows == Some(segment.timeline) {
        return Ok(None);
    }
    let size = request.segment_size;
    let end = Lsn(segment.start(size)?.0.saturating_add(size.bytes()));
    let histories = system.histories_behind(segment.timeline).await?;
    let child = histories.into_iter().find(|history| {
        let switch = history.end_of(segment.timeline);
        switch.is_some_and(|switch| switch >= end)
    });
    Ok(child.map(|child| {
        let child = child.timeline;
        Evidence::Later(format!("timeline {child}, which begins behind it,"))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_retention_removed_is_never_called_absent() {
        let store = crate::storage::Store::memory().unwrap();
        let repository = crate::repository::Repository::over("near", store);
        repository.init().await.unwrap();
        let system = repository.system("main", crate::postgres::SystemId(7));
        let size = SegmentSize::DEFAULT;
        system.register(18, size).await.unwrap();
        let one = TimelineId::FIRST;
        system.note_expired(one, size, (3, 9)).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let destination = directory.path().join("RECOVERYXLOG");
        let left = ["1@0/3002678".parse().unwrap()];
        for (name, end_at_gap, left, removed) in [
            ("000000010000000000000003", false, &[][..], true),
            ("000000010000000000000003", true, &[], false),
            ("00000001000000000000000A", false, &[], false),
            ("000000020000000000000003", false, &[], false),
            ("000000010000000000000003", false, &left, true),
            ("000000010000000000000004", false, &left, false),
        ] {
            let request = Request {
                name: name.parse().unwrap(),
                segment_size: size,
                destination: &destination,
                end_at_gap,
                left,
                new_tablespaces: NewTablespaces::Allow,
                follows: None,
            };
            let turn = Turn::at(&destination).unwrap();
            let done = fetch(std::slice::from_ref(&system), request, &turn).await;
            match removed {
                true => assert!(done.unwrap_err().what().contains("retention removed it")),
                false => assert_eq!(done.unwrap(), Fetched::Absent, "{name}"),
            }
        }
    }

    #[test]
    fn a_segment_lies_before_in_or_behind_the_end_of_the_timeline_that_is_left() {
        let size = SegmentSize::DEFAULT;
        let left: Vec<Left> = ["1@0/3002678", "2@0/5000000"]
            .map(|l| l.parse().unwrap())
            .into();
        assert_eq!(left[0].to_string(), "1@0/3002678");
        for (name, place) in [
            ("000000010000000000000002", Place::Within),
            ("000000010000000000000003", Place::Holds(Lsn(0x300_2678))),
            ("000000010000000000000004", Place::Behind),
            ("000000020000000000000004", Place::Within),
            ("000000020000000000000005", Place::Behind),
            ("000000030000000000000005", Place::Open),
            ("00000002.history", Place::Open),
        ] {
            let request = Request {
                name: name.parse().unwrap(),
                segment_size: size,
                destination: Path::new("/x"),
                end_at_gap: false,
                left: &left,
                new_tablespaces: NewTablespaces::Allow,
                follows: None,
            };
            assert_eq!(request.place(), place, "{name}");
        }
        for wrong in ["", "1", "1@", "@0/1", "0@0/1", "1@3002678"] {
            assert!(wrong.parse::<Left>().is_err(), "{wrong}");
        }
    }
}
