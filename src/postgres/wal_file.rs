//! The names of the files that archive_command and restore_command are handed.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::{FormatError, Lsn, SegmentSize, TimelineId};

/// `.history` and `.backup` files are small texts; what has more bytes is none of them.
pub const LARGEST_TEXT: u64 = 1 << 20;

/// The 24 hex digits of a segment: timeline, log, segment in log.
///
/// The segment's *number* depends on the cluster's segment size; the name alone does not know
/// it, so every conversion takes a [`SegmentSize`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline that wrote it.
    pub timeline: TimelineId,
    /// The middle eight digits: the high 32 bits of its positions.
    pub log: u32,
    /// The last eight digits.
    pub low: u32,
}

/// Any file that PostgreSQL archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFileName {
    /// `000000010000000000000001`
    Segment(SegmentName),
    /// `000000010000000000000001.partial`, the last segment of a timeline that was left.
    /// Recovery never asks for it.
    Partial(SegmentName),
    /// `000000010000000000000001.00000028.backup`; the number is the backup's start as an
    /// offset in the segment.
    BackupHistory(SegmentName, u32),
    /// `00000002.history`
    History(TimelineId),
}

impl SegmentName {
    /// The name of segment `number` of `timeline`.
    pub fn new(timeline: TimelineId, number: u64, size: SegmentSize) -> Self {
        let per_log = size.segments_per_log();
        Self {
            timeline,
            log: (number / per_log) as u32,
            low: (number % per_log) as u32,
        }
    }

    /// The segment of `timeline` that holds `lsn`.
    pub fn holding(timeline: TimelineId, lsn: Lsn, size: SegmentSize) -> Self {
        Self::new(timeline, lsn.segment(size), size)
    }

    /// The segment's number. An error if its last digits are impossible at this segment size.
    pub fn number(self, size: SegmentSize) -> Result<u64, FormatError> {
        let per_log = size.segments_per_log();
        if u64::from(self.low) >= per_log {
            return Err(FormatError::new(
                "WAL segment name",
                format!("{self} cannot exist with segments of {size}"),
            ));
        }
        Ok(u64::from(self.log) * per_log + u64::from(self.low))
    }

    /// The position of its first byte.
    pub fn start(self, size: SegmentSize) -> Result<Lsn, FormatError> {
        Ok(size.start_of(self.number(size)?))
    }
}

impl WalFileName {
    /// The timeline that the file belongs to.
    pub fn timeline(self) -> TimelineId {
        match self {
            Self::Segment(s) | Self::Partial(s) | Self::BackupHistory(s, _) => s.timeline,
            Self::History(timeline) => timeline,
        }
    }

    /// The segment that it is, or that it lies beside.
    pub fn segment(self) -> Option<SegmentName> {
        match self {
            Self::Segment(s) | Self::Partial(s) | Self::BackupHistory(s, _) => Some(s),
            Self::History(_) => None,
        }
    }

    /// How many bytes a file of this name may have.
    pub fn sizes(self, segment_size: SegmentSize) -> RangeInclusive<u64> {
        match self {
            Self::Segment(_) | Self::Partial(_) => segment_size.bytes()..=segment_size.bytes(),
            Self::BackupHistory(..) | Self::History(_) => 1..=LARGEST_TEXT,
        }
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:08X}{:08X}", self.timeline.hex(), self.log, self.low)
    }
}

impl fmt::Debug for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(s) => write!(f, "{s}"),
            Self::Partial(s) => write!(f, "{s}.partial"),
            Self::BackupHistory(s, offset) => write!(f, "{s}.{offset:08X}.backup"),
            Self::History(timeline) => write!(f, "{}.history", timeline.hex()),
        }
    }
}

/// Eight upper-case hex digits, as PostgreSQL writes them.
fn eight(text: &str) -> Option<u32> {
    let digits = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
    (text.len() == 8 && text.bytes().all(digits))
        .then(|| u32::from_str_radix(text, 16).ok())
        .flatten()
}

impl FromStr for SegmentName {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let parse = || {
            let timeline = TimelineId::new(eight(text.get(0..8)?)?).ok()?;
            let log = eight(text.get(8..16)?)?;
            let low = eight(text.get(16..)?)?;
            Some(Self { timeline, log, low })
        };
        parse().ok_or_else(|| {
            FormatError::new(
                "WAL segment name",
                format!("{text:?} is not 24 upper-case hex digits"),
            )
        })
    }
}

impl FromStr for WalFileName {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let unknown = || {
            FormatError::new(
                "WAL file name",
                format!("{text:?} is no segment, .partial, .backup or .history file"),
            )
        };
        match text.split_once('.') {
            None => text.parse().map(Self::Segment).map_err(|_| unknown()),
            Some((segment, "partial")) => segment.parse().map(Self::Partial).map_err(|_| unknown()),
            Some((timeline, "history")) => eight(timeline)
                .and_then(|t| TimelineId::new(t).ok())
                .map(Self::History)
                .ok_or_else(unknown),
            Some((segment, rest)) => {
                let offset = rest
                    .strip_suffix(".backup")
                    .and_then(eight)
                    .ok_or_else(unknown)?;
                let segment = segment.parse().map_err(|_| unknown())?;
                Ok(Self::BackupHistory(segment, offset))
            }
        }
    }
}

impl serde::Serialize for SegmentName {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for SegmentName {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        <String as serde::Deserialize>::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_of_all_four_kinds_read_and_print() {
        for text in [
            "000000010000000000000001",
            "0000000200000012000000FF.partial",
            "000000010000000000000004.00000028.backup",
            "0000000A.history",
        ] {
            assert_eq!(text.parse::<WalFileName>().unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "00000001000000000000000",
            "00000001000000000000000g",
            "00000001000000000000000a",
            "000000000000000000000001",
            "000000010000000000000001.part",
            "000000010000000000000001.00000028",
            "000000010000000000000001.28.backup",
            "1.history",
            "00000000.history",
            "../../etc/passwd",
            "RECOVERYXLOG",
            "éééééééééééé",
        ] {
            assert!(wrong.parse::<WalFileName>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_impossible_segment_is_refused_at_its_size() {
        let name: SegmentName = "0000000100000000000000FF".parse().unwrap();
        assert_eq!(name.number(SegmentSize::DEFAULT), Ok(255));
        assert!(name.number(SegmentSize::new(64 << 20).unwrap()).is_err());
        let name: SegmentName = "000000010000000000000FFF".parse().unwrap();
        assert!(name.number(SegmentSize::DEFAULT).is_err());
        assert_eq!(name.number(SegmentSize::new(1 << 20).unwrap()), Ok(4095));
    }

    proptest! {
        #[test]
        fn a_segment_holds_the_position_it_was_named_for(
            lsn in 0u64..1 << 60, power in 20u32..=30, timeline in 1u32..
        ) {
            let size = SegmentSize::new(1 << power).unwrap();
            let timeline = TimelineId::new(timeline).unwrap();
            let name = SegmentName::holding(timeline, Lsn(lsn), size);
            let read: SegmentName = name.to_string().parse().unwrap();
            prop_assert_eq!(read, name);
            let start = read.start(size).unwrap();
            prop_assert!(start.0 <= lsn && lsn - start.0 < size.bytes());
        }

        #[test]
        fn garbage_is_an_error_and_never_a_panic(text in ".{0,48}") {
            let _ = text.parse::<WalFileName>();
        }
    }
}
