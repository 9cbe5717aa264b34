//! Putting records together from the pages of consecutive segments.
//!
//! Facts: `XLogPageHeaderData` in `src/include/access/xlog_internal.h`, `ValidXLogRecordHeader`
//! and `ValidXLogRecord` in `xlogreader.c`.

use std::io::Read;

use super::content::{self, Header, RECORD_HEADER_SIZE};
use super::{CreatedTablespace, WalRecord};
use crate::postgres::wal_page::{LONG_HEADER_SIZE, LongPageHeader};
use crate::postgres::{FormatError, Lsn};

const SHORT_HEADER_SIZE: usize = 24;
/// The largest record that is kept whole: a hundred thousand subtransactions and as many
/// files. Of what is longer only the beginning is read.
const LARGEST: usize = 4 << 20;
/// No record is longer (`XLogRecordMaxSize` is less; PostgreSQL before 16 allows this).
const LONGEST: u32 = 1 << 30;

/// Reads consecutive segments, one after the other.
///
/// Memory is one WAL page and at most 4 MiB of one record. A record that goes on in the next
/// segment is handed out when that is read. Segments that do not follow each other may be read,
/// too: what was left unfinished is then forgotten.
#[derive(Debug, Default)]
pub struct WalReader {
    page: Vec<u8>,
    major: u32,
    /// Where the next segment begins that follows what was read.
    next_segment: Lsn,
    /// Where the next byte lies.
    position: Lsn,
    /// Where the record began that is being read.
    start: Lsn,
    /// Its bytes that are still to come; 0 between two records.
    left: u64,
    /// Records are aligned to eight bytes.
    padding: u64,
    keep: Keep,
    /// The beginning of the record, as much of it as is kept.
    kept: Vec<u8>,
    /// Where the last complete record began, if that is known: the next one names it.
    previous: Option<Lsn>,
}

/// What is kept of the record that is being read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Keep {
    /// It began before what was read.
    #[default]
    Rest,
    /// It is passed over.
    Nothing,
    /// Its header tells.
    Header,
    /// All of it.
    Whole,
}

/// How far a segment is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    End,
    /// The record that was begun before is complete.
    Complete,
}

/// Why a segment cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WalReadError {
    /// Reading failed, or the segment is shorter than it says.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// It is no segment of PostgreSQL 14 to 18.
    #[error(transparent)]
    Format(#[from] FormatError),
}

impl WalReader {
    /// A reader that has read nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the next segment and calls `visit` for each record that is complete with it, in
    /// their order. Ends without an error at the first page or record that is none, as replay
    /// does: after a switch of segments, at the end of WAL. Returns the segment's header.
    ///
    /// # Errors
    /// The segment cannot be read. What was unfinished is forgotten then.
    pub fn read(
        &mut self,
        segment: impl Read,
        visit: impl FnMut(WalRecord),
    ) -> Result<LongPageHeader, WalReadError> {
        self.read_until(segment, Until::End, visit)
    }

    /// The same, but only up to the end of the record that is [unfinished](Self::is_unfinished).
    pub fn read_rest(
        &mut self,
        segment: impl Read,
        visit: impl FnMut(WalRecord),
    ) -> Result<LongPageHeader, WalReadError> {
        self.read_until(segment, Until::Complete, visit)
    }

    /// Whether a record goes on in the next segment that may be one to hand out.
    pub fn is_unfinished(&self) -> bool {
        self.left > 0 && matches!(self.keep, Keep::Header | Keep::Whole)
    }

    /// The tablespace that the unfinished record creates, at a place that is not known yet.
    pub(super) fn unfinished_tablespace(&self) -> Option<CreatedTablespace> {
        let header = Header::parse(&self.kept).filter(|_| self.is_unfinished())?;
        header
            .creates_tablespace()
            .then_some(CreatedTablespace { oid: 0, path: None })
    }

    fn read_until(
        &mut self,
        mut segment: impl Read,
        until: Until,
        mut visit: impl FnMut(WalRecord),
    ) -> Result<LongPageHeader, WalReadError> {
        let read = self.pages(&mut segment, until, &mut visit);
        if read.is_err() {
            self.forget();
        }
        read
    }

    fn pages(
        &mut self,
        segment: &mut impl Read,
        until: Until,
        visit: &mut impl FnMut(WalRecord),
    ) -> Result<LongPageHeader, WalReadError> {
        let mut first = [0; LONG_HEADER_SIZE];
        segment.read_exact(&mut first)?;
        let header = LongPageHeader::parse(&first)?;
        if header.page_address != self.next_segment || header.major != self.major {
            self.forget();
        }
        self.major = header.major;
        let size = header.segment_size.bytes();
        let end = header.page_address.0.checked_add(size).ok_or_else(|| {
            FormatError::new("WAL segment", format!("position {}", header.page_address))
        })?;
        self.next_segment = Lsn(end);
        let mut page = std::mem::take(&mut self.page);
        page.resize(header.wal_block_size as usize, 0);
        page[..LONG_HEADER_SIZE].copy_from_slice(&first);
        segment.read_exact(&mut page[LONG_HEADER_SIZE..])?;
        let mut address = header.page_address.0;
        let mut begin = LONG_HEADER_SIZE;
        loop {
            let valid = page[..2] == first[..2] && page[8..16] == address.to_le_bytes();
            self.position = Lsn(address);
            if !valid || !self.page(&page, begin, until, visit) {
                // What began before goes no further, nor does the chain of records.
                self.forget();
                break;
            }
            begin = SHORT_HEADER_SIZE;
            address += page.len() as u64;
            if address >= end || (until == Until::Complete && self.left == 0) {
                break;
            }
            segment.read_exact(&mut page)?;
        }
        self.page = page;
        Ok(header)
    }

    fn forget(&mut self) {
        self.left = 0;
        self.padding = 0;
        self.keep = Keep::Rest;
        self.previous = None;
    }

    /// Walks over the content of one page. False where no record follows any more.
    fn page(
        &mut self,
        page: &[u8],
        begin: usize,
        until: Until,
        visit: &mut impl FnMut(WalRecord),
    ) -> bool {
        let rest = page[16..20]
            .first_chunk()
            .map_or(0, |b| u32::from_le_bytes(*b));
        if u64::from(rest) != self.left {
            // It began before what was read, or was given up by a crash.
            self.keep = Keep::Rest;
            self.left = u64::from(rest);
            self.padding = padding(self.left);
        }
        self.position = Lsn(self.position.0 + begin as u64);
        let mut content = &page[begin..];
        while !content.is_empty() {
            if self.left == 0 && self.padding == 0 {
                if until == Until::Complete {
                    return true;
                }
                // A record's length is never split: it lies aligned, with eight bytes or more.
                let Some(length) = content.first_chunk().map(|b| u32::from_le_bytes(*b)) else {
                    return false;
                };
                if (length as usize) < RECORD_HEADER_SIZE || length > LONGEST {
                    return false;
                }
                self.start = self.position;
                self.left = u64::from(length);
                self.padding = padding(self.left);
                self.keep = Keep::Header;
                self.kept.clear();
            }
            let part = self.left.min(content.len() as u64) as usize;
            if !self.keep(&content[..part]) {
                return false;
            }
            self.left -= part as u64;
            let skipped = match self.left {
                0 => self.padding.min((content.len() - part) as u64) as usize,
                _ => 0,
            };
            self.padding -= skipped as u64;
            self.position = Lsn(self.position.0 + (part + skipped) as u64);
            content = &content[part + skipped..];
            if self.left == 0 && part > 0 && !self.end_of_record(visit) {
                return false;
            }
        }
        true
    }

    /// Takes the next bytes of a record. False where its header is none.
    fn keep(&mut self, mut part: &[u8]) -> bool {
        if self.keep == Keep::Header {
            let (header, rest) =
                part.split_at(part.len().min(RECORD_HEADER_SIZE - self.kept.len()));
            self.kept.extend_from_slice(header);
            part = rest;
            if self.kept.len() < RECORD_HEADER_SIZE {
                return true;
            }
            let Some(header) = Header::parse(&self.kept) else {
                return false;
            };
            let follows = match self.previous {
                Some(previous) => header.previous == previous.0,
                None => header.previous < self.start.0,
            };
            if !follows {
                return false;
            }
            self.keep = match header.is_wanted() {
                true => Keep::Whole,
                false => Keep::Nothing,
            };
        }
        if self.keep == Keep::Whole {
            let room = LARGEST.saturating_sub(self.kept.len()).min(part.len());
            self.kept.extend_from_slice(&part[..room]);
        }
        true
    }

    /// Hands out the record that is complete now. False where its checksum is wrong.
    fn end_of_record(&mut self, visit: &mut impl FnMut(WalRecord)) -> bool {
        self.previous = (self.keep != Keep::Rest).then_some(self.start);
        if self.keep != Keep::Whole {
            return true;
        }
        let Some(header) = Header::parse(&self.kept) else {
            return false;
        };
        let (fixed, data) = self.kept.split_at(RECORD_HEADER_SIZE);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(data), &fixed[..20]);
        let whole = self.kept.len() == header.length as usize;
        if whole && checksum != header.checksum {
            return false;
        }
        if let Some(content) = content::parse(&self.kept, self.major) {
            visit(WalRecord {
                start: self.start,
                end: self.position,
                content,
            });
        }
        true
    }
}

fn padding(length: u64) -> u64 {
    length.wrapping_neg() % 8
}
