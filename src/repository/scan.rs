//! Reading the records of archived segments: the questions about targets that listings cannot
//! answer. Several segments are read at a time; memory is a few pieces of each, whatever the
//! segment size.

use std::io::Read;
use std::sync::Arc;

use futures::{Stream, StreamExt};

use super::System;
use super::bridge::ObjectReader;
use super::codec;
use super::wal_objects::Held;
use crate::error::{Error, Result};
use crate::postgres::wal_page::check_segment_header;
use crate::postgres::wal_records::{WalReadError, WalReader, WalRecord};
use crate::postgres::{SegmentName, SegmentSize, TimelineId, WalFileName};

/// Segments that are read at a time.
const PARALLEL: usize = 4;

/// Segments of one timeline: its number, the first and the last segment's.
pub type Stretch = (TimelineId, u64, u64);

/// Archived segments, oldest first, of which those that follow each other hold one line of WAL.
#[derive(Debug, Clone)]
pub struct Segments {
    stretches: Arc<Vec<Stretch>>,
    size: SegmentSize,
}

impl Segments {
    /// Segments of `size`.
    pub fn new(stretches: Vec<Stretch>, size: SegmentSize) -> Self {
        let stretches = Arc::new(stretches);
        Self { stretches, size }
    }

    /// Their names, from the last to the first.
    pub fn backwards(&self) -> impl Iterator<Item = SegmentName> {
        let stretches = self.stretches.iter().rev();
        stretches.flat_map(|(timeline, first, last)| {
            let numbers = (*first..=*last).rev();
            numbers.map(|number| SegmentName::new(*timeline, number, self.size))
        })
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        let counts = self
            .stretches
            .iter()
            .map(|(_, first, last)| last - first + 1);
        counts.sum::<u64>() * self.size.bytes()
    }

    /// The segment in which a record goes on that is not complete in `segment`.
    fn after(&self, segment: SegmentName) -> Option<SegmentName> {
        let next = segment.number(self.size).ok()?.checked_add(1)?;
        let holds = |stretch: &&Stretch| stretch.1 <= next && next <= stretch.2;
        // A later timeline has a segment of that number, too, where the line changes to it.
        let mut later = self.stretches.iter().filter(holds);
        let (timeline, ..) = later.find(|(timeline, ..)| *timeline >= segment.timeline)?;
        Some(SegmentName::new(*timeline, next, self.size))
    }

    /// The parts that lie in one log each: their first and last segment.
    fn by_log(&self) -> impl Iterator<Item = (SegmentName, SegmentName)> + use<> {
        let (stretches, size) = (Arc::clone(&self.stretches), self.size);
        let log = size.segments_per_log();
        (0..stretches.len()).flat_map(move |at| {
            let (timeline, first, last) = stretches[at];
            (first / log..=last / log).map(move |number| {
                let name = |number| SegmentName::new(timeline, number, size);
                let end = number * log + (log - 1);
                (name(first.max(number * log)), name(last.min(end)))
            })
        })
    }
}

impl System {
    /// Reads `segments` in their order, several at a time. Yields for each what `wanted` takes
    /// of the records that begin in it, or why it cannot be read.
    pub fn scan<T, F>(
        &self,
        segments: Segments,
        wanted: F,
    ) -> impl Stream<Item = (SegmentName, Result<Vec<T>>)>
    where
        T: Send + 'static,
        F: Fn(SegmentName, &WalRecord) -> Option<T> + Clone + Send + 'static,
    {
        let logs = futures::stream::iter(segments.by_log());
        let listed =
            logs.then(
                async move |(first, last)| match self.held_in_log(first, last).await {
                    Ok(held) => held
                        .into_iter()
                        .map(|(name, held)| (name, Ok(held)))
                        .collect(),
                    Err(error) => vec![(first, Err(error))],
                },
            );
        listed
            .flat_map(futures::stream::iter)
            .map(move |(segment, held)| {
                let (segments, wanted) = (segments.clone(), wanted.clone());
                async move {
                    let see = move |found: &mut Vec<T>, record: &WalRecord| {
                        found.extend(wanted(segment, record));
                    };
                    let found = match held {
                        Ok(held) => {
                            self.fold_records(&segments, segment, held, Vec::new(), see)
                                .await
                        }
                        Err(error) => Err(error),
                    };
                    (segment, found)
                }
            })
            .buffered(PARALLEL)
    }

    /// Shows every record that begins in `segment` to `see`, with `state`, which it returns.
    pub(super) async fn fold_records<S, F>(
        &self,
        segments: &Segments,
        segment: SegmentName,
        held: Held,
        state: S,
        see: F,
    ) -> Result<S>
    where
        S: Send + 'static,
        F: Fn(&mut S, &WalRecord) + Send + 'static,
    {
        let mut fold = Fold {
            reader: WalReader::new(),
            state,
            see,
        };
        fold = self
            .read_one(segment, held, segments.size, fold, false)
            .await?;
        let mut at = segment;
        while fold.reader.is_unfinished() {
            let Some(next) = segments.after(at) else {
                break;
            };
            at = next;
            let held = self.held(WalFileName::Segment(next)).await?;
            // A record whose end is nowhere was never replayed.
            if held == Held::Absent {
                break;
            }
            fold = self.read_one(next, held, segments.size, fold, true).await?;
        }
        Ok(fold.state)
    }

    async fn read_one<S, F>(
        &self,
        segment: SegmentName,
        held: Held,
        size: SegmentSize,
        fold: Fold<S, F>,
        rest: bool,
    ) -> Result<Fold<S, F>>
    where
        S: Send + 'static,
        F: Fn(&mut S, &WalRecord) + Send + 'static,
    {
        let cannot = |why: String| {
            Error::failed(format!("cannot read {segment}"))
                .at(self.place())
                .because(why)
        };
        let object = match held {
            Held::One(object, _) if !object.encrypted => object,
            Held::One(..) => {
                return Err(cannot(
                    "it is encrypted, which this version cannot open".into(),
                ));
            }
            Held::Absent => return Err(cannot("it is missing".into())),
            Held::Conflict(digests) => {
                return Err(self.conflict(WalFileName::Segment(segment), &digests));
            }
        };
        let key = self.keys().wal_object(object);
        let stream = self.store().get_stream(&key).await?;
        let reader = ObjectReader::new(stream.ok_or_else(|| cannot("it is gone".into()))?);
        let system_id = self.id();
        let read = tokio::task::spawn_blocking(move || {
            let mut fold = fold;
            let mut plain = codec::stream_decoder(reader)?.take(size.bytes() + 1);
            let see = |record: WalRecord| (fold.see)(&mut fold.state, &record);
            let (header, length) = if rest {
                (fold.reader.read_rest(&mut plain, see)?, size.bytes())
            } else {
                let header = fold.reader.read(&mut plain, see)?;
                // To the end: the checksum of the object stands there.
                std::io::copy(&mut plain, &mut std::io::sink())?;
                (header, size.bytes() + 1 - plain.limit())
            };
            check_segment_header(&header, segment, system_id, size, length)?;
            Ok(fold)
        });
        read.await
            .map_err(|error| cannot(error.to_string()))?
            .map_err(|error: WalReadError| cannot(error.to_string()))
    }
}

/// A reader, and what was made of the records so far.
struct Fold<S, F> {
    reader: WalReader,
    state: S,
    see: F,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn segments(stretches: &[(u32, u64, u64)]) -> Segments {
        let timeline = |number| TimelineId::new(number).unwrap();
        let stretches = stretches.iter().map(|(t, a, b)| (timeline(*t), *a, *b));
        Segments::new(stretches.collect(), SIZE)
    }

    fn names(names: impl IntoIterator<Item = SegmentName>) -> Vec<String> {
        names.into_iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn a_record_goes_on_in_the_next_segment_of_the_line_and_not_across_a_gap() {
        let line = segments(&[(1, 2, 4), (2, 5, 6), (2, 9, 9)]);
        let after = |name: &str| {
            line.after(name.parse().unwrap())
                .map(|name| name.to_string())
        };
        assert_eq!(
            after("000000010000000000000003").unwrap(),
            "000000010000000000000004"
        );
        assert_eq!(
            after("000000010000000000000004").unwrap(),
            "000000020000000000000005"
        );
        assert_eq!(after("000000020000000000000006"), None);
        assert_eq!(after("000000020000000000000009"), None);
    }

    #[test]
    fn segments_are_listed_log_by_log_and_named_backwards() {
        let line = segments(&[(1, 254, 256), (2, 257, 257)]);
        let parts = line.by_log().map(|(first, last)| format!("{first} {last}"));
        assert_eq!(
            parts.collect::<Vec<_>>(),
            [
                "0000000100000000000000FE 0000000100000000000000FF",
                "000000010000000100000000 000000010000000100000000",
                "000000020000000100000001 000000020000000100000001",
            ]
        );
        assert_eq!(
            names(line.backwards()),
            [
                "000000020000000100000001",
                "000000010000000100000000",
                "0000000100000000000000FF",
                "0000000100000000000000FE"
            ]
        );
        assert_eq!(line.bytes(), 4 * SIZE.bytes());
    }
}
