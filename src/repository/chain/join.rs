//! The files of a chain, in order: the indexes of its backups joined as sorted lists, from which
//! alone it is known where every byte of every file is stored. Memory is one index for each
//! backup of the chain.

use std::cmp::Ordering;
use std::sync::Arc;

use super::files::ChainFile;
use super::walk::{Pack, Walk};
use crate::error::{Error, Result};
use crate::repository::System;
use crate::repository::index::{Member, MemberKind};
use crate::repository::marker::Marker;
use crate::repository::order;
use crate::repository::waiter::Waiter;

/// What a restore makes, in the order of the newest backup: directories, files, and last of all
/// those of its last pack.
pub enum Entry {
    /// A directory.
    Directory(Member),
    /// A file.
    File(ChainFile),
}

/// Reads a chain. Blocks: use it on a thread that may.
pub struct Join {
    newest: Walk,
    older: Vec<Link>,
    block_size: u32,
}

/// One of the older backups.
struct Link {
    walk: Walk,
    next: Option<(Arc<Pack>, Member)>,
    last: Option<String>,
    name: String,
}

impl Join {
    /// Begins with the first files. `chain` is newest first, as [`super::of`] gives it, each
    /// marker with its list of objects.
    ///
    /// # Errors
    /// A backup of several is in no order.
    pub fn new(system: &System, chain: &[&Marker], waiter: &Waiter) -> Result<Self> {
        let [newest, older @ ..] = chain else {
            return Err(Error::failed("a chain of no backups"));
        };
        if let Some(unordered) = chain.iter().find(|m| !m.in_order && !older.is_empty()) {
            return Err(Error::failed(format!(
                "the files of backup {} are in no order: no backup can be on top of it",
                unordered.id
            ))
            .at(system.place()));
        }
        if let Some(other) = older.iter().find(|m| m.block_size != newest.block_size) {
            return Err(Error::failed(format!(
                "backup {} has pages of {} bytes, {} of {}",
                newest.id, newest.block_size, other.id, other.block_size
            ))
            .at(system.place()));
        }
        let link = |marker: &Marker| {
            Ok(Link {
                walk: Walk::new(system, marker, waiter)?,
                next: None,
                last: None,
                name: format!("backup {}", marker.id),
            })
        };
        Ok(Self {
            newest: Walk::new(system, newest, waiter)?,
            older: older.iter().copied().map(link).collect::<Result<_>>()?,
            block_size: newest.block_size,
        })
    }

    fn try_next(&mut self) -> Result<Option<Entry>> {
        let Some((pack, member)) = self.newest.next().transpose()? else {
            return Ok(None);
        };
        if member.kind == MemberKind::Directory {
            return Ok(Some(Entry::Directory(member)));
        }
        let mut file = ChainFile::new(pack, member, self.block_size)?;
        let mut from = "the newest backup".to_owned();
        for (number, link) in self.older.iter_mut().enumerate() {
            if file.is_complete() {
                break;
            }
            let found = link.find(&file.path)?;
            let (pack, member) = found.ok_or_else(|| {
                Error::failed(format!(
                    "{} holds only some blocks of {}, and {} has no such file",
                    from, file.path, link.name
                ))
                .hint("the chain is damaged; choose another backup with --backup")
            })?;
            file.add(number + 1, pack, member)?;
            from.clone_from(&link.name);
        }
        if !file.is_complete() {
            return Err(Error::failed(format!(
                "{from} holds only some blocks of {}, and there is no backup below it",
                file.path
            ))
            .hint("the chain is damaged; choose another backup with --backup"));
        }
        Ok(Some(Entry::File(file)))
    }
}

impl Iterator for Join {
    type Item = Result<Entry>;

    /// # Errors
    /// An index is missing or damaged, or the backups do not make a whole file: then nothing
    /// that follows may be used.
    fn next(&mut self) -> Option<Self::Item> {
        self.try_next().transpose()
    }
}

impl Link {
    /// The member of which `path` is made. Paths must ascend.
    fn find(&mut self, path: &str) -> Result<Option<(Arc<Pack>, Member)>> {
        loop {
            let Some((pack, member)) = self
                .next
                .take()
                .map_or_else(|| self.read(), |n| Ok(Some(n)))?
            else {
                return Ok(None);
            };
            match order::compare(&member.target_path(), path) {
                Ordering::Less => {}
                Ordering::Equal => return Ok(Some((pack, member))),
                Ordering::Greater => {
                    self.next = Some((pack, member));
                    return Ok(None);
                }
            }
        }
    }

    /// The next file of those that are in order.
    fn read(&mut self) -> Result<Option<(Arc<Pack>, Member)>> {
        for read in &mut self.walk {
            let (pack, member) = read?;
            if pack.is_last || member.kind == MemberKind::Directory {
                continue;
            }
            let path = member.target_path();
            if let Some(last) = &self.last
                && order::compare(last, &path).is_ge()
            {
                return Err(Error::failed(format!(
                    "the index of {} is damaged: {path} comes behind {last}",
                    pack.key
                )));
            }
            self.last = Some(path.into_owned());
            return Ok(Some((pack, member)));
        }
        Ok(None)
    }
}
