//! Bringing packs into place: fetched, opened and written several at once, each file's digest
//! verified as it is written.

use std::io::{BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use seawall::digest::PlainHasher;
use seawall::error::{Error, IoContext, Result};
use seawall::postgres::layout;
use seawall::progress::Progress;
use seawall::repository::System;
use seawall::repository::bridge::ObjectReader;
use seawall::repository::codec;
use seawall::repository::index::{self, Member, MemberKind};
use seawall::repository::marker::{Marker, StoredObject};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::objects::{blocking, create, damaged, fetch_checked, make_directory, missing};

/// An index may be this large once it is opened: 16,384 members of a pack at the most.
const LARGEST_INDEX: u64 = 256 << 20;

/// Bytes that are written at once.
const BUFFER: usize = 256 << 10;

/// What was written.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) files: u64,
    pub(crate) plain_bytes: u64,
    pub(crate) fetched_bytes: u64,
    /// How long threads waited for bytes of packs, all together.
    pub(crate) waited: Duration,
    /// How long threads were making and writing files, all together.
    pub(crate) wrote: Duration,
    /// `pg_control`, which is written last, by the caller.
    pub(crate) control: Vec<u8>,
    pub(crate) control_mode: u32,
}

/// Writes every file of the backup below `root`, but for `pg_control`, `tablespace_map` and
/// the signal files of the source.
pub(crate) async fn write_all(
    system: &System,
    marker: &Marker,
    root: &Path,
    jobs: usize,
    progress: &Progress,
) -> Result<Written> {
    let packs: Vec<(StoredObject, StoredObject)> = marker
        .packs()?
        .into_iter()
        .map(|(p, i)| (p.clone(), i.clone()))
        .collect();
    let directory = system.keys().backup(&marker.id);
    let (threads, mut all_ended) = Threads::new();
    let written = futures::stream::iter(packs)
        .map(|(pack, index)| write_pack(system, &directory, pack, index, root, progress, &threads))
        .buffer_unordered(jobs)
        .try_fold(Written::default(), |mut sum, one| async move {
            sum.files += one.files;
            sum.plain_bytes += one.plain_bytes;
            sum.fetched_bytes += one.fetched_bytes;
            sum.waited += one.waited;
            sum.wrote += one.wrote;
            if !one.control.is_empty() {
                sum.control = one.control;
                sum.control_mode = one.control_mode;
            }
            Ok(sum)
        })
        .await;
    // After one has failed, the others must not go on writing behind the caller's back.
    drop(threads);
    let _ = all_ended.recv().await;
    let written = written?;
    if written.files != marker.files {
        return Err(Error::failed(format!(
            "backup {} has {} files, its packs hold {}",
            marker.id, marker.files, written.files
        ))
        .at(system.place()));
    }
    if written.control.is_empty() {
        return Err(
            Error::failed(format!("backup {} holds no pg_control", marker.id)).at(system.place()),
        );
    }
    Ok(written)
}

/// The threads that write. Dropping this makes them come to their end: what they read ends.
struct Threads {
    fetching: Mutex<Vec<AbortHandle>>,
    /// Each thread holds one; nothing is ever sent.
    alive: mpsc::Sender<()>,
}

impl Threads {
    /// The receiver hears the end of the last thread.
    fn new() -> (Self, mpsc::Receiver<()>) {
        let (alive, all_ended) = mpsc::channel(1);
        let fetching = Mutex::default();
        (Self { fetching, alive }, all_ended)
    }

    fn add(&self, reader: &ObjectReader) -> mpsc::Sender<()> {
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        fetching.retain(|other| !other.is_finished());
        fetching.push(reader.abort_handle());
        self.alive.clone()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let fetching = self.fetching.get_mut();
        for one in fetching.unwrap_or_else(PoisonError::into_inner) {
            one.abort();
        }
    }
}

async fn write_pack(
    system: &System,
    directory: &str,
    pack: StoredObject,
    index: StoredObject,
    root: &Path,
    progress: &Progress,
    threads: &Threads,
) -> Result<Written> {
    let place = format!("{directory}/{} of {}", pack.key, system.place());
    let index_text = fetch_checked(system, directory, &index).await?;
    let stream = system
        .store()
        .get_stream(&format!("{directory}/{}", pack.key))
        .await?
        .ok_or_else(|| missing(&pack.key, system))?;
    if stream.size != pack.size {
        return Err(Error::failed(format!(
            "{} has {} bytes in the store, {} were written",
            pack.key, stream.size, pack.size
        ))
        .at(place));
    }
    let reader = ObjectReader::new(stream);
    let alive = threads.add(&reader);
    let (root, progress, key) = (root.to_owned(), progress.clone(), pack.key.clone());
    let mut written = blocking(move || {
        let _alive = alive;
        let text = codec::stream_decoder(&index_text[..])
            .map_err(|error| damaged(&key, &error))?
            .take(LARGEST_INDEX);
        let members = index::read(BufReader::new(text), &key)?;
        let mut waited = Duration::ZERO;
        let reader = Waiting {
            reader,
            waited: &mut waited,
        };
        let plain = codec::stream_decoder(reader).map_err(|error| damaged(&key, &error))?;
        let mut written = extract(plain, members, &root, &key, &progress)?;
        written.waited = waited;
        Ok(written)
    })
    .await
    .map_err(|error| {
        if error.advice().is_none() {
            error.at(place)
        } else {
            error
        }
    })?;
    written.fetched_bytes = pack.size + index.size;
    Ok(written)
}

/// Reads the plain tar stream from start to end and writes each member where it belongs.
fn extract(
    mut plain: impl Read,
    members: impl Iterator<Item = Result<Member>>,
    root: &Path,
    pack: &str,
    progress: &Progress,
) -> Result<Written> {
    let mut written = Written::default();
    let mut at = 0;
    let mut buffer = vec![0; BUFFER];
    for member in members {
        let member = member?;
        let path = root.join(&member.path);
        if member.kind == MemberKind::Directory {
            make_directory(&path)?;
            set_mode(&path, member.mode)?;
            continue;
        }
        let gap = member.offset.checked_sub(at).ok_or_else(|| {
            Error::failed(format!(
                "the index of {pack} names {} out of order",
                member.path
            ))
        })?;
        skip(&mut plain, gap, &mut buffer).map_err(|error| damaged(pack, &error))?;
        let mut source = Verified {
            plain: &mut plain,
            hasher: PlainHasher::default(),
            pack,
        };
        let kept = match member.path.as_str() {
            layout::CONTROL_FILE => {
                written.control = source.read_small(member.size)?;
                written.control_mode = member.mode;
                true
            }
            name if is_left_out(name) => {
                source.read_small(member.size)?;
                false
            }
            _ => {
                written.wrote += source.copy_to(&path, &member, &mut buffer)?;
                true
            }
        };
        if Some(source.hasher.finish()) != member.digest {
            return Err(Error::failed(format!(
                "{pack} is damaged: {} has another digest than the index says",
                member.path
            )));
        }
        at = member.offset + member.size;
        written.files += 1;
        if kept {
            written.plain_bytes += member.size;
            progress.add(member.size);
        }
    }
    // What is left is padding and the end of the tar stream; reading it checks the last frame.
    std::io::copy(&mut plain, &mut std::io::sink()).map_err(|error| damaged(pack, &error))?;
    Ok(written)
}

/// A restored directory has no tablespace_map, since recovery would make every link from it,
/// and no signal file of its source.
fn is_left_out(path: &str) -> bool {
    [layout::TABLESPACE_MAP, "recovery.signal", "standby.signal"].contains(&path)
}

/// Reads one member and hashes what it reads.
struct Verified<'a, R> {
    plain: &'a mut R,
    hasher: PlainHasher,
    pack: &'a str,
}

impl<R: Read> Verified<'_, R> {
    fn read_small(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        let read = self
            .plain
            .take(size)
            .read_to_end(&mut content)
            .map_err(|error| damaged(self.pack, &error))?;
        if read as u64 != size {
            return Err(damaged(
                self.pack,
                &std::io::ErrorKind::UnexpectedEof.into(),
            ));
        }
        self.hasher.update(&content);
        Ok(content)
    }

    /// Returns how long making and writing the file took, without reading.
    fn copy_to(&mut self, path: &Path, member: &Member, buffer: &mut [u8]) -> Result<Duration> {
        let started = Instant::now();
        let mut file = create(path, member.mode)?;
        let mut wrote = started.elapsed();
        let mut left = member.size;
        while left > 0 {
            let wanted = left.min(buffer.len() as u64) as usize;
            self.plain
                .read_exact(&mut buffer[..wanted])
                .map_err(|error| damaged(self.pack, &error))?;
            self.hasher.update(&buffer[..wanted]);
            let started = Instant::now();
            file.write_all(&buffer[..wanted]).on("write", path)?;
            wrote += started.elapsed();
            left -= wanted as u64;
        }
        Ok(wrote)
    }
}

/// Measures how long its reader lets it wait.
struct Waiting<'a, R> {
    reader: R,
    waited: &'a mut Duration,
}

impl<R: Read> Read for Waiting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let started = Instant::now();
        let read = self.reader.read(buffer);
        *self.waited += started.elapsed();
        read
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .on("set the mode of", path)
}

fn skip(plain: &mut impl Read, mut count: u64, buffer: &mut [u8]) -> std::io::Result<()> {
    while count > 0 {
        let wanted = count.min(buffer.len() as u64) as usize;
        plain.read_exact(&mut buffer[..wanted])?;
        count -= wanted as u64;
    }
    Ok(())
}
