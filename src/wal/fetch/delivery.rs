//! From an object to a file that PostgreSQL may replay: opened, verified, judged, cut, and
//! only then under its name.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::{NewTablespaces, Place, Request, Turn};
use crate::digest::PlainHasher;
use crate::error::{Error, Exit, IoContext, Result};
use crate::postgres::wal_records::{self, CreatedTablespace};
use crate::postgres::{SegmentSize, WalFileName};
use crate::repository::System;
use crate::repository::bridge::ObjectReader;
use crate::repository::codec;
use crate::repository::keys::WalObject;

/// Brings an object to the destination of `request`, whose turn this is.
pub(super) async fn deliver(
    system: &System,
    object: WalObject,
    request: Request<'_>,
    turn: &Turn,
) -> Result<()> {
    let (mut file, temporary) = (turn.begin()?, turn.temporary().to_owned());
    let guard = TablespaceGuard::of(request);
    with_content(system, object, request.segment_size, move |content| {
        content.write_to(&mut file, &temporary)?;
        guard.check(&temporary, object.name)
    })
    .await?;
    publish(turn.temporary(), turn, request)
}

/// Gives the plain bytes of an object to `take`, which runs on a thread that may block.
///
/// # Errors
/// What `take` says, with the object's place where it names none itself.
pub(super) async fn with_content<T: Send + 'static>(
    system: &System,
    object: WalObject,
    size: SegmentSize,
    take: impl FnOnce(Content) -> Result<T> + Send + 'static,
) -> Result<T> {
    let key = system.keys().wal_object(object);
    let place = format!("{key} of {}", system.place());
    if object.encrypted {
        return Err(Error::failed(format!("{} is encrypted", object.name))
            .at(place)
            .hint("this version cannot open it; install a newer Seawall"));
    }
    let stream = system.store().get_stream(&key).await?.ok_or_else(|| {
        Error::failed(format!("{} was listed and is gone", object.name)).at(&place)
    })?;
    let reader = ObjectReader::new(stream);
    let content = Content {
        reader,
        object,
        sizes: object.name.sizes(size),
    };
    tokio::task::spawn_blocking(move || take(content))
        .await
        .map_err(|error| Error::failed("fetching died").because(error))?
        .map_err(|error| match error.exit() {
            Exit::Failed if error.advice().is_none() => error.at(place),
            _ => error,
        })
}

/// An object that arrives.
pub(super) struct Content {
    reader: ObjectReader,
    object: WalObject,
    /// How many plain bytes it may have.
    sizes: RangeInclusive<u64>,
}

impl Content {
    /// Writes its plain bytes to `file`, which lies at `path`, and checks what arrived: its
    /// digest and its length.
    pub(super) fn write_to(self, file: &mut File, path: &Path) -> Result<()> {
        let object = self.object;
        let damaged =
            |why: String| Error::failed(format!("the archived {} is damaged: {why}", object.name));
        let mut plain = codec::stream_decoder(self.reader)
            .map_err(|error| damaged(error.to_string()))?
            .take(self.sizes.end().saturating_add(1));
        let mut hasher = PlainHasher::default();
        let mut size = 0;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = match plain.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) => return Err(damaged(error.to_string()).because(error)),
            };
            hasher.update(&buffer[..count]);
            size += count as u64;
            file.write_all(&buffer[..count]).on("write", path)?;
        }
        let digest = hasher.finish();
        if digest != object.digest {
            return Err(damaged(format!("its content has the digest {digest}")));
        }
        if !self.sizes.contains(&size) {
            return Err(damaged(format!("it holds {size} bytes")));
        }
        // A network file system may tell only at a close that its disk is full.
        file.try_clone()
            .and_then(|file| Ok(nix::unistd::close(file)?))
            .on("write", path)
    }
}

/// Cuts what is not of the line, and gives the file its name. It appears there whole.
pub(super) fn publish(file: &Path, turn: &Turn, request: Request<'_>) -> Result<()> {
    if let Place::Holds(end) = request.place() {
        let size = request.segment_size;
        zero_from(file, end.offset(size), size.bytes())?;
    }
    turn.publish(file)
}

/// Replaces what is not of the line by zeros, which replay takes for the end of the WAL: what a
/// successor begins with is such a copy.
fn zero_from(file: &Path, offset: u64, size: u64) -> Result<()> {
    let cut = || {
        let file = OpenOptions::new().write(true).open(file)?;
        file.set_len(offset)?;
        file.set_len(size)
    };
    cut().on("cut", file)
}

/// Keeps replay from writing into a tablespace that is somebody's.
struct TablespaceGuard {
    rule: NewTablespaces,
    /// `pg_tblspc` of the recovering cluster.
    links: PathBuf,
}

impl TablespaceGuard {
    fn of(request: Request<'_>) -> Self {
        let data_directory = request.destination.parent().and_then(Path::parent);
        let links = data_directory.unwrap_or(Path::new("/")).join("pg_tblspc");
        Self {
            rule: request.new_tablespaces,
            links,
        }
    }

    fn check(&self, segment: &Path, name: WalFileName) -> Result<()> {
        if self.rule == NewTablespaces::Allow || !matches!(name, WalFileName::Segment(_)) {
            return Ok(());
        }
        for tablespace in created_tablespaces(segment)? {
            let Some(path) = &tablespace.path else {
                return Err(refused(name, "at a place that is not known here"));
            };
            // A link that is there was made by the restore, or by an earlier replay.
            let ours = self.links.join(tablespace.oid.to_string()).is_symlink();
            let unused = std::fs::read_dir(path).map_or(!path.exists(), |mut e| e.next().is_none());
            if !ours && (self.rule == NewTablespaces::Refuse || !unused) {
                return Err(refused(name, &format!("at {}", path.display())));
            }
        }
        Ok(())
    }
}

/// The tablespaces that replay of this segment would create.
pub(super) fn created_tablespaces(segment: &Path) -> Result<Vec<CreatedTablespace>> {
    let file = File::open(segment).on("open", segment)?;
    let created = wal_records::created_tablespaces(std::io::BufReader::new(file));
    Ok(created.on("read the records of", segment)??)
}

fn refused(name: WalFileName, place: &str) -> Error {
    Error::failed(format!("{name} creates a tablespace {place}, outside this recovery's directories"))
        .hint("it was created after the base backup: take a new backup, which knows it and can put it elsewhere")
}
