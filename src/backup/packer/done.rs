//! What comes of packing: objects whose bytes are all on their way, and packs that are durable.

use crate::backup::file::FileRead;
use crate::error::{Error, Result};
use crate::repository::bridge::ObjectWriter;
use crate::repository::index::{Member, MemberKind};
use crate::repository::marker::StoredObject;
use crate::repository::pack::PackSummary;

/// A file of a finished pack, with what only the manifest wants to know.
#[derive(Debug)]
pub struct PackedFile {
    /// The index's line.
    pub member: Member,
    /// CRC-32C of its bytes.
    pub crc32c: u32,
    /// Pages whose checksum was wrong.
    pub damaged: u64,
}

/// A pack and its index, both durable.
#[derive(Debug)]
pub struct DonePack {
    /// The pack, then the index.
    pub objects: [StoredObject; 2],
    /// Its regular files.
    pub files: Vec<PackedFile>,
    /// Whether an earlier backup, which never came to its end, had made the pack.
    pub taken_over: bool,
}

/// What came of a pack: its files are the members that were read.
pub(in crate::backup) fn done_pack(
    pack: StoredObject,
    index: StoredObject,
    members: Vec<Member>,
    read: Vec<Option<FileRead>>,
) -> DonePack {
    let files = members
        .into_iter()
        .filter(|member| member.kind == MemberKind::File)
        .zip(read.into_iter().flatten())
        .map(|(member, read)| PackedFile {
            member,
            crc32c: read.crc32c,
            damaged: read.damaged,
        })
        .collect();
    DonePack {
        objects: [pack, index],
        files,
        taken_over: false,
    }
}

/// An object whose bytes are all on their way.
pub(super) struct WrittenObject {
    pub(super) key: String,
    pub(super) summary: PackSummary,
    pub(super) writer: ObjectWriter,
}

impl WrittenObject {
    /// Waits until it is durable.
    pub(super) async fn finish(self) -> Result<(PackSummary, StoredObject)> {
        let Self {
            key,
            summary,
            writer,
        } = self;
        let stored = writer.finish().await?;
        if stored != summary.stored_size {
            return Err(Error::failed(format!(
                "{key} was written with {} bytes and the store says {stored}",
                summary.stored_size
            )));
        }
        let object = StoredObject {
            key,
            size: stored,
            sha256: summary.sha256,
        };
        Ok((summary, object))
    }
}
