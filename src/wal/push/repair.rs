//! Bringing one repository a file that another holds.

use std::io::Read;

use super::Engine;
use crate::error::{Error, Result};
use crate::postgres::{SegmentSize, WalFileName};
use crate::repository::System;
use crate::repository::bridge::{ObjectReader, ObjectWriter};
use crate::repository::codec;
use crate::repository::keys::WalObject;
use crate::repository::wal_objects::Held;
use crate::wal::object::Hashing;

impl Engine {
    /// Brings `repository` the object of `name` from the first other repository that holds it,
    /// byte for byte, in bounded memory. What arrives is opened and digested on the way, and
    /// given up if it is not what its key says.
    ///
    /// # Errors
    /// No other repository holds it, or one of the two fails.
    pub async fn copy_to(&self, name: WalFileName, repository: &str) -> Result<()> {
        let mut nobody = Error::failed(format!("no repository that can be asked holds {name}"))
            .hint("if no server has it in pg_wal any more, it is lost: take a full backup");
        let is_aim = |system: &System| system.repository().name() == repository;
        let Some(aim) = self.targets.iter().find(|target| is_aim(target.system())) else {
            return Err(Error::failed(format!(
                "repository {repository} cannot be opened"
            )));
        };
        for source in self.systems().filter(|system| !is_aim(system)) {
            match source.held(name).await {
                Ok(Held::One(object, _)) => {
                    aim.register(&self.control).await?;
                    match aim.system().held(name).await? {
                        Held::One(there, _) if there.digest == object.digest => return Ok(()),
                        Held::Absent => aim.refuse_set_aside(object, &aim.aside().await?)?,
                        _ => return Err(aim.system().conflict(name, &[object.digest])),
                    }
                    copy(source, aim.system(), object, self.control.segment_size).await?;
                    return aim.confirm(object).await;
                }
                Ok(_) => {}
                Err(error) => nobody = error,
            }
        }
        Err(nobody)
    }
}

async fn copy(
    source: &System,
    aim: &System,
    object: WalObject,
    segment_size: SegmentSize,
) -> Result<()> {
    let key = source.keys().wal_object(object);
    let place = format!("{key} of {}", source.place());
    let gone = || Error::failed("it was listed and is gone").at(&place);
    let stream = source.store().get_stream(&key).await?.ok_or_else(gone)?;
    let size = stream.size;
    let reader = ObjectReader::new(stream);
    let writer = ObjectWriter::new(aim.store(), aim.keys().wal_object(object), size);
    let (written, writer) = tokio::task::spawn_blocking(move || {
        let written = checked(reader, &writer, object, segment_size);
        (written, writer)
    })
    .await
    .map_err(|error| Error::failed("copying died").because(error))?;
    match written {
        Ok(()) => writer.finish().await.map(|_| ()),
        Err(error) => Err(writer.give_up(error).await.at(place)),
    }
}

/// Passes everything on, and opens it at the same time.
fn checked(
    reader: ObjectReader,
    writer: &ObjectWriter,
    object: WalObject,
    segment_size: SegmentSize,
) -> Result<()> {
    let damaged = |why: String| Error::failed(format!("{} is damaged: {why}", object.name));
    let wrong = |error: std::io::Error| damaged(error.to_string());
    let largest = *object.name.sizes(segment_size).end();
    let passing = Passing { reader, writer };
    let decoder = codec::stream_decoder(passing).map_err(wrong)?;
    let mut plain = Hashing::new(decoder.take(largest + 1));
    plain.drain().map_err(wrong)?;
    if plain.count() > largest {
        return Err(damaged(format!("it holds more than {largest} bytes")));
    }
    let is_right = plain.finish_as(object);
    is_right.map_err(|trouble| damaged(trouble.to_string()))
}

/// A reader whose bytes also go into an upload.
struct Passing<'a> {
    reader: ObjectReader,
    writer: &'a ObjectWriter,
}

impl std::io::Read for Passing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.reader.read(buffer)?;
        let piece = bytes::Bytes::copy_from_slice(&buffer[..count]);
        self.writer.write(piece).map_err(std::io::Error::other)?;
        Ok(count)
    }
}
