//! All that a backup holds, pack after pack: its directories and its last pack as well, and also
//! where a backup is in no order. Memory is one index and the stored bytes of the next three,
//! which are fetched meanwhile.

use std::collections::VecDeque;
use std::io::{BufReader, Read};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use crate::digest::StoredDigest;
use crate::error::{Error, Result};
use crate::repository::index::{self, Member};
use crate::repository::marker::{Marker, StoredObject};
use crate::repository::seek_table::{NoSeekTable, SeekTable, USUAL_TAIL};
use crate::repository::waiter::Waiter;
use crate::repository::{System, codec};
use crate::storage::Store;

/// An index may be this large once it is opened: 16,384 members of a pack at the most.
const LARGEST_INDEX: u64 = 256 << 20;

/// Indexes that are fetched at once: a store answers after milliseconds, and one is read in less.
const AHEAD: usize = 3;

/// A pack of a backup.
#[derive(Debug)]
pub struct Pack {
    /// Its place among the backup's packs, from 0.
    pub number: usize,
    /// Whether it is the last, which holds `pg_control`, `backup_label` and `tablespace_map` and
    /// stands outside of the order of files.
    pub is_last: bool,
    /// Its key in the store.
    pub key: String,
    /// Bytes as stored.
    pub size: u64,
    seek_table: OnceCell<SeekTable>,
}

impl Pack {
    /// Where its frames lie; fetched once.
    ///
    /// # Errors
    /// The pack is gone, has another size than it was written with, or ends in no seek table.
    pub async fn seek_table(&self, store: &Store) -> Result<&SeekTable> {
        let fetch = async || {
            let damaged = |why: NoSeekTable| {
                Error::failed(format!("{} is damaged: {why}", self.key)).at(store.url())
            };
            let tail = self.tail(store, USUAL_TAIL).await?;
            match SeekTable::parse(&tail, self.size) {
                Err(NoSeekTable::NeedsMore(bytes)) => {
                    let tail = self.tail(store, bytes).await?;
                    SeekTable::parse(&tail, self.size).map_err(damaged)
                }
                table => table.map_err(damaged),
            }
        };
        self.seek_table.get_or_try_init(fetch).await
    }

    /// The same, if it was fetched already.
    pub(super) fn fetched_seek_table(&self) -> Option<&SeekTable> {
        self.seek_table.get()
    }

    /// The pack is not there.
    pub(super) fn missing(&self, store: &Store) -> Error {
        missing(&self.key, store.url())
    }

    /// For tests that only plan.
    #[cfg(test)]
    pub(super) fn unfetchable() -> Self {
        Self {
            number: 0,
            is_last: false,
            key: "none".to_owned(),
            size: 0,
            seek_table: OnceCell::new(),
        }
    }

    async fn tail(&self, store: &Store, size: u64) -> Result<Bytes> {
        let head = store.head(&self.key).await?;
        let found = head.ok_or_else(|| self.missing(store))?.size;
        if found != self.size {
            return Err(Error::failed(format!(
                "{} has {found} bytes in the store, {} were written",
                self.key, self.size
            ))
            .at(store.url()));
        }
        let range = self.size.saturating_sub(size)..self.size;
        let tail = store.get_range(&self.key, range).await?;
        tail.ok_or_else(|| self.missing(store))
    }
}

type Lines = Box<dyn Iterator<Item = Result<Member>> + Send>;

/// Reads every member of a backup. Blocks: use it on a thread that may.
pub struct Walk {
    system: System,
    waiter: Waiter,
    directory: String,
    /// What is still to come, the pack and its index.
    packs: VecDeque<(Arc<Pack>, StoredObject)>,
    fetching: VecDeque<(Arc<Pack>, JoinHandle<Result<Bytes>>)>,
    current: Option<(Arc<Pack>, Lines)>,
}

impl Walk {
    /// The members of the backup of `marker`, which must have its list of objects.
    pub fn new(system: &System, marker: &Marker, waiter: &Waiter) -> Result<Self> {
        let directory = system.keys().backup(&marker.id);
        let packs = marker.packs()?;
        let count = packs.len();
        let pack = |(number, (pack, index)): (usize, (&StoredObject, &StoredObject))| {
            let pack = Pack {
                number,
                is_last: number + 1 == count,
                key: format!("{directory}/{}", pack.key),
                size: pack.size,
                seek_table: OnceCell::new(),
            };
            (Arc::new(pack), index.clone())
        };
        let packs = packs.into_iter().enumerate().map(pack).collect();
        let mut members = Self {
            system: system.clone(),
            waiter: waiter.clone(),
            directory,
            packs,
            fetching: VecDeque::new(),
            current: None,
        };
        members.fetch_ahead();
        Ok(members)
    }

    fn fetch_ahead(&mut self) {
        while self.fetching.len() < AHEAD
            && let Some((pack, index)) = self.packs.pop_front()
        {
            let (system, directory) = (self.system.clone(), self.directory.clone());
            let fetch = async move { system.object_of(&directory, &index).await };
            let fetch = self.waiter.runtime().spawn(fetch);
            self.fetching.push_back((pack, fetch));
        }
    }

    /// Nothing comes any more.
    pub(super) fn end(&mut self) {
        self.packs.clear();
        self.current = None;
        for (_, fetch) in self.fetching.drain(..) {
            fetch.abort();
        }
    }

    fn try_next(&mut self) -> Result<Option<(Arc<Pack>, Member)>> {
        loop {
            if let Some((pack, lines)) = &mut self.current
                && let Some(member) = lines.next()
            {
                return Ok(Some((Arc::clone(pack), member?)));
            }
            let Some((pack, fetching)) = self.fetching.pop_front() else {
                return Ok(None);
            };
            let stored = self.waiter.wait(async {
                let fetched = fetching.await;
                fetched.map_err(|error| Error::failed("a fetch of an index died").because(error))?
            })?;
            self.fetch_ahead();
            self.current = Some((Arc::clone(&pack), self.lines(&pack, stored)?));
        }
    }

    fn lines(&self, pack: &Pack, stored: Bytes) -> Result<Lines> {
        let key = pack
            .key
            .strip_prefix(&self.directory)
            .map_or(pack.key.as_str(), |key| key.trim_start_matches('/'));
        let text = codec::stream_decoder(std::io::Cursor::new(stored))
            .map_err(|error| {
                Error::failed(format!("the index of {key} is damaged")).because(error)
            })?
            .take(LARGEST_INDEX);
        let place = format!("{} of {}", pack.key, self.system.place());
        let members = index::read(BufReader::new(text), key)?;
        Ok(Box::new(members.map(move |member| {
            member.map_err(|error| error.at(&place))
        })))
    }
}

impl Iterator for Walk {
    type Item = Result<(Arc<Pack>, Member)>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.try_next();
        if next.is_err() {
            // What follows an error is of no use.
            self.end();
        }
        next.transpose()
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        self.end();
    }
}

impl System {
    /// A small object of a backup whole, its SHA-256 checked. `directory` is the backup's.
    pub async fn object_of(&self, directory: &str, object: &StoredObject) -> Result<Bytes> {
        let key = format!("{directory}/{}", object.key);
        let fetched = self.store().get_limited(&key, object.size).await?;
        let bytes = fetched.ok_or_else(|| missing(&key, self.place()))?;
        let found = StoredDigest::of(&bytes);
        if found != object.sha256 {
            return Err(Error::failed(format!(
                "{key} is damaged: its SHA-256 is {found}, {} was written",
                object.sha256
            ))
            .at(self.place()));
        }
        Ok(bytes)
    }
}

fn missing(key: &str, place: impl std::fmt::Display) -> Error {
    Error::failed(format!(
        "{key} is named by the backup and is not in the store"
    ))
    .at(place)
    .hint("the backup is incomplete: choose another, or another repository")
}
