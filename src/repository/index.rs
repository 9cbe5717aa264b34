//! The index of a pack: JSON lines, a header and then one line for each member, so that
//! neither writer nor reader ever holds the whole list of a backup.

use std::borrow::Cow;
use std::io::{BufRead, Write};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::FORMAT;
use crate::digest::{PlainDigest, StoredDigest};
use crate::error::{Error, Result};
use crate::postgres::incremental;

/// The first line of an index.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IndexHeader {
    /// The format of this object.
    pub format: u32,
    /// The key of the pack, relative to the backup's directory.
    pub pack: String,
    /// How the pack was made, and what it then was. Absent in what older versions wrote.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub made: Option<Made>,
}

/// What a pack was when it became durable: an index is put after its pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// By which version.
    pub seawall_version: String,
    /// zstd's level.
    pub level: i32,
    /// zstd's shortest match; 0: the level's.
    pub minimum_match: u32,
    /// Its size as stored.
    pub size: u64,
    /// SHA-256 of the stored bytes.
    pub sha256: StoredDigest,
}

/// What a member of a pack is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberKind {
    /// A regular file.
    File,
    /// A directory; its files have lines of their own.
    Directory,
}

/// One member of a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Relative to the data directory; tablespaces lie under `pg_tblspc/OID/`.
    pub path: String,
    /// File or directory.
    pub kind: MemberKind,
    /// Bytes, as it was when it was opened.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// When its content last changed, by the source's clock, in whole seconds.
    pub mtime: Timestamp,
    /// BLAKE3 of its bytes. Absent for directories.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub digest: Option<PlainDigest>,
    /// Where its bytes start in the plain tar stream.
    #[serde(default)]
    pub offset: u64,
    /// The frames of the pack that hold its bytes: first, and one past the last.
    #[serde(default)]
    pub frames: [u32; 2],
    /// The bytes of the stored pack that hold those frames: start, and one past the end.
    #[serde(default)]
    pub stored: [u64; 2],
    /// CRC-32C of its bytes, as the `backup_manifest` says it. Absent for directories.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub crc32c: Option<u32>,
    /// Of an incremental file: what it holds. Its path and size are its own, `base/5/INCREMENTAL.16384`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub increment: Option<Increment>,
    /// Of a relation's file: what tells it from a later one of the same name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub identity: Option<FileIdentity>,
    /// Of an incremental file: BLAKE3 of the whole file that it is of, where all of that was read
    /// and a digest needed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub whole_digest: Option<PlainDigest>,
    /// Blocks whose page checksum was wrong, counted in the whole relation.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub damaged_blocks: Vec<u32>,
    /// What newer versions added.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// What an incremental file holds of the file it is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Increment {
    /// As in its header: of blocks behind this, older backups know nothing.
    pub truncation_block_length: u32,
    /// The blocks that are there, counted in this segment file: the first of a run and how many,
    /// ascending and apart.
    pub blocks: Vec<[u32; 2]>,
}

impl Increment {
    /// How many blocks are there.
    pub fn block_count(&self) -> u64 {
        self.blocks.iter().map(|[_, count]| u64::from(*count)).sum()
    }

    /// How many blocks the whole file has (PostgreSQL 18, reconstruct.c).
    pub fn whole_blocks(&self) -> u64 {
        let end = self
            .blocks
            .last()
            .map_or(0, |[first, count]| u64::from(*first) + u64::from(*count));
        end.max(u64::from(self.truncation_block_length))
    }
}

/// What tells a file from another that later took its name. Known where the source is a data
/// directory; two that differ are of different files, two that are equal are of the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Its number in the file system.
    pub inode: u64,
    /// When it was made, where the file system knows.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub born: Option<Timestamp>,
}

impl Member {
    /// The path of the file that a restore makes of it: for an incremental file that of the
    /// file it is of.
    pub fn target_path(&self) -> Cow<'_, str> {
        match &self.increment {
            Some(_) => {
                incremental::original_path(&self.path).map_or(Cow::Borrowed(&self.path), Cow::Owned)
            }
            None => Cow::Borrowed(&self.path),
        }
    }

    /// Bytes of that file.
    pub fn target_size(&self, block_size: u32) -> u64 {
        match &self.increment {
            Some(increment) => increment.whole_blocks() * u64::from(block_size),
            None => self.size,
        }
    }

    /// A directory.
    pub fn directory(path: String, mode: u32, mtime: Timestamp) -> Self {
        Self {
            path,
            kind: MemberKind::Directory,
            size: 0,
            mode,
            mtime,
            digest: None,
            offset: 0,
            frames: [0, 0],
            stored: [0, 0],
            crc32c: None,
            increment: None,
            identity: None,
            whole_digest: None,
            damaged_blocks: Vec::new(),
            other: serde_json::Map::new(),
        }
    }
}

/// Writes the lines of an index.
pub fn write<W: Write>(
    writer: &mut W,
    pack: &str,
    made: Option<Made>,
    members: &[Member],
) -> std::io::Result<()> {
    let header = IndexHeader {
        format: FORMAT,
        pack: pack.to_owned(),
        made,
    };
    serde_json::to_writer(&mut *writer, &header)?;
    writer.write_all(b"\n")?;
    for member in members {
        serde_json::to_writer(&mut *writer, member)?;
        writer.write_all(b"\n")?;
    }
    Ok(())
}

/// The first line of an index.
///
/// # Errors
/// It is not there, or does not parse.
pub fn header(text: &[u8]) -> Result<IndexHeader> {
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    serde_json::from_slice(line)
        .map_err(|error| Error::failed("the first line of an index is damaged").because(error))
}

/// Reads the plain text of the index of `pack`, member by member.
///
/// # Errors
/// A header of a newer format or of another pack, a line that does not parse, and a path that
/// would leave the directory it is restored to.
pub fn read<R: BufRead>(
    reader: R,
    pack: &str,
) -> Result<impl Iterator<Item = Result<Member>> + use<R>> {
    let damaged = |line: usize, why: String| {
        Error::failed(format!(
            "the index of {pack} is damaged in line {line}: {why}"
        ))
    };
    let mut lines = reader.lines().enumerate().map(|(at, line)| (at + 1, line));
    let header = match lines.next() {
        Some((_, Ok(line))) => serde_json::from_str::<IndexHeader>(&line)
            .map_err(|error| damaged(1, error.to_string()))?,
        Some((_, Err(error))) => return Err(damaged(1, error.to_string())),
        None => return Err(damaged(1, "it is empty".to_owned())),
    };
    if header.format > FORMAT {
        return Err(
            Error::failed(format!("the index of {pack} has format {}", header.format))
                .hint("install a newer Seawall"),
        );
    }
    if header.pack != pack {
        return Err(damaged(1, format!("it describes {:?}", header.pack)));
    }
    let pack = pack.to_owned();
    Ok(lines.map(move |(at, line)| {
        let damaged = |why: String| {
            Error::failed(format!(
                "the index of {pack} is damaged in line {at}: {why}"
            ))
        };
        let line = line.map_err(|error| damaged(error.to_string()))?;
        let member: Member =
            serde_json::from_str(&line).map_err(|error| damaged(error.to_string()))?;
        if !is_safe_path(&member.path) {
            return Err(damaged(format!(
                "the path {:?} is not allowed",
                member.path
            )));
        }
        let named = incremental::original_path(&member.path).is_some();
        if member.increment.is_some() && !named {
            return Err(damaged(format!(
                "{} has blocks and is no incremental file",
                member.path
            )));
        }
        if member.kind == MemberKind::File && member.digest.is_none() {
            return Err(damaged(format!("{} has no digest", member.path)));
        }
        Ok(member)
    }))
}

/// Whether a path stays below the directory that it is joined to: relative, no `..`, no empty
/// or `.` parts, no zero bytes.
pub fn is_safe_path(path: &str) -> bool {
    !path.is_empty()
        && !path.contains('\0')
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_index_reads_back_and_keeps_what_newer_versions_added() {
        let mut file = Member::directory("base/1/1259".into(), 0o600, Timestamp::UNIX_EPOCH);
        file.kind = MemberKind::File;
        file.digest = Some(PlainDigest::of(b"x"));
        file.other.insert("since".into(), 19.into());
        let members = vec![
            Member::directory("base/1".into(), 0o700, Timestamp::UNIX_EPOCH),
            file,
        ];
        let mut text = Vec::new();
        write(&mut text, "data/000001.tar.zst", None, &members).unwrap();
        let read: Vec<_> = read(&text[..], "data/000001.tar.zst")
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(read, members);
    }

    #[test]
    fn a_path_that_would_leave_the_target_is_refused() {
        for path in [
            "/etc/passwd",
            "../x",
            "a/../../x",
            "a//b",
            "",
            ".",
            "a/./b",
            "a\0b",
        ] {
            assert!(!is_safe_path(path), "{path:?}");
        }
        assert!(is_safe_path("pg_tblspc/16385/PG_15_202209061/5/16386"));
    }

    #[test]
    fn an_index_of_another_pack_or_format_is_refused() {
        let mut text = Vec::new();
        write(&mut text, "data/000001.tar.zst", None, &[]).unwrap();
        assert!(read(&text[..], "data/000002.tar.zst").is_err());
        assert!(read(&b"{\"format\":2,\"pack\":\"p\"}\n"[..], "p").is_err());
        assert!(read(&b""[..], "p").is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes: Vec<u8>) {
            if let Ok(lines) = read(&bytes[..], "p") {
                lines.for_each(drop);
            }
        }
    }
}
