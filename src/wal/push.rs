//! Pushing one WAL file into every push target, for `seawall-archive`.
//!
//! [`push`] says `Ok` of a repository only when the file is durable there. The same content
//! again is fine; other content under the same name is refused, and nothing is overwritten,
//! for the key carries the content's digest.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::future::join_all;

use crate::config::Compression;
use crate::digest::{PlainDigest, PlainHasher};
use crate::error::{Error, IoContext, Result};
use crate::postgres::control::ControlFile;
use crate::postgres::wal_page::{self, LONG_HEADER_SIZE, LongPageHeader};
use crate::postgres::{FormatError, WalFileName};
use crate::repository::bridge::ObjectWriter;
use crate::repository::codec;
use crate::repository::keys::WalObject;
use crate::repository::wal_objects::Held;
use crate::repository::{Repository, System};

/// Files up to this size are compressed into memory, in one pass; larger segments are read
/// twice, since their key needs the digest before the first byte is stored.
const IN_MEMORY: u64 = 64 << 20;

/// `.history` and `.backup` files are small texts.
const LARGEST_TEXT: u64 = 1 << 20;

/// What became of a file in one repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was put now.
    Stored,
    /// The same content was there already.
    Present,
}

/// A file that is to be archived, checked against the cluster that it comes from.
pub struct WalFile {
    name: WalFileName,
    path: PathBuf,
    size: u64,
}

impl WalFile {
    /// Looks at the file: its name, its exact length, and for segments the header (magic,
    /// system identifier, segment size, address against the name).
    pub fn open(path: &Path, control: &ControlFile) -> Result<Self> {
        let refuse = |error: FormatError| {
            Error::refused("this file is not archived")
                .at(path.display())
                .because(error)
                .hint("it does not belong to this cluster, or it is damaged; nothing was stored")
        };
        let file_name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let name: WalFileName = file_name.parse().map_err(refuse)?;
        let mut file = File::open(path).on("open", path)?;
        let size = file.metadata().on("look at", path)?.len();
        match name {
            WalFileName::Segment(segment) | WalFileName::Partial(segment) => {
                let mut header = [0; LONG_HEADER_SIZE];
                file.read_exact(&mut header)
                    .on("read the header of", path)?;
                let header = LongPageHeader::parse(&header).map_err(refuse)?;
                wal_page::check_segment_header(
                    &header,
                    segment,
                    control.system_id,
                    control.segment_size,
                    size,
                )
                .map_err(refuse)?;
            }
            WalFileName::History(_) | WalFileName::BackupHistory(..) => {
                if size == 0 || size > LARGEST_TEXT {
                    return Err(refuse(FormatError::new(
                        "history file",
                        format!("{size} bytes is not the size of one"),
                    )));
                }
            }
        }
        Ok(Self {
            name,
            path: path.to_owned(),
            size,
        })
    }

    /// Its name.
    pub fn name(&self) -> WalFileName {
        self.name
    }
}

/// What is put: compressed bytes, or a file that is compressed on the way.
enum Body {
    Memory(Bytes),
    File,
}

/// Pushes `file` into every repository at once, and says of each what became of it there: one
/// that fails holds up none of the others.
///
/// # Errors
/// The file itself cannot be read.
pub async fn push(
    repositories: &[Repository],
    cluster: &str,
    control: &ControlFile,
    file: WalFile,
    compression: Compression,
) -> Result<Vec<Result<Outcome>>> {
    let file = std::sync::Arc::new(file);
    let compressing = {
        let file = file.clone();
        tokio::task::spawn_blocking(move || read_and_compress(&file, compression))
    };
    let systems: Vec<System> = repositories
        .iter()
        .map(|r| r.system(cluster, control.system_id))
        .collect();
    // The listings and system.json are asked for while the file is compressed.
    let looks = join_all(systems.iter().map(|system| async {
        let (record, held) = tokio::join!(
            system.register(control.major, control.segment_size),
            system.held(file.name)
        );
        record?;
        held
    }));
    let (compressed, looks) = tokio::join!(compressing, looks);
    let (digest, body) =
        compressed.map_err(|error| Error::failed("compression died").because(error))??;
    let object = WalObject {
        name: file.name,
        digest,
        encrypted: false,
    };
    let outcomes = join_all(systems.iter().zip(looks).map(|(system, held)| {
        let (file, body) = (&file, &body);
        async move { store(system, object, held?, body, file, compression).await }
    }))
    .await;
    Ok(outcomes)
}

/// Brings one object into one repository, unless it is there.
async fn store(
    system: &System,
    object: WalObject,
    held: Held,
    body: &Body,
    file: &WalFile,
    compression: Compression,
) -> Result<Outcome> {
    match held {
        Held::One(there, info) if there.digest == object.digest => {
            // Who put it may have died before its name was durable.
            system.store().confirm_durable(&info.key).await?;
            return Ok(Outcome::Present);
        }
        Held::One(there, _) => return Err(other_content(system, object, &[there.digest])),
        Held::Conflict(digests) => return Err(other_content(system, object, &digests)),
        Held::Absent => {}
    }
    let key = system.keys().wal_object(object);
    match body {
        Body::Memory(bytes) => system.store().put(&key, bytes.clone()).await?,
        Body::File => upload(system, &key, object, file, compression).await?,
    }
    // Another host may have pushed at the same moment, having seen nothing either.
    match system.held(object.name).await? {
        Held::One(there, _) if there.digest == object.digest => Ok(Outcome::Stored),
        Held::One(there, _) => Err(other_content(system, object, &[there.digest])),
        Held::Conflict(digests) => Err(other_content(system, object, &digests)),
        Held::Absent => Err(Error::failed(format!(
            "the store took {} and does not list it",
            object.name
        ))
        .at(format!("{key} of {}", system.place()))
        .hint("nothing is acknowledged; check the store with `seawall check`")),
    }
}

fn other_content(system: &System, object: WalObject, there: &[PlainDigest]) -> Error {
    let there: Vec<String> = there
        .iter()
        .filter(|d| **d != object.digest)
        .map(PlainDigest::to_string)
        .collect();
    Error::refused(format!("{} is already archived with other content", object.name))
        .at(system.place())
        .because(format!("archived: {}; this file: {}", there.join(", "), object.digest))
        .hint("two servers archive under one name and system identifier (a copy or a restored cluster that still archives?); what is stored stays as it is")
}

fn read_and_compress(file: &WalFile, compression: Compression) -> Result<(PlainDigest, Body)> {
    let mut source = File::open(&file.path).on("open", &file.path)?;
    let in_memory = file.size <= IN_MEMORY;
    let mut hasher = PlainHasher::default();
    let mut compressor = in_memory
        .then(|| codec::stream_compressor(Vec::new(), compression, Some(file.size)))
        .transpose()
        .map_err(|error| Error::usage("zstd refuses the configured compression").because(error))?;
    read_exactly(&mut source, file, |piece| {
        hasher.update(piece);
        if let Some(compressor) = &mut compressor {
            compressor
                .write_all(piece)
                .map_err(|error| Error::failed("cannot compress").because(error))?;
        }
        Ok(())
    })?;
    let body = match compressor {
        Some(compressor) => Body::Memory(
            compressor
                .finish()
                .map_err(|error| Error::failed("cannot compress").because(error))?
                .into(),
        ),
        None => Body::File,
    };
    Ok((hasher.finish(), body))
}

/// Hands every piece of the file to `piece`; a file that changed its length is an error.
fn read_exactly(
    source: &mut File,
    file: &WalFile,
    mut each: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    source.rewind().on("read", &file.path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut left = file.size;
    while left > 0 {
        let wanted = left.min(buffer.len() as u64) as usize;
        source
            .read_exact(&mut buffer[..wanted])
            .on("read", &file.path)?;
        each(&buffer[..wanted])?;
        left -= wanted as u64;
    }
    if source.read(&mut buffer[..1]).on("read", &file.path)? != 0 {
        return Err(Error::failed(format!(
            "{} grew while it was read",
            file.name
        )));
    }
    Ok(())
}

/// The second pass over a large segment: compressed on the way into the store, and given up
/// if its content is no longer what its key says.
async fn upload(
    system: &System,
    key: &str,
    object: WalObject,
    file: &WalFile,
    compression: Compression,
) -> Result<()> {
    let writer = ObjectWriter::new(system.store(), key.to_owned(), file.size);
    let (path, size, name) = (file.path.clone(), file.size, file.name);
    let (written, writer) = tokio::task::spawn_blocking(move || {
        let again = WalFile { name, path, size };
        let written = compress_into(&writer, &again, object.digest, compression);
        (written, writer)
    })
    .await
    .map_err(|error| Error::failed("compression died").because(error))?;
    match written {
        Ok(()) => writer.finish().await.map(|_| ()),
        Err(error) => Err(writer.give_up(error).await),
    }
}

fn compress_into(
    writer: &ObjectWriter,
    file: &WalFile,
    digest: PlainDigest,
    compression: Compression,
) -> Result<()> {
    let failed = |error: std::io::Error| Error::failed("cannot compress").because(error);
    let mut source = File::open(&file.path).on("open", &file.path)?;
    let mut hasher = PlainHasher::default();
    let mut encoder =
        codec::stream_compressor(Vec::new(), compression, Some(file.size)).map_err(failed)?;
    read_exactly(&mut source, file, |piece| {
        hasher.update(piece);
        encoder.write_all(piece).map_err(failed)?;
        writer.write(std::mem::take(encoder.get_mut()).into())
    })?;
    if hasher.finish() != digest {
        return Err(Error::failed(format!(
            "{} changed while it was read",
            file.name
        )));
    }
    writer.write(encoder.finish().map_err(failed)?.into())
}
