//! Reading one stored WAL object whole, and checking it against all that its key promises:
//! for `seawall wal verify` and `seawall wal resolve`.

use std::io::Read;

use crate::digest::PlainHasher;
use crate::error::Error;
use crate::postgres::history::TimelineHistory;
use crate::postgres::wal_chain::{self, Chain};
use crate::postgres::wal_page;
use crate::postgres::wal_records::{LatestEnd, TransactionEnd, WalReader};
use crate::postgres::{SegmentSize, SystemId, WalFileName};
use crate::repository::System;
use crate::repository::bridge::ObjectReader;
use crate::repository::codec;
use crate::repository::keys::WalObject;
use crate::storage::StorageError;

/// An object that is what its key says.
#[derive(Debug)]
pub enum Content {
    /// A segment, whole or `.partial`.
    Segment(Box<Chain>),
    /// A `.history` file.
    History(TimelineHistory),
    /// A `.backup` file.
    Text,
}

/// Why an object is not, or may not be, what its key says.
#[derive(Debug)]
pub enum Trouble {
    /// It is not, and why.
    Damaged(String),
    /// The store did not deliver it, or it is encrypted: nothing is known of it.
    Unread(Error),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Damaged(why) => f.write_str(why),
            Self::Unread(error) => f.write_str(&error.one_line()),
        }
    }
}

/// Reads and checks an object: the zstd frame with its checksum, the length, BLAKE3 against the
/// key, the first page against the name, and that a history parses. Memory is a few MiB,
/// whatever the segment size.
pub async fn read(
    system: &System,
    object: WalObject,
    size: SegmentSize,
) -> Result<Content, Trouble> {
    let reader = open(system, &system.keys().wal_object(object), object).await?;
    let system_id = system.id();
    tokio::task::spawn_blocking(move || check(reader, object, system_id, size))
        .await
        .map_err(|error| Trouble::Unread(Error::failed("reading died").because(error)))?
}

/// Whether the object under `key`, which need not be where `object` would be, holds the content
/// that its digest names.
pub async fn is_content(system: &System, key: &str, object: WalObject) -> Result<(), Trouble> {
    let reader = open(system, key, object).await?;
    let read = tokio::task::spawn_blocking(move || {
        let mut plain = Hashing::new(codec::stream_decoder(reader).map_err(trouble)?);
        plain.drain().map_err(trouble)?;
        plain.finish_as(object)
    });
    read.await
        .map_err(|error| Trouble::Unread(Error::failed("reading died").because(error)))?
}

/// The latest end of a transaction in a stored segment, if its records can be read.
pub async fn latest_transaction(system: &System, object: WalObject) -> Option<TransactionEnd> {
    let key = system.keys().wal_object(object);
    let reader = open(system, &key, object).await.ok()?;
    let read = tokio::task::spawn_blocking(move || {
        let plain = codec::stream_decoder(reader).ok()?;
        let mut latest = LatestEnd::default();
        let mut records = WalReader::new();
        records.read(plain, |record| latest.see(&record)).ok()?;
        latest.0
    });
    read.await.ok()?
}

async fn open(system: &System, key: &str, object: WalObject) -> Result<ObjectReader, Trouble> {
    let unread = |error: Error| Trouble::Unread(error);
    if object.encrypted {
        let what = "it is encrypted, which this version cannot open";
        return Err(unread(Error::failed(what)));
    }
    match system.store().get_stream(key).await {
        Ok(Some(stream)) => Ok(ObjectReader::new(stream)),
        Ok(None) => Err(unread(Error::failed("it was listed and is gone"))),
        Err(error) => Err(unread(error.into())),
    }
}

fn check(
    reader: ObjectReader,
    object: WalObject,
    system_id: SystemId,
    size: SegmentSize,
) -> Result<Content, Trouble> {
    let damaged = |why: String| Trouble::Damaged(why);
    let largest = *object.name.sizes(size).end();
    let decoder = codec::stream_decoder(reader).map_err(trouble)?;
    let mut plain = Hashing::new(decoder.take(largest + 1));
    let mut text = Vec::new();
    let chain = match object.name {
        WalFileName::Segment(_) | WalFileName::Partial(_) => Some(wal_chain::read(&mut plain)),
        _ => {
            plain.read_to_end(&mut text).map_err(trouble)?;
            None
        }
    };
    // The chain ends where the records end. An error of the store is met again here.
    if !matches!(chain, Some(Err(_))) {
        plain.drain().map_err(trouble)?;
    }
    let chain = match chain {
        Some(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            return Err(damaged(format!(
                "it ends after {} bytes of plain content",
                plain.count()
            )));
        }
        Some(Err(error)) => return Err(trouble(error)),
        Some(Ok(chain)) => Some(chain),
        None => None,
    };
    let bytes = plain.count();
    plain.finish_as(object)?;
    match (object.name, chain) {
        (WalFileName::Segment(segment) | WalFileName::Partial(segment), Some(chain)) => {
            let chain = chain.map_err(|error| damaged(error.to_string()))?;
            wal_page::check_segment_header(&chain.header, segment, system_id, size, bytes)
                .map_err(|error| damaged(error.to_string()))?;
            Ok(Content::Segment(Box::new(chain)))
        }
        (WalFileName::History(timeline), _) => TimelineHistory::parse(timeline, &text)
            .map(Content::History)
            .map_err(|error| damaged(error.to_string())),
        _ if bytes > largest => Err(damaged(format!("it holds more than {largest} bytes"))),
        _ => Ok(Content::Text),
    }
}

/// An error while plain bytes were read is the store's, or says that they are damaged.
pub(crate) fn trouble(error: std::io::Error) -> Trouble {
    match error.downcast::<StorageError>() {
        Ok(error) => Trouble::Unread(error.into()),
        Err(error) => Trouble::Damaged(error.to_string()),
    }
}

/// Digests and counts what is read through it.
pub(super) struct Hashing<R> {
    inner: R,
    hasher: PlainHasher,
    bytes: u64,
}

impl<R: Read> Hashing<R> {
    pub(super) fn new(inner: R) -> Self {
        let hasher = PlainHasher::default();
        let bytes = 0;
        Self {
            inner,
            hasher,
            bytes,
        }
    }

    /// How many bytes have been read.
    pub(super) fn count(&self) -> u64 {
        self.bytes
    }

    /// Reads all that is left, and keeps nothing of it.
    pub(super) fn drain(&mut self) -> std::io::Result<()> {
        let mut buffer = vec![0; 256 << 10];
        while self.read(&mut buffer)? > 0 {}
        Ok(())
    }

    /// Whether what was read is the content of `object`.
    pub(super) fn finish_as(self, object: WalObject) -> Result<(), Trouble> {
        let digest = self.hasher.finish();
        if digest == object.digest {
            return Ok(());
        }
        let why = format!("its content has the digest {digest}");
        Err(Trouble::Damaged(why))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}
