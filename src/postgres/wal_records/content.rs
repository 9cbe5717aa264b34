//! What the bytes of one record say. It gets them in one piece and knows nothing of pages.
//!
//! Facts, the same in PostgreSQL 14 to 18 where nothing else is said: `XLogRecord` in
//! `src/include/access/xlogrecord.h`; `xl_xact_commit` and what follows it in `xact.h`, in the
//! order of `ParseCommitRecord` in `xactdesc.c`; `xl_xact_prepare` in `xact.h`;
//! `xl_restore_point` in `xlog_internal.h`; `xl_logical_message` in
//! `replication/message.h`; `xl_running_xacts` in `storage/standbydefs.h`;
//! `xl_tblspc_create_rec` in
//! `commands/tablespace.h`; the numbers of resource managers in `access/rmgrlist.h`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use jiff::Timestamp;

use super::{Action, Content, CreatedTablespace, Transaction};

/// `sizeof(XLogRecord)`.
pub(super) const RECORD_HEADER_SIZE: usize = 24;
/// `RM_XLOG_ID`.
const XLOG: u8 = 0;
/// `RM_XACT_ID`.
const TRANSACTIONS: u8 = 1;
/// `RM_TBLSPC_ID`.
const TABLESPACES: u8 = 5;
/// `RM_STANDBY_ID`.
const STANDBY: u8 = 8;
/// `RM_LOGICALMSG_ID`, the last manager of PostgreSQL's own; those of extensions have 128 and
/// more.
const MESSAGES: u8 = 21;
/// `XLOG_RESTORE_POINT`.
const RESTORE_POINT: u8 = 0x70;
/// `XLOG_RUNNING_XACTS`.
const RUNNING: u8 = 0x10;
/// `XLOG_TBLSPC_CREATE`.
const TABLESPACE_CREATE: u8 = 0x00;
/// `XLOG_XACT_HAS_INFO`.
const HAS_INFO: u8 = 0x80;
/// PostgreSQL counts microseconds from 2000-01-01.
const EPOCH: i64 = 946_684_800_000_000;

/// The fixed beginning of a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    /// Bytes of the whole record.
    pub(super) length: u32,
    xid: u32,
    /// Where the record before it begins.
    pub(super) previous: u64,
    info: u8,
    manager: u8,
    /// CRC-32C of the rest, then of this header up to here.
    pub(super) checksum: u32,
}

impl Header {
    /// Reads it from a record's beginning; none where that is too short, or no header.
    pub(super) fn parse(record: &[u8]) -> Option<Self> {
        let header: &[u8; RECORD_HEADER_SIZE] = record.first_chunk()?;
        let manager = header[17];
        let known = manager <= MESSAGES || manager >= 128;
        known.then_some(Self {
            length: u32_at(header, 0)?,
            xid: u32_at(header, 4)?,
            previous: u64_at(header, 8)?,
            info: header[16],
            manager,
            checksum: u32_at(header, 20)?,
        })
    }

    /// Whether the record is one of those that are read.
    pub(super) fn is_wanted(&self) -> bool {
        match self.manager {
            XLOG => self.info & 0xF0 == RESTORE_POINT,
            TRANSACTIONS => action(self.info).is_some(),
            TABLESPACES => self.creates_tablespace(),
            STANDBY => self.info & 0xF0 == RUNNING,
            MESSAGES => true,
            _ => false,
        }
    }

    /// Whether it creates a tablespace, perhaps in the data directory.
    pub(super) fn creates_tablespace(&self) -> bool {
        self.manager == TABLESPACES && self.info & 0xF0 == TABLESPACE_CREATE
    }
}

/// What a record says, if it is one that is read. `record` is its beginning where it is too
/// long to be kept.
pub(super) fn parse(record: &[u8], major: u32) -> Option<Content> {
    let header = Header::parse(record)?;
    let data = main_data(record)?;
    match header.manager {
        XLOG => restore_point(data),
        TRANSACTIONS => transaction(&header, data, major).map(Content::Transaction),
        // Two counts and whether there are more come before the next id, and then this one.
        STANDBY => u32_at(data, 16).map(|oldest| Content::Running { oldest }),
        MESSAGES => message(data),
        _ => tablespace(data).map(Content::Tablespace),
    }
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

fn action(info: u8) -> Option<Action> {
    Some(match info & 0x70 {
        0x00 => Action::Commit,
        0x10 => Action::Prepare,
        0x20 => Action::Abort,
        0x30 => Action::CommitPrepared,
        0x40 => Action::AbortPrepared,
        _ => return None,
    })
}

fn transaction(header: &Header, data: &[u8], major: u32) -> Option<Transaction> {
    let action = action(header.info)?;
    let (xid, time) = match action {
        // Magic, length, xid and database come before the time.
        Action::Prepare => (Some(u32_at(data, 8)?), u64_at(data, 16)?),
        Action::Commit | Action::Abort => (Some(header.xid), u64_at(data, 0)?),
        Action::CommitPrepared | Action::AbortPrepared => {
            (prepared_xid(header, data, major), u64_at(data, 0)?)
        }
    };
    let time = timestamp(time)?;
    Some(Transaction { action, xid, time })
}

/// The id of the prepared transaction that a record ends: it follows lists of which each
/// begins with its number of items.
fn prepared_xid(header: &Header, data: &[u8], major: u32) -> Option<u32> {
    const DATABASE: u32 = 1 << 0;
    const TWO_PHASE: u32 = 1 << 4;
    if header.info & HAS_INFO == 0 {
        return None;
    }
    let present = u32_at(data, 8)?;
    let mut at = 12;
    if present & DATABASE != 0 {
        at += 8;
    }
    // PostgreSQL 18 numbers statistics by 64 bits.
    let statistics = if major >= 18 { 16 } else { 12 };
    // Subtransactions, files, dropped statistics, invalidations.
    for (flag, size) in [
        (1 << 1, 4),
        (1 << 2, 12),
        (1 << 8, statistics),
        (1 << 3, 16),
    ] {
        if present & flag != 0 {
            let items = u32_at(data, at)? as usize;
            at = items.checked_mul(size)?.checked_add(at + 4)?;
        }
    }
    (present & TWO_PHASE != 0).then(|| u32_at(data, at))?
}

fn restore_point(data: &[u8]) -> Option<Content> {
    let time = timestamp(u64_at(data, 0)?)?;
    // MAXFNAMELEN.
    let name = data.get(8..8 + 64)?;
    let name = name.split(|byte| *byte == 0).next()?;
    let name = String::from_utf8_lossy(name).into_owned();
    Some(Content::RestorePoint { name, time })
}

/// Database, whether it is transactional, and two lengths come before the prefix with its
/// zero byte, and the text.
fn message(data: &[u8]) -> Option<Content> {
    let length = |at| usize::try_from(u64_at(data, at)?).ok();
    let (prefix, text) = (length(8)?, length(16)?);
    let end = 24_usize.checked_add(prefix)?;
    let text = data.get(end..end.checked_add(text)?)?;
    let prefix = data.get(24..end)?.strip_suffix(b"\0")?;
    let utf8 = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    Some(Content::Message {
        prefix: utf8(prefix)?,
        text: utf8(text)?,
    })
}

/// One in place, below the data directory, has an empty path.
fn tablespace(data: &[u8]) -> Option<CreatedTablespace> {
    let (oid, path) = data.split_first_chunk()?;
    let path = path.split(|byte| *byte == 0).next()?;
    (!path.is_empty()).then(|| CreatedTablespace {
        oid: u32::from_le_bytes(*oid),
        path: Some(PathBuf::from(OsStr::from_bytes(path))),
    })
}

fn timestamp(microseconds: u64) -> Option<Timestamp> {
    let microseconds = (microseconds as i64).checked_add(EPOCH)?;
    Timestamp::from_microsecond(microseconds).ok()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}
