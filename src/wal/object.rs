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

/// `.history` and `.backup` files are small texts.
pub const LARGEST_TEXT: u64 = 1 << 20;

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
        let mut plain = Hashing {
            inner: codec::stream_decoder(reader).map_err(trouble)?,
            hasher: PlainHasher::default(),
            bytes: 0,
        };
        std::io::copy(&mut plain, &mut std::io::sink()).map_err(trouble)?;
        has_digest(plain.hasher, object)
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
    let limit = match object.name {
        WalFileName::Segment(_) | WalFileName::Partial(_) => size.bytes(),
        _ => LARGEST_TEXT,
    };
    let decoder = codec::stream_decoder(reader).map_err(trouble)?;
    let mut plain = Hashing {
        inner: decoder.take(limit + 1),
        hasher: PlainHasher::default(),
        bytes: 0,
    };
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
        std::io::copy(&mut plain, &mut std::io::sink()).map_err(trouble)?;
    }
    let chain = match chain {
        Some(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            return Err(damaged(format!(
                "it ends after {} bytes of plain content",
                plain.bytes
            )));
        }
        Some(Err(error)) => return Err(trouble(error)),
        Some(Ok(chain)) => Some(chain),
        None => None,
    };
    has_digest(plain.hasher, object)?;
    match (object.name, chain) {
        (WalFileName::Segment(segment) | WalFileName::Partial(segment), Some(chain)) => {
            let chain = chain.map_err(|error| damaged(error.to_string()))?;
            wal_page::check_segment_header(&chain.header, segment, system_id, size, plain.bytes)
                .map_err(|error| damaged(error.to_string()))?;
            Ok(Content::Segment(Box::new(chain)))
        }
        (WalFileName::History(timeline), _) => TimelineHistory::parse(timeline, &text)
            .map(Content::History)
            .map_err(|error| damaged(error.to_string())),
        _ if plain.bytes > LARGEST_TEXT => {
            Err(damaged(format!("it holds more than {LARGEST_TEXT} bytes")))
        }
        _ => Ok(Content::Text),
    }
}

pub(super) fn has_digest(hasher: PlainHasher, object: WalObject) -> Result<(), Trouble> {
    let digest = hasher.finish();
    if digest == object.digest {
        return Ok(());
    }
    let why = format!("its content has the digest {digest}");
    Err(Trouble::Damaged(why))
}

/// An error while plain bytes were read is the store's, or says that they are damaged.
pub(super) fn trouble(error: std::io::Error) -> Trouble {
    match error.downcast::<StorageError>() {
        Ok(error) => Trouble::Unread(error.into()),
        Err(error) => Trouble::Damaged(error.to_string()),
    }
}

/// Hashes and counts what is read through it.
struct Hashing<R> {
    inner: R,
    hasher: PlainHasher,
    bytes: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}
