//! Waiting until archived WAL has arrived, instead of in `pg_backup_stop`, which looks only
//! once a second.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::postgres::{SegmentName, SegmentSize, TimelineId};
use crate::repository::System;

/// Waits until segments `first..=last` of `timeline` are all in the repository.
///
/// # Errors
/// A store that fails, a conflict among them, and `timeout`, with the segment that is missing.
pub async fn until_archived(
    system: &System,
    timeline: TimelineId,
    size: SegmentSize,
    (first, last): (u64, u64),
    timeout: Duration,
) -> Result<()> {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_millis(20);
    loop {
        let wal = system.timeline_wal(timeline, size, first).await?;
        let within = |segment: &&SegmentName| segment.number(size).is_ok_and(|n| n <= last);
        if let Some(conflict) = wal.conflicts.iter().find(within) {
            return Err(Error::refused(format!(
                "{conflict} is archived with different contents"
            ))
            .at(system.place())
            .hint("two servers archive under one name; nothing that needs this segment can be restored"));
        }
        let reached = wal.run_with(first).map(|run| run.last);
        if reached.is_some_and(|reached| reached >= last) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let missing = reached.map_or(first, |reached| reached + 1);
            let missing = SegmentName::new(timeline, missing, size);
            return Err(Error::failed(format!(
                "{missing} did not arrive in the archive within {} s",
                timeout.as_secs()
            ))
            .at(system.place())
            .hint("look at pg_stat_archiver and at the server's log: archive_command fails, or archives elsewhere"));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_secs(1));
    }
}
