//! When the last transaction in archived WAL ended: whether a recovery to a time finds a
//! commit to stop at, and up to which moment one can recover. A few segments are read for it,
//! from the end backwards.

use super::System;
use super::scan::{Segments, Stretch};
use crate::error::Result;
use crate::postgres::wal_records::{LatestEnd, TransactionEnd};
use crate::postgres::{SegmentSize, WalFileName};

/// On an idle server segments without any transaction follow each other; past so many bytes
/// of them the answer is left to recovery itself.
const LOOK_BACK: u64 = 256 << 20;

/// The end of the WAL, as far as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastEnd {
    /// The last transaction that ended there.
    At(TransactionEnd),
    /// No transaction ended in all of it.
    Never,
    /// None in the segments that were read; there are more.
    Unknown,
}

/// Reads `segments` (timeline, first and last number, oldest first) from their end backwards
/// until a transaction's end is found: at most 256 MiB of WAL, and at least one segment.
///
/// # Errors
/// A segment cannot be read.
pub async fn last_end(system: &System, segments: &[Stretch], size: SegmentSize) -> Result<LastEnd> {
    let segments = Segments::new(segments.to_vec(), size);
    let most = (LOOK_BACK / size.bytes()).max(1) as usize;
    for (read, segment) in segments.backwards().enumerate() {
        if read == most {
            return Ok(LastEnd::Unknown);
        }
        let held = system.held(WalFileName::Segment(segment)).await?;
        let latest = system
            .fold_records(
                &segments,
                segment,
                held,
                LatestEnd::default(),
                LatestEnd::see,
            )
            .await?;
        if let Some(end) = latest.0 {
            return Ok(LastEnd::At(end));
        }
    }
    Ok(LastEnd::Never)
}
