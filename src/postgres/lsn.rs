//! PostgreSQL's domain numbers as types: LSN, timeline, segment size, system identifier.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::FormatError;

/// A log sequence number: a byte position in the WAL. Printed as PostgreSQL does, `%X/%X`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

/// A timeline, never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId(NonZeroU32);

/// The cluster's `wal_segment_size` in bytes: a power of two from 1 MiB to 1 GiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentSize(u32);

/// PostgreSQL's system identifier, unique to each initdb.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(pub u64);

impl Lsn {
    /// The number of the segment that holds this position.
    pub fn segment(self, size: SegmentSize) -> u64 {
        self.0 / size.bytes()
    }

    /// The number of the segment that holds the byte *before* this position: what an end
    /// position still needs (`XLByteToPrevSeg`).
    pub fn previous_segment(self, size: SegmentSize) -> u64 {
        self.0.saturating_sub(1) / size.bytes()
    }

    /// The offset inside its segment.
    pub fn offset(self, size: SegmentSize) -> u64 {
        self.0 % size.bytes()
    }

    /// Bytes from `earlier` to here; 0 if `earlier` is later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Lsn {
    type Err = FormatError;

    /// Accepts `%X/%X` and `%X/%08X` (PostgreSQL 19), as `pg_lsn` does.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        let half = |part: &str| {
            if part.is_empty() || part.len() > 8 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            u64::from_str_radix(part, 16).ok()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| {
                FormatError::new("LSN", format!("{text:?} is not of the form 16/B374D848"))
            })
    }
}

impl TimelineId {
    /// The first timeline of every cluster.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// A timeline, unless it is 0.
    pub fn new(number: u32) -> Result<Self, FormatError> {
        NonZeroU32::new(number)
            .map(Self)
            .ok_or_else(|| FormatError::new("timeline", "0 is no timeline"))
    }

    /// Its number.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// The eight hex digits that file names carry.
    pub fn hex(self) -> String {
        format!("{:08X}", self.0)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for TimelineId {
    type Err = FormatError;

    /// Reads the decimal number that people and PostgreSQL's settings use.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        text.parse()
            .map_err(|_| FormatError::new("timeline", format!("{text:?} is not a number")))
            .and_then(Self::new)
    }
}

impl SegmentSize {
    /// PostgreSQL's default, 16 MiB.
    pub const DEFAULT: Self = Self(16 << 20);

    /// A segment size, if PostgreSQL allows it.
    pub fn new(bytes: u64) -> Result<Self, FormatError> {
        if bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes) {
            Ok(Self(bytes as u32))
        } else {
            Err(FormatError::new(
                "wal_segment_size",
                format!("{bytes} bytes is not a power of two from 1 MiB to 1 GiB"),
            ))
        }
    }

    /// Bytes of one segment.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// Segments that share the middle eight digits of their names (one "log" of 4 GiB).
    pub fn segments_per_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }

    /// The position where segment `number` starts.
    pub fn start_of(self, number: u64) -> Lsn {
        Lsn(number.saturating_mul(self.bytes()))
    }
}

impl fmt::Display for SegmentSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0 >> 20)
    }
}

impl fmt::Debug for SegmentSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for SystemId {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        text.parse().map(Self).map_err(|_| {
            FormatError::new(
                "system identifier",
                format!("{text:?} is not a 64-bit number"),
            )
        })
    }
}

/// Types that JSON holds as the text that PostgreSQL prints.
macro_rules! json_as_text {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
json_as_text!(Lsn, SystemId);

impl Serialize for TimelineId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u32(self.get())
    }
}

impl<'de> Deserialize<'de> for TimelineId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(u32::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

impl Serialize for SegmentSize {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(self.bytes())
    }
}

impl<'de> Deserialize<'de> for SegmentSize {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(u64::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_lsn_prints_as_postgresql_does() {
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
        assert_eq!(Lsn(0x1_0000_0028).to_string(), "1/28");
        assert_eq!("1/00000028".parse(), Ok(Lsn(0x1_0000_0028)));
        for wrong in [
            "",
            "/",
            "1/",
            "/1",
            "1/2/3",
            "1/123456789",
            "g/1",
            "1/ 2",
            "+1/2",
        ] {
            assert!(wrong.parse::<Lsn>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn only_the_segment_sizes_that_initdb_accepts_are_accepted() {
        for power in 0..40 {
            assert_eq!(
                SegmentSize::new(1 << power).is_ok(),
                (20..=30).contains(&power)
            );
        }
        assert!(SegmentSize::new(3 << 20).is_err());
    }

    proptest! {
        #[test]
        fn every_lsn_reads_back(value: u64) {
            prop_assert_eq!(Lsn(value).to_string().parse(), Ok(Lsn(value)));
        }

        #[test]
        fn garbage_is_an_error_and_never_a_panic(text in ".{0,40}") {
            let _ = text.parse::<Lsn>();
            let _ = text.parse::<TimelineId>();
            let _ = text.parse::<SystemId>();
        }
    }
}
