//! A WAL file on its way into the repositories: checked against the cluster that it comes
//! from, read once, digested and compressed.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::config::Compression;
use crate::digest::{PlainDigest, PlainHasher};
use crate::error::{Error, IoContext, Result};
use crate::postgres::control::ControlFile;
use crate::postgres::wal_page::{self, LONG_HEADER_SIZE, LongPageHeader};
use crate::postgres::{FormatError, WalFileName};
use crate::repository::bridge::ObjectWriter;
use crate::repository::codec::PieceCompressor;
use crate::wal::identity::Identity;

/// What is read at once: it stays in the processor's cache until it is digested and compressed.
const PIECE: usize = 256 << 10;

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
                if !name.sizes(control.segment_size).contains(&size) {
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

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Digests and compresses it: into memory, in one pass; where it is `too_large` for that
    /// only its digest is taken, and [`compress_into`](Self::compress_into) reads it again,
    /// since its key needs the digest before the first byte is stored.
    pub(super) fn read(&self, too_large: bool, workshop: &mut Workshop) -> Result<Compressed> {
        if too_large {
            let mut hasher = PlainHasher::default();
            self.each_piece(&mut workshop.piece, |plain| {
                hasher.update(plain);
                Ok(())
            })?;
            let digest = hasher.finish();
            return Ok(Compressed {
                digest,
                bytes: None,
            });
        }
        let digest = self.compress(workshop, |_| Ok(()))?;
        let bytes = Some(Bytes::copy_from_slice(&workshop.stored));
        Ok(Compressed { digest, bytes })
    }

    /// The second pass over a large segment: compressed on the way into the store, and given
    /// up if its content is no longer what its key says.
    pub(super) fn compress_into(
        &self,
        writer: &ObjectWriter,
        digest: PlainDigest,
        workshop: &mut Workshop,
    ) -> Result<()> {
        let found = self.compress(workshop, |stored| {
            let done = writer.write(Bytes::copy_from_slice(stored));
            stored.clear();
            done
        })?;
        if found != digest {
            let what = format!("{} changed while it was read", self.name);
            return Err(Error::failed(what));
        }
        writer.write(Bytes::copy_from_slice(&workshop.stored))
    }

    /// Digests and compresses it in one pass into `workshop.stored`, from which `take` may take
    /// what has come so far; the end is left there.
    fn compress(
        &self,
        workshop: &mut Workshop,
        mut take: impl FnMut(&mut Vec<u8>) -> Result<()>,
    ) -> Result<PlainDigest> {
        let Workshop {
            compressor,
            piece,
            stored,
        } = workshop;
        let mut hasher = PlainHasher::default();
        stored.clear();
        compressor.begin(self.size)?;
        self.each_piece(piece, |plain| {
            hasher.update(plain);
            compressor.write(plain, stored)?;
            take(stored)
        })?;
        compressor.finish(stored)?;
        Ok(hasher.finish())
    }

    /// Hands over every piece of the file; a file that changed its length is an error.
    fn each_piece(
        &self,
        buffer: &mut [u8],
        mut each: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let changed = || Error::failed(format!("{} changed while it was read", self.name));
        let mut source = File::open(&self.path).on("open", &self.path)?;
        // PostgreSQL renames a segment that it has no use for, and writes the next WAL into it.
        let before = Identity::of_file(&source).on("look at", &self.path)?;
        let mut left = self.size;
        while left > 0 {
            let wanted = left.min(buffer.len() as u64) as usize;
            source
                .read_exact(&mut buffer[..wanted])
                .on("read", &self.path)?;
            each(&buffer[..wanted])?;
            left -= wanted as u64;
        }
        match Identity::of_file(&source).on("look at", &self.path)? == before {
            true if source.read(&mut buffer[..1]).on("read", &self.path)? == 0 => Ok(()),
            _ => Err(changed()),
        }
    }
}

/// What one job works with, kept from one file to the next: memory that is allocated anew for
/// each file comes to several times as much.
pub(super) struct Workshop {
    compressor: PieceCompressor,
    piece: Vec<u8>,
    stored: Vec<u8>,
}

impl Workshop {
    pub(super) fn new(compression: Compression) -> Result<Self> {
        Ok(Self {
            compressor: PieceCompressor::new(compression)?,
            piece: vec![0; PIECE],
            stored: Vec::new(),
        })
    }
}

/// What the object will be.
pub(super) struct Compressed {
    /// BLAKE3 of the plain bytes.
    pub(super) digest: PlainDigest,
    /// The object; none of a file that is too large to be held in memory.
    pub(super) bytes: Option<Bytes>,
}
