//! When the last transaction in archived WAL ended: the one question about a target that
//! listings cannot answer. A few segments are read for it, from the end backwards.

use super::System;
use super::bridge::ObjectReader;
use super::codec;
use super::wal_objects::Held;
use crate::error::{Error, Result};
use crate::postgres::wal_records::{TransactionEnd, latest_transaction_end};
use crate::postgres::{SegmentName, SegmentSize, TimelineId, WalFileName};

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
/// until a transaction's end is found.
pub async fn last_end(
    system: &System,
    segments: &[(TimelineId, u64, u64)],
    size: SegmentSize,
) -> Result<LastEnd> {
    let mut left = (LOOK_BACK / size.bytes()).max(1);
    for (timeline, first, last) in segments.iter().rev() {
        for number in (*first..=*last).rev() {
            if left == 0 {
                return Ok(LastEnd::Unknown);
            }
            left -= 1;
            let segment = SegmentName::new(*timeline, number, size);
            if let Some(end) = read(system, segment).await? {
                return Ok(LastEnd::At(end));
            }
        }
    }
    Ok(LastEnd::Never)
}

async fn read(system: &System, segment: SegmentName) -> Result<Option<TransactionEnd>> {
    let cannot = |why: String| {
        Error::failed(format!("cannot read {segment}"))
            .at(system.place())
            .because(why)
    };
    let object = match system.held(WalFileName::Segment(segment)).await? {
        Held::One(object, _) if !object.encrypted => object,
        other => return Err(cannot(format!("{other:?}"))),
    };
    let key = system.keys().wal_object(object);
    let stream = system.store().get_stream(&key).await?;
    let reader = ObjectReader::new(stream.ok_or_else(|| cannot("it is gone".into()))?);
    tokio::task::spawn_blocking(move || latest_transaction_end(codec::stream_decoder(reader)?))
        .await
        .map_err(|error| cannot(error.to_string()))?
        .map_err(|error| cannot(error.to_string()))?
        .map_err(|error| cannot(error.to_string()))
}
