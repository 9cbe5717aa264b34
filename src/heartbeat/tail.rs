//! What the end of archived WAL tells of the server that wrote it: its last heartbeats, and how
//! fast it was writing.

use futures::StreamExt;
use jiff::Timestamp;

use super::{Beat, Message, PREFIX};
use crate::error::Result;
use crate::postgres::wal_records::{Content, WalRecord};
use crate::postgres::{Lsn, SegmentSize};
use crate::repository::System;
use crate::repository::scan::{Segments, Stretch};

/// So much WAL is read at most, or one segment that is larger.
const MOST_BYTES: u64 = 128 << 20;

/// A rate over less time than this tells nothing.
const LEAST_SECONDS: f64 = 1.0;

/// See the head of this file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tail {
    /// When the last transaction ended.
    pub last_end: Option<Timestamp>,
    /// The last heartbeat.
    pub last_beat: Option<Beat>,
    /// Seconds from the one before it.
    pub interval: Option<f64>,
    /// WAL bytes a second, between the first and the last transaction's end that were read.
    pub bytes_per_second: Option<f64>,
    /// Transaction ids a second, in the same time.
    pub transactions_per_second: Option<f64>,
}

/// What a record tells.
enum Seen {
    Beat(Beat),
    End {
        lsn: Lsn,
        time: Timestamp,
        xid: Option<u32>,
    },
}

impl Tail {
    /// Reads the last segments of `stretches`: archived WAL of one line, oldest first. At most
    /// 128 MiB of it.
    ///
    /// # Errors
    /// A segment cannot be read.
    pub async fn read(system: &System, stretches: &[Stretch], size: SegmentSize) -> Result<Self> {
        let most = (MOST_BYTES / size.bytes()).max(1);
        let segments = Segments::new(last_of(stretches, most), size);
        let mut read = std::pin::pin!(system.scan(segments, |_, record| seen(record)));
        let mut told = Vec::new();
        while let Some((_, found)) = read.next().await {
            told.extend(found?);
        }
        Ok(Self::of(&told))
    }

    fn of(told: &[Seen]) -> Self {
        let beats = told.iter().filter_map(|seen| match seen {
            Seen::Beat(beat) => Some(*beat),
            Seen::End { .. } => None,
        });
        let mut beats = beats.rev();
        let last_beat = beats.next();
        let before = beats.next();
        let mut ends = told.iter().filter_map(|seen| match seen {
            Seen::End { lsn, time, xid } => Some((*lsn, *time, *xid)),
            Seen::Beat(_) => None,
        });
        let latest = told.iter().filter_map(|seen| match seen {
            Seen::End { time, .. } => Some(*time),
            Seen::Beat(_) => None,
        });
        let mut tail = Self {
            last_end: latest.max(),
            last_beat,
            interval: last_beat
                .zip(before)
                .map(|(last, before)| last.time.duration_since(before.time).as_secs_f64()),
            ..Self::default()
        };
        if let (Some((first, since, from)), Some((last, until, to))) =
            (ends.next(), ends.next_back())
        {
            let seconds = until.duration_since(since).as_secs_f64();
            if seconds >= LEAST_SECONDS {
                tail.bytes_per_second = Some(last.0.saturating_sub(first.0) as f64 / seconds);
                // Ids go round; those of a tail lie near each other.
                let count = to.zip(from).map(|(to, from)| to.wrapping_sub(from));
                let count = count.filter(|count| *count < u32::MAX / 2);
                tail.transactions_per_second = count.map(|count| f64::from(count) / seconds);
            }
        }
        tail
    }
}

fn seen(record: &WalRecord) -> Option<Seen> {
    if let Content::Message { prefix, text } = &record.content {
        // A message of this prefix that is no heartbeat is somebody else's.
        let message: Message = serde_json::from_str(text)
            .ok()
            .filter(|_| prefix == PREFIX)?;
        return Some(Seen::Beat(Beat {
            lsn: record.end,
            time: message.time,
        }));
    }
    let end = record.transaction_end()?;
    Some(Seen::End {
        lsn: record.end,
        time: end.time,
        xid: end.xid,
    })
}

/// The last `most` segments.
fn last_of(stretches: &[Stretch], most: u64) -> Vec<Stretch> {
    let mut left = most;
    let mut last = Vec::new();
    for (timeline, first, end) in stretches.iter().rev() {
        if left == 0 {
            break;
        }
        let first = (*first).max(end.saturating_sub(left - 1));
        left -= end - first + 1;
        last.push((*timeline, first, *end));
    }
    last.reverse();
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::TimelineId;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn a_tail_tells_the_last_heartbeat_its_interval_and_the_rates() {
        let beat = |seconds, lsn| {
            let (time, lsn) = (at(seconds), Lsn(lsn));
            Seen::Beat(Beat { lsn, time })
        };
        let end = |seconds, lsn, xid| Seen::End {
            lsn: Lsn(lsn),
            time: at(seconds),
            xid: Some(xid),
        };
        let told = [
            end(0, 1000, u32::MAX - 4),
            beat(10, 2000),
            end(10, 2100, 2),
            beat(40, 5000),
            end(50, 6000, 20),
        ];
        let tail = Tail::of(&told);
        assert_eq!(tail.last_end, Some(at(50)));
        assert_eq!(tail.last_beat.unwrap().time, at(40));
        assert_eq!(tail.interval, Some(30.0));
        assert_eq!(tail.bytes_per_second, Some(100.0));
        assert_eq!(tail.transactions_per_second, Some(0.5));
        // One moment tells no rate.
        assert_eq!(Tail::of(&told[..1]).bytes_per_second, None);
        assert_eq!(Tail::of(&[]), Tail::default());
    }

    #[test]
    fn only_the_last_segments_are_read() {
        let timeline = |number| TimelineId::new(number).unwrap();
        let line = [(timeline(1), 3, 10), (timeline(2), 11, 13)];
        assert_eq!(last_of(&line, 2), [(timeline(2), 12, 13)]);
        assert_eq!(
            last_of(&line, 5),
            [(timeline(1), 9, 10), (timeline(2), 11, 13)]
        );
        assert_eq!(last_of(&line, 99), line);
        assert_eq!(last_of(&[], 99), []);
    }
}
