//! Reading the tar archives that a server sends, and filling packs with their files.
//!
//! What PostgreSQL's tar holds: regular files, directories, and the links in pg_tblspc; names
//! of less than 100 bytes; sizes in octal, or base-256 where that is too small; before 15 no
//! blocks of zeros at the end (`src/port/tar.c`). backup_label and tablespace_map come first,
//! pg_control comes last: these three are kept for the last pack.

use std::io::Read;
use std::path::{Component, Path};

use jiff::Timestamp;

use super::agreement::Agreement;
use super::belongs;
use super::pieces::{Part, Pieces};
use crate::backup::file::FileRead;
use crate::backup::packer::{DonePack, Finishing, Pack, Packer};
use crate::backup::pages::{Damage, Pages};
use crate::backup::scan::{BATCH_BYTES, BATCH_MEMBERS};
use crate::error::{Error, Result};
use crate::postgres::layout::{self, EntryKind};
use crate::postgres::{Lsn, TimelineId};
use crate::repository::index::{Member, MemberKind};

/// Bytes that are read at once; a multiple of every page size.
const READ_SIZE: usize = 256 << 10;

/// backup_label and pg_control are small; a tablespace_map has a line for each tablespace.
const LARGEST_KEPT: u64 = 16 << 20;

/// A file that is kept for the last pack.
#[derive(Debug)]
pub struct Kept {
    /// As the index will say it.
    pub member: Member,
    /// All of it.
    pub content: Vec<u8>,
}

/// What is known when all has come.
#[derive(Debug)]
pub struct Streamed {
    /// `global/pg_control`, read last.
    pub control: Kept,
    /// `backup_label`
    pub label: Kept,
    /// `tablespace_map`; there is none without tablespaces.
    pub map: Option<Kept>,
    /// Where the backup ends.
    pub end: (Lsn, TimelineId),
}

/// What passes while archives are read.
struct Passing {
    agreement: Agreement,
    control: Option<Kept>,
    label: Option<Kept>,
    map: Option<Kept>,
}

/// Packs all archives, compares them with the server's manifest and reads to the backup's end.
/// Blocks; call it on a thread that may.
///
/// # Errors
/// Whatever the server says at any time, also after all data; archives that are not what
/// PostgreSQL sends; files that differ from the manifest.
pub fn pack_all(
    packer: &Packer,
    mut pieces: Pieces,
    pages: Pages,
    mut done: impl FnMut(DonePack) -> Result<()>,
) -> Result<Streamed> {
    let mut finishing = None;
    let mut passing = Passing {
        agreement: Agreement::default(),
        control: None,
        label: None,
        map: None,
    };
    let mut agreed = None;
    let end = loop {
        match pieces.next_part()? {
            Part::Archive(oid) => {
                let packed = pack_archive(packer, &mut pieces, oid, pages, &mut passing, |pack| {
                    // One becomes durable while the next is filled.
                    match finishing.replace(pack) {
                        Some(before) => done(Finishing::wait(before)?),
                        None => Ok(()),
                    }
                });
                packed.map_err(|error| pieces.why(error))?;
            }
            Part::Manifest => {
                let checked = passing.agreement.check(&mut pieces);
                agreed = Some(checked.map_err(|error| pieces.why(error))?);
            }
            Part::End(lsn, timeline) => break (lsn, timeline),
        }
    };
    if let Some(last) = finishing {
        done(last.wait()?)?;
    }
    match (passing.control, passing.label, agreed) {
        (Some(control), Some(label), Some(manifest)) => {
            // Newest first.
            let range = manifest.wal_ranges.first();
            if range.map(|range| (range.end, range.timeline)) != Some(end) {
                return Err(Error::failed(format!(
                    "the server's manifest ends elsewhere than its backup, at {}",
                    end.0
                )));
            }
            Ok(Streamed {
                control,
                label,
                map: passing.map,
                end,
            })
        }
        _ => Err(Error::failed(
            "the server sent no pg_control, no backup_label or no manifest",
        )),
    }
}

fn pack_archive(
    packer: &Packer,
    pieces: &mut Pieces,
    oid: Option<u32>,
    pages: Pages,
    passing: &mut Passing,
    mut written: impl FnMut(Finishing) -> Result<()>,
) -> Result<()> {
    let prefix = oid.map_or(String::new(), |oid| format!("pg_tblspc/{oid}/"));
    let mut archive = tar::Archive::new(pieces);
    let mut entries = Entries {
        entries: archive.entries().map_err(unreadable)?,
        prefix,
    };
    let mut next = entries.next_to_pack(passing)?;
    while let Some((first, _)) = &next {
        let expected = first.size.max(BATCH_BYTES) + (BATCH_MEMBERS as u64 + 2) * 1536;
        let pack = packer.pack_ahead(expected, |pack, read| {
            let (mut bytes, mut count) = (0, 0);
            while let Some((member, entry)) = next.take() {
                let fits = bytes + member.size <= BATCH_BYTES && count < BATCH_MEMBERS;
                if count > 0 && !fits {
                    next = Some((member, entry));
                    break;
                }
                bytes += member.size;
                count += 1;
                let (path, size) = (member.path.clone(), member.size);
                let file = copy(packer, pack, member, entry, pages)?;
                if let Some(file) = &file {
                    passing.agreement.arrived(&path, size, file.crc32c);
                }
                read.push(file);
                next = entries.next_to_pack(passing)?;
            }
            Ok(())
        })?;
        written(pack)?;
    }
    Ok(())
}

type Entry<'a> = tar::Entry<'a, &'a mut Pieces>;

struct Entries<'a> {
    entries: tar::Entries<'a, &'a mut Pieces>,
    prefix: String,
}

impl<'a> Entries<'a> {
    /// The next entry that goes into a pack. What is kept for the last pack is read on the way,
    /// and what is left out is passed over.
    fn next_to_pack(&mut self, passing: &mut Passing) -> Result<Option<(Member, Entry<'a>)>> {
        while let Some(entry) = self.entries.next() {
            let mut entry = entry.map_err(unreadable)?;
            let member = self.member(&entry)?;
            let (path, is_file) = (Path::new(&member.path), member.kind == MemberKind::File);
            let kind = match entry.header().entry_type() {
                tar::EntryType::Symlink => EntryKind::Symlink,
                _ if is_file => EntryKind::File,
                _ => EntryKind::Directory,
            };
            let is_base = self.prefix.is_empty();
            if passing.control.is_some() && is_base {
                return Err(Error::failed(format!(
                    "the server sent {} after pg_control, which must come last",
                    member.path
                )));
            }
            // tablespace_map says what the links lead to.
            if kind == EntryKind::Symlink || !belongs(path, kind) {
                continue;
            }
            let place = match member.path.as_str() {
                layout::CONTROL_FILE => &mut passing.control,
                layout::BACKUP_LABEL => &mut passing.label,
                layout::TABLESPACE_MAP => &mut passing.map,
                _ => return Ok(Some((member, entry))),
            };
            if member.size > LARGEST_KEPT {
                return Err(Error::failed(format!(
                    "the server sent {} of {} bytes",
                    member.path, member.size
                )));
            }
            let mut content = Vec::new();
            entry.read_to_end(&mut content).map_err(unreadable)?;
            let arrived = content.len() as u64;
            if arrived != member.size {
                return Err(cut_off(&member.path));
            }
            passing
                .agreement
                .arrived(&member.path, arrived, crc32c::crc32c(&content));
            *place = Some(Kept { member, content });
        }
        Ok(None)
    }

    /// An entry as the index will say it.
    fn member(&self, entry: &Entry<'_>) -> Result<Member> {
        let header = entry.header();
        let name = entry.path_bytes();
        let name = std::str::from_utf8(&name).map_err(|error| {
            Error::failed("the server sent a file whose name is not UTF-8")
                .because(error)
                .hint("PostgreSQL makes no such files: move it out of the data directory")
        })?;
        let name = name
            .strip_prefix("./")
            .unwrap_or(name)
            .trim_end_matches('/');
        let path = format!("{}{name}", self.prefix);
        let mut parts = Path::new(&path).components();
        if name.is_empty() || !parts.all(|part| matches!(part, Component::Normal(_))) {
            return Err(Error::failed(format!(
                "the server sent a file called {name:?}"
            )));
        }
        let kind = match header.entry_type() {
            tar::EntryType::Regular => MemberKind::File,
            tar::EntryType::Directory | tar::EntryType::Symlink => MemberKind::Directory,
            other => {
                return Err(Error::failed(format!(
                    "the server sent {name:?} as {other:?}"
                )));
            }
        };
        let mtime = header.mtime().map_err(unreadable)?;
        let mtime = i64::try_from(mtime)
            .ok()
            .and_then(|mtime| Timestamp::from_second(mtime).ok());
        let mode = header.mode().map_err(unreadable)? & 0o7777;
        let mut member = Member::directory(path, mode, mtime.unwrap_or(Timestamp::UNIX_EPOCH));
        member.kind = kind;
        if kind == MemberKind::File {
            member.size = entry.size();
        }
        Ok(member)
    }
}

/// Copies one entry into the pack, with the page checksums of relation files verified on the
/// way. A page cannot be read again here: the server has done that before it sent it.
fn copy(
    packer: &Packer,
    pack: &mut Pack<'_>,
    member: Member,
    mut entry: Entry<'_>,
    pages: Pages,
) -> Result<Option<FileRead>> {
    if member.kind == MemberKind::Directory {
        pack.directory(member)?;
        return Ok(None);
    }
    let (path, mut left) = (member.path.clone(), member.size);
    let mut next_block = pages.first_block(&path).filter(|_| pages.checksums);
    let (mut damage, mut crc32c) = (Damage::default(), 0);
    let mut buffer = vec![0; READ_SIZE.min(left as usize)];
    pack.begin_file(member)?;
    while left > 0 {
        let bytes = &mut buffer[..left.min(READ_SIZE as u64) as usize];
        entry
            .read_exact(bytes)
            .map_err(|error| cut_off(&path).because(error))?;
        if let Some(next) = &mut next_block {
            for page in bytes.chunks_exact(pages.block_size as usize) {
                if pages.is_damaged(page, *next) {
                    damage.add(*next);
                }
                *next = next.wrapping_add(1);
            }
        }
        crc32c = crc32c::crc32c_append(crc32c, bytes);
        pack.write(bytes)?;
        left -= bytes.len() as u64;
        packer.passed(bytes.len() as u64)?;
    }
    pack.end_file(damage.blocks)?;
    let damaged = damage.count;
    Ok(Some(FileRead { crc32c, damaged }))
}

fn unreadable(error: std::io::Error) -> Error {
    Error::failed("cannot read the archive that the server sends").because(error)
}

fn cut_off(path: &str) -> Error {
    Error::failed(format!("the server's archive ends inside {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::replication::base_backup::Piece;

    /// A header as `tarCreateHeader` makes it, and content padded to a block.
    fn entry(name: &str, size: u64, content: &[u8]) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_mode(0o600);
        header.set_mtime(1_700_000_000);
        header.set_entry_type(tar::EntryType::Regular);
        let field = &mut header.as_old_mut().size;
        if size < 0o100_000_000_000 {
            field.copy_from_slice(format!("{size:011o} ").as_bytes());
        } else {
            // print_tar_number: the first byte says base-256.
            field.fill(0);
            field[0] = 0x80;
            field[4..].copy_from_slice(&size.to_be_bytes());
        }
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    /// What is left to pack of an archive that comes in pieces of odd sizes.
    fn read(archive: &[u8], prefix: &str) -> Result<(Vec<Member>, Passing)> {
        let mut made = vec![Ok(Piece::Archive(None))];
        let pieces = archive
            .chunks(777)
            .map(|piece| Ok(Piece::Data(piece.to_vec().into())));
        made.extend(pieces);
        made.push(Ok(Piece::Manifest));
        let mut pieces = Pieces::made(made);
        assert_eq!(pieces.next_part()?, Part::Archive(None));
        let mut passing = Passing {
            agreement: Agreement::default(),
            control: None,
            label: None,
            map: None,
        };
        let mut members = Vec::new();
        {
            let mut archive = tar::Archive::new(&mut pieces);
            let mut entries = Entries {
                entries: archive.entries().unwrap(),
                prefix: prefix.into(),
            };
            while let Some((member, _)) = entries.next_to_pack(&mut passing)? {
                members.push(member);
            }
        }
        assert_eq!(pieces.next_part()?, Part::Manifest);
        Ok((members, passing))
    }

    #[test]
    fn an_archive_is_read_with_and_without_an_end_and_three_files_are_kept() {
        for end in [0, 1024] {
            let mut archive = entry("backup_label", 5, b"label");
            archive.extend(entry("pg_wal/archive_status/x", 3, b"xyz"));
            archive.extend(entry("base/5/1259", 600, &[7; 600]));
            archive.extend(entry("global/pg_control", 4, b"ctrl"));
            archive.resize(archive.len() + end, 0);
            let (members, passing) = read(&archive, "").unwrap();
            let paths: Vec<_> = members.iter().map(|m| (m.path.as_str(), m.size)).collect();
            assert_eq!(paths, [("base/5/1259", 600)]);
            assert_eq!(passing.label.unwrap().content, b"label");
            assert_eq!(passing.control.unwrap().content, b"ctrl");
            assert!(passing.map.is_none());
        }
    }

    #[test]
    fn a_file_of_more_than_8_gibibytes_has_its_size() {
        let header = entry("log/huge", 9 << 30, b"");
        let mut pieces = Pieces::made(vec![Ok(Piece::Data(header.into())), Ok(Piece::Manifest)]);
        let mut archive = tar::Archive::new(&mut pieces);
        let mut entries = Entries {
            entries: archive.entries().unwrap(),
            prefix: String::new(),
        };
        let mut passing = Passing {
            agreement: Agreement::default(),
            control: None,
            label: None,
            map: None,
        };
        let (member, mut entry) = entries.next_to_pack(&mut passing).unwrap().unwrap();
        assert_eq!((member.path.as_str(), member.size), ("log/huge", 9 << 30));
        // It is cut off: that is no end.
        assert!(entry.read_exact(&mut [0]).is_err());
    }

    #[test]
    fn a_tablespace_lies_below_its_link_and_names_that_lead_elsewhere_are_refused() {
        let archive = entry("PG_15_202209061/5/16400", 0, b"");
        let (members, _) = read(&archive, "pg_tblspc/16399/").unwrap();
        assert_eq!(members[0].path, "pg_tblspc/16399/PG_15_202209061/5/16400");
        for name in ["../x", "a/../../x", "/etc/passwd"] {
            let mut archive = entry("x", 0, b"");
            archive[..name.len()].copy_from_slice(name.as_bytes());
            let mut header = tar::Header::from_byte_slice(&archive[..512]).clone();
            header.set_cksum();
            let error = read(header.as_bytes(), "").err().expect(name);
            assert!(error.what().contains("sent a file called"), "{error}");
        }
    }

    #[test]
    fn what_follows_pg_control_is_refused() {
        let mut archive = entry("global/pg_control", 4, b"ctrl");
        archive.extend(entry("base/5/1259", 0, b""));
        let error = read(&archive, "").err().unwrap();
        assert!(error.what().contains("must come last"), "{error}");
    }
}
