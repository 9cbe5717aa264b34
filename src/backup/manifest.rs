//! Writing `backup_manifest.zst` while the packs are made: nobody ever holds the whole list.

use std::io::Write;

use bytes::Bytes;
use tokio::runtime::Handle;

use super::packer::PackedFile;
use crate::config::Compression;
use crate::digest::StoredHasher;
use crate::error::{Error, Result};
use crate::postgres::manifest::{ManifestVersion, ManifestWriter, WalRange};
use crate::postgres::{SystemId, layout};
use crate::repository::bridge::ObjectWriter;
use crate::repository::codec;
use crate::repository::keys;
use crate::repository::marker::StoredObject;
use crate::storage::Store;

type Compressed = codec::StreamCompressor<HashedObject>;

/// The manifest of a running backup.
pub struct StreamedManifest {
    writer: ManifestWriter<Compressed>,
    runtime: Handle,
}

/// Counts and hashes what goes into the store.
struct HashedObject {
    object: ObjectWriter,
    hasher: StoredHasher,
    size: u64,
}

impl Write for HashedObject {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.object
            .write(Bytes::copy_from_slice(bytes))
            .map_err(std::io::Error::other)?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::failed("cannot write the backup_manifest").because(error)
}

impl StreamedManifest {
    /// Begins the manifest below `directory`. Must be called inside the runtime.
    pub fn new(
        store: &Store,
        directory: &str,
        compression: Compression,
        major: u32,
        system_id: SystemId,
    ) -> Result<Self> {
        let version = ManifestVersion::of_major(major);
        let key = format!("{directory}/{}", keys::backup::MANIFEST);
        let object = HashedObject {
            object: ObjectWriter::new(store, key, 0),
            hasher: StoredHasher::default(),
            size: 0,
        };
        let encoder = codec::stream_compressor(object, compression, None).map_err(failed)?;
        let writer = ManifestWriter::new(encoder, version, system_id).map_err(failed)?;
        Ok(Self {
            writer,
            runtime: Handle::current(),
        })
    }

    /// Adds the files of one pack. `tablespace_map` is left out: a restored directory has
    /// none, since a restore makes the links itself.
    pub fn add(&mut self, files: &[PackedFile]) -> Result<()> {
        for file in files
            .iter()
            .filter(|file| file.member.path != layout::TABLESPACE_MAP)
        {
            let member = &file.member;
            self.writer
                .file(
                    member.path.as_bytes(),
                    member.size,
                    member.mtime,
                    file.crc32c,
                )
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Ends the manifest and waits until it is durable. Blocks.
    pub fn finish(self, range: WalRange) -> Result<StoredObject> {
        let encoder = self.writer.finish(&[range]).map_err(failed)?;
        let object = encoder.finish().map_err(failed)?;
        let (size, sha256) = (object.size, object.hasher.finish());
        let stored = self.runtime.block_on(object.object.finish())?;
        if stored != size {
            return Err(Error::failed(format!(
                "the backup_manifest was written with {size} bytes and the store says {stored}"
            )));
        }
        Ok(StoredObject {
            key: keys::backup::MANIFEST.to_owned(),
            size,
            sha256,
        })
    }
}
