//! What a backup from a standby needs besides: its primary, which alone can end the segment
//! that holds the backup's stop. Of nothing else is the primary asked, but who it is.
//!
//! The server itself sees to the rest: it refuses to start where WAL with full_page_writes off
//! was replayed since the last restartpoint, and to stop where it was promoted meanwhile. That
//! it is consistent from where pg_control says, a restored standby's backup knows because
//! pg_control is copied last (PostgreSQL 18, `do_pg_backup_stop` in xlog.c).

use std::time::Duration;

use crate::error::{Error, Result};
use crate::postgres::connection::ConnectionString;
use crate::postgres::sql::Client;
use crate::postgres::{SegmentName, SegmentSize, SystemId, TimelineId};
use crate::repository::System;
use crate::wal::wait;

/// Looks whether the primary can be asked, before hours of copying.
///
/// # Errors
/// It does not answer, is another cluster's, or is a standby itself.
pub async fn check_primary(primary: Option<&ConnectionString>, system_id: SystemId) -> Result<()> {
    let Some(primary) = primary else {
        tracing::warn!(
            "the server is a standby and the configuration names no `primary`: the backup will wait until the primary ends the segment that holds the stop by itself"
        );
        return Ok(());
    };
    let client = connect(primary).await?;
    let found = client.system_identifier().await?;
    if found != system_id {
        return Err(Error::refused(format!(
            "`primary` has the system identifier {found}, the standby {system_id}"
        ))
        .at(client.place())
        .hint("`connection` and `primary` of this cluster name two different clusters"));
    }
    if client.is_in_recovery().await? {
        return Err(Error::refused("`primary` is a standby itself")
            .at(client.place())
            .hint("name all servers in host= and add target_session_attrs=primary"));
    }
    Ok(())
}

/// The standby is still on the timeline where its backup began.
///
/// # Errors
/// What it follows was promoted meanwhile: the backup would need WAL of two timelines.
pub fn same_timeline(start: TimelineId, now: TimelineId) -> Result<()> {
    if start == now {
        return Ok(());
    }
    Err(Error::failed(format!(
        "the standby went from timeline {start} to {now} during the backup"
    ))
    .hint("take the backup again"))
}

/// Waits until the WAL of a standby's backup, from segment `first` to `last`, is archived, and
/// has the primary end the last segment where it is known.
pub async fn until_archived(
    system: &System,
    timeline: TimelineId,
    size: SegmentSize,
    (first, last): (u64, u64),
    primary: Option<&ConnectionString>,
    timeout: Duration,
) -> Result<()> {
    match primary {
        Some(primary) => {
            let client = connect(primary).await?;
            let switched = client.switch_wal().await?;
            tracing::debug!("the primary switched its segment at {switched}");
        }
        None => tracing::warn!(
            "waiting for {}, which the standby cannot end: the primary does when it is full, or after its archive_timeout; with `primary = \"…\"` in the configuration it would be asked to",
            SegmentName::new(timeline, last, size)
        ),
    }
    let waited = wait::until_archived(system, timeline, size, (first, last), timeout).await;
    waited.map_err(|error| match primary {
        None if error.what().contains("did not arrive") => error.hint(
            "set `primary` in the configuration, so that the segment can be ended at once, or archive_timeout on the primary; and see that the primary archives (a standby does only with archive_mode = always)",
        ),
        _ => error,
    })
}

async fn connect(primary: &ConnectionString) -> Result<Client> {
    Client::connect(primary).await.map_err(|error| {
        let what = format!("`primary` of the configuration: {}", error.what());
        let retryable = error.is_retryable();
        Error::failed(what)
            .retryable(retryable)
            .because(error.one_line())
    })
}
