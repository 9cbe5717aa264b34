//! The first page of a WAL segment, by which a segment is known to be what its name says.
//!
//! Nothing here reads WAL records. Facts: `XLogLongPageHeaderData` in
//! `src/include/access/xlog_internal.h`; all integers little-endian.

use super::{FormatError, Lsn, SegmentName, SegmentSize, SystemId, TimelineId};

/// Bytes of the long header.
pub const LONG_HEADER_SIZE: usize = 40;

/// The header of a segment's first page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongPageHeader {
    /// PostgreSQL's major version, known from the page magic.
    pub major: u32,
    /// The flags: 1 the page begins inside a record, 2 long header, 4 full-page images may
    /// be removed, 8 an interrupted record is overwritten here.
    pub info: u16,
    /// The timeline that wrote this page.
    pub timeline: TimelineId,
    /// The position of the page, and of the segment.
    pub page_address: Lsn,
    /// The cluster.
    pub system_id: SystemId,
    /// The cluster's `wal_segment_size`.
    pub segment_size: SegmentSize,
    /// Bytes of a WAL page, usually 8192.
    pub wal_block_size: u32,
}

/// `XLOG_PAGE_MAGIC` of each major version.
const MAGICS: [(u16, u32); 5] = [
    (0xD10D, 14),
    (0xD110, 15),
    (0xD113, 16),
    (0xD116, 17),
    (0xD118, 18),
];

impl LongPageHeader {
    /// Reads the first 40 bytes of a segment.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let Some((header, _)) = bytes.split_first_chunk::<LONG_HEADER_SIZE>() else {
            return Err(wrong(format!("only {} bytes long", bytes.len())));
        };
        let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;

        let magic = u16_at(0);
        let Some((_, major)) = MAGICS.into_iter().find(|(known, _)| *known == magic) else {
            return Err(wrong(format!(
                "page magic {magic:04X} is none of PostgreSQL 14 to 18"
            )));
        };
        let info = u16_at(2);
        if info & 2 == 0 || info & !0xF != 0 {
            return Err(wrong(format!(
                "flags {info:04X} are not those of a segment's first page"
            )));
        }
        let wal_block_size = u32_at(36);
        if !wal_block_size.is_power_of_two() || !(1 << 10..=1 << 16).contains(&wal_block_size) {
            return Err(wrong(format!("WAL pages of {wal_block_size} bytes")));
        }
        Ok(Self {
            major,
            info,
            timeline: TimelineId::new(u32_at(4))?,
            page_address: Lsn(u64_at(8)),
            system_id: SystemId(u64_at(24)),
            segment_size: SegmentSize::new(u64::from(u32_at(32)))?,
            wal_block_size,
        })
    }
}

/// Checks that a file is the segment `name` of the cluster `system_id`, whose segments have
/// `size`, and that it is whole: `file_length` bytes, no more and no less.
///
/// The page's timeline may be older than the name's: the first segment of a new timeline is a
/// copy of its parent's up to the switch point. It is never newer.
pub fn check_segment_header(
    header: &LongPageHeader,
    name: SegmentName,
    system_id: SystemId,
    size: SegmentSize,
    file_length: u64,
) -> Result<(), FormatError> {
    if header.system_id != system_id {
        return Err(wrong(format!(
            "{name} belongs to the cluster {}, not to {system_id}",
            header.system_id
        )));
    }
    if header.segment_size != size {
        return Err(wrong(format!(
            "{name} is of a cluster with segments of {}, not of {size}",
            header.segment_size
        )));
    }
    if file_length != size.bytes() {
        return Err(wrong(format!(
            "{name} has {file_length} bytes instead of {}",
            size.bytes()
        )));
    }
    let start = name.start(size)?;
    if header.page_address != start {
        return Err(wrong(format!(
            "{name} holds the position {} where its name says {start}",
            header.page_address
        )));
    }
    if header.timeline > name.timeline {
        return Err(wrong(format!(
            "{name} was written on the later timeline {}",
            header.timeline
        )));
    }
    Ok(())
}

fn wrong(why: String) -> FormatError {
    FormatError::new("WAL segment", why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::control::ControlFile;
    use crate::postgres::testing::Server;
    use proptest::prelude::*;

    fn made() -> [u8; LONG_HEADER_SIZE] {
        let mut bytes = [0; LONG_HEADER_SIZE];
        bytes[0..2].copy_from_slice(&0xD110u16.to_le_bytes());
        bytes[2] = 3;
        bytes[4] = 2;
        bytes[8..16].copy_from_slice(&(5u64 << 24).to_le_bytes());
        bytes[24..32].copy_from_slice(&77u64.to_le_bytes());
        bytes[32..36].copy_from_slice(&(16u32 << 20).to_le_bytes());
        bytes[36..40].copy_from_slice(&8192u32.to_le_bytes());
        bytes
    }

    #[test]
    fn the_segments_of_a_live_cluster_are_accepted_on_both_sides_of_a_promotion() {
        let mut server = Server::with(&["--wal-segsize=1"], "wal_keep_size = '100MB'");
        for _ in 0..3 {
            server.sql("create temp table t(); select pg_switch_wal()");
        }
        server.stop();
        server.write(&server.data().join("standby.signal"), "");
        server.launch();
        server.sql("select pg_promote()");
        server.sql("create table u(); select pg_switch_wal()");
        let control = ControlFile::read(&server.data()).unwrap();
        let (mut old, mut new, mut copied) = (0, 0, 0);
        for entry in std::fs::read_dir(server.data().join("pg_wal")).unwrap() {
            let entry = entry.unwrap();
            let Ok(name) = entry.file_name().to_str().unwrap().parse::<SegmentName>() else {
                continue;
            };
            let bytes = std::fs::read(entry.path()).unwrap();
            let Ok(header) = LongPageHeader::parse(&bytes) else {
                continue; // Preallocated, not yet written.
            };
            assert_eq!(header.major, control.major);
            let size = control.segment_size;
            if header.page_address != name.start(size).unwrap() {
                continue; // Recycled under a future name.
            }
            let length = bytes.len() as u64;
            check_segment_header(&header, name, control.system_id, size, length).unwrap();
            match name.timeline.get() {
                1 => old += 1,
                _ if header.timeline.get() == 1 => copied += 1,
                _ => new += 1,
            }
        }
        assert!(old >= 3 && new >= 1 && copied == 1, "{old} {new} {copied}");
    }

    #[test]
    fn each_wrong_segment_is_refused_by_what_is_wrong_with_it() {
        let header = LongPageHeader::parse(&made()).unwrap();
        let name: SegmentName = "000000030000000000000005".parse().unwrap();
        let (id, size) = (SystemId(77), SegmentSize::DEFAULT);
        let check = |name: SegmentName, id, size, length| {
            check_segment_header(&header, name, id, size, length)
                .map_err(|error| error.why)
                .err()
                .unwrap_or_default()
        };
        assert_eq!(check(name, id, size, 16 << 20), "");
        assert!(check(name, SystemId(78), size, 16 << 20).contains("cluster 77"));
        assert!(check(name, id, size, 100).contains("100 bytes"));
        let bigger = SegmentSize::new(64 << 20).unwrap();
        assert!(check(name, id, bigger, 64 << 20).contains("16 MiB"));
        let next = "000000030000000000000006".parse().unwrap();
        assert!(check(next, id, size, 16 << 20).contains("0/5000000"));
        let older = "000000010000000000000005".parse().unwrap();
        assert!(check(older, id, size, 16 << 20).contains("later timeline 2"));
    }

    #[test]
    fn a_header_with_any_wrong_field_is_refused() {
        for (at, value) in [(0, 0x06), (2, 1), (3, 1), (4, 0), (32, 1), (36, 1)] {
            let mut bytes = made();
            bytes[at] = value;
            assert!(LongPageHeader::parse(&bytes).is_err(), "byte {at}");
        }
        assert!(LongPageHeader::parse(&made()[..39]).is_err());
        assert!(LongPageHeader::parse(&[0; 8192]).is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..64), at in 0usize..40, value: u8
        ) {
            let _ = LongPageHeader::parse(&bytes);
            let mut bytes = made();
            bytes[at] = value;
            let _ = LongPageHeader::parse(&bytes);
        }
    }
}
