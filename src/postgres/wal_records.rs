//! Walking the records of one WAL segment, to learn two things that PostgreSQL tells only when
//! it is too late: when the transactions in it ended (whether a recovery to a time finds a
//! commit to stop at), and which tablespaces it creates (where replay would write outside the
//! data directory).
//!
//! It verifies no checksums and understands no other record. Facts: `XLogRecord` in
//! `src/include/access/xlogrecord.h`, `XLogPageHeaderData` in `xlog_internal.h`,
//! `xl_xact_commit` in `xact.h`, `recoveryStopsBefore` in `xlogrecovery.c`,
//! `xl_tblspc_create_rec` in `commands/tablespace.h`.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use jiff::Timestamp;

use super::wal_page::{LONG_HEADER_SIZE, LongPageHeader};
use super::{FormatError, Lsn};

const SHORT_HEADER_SIZE: usize = 24;
const RECORD_HEADER_SIZE: usize = 24;
/// As much of a record as holds what we look at: its header, an origin, a top transaction id,
/// the length of its data, a tablespace's oid and path (MAXPGPATH).
const HEAD: usize = RECORD_HEADER_SIZE + 3 + 5 + 5 + 4 + 1024;
/// `RM_TBLSPC_ID`.
const TABLESPACES: u8 = 5;
/// `RM_XACT_ID`.
const TRANSACTIONS: u8 = 1;
/// Commit, abort, and the same of prepared transactions: where a recovery to a time stops.
const ENDS: [u8; 4] = [0x00, 0x20, 0x30, 0x40];
/// PostgreSQL counts from 2000-01-01.
const EPOCH: i64 = 946_684_800_000_000;

/// The end of a transaction, committed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionEnd {
    /// The server's clock.
    pub time: Timestamp,
    /// Where its record begins.
    pub lsn: Lsn,
}

/// A tablespace that a record creates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedTablespace {
    /// Its oid.
    pub oid: u32,
    /// Where replay would create it. Unknown where the record goes on in the next segment.
    pub path: Option<PathBuf>,
}

/// The tablespaces that records which begin in this segment create outside the data directory.
pub fn created_tablespaces(
    segment: impl Read,
) -> std::io::Result<Result<Vec<CreatedTablespace>, FormatError>> {
    Ok(walk(segment)?.map(|mut walk| {
        // A record that is not complete here is not looked at again with its rest.
        if let Some(record) = walk.record.take().filter(|_| walk.left > 0) {
            walk.tablespaces.extend(created_tablespace(&record, false));
        }
        walk.tablespaces
    }))
}

/// The latest end of a transaction among the records that begin in this segment. None where
/// there is no such record.
///
/// Reading ends at the first page or record that is none, as replay does.
pub fn latest_transaction_end(
    segment: impl Read,
) -> std::io::Result<Result<Option<TransactionEnd>, FormatError>> {
    Ok(walk(segment)?.map(|walk| walk.latest))
}

fn walk(mut segment: impl Read) -> std::io::Result<Result<Walk, FormatError>> {
    let mut first = [0; LONG_HEADER_SIZE];
    segment.read_exact(&mut first)?;
    let header = match LongPageHeader::parse(&first) {
        Ok(header) => header,
        Err(error) => return Ok(Err(error)),
    };
    let mut walk = Walk {
        position: header.page_address,
        record: None,
        begin: header.page_address,
        left: 0,
        padding: 0,
        latest: None,
        tablespaces: Vec::new(),
    };
    let mut page = vec![0; header.wal_block_size as usize];
    page[..LONG_HEADER_SIZE].copy_from_slice(&first);
    segment.read_exact(&mut page[LONG_HEADER_SIZE..])?;
    let mut begin = LONG_HEADER_SIZE;
    let mut address = header.page_address;
    loop {
        let expected = address.0.to_le_bytes();
        if page[..2] != first[..2] || page[8..16] != expected || !walk.page(&page, begin) {
            break;
        }
        begin = SHORT_HEADER_SIZE;
        address = Lsn(address.0 + page.len() as u64);
        if address.0 >= header.page_address.0 + header.segment_size.bytes() {
            break;
        }
        segment.read_exact(&mut page)?;
    }
    Ok(Ok(walk))
}

struct Walk {
    /// Where the next byte lies.
    position: Lsn,
    /// The head of the record that is being read; none of one that is only passed over.
    record: Option<Vec<u8>>,
    /// Where it began.
    begin: Lsn,
    /// Its bytes that are still to come; 0 between two records.
    left: u64,
    /// Records are aligned to eight bytes.
    padding: u64,
    latest: Option<TransactionEnd>,
    tablespaces: Vec<CreatedTablespace>,
}

impl Walk {
    /// Walks over the content of one page. False where no record follows any more.
    fn page(&mut self, page: &[u8], begin: usize) -> bool {
        self.position = Lsn(self.position.0 + begin as u64);
        let rest = u64::from(u32_at(page, 16));
        if rest != self.left {
            // It began in the segment before, or was given up by a crash.
            self.record = None;
            self.left = rest;
            self.padding = padding(rest);
        }
        let mut content = &page[begin..];
        while !content.is_empty() {
            if self.left == 0 && self.padding == 0 {
                // A record's length is never split: it lies aligned, with eight bytes or more.
                let Some(length) = content.first_chunk().map(|b| u32::from_le_bytes(*b)) else {
                    return false;
                };
                if (length as usize) < RECORD_HEADER_SIZE {
                    return false;
                }
                self.begin = self.position;
                self.left = u64::from(length);
                self.padding = padding(self.left);
                self.record = Some(Vec::with_capacity(HEAD));
            }
            let part = self.left.min(content.len() as u64) as usize;
            if let Some(record) = &mut self.record {
                let wanted = HEAD.saturating_sub(record.len()).min(part);
                record.extend_from_slice(&content[..wanted]);
            }
            self.left -= part as u64;
            let skipped = match self.left {
                0 => self.padding.min((content.len() - part) as u64) as usize,
                _ => 0,
            };
            self.padding -= skipped as u64;
            self.position = Lsn(self.position.0 + (part + skipped) as u64);
            content = &content[part + skipped..];
            if self.left == 0 && part > 0 {
                self.end_of_record();
            }
        }
        true
    }

    fn end_of_record(&mut self) {
        let Some(record) = self.record.take() else {
            return;
        };
        if let Some(time) = transaction_end(&record)
            && self.latest.is_none_or(|latest| latest.time <= time)
        {
            let lsn = self.begin;
            self.latest = Some(TransactionEnd { time, lsn });
        }
        self.tablespaces.extend(created_tablespace(&record, true));
    }
}

/// What a record creates, if it creates a tablespace outside the data directory. One in place
/// has an empty path.
fn created_tablespace(record: &[u8], complete: bool) -> Option<CreatedTablespace> {
    let (info, manager) = (*record.get(16)?, *record.get(17)?);
    if manager != TABLESPACES || info & 0xF0 != 0 {
        return None;
    }
    let data = main_data(record).filter(|data| complete && data.len() > 4);
    let Some((oid, path)) = data.and_then(|data| data.split_first_chunk()) else {
        return Some(CreatedTablespace { oid: 0, path: None });
    };
    let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
    (!path.is_empty()).then(|| CreatedTablespace {
        oid: u32::from_le_bytes(*oid),
        path: Some(PathBuf::from(OsStr::from_bytes(path))),
    })
}

/// The data of a record that names no blocks: it follows the header, after an origin and a top
/// transaction id at most.
fn main_data(record: &[u8]) -> Option<&[u8]> {
    let mut rest = record.get(RECORD_HEADER_SIZE..)?;
    loop {
        let (kind, after) = rest.split_first()?;
        rest = match kind {
            253 => after.get(2..)?,
            252 => after.get(4..)?,
            255 => return after.get(1..),
            254 => return after.get(4..),
            _ => return None,
        };
    }
}

fn padding(length: u64) -> u64 {
    length.wrapping_neg() % 8
}

/// The time in a record that ends a transaction.
fn transaction_end(record: &[u8]) -> Option<Timestamp> {
    let (info, manager) = (*record.get(16)?, *record.get(17)?);
    if manager != TRANSACTIONS || !ENDS.contains(&(info & 0x70)) {
        return None;
    }
    let time = main_data(record)?.first_chunk()?;
    timestamp(i64::from_le_bytes(*time))
}

fn timestamp(microseconds: i64) -> Option<Timestamp> {
    Timestamp::from_microsecond(microseconds.checked_add(EPOCH)?).ok()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::testing::Server;
    use proptest::prelude::*;

    #[test]
    fn the_last_commit_of_a_live_server_is_found_at_its_place_and_time() {
        let mut server = Server::create(&["--wal-segsize=1"], "track_commit_timestamp = on\n");
        server.launch();
        server.sql("create table t as select repeat('x', 100) as x from generate_series(1, 20000)");
        // Records of every length, over many pages, and a rollback at the end.
        server.sql("insert into t select repeat('y', n) from generate_series(1, 1500) n");
        let before = server.sql("select pg_walfile_name(pg_current_wal_lsn())");
        let told = server
            .sql("begin; insert into t values ('z'); select pg_current_wal_insert_lsn(); commit");
        let stamp = server.sql(
            "select (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint from t where x = 'z'",
        );
        let file = server.sql("select pg_walfile_name(pg_switch_wal())");
        assert_eq!(file, before, "it fits into one segment");
        let path = server.data().join("pg_wal").join(file.trim());
        let bytes = std::fs::read(path).unwrap();
        let found = latest_transaction_end(&bytes[..])
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(found.time.as_microsecond().to_string(), stamp.trim());
        // The insertion's end is aligned: the commit begins there.
        let told: Lsn = told.lines().find_map(|line| line.parse().ok()).unwrap();
        assert!(
            found.lsn >= told && found.lsn.since(told) < 200,
            "{} {told}",
            found.lsn
        );
    }

    proptest! {
        #[test]
        fn garbage_is_an_end_or_an_error_and_never_a_panic(
            rest in proptest::collection::vec(any::<u8>(), 0..70_000)
        ) {
            let mut bytes = vec![0; 40];
            bytes[..4].copy_from_slice(&[0x10, 0xD1, 2, 0]);
            bytes[4] = 1;
            bytes[24] = 1;
            bytes[32..36].copy_from_slice(&(1u32 << 20).to_le_bytes());
            bytes[36..40].copy_from_slice(&8192u32.to_le_bytes());
            bytes.extend(rest);
            let _ = latest_transaction_end(&bytes[..]);
        }
    }
}
