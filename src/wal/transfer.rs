//! One stored WAL object from one repository to another, byte for byte and in bounded memory:
//! opened and digested on its way, and given up if it is not what its key says.

use std::io::Read;

use super::object::{Hashing, Trouble, trouble};
use crate::error::Error;
use crate::postgres::SegmentSize;
use crate::repository::System;
use crate::repository::bridge::{ObjectReader, ObjectWriter};
use crate::repository::codec;
use crate::repository::keys::WalObject;

/// Why an object did not arrive.
#[derive(Debug)]
pub enum Failure {
    /// The source's object is not what its key says, or cannot be read.
    Source(Trouble),
    /// The destination did not take it.
    Destination(Error),
}

/// Copies `object` and returns its stored bytes. After `Ok` it is durable at `aim`, and its
/// plain content has the digest in its key; after an error it is not there, unless somebody
/// else put it.
///
/// # Errors
/// See [`Failure`]: which side it is decides what can be done.
pub async fn transfer(
    source: &System,
    aim: &System,
    object: WalObject,
    segment_size: SegmentSize,
) -> Result<u64, Failure> {
    let unread = |error| Failure::Source(Trouble::Unread(error));
    if object.encrypted {
        let what = "it is encrypted, which this version cannot open";
        return Err(unread(Error::failed(what)));
    }
    let key = source.keys().wal_object(object);
    let stream = match source.store().get_stream(&key).await {
        Ok(Some(stream)) => stream,
        Ok(None) => {
            return Err(unread(Error::failed("it was listed and is gone")));
        }
        Err(error) => return Err(unread(error.into())),
    };
    let size = stream.size;
    let reader = ObjectReader::new(stream);
    let writer = ObjectWriter::new(aim.store(), aim.keys().wal_object(object), size);
    let died = |error| unread(Error::failed("copying died").because(error));
    let (checked, writer) = tokio::task::spawn_blocking(move || {
        let checked = check(reader, &writer, object, segment_size);
        (checked, writer)
    })
    .await
    .map_err(died)?;
    match checked {
        Ok(()) => writer.finish().await.map_err(Failure::Destination),
        Err(Failure::Source(trouble)) => {
            writer.give_up(Error::failed("given up")).await;
            Err(Failure::Source(trouble))
        }
        Err(Failure::Destination(error)) => Err(Failure::Destination(writer.give_up(error).await)),
    }
}

/// Passes everything on, and opens it at the same time.
fn check(
    reader: ObjectReader,
    writer: &ObjectWriter,
    object: WalObject,
    segment_size: SegmentSize,
) -> Result<(), Failure> {
    let largest = *object.name.sizes(segment_size).end();
    let mut untaken = None;
    let passing = Passing {
        reader,
        writer,
        untaken: &mut untaken,
    };
    let read = (|| {
        let decoder = codec::stream_decoder(passing).map_err(trouble)?;
        let mut plain = Hashing::new(decoder.take(largest + 1));
        plain.drain().map_err(trouble)?;
        if plain.count() > largest {
            let why = format!("it holds more than {largest} bytes");
            return Err(Trouble::Damaged(why));
        }
        plain.finish_as(object)
    })();
    match untaken {
        Some(error) => Err(Failure::Destination(error)),
        None => read.map_err(Failure::Source),
    }
}

/// A reader whose bytes also go into an upload.
struct Passing<'a> {
    reader: ObjectReader,
    writer: &'a ObjectWriter,
    /// Why the upload takes no more.
    untaken: &'a mut Option<Error>,
}

impl Read for Passing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.reader.read(buffer)?;
        let piece = bytes::Bytes::copy_from_slice(&buffer[..count]);
        self.writer.write(piece).map_err(|error| {
            *self.untaken = Some(error);
            std::io::Error::other("the destination takes no more")
        })?;
        Ok(count)
    }
}
