//! Whether one WAL segment goes on where another ends: what its records say of themselves, of
//! the record before the first, and of the one that crosses its end.
//!
//! This tells the WAL of two servers apart that wrote under one name. It walks over whole
//! records and verifies their checksums and links, as replay does, but looks into none except
//! those that begin a timeline. Facts: `XLogRecord` in `src/include/access/xlogrecord.h`,
//! `XLogPageHeaderData` in `xlog_internal.h`, `XLogDecodeNextRecord` in `xlogreader.c`,
//! `xl_end_of_recovery` and `CheckPoint` in `pg_control.h`.

use std::io::Read;

use super::wal_page::{LONG_HEADER_SIZE, LongPageHeader};
use super::{FormatError, Lsn, TimelineId};

const SHORT_HEADER_SIZE: usize = 24;
const RECORD_HEADER_SIZE: usize = 24;
/// Where `xl_crc` lies in a record's header; the checksum covers what is before it.
const CRC_AT: usize = 20;
/// `XLP_FIRST_IS_CONTRECORD`: the page begins inside a record.
const CONTINUES: u16 = 1;
/// `XLP_FIRST_IS_OVERWRITE_CONTRECORD`: what would have continued was lost in a crash.
const OVERWRITES: u16 = 8;
/// As much of a record that began in the segment before as is kept, so that its checksum can be
/// verified across the border: more than any but the longest records have.
const LONGEST_REST: usize = 1 << 20;
/// As much of a record's content as holds what begins a timeline.
const HEAD: usize = 32;

/// What a segment's records say.
#[derive(Debug, Clone)]
pub struct Chain {
    /// Its first page's header.
    pub header: LongPageHeader,
    /// Where its first record begins that begins in it, and the begin of the record before.
    pub first: Option<(Lsn, Lsn)>,
    /// Where its last record begins.
    pub last: Option<Lsn>,
    /// How it ends.
    pub end: End,
    /// Where it changes to another timeline.
    pub switch: Option<Switch>,
    /// Bytes of the record that began before.
    rest_length: u64,
    /// Those bytes, as far as they are here, if they are not too many.
    rest: Vec<u8>,
    /// Where the last record begins that is whole here.
    last_whole: Option<Lsn>,
}

/// How the records of a segment end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// At its very end, between two records.
    Full,
    /// Inside a record that began here.
    Cut(Cut),
    /// Inside a record that began before this segment; so many bytes of it are still to come.
    Through(u64),
    /// With a WAL switch: the next segment begins with a record.
    Switched,
    /// Inside the segment: no valid record follows. Replay ends there.
    Stopped {
        /// Where the next record should be.
        at: Lsn,
        /// Why what is there is none.
        why: &'static str,
    },
}

/// The beginning of a record that goes on in the next segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    begin: Lsn,
    header: Vec<u8>,
    checksum: u32,
    left: u64,
}

/// The record that begins a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// The switch point, as the history file names it, or up to a page header behind it.
    pub at: Lsn,
    /// The timeline that was left.
    pub from: TimelineId,
    /// The timeline that begins.
    pub to: TimelineId,
}

impl Switch {
    /// Whether this is the switch point that a history file names: records begin behind a
    /// page's header, the switch point may lie before it.
    pub fn is_at(&self, named: Lsn) -> bool {
        let behind = self.at.since(named);
        self.at >= named
            && (behind == 0
                || behind == SHORT_HEADER_SIZE as u64
                || behind == LONG_HEADER_SIZE as u64)
    }
}

/// Whether a segment goes on where the one before it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// The records chain on.
    Follows,
    /// They do not, and why.
    Breaks(String),
    /// Neither can be told: one of the two holds no record.
    Unknown,
}

/// Reads a segment.
///
/// # Errors
/// Reading failed, or (the inner one) its first page is not that of a segment. Records that are
/// not valid are no error: [`Chain::end`] tells.
pub fn read(mut segment: impl Read) -> std::io::Result<Result<Chain, FormatError>> {
    let mut first = [0; LONG_HEADER_SIZE];
    segment.read_exact(&mut first)?;
    let header = match LongPageHeader::parse(&first) {
        Ok(header) => header,
        Err(error) => return Ok(Err(error)),
    };
    let mut page = vec![0; header.wal_block_size as usize];
    page[..LONG_HEADER_SIZE].copy_from_slice(&first);
    segment.read_exact(&mut page[LONG_HEADER_SIZE..])?;
    let mut walk = Walk::new(header, u64::from(u32_at(&first, 16)));
    let mut address = header.page_address;
    let end = Lsn(address.0 + header.segment_size.bytes());
    let mut begin = LONG_HEADER_SIZE;
    loop {
        walk.position = Lsn(address.0 + begin as u64);
        if let Err(end) = walk.content(&page[begin..]) {
            return Ok(Ok(walk.finish(Some(end))));
        }
        address = Lsn(address.0 + page.len() as u64);
        if address >= end {
            return Ok(Ok(walk.finish(None)));
        }
        segment.read_exact(&mut page)?;
        let right = page[..2] == first[..2] && page[8..16] == address.0.to_le_bytes();
        if let Err(end) = walk.page_header(right, &page) {
            return Ok(Ok(walk.finish(Some(end))));
        }
        begin = SHORT_HEADER_SIZE;
    }
}

/// Whether `next` goes on where `previous` ends. The caller has seen to it that their positions
/// adjoin.
pub fn follows(previous: &Chain, next: &Chain) -> Fit {
    let overwritten = next.header.info & OVERWRITES != 0;
    let (expected, before) = match &previous.end {
        End::Stopped { at, why } => {
            return Fit::Breaks(format!("the WAL of the segment before ends at {at}: {why}"));
        }
        End::Cut(_) if overwritten => (0, previous.last_whole),
        End::Cut(cut) => (cut.left, Some(cut.begin)),
        End::Through(_) if overwritten => (0, None),
        End::Through(left) => (*left, None),
        End::Full | End::Switched => (0, previous.last),
    };
    if next.rest_length != expected {
        return Fit::Breaks(format!(
            "it begins with {} bytes of a record, the segment before leaves {expected}",
            next.rest_length
        ));
    }
    if let (Some(before), Some((begin, link))) = (before, next.first)
        && before != link
    {
        return Fit::Breaks(format!(
            "its record at {begin} names {link} as the one before, which begins at {before}"
        ));
    }
    if let End::Cut(cut) = &previous.end
        && !overwritten
        && next.rest.len() as u64 == cut.left
        && !cut.completed_by(&next.rest)
    {
        return Fit::Breaks(format!(
            "the record at {}, which crosses into it, has a wrong checksum",
            cut.begin
        ));
    }
    match (before, next.first) {
        (None, _) | (_, None) if expected == 0 => Fit::Unknown,
        _ => Fit::Follows,
    }
}

impl Cut {
    fn completed_by(&self, rest: &[u8]) -> bool {
        let mut record = Record {
            header: self.header.clone(),
            checksum: self.checksum,
            ..Record::new(self.begin, self.left)
        };
        record.add(rest);
        record.is_valid()
    }
}

/// A record that is being read.
struct Record {
    begin: Lsn,
    header: Vec<u8>,
    checksum: u32,
    head: Vec<u8>,
    left: u64,
}

impl Record {
    fn new(begin: Lsn, length: u64) -> Self {
        Self {
            begin,
            header: Vec::with_capacity(RECORD_HEADER_SIZE),
            checksum: 0,
            head: Vec::new(),
            left: length,
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.left -= (bytes.len() as u64).min(self.left);
        let missing = RECORD_HEADER_SIZE.saturating_sub(self.header.len());
        let (header, content) = bytes.split_at(missing.min(bytes.len()));
        self.header.extend_from_slice(header);
        self.checksum = crc32c::crc32c_append(self.checksum, content);
        let wanted = HEAD.saturating_sub(self.head.len()).min(content.len());
        self.head.extend_from_slice(&content[..wanted]);
    }

    /// The begin of the record before, once the header is whole.
    fn previous(&self) -> Option<Lsn> {
        (self.header.len() == RECORD_HEADER_SIZE).then(|| Lsn(u64_at(&self.header, 8)))
    }

    fn is_valid(&self) -> bool {
        self.header.len() == RECORD_HEADER_SIZE
            && crc32c::crc32c_append(self.checksum, &self.header[..CRC_AT])
                == u32_at(&self.header, CRC_AT)
    }

    /// `RM_XLOG_ID` with `XLOG_SWITCH`.
    fn switches_wal(&self) -> bool {
        self.kind() == Some((0, 0x40))
    }

    /// `XLOG_END_OF_RECOVERY` or, where recovery ended with a checkpoint,
    /// `XLOG_CHECKPOINT_SHUTDOWN`: both hold the two timelines behind eight bytes.
    fn timeline_switch(&self) -> Option<Switch> {
        let data = match self.kind() {
            // XLR_BLOCK_ID_DATA_SHORT, and the length.
            Some((0, 0x90 | 0x00)) if self.head.first() == Some(&255) => self.head.get(2..18)?,
            _ => return None,
        };
        let to = TimelineId::new(u32_at(data, 8)).ok()?;
        let from = TimelineId::new(u32_at(data, 12)).ok()?;
        let at = self.begin;
        (from != to).then_some(Switch { at, from, to })
    }

    fn kind(&self) -> Option<(u8, u8)> {
        Some((*self.header.get(17)?, self.header.get(16)? & 0xF0))
    }
}

struct Walk {
    position: Lsn,
    /// Bytes of the record from before that are still to come.
    rest_left: u64,
    record: Option<Record>,
    chain: Chain,
}

impl Walk {
    fn new(header: LongPageHeader, rest: u64) -> Self {
        let rest_length = if header.info & CONTINUES != 0 {
            rest
        } else {
            0
        };
        Self {
            position: header.page_address,
            rest_left: rest_length,
            record: None,
            chain: Chain {
                header,
                first: None,
                last: None,
                end: End::Full,
                switch: None,
                rest_length,
                rest: Vec::new(),
                last_whole: None,
            },
        }
    }

    /// Looks at the header of a page that is not the first.
    fn page_header(&mut self, right: bool, page: &[u8]) -> Result<(), End> {
        let left = self.record.as_ref().map_or(self.rest_left, |r| r.left);
        let info = u16::from_le_bytes([page[2], page[3]]);
        let rest = u64::from(u32_at(page, 16));
        let why = match (right, info & CONTINUES != 0) {
            (false, _) => "the page there was not written yet",
            (true, _) if info & OVERWRITES != 0 => {
                // Given up by a crash: the next record links to the one before it.
                self.chain.last = self.chain.last_whole;
                self.record = None;
                self.rest_left = 0;
                return Ok(());
            }
            (true, true) if left > 0 && rest == left => return Ok(()),
            (true, false) if left == 0 => return Ok(()),
            _ => "the next page does not continue the record",
        };
        Err(self.stopped(why))
    }

    fn stopped(&self, why: &'static str) -> End {
        let at = self.record.as_ref().map_or(self.position, |r| r.begin);
        End::Stopped { at, why }
    }

    /// Walks over the content of one page.
    fn content(&mut self, mut content: &[u8]) -> Result<(), End> {
        let part = self.rest_left.min(content.len() as u64) as usize;
        if self.chain.rest_length <= LONGEST_REST as u64 {
            self.chain.rest.extend_from_slice(&content[..part]);
        }
        self.rest_left -= part as u64;
        content = self.skip(content, part, self.rest_left);
        while !content.is_empty() {
            let mut record = match self.record.take() {
                Some(record) => record,
                None => self.begin(content)?,
            };
            let part = record.left.min(content.len() as u64) as usize;
            record.add(&content[..part]);
            let left = record.left;
            let checked = self.check_link(&record);
            let ended = if left == 0 {
                Some(record)
            } else {
                self.record.replace(record)
            };
            checked?;
            if let Some(record) = ended {
                self.end(&record)?;
            }
            content = self.skip(content, part, left);
        }
        Ok(())
    }

    /// Passes over `part` and, behind the end of a record, over the padding to eight bytes.
    fn skip<'a>(&mut self, content: &'a [u8], part: usize, left: u64) -> &'a [u8] {
        let aligned = match left {
            0 => (self.position.0 + part as u64).next_multiple_of(8) - self.position.0,
            _ => part as u64,
        };
        let skipped = (aligned as usize).min(content.len());
        self.position = Lsn(self.position.0 + skipped as u64);
        &content[skipped..]
    }

    fn begin(&mut self, content: &[u8]) -> Result<Record, End> {
        // A record's length is never split: it lies aligned, with eight bytes or more.
        let length = u32_at(content, 0);
        if length == 0 {
            return Err(self.stopped("nothing is written there"));
        }
        if (length as usize) < RECORD_HEADER_SIZE {
            return Err(self.stopped("what is there is no record"));
        }
        Ok(Record::new(self.position, u64::from(length)))
    }

    /// Notes a record once its header is whole, and verifies its link.
    fn check_link(&mut self, record: &Record) -> Result<(), End> {
        let Some(previous) = record.previous() else {
            return Ok(());
        };
        if self.chain.last == Some(record.begin) {
            return Ok(());
        }
        match self.chain.last {
            Some(last) if last != previous => {
                let (at, why) = (record.begin, "it does not link to the record before it");
                return Err(End::Stopped { at, why });
            }
            Some(_) => {}
            None if self.chain.first.is_none() => {
                self.chain.first = Some((record.begin, previous));
            }
            None => {}
        }
        self.chain.last = Some(record.begin);
        Ok(())
    }

    fn end(&mut self, record: &Record) -> Result<(), End> {
        if !record.is_valid() {
            let (at, why) = (record.begin, "the record there has a wrong checksum");
            return Err(End::Stopped { at, why });
        }
        self.chain.last_whole = Some(record.begin);
        if let Some(switch) = record.timeline_switch() {
            self.chain.switch = Some(switch);
        }
        match record.switches_wal() {
            true => Err(End::Switched),
            false => Ok(()),
        }
    }

    fn finish(mut self, end: Option<End>) -> Chain {
        self.chain.end = match (end, self.record) {
            (Some(end), _) => end,
            (None, Some(record)) => End::Cut(Cut {
                begin: record.begin,
                header: record.header,
                checksum: record.checksum,
                left: record.left,
            }),
            (None, None) if self.rest_left > 0 => End::Through(self.rest_left),
            (None, None) => End::Full,
        };
        self.chain
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests;
