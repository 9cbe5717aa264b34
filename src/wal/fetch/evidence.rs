//! What speaks against a file's absence: only a repository that holds nothing of it, and
//! nothing that could not be there without it, may end a recovery.

use super::{Place, Request};
use crate::error::Result;
use crate::postgres::{TimelineId, WalFileName};
use crate::repository::System;

/// What speaks against a file's absence.
pub(super) enum Evidence {
    /// Another answer of the store that holds the file.
    Itself,
    /// Something that could not be there if the file had never existed.
    Later(String),
}

/// Looks for what speaks against the absence of `name`.
///
/// It is a second look as well: a store that once lists nothing where there is something is
/// caught even at the very end of the archive, where nothing later can betray it. One that
/// does so twice in the same way cannot be told from an archive that ends there.
pub(super) async fn evidence_against(
    system: &System,
    request: Request<'_>,
) -> Result<Option<Evidence>> {
    match request.name {
        // Recovery never asks for these, and nothing follows from their absence.
        WalFileName::Partial(_) | WalFileName::BackupHistory(..) => Ok(None),
        WalFileName::Segment(_) if request.place() == Place::Within => {
            let later = "a later timeline, which begins behind it,".to_owned();
            Ok(Some(Evidence::Later(later)))
        }
        // What lies behind the fork is no evidence: it is not of the line.
        WalFileName::Segment(_) if request.place() != Place::Open => Ok(None),
        WalFileName::Segment(segment) => {
            let Some(found) = system.segment_from(segment).await? else {
                return Ok(None);
            };
            if found == segment {
                return Ok(Some(Evidence::Itself));
            }
            let (size, number) = (request.segment_size, segment.number(request.segment_size)?);
            let wal = system.timeline_wal(segment.timeline, size, number).await?;
            if wal.ends_ahead_of(number) {
                tracing::info!("{segment} was never acknowledged: what follows was stored ahead");
                return Ok(None);
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
